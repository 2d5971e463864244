//! What the node must know of a runtime to drive it.

use std::path::{Path, PathBuf};

use instar_state::ids::SessionId;
use instar_state::ports::PeerBinding;

use crate::config::SessionsConfig;
use crate::dialogs::Dialog;
use crate::environment::Environment;
use crate::launch::SessionFiles;
use crate::record::Transport;

pub mod claude;

/// A program that can serve as a session. Claude Code is the one so far.
pub trait Runtime: Send + Sync + std::fmt::Debug {
    /// Its name in records and configuration.
    fn framework(&self) -> &'static str;

    /// Its executable.
    fn program(&self, config: &SessionsConfig, search_path: &str) -> Result<PathBuf, LaunchRefused>;

    /// What to start for a session.
    fn launch(&self, request: &LaunchRequest<'_>) -> Result<Launch, LaunchRefused>;

    /// Writes what the program must find in the owner's home before it starts without questions.
    fn prepare_home(&self, config: &SessionsConfig, home: &Path) -> Result<(), LaunchRefused>;

    /// The line that gives it an input over stdio; `uuid` comes back in its events.
    fn input_line(&self, session: &str, uuid: &str, text: &str) -> String;

    /// The line that interrupts a running turn over stdio.
    fn interrupt_line(&self, request_id: &str) -> String;

    /// The transcript of one of its sessions.
    fn transcript(&self, env: &Environment, cwd: &Path, runtime_session_id: &str) -> Option<PathBuf>;

    /// Questions that it may show in a terminal before it is ready.
    fn dialogs(&self) -> &'static [Dialog];
}

/// Facts that a launch line is made of.
#[derive(Debug)]
pub struct LaunchRequest<'a> {
    /// Settings of the owner.
    pub config: &'a SessionsConfig,
    /// The executable.
    pub program: &'a Path,
    /// The session.
    pub id: SessionId,
    /// Files of the session.
    pub files: &'a SessionFiles,
    /// How it is driven.
    pub transport: Transport,
    /// Runtime session whose transcript it continues.
    pub resume: Option<&'a str>,
    /// Model id.
    pub model: Option<&'a str>,
    /// Effort.
    pub effort: Option<&'a str>,
    /// Firewall of a session that serves a peer.
    pub peer: Option<&'a PeerBinding>,
    /// Tool rules of a session of our own.
    pub allowed_tools: &'a [String],
    /// Most turns of the model (stdio).
    pub max_turns: Option<u32>,
    /// Most cost in dollars (stdio).
    pub max_cost_usd: Option<f64>,
    /// Whether the node runs as root.
    pub root: bool,
}

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables beside the allowed and the usual ones.
    pub env: Environment,
    /// Content of `run/settings/<id>.json` beside the hooks.
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// Lines for its input before anything else.
    pub first_lines: Vec<String>,
}

/// Why a runtime cannot be started as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchRefused {
    /// The program is not there.
    #[error("{program} was not found: install it, or set {key} in config.json to its path")]
    Missing {
        /// What was looked for.
        program: String,
        /// The key that names it.
        key: &'static str,
    },
    /// Root may not run it without asking.
    #[error(
        "Claude Code refuses to run without permission questions as root. Run instar as another user, or, inside a \
         container or virtual machine, set sessions.allowRoot to true"
    )]
    Root,
    /// A setting that would undo the launch line.
    #[error("sessions.extraArgs must not contain {0}")]
    ForbiddenArgument(String),
    /// The owner's settings of the program cannot be read or written.
    #[error("cannot prepare {path}: {reason}")]
    Home {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}
