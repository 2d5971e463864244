//! Where everything of one agent, and of the account's shared folder, lies.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Longest socket path that every supported system accepts, in bytes.
const SOCKET_PATH_MAX: usize = 100;

/// Paths of one agent: its project directory and the state directory `.instar` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentPaths {
    project: PathBuf,
    state: PathBuf,
}

impl AgentPaths {
    /// Paths of the agent whose project directory this is (absolute, canonical).
    pub fn new(project: impl Into<PathBuf>) -> Self {
        let project = project.into();
        let state = project.join(".instar");
        Self { project, state }
    }

    /// Paths of the agent with this state directory (`<project>/.instar`).
    pub fn of_state_dir(state: impl Into<PathBuf>) -> Self {
        let state = state.into();
        let project = state.parent().map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
        Self { project, state }
    }

    /// Directory that the agent works in.
    pub fn project(&self) -> &Path {
        &self.project
    }

    /// `.instar`
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// `config.json`
    pub fn config(&self) -> PathBuf {
        self.state.join("config.json")
    }

    /// `identity.json`, the agent's key (`threadline-wire.md` §1.2).
    pub fn identity(&self) -> PathBuf {
        self.state.join("identity.json")
    }

    /// `users.json`
    pub fn users(&self) -> PathBuf {
        self.state.join("users.json")
    }

    /// Directory of the databases and JSON state.
    pub fn data(&self) -> PathBuf {
        self.state.join("state")
    }

    /// Session records.
    pub fn sessions(&self) -> PathBuf {
        self.data().join("sessions")
    }

    /// Database of the message journal.
    pub fn messaging_db(&self) -> PathBuf {
        self.data().join("messaging.sqlite")
    }

    /// Database of the mesh.
    pub fn threadline_db(&self) -> PathBuf {
        self.data().join("threadline.sqlite")
    }

    /// Tries of the owner's PIN.
    pub fn pin_tries(&self) -> PathBuf {
        self.data().join("pin-tries.json")
    }

    /// Human-readable records of the mesh.
    pub fn threadline(&self) -> PathBuf {
        self.state.join("threadline")
    }

    /// Logs.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// Log of the node.
    pub fn node_log(&self) -> PathBuf {
        self.logs().join("node.log")
    }

    /// What is made anew at each start: sockets, locks, launch files.
    pub fn run(&self) -> PathBuf {
        self.state.join("run")
    }

    /// Lock of the one node of this agent.
    pub fn node_lock(&self) -> PathBuf {
        self.run().join("node.lock")
    }

    /// Snapshot of configuration and guard data that the hooks read.
    pub fn hook_snapshot(&self) -> PathBuf {
        self.run().join("hook-snapshot.bin")
    }

    /// Private place for input files and other short-lived data.
    pub fn tmp(&self) -> PathBuf {
        self.run().join("tmp")
    }

    /// Encrypted secret store and its lock.
    pub fn secrets(&self) -> PathBuf {
        self.state.join("secrets")
    }

    /// Keys of this machine.
    pub fn machine(&self) -> PathBuf {
        self.state.join("machine")
    }

    /// Directory of links to the program: `current/instar`, `current/instar-hook`.
    pub fn current(&self) -> PathBuf {
        self.state.join("current")
    }

    /// The node's socket: `run/agent.sock`, or a short path when that one is too long for the system.
    pub fn socket(&self) -> PathBuf {
        let plain = self.run().join("agent.sock");
        if plain.as_os_str().len() <= SOCKET_PATH_MAX {
            return plain;
        }
        short_socket_dir().join(format!("{}.sock", self.hash(16)))
    }

    /// File beside the usual place of the socket that names the short path in use.
    pub fn socket_pointer(&self) -> PathBuf {
        self.run().join("agent.sock.path")
    }

    /// Name of the agent's own tmux server.
    pub fn tmux_server(&self) -> String {
        format!("instar-{}", self.hash(8))
    }

    /// First `digits` hex digits of the SHA-256 of the project path.
    pub fn hash(&self, digits: usize) -> String {
        let digest = hex::encode(Sha256::digest(self.project.as_os_str().as_encoded_bytes()));
        digest.chars().take(digits).collect()
    }

