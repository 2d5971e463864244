//! The room as the composition root and the routes see it.

mod carriers;
mod open;
mod oversight;
mod questions;
mod threads;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use instar_durable::create_dir_private;
use instar_outbound::{SecretScan, SendGateway};
use instar_state::events::EventBus;
use instar_state::ids::ConversationKey;
use instar_state::paths::{AccountPaths, AgentPaths};
use instar_state::ports::{PeerSessions, SharedNotices};
use instar_state::secret::Secret;
use serde_json::{Value, json};
use threadline::identity::{DiscoveryChallenge, Purpose};
use threadline::service::{AgentsRequest, Caller, DiscoverRequest, ServiceError};
use threadline::v1::local::AgentName;
use threadline::{Fingerprint, ParseIdError, TrustLevel};
use threadline_net::{
    DirectDeps, LinkDeps, LinkEvent, RegistryClient, Routes, ServerClient, ServerClientError, SharedFiles,
    run_direct, run_link,
};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::config::MeshConfig;
use crate::core::{Core, RelaySwitch, thread_of};
use crate::link_log::LinkLog;
use crate::local::LocalScan;
use crate::records::ControlStatus;
use crate::sealed::{SealedParts, SealedRoom, SealedRun};
use crate::trust::{actor_of, require_owner};
use crate::waiters::{Handover, Waiters};

use self::open::{Opened, open_files, open_machine_limits, refusal_of};

/// What the room is built from.
pub struct MeshDeps {
    /// This agent's paths.
    pub paths: AgentPaths,
    /// The account's paths, for the registry of agents.
    pub account: AccountPaths,
    /// Name that others see.
    pub agent_name: String,
    /// Version that others see.
    pub version: String,
    /// Loopback port of the node, where other agents of this host find it.
    pub port: u16,
    /// Configuration at start; see [`Mesh::set_config`].
    pub config: MeshConfig,
    /// Opens an encrypted identity.
    pub passphrase: Option<Secret<String>>,
    /// Sessions that serve peers.
    pub sessions: Arc<dyn PeerSessions>,
    /// Notices to the owner and degradations.
    pub notices: SharedNotices,
    /// The node's events.
    pub events: EventBus,
    /// The one way out. Stage 4 must be declared per message for channel `threadline`.
    pub gateway: Arc<SendGateway>,
    /// Finds credentials and own secrets.
    pub secrets: Arc<dyn SecretScan>,
    /// Writes the relay switch into the configuration.
    pub relay_switch: Arc<dyn RelaySwitch>,
}

/// Why the room cannot be built at all. What stops only Threadline is a [`Refusal`] in the status.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// A directory cannot be made.
    #[error("cannot make {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The thread that opens files died.
    #[error("opening the mesh was interrupted")]
    Interrupted,
}

/// Why Threadline is off although the node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `disabled`, `locked`, `identity-corrupt`, `identity-missing`, `identity-not-provisioned`,
    /// `state-too-new` or `unavailable`.
    pub code: &'static str,
    /// One sentence for the person at the keyboard.
    pub message: String,
}

/// This node's part in the mesh.
pub struct Mesh {
    core: Result<Arc<Core>, Refusal>,
    run: Mutex<Option<Run>>,
    agent_name: String,
    version: String,
}

/// What [`Mesh::run`] takes over.
pub(crate) struct Run {
    pub(crate) link: threadline_net::LinkFuture,
    pub(crate) direct: threadline_net::LinkFuture,
    pub(crate) sealed: SealedRun,
    pub(crate) events: mpsc::Receiver<LinkEvent>,
    pub(crate) handovers: mpsc::Receiver<Handover>,
}

