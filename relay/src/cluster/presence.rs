//! Which relay has the session of an agent (`relay.md` §15.2, §15.4): a claim in the engine, renewed while it lasts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::{CreateErrorKind, Entry, Operation, UpdateErrorKind};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use threadline::{Fingerprint, MessageId};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::engine::{Engine, bytes, failed, note};
use super::layout::{self, PRESENCE};
use crate::core::{ClusterEvent, Gone};
use crate::store::{Departed, OnlineAgent, StoreFailed};

/// A claim is rewritten after this time, spread by a sixth.
const RENEW: Duration = Duration::from_secs(25);
/// Without a rewrite for this long nothing is delivered or confirmed, before others can take over.
const FENCE: Duration = Duration::from_mins(1);
const RENEWALS_AT_ONCE: usize = 32;

/// The sessions of this relay, and what is known of the others'.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    held: Mutex<HashMap<Fingerprint, Held>>,
    others: Mutex<HashMap<Fingerprint, Elsewhere>>,
    /// Whether changes of claims are heard of.
    following: AtomicBool,
}

/// A session on another relay.
#[derive(Debug, Clone)]
struct Elsewhere {
    node: String,
    since_ms: i64,
    renewed: Instant,
}

#[derive(Debug)]
struct Held {
    /// Key of the agent, if it is in the directory.
    listed: Option<[u8; 32]>,
    value: Vec<u8>,
    /// Of our last write; 0 before the first.
    revision: u64,
    renewed: Option<Instant>,
    /// Highest number of a message that we heard of.
    hint: u64,
    /// Ends the subscriptions.
    _listening: DropGuard,
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
    fn held(&self) -> MutexGuard<'_, HashMap<Fingerprint, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an agent has its session here.
    pub(super) fn has(&self, address: &Fingerprint) -> bool {
        self.held().contains_key(address)
    }

    /// Position of the newest message that we heard of.
    pub(super) fn hint(&self, address: &Fingerprint) -> u64 {
        self.held().get(address).map_or(0, |held| layout::position(held.hint))
    }

    /// Everybody who has a session here.
    pub(super) fn all(&self) -> Vec<Fingerprint> {
        self.held().keys().copied().collect()
    }

    fn others(&self) -> MutexGuard<'_, HashMap<Fingerprint, Elsewhere>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keys of agents in the directory that have a session here.
    pub(super) fn listed(&self) -> Vec<[u8; 32]> {
        self.held().values().filter_map(|held| held.listed).collect()
    }

    /// Whether an agent has a session anywhere; `None` if this relay cannot know.
    pub(super) fn anywhere(&self, address: &Fingerprint) -> Option<bool> {
        let following = self.following.load(Ordering::Relaxed);
        following.then(|| self.has(address) || self.others().contains_key(address))
    }
}

impl Engine {
    /// A session began here: others give theirs up.
    pub(super) async fn came(self: &Arc<Self>, agent: &OnlineAgent) -> Result<(), StoreFailed> {
        let claim = Claim { node: self.node.clone(), agent: agent.clone() };
        let value = serde_json::to_vec(&claim).map_err(|e| failed(&e))?;
        let stop = CancellationToken::new();
        let listening = self.listen(agent.address, stop.clone()).await;
        let listed = agent.listed.then_some(agent.key);
        let held = Held { listed, value, revision: 0, renewed: None, hint: 0, _listening: stop.drop_guard() };
        self.sessions.held().insert(agent.address, held);
        listening?;
        self.claim(&agent.address).await
    }

    async fn claim(&self, address: &Fingerprint) -> Result<(), StoreFailed> {
        let Some(value) = self.sessions.held().get(address).map(|held| held.value.clone()) else {
            return Ok(());
        };
        let revision = self.bucket(&PRESENCE).put(address.to_string(), bytes(value)).await;
        self.renewed(address, revision.map_err(|e| failed(&e))?);
        Ok(())
    }

    fn renewed(&self, address: &Fingerprint, revision: u64) {
        if let Some(held) = self.sessions.held().get_mut(address) {
            held.revision = held.revision.max(revision);
            held.renewed = Some(Instant::now());
        }
    }

    /// Whether this relay may still deliver to an agent and confirm for it.
    pub(super) async fn hold(&self, address: &Fingerprint) -> Result<(), StoreFailed> {
        let renewed = match self.sessions.held().get(address) {
            None => return Ok(()),
            Some(held) => held.renewed,
        };
        match renewed {
            Some(at) if at.elapsed() < FENCE => Ok(()),
            Some(_) => Err(StoreFailed),
            None => self.claim(address).await,
        }
    }

