//! The topologies as plain processes, with the flags, the environment and the files that `deploy/` gives them, each in
//! namespaces of its own where the addresses and names of the files exist.

mod client;
mod process;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use instar_tests::harness::{Received, eventually, isolated};
use rustix::process::Signal;
use serde_json::json;

use self::client::Front;
use self::process::{Container, Started, address, run};
use super::compose::Compose;
use super::containerfile::Image;
use super::monitoring::{metrics_asked_for, series};
use super::unit::Unit;
use super::{folder, read, seconds, tools};

const LIMIT: Duration = Duration::from_secs(30);
/// Requests that one source may make in a minute: `limits.stats_per_minute`.
const STATS_PER_MINUTE: usize = 30;

#[test]
#[ignore = "drives the real binary: tests/run deploy"]
fn one_relay_behind_caddy_as_composed() {
    isolated(one_relay_behind_caddy_as_composed, async {
        let dir = tempfile::tempdir()?;
        let compose = Compose::read("compose.single.yaml", &[("THREADLINE_SITE", "relay.localhost")]);
        let (proxy, relay) = (compose.address("proxy", "edge"), compose.address("relay", "edge"));
        let prometheus = compose.address("prometheus", "edge");
        let (near, far) = ("172.30.87.10".parse()?, "172.30.87.11".parse()?);
        for ip in [proxy, relay, prometheus, near, far] {
            address(ip)?;
        }
        // Whoever does not choose its address reaches the relay as the proxy does.
        run(
            "ip",
            &[
                "route",
                "replace",
                "local",
                &relay.to_string(),
                "dev",
                "lo",
                "table",
                "local",
                "src",
                &proxy.to_string(),
            ],
        )?;
        process::hosts(dir.path(), &[(relay, "relay"), (proxy, "proxy")])?;

        let image = Image::read();
        let container = Container::new(dir.path(), &image)?;
        let mut service = container.run(&compose.environment("relay"), &[])?;
        eventually(LIMIT, "the health check succeeds", async || container.health(&image)).await?;
        confined(&service, &container)?;

        let caddyfile = folder().join("proxy/Caddyfile");
        let mut caddy = tokio::process::Command::new("caddy");
        caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(&caddyfile);
        caddy.env_clear().envs(compose.environment("proxy")).env("XDG_DATA_HOME", dir.path().join("caddy"));
        caddy.env("HOME", dir.path()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let _caddy = Started::new(caddy, &dir.path().join("caddy.log"))?;
        let authority = dir.path().join("caddy/caddy/pki/authorities/local/root.crt");
        eventually(LIMIT, "Caddy has made its authority", async || Ok(authority.is_file().then_some(())))
            .await?;
        let front = Front::new("relay.localhost", proxy, relay, &authority)?;
        front.wait_until_ready(near).await?;

        health_is_the_relays_own(&front, near).await?;
        let waiting = messages_pass(&front, near, far).await?;
        let _prometheus = scraped(&compose, relay, prometheus, dir.path()).await?;
        stop_says_goodbye(&front, near, &mut service).await?;
        ensure!(container.health(&image)?.is_none(), "the health check succeeds without a relay");
        let _service = container.run(&compose.environment("relay"), &[])?;
        front.wait_until_ready(near).await?;
        waiting.arrives(&front, far).await?;
        only_the_proxy_names_clients(&front, near, far).await
    });
}

#[test]
#[ignore = "drives the real binary: tests/run deploy"]
fn the_service_behind_nginx_on_one_machine() {
    isolated(the_service_behind_nginx_on_one_machine, async {
        let dir = tempfile::tempdir()?;
        let (outside, near, far) = ("192.0.2.1".parse()?, "192.0.2.10".parse()?, "192.0.2.11".parse()?);
        for ip in [outside, near, far] {
            address(ip)?;
        }
        let unit = Unit::read("systemd/threadline-relay.service");
        let mut service = process::service(&unit, dir.path()).await?;

        let tls = dir.path().join("tls");
        std::fs::create_dir(&tls)?;
        tools::certificate(&tls);
        let conf = dir.path().join("nginx.conf");
        let text = read("proxy/nginx.conf").replace("/etc/nginx/tls", &tls.to_string_lossy());
        std::fs::write(
            &conf,
            text.replace("/run/nginx.pid", &dir.path().join("nginx.pid").to_string_lossy()),
        )?;
        let mut nginx = tokio::process::Command::new("nginx");
        nginx.args(["-g", "daemon off;", "-c"]).arg(&conf);
        let _nginx = Started::new(nginx, &dir.path().join("nginx.log"))?;
        let relay = std::net::Ipv4Addr::LOCALHOST.into();
        let front = Front::new("relay.example.org", outside, relay, &tls.join("fullchain.pem"))?;
        front.wait_until_ready(near).await?;

        health_is_the_relays_own(&front, near).await?;
        let waiting = messages_pass(&front, near, far).await?;
        stop_says_goodbye(&front, near, &mut service).await?;
        let _service = process::service(&unit, dir.path()).await?;
        front.wait_until_ready(near).await?;
        waiting.arrives(&front, far).await?;
        // Clients of this machine other than the proxy.
        only_the_proxy_names_clients(&front, "127.0.0.10".parse()?, "127.0.0.11".parse()?).await
    });
}

/// The process has what the image and the compose file promise, as the kernel sees it.
fn confined(service: &Started, container: &Container) -> anyhow::Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid()?))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
    };
    ensure!(field("Uid") == "65532 65532 65532 65532", "{status}");
    ensure!(field("CapEff") == "0000000000000000" && field("CapPrm") == "0000000000000000", "{status}");
    ensure!(field("NoNewPrivs") == "1", "{status}");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", service.pid()?))?;
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    ensure!(files.contains(&process::open_files().to_string()), "{files}");
    let written = std::fs::write(container.root().join("trace"), "");
    let refused = written.err().map(|error| error.kind());
    ensure!(refused == Some(std::io::ErrorKind::ReadOnlyFilesystem), "the root can be written: {refused:?}");
    Ok(())
}

