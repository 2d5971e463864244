//! The node from its lock to its last flush (`agent-core.md` §4.1).

use std::sync::Arc;
use std::time::Duration;

use instar_api::{ApiSettings, ApiState, Limits, Rooms};
use instar_durable::{DatabaseError, FileLock};
use instar_identity::Identity;
use instar_mcp::tokens::Tokens;
use instar_mcp::{HttpListener, ServerIdentity};
use instar_mesh::{Mesh, MeshConfig, MeshDeps};
use instar_outbound::{Channel, ChannelId, Pel, PelConfig, SecretScan, SendGateway, StageId};
use instar_redact::{OwnSecrets, Redactor};
use instar_sessions::memory::MemoryFiles;
use instar_sessions::{Sessions, SessionsDeps};
use instar_state::config::{Config, ConfigService, keys};
use instar_state::events::{ActivityLog, EventBus};
use instar_state::journal::Journal;
use instar_state::notices::NoticeBoard;
use instar_state::ports::{Notices, SharedNotices};
use instar_state::process::ProcessRef;
use instar_state::registry::RegistryError;
use instar_state::secret::Secret;
use instar_state::secrets::SecretStore;
use instar_state::time::now_ms;
use sha2::{Digest, Sha256};
use threadline_relay::embedded::Place;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::context::Contexts;
use super::facts::Facts;
use super::holder::{self, Claim, Holder};
use super::hook_log::HookLog;
use super::log::{self, Rotation};
use super::own_secrets::OwnSecretScan;
use super::server::{announce, stop_on_signals};
use super::supervise::Supervisor;
use super::{bind, hook_spool, relay, settings, tools};
use crate::cli::{Agent, Ctx, Exit, Failure};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How often the registry hears that the node lives.
const HEARTBEAT: Duration = Duration::from_mins(1);
/// How often `config.json` is looked at.
const CONFIG_POLL: Duration = Duration::from_secs(5);
/// How long tasks may take to end after the stop.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Who is told what when the node is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A person ran `instar up`.
    Up,
    /// `instar server start --foreground`.
    Server,
}

/// Runs the node of `agent` until SIGTERM or SIGINT. Blocks.
pub(crate) fn run(ctx: &Ctx, agent: &Agent, style: Style) -> Result<(), Failure> {
    std::fs::create_dir_all(agent.paths.run())?;
    let mut lock = match holder::claim(&agent.paths.node_lock())? {
        Claim::Ours(lock) => lock,
        Claim::Held(held) => return Err(already_running(agent, held.as_ref())),
    };
    // A second installation in one process is refused, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let boot_id = uuid::Uuid::new_v4().to_string();
    holder::sign(&mut lock, &boot_id)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("node")
        .enable_all()
        .build()?;
    let ended = runtime.block_on(Node { ctx, agent, boot_id, lock, style }.run());
    runtime.shutdown_timeout(Duration::from_secs(2));
    ended
}

/// A second node on one state directory.
pub(super) fn already_running(agent: &Agent, held: Option<&Holder>) -> Failure {
    let who = held.map_or_else(
        || "a process that did not say who it is".to_owned(),
        |h| format!("process {} since {}", h.pid, h.started_at),
    );
    Failure::new(
        Exit::Failed,
        "already_running",
        format!("{} already runs: {who}. `instar server stop` ends it", agent.name()),
    )
}

struct Node<'a> {
    ctx: &'a Ctx,
    agent: &'a Agent,
    boot_id: String,
    lock: FileLock,
    style: Style,
}

/// What outlives the boot.
struct Base {
    config: Arc<ConfigService>,
    board: Arc<NoticeBoard>,
    notices: SharedNotices,
    events: EventBus,
    secrets: SecretStore,
    supervisor: Supervisor,
    stop: CancellationToken,
}

