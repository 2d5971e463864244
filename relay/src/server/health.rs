//! Whether the relay is well: `/health`, `/ready`, and the Prometheus text (`relay.md` §3, §14.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::quic::Handshakes;
use super::{Shared, rest};
use crate::config::EngineKind;
use crate::core::Snapshot;
use crate::metrics::{CARRIERS, CarrierFigures, Exposition, Histogram, Publishing, Reject, bans};
use crate::store::{QueueAnswer, QueueOp};

const FRESH_MS: i64 = 1_000;

/// What is measured outside of the core.
#[derive(Debug)]
pub(super) struct Measured {
    /// Registry searches.
    search: std::sync::Mutex<Histogram>,
    /// Operations of each commit of the queue, and how long it took.
    commits: std::sync::Mutex<(Histogram, Histogram)>,
    /// Clients that were cut off because too much was waiting for them.
    write_queue_full: AtomicU64,
    /// The engine of a cluster; without one nothing is ever published.
    publishing: Arc<Publishing>,
}

impl Measured {
    /// Nothing yet; `publishing` is what the engine measures.
    pub(super) fn new(publishing: Arc<Publishing>) -> Self {
        let commits = std::sync::Mutex::new((Histogram::sizes(), Histogram::default()));
        let search = std::sync::Mutex::default();
        Self { search, commits, write_queue_full: AtomicU64::new(0), publishing }
    }

    /// Notes how long a search took.
    pub(super) fn searched(&self, since: Instant) {
        locked(&self.search).add(since.elapsed().as_secs_f64() * 1000.0);
    }

    /// Notes a commit of the queue.
    pub(super) fn committed(&self, operations: usize, took: Duration) {
        let mut commits = locked(&self.commits);
        commits.0.add(operations as f64);
        commits.1.add(took.as_secs_f64() * 1000.0);
    }

    /// Notes a client that was cut off because too much was waiting for it.
    pub(super) fn cut_off(&self) {
        self.write_queue_full.fetch_add(1, Ordering::Relaxed);
    }
}

// A panic while the lock is held leaves counts as they are.
fn locked<T>(counts: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The last `/health` answer and when it was made.
#[derive(Default)]
pub(super) struct Cache {
    last: Mutex<Option<(i64, Value)>>,
}

/// Answers a balancer: 200 only when messages are accepted and the relay is not draining.
pub(super) async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let open = shared.driver.snapshot().await.is_some_and(|snapshot| snapshot.custody_open);
    let ready = open && !shared.draining.load(Ordering::Relaxed);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(json!({"ready": ready}))).into_response()
}

/// Answers anyone; numbers come from counters and are at most a second old.
pub(super) async fn health(State(shared): State<Arc<Shared>>) -> Response {
    report(&shared).await.map_or_else(stopping, |body| axum::Json(body).into_response())
}

/// The answer while the relay stops.
pub(super) fn stopping() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({"status": "stopping"}))).into_response()
}

/// The body of `/health`; `None` while the relay stops.
pub(super) async fn report(shared: &Shared) -> Option<Value> {
    let now_ms = shared.clock.now_ms();
    let mut last = shared.health.last.lock().await;
    if let Some((_, body)) = last.as_ref().filter(|(at, _)| now_ms - at < FRESH_MS) {
        return Some(body.clone());
    }
    let snapshot = shared.driver.snapshot().await?;
    let registry = rest::health(shared, now_ms).await;
    let ok = snapshot.custody_open && registry.healthy && !shared.weak;
    let mut body = json!({
        "status": if ok { "ok" } else { "degraded" },
        "agents": snapshot.agents,
        "connections": snapshot.connections,
        "offlineQueue": {
            "recipientCount": snapshot.queue.recipients,
            "totalMessages": snapshot.queue.messages,
            "totalBytes": snapshot.queue.bytes,
        },
        "abuse": {
            "activeBans": registry.active_bans,
            "trackedAgents": snapshot.tracked_agents,
            "newAgents": snapshot.new_agents,
        },
        "throughput": {
            "messagesRouted": snapshot.counters.routed,
            "messagesPerMinute": snapshot.messages_per_minute,
        },
        "registry": registry.body,
        "uptime": shared.clock.uptime_s(),
    });
    if !snapshot.custody_open {
        body["reason"] = match shared.config.engine {
            EngineKind::Embedded => {
                "the data disk is full: messages are delivered but none is accepted".into()
            }
            EngineKind::Nats => "the engine of the cluster takes no writes: no message is accepted".into(),
        };
    } else if !registry.healthy {
        body["reason"] = "the directory cannot be read or its index is incomplete".into();
    } else if shared.weak {
        body["reason"] = "cluster.allow_weak: the engine does not survive what `replicated` promises".into();
    }
    *last = Some((now_ms, body.clone()));
    Some(body)
}

