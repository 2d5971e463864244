//! The programs that will read the files, or their schemas, over the files. Each also gets a broken copy to refuse.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::containerfile::instructions;
use super::monitoring::dashboard_expressions;
use super::{folder, read};

/// Python with the schemas and BuildKit's parser; `tests/lib.sh` makes it.
fn python(program: &str) -> Command {
    let place =
        std::env::var_os("DEPLOY_TOOLS").expect("DEPLOY_TOOLS is not set; run through tests/run deploy");
    Command::new(PathBuf::from(place).join("bin").join(program))
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; tests/run deploy installs it"))
}

fn accepts(command: &mut Command) {
    let output = output(command);
    assert!(output.status.success(), "{command:?}\n{}", words(&output));
}

fn refuses(command: &mut Command, because: &str) {
    let output = output(command);
    assert!(!output.status.success(), "{command:?} finds nothing wrong\n{}", words(&output));
    assert!(words(&output).contains(because), "{command:?} does not speak of {because}\n{}", words(&output));
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// A copy of a file with one thing changed.
fn broken(dir: &Path, name: &str, from: &str, to: &str) -> PathBuf {
    let text = read(name);
    assert!(text.contains(from), "{name} has no {from}");
    let path = dir.join(Path::new(name).file_name().expect("a file"));
    std::fs::write(&path, text.replacen(from, to, 1)).expect("written");
    path
}

#[test]
#[ignore = "uses the real programs: tests/run deploy"]
fn compose_files_fit_the_specification() {
    let dir = tempfile::tempdir().expect("dir");
    let check = |path: &Path| {
        let mut command = python("check-jsonschema");
        command.args(["--builtin-schema", "vendor.compose-spec"]).arg(path);
        command
    };
    accepts(&mut check(&folder().join("compose.single.yaml")));
    accepts(&mut check(&folder().join("compose.cluster.yaml")));
    let path = broken(dir.path(), "compose.single.yaml", "stop_grace_period", "stop_grace_perod");
    refuses(&mut check(&path), "stop_grace_perod");
}

#[test]
#[ignore = "uses the real programs: tests/run deploy"]
fn manifests_fit_the_schemas_of_kubernetes() {
    let dir = tempfile::tempdir().expect("dir");
    let check = |path: &Path| {
        let mut command = python("kubernetes-validate");
        command.arg("--strict").arg(path);
        command
    };
    for name in ["relay.yaml", "ingress.yaml"] {
        accepts(&mut check(&folder().join("kubernetes").join(name)));
    }
    let path =
        broken(dir.path(), "kubernetes/relay.yaml", "readOnlyRootFilesystem", "readOnlyRootFileSystem");
    refuses(&mut check(&path), "readOnlyRootFileSystem");
}

#[test]
#[ignore = "uses the real programs: tests/run deploy"]
fn the_recipe_is_read_by_buildkit_as_by_us() {
    const PARSE: &str = "import dockerfile, json, sys\n\
        print(json.dumps([[c.cmd, c.original] for c in dockerfile.parse_file(sys.argv[1])]))";
    let dir = tempfile::tempdir().expect("dir");
    let parse = |path: &Path| {
        let mut command = python("python");
        command.args(["-c", PARSE]).arg(path);
        command
    };
    let parsed = output(&mut parse(&folder().join("Containerfile")));
    assert!(parsed.status.success(), "{}", words(&parsed));
    let theirs: Vec<[String; 2]> = serde_json::from_slice(&parsed.stdout).expect("JSON");
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let theirs: Vec<String> = theirs.iter().map(|[_, original]| squeeze(original)).collect();
    let ours = instructions(&read("Containerfile"));
    let ours: Vec<String> = ours.iter().map(|i| squeeze(&format!("{} {}", i.name, i.rest))).collect();
    assert_eq!(theirs, ours);
    let path = broken(dir.path(), "Containerfile", "RELAY_DATA_DIR=/data", "RELAY_DATA_DIR");
    refuses(&mut parse(&path), "ENV must have two arguments");
}

#[test]
#[ignore = "uses the real programs: tests/run deploy"]
fn systemd_understands_the_unit_and_finds_it_tight() {
    const UNIT: &str = "systemd/threadline-relay.service";
    let dir = tempfile::tempdir().expect("dir");
    // Programs must exist to be verified.
    let check = |from: &str, to: &str| {
        let path = broken(dir.path(), UNIT, from, to);
        let text = std::fs::read_to_string(&path).expect("copy");
        let text = text.replace("=/usr/local/bin/threadline-relay", "=/bin/true");
        std::fs::write(&path, text).expect("written");
        let mut command = Command::new("systemd-analyze");
        command.args(["verify", "--man=no"]).arg(path);
        command
    };
    let verified = output(&mut check("DynamicUser", "DynamicUser"));
    assert!(verified.status.success() && words(&verified).is_empty(), "{}", words(&verified));
    let misread = words(&output(&mut check("DynamicUser", "DynamicUsr")));
    assert!(misread.contains("DynamicUsr"), "an unknown key goes unseen: {misread}");
    let security = |path: &Path| {
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=true", "--threshold=15"]).arg(path);
        command
    };
    accepts(&mut security(&folder().join(UNIT)));
    let open = broken(dir.path(), UNIT, "SystemCallFilter=@system-service\n", "PrivateUsers=no\n");
    refuses(&mut security(&open), "exposure");
}

#[test]
#[ignore = "uses the real programs: tests/run deploy"]
fn the_proxies_take_their_configuration() {
    let dir = tempfile::tempdir().expect("dir");
    certificate(dir.path());
    let nginx = |from: &str, to: &str| {
        let path = broken(dir.path(), "proxy/nginx.conf", from, to);
        let text = std::fs::read_to_string(&path).expect("copy");
        let text = text.replace("/etc/nginx/tls", &dir.path().to_string_lossy());
        let text = text.replace("/run/nginx.pid", &dir.path().join("nginx.pid").to_string_lossy());
        // A test configuration binds no port below 1024 for nobody in particular.
        let text = text.replace("listen 80 ", "listen 18080 ").replace("listen 443 ", "listen 18443 ");
        std::fs::write(&path, text).expect("written");
        let mut command = Command::new("nginx");
        command.args(["-t", "-c"]).arg(path);
        command
    };
    accepts(&mut nginx("3600s", "3600s"));
    refuses(&mut nginx("proxy_read_timeout", "proxy_red_timeout"), "proxy_red_timeout");
    let caddy = |path: &Path| {
        let mut command = Command::new("caddy");
        command.args(["validate", "--adapter", "caddyfile", "--config"]).arg(path);
        command.env("THREADLINE_SITE", "relay.example.org").env("HOME", dir.path());
        command
    };
    accepts(&mut caddy(&folder().join("proxy/Caddyfile")));
    refuses(&mut caddy(&broken(dir.path(), "proxy/Caddyfile", "health_uri", "health_url")), "health_url");
}

/// By a server below 2.10, which does not know the one setting that makes an acknowledgement mean "on disk".
#[test]
#[ignore = "uses the real programs: tests/run deploy"]
fn nats_takes_its_configuration() {
    let dir = tempfile::tempdir().expect("dir");
    certificate(dir.path());
    let text = super::read("nats/nats.conf");
    assert!(text.contains("sync_interval: always"), "an acknowledgement must mean that it is on disk");
    let check = |from: &str, to: &str| {
        let path = broken(dir.path(), "nats/nats.conf", from, to);
        let text = std::fs::read_to_string(&path).expect("copy");
        let tls = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let text = text
            .replace("/etc/nats/tls/server.key", &tls("privkey.pem"))
            .replace("/etc/nats/tls/server.crt", &tls("fullchain.pem"))
            .replace("/etc/nats/tls/ca.crt", &tls("fullchain.pem"));
        std::fs::write(&path, text).expect("written");
        let mut command = Command::new("nats-server");
        command.args(["-t", "-c"]).arg(path).env("NATS_NAME", "nats-1");
        for (n, key) in [
            "UAAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCLL5",
            "UABAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAF3D2",
            "UABQGAYDAMBQGAYDAMBQGAYDAMBQGAYDAMBQGAYDAMBQGAYDAMBQGU3Y",
        ]
        .iter()
        .enumerate()
        {
            command.env(format!("RELAY_{}_NKEY", n + 1), key);
        }
        command
    };
    accepts(&mut check("max_payload", "max_payload"));
    refuses(&mut check("max_payload", "max_paylod"), "max_paylod");
}

#[test]
#[ignore = "uses the real programs: tests/run deploy"]
fn prometheus_takes_configuration_alerts_and_dashboard() {
    let dir = tempfile::tempdir().expect("dir");
    let promtool = |arguments: &[&str], path: &Path| {
        let mut command = Command::new("promtool");
        command.args(arguments).arg(path);
        command
    };
    let monitoring = folder().join("monitoring");
    accepts(&mut promtool(&["check", "config"], &monitoring.join("prometheus.yml")));
    accepts(&mut promtool(&["check", "config"], &monitoring.join("prometheus.cluster.yml")));
    accepts(&mut promtool(&["test", "rules"], &monitoring.join("alerts.test.yml")));
    let rules = dir.path().join("dashboard.yml");
    let records = dashboard_expressions().into_iter().enumerate();
    let records: Vec<_> = records
        .map(|(n, expr)| serde_json::json!({"record": format!("dashboard:{n}"), "expr": expr}))
        .collect();
    let group = serde_json::json!({"groups": [{"name": "dashboard", "rules": records}]});
    std::fs::write(&rules, group.to_string()).expect("written");
    accepts(&mut promtool(&["check", "rules"], &rules));

    let path = broken(dir.path(), "monitoring/prometheus.yml", "scrape_configs", "scrape_confgs");
    refuses(&mut promtool(&["check", "config"], &path), "scrape_confgs");
    // An alert that no longer fires fails the test of the alerts.
    broken(dir.path(), "monitoring/alerts.yml", "> 0.05", "> 0.5");
    let test = broken(dir.path(), "monitoring/alerts.test.yml", "alerts.yml", "alerts.yml");
    refuses(&mut promtool(&["test", "rules"], &test), "FAILED");
}

/// A key and a certificate for `relay.example.org` that vouches for itself.
pub(super) fn certificate(dir: &Path) {
    let mut command = Command::new("openssl");
    command
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=relay.example.org", "-addext", "subjectAltName=DNS:relay.example.org"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(dir.join("privkey.pem"))
        .arg("-out")
        .arg(dir.join("fullchain.pem"));
    accepts(&mut command);
}
