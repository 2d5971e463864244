//! What a node offers its sessions, its command line and its network doors: the eleven tools as one trait.
//!
//! Two implementations exist: the mesh room in process, and the client of the node's socket. Requests and results
//! are the tools' own JSON (`threadline-agent.md` §15); field names are camelCase as there.

mod limits;

use std::future::Future;
use std::pin::Pin;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use limits::{MAX_MESSAGE_BYTES, MAX_PURPOSE_CHARS, TIMEOUT_SECONDS};

use crate::{Fingerprint, MessageId, ThreadId, ThreadKey, TrustLevel};

/// A future that can be stored and sent between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Scope of a network token (`threadline-agent.md` §15).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// `threadline:discover`
    #[serde(rename = "threadline:discover")]
    Discover,
    /// `threadline:send`
    #[serde(rename = "threadline:send")]
    Send,
    /// `threadline:read`
    #[serde(rename = "threadline:read")]
    Read,
    /// `threadline:admin`, which implies the others.
    #[serde(rename = "threadline:admin")]
    Admin,
}

/// Who makes a call. It travels with the call and is never kept in shared server state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// The owner, proven by a user-verified actor for this very request.
    Owner,
    /// A process of this account over the node's socket, or the agent token. Not the owner.
    Local,
    /// A session of this node.
    Session(SessionCaller),
    /// A client of the MCP listener.
    Network(NetworkCaller),
}

/// A session of this node as a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionCaller {
    /// The node's session id.
    pub id: String,
    /// Set for a session that serves a peer: the one thread it may read and answer.
    pub bound: Option<ThreadKey>,
    /// Whether text of a peer ever reached this session.
    pub tainted: bool,
}

/// A client of the MCP listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkCaller {
    /// Id of its token (`mcp_` and 16 hex digits).
    pub token_id: String,
    /// What the token allows.
    pub scopes: Vec<Scope>,
    /// The one peer whose threads it may read and write, if the token is bound.
    pub peer: Option<Fingerprint>,
}

impl Caller {
    /// Whether the caller's credential carries `scope`. Local callers carry all; what only the owner may do is
    /// decided elsewhere.
    pub fn has_scope(&self, scope: Scope) -> bool {
        match self {
            Self::Network(caller) => caller.scopes.contains(&scope) || caller.scopes.contains(&Scope::Admin),
            Self::Owner | Self::Local | Self::Session(_) => true,
        }
    }
}

/// A refused or failed call, in the one shape of tools, routes and command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct ServiceError {
    /// Machine-readable, kebab-case (`agent-not-found`, `rate-limited`, …).
    pub code: String,
    /// One sentence for a person.
    pub message: String,
    /// Whether the same call may succeed later.
    pub retryable: bool,
    /// Earliest useful retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
    /// Further facts, such as `candidates`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Value>>,
}

impl ServiceError {
    /// A final refusal.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            retryable: false,
            retry_after_seconds: None,
            details: None,
        }
    }

    /// A refusal that may pass later.
    pub fn retry(code: &str, message: impl Into<String>, after_seconds: Option<u64>) -> Self {
        Self { retryable: true, retry_after_seconds: after_seconds, ..Self::new(code, message) }
    }

    /// Adds facts.
    #[must_use]
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(Box::new(details));
        self
    }
}

/// The tools by name, in the order of `threadline-agent.md` §15.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tool {
    /// `threadline_discover`
    ThreadlineDiscover,
    /// `threadline_send`
    ThreadlineSend,
    /// `threadline_history`
    ThreadlineHistory,
    /// `threadline_agents`
    ThreadlineAgents,
    /// `threadline_delete`
    ThreadlineDelete,
    /// `threadline_trust`
    ThreadlineTrust,
    /// `threadline_relay`
    ThreadlineRelay,
    /// `threadline_registry_search`
    ThreadlineRegistrySearch,
    /// `threadline_registry_update`
    ThreadlineRegistryUpdate,
    /// `threadline_registry_status`
    ThreadlineRegistryStatus,
    /// `threadline_registry_get`
    ThreadlineRegistryGet,
}

