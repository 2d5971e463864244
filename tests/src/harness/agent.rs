//! One agent: its folder, its node, its command line.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::process::{Child, Command};

use super::account::merge;
use super::isolation::keep_for_failure;
use super::{Account, Answer, eventually, request};

/// Longest wait for a node to start.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest run of one command.
const CLI_LIMIT: Duration = Duration::from_secs(150);

/// An agent and, while it is up, its node's process.
#[derive(Debug)]
pub struct Agent {
    account: Account,
    name: String,
    dir: PathBuf,
    variables: Vec<(String, String)>,
    node: Option<Child>,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct CliOutput {
    /// Exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl CliOutput {
    /// Whether the command succeeded.
    pub fn ok(&self) -> anyhow::Result<()> {
        ensure!(self.code == Some(0), "the command failed: {self:#?}");
        Ok(())
    }

    /// Standard output as JSON, if the command succeeded.
    pub fn json(&self) -> anyhow::Result<Value> {
        ensure!(self.code == Some(0), "the command failed: {self:#?}");
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("not one JSON document: {:?}", self.stdout))
    }
}

impl Agent {
    pub(super) async fn init(account: Account, name: &str) -> anyhow::Result<Self> {
        let dir = account.home().join(name);
        std::fs::create_dir_all(&dir)?;
        let agent = Self { account, name: name.to_owned(), dir, variables: Vec::new(), node: None };
        let output = agent.cli(&["init"]).await?;
        ensure!(output.code == Some(0), "instar init: {output:#?}");
        agent.configure(agent.account.config().clone())?;
        Ok(agent)
    }

    /// Its project folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its `.instar` folder.
    pub fn state(&self) -> PathBuf {
        self.dir.join(".instar")
    }

    /// Merges keys into `config.json`, as a person with an editor does.
    pub fn configure(&self, patch: Value) -> anyhow::Result<()> {
        let path = self.state().join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut config: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        merge(&mut config, patch);
        instar_durable::write_atomic(&path, serde_json::to_string_pretty(&config)?.as_bytes(), 0o600)?;
        Ok(())
    }

    /// Puts these variables into the environment of nodes started from now on.
    pub fn set_variables(&mut self, variables: Vec<(String, String)>) {
        self.variables = variables;
    }

    /// Starts the node with `instar up` in the foreground of a process group of its own and waits until it works.
    pub async fn up(&mut self) -> anyhow::Result<()> {
        self.launch()?;
        self.ready().await
    }

    /// Starts the node without waiting for it.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let child = self
            .command(&["up"])
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("starting instar up")?;
        self.node = Some(child);
        Ok(())
    }

    /// Waits until the node has started: until then every route but `/health` answers 503.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let socket = self.socket();
        let name = self.name.clone();
        let node = self.node.as_mut().context("the node was not started")?;
        let what = format!("{name} has started");
        let healthy = eventually(START_LIMIT, &what, async || {
            if let Some(status) = node.try_wait()? {
                return Ok(Some(Err(status)));
            }
            let answer = request(&socket, "GET", "/status", &[], None).await?;
            Ok((answer.status == 200).then_some(Ok(())))
        });
        match healthy.await? {
            Ok(()) => Ok(()),
            Err(status) => bail!("node {name} ended with {status}:\n{}", self.log()),
        }
    }

    /// Sends SIGKILL to the node and waits for its end. Sessions are processes of their own and live on.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut node) = self.node.take() {
            node.kill().await?;
        }
        Ok(())
    }

    /// Stops the node as Ctrl-C does and waits for its end.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let mut node = self.node.take().context("the node was not started")?;
        if let Some(pid) = node.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        }
        let ended = tokio::time::timeout(Duration::from_secs(30), node.wait()).await;
        Ok(ended.with_context(|| format!("node {} did not stop", self.name))??)
    }

    /// Waits for a node that ends by itself.
    pub async fn ended(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let mut node = self.node.take().context("the node was not started")?;
        let ended = tokio::time::timeout(limit, node.wait()).await;
        Ok(ended.with_context(|| format!("node {} still runs after {limit:?}", self.name))??)
    }

    /// Process id of the node.
    pub fn pid(&self) -> Option<i32> {
        self.node.as_ref()?.id().map(|pid| pid as i32)
    }

    /// Runs a command of this agent.
    pub async fn cli(&self, arguments: &[&str]) -> anyhow::Result<CliOutput> {
        let running = self.command(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(CLI_LIMIT, running)
            .await
            .with_context(|| format!("instar {arguments:?} still runs after {CLI_LIMIT:?}"))??;
        Ok(CliOutput {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command with `--json` that has to succeed.
    pub async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = self.cli(&[arguments, &["--json"]].concat()).await?;
        output.json().with_context(|| format!("instar {arguments:?} of {}", self.name))
    }

    /// `GET` on the node's socket, as the local account.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        request(&self.socket(), "GET", path, &[], None).await
    }

    /// The command line of this agent, not started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.account.binary());
        command.args(arguments).current_dir(&self.dir).env_clear().envs(self.account.environment());
        command
    }

    /// What the node printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The node's own log file.
    pub fn node_log(&self) -> String {
        std::fs::read_to_string(self.state().join("logs/node.log")).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.account.home().join(format!("{}.out", self.name))
    }

    /// The node's socket.
    pub fn socket(&self) -> PathBuf {
        self.state().join("run/agent.sock")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let tail = |text: String| {
            let lines: Vec<String> = text.lines().map(brief).collect();
            lines[lines.len().saturating_sub(60)..].join("\n")
        };
        keep_for_failure(format!(
            "--- {} printed\n{}\n--- its node.log\n{}",
            self.name,
            tail(self.log()),
            tail(self.node_log())
        ));
    }
}

/// A log line as a person reads it: the time of day, the level, what happened, its fields.
fn brief(line: &str) -> String {
    const LONGEST: usize = 240;
    let Ok(Value::Object(mut fields)) = serde_json::from_str(line) else {
        return line.chars().take(LONGEST).collect();
    };
    let mut take = |name: &str| match fields.remove(name) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let (time, level, message) = (take("timestamp"), take("level"), take("message"));
    take("target");
    let time = time.get(11..23).unwrap_or(&time);
    let rest: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{time} {level} {message} {}", rest.join(" ")).chars().take(LONGEST).collect()
}
