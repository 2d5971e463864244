//! The keys of `config.json` that this build uses. Durations are milliseconds unless the name says otherwise.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::relays::{RELAYS, RelayEntry, are_relays};
use super::schema::{Key, KeySpec, Kind, Preset, SecretValue};

/// Newest version of the file that this build reads.
pub const VERSION: i64 = 2;

/// Trust levels in the order of the per-level limits.
pub const LEVELS: [&str; 4] = ["untrusted", "verified", "trusted", "autonomous"];

const NO_LIST: Preset = Preset::List(&[]);

const fn int(min: i64, max: i64) -> Kind {
    Kind::Int { min, max }
}

const fn millis(min: i64) -> Kind {
    Kind::Int { min, max: 31 * 86_400_000 }
}

const fn count() -> Kind {
    Kind::Int { min: 0, max: 1_000_000_000 }
}

macro_rules! keys {
    ($($doc:literal $name:ident: $ty:ty = $path:literal, $kind:expr, $preset:expr $(, $class:ident)*;)*) => {
        $(
            #[doc = concat!("`", $path, "`: ", $doc)]
            pub const $name: Key<$ty> = Key::new(&KeySpec::new($path, $kind, $preset, $doc)$(.$class())*);
        )*
        const ROWS: &[&KeySpec] = &[$($name.spec()),*];
    };
}

