//! Starting a session: slot and fence first, then files, then processes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use instar_durable::write_atomic;
use instar_hooks::SessionBinding;
use instar_state::ids::{ConversationKey, SessionId};
use instar_state::ports::{HeartbeatSpec, InputKind, PeerBinding, SessionInput};
use instar_state::time::now_ms;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::actor::Actor;
use crate::config::PermissionMode;
use crate::environment::Environment;
use crate::error::SessionError;
use crate::launch::{LaunchSpec, SessionFiles};
use crate::mailbox::mailbox;
use crate::models;
use crate::names;
use crate::record::{
    Activity, Owner, Priority, PromptDigest, SessionKind, SessionRecord, Status, Telemetry, Transport,
};
use crate::runtime::{Launch, LaunchRequest};
use crate::shared::{Live, Session, Shared};
use crate::slots::{Class, Full};
use crate::supervisor;
use crate::tokens::SessionToken;

/// A session that someone wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpawnRequest {
    /// Name for people.
    pub name: String,
    /// What the session is for.
    pub kind: SessionKind,
    /// Its first input; at most 500 kB.
    pub prompt: Option<String>,
    /// Conversation that it serves; one of its own if absent.
    pub conversation: Option<ConversationKey>,
    /// Transport; by kind if absent.
    pub transport: Option<Transport>,
    /// Model tier or id.
    pub model: Option<String>,
    /// Effort: `low`, `medium`, `high`, …
    pub effort: Option<String>,
    /// Directory, inside the project; the project itself if absent.
    pub cwd: Option<PathBuf>,
    /// Longest life; as configured if absent.
    pub max_duration_minutes: Option<u32>,
    /// Most turns of the model.
    pub max_turns: Option<u32>,
    /// Most cost in dollars.
    pub max_cost_usd: Option<f64>,
    /// Tool rules.
    pub allowed_tools: Vec<String>,
    /// Place in the order of who gets a slot.
    pub priority: Priority,
    /// Who had it started.
    pub triggered_by: Option<String>,
    /// Job that it carries out.
    pub job_slug: Option<String>,
    /// Firewall of a session that serves a peer.
    pub peer: Option<PeerBinding>,
    /// Proof of life to write.
    pub heartbeat: Option<HeartbeatSpec>,
    /// Transcript to continue.
    pub resume: Resume,
    /// Whether a person took it over into a terminal.
    #[serde(default)]
    pub taken_over: bool,
}

impl SpawnRequest {
    /// A request with this name and kind and nothing else.
    pub fn new(name: impl Into<String>, kind: SessionKind) -> Self {
        Self {
            name: name.into(),
            kind,
            prompt: None,
            conversation: None,
            transport: None,
            model: None,
            effort: None,
            cwd: None,
            max_duration_minutes: None,
            max_turns: None,
            max_cost_usd: None,
            allowed_tools: Vec::new(),
            priority: Priority::Medium,
            triggered_by: None,
            job_slug: None,
            peer: None,
            heartbeat: None,
            resume: Resume::IfPossible,
            taken_over: false,
        }
    }
}

/// Which transcript a new session continues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resume {
    /// None.
    Never,
    /// That of its conversation, where there is one.
    IfPossible,
    /// That of this ended session.
    Session {
        /// The node's id of it.
        of: SessionId,
        /// The runtime's id of it.
        runtime_session_id: String,
    },
}

/// Where the slot of a new session comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// A free one.
    Free,
    /// A free one, for a request that waited under this id.
    Waiting(SessionId),
    /// One that is held for it.
    Held,
}

/// How long the end of a conversation's session may take, before the next one cannot start.
const ENDING_LIMIT: Duration = Duration::from_secs(20);

/// Longest prompt in bytes.
pub const MAX_PROMPT: usize = 500 * 1024;

impl Shared {
    /// Starts a session. A live one of the same conversation is returned as it is; the end of one that ends is awaited.
    /// What was begun is brought to its end even if whoever asked for it goes away meanwhile.
    pub(crate) async fn spawn(
        self: &Arc<Self>,
        request: SpawnRequest,
        slot: Slot,
    ) -> Result<SessionRecord, SessionError> {
        let shared = Arc::clone(self);
        let starting = self.tracker.spawn(async move { shared.spawn_whole(request, slot).await });
        starting.await.map_err(|e| SessionError::Failed(e.to_string()))?
    }

