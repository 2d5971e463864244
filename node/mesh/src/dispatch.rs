//! From stored messages to sessions (`threadline-agent.md` §11): in order within a thread, durable before a session is
//! started, found again after a restart because the database is the queue.

mod heartbeat;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use instar_state::ids::SessionId;
use instar_state::ports::{
    HeartbeatSpec, InputKind, InputState, LiveSession, PeerBinding, PeerSessionSpec, SessionInput,
    SpawnRefused,
};
use threadline::firewall::{FIND_TOOL, HISTORY_TOOL, SEND_TOOL};
use threadline::framing::{Frame, frame};
use threadline::spawn::{
    Denial, DenialReason, FailureCause, NodeFacts, SpawnManager, Waiting as WaitingPeer, event_id,
};
use threadline::threads::{MAX_SPAWN_FAILURES, ThreadEvent};
use threadline::trust::TrustSource;
use threadline::v1::envelope::Authentication;
use threadline::v2::content::ReceiptStatus;
use threadline::warrant::{Facts, Warrant, judge};
use threadline::{ThreadKey, TrustLevel};
use threadline_net::store::{
    APPROVED, Auth, Direction, LedgerRow, LedgerStatus, MessageState, StoreError, StoredMessage,
};
use tokio::sync::mpsc;
use tokio::task::{self, JoinSet};
use tokio::time::Instant;

pub(crate) use self::heartbeat::Pulse;
use self::heartbeat::{heartbeat_file, remove_heartbeat};
use crate::core::{Core, conversation_of, inbox_key};
use crate::waiters::{Addressee, Handover};

/// Rows looked at together.
const BATCH: u32 = 256;
/// The watchdog's and dispatcher's tick while a message waits or a session serves a peer.
const TICK: Duration = Duration::from_secs(1);
/// The tick while there is nothing to watch: new work wakes the dispatcher by itself.
const IDLE_TICK: Duration = Duration::from_secs(30);
/// Time without any heartbeat after which a spawn counts as failed. The supervisor has 5 s from its own start; the rest
/// is for starting it.
const HEARTBEAT_FIRST_MS: i64 = 30_000;
/// Pause before a start that this host could not carry out is tried again, ms; it grows from the fourth on.
const START_RETRY_MS: i64 = 5_000;
/// Longest such pause, ms.
const START_RETRY_MAX_MS: i64 = 900_000;
/// A session that stays idle this long after a message was injected has nothing to say to it.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// What the dispatcher may forget at a restart.
pub(crate) struct Dispatcher {
    spawns: SpawnManager,
    /// Threads whose session is being started, and by which task.
    starting: HashMap<ThreadKey, task::Id>,
    starts: JoinSet<Started>,
    idle_since: HashMap<ThreadKey, Instant>,
    failures: HashMap<ThreadKey, u32>,
    not_before: HashMap<ThreadKey, i64>,
    /// Starts in a row that this host could not carry out.
    refused: HashMap<ThreadKey, u32>,
    /// Row after which the next look at waiting messages begins.
    after: i64,
}

struct Started {
    key: ThreadKey,
    event_id: String,
    result: Result<SessionId, SpawnRefused>,
}

impl Dispatcher {
    pub(crate) fn new(core: &Core) -> Self {
        Self {
            spawns: SpawnManager::new(core.config().spawn),
            starting: HashMap::new(),
            starts: JoinSet::new(),
            idle_since: HashMap::new(),
            failures: HashMap::new(),
            not_before: HashMap::new(),
            refused: HashMap::new(),
            after: 0,
        }
    }

    /// Routes until the room is stopped. Sessions that are being started are left to the session room.
    pub(crate) async fn run(mut self, core: &Core) {
        loop {
            let tick = match self.pass(core).await {
                Ok(true) => TICK,
                Ok(false) => IDLE_TICK,
                Err(error) => {
                    tracing::error!(%error, "routing stopped at the store; it goes on with the next tick");
                    TICK
                }
            };
            tokio::select! {
                () = core.stop.cancelled() => return,
                () = core.dispatch_wake.notified() => {}
                () = core.sessions.changed() => {}
                Some(started) = self.starts.join_next(), if !self.starts.is_empty() => {
                    match started {
                        Ok(started) => self.started(core, started).await,
                        Err(error) => self.start_broke_off(core, &error),
                    }
                }
                () = tokio::time::sleep(tick) => {}
            }
        }
    }

