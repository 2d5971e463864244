//! The handle of the session room: everything that other parts of the node may ask of sessions.

use std::sync::Arc;
use std::time::Duration;

use instar_hooks::HookReport;
use instar_state::ids::{ConversationKey, SessionId};
use instar_state::journal::{InboxFilter, InboxRow};
use instar_state::ports::{InputKind, InputState, PeerBinding, SessionInput};
use instar_state::time::now_ms;
use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::config::{PermissionMode, SessionsConfig};
use crate::delivery::LOCAL_TAG;
use crate::ending;
use crate::error::SessionError;
use crate::mailbox::Command;
use crate::process;
use crate::reap::{self, Keep};
use crate::record::{Activity, SessionRecord, Status, Transport};
use crate::recovery::Recovered;
use crate::render;
use crate::runtime::LaunchRefused;
use crate::shared::{SessionsDeps, Shared};
use crate::spawn::{Slot, SpawnRequest};
use crate::supervisor::event_log;
use crate::tokens;

/// All sessions of one agent; cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

/// A caller that proved to be a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionCaller {
    /// The session.
    pub id: SessionId,
    /// Conversation that it serves.
    pub conversation: ConversationKey,
    /// Firewall of a session that serves a peer.
    pub peer: Option<PeerBinding>,
    /// Whether it read text of a peer.
    pub tainted: bool,
    /// Who had it started.
    pub triggered_by: Option<String>,
}

/// How many sessions live and may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Sessions that start, run or end.
    pub live: usize,
    /// Most of them.
    pub max: usize,
    /// Those that serve peers.
    pub peers: usize,
    /// Most of those.
    pub max_peers: usize,
    /// Requests that wait for a slot.
    pub waiting: usize,
}

/// Form of a session's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// Plain text.
    Text,
    /// Text with terminal colours (tmux).
    Ansi,
    /// Events of the streaming mode, one JSON object a line (stdio).
    Events,
}

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentInput {
    /// Its id.
    pub ulid: Ulid,
    /// Its state.
    pub state: InputState,
}

/// Keys that may be pressed in a session's terminal.
pub const KEYS: [&str; 26] = [
    "Enter", "Escape", "Up", "Down", "Left", "Right", "Tab", "BTab", "Space", "BSpace", "PageUp", "PageDown",
    "C-c", "y", "n", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "C-u",
];

/// Longest input in bytes.
pub const MAX_INPUT: usize = 100 * 1024;

impl Sessions {
    /// Prepares the room. Nothing is read or started before [`Sessions::recover`].
    pub fn open(deps: SessionsDeps) -> Result<Self, SessionError> {
        process::close_files_on_exec();
        Ok(Self { shared: Arc::new(Shared::open(deps)?) })
    }

    /// Settles what earlier nodes left behind: adopts living sessions, notes the end of the others and gives their
    /// open inputs back. Call it once, before any spawn.
    pub async fn recover(&self) -> Result<Recovered, SessionError> {
        let recovered = self.shared.recover().await?;
        self.shared.recover_queue().await?;
        self.shared.ask_about_overdue().await;
        Ok(recovered)
    }

    /// Watches over the sessions until the token is cancelled, then lets go of them: they live on.
    pub async fn run(&self, cancel: CancellationToken) {
        self.shared.tracker.spawn(Arc::clone(&self.shared).watch());
        self.shared.tracker.spawn(Arc::clone(&self.shared).serve_queue());
        cancel.cancelled().await;
        self.shared.cancel.cancel();
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
    }

    /// Takes new settings; running sessions keep what they were started with.
    pub fn set_config(&self, config: SessionsConfig) {
        self.shared.set_config(config);
    }

    /// Whether a session of our own could be started here: the runtime is there and may run.
    pub fn runtime_ready(&self) -> Result<(), SessionError> {
        let config = self.shared.config();
        self.shared.runtime.program(&config, &self.shared.search_path())?;
        let bypasses = config.permission_mode == PermissionMode::Bypass;
        if bypasses && !config.allow_root && rustix::process::geteuid().is_root() {
            return Err(LaunchRefused::Root.into());
        }
        Ok(())
    }