    async fn spawn_whole(
        self: &Arc<Self>,
        request: SpawnRequest,
        slot: Slot,
    ) -> Result<SessionRecord, SessionError> {
        let plan = self.plan(&request)?;
        let Reserved { record, token } = loop {
            let mut changed = self.subscribe();
            match self.reserve(&request, &plan, slot)? {
                Reservation::New(reserved) => break *reserved,
                Reservation::Live(record) if record.status != Status::Ending => return Ok(*record),
                Reservation::Live(record) => {
                    let gone = || SessionError::Failed(format!("session {} does not end", record.id));
                    let change = self.cancel.run_until_cancelled(changed.changed());
                    match tokio::time::timeout(ENDING_LIMIT, change).await {
                        Ok(Some(Ok(()))) => {}
                        Ok(None) => return Err(SessionError::Failed("the node stops".into())),
                        Ok(Some(Err(_))) | Err(_) => return Err(gone()),
                    }
                }
            }
        };
        let id = record.id;
        match self.start(&request, &plan, &record, &token).await {
            Ok(()) => {
                self.announce("session-started", json!({"session": id, "conversation": record.conversation}));
                Ok(self.record(id).unwrap_or(record))
            }
            Err(error) => {
                self.update(id, |session| {
                    session.record.end_reason = Some(error.to_string());
                    session.record.ended_at = Some(now_ms());
                    session.record.token_hash = None;
                    session.mailbox = None;
                });
                self.move_to(id, Status::Failed);
                self.files(id).remove_live();
                self.persist(id).await;
                self.announce("session-ended", json!({"session": id, "status": Status::Failed}));
                Err(error)
            }
        }
    }

    pub(crate) fn plan(&self, request: &SpawnRequest) -> Result<Plan, SessionError> {
        let config = self.config();
        if request.name.is_empty() || request.name.chars().count() > 128 {
            return Err(SessionError::Invalid("a session's name has 1 to 128 characters".into()));
        }
        if request.prompt.as_ref().is_some_and(|p| p.len() > MAX_PROMPT) {
            return Err(SessionError::Invalid("a prompt has at most 500 kB; put more into a file".into()));
        }
        if let Some(effort) = &request.effort
            && !effort.bytes().all(|b| b.is_ascii_lowercase())
        {
            return Err(SessionError::Invalid(format!(
                "{effort:?} is not an effort: low, medium, high, max"
            )));
        }
        let project = self.deps.paths.project();
        let cwd = match &request.cwd {
            None => project.to_owned(),
            Some(dir) => inside(project, dir)?,
        };
        let model = request.model.as_ref().or(config.default_model.as_ref());
        let model = model.map(|text| models::resolve(text, &config.models)).transpose()?;
        let transport = request.transport.unwrap_or_else(|| config.transport_of(request.kind));
        if transport == Transport::Tmux && self.tmux().is_none() {
            return Err(SessionError::RuntimeMissing(crate::tmux::TmuxError::Missing.to_string()));
        }
        let program = self.runtime.program(&config, &self.search_path())?;
        Ok(Plan { cwd, model, transport, program })
    }

