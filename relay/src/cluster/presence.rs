//! Which relay has the session of an agent (`relay.md` §15.2, §15.4): a claim in the engine, renewed while it lasts.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::{CreateErrorKind, Entry, Operation, UpdateErrorKind};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use threadline::{Fingerprint, MessageId};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::engine::{Engine, SKEW_MS, bytes, failed, note};
use super::layout::{self, PRESENCE};
use super::signs::Signs;
use crate::core::{ClusterEvent, Gone};
use crate::store::{Departed, OnlineAgent, RelayName, Slot, StoreFailed};

/// A claim is rewritten after this time, spread by a sixth.
const RENEW: Duration = Duration::from_secs(25);
/// Without a rewrite for this long nothing is delivered or confirmed, before others can take over.
const FENCE: Duration = Duration::from_mins(1);
/// Relays that want the same session at the same time try this often.
const CLAIMS: u32 = 4;
const RENEWALS_AT_ONCE: usize = 32;
/// How often it is looked whether sessions of others are there no more.
const LOOK: Duration = Duration::from_secs(1);

/// The sessions of this relay, and what is known of the others'.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    held: Mutex<HashMap<Fingerprint, Home>>,
    others: Mutex<HashMap<Fingerprint, HashMap<Slot, Elsewhere>>>,
    /// Which relays live.
    signs: Mutex<Signs>,
    /// Whether changes of claims are heard of.
    following: AtomicBool,
}

/// A session on another relay.
#[derive(Debug)]
struct Elsewhere {
    /// Hash of the claim.
    claim: u64,
    /// Whether it is a device that takes the mail.
    leads: bool,
    relay: RelayName,
    renewed: Instant,
}

/// An agent with sessions here.
#[derive(Debug)]
struct Home {
    slots: HashMap<Slot, Held>,
    /// Highest number of a message that we heard of.
    hint: u64,
    /// Whether the leader of its stream said once that nothing more is waiting.
    saw_end: bool,
    /// Ends the subscriptions.
    _listening: DropGuard,
}

#[derive(Debug)]
struct Held {
    /// Key of the agent, if it is in the directory.
    listed: Option<[u8; 32]>,
    /// Whether it is a device that takes the mail.
    leads: bool,
    /// When the session began, in Unix milliseconds.
    since_ms: i64,
    value: Vec<u8>,
    /// Whether the value is not written yet.
    changed: bool,
    /// Of our last write; 0 before the first.
    revision: u64,
    renewed: Option<Instant>,
}

/// The value of a claim.
#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    node: String,
    agent: OnlineAgent,
}

/// What a sender's relay is told.
#[derive(Debug, Serialize, Deserialize)]
struct Notice {
    seq: u64,
    id: MessageId,
    recipient: Fingerprint,
    stored_ms: i64,
    delivered: bool,
}

impl Sessions {
    fn held(&self) -> MutexGuard<'_, HashMap<Fingerprint, Home>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the session that takes an agent's mail is here.
    pub(super) fn reads(&self, address: &Fingerprint) -> bool {
        let (leads, v1) = match self.held().get(address) {
            None => return false,
            Some(home) => (home.slots.values().any(|held| held.leads), home.slots.contains_key(&None)),
        };
        let led_elsewhere =
            || self.others().get(address).is_some_and(|slots| slots.values().any(|other| other.leads));
        leads || v1 && !led_elsewhere()
    }

    /// Position of the newest message that we heard of.
    pub(super) fn hint(&self, address: &Fingerprint) -> u64 {
        self.held().get(address).map_or(0, |home| layout::position(home.hint))
    }

    /// Whether what was read for an agent since its session began was everything at some time; a copy of the stream that
    /// lags behind would not say so if it was not.
    pub(super) fn saw_end(&self, address: &Fingerprint) -> bool {
        self.held().get(address).is_none_or(|home| home.saw_end)
    }

    pub(super) fn at_end(&self, address: &Fingerprint) {
        if let Some(home) = self.held().get_mut(address) {
            home.saw_end = true;
        }
    }

    /// Everybody who has a session here.
    pub(super) fn all(&self) -> Vec<Fingerprint> {
        self.held().keys().copied().collect()
    }

