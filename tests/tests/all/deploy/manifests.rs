//! fly.toml and the Kubernetes manifests: what the schema does not know.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{documents, read};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the fields are there to be known, few are looked at")]
struct Fly {
    app: String,
    primary_region: String,
    kill_signal: String,
    kill_timeout: u32,
    build: FlyBuild,
    env: toml::Table,
    mounts: FlyMounts,
    http_service: FlyService,
    vm: Vec<FlyMachine>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlyBuild {
    dockerfile: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct FlyMounts {
    source: String,
    destination: String,
    snapshot_retention: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct FlyService {
    internal_port: u16,
    force_https: bool,
    auto_stop_machines: String,
    auto_start_machines: bool,
    min_machines_running: u32,
    concurrency: FlyConcurrency,
    checks: Vec<FlyCheck>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlyConcurrency {
    r#type: String,
    soft_limit: u32,
    hard_limit: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct FlyCheck {
    method: String,
    path: String,
    interval: String,
    timeout: String,
    grace_period: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct FlyMachine {
    size: String,
    memory: String,
}

#[test]
fn fly_runs_one_machine_that_stays_up() {
    let fly: Fly = toml::from_str(&read("fly.toml")).expect("only known keys");
    assert_eq!(fly.build.dockerfile, "Containerfile");
    assert_eq!(fly.mounts.destination, "/data");
    assert_eq!((fly.kill_signal.as_str(), fly.http_service.internal_port), ("SIGTERM", 8787));
    assert_eq!(
        (fly.http_service.auto_stop_machines.as_str(), fly.http_service.min_machines_running),
        ("off", 1)
    );
    assert_eq!(fly.http_service.checks[0].path, "/ready");
    let most = threadline_relay::RelayConfig::default().max_sessions;
    let limits = &fly.http_service.concurrency;
    assert!(
        limits.r#type == "connections" && limits.soft_limit < limits.hard_limit && limits.hard_limit <= most
    );
}

/// The object of a kind in a file.
fn object(file: &str, kind: &str) -> Value {
    let mut all = documents(file).into_iter().filter(|document| document["kind"] == kind);
    let found = all.next().unwrap_or_else(|| panic!("no {kind} in {file}"));
    assert!(all.next().is_none(), "{kind} twice");
    found
}

#[test]
fn the_objects_of_the_cluster_name_each_other() {
    let set = object("kubernetes/relay.yaml", "StatefulSet");
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    assert!(labels.is_object());
    assert_eq!(&set["spec"]["selector"]["matchLabels"], labels);
    for kind in ["Service", "PodDisruptionBudget", "NetworkPolicy"] {
        let spec = &object("kubernetes/relay.yaml", kind)["spec"];
        let selector =
            [&spec["selector"]["matchLabels"], &spec["podSelector"]["matchLabels"], &spec["selector"]];
        assert!(selector.contains(&labels), "{kind} selects other pods: {spec}");
    }
    let pod = &set["spec"]["template"]["spec"];
    let relay = &pod["containers"][0];
    assert_eq!(relay["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        relay["ports"],
        json!([{"name": "http", "containerPort": 8787}, {"name": "metrics", "containerPort": 9092}])
    );
    let path = |probe: &str| &relay[probe]["httpGet"];
    assert_eq!(path("startupProbe"), &json!({"path": "/ready", "port": "http"}));
    assert_eq!(path("readinessProbe"), &json!({"path": "/ready", "port": "http"}));
    assert_eq!(path("livenessProbe"), &json!({"path": "/health", "port": "http"}));
    let claims = &set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"];
    assert_eq!(relay["volumeMounts"][0], json!({"name": claims, "mountPath": "/data"}));
    let service = object("kubernetes/relay.yaml", "Service");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "http");
    assert_eq!(service["spec"]["ports"][1]["targetPort"], "metrics");
    assert_eq!(set["spec"]["serviceName"], service["metadata"]["name"]);
    let backend =
        &object("kubernetes/ingress.yaml", "Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"];
    assert_eq!(backend["service"]["name"], service["metadata"]["name"]);
    let policy = object("kubernetes/relay.yaml", "NetworkPolicy");
    assert_eq!(policy["spec"]["ingress"][0]["ports"], json!([{"port": 8787}]));
    assert_eq!(policy["spec"]["ingress"][1]["ports"], json!([{"port": 9092}]));
}
