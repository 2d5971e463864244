//! What the owner may set about sessions, as plain data.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::record::{SessionKind, Transport};

/// The `sessions.*` keys of `config.json`, and the mesh's own cap (`agent-core.md` §2.2).
#[derive(Debug, Clone)]
pub struct SessionsConfig {
    /// `sessions.maxSessions`, 1–100: sessions that nobody waits in front of may live at once.
    pub max_sessions: usize,
    /// `sessions.humanFactor`, 1–10: a person's session starts while fewer than this times `max_sessions` live.
    pub human_factor: usize,
    /// `sessions.reserveForHuman`: slots of `max_sessions` that only persons get.
    pub reserve_for_human: usize,
    /// `threadline.sessions.maxActive`: live sessions that serve peers.
    pub max_peer_sessions: usize,
    /// `sessions.protectedSessions`: names that only an explicit force ends.
    pub protected: Vec<String>,
    /// `sessions.idlePromptKillMinutes`, 1–1440.
    pub idle_minutes: u32,
    /// `sessions.idlePromptKillMinutesBoundToTopic`.
    pub idle_minutes_bound: u32,
    /// `sessions.defaultMaxDurationMinutes`, 1–10080.
    pub max_duration_minutes: u32,
    /// `sessions.transport` by kind.
    pub transport: BTreeMap<SessionKind, Transport>,
    /// `sessions.models.claude-code`: tier to model id.
    pub models: BTreeMap<String, String>,
    /// `sessions.defaultModel.claude-code`: tier or id.
    pub default_model: Option<String>,
    /// `sessions.permissionMode`.
    pub permission_mode: PermissionMode,
    /// `sessions.allowedTools`: rules for [`PermissionMode::DontAsk`].
    pub allowed_tools: Vec<String>,
    /// `sessions.extraArgs.claude-code`, appended to the launch line.
    pub extra_args: Vec<String>,
    /// `sessions.envAllow`: further names of the node's environment that sessions may see.
    pub env_allow: Vec<String>,
    /// `sessions.allowRoot`: as root, tell the runtime that it runs in a sandbox.
    pub allow_root: bool,
    /// `sessions.tmuxPath`; looked up in `PATH` if absent.
    pub tmux_path: Option<PathBuf>,
    /// `sessions.claudePath`; looked up in `PATH` if absent.
    pub claude_path: Option<PathBuf>,
    /// `sessions.credentials.anthropic`; the runtime's own login if absent.
    pub anthropic: Option<Credential>,
}

impl Default for SessionsConfig {
    fn default() -> Self {
        let tiers = [("fast", "haiku"), ("balanced", "sonnet"), ("capable", "opus")];
        Self {
            max_sessions: 10,
            human_factor: 3,
            reserve_for_human: 1,
            max_peer_sessions: 3,
            protected: Vec::new(),
            idle_minutes: 15,
            idle_minutes_bound: 240,
            max_duration_minutes: 240,
            transport: BTreeMap::from([(SessionKind::Conversation, Transport::Tmux)]),
            models: tiers.map(|(tier, id)| (tier.to_owned(), id.to_owned())).into(),
            default_model: None,
            permission_mode: PermissionMode::Bypass,
            allowed_tools: Vec::new(),
            extra_args: Vec::new(),
            env_allow: Vec::new(),
            allow_root: false,
            tmux_path: None,
            claude_path: None,
            anthropic: None,
        }
    }
}

impl SessionsConfig {
    /// Transport of a kind: as configured, else stdio.
    pub fn transport_of(&self, kind: SessionKind) -> Transport {
        self.transport.get(&kind).copied().unwrap_or(Transport::Stdio)
    }
}

/// Who decides about tool calls of the agent's own sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PermissionMode {
    /// The runtime asks nobody; the hooks decide.
    Bypass,
    /// The runtime allows what is listed and denies the rest.
    DontAsk,
}

/// How the runtime proves itself to its model provider.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// Kind of the secret.
    pub kind: CredentialKind,
    /// The secret.
    pub value: String,
    /// Another address of the provider's API.
    pub base_url: Option<String>,
}

/// Kind of a provider secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialKind {
    /// Token of a subscription.
    OauthToken,
    /// Key of an API account.
    ApiKey,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("kind", &self.kind).finish_non_exhaustive()
    }
}
