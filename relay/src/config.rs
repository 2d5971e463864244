//! Configuration: `relay.toml`, then environment, then flags; later wins.

mod keys;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use keys::KEYS;

/// Who may log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Any identity.
    Public,
    /// Only the keys of `allow_keys`.
    Private,
}

/// What an accepted message survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DurabilityMode {
    /// Power loss: fsync before the answer.
    Power,
    /// The death of the process.
    Process,
}

/// What keeps mail (`relay.md` §15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// The log and the databases in the data directory.
    Embedded,
    /// NATS JetStream, shared by several relays.
    Nats,
}

/// The engine that several relays share (`relay.md` §15). Only used with [`EngineKind::Nats`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// `nats://` (loopback only) or `tls://` URLs of its servers.
    pub servers: Vec<String>,
    /// 32 bytes in hex that all relays share: bodies are sealed with a key made from it.
    pub secret: Option<Secret>,
    /// File with the NKey seed of this relay; empty presents none.
    pub nkey_file: PathBuf,
    /// File with NATS credentials of this relay; empty presents none.
    pub credentials: PathBuf,
    /// Certificate authority of the servers; empty trusts those of the system.
    pub ca: PathBuf,
    /// Copies of each stream: 1, 3 or 5.
    pub replicas: u32,
    /// Whether an engine that is older than 2.10 or keeps fewer than three copies is good enough.
    pub allow_weak: bool,
    /// Most bytes of each of the 16 mail streams.
    pub stream_bytes: u64,
}

/// Rates; every one counts over a sliding window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Whether anything is counted per source (IPv4 address or IPv6 /64).
    pub per_source: bool,
    /// Login attempts per source and minute.
    pub auth_per_minute: u32,
    /// Failed logins per source and minute before it is shut out.
    pub auth_failed_per_minute: u32,
    /// Messages per agent and minute.
    pub messages_per_minute: u32,
    /// Messages per agent and hour.
    pub messages_per_hour: u32,
    /// Messages per source and minute.
    pub source_per_minute: u32,
    /// Messages of the whole relay per minute.
    pub global_per_minute: u32,
    /// `discover` frames per agent and minute.
    pub discover_per_minute: u32,
    /// LOOKUP and SEARCH frames per agent and minute.
    pub lookup_frames_per_minute: u32,
    /// News of public agents that a v2 session which watches all of them gets per minute.
    pub presence_of_all_per_minute: u32,
    /// KEYS_CLAIM frames per agent and minute.
    pub claims_per_minute: u32,
    /// KEYS_CLAIM frames per agent, agent asked for, and hour.
    pub claims_per_pair_hour: u32,
    /// One-time keys of one agent that strangers get per hour.
    pub claims_per_target_hour: u32,
    /// Blobs that an agent sends per hour, MiB.
    pub blob_mib_per_hour: u32,
    /// Frames other than messages per session and minute; above, the session is closed.
    pub frames_per_minute: u32,
    /// Malformed frames per session and minute; above, the session is closed.
    pub junk_per_minute: u32,
    /// Registry searches per minute with a token.
    pub search_per_minute: u32,
    /// Registry searches per source and minute without one.
    pub search_anonymous_per_minute: u32,
    /// Registry lookups per minute with a token.
    pub lookup_per_minute: u32,
    /// Registry lookups per source and minute without one.
    pub lookup_anonymous_per_minute: u32,
    /// Registry statistics per source and minute.
    pub stats_per_minute: u32,
    /// Registry updates per key and minute.
    pub put_per_minute: u32,
    /// Registry deletions per key and minute.
    pub delete_per_minute: u32,
    /// New registry entries per key and hour.
    pub entries_per_hour: u32,
    /// New registry entries per source and hour.
    pub source_entries_per_hour: u32,
}

