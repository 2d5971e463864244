//! The relay under load: a process of its own on one core, the load generator on the other. Open loop, latency
//! counted from the intended time of sending, so that a stalled relay cannot hide (coordinated omission).

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use threadline::identity::{Identity, LoginNonce, Purpose};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::process::rss_mib;
use crate::report::{self, Samples, show};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Sender and recipient pairs of a load run.
const PAIRS: usize = 8;

/// A relay of its own with every limit raised by configuration.
struct Relay {
    child: Child,
    url: String,
    _data: tempfile::TempDir,
}

impl Relay {
    fn start(bin_dir: &Path, durability: &str) -> Result<Self> {
        let data = tempfile::Builder::new().prefix("relay-bench-").tempdir_in(scratch())?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = data.path().join("relay.toml");
        let huge = 1_000_000_000;
        fs::write(
            &config,
            format!(
                "host = \"127.0.0.1\"\nport = {port}\ndurability = \"{durability}\"\nmax_sessions = 100000\n\
                 [limits]\nper_source = false\nmessages_per_minute = {huge}\nmessages_per_hour = {huge}\n\
                 global_per_minute = {huge}\nframes_per_minute = {huge}\n\
                 [sybil]\ntiers = false\naging_s = 0\n\
                 [queue]\nper_pair = {huge}\nper_recipient = {huge}\nstrangers = {huge}\nstranger_each = {huge}\n\
                 strangers_bytes = {huge}\nbytes_per_recipient = {huge}\n"
            ),
        )?;
        let log = fs::File::create(data.path().join("relay.log"))?;
        let child = Command::new("taskset")
            .args(["-c", "0"])
            .arg(bin_dir.join("threadline-relay"))
            .arg("--config")
            .arg(&config)
            .arg("--data-dir")
            .arg(data.path().join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("taskset and threadline-relay")?;
        let relay = Self { child, url: format!("ws://127.0.0.1:{port}/v1/connect"), _data: data };
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(Instant::now() < deadline, "the relay does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(relay)
    }

    /// taskset replaces itself by the relay, so the child is the relay.
    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The disk under test, not a memory file system.
fn scratch() -> PathBuf {
    std::env::var_os("INSTAR_BENCH_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

pub(crate) fn all(bin_dir: &Path, seconds: u64, connections: &[usize]) -> Result<()> {
    fsync()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    for durability in ["power", "process"] {
        for size in [1024, 16 * 1024] {
            let relay = Relay::start(bin_dir, durability)?;
            runtime.block_on(load(&relay, durability, size, seconds))?;
        }
    }
    for &count in connections {
        let relay = Relay::start(bin_dir, "power")?;
        runtime.block_on(idle(&relay, count))?;
    }
    Ok(())
}

fn fsync() -> Result<()> {
    let mut file = tempfile::tempfile_in(scratch())?;
    let mut samples = Samples::new();
    for _ in 0..300 {
        file.write_all(&[7; 4096])?;
        let start = Instant::now();
        file.sync_data()?;
        samples.record(start.elapsed());
    }
    report::times("disk: fdatasync after 4 KiB", &samples, "-", None);
    Ok(())
}

async fn load(relay: &Relay, durability: &str, size: usize, seconds: u64) -> Result<()> {
    let what = format!("relay v1, {} KiB, durability={durability}, no TLS", size / 1024);
    let capacity = saturate(relay, size, Duration::from_secs(seconds)).await?;
    report::figure(
        &format!("{what}: accepted"),
        &format!("{capacity:.0} messages/s with one core (window 64 on {PAIRS} pairs, limits raised)"),
        "-",
    );
    for share in [25, 75] {
        let rate = capacity * f64::from(share) / 100.0;
        let (delivered, accepted) = open_loop(relay, size, rate, Duration::from_secs(seconds)).await?;
        report::times(&format!("{what}: to recipient at {share} %"), &delivered, "-", None);
        report::times(&format!("{what}: to first ack at {share} %"), &accepted, "-", None);
    }
    Ok(())
}

/// Closed loop with a window: how much the relay takes.
async fn saturate(relay: &Relay, size: usize, length: Duration) -> Result<f64> {
    let mut tasks = Vec::new();
    for _ in 0..PAIRS {
        let (sender, recipient) = pair(relay).await?;
        let (to, url_size) = (recipient.address.clone(), size);
        tasks.push(tokio::spawn(drain(recipient, None)));
        tasks.push(tokio::spawn(pump(sender, to, url_size, length)));
    }
    let mut total = 0;
    let start = Instant::now();
    for (index, task) in tasks.into_iter().enumerate() {
        // Recipients end with their relay; only senders count.
        if index % 2 == 1 {
            total += task.await??;
        }
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

async fn pump(mut sender: Client, to: String, size: usize, length: Duration) -> Result<u64> {
    const WINDOW: usize = 64;
    let payload = payload(size);
    let deadline = Instant::now() + length;
    let (mut open, mut accepted, mut serial) = (0, 0, 0_u64);
    let mut answered = HashSet::new();
    loop {
        while open < WINDOW && Instant::now() < deadline {
            sender.send_message(&to, &format!("m-{serial}"), &payload).await?;
            serial += 1;
            open += 1;
        }
        if open == 0 {
            return Ok(accepted);
        }
        let frame = sender.next().await?;
        if frame["type"] == "ack" && answered.insert(frame["messageId"].to_string()) {
            ensure!(frame["status"] != "rejected", "rejected: {frame}");
            open -= 1;
            accepted += 1;
        }
    }
}

async fn drain(mut recipient: Client, seen: Option<mpsc::Sender<(String, Instant)>>) -> Result<u64> {
    let mut count = 0;
    loop {
        let Ok(frame) = recipient.next().await else { return Ok(count) };
        if frame["type"] == "message" {
            count += 1;
            let id = frame["envelope"]["messageId"].as_str().unwrap_or_default().to_owned();
            let ack = json!({"type": "ack", "messageId": id, "status": "delivered"});
            recipient.send(&ack).await?;
            if let Some(seen) = &seen
                && seen.send((id, Instant::now())).await.is_err()
            {
                return Ok(count);
            }
        }
    }
}

/// Messages at a fixed rate, whatever the relay does.
async fn open_loop(relay: &Relay, size: usize, rate: f64, length: Duration) -> Result<(Samples, Samples)> {
    let per_pair = rate / PAIRS as f64;
    let mut tasks = Vec::new();
    for _ in 0..PAIRS {
        let (sender, recipient) = pair(relay).await?;
        tasks.push(tokio::spawn(paced(sender, recipient, size, per_pair, length)));
    }
    let (mut delivered, mut accepted) = (Samples::new(), Samples::new());
    for task in tasks {
        let (d, a) = task.await??;
        delivered.merge(&d);
        accepted.merge(&a);
    }
    Ok((delivered, accepted))
}

async fn paced(
    sender: Client,
    recipient: Client,
    size: usize,
    rate: f64,
    length: Duration,
) -> Result<(Samples, Samples)> {
    let to = recipient.address.clone();
    let (seen_tx, mut seen) = mpsc::channel(4096);
    let taker = tokio::spawn(drain(recipient, Some(seen_tx)));
    let payload = payload(size);
    let count = (rate * length.as_secs_f64()) as u64;
    let start = Instant::now();
    let intended = move |serial: u64| start + Duration::from_secs_f64(serial as f64 / rate);
    let Client { socket, address } = sender;
    let (mut sink, mut stream) = socket.split();
    let writer = tokio::spawn(async move {
        for serial in 0..count {
            tokio::time::sleep_until(intended(serial).into()).await;
            let frame = message(&address, &to, &format!("p-{serial}"), &payload);
            sink.send(Message::text(frame.to_string())).await?;
        }
        anyhow::Ok(sink)
    });
    let (mut delivered, mut accepted) = (Samples::new(), Samples::new());
    let serial_of = |id: &str| id.strip_prefix("p-").and_then(|n| n.parse::<u64>().ok());
    let mut first = HashSet::new();
    let give_up = start + length + Duration::from_secs(20);
    while (delivered.len() < count || accepted.len() < count) && Instant::now() < give_up {
        tokio::select! {
            got = seen.recv(), if delivered.len() < count => {
                let Some((id, at)) = got else { bail!("the recipient ended") };
                let Some(serial) = serial_of(&id) else { continue };
                delivered.record(at.saturating_duration_since(intended(serial)));
            }
            got = stream.next() => {
                let Some(Ok(Message::Text(text))) = got else { continue };
                let frame: Value = serde_json::from_str(&text)?;
                if frame["type"] == "ack"
                    && let Some(serial) = frame["messageId"].as_str().and_then(serial_of)
                    && first.insert(serial)
                {
                    ensure!(frame["status"] != "rejected", "rejected: {frame}");
                    accepted.record(Instant::now().saturating_duration_since(intended(serial)));
                }
            }
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
    ensure!(delivered.len() == count, "only {} of {count} messages arrived", delivered.len());
    drop(writer.await??);
    taker.abort();
    Ok((delivered, accepted))
}

/// Memory that idle authenticated connections cost.
async fn idle(relay: &Relay, count: usize) -> Result<()> {
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = rss_mib(relay.pid())?;
    let start = Instant::now();
    let gate = Arc::new(Semaphore::new(32));
    let mut tasks = Vec::with_capacity(count);
    for _ in 0..count {
        let slot = Arc::clone(&gate).acquire_owned().await?;
        let url = relay.url.clone();
        tasks.push(tokio::spawn(async move {
            let client = Client::connect(&url).await;
            drop(slot);
            client
        }));
    }
    let mut clients = Vec::with_capacity(count);
    for task in tasks {
        clients.push(task.await??);
    }
    let took = start.elapsed();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = rss_mib(relay.pid())?;
    report::figure(
        &format!("relay, {count} idle connections, no TLS"),
        &format!(
            "{:.1} KiB each (resident {before:.1} to {after:.1} MiB), {:.0} logins/s ({})",
            (after - before) * 1024.0 / count as f64,
            count as f64 / took.as_secs_f64(),
            show(took),
        ),
        "< 8 KiB each",
    );
    drop(clients);
    Ok(())
}

async fn pair(relay: &Relay) -> Result<(Client, Client)> {
    Ok((Client::connect(&relay.url).await?, Client::connect(&relay.url).await?))
}

fn payload(size: usize) -> String {
    let empty = json!({"text": "", "type": "chat"}).to_string().len();
    let text = "x".repeat(size.saturating_sub(empty));
    STANDARD.encode(json!({"text": text, "type": "chat"}).to_string())
}

fn message(from: &str, to: &str, id: &str, payload: &str) -> Value {
    json!({"type": "message", "envelope": {
        "from": from, "to": to, "threadId": "bench", "messageId": id,
        "timestamp": "2026-01-01T00:00:00.000Z", "payload": payload}})
}

/// A minimal v1 client.
struct Client {
    socket: Socket,
    address: String,
}

impl Client {
    async fn connect(url: &str) -> Result<Self> {
        let identity = Identity::generate(&mut rand::rng());
        let small = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
        let (socket, _) = tokio_tungstenite::connect_async_with_config(url, Some(small), true).await?;
        let address = identity.fingerprint().to_string();
        let mut client = Self { socket, address };
        let challenge = client.next().await?;
        let nonce = challenge["nonce"].as_str().and_then(LoginNonce::parse).context("challenge")?;
        let signature = identity.sign(&Purpose::V1Login(&nonce));
        let auth = json!({"type": "auth", "agentId": client.address,
            "publicKey": STANDARD.encode(identity.public().as_bytes()),
            "signature": STANDARD.encode(signature), "metadata": {"name": "bench"}});
        client.send(&auth).await?;
        let answer = client.next().await?;
        ensure!(answer["type"] == "auth_ok", "login refused: {answer}");
        Ok(client)
    }

    async fn send(&mut self, frame: &Value) -> Result<()> {
        Ok(self.socket.send(Message::text(frame.to_string())).await?)
    }

    async fn send_message(&mut self, to: &str, id: &str, payload: &str) -> Result<()> {
        let frame = message(&self.address, to, id, payload);
        self.send(&frame).await
    }

    /// The next frame; pings are answered on the way.
    async fn next(&mut self) -> Result<Value> {
        loop {
            match self.socket.next().await.context("connection closed")?? {
                Message::Text(text) => {
                    let frame: Value = serde_json::from_str(&text)?;
                    if frame["type"] != "ping" {
                        return Ok(frame);
                    }
                    self.send(&json!({"type": "pong"})).await?;
                }
                Message::Close(frame) => bail!("closed: {frame:?}"),
                _ => {}
            }
        }
    }
}