impl Tool {
    /// All eleven.
    pub const ALL: [Self; 11] = [
        Self::ThreadlineDiscover,
        Self::ThreadlineSend,
        Self::ThreadlineHistory,
        Self::ThreadlineAgents,
        Self::ThreadlineDelete,
        Self::ThreadlineTrust,
        Self::ThreadlineRelay,
        Self::ThreadlineRegistrySearch,
        Self::ThreadlineRegistryUpdate,
        Self::ThreadlineRegistryStatus,
        Self::ThreadlineRegistryGet,
    ];

    /// Name as a client sees it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ThreadlineDiscover => "threadline_discover",
            Self::ThreadlineSend => "threadline_send",
            Self::ThreadlineHistory => "threadline_history",
            Self::ThreadlineAgents => "threadline_agents",
            Self::ThreadlineDelete => "threadline_delete",
            Self::ThreadlineTrust => "threadline_trust",
            Self::ThreadlineRelay => "threadline_relay",
            Self::ThreadlineRegistrySearch => "threadline_registry_search",
            Self::ThreadlineRegistryUpdate => "threadline_registry_update",
            Self::ThreadlineRegistryStatus => "threadline_registry_status",
            Self::ThreadlineRegistryGet => "threadline_registry_get",
        }
    }

    /// Tool with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| tool.name() == name)
    }

    /// Scope that a network token needs.
    pub const fn scope(self) -> Scope {
        match self {
            Self::ThreadlineDiscover
            | Self::ThreadlineAgents
            | Self::ThreadlineRegistrySearch
            | Self::ThreadlineRegistryStatus
            | Self::ThreadlineRegistryGet => Scope::Discover,
            Self::ThreadlineSend | Self::ThreadlineRegistryUpdate => Scope::Send,
            Self::ThreadlineHistory => Scope::Read,
            Self::ThreadlineDelete | Self::ThreadlineTrust | Self::ThreadlineRelay => Scope::Admin,
        }
    }

    /// Whether the tool exists only while a registry is reachable.
    pub const fn needs_registry(self) -> bool {
        matches!(
            self,
            Self::ThreadlineRegistrySearch
                | Self::ThreadlineRegistryUpdate
                | Self::ThreadlineRegistryStatus
                | Self::ThreadlineRegistryGet
        )
    }
}

/// Where to look for agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiscoverScope {
    /// Agents of this machine, asked now.
    #[default]
    Local,
    /// Also relay presence and directory.
    Network,
}

/// Arguments of `threadline_discover`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiscoverRequest {
    /// Where to look.
    #[serde(default)]
    pub scope: DiscoverScope,
    /// Capability slug or slug prefix, ≤ 64 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<String>,
    /// Words, ≤ 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// 1 to 100, default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Arguments of `threadline_send`, and of `POST /threadline/relay-send` (`threadline-agent.md` §12.1), where
/// `agentId` is called `targetAgent`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SendRequest {
    /// Fingerprint, `name:prefix`, nickname or name.
    #[serde(alias = "targetAgent")]
    pub agent_id: String,
    /// Text, non-blank, ≤ 512 KiB; above 64 KiB only for agents that read sealed mail.
    pub message: String,
    /// Thread to continue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
    /// Open a new thread even if a recent one exists.
    #[serde(default)]
    pub new_thread: bool,
    /// Wait for the peer's reply; default true for tools.
    #[serde(default = "yes")]
    pub wait_for_reply: bool,
    /// 1 to 300, default 120.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Topic that asked; positive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_topic_id: Option<i64>,
    /// Why the message is sent, cut to 1,024 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// Message that this answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_reply_to: Option<String>,
    /// ≤ 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Payload type, default `chat`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Claimed priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    /// Repeating a call with the same key sends nothing twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Fail with `503` instead of queueing when no path is up.
    #[serde(default)]
    pub fail_if_offline: bool,
}

fn yes() -> bool {
    true
}

/// The agent that a target resolved to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedAgent {
    /// Display name.
    pub name: String,
    /// Its address.
    pub fingerprint: Fingerprint,
}