/// The admin interface (`relay.md` §14.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Whether it is offered.
    pub enabled: bool,
    /// Address to listen on.
    pub host: IpAddr,
    /// TCP port; `None` is 9091, or a free one if [`RelayConfig::port`] is 0.
    pub port: Option<u16>,
    /// Its key; `None` makes one and stores it in `<data_dir>/admin-key`.
    pub key: Option<Secret>,
    /// Whether the address may be one that others can reach. TLS is needed then.
    pub allow_public: bool,
}

/// QUIC (`threadline-wire.md` §5.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quic {
    /// Whether it is spoken.
    pub enabled: bool,
    /// Address to listen on; `None` is [`RelayConfig::host`]. Another one where a proxy on this machine has the rest.
    pub host: Option<IpAddr>,
    /// UDP port; `None` is 8788, or a free one if [`RelayConfig::port`] is 0. A port that is named and taken is an error.
    pub port: Option<u16>,
    /// Port that clients are told, where another one leads here; `None` is the port that is listened on.
    pub public_port: Option<u16>,
}

/// The bridge for plain A2A clients (`relay.md` §13). It is only there when [`RelayConfig::public_url`] is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct A2a {
    /// Whether there is a bridge.
    pub enabled: bool,
    /// Whether every connected agent can be called by anyone; else only those that ask for it.
    pub v1_open: bool,
    /// Messages per source and minute.
    pub per_minute: u32,
    /// Messages per source and hour.
    pub per_hour: u32,
    /// Messages per source and minute to agents that anyone may call.
    pub open_per_minute: u32,
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The value.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// TLS of the public listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the certificate and its chain.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
}

/// Detection of abuse (`relay.md` §10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abuse {
    /// Whether patterns are looked for; malformed frames always end in a ban.
    pub enabled: bool,
    /// Different recipients in a minute that are spam.
    pub spam_recipients: u32,
    /// Attempts in five minutes that are flooding; never less than 50 times the messages per minute.
    pub flooding_messages: u32,
    /// Logins in an hour that are churn.
    pub churn_logins: u32,
    /// Messages above the size limit in an hour.
    pub oversized_messages: u32,
    /// Messages to and lookups of unknown addresses in ten minutes.
    pub unknown_addresses: u32,
    /// URL that is told of each ban; empty tells nobody.
    pub webhook: String,
}

/// Cost of one more identity (`relay.md` §11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sybil {
    /// Whether young identities have smaller limits.
    pub tiers: bool,
    /// Seconds during which a new identity is hidden from search and discovery.
    pub aging_s: u32,
    /// New connections per source and minute.
    pub connections_per_minute: u32,
    /// Sessions per source at a time.
    pub sessions_per_source: u32,
    /// New identities per source and hour.
    pub identities_per_hour: u32,
}

/// Custody (`relay.md` §7.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Seconds a message is kept.
    pub ttl_s: u32,
    /// Most seconds that a sender of v2 may ask for.
    pub max_ttl_s: u32,
    /// Messages one sender may have waiting for one recipient.
    pub per_pair: u32,
    /// Messages waiting for one recipient.
    pub per_recipient: u32,
    /// Bytes waiting for one recipient.
    pub bytes_per_recipient: u64,
    /// Messages waiting for a recipient never seen here.
    pub unknown_recipient: u32,
    /// Messages that all senders who are no correspondents of the recipient may have waiting together.
    pub strangers: u32,
    /// Bytes of the same.
    pub strangers_bytes: u64,
    /// Messages one sender who is no correspondent may have waiting.
    pub stranger_each: u32,
    /// Receipts and other control mail of correspondents waiting for one recipient, beside everything else.
    pub control: u32,
    /// The same of one sender.
    pub control_each: u32,
    /// Bytes on disk above which new custody is refused.
    pub max_bytes: u64,
    /// Share of the data disk, in percent, above which new custody is refused.
    pub disk_percent: u32,
}

