//! What a person or a runtime waits for when it starts one of our programs.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::report::{self, Samples};

/// Programs under test and an agent made for the run.
pub(crate) struct Setup {
    pub(crate) instar: PathBuf,
    pub(crate) hook: PathBuf,
    home: tempfile::TempDir,
    project: PathBuf,
}

impl Setup {
    /// Makes an agent in a fresh home.
    pub(crate) fn new(bin_dir: &Path) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("instar-bench-").tempdir()?;
        let project = home.path().join("agent");
        fs::create_dir(&project)?;
        let setup = Self { instar: bin_dir.join("instar"), hook: bin_dir.join("instar-hook"), home, project };
        let out = setup.command(&setup.instar).args(["init", "--json"]).output().context("instar init")?;
        ensure!(out.status.success(), "instar init: {}", String::from_utf8_lossy(&out.stderr));
        setup.store_sessions(200)?;
        Ok(setup)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LANG", "C.UTF-8")
            .current_dir(&self.project);
        command
    }

    fn state_dir(&self) -> PathBuf {
        self.project.join(".instar")
    }

    fn store_sessions(&self, count: usize) -> Result<()> {
        let dir = self.state_dir().join("state/sessions");
        fs::create_dir_all(&dir)?;
        for index in 0..count {
            let id = uuid::Uuid::from_u128(index as u128 + 1);
            let record = serde_json::json!({
                "id": id, "name": format!("old-{index}"), "kind": "ad-hoc", "status": "completed",
                "activity": "idle", "transport": "stdio", "framework": "claude-code",
                "cwd": self.project, "prompt": {"head": "", "sha256": ""},
                "maxDurationMinutes": 240, "startedAt": "2026-01-01T00:00:00.000Z",
                "endedAt": chrono_now(), "priority": "medium", "owner": {"fence": 1},
            });
            fs::write(dir.join(format!("{id}.json")), serde_json::to_vec(&record)?)?;
        }
        Ok(())
    }
}

fn chrono_now() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    // The record only has to be recent enough not to be pruned at boot.
    let days = now.as_secs() / 86_400;
    let (year, month, day) = civil(days as i64);
    format!("{year:04}-{month:02}-{day:02}T00:00:00.000Z")
}

/// Days since 1970-01-01 to a civil date (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

pub(crate) fn version(setup: &Setup, runs: usize) -> Result<()> {
    let mut samples = Samples::new();
    for _ in 0..runs {
        let start = Instant::now();
        let status = setup.command(&setup.instar).arg("--version").stdout(Stdio::null()).status()?;
        samples.record(start.elapsed());
        ensure!(status.success(), "--version failed");
    }
    report::times("instar --version", &samples, "< 15 ms", Some(Duration::from_millis(750)));
    Ok(())
}

/// One tool call through the hook, the way a runtime makes it; without a node, which is the slower path.
pub(crate) fn hook(setup: &Setup, runs: usize) -> Result<()> {
    let fallback = setup.home.path().join("instar-hook");
    std::os::unix::fs::symlink(&setup.instar, &fallback)?;
    for (what, program) in
        [("hook PreToolUse, own binary", &setup.hook), ("hook PreToolUse, fallback", &fallback)]
    {
        let mut samples = Samples::new();
        for _ in 0..runs {
            let event = serde_json::json!({
                "session_id": "00000000-0000-4000-8000-000000000001", "transcript_path": "/dev/null",
                "cwd": setup.project, "permission_mode": "default", "hook_event_name": "PreToolUse",
                "tool_name": "Bash", "tool_use_id": "t1",
                "tool_input": {"command": "cd src && grep -rn 'fn main' . | head -5; cargo check 2>&1 | tail -3"},
            });
            let start = Instant::now();
            let mut child = setup
                .command(program)
                .args(["on", "PreToolUse", "--runtime", "claude"])
                .env("INSTAR_STATE_DIR", setup.state_dir())
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            child.stdin.take().context("stdin")?.write_all(event.to_string().as_bytes())?;
            let status = child.wait()?;
            samples.record(start.elapsed());
            ensure!(status.success(), "{what} exited with {status}");
        }
        report::times(what, &samples, "p50 < 3 ms, p99 < 8 ms", Some(Duration::from_millis(80)));
    }
    Ok(())
}

