//! The registry of all agents of the account, `~/.instar/registry.json` (`agent-core.md` §5.1).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use instar_durable::{FileLock, LockError, create_dir_private, set_aside, write_atomic};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{ConfigFile, lookup};
use crate::paths::{AccountPaths, AgentPaths};
use crate::process::ProcessRef;
use crate::tcp_ports;
use crate::time::rfc3339;

const VERSION: u32 = 1;

/// One agent. Its path is the key; names may repeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentEntry {
    /// Name of the agent.
    pub name: String,
    /// `standalone` or `project-bound`.
    #[serde(rename = "type", default = "standalone")]
    pub kind: String,
    /// Project directory, canonical and absolute.
    pub path: PathBuf,
    /// Port of its HTTP interface.
    pub port: u16,
    /// Node that runs or ran last.
    #[serde(default)]
    pub pid: Option<i32>,
    /// Start time of that process.
    #[serde(default)]
    pub pid_start_time: Option<u64>,
    /// Whether the node runs.
    #[serde(default)]
    pub status: AgentStatus,
    /// RFC 3339; empty where nobody noted it.
    #[serde(default)]
    pub created_at: String,
    /// RFC 3339.
    #[serde(default)]
    pub last_heartbeat: Option<String>,
    /// Version of the node that ran last.
    #[serde(default)]
    pub instar_version: Option<String>,
    /// The node's socket. Existing installs name none: theirs is where it would lie, and nobody answers there.
    #[serde(default)]
    pub socket: PathBuf,
    /// What other builds noted about the agent, kept as it is.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn standalone() -> String {
    "standalone".to_owned()
}

impl AgentEntry {
    /// The process of the node, as far as it is known.
    pub fn process(&self) -> Option<ProcessRef> {
        Some(ProcessRef { pid: self.pid?, start: self.pid_start_time? })
    }
}

/// Whether an agent's node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentStatus {
    /// Its process lives.
    Running,
    /// It ended in order, or never ran.
    #[default]
    Stopped,
    /// It was said to run and its process is gone; also a word that this build does not know.
    #[serde(other)]
    Stale,
}

/// Why the registry can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A file can't be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process held the lock for 3 s.
    #[error("cannot change the agent registry: {0}")]
    Locked(#[from] LockError),
    /// The file was written by a newer build.
    #[error("{path} has version {found}; this build knows {VERSION}. Update instar, or use the newer one")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
    },
    /// Every port of the range is registered or occupied.
    #[error("no free port between {} and {}: {registered} are registered to agents, the others are in use; choose one with --port",
        tcp_ports::RANGE.start(), tcp_ports::RANGE.end())]
    NoPort {
        /// Ports of the range that agents have.
        registered: usize,
    },
}

/// The registry of one account.
#[derive(Debug, Clone)]
pub struct Registry {
    account: AccountPaths,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    entries: Vec<AgentEntry>,
}

/// The entries while the registry is locked.
#[derive(Debug)]
pub struct Entries {
    list: Vec<AgentEntry>,
    /// The damaged file that was set aside, if there was one; the list was rebuilt from standalone agents.
    pub rebuilt_from: Option<PathBuf>,
}

impl Registry {
    /// The registry under this home directory.
    pub fn new(account: AccountPaths) -> Self {
        Self { account }
    }

    /// All agents with their real status, without changing the file. Blocks.
    pub fn read(&self) -> Result<Vec<AgentEntry>, RegistryError> {
        let mut list = match self.load()? {
            Loaded::Good(list) => list,
            Loaded::Damaged => self.rebuild(0),
        };
        refresh(&mut list, ProcessRef::is_alive);
        Ok(list)
    }