    fn others(&self) -> MutexGuard<'_, HashMap<Fingerprint, HashMap<Slot, Elsewhere>>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn signs(&self) -> MutexGuard<'_, Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All claims of this relay are written again.
    pub(super) fn rewrite_all(&self) {
        let mut held = self.held();
        held.values_mut().flat_map(|home| home.slots.values_mut()).for_each(|held| held.changed = true);
    }

    /// Keys of agents in the directory that have a session here.
    pub(super) fn listed(&self) -> Vec<[u8; 32]> {
        self.held().values().filter_map(|home| home.slots.values().find_map(|held| held.listed)).collect()
    }

    /// Whether an agent has a session anywhere; `None` if this relay cannot know.
    pub(super) fn anywhere(&self, address: &Fingerprint) -> Option<bool> {
        let following = self.following.load(Ordering::Relaxed);
        following.then(|| self.held().contains_key(address) || self.others().contains_key(address))
    }

    /// Forgets a session of another relay. Whether it was known.
    fn forget_other(&self, address: &Fingerprint, slot: Slot) -> bool {
        let mut others = self.others();
        let Some(slots) = others.get_mut(address) else { return false };
        let known = slots.remove(&slot).is_some();
        if slots.is_empty() {
            others.remove(address);
        }
        known
    }

    /// Removes a session of this relay.
    fn give_up(&self, address: &Fingerprint, slot: Slot) -> Option<Held> {
        let mut held = self.held();
        let home = held.get_mut(address)?;
        let gone = home.slots.remove(&slot);
        if home.slots.is_empty() {
            held.remove(address);
        }
        gone
    }

    fn claims(&self) -> Vec<(Fingerprint, Slot)> {
        let held = self.held();
        held.iter().flat_map(|(address, home)| home.slots.keys().map(|slot| (*address, *slot))).collect()
    }
}

impl Engine {
    /// A session began here or changed: one of the same device or protocol elsewhere gives itself up.
    pub(super) async fn came(self: &Arc<Self>, agent: &OnlineAgent) -> Result<(), StoreFailed> {
        let (address, slot) = (agent.address, agent.slot);
        let claim = Claim { node: self.node.clone(), agent: agent.clone() };
        let value = serde_json::to_vec(&claim).map_err(|e| failed(&e))?;
        let mut listened = Ok(());
        if !self.sessions.held().contains_key(&address) {
            let stop = CancellationToken::new();
            listened = self.listen(address, stop.clone()).await;
            let home = Home { slots: HashMap::new(), hint: 0, saw_end: false, _listening: stop.drop_guard() };
            self.sessions.held().insert(address, home);
        }
        let mut claimed = 0;
        if let Some(home) = self.sessions.held().get_mut(&address) {
            home.saw_end = false;
            let mut held = Held {
                listed: agent.listed.then_some(agent.key),
                leads: agent.lead.is_some(),
                since_ms: agent.since_ms,
                value: value.clone(),
                changed: true,
                revision: 0,
                renewed: None,
            };
            // A session that changed may have been taken over by now; a new one takes over.
            if let Some(before) = home.slots.get(&slot).filter(|before| before.since_ms == agent.since_ms) {
                (held.revision, held.renewed) = (before.revision, before.renewed);
                claimed = before.revision;
            }
            home.slots.insert(slot, held);
        }
        listened?;
        if claimed == 0 {
            return self.claim(&address, slot).await;
        }
        self.renew_one(&address, slot, value, claimed).await;
        Ok(())
    }

