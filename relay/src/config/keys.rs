//! The table of configuration keys: name, variable, how to read, how to print.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::{DurabilityMode, EngineKind, Mode, RelayConfig, Secret};

pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) env: Option<&'static str>,
    pub(super) set: fn(&mut RelayConfig, &str) -> Result<(), String>,
    pub(super) get: fn(&RelayConfig) -> String,
}

macro_rules! number {
    ($name:literal, $env:expr, $($field:ident).+, $range:expr) => {
        Key {
            name: $name,
            env: $env,
            set: |c, v| { c.$($field).+ = number(v, $range)?; Ok(()) },
            get: |c| c.$($field).+.to_string(),
        }
    };
}

macro_rules! flag {
    ($name:literal, $($field:ident).+) => {
        Key {
            name: $name,
            env: None,
            set: |c, v| { c.$($field).+ = v.parse().map_err(|_| "true or false".to_owned())?; Ok(()) },
            get: |c| c.$($field).+.to_string(),
        }
    };
}

macro_rules! file {
    ($name:literal, $env:expr, $($field:ident).+) => {
        Key {
            name: $name,
            env: $env,
            set: |c, v| { c.$($field).+ = v.into(); Ok(()) },
            get: |c| quoted(&c.$($field).+.to_string_lossy()),
        }
    };
}

const MANY: u32 = 1_000_000_000;

