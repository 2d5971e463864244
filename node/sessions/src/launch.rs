//! The launch spec: what a supervisor starts, handed over in a private file that is read once.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use instar_state::ids::SessionId;
use instar_state::ports::HeartbeatSpec;
use serde::{Deserialize, Serialize};

/// What a supervisor needs to start one runtime.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchSpec {
    /// Program and arguments of the runtime; nothing in them is secret.
    pub argv: Vec<String>,
    /// Whole environment of the runtime.
    pub env: BTreeMap<String, String>,
    /// Directory to start in.
    pub cwd: PathBuf,
    /// Lines to write to the runtime before anything else (stdio only).
    #[serde(default)]
    pub first_lines: Vec<String>,
    /// This program, for the shim between supervisor and runtime.
    pub program: PathBuf,
    /// Proof of life to write.
    #[serde(default)]
    pub heartbeat: Option<HeartbeatSpec>,
}

impl std::fmt::Debug for LaunchSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaunchSpec").field("argv", &self.argv).finish_non_exhaustive()
    }
}

/// Files of one session below the state directory.
#[derive(Debug, Clone)]
pub struct SessionFiles {
    state_dir: PathBuf,
    id: SessionId,
}

impl SessionFiles {
    /// Files of this session.
    pub fn new(state_dir: &Path, id: SessionId) -> Self {
        Self { state_dir: state_dir.to_owned(), id }
    }

    /// Record, `state/sessions/<id>.json`.
    pub fn record(&self) -> PathBuf {
        self.state_dir.join(format!("state/sessions/{}.json", self.id))
    }

    /// How the runtime ended, `state/sessions/<id>.exit.json`.
    pub fn exit(&self) -> PathBuf {
        self.state_dir.join(format!("state/sessions/{}.exit.json", self.id))
    }

    /// Supervisor and runtime processes, `run/sessions/<id>.pids.json`.
    pub fn pids(&self) -> PathBuf {
        self.state_dir.join(format!("run/sessions/{}.pids.json", self.id))
    }

    /// Socket of the stdio supervisor.
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join(format!("run/sessions/{}.sock", self.id))
    }

    /// Launch spec.
    pub fn launch(&self) -> PathBuf {
        self.state_dir.join(format!("run/launch/{}.json", self.id))
    }

    /// Runtime settings.
    pub fn settings(&self) -> PathBuf {
        self.state_dir.join(format!("run/settings/{}.json", self.id))
    }

    /// MCP servers of the session, with its token.
    pub fn mcp(&self) -> PathBuf {
        self.state_dir.join(format!("run/mcp/{}.json", self.id))
    }

    /// Firewall of a session that serves a peer.
    pub fn binding(&self) -> PathBuf {
        self.state_dir.join(format!("run/bindings/{}.json", self.id))
    }

    /// Directory of inputs too long to type.
    pub fn inputs(&self) -> PathBuf {
        self.state_dir.join(format!("run/tmp/{}", self.id))
    }

    /// Event log of the stdio supervisor.
    pub fn log(&self) -> PathBuf {
        self.state_dir.join(format!("logs/sessions/{}.ndjson", self.id))
    }

    /// Last screen of a session that did not become ready.
    pub fn startup_screen(&self) -> PathBuf {
        self.state_dir.join(format!("logs/startup/{}.txt", self.id))
    }

    /// Makes the directories, mode 0700.
    pub fn prepare(&self) -> io::Result<()> {
        for path in [
            self.record(),
            self.socket(),
            self.launch(),
            self.settings(),
            self.mcp(),
            self.binding(),
            self.log(),
            self.startup_screen(),
        ] {
            if let Some(dir) = path.parent() {
                instar_durable::create_dir_private(dir)?;
            }
        }
        Ok(())
    }

    /// Removes what is only of use while the session lives.
    pub fn remove_live(&self) {
        for path in [self.launch(), self.settings(), self.mcp(), self.binding(), self.socket(), self.pids()] {
            let _ = fs::remove_file(path);
        }
        let _ = fs::remove_dir_all(self.inputs());
    }
}

/// Reads the launch spec and removes it, before anything is started from it.
pub fn take(files: &SessionFiles) -> io::Result<LaunchSpec> {
    let path = files.launch();
    let bytes = fs::read(&path)?;
    fs::remove_file(&path)?;
    serde_json::from_slice(&bytes).map_err(io::Error::from)
}

/// Processes of a session, as the supervisor saw them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pids {
    /// The supervisor.
    pub host: i32,
    /// The runtime.
    pub child: i32,
    /// Start of the runtime in clock ticks since boot.
    pub child_start_time: u64,
}