    /// Takes a session over, unless a newer one has it: what is written late must not end what began meanwhile.
    async fn claim(&self, address: &Fingerprint, slot: Slot) -> Result<(), StoreFailed> {
        let key = layout::claim_key(address, slot);
        for _ in 0..CLAIMS {
            let ours = self
                .sessions
                .held()
                .get(address)
                .and_then(|home| home.slots.get(&slot).map(|held| (held.value.clone(), held.since_ms)));
            let Some((value, since_ms)) = ours else { return Ok(()) };
            let last = self.last_of(&PRESENCE, &key).await?;
            let claim = last.value().and_then(|value| serde_json::from_slice::<Claim>(value).ok());
            let newer = claim.is_some_and(|Claim { node, agent }| {
                node != self.node && agent.since_ms > since_ms.saturating_add(SKEW_MS)
            });
            if newer {
                self.lost(address, slot).await;
                return Ok(());
            }
            match self.bucket(&PRESENCE).update(&key, bytes(value.clone()), last.revision).await {
                Ok(revision) => {
                    self.renewed(address, slot, revision, &value);
                    return Ok(());
                }
                Err(error) if matches!(error.kind(), UpdateErrorKind::WrongLastRevision) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Err(failed(&"a session is claimed by too many relays at once"))
    }

    fn renewed(&self, address: &Fingerprint, slot: Slot, revision: u64, value: &[u8]) {
        if let Some(held) = self.sessions.held().get_mut(address).and_then(|home| home.slots.get_mut(&slot)) {
            held.revision = held.revision.max(revision);
            held.renewed = Some(Instant::now());
            held.changed &= held.value != value;
        }
    }

    /// Whether this relay may still deliver to an agent and confirm for it.
    pub(super) async fn hold(&self, address: &Fingerprint) -> Result<(), StoreFailed> {
        let renewed: Vec<(Slot, Option<Instant>)> = match self.sessions.held().get(address) {
            None => return Ok(()),
            Some(home) => home.slots.iter().map(|(slot, held)| (*slot, held.renewed)).collect(),
        };
        if renewed.iter().any(|(_, at)| at.is_some_and(|at| at.elapsed() < FENCE)) {
            return Ok(());
        }
        match renewed.iter().find(|(_, at)| at.is_none()) {
            Some((slot, _)) => self.claim(address, *slot).await,
            None => Err(StoreFailed),
        }
    }

    /// A session ended here.
    pub(super) async fn left(&self, address: &Fingerprint, slot: Slot) {
        let Some(held) = self.sessions.give_up(address, slot) else { return };
        let key = layout::claim_key(address, slot);
        let deleted = self.bucket(&PRESENCE).delete_expect_revision(key, Some(held.revision)).await;
        if let Err(error) = deleted {
            // Another relay has it by now, or it expires.
            tracing::debug!(%error, "a claim was not given back");
        }
    }

    /// Gives up everything before the process ends.
    pub(super) async fn leave(self: &Arc<Self>) {
        let all = self.sessions.claims();
        futures::stream::iter(all)
            .for_each_concurrent(RENEWALS_AT_ONCE, |(address, slot)| async move {
                self.left(&address, slot).await;
            })
            .await;
        let _ = self.bucket(&layout::NODES).delete(&self.node).await;
        self.tidy_peers(super::engine::now_ms()).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), self.client.flush()).await;
    }

    /// Rewrites the claims that are due.
    pub(super) async fn renew(&self) {
        let due: Vec<(Fingerprint, Slot, Vec<u8>, u64)> = self
            .sessions
            .held()
            .iter()
            .flat_map(|(address, home)| home.slots.iter().map(|(slot, held)| (*address, *slot, held)))
            .filter(|(address, _, held)| {
                let spread = RENEW + Duration::from_millis(u64::from(address.as_bytes()[15]) * 39);
                held.changed || held.renewed.is_none_or(|at| at.elapsed() > spread)
            })
            .map(|(address, slot, held)| (address, slot, held.value.clone(), held.revision))
            .collect();
        futures::stream::iter(due)
            .for_each_concurrent(RENEWALS_AT_ONCE, |(address, slot, value, revision)| async move {
                if revision == 0 {
                    let _ = self.claim(&address, slot).await;
                } else {
                    self.renew_one(&address, slot, value, revision).await;
                }
            })
            .await;
    }

