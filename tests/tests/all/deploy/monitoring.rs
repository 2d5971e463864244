//! Alerts and dashboard.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{documents, read};

/// Every PromQL expression of the dashboard, with its variables filled in.
pub(super) fn dashboard_expressions() -> Vec<String> {
    let dashboard: Value =
        serde_json::from_str(&read("monitoring/grafana/dashboards/relay.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let expressions = targets.map(|target| target["expr"].as_str().expect("an expression"));
    expressions.map(|text| text.replace("$instance", ".*").replace("$__rate_interval", "1m")).collect()
}

fn alert_expressions() -> Vec<String> {
    let [rules]: [Value; 1] = documents("monitoring/alerts.yml").try_into().expect("one document");
    let groups = rules["groups"].as_array().expect("groups");
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().expect("rules"));
    rules.map(|rule| rule["expr"].as_str().expect("an expression").to_owned()).collect()
}

/// Every metric of the relay that alerts and dashboard ask for.
pub(super) fn metrics_asked_for() -> BTreeSet<String> {
    let name = regex::Regex::new(r"threadline_[a-z0-9_]+").expect("a pattern");
    let all = dashboard_expressions().into_iter().chain(alert_expressions());
    all.flat_map(|text| name.find_iter(&text).map(|found| found.as_str().to_owned()).collect::<Vec<_>>())
        .collect()
}

/// Names of the series in a Prometheus text.
pub(super) fn series(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| line.split(['{', ' ']).next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_dashboard_is_found_and_has_a_source() {
    let one = |name: &str| -> Value {
        let [file]: [Value; 1] = documents(name).try_into().expect("one document");
        file
    };
    let source = one("monitoring/grafana/provisioning/datasources/prometheus.yaml");
    let source = &source["datasources"][0];
    assert_eq!(source["url"], "http://prometheus:9090");
    let provider = one("monitoring/grafana/provisioning/dashboards/relay.yaml");
    let place = provider["providers"][0]["options"]["path"].as_str().expect("a path");
    let compose = one("compose.single.yaml");
    let volumes = compose["services"]["grafana"]["volumes"].as_array().expect("volumes");
    let mounted = format!("./monitoring/grafana/dashboards:{place}:ro");
    assert!(volumes.iter().any(|volume| *volume == mounted), "{mounted} is in none of {volumes:?}");
    let dashboard: Value =
        serde_json::from_str(&read("monitoring/grafana/dashboards/relay.json")).expect("JSON");
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert_eq!(panel["datasource"]["uid"], source["uid"], "{}", panel["title"]);
    }
    let mut ids: Vec<_> =
        dashboard["panels"].as_array().expect("panels").iter().map(|p| p["id"].as_u64()).collect();
    ids.dedup();
    assert_eq!(ids.len(), dashboard["panels"].as_array().expect("panels").len(), "ids of panels repeat");
}

#[test]
fn the_alerts_say_what_to_do() {
    let [rules]: [Value; 1] = documents("monitoring/alerts.yml").try_into().expect("one document");
    for rule in rules["groups"][0]["rules"].as_array().expect("rules") {
        for text in [&rule["annotations"]["summary"], &rule["annotations"]["description"]] {
            assert!(text.as_str().is_some_and(|text| text.len() > 20), "{rule}");
        }
        assert!(["critical", "warning"].contains(&rule["labels"]["severity"].as_str().unwrap_or_default()));
    }
}
