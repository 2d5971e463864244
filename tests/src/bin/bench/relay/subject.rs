//! The process under test, alone on its core.

use std::fs;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::tls::Certificate;
use super::{SUBJECT_CORE, scratch};

/// A running server; killed when dropped.
pub(crate) struct Subject {
    child: Child,
    pub(crate) at: SocketAddr,
    /// Where metrics are offered without a key.
    pub(crate) metrics: Option<SocketAddr>,
    /// What clients trust, where the public listener speaks TLS.
    pub(crate) tls: Option<Certificate>,
    data: tempfile::TempDir,
}

/// Limits that would refuse the load are raised, by configuration and nowhere else.
const RAISED: &[(&str, &str)] = &[
    ("host", "127.0.0.1"),
    ("durability", "power"),
    ("max_sessions", "100000"),
    ("limits.per_source", "false"),
    ("limits.messages_per_minute", "1000000000"),
    ("limits.messages_per_hour", "1000000000"),
    ("limits.global_per_minute", "1000000000"),
    ("abuse.spam_recipients", "1000000"),
    // A port of its own: another relay may run on this machine.
    ("admin.port", "0"),
    ("sybil.tiers", "false"),
    ("sybil.aging_s", "0"),
    ("queue.per_pair", "1000000000"),
    ("queue.per_recipient", "1000000000"),
    ("queue.bytes_per_recipient", "1000000000"),
    ("queue.strangers", "1000000000"),
    ("queue.stranger_each", "1000000000"),
    ("queue.strangers_bytes", "1000000000"),
];

impl Subject {
    /// A relay with raised limits; `settings` are further keys and values.
    pub(crate) fn relay(bin_dir: &Path, settings: &[&str]) -> Result<Self> {
        Self::relay_on(bin_dir, settings, |_| Ok(()))
    }

    /// The same with TLS on the public listener.
    pub(crate) fn tls_relay(bin_dir: &Path, settings: &[&str]) -> Result<Self> {
        let certificate = Certificate::new()?;
        let files = certificate.settings();
        let files = files.iter().filter_map(|file| file.split_once('=')).flat_map(|(key, file)| [key, file]);
        let settings: Vec<&str> = settings.iter().copied().chain(files).collect();
        let mut relay = Self::relay(bin_dir, &settings)?;
        relay.tls = Some(certificate);
        Ok(relay)
    }

    /// With a data directory that `prepare` fills.
    pub(crate) fn relay_on(
        bin_dir: &Path,
        settings: &[&str],
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let data = tempfile::Builder::new().prefix("relay-bench-").tempdir_in(scratch())?;
        fs::create_dir(data.path().join("data"))?;
        prepare(&data.path().join("data"))?;
        let program = bin_dir.join("threadline-relay");
        Self::start_relay(data, &program, settings)
    }

    fn start_relay(data: tempfile::TempDir, program: &Path, settings: &[&str]) -> Result<Self> {
        let (port, quic) = (free_port()?, UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port());
        let mut command = pinned(program);
        command.args(["--port", &port.to_string(), "--data-dir"]).arg(data.path().join("data"));
        let given = settings.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        // Other relays of this machine keep their ports.
        command.args(["--set", &format!("quic.port={quic}"), "--set", "admin.port=0"]);
        for (key, value) in RAISED.iter().copied().chain(given) {
            command.args(["--set", &format!("{key}={value}")]);
        }
        let metrics = settings.chunks_exact(2).find(|pair| pair[0] == "metrics.listen");
        let metrics = metrics.map(|pair| pair[1].parse()).transpose()?;
        let mut subject = Self::spawn(command, port, data)?;
        subject.metrics = metrics;
        Ok(subject)
    }

    /// Any server that listens on `port`.
    pub(crate) fn spawn(mut command: Command, port: u16, data: tempfile::TempDir) -> Result<Self> {
        let log = fs::OpenOptions::new().create(true).append(true).open(data.path().join("log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("taskset and the program under test")?;
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let subject = Self { child, at, metrics: None, tls: None, data };
        let deadline = Instant::now() + Duration::from_mins(1);
        while TcpStream::connect(at).is_err() {
            ensure!(Instant::now() < deadline, "the process under test does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(subject)
    }

    /// SIGKILL, and again on the same data. Returns how long it took to listen again.
    pub(crate) fn kill_and_restart(mut self, bin_dir: &Path, settings: &[&str]) -> Result<(Self, Duration)> {
        self.child.kill()?;
        self.child.wait()?;
        let data = std::mem::replace(&mut self.data, tempfile::tempdir()?);
        let start = Instant::now();
        let again = Self::start_relay(data, &bin_dir.join("threadline-relay"), settings)?;
        Ok((again, start.elapsed()))
    }

    /// Time on the processor since the start, all threads.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        // taskset replaces itself by the program, so the child is the program.
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()))?;
        let mut total = 0;
        for task in tasks {
            let line = fs::read_to_string(task?.path().join("schedstat"))?;
            total += line.split(' ').next().context("schedstat")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(total))
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.split_whitespace().next().context("VmRSS")?.parse()?)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn pinned(program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &SUBJECT_CORE.to_string()]).arg(program);
    command
}

pub(crate) fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