    /// One look at everything. Whether there is something that only time will change.
    async fn pass(&mut self, core: &Core) -> Result<bool, StoreError> {
        self.spawns.set_config(core.config().spawn);
        let mut skipped: HashSet<ThreadKey> = HashSet::new();
        for message in core.store.unrouted(BATCH).await? {
            // A message that found no place keeps its place before the later ones of its thread.
            if !skipped.contains(&message.key) && !route(core, &message).await? {
                skipped.insert(message.key);
            }
        }
        let queued = core.store.queued_inbound(self.after, BATCH).await?;
        let open_messages = !queued.is_empty() || self.after > 0;
        // Page by page, so that no number of waiting messages hides the later ones.
        self.after = queued.get(BATCH as usize - 1).map_or(0, |last| last.row);
        let waiting = self.settle_queued(core, queued).await?;
        let open_spawns = self.watch_spawns(core).await?;
        self.start_sessions(core, waiting).await?;
        Ok(open_messages || !skipped.is_empty() || open_spawns || !self.starts.is_empty())
    }

    /// Looks after rows in the session inbox. Returns the conversations that need a session, with their first message.
    async fn settle_queued(
        &mut self,
        core: &Core,
        queued: Vec<StoredMessage>,
    ) -> Result<BTreeMap<i64, StoredMessage>, StoreError> {
        let mut need = BTreeMap::new();
        let mut seen: HashSet<ThreadKey> = HashSet::new();
        for message in queued {
            let key = message.key.clone();
            let inbox = inbox_key(&key.peer, message.id.as_str());
            let live = core.sessions.live(&conversation_of(&key));
            let state = match core.sessions.input_state(&inbox).await {
                Ok(state) => state,
                Err(error) => {
                    tracing::error!(error, "the session inbox cannot be read; a message stays as it is");
                    continue;
                }
            };
            match state {
                Some(InputState::Acked) => self.done(core, &message, None).await?,
                Some(InputState::Injected) => {
                    core.store.thread_event(key.clone(), ThreadEvent::HandedToSession).await?;
                    if self.is_settled(&key, live.as_ref()) {
                        core.sessions.replied(&conversation_of(&key), Some(&inbox)).await;
                        self.done(core, &message, Some("no-reply")).await?;
                    }
                }
                Some(InputState::Queued) => {
                    self.idle_since.remove(&key);
                    // The session that had it answered it and died before that was noted.
                    if live.is_none() && core.store.is_answered(key.peer, message.id.clone()).await? {
                        core.sessions.replied(&conversation_of(&key), Some(&inbox)).await;
                        self.done(core, &message, None).await?;
                    } else if live.is_none() && seen.insert(key) {
                        need.insert(message.row, message);
                    }
                }
                Some(InputState::Failed | InputState::Expired) => {
                    self.give_up(core, &message, "the session did not take it").await?;
                }
                // Stored as queued, lost by the session room: hand it over again; the key makes it one row.
                None => {
                    let state = MessageState::Stored;
                    core.store.set_inbound_state(key, message.id, state, message.reason, None).await?;
                }
            }
        }
        Ok(need)
    }

    /// Whether the session has been idle for long enough since the message reached it.
    fn is_settled(&mut self, key: &ThreadKey, live: Option<&LiveSession>) -> bool {
        if !live.is_some_and(|session| session.idle) {
            self.idle_since.remove(key);
            return false;
        }
        self.idle_since.entry(key.clone()).or_insert_with(Instant::now).elapsed() >= SETTLED_AFTER
    }