/// Everything the relay can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayConfig {
    /// Address to listen on.
    pub host: IpAddr,
    /// TCP port; 0 lets the system choose.
    pub port: u16,
    /// QUIC.
    pub quic: Quic,
    /// The admin interface.
    pub admin: Admin,
    /// Where `/metrics` is offered without a key; a loopback or private address.
    pub metrics_listen: Option<SocketAddr>,
    /// Certificate and key of the public listener; both empty is plain HTTP behind a proxy.
    pub tls: Tls,
    /// URL under which others reach the relay; needed for agent cards.
    pub public_url: String,
    /// The bridge for plain A2A clients.
    pub a2a: A2a,
    /// Whether the domain of a homepage is asked if it names the agent.
    pub verify_homepages: bool,
    /// Name server for that; `None` asks those of the system.
    pub resolver: Option<SocketAddr>,
    /// Where everything is stored.
    pub data_dir: PathBuf,
    /// Name in registry tokens; by default derived from the relay key.
    pub relay_id: Option<String>,
    /// Who may log in.
    pub mode: Mode,
    /// Keys (base64) that may log in to a private relay.
    pub allow_keys: Vec<String>,
    /// Networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
    /// Rates.
    pub limits: Limits,
    /// Detection of abuse.
    pub abuse: Abuse,
    /// Cost of identities.
    pub sybil: Sybil,
    /// Custody.
    pub queue: Queue,
    /// What an accepted message survives.
    pub durability: DurabilityMode,
    /// What keeps mail.
    pub engine: EngineKind,
    /// The engine that several relays share.
    pub cluster: Cluster,
    /// Filter of the log.
    pub log_level: String,
    /// Whether log lines are JSON.
    pub log_json: bool,
    /// Sessions at a time.
    pub max_sessions: u32,
    /// Seconds a stop may take.
    pub drain_grace_s: u32,
    /// Whether a damaged queue may be put aside for an empty one. A flag only, never in the file.
    pub accept_data_loss: bool,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::from([0, 0, 0, 0]),
            port: 8787,
            quic: Quic { enabled: true, host: None, port: None, public_port: None },
            admin: Admin {
                enabled: true,
                host: IpAddr::from([127, 0, 0, 1]),
                port: None,
                key: None,
                allow_public: false,
            },
            metrics_listen: None,
            tls: Tls { cert: PathBuf::new(), key: PathBuf::new() },
            public_url: String::new(),
            a2a: A2a { enabled: true, v1_open: false, per_minute: 20, per_hour: 200, open_per_minute: 5 },
            verify_homepages: true,
            resolver: None,
            data_dir: PathBuf::from("./data"),
            relay_id: None,
            mode: Mode::Public,
            allow_keys: Vec::new(),
            trusted_proxies: Vec::new(),
            limits: Limits {
                per_source: true,
                auth_per_minute: 60,
                auth_failed_per_minute: 10,
                messages_per_minute: 60,
                messages_per_hour: 1000,
                source_per_minute: 120,
                global_per_minute: 5000,
                discover_per_minute: 10,
                lookup_frames_per_minute: 60,
                presence_of_all_per_minute: 1_000,
                claims_per_minute: 30,
                claims_per_pair_hour: 10,
                claims_per_target_hour: 20,
                blob_mib_per_hour: 256,
                frames_per_minute: 600,
                junk_per_minute: 20,
                search_per_minute: 120,
                search_anonymous_per_minute: 30,
                lookup_per_minute: 240,
                lookup_anonymous_per_minute: 60,
                stats_per_minute: 30,
                put_per_minute: 10,
                delete_per_minute: 5,
                entries_per_hour: 5,
                source_entries_per_hour: 10,
            },
            abuse: Abuse {
                enabled: true,
                spam_recipients: 50,
                flooding_messages: 3000,
                churn_logins: 100,
                oversized_messages: 3,
                unknown_addresses: 30,
                webhook: String::new(),
            },
            sybil: Sybil {
                tiers: true,
                aging_s: 3600,
                connections_per_minute: 10,
                sessions_per_source: 50,
                identities_per_hour: 5,
            },
            queue: Queue {
                ttl_s: 86_400,
                max_ttl_s: 2_592_000,
                per_pair: 100,
                per_recipient: 500,
                bytes_per_recipient: 10 << 20,
                unknown_recipient: 20,
                strangers: 100,
                strangers_bytes: 2 << 20,
                stranger_each: 10,
                control: 200,
                control_each: 50,
                max_bytes: 10 << 30,
                disk_percent: 80,
            },
            durability: DurabilityMode::Power,
            engine: EngineKind::Embedded,
            cluster: Cluster {
                servers: Vec::new(),
                secret: None,
                nkey_file: PathBuf::new(),
                credentials: PathBuf::new(),
                ca: PathBuf::new(),
                replicas: 3,
                allow_weak: false,
                stream_bytes: 1 << 30,
            },
            log_level: "info".into(),
            log_json: true,
            max_sessions: 10_000,
            drain_grace_s: 25,
            accept_data_loss: false,
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {detail}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line and reason.
        detail: String,
    },
    /// Keys that do not exist and values out of range, all at once.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Values(Vec<Problem>),
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where the value came from: the file, a variable or a flag.
    pub origin: String,
    /// The key.
    pub key: String,
    /// The value as given.
    pub value: String,
    /// What is allowed, or that the key does not exist.
    pub expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} = {}: {}", self.origin, self.key, self.value, self.expected)
    }
}

