//! Who is there, who may know, and `discover` (`relay.md` §5).

use std::collections::{HashMap, HashSet};

use threadline::Fingerprint;
use threadline::time::iso_ms;
use threadline::v1::frames::{
    DiscoverFilter, DiscoveredAgent, ErrorCode, Metadata, Presence, PresenceChange, ServerFrame, Visibility,
};
use threadline::v2::{Bin, frames};

use super::conn::{Session, Subscription};
use super::v2::unsigned;
use super::{ConnId, Core, Pending, Timer};
use crate::registry::clean;
use crate::store::RegistryOp;
use crate::store::registry::Found;

/// Milliseconds without a new session before an agent counts as gone.
const GRACE_MS: i64 = 3_000;
const NAMED_PER_SESSION: usize = 512;
const NAMED_IN_ALL: usize = 100_000;
const DISCOVERED: usize = 100;

/// Who wants to hear of whom.
#[derive(Default)]
pub(super) struct Presences {
    all: HashSet<ConnId>,
    named: HashMap<Fingerprint, Vec<ConnId>>,
    count: usize,
}

impl Presences {
    pub(super) fn forget(&mut self, id: ConnId, session: &Session) {
        self.all.remove(&id);
        let Subscription::Named(addresses) = &session.subscription else { return };
        self.count -= addresses.len();
        for address in addresses {
            if let Some(watchers) = self.named.get_mut(address) {
                watchers.retain(|watcher| *watcher != id);
                if watchers.is_empty() {
                    self.named.remove(address);
                }
            }
        }
    }
}

/// An agent whose session ended less than three seconds ago.
pub(super) struct Leaving {
    pub(super) at_ms: i64,
    pub(super) session: Session,
}

impl Core {
    pub(super) fn subscribe(&mut self, id: ConnId, ids: Option<Vec<String>>) {
        self.watch(id, ids.map(|ids| ids.iter().filter_map(|id| id.parse().ok()).collect()));
    }

    pub(super) fn watch(&mut self, id: ConnId, addresses: Option<Vec<Fingerprint>>) {
        let Some(Some(session)) = self.conns.get_mut(&id).map(|conn| conn.session_mut()) else { return };
        self.presences.forget(id, session);
        session.subscription = Subscription::None;
        let Some(mut addresses) = addresses else {
            session.subscription = Subscription::All;
            self.presences.all.insert(id);
            return;
        };
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(NAMED_PER_SESSION.min(NAMED_IN_ALL.saturating_sub(self.presences.count)));
        self.presences.count += addresses.len();
        for address in &addresses {
            self.presences.named.entry(*address).or_default().push(id);
        }
        session.subscription = Subscription::Named(addresses.into());
    }

    /// A session is live: said to others unless the agent was there a moment ago, or is on another relay.
    pub(super) fn came(&mut self, id: ConnId, elsewhere: bool, now_ms: i64) {
        let Some((address, slot)) = self.session(id).map(|session| (session.address, session.slot())) else {
            return;
        };
        if self.stop_leaving(&address, slot) || elsewhere {
            return;
        }
        let Some(session) = self.session(id) else { return };
        let audience = self.audience(session, now_ms);
        let metadata = (*session.metadata).clone();
        let key = session.key;
        self.announce(&audience, key, Presence::Online, Some(metadata), now_ms);
    }

    pub(super) fn start_leaving(&mut self, session: Session, now_ms: i64) {
        let (address, at_ms) = (session.address, now_ms + GRACE_MS);
        self.timers.insert((at_ms, Timer::Offline(address)));
        self.leaving.insert(address, Leaving { at_ms, session });
    }

    pub(super) fn offline_due(&mut self, address: &Fingerprint, now_ms: i64) {
        let Some(Leaving { session, .. }) = self.leaving.remove(address) else { return };
        self.give_up_claim(*address, session.slot());
        let audience = self.audience(&session, now_ms);
        self.announce(&audience, session.key, Presence::Offline, None, now_ms);
        self.store_registry(Pending::Quiet, RegistryOp::Left { key: session.key, at_ms: now_ms });
    }

    pub(super) fn audience_of(&self, address: &Fingerprint, open: bool) -> Vec<ConnId> {
        let mut audience: Vec<ConnId> = self.presences.named.get(address).cloned().unwrap_or_default();
        if open {
            audience.extend(&self.presences.all);
        }
        audience.sort_unstable();
        audience
    }

    /// Who hears of an agent that is private.
    pub(super) fn siblings_of(&self, address: &Fingerprint, siblings: &[Fingerprint]) -> Vec<ConnId> {
        let mut audience = self.audience_of(address, false);
        audience.retain(|conn| self.address(*conn).is_some_and(|who| siblings.contains(&who)));
        audience
    }

    fn audience(&self, session: &Session, now_ms: i64) -> Vec<ConnId> {
        if session.visibility == Visibility::Private {
            return self.siblings_of(&session.address, &session.siblings);
        }
        self.audience_of(&session.address, session.is_open(self.config.aging_ms(), now_ms))
    }