    async fn done(
        &mut self,
        core: &Core,
        message: &StoredMessage,
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        self.failures.remove(&message.key);
        let reason = reason.map(str::to_owned);
        let state = MessageState::Delivered;
        core.store.set_inbound_state(message.key.clone(), message.id.clone(), state, reason, None).await?;
        core.tell_sender(message, ReceiptStatus::Delivered).await;
        core.thread_event("message-processed", &message.key, message.id.as_str());
        Ok(())
    }

    async fn give_up(
        &mut self,
        core: &Core,
        message: &StoredMessage,
        reason: &str,
    ) -> Result<(), StoreError> {
        self.failures.remove(&message.key);
        self.not_before.remove(&message.key);
        core.sessions.withdraw(&inbox_key(&message.key.peer, message.id.as_str())).await;
        core.store
            .set_inbound_state(
                message.key.clone(),
                message.id.clone(),
                MessageState::Failed,
                Some(reason.to_owned()),
                Some(ThreadEvent::SpawnFailed),
            )
            .await?;
        core.tell_sender(message, ReceiptStatus::Failed).await;
        let name = core.name_of(&message.key.peer).await;
        let text = format!("A message of {name} in thread {} was not answered: {reason}", message.key.thread);
        core.notify(format!("unanswered:{}:{}", message.key.peer, message.key.thread), text, true);
        core.thread_event("message-failed", &message.key, message.id.as_str());
        Ok(())
    }

    async fn start_sessions(
        &mut self,
        core: &Core,
        waiting: BTreeMap<i64, StoredMessage>,
    ) -> Result<(), StoreError> {
        let now = core.now();
        let ready: Vec<StoredMessage> = waiting
            .into_values()
            .filter(|m| !self.starting.contains_key(&m.key))
            .filter(|m| self.not_before.get(&m.key).is_none_or(|at| *at <= now))
            .collect();
        if ready.is_empty() {
            return Ok(());
        }
        let peers: Vec<WaitingPeer> = ready
            .iter()
            .map(|m| WaitingPeer {
                peer: m.key.peer,
                attempts: self
                    .failures
                    .get(&m.key)
                    .max(self.refused.get(&m.key))
                    .copied()
                    .unwrap_or_default(),
            })
            .collect();
        for peer in self.spawns.tick(&peers, now) {
            if let Some(message) = ready.iter().find(|m| m.key.peer == peer) {
                self.start_session(core, message).await?;
            }
        }
        Ok(())
    }

    async fn start_session(&mut self, core: &Core, message: &StoredMessage) -> Result<(), StoreError> {
        let now = core.now();
        let key = message.key.clone();
        let config = core.config();
        if core.controls.get().is_blocked(&key.peer) {
            return self.give_up(core, message, "its sender is blocked").await;
        }
        let spawn_window = config.limits.spawn(&key.peer, core.spawn_level(message).await?);
        if spawn_window.max == 0 {
            return self.give_up(core, message, "its sender may not start a session").await;
        }
        let usage = core.store.usage(vec![spawn_window.clone()], now).await?;
        if let Err(limited) = threadline::limits::check(usage.iter().map(|(w, u)| (w, *u)), now) {
            let wait = i64::try_from(limited.retry_after_s).unwrap_or(60).min(60);
            self.not_before.insert(key, now + wait * 1000);
            return Ok(());
        }
        let open = core.store.open_spawns().await?;
        let ledger = core.store.ledger_figures(key.peer, now).await?;
        let facts = NodeFacts {
            peer_sessions: u32::try_from(self.live_sessions(core, &open)).unwrap_or(u32::MAX),
            max_peer_sessions: u32::try_from(config.sessions.max_active).unwrap_or(u32::MAX),
            node_slot_free: true,
            memory_percent: core.sessions.memory_percent(),
            context_bytes: u32::try_from(message.body.as_deref().map_or(0, str::len)).unwrap_or(u32::MAX),
            spawns_of_peer_today: ledger.of_peer_today,
            in_flight: ledger.in_flight,
            ledger_rows: ledger.rows,
        };
        if let Err(denial) = self.spawns.check(&key.peer, &facts, now) {
            return self.denied(core, message, denial).await;
        }
        let nonce: [u8; 32] = rand::random();
        let row = LedgerRow {
            event_id: event_id(&key.peer.to_string(), &hex::encode(nonce), &message.id),
            key: key.clone(),
            nonce: nonce.to_vec(),
            spawned_at: now,
            status: LedgerStatus::Spawning,
            session_id: None,
        };
        if !core.store.reserve_spawn(row.clone()).await? {
            return Ok(());
        }
        core.store.record_events(vec![spawn_window], now).await?;
        self.spawns.started(key.peer, now);
        let spec = session_spec(core, &row, &core.name_of(&key.peer).await);
        let sessions = std::sync::Arc::clone(&core.sessions);
        let store = core.store.clone();
        let thread = key.clone();
        let start = self.starts.spawn(async move {
            let result = sessions.start(spec).await;
            if let Ok(session) = &result
                && let Err(error) = store.bind_spawn(&row.event_id, key.clone(), &session.to_string()).await
            {
                tracing::error!(%error, "a spawn was not noted");
            }
            Started { key, event_id: row.event_id, result }
        });
        self.starting.insert(thread, start.id());
        Ok(())
    }