impl Node<'_> {
    async fn run(self) -> Result<(), Failure> {
        let stop = stop_on_signals()?;
        let base = self.open_base(stop)?;
        let config = base.config.current();
        let port = Self::port(&config)?;
        let facts = Arc::new(Facts {
            board: Arc::clone(&base.board),
            supervisor: base.supervisor.clone(),
            config: Arc::clone(&base.config),
            registry: self.ctx.registry(),
            contexts: Contexts::new(Identity::new(self.agent.paths.clone(), self.agent.name())),
            hook_log: HookLog::new(self.agent.paths.logs()),
            paths: self.agent.paths.clone(),
        });
        let api = ApiState::new(self.api_settings(&base, &config, port, Arc::clone(&facts))?);
        self.listen(&base, &config, port, &api).await?;

        let rooms = self.open_rooms(&base, &config, port).await?;
        facts.contexts.attach(&rooms);
        self.start_tasks(&base, &rooms, &config, &facts).await?;
        api.ready(rooms.clone());
        self.greet(&base, &config, port, &rooms);

        base.stop.cancelled().await;
        api.drain();
        tracing::info!("stopping");
        if !base.supervisor.finish(STOP_PATIENCE).await {
            tracing::warn!("some tasks did not end in time");
        }
        self.say_goodbye();
        drop(self.lock);
        Ok(())
    }

    /// Configuration, log and secrets: what everything else is told from.
    fn open_base(&self, stop: CancellationToken) -> Result<Base, Failure> {
        let paths = &self.agent.paths;
        paths.prepare_run()?;
        for dir in [paths.logs(), paths.data(), paths.sessions(), paths.threadline()] {
            instar_durable::create_dir_private(&dir)?;
        }
        let events = EventBus::default();
        let board = Arc::new(NoticeBoard::new(events.clone()));
        let notices: SharedNotices = Arc::clone(&board) as Arc<dyn Notices>;
        let overrides = self.ctx.overrides()?;
        let config = ConfigService::open(self.agent.config_file(), overrides, Arc::clone(&notices))?;
        let secrets = self.agent.secrets();
        let own = secrets.load()?;
        let current = config.current();
        let own = own.values().chain(current.secret_values());
        let redactor = Redactor::new(OwnSecrets::new(own.map(|s| s.expose().as_str())));
        log::install(
            &paths.node_log(),
            &current.get(keys::LOG_LEVEL),
            Rotation {
                max_bytes: current.get(keys::LOG_MAX_FILE_MB) * 1024 * 1024,
                keep: current.get(keys::LOG_KEEP) as u32,
            },
            redactor,
        )?;
        tracing::info!(version = VERSION, boot_id = self.boot_id, agent = self.agent.name(), "node starts");
        config.attach_secrets(secrets.clone());
        let supervisor = Supervisor::new(stop.clone(), Arc::clone(&notices));
        Ok(Base { config, board, notices, events, secrets, supervisor, stop })
    }

    fn port(config: &Config) -> Result<u16, Failure> {
        config.get(keys::PORT).ok_or_else(|| {
            Failure::new(
                Exit::NoAgent,
                "config_invalid",
                "config.json has no port; `instar init` gives the agent one",
            )
        })
    }

    fn api_settings(
        &self,
        base: &Base,
        config: &Config,
        port: u16,
        facts: Arc<Facts>,
    ) -> Result<ApiSettings, Failure> {
        let token = config.secret(keys::AUTH_TOKEN).ok_or_else(|| {
            Failure::new(
                Exit::NoAgent,
                "no_auth_token",
                "the secret store holds no authToken; `instar init` makes one (there is no open mode)",
            )
        })?;
        let store = base.secrets.clone();
        let hash = config.secret(keys::DASHBOARD_PIN).cloned();
        let pin = Arc::new(move |pin: &str| {
            let given = Secret::new(pin.to_owned());
            hash.as_ref().is_some_and(|hash| store.verify_pin(&given, hash).unwrap_or(false))
        });
        Ok(ApiSettings {
            agent_name: self.agent.name(),
            project_dir: self.agent.paths.project().display().to_string(),
            version: VERSION,
            boot_id: self.boot_id.clone(),
            port,
            agent_token_hash: Sha256::digest(token.expose().as_bytes()).into(),
            request_timeout: config.get(keys::REQUEST_TIMEOUT),
            limits: Limits {
                requests_per_minute: config.get(keys::HTTP_PER_MINUTE),
                spawns_per_minute: config.get(keys::HTTP_SPAWNS_PER_MINUTE),
                hooks_per_second: config.get(keys::HTTP_HOOKS_PER_SECOND),
            },
            pin,
            pin_tries: self.agent.paths.pin_tries(),
            facts,
        })
    }

    /// Health answers from here on; everything else says `booting`.
    async fn listen(&self, base: &Base, config: &Config, port: u16, api: &ApiState) -> Result<(), Failure> {
        let router = instar_api::router(api);
        for listener in bind::tcp(&config.get(keys::HOST), port).await? {
            let serving = instar_api::serve_tcp(listener, router.clone(), base.stop.clone());
            base.supervisor.once("http", serving);
        }
        let socket = bind::socket(&self.agent.paths).map_err(|e| {
            Failure::failed(format!("cannot listen on {}: {e}", self.agent.paths.socket().display()))
        })?;
        base.supervisor.once("socket", instar_api::serve_unix(socket, router, base.stop.clone()));
        Ok(())
    }

    /// Databases, then what earlier nodes left behind.
    async fn open_rooms(&self, base: &Base, config: &Config, port: u16) -> Result<Rooms, Failure> {
        let paths = self.agent.paths.clone();
        let notices = Arc::clone(&base.notices);
        let journal =
            tokio::task::spawn_blocking(move || Journal::open(&paths.messaging_db(), &*notices, now_ms()))
                .await
                .map_err(|e| Failure::failed(e.to_string()))?
                .map_err(database_failure)?;
        let answers = journal.answers();
        let sessions = Sessions::open(SessionsDeps {
            paths: self.agent.paths.clone(),
            home: self.ctx.account.home().to_owned(),
            agent_name: self.agent.name(),
            agent_id: self.agent.name(),
            program: self.agent.paths.current().join("instar"),
            server_url: format!("http://127.0.0.1:{port}"),
            environment: crate::cli::environment(self.ctx),
            hook_program: self.agent.paths.current().join("instar-hook"),
            config: settings::sessions(config),
            journal,
            notices: Arc::clone(&base.notices),
            events: base.events.clone(),
            memory: MemoryFiles::default(),
        })
        .map_err(|e| Failure::failed(e.to_string()))?;
        let recovered = sessions.recover().await.map_err(|e| Failure::failed(e.to_string()))?;
        tracing::info!(adopted = recovered.adopted, ended = recovered.ended, "sessions recovered");
        if let Err(error) = sessions.runtime_ready() {
            base.notices.degrade("runtime_missing", &error.to_string());
        }
        let scan: Arc<dyn SecretScan> =
            Arc::new(OwnSecretScan::new(base.secrets.clone(), Arc::clone(&base.config))?);
        let policy = Arc::new(Pel::new(PelConfig::default(), Arc::clone(&scan)));
        let gateway = SendGateway::new(policy).with_stage_per_message(StageId::Mesh, ChannelId::THREADLINE);
        gateway.register(Channel::threadline());
        let mesh = Mesh::open(MeshDeps {
            paths: self.agent.paths.clone(),
            account: self.ctx.account.clone(),
            agent_name: self.agent.name(),
            version: VERSION.to_owned(),
            port,
            config: MeshConfig::from_config(config),
            passphrase: self.passphrase()?,
            sessions: Arc::new(sessions.clone()),
            notices: Arc::clone(&base.notices),
            events: base.events.clone(),
            gateway: Arc::new(gateway),
            secrets: scan,
            relay_switch: Arc::new(relay::ConfigRelaySwitch::new(Arc::clone(&base.config))),
        })
        .await
        .map_err(|e| Failure::failed(e.to_string()))?;
        if let Some(refusal) = mesh.refusal() {
            if refusal.code == "state-too-new" {
                return Err(Failure::new(Exit::NoAgent, "state_too_new", refusal.message.clone()));
            }
            base.notices.degrade(&format!("threadline_{}", refusal.code), &refusal.message);
        }
        Ok(Rooms { sessions, mesh, answers })
    }

    /// Passphrase of an encrypted identity: a private file that the environment names.
    fn passphrase(&self) -> Result<Option<Secret<String>>, Failure> {
        use std::os::unix::fs::MetadataExt;
        let Some(file) = self.ctx.env.get("INSTAR_IDENTITY_PASSPHRASE_FILE") else { return Ok(None) };
        let meta = std::fs::metadata(file).map_err(|e| Failure::failed(format!("{file}: {e}")))?;
        if meta.mode() & 0o077 != 0 {
            return Err(Failure::failed(format!(
                "{file} is readable by others; set its mode to 0600 or 0400"
            )));
        }
        let text = std::fs::read_to_string(file).map_err(|e| Failure::failed(format!("{file}: {e}")))?;
        Ok(Some(Secret::new(text.trim_end_matches(['\n', '\r']).to_owned())))
    }

    async fn start_tasks(
        &self,
        base: &Base,
        rooms: &Rooms,
        config: &Config,
        facts: &Arc<Facts>,
    ) -> Result<(), Failure> {
        self.share_relay(base, rooms);
        let sessions = rooms.sessions.clone();
        base.supervisor.run("sessions", move |stop| {
            let sessions = sessions.clone();
            async move { sessions.run(stop).await }
        });
        let mesh = Arc::clone(&rooms.mesh);
        base.supervisor.run("mesh", move |stop| {
            let mesh = Arc::clone(&mesh);
            async move { mesh.run(stop).await }
        });
        let service = Arc::clone(&base.config);
        base.supervisor.run("config", move |stop| Arc::clone(&service).run(CONFIG_POLL, stop));
        self.beat(base);
        self.record_activity(base)?;
        let (state, facts) = (self.agent.paths.state().to_owned(), Arc::clone(facts));
        hook_spool::take_in(&state, &rooms.sessions, &facts).await;
        let sessions = rooms.sessions.clone();
        base.supervisor.run("hook-spool", move |stop| {
            hook_spool::run(state.clone(), sessions.clone(), Arc::clone(&facts), stop)
        });
        if config.get(keys::MCP_ENABLED) {
            self.serve_mcp(base, rooms, config).await?;
        }
        Ok(())
    }

    /// Runs or joins the account's relay, and tells rooms and hooks about every change of the configuration.
    fn share_relay(&self, base: &Base, rooms: &Rooms) {
        let (place, places) = watch::channel(Place::Unknown);
        let env = self.ctx.env.clone();
        let env = move |name: &str| env.get(name).cloned();
        relay::run_embedded(&base.supervisor, &base.config, self.ctx.account.relay(), env, place);
        let (config, rooms, state) =
            (Arc::clone(&base.config), rooms.clone(), self.agent.paths.state().to_owned());
        base.supervisor.run("settings", move |stop| {
            relay::follow(Arc::clone(&config), places.clone(), rooms.clone(), state.clone(), stop)
        });
    }

    /// Keeps the account's registry informed that this node lives.
    fn beat(&self, base: &Base) {
        let (registry, path) = (self.ctx.registry(), self.agent.paths.project().to_owned());
        base.supervisor.run("registry", move |stop| {
            let (registry, path) = (registry.clone(), path.clone());
            async move {
                let mut tick = tokio::time::interval(HEARTBEAT);
                while !stop.is_cancelled() {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        _ = tick.tick() => {}
                    }
                    let (registry, path) = (registry.clone(), path.clone());
                    let beat = tokio::task::spawn_blocking(move || {
                        registry.edit(now_ms(), |entries| {
                            entries.heartbeat(&path, ProcessRef::current(), VERSION, now_ms());
                            Ok::<_, RegistryError>(())
                        })
                    });
                    if let Ok(Err(error)) = beat.await {
                        tracing::warn!(%error, "the agent registry was not updated");
                    }
                }
            }
        });
    }

    /// Writes every event of the node into `logs/activity-<day>.jsonl`.
    fn record_activity(&self, base: &Base) -> Result<(), Failure> {
        let mut log =
            ActivityLog::open(&self.agent.paths.logs()).map_err(|e| Failure::failed(e.to_string()))?;
        let mut events = base.events.subscribe();
        let stop = base.stop.clone();
        base.supervisor.once("activity", async move {
            loop {
                let event = tokio::select! {
                    () = stop.cancelled() => return,
                    event = events.recv() => event,
                };
                match event {
                    Ok(event) => {
                        // One short line into the page cache: not worth a thread.
                        if let Err(error) = log.append(&event) {
                            tracing::warn!(%error, "an event was not recorded");
                        }
                    }
                    Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "events were not recorded"),
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Ok(())
    }

    async fn serve_mcp(&self, base: &Base, rooms: &Rooms, config: &Config) -> Result<(), Failure> {
        let listener = HttpListener::bind(tools::http_config(config)?)
            .await
            .map_err(|e| Failure::failed(e.to_string()))?;
        let tokens = Tokens::new(self.agent.paths.threadline().join("mcp-tokens.json"));
        let identity = ServerIdentity { agent: self.agent.name(), version: VERSION.to_owned() };
        let serving = listener.serve(Arc::clone(&rooms.mesh) as _, tokens, identity, base.stop.clone());
        base.supervisor.once("mcp", async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the MCP listener ended");
            }
        });
        Ok(())
    }

    /// Tells the person who started the node where to look.
    fn greet(&self, base: &Base, config: &Config, port: u16, rooms: &Rooms) {
        tracing::info!(port, "node is up");
        if self.style == Style::Server {
            return;
        }
        let name = self.agent.name();
        announce(&format!("\n{name} is up (pid {}). Ctrl-C stops it.\n", std::process::id()));
        announce(&format!("  API      http://{}:{port}  (instar api GET /health)", config.get(keys::HOST)));
        announce(&format!("  log      {}", self.agent.paths.node_log().display()));
        if let Some(fingerprint) = rooms.mesh.fingerprint() {
            announce(&format!("  address  {name}:{} on the mesh", fingerprint.short()));
        }
        let relay =
            config.get(keys::THREADLINE_RELAY_URL).filter(|_| config.get(keys::THREADLINE_RELAY_ENABLED));
        announce(&match relay {
            Some(url) => format!("  relay    {url}"),
            None => "  relay    the account's own, on this machine (instar relay status)".to_owned(),
        });
        match rooms.sessions.runtime_ready() {
            Ok(()) => announce("  runtime  Claude Code found"),
            Err(error) => announce(&format!("  runtime  {error}")),
        }
        // What is missing of the runtime stands in the line above.
        for degradation in base.board.degradations().iter().filter(|d| d.code != "runtime_missing") {
            announce(&format!("  !        {}", degradation.reason));
        }
        announce("\nNext, in another terminal in this folder:");
        announce("  instar status                  how it is");
        announce("  instar threadline discover     other agents of yours on this machine");
        announce("  instar threadline send NAME \"text\"\n");
    }

    fn say_goodbye(&self) {
        let path = self.agent.paths.project().to_owned();
        let stopped = self.ctx.registry().edit(now_ms(), |entries| {
            entries.stopped(&path, ProcessRef::current());
            Ok::<_, RegistryError>(())
        });
        if let Err(error) = stopped {
            tracing::warn!(%error, "the agent registry still says that the node runs");
        }
        let _ = std::fs::remove_file(self.agent.paths.socket());
        tracing::info!("node stopped");
        if self.style == Style::Up {
            announce("stopped");
        }
    }
}

fn database_failure(error: DatabaseError) -> Failure {
    let exit = match &error {
        DatabaseError::SchemaTooNew { .. } => Exit::NoAgent,
        _ => Exit::Failed,
    };
    let code = match &error {
        DatabaseError::SchemaTooNew { .. } => "state_too_new",
        DatabaseError::Corrupt { .. } => "state_damaged",
        _ => "storage_failed",
    };
    Failure::new(exit, code, error.to_string())
}
