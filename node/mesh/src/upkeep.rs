//! The room's tasks: link events, pipeline, dispatcher, housekeeping.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use threadline::delivery::{DeliveryState, Evidence};
use threadline::service::ServiceError;
use threadline::time::iso_ms;
use threadline::trust::TrustSource;
use threadline::v1::client::DeliveryEvent;
use threadline::{Fingerprint, MessageId, TrustLevel};
use threadline_net::LinkEvent;
use threadline_net::store::{DeliveryRow, StoreError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::core::{Core, internal};
use crate::dispatch::Dispatcher;
use crate::mesh::Run;

const DAY_MS: i64 = 86_400_000;
/// Counters reach the disk this often.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Expiry, retries, decay and the like.
const MINUTE: Duration = Duration::from_mins(1);
/// Agents of this machine are asked anew.
const LOCAL_EVERY: Duration = Duration::from_mins(5);
/// The registry of agents is looked at for changes.
const REGISTRY_EVERY: Duration = Duration::from_secs(5);
/// Open deliveries looked at together.
const DELIVERIES: u32 = 500;

/// Runs every task until cancelled; then the link says good-bye and the records are flushed.
pub(crate) async fn run(core: Arc<Core>, run: Run, cancel: CancellationToken) {
    core.boot().await;
    let mut tasks = JoinSet::new();
    tasks.spawn(run.link);
    tasks.spawn(run.direct);
    tasks.spawn(run.sealed.mail);
    tasks.spawn(run.sealed.relays);
    let task = Arc::clone(&core);
    tasks.spawn(async move { task.run_relay_news().await });
    let task = Arc::clone(&core);
    tasks.spawn(async move { task.run_drops().await });
    let task = Arc::clone(&core);
    tasks.spawn(async move { task.run_ingest().await });
    let task = Arc::clone(&core);
    tasks.spawn(async move { Dispatcher::new(&task).run(&task).await });
    let task = Arc::clone(&core);
    tasks.spawn(async move { task.run_handovers(run.handovers).await });
    let task = Arc::clone(&core);
    tasks.spawn(async move { task.run_upkeep().await });
    let task = Arc::clone(&core);
    let listener = tokio::spawn(async move { task.run_events(run.events).await });
    let task = Arc::clone(&core);
    let sealed_listener = tokio::spawn(async move { task.run_sealed_events(run.sealed.events).await });
    tokio::select! {
        () = cancel.cancelled() => {}
        Some(ended) = tasks.join_next() => {
            if let Err(error) = ended {
                tracing::error!(%error, "a task of the mesh died");
                core.notices.degrade("threadline", "a task of the mesh died; restart the node");
            }
            cancel.cancelled().await;
        }
    }
    core.stop.cancel();
    while tasks.join_next().await.is_some() {}
    listener.abort();
    sealed_listener.abort();
    core.flush_records().await;
    core.audit.anchor().await;
    let store = core.store.clone();
    let _ = tokio::task::spawn_blocking(move || store.close()).await;
}

impl Core {
    /// What must hold before the first request: expired things are expired.
    async fn boot(&self) {
        self.expire_approvals().await;
        self.expire_deliveries().await;
        self.apply_decay().await;
        self.raise_redeemers().await;
        self.refresh_routes();
        self.take_drops().await;
        self.forget_presence().await;
        self.watch_peers().await;
    }

    /// Makes the link follow the configuration.
    pub(crate) async fn steer_link(&self) {
        match self.client_config() {
            // What this agent says of itself at the login depends on what the relay speaks.
            Some(config) if !self.sealed.was_asked(&config.url) => {}
            Some(config) => self.link.start(config).await,
            None => self.link.stop().await,
        }
    }

    async fn run_events(&self, mut events: mpsc::Receiver<LinkEvent>) {
        while let Some(event) = events.recv().await {
            match event {
                LinkEvent::Spooled => self.ingest_wake.notify_one(),
                LinkEvent::Delivery { to, id, event } => self.delivery_event(to, id, &event).await,
                LinkEvent::AgentsChanged => self.merge_agents(&self.link.agents()).await,
                LinkEvent::StateChanged { relay, change } => {
                    self.link_log.record(&relay, &change);
                    self.link_changed().await;
                }
                LinkEvent::DirectAway(peer) => {
                    tracing::debug!(peer = %peer.short(), "left to the relay");
                    self.link.flush();
                }
                LinkEvent::SpoolBlocked(true) => {
                    self.notices.degrade("spool-error", "the spool takes nothing; the relay keeps the rest");
                }
                LinkEvent::SpoolBlocked(false) => self.notices.resolve("spool-error"),
            }
        }
    }

    async fn link_changed(&self) {
        let status = self.link.status();
        self.events.publish("link-state", json!({"state": status.state}));
        if status.is_connected() {
            self.notices.resolve("threadline-link");
            if let Err(error) = self.store.outbox_retry_all(self.now()).await {
                tracing::error!(%error, "the outbox was not made due");
            }
            self.flush();
        } else {
            self.forget_presence().await;
            match status.state {
                "backoff" => self.sealed.look_again(),
                "displaced" if !status.self_healing => self.notify(
                    "link-displaced",
                    "Another process or machine uses this agent's identity at the relay; the link is off",
                    true,
                ),
                "auth-failed" => self.notify(
                    "link-auth-failed",
                    "The relay refuses this agent's login; the link is off",
                    true,
                ),
                _ => {}
            }
            if self.config().relay_url.is_some() {
                let reason = status.last_error.unwrap_or_else(|| "no connection to the relay".into());
                self.notices.degrade("threadline-link", &reason);
            } else {
                self.notices.resolve("threadline-link");
            }
        }
    }

    /// What the carrier says about a message of ours.
    async fn delivery_event(&self, to: Option<Fingerprint>, id: MessageId, event: &DeliveryEvent) {
        let row = match self.store.delivery_of_v1(to, id).await {
            Ok(Some(row)) => row,
            Ok(None) => return,
            Err(error) => return tracing::error!(%error, "a delivery cannot be read"),
        };
        if let Err(error) = self.learn(row, event).await {
            tracing::error!(%error, "a delivery was not noted");
        }
        self.flush();
    }

    async fn learn(&self, mut row: DeliveryRow, event: &DeliveryEvent) -> Result<(), StoreError> {
        let now = self.now();
        if *event == DeliveryEvent::Written {
            row.delivery.attempted(now);
        }
        let evidence = Evidence::of(event, self.config().relay_is_ours);
        row.delivery.learn(evidence, now);
        let reason = match event {
            DeliveryEvent::Rejected { reason, .. } => Some(format!("relay: {reason}")),
            _ => None,
        };
        let failed = matches!(row.delivery.state, DeliveryState::Failed | DeliveryState::Rejected);
        let keep = !row.delivery.may_be_dropped(now);
        self.store.set_delivery(row.clone(), reason.clone(), keep).await?;
        if failed {
            self.report_failure(&row, reason.as_deref().unwrap_or("refused")).await;
        }
        Ok(())
    }

    pub(crate) async fn report_failure(&self, row: &DeliveryRow, reason: &str) {
        self.waiters.undeliverable(&row.key, &row.id, reason);
        let name = self.name_of(&row.key.peer).await;
        let text = format!("A message to {name} in thread {} was not delivered: {reason}", row.key.thread);
        self.notify(format!("undelivered:{}:{}", row.key.peer, row.key.thread), text, false);
        self.thread_event("message-failed", &row.key, row.id.as_str());
    }

    async fn run_upkeep(&self) {
        let mut flush = tokio::time::interval(FLUSH_EVERY);
        let mut minute = tokio::time::interval(MINUTE);
        let mut local = tokio::time::interval(LOCAL_EVERY);
        let mut registry = tokio::time::interval(REGISTRY_EVERY);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = flush.tick() => self.flush_records().await,
                _ = minute.tick() => self.every_minute().await,
                _ = local.tick() => drop(self.scan_local().await),
                _ = registry.tick() => {
                    if self.local.is_stale() {
                        self.scan_local().await;
                    }
                }
            }
        }
    }

    async fn flush_records(&self) {
        if let Err(error) = self.profiles.flush().await {
            tracing::error!(%error, "trust counters were not written");
        }
    }

    async fn every_minute(&self) {
        self.expire_approvals().await;
        self.expire_deliveries().await;
        self.apply_decay().await;
        self.raise_redeemers().await;
        self.redeem_due().await;
        self.watch_peers().await;
        self.lapse_pins().await;
        let now = self.now();
        let purged = async {
            self.store.age_threads(now).await?;
            self.store.purge_events(now - DAY_MS).await?;
            self.store.spool_purge(now - 7 * DAY_MS).await?;
            self.store.purge_seen(now - 9 * DAY_MS).await?;
            self.store.purge_deliveries(now - 30 * DAY_MS).await?;
            self.store.purge_nonces(now).await?;
            self.store.purge_spawns(now - 30 * DAY_MS).await?;
            self.store.purge_approvals(now - 30 * DAY_MS).await
        };
        if let Err(error) = purged.await {
            tracing::error!(%error, "old rows were not deleted");
        }
    }

    /// Expires what nobody confirmed in its life, drops what is no longer needed, tells the owner of what waits long.
    async fn expire_deliveries(&self) {
        let open = match self.store.open_deliveries(DELIVERIES).await {
            Ok(open) => open,
            Err(error) => return tracing::error!(%error, "deliveries cannot be read"),
        };
        let now = self.now();
        let escalate_after = self.config().escalate_after_ms;
        for mut row in open {
            let expired = row.delivery.expire(now);
            let escalate = row.escalated_at.is_none() && row.delivery.needs_escalation(now, escalate_after);
            let drop_row = row.delivery.may_be_dropped(now);
            if escalate {
                row.escalated_at = Some(now);
                let name = self.name_of(&row.key.peer).await;
                let hours = escalate_after / 3_600_000;
                let text = format!("Messages to {name} are unconfirmed for more than {hours} h");
                self.notify(format!("unconfirmed:{}", row.key.peer), text, false);
            }
            if !(expired || escalate || drop_row) {
                continue;
            }
            let reason = expired.then(|| "nobody took it in its life".to_owned());
            if let Err(error) = self.store.set_delivery(row.clone(), reason, !drop_row).await {
                tracing::error!(%error, "a delivery was not noted");
            } else if expired {
                self.report_failure(&row, "nobody took it in its life").await;
            }
        }
    }

    /// Lowers levels that inactivity wore off, one step each.
    async fn apply_decay(&self) {
        let now = self.now();
        let due: Vec<(Fingerprint, TrustLevel)> = self
            .profiles
            .get()
            .profiles
            .iter()
            .filter_map(|(peer, profile)| Some((*peer, profile.decayed(now)?)))
            .collect();
        for (peer, level) in due {
            let name = self.name_of(&peer).await;
            let lowered =
                self.apply_level(peer, &name, level, TrustSource::System, "system", Some("inactivity")).await;
            match lowered {
                Ok(()) => self.notify(
                    format!("decay:{peer}"),
                    format!("{name} was quiet for long and is now {level}"),
                    false,
                ),
                Err(error) => tracing::error!(%error, "a level was not lowered"),
            }
        }
    }

    pub(crate) async fn status(&self) -> Result<Value, ServiceError> {
        let failed = |e| internal(&e);
        let link = self.link.status();
        let config = self.config();
        let pending = self.store.pending_approvals().await.map_err(failed)?;
        let approvals: u32 = pending.iter().map(|(_, n)| n).sum();
        let spool = self.store.spool_depth().await.map_err(failed)?;
        let unrouted = self.store.unrouted(10_000).await.map_err(failed)?.len();
        let queued = self.store.queued_inbound(0, 10_000).await.map_err(failed)?.len();
        let outbox = self.store.open_deliveries(10_000).await.map_err(failed)?.len();
        Ok(json!({
            "state": "running",
            "fingerprint": self.us,
            "canonicalId": self.identity.public().canonical_id(),
            "displayFingerprint": self.identity.public().display_fingerprint(),
            "agent": self.agent_name,
            "version": self.version,
            "link": link,
            "v2": self.sealed_status(),
            "listener": {"mode": "embedded", "pid": std::process::id()},
            "relay": {"enabled": config.relay_url.is_some(), "url": config.relay_url,
                "ours": config.relay_is_ours, "visibility": config.visibility},
            "direct": {"enabled": config.direct_enabled},
            "registry": {"available": self.registry_open()},
            "queues": {"spool": spool, "unrouted": unrouted, "inSessionInbox": queued, "undelivered": outbox},
            "approvalsPending": approvals,
            "paused": self.controls.get().all.paused,
            "audit": {"state": if self.audit.broken.is_some() { "broken" } else { "ok" },
                "reason": self.audit.broken},
            "config": {"autonomy": config.policy.autonomy, "requireE2E": config.policy.require_e2e,
                "maxActiveSessions": config.sessions.max_active},
            "at": iso_ms(self.now()),
        }))
    }
}
