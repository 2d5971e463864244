//! Whether the engine takes writes, what lies in it, and what must be done again and again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::Operation;
use futures::StreamExt as _;
use threadline::Fingerprint;
use tokio_util::sync::CancellationToken;

use super::engine::{Engine, bytes, note, now_ms, sum};
use super::lanes::FromEngine;
use super::layout::{self, CORRESPONDENTS, NODES, SEEN};
use crate::core::{ClusterEvent, Event};

const BEAT: Duration = Duration::from_secs(2);
/// How often every relay looks whether mail came that nobody told it of.
const POLL: Duration = Duration::from_secs(5);
/// Without a write for this long balancers are told to go elsewhere.
const UNREADY: Duration = Duration::from_secs(10);
/// Without a write for this long clients are sent elsewhere.
const CUT_OFF: Duration = Duration::from_secs(30);

impl Engine {
    /// Starts what runs beside the queue until `stop`.
    pub fn start(self: &Arc<Self>, tasks: &tokio_util::task::TaskTracker, stop: &CancellationToken) {
        let until = |stop: CancellationToken, task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        };
        tasks.spawn(until(stop.clone(), Box::pin(Arc::clone(self).beat())));
        tasks.spawn(until(stop.clone(), Box::pin(Arc::clone(self).keep_claims())));
        tasks.spawn(until(stop.clone(), Box::pin(Arc::clone(self).poll())));
        tasks.spawn(until(stop.clone(), Box::pin(Arc::clone(self).follow_relays())));
        tasks.spawn(until(stop.clone(), Box::pin(Arc::clone(self).follow_blobs())));
        tasks.spawn(until(stop.clone(), Box::pin(Arc::clone(self).follow_presence())));
        tasks.spawn(until(stop.clone(), Box::pin(Arc::clone(self).follow_seen())));
        tasks.spawn(until(stop.clone(), Box::pin(Arc::clone(self).follow_correspondents())));
    }

    /// Writes a sign of life, which is also the proof that the engine takes writes.
    async fn beat(self: Arc<Self>) {
        let (mut last, mut open, mut cut_off) = (Instant::now(), true, false);
        loop {
            let value = serde_json::json!({"version": env!("CARGO_PKG_VERSION"), "at": now_ms()}).to_string();
            match self.bucket(&NODES).put(&self.node, value.into()).await {
                Ok(_) => {
                    // Others may have taken this relay for dead.
                    if last.elapsed() > NODES.life / 2 {
                        self.sessions.rewrite_all();
                    }
                    last = Instant::now();
                }
                Err(error) => note(&error),
            }
            if open != (last.elapsed() < UNREADY) {
                open = !open;
                self.open.store(open, Ordering::Relaxed);
                tracing::warn!(open, "the engine stopped taking writes, or takes them again");
                let _ = self.told.send(FromEngine::Event(Event::Custody { open })).await;
            }
            if cut_off != (last.elapsed() > CUT_OFF) {
                cut_off = !cut_off;
                if cut_off {
                    self.tell(ClusterEvent::CutOff).await;
                }
            }
            tokio::time::sleep(BEAT).await;
        }
    }

    /// Rewrites what is due; where that takes its time, the sign of life does not wait for it.
    async fn keep_claims(self: Arc<Self>) {
        loop {
            self.renew().await;
            tokio::time::sleep(BEAT).await;
        }
    }

    /// Hears which relays live.
    async fn follow_relays(self: Arc<Self>) {
        loop {
            if let Ok(mut watch) = self.bucket(&NODES).watch_with_history(">").await {
                while let Some(Ok(entry)) = watch.next().await {
                    let Some(relay) = layout::relay_name(&entry.key) else { continue };
                    let (mut signs, now) = (self.sessions.signs(), Instant::now());
                    match entry.operation {
                        Operation::Put if relay == self.name => signs.heard_ourselves(now),
                        Operation::Put => signs.heard(relay, now),
                        Operation::Delete | Operation::Purge => signs.ended(relay, now),
                    }
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Whether the engine took a write a short while ago.
    pub(super) fn takes_writes(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    async fn poll(self: Arc<Self>) {
        let mut before = vec![(0, false); usize::from(layout::SHARDS)];
        loop {
            tokio::time::sleep(POLL).await;
            let states = self.states().await;
            if let Some(totals) = sum(&states) {
                self.tell(ClusterEvent::Totals(totals)).await;
            }
            // What moved is looked at twice: the copy that answers the first time may lag behind.
            let mut look = Vec::with_capacity(before.len());
            for ((last, moved), state) in before.iter_mut().zip(&states) {
                let now = state.as_ref().map_or(*last, |state| state.last_sequence);
                look.push(now != *last || *moved);
                (*last, *moved) = (now, now != *last);
            }
            for recipient in self.sessions.all() {
                if look.get(usize::from(layout::shard(&recipient))).is_some_and(|look| *look) {
                    self.tell(ClusterEvent::Mail { recipient }).await;
                }
            }
        }
    }

    pub(super) async fn publish_seen(&self, who: &Fingerprint) {
        if let Err(error) = self.bucket(&SEEN).put(who.to_string(), bytes(now_ms().to_string())).await {
            note(&error);
        }
    }

    pub(super) async fn publish_wrote(&self, owner: &Fingerprint, peer: &Fingerprint, at_ms: i64) {
        let key = format!("{owner}.{peer}");
        if let Err(error) = self.bucket(&CORRESPONDENTS).put(key, bytes(at_ms.to_string())).await {
            note(&error);
        }
    }

    async fn follow_seen(self: Arc<Self>) {
        self.follow(&SEEN, |engine, key, _| {
            if let Ok(who) = key.parse() {
                engine.peers().arrived(who);
            }
        })
        .await;
    }

    async fn follow_correspondents(self: Arc<Self>) {
        self.follow(&CORRESPONDENTS, |engine, key, value| {
            let pair =
                key.split_once('.').and_then(|(owner, peer)| Some((owner.parse().ok()?, peer.parse().ok()?)));
            let at = std::str::from_utf8(value).ok().and_then(|at| at.parse().ok());
            if let (Some((owner, peer)), Some(at_ms)) = (pair, at) {
                engine.peers().wrote(owner, peer, at_ms);
            }
        })
        .await;
    }

    async fn follow(&self, bucket: &layout::Bucket, take: impl Fn(&Self, &str, &[u8])) {
        loop {
            if let Ok(mut watch) = self.bucket(bucket).watch_with_history(">").await {
                while let Some(Ok(entry)) = watch.next().await {
                    if entry.operation == Operation::Put {
                        take(self, &entry.key, &entry.value);
                    }
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