    pub(super) fn announce(
        &mut self,
        audience: &[ConnId],
        key: [u8; 32],
        status: Presence,
        metadata: Option<Metadata>,
        now_ms: i64,
    ) {
        let Some(agent_id) = key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes)) else { return };
        for conn in audience {
            if self.address(*conn) == Some(agent_id) {
                continue;
            }
            if self.conns.get(conn).is_some_and(super::conn::Conn::is_v2) {
                if !self.may_hear(*conn, now_ms) {
                    continue;
                }
                let on = status == Presence::Online;
                let change =
                    frames::Presence { key: Bin(key), dev: None, on, role: None, at: unsigned(now_ms) };
                self.send_v2(*conn, change);
                continue;
            }
            let change = PresenceChange { agent_id, status, metadata: metadata.clone() };
            self.send(*conn, ServerFrame::PresenceChange(change));
        }
    }

    /// Whether news are within what a session of v2 gets: one that watches everybody gets no more than its share.
    fn may_hear(&mut self, conn: ConnId, now_ms: i64) -> bool {
        let watches_all =
            self.session(conn).is_some_and(|session| matches!(session.subscription, Subscription::All));
        !watches_all || self.windows.news.take(&conn, now_ms).is_ok()
    }

    pub(super) fn listed(&mut self, key: &[u8; 32], listed: bool) {
        let Some(address) = key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes)) else { return };
        for conn in self.conns_of(&address) {
            let Some(session) = self.session_mut(conn) else { continue };
            session.listed = listed;
            if !listed && session.visibility == Visibility::Public {
                session.visibility = Visibility::Unlisted;
            }
        }
    }

    pub(super) fn discover(&mut self, id: ConnId, filter: DiscoverFilter, now_ms: i64) {
        let Some(address) = self.address(id) else { return };
        if self.windows.discover.take(&address, now_ms).is_err() {
            return self.send_error(id, ErrorCode::RateLimited, "Rate limited (discover)");
        }
        let op = RegistryOp::Discover {
            name: filter.name.clone(),
            capability: filter.capability.clone(),
            framework: filter.framework.clone(),
            now_ms,
            limit: DISCOVERED as u32,
        };
        self.store_registry(Pending::Discover(id, filter), op);
    }

    pub(super) fn discovered(&mut self, id: ConnId, filter: &DiscoverFilter, found: Vec<Found>, now_ms: i64) {
        if self.session(id).is_none() {
            return;
        }
        self.counters.discoveries += 1;
        let mut agents: Vec<DiscoveredAgent> =
            found.iter().filter_map(|entry| self.entry(entry, now_ms)).collect();
        let listed: HashSet<Fingerprint> = agents.iter().map(|agent| agent.agent_id).collect();
        let aging = self.config.aging_ms();
        let live = self.conns.values().filter_map(|conn| conn.session());
        let live = live.filter(|session| session.device.as_ref().is_none_or(|device| device.is_active()));
        let more = live
            .filter(|s| {
                s.is_open(aging, now_ms) && !listed.contains(&s.address) && matches(&s.metadata, filter)
            })
            .take(DISCOVERED.saturating_sub(agents.len()))
            .map(|session| live_entry(session, now_ms));
        agents.extend(more);
        self.add_remote(&mut agents, &listed, filter, DISCOVERED, now_ms);
        self.send(id, ServerFrame::DiscoverResult(agents));
    }

    fn entry(&self, found: &Found, now_ms: i64) -> Option<DiscoveredAgent> {
        let address = Fingerprint::from_bytes(*found.key.first_chunk()?);
        let conn = self.active_device(&address).or_else(|| self.sessions.get(&address).copied());
        let conn = conn.and_then(|conn| self.session(conn));
        let leaving = self.leaving.get(&address).map(|leaving| &leaving.session);
        let session = conn.or(leaving).filter(|session| session.visibility != Visibility::Private);
        let since_ms = session.map(|session| session.since_ms).or_else(|| self.remote_since(&address));
        let seen = if since_ms.is_some() { now_ms } else { found.last_seen_ms };
        Some(DiscoveredAgent {
            agent_id: address,
            name: found.name.clone(),
            framework: found.framework.clone(),
            capabilities: Some(found.capabilities.clone()),
            status: if since_ms.is_some() { Presence::Online } else { Presence::Offline },
            connected_since: since_ms.map(iso_ms),
            last_seen: Some(iso_ms(seen)),
            identity_key: Some(encode(&found.key)),
        })
    }
}

fn live_entry(session: &Session, now_ms: i64) -> DiscoveredAgent {
    DiscoveredAgent {
        agent_id: session.address,
        name: session.metadata.name.clone(),
        framework: session.metadata.framework.clone(),
        capabilities: session.metadata.capabilities.clone(),
        status: Presence::Online,
        connected_since: Some(iso_ms(session.since_ms)),
        last_seen: Some(iso_ms(now_ms)),
        identity_key: Some(encode(&session.key)),
    }
}

pub(super) fn matches(metadata: &Metadata, filter: &DiscoverFilter) -> bool {
    let has = |tags: &Option<Vec<String>>, wanted: &str| {
        clean::tag(wanted).is_some_and(|wanted| tags.as_ref().is_some_and(|tags| tags.contains(&wanted)))
    };
    let by_name = filter.name.as_ref().is_none_or(|wanted| {
        let name = metadata.name.to_lowercase();
        wanted.to_lowercase().split_whitespace().all(|word| name.contains(word))
    });
    let by_capability = filter.capability.as_ref().is_none_or(|wanted| has(&metadata.capabilities, wanted));
    let framework = metadata.framework.as_deref();
    let by_framework = filter.framework.as_ref().is_none_or(|wanted| framework == Some(wanted.as_str()));
    by_name && by_capability && by_framework
}

pub(super) fn encode(key: &[u8; 32]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(key)
}