    /// Takes slot, name, conversation and fence in one step, so that of many wake-ups one starts a process.
    fn reserve(&self, request: &SpawnRequest, plan: &Plan, slot: Slot) -> Result<Reservation, SessionError> {
        let config = self.config();
        let id = match slot {
            Slot::Waiting(id) => id,
            Slot::Free | Slot::Held => SessionId::random(),
        };
        let token = SessionToken::mint(id);
        let now = now_ms();
        let (conversation, bound) = match &request.conversation {
            Some(key) => (key.clone(), true),
            None => (own_conversation(id), false),
        };
        let resumed = match &request.resume {
            Resume::Never => None,
            Resume::Session { runtime_session_id, .. } => Some(runtime_session_id.clone()),
            Resume::IfPossible => self
                .resume_entry(&conversation)
                .filter(|entry| entry.is_valid(self.runtime.framework(), &plan.cwd, now))
                .map(|entry| entry.runtime_session_id),
        };
        let mut inner = self.inner();
        if let Some(live) = Self::live_of(&inner, &conversation) {
            let record = inner.sessions.get(&live).map(|s| s.record.clone());
            return record
                .map(|record| Reservation::Live(Box::new(record)))
                .ok_or_else(|| SessionError::NotFound(live.to_string()));
        }
        if let Some((crashes, left)) = Self::crash_pause(&inner, &conversation, now) {
            return Err(SessionError::CrashLoop(crashes, left / 1000));
        }
        let live: Vec<&SessionRecord> =
            inner.sessions.values().map(|s| &s.record).filter(|r| r.status.is_live()).collect();
        if slot != Slot::Held {
            let class = Class::of(request.priority, request.peer.is_some());
            self.admit(&inner, class).map_err(|full| match full {
                Full::Slots { max, key } => SessionError::Limit { max, key },
                Full::Memory { percent } => SessionError::Memory { percent },
            })?;
        }
        if !bound && live.iter().any(|r| r.name == request.name) {
            return Err(SessionError::NameInUse(request.name.clone()));
        }
        let tmux_session = (plan.transport == Transport::Tmux).then(|| {
            let taken = |name: &str| live.iter().any(|r| r.tmux_session.as_deref() == Some(name));
            names::tmux_name(&self.deps.agent_name, &request.name, taken)
        });
        let record = SessionRecord {
            id,
            name: request.name.clone(),
            kind: request.kind,
            status: Status::Starting,
            activity: Activity::Booting,
            transport: plan.transport,
            framework: self.runtime.framework().to_owned(),
            runtime_session_id: resumed,
            model: plan.model.clone(),
            effort: request.effort.clone(),
            tmux_session,
            host_pid: None,
            child_pid: None,
            child_start_time: None,
            cwd: plan.cwd.clone(),
            conversation,
            bound,
            job_slug: request.job_slug.clone(),
            triggered_by: request.triggered_by.clone(),
            prompt: request.prompt.as_deref().map(digest),
            max_duration_minutes: request.max_duration_minutes.unwrap_or(config.max_duration_minutes),
            started_at: now,
            ready_at: None,
            ended_at: None,
            exit: None,
            end_reason: None,
            resume_of: match request.resume {
                Resume::Session { of, .. } => Some(of),
                _ => None,
            },
            work_evidence: Vec::new(),
            priority: request.priority,
            owner: Owner { fence: Self::next_fence(&mut inner) },
            token_hash: Some(token.hash()),
            peer: request.peer.clone(),
            taken_over: request.taken_over,
            tainted: request.peer.is_some(),
            transcript_path: None,
            log_offset: 0,
            finished_inputs: Vec::new(),
            recent_reports: Vec::new(),
            telemetry: Telemetry::default(),
        };
        let live = Live { request: Some(request.clone()), ..Live::default() };
        inner.sessions.insert(id, Session { record: record.clone(), mailbox: None, live });
        Ok(Reservation::New(Box::new(Reserved { record, token })))
    }

    async fn start(
        self: &Arc<Self>,
        request: &SpawnRequest,
        plan: &Plan,
        record: &SessionRecord,
        token: &SessionToken,
    ) -> Result<(), SessionError> {
        let id = record.id;
        if let Some(prompt) = &request.prompt {
            let input = prompt_input(id, &record.conversation, prompt);
            self.deps.journal.enqueue(input, now_ms()).await?;
        }
        let spec = {
            let (shared, request, plan, record, token) =
                (Arc::clone(self), request.clone(), plan.clone(), record.clone(), token.clone());
            tokio::task::spawn_blocking(move || shared.write_files(&request, &plan, &record, &token))
                .await
                .map_err(|e| SessionError::Failed(e.to_string()))??
        };
        self.persist(id).await;
        // The first report may come before the command that starts the processes returns.
        let (mailbox, letters) = mailbox();
        self.update(id, |session| session.mailbox = Some(mailbox));
        match plan.transport {
            Transport::Stdio => {
                let pid = self.start_host(id, &spec)?;
                self.update(id, |session| session.record.host_pid = Some(pid));
                // A node that is killed before the supervisor appears leaves the one trace of it.
                self.persist(id).await;
            }
            Transport::Tmux => self.start_pane(record, &spec).await?,
        }
        self.tracker.spawn(Actor::new(Arc::clone(self), record, letters).run());
        Ok(())
    }

