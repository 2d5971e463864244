//! What the mesh room reads of the configuration.

use instar_state::config::{Config, RelayEntry, RelayProtocol, keys};
use threadline::TrustLevel;
use threadline::autonomy::Autonomy;
use threadline::inbound::{FirstContact, Policy, RequireE2e};
use threadline::limits::{LevelLimits, Limits};
use threadline::spawn::SpawnConfig;
use threadline::v1::frames::Visibility;
use threadline::v2::Bin;
use threadline::v2::session::Protocol;
use threadline_net::sealed::RelaySetting;

/// Sessions that serve peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSessionConfig {
    /// At once.
    pub max_active: usize,
    /// Folders of the project that such a session may read.
    pub allowed_paths: Vec<String>,
    /// Tier or model.
    pub model: Option<String>,
    /// Idle time after which the session is ended, ms; its conversation resumes later.
    pub park_after_ms: i64,
}

/// The `threadline.*` part of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshConfig {
    /// Whether this agent takes part in the mesh.
    pub enabled: bool,
    /// Relay to connect to, absent while the relay is switched off.
    pub relay_url: Option<String>,
    /// Whether that relay is one of this account, whose custody counts; also while its address is not known yet.
    pub relay_is_ours: bool,
    /// Whether messages may leave without a relay.
    pub direct_enabled: bool,
    /// Relays besides that one that v2 sessions are kept with.
    pub relays: Vec<RelaySetting>,
    /// Who can find this agent.
    pub visibility: Visibility,
    /// What it says it can do; what this build speaks is added.
    pub capabilities: Vec<String>,
    /// Strangers, sealing and autonomy.
    pub policy: Policy,
    /// Whether a stranger whose key authenticated its first message becomes verified.
    pub first_contact_auto: bool,
    /// Whether v1 peers that know no receipts get a plain acknowledgement.
    pub auto_ack_v1: bool,
    /// Highest level that an untainted session of the owner may give.
    pub session_grant_max: TrustLevel,
    /// Sessions that serve peers.
    pub sessions: PeerSessionConfig,
    /// The spawn manager.
    pub spawn: SpawnConfig,
    /// Sliding windows.
    pub limits: Limits,
    /// Life of a message to a v1 peer, ms.
    pub delivery_ttl_ms: i64,
    /// Life of a sealed message, ms.
    pub sealed_ttl_ms: i64,
    /// Time without confirmation after which the owner is told, ms.
    pub escalate_after_ms: i64,
    /// Whether the registry is used.
    pub registry_enabled: bool,
    /// Whether this agent is listed in it.
    pub registry_listed: bool,
}

/// Relays that sessions are kept with, besides one of `relayUrl`.
const MAX_LISTENING: usize = 8;
/// Of the relays that say nothing about it, so many are listened at.
const LISTEN_BY_DEFAULT: usize = 2;

/// Reads the checked entries of `threadline.relays`: those that are listened at.
fn relays(entries: &[RelayEntry]) -> Vec<RelaySetting> {
    let listened = entries.iter().enumerate();
    let listened = listened.filter(|(n, entry)| entry.listen.unwrap_or(*n < LISTEN_BY_DEFAULT));
    listened
        .map(|(_, entry)| RelaySetting {
            url: entry.url.clone(),
            protocol: match entry.protocol {
                RelayProtocol::Auto => Protocol::Auto,
                RelayProtocol::V2 => Protocol::V2,
                RelayProtocol::V1 => Protocol::V1,
            },
            key: entry.key.map(Bin),
            is_ours: false,
        })
        .collect()
}

/// Capability tags that every build of this version speaks.
const SPOKEN: [&str; 1] = ["tl-e2e"];