impl Mesh {
    /// Opens identity, store and records. A locked, damaged or missing identity, or a store that cannot be used, leaves
    /// Threadline refused and the node alive: see [`Mesh::refusal`].
    pub async fn open(deps: MeshDeps) -> Result<Arc<Self>, MeshError> {
        let (agent_name, version) = (deps.agent_name.clone(), deps.version.clone());
        let dir = deps.paths.threadline();
        for path in [&dir, &deps.paths.data(), &deps.paths.logs()] {
            create_dir_private(path).map_err(|source| MeshError::Directory { path: path.clone(), source })?;
        }
        let refused = |refusal| {
            Ok(Arc::new(Self {
                core: Err(refusal),
                run: Mutex::new(None),
                agent_name: agent_name.clone(),
                version: version.clone(),
            }))
        };
        if !deps.config.enabled {
            let message = "threadline.enabled is false in config.json".to_owned();
            return refused(Refusal { code: "disabled", message });
        }
        let (paths, passphrase) = (deps.paths.clone(), deps.passphrase.clone());
        let files = SharedFiles::new(deps.account.agent_tokens(), deps.account.drops());
        let (folders, name) = (files.clone(), AgentName::parse(&deps.agent_name));
        let (shared, notices) = (deps.account.machine_limits_db(), Arc::clone(&deps.notices));
        let opened = tokio::task::spawn_blocking(move || {
            let machine = open_machine_limits(&shared, &notices);
            open_files(&paths, passphrase.as_ref(), machine, &folders, name.as_ref())
        });
        let opened = match opened.await.map_err(|_| MeshError::Interrupted)? {
            Ok(opened) => opened,
            Err(error) => {
                let refusal = refusal_of(&error);
                deps.notices.degrade("threadline", &refusal.message);
                tracing::error!(code = refusal.code, reason = refusal.message, "Threadline is refused");
                return refused(refusal);
            }
        };
        deps.notices.resolve("threadline");
        let registry = match RegistryClient::new() {
            Ok(registry) => registry,
            Err(error) => {
                return refused(Refusal { code: "unavailable", message: error.to_string() });
            }
        };
        match Self::assemble(deps, opened, registry, files) {
            Ok(mesh) => Ok(Arc::new(mesh)),
            Err(error) => refused(Refusal { code: "unavailable", message: error.to_string() }),
        }
    }

    fn assemble(
        deps: MeshDeps,
        opened: Opened,
        registry: RegistryClient,
        files: SharedFiles,
    ) -> Result<Self, ServerClientError> {
        let identity = Arc::new(opened.identity.identity);
        let config = Arc::new(ArcSwap::from_pointee(deps.config));
        let (events_tx, events) = mpsc::channel(256);
        let stop = CancellationToken::new();
        let routes = Routes::default();
        let name = AgentName::parse(&deps.agent_name);
        let (link, link_future) = run_link(
            LinkDeps {
                identity: Arc::clone(&identity),
                store: opened.store.clone(),
                routes: routes.clone(),
                events: events_tx.clone(),
                now: instar_state::time::now_ms,
            },
            stop.clone(),
        );
        let (direct, direct_future) = run_direct(
            DirectDeps {
                identity: Arc::clone(&identity),
                name: name.clone(),
                port: deps.port,
                store: opened.store.clone(),
                routes: routes.clone(),
                files: files.clone(),
                events: events_tx,
                relay: link.watch_status(),
                now: instar_state::time::now_ms,
            },
            stop.clone(),
        )?;
        for path in opened.set_aside {
            let text = format!(
                "A record of the mesh was damaged and put aside as {}; it starts empty and strict",
                path.display()
            );
            deps.notices.notify(instar_state::ports::Notice {
                cause: format!("record-corrupt:{}", path.display()),
                text,
                urgent: true,
            });
        }
        let dispatch_wake = Arc::new(Notify::new());
        let (waiters, handovers) = Waiters::new(Arc::clone(&dispatch_wake));
        let (sealed, sealed_run) = SealedRoom::new(&SealedParts {
            identity: &identity,
            store: &opened.store,
            link: &link,
            agent_name: &deps.agent_name,
            config: &config,
            profiles: &opened.profiles,
            controls: &opened.controls,
            stop: &stop,
        });
        let core = Arc::new(Core {
            us: identity.fingerprint(),
            identity,
            agent_name: deps.agent_name.clone(),
            version: deps.version.clone(),
            state_dir: deps.paths.state().to_owned(),
            store: opened.store,
            machine: opened.machine,
            link,
            sealed,
            direct,
            routes,
            servers: ServerClient::new()?,
            name,
            port: deps.port,
            files,
            drops: tokio::sync::Mutex::default(),
            own_token: opened.own_token,
            registry,
            config,
            profiles: opened.profiles,
            nicknames: opened.nicknames,
            controls: opened.controls,
            pairings: opened.pairings,
            known_agents: opened.known_agents,
            guests: Mutex::default(),
            recent: Mutex::default(),
            audit: opened.audit,
            link_log: LinkLog::new(&deps.paths.logs()),
            waiters,
            local: LocalScan::new(deps.account, deps.paths.project().to_owned()),
            sessions: deps.sessions,
            notices: deps.notices,
            events: deps.events,
            gateway: deps.gateway,
            secrets: deps.secrets,
            relay_switch: deps.relay_switch,
            ingest_wake: Notify::new(),
            dispatch_wake,
            violations: Mutex::new(HashMap::new()),
            clock: instar_state::time::now_ms,
            stop,
        });
        if let Some(broken) = &core.audit.broken {
            core.notify("audit-broken", format!("The trust audit chain is broken: {broken}"), true);
        }
        Ok(Self {
            core: Ok(core),
            run: Mutex::new(Some(Run {
                link: link_future,
                direct: direct_future,
                sealed: sealed_run,
                events,
                handovers,
            })),
            agent_name: deps.agent_name,
            version: deps.version,
        })
    }