keys! {
    "Schema version of this file." FILE_VERSION: i64 = "version", int(1, i64::MAX), Preset::Int(VERSION);
    "Name of the agent." PROJECT_NAME: Option<String> = "projectName", Kind::AgentName, Preset::None, restart;
    "Whether the agent has a folder of its own or lives in a project." AGENT_TYPE: String =
        "agentType", Kind::Choice(&["project-bound", "standalone"]), Preset::Text("project-bound");
    "Port of the HTTP API on loopback." PORT: Option<u16> = "port", int(1024, 65535), Preset::None, file_only, restart;
    "Address of the HTTP API." HOST: String = "host", Kind::Text(255), Preset::Text("127.0.0.1"), file_only, restart;
    "Allows a host that is not loopback." ALLOW_NON_LOOPBACK: bool =
        "allowNonLoopback", Kind::Bool, Preset::Bool(false), file_only, restart;
    "Token of the HTTP API." AUTH_TOKEN: SecretValue = "authToken", Kind::Secret, Preset::None, file_only;
    "PIN that proves the owner; only its hash is stored." DASHBOARD_PIN: SecretValue =
        "dashboardPin", Kind::Secret, Preset::None, file_only;
    "Time limit of an API request." REQUEST_TIMEOUT: Duration =
        "requestTimeoutMs", int(1000, 600_000), Preset::Int(30_000);
    "Requests of one caller in a minute." HTTP_PER_MINUTE: u32 =
        "http.limits.requestsPerMinute", int(1, 1_000_000), Preset::Int(300), operator;
    "Spawn requests of one caller in a minute." HTTP_SPAWNS_PER_MINUTE: u32 =
        "http.limits.spawnsPerMinute", int(1, 1_000_000), Preset::Int(10), operator;
    "Hook requests of one session in a second." HTTP_HOOKS_PER_SECOND: u32 =
        "http.limits.hooksPerSecond", int(1, 1_000_000), Preset::Int(50), operator;
    "Least severe line that is logged." LOG_LEVEL: String =
        "logging.level", Kind::Choice(&["trace", "debug", "info", "warn", "error"]), Preset::Text("info");
    "Size at which logs/node.log is rotated." LOG_MAX_FILE_MB: u64 =
        "logging.maxFileMb", int(1, 10_000), Preset::Int(20);
    "Rotated logs that are kept." LOG_KEEP: usize = "logging.keep", int(0, 1000), Preset::Int(5);
    "Where secrets come from: the encrypted store, or the environment (INSTAR_SECRET_<NAME>)." SECRETS_BACKEND: String =
        "secrets.backend", Kind::Choice(&["local", "env"]), Preset::Text("local"), file_only, restart;

    "Sessions that may run at once." SESSIONS_MAX: usize = "sessions.maxSessions", int(1, 100), Preset::Int(10);
    "A person's session starts while fewer than this times maxSessions run." SESSIONS_HUMAN_FACTOR: usize =
        "sessions.humanFactor", int(1, 10), Preset::Int(3);
    "Slots of maxSessions that only a person's sessions get." SESSIONS_RESERVE_FOR_HUMAN: usize =
        "sessions.reserveForHuman", int(0, 100), Preset::Int(1);
    "How sessions of a conversation run." SESSIONS_TRANSPORT_CONVERSATION: String =
        "sessions.transport.conversation", Kind::Choice(&["tmux", "stdio"]), Preset::Text("tmux");
    "How sessions without a conversation run." SESSIONS_TRANSPORT_AD_HOC: String =
        "sessions.transport.adHoc", Kind::Choice(&["tmux", "stdio"]), Preset::Text("stdio");
    "Sessions that only an explicit --force ends." SESSIONS_PROTECTED: Vec<String> =
        "sessions.protectedSessions", Kind::List { items: 100, chars: 200 }, NO_LIST;
    "Idle minutes after which a session without conversation ends." SESSIONS_IDLE_MINUTES: u64 =
        "sessions.idlePromptKillMinutes", int(1, 1440), Preset::Int(15);
    "Idle minutes after which a session of a conversation ends." SESSIONS_IDLE_MINUTES_BOUND: u64 =
        "sessions.idlePromptKillMinutesBoundToTopic", int(1, 10_080), Preset::Int(240);
    "Longest life of a session without conversation, in minutes." SESSIONS_MAX_MINUTES: u64 =
        "sessions.defaultMaxDurationMinutes", int(1, 10_080), Preset::Int(240);
    "Model of tier fast." MODEL_FAST: String =
        "sessions.models.claude-code.fast", Kind::Checked(MODEL, is_model), Preset::Text("haiku");
    "Model of tier balanced." MODEL_BALANCED: String =
        "sessions.models.claude-code.balanced", Kind::Checked(MODEL, is_model), Preset::Text("sonnet");
    "Model of tier capable." MODEL_CAPABLE: String =
        "sessions.models.claude-code.capable", Kind::Checked(MODEL, is_model), Preset::Text("opus");
    "Tier or model of sessions that name none." MODEL_DEFAULT: Option<String> =
        "sessions.defaultModel.claude-code", Kind::Checked(MODEL, is_model), Preset::None;
    "Whether the owner's sessions skip the runtime's own questions." SESSIONS_PERMISSION_MODE: String =
        "sessions.permissionMode", Kind::Choice(&["bypass", "dontAsk"]), Preset::Text("bypass"), operator;
    "Tools allowed when permissionMode is dontAsk." SESSIONS_ALLOWED_TOOLS: Vec<String> =
        "sessions.allowedTools", Kind::List { items: 200, chars: 200 }, NO_LIST, operator;
    "Arguments added to the runtime's command line." SESSIONS_EXTRA_ARGS: Vec<String> =
        "sessions.extraArgs.claude-code", Kind::Checked(EXTRA_ARGS, are_extra_args), NO_LIST, file_only;
    "Environment variables of the node that sessions get too." SESSIONS_ENV_ALLOW: Vec<String> =
        "sessions.envAllow", Kind::Checked(ENV_NAMES, are_env_names), NO_LIST, operator;
    "Allows sessions when the node runs as root." SESSIONS_ALLOW_ROOT: bool =
        "sessions.allowRoot", Kind::Bool, Preset::Bool(false), operator;
    "Program tmux, where it is not in PATH." SESSIONS_TMUX_PATH: Option<PathBuf> =
        "sessions.tmuxPath", Kind::Path, Preset::None, file_only;
    "Program claude, where it is not in PATH." SESSIONS_CLAUDE_PATH: Option<PathBuf> =
        "sessions.claudePath", Kind::Path, Preset::None, file_only;
    "Kind of a credential that sessions get." CREDENTIAL_KIND: Option<String> =
        "sessions.credentials.*.kind", Kind::Choice(&["oauth-token", "api-key"]), Preset::None, file_only;
    "The credential." CREDENTIAL_VALUE: SecretValue =
        "sessions.credentials.*.value", Kind::Secret, Preset::None, file_only;
    "Address that the runtime uses with this credential." CREDENTIAL_BASE_URL: Option<String> =
        "sessions.credentials.*.baseUrl", Kind::Url(&["http://", "https://"]), Preset::None, file_only;

    "Hooks that are switched off; the safety hooks can not be." HOOKS_DISABLED: Vec<String> =
        "hooks.disabled", Kind::List { items: 50, chars: 64 }, NO_LIST, operator;
    "1: risky commands are blocked; 2: they pass with a checklist." SAFETY_LEVEL: u8 =
        "safety.level", int(1, 2), Preset::Int(1), operator;
    "Texts in a command that block it always." SAFETY_ALWAYS_BLOCK: Vec<String> =
        "safety.alwaysBlock", Kind::List { items: 200, chars: 1000 }, NO_LIST, operator;
    "Commands that always pass." SAFETY_ALLOW: Vec<String> =
        "safety.allow", Kind::List { items: 200, chars: 1000 }, NO_LIST, operator;
    "How much the agent does on its own." AUTONOMY_PROFILE: String =
        "autonomyProfile", Kind::Choice(&["cautious", "supervised", "collaborative", "autonomous"]),
        Preset::Text("supervised"), operator;

    "Whether this agent takes part in the mesh." THREADLINE_ENABLED: bool =
        "threadline.enabled", Kind::Bool, Preset::Bool(true);
    "Whether it uses the relay of relayUrl." THREADLINE_RELAY_ENABLED: bool =
        "threadline.relayEnabled", Kind::Bool, Preset::Bool(false), operator;
    "Relay to connect to." THREADLINE_RELAY_URL: Option<String> =
        "threadline.relayUrl", Kind::Url(&["ws://", "wss://"]), Preset::None, operator;
    "More relays; the first is used like relayUrl where that is not set." THREADLINE_RELAYS: Vec<RelayEntry> =
        "threadline.relays", Kind::Checked(RELAYS, are_relays), NO_LIST, operator;
    "Runs or joins the account's own relay while no other is enabled." THREADLINE_LOCAL_RELAY: String =
        "threadline.localRelay", Kind::Choice(&["auto", "off"]), Preset::Text("auto");
    "Whether messages may leave without a relay: to agents of this host and to paired servers." THREADLINE_DIRECT: bool =
        "threadline.direct.enabled", Kind::Bool, Preset::Bool(true), operator;
    "Whether others find this agent." THREADLINE_VISIBILITY: String =
        "threadline.visibility", Kind::Choice(&["public", "unlisted", "private"]), Preset::Text("unlisted"), operator;
    "What this agent says it can do." THREADLINE_CAPABILITIES: Vec<String> =
        "threadline.capabilities", Kind::Checked(CAPABILITIES, are_capabilities), Preset::List(&["chat", "threadline"]);
    "What happens with a stranger's first message." THREADLINE_FIRST_CONTACT: String =
        "threadline.firstContactPolicy", Kind::Choice(&["supervised", "auto", "closed"]), Preset::Text("supervised"), operator;
    "From which level on messages must be sealed end to end." THREADLINE_REQUIRE_E2E: String =
        "threadline.requireE2E", Kind::Choice(&["never", "trusted-and-above", "always"]),
        Preset::Text("trusted-and-above"), operator;
    "Whether agents of older installs get a plain acknowledgement." THREADLINE_AUTO_ACK: Option<String> =
        "threadline.autoAck", Kind::Checked(AUTO_ACK, is_auto_ack), Preset::None;
    "Highest level that a session may give." THREADLINE_SESSION_GRANT_MAX: String =
        "threadline.trust.sessionGrantMax", Kind::Choice(&["untrusted", "verified"]), Preset::Text("verified"), operator;
    "Sessions that may serve peers at once." THREADLINE_SESSIONS_MAX_ACTIVE: usize =
        "threadline.sessions.maxActive", int(0, 100), Preset::Int(3);
    "Folders of the project that a peer's session may read." THREADLINE_ALLOWED_PATHS: Vec<String> =
        "threadline.sessions.allowedPaths", Kind::Checked(INSIDE, are_inside), Preset::List(&["src/", "docs/", "specs/"]), operator;
    "Tier or model of a peer's session." THREADLINE_SESSION_MODEL: Option<String> =
        "threadline.sessions.model", Kind::Checked(MODEL, is_model), Preset::None;
    "Idle time after which a peer's session is parked." THREADLINE_PARK_AFTER: Duration =
        "threadline.sessions.parkAfterMs", millis(1000), Preset::Int(300_000);
    "Pause after a spawn for a peer." THREADLINE_SPAWN_COOLDOWN: Duration =
        "threadline.spawn.cooldownMs", millis(0), Preset::Int(30_000);
    "Whether waiting messages get sessions." THREADLINE_SPAWN_DRAIN: bool =
        "threadline.spawn.drainEnabled", Kind::Bool, Preset::Bool(true);
    "Longest prompt of a spawned session, in bytes." THREADLINE_SPAWN_MAX_BYTES: usize =
        "threadline.spawn.maxEnvelopeBytes", int(1, 16_777_216), Preset::Int(262_144);
    "Messages that may wait for a session." THREADLINE_SPAWN_MAX_QUEUED: usize =
        "threadline.spawn.maxGlobalQueued", int(0, 1_000_000), Preset::Int(1000);
    "Messages of one peer that may wait." THREADLINE_SPAWN_MAX_QUEUED_PER_PEER: usize =
        "threadline.spawn.maxQueuedPerPeer", int(0, 1_000_000), Preset::Int(10);
    "Messages of all peers in an hour." LIMIT_GLOBAL_PER_HOUR: u32 =
        "threadline.limits.globalPerHour", count(), Preset::Int(200), operator;
    "Messages to all agents of the account in an hour." LIMIT_MACHINE_PER_HOUR: u32 =
        "threadline.limits.machinePerHour", count(), Preset::Int(500), operator;
    "Hours for which a message to a v1 peer is retried." THREADLINE_TTL_HOURS: u64 =
        "threadline.delivery.ttlHoursV1", int(1, 720), Preset::Int(24);
    "Hours for which a sealed message is tried." THREADLINE_SEALED_TTL_HOURS: u64 =
        "threadline.delivery.ttlHours", int(1, 720), Preset::Int(168);
    "Hours without confirmation after which the owner is told." THREADLINE_ESCALATE_HOURS: u64 =
        "threadline.delivery.escalateAfterHours", int(1, 720), Preset::Int(6);
    "Whether the four registry tools and the registry client are used." THREADLINE_REGISTRY_ENABLED: bool =
        "threadline.registry.enabled", Kind::Bool, Preset::Bool(true);
    "Whether this agent is listed in the relay's registry." THREADLINE_REGISTRY_LISTED: bool =
        "threadline.registry.listed", Kind::Bool, Preset::Bool(false);
    "Whether the MCP tools are served over HTTP." MCP_ENABLED: bool =
        "threadline.mcp.enabled", Kind::Bool, Preset::Bool(false), operator;
    "Address of the MCP listener." MCP_HOST: String =
        "threadline.mcp.host", Kind::Text(255), Preset::Text("127.0.0.1"), operator, restart;
    "Port of the MCP listener." MCP_PORT: u16 =
        "threadline.mcp.port", int(0, 65535), Preset::Int(18_790), operator, restart;
    "Path of the MCP listener." MCP_PATH: String =
        "threadline.mcp.path", Kind::Checked("a path like /mcp", is_url_path), Preset::Text("/mcp"), operator, restart;
    "Origins that the MCP listener accepts besides loopback." MCP_ALLOWED_ORIGINS: Vec<String> =
        "threadline.mcp.allowedOrigins", Kind::List { items: 50, chars: 255 }, NO_LIST, operator;
    "Says that a TLS proxy stands before the MCP listener." MCP_BEHIND_PROXY: bool =
        "threadline.mcp.behindProxy", Kind::Bool, Preset::Bool(false), operator, restart;
}

