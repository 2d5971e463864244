//! What handlers share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use instar_hooks::HookReport;
use instar_mesh::Mesh;
use instar_sessions::Sessions;
use instar_state::answers::Answers;
use instar_state::ids::SessionId;
use instar_state::time::now_ms;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::ApiError;
use crate::guard::same_digest;
use crate::idempotency::Underway;
use crate::proof::{PinCheck, Proofs};
use crate::rate::{Limits, RateLimiter};

/// Facts that are known before any room is open.
#[derive(Clone)]
pub struct ApiSettings {
    /// Name of the agent, compared with `X-Instar-AgentId`.
    pub agent_name: String,
    /// Project directory, for `/whoami` and `/status`.
    pub project_dir: String,
    /// Version of the binary.
    pub version: &'static str,
    /// Random id of this run of the node.
    pub boot_id: String,
    /// TCP port.
    pub port: u16,
    /// SHA-256 of the agent token.
    pub agent_token_hash: [u8; 32],
    /// Time allowed for an answer where a route names no other.
    pub request_timeout: Duration,
    /// Requests that callers may make.
    pub limits: Limits,
    /// Checks the owner's PIN.
    pub pin: PinCheck,
    /// File that keeps the tries of the PIN over a restart.
    pub pin_tries: PathBuf,
    /// Live facts of the composition root for `/status` and `/health`.
    pub facts: Arc<dyn NodeFacts>,
}

/// What the composition root knows and routes show.
pub trait NodeFacts: Send + Sync {
    /// Open degradations, newest first: `{id, code, reason, count, firstAt, lastAt}` each.
    fn degradations(&self) -> Vec<Value>;
    /// Notices for the owner, newest first.
    fn notices(&self) -> Vec<Value>;
    /// Supervised tasks: `{id, state, since, detail}` each.
    fn subsystems(&self) -> Vec<Value>;
    /// Configuration paths that wait for a restart.
    fn restart_needed(&self) -> Vec<String>;
    /// Entries of the account's agent registry.
    fn agents(&self) -> Vec<Value>;
    /// Effective configuration with secrets masked.
    fn config(&self) -> Value;
    /// Records one firing of the hook program.
    fn record_hook(&self, report: &HookReport);
    /// Every hook: `{name, installed, enabled, lastFired, p50, p99, blocks, …}` each.
    fn hook_status(&self) -> instar_state::BoxFuture<'_, Vec<Value>>;
    /// Text that a hook injects at the start of a session.
    fn boot_context(&self, request: BootContext) -> instar_state::BoxFuture<'_, Result<Value, ApiError>>;
    /// Text that a hook injects with a prompt.
    fn turn_context(&self, request: TurnContext) -> Value;
}

/// Query of `GET /context/boot`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootContext {
    /// `identity` or `conversation`.
    pub part: String,
    /// Session that asks.
    pub session: Option<String>,
    /// Its conversation.
    pub conversation: Option<String>,
    /// Set after a compaction.
    #[serde(default)]
    pub compact: bool,
}

/// Query of `GET /context/turn`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnContext {
    /// Conversation named by the prompt's tag.
    pub conversation: Option<String>,
    /// Session that asks.
    pub session: Option<String>,
}

/// The rooms behind the routes, present once the node has recovered its state.
#[derive(Clone)]
pub struct Rooms {
    /// Runtime processes.
    pub sessions: Sessions,
    /// The mesh.
    pub mesh: Arc<Mesh>,
    /// Answers given under an `Idempotency-Key`.
    pub answers: Answers,
}

/// Shared state of all handlers; cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    inner: Arc<Inner>,
}

struct Inner {
    settings: ApiSettings,
    started: Instant,
    rooms: OnceLock<Rooms>,
    draining: AtomicBool,
    rates: RateLimiter,
    proofs: Proofs,
    underway: Underway,
}

impl ApiState {
    /// State of a node that is booting: only health answers until [`ApiState::ready`].
    pub fn new(settings: ApiSettings) -> Self {
        let proofs = Proofs::new(Arc::clone(&settings.pin), settings.pin_tries.clone(), now_ms());
        let rates = RateLimiter::new(settings.limits);
        Self {
            inner: Arc::new(Inner {
                settings,
                started: Instant::now(),
                rooms: OnceLock::new(),
                draining: AtomicBool::new(false),
                rates,
                proofs,
                underway: Underway::default(),
            }),
        }
    }

    /// Opens all routes. A second call changes nothing.
    pub fn ready(&self, rooms: Rooms) {
        let _ = self.inner.rooms.set(rooms);
    }

    /// From now on health answers 503 `draining`.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.inner.rooms.get().is_some()
    }

    pub(crate) fn rooms(&self) -> Result<&Rooms, ApiError> {
        self.inner.rooms.get().ok_or_else(|| self.booting())
    }

    #[allow(clippy::unused_self, reason = "reads like the other refusals of this state")]
    pub(crate) fn booting(&self) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "booting", "the node is starting").retry_after_ms(1000)
    }

    pub(crate) fn settings(&self) -> &ApiSettings {
        &self.inner.settings
    }

    pub(crate) fn agent_name(&self) -> &str {
        &self.inner.settings.agent_name
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.inner.started.elapsed()
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.inner.settings.request_timeout
    }

    pub(crate) fn rates(&self) -> &RateLimiter {
        &self.inner.rates
    }

    pub(crate) fn proofs(&self) -> &Proofs {
        &self.inner.proofs
    }

    pub(crate) fn underway(&self) -> &Underway {
        &self.inner.underway
    }

    pub(crate) fn is_agent_token(&self, token: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        same_digest(&digest, &self.inner.settings.agent_token_hash)
    }

    pub(crate) fn session_of_token(&self, token: &str) -> Option<SessionId> {
        self.inner.rooms.get()?.sessions.authenticate(token).map(|caller| caller.id)
    }

    /// The session that a process belongs to. Reads `/proc`, so it runs on a blocking thread.
    pub(crate) async fn session_of_process(&self, pid: i32) -> Option<SessionId> {
        let sessions = self.inner.rooms.get()?.sessions.clone();
        tokio::task::spawn_blocking(move || sessions.is_session_process(pid)).await.ok()?
    }

    pub(crate) fn session_named(&self, id_or_name: &str) -> Option<SessionId> {
        Some(self.inner.rooms.get()?.sessions.find(id_or_name).ok()?.id)
    }
}

impl FromRequestParts<ApiState> for Rooms {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        state.rooms().cloned()
    }
}
