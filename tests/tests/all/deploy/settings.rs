//! What the files set is what the relay reads.

use std::cell::RefCell;

use serde_json::Value;
use threadline_relay::RelayConfig;

use super::compose::{Compose, text};
use super::containerfile::Image;
use super::unit::Unit;
use super::{documents, folder, read, seconds};

/// Variables that the relay reads.
fn known_variables() -> Vec<String> {
    let asked = RefCell::new(Vec::new());
    let ask = |name: &str| {
        asked.borrow_mut().push(name.to_owned());
        None
    };
    RelayConfig::load(None, ask, &[]).expect("defaults");
    asked.into_inner()
}

fn pairs(map: &Value) -> Vec<(String, String)> {
    let map = map.as_object().into_iter().flatten();
    map.map(|(name, value)| (name.clone(), text(value))).collect()
}

/// The environment that each file gives to a relay.
fn environments() -> Vec<(&'static str, Vec<(String, String)>)> {
    let unit = Unit::read("systemd/threadline-relay.service");
    let unit = unit.all("Environment").into_iter().map(|pair| pair.split_once('=').expect("NAME=value"));
    let fly: toml::Table = read("fly.toml").parse().expect("TOML");
    let fly = serde_json::to_value(&fly["env"]).expect("a table");
    let set = &documents("kubernetes/relay.yaml")[1]["spec"]["template"]["spec"]["containers"][0]["env"];
    let set = set.as_array().into_iter().flatten().filter(|pair| pair.get("value").is_some());
    let set = set.map(|pair| (text(&pair["name"]), text(&pair["value"]).replace("$(POD_IP)", "10.1.2.3")));
    let compose = Compose::read("compose.single.yaml", &[("THREADLINE_SITE", "relay.example.org")]);
    vec![
        ("Containerfile", Image::read().env),
        ("compose.single.yaml", compose.environment("relay")),
        ("systemd", unit.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()),
        ("fly.toml", pairs(&fly)),
        ("kubernetes", set.collect()),
    ]
}

#[test]
fn every_variable_exists_and_takes_its_value() {
    let known = known_variables();
    for (file, environment) in environments() {
        assert!(!environment.is_empty(), "{file}");
        for (name, _) in &environment {
            assert!(known.contains(name), "{file}: the relay reads no {name}");
        }
        let get = |wanted: &str| {
            environment.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone())
        };
        RelayConfig::load(None, get, &[]).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

#[test]
fn every_relay_toml_is_one() {
    let example = RelayConfig::load(Some(&folder().join("relay.toml")), |_| None, &[]).expect("relay.toml");
    assert!(example.host.is_loopback());
    assert!(example.quic.host.is_some_and(|host| host.is_unspecified()), "QUIC goes past the proxy");
    let map = &documents("kubernetes/relay.yaml")[0]["data"]["relay.toml"];
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), map.as_str().expect("text")).expect("written");
    RelayConfig::load(Some(file.path()), |_| None, &[]).expect("the ConfigMap");
}

#[test]
fn a_stop_is_given_more_time_than_the_relay_takes() {
    let grace = u64::from(RelayConfig::default().drain_grace_s);
    let compose = Compose::read("compose.single.yaml", &[("THREADLINE_SITE", "relay.example.org")]);
    let unit = Unit::read("systemd/threadline-relay.service");
    let fly: toml::Table = read("fly.toml").parse().expect("TOML");
    let pod = &documents("kubernetes/relay.yaml")[1]["spec"]["template"]["spec"];
    let before = &pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"];
    let given = [
        ("compose", seconds(&text(&compose.service("relay")["stop_grace_period"]))),
        ("systemd", seconds(unit.service("TimeoutStopSec"))),
        ("fly", u64::try_from(fly["kill_timeout"].as_integer().expect("seconds")).expect("positive")),
        (
            "kubernetes",
            pod["terminationGracePeriodSeconds"].as_u64().expect("seconds")
                - before.as_u64().expect("seconds"),
        ),
    ];
    for (file, given) in given {
        assert!(given >= grace + 5, "{file} gives {given} s, the relay takes up to {grace} s");
    }
}