    fn write_files(
        &self,
        request: &SpawnRequest,
        plan: &Plan,
        record: &SessionRecord,
        token: &SessionToken,
    ) -> Result<LaunchSpec, SessionError> {
        let config = self.config();
        let files = self.files(record.id);
        files.prepare().map_err(|e| SessionError::Failed(format!("cannot make session directories: {e}")))?;
        self.runtime.prepare_home(&config, &self.deps.home)?;
        let mut peer = request.peer.clone();
        if let Some(binding) = &mut peer {
            // Where the session finds messages that are too long to be given whole.
            binding.allowed_tools.push(format!("Read(/{}/**)", files.inputs().display()));
        }
        let mut allowed_tools = request.allowed_tools.clone();
        if config.permission_mode == PermissionMode::DontAsk {
            allowed_tools.extend(config.allowed_tools.iter().cloned());
        }
        let launch = self.runtime.launch(&LaunchRequest {
            config: &config,
            program: &plan.program,
            id: record.id,
            files: &files,
            transport: plan.transport,
            resume: record.runtime_session_id.as_deref(),
            model: plan.model.as_deref(),
            effort: request.effort.as_deref(),
            peer: peer.as_ref(),
            allowed_tools: &allowed_tools,
            max_turns: request.max_turns,
            max_cost_usd: request.max_cost_usd,
            root: rustix::process::geteuid().is_root(),
        })?;
        let own = self.own_environment(record, token);
        let mut settings = launch.settings.clone();
        let project_settings = self.deps.paths.project().join(".claude/settings.json");
        let hook_program = &self.deps.hook_program;
        if !instar_hooks::settings::verify(&project_settings, hook_program)
            .is_ok_and(|drift| drift.is_empty())
        {
            let hooks = instar_hooks::settings::hooks_object(hook_program);
            settings.insert("hooks".into(), hooks);
        }
        write_json(&files.settings(), &Value::Object(settings))?;
        write_json(&files.mcp(), &self.mcp_servers(record.id, &own))?;
        SessionBinding {
            session: record.id.to_string(),
            conversation: Some(record.conversation.to_string()),
            serves_peer: peer.is_some(),
        }
        .write(self.deps.paths.state())
        .map_err(|e| SessionError::Failed(format!("cannot write the session's binding: {e}")))?;
        let Launch { argv, env, first_lines, .. } = launch;
        let mut whole = self.environment();
        whole.extend(env);
        whole.extend(own);
        let spec = LaunchSpec {
            argv,
            env: whole,
            cwd: record.cwd.clone(),
            first_lines,
            program: self.deps.program.clone(),
            heartbeat: request.heartbeat.clone(),
        };
        write_json(&files.launch(), &serde_json::to_value(&spec).unwrap_or_default())?;
        Ok(spec)
    }