    /// Sessions of this room that live or are being started.
    fn live_sessions(&self, core: &Core, open: &[LedgerRow]) -> usize {
        let mut keys: HashSet<&ThreadKey> = self.starting.keys().collect();
        keys.extend(
            open.iter().map(|row| &row.key).filter(|key| core.sessions.live(&conversation_of(key)).is_some()),
        );
        keys.len()
    }

    async fn denied(
        &mut self,
        core: &Core,
        message: &StoredMessage,
        denial: Denial,
    ) -> Result<(), StoreError> {
        tracing::info!(peer = %message.key.peer.short(), reason = denial.reason.as_str(), "spawn denied");
        let Some(retry_at) = denial.retry_at else {
            return self.give_up(core, message, denial.reason.as_str()).await;
        };
        self.not_before.insert(message.key.clone(), retry_at);
        if denial.reason != DenialReason::Cooldown {
            let text = format!(
                "Messages of {} wait for a session: {}",
                core.name_of(&message.key.peer).await,
                denial.reason.as_str()
            );
            core.notify(format!("spawn-denied:{}", message.key.peer), text, false);
        }
        Ok(())
    }

    async fn started(&mut self, core: &Core, started: Started) {
        let Started { key, event_id, result } = started;
        self.starting.remove(&key);
        let now = core.now();
        let noted = match result {
            Ok(session) => {
                tracing::info!(session = %session, thread = %key.thread, "session started for a peer");
                self.refused.remove(&key);
                Ok(())
            }
            Err(refused) => {
                tracing::warn!(%refused, thread = %key.thread, "no session for a peer");
                let (cause, wait) = match &refused {
                    SpawnRefused::SessionLimit { .. } => (FailureCause::SessionCap, 60_000),
                    SpawnRefused::RuntimeMissing(reason) => {
                        core.notices.degrade("threadline-sessions", reason);
                        (FailureCause::Ambiguous, 60_000)
                    }
                    SpawnRefused::Paused { until_ms, reason } => {
                        core.notices.degrade("threadline-sessions", reason);
                        (FailureCause::Provider5xx, until_ms - now)
                    }
                    SpawnRefused::Failed(reason) => {
                        (FailureCause::Ambiguous, self.host_failed(core, &key, reason))
                    }
                };
                self.spawns.failed(key.peer, cause, now);
                self.not_before.insert(key.clone(), now + wait);
                let reason = refused.to_string();
                let failed = LedgerStatus::Failed;
                core.store.set_spawn(&event_id, failed, Some(&reason), None, now).await.map(drop)
            }
        };
        if let Err(error) = noted {
            tracing::error!(%error, "a spawn was not noted");
        }
    }