    /// Starts a session. A live one of the same conversation is returned as it is.
    pub async fn spawn(&self, request: SpawnRequest) -> Result<SessionRecord, SessionError> {
        let spawned = self.shared.spawn(request, Slot::Free).await;
        if let Err(SessionError::RuntimeMissing(reason)) = &spawned {
            self.shared.notices().degrade("runtime_missing", reason);
        }
        spawned
    }

    /// All sessions that are known, newest first.
    pub fn list(&self) -> Vec<SessionRecord> {
        let inner = self.shared.inner();
        let mut records: Vec<SessionRecord> = inner.sessions.values().map(|s| s.record.clone()).collect();
        drop(inner);
        records.sort_by_key(|r| (std::cmp::Reverse(r.started_at), r.id));
        records
    }

    /// The session with this id.
    pub fn get(&self, id: SessionId) -> Option<SessionRecord> {
        self.shared.record(id)
    }

    /// The session with this id, tmux name or name; of several with one name a live one, then the newest.
    pub fn find(&self, id_or_name: &str) -> Result<SessionRecord, SessionError> {
        let by_id = id_or_name.parse().ok().and_then(|id| self.get(id));
        let by_name = || {
            let named =
                |r: &SessionRecord| r.name == id_or_name || r.tmux_session.as_deref() == Some(id_or_name);
            self.list().into_iter().filter(named).max_by_key(|r| (r.status.is_live(), r.started_at))
        };
        by_id.or_else(by_name).ok_or_else(|| SessionError::NotFound(id_or_name.to_owned()))
    }

    /// Names of the sessions on the agent's tmux server, each with whether a record of ours knows it.
    pub async fn tmux_sessions(&self) -> Result<Vec<(String, bool)>, SessionError> {
        let Some(tmux) = self.shared.tmux() else { return Ok(Vec::new()) };
        let names = tmux.sessions().await.map_err(|e| SessionError::Failed(e.to_string()))?;
        let known = self.list();
        let managed = |name: &str| {
            known
                .iter()
                .any(|r| r.status.is_live() && r.owner.fence > 0 && r.tmux_session.as_deref() == Some(name))
        };
        Ok(names.into_iter().map(|name| (name.clone(), managed(&name))).collect())
    }

    /// The last lines of what the session shows or said.
    pub async fn output(
        &self,
        id_or_name: &str,
        lines: usize,
        format: OutputFormat,
    ) -> Result<String, SessionError> {
        let record = self.find(id_or_name)?;
        let lines = lines.clamp(1, 10_000);
        if record.transport == Transport::Tmux {
            if format == OutputFormat::Events {
                return Err(SessionError::Unsupported("a session in a terminal has no event log".into()));
            }
            if !record.status.is_live() {
                return Err(SessionError::Ended(record.name));
            }
            let tmux = self
                .shared
                .tmux()
                .ok_or_else(|| SessionError::RuntimeMissing("tmux was not found".into()))?;
            let name = record.tmux_session.unwrap_or_default();
            let screen = tmux.capture(&name, lines, format == OutputFormat::Ansi).await;
            let screen = screen.map_err(|e| SessionError::Failed(e.to_string()))?;
            return Ok(render::last_lines(&screen, lines));
        }
        let path = self.shared.files(record.id).log();
        let wanted = if format == OutputFormat::Events { lines } else { 10_000 };
        let events = tokio::task::spawn_blocking(move || event_log::tail(&path, wanted))
            .await
            .map_err(|e| SessionError::Failed(e.to_string()))?
            .map_err(|e| SessionError::Failed(format!("cannot read the event log: {e}")))?;
        Ok(match format {
            OutputFormat::Events => events.join("\n"),
            _ => render::last_lines(&render::events(&events), lines),
        })
    }

