//! Compose files.

use std::net::IpAddr;

use serde_json::Value;
use threadline_relay::RelayConfig;
use threadline_relay::config::{EngineKind, Network};

use super::documents;

/// A compose file with its variables filled in.
#[derive(Debug)]
pub(super) struct Compose {
    file: Value,
}

impl Compose {
    /// Reads a file; `variables` is the environment of the person who starts it.
    pub(super) fn read(name: &str, variables: &[(&str, &str)]) -> Self {
        let [file]: [Value; 1] = documents(name).try_into().expect("one document");
        let mut file = file;
        fill(&mut file, variables);
        Self { file }
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.file["services"].as_object().expect("services").keys().cloned().collect()
    }

    pub(super) fn service(&self, name: &str) -> &Value {
        let service = &self.file["services"][name];
        assert!(service.is_object(), "no service {name}");
        service
    }

    /// Environment of a service.
    pub(super) fn environment(&self, name: &str) -> Vec<(String, String)> {
        let Some(environment) = self.service(name).get("environment") else { return Vec::new() };
        let pairs = environment.as_object().expect("a mapping").iter();
        pairs.map(|(key, value)| (key.clone(), text(value))).collect()
    }

    /// The fixed address of a service in a network.
    pub(super) fn address(&self, name: &str, network: &str) -> IpAddr {
        let address = self.service(name)["networks"][network]["ipv4_address"].as_str();
        address.and_then(|ip| ip.parse().ok()).unwrap_or_else(|| panic!("{name} has no address in {network}"))
    }
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn fill(value: &mut Value, variables: &[(&str, &str)]) {
    match value {
        Value::String(text) => *text = interpolate(text, variables),
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, variables)),
        Value::Object(fields) => fields.values_mut().for_each(|field| fill(field, variables)),
        _ => {}
    }
}

/// `${NAME}`, `${NAME:-default}` and `${NAME:?complaint}`.
fn interpolate(text: &str, variables: &[(&str, &str)]) -> String {
    let Some((before, rest)) = text.split_once("${") else { return text.to_owned() };
    let (inside, after) = rest.split_once('}').unwrap_or_else(|| panic!("{text} is not closed"));
    let split = inside.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inside.len());
    let (name, rule) = inside.split_at(split);
    let given = variables.iter().find(|(known, value)| *known == name && !value.is_empty());
    let value = match (given, rule.get(..2)) {
        (Some((_, value)), _) => (*value).to_owned(),
        (None, Some(":-")) => rule[2..].to_owned(),
        (None, Some(":?")) => panic!("{name} is not set: {}", &rule[2..]),
        (None, _) => panic!("{name} is not set, and {text} has no default"),
    };
    format!("{before}{value}{}", interpolate(after, variables))
}

#[test]
fn only_the_proxy_is_trusted_and_reachable() {
    let compose = Compose::read("compose.single.yaml", &[("THREADLINE_SITE", "relay.example.org")]);
    assert_eq!(compose.names(), ["relay", "proxy", "prometheus", "grafana"]);
    for name in ["prometheus", "grafana"] {
        assert_eq!(compose.service(name)["profiles"][0], "monitoring");
        let port = text(&compose.service(name)["ports"][0]);
        assert!(port.starts_with("127.0.0.1:"), "{name} is open to the world: {port}");
    }
    let relay = compose.service("relay");
    let quic = RelayConfig::default().quic;
    assert!(quic.enabled && quic.port.is_none(), "on its usual port");
    assert_eq!(relay["ports"], serde_json::json!(["8788:8788/udp"]), "only QUIC is not behind the proxy");
    assert_eq!(relay["read_only"], true);
    assert_eq!(relay["cap_drop"][0], "ALL");
    assert_eq!(relay["ulimits"]["nofile"], 65536);
    assert_eq!(relay["volumes"][0], "relay-data:/data");
    let environment = compose.environment("relay");
    let trusted = environment.iter().find(|(name, _)| name == "RELAY_TRUSTED_PROXIES").expect("set");
    let trusted: Network = trusted.1.parse().expect("a network");
    assert!(trusted.contains(compose.address("proxy", "edge")));
    assert!(!trusted.contains(compose.address("relay", "edge")));
    assert!(!trusted.contains("172.30.87.1".parse().expect("ip")), "the host is no proxy");
}

#[test]
#[should_panic(expected = "THREADLINE_SITE is not set")]
fn without_a_public_name_it_does_not_start() {
    Compose::read("compose.single.yaml", &[]);
}

const CLUSTER: &[(&str, &str)] = &[
    ("CLUSTER_SECRET", "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"),
    ("RELAY_1_NKEY", "U1"),
    ("RELAY_2_NKEY", "U2"),
    ("RELAY_3_NKEY", "U3"),
];

#[test]
fn three_relays_take_their_environment_and_share_one_engine() {
    let compose = Compose::read("compose.cluster.yaml", CLUSTER);
    for n in 1..=3 {
        let name = format!("relay-{n}");
        let environment = compose.environment(&name);
        let lookup = |variable: &str| {
            environment.iter().find(|(known, _)| known == variable).map(|(_, value)| value.clone())
        };
        let known = RelayConfig::load(None, lookup, &[]).expect("a relay takes it");
        assert_eq!(known.engine, EngineKind::Nats);
        assert_eq!((known.cluster.servers.len(), known.cluster.replicas), (3, 3));
        assert!(!known.cluster.allow_weak, "a weak engine is refused there");
        assert!(known.trusted_proxies[0].contains(compose.address("proxy", "edge")));
        for server in &known.cluster.servers {
            let host = server.trim_start_matches("tls://").trim_end_matches(":4222");
            assert!(compose.service(host).get("ports").is_none(), "{host} is behind the relays");
        }
        let metrics = known.metrics_listen.expect("metrics").ip();
        assert_eq!(metrics, compose.address(&name, "edge"));
        assert!(compose.service(&name).get("ports").is_none(), "{name} is behind the proxy");
    }
}

#[test]
#[should_panic(expected = "CLUSTER_SECRET is not set")]
fn without_a_secret_no_cluster_starts() {
    Compose::read("compose.cluster.yaml", &CLUSTER[1..]);
}