    /// Changes the registry under its lock and writes it as a whole. A damaged file is set aside and rebuilt.
    /// Entries whose state directory is gone are dropped. Blocks.
    pub fn edit<T, E: From<RegistryError>>(
        &self,
        now_ms: i64,
        change: impl FnOnce(&mut Entries) -> Result<T, E>,
    ) -> Result<T, E> {
        let path = self.account.registry();
        let io = |source| RegistryError::Io { path: path.clone(), source };
        create_dir_private(&self.account.root()).map_err(io)?;
        let _lock = FileLock::acquire_within(&path.with_extension("json.lock"), Duration::from_millis(3100))
            .map_err(RegistryError::from)?;
        let mut entries = match self.load()? {
            Loaded::Good(list) => Entries { list, rebuilt_from: None },
            Loaded::Damaged => {
                let aside = set_aside(&path, now_ms).map_err(io)?;
                tracing::error!(file = %aside.display(), "the agent registry was damaged and is rebuilt");
                Entries { list: self.rebuild(now_ms), rebuilt_from: Some(aside) }
            }
        };
        let before = entries.list.clone();
        refresh(&mut entries.list, ProcessRef::is_alive);
        entries.list.retain(|e| AgentPaths::new(&e.path).state().is_dir());
        let result = change(&mut entries)?;
        if entries.list != before || entries.rebuilt_from.is_some() {
            let file = File { version: VERSION, entries: entries.list };
            let mut bytes = serde_json::to_vec_pretty(&file).map_err(|e| io(e.into()))?;
            bytes.push(b'\n');
            write_atomic(&path, &bytes, 0o600).map_err(|e| io(e.source))?;
        }
        Ok(result)
    }

    fn load(&self) -> Result<Loaded, RegistryError> {
        let path = self.account.registry();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Good(Vec::new())),
            Err(source) => return Err(RegistryError::Io { path, source }),
        };
        match parse(&bytes) {
            Ok(list) => Ok(Loaded::Good(list)),
            Err(Unparsable::Newer(found)) => Err(RegistryError::TooNew { path, found }),
            Err(Unparsable::Damaged) => Ok(Loaded::Damaged),
        }
    }

    /// Standalone agents lie in a known place; the others come back with their node's next heartbeat.
    fn rebuild(&self, now_ms: i64) -> Vec<AgentEntry> {
        let Ok(dirs) = std::fs::read_dir(self.account.agents()) else { return Vec::new() };
        dirs.filter_map(|dir| {
            let path = dir.ok()?.path();
            let paths = AgentPaths::new(&path);
            let root = ConfigFile::new(paths.config()).read().ok()?.root;
            let port = lookup(&root, "port")?.as_u64()?.try_into().ok()?;
            let name = lookup(&root, "projectName").and_then(|n| n.as_str()).map(str::to_owned);
            Some(AgentEntry {
                name: name.unwrap_or_else(|| crate::config::name_from_dir(&path)),
                kind: "standalone".into(),
                port,
                pid: None,
                pid_start_time: None,
                status: AgentStatus::Stopped,
                created_at: rfc3339(now_ms),
                last_heartbeat: None,
                instar_version: None,
                socket: paths.socket(),
                other: Map::new(),
                path,
            })
        })
        .collect()
    }
}

enum Loaded {
    Good(Vec<AgentEntry>),
    Damaged,
}

impl Entries {
    /// All of them.
    pub fn all(&self) -> &[AgentEntry] {
        &self.list
    }

    /// The agent at this path.
    pub fn get(&self, path: &Path) -> Option<&AgentEntry> {
        self.list.iter().find(|e| e.path == path)
    }

    /// Adds an agent or replaces the entry with the same path.
    pub fn put(&mut self, entry: AgentEntry) {
        match self.list.iter_mut().find(|e| e.path == entry.path) {
            Some(old) => *old = entry,
            None => self.list.push(entry),
        }
    }

    /// Removes the agent at this path; returns whether it was there.
    pub fn remove(&mut self, path: &Path) -> bool {
        let before = self.list.len();
        self.list.retain(|e| e.path != path);
        self.list.len() != before
    }