/// Result of a send (`threadline-agent.md` §12.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SendResult {
    /// Whether nothing failed so far.
    pub success: bool,
    /// Someone else now holds the message.
    pub accepted: bool,
    /// A session of the peer processed it.
    pub delivered: bool,
    /// `sent`, `queued`, `held`, `replied`, `rejected` or `failed`.
    pub outcome: String,
    /// Id on the wire.
    pub message_id: MessageId,
    /// Thread on the wire.
    pub thread_id: ThreadId,
    /// The target.
    pub resolved_agent: ResolvedAgent,
    /// `relay` or `queued` (`local` and `a2a` come with their paths).
    pub delivery_path: String,
    /// `e2e` or `transport`.
    pub encryption: String,
    /// The peer's answer, framed as external text.
    pub reply: Option<String>,
    /// Id of that answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_message_id: Option<MessageId>,
    /// Whether a topic is now linked to the thread.
    pub topic_linkage_stamped: bool,
    /// What to expect when waiting ended without a reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Arguments of `threadline_history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HistoryRequest {
    /// The thread.
    pub thread_id: String,
    /// 1 to 100, default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// RFC 3339 time or message id; only older messages are returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Needed when the id exists with two peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

/// Arguments of `threadline_agents`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentsRequest {
    /// Also those not seen now.
    #[serde(default)]
    pub include_offline: bool,
}

/// Arguments of `threadline_delete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeleteRequest {
    /// The thread.
    pub thread_id: String,
    /// Must be true.
    #[serde(default)]
    pub confirm: bool,
    /// Needed when the id exists with two peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Delete although a live session works on it.
    #[serde(default)]
    pub force: bool,
}

/// What `threadline_trust` is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrustAction {
    /// Set a level.
    Grant,
    /// Back to untrusted.
    Revoke,
    /// All profiles.
    List,
    /// One profile.
    Get,
    /// One profile with its audit entries.
    Audit,
    /// Drop everything from the peer.
    Block,
    /// Remove the block only.
    Unblock,
}

/// Arguments of `threadline_trust`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustRequest {
    /// What to do.
    pub action: TrustAction,
    /// Target by name, nickname or address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Target by fingerprint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Wanted level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<TrustLevel>,
    /// ≤ 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What `threadline_relay` is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RelayAction {
    /// State of link, registry and relay.
    Status,
    /// Switch on, live.
    Enable,
    /// Switch off, live.
    Disable,
    /// What all this is, in plain words.
    Explain,
}

/// Arguments of `threadline_relay`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RelayRequest {
    /// What to do.
    pub action: RelayAction,
    /// `public` or `unlisted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<String>,
}

/// Arguments of `threadline_registry_search`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistrySearchRequest {
    /// Full text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// Comma-separated slugs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<String>,
    /// Comma-separated slugs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interest: Option<String>,
    /// Only agents that are connected now.
    #[serde(default)]
    pub online_only: bool,
    /// 1 to 50, default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// From an earlier answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Arguments of `threadline_registry_update`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryUpdateRequest {
    /// Register or remove.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed: Option<bool>,
    /// `public` or `unlisted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<String>,
    /// https URL, ≤ 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub homepage: Option<String>,
    /// Whether others see the framework.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub framework_visible: Option<bool>,
    /// ≤ 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bio: Option<String>,
    /// ≤ 20 × 40 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interests: Option<Vec<String>>,
    /// Needed for `listed: false`.
    #[serde(default)]
    pub confirm: bool,
}

/// Arguments of `threadline_registry_get`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryGetRequest {
    /// 32 hex digits, or a prefix of at least 8.
    pub agent_id: String,
}

/// A validated call of one tool.
#[derive(Debug, Clone, PartialEq)]
pub enum ToolCall {
    /// `threadline_discover`
    Discover(DiscoverRequest),
    /// `threadline_send`
    Send(SendRequest),
    /// `threadline_history`
    History(HistoryRequest),
    /// `threadline_agents`
    Agents(AgentsRequest),
    /// `threadline_delete`
    Delete(DeleteRequest),
    /// `threadline_trust`
    Trust(TrustRequest),
    /// `threadline_relay`
    Relay(RelayRequest),
    /// `threadline_registry_search`
    RegistrySearch(RegistrySearchRequest),
    /// `threadline_registry_update`
    RegistryUpdate(RegistryUpdateRequest),
    /// `threadline_registry_status`
    RegistryStatus,
    /// `threadline_registry_get`
    RegistryGet(RegistryGetRequest),
}