/// A setting given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Dotted key.
    pub key: String,
    /// Value as text; lists are separated by commas.
    pub value: String,
}

impl RelayConfig {
    /// Reads the file (if given, or `<data_dir>/relay.toml` if present), then `env`, then `flags`.
    pub fn load(
        file: Option<&Path>,
        env: impl Fn(&str) -> Option<String>,
        flags: &[Setting],
    ) -> Result<Self, ConfigError> {
        let mut outside: Vec<(String, String, String)> = KEYS
            .iter()
            .filter_map(|key| {
                let variable = key.env?;
                Some((variable.to_owned(), key.name.to_owned(), env(variable)?))
            })
            .collect();
        outside.extend(flags.iter().map(|f| ("flag".to_owned(), f.key.clone(), f.value.clone())));

        let mut config = Self::default();
        let mut problems = Vec::new();
        let path = match file {
            Some(path) => Some(path.to_owned()),
            None => Some(default_file(&outside, &config)).filter(|path| path.exists()),
        };
        if let Some(path) = path {
            for (key, value) in read_file(&path)? {
                config.set(&path.display().to_string(), &key, &value, &mut problems);
            }
        }
        for (origin, key, value) in &outside {
            config.set(origin, key, value, &mut problems);
        }
        if problems.is_empty() {
            config.check(&mut problems);
        }
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Values(problems)) }
    }

    /// The relay that one node of an account runs for all agents of this machine: loopback only, all agents
    /// share one source, so nothing is counted per source and nobody is young.
    pub fn embedded(data_dir: impl Into<PathBuf>) -> Self {
        let mut config = Self {
            host: IpAddr::from([127, 0, 0, 1]),
            data_dir: data_dir.into(),
            drain_grace_s: 5,
            ..Self::default()
        };
        config.admin.enabled = false;
        // On loopback nothing is lost and nothing moves.
        config.quic.enabled = false;
        config.verify_homepages = false;
        config.limits.per_source = false;
        config.sybil.tiers = false;
        config.sybil.aging_s = 0;
        config
    }

    /// [`RelayConfig::embedded`] with what `<data_dir>/relay.toml` and the environment add; the loopback
    /// address stays.
    pub fn embedded_with(data_dir: &Path, env: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut config = Self::embedded(data_dir);
        let mut problems = Vec::new();
        let path = data_dir.join("relay.toml");
        if path.exists() {
            for (key, value) in read_file(&path)? {
                config.set(&path.display().to_string(), &key, &value, &mut problems);
            }
        }
        for key in KEYS {
            let Some(variable) = key.env else { continue };
            if let Some(value) = env(variable) {
                config.set(variable, key.name, &value, &mut problems);
            }
        }
        config.host = IpAddr::from([127, 0, 0, 1]);
        data_dir.clone_into(&mut config.data_dir);
        config.check(&mut problems);
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Values(problems)) }
    }

    /// Effective values as TOML-like lines, in the order of the documentation.
    pub fn print(&self) -> String {
        let line = |key: &keys::Key| format!("{} = {}", key.name, (key.get)(self));
        KEYS.iter().map(line).chain([String::new()]).collect::<Vec<_>>().join("\n")
    }

    /// Port of the admin interface; 0 lets the system choose.
    pub fn admin_port(&self) -> u16 {
        self.admin.port.unwrap_or(if self.port == 0 { 0 } else { 9091 })
    }

    /// Whether plain A2A clients can call agents.
    pub fn has_bridge(&self) -> bool {
        self.a2a.enabled && !self.public_url.is_empty()
    }

    /// Whether the public listener speaks TLS itself.
    pub fn has_tls(&self) -> bool {
        !self.tls.cert.as_os_str().is_empty()
    }

    /// What single values cannot tell.
    fn check(&self, problems: &mut Vec<Problem>) {
        let mut wrong = |key: &str, value: String, expected: &str| {
            let (origin, key, expected) = ("configuration".to_owned(), key.to_owned(), expected.to_owned());
            problems.push(Problem { origin, key, value, expected });
        };
        if self.has_tls() == self.tls.key.as_os_str().is_empty() {
            let files = format!("{} / {}", self.tls.cert.display(), self.tls.key.display());
            wrong("tls.cert", files, "tls.cert and tls.key are given together or not at all");
        }
        let public = !self.admin.host.is_loopback();
        if self.admin.enabled && public && !(self.admin.allow_public && self.has_tls()) {
            let expected =
                "a loopback address, unless admin.allow_public = true and tls.cert and tls.key are given";
            wrong("admin.host", self.admin.host.to_string(), expected);
        }
        if self.engine == EngineKind::Nats {
            for (key, value, expected) in self.cluster.problems() {
                wrong(key, value, expected);
            }
        }
        if let Some(address) = self.metrics_listen.filter(|address| !is_private(address.ip())) {
            wrong("metrics.listen", address.to_string(), "a loopback or private address with a port");
        }
    }

    /// Whether young identities have smaller limits; a private relay has no strangers.
    pub fn tiers(&self) -> bool {
        self.sybil.tiers && self.mode == Mode::Public
    }

    /// Milliseconds during which a new identity is hidden from the directory.
    pub fn aging_ms(&self) -> i64 {
        if self.mode == Mode::Private { 0 } else { i64::from(self.sybil.aging_s) * 1000 }
    }

    fn set(&mut self, origin: &str, name: &str, value: &str, problems: &mut Vec<Problem>) {
        let outcome = match KEYS.iter().find(|key| key.name == name) {
            Some(key) => (key.set)(self, value),
            None => Err("there is no such key".to_owned()),
        };
        if let Err(expected) = outcome {
            let (origin, key, value) = (origin.to_owned(), name.to_owned(), value.to_owned());
            problems.push(Problem { origin, key, value, expected });
        }
    }
}