/// The Prometheus text; `None` while the relay stops.
pub(super) async fn metrics(shared: &Shared) -> Option<String> {
    let snapshot = shared.driver.snapshot().await?;
    let now_ms = shared.clock.now_ms();
    let entries = rest::entry_counts(shared, now_ms).await;
    let mut out = Exposition::default();
    totals(&mut out, &snapshot);
    let gauge = "gauge";
    out.single(gauge, "threadline_queue_messages", "Messages in custody.", snapshot.queue.messages);
    out.single(gauge, "threadline_queue_bytes", "Bytes in custody.", snapshot.queue.bytes);
    let look = shared.driver.queue(QueueOp::Look { most: 1, of: None }).await;
    if let Some(QueueAnswer::Look(look)) = look {
        let age_s = look.oldest_ms.map_or(0, |at| (now_ms - at).max(0) / 1000);
        out.single(gauge, "threadline_queue_oldest_seconds", "Age of the oldest waiting message.", age_s);
    }
    out.labelled(
        (gauge, "threadline_registry_entries", "Directory entries."),
        "visibility",
        [("public", entries.0), ("unlisted", entries.1)],
    );
    if let Some(bridge) = &shared.bridge {
        let (asked, refused) =
            (bridge.requests.load(Ordering::Relaxed), bridge.rejected.load(Ordering::Relaxed));
        out.single("counter", "threadline_a2a_requests_total", "Requests over the A2A bridge.", asked);
        out.single("counter", "threadline_a2a_requests_rejected_total", "Of these refused.", refused);
    }
    measured(&mut out, &shared.measured);
    if let Some(door) = &shared.quic {
        let Handshakes { completed, failed, validated, refused } = door.handshakes();
        out.labelled(
            ("counter", "threadline_quic_handshakes_total", "First packets of QUIC, by what became of them."),
            "result",
            [("completed", completed), ("failed", failed), ("validated", validated), ("refused", refused)],
        );
    }
    out.single(
        gauge,
        "threadline_engine_up",
        "Whether storage takes messages.",
        u8::from(snapshot.custody_open),
    );
    let draining = u8::from(shared.draining.load(Ordering::Relaxed));
    out.single(gauge, "threadline_drain", "Whether the relay is draining.", draining);
    out.single(gauge, "threadline_uptime_seconds", "Seconds since the start.", shared.clock.uptime_s());
    Some(out.finish())
}

fn measured(out: &mut Exposition, measured: &Measured) {
    let search = *locked(&measured.search);
    out.histogram("threadline_registry_search_seconds", "Directory searches.", &search);
    let (batch, seconds) = *locked(&measured.commits);
    out.histogram("threadline_commit_batch", "Operations per commit of the queue.", &batch);
    out.histogram("threadline_commit_seconds", "Commits of the queue.", &seconds);
    let (publish, retries) = measured.publishing.so_far();
    out.histogram(
        "threadline_engine_publish_seconds",
        "Messages given to the engine of a cluster.",
        &publish,
    );
    let cut_off = measured.write_queue_full.load(Ordering::Relaxed);
    for (name, help, value) in [
        ("threadline_engine_retries_total", "Messages given to the engine of a cluster again.", retries),
        ("threadline_write_queue_full_total", "Clients cut off, for too much was waiting for them.", cut_off),
    ] {
        out.single("counter", name, help, value);
    }
}

