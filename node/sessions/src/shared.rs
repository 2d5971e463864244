//! What all parts of the session room share: records, live facts, files, settings.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use instar_durable::{JsonlFile, write_atomic};
use instar_state::events::EventBus;
use instar_state::ids::{ConversationKey, SessionId};
use instar_state::journal::Journal;
use instar_state::paths::AgentPaths;
use instar_state::ports::{Notice, SharedNotices};
use instar_state::time::now_ms;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ulid::Ulid;

use crate::config::SessionsConfig;
use crate::environment::{self, Environment};
use crate::error::SessionError;
use crate::launch::SessionFiles;
use crate::mailbox::Mailbox;
use crate::memory::MemoryFiles;
use crate::monitor::Episode;
use crate::process;
use crate::provider::Provider;
use crate::queue::SpawnQueue;
use crate::record::{Activity, SessionRecord, Status};
use crate::resume::{ResumeEntry, ResumeMap};
use crate::runtime::Runtime;
use crate::runtime::claude::ClaudeCode;
use crate::slots::{self, Class, Full};
use crate::spawn::SpawnRequest;
use crate::tmux::Tmux;

/// What the session room needs from the rest of the node.
#[derive(Clone)]
pub struct SessionsDeps {
    /// Paths of the agent.
    pub paths: AgentPaths,
    /// Home directory of the account.
    pub home: PathBuf,
    /// Name of the agent.
    pub agent_name: String,
    /// Id of the agent (fingerprint).
    pub agent_id: String,
    /// This program's file; supervisors and MCP servers are started from it.
    pub program: PathBuf,
    /// The node's own address for sessions.
    pub server_url: String,
    /// The node's environment; sessions see the allowed part.
    pub environment: Environment,
    /// The hook program; registered for a session where the project's own settings lack it.
    pub hook_program: PathBuf,
    /// Settings.
    pub config: SessionsConfig,
    /// The message journal.
    pub journal: Journal,
    /// Where the owner hears of trouble.
    pub notices: Arc<dyn instar_state::ports::Notices>,
    /// Where events go.
    pub events: EventBus,
    /// Where the kernel tells how much of the memory is in use.
    pub memory: MemoryFiles,
}

pub(crate) struct Shared {
    pub(crate) deps: SessionsDeps,
    pub(crate) runtime: Arc<dyn Runtime>,
    config: Mutex<Arc<SessionsConfig>>,
    // Never held across an await.
    inner: Mutex<Inner>,
    /// Held while a record is written, so that the newest state is the one that stays.
    disk: Mutex<()>,
    resume: Mutex<ResumeMap>,
    pub(crate) queue: Mutex<SpawnQueue>,
    pub(crate) provider: Mutex<Provider>,
    /// Overdue inputs that the owner was told of.
    pub(crate) overdue_told: Mutex<Vec<Ulid>>,
    /// Held while the queue is written.
    pub(crate) queue_disk: Mutex<()>,
    changed: watch::Sender<u64>,
    pub(crate) tracker: TaskTracker,
    pub(crate) cancel: CancellationToken,
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) sessions: HashMap<SessionId, Session>,
    /// Slots of sessions that ended to be continued at once.
    pub(crate) held: Vec<Class>,
    last_fence: u64,
    crashes: HashMap<ConversationKey, VecDeque<i64>>,
}

pub(crate) struct Session {
    pub(crate) record: SessionRecord,
    pub(crate) mailbox: Option<Mailbox>,
    pub(crate) live: Live,
}

/// Facts about a living session that are not worth a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Live {
    pub(crate) idle_since: Option<i64>,
    pub(crate) subagents: usize,
    /// What it goes through since a turn ended with an error.
    pub(crate) episode: Option<Episode>,
    /// The row that asked it to go on.
    pub(crate) nudge: Option<Ulid>,
    /// When the provider's limit ends, Unix milliseconds, as the provider said.
    pub(crate) limited_until: Option<i64>,
    /// Whether its last turn failed whatever the input was, so that the attempt does not count.
    pub(crate) excused: bool,
    pub(crate) overdue_told: bool,
    pub(crate) recovering: bool,
    pub(crate) last_user_at: Option<i64>,
    pub(crate) adopted_at: Option<i64>,
    /// Inputs that the runtime has and whose turn has not ended.
    pub(crate) in_turn: Vec<Ulid>,
    /// CPU ticks of the session's processes at the last looks, oldest first.
    pub(crate) cpu: VecDeque<(i64, u64)>,
    /// How to start it again if it does not get ready.
    pub(crate) request: Option<SpawnRequest>,
    /// Status that it shall end with.
    pub(crate) ends_as: Option<Status>,
    pub(crate) refreshes: VecDeque<i64>,
    /// Whether it ends to be continued in another process.
    pub(crate) replaced: bool,
    /// Whether it is about to go on over the other transport.
    pub(crate) moving: bool,
    /// Whether an input is on its way to it whose arrival is not proven.
    pub(crate) giving: bool,
}