/// Start of the process to the first `/health` 200 with an open router, 200 stored sessions.
pub(crate) fn boot(setup: &Setup, runs: usize) -> Result<()> {
    let mut samples = Samples::new();
    for _ in 0..runs {
        let start = Instant::now();
        let node = Node::start(setup)?;
        samples.record(start.elapsed());
        node.stop()?;
    }
    report::times("node start to /health 200", &samples, "< 150 ms", Some(Duration::from_millis(1900)));
    Ok(())
}

/// Resident memory and CPU of an idle node.
pub(crate) fn idle(setup: &Setup, seconds: u64) -> Result<()> {
    let node = Node::start(setup)?;
    std::thread::sleep(Duration::from_secs(10));
    let before = cpu_ticks(node.pid())?;
    std::thread::sleep(Duration::from_secs(seconds));
    let ticks = cpu_ticks(node.pid())? - before;
    let rss = rss_mib(node.pid())?;
    let hertz = 100.0;
    let cpu = ticks as f64 / hertz / seconds as f64 * 100.0;
    report::figure(
        &format!("node idle over {seconds} s"),
        &format!("{rss:.1} MiB resident, {cpu:.3} % of a core"),
        "< 30 MiB, < 0.1 % (Node.js 117 MB)",
    );
    node.stop()
}

/// `/status` of a running node through the command line.
pub(crate) fn status(setup: &Setup, runs: usize) -> Result<()> {
    let node = Node::start(setup)?;
    let mut samples = Samples::new();
    for _ in 0..runs {
        let start = Instant::now();
        let status =
            setup.command(&setup.instar).args(["status", "--json"]).stdout(Stdio::null()).status()?;
        samples.record(start.elapsed());
        ensure!(status.success(), "instar status failed");
    }
    report::times("instar status, node running", &samples, "< 50 ms", None);
    node.stop()
}

/// Start of the stdio MCP server to its answer to `initialize`, and its memory.
pub(crate) fn mcp(setup: &Setup, runs: usize) -> Result<()> {
    let node = Node::start(setup)?;
    let mut samples = Samples::new();
    let mut rss = 0.0_f64;
    for _ in 0..runs {
        let start = Instant::now();
        let mut child = setup
            .command(&setup.instar)
            .args(["mcp", "threadline", "--state-dir"])
            .arg(setup.state_dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut stdin = child.stdin.take().context("stdin")?;
        let request = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}});
        writeln!(stdin, "{request}")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        samples.record(start.elapsed());
        ensure!(line.contains("serverInfo"), "unexpected answer: {line}");
        rss = rss.max(rss_mib(child.id())?);
        drop(stdin);
        child.wait()?;
    }
    report::times("mcp threadline to initialize answer", &samples, "-", Some(Duration::from_millis(360)));
    report::figure("mcp threadline resident", &format!("{rss:.1} MiB"), "- (Node.js 92 MB)");
    node.stop()
}

struct Node {
    child: Child,
}

impl Node {
    fn start(setup: &Setup) -> Result<Self> {
        let child = setup
            .command(&setup.instar)
            .args(["server", "start", "--foreground"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let node = Self { child };
        let socket = setup.state_dir().join("run/agent.sock");
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if health(&socket).is_some_and(|body| !body.contains("booting")) {
                return Ok(node);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("the node did not answer within 15 s")
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn stop(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }
}

fn health(socket: &Path) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(answer)
}

pub(crate) fn rss_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("VmRSS value")?.parse()?;
    Ok(kib / 1024.0)
}

fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let field = |index: usize| -> Result<u64> { Ok(fields.get(index).context("stat field")?.parse()?) };
    Ok(field(11)? + field(12)?)
}