macro_rules! level_limits {
    ($($doc:literal $name:ident = $leaf:literal, [$u:literal, $v:literal, $t:literal, $a:literal];)*) => {
        $(
            #[doc = concat!("`threadline.limits.<level>.", $leaf, "`: ", $doc, " In the order of [`LEVELS`].")]
            pub const $name: [Key<u32>; 4] = [
                Key::new(&KeySpec::new(concat!("threadline.limits.untrusted.", $leaf), count(), Preset::Int($u), $doc).operator()),
                Key::new(&KeySpec::new(concat!("threadline.limits.verified.", $leaf), count(), Preset::Int($v), $doc).operator()),
                Key::new(&KeySpec::new(concat!("threadline.limits.trusted.", $leaf), count(), Preset::Int($t), $doc).operator()),
                Key::new(&KeySpec::new(concat!("threadline.limits.autonomous.", $leaf), count(), Preset::Int($a), $doc).operator()),
            ];
        )*
        const LEVEL_ROWS: &[[Key<u32>; 4]] = &[$($name),*];
    };
}

level_limits! {
    "Probes of one peer in an hour." LIMIT_PROBES_PER_HOUR = "probesPerHour", [5, 20, 100, 500];
    "Messages of one peer in an hour." LIMIT_MESSAGES_PER_HOUR = "messagesPerHour", [0, 10, 50, 500];
    "Messages of one peer in a day." LIMIT_MESSAGES_PER_DAY = "messagesPerDay", [0, 50, 200, 10_000];
    "Messages of one thread in an hour." LIMIT_PER_THREAD_PER_HOUR = "perThreadPerHour", [0, 10, 30, 200];
    "Messages of one peer in a minute." LIMIT_BURST_PER_MINUTE = "burstPerMinute", [5, 5, 5, 30];
    "Messages to one peer in an hour." LIMIT_OUTBOUND_PER_HOUR = "outboundPerHour", [30, 30, 30, 500];
    "Sessions started for one peer in an hour." LIMIT_SPAWNS_PER_HOUR = "spawnsPerHour", [0, 5, 15, 60];
}