    /// A task that starts a session panicked. Whether there is a session all the same, the ledger's watch finds out.
    fn start_broke_off(&mut self, core: &Core, error: &task::JoinError) {
        let Some(key) =
            self.starting.iter().find(|(_, task)| **task == error.id()).map(|(key, _)| key.clone())
        else {
            return;
        };
        tracing::error!(%error, thread = %key.thread, "the start of a session broke off");
        self.starting.remove(&key);
        let now = core.now();
        let wait = self.host_failed(core, &key, "starting a session broke off; the log says where");
        self.spawns.failed(key.peer, FailureCause::Ambiguous, now);
        self.not_before.insert(key, now + wait);
    }

    /// This host could not start a session: how long to wait until the next try, ms.
    fn host_failed(&mut self, core: &Core, key: &ThreadKey, reason: &str) -> i64 {
        let refused = self.refused.entry(key.clone()).or_default();
        *refused = refused.saturating_add(1);
        if *refused >= MAX_SPAWN_FAILURES {
            core.notices.degrade("threadline-sessions", reason);
        }
        start_pause(*refused)
    }

    /// Three sessions did not prove themselves, or one proved to be another: the thread's waiting messages are reported.
    async fn fail_thread(&mut self, core: &Core, key: &ThreadKey) {
        let Ok(queued) = core.store.queued_of(key.clone()).await else { return };
        for message in queued {
            if let Err(error) = self.give_up(core, &message, "no session could be started").await {
                tracing::error!(%error, "a message was not marked");
            }
        }
    }

    /// Proof of life, end and parking of the sessions in the ledger. Whether there are any.
    async fn watch_spawns(&mut self, core: &Core) -> Result<bool, StoreError> {
        let park_after = Duration::from_millis(core.config().sessions.park_after_ms.unsigned_abs());
        let open = core.store.open_spawns().await?;
        let any = !open.is_empty();
        for row in open {
            if self.starting.contains_key(&row.key) {
                continue;
            }
            let now = core.now();
            let live = core.sessions.live(&conversation_of(&row.key));
            if row.session_id.is_none()
                && let Some(live) = &live
                && core.check_heartbeat(&row).await? == Pulse::Alive
            {
                // The node died between the start and its note; the supervisor proves which session it was.
                core.store.bind_spawn(&row.event_id, row.key.clone(), &live.id.to_string()).await?;
                continue;
            }
            let Some(live) = live.filter(|l| row.session_id.as_deref() == Some(&l.id.to_string())) else {
                let (status, reason) = match row.status {
                    LedgerStatus::Verified => (LedgerStatus::Completed, None),
                    _ => (LedgerStatus::Failed, Some("ended before its proof of life")),
                };
                core.store.set_spawn(&row.event_id, status, reason, None, now).await?;
                remove_heartbeat(core, &row.key).await;
                continue;
            };
            if row.status == LedgerStatus::Spawning {
                self.verify(core, &row, &live).await?;
            }
            if live.idle {
                let idle = self.idle_since.entry(row.key.clone()).or_insert_with(Instant::now).elapsed();
                if idle >= park_after {
                    self.idle_since.remove(&row.key);
                    core.sessions.end(&live.id, "parked").await;
                }
            }
        }
        Ok(any)
    }

    async fn verify(&mut self, core: &Core, row: &LedgerRow, live: &LiveSession) -> Result<(), StoreError> {
        match core.check_heartbeat(row).await? {
            Pulse::Alive => {
                self.spawns.succeeded(row.key.peer);
                core.notices.resolve("threadline-sessions");
            }
            Pulse::Missing if core.now() - row.spawned_at < HEARTBEAT_FIRST_MS => {}
            bad @ (Pulse::Missing | Pulse::Stale | Pulse::Forged) => {
                let reason = bad.name();
                tracing::error!(reason, thread = %row.key.thread, "a session is not what was started");
                let now = core.now();
                core.store.set_spawn(&row.event_id, LedgerStatus::Failed, Some(reason), None, now).await?;
                core.sessions.end(&live.id, reason).await;
                let text = format!("A session that served thread {} was ended: {reason}", row.key.thread);
                core.notify(format!("heartbeat:{reason}"), text, true);
                let failures = self.failures.entry(row.key.clone()).or_default();
                // A forged proof is never given a second session.
                *failures = if bad == Pulse::Forged { MAX_SPAWN_FAILURES } else { *failures + 1 };
                if *failures >= MAX_SPAWN_FAILURES {
                    self.fail_thread(core, &row.key).await;
                }
            }
        }
        Ok(())
    }
}

