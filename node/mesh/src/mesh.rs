//! The room as the composition root and the routes see it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use instar_durable::{DatabaseError, create_dir_private};
use instar_outbound::{SecretScan, SendGateway};
use instar_state::events::EventBus;
use instar_state::ids::ConversationKey;
use instar_state::paths::{AccountPaths, AgentPaths};
use instar_state::ports::{PeerSessions, SharedNotices};
use instar_state::secret::Secret;
use serde_json::{Value, json};
use threadline::identity::{DiscoveryChallenge, IdentityError, Purpose};
use threadline::invitation::Wish;
use threadline::service::{
    AgentsRequest, Caller, DeleteRequest, DiscoverRequest, HistoryRequest, RelayAction, RelayRequest,
    ServiceError,
};
use threadline::threads::ThreadState;
use threadline::trust::Profiles;
use threadline::v1::http::signed::SignedHeaders;
use threadline::v1::http::{TlCode, TlError};
use threadline::v1::local::AgentName;
use threadline::{Fingerprint, ParseIdError, TrustLevel};
use threadline_net::store::{ApprovalKind, ApprovalStatus, Direction, Store, StoreError};
use threadline_net::{
    DirectDeps, IdentityFileError, LinkDeps, LinkEvent, MachineLimits, Minting, RegistryClient, Routes,
    ServerClient, ServerClientError, SharedFiles, open_identity, run_direct, run_link,
};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::approvals::Decision;
use crate::audit::AuditLog;
use crate::config::MeshConfig;
use crate::core::{Core, RelaySwitch, internal, thread_of};
use crate::direct::WireAnswer;
use crate::firewall::Authorization;
use crate::link_log::LinkLog;
use crate::local::LocalScan;
use crate::pairing::SignedRequest;
use crate::records::{ControlStatus, Controls, KnownAgents, Nicknames, Pairings, Record, RecordError};
use crate::sealed::{SealedParts, SealedRoom, SealedRun};
use crate::trust::{actor_of, require_owner};
use crate::waiters::{Handover, Waiters};

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