/// The real Prometheus has the relay's metrics and all its alerts, and nothing asks for a metric that is not there.
async fn scraped(
    compose: &Compose,
    relay: IpAddr,
    prometheus: IpAddr,
    dir: &Path,
) -> anyhow::Result<Started> {
    let metrics = reqwest::get(format!("http://{relay}:9092/metrics")).await?.text().await?;
    let missing: Vec<_> = metrics_asked_for().difference(&series(&metrics)).cloned().collect();
    ensure!(missing.is_empty(), "alerts or dashboard ask for what the relay does not tell: {missing:?}");

    let mut command = tokio::process::Command::new("prometheus");
    let monitoring = folder().join("monitoring");
    for argument in compose.service("prometheus")["command"].as_array().context("a command")? {
        let argument = argument.as_str().context("an argument")?;
        let argument = argument.replace("/etc/prometheus", &monitoring.to_string_lossy());
        command.arg(argument.replace("=/prometheus", &format!("={}", dir.join("prometheus").display())));
    }
    let started = Started::new(command, &dir.join("prometheus.log"))?;
    let ask = async |what: &str| -> anyhow::Result<serde_json::Value> {
        Ok(reqwest::get(format!("http://{prometheus}:9090/api/v1/{what}")).await?.json().await?)
    };
    eventually(LIMIT, "Prometheus has the relay's figures", async || {
        let answer = ask("query?query=threadline_messages_routed_total%7Bjob%3D%22relay%22%7D").await?;
        let value = &answer["data"]["result"][0]["value"][1];
        ensure!(value == "2", "{answer}");
        Ok(Some(()))
    })
    .await?;
    eventually(LIMIT, "all alerts are evaluated", async || {
        let answer = ask("rules").await?;
        let rules = answer["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
        let calm = rules.iter().all(|rule| rule["health"] == "ok" && rule["state"] == "inactive");
        Ok((!rules.is_empty() && calm).then_some(()))
    })
    .await?;
    Ok(started)
}

async fn health_is_the_relays_own(front: &Front, near: IpAddr) -> anyhow::Result<()> {
    let (status, body) = front.get(near, "/health", None).await?;
    ensure!(status == 200 && body["status"] == "ok", "{status} {body}");
    let (status, body) = front.get(near, "/ready", None).await?;
    ensure!(status == 200 && body["ready"] == true, "{status} {body}");
    let (status, body) = front.get(near, "/no-such-page", None).await?;
    ensure!(status == 404 && body["error"] == "Not found", "{status} {body}");
    Ok(())
}

/// A message that waits in the relay for an agent.
struct Waiting {
    recipient: threadline::identity::Identity,
}

impl Waiting {
    async fn arrives(self, front: &Front, from: IpAddr) -> anyhow::Result<()> {
        let mut peer = front.login(from, self.recipient).await?;
        let frame = peer.expect("message").await?;
        ensure!(frame["envelope"]["messageId"] == "waiting", "{frame}");
        peer.send(&json!({"type": "ack", "messageId": "waiting", "status": "delivered"})).await
    }
}

/// Two clients exchange a message; a third is left one for later.
async fn messages_pass(front: &Front, near: IpAddr, far: IpAddr) -> anyhow::Result<Waiting> {
    let fresh = || threadline::identity::Identity::generate(&mut rand::rng());
    let mut sender = front.login(near, fresh()).await.context("a login through the proxy")?;
    let mut recipient = front.login(far, fresh()).await?;
    let to = recipient.identity.fingerprint().to_string();
    let text = "x".repeat(100_000);
    sender.send(&sender.message(&to, "live", &text)).await?;
    let frame = recipient.expect("message").await?;
    ensure!(frame["envelope"]["messageId"] == "live", "{frame}");
    recipient.send(&json!({"type": "ack", "messageId": "live", "status": "delivered"})).await?;
    let ack = sender.expect("ack").await?;
    ensure!(ack["messageId"] == "live" && ack["status"] != "rejected", "{ack}");

    let recipient = recipient.leave();
    eventually(LIMIT, "the recipient has gone", async || {
        let (_, body) = front.get(near, "/health", None).await?;
        Ok((body["agents"] == 1).then_some(()))
    })
    .await?;
    sender.send(&sender.message(&to, "waiting", "for later")).await?;
    loop {
        let ack = sender.expect("ack").await?;
        if ack["messageId"] == "waiting" {
            ensure!(ack["status"] == "queued", "{ack}");
            return Ok(Waiting { recipient });
        }
    }
}

/// SIGTERM: sessions are closed with 1001 through the proxy, readiness is gone at once, the process ends with 0.
async fn stop_says_goodbye(front: &Front, near: IpAddr, service: &mut Started) -> anyhow::Result<()> {
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let identity = threadline::identity::Identity::generate(&mut rand::rng());
        sessions.push(front.login(near, identity).await?);
    }
    service.signal(Signal::TERM)?;
    let (status, _) = eventually(LIMIT, "readiness goes", async || {
        let (status, body) = front.get(near, "/ready", None).await?;
        Ok((status != 200).then_some((status, body)))
    })
    .await?;
    ensure!((500..600).contains(&status), "a proxy without a relay says {status}");
    for session in &mut sessions {
        let end = session.next().await?;
        ensure!(end == Received::Closed(Some(1001)), "{end:?}");
    }
    let exit = tokio::time::timeout(LIMIT, service.wait()).await.context("it does not end")??;
    ensure!(exit.success(), "{exit}\n{}", service.log());
    let counters = service.log();
    ensure!(counters.contains("accepted 2,"), "no counters at the end:\n{counters}");
    Ok(())
}