impl Cluster {
    /// The shared secret, if it is 32 bytes in hex.
    pub fn secret_bytes(&self) -> Option<zeroize::Zeroizing<[u8; 32]>> {
        let mut bytes = zeroize::Zeroizing::new([0; 32]);
        hex::decode_to_slice(self.secret.as_ref()?.expose(), &mut *bytes).ok()?;
        Some(bytes)
    }

    fn problems(&self) -> Vec<(&'static str, String, &'static str)> {
        let mut problems = Vec::new();
        if self.servers.is_empty() {
            problems.push(("cluster.servers", String::new(), "engine = nats needs the URL of a server"));
        }
        for server in self.servers.iter().filter(|server| !is_safe_server(server)) {
            let expected =
                "tls://host:port, or nats://host:port on loopback (what goes over it is not encrypted)";
            problems.push(("cluster.servers", server.clone(), expected));
        }
        if self.secret_bytes().is_none() {
            let expected = "64 hex digits that all relays of the cluster share (openssl rand -hex 32)";
            problems.push(("cluster.secret", "[not shown]".to_owned(), expected));
        }
        problems
    }
}

/// NATS is inside the trust boundary: TLS, unless nobody else can listen.
fn is_safe_server(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match uri.scheme_str() {
        Some("tls") => !host.is_empty(),
        Some("nats") => loopback,
        _ => false,
    }
}

fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local(),
    }
}

fn default_file(outside: &[(String, String, String)], config: &RelayConfig) -> PathBuf {
    let given = outside.iter().rev().find(|(_, key, _)| key == "data_dir");
    given.map_or_else(|| config.data_dir.clone(), |(_, _, dir)| PathBuf::from(dir)).join("relay.toml")
}

fn read_file(path: &Path) -> Result<Vec<(String, String)>, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| ConfigError::Syntax { path: path.to_owned(), detail: e.to_string() })?;
    let mut flat = Vec::new();
    flatten("", &table, &mut flat);
    Ok(flat)
}

fn flatten(prefix: &str, table: &toml::Table, out: &mut Vec<(String, String)>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&name, inner, out),
            toml::Value::Array(items) => {
                let items: Vec<String> = items.iter().map(plain).collect();
                out.push((name, items.join(",")));
            }
            other => out.push((name, plain(other))),
        }
    }
}

fn plain(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether `ip` is inside; an IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.base, ip.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => {
                let shift = 32 - u32::from(self.prefix);
                u32::from(base).checked_shr(shift) == u32::from(ip).checked_shr(shift)
            }
            (IpAddr::V6(base), IpAddr::V6(ip)) => {
                let shift = 128 - u32::from(self.prefix);
                u128::from(base).checked_shr(shift) == u128::from(ip).checked_shr(shift)
            }
            _ => false,
        }
    }
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "a network such as 10.0.0.0/8".to_owned();
        let (base, prefix) = text.split_once('/').unwrap_or((text, ""));
        let base: IpAddr = base.parse().map_err(|_| expected())?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let prefix = if prefix.is_empty() { most } else { prefix.parse().map_err(|_| expected())? };
        if prefix > most { Err(expected()) } else { Ok(Self { base, prefix }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flags(list: &[(&str, &str)]) -> Vec<Setting> {
        list.iter().map(|(k, v)| Setting { key: (*k).into(), value: (*v).into() }).collect()
    }

    #[test]
    fn flags_beat_environment_beats_file() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("relay.toml");
        std::fs::write(&path, "port = 1\n[queue]\nttl_s = 60\nper_pair = 7\n").expect("write");
        let env = |name: &str| (name == "RELAY_PORT").then(|| "2".to_owned());
        let config = RelayConfig::load(Some(&path), env, &flags(&[("queue.per_pair", "9")])).expect("load");
        assert_eq!((config.port, config.queue.ttl_s, config.queue.per_pair), (2, 60, 9));
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("relay.toml");
        std::fs::write(&path, "prot = 1\nport = 70000\n[limits]\nglobal_per_minute = 0\n").expect("write");
        let Err(ConfigError::Values(problems)) = RelayConfig::load(Some(&path), |_| None, &[]) else {
            panic!("refused")
        };
        let keys: Vec<&str> = problems.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(keys, ["limits.global_per_minute", "port", "prot"]);
        assert!(problems[1].to_string().contains("70000") && problems[1].to_string().contains("0–65535"));
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("relay.toml");
        let config = RelayConfig { max_sessions: 7, ..RelayConfig::embedded("/x y") };
        std::fs::write(&path, config.print()).expect("write");
        assert_eq!(RelayConfig::load(Some(&path), |_| None, &[]).expect("load"), config);
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(text in "\\PC{0,200}") {
            let dir = tempfile::tempdir().expect("dir");
            let path = dir.path().join("relay.toml");
            std::fs::write(&path, text).expect("write");
            let _ = RelayConfig::load(Some(&path), |_| None, &[]);
        }
    }
}