impl Shared {
    pub(crate) fn open(deps: SessionsDeps) -> Result<Self, SessionError> {
        let resume = ResumeMap::open(&deps.paths.data().join("resume-map.json"), now_ms())
            .map_err(|e| SessionError::Failed(format!("cannot read the resume map: {e}")))?;
        let (queue, aside) = SpawnQueue::open(&deps.paths.data().join("spawn-queue.json"), now_ms())
            .map_err(|e| SessionError::Failed(format!("cannot read the spawn queue: {e}")))?;
        if let Some(aside) = aside {
            deps.notices.notify(Notice {
                cause: "spawn_queue_unreadable".into(),
                text: format!("The list of waiting sessions was unreadable and is now {}.", aside.display()),
                urgent: true,
            });
        }
        Ok(Self {
            config: Mutex::new(Arc::new(deps.config.clone())),
            deps,
            runtime: Arc::new(ClaudeCode),
            inner: Mutex::new(Inner::default()),
            disk: Mutex::new(()),
            resume: Mutex::new(resume),
            queue: Mutex::new(queue),
            provider: Mutex::default(),
            overdue_told: Mutex::default(),
            queue_disk: Mutex::new(()),
            changed: watch::Sender::new(0),
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
        })
    }

    pub(crate) fn config(&self) -> Arc<SessionsConfig> {
        Arc::clone(&lock(&self.config))
    }

    pub(crate) fn set_config(&self, config: SessionsConfig) {
        *lock(&self.config) = Arc::new(config);
        self.touch();
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    pub(crate) fn files(&self, id: SessionId) -> SessionFiles {
        SessionFiles::new(self.deps.paths.state(), id)
    }

    pub(crate) fn notices(&self) -> &SharedNotices {
        &self.deps.notices
    }

    pub(crate) fn notice(&self, cause: impl Into<String>, text: String, urgent: bool) {
        self.notices().notify(Notice { cause: cause.into(), text, urgent });
    }

    /// The allowed part of the node's environment.
    pub(crate) fn environment(&self) -> Environment {
        environment::allowed(&self.deps.environment, &self.config().env_allow)
    }

    pub(crate) fn search_path(&self) -> String {
        self.deps.environment.get("PATH").cloned().unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into())
    }

    /// The agent's tmux server.
    pub(crate) fn tmux(&self) -> Option<Tmux> {
        let config = self.config();
        let name = config.tmux_path.as_ref().map_or("tmux".into(), |p| p.to_string_lossy().into_owned());
        let program = process::find_program(&name, &self.search_path())?;
        let paths = &self.deps.paths;
        Some(Tmux::new(program, paths.tmux_server(), paths.state(), self.environment()))
    }

    pub(crate) fn record(&self, id: SessionId) -> Option<SessionRecord> {
        self.inner().sessions.get(&id).map(|s| s.record.clone())
    }

    /// Changes one session; `None` if it is not there any more.
    pub(crate) fn update<T>(&self, id: SessionId, change: impl FnOnce(&mut Session) -> T) -> Option<T> {
        self.inner().sessions.get_mut(&id).map(change)
    }

    /// Moves a session to a status by the allowed way. Returns whether it is there now.
    pub(crate) fn move_to(&self, id: SessionId, status: Status) -> bool {
        let moved = self.update(id, |session| {
            let way = session.record.status.way_to(status);
            if let Some(last) = way.last() {
                session.record.status = *last;
            }
            session.record.status == status
        });
        moved.unwrap_or(false)
    }

    pub(crate) fn set_activity(&self, id: SessionId, activity: Activity) {
        let now = now_ms();
        let was = self.update(id, |session| {
            let was = session.record.activity;
            session.record.activity = activity;
            match activity {
                Activity::Idle | Activity::ErrorStalled => {
                    session.live.idle_since.get_or_insert(now);
                }
                _ => session.live.idle_since = None,
            }
            was
        });
        if was.is_some_and(|was| was != activity) {
            self.announce("session-activity", json!({"session": id, "activity": activity}));
        }
    }

    /// Tells everyone who waits that something about sessions or their inputs is different.
    pub(crate) fn announce(&self, kind: &str, data: Value) {
        self.deps.events.publish(kind, data);
        self.touch();
    }

    pub(crate) fn touch(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Writes the session's record. The state written is the newest when the write begins.
    pub(crate) async fn persist(self: &Arc<Self>, id: SessionId) {
        let shared = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || shared.persist_blocking(id)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(session = %id, error, "session record was not written");
            self.notices().degrade("session_records", &error);
        }
    }

    pub(crate) fn persist_blocking(&self, id: SessionId) -> Result<(), String> {
        let _disk = lock(&self.disk);
        let Some(record) = self.record(id) else { return Ok(()) };
        let bytes = serde_json::to_vec_pretty(&record).map_err(|e| e.to_string())?;
        write_atomic(&self.files(id).record(), &bytes, 0o600).map_err(|e| e.to_string())
    }

    /// The next fencing number: larger than all before, after a restart too, because the clock runs between.
    pub(crate) fn next_fence(inner: &mut Inner) -> u64 {
        let clock = u64::try_from(now_ms()).unwrap_or(0);
        let highest = inner.sessions.values().map(|s| s.record.owner.fence).max().unwrap_or(0);
        inner.last_fence = clock.max(highest + 1).max(inner.last_fence + 1);
        inner.last_fence
    }