/// The budget of one source is the same through the proxy and around it, whatever a client claims.
async fn only_the_proxy_names_clients(front: &Front, near: IpAddr, far: IpAddr) -> anyhow::Result<()> {
    const STATS: &str = "/v1/registry/stats";
    let (near_claim, far_claim) = (near.to_string(), far.to_string());
    for n in 0..STATS_PER_MINUTE {
        let (status, body) = front.directly(near, STATS, None).await?;
        ensure!(status == 200, "request {n}: {status} {body}");
    }
    let (status, _) = front.directly(near, STATS, None).await?;
    ensure!(status == 429, "the budget of a source is not enforced: {status}");
    let (status, _) = front.directly(near, STATS, Some(&far_claim)).await?;
    ensure!(status == 429, "a stranger's X-Forwarded-For was believed: {status}");
    let (status, _) = front.directly(far, STATS, Some(&near_claim)).await?;
    ensure!(status == 200, "a stranger's X-Forwarded-For was believed: {status}");

    let (near, far) =
        if near.is_loopback() { ("192.0.2.10".parse()?, "192.0.2.11".parse()?) } else { (near, far) };
    while front.get(near, STATS, None).await?.0 == 200 {}
    let (status, _) = front.get(near, STATS, Some("198.51.100.7")).await?;
    ensure!(status == 429, "the proxy passed on what a client claims: {status}");
    let (status, body) = front.get(far, STATS, None).await?;
    ensure!(status == 200, "the proxy's clients are one source: {status} {body}");
    Ok(())
}

/// What systemd would give the service, for [`process::service`].
fn watchdog_microseconds(unit: &Unit) -> String {
    (seconds(unit.service("WatchdogSec")) * 1_000_000).to_string()
}

/// The file that the unit names in `/etc`.
fn configuration() -> std::path::PathBuf {
    let path: &Path = &folder();
    path.join("relay.toml")
}