impl MeshConfig {
    /// Reads a checked configuration. The relay is the configured one, if it is enabled; a caller that runs or joins
    /// the account's own relay sets [`MeshConfig::relay_url`] and [`MeshConfig::relay_is_ours`] afterwards.
    pub fn from_config(config: &Config) -> Self {
        let level = |n: usize| LevelLimits {
            probes_per_hour: config.get(keys::LIMIT_PROBES_PER_HOUR[n]),
            messages_per_hour: config.get(keys::LIMIT_MESSAGES_PER_HOUR[n]),
            messages_per_day: config.get(keys::LIMIT_MESSAGES_PER_DAY[n]),
            per_thread_per_hour: config.get(keys::LIMIT_PER_THREAD_PER_HOUR[n]),
            burst_per_minute: config.get(keys::LIMIT_BURST_PER_MINUTE[n]),
            outbound_per_hour: config.get(keys::LIMIT_OUTBOUND_PER_HOUR[n]),
            spawns_per_hour: config.get(keys::LIMIT_SPAWNS_PER_HOUR[n]),
        };
        let enabled = config.get(keys::THREADLINE_RELAY_ENABLED);
        let mut relays = if enabled { relays(&config.get(keys::THREADLINE_RELAYS)) } else { Vec::new() };
        let first: Option<String> = config.get(keys::THREADLINE_RELAY_URL);
        let relay_url = first.filter(|_| enabled).or_else(|| relays.first().map(|relay| relay.url.clone()));
        relays.truncate(MAX_LISTENING);
        let first_contact = config.get(keys::THREADLINE_FIRST_CONTACT);
        let hours = |n: u64| i64::try_from(n).unwrap_or(24) * 3_600_000;
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let ms = |d: std::time::Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        Self {
            enabled: config.get(keys::THREADLINE_ENABLED),
            relay_url,
            relay_is_ours: false,
            direct_enabled: config.get(keys::THREADLINE_DIRECT),
            relays,
            visibility: match config.get(keys::THREADLINE_VISIBILITY).as_str() {
                "public" => Visibility::Public,
                "private" => Visibility::Private,
                _ => Visibility::Unlisted,
            },
            capabilities: config.get(keys::THREADLINE_CAPABILITIES),
            policy: Policy {
                autonomy: match config.get(keys::AUTONOMY_PROFILE).as_str() {
                    "cautious" => Autonomy::Cautious,
                    "collaborative" => Autonomy::Collaborative,
                    "autonomous" => Autonomy::Autonomous,
                    _ => Autonomy::Supervised,
                },
                require_e2e: match config.get(keys::THREADLINE_REQUIRE_E2E).as_str() {
                    "never" => RequireE2e::Never,
                    "always" => RequireE2e::Always,
                    _ => RequireE2e::TrustedAndAbove,
                },
                first_contact: match first_contact.as_str() {
                    "closed" => FirstContact::Closed,
                    _ => FirstContact::Supervised,
                },
            },
            first_contact_auto: first_contact == "auto",
            auto_ack_v1: config.get(keys::THREADLINE_AUTO_ACK).as_deref() == Some("v1"),
            session_grant_max: config
                .get(keys::THREADLINE_SESSION_GRANT_MAX)
                .parse()
                .unwrap_or(TrustLevel::Untrusted),
            sessions: PeerSessionConfig {
                max_active: config.get(keys::THREADLINE_SESSIONS_MAX_ACTIVE),
                allowed_paths: config.get(keys::THREADLINE_ALLOWED_PATHS),
                model: config.get(keys::THREADLINE_SESSION_MODEL),
                park_after_ms: ms(config.get(keys::THREADLINE_PARK_AFTER)),
            },
            spawn: SpawnConfig {
                cooldown_ms: u32::try_from(ms(config.get(keys::THREADLINE_SPAWN_COOLDOWN)))
                    .unwrap_or(u32::MAX),
                drain_enabled: config.get(keys::THREADLINE_SPAWN_DRAIN),
                max_envelope_bytes: small(config.get(keys::THREADLINE_SPAWN_MAX_BYTES)),
                max_global_queued: small(config.get(keys::THREADLINE_SPAWN_MAX_QUEUED)),
                max_queued_per_agent: small(config.get(keys::THREADLINE_SPAWN_MAX_QUEUED_PER_PEER)),
                ..SpawnConfig::default()
            },
            limits: Limits {
                untrusted: level(0),
                verified: level(1),
                trusted: level(2),
                autonomous: level(3),
                global_per_hour: config.get(keys::LIMIT_GLOBAL_PER_HOUR),
                machine_per_hour: config.get(keys::LIMIT_MACHINE_PER_HOUR),
                ..Limits::default()
            },
            delivery_ttl_ms: hours(config.get(keys::THREADLINE_TTL_HOURS)),
            sealed_ttl_ms: hours(config.get(keys::THREADLINE_SEALED_TTL_HOURS)),
            escalate_after_ms: hours(config.get(keys::THREADLINE_ESCALATE_HOURS)),
            registry_enabled: config.get(keys::THREADLINE_REGISTRY_ENABLED),
            registry_listed: config.get(keys::THREADLINE_REGISTRY_LISTED),
        }
    }

    /// Relays to ask whether they speak v2: the one of the link first.
    pub(crate) fn relay_settings(&self) -> Vec<RelaySetting> {
        if !self.enabled {
            return Vec::new();
        }
        let mut settings = self.relays.clone();
        if let Some(url) = &self.relay_url
            && !settings.iter().any(|setting| setting.url == *url)
        {
            let (protocol, is_ours) = (Protocol::Auto, self.relay_is_ours);
            settings.insert(0, RelaySetting { url: url.clone(), protocol, key: None, is_ours });
        }
        settings
    }

    /// Whether messages to a peer of this level must be sealed.
    pub(crate) fn must_seal(&self, level: TrustLevel) -> bool {
        match self.policy.require_e2e {
            RequireE2e::Never => false,
            RequireE2e::TrustedAndAbove => level > TrustLevel::Verified,
            RequireE2e::Always => true,
        }
    }

    /// Capability tags to advertise: the configured ones, and those of protocols that this build speaks.
    pub fn advertised(&self) -> Vec<String> {
        let mut tags = self.capabilities.clone();
        let missing: Vec<_> = SPOKEN.into_iter().filter(|tag| !tags.iter().any(|t| t == tag)).collect();
        tags.extend(missing.into_iter().map(str::to_owned));
        tags
    }
}