/// Pause after the n-th start in a row that this host could not carry out, ms.
fn start_pause(refused: u32) -> i64 {
    (START_RETRY_MS << refused.saturating_sub(MAX_SPAWN_FAILURES).min(8)).min(START_RETRY_MAX_MS)
}

/// Gives one stored message to whoever waits for it, or makes it durable in the session inbox. False when it keeps its
/// place for now: it is on its way to a caller, or the inbox does not take it.
async fn route(core: &Core, message: &StoredMessage) -> Result<bool, StoreError> {
    let key = message.key.clone();
    let body = message.body.clone().unwrap_or_default();
    if core.waiters.is_giving(&key) {
        // The next one follows when it is known where this one went.
        return Ok(false);
    }
    let thread = core.store.thread(key.clone()).await?;
    let previous = core.store.previous_inbound(key.clone(), message.seq).await?;
    let warrant = judge(&Facts {
        body: &body,
        previous_inbound: previous.as_deref(),
        human: false,
        expects_reply: false,
        similar_turns: thread.as_ref().map_or(0, |t| t.similar_turns),
    });
    let set = |state, reason: Option<&str>| {
        let reason = reason.map(str::to_owned);
        core.store.set_inbound_state(key.clone(), message.id.clone(), state, reason, None)
    };
    if core.waiters.has(&key)
        && warrant != Warrant::NoAnswer
        && core.waiters.give(&key, core.addressee(message).await?, &message.id, &body)
    {
        return Ok(false);
    }
    let similar_turns = match warrant {
        Warrant::NoAnswer => {
            set(MessageState::Noted, Some("no-answer-needed")).await?;
            core.tell_sender(message, ReceiptStatus::Delivered).await;
            return Ok(true);
        }
        Warrant::Loop => {
            set(MessageState::Noted, Some("loop")).await?;
            core.tell_sender(message, ReceiptStatus::Delivered).await;
            let text = format!("Thread {} went idle: both agents repeat themselves", key.thread);
            core.notify(format!("loop:{}:{}", key.peer, key.thread), text, false);
            return Ok(true);
        }
        Warrant::Answer { similar_turns } => similar_turns,
    };
    let input = session_input(core, message, &body).await;
    match core.sessions.enqueue(input).await {
        Ok(ulid) => {
            tracing::info!(%ulid, thread = %key.thread, "message handed to the session inbox");
            core.store.set_queued(key, message.id.clone(), similar_turns).await?;
            Ok(true)
        }
        Err(error) => {
            tracing::error!(error, "the session inbox refused a message; it is tried again");
            Ok(false)
        }
    }
}

async fn session_input(core: &Core, message: &StoredMessage, body: &str) -> SessionInput {
    let key = &message.key;
    let profile = core.profile(&key.peer);
    let name = core.name_of(&key.peer).await;
    let suspicious = !threadline::framing::suspicions(body).is_empty();
    if suspicious {
        let details = serde_json::json!({"threadId": key.thread, "messageId": message.id});
        let action = threadline::audit::Action::InjectionDetected;
        core.audit.record(action, &key.peer.to_string(), "system", details).await;
    }
    let framed = frame(&Frame {
        our_name: &core.agent_name,
        peer_name: &name,
        peer: key.peer,
        level: core.level(&key.peer),
        source: profile.as_ref().map_or(&TrustSource::SetupDefault, |p| &p.source),
        level_since: profile.as_ref().map_or("", |p| &p.level_since),
        authentication: match message.auth {
            Auth::E2e | Auth::Own => Authentication::E2e,
            Auth::Transport => Authentication::Transport,
            Auth::LocalToken => Authentication::LocalToken,
            Auth::Signed => Authentication::Signed,
        },
        thread: &key.thread,
        subject: &message.subject,
        message_id: &message.id,
        history: &[],
        body,
        nonce: &hex::encode(rand::random::<[u8; 8]>()),
    });
    SessionInput {
        inbox_key: inbox_key(&key.peer, message.id.as_str()),
        conversation: conversation_of(key),
        kind: InputKind::Agent,
        body: framed,
        tag: format!("threadline:{} from {} \"{name}\"", key.thread, key.peer.short()),
        steer: false,
    }
}