fn totals(out: &mut Exposition, snapshot: &Snapshot) {
    let (counters, figures) = (&snapshot.counters, &snapshot.figures);
    for (name, help, value) in [
        ("threadline_messages_routed_total", "Messages that entered the pipeline.", counters.routed),
        ("threadline_messages_accepted_total", "Messages taken into custody.", counters.accepted),
        ("threadline_messages_delivered_total", "Messages confirmed by their recipient.", counters.delivered),
        ("threadline_messages_queued_total", "Messages whose sender heard `queued`.", counters.queued),
        ("threadline_messages_rejected_total", "Messages refused.", counters.rejected),
        ("threadline_messages_expired_total", "Messages given up.", counters.expired),
        ("threadline_redeliveries_total", "Messages offered again.", counters.redelivered),
        ("threadline_connections_total", "Sockets opened.", counters.connections),
        ("threadline_auth_failures_total", "Logins refused.", counters.auth_failures),
        ("threadline_abuse_bans_total", "Identities banned by a detector.", counters.bans),
        ("threadline_discovery_queries_total", "Discover frames answered.", counters.discoveries),
        ("threadline_fingerprint_conflicts_total", "Keys refused for a taken address.", counters.conflicts),
        (
            "threadline_new_identities_total",
            "Identities that came for the first time.",
            figures.new_identities,
        ),
    ] {
        out.single("counter", name, help, value);
    }
    let (gauge, sessions) = ("gauge", snapshot.carriers);
    out.single(gauge, "threadline_connections_active", "Open sockets.", snapshot.connections);
    out.labelled((gauge, "threadline_sessions", "Live sessions."), "carrier", sessions);
    let by_carrier = |which: fn(&CarrierFigures) -> u64| {
        CARRIERS.into_iter().zip(figures.carriers.iter().map(which).collect::<Vec<_>>())
    };
    for (name, help, which) in [
        ("threadline_carrier_logins_total", "Sessions opened.", (|c| c.logins) as fn(&CarrierFigures) -> u64),
        ("threadline_carrier_accepted_total", "Messages taken into custody.", |c| c.accepted),
        ("threadline_carrier_confirmed_total", "Messages confirmed by their recipient.", |c| c.confirmed),
    ] {
        out.labelled(("counter", name, help), "carrier", by_carrier(which));
    }
    out.single(
        gauge,
        "threadline_messages_per_minute",
        "Messages of the last minute.",
        snapshot.messages_per_minute,
    );
    out.single(gauge, "threadline_unconfirmed", "Messages written and not confirmed.", snapshot.unconfirmed);
    let (posed, solved) = figures.puzzles;
    out.labelled(
        ("counter", "threadline_pow_total", "Puzzles of new identities."),
        "result",
        [("posed", posed), ("solved", solved)],
    );
    out.single(
        "counter",
        "threadline_blob_bytes_total",
        "Bytes of blobs that were passed on.",
        figures.blob_bytes,
    );
    let rejects = Reject::ALL.iter().map(|(_, label)| *label).zip(figures.rejects);
    out.labelled(("counter", "threadline_rejects_total", "Messages refused, by reason."), "reason", rejects);
    let bans = bans(&counters.bans_by);
    out.labelled(("counter", "threadline_bans_total", "Bans, by pattern."), "pattern", bans);
    out.histogram("threadline_accept_seconds", "From the frame to its answer.", &figures.accept);
    out.histogram("threadline_deliver_seconds", "From the commit to the confirmation.", &figures.deliver);
}