    /// Remembers a crash. Kills from outside are not the session's fault and do not count.
    pub(crate) fn count_crash(&self, conversation: &ConversationKey, now: i64) -> usize {
        let mut inner = self.inner();
        let crashes = inner.crashes.entry(conversation.clone()).or_default();
        crashes.push_back(now);
        crashes.retain(|at| now - at < CRASH_WINDOW_MS + CRASH_PAUSE_MS);
        crashes.iter().filter(|at| now - **at < CRASH_WINDOW_MS).count()
    }

    /// Number of crashes and milliseconds to wait, while a conversation's sessions crash too often.
    pub(crate) fn crash_pause(
        inner: &Inner,
        conversation: &ConversationKey,
        now: i64,
    ) -> Option<(usize, i64)> {
        let crashes = inner.crashes.get(conversation)?;
        let fourth_last = *crashes.iter().rev().nth(3)?;
        let last = *crashes.back()?;
        let left = last + CRASH_PAUSE_MS - now;
        (last - fourth_last < CRASH_WINDOW_MS && left > 0).then_some((crashes.len(), left))
    }

    pub(crate) fn resume_entry(&self, conversation: &ConversationKey) -> Option<ResumeEntry> {
        lock(&self.resume).get(conversation).cloned()
    }

    /// Stores where the session's conversation stands, as far as the runtime reported it.
    pub(crate) async fn save_resume(self: &Arc<Self>, id: SessionId) {
        let Some(record) = self.record(id) else { return };
        let Some(runtime_session_id) = record.runtime_session_id else { return };
        let shared = Arc::clone(self);
        let saved = tokio::task::spawn_blocking(move || {
            let found = || {
                let env = &shared.deps.environment;
                shared.runtime.transcript(env, &record.cwd, &runtime_session_id)
            };
            let Some(transcript_path) = record.transcript_path.clone().or_else(found) else { return Ok(()) };
            let entry = ResumeEntry {
                runtime: record.framework,
                runtime_session_id,
                cwd: record.cwd,
                transcript_path,
                saved_at: now_ms(),
                session_name: record.name,
                model: record.model,
            };
            let mut map = lock(&shared.resume);
            if map.put(record.conversation, entry) { map.save(now_ms()) } else { Ok(()) }
        });
        if let Ok(Err(error)) = saved.await {
            tracing::error!(%error, "resume map was not written");
        }
    }

    pub(crate) fn drop_resume(&self, conversation: &ConversationKey) {
        let mut map = lock(&self.resume);
        if map.drop_entry(conversation)
            && let Err(error) = map.save(now_ms())
        {
            tracing::error!(%error, "resume map was not written");
        }
    }

    /// Appends a line about an ended session to the log that is kept for ever.
    pub(crate) fn log_ended(&self, record: &SessionRecord) {
        let day = instar_state::time::rfc3339(record.ended_at.unwrap_or_else(now_ms));
        let month = day.get(..7).unwrap_or("0000-00");
        let path = self.deps.paths.logs().join(format!("sessions-{month}.jsonl"));
        let _disk = lock(&self.disk);
        let line = json!({
            "id": record.id, "name": record.name, "kind": record.kind, "status": record.status,
            "conversation": record.conversation, "startedAt": record.started_at, "endedAt": record.ended_at,
            "exit": record.exit, "endReason": record.end_reason, "turns": record.telemetry.turns,
            "costUsd": record.telemetry.cost_usd,
        });
        if let Err(error) = JsonlFile::open(&path).and_then(|mut file| file.append(&line)) {
            tracing::warn!(%error, "ended session was not logged");
        }
    }

    /// The live session of a conversation.
    pub(crate) fn live_of(inner: &Inner, conversation: &ConversationKey) -> Option<SessionId> {
        inner
            .sessions
            .values()
            .filter(|s| s.record.status.is_live() && s.record.conversation == *conversation)
            .max_by_key(|s| s.record.owner.fence)
            .map(|s| s.record.id)
    }

    /// Whether one more session of this class may live.
    pub(crate) fn admit(&self, inner: &Inner, class: Class) -> Result<(), Full> {
        slots::fits(class, self.deps.memory.used_percent())?;
        let records = inner.sessions.values().map(|s| &s.record).filter(|r| r.status.is_live());
        let mut live: Vec<Class> = records.map(|r| Class::of(r.priority, r.peer.is_some())).collect();
        live.extend(&inner.held);
        slots::admit(class, &live, &self.config())
    }

    /// Wakes the live session of a conversation, if there is one.
    pub(crate) fn wake(&self, conversation: &ConversationKey) {
        let mailbox = {
            let inner = self.inner();
            Self::live_of(&inner, conversation)
                .and_then(|id| inner.sessions.get(&id).and_then(|s| s.mailbox.clone()))
        };
        if let Some(mailbox) = mailbox {
            mailbox.look();
        }
    }
}

const CRASH_WINDOW_MS: i64 = 10 * 60_000;
const CRASH_PAUSE_MS: i64 = 15 * 60_000;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
