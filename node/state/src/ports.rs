//! What one room of the node needs from another, as small traits joined in the composition root.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::BoxFuture;
use crate::ids::{ConversationKey, SessionId};

/// Input for a session: one durable row of `session_inbox` (`agent-core.md` §6.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInput {
    /// `<source>:<id>`; the same key always yields the same row (`adapters.md` §5).
    pub inbox_key: String,
    /// Conversation that the row belongs to, whatever session serves it.
    pub conversation: ConversationKey,
    /// Who speaks.
    pub kind: InputKind,
    /// Text without the tag; the session room puts the tag with the ULID before it.
    pub body: String,
    /// Text of the tag between `[` and the ULID, for example `threadline:<thread> from <fp8> "name"`.
    pub tag: String,
    /// Goes before waiting rows and interrupts a running turn.
    pub steer: bool,
}

/// Author class of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputKind {
    /// A person.
    User,
    /// The node itself.
    System,
    /// Another agent.
    Agent,
}

/// What a session that serves a peer may do, and for whom (`threadline-agent.md` §4.5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerBinding {
    /// Peer fingerprint, 32 hex digits.
    pub peer: String,
    /// Thread id.
    pub thread: String,
    /// Exact tool names and rules for `--allowedTools`; the launch line is strict and never bypasses permissions.
    pub allowed_tools: Vec<String>,
}

/// A session that the mesh wants for a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSessionSpec {
    /// Conversation that the session will serve; its queued rows are its first input.
    pub conversation: ConversationKey,
    /// Name for people.
    pub name: String,
    /// The firewall of this session.
    pub binding: PeerBinding,
    /// Model tier or id; the runtime's default if absent.
    pub model: Option<String>,
    /// Proof of life that the supervisor writes (`threadline-agent.md` §11.5).
    pub heartbeat: Option<HeartbeatSpec>,
}

/// Secret and place of a supervisor's heartbeat file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeartbeatSpec {
    /// Ledger event.
    pub event_id: String,
    /// Thread id.
    pub thread_id: String,
    /// 32 random bytes, hex.
    pub nonce: String,
    /// File that is replaced every 10 s.
    pub file: std::path::PathBuf,
}

impl std::fmt::Debug for HeartbeatSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeartbeatSpec").field("event_id", &self.event_id).finish_non_exhaustive()
    }
}

/// A session that is starting or running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveSession {
    /// The node's id.
    pub id: SessionId,
    /// Whether it is ready and not in a turn.
    pub idle: bool,
    /// Process id of the runtime, once it runs.
    pub child_pid: Option<i32>,
}

/// Why a session was not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpawnRefused {
    /// All slots are taken.
    #[error("all {max} session slots are in use")]
    SessionLimit {
        /// The limit.
        max: usize,
    },
    /// The runtime's program is missing or refuses to run here.
    #[error("{0}")]
    RuntimeMissing(String),
    /// Nothing is started before a time, whatever is asked for.
    #[error("{reason}")]
    Paused {
        /// When, Unix milliseconds.
        until_ms: i64,
        /// Why.
        reason: String,
    },
    /// Anything else on our side.
    #[error("{0}")]
    Failed(String),
}

/// Sessions as the mesh sees them.
pub trait PeerSessions: Send + Sync {
    /// Makes the input durable and wakes its session if one lives. Returns the row's ULID.
    fn enqueue(&self, input: SessionInput) -> BoxFuture<'_, Result<Ulid, String>>;

    /// The live session of a conversation.
    fn live(&self, conversation: &ConversationKey) -> Option<LiveSession>;

    /// Memory in use, percent; 0 where it cannot be known.
    fn memory_percent(&self) -> u8;

    /// Starts a session for the conversation, resuming its transcript where one exists. A live session is returned
    /// as it is.
    fn start(&self, spec: PeerSessionSpec) -> BoxFuture<'_, Result<SessionId, SpawnRefused>>;

    /// A reply to this conversation went out: closes its open rows up to `inbox_key`, or all of them.
    fn replied(&self, conversation: &ConversationKey, inbox_key: Option<&str>) -> BoxFuture<'_, ()>;

    /// State of a row by inbox key; an error when it cannot be read, which says nothing about the row.
    fn input_state(&self, inbox_key: &str) -> BoxFuture<'_, Result<Option<InputState>, String>>;

    /// Gives up a row that is not answered: no session gets it any more.
    fn withdraw(&self, inbox_key: &str) -> BoxFuture<'_, ()>;

    /// Ends a session: graceful, then by force.
    fn end(&self, id: &SessionId, reason: &str) -> BoxFuture<'_, ()>;

    /// Marks a session as having read a peer's text.
    fn taint(&self, id: &SessionId) -> BoxFuture<'_, ()>;

    /// Takes back what waits in this conversation or was given without an answer, and forgets its texts: no session
    /// gets it (again).
    fn retract(&self, conversation: &ConversationKey, reason: &str) -> BoxFuture<'_, ()>;

    /// Resolves after any session started, became idle or ended, or a row changed state.
    fn changed(&self) -> BoxFuture<'_, ()>;
}

/// State of one row of `session_inbox`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputState {
    /// Stored, waiting for a session.
    Queued,
    /// The runtime has it, proven by the ULID coming back.
    Injected,
    /// Answered.
    Acked,
    /// Given up.
    Failed,
    /// Too old.
    Expired,
}

/// Something the owner should hear. In this build notices go to the log, `instar status` and the event stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// One notice per cause; repeated causes are counted.
    pub cause: String,
    /// One sentence.
    pub text: String,
    /// Whether it needs attention now.
    pub urgent: bool,
}

/// Where notices and degradations go.
pub trait Notices: Send + Sync {
    /// Tells the owner, once per cause.
    fn notify(&self, notice: Notice);

    /// Opens (or counts) a degradation: a feature that does not work as configured.
    fn degrade(&self, code: &str, reason: &str);

    /// Closes a degradation.
    fn resolve(&self, code: &str);
}

/// Shared form of [`Notices`].
pub type SharedNotices = Arc<dyn Notices>;