    async fn renew_one(&self, address: &Fingerprint, slot: Slot, value: Vec<u8>, revision: u64) {
        let (bucket, key) = (self.bucket(&PRESENCE), layout::claim_key(address, slot));
        match bucket.update(&key, bytes(value.clone()), revision).await {
            Ok(revision) => return self.renewed(address, slot, revision, &value),
            Err(error) if matches!(error.kind(), UpdateErrorKind::WrongLastRevision) => {}
            Err(error) => return note(&error),
        }
        match bucket.entry(&key).await {
            // The copy that answered lags behind.
            Ok(Some(entry)) if entry.revision < revision => {}
            Ok(Some(entry)) if entry.operation == Operation::Put => {
                let ours =
                    serde_json::from_slice::<Claim>(&entry.value).is_ok_and(|claim| claim.node == self.node);
                if ours {
                    // Our own write, whose acknowledgement was lost.
                    return self.renewed(address, slot, entry.revision, &entry.value);
                }
                self.lost(address, slot).await;
            }
            // It expired, and nobody else took it.
            Ok(_) => match bucket.create(&key, bytes(value.clone())).await {
                Ok(revision) => self.renewed(address, slot, revision, &value),
                Err(error) if matches!(error.kind(), CreateErrorKind::AlreadyExists) => {
                    self.lost(address, slot).await;
                }
                Err(error) => note(&error),
            },
            Err(error) => note(&error),
        }
    }

    async fn lost(&self, address: &Fingerprint, slot: Slot) {
        if self.sessions.give_up(address, slot).is_some() {
            self.tell(ClusterEvent::Displaced { address: *address, slot }).await;
        }
    }