    /// Makes `run/` and what belongs into it, mode 0700, and the directory of a short socket path.
    ///
    /// Fails when a directory for the short path exists and belongs to someone else.
    pub fn prepare_run(&self) -> io::Result<()> {
        for dir in [self.run(), self.tmp(), self.run().join("sessions"), self.run().join("launch")] {
            instar_durable::create_dir_private(&dir)?;
        }
        let socket = self.socket();
        if socket.starts_with(self.run()) {
            return remove_if_there(&self.socket_pointer());
        }
        make_own_dir(&short_socket_dir())?;
        instar_durable::write_atomic(&self.socket_pointer(), socket.as_os_str().as_encoded_bytes(), 0o600)
            .map_err(|e| e.source)
    }
}

/// Paths that all agents of one account share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountPaths {
    home: PathBuf,
}

impl AccountPaths {
    /// Paths under the given home directory.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Self { home: home.into() }
    }

    /// The home directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// `~/.instar`
    pub fn root(&self) -> PathBuf {
        self.home.join(".instar")
    }

    /// Registry of the account's agents.
    pub fn registry(&self) -> PathBuf {
        self.root().join("registry.json")
    }

    /// Standalone agents.
    pub fn agents(&self) -> PathBuf {
        self.root().join("agents")
    }

    /// Last backups of removed agents.
    pub fn trash(&self) -> PathBuf {
        self.root().join("trash")
    }

    /// Data of the account's embedded relay.
    pub fn relay(&self) -> PathBuf {
        self.root().join("relay")
    }

    /// Tokens by which the account's agents write to each other.
    pub fn agent_tokens(&self) -> PathBuf {
        self.root().join("agent-tokens")
    }

    /// Messages for agents of the account that are down.
    pub fn drops(&self) -> PathBuf {
        self.root().join("messages/drop")
    }

    /// Limits that all agents of the account share.
    pub fn machine_limits_db(&self) -> PathBuf {
        self.root().join("machine-limits.sqlite")
    }

    /// Claude Code's own file, shared by all its users.
    pub fn claude_json(&self) -> PathBuf {
        self.home.join(".claude.json")
    }
}

fn short_socket_dir() -> PathBuf {
    PathBuf::from(format!("/tmp/instar-{}", rustix::process::getuid().as_raw()))
}

/// Makes a directory that only we can use, in a place where others could have made it first.
fn make_own_dir(dir: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(dir)?;
    let ours = meta.is_dir()
        && meta.uid() == rustix::process::getuid().as_raw()
        && meta.mode().trailing_zeros() >= 6;
    if ours {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("{} is not a private directory of this user", dir.display()),
    ))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_project_path_gets_a_short_socket() {
        let short = AgentPaths::new("/home/ann/agent");
        assert_eq!(short.socket(), Path::new("/home/ann/agent/.instar/run/agent.sock"));
        let long = AgentPaths::new(format!("/home/{}", "x".repeat(120)));
        assert!(long.socket().as_os_str().len() <= SOCKET_PATH_MAX);
        assert_ne!(long.socket(), AgentPaths::new(format!("/home/{}", "y".repeat(120))).socket());
    }

    #[test]
    fn the_pointer_names_the_short_socket_and_goes_when_it_is_not_needed() {
        let dir = tempfile::tempdir().expect("dir");
        let long = AgentPaths::new(dir.path().join("x".repeat(120)));
        long.prepare_run().expect("prepare");
        let named = std::fs::read(long.socket_pointer()).expect("pointer");
        assert_eq!(named, long.socket().as_os_str().as_encoded_bytes());

        let short = AgentPaths::new(dir.path());
        std::fs::create_dir_all(short.run()).expect("run");
        std::fs::write(short.socket_pointer(), "stale").expect("write");
        short.prepare_run().expect("prepare");
        assert!(!short.socket_pointer().exists());
    }

    #[test]
    fn a_state_directory_names_its_project() {
        assert_eq!(AgentPaths::of_state_dir("/a/b/.instar"), AgentPaths::new("/a/b"));
    }
}