    /// Runs link, pipeline, dispatcher and housekeeping until cancelled; only waits when Threadline is refused.
    pub async fn run(&self, cancel: CancellationToken) {
        let run = self.run.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (&self.core, run) {
            (Ok(core), Some(run)) => {
                crate::upkeep::run(Arc::clone(core), run, cancel).await;
            }
            _ => cancel.cancelled().await,
        }
    }

    pub(crate) fn core(&self) -> Result<&Arc<Core>, ServiceError> {
        self.core.as_ref().map_err(|refusal| {
            ServiceError::new("threadline-unavailable", refusal.message.clone())
                .with_details(json!({"state": refusal.code}))
        })
    }

    /// Why Threadline is off, if it is.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.core.as_ref().err()
    }

    /// This agent's address.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.core.as_ref().ok().map(|core| core.us)
    }

    /// Uses another configuration from now on; the link follows within a second.
    pub async fn set_config(&self, config: MeshConfig) {
        let Ok(core) = &self.core else { return };
        core.config.store(Arc::new(config));
        core.sealed.configure(core.config().relay_settings());
        core.steer_link().await;
        core.refresh_routes();
        core.dispatch_wake.notify_one();
        core.ingest_wake.notify_one();
    }

    /// `GET /threadline/health`: always answers, with identity where there is one, and holds no peer's text.
    pub fn health(&self) -> Value {
        let at = threadline::time::iso_ms(instar_state::time::now_ms());
        match &self.core {
            Ok(core) => {
                let link = core.link.status();
                let configured = core.config().relay_url.is_some();
                let connected = link.is_connected() || core.sealed.is_connected();
                json!({
                    "status": if configured && !connected { "degraded" } else { "ok" },
                    "protocol": "threadline",
                    "version": self.version,
                    "agent": self.agent_name,
                    "identityPub": hex::encode(core.identity.public().as_bytes()),
                    "fingerprint": core.us,
                    "capabilities": core.capabilities(),
                    "framework": "instar",
                    "pairedAgents": core.pairings.get().0.len(),
                    "relay": {
                        "configured": configured,
                        "state": link.state,
                        "selfHealing": link.self_healing,
                        "since": threadline::time::iso_ms(link.since),
                    },
                    "timestamp": at,
                })
            }
            Err(refusal) => json!({
                "status": "error",
                "protocol": "threadline",
                "version": self.version,
                "agent": self.agent_name,
                "state": refusal.code,
                "framework": "instar",
                "pairedAgents": 0,
                "timestamp": at,
            }),
        }
    }

    /// `GET /threadline/status`
    pub async fn status(&self) -> Result<Value, ServiceError> {
        match &self.core {
            Ok(core) => core.status().await,
            Err(refusal) => Ok(json!({"state": refusal.code, "reason": refusal.message})),
        }
    }

    /// `POST /threadline/challenge`: proves the key behind this node. `nonce` is 64 hex digits.
    pub fn challenge(&self, nonce: &str) -> Result<Value, ServiceError> {
        use base64::Engine as _;
        let core = self.core()?;
        let challenge = DiscoveryChallenge::new(nonce, core.now())
            .ok_or_else(|| ServiceError::new("invalid-arguments", "nonce must be 64 lowercase hex digits"))?;
        let signature = core.identity.sign(&Purpose::DiscoveryChallenge(&challenge));
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        Ok(json!({
            "fingerprint": core.us,
            "publicKey": encode(core.identity.public().as_bytes()),
            "timestamp": challenge.timestamp(),
            "signature": encode(&signature),
        }))
    }

    /// `GET /threadline/agents`
    pub async fn agents(&self, caller: &Caller, include_offline: bool) -> Result<Value, ServiceError> {
        self.core()?.agents(caller, &AgentsRequest { include_offline }).await
    }

    /// `GET /threadline/agents/:fp`
    pub async fn agent(&self, peer: &str) -> Result<Value, ServiceError> {
        self.core()?.agent(fingerprint(peer)?).await
    }

    /// `POST /threadline/relay-discover` and `/threadline/discover`
    pub async fn discover(&self, caller: &Caller, request: DiscoverRequest) -> Result<Value, ServiceError> {
        self.core()?.discover(caller, request).await
    }

    /// `POST /threadline/agents/:fp/trust`: the profile, or an approval that waits.
    pub async fn set_trust(
        &self,
        caller: &Caller,
        peer: &str,
        level: TrustLevel,
        reason: Option<&str>,
    ) -> Result<Value, ServiceError> {
        let core = self.core()?;
        let peer = fingerprint(peer)?;
        let change = core.set_level(caller, peer, level, reason).await?;
        Ok(json!({
            "fingerprint": peer,
            "previousLevel": change.previous,
            "level": change.level,
            "status": if change.approval.is_some() { "pending_confirmation" } else { "applied" },
            "approvalId": change.approval,
            "profile": core.profile(&peer),
        }))
    }

    /// `GET /threadline/agents/:fp/safety`: the owner only. `peer` is any form of an address that a send takes.
    pub async fn safety(&self, caller: &Caller, peer: &str) -> Result<Value, ServiceError> {
        require_owner(caller, "reading a safety number")?;
        let core = self.core()?;
        core.safety(core.resolve_target(peer).await?.fingerprint).await
    }

    /// `POST /threadline/agents/:fp/safety`: the owner only. What came of comparing the numbers.
    pub async fn confirm_safety(
        &self,
        caller: &Caller,
        peer: &str,
        matches: bool,
    ) -> Result<Value, ServiceError> {
        let core = self.core()?;
        let peer = core.resolve_target(peer).await?.fingerprint;
        core.confirm_safety(caller, peer, matches).await
    }

    /// `POST /threadline/agents/:fp/block`
    pub async fn block(
        &self,
        caller: &Caller,
        peer: &str,
        reason: Option<String>,
    ) -> Result<Value, ServiceError> {
        let (core, peer) = (self.core()?, fingerprint(peer)?);
        core.block(caller, peer, reason).await?;
        core.agent(peer).await.or_else(|_| Ok(json!({"fingerprint": peer, "blocked": true})))
    }

    /// `POST /threadline/agents/:fp/unblock`: the owner only.
    pub async fn unblock(&self, caller: &Caller, peer: &str) -> Result<Value, ServiceError> {
        let (core, peer) = (self.core()?, fingerprint(peer)?);
        core.release_control(caller, peer, ControlStatus::Blocked).await?;
        Ok(json!({"fingerprint": peer, "blocked": false}))
    }

    /// `POST /threadline/agents/:fp/pause`
    pub async fn pause(&self, peer: &str, reason: Option<String>) -> Result<Value, ServiceError> {
        let (core, peer) = (self.core()?, fingerprint(peer)?);
        if core.controls.get().is_blocked(&peer) {
            return Err(ServiceError::new(
                "blocked-agent",
                "the agent is blocked, which is more than paused",
            ));
        }
        core.set_control(peer, Some(ControlStatus::Paused), reason).await?;
        Ok(json!({"fingerprint": peer, "paused": true}))
    }

    /// `POST /threadline/agents/:fp/resume`
    pub async fn resume(&self, caller: &Caller, peer: &str) -> Result<Value, ServiceError> {
        let (core, peer) = (self.core()?, fingerprint(peer)?);
        core.release_control(caller, peer, ControlStatus::Paused).await?;
        Ok(json!({"fingerprint": peer, "paused": false}))
    }

    /// `POST /threadline/pause` (anyone) and `/threadline/resume` (the owner).
    pub async fn pause_all(&self, caller: &Caller, paused: bool) -> Result<Value, ServiceError> {
        if !paused {
            require_owner(caller, "resuming all agents")?;
        }
        let core = self.core()?;
        core.pause_all(paused).await?;
        core.events.publish("threadline-paused", json!({"paused": paused, "by": actor_of(caller)}));
        Ok(json!({"paused": paused}))
    }

    /// `PUT` and `DELETE /threadline/agents/:fp/nickname`
    pub async fn set_nickname(&self, peer: &str, nickname: Option<String>) -> Result<Value, ServiceError> {
        self.core()?.set_nickname(fingerprint(peer)?, nickname).await
    }

    /// What a session that begins on a conversation of the mesh should know; `None` for other conversations.
    pub async fn boot_context(&self, conversation: &ConversationKey) -> Option<String> {
        let core = self.core.as_ref().ok()?;
        core.boot_context(&thread_of(conversation)?).await
    }
}

fn fingerprint(text: &str) -> Result<Fingerprint, ServiceError> {
    text.parse().map_err(|e: ParseIdError| ServiceError::new("invalid-arguments", e.to_string()))
}