/// Everything that was opened on disk.
struct Opened {
    identity: threadline_net::OpenedIdentity,
    store: Store,
    machine: Option<MachineLimits>,
    profiles: Arc<Record<Profiles>>,
    nicknames: Arc<Record<Nicknames>>,
    controls: Arc<Record<Controls>>,
    pairings: Arc<Record<Pairings>>,
    known_agents: Arc<Record<KnownAgents>>,
    own_token: Option<String>,
    audit: AuditLog,
    set_aside: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Identity(#[from] IdentityFileError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Audit(#[from] crate::audit::AuditError),
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
                json!({
                    "status": if configured && !link.is_connected() { "degraded" } else { "ok" },
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

    /// `GET /threadline/approvals`
    pub async fn approvals(
        &self,
        status: Option<ApprovalStatus>,
        kind: Option<ApprovalKind>,
    ) -> Result<Value, ServiceError> {
        let core = self.core()?;
        let approvals = core.store.approvals(status, kind, 500).await.map_err(|e| internal(&e))?;
        let mut rows = Vec::with_capacity(approvals.len());
        for approval in approvals {
            let name = core.name_of(&approval.peer).await;
            let mut row = json!(approval);
            row["peerName"] = json!(name);
            rows.push(row);
        }
        Ok(json!({"count": rows.len(), "approvals": rows}))
    }

    /// `POST /threadline/approvals/:id/approve` and `/reject`: the owner only.
    pub async fn decide(&self, caller: &Caller, id: &str, decision: Decision) -> Result<Value, ServiceError> {
        self.core()?.decide(caller, id, decision).await
    }

    /// `POST /threadline/invitations`: the owner only. `recipient` is any form of an address that a send takes.
    pub async fn issue_invitation(
        &self,
        caller: &Caller,
        mut wish: Wish,
        recipient: Option<&str>,
    ) -> Result<Value, ServiceError> {
        require_owner(caller, "inviting an agent")?;
        let core = self.core()?;
        if let Some(recipient) = recipient {
            wish.recipient = Some(core.resolve_target(recipient).await?.fingerprint);
        }
        core.issue_invitation(caller, wish).await
    }

    /// `GET /threadline/invitations`: ours, and those of others that the owner accepted.
    pub async fn invitations(&self) -> Result<Value, ServiceError> {
        self.core()?.invitations().await
    }

    /// `DELETE /threadline/invitations/:id`: `id` may be the beginning of one.
    pub async fn revoke_invitation(
        &self,
        caller: &Caller,
        id: &str,
        also_trust: bool,
    ) -> Result<Value, ServiceError> {
        self.core()?.revoke_invitation(caller, id, also_trust).await
    }

    /// `POST /threadline/invitations/accept`: the owner only.
    pub async fn accept_invitation(&self, caller: &Caller, token: &str) -> Result<Value, ServiceError> {
        self.core()?.accept_invitation(caller, token).await
    }

    /// `POST /messages/relay-agent`: `token` is the bearer token of the request.
    pub async fn relay_agent(&self, token: Option<&str>, body: &[u8]) -> WireAnswer {
        match &self.core {
            Ok(core) => core.relay_agent(token, body).await,
            Err(refusal) => WireAnswer { status: 503, body: json!({"ok": false, "error": refusal.message}) },
        }
    }

    /// `POST /threadline/handshake/hello`: `source` is the caller's address.
    pub async fn handshake_hello(&self, source: &str, body: &[u8]) -> WireAnswer {
        match &self.core {
            Ok(core) => core.handshake_hello(source, body).await,
            Err(refusal) => refusal.on_the_wire(),
        }
    }

    /// `POST /threadline/handshake/confirm`
    pub async fn handshake_confirm(&self, body: &[u8]) -> WireAnswer {
        match &self.core {
            Ok(core) => core.handshake_confirm(body).await,
            Err(refusal) => refusal.on_the_wire(),
        }
    }

    /// `POST /threadline/messages/receive`
    pub async fn receive_signed(
        &self,
        headers: Result<SignedHeaders, TlError>,
        request: SignedRequest<'_>,
    ) -> WireAnswer {
        match &self.core {
            Ok(core) => core.receive_signed(headers, request).await,
            Err(refusal) => refusal.on_the_wire(),
        }
    }

    /// `GET /threadline/messages/thread/:id`
    pub async fn thread_signed(
        &self,
        headers: Result<SignedHeaders, TlError>,
        request: SignedRequest<'_>,
        thread: &str,
        limit: Option<u32>,
        before: Option<i64>,
    ) -> WireAnswer {
        match &self.core {
            Ok(core) => core.thread_signed(headers, request, thread, limit, before).await,
            Err(refusal) => refusal.on_the_wire(),
        }
    }

    /// `POST /threadline/pairings`: the owner only.
    pub async fn pair(&self, caller: &Caller, base: &str) -> Result<Value, ServiceError> {
        self.core()?.pair(caller, base).await
    }

    /// `GET /threadline/pairings`
    pub fn pairings(&self) -> Result<Value, ServiceError> {
        Ok(self.core()?.pairings())
    }

    /// `POST /threadline/pairings/:name/confirm`: the owner only.
    pub async fn confirm_pairing(&self, caller: &Caller, name: &str) -> Result<Value, ServiceError> {
        self.core()?.confirm_pairing(caller, name).await
    }

    /// `DELETE /threadline/pairings/:name`
    pub async fn remove_pairing(&self, name: &str) -> Result<Value, ServiceError> {
        self.core()?.remove_pairing(name).await
    }

    /// `GET /threadline/threads`: `cursor` is the one of an earlier answer.
    pub async fn threads(
        &self,
        peer: Option<&str>,
        state: Option<ThreadState>,
        limit: u32,
        cursor: Option<i64>,
    ) -> Result<Value, ServiceError> {
        let peer = peer.map(fingerprint).transpose()?;
        self.core()?.threads(peer, state, limit, cursor).await
    }

    /// `GET /threadline/threads/:id`: the thread with its newest messages.
    pub async fn thread(&self, caller: &Caller, request: HistoryRequest) -> Result<Value, ServiceError> {
        let core = self.core()?;
        let key = core.find_thread(caller, &request.thread_id, request.peer.as_deref()).await?;
        let mut thread = core.one_thread(key).await?;
        thread["history"] = core.history(caller, request).await?;
        Ok(thread)
    }

    /// `DELETE /threadline/threads/:id`
    pub async fn delete_thread(
        &self,
        caller: &Caller,
        request: DeleteRequest,
    ) -> Result<Value, ServiceError> {
        self.core()?.delete(caller, request).await
    }

    /// `POST /threadline/threads/:id/pin` and `/unpin`
    pub async fn pin_thread(
        &self,
        caller: &Caller,
        thread: &str,
        peer: Option<&str>,
        pinned: bool,
    ) -> Result<Value, ServiceError> {
        let core = self.core()?;
        let key = core.find_thread(caller, thread, peer).await?;
        core.pin_thread(key, pinned).await
    }

    /// `POST /threadline/threads/:id/resolve`
    pub async fn resolve_thread(
        &self,
        caller: &Caller,
        thread: &str,
        peer: Option<&str>,
    ) -> Result<Value, ServiceError> {
        let core = self.core()?;
        let key = core.find_thread(caller, thread, peer).await?;
        core.resolve_thread(key).await
    }

    /// `GET /messages/inbox`: newest messages of all peers.
    pub async fn inbox(&self, limit: u32) -> Result<Value, ServiceError> {
        self.core()?.recent(Direction::In, limit).await
    }

    /// `GET /messages/outbox`: newest messages to all peers.
    pub async fn outbox(&self, limit: u32) -> Result<Value, ServiceError> {
        self.core()?.recent(Direction::Out, limit).await
    }

    /// `GET /threadline/observability/search`
    pub async fn search(&self, query: &str, limit: u32) -> Result<Value, ServiceError> {
        self.core()?.search(query, limit).await
    }

    /// `POST /threadline/authorize`: one tool call of a session that serves a peer.
    pub async fn authorize(
        &self,
        session: &str,
        tool: &str,
        input: &Value,
    ) -> Result<Authorization, ServiceError> {
        self.core()?.authorize(session, tool, input).await
    }

    /// `GET /threadline/peers/health`, of one peer where given.
    pub async fn peers_health(&self, peer: Option<&str>) -> Result<Value, ServiceError> {
        let core = self.core()?;
        let health = core.store.delivery_health(core.now()).await.map_err(|e| internal(&e))?;
        let Some(peer) = peer else { return Ok(json!({"count": health.len(), "peers": health})) };
        let peer = fingerprint(peer)?;
        let found = health.into_iter().find(|h| h.fingerprint == peer);
        found.map(|h| json!(h)).ok_or_else(|| {
            ServiceError::new("agent-not-found", format!("no messages were exchanged with {peer}"))
        })
    }

    /// `GET /threadline/audit`: newest first, at most 500.
    pub async fn audit(
        &self,
        limit: usize,
        action: Option<String>,
        subject: Option<String>,
    ) -> Result<Value, ServiceError> {
        let entries = self.core()?.audit.entries(limit.clamp(1, 500), action, subject).await;
        let entries = entries.map_err(|e| ServiceError::new("audit-unreadable", e.to_string()))?;
        Ok(json!({"count": entries.len(), "entries": entries}))
    }

    /// `GET /threadline/audit/verify`
    pub async fn audit_verify(&self) -> Result<Value, ServiceError> {
        let report = self.core()?.audit.verify().await;
        let report = report.map_err(|e| ServiceError::new("audit-unreadable", e.to_string()))?;
        Ok(json!({
            "valid": report.is_valid(),
            "entries": report.head.count,
            "brokenAt": report.broken.as_ref().map(|b| b.broken_at),
            "error": report.broken.as_ref().map(|b| b.error.clone()),
            "anchorsChecked": report.anchors_checked,
        }))
    }

    /// `GET /threadline/limits`
    pub fn limits(&self) -> Result<Value, ServiceError> {
        Ok(json!(self.core()?.config().limits))
    }

    /// `POST /threadline/limits/reset`: of one peer, or of all; the owner only.
    pub async fn reset_limits(&self, caller: &Caller, peer: Option<&str>) -> Result<Value, ServiceError> {
        require_owner(caller, "resetting limits")?;
        let core = self.core()?;
        let key = peer.map(fingerprint).transpose()?.map(|p| p.to_string());
        let forgotten = core.store.reset_events(key).await.map_err(|e| internal(&e))?;
        core.ingest_wake.notify_one();
        Ok(json!({"forgotten": forgotten}))
    }

    /// `POST /threadline/relay/enable` and `/disable`
    pub async fn switch_relay(
        &self,
        caller: &Caller,
        enabled: bool,
        visibility: Option<String>,
    ) -> Result<Value, ServiceError> {
        let action = if enabled { RelayAction::Enable } else { RelayAction::Disable };
        self.core()?.relay(caller, RelayRequest { action, visibility }).await
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

/// Opens everything on disk. Blocks.
fn open_files(
    paths: &AgentPaths,
    passphrase: Option<&Secret<String>>,
    machine: Option<MachineLimits>,
    files: &SharedFiles,
    name: Option<&AgentName>,
) -> Result<Opened, OpenError> {
    let now = instar_state::time::now_ms();
    let passphrase = passphrase.map(|p| p.expose().as_str());
    let identity = open_identity(paths.state(), passphrase, Minting::WithoutRecovery, now)?;
    let store = Store::open(&paths.threadline_db())?;
    let dir = paths.threadline();
    let profiles = Record::open(&dir.join("trust-profiles.json"), Profiles::default(), now)?;
    let nicknames = Record::open(&dir.join("nicknames.json"), Nicknames::default(), now)?;
    let controls = Record::open(&dir.join("agent-controls.json"), Controls::restrictive(), now)?;
    let pairings = Record::open(&dir.join("relay-tokens.json"), Pairings::default(), now)?;
    let known_agents = Record::open(&dir.join("known-agents.json"), KnownAgents::default(), now)?;
    let own_token = name.and_then(|name| match files.own_token(name) {
        Ok(token) => Some(token),
        Err(error) => {
            tracing::warn!(%error, "without a token file no agent of this host can write here");
            None
        }
    });
    let audit = AuditLog::open(&dir, Arc::new(identity.identity.clone()), now)?;
    let set_aside = [
        profiles.set_aside,
        nicknames.set_aside,
        controls.set_aside,
        pairings.set_aside,
        known_agents.set_aside,
    ]
    .into_iter()
    .flatten()
    .collect();
    Ok(Opened {
        identity,
        store,
        machine,
        profiles: profiles.record,
        nicknames: nicknames.record,
        controls: controls.record,
        pairings: pairings.record,
        known_agents: known_agents.record,
        own_token,
        audit,
        set_aside,
    })
}

/// The counters that the agents of the account share. A damaged file begins anew; without one, only this agent's own
/// limits hold. Blocks.
fn open_machine_limits(path: &Path, notices: &SharedNotices) -> Option<MachineLimits> {
    if let Some(dir) = path.parent()
        && let Err(error) = create_dir_private(dir)
    {
        tracing::warn!(%error, dir = %dir.display(), "directory was not made");
    }
    let mut opened = MachineLimits::open(path);
    if let Err(DatabaseError::Corrupt { .. }) = &opened
        && instar_durable::set_aside(path, instar_state::time::now_ms()).is_ok()
    {
        opened = MachineLimits::open(path);
    }
    match opened {
        Ok(limits) => {
            notices.resolve("machine_limits");
            Some(limits)
        }
        Err(error) => {
            let reason = format!("The limit of all agents of this account together does not hold: {error}");
            notices.degrade("machine_limits", &reason);
            None
        }
    }
}

impl Refusal {
    /// The refusal in the shape of the HTTP carrier.
    fn on_the_wire(&self) -> WireAnswer {
        let error = TlError::new(TlCode::InternalError, self.message.clone()).status(503).retry_after(60);
        WireAnswer { status: error.status, body: error.body() }
    }
}

fn refusal_of(error: &OpenError) -> Refusal {
    let code = match error {
        OpenError::Identity(IdentityFileError::Identity(
            IdentityError::Locked | IdentityError::WrongPassphrase,
        )) => "locked",
        OpenError::Identity(IdentityFileError::Identity(error)) => error.code(),
        OpenError::Store(StoreError::Database(DatabaseError::SchemaTooNew { .. })) => "state-too-new",
        _ => "unavailable",
    };
    Refusal { code, message: error.to_string() }
}