    /// The port of the agent at `path`, or a free one for a new agent.
    pub fn port_for(&self, path: &Path, can_bind: impl Fn(u16) -> bool) -> Result<u16, RegistryError> {
        if let Some(entry) = self.get(path) {
            return Ok(entry.port);
        }
        let taken: BTreeSet<u16> = self.list.iter().map(|e| e.port).collect();
        tcp_ports::choose(&taken, can_bind).ok_or_else(|| RegistryError::NoPort {
            registered: taken.iter().filter(|p| tcp_ports::RANGE.contains(p)).count(),
        })
    }

    /// Records that the node of the agent at `path` runs as `process` (also its heartbeat).
    pub fn heartbeat(&mut self, path: &Path, process: ProcessRef, version: &str, now_ms: i64) -> bool {
        let Some(entry) = self.list.iter_mut().find(|e| e.path == path) else { return false };
        entry.pid = Some(process.pid);
        entry.pid_start_time = Some(process.start);
        entry.status = AgentStatus::Running;
        entry.last_heartbeat = Some(rfc3339(now_ms));
        entry.instar_version = Some(version.to_owned());
        true
    }

    /// Records that the node `process` ended in order. A node that started since is left alone.
    pub fn stopped(&mut self, path: &Path, process: ProcessRef) {
        if let Some(entry) =
            self.list.iter_mut().find(|e| e.path == path && e.process().is_none_or(|p| p == process))
        {
            entry.status = AgentStatus::Stopped;
        }
    }
}

fn refresh(list: &mut [AgentEntry], alive: impl Fn(ProcessRef) -> bool) {
    for entry in list.iter_mut().filter(|e| e.status == AgentStatus::Running) {
        if !entry.process().is_some_and(&alive) {
            entry.status = AgentStatus::Stale;
        }
    }
}

/// Why bytes are not a registry.
#[derive(Debug, PartialEq, Eq)]
pub enum Unparsable {
    /// Made by a newer build.
    Newer(u32),
    /// Anything else.
    Damaged,
}

