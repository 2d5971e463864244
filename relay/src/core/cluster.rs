//! What happens on other relays of a cluster (`relay.md` §15).

use std::collections::HashSet;

use threadline::time::iso_ms;
use threadline::v1::close;
use threadline::v1::frames::{
    DeliveryExpired, DiscoverFilter, DiscoveredAgent, Presence, ServerFrame, Visibility,
};
use threadline::{Fingerprint, MessageId};

use super::presence::{encode, matches};
use super::{ConnId, Core, Pending, Timer};
use crate::config::EngineKind;
use crate::store::{OnlineAgent, QueueOp, QueueTotals, RegistryOp};

/// News from another relay, or from the engine that they share.
#[derive(Debug)]
pub enum ClusterEvent {
    /// There may be mail for an agent with a session here.
    Mail {
        /// Whose.
        recipient: Fingerprint,
    },
    /// An agent has its session on another relay.
    Came(Box<OnlineAgent>),
    /// It is there no more.
    Left {
        /// Which.
        address: Fingerprint,
    },
    /// Another relay took the session of an agent over.
    Displaced {
        /// Whose.
        address: Fingerprint,
    },
    /// A message of a sender here left custody elsewhere.
    Gone(Gone),
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

    /// The session on a connection becomes the one of its agent in the cluster.
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
        };
        self.store_queue(Pending::Quiet, QueueOp::Online(Box::new(agent)));
    }

    pub(super) fn cluster(&mut self, event: ClusterEvent, now_ms: i64) {
        match event {
            ClusterEvent::Mail { recipient } => {
                if let Some(conn) = self.sessions.get(&recipient).copied() {
                    self.mail_waits(conn, now_ms);
                }
            }
            ClusterEvent::Came(agent) => self.came_elsewhere(*agent, now_ms),
            ClusterEvent::Left { address } => self.left_elsewhere(&address, now_ms),
            ClusterEvent::Displaced { address } => {
                if let Some(conn) = self.sessions.get(&address).copied() {
                    self.displace(conn, now_ms);
                }
            }
            ClusterEvent::Gone(gone) => self.gone_elsewhere(gone),
            ClusterEvent::Totals(totals) => self.totals = totals,
            ClusterEvent::CutOff => {
                let live: Vec<ConnId> = self.sessions.values().copied().collect();
                for conn in live {
                    self.drop_conn(conn, close::GOING_AWAY, "Storage cannot be reached from here", now_ms);
                }
            }
        }
    }

    fn came_elsewhere(&mut self, agent: OnlineAgent, now_ms: i64) {
        let address = agent.address;
        let here = self.sessions.contains_key(&address);
        let leaving = self.leaving.remove(&address);
        if let Some(leaving) = &leaving {
            self.timers.remove(&(leaving.at_ms, Timer::Offline(address)));
        }
        let audience = self.audience_of_agent(&agent, now_ms);
        let (key, metadata) = (agent.key, agent.metadata.clone());
        let known = self.remote.insert(address, agent).is_some();
        if !here && !known && leaving.is_none() {
            self.announce(&audience, key, Presence::Online, Some(metadata), now_ms);
        }
    }

    fn left_elsewhere(&mut self, address: &Fingerprint, now_ms: i64) {
        let Some(agent) = self.remote.remove(address) else { return };
        if self.sessions.contains_key(address) || self.leaving.contains_key(address) {
            return;
        }
        let audience = self.audience_of_agent(&agent, now_ms);
        self.announce(&audience, agent.key, Presence::Offline, None, now_ms);
        self.store_registry(Pending::Quiet, RegistryOp::Left { key: agent.key, at_ms: now_ms });
    }

    fn gone_elsewhere(&mut self, gone: Gone) {
        self.awaiting.remove(&gone.seq);
        if gone.delivered {
            return self.send_fate(gone.sender, gone.id, None);
        }
        let notice = DeliveryExpired {
            message_id: gone.id.as_str().to_owned(),
            recipient_id: gone.recipient.to_string(),
            queued_at: iso_ms(gone.stored_ms),
        };
        self.send_to(gone.sender, ServerFrame::DeliveryExpired(notice));
    }

    fn audience_of_agent(&self, agent: &OnlineAgent, now_ms: i64) -> Vec<ConnId> {
        if agent.visibility == Visibility::Private {
            return Vec::new();
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
        let agent = self.remote.get(address)?;
        (agent.visibility != Visibility::Private).then_some(agent.since_ms)
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
        let open = self.remote.values().filter(|agent| self.is_open(agent, now_ms));
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