    /// Hears of mail for an agent and of what became of its messages until it is told to stop.
    async fn listen(
        self: &Arc<Self>,
        address: Fingerprint,
        stop: CancellationToken,
    ) -> Result<(), StoreFailed> {
        let mut wakes =
            self.client.subscribe(layout::wake_subject(&address)).await.map_err(|e| failed(&e))?;
        let mut notices =
            self.client.subscribe(layout::event_subject(&address)).await.map_err(|e| failed(&e))?;
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    Some(wake) = wakes.next() => {
                        let seq = std::str::from_utf8(&wake.payload).ok().and_then(|text| text.parse().ok());
                        engine.heard_of(&address, seq.unwrap_or(0));
                        engine.tell(ClusterEvent::Mail { recipient: address }).await;
                    }
                    Some(notice) = notices.next() => {
                        if let Ok(notice) = serde_json::from_slice::<Notice>(&notice.payload) {
                            let Notice { seq, id, recipient, stored_ms, delivered } = notice;
                            let gone = Gone { seq, sender: address, id, recipient, stored_ms, delivered };
                            engine.tell(ClusterEvent::Gone(gone)).await;
                        }
                    }
                    else => return,
                }
            }
        });
        Ok(())
    }

    fn heard_of(&self, address: &Fingerprint, seq: u64) {
        if let Some(home) = self.sessions.held().get_mut(address) {
            home.hint = home.hint.max(seq);
        }
    }

    /// Tells the relay of a sender what became of a message; best effort.
    pub(super) async fn publish_gone(&self, seq: u64, gone: &Departed, delivered: bool) {
        let Departed { id, recipient, stored_ms, .. } = gone.clone();
        let notice = Notice { seq, id, recipient, stored_ms, delivered };
        let payload = serde_json::to_vec(&notice).unwrap_or_default();
        let _ = self.client.publish(layout::event_subject(&gone.sender), bytes(payload)).await;
    }

    /// Follows who is where until the relay stops.
    pub(super) async fn follow_presence(self: Arc<Self>) {
        loop {
            let watched = self.bucket(&PRESENCE).watch_with_history(">").await;
            if let Ok(mut watch) = watched {
                self.sessions.following.store(true, Ordering::Relaxed);
                let mut look = tokio::time::interval(LOOK);
                look.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    tokio::select! {
                        next = watch.next() => match next {
                            Some(Ok(entry)) => self.moved(&entry).await,
                            Some(Err(_)) | None => break,
                        },
                        _ = look.tick() => self.forget_silent().await,
                    }
                }
            }
            self.sessions.following.store(false, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn moved(&self, entry: &Entry) {
        let Some((address, slot)) = layout::claimant(&entry.key) else { return };
        let claim = match entry.operation {
            Operation::Put => match serde_json::from_slice::<Claim>(&entry.value) {
                Ok(claim) => Some(claim),
                Err(_) => return,
            },
            Operation::Delete | Operation::Purge => None,
        };
        let theirs = claim.filter(|Claim { node, agent }| {
            *node != self.node && agent.address == address && agent.slot == slot
        });
        let relay = theirs.as_ref().and_then(|claim| layout::relay_name(&claim.node));
        let (Some(Claim { mut agent, .. }), Some(relay)) = (theirs, relay) else {
            if self.sessions.forget_other(&address, slot) {
                self.tell(ClusterEvent::Left { address, slot }).await;
            }
            return;
        };
        agent.relay = relay;
        let renewed = Instant::now();
        let dead = {
            let mut signs = self.sessions.signs();
            signs.expect(relay, renewed);
            signs.is_dead(relay)
        };
        // What a dead relay left behind is read again with every new watch.
        if !dead {
            let claim = hash_of(&entry.value);
            let now = Elsewhere { claim, leads: agent.lead.is_some(), relay, renewed };
            let known = self.sessions.others().entry(address).or_default().insert(slot, now);
            if known.is_none_or(|before| before.claim != claim) {
                self.tell(ClusterEvent::Came(Box::new(agent))).await;
            }
        }
        let ours = self.sessions.held().get(&address).and_then(|home| Some(home.slots.get(&slot)?.revision));
        if ours.is_some_and(|ours| ours != 0 && ours < entry.revision) {
            self.lost(&address, slot).await;
        }
    }

    /// The expiry of a claim is silent, and so is the death of a relay.
    async fn forget_silent(&self) {
        let (mut silent, mut relays) = (Vec::new(), HashSet::new());
        {
            let mut signs = self.sessions.signs();
            self.sessions.others().retain(|address, slots| {
                let gone = slots.extract_if(|_, session| {
                    session.renewed.elapsed() > PRESENCE.life || signs.is_dead(session.relay)
                });
                silent.extend(gone.map(|(slot, _)| (*address, slot)));
                relays.extend(slots.values().map(|session| session.relay));
                !slots.is_empty()
            });
            signs.keep(|relay| relays.contains(&relay), Instant::now());
        }
        for (address, slot) in silent {
            self.tell(ClusterEvent::Left { address, slot }).await;
        }
    }
}

fn hash_of(value: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher as _};
    let mut hasher = DefaultHasher::new();
    hasher.write(value);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use threadline::v1::frames::{Metadata, Visibility};
    use tokio::sync::mpsc;

    use super::super::lanes::FromEngine;
    use super::super::rig::{Server, connect, options};
    use super::*;
    use crate::core::Event;
    use crate::store::QueueRules;

    fn session(since_ms: i64) -> OnlineAgent {
        OnlineAgent {
            key: [5; 32],
            address: Fingerprint::from_bytes([5; 16]),
            visibility: Visibility::Public,
            listed: false,
            first_seen_ms: 0,
            since_ms,
            metadata: Metadata::default(),
            slot: None,
            lead: None,
            siblings: Vec::new(),
            relay: RelayName::default(),
        }
    }

    #[test]
    fn a_claim_that_is_written_late_does_not_end_a_newer_session() {
        let server = Server::start();
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let dirs: [_; 2] = std::array::from_fn(|_| tempfile::tempdir().expect("directory"));
        let rules = QueueRules { queue: crate::RelayConfig::default().queue };
        let (told, mut news) = mpsc::channel(64);
        runtime.block_on(async {
            let there =
                connect(&options(&server), dirs[0].path(), &rules, told.clone()).await.expect("joins");
            let here = connect(&options(&server), dirs[1].path(), &rules, told).await.expect("joins");
            let address = session(0).address;
            there.came(&session(20_000)).await.expect("claims");
            here.came(&session(10_000)).await.expect("knows");
            let told = news.recv().await;
            assert!(
                matches!(told, Some(FromEngine::Event(Event::Cluster(ClusterEvent::Displaced { .. })))),
                "{told:?}"
            );
            assert!(there.sessions.reads(&address) && !here.sessions.reads(&address));
            there.hold(&address).await.expect("holds it");
            here.came(&session(30_000)).await.expect("takes over");
            assert!(here.sessions.reads(&address));
            // Whoever changes what it lost notices.
            there.came(&session(20_000)).await.expect("notices");
            assert!(!there.sessions.reads(&address));
        });
    }
}