    fn own_environment(&self, record: &SessionRecord, token: &SessionToken) -> Environment {
        let paths = &self.deps.paths;
        let mut own = vec![
            ("INSTAR_SESSION_ID", record.id.to_string()),
            ("INSTAR_AGENT_ID", self.deps.agent_id.clone()),
            ("INSTAR_FRAMEWORK", record.framework.clone()),
            ("INSTAR_STATE_DIR", paths.state().display().to_string()),
            ("INSTAR_SOCKET", paths.socket().display().to_string()),
            ("INSTAR_SERVER_URL", self.deps.server_url.clone()),
            ("INSTAR_AUTH_TOKEN", token.reveal().to_owned()),
            ("INSTAR_CONVERSATION", record.conversation.to_string()),
        ];
        own.extend(record.job_slug.clone().map(|slug| ("INSTAR_JOB_SLUG", slug)));
        own.extend(record.triggered_by.clone().map(|who| ("INSTAR_TRIGGERED_BY", who)));
        if record.peer.is_some() {
            own.push(("INSTAR_SERVES_PEER", "1".to_owned()));
        }
        own.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn mcp_servers(&self, id: SessionId, own: &Environment) -> Value {
        let state_dir = self.deps.paths.state().display().to_string();
        let env: Environment = own
            .iter()
            .filter(|(name, _)| {
                ["INSTAR_SESSION_ID", "INSTAR_AUTH_TOKEN", "INSTAR_STATE_DIR", "INSTAR_SOCKET"]
                    .contains(&name.as_str())
            })
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        json!({"mcpServers": {"threadline": {
            "type": "stdio",
            "command": self.deps.program,
            "args": ["mcp", "threadline", "--state-dir", state_dir, "--session", id.to_string()],
            "env": env,
        }}})
    }

    fn start_host(&self, id: SessionId, spec: &LaunchSpec) -> Result<i32, SessionError> {
        let mut child = tokio::process::Command::new(&spec.program)
            .args(supervisor::arguments("session-host", self.deps.paths.state(), id))
            .env_clear()
            .envs(self.environment())
            .current_dir(self.deps.paths.project())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| SessionError::Failed(format!("cannot start {}: {e}", spec.program.display())))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        // Only collects the exit status, so that no zombie is left; the supervisor outlives this node.
        self.tracker.spawn({
            let cancel = self.cancel.clone();
            async move {
                tokio::select! {
                    _ = child.wait() => {}
                    () = cancel.cancelled() => {}
                }
            }
        });
        pid.ok_or_else(|| SessionError::Failed("the session's supervisor ended at once".into()))
    }

    async fn start_pane(&self, record: &SessionRecord, spec: &LaunchSpec) -> Result<(), SessionError> {
        let tmux = self
            .tmux()
            .ok_or_else(|| SessionError::RuntimeMissing(crate::tmux::TmuxError::Missing.to_string()))?;
        let name = record.tmux_session.as_deref().unwrap_or_default();
        let mut command = vec![spec.program.clone().into_os_string()];
        command.extend(supervisor::arguments("session-exec", self.deps.paths.state(), record.id));
        tmux.new_session(name, &record.cwd, &command).await.map_err(|e| SessionError::Failed(e.to_string()))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    cwd: PathBuf,
    model: Option<String>,
    transport: Transport,
    program: PathBuf,
}

enum Reservation {
    Live(Box<SessionRecord>),
    New(Box<Reserved>),
}

struct Reserved {
    record: SessionRecord,
    token: SessionToken,
}

/// Conversation of a session that belongs to none.
pub(crate) fn own_conversation(id: SessionId) -> ConversationKey {
    format!("session:{id}").parse().expect("a session id makes a conversation key")
}

/// The first input of the session with this id.
pub(crate) fn prompt_input(id: SessionId, conversation: &ConversationKey, prompt: &str) -> SessionInput {
    SessionInput {
        inbox_key: format!("prompt:{id}"),
        conversation: conversation.clone(),
        kind: InputKind::System,
        body: prompt.to_owned(),
        tag: "system:prompt".into(),
        steer: false,
    }
}

fn digest(prompt: &str) -> PromptDigest {
    PromptDigest {
        head: prompt.chars().take(2000).collect(),
        sha256: hex::encode(Sha256::digest(prompt.as_bytes())),
    }
}

fn inside(project: &Path, dir: &Path) -> Result<PathBuf, SessionError> {
    let whole = project.join(dir);
    let real = whole
        .canonicalize()
        .map_err(|e| SessionError::Invalid(format!("cannot work in {}: {e}", whole.display())))?;
    let root = project.canonicalize().unwrap_or_else(|_| project.to_owned());
    if real.starts_with(&root) && real.is_dir() {
        return Ok(real);
    }
    Err(SessionError::Invalid(format!("{} is not a directory inside {}", dir.display(), root.display())))
}

fn write_json(path: &Path, value: &Value) -> Result<(), SessionError> {
    let bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    write_atomic(path, &bytes, 0o600).map_err(|e| SessionError::Failed(e.to_string()))
}

/// The heads of files that a supervisor made, before the node adopts it.
pub(crate) fn pids(files: &SessionFiles) -> Option<crate::launch::Pids> {
    serde_json::from_slice(&std::fs::read(files.pids()).ok()?).ok()
}