impl ToolCall {
    /// Which tool is called.
    pub const fn tool(&self) -> Tool {
        match self {
            Self::Discover(_) => Tool::ThreadlineDiscover,
            Self::Send(_) => Tool::ThreadlineSend,
            Self::History(_) => Tool::ThreadlineHistory,
            Self::Agents(_) => Tool::ThreadlineAgents,
            Self::Delete(_) => Tool::ThreadlineDelete,
            Self::Trust(_) => Tool::ThreadlineTrust,
            Self::Relay(_) => Tool::ThreadlineRelay,
            Self::RegistrySearch(_) => Tool::ThreadlineRegistrySearch,
            Self::RegistryUpdate(_) => Tool::ThreadlineRegistryUpdate,
            Self::RegistryStatus => Tool::ThreadlineRegistryStatus,
            Self::RegistryGet(_) => Tool::ThreadlineRegistryGet,
        }
    }

    /// The arguments as JSON, which [`ToolCall::parse`] reads back.
    pub fn into_arguments(self) -> Value {
        let value = match self {
            Self::Discover(request) => serde_json::to_value(request),
            Self::Send(request) => serde_json::to_value(request),
            Self::History(request) => serde_json::to_value(request),
            Self::Agents(request) => serde_json::to_value(request),
            Self::Delete(request) => serde_json::to_value(request),
            Self::Trust(request) => serde_json::to_value(request),
            Self::Relay(request) => serde_json::to_value(request),
            Self::RegistrySearch(request) => serde_json::to_value(request),
            Self::RegistryUpdate(request) => serde_json::to_value(request),
            Self::RegistryStatus => return Value::Object(serde_json::Map::new()),
            Self::RegistryGet(request) => serde_json::to_value(request),
        };
        value.expect("requests are plain data with text keys")
    }

    /// Parses the arguments of `tool`. Unknown or mistyped arguments are refused with `invalid-arguments`, values
    /// beyond their limits with the codes of `threadline-agent.md` §15.
    pub fn parse(tool: Tool, arguments: Value) -> Result<Self, ServiceError> {
        fn args<T: serde::de::DeserializeOwned>(arguments: Value) -> Result<T, ServiceError> {
            let arguments =
                if arguments.is_null() { Value::Object(serde_json::Map::new()) } else { arguments };
            serde_json::from_value(arguments)
                .map_err(|e| ServiceError::new("invalid-arguments", e.to_string()))
        }
        let mut call = match tool {
            Tool::ThreadlineDiscover => Self::Discover(args(arguments)?),
            Tool::ThreadlineSend => Self::Send(args(arguments)?),
            Tool::ThreadlineHistory => Self::History(args(arguments)?),
            Tool::ThreadlineAgents => Self::Agents(args(arguments)?),
            Tool::ThreadlineDelete => Self::Delete(args(arguments)?),
            Tool::ThreadlineTrust => Self::Trust(args(arguments)?),
            Tool::ThreadlineRelay => Self::Relay(args(arguments)?),
            Tool::ThreadlineRegistrySearch => Self::RegistrySearch(args(arguments)?),
            Tool::ThreadlineRegistryUpdate => Self::RegistryUpdate(args(arguments)?),
            Tool::ThreadlineRegistryStatus => {
                let Empty {} = args(arguments)?;
                Self::RegistryStatus
            }
            Tool::ThreadlineRegistryGet => Self::RegistryGet(args(arguments)?),
        };
        limits::check(&mut call)?;
        Ok(call)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

/// The service behind the eleven tools.
pub trait Threadline: Send + Sync {
    /// Carries out one call for `caller`. The result is the tool's result object.
    fn call(&self, caller: Caller, call: ToolCall) -> BoxFuture<'_, Result<Value, ServiceError>>;

    /// Whether a registry is reachable now, so that the four registry tools exist.
    fn registry_available(&self) -> BoxFuture<'_, bool>;

    /// Resolves when [`Threadline::registry_available`] may have changed.
    fn registry_changed(&self) -> BoxFuture<'_, ()>;
}