pub(super) const KEYS: &[Key] = &[
    Key {
        name: "host",
        env: Some("RELAY_HOST"),
        set: |c, v| {
            c.host = v.parse().map_err(|_| "an IP address".to_owned())?;
            Ok(())
        },
        get: |c| quoted(&c.host.to_string()),
    },
    number!("port", Some("RELAY_PORT"), port, 0..=65535),
    Key {
        name: "quic.enabled",
        env: Some("RELAY_QUIC"),
        set: |c, v| {
            c.quic.enabled = v.parse().map_err(|_| "true or false".to_owned())?;
            Ok(())
        },
        get: |c| c.quic.enabled.to_string(),
    },
    Key {
        name: "quic.host",
        env: Some("RELAY_QUIC_HOST"),
        set: |c, v| {
            let parsed = (!v.is_empty()).then(|| v.parse()).transpose();
            c.quic.host = parsed.map_err(|_| "an IP address, or nothing for that of `host`".to_owned())?;
            Ok(())
        },
        get: |c| quoted(&c.quic.host.map(|host| host.to_string()).unwrap_or_default()),
    },
    Key {
        name: "quic.port",
        env: Some("RELAY_QUIC_PORT"),
        set: |c, v| {
            c.quic.port = if v == "auto" { None } else { Some(number(v, 0..=65535)?) };
            Ok(())
        },
        get: |c| c.quic.port.map_or_else(|| quoted("auto"), |port| port.to_string()),
    },
    Key {
        name: "quic.public_port",
        env: Some("RELAY_QUIC_PUBLIC_PORT"),
        set: |c, v| {
            c.quic.public_port = if v == "auto" { None } else { Some(number(v, 1..=65535)?) };
            Ok(())
        },
        get: |c| c.quic.public_port.map_or_else(|| quoted("auto"), |port| port.to_string()),
    },
    flag!("admin.enabled", admin.enabled),
    Key {
        name: "admin.host",
        env: Some("RELAY_ADMIN_HOST"),
        set: |c, v| {
            c.admin.host = v.parse().map_err(|_| "an IP address".to_owned())?;
            Ok(())
        },
        get: |c| quoted(&c.admin.host.to_string()),
    },
    Key {
        name: "admin.port",
        env: Some("RELAY_ADMIN_PORT"),
        set: |c, v| {
            c.admin.port = if v == "auto" { None } else { Some(number(v, 0..=65535)?) };
            Ok(())
        },
        get: |c| c.admin.port.map_or_else(|| quoted("auto"), |port| port.to_string()),
    },
    Key {
        name: "admin.key",
        env: Some("RELAY_ADMIN_KEY"),
        set: |c, v| {
            if !v.is_empty() && v.len() < crate::admin::MIN_KEY {
                return Err(format!("at least {} characters", crate::admin::MIN_KEY));
            }
            c.admin.key = Some(Secret(v.to_owned())).filter(|_| !v.is_empty());
            Ok(())
        },
        get: |c| quoted("") + if c.admin.key.is_some() { " # set, not shown" } else { "" },
    },
    flag!("admin.allow_public", admin.allow_public),
    Key {
        name: "metrics.listen",
        env: Some("RELAY_METRICS_LISTEN"),
        set: |c, v| {
            let parsed = (!v.is_empty()).then(|| v.parse()).transpose();
            c.metrics_listen =
                parsed.map_err(|_| "an address with a port, such as 127.0.0.1:9092".to_owned())?;
            Ok(())
        },
        get: |c| quoted(&c.metrics_listen.map(|address| address.to_string()).unwrap_or_default()),
    },
    file!("tls.cert", None, tls.cert),
    file!("tls.key", None, tls.key),
    Key {
        name: "public_url",
        env: Some("RELAY_PUBLIC_URL"),
        set: |c, v| {
            url(v)?.trim_end_matches('/').clone_into(&mut c.public_url);
            Ok(())
        },
        get: |c| quoted(&c.public_url),
    },
    flag!("registry.verify_homepages", verify_homepages),
    Key {
        name: "registry.resolver",
        env: None,
        set: |c, v| {
            let parsed = (!v.is_empty()).then(|| v.parse()).transpose();
            c.resolver = parsed.map_err(|_| "an address with a port, such as 127.0.0.1:53".to_owned())?;
            Ok(())
        },
        get: |c| quoted(&c.resolver.map(|address| address.to_string()).unwrap_or_default()),
    },
    Key {
        name: "data_dir",
        env: Some("RELAY_DATA_DIR"),
        set: |c, v| {
            if v.is_empty() {
                return Err("a directory".into());
            }
            c.data_dir = v.into();
            Ok(())
        },
        get: |c| quoted(&c.data_dir.to_string_lossy()),
    },
    Key {
        name: "relay_id",
        env: Some("RELAY_ID"),
        set: |c, v| {
            let fits = v.len() <= 128 && v.bytes().all(|b| b.is_ascii_graphic());
            c.relay_id = Some(v.to_owned()).filter(|v| !v.is_empty());
            if fits { Ok(()) } else { Err("at most 128 visible ASCII characters".into()) }
        },
        get: |c| quoted(c.relay_id.as_deref().unwrap_or_default()),
    },
    Key {
        name: "mode",
        env: Some("RELAY_MODE"),
        set: |c, v| {
            c.mode = match v {
                "public" => Mode::Public,
                "private" => Mode::Private,
                _ => return Err("public or private".into()),
            };
            Ok(())
        },
        get: |c| quoted(if c.mode == Mode::Public { "public" } else { "private" }),
    },
    Key {
        name: "allow_keys",
        env: None,
        set: |c, v| {
            let keys: Vec<String> = list(v)?;
            if keys.iter().any(|k| crate::keys::decode_public(k).is_none()) {
                return Err("base64 of 32-byte public keys".into());
            }
            c.allow_keys = keys;
            Ok(())
        },
        get: |c| format!("[{}]", c.allow_keys.iter().map(|k| quoted(k)).collect::<Vec<_>>().join(", ")),
    },
    Key {
        name: "trusted_proxies",
        env: Some("RELAY_TRUSTED_PROXIES"),
        set: |c, v| {
            c.trusted_proxies = list(v)?;
            Ok(())
        },
        get: |c| {
            let items: Vec<String> = c.trusted_proxies.iter().map(|n| quoted(&n.to_string())).collect();
            format!("[{}]", items.join(", "))
        },
    },
    flag!("limits.per_source", limits.per_source),
    number!("limits.auth_per_minute", Some("RELAY_AUTH_RATE"), limits.auth_per_minute, 1..=MANY),
    number!("limits.auth_failed_per_minute", None, limits.auth_failed_per_minute, 1..=MANY),
    number!("limits.messages_per_minute", None, limits.messages_per_minute, 1..=MANY),
    number!("limits.messages_per_hour", None, limits.messages_per_hour, 1..=MANY),
    number!("limits.source_per_minute", None, limits.source_per_minute, 1..=MANY),
    number!("limits.global_per_minute", None, limits.global_per_minute, 1..=MANY),
    number!("limits.discover_per_minute", None, limits.discover_per_minute, 1..=MANY),
    number!("limits.frames_per_minute", None, limits.frames_per_minute, 1..=MANY),
    number!("limits.lookup_frames_per_minute", None, limits.lookup_frames_per_minute, 1..=MANY),
    number!("limits.presence_of_all_per_minute", None, limits.presence_of_all_per_minute, 1..=MANY),
    number!("limits.claims_per_minute", None, limits.claims_per_minute, 1..=MANY),
    number!("limits.claims_per_pair_hour", None, limits.claims_per_pair_hour, 1..=MANY),
    number!("limits.claims_per_target_hour", None, limits.claims_per_target_hour, 1..=MANY),
    number!("limits.blob_mib_per_hour", None, limits.blob_mib_per_hour, 0..=MANY),
    number!("limits.junk_per_minute", None, limits.junk_per_minute, 1..=MANY),
    number!("limits.search_per_minute", None, limits.search_per_minute, 1..=MANY),
    number!("limits.search_anonymous_per_minute", None, limits.search_anonymous_per_minute, 1..=MANY),
    number!("limits.lookup_per_minute", None, limits.lookup_per_minute, 1..=MANY),
    number!("limits.lookup_anonymous_per_minute", None, limits.lookup_anonymous_per_minute, 1..=MANY),
    number!("limits.stats_per_minute", None, limits.stats_per_minute, 1..=MANY),
    number!("limits.put_per_minute", None, limits.put_per_minute, 1..=MANY),
    number!("limits.delete_per_minute", None, limits.delete_per_minute, 1..=MANY),
    number!("limits.entries_per_hour", None, limits.entries_per_hour, 1..=MANY),
    number!("limits.source_entries_per_hour", None, limits.source_entries_per_hour, 1..=MANY),
    flag!("a2a.enabled", a2a.enabled),
    Key {
        name: "a2a.v1_default",
        env: None,
        set: |c, v| {
            c.a2a.v1_open = match v {
                "open" => true,
                "closed" => false,
                _ => return Err("open or closed".into()),
            };
            Ok(())
        },
        get: |c| quoted(if c.a2a.v1_open { "open" } else { "closed" }),
    },
    number!("a2a.per_minute", None, a2a.per_minute, 1..=MANY),
    number!("a2a.per_hour", None, a2a.per_hour, 1..=MANY),
    number!("a2a.open_per_minute", None, a2a.open_per_minute, 1..=MANY),
    flag!("abuse.enabled", abuse.enabled),
    number!("abuse.spam_recipients", None, abuse.spam_recipients, 1..=MANY),
    number!("abuse.flooding_messages", None, abuse.flooding_messages, 1..=MANY),
    number!("abuse.churn_logins", None, abuse.churn_logins, 1..=MANY),
    number!("abuse.oversized_messages", None, abuse.oversized_messages, 1..=MANY),
    number!("abuse.unknown_addresses", None, abuse.unknown_addresses, 1..=MANY),
    Key {
        name: "abuse.webhook",
        env: None,
        set: |c, v| {
            c.abuse.webhook = url(v)?;
            Ok(())
        },
        get: |c| quoted(&c.abuse.webhook),
    },
    flag!("sybil.tiers", sybil.tiers),
    number!("sybil.aging_s", None, sybil.aging_s, 0..=31_536_000),
    number!("sybil.connections_per_minute", None, sybil.connections_per_minute, 1..=MANY),
    number!("sybil.sessions_per_source", None, sybil.sessions_per_source, 1..=MANY),
    number!("sybil.identities_per_hour", None, sybil.identities_per_hour, 1..=MANY),
    number!("queue.ttl_s", None, queue.ttl_s, 1..=2_592_000),
    number!("queue.max_ttl_s", None, queue.max_ttl_s, 60..=2_592_000),
    number!("queue.per_pair", None, queue.per_pair, 1..=MANY),
    number!("queue.per_recipient", None, queue.per_recipient, 1..=MANY),
    number!("queue.bytes_per_recipient", None, queue.bytes_per_recipient, 1..=1 << 40),
    number!("queue.unknown_recipient", None, queue.unknown_recipient, 0..=MANY),
    number!("queue.strangers", None, queue.strangers, 0..=MANY),
    number!("queue.strangers_bytes", None, queue.strangers_bytes, 0..=1 << 40),
    number!("queue.stranger_each", None, queue.stranger_each, 0..=MANY),
    number!("queue.control", None, queue.control, 0..=MANY),
    number!("queue.control_each", None, queue.control_each, 0..=MANY),
    number!("queue.max_bytes", None, queue.max_bytes, 1..=1 << 50),
    number!("queue.disk_percent", None, queue.disk_percent, 1..=100),
    Key {
        name: "durability",
        env: Some("RELAY_DURABILITY"),
        set: |c, v| {
            c.durability = match v {
                "power" => DurabilityMode::Power,
                "process" => DurabilityMode::Process,
                _ => return Err("power or process".into()),
            };
            Ok(())
        },
        get: |c| quoted(if c.durability == DurabilityMode::Power { "power" } else { "process" }),
    },
    Key {
        name: "engine",
        env: Some("RELAY_ENGINE"),
        set: |c, v| {
            c.engine = match v {
                "sqlite" => EngineKind::Embedded,
                "nats" => EngineKind::Nats,
                _ => return Err("sqlite or nats".into()),
            };
            Ok(())
        },
        get: |c| quoted(if c.engine == EngineKind::Embedded { "sqlite" } else { "nats" }),
    },
    Key {
        name: "cluster.servers",
        env: Some("RELAY_CLUSTER_SERVERS"),
        set: |c, v| {
            c.cluster.servers = list(v)?;
            Ok(())
        },
        get: |c| format!("[{}]", c.cluster.servers.iter().map(|s| quoted(s)).collect::<Vec<_>>().join(", ")),
    },
    Key {
        name: "cluster.secret",
        env: Some("RELAY_CLUSTER_SECRET"),
        set: |c, v| {
            c.cluster.secret = Some(Secret(v.to_owned())).filter(|_| !v.is_empty());
            Ok(())
        },
        get: |c| quoted("") + if c.cluster.secret.is_some() { " # set, not shown" } else { "" },
    },
    file!("cluster.nkey_file", Some("RELAY_CLUSTER_NKEY_FILE"), cluster.nkey_file),
    file!("cluster.credentials", Some("RELAY_CLUSTER_CREDENTIALS"), cluster.credentials),
    file!("cluster.ca", Some("RELAY_CLUSTER_CA"), cluster.ca),
    Key {
        name: "cluster.replicas",
        env: Some("RELAY_CLUSTER_REPLICAS"),
        set: |c, v| {
            c.cluster.replicas = number(v, 1..=5)?;
            if c.cluster.replicas % 2 == 1 { Ok(()) } else { Err("1, 3 or 5".into()) }
        },
        get: |c| c.cluster.replicas.to_string(),
    },
    flag!("cluster.allow_weak", cluster.allow_weak),
    number!("cluster.stream_bytes", None, cluster.stream_bytes, 1 << 16..=1 << 50),
    Key {
        name: "log.level",
        env: Some("RELAY_LOG"),
        set: |c, v| {
            v.clone_into(&mut c.log_level);
            if ["error", "warn", "info", "debug", "trace"].contains(&v) {
                return Ok(());
            }
            Err("error, warn, info, debug or trace".into())
        },
        get: |c| quoted(&c.log_level),
    },
    Key {
        name: "log.format",
        env: None,
        set: |c, v| {
            c.log_json = match v {
                "json" => true,
                "text" => false,
                _ => return Err("json or text".into()),
            };
            Ok(())
        },
        get: |c| quoted(if c.log_json { "json" } else { "text" }),
    },
    number!("max_sessions", None, max_sessions, 1..=1_000_000),
    number!("drain.grace_s", None, drain_grace_s, 0..=3_600),
];

fn number<T>(text: &str, range: RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    let expected = || format!("a whole number, {}–{}", range.start(), range.end());
    let value: T = text.replace('_', "").parse().map_err(|_| expected())?;
    if range.contains(&value) { Ok(value) } else { Err(expected()) }
}

/// An http or https URL, or nothing.
fn url(text: &str) -> Result<String, String> {
    let parsed: Option<http::Uri> = text.parse().ok();
    let good = parsed.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
    if text.is_empty() || good { Ok(text.to_owned()) } else { Err("an http or https URL".into()) }
}

fn list<T: FromStr<Err: ToString>>(text: &str) -> Result<Vec<T>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items.map(|item| item.parse().map_err(|e: T::Err| e.to_string())).collect()
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
