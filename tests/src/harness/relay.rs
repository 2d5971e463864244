//! A relay as a process of its own.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::{Child, Command};

use super::{World, eventually};

/// Longest wait for `/ready`.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A `relay.toml` whose limits are in nobody's way.
pub const RAISED_LIMITS: &str = "\
[limits]
auth_per_minute = 1000000
auth_failed_per_minute = 1000000
messages_per_minute = 1000000
messages_per_hour = 1000000
source_per_minute = 1000000
global_per_minute = 1000000
discover_per_minute = 1000000
lookup_frames_per_minute = 1000000
claims_per_minute = 1000000
claims_per_pair_hour = 1000000
claims_per_target_hour = 1000000
frames_per_minute = 1000000
lookup_anonymous_per_minute = 1000000

[queue]
per_pair = 100000
per_recipient = 100000
unknown_recipient = 100000
strangers = 100000
stranger_each = 100000

[abuse]
enabled = false

[sybil]
tiers = false
aging_s = 0
connections_per_minute = 1000000
sessions_per_source = 10000
identities_per_hour = 10000
";

/// The stand-alone relay, `threadline-relay`.
#[derive(Debug)]
pub struct Relay {
    binary: PathBuf,
    data: PathBuf,
    port: u16,
    metrics: u16,
    quic: u16,
    process: Option<Child>,
}

impl Relay {
    /// Starts a relay on a free port with this `relay.toml`.
    pub async fn start(world: &World, settings: &str) -> anyhow::Result<Self> {
        Self::start_named(world, "relay", settings).await
    }

    /// [`Relay::start`] with a data folder of this name, where a world has more than one.
    pub async fn start_named(world: &World, name: &str, settings: &str) -> anyhow::Result<Self> {
        let binary = world.binary().with_file_name("threadline-relay");
        ensure!(
            binary.is_file(),
            "{} is missing: cargo build --release -p threadline-relay",
            binary.display()
        );
        let data = world.path().join(name);
        std::fs::create_dir_all(&data)?;
        std::fs::write(data.join("relay.toml"), settings)?;
        let (port, metrics, quic) = (free_port()?, free_port()?, free_port()?);
        let mut relay = Self { binary, data, port, metrics, quic, process: None };
        relay.up().await?;
        Ok(relay)
    }

    /// Value for `threadline.relayUrl`.
    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}/v1/connect", self.port)
    }

    /// The port of its public listener.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Starts the process and waits until it is ready.
    pub async fn up(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.data.with_extension("out"))?;
        let child = Command::new(&self.binary)
            .current_dir(&self.data)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("RELAY_DATA_DIR", &self.data)
            .env("RELAY_HOST", "127.0.0.1")
            .env("RELAY_PORT", self.port.to_string())
            .env("RELAY_QUIC_PORT", self.quic.to_string())
            .env("RELAY_METRICS_LISTEN", format!("127.0.0.1:{}", self.metrics))
            .env("RELAY_ADMIN_PORT", free_port()?.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| self.binary.display().to_string())?;
        self.process = Some(child);
        let url = format!("http://127.0.0.1:{}/ready", self.port);
        let ready = eventually(START_LIMIT, "the relay is ready", async || {
            Ok(reqwest::get(&url).await?.status().is_success().then_some(()))
        });
        ready.await.with_context(|| format!("relay:\n{}", self.log()))
    }

    /// Sends SIGKILL and waits for the end.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().await?;
        }
        Ok(())
    }

    /// The UDP port of QUIC.
    pub fn quic_port(&self) -> u16 {
        self.quic
    }

    /// Messages that this process has taken into custody since it started, by its own figures.
    pub async fn accepted(&self) -> anyhow::Result<i64> {
        self.figure("threadline_messages_accepted_total").await
    }

    /// One of its own figures, named with its label.
    pub async fn figure(&self, name: &str) -> anyhow::Result<i64> {
        let url = format!("http://127.0.0.1:{}/metrics", self.metrics);
        let text = reqwest::get(&url).await?.error_for_status()?.text().await?;
        let figure = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(figure.with_context(|| text.clone())?.trim().parse()?)
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.with_extension("out")).unwrap_or_default()
    }
}

/// The next of these ports, below those from which the system takes one for an outgoing connection: while a server is down,
/// a client that calls it must not be given its port.
static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);

/// A loopback port that nobody has; nobody else opens ports in the scenario's namespace.
pub fn free_port() -> anyhow::Result<u16> {
    for _ in 0..1000 {
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        if std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("a thousand ports are taken")
}