/// Every row of the table.
pub fn table() -> impl Iterator<Item = &'static KeySpec> {
    ROWS.iter().copied().chain(LEVEL_ROWS.iter().flatten().map(|key| key.spec()))
}

const MODEL: &str =
    "fast, balanced, capable, or a model id of A-Z a-z 0-9 . _ : / - with at most 100 characters";

fn is_model(value: &Value) -> bool {
    value.as_str().is_some_and(|m| {
        (1..=100).contains(&m.len())
            && !m.starts_with('-')
            && m.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b))
    })
}

fn texts(value: &Value, max: usize, check: impl Fn(&str) -> bool) -> bool {
    value.as_array().is_some_and(|l| l.len() <= max && l.iter().all(|v| v.as_str().is_some_and(&check)))
}

const EXTRA_ARGS: &str = "a list of arguments without --dangerously…, --settings, --resume, --session-id, \
                          --permission-mode, --mcp-config, --strict-mcp-config, --allowedTools and -p, which Instar sets itself";

fn are_extra_args(value: &Value) -> bool {
    const RESERVED: [&str; 14] = [
        "--settings",
        "--setting-sources",
        "--resume",
        "-r",
        "--continue",
        "-c",
        "--session-id",
        "--permission-mode",
        "--mcp-config",
        "--strict-mcp-config",
        "--allowedTools",
        "--allowed-tools",
        "--print",
        "-p",
    ];
    texts(value, 100, |arg| {
        let name = arg.split('=').next().unwrap_or(arg);
        !arg.is_empty()
            && !arg.contains('\0')
            && !name.starts_with("--dangerously")
            && !name.starts_with("--allow-dangerously")
            && !RESERVED.contains(&name)
    })
}

