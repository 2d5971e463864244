//! What happens on other relays of a cluster (`relay.md` §15).

use std::collections::HashSet;

use threadline::time::iso_ms;
use threadline::v1::close;
use threadline::v1::frames::{
    DeliveryExpired, DiscoverFilter, DiscoveredAgent, Presence, ServerFrame, Visibility,
};
use threadline::v2::frames::Outcome;
use threadline::{Fingerprint, MessageId};

use super::presence::{encode, matches};
use super::{ConnId, Core, Pending, Timer};
use crate::config::EngineKind;
use crate::store::{BlobNote, Departed, OnlineAgent, QueueOp, QueueTotals, RegistryOp, RelayName, Slot};

/// News from another relay, or from the engine that they share.
#[derive(Debug)]
pub enum ClusterEvent {
    /// There may be mail for an agent with a session here.
    Mail {
        /// Whose.
        recipient: Fingerprint,
    },
    /// An agent has a session on another relay, or it changed.
    Came(Box<OnlineAgent>),
    /// It is there no more.
    Left {
        /// Whose.
        address: Fingerprint,
        /// Which of its sessions.
        slot: Slot,
    },
    /// Another relay took a session of an agent over.
    Displaced {
        /// Whose.
        address: Fingerprint,
        /// Which of its sessions.
        slot: Slot,
    },
    /// A message of a sender here left custody elsewhere.
    Gone(Gone),
    /// Another relay says something of a blob.
    Blob(RelayName, BlobNote),
    /// Totals of the whole queue.
    Totals(QueueTotals),
    /// The engine cannot be reached for so long that clients are better off elsewhere.
    CutOff,
}

/// A message that left custody on another relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Its number.
    pub seq: u64,
    /// Who sent it.
    pub sender: Fingerprint,
    /// Its id.
    pub id: MessageId,
    /// Who got it, or should have.
    pub recipient: Fingerprint,
    /// When it was stored, in Unix milliseconds.
    pub stored_ms: i64,
    /// Confirmed by the recipient; else expired.
    pub delivered: bool,
}

impl Core {
    pub(super) fn is_clustered(&self) -> bool {
        self.config.engine == EngineKind::Nats
    }

    /// Highest number of mail that was there before a session.
    pub(super) fn old_to(&self) -> u64 {
        // Until the session has read everything once.
        if self.is_clustered() { u64::MAX } else { self.last_seq }
    }

    /// Tells the other relays of a session, or what it is now.
    pub(super) fn claim_in_cluster(&mut self, id: ConnId) {
        let Some(session) = self.session(id).filter(|_| self.is_clustered()) else { return };
        let agent = OnlineAgent {
            key: session.key,
            address: session.address,
            visibility: session.visibility,
            listed: session.listed,
            first_seen_ms: session.first_seen_ms,
            since_ms: session.since_ms,
            metadata: (*session.metadata).clone(),
            slot: session.slot(),
            lead: session.device.as_ref().and_then(|device| device.lead()),
            siblings: session.siblings.to_vec(),
            relay: RelayName::default(),
        };
        self.store_queue(Pending::Quiet, QueueOp::Online(Box::new(agent)));
    }

    /// A session is over for the other relays, too.
    pub(super) fn give_up_claim(&mut self, address: Fingerprint, slot: Slot) {
        if self.is_clustered() {
            self.store_queue(Pending::Quiet, QueueOp::Offline { address, slot });
        }
    }

    /// Whether an agent has a session on another relay.
    pub(super) fn is_elsewhere(&self, address: &Fingerprint) -> bool {
        self.remote.contains_key(address)
    }

    /// Sessions of an agent on other relays.
    pub(super) fn elsewhere(&self, address: &Fingerprint) -> &[OnlineAgent] {
        self.remote.get(address).map_or(&[], Vec::as_slice)
    }

    /// Whether mail for an agent goes to a session on another relay.
    pub(super) fn reads_elsewhere(&self, address: &Fingerprint, sealed: bool) -> bool {
        self.elsewhere(address).iter().any(|agent| agent.lead.is_some() || agent.slot.is_none() && !sealed)
    }

    /// A session begins here that may have been on another relay. Returns whether its agent was on one.
    pub(super) fn moved_here(&mut self, address: &Fingerprint, slot: Slot) -> bool {
        let was_elsewhere = self.is_elsewhere(address);
        self.forget_elsewhere(address, slot);
        was_elsewhere
    }

    fn forget_elsewhere(&mut self, address: &Fingerprint, slot: Slot) -> Option<OnlineAgent> {
        let agents = self.remote.get_mut(address)?;
        let at = agents.iter().position(|agent| agent.slot == slot)?;
        let agent = agents.swap_remove(at);
        if agents.is_empty() {
            self.remote.remove(address);
        }
        Some(agent)
    }

    pub(super) fn cluster(&mut self, event: ClusterEvent, now_ms: i64) {
        match event {
            ClusterEvent::Mail { recipient } => {
                if let Some(conn) = self.reader(&recipient, false) {
                    self.mail_waits(conn, now_ms);
                }
            }
            ClusterEvent::Came(agent) => self.came_elsewhere(*agent, now_ms),
            ClusterEvent::Left { address, slot } => self.left_elsewhere(&address, slot, now_ms),
            ClusterEvent::Displaced { address, slot: None } => {
                if let Some(conn) = self.sessions.get(&address).copied() {
                    self.displace(conn, now_ms);
                }
            }
            ClusterEvent::Displaced { address, slot: Some(device) } => {
                self.replaced_elsewhere(&address, device, now_ms);
            }
            ClusterEvent::Gone(gone) => self.gone_elsewhere(gone, now_ms),
            ClusterEvent::Blob(relay, note) => self.blob_news(relay, note, now_ms),
            ClusterEvent::Totals(totals) => self.totals = totals,
            ClusterEvent::CutOff => {
                let live: Vec<ConnId> =
                    self.sessions.values().chain(self.devices.values().flatten()).copied().collect();
                for conn in live {
                    self.drop_conn(conn, close::GOING_AWAY, "Storage cannot be reached from here", now_ms);
                }
            }
        }
    }

