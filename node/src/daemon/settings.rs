//! From the one configuration to what each room is given.

use std::collections::BTreeMap;

use instar_hooks::snapshot::{self, HookConfig, SafetyLevel};
use instar_sessions::SessionsConfig;
use instar_sessions::config::{Credential, CredentialKind, PermissionMode};
use instar_sessions::record::{SessionKind, Transport};
use instar_state::config::{Config, Key, keys};
use instar_state::paths::AgentPaths;

/// Settings of the session room.
pub(crate) fn sessions(config: &Config) -> SessionsConfig {
    let transport = |key: Key<String>| match config.get(key).as_str() {
        "stdio" => Transport::Stdio,
        _ => Transport::Tmux,
    };
    let models = [
        ("fast", config.get(keys::MODEL_FAST)),
        ("balanced", config.get(keys::MODEL_BALANCED)),
        ("capable", config.get(keys::MODEL_CAPABLE)),
    ];
    SessionsConfig {
        max_sessions: config.get(keys::SESSIONS_MAX),
        human_factor: config.get(keys::SESSIONS_HUMAN_FACTOR),
        reserve_for_human: config.get(keys::SESSIONS_RESERVE_FOR_HUMAN),
        max_peer_sessions: config.get(keys::THREADLINE_SESSIONS_MAX_ACTIVE),
        protected: config.get(keys::SESSIONS_PROTECTED),
        idle_minutes: config.get(keys::SESSIONS_IDLE_MINUTES) as u32,
        idle_minutes_bound: config.get(keys::SESSIONS_IDLE_MINUTES_BOUND) as u32,
        max_duration_minutes: config.get(keys::SESSIONS_MAX_MINUTES) as u32,
        transport: BTreeMap::from([
            (SessionKind::Conversation, transport(keys::SESSIONS_TRANSPORT_CONVERSATION)),
            (SessionKind::AdHoc, transport(keys::SESSIONS_TRANSPORT_AD_HOC)),
        ]),
        models: models.map(|(tier, id)| (tier.to_owned(), id)).into(),
        default_model: config.get(keys::MODEL_DEFAULT),
        permission_mode: match config.get(keys::SESSIONS_PERMISSION_MODE).as_str() {
            "dontAsk" => PermissionMode::DontAsk,
            _ => PermissionMode::Bypass,
        },
        allowed_tools: config.get(keys::SESSIONS_ALLOWED_TOOLS),
        extra_args: config.get(keys::SESSIONS_EXTRA_ARGS),
        env_allow: config.get(keys::SESSIONS_ENV_ALLOW),
        allow_root: config.get(keys::SESSIONS_ALLOW_ROOT),
        tmux_path: config.get(keys::SESSIONS_TMUX_PATH),
        claude_path: config.get(keys::SESSIONS_CLAUDE_PATH),
        anthropic: credential(config, "anthropic"),
    }
}

fn credential(config: &Config, provider: &str) -> Option<Credential> {
    let kind = match config.get_for(keys::CREDENTIAL_KIND, provider)?.as_str() {
        "oauth-token" => CredentialKind::OauthToken,
        _ => CredentialKind::ApiKey,
    };
    let value = config.secret_for(keys::CREDENTIAL_VALUE, provider)?.expose().clone();
    Some(Credential { kind, value, base_url: config.get_for(keys::CREDENTIAL_BASE_URL, provider) })
}

/// What the hooks read instead of `config.json`.
pub(crate) fn hooks(config: &Config, paths: &AgentPaths) -> HookConfig {
    HookConfig {
        agent_name: config.agent_name(paths.project()),
        safety_level: match config.get(keys::SAFETY_LEVEL) {
            2 => SafetyLevel::SelfVerify,
            _ => SafetyLevel::BlockAndAsk,
        },
        always_block: config.get(keys::SAFETY_ALWAYS_BLOCK),
        allow: config.get(keys::SAFETY_ALLOW),
        permission_mode: match config.get(keys::SESSIONS_PERMISSION_MODE).as_str() {
            "bypass" => snapshot::PermissionMode::Bypass,
            _ => snapshot::PermissionMode::Ask,
        },
        disabled: config.get(keys::HOOKS_DISABLED),
    }
}