const ENV_NAMES: &str = "a list of names of environment variables";

fn are_env_names(value: &Value) -> bool {
    texts(value, 200, |name| {
        name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && name.len() <= 128
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    })
}

const CAPABILITIES: &str = "a list of at most 50 names of a-z 0-9 . _ / - with at most 64 characters";

fn are_capabilities(value: &Value) -> bool {
    texts(value, 50, |slug| {
        (1..=64).contains(&slug.len())
            && slug.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._/-".contains(&b))
    })
}

const INSIDE: &str = "a list of folders inside the project, relative and without ..";

fn are_inside(value: &Value) -> bool {
    texts(value, 100, |path| {
        !path.is_empty()
            && path.len() <= 1024
            && !path.starts_with(['/', '~'])
            && !path.chars().any(char::is_control)
            && path.split('/').all(|part| part != "..")
    })
}

const AUTO_ACK: &str = "\"v1\" or false";

/// Older configurations say `true`, which never meant acknowledgements of this kind.
fn is_auto_ack(value: &Value) -> bool {
    value.is_boolean() || value == "v1"
}

fn is_url_path(value: &Value) -> bool {
    value.as_str().is_some_and(|path| {
        path.len() <= 128
            && path.starts_with('/')
            && path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_fits_its_own_rule_and_every_path_is_there_once() {
        let mut seen = std::collections::BTreeSet::new();
        for spec in table() {
            assert!(seen.insert(spec.path), "{} is there twice", spec.path);
            assert!(spec.doc.ends_with('.'), "{}", spec.path);
            if let Some(value) = spec.default_value() {
                assert!(spec.accepts(&value), "default of {}", spec.path);
            }
        }
    }

    #[test]
    fn arguments_that_would_undo_the_launch_line_are_refused() {
        for bad in
            ["--dangerously-skip-permissions", "--resume=x", "-p", "--permission-mode", "--settings=/x", ""]
        {
            assert!(!are_extra_args(&serde_json::json!([bad])), "{bad}");
        }
        assert!(are_extra_args(&serde_json::json!(["--add-dir", "/srv/data"])));
    }
}
