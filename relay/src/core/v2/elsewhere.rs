//! Devices of an agent on other relays of a cluster, and what relays share of devices.

use threadline::Fingerprint;
use threadline::v2::frames::{Presence, Role};
use threadline::v2::session::close;
use threadline::v2::{Bin, DeviceId};

use super::{Device, Pending, unsigned};
use crate::core::{ConnId, Core};
use crate::store::registry::devices::DeviceOp;
use crate::store::{Lead, OnlineAgent, QueueOp, RegistryOp};

impl Device {
    /// Since when it takes the mail, if it does.
    pub(in crate::core) fn lead(&self) -> Option<Lead> {
        self.is_active().then_some(Lead { lease: self.lease, since_ms: self.active_ms })
    }
}

impl Core {
    /// Asks for something about devices where it is kept: in the registry, or in the engine that several relays share.
    pub(super) fn ask(&mut self, id: ConnId, pending: Pending, op: DeviceOp) {
        let pending = crate::core::Pending::V2(id, pending);
        if self.is_clustered() && op.identity().is_some() {
            self.store_queue(pending, QueueOp::Devices(Box::new(op)));
        } else {
            self.store_registry(pending, RegistryOp::Devices(op));
        }
    }

    /// From when on a device that becomes active now is: later than every other, whatever the clocks say.
    pub(super) fn lead_from(&self, address: &Fingerprint, now_ms: i64) -> i64 {
        let leads = self.elsewhere(address).iter().filter_map(|agent| agent.lead);
        leads.fold(now_ms, |from, lead| from.max(lead.since_ms.saturating_add(1)))
    }

    /// A device came to another relay or changed its role there.
    pub(in crate::core) fn device_elsewhere(
        &mut self,
        agent: &OnlineAgent,
        before: Option<&OnlineAgent>,
        now_ms: i64,
    ) {
        let (Some(dev), address) = (agent.slot, agent.address) else { return };
        if let Some(lead) = agent.lead {
            for conn in self.devices.get(&address).cloned().unwrap_or_default() {
                if let Some(device) = self.device_mut(conn) {
                    device.fence = device.fence.max(lead.lease);
                }
            }
            // The same device has moved and is not a standby of itself.
            let ours = self.active_device(&address).filter(|conn| {
                let own = self.device(*conn);
                own.is_some_and(|own| own.id.0 != dev && (own.lead(), own.id.0) < (Some(lead), dev))
            });
            if let Some(conn) = ours {
                self.demote(conn, now_ms);
            }
        }
        let led = before.is_some_and(|before| before.lead.is_some());
        let leads = agent.lead.is_some();
        if before.is_none() || led != leads {
            let role = if leads { Role::Active } else { Role::Standby };
            self.tell_of_other(agent, Some(role), now_ms);
        }
        if led && !leads {
            self.read_anew(&address, now_ms);
        }
    }

    /// A device of another relay is there no more.
    pub(in crate::core) fn device_gone_elsewhere(&mut self, agent: &OnlineAgent, now_ms: i64) {
        if agent.slot.is_some() {
            self.tell_of_other(agent, None, now_ms);
        }
        if agent.lead.is_some() {
            self.read_anew(&agent.address, now_ms);
        }
    }

    fn tell_of_other(&mut self, agent: &OnlineAgent, role: Option<Role>, now_ms: i64) {
        let (key, dev) = (Bin(agent.key), agent.slot.map(Bin));
        let news = Presence { key, dev, on: role.is_some(), role, at: unsigned(now_ms) };
        for conn in self.devices.get(&agent.address).cloned().unwrap_or_default() {
            self.send_v2(conn, news.clone());
        }
    }

    /// A device of this relay logged in at another.
    pub(in crate::core) fn replaced_elsewhere(
        &mut self,
        address: &Fingerprint,
        device: [u8; 16],
        now_ms: i64,
    ) {
        let device: DeviceId = Bin(device);
        for conn in self.devices.get(address).cloned().unwrap_or_default() {
            if self.device(conn).is_some_and(|own| own.id == device) {
                self.end_v2(conn, close::REPLACED, now_ms);
            }
        }
    }

    /// The mail of an agent goes to another session than before: it gets what is not confirmed.
    pub(super) fn read_anew(&mut self, address: &Fingerprint, now_ms: i64) {
        if let Some(reader) = self.reader(address, false) {
            self.read_again_from(reader, 0);
            self.read_backlog(reader, now_ms);
        }
    }
}
