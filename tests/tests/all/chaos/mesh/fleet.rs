//! The processes of a run: relays behind proxies, nodes that keep a session with each of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::future::try_join_all;
use instar_tests::harness::{Agent, Proxy, RAISED_LIMITS, Relay, Tmpfs, World, eventually};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::lanes::Lane;
use crate::e2e::sealed::entry;

pub(super) const RELAYS: usize = 3;
/// The relay whose disk fills up.
pub(super) const SMALL_DISK: usize = 2;
/// Longest wait for the whole fleet to stand.
const START_LIMIT: Duration = Duration::from_mins(1);

pub(super) struct Fleet {
    pub(super) relays: Vec<Mutex<Relay>>,
    pub(super) proxies: Vec<Proxy>,
    pub(super) nodes: Vec<Mutex<Agent>>,
    /// Where each node is asked.
    pub(super) sockets: Vec<PathBuf>,
    /// Where each node stores messages.
    pub(super) stores: Vec<PathBuf>,
    pub(super) fingerprints: Vec<String>,
    pub(super) disk: Tmpfs,
    /// What is loaded into a process whose clock is wrong.
    faketime: PathBuf,
    /// It keeps files there that a killed process leaves behind.
    _shared_memory: Tmpfs,
}

impl Fleet {
    /// Starts everything and waits until each node can seal for those that it writes to.
    pub(super) async fn start(world: &World, nodes: usize, lanes: &[Lane]) -> anyhow::Result<Self> {
        let faketime = faketime()?;
        let disk = Tmpfs::mount(&world.path().join(relay_name(SMALL_DISK)), "64m")?;
        let (mut relays, mut proxies, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..RELAYS {
            // The proxies carry TCP: with QUIC, their dead sockets would be nobody's.
            let settings = format!("{RAISED_LIMITS}\n[quic]\nenabled = false\n");
            let relay = Relay::start_named(world, &relay_name(number), &settings).await?;
            let proxy = Proxy::start(relay.port()).await?;
            let mut listed = entry(&relay).await?;
            listed["url"] = url_of(&proxy).into();
            listed["listen"] = true.into();
            entries.push(listed);
            relays.push(Mutex::new(relay));
            proxies.push(proxy);
        }
        let mut account = world.account("ann")?;
        account.configure(node_settings(&entries));
        let mut made = Vec::new();
        for number in 0..nodes {
            made.push(account.agent(&node_name(number)).await?);
        }
        for group in made.chunks_mut(4) {
            try_join_all(group.iter_mut().map(Agent::up)).await?;
        }
        let mut fleet = Self {
            relays,
            proxies,
            sockets: made.iter().map(Agent::socket).collect(),
            stores: made.iter().map(Agent::store).collect(),
            nodes: made.into_iter().map(Mutex::new).collect(),
            fingerprints: Vec::new(),
            disk,
            faketime,
            _shared_memory: Tmpfs::mount(Path::new("/dev/shm"), "16m")?,
        };
        for number in 0..nodes {
            let health = fleet.nodes[number].lock().await.get("/threadline/health").await?.body;
            let fingerprint = health["fingerprint"].as_str().with_context(|| health.to_string())?;
            fleet.fingerprints.push(fingerprint.to_owned());
        }
        try_join_all((0..nodes).map(|number| fleet.is_connected(number))).await?;
        try_join_all((0..nodes).map(|number| fleet.knows_its_peers(number, lanes))).await?;
        Ok(fleet)
    }

    /// Waits until a node's sessions and its link are open.
    async fn is_connected(&self, number: usize) -> anyhow::Result<()> {
        let node = self.nodes[number].lock().await;
        eventually(START_LIMIT, &format!("{} is connected", node.name()), async || {
            let status = node.get("/threadline/status").await?.body;
            let sessions = status["v2"]["sessions"].as_array().cloned().unwrap_or_default();
            let ready = sessions.iter().filter(|session| session["state"] == "ready").count();
            ensure!(ready == RELAYS, "sessions: {sessions:?}");
            let health = node.get("/threadline/health").await?.body;
            ensure!(health["status"] == "ok", "{health}");
            Ok(Some(()))
        })
        .await
    }

    /// Waits until a node knows that its peers speak v2 and are agents of its account.
    async fn knows_its_peers(&self, number: usize, lanes: &[Lane]) -> anyhow::Result<()> {
        let names: Vec<String> = lanes.iter().filter(|l| l.from == number).map(|l| node_name(l.to)).collect();
        let node = self.nodes[number].lock().await;
        eventually(START_LIMIT, &format!("{} knows whom it writes to", node.name()), async || {
            let known = node.json(&["threadline", "discover"]).await?;
            let all = known["agents"].as_array().cloned().unwrap_or_default();
            let is_known = |name: &String| {
                all.iter().any(|agent| {
                    let sealed = agent["capabilities"].to_string().contains("tl2");
                    agent["name"] == **name && sealed && agent["trustLevel"] == "verified"
                })
            };
            if names.iter().all(is_known) {
                return Ok(Some(()));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            bail!("known: {known}")
        })
        .await
    }

    /// Kills a node and starts it again after a while.
    pub(super) async fn restart_node(&self, number: usize, pause: Duration) -> anyhow::Result<()> {
        let mut node = self.nodes[number].lock().await;
        node.kill().await?;
        tokio::time::sleep(pause).await;
        node.up().await
    }

    /// Kills a relay and starts it again after a while.
    pub(super) async fn restart_relay(&self, number: usize, pause: Duration) -> anyhow::Result<()> {
        let mut relay = self.relays[number].lock().await;
        relay.kill().await?;
        tokio::time::sleep(pause).await;
        relay.up().await
    }

    /// Sets the clock of a node's next process this many seconds ahead.
    pub(super) async fn skew_node(&self, number: usize, seconds: i64) {
        self.nodes[number].lock().await.set_variables(self.clock(seconds));
    }

    /// Only the wall clock is wrong: timeouts go by the monotonic one. Relays keep theirs: at the start of a process,
    /// libfaketime and the allocator of theirs wait for each other for ever.
    fn clock(&self, seconds: i64) -> Vec<(String, String)> {
        if seconds == 0 {
            return Vec::new();
        }
        let variables = [
            ("LD_PRELOAD", self.faketime.to_string_lossy().into_owned()),
            ("FAKETIME", format!("{seconds:+}")),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ];
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    pub(super) fn relay_url(&self, number: usize) -> String {
        url_of(&self.proxies[number])
    }
}

pub(super) fn node_name(number: usize) -> String {
    format!("n{number}")
}

fn relay_name(number: usize) -> String {
    format!("relay{number}")
}

fn url_of(proxy: &Proxy) -> String {
    format!("ws://127.0.0.1:{}/v1/connect", proxy.port())
}

/// libfaketime changes what a process sees as the time of day.
fn faketime() -> anyhow::Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").context("/usr/lib")?;
    let library = |folder: PathBuf| folder.join("faketime/libfaketimeMT.so.1");
    let found = folders.flatten().map(|folder| library(folder.path())).find(|path| path.exists());
    found.context("libfaketime is missing; tests/run installs it (package faketime)")
}

/// No session starts, everything goes over relays, and no limit is in the way.
fn node_settings(relays: &[Value]) -> Value {
    let many = 1_000_000;
    let level = json!({
        "messagesPerHour": many, "messagesPerDay": many, "perThreadPerHour": many,
        "burstPerMinute": many, "outboundPerHour": many
    });
    json!({
        "http": {"limits": {"requestsPerMinute": many}},
        "threadline": {
            "localRelay": "off", "relayEnabled": true, "relays": relays, "visibility": "public",
            "direct": {"enabled": false},
            "sessions": {"maxActive": 0},
            "spawn": {"maxGlobalQueued": many, "maxQueuedPerPeer": many},
            "limits": {"globalPerHour": many, "machinePerHour": many, "verified": level}
        }
    })
}
