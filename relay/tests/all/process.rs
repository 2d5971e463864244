//! The real program.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

pub(crate) const GENEROUS: &[&str] = &[
    "sybil.tiers=false",
    "sybil.aging_s=0",
    "limits.per_source=false",
    "limits.messages_per_minute=100000",
    "limits.messages_per_hour=100000",
    "limits.global_per_minute=100000",
    "queue.per_pair=500",
    "queue.stranger_each=500",
    "queue.strangers=500",
    "queue.strangers_bytes=1000000000",
    "queue.bytes_per_recipient=1000000000",
    "queue.unknown_recipient=500",
];

pub(crate) struct Relay {
    child: Child,
    output: BufReader<ChildStdout>,
    pub(crate) at: SocketAddr,
    admin: Option<SocketAddr>,
}

fn address_in(output: &mut BufReader<ChildStdout>) -> SocketAddr {
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    let at = line.trim().rsplit(' ').next().and_then(|at| at.parse().ok());
    at.unwrap_or_else(|| panic!("no address in {line:?}"))
}

pub(crate) fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_threadline-relay"));
    arguments(&mut command, dir);
    command
}

pub(crate) fn arguments(command: &mut Command, dir: &Path) {
    arguments_at(command, dir, SocketAddr::from(([127, 0, 0, 1], 0)));
}

/// A relay that knows its address before it listens: one of the loopback network that is this process's own.
pub(crate) fn command_at_own_address(dir: &Path) -> (Command, SocketAddr) {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let at = SocketAddr::from(([127, 64 | a & 63, b, c], 8787));
    let mut command = Command::new(env!("CARGO_BIN_EXE_threadline-relay"));
    arguments_at(&mut command, dir, at);
    (command, at)
}

fn arguments_at(command: &mut Command, dir: &Path, at: SocketAddr) {
    command.args(["--host", &at.ip().to_string(), "--port", &at.port().to_string(), "--data-dir"]).arg(dir);
    for setting in GENEROUS {
        command.args(["--set", setting]);
    }
}

impl Relay {
    pub(crate) fn start(dir: &Path) -> Self {
        Self::spawn(&mut command(dir))
    }

    /// With further settings.
    pub(crate) fn start_with(dir: &Path, settings: &[&str]) -> Self {
        let mut command = command(dir);
        for setting in settings {
            command.args(["--set", setting]);
        }
        Self::spawn(&mut command)
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self::spawn_logging(command, Stdio::null())
    }

    /// What it says goes to `log`.
    pub(crate) fn spawn_logging(command: &mut Command, log: impl Into<Stdio>) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("starts");
        let mut output = BufReader::new(child.stdout.take().expect("stdout"));
        let at = address_in(&mut output);
        Self { child, output, at, admin: None }
    }

    /// Address of the admin interface.
    pub(crate) fn admin(&mut self) -> SocketAddr {
        *self.admin.get_or_insert_with(|| address_in(&mut self.output))
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("signal");
    }

    /// Of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("kills");
        self.child.wait().expect("ends");
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("number") * 1024
    }

    /// SIGTERM; returns the exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.child.wait().expect("ends").code()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = command.output().expect("runs");
    let text = [stdout, stderr].concat();
    (status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn nobody_has_to_read_what_it_prints() {
    let dir = tempfile::tempdir().expect("dir");
    let mut child = command(dir.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    drop(child.stdout.take());
    let key = dir.path().join("admin-key");
    let deadline = std::time::Instant::now() + super::client::PATIENCE;
    while !key.exists() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)
        .expect("signal");
    let status = child.wait().expect("ends");
    assert!(matches!(status.code(), Some(0) | None), "{status}: stopped by the signal or in order, no panic");
}

#[test]
fn a_second_start_is_refused_with_3_and_names_the_first() {
    let dir = tempfile::tempdir().expect("dir");
    let first = Relay::start(dir.path());
    let (code, text) = run(&mut command(dir.path()));
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains(&first.child.id().to_string()), "{text}");
}

#[test]
fn a_damaged_queue_is_4_unless_its_loss_is_accepted() {
    let dir = tempfile::tempdir().expect("dir");
    assert_eq!(Relay::start(dir.path()).stop(), Some(0));
    let queue = dir.path().join("queue.db");
    std::fs::write(&queue, [0x55; 8192]).expect("damage");
    let (code, text) = run(&mut command(dir.path()));
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("queue.db") && text.contains("--accept-data-loss"), "{text}");
    assert_eq!(std::fs::read(&queue).expect("kept"), [0x55; 8192]);
    let relay = Relay::spawn(command(dir.path()).arg("--accept-data-loss"));
    assert_eq!(relay.stop(), Some(0));
    let kept = std::fs::read_dir(dir.path()).expect("dir").filter_map(Result::ok);
    assert!(kept.into_iter().any(|e| e.file_name().to_string_lossy().starts_with("queue.db.corrupt-")));
}

#[test]
fn a_bad_configuration_is_2_and_named() {
    let dir = tempfile::tempdir().expect("dir");
    let (code, text) = run(command(dir.path()).args(["check-config", "--set", "queue.ttl_s=0"]));
    assert_eq!(code, Some(2));
    assert!(text.contains("queue.ttl_s = 0") && text.contains("1–2592000"), "{text}");
    let (code, text) = run(command(dir.path()).arg("print-config").env("RELAY_DURABILITY", "process"));
    assert_eq!(code, Some(0));
    assert!(text.contains("durability = \"process\""), "{text}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("address").port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_threadline-relay"));
    command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--data-dir"]).arg(dir.path());
    let (code, text) = run(&mut command);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{text}");
}

#[test]
fn the_directory_of_another_relay_comes_over() {
    let (old, new) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let source = rusqlite::Connection::open(old.path().join("registry.db")).expect("open");
    let sql = "CREATE TABLE agents(public_key TEXT, agent_id TEXT, name TEXT, registered_at TEXT);
               INSERT INTO agents VALUES ('AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=', '01010101010101010101010101010101',
                   'Old', '2025-01-01T00:00:00.000Z'), ('x', 'y', 'z', '')";
    source.execute_batch(sql).expect("fill");
    let (code, text) = run(command(new.path()).args(["import", "--from"]).arg(old.path()));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("1 entries imported") && text.contains("1 left out"), "{text}");
    let (code, text) = run(command(new.path()).args(["import", "--from", "/nowhere"]));
    assert_eq!(code, Some(1));
    assert!(text.contains("/nowhere/registry.db"), "{text}");
}