    fn came_elsewhere(&mut self, agent: OnlineAgent, now_ms: i64) {
        let (address, slot) = (agent.address, agent.slot);
        let here = self.is_live(&address);
        let left_a_moment_ago = self.stop_leaving(&address, slot);
        let audience = self.audience_of_agent(&agent, now_ms);
        let (key, metadata) = (agent.key, agent.metadata.clone());
        let there = self.is_elsewhere(&address);
        let before = self.forget_elsewhere(&address, slot);
        self.remote.entry(address).or_default().push(agent.clone());
        if !here && !there && !left_a_moment_ago {
            self.announce(&audience, key, Presence::Online, Some(metadata), now_ms);
        }
        self.device_elsewhere(&agent, before.as_ref(), now_ms);
    }

    fn left_elsewhere(&mut self, address: &Fingerprint, slot: Slot, now_ms: i64) {
        let Some(agent) = self.forget_elsewhere(address, slot) else { return };
        // It moved to this relay.
        if self.conns_of(address).iter().any(|conn| self.session(*conn).is_some_and(|s| s.slot() == slot)) {
            return;
        }
        self.device_gone_elsewhere(&agent, now_ms);
        if self.is_online(address) {
            return;
        }
        let audience = self.audience_of_agent(&agent, now_ms);
        self.announce(&audience, agent.key, Presence::Offline, None, now_ms);
        self.store_registry(Pending::Quiet, RegistryOp::Left { key: agent.key, at_ms: now_ms });
    }

    /// An agent whose last session here ended has one again. Returns whether that was so a moment ago.
    pub(super) fn stop_leaving(&mut self, address: &Fingerprint, slot: Slot) -> bool {
        let Some(leaving) = self.leaving.remove(address) else { return false };
        self.timers.remove(&(leaving.at_ms, Timer::Offline(*address)));
        let left = leaving.session.slot();
        if left != slot {
            self.give_up_claim(*address, left);
        }
        true
    }

    fn gone_elsewhere(&mut self, gone: Gone, now_ms: i64) {
        self.awaiting.remove(&gone.seq);
        let Gone { sender, id, recipient, stored_ms, delivered, .. } = gone;
        let message = Departed { sender, recipient, id, stored_ms, size: 0, last: false };
        let outcome = if delivered { Outcome::Taken } else { Outcome::Expired };
        if self.tell_sender(&message, outcome, now_ms) {
            return;
        }
        let Departed { id, .. } = message;
        if delivered {
            return self.send_fate(sender, id, None);
        }
        let notice = DeliveryExpired {
            message_id: id.as_str().to_owned(),
            recipient_id: recipient.to_string(),
            queued_at: iso_ms(stored_ms),
        };
        self.send_to(sender, ServerFrame::DeliveryExpired(notice));
    }

    fn audience_of_agent(&self, agent: &OnlineAgent, now_ms: i64) -> Vec<ConnId> {
        if agent.visibility == Visibility::Private {
            return self.siblings_of(&agent.address, &agent.siblings);
        }
        self.audience_of(&agent.address, self.is_open(agent, now_ms))
    }

    /// Whether everybody may see that the agent is there.
    fn is_open(&self, agent: &OnlineAgent, now_ms: i64) -> bool {
        let visible = agent.visibility == Visibility::Public || agent.listed;
        let aged = now_ms >= agent.first_seen_ms + self.config.aging_ms();
        visible && agent.visibility != Visibility::Private && aged
    }

    /// Since when an agent that may be seen is on another relay.
    pub(super) fn remote_since(&self, address: &Fingerprint) -> Option<i64> {
        let seen = self.elsewhere(address).iter().filter(|agent| agent.visibility != Visibility::Private);
        seen.map(|agent| agent.since_ms).min()
    }

    /// Adds public agents of other relays to a discovery.
    pub(super) fn add_remote(
        &self,
        agents: &mut Vec<DiscoveredAgent>,
        listed: &HashSet<Fingerprint>,
        filter: &DiscoverFilter,
        most: usize,
        now_ms: i64,
    ) {
        let takes_mail = |agent: &&OnlineAgent| agent.slot.is_none() || agent.lead.is_some();
        let open = self.remote.values().flatten().filter(takes_mail).filter(|a| self.is_open(a, now_ms));
        let found = open.filter(|agent| !listed.contains(&agent.address) && matches(&agent.metadata, filter));
        let entries = found.map(|agent| DiscoveredAgent {
            agent_id: agent.address,
            name: agent.metadata.name.clone(),
            framework: agent.metadata.framework.clone(),
            capabilities: agent.metadata.capabilities.clone(),
            status: Presence::Online,
            connected_since: Some(iso_ms(agent.since_ms)),
            last_seen: Some(iso_ms(now_ms)),
            identity_key: Some(encode(&agent.key)),
        });
        agents.extend(entries.take(most.saturating_sub(agents.len())));
    }
}