/// Parses the bytes of a registry file.
pub fn parse(bytes: &[u8]) -> Result<Vec<AgentEntry>, Unparsable> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(bytes).map_err(|_| Unparsable::Damaged)?;
    if version > VERSION {
        return Err(Unparsable::Newer(version));
    }
    let mut file: File = serde_json::from_slice(bytes).map_err(|_| Unparsable::Damaged)?;
    for entry in &mut file.entries {
        if entry.socket.as_os_str().is_empty() {
            entry.socket = AgentPaths::new(&entry.path).socket();
        }
    }
    Ok(file.entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(path: &Path, port: u16) -> AgentEntry {
        std::fs::create_dir_all(path.join(".instar")).expect("dir");
        AgentEntry {
            name: "ann".into(),
            kind: "project-bound".into(),
            path: path.to_owned(),
            port,
            pid: None,
            pid_start_time: None,
            status: AgentStatus::Stopped,
            created_at: rfc3339(0),
            last_heartbeat: None,
            instar_version: None,
            socket: AgentPaths::new(path).socket(),
            other: Map::new(),
        }
    }

    type Ok = Result<(), RegistryError>;

    #[test]
    fn two_agents_of_one_name_are_two_entries_with_two_ports() -> Ok {
        let dir = tempfile::tempdir().expect("dir");
        let registry = Registry::new(AccountPaths::new(dir.path()));
        for project in ["a", "b"] {
            registry.edit(0, |entries| {
                let path = dir.path().join(project);
                let port = entries.port_for(&path, |_| true)?;
                entries.put(entry(&path, port));
                Ok::<_, RegistryError>(())
            })?;
        }
        let list = registry.read()?;
        assert_eq!(list.iter().map(|e| e.port).collect::<Vec<_>>(), [4040, 4041]);
        assert!(list.iter().all(|e| e.name == "ann"));
        let kept = registry.edit(0, |e| e.port_for(&dir.path().join("b"), |_| false))?;
        assert_eq!(kept, 4041);
        Ok(())
    }

    #[test]
    fn a_dead_or_reused_process_is_stale_and_a_gone_folder_is_dropped() -> Ok {
        let dir = tempfile::tempdir().expect("dir");
        let registry = Registry::new(AccountPaths::new(dir.path()));
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let me = ProcessRef::current();
        registry.edit(0, |entries| {
            entries.put(entry(&a, 4040));
            entries.put(entry(&b, 4041));
            entries.heartbeat(&a, me, "1.0", 5);
            entries.heartbeat(&b, ProcessRef { start: me.start + 1, ..me }, "1.0", 5);
            Ok::<_, RegistryError>(())
        })?;
        let states: Vec<_> = registry.read()?.iter().map(|e| e.status).collect();
        assert_eq!(states, [AgentStatus::Running, AgentStatus::Stale]);
        std::fs::remove_dir_all(&b).expect("remove");
        registry.edit(0, |entries| {
            entries.stopped(&a, me);
            Ok::<_, RegistryError>(())
        })?;
        let list = registry.read()?;
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].status, AgentStatus::Stopped);
        Ok(())
    }

    #[test]
    fn a_damaged_registry_is_set_aside_and_rebuilt() -> Ok {
        let dir = tempfile::tempdir().expect("dir");
        let account = AccountPaths::new(dir.path());
        let registry = Registry::new(account.clone());
        let agent = account.agents().join("solo");
        std::fs::create_dir_all(agent.join(".instar")).expect("dir");
        std::fs::write(agent.join(".instar/config.json"), r#"{"projectName": "solo", "port": 4077}"#)
            .expect("write");
        std::fs::write(account.registry(), "{ torn").expect("write");
        let aside = registry.edit(9, |e| Ok::<_, RegistryError>(e.rebuilt_from.clone()))?.expect("set aside");
        assert_eq!(std::fs::read_to_string(aside).expect("kept"), "{ torn");
        let list = registry.read()?;
        assert_eq!((list[0].name.as_str(), list[0].port), ("solo", 4077));
        Ok(())
    }

    #[test]
    fn entries_of_existing_installs_are_read_and_keep_what_only_they_know() -> Ok {
        let dir = tempfile::tempdir().expect("dir");
        let account = AccountPaths::new(dir.path());
        let registry = Registry::new(account.clone());
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        std::fs::create_dir_all(old.join(".instar")).expect("dir");
        std::fs::create_dir_all(account.root()).expect("dir");
        let file = serde_json::json!({"version": 1, "entries": [{"name": "old", "type": "project-bound",
            "path": old, "port": 4040, "pid": 7, "status": "crashed", "createdAt": "2025-01-01T00:00:00.000Z",
            "lastHeartbeat": "2025-01-01T00:00:00.000Z", "instarVersion": "0.9.1", "serverless": {"mode": "x"}}]});
        std::fs::write(account.registry(), file.to_string()).expect("write");
        registry.edit(0, |entries| {
            assert_eq!(entries.rebuilt_from, None, "not damaged");
            entries.put(entry(&new, 4041));
            Ok::<_, RegistryError>(())
        })?;
        let list = registry.read()?;
        assert_eq!((list.len(), list[0].port, list[0].status), (2, 4040, AgentStatus::Stale));
        assert_eq!(list[0].socket, AgentPaths::new(&old).socket());
        let written: Value =
            serde_json::from_slice(&std::fs::read(account.registry()).expect("file")).expect("JSON");
        assert_eq!(written["entries"][0]["serverless"]["mode"], "x");
        assert_eq!(written["entries"][1].as_object().map(Map::len), Some(11), "{written}");
        Ok(())
    }

    #[test]
    fn a_newer_registry_is_refused_untouched() {
        let dir = tempfile::tempdir().expect("dir");
        let account = AccountPaths::new(dir.path());
        std::fs::create_dir_all(account.root()).expect("dir");
        std::fs::write(account.registry(), r#"{"version": 2, "agents": {}}"#).expect("write");
        let result = Registry::new(account.clone()).edit(0, |_| Ok::<_, RegistryError>(()));
        assert!(matches!(result, Err(RegistryError::TooNew { found: 2, .. })));
        assert_eq!(
            std::fs::read_to_string(account.registry()).expect("read"),
            r#"{"version": 2, "agents": {}}"#
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