    /// A session ended here.
    pub(super) async fn left(&self, address: &Fingerprint) {
        let Some(held) = self.sessions.held().remove(address) else { return };
        let deleted =
            self.bucket(&PRESENCE).delete_expect_revision(address.to_string(), Some(held.revision)).await;
        if let Err(error) = deleted {
            // Another relay has it by now, or it expires.
            tracing::debug!(%error, "a claim was not given back");
        }
    }

    /// Gives up everything before the process ends.
    pub(super) async fn leave(self: &Arc<Self>) {
        let all = self.sessions.all();
        futures::stream::iter(all)
            .for_each_concurrent(RENEWALS_AT_ONCE, |address| async move { self.left(&address).await })
            .await;
        let _ = self.bucket(&layout::NODES).delete(&self.node).await;
        self.tidy_peers(super::engine::now_ms()).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), self.client.flush()).await;
    }

    /// Rewrites the claims that are due.
    pub(super) async fn renew(&self) {
        let due: Vec<(Fingerprint, Vec<u8>, u64)> = self
            .sessions
            .held()
            .iter()
            .filter(|(address, held)| {
                let spread = RENEW + Duration::from_millis(u64::from(address.as_bytes()[15]) * 39);
                held.renewed.is_none_or(|at| at.elapsed() > spread)
            })
            .map(|(address, held)| (*address, held.value.clone(), held.revision))
            .collect();
        futures::stream::iter(due)
            .for_each_concurrent(RENEWALS_AT_ONCE, |(address, value, revision)| async move {
                if revision == 0 {
                    let _ = self.claim(&address).await;
                } else {
                    self.renew_one(&address, value, revision).await;
                }
            })
            .await;
    }

    async fn renew_one(&self, address: &Fingerprint, value: Vec<u8>, revision: u64) {
        let (bucket, key) = (self.bucket(&PRESENCE), address.to_string());
        match bucket.update(&key, bytes(value.clone()), revision).await {
            Ok(revision) => return self.renewed(address, revision),
            Err(error) if matches!(error.kind(), UpdateErrorKind::WrongLastRevision) => {}
            Err(error) => return note(&error),
        }
        match bucket.entry(&key).await {
            Ok(Some(entry)) if entry.operation == Operation::Put => {
                let ours =
                    serde_json::from_slice::<Claim>(&entry.value).is_ok_and(|claim| claim.node == self.node);
                if ours {
                    // Our own write, whose acknowledgement was lost.
                    return self.renewed(address, entry.revision);
                }
                self.lost(address).await;
            }
            // It expired, and nobody else took it.
            Ok(_) => match bucket.create(&key, bytes(value)).await {
                Ok(revision) => self.renewed(address, revision),
                Err(error) if matches!(error.kind(), CreateErrorKind::AlreadyExists) => {
                    self.lost(address).await;
                }
                Err(error) => note(&error),
            },
            Err(error) => note(&error),
        }
    }

    async fn lost(&self, address: &Fingerprint) {
        if self.sessions.held().remove(address).is_some() {
            self.tell(ClusterEvent::Displaced { address: *address }).await;
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
        if let Some(held) = self.sessions.held().get_mut(address) {
            held.hint = held.hint.max(seq);
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
                loop {
                    let next = tokio::time::timeout(Duration::from_secs(5), watch.next()).await;
                    self.forget_silent().await;
                    match next {
                        Ok(Some(Ok(entry))) => self.moved(&entry).await,
                        Ok(Some(Err(_)) | None) => break,
                        Err(_) => {}
                    }
                }
            }
            self.sessions.following.store(false, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn moved(&self, entry: &Entry) {
        let Ok(address) = entry.key.parse::<Fingerprint>() else { return };
        if entry.operation != Operation::Put {
            let known = self.sessions.others().remove(&address);
            if known.is_some() {
                self.tell(ClusterEvent::Left { address }).await;
            }
            return;
        }
        let Ok(Claim { node, agent }) = serde_json::from_slice(&entry.value) else { return };
        if node == self.node || agent.address != address {
            self.sessions.others().remove(&address);
            return;
        }
        let now = Elsewhere { node, since_ms: agent.since_ms, renewed: Instant::now() };
        let known = self.sessions.others().insert(address, now.clone());
        if known.is_none_or(|before| before.node != now.node || before.since_ms != now.since_ms) {
            self.tell(ClusterEvent::Came(Box::new(agent))).await;
        }
        let ours = self.sessions.held().get(&address).map(|held| held.revision);
        if ours.is_some_and(|ours| ours != 0 && ours < entry.revision) {
            self.lost(&address).await;
        }
    }

    /// The expiry of a claim is silent.
    async fn forget_silent(&self) {
        let silent: Vec<Fingerprint> = {
            let mut others = self.sessions.others();
            let silent = others.extract_if(|_, session| session.renewed.elapsed() > PRESENCE.life);
            silent.map(|(address, _)| address).collect()
        };
        for address in silent {
            self.tell(ClusterEvent::Left { address }).await;
        }
    }
}