    /// Makes an input durable and wakes the session; `key` makes it repeatable.
    pub async fn send_input(
        &self,
        id_or_name: &str,
        text: &str,
        steer: bool,
        key: Option<&str>,
    ) -> Result<SentInput, SessionError> {
        let record = self.find(id_or_name)?;
        if !record.status.is_live() {
            return Err(SessionError::Ended(record.name));
        }
        if text.is_empty() || text.len() > MAX_INPUT {
            return Err(SessionError::Invalid("an input has 1 byte to 100 kB".into()));
        }
        if record.activity == Activity::WaitingInput {
            return Err(SessionError::WaitingInput);
        }
        let key = key.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
        let input = SessionInput {
            inbox_key: format!("local:{key}"),
            conversation: record.conversation,
            kind: InputKind::User,
            body: text.to_owned(),
            tag: LOCAL_TAG.into(),
            steer,
        };
        let (ulid, state) = self.enqueue(input).await?;
        Ok(SentInput { ulid, state })
    }

    /// Makes an input durable and wakes the session of its conversation, if one lives.
    pub async fn enqueue(&self, input: SessionInput) -> Result<(Ulid, InputState), SessionError> {
        let conversation = input.conversation.clone();
        let enqueued = self.shared.deps.journal.enqueue(input, now_ms()).await?;
        if enqueued.fresh {
            let state = json!({"ulid": enqueued.ulid.to_string(), "state": enqueued.state});
            self.shared.announce("input-state", state);
            self.shared.wake(&conversation);
        }
        Ok((enqueued.ulid, enqueued.state))
    }

    /// Inputs of the session's conversation, newest first, at most 200.
    pub async fn inbox(
        &self,
        id: SessionId,
        state: Option<InputState>,
    ) -> Result<Vec<InboxRow>, SessionError> {
        let record = self.get(id).ok_or_else(|| SessionError::NotFound(id.to_string()))?;
        let filter = InboxFilter {
            conversation: Some(record.conversation),
            state,
            limit: 200,
            ..InboxFilter::default()
        };
        Ok(self.shared.deps.journal.list(filter).await?)
    }

    /// Presses one of [`KEYS`] in a session's terminal.
    pub async fn key(&self, id_or_name: &str, key: &str) -> Result<(), SessionError> {
        let record = self.live(id_or_name)?;
        if !KEYS.contains(&key) {
            return Err(SessionError::Invalid(format!(
                "{key:?} is not a key: use one of {}",
                KEYS.join(", ")
            )));
        }
        let key = key.to_owned();
        self.ask(record.id, |answer| Command::Key(key, answer)).await
    }

    /// Interrupts the running turn.
    pub async fn interrupt(&self, id_or_name: &str) -> Result<(), SessionError> {
        let record = self.live(id_or_name)?;
        self.ask(record.id, Command::Interrupt).await
    }

    /// Ends a session and waits for its end, at most 20 s. Without `force` the reap guard may keep it. The runtime
    /// is asked first and gets 5 s to store its transcript.
    pub async fn kill(&self, id_or_name: &str, force: bool) -> Result<(), SessionError> {
        let record = self.live(id_or_name)?;
        if !force && let Some(keep) = self.reason_to_keep(record.id).await {
            return Err(if keep == Keep::Protected {
                SessionError::Protected
            } else {
                SessionError::Kept(keep)
            });
        }
        self.end(record.id, Status::Killed, "killed").await;
        Ok(())
    }

    /// The first reason not to end the session, or `None`.
    pub async fn reason_to_keep(&self, id: SessionId) -> Option<Keep> {
        let processes = tokio::task::spawn_blocking(process::snapshot).await.unwrap_or_default();
        let facts = self.shared.facts(id, &processes).await?;
        reap::reason_to_keep(&facts.reap)
    }

    /// Ends a session for a reason: its token is void at once. Returns when it has ended, or after 20 s.
    pub(crate) async fn end(&self, id: SessionId, status: Status, reason: &str) {
        let mut changed = self.shared.subscribe();
        self.shared.announce("session-before-kill", json!({"session": id, "reason": reason}));
        self.shared.save_resume(id).await;
        ending::intend(&self.shared, id, status, reason);
        let followed = self.shared.update(id, |session| {
            session.record.token_hash = None;
            if session.record.activity == Activity::Busy {
                session.record.work_evidence.push("in a turn when it was ended".into());
            }
            session.mailbox.is_some()
        });
        if followed != Some(true) {
            // Not followed by a task: a recovered terminal without a record of ours.
            return self.end_stranger(id).await;
        }
        self.shared.ask_to_end(id);
        let ended = async {
            while self.get(id).is_some_and(|r| !r.status.is_final()) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(20), ended).await;
    }