fn session_spec(core: &Core, row: &LedgerRow, peer_name: &str) -> PeerSessionSpec {
    let config = core.config();
    let mut allowed_tools: Vec<String> = Vec::new();
    for path in &config.sessions.allowed_paths {
        let path = path.trim_matches('/');
        for tool in ["Read", "Glob", "Grep"] {
            allowed_tools.push(format!("{tool}(/{path}/**)"));
        }
    }
    allowed_tools.extend([SEND_TOOL, HISTORY_TOOL, FIND_TOOL].map(str::to_owned));
    PeerSessionSpec {
        conversation: conversation_of(&row.key),
        name: format!("threadline-{}-{}", threadline::text::name(peer_name), row.key.peer.short()),
        binding: PeerBinding {
            peer: row.key.peer.to_string(),
            thread: row.key.thread.to_string(),
            allowed_tools,
        },
        model: config.sessions.model.clone(),
        heartbeat: Some(HeartbeatSpec {
            event_id: row.event_id.clone(),
            thread_id: row.key.thread.to_string(),
            nonce: hex::encode(&row.nonce),
            file: heartbeat_file(core, &row.key),
        }),
    }
}

impl Core {
    /// Level whose limits hold for a session that answers this message: what the owner let in counts as verified.
    async fn spawn_level(&self, message: &StoredMessage) -> Result<TrustLevel, StoreError> {
        let level = self.level(&message.key.peer);
        let let_in = message.reason.as_deref() == Some(APPROVED)
            || self.store.thread(message.key.clone()).await?.is_some_and(|thread| thread.approved);
        Ok(if let_in { level.max(TrustLevel::Verified) } else { level })
    }

    /// Which waiting call a message may be given to: a late answer to one that ended is not for the others.
    async fn addressee<'a>(&self, message: &'a StoredMessage) -> Result<Addressee<'a>, StoreError> {
        let Some(named) = message.in_reply_to.as_deref() else { return Ok(Addressee::Anyone) };
        let Ok(id) = named.parse() else { return Ok(Addressee::Anyone) };
        let ours = self.store.message(message.key.peer, id, Direction::Out).await?.is_some();
        Ok(if ours { Addressee::CallOf(named) } else { Addressee::Anyone })
    }

    /// Notes which replies reached their callers, until the room is stopped.
    pub(crate) async fn run_handovers(&self, mut confirmed: mpsc::Receiver<Handover>) {
        loop {
            let handover = tokio::select! {
                biased;
                handover = confirmed.recv() => handover,
                () = self.stop.cancelled() => None,
            };
            let Some(handover) = handover else { return };
            let (key, id) = handover.message();
            let reason = Some("waiter".to_owned());
            let state = MessageState::Delivered;
            match self.store.set_inbound_state(key.clone(), id.clone(), state, reason, None).await {
                Ok(_) => {
                    self.tell_sender_by(key.peer, id, ReceiptStatus::Delivered).await;
                    self.thread_event("message-processed", key, id.as_str());
                }
                Err(error) => tracing::error!(%error, "a reply that was read is given to a session too"),
            }
        }
    }

    /// Whether the peer's sessions are this room's to end, for the owner's view.
    pub(crate) fn serves(&self, key: &ThreadKey) -> Option<LiveSession> {
        self.sessions.live(&conversation_of(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_fails_is_tried_again_and_again_but_less_often() {
        assert_eq!([1, 3, 4, 5].map(start_pause), [5_000, 5_000, 10_000, 20_000]);
        assert_eq!([11, u32::MAX].map(start_pause), [900_000, 900_000]);
    }
}
