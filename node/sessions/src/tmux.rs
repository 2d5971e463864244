//! The agent's own tmux server: started by us, with an environment that holds nothing secret.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use instar_durable::write_atomic;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::environment::Environment;

const CONFIG: &str = "set -g history-limit 50000\nset -s escape-time 10\nset -g default-terminal tmux-256color\n\
                      set -g mouse on\nset -g remain-on-exit off\nset -g update-environment \"\"\n";

/// Longest time of one command.
const LIMIT: Duration = Duration::from_secs(5);

/// A failed tmux command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TmuxError {
    /// The program is not there.
    #[error("tmux was not found: install it, or set sessions.tmuxPath in config.json to its path")]
    Missing,
    /// It cannot be run now; nothing is known about the session.
    #[error("tmux could not be run: {0}")]
    Unavailable(String),
    /// It refused.
    #[error("tmux {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// Its words.
        reason: String,
    },
}

/// One tmux server; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Tmux {
    program: PathBuf,
    server: String,
    config: PathBuf,
    env: Environment,
}

impl Tmux {
    /// The server of this name; `env` is what it and every pane will see.
    pub(crate) fn new(program: PathBuf, server: String, state_dir: &Path, env: Environment) -> Self {
        Self { program, server, config: state_dir.join("tmux.conf"), env }
    }

    /// Starts a session that runs this command, detached.
    pub(crate) async fn new_session(
        &self,
        name: &str,
        cwd: &Path,
        command: &[OsString],
    ) -> Result<(), TmuxError> {
        if std::fs::read(&self.config).ok().as_deref() != Some(CONFIG.as_bytes()) {
            write_atomic(&self.config, CONFIG.as_bytes(), 0o600)
                .map_err(|e| TmuxError::Unavailable(e.to_string()))?;
        }
        let mut args: Vec<OsString> =
            ["new-session", "-d", "-s", name, "-x", "200", "-y", "50", "-c"].map(OsString::from).into();
        args.push(cwd.into());
        args.extend(command.iter().cloned());
        self.run(&args, None).await.map(drop)
    }

    /// Names of all sessions. No server means no sessions.
    pub(crate) async fn sessions(&self) -> Result<Vec<String>, TmuxError> {
        match self.text(&["list-sessions", "-F", "#{session_name}"]).await {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(TmuxError::Refused { reason, .. }) if is_no_server(&reason) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Whether the session exists; `None` if that cannot be found out now.
    pub(crate) async fn exists(&self, name: &str) -> Option<bool> {
        for _ in 0..3 {
            match self.sessions().await {
                Ok(names) => return Some(names.iter().any(|n| n == name)),
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
        None
    }

    /// Whether a person looks at the session.
    pub(crate) async fn attached(&self, name: &str) -> Result<bool, TmuxError> {
        let target = format!("={name}:");
        let text = self.text(&["display-message", "-p", "-t", &target, "#{session_attached}"]).await?;
        Ok(text.trim() != "0")
    }

    /// Id of the session's pane, for example `%3`.
    pub(crate) async fn pane(&self, name: &str) -> Result<String, TmuxError> {
        let target = format!("={name}:");
        let text = self.text(&["display-message", "-p", "-t", &target, "#{pane_id}"]).await?;
        Ok(text.trim().to_owned())
    }

    /// The screen, or with `history` that many lines more; `ansi` keeps colours.
    pub(crate) async fn capture(&self, name: &str, history: usize, ansi: bool) -> Result<String, TmuxError> {
        let target = format!("={name}:");
        let start = format!("-{history}");
        let mut args = vec!["capture-pane", "-p", "-t", &target];
        if history > 0 {
            args.extend(["-S", &start]);
        }
        if ansi {
            args.push("-e");
        }
        self.text(&args).await
    }

    /// Presses a key.
    pub(crate) async fn key(&self, pane: &str, key: &str) -> Result<(), TmuxError> {
        self.text(&["send-keys", "-t", pane, key]).await.map(drop)
    }

    /// Pastes a text as one paste. The text reaches tmux over its input, so that its length does not matter.
    pub(crate) async fn paste(&self, pane: &str, buffer: &str, text: &str) -> Result<(), TmuxError> {
        let load = ["load-buffer", "-b", buffer, "-"].map(OsString::from);
        self.run(&load, Some(text.as_bytes())).await?;
        self.text(&["paste-buffer", "-p", "-d", "-r", "-b", buffer, "-t", pane]).await.map(drop)
    }

    /// Ends the session with all that runs in it.
    pub(crate) async fn kill(&self, name: &str) -> Result<(), TmuxError> {
        self.text(&["kill-session", "-t", &format!("={name}")]).await.map(drop)
    }

    async fn text(&self, args: &[&str]) -> Result<String, TmuxError> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        self.run(&args, None).await
    }

    async fn run(&self, args: &[OsString], input: Option<&[u8]>) -> Result<String, TmuxError> {
        let command = args.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
        let mut child = Command::new(&self.program)
            .arg("-L")
            .arg(&self.server)
            .arg("-f")
            .arg(&self.config)
            .args(args)
            .env_clear()
            .envs(&self.env)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => TmuxError::Missing,
                _ => TmuxError::Unavailable(error.to_string()),
            })?;
        let work = async {
            if let (Some(mut stdin), Some(bytes)) = (child.stdin.take(), input) {
                stdin.write_all(bytes).await?;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(LIMIT, work)
            .await
            .map_err(|_| TmuxError::Unavailable(format!("{command} took longer than 5 s")))?
            .map_err(|error| TmuxError::Unavailable(error.to_string()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(TmuxError::Refused { command, reason })
    }
}

fn is_no_server(reason: &str) -> bool {
    reason.contains("no server running") || reason.contains("No such file") || reason.contains("no sessions")
}