    async fn end_stranger(&self, id: SessionId) {
        let name = self.get(id).and_then(|r| r.tmux_session);
        if let (Some(tmux), Some(name)) = (self.shared.tmux(), name) {
            let _ = tmux.kill(&name).await;
        }
        ending::finish(&self.shared, id, &[]).await;
    }

    /// Drops records of ended sessions whose time is over. Returns them.
    pub async fn cleanup(&self) -> Vec<SessionId> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || shared.forget_old()).await.unwrap_or_default()
    }

    /// Takes a hook's report of this session: the one that the caller proved to be, not the one the report names.
    pub async fn hook_event(&self, id: SessionId, report: HookReport) {
        let mailbox = self.shared.update(id, |session| session.mailbox.clone()).flatten();
        if let Some(mailbox) = mailbox {
            // Waits while the task is busy: a lost confirmation would give the message twice.
            let _ = mailbox.send(Command::Hook(Box::new(report))).await;
        }
    }

    /// The session that this token proves, while it lives.
    pub fn authenticate(&self, token: &str) -> Option<SessionCaller> {
        let id = tokens::claimed_session(token)?;
        let record = self.get(id)?;
        let hash = record.token_hash.as_deref()?;
        let fresh = now_ms() - record.started_at < tokens::TOKEN_LIFE_MS;
        (tokens::matches(token, hash) && fresh && record.status.is_live()).then(|| caller(&record))
    }

    /// The session that a process belongs to: by ancestry, or by the environment it was started with.
    pub fn is_session_process(&self, pid: i32) -> Option<SessionId> {
        let chain = process::ancestry(pid);
        let live: Vec<SessionRecord> = self.list().into_iter().filter(|r| r.status.is_live()).collect();
        let by_ancestry = live.iter().find(|r| {
            r.child_pid.is_some_and(|child| {
                chain.iter().any(|p| p.pid == child && r.child_start_time.is_none_or(|t| t == p.start_time))
            })
        });
        if let Some(record) = by_ancestry {
            return Some(record.id);
        }
        // A process that left its parents still carries what it was started with.
        chain
            .iter()
            .filter_map(|p| process::environment_value(p.pid, "INSTAR_SESSION_ID"))
            .filter_map(|id| id.parse().ok())
            .find(|id| self.get(*id).is_some())
    }

    /// How many sessions live and may live.
    pub fn capacity(&self) -> Capacity {
        let config = self.shared.config();
        let live: Vec<SessionRecord> = self.list().into_iter().filter(|r| r.status.is_live()).collect();
        Capacity {
            live: live.len(),
            max: config.max_sessions,
            peers: live.iter().filter(|r| r.peer.is_some()).count(),
            max_peers: config.max_peer_sessions,
            waiting: self.waiting().len(),
        }
    }

    pub(crate) fn live(&self, id_or_name: &str) -> Result<SessionRecord, SessionError> {
        let record = self.find(id_or_name)?;
        if record.status.is_live() { Ok(record) } else { Err(SessionError::Ended(record.name)) }
    }

    async fn ask(
        &self,
        id: SessionId,
        command: impl FnOnce(oneshot::Sender<Result<(), SessionError>>) -> Command,
    ) -> Result<(), SessionError> {
        let gone = || SessionError::Ended(id.to_string());
        let mailbox = self.shared.update(id, |session| session.mailbox.clone()).flatten().ok_or_else(gone)?;
        let (answer, answered) = oneshot::channel();
        if !mailbox.send(command(answer)).await {
            return Err(gone());
        }
        answered.await.map_err(|_| gone())?
    }
}

fn caller(record: &SessionRecord) -> SessionCaller {
    SessionCaller {
        id: record.id,
        conversation: record.conversation.clone(),
        peer: record.peer.clone(),
        tainted: record.tainted,
        triggered_by: record.triggered_by.clone(),
    }
}
