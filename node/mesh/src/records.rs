//! Small JSON files that people may read: trust profiles, nicknames, controls.
//!
//! Readers never wait: they get the last published value. A change is written and synced before it is published.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use instar_durable::{AtomicWriteError, set_aside, write_atomic};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use threadline::Fingerprint;
use threadline::identity::PublicIdentity;

/// Why a record was not read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// The file cannot be read or moved aside.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file cannot be replaced.
    #[error(transparent)]
    Write(#[from] AtomicWriteError),
    /// The writer stopped.
    #[error("the change was not finished")]
    Interrupted,
}

/// One JSON file with one owner.
#[derive(Debug)]
pub(crate) struct Record<T> {
    path: PathBuf,
    value: ArcSwap<T>,
    dirty: AtomicBool,
    writer: Mutex<()>,
}

/// A record as it was found.
pub(crate) struct Opened<T> {
    pub(crate) record: Arc<Record<T>>,
    /// Where a damaged file was put.
    pub(crate) set_aside: Option<PathBuf>,
}

impl<T> Record<T>
where
    T: Serialize + DeserializeOwned + Clone + Default + Send + Sync + 'static,
{
    /// Reads the file. A damaged one is moved aside and `restrictive` is used instead. Blocks.
    pub(crate) fn open(path: &Path, restrictive: T, now: i64) -> Result<Opened<T>, RecordError> {
        let io = |source| RecordError::Io { path: path.to_owned(), source };
        let (value, aside) = match std::fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => (T::default(), None),
            Err(e) => return Err(io(e)),
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(value) => (value, None),
                Err(_) => (restrictive, Some(set_aside(path, now).map_err(io)?)),
            },
        };
        let record = Arc::new(Self {
            path: path.to_owned(),
            value: ArcSwap::from_pointee(value),
            dirty: AtomicBool::new(false),
            writer: Mutex::new(()),
        });
        if aside.is_some() {
            record.write(&record.value.load())?;
        }
        Ok(Opened { record, set_aside: aside })
    }

    /// The value now.
    pub(crate) fn get(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Changes the value; the file is written and synced before this returns.
    pub(crate) async fn change<R, F>(self: &Arc<Self>, change: F) -> Result<R, RecordError>
    where
        R: Send + 'static,
        F: FnOnce(&mut T) -> R + Send + 'static,
    {
        let this = Arc::clone(self);
        let job = tokio::task::spawn_blocking(move || {
            let _one_writer = this.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let mut value = T::clone(&this.value.load());
            let result = change(&mut value);
            this.write(&value)?;
            this.value.store(Arc::new(value));
            Ok(result)
        });
        job.await.unwrap_or(Err(RecordError::Interrupted))
    }

    /// Changes counters in memory; [`Record::flush`] writes them later. A change that runs at the same moment may
    /// win, which costs a count.
    pub(crate) fn touch(&self, change: impl Fn(&mut T)) {
        self.value.rcu(|value| {
            let mut value = T::clone(value);
            change(&mut value);
            value
        });
        self.dirty.store(true, Ordering::Release);
    }

    /// Writes what [`Record::touch`] changed.
    pub(crate) async fn flush(self: &Arc<Self>) -> Result<(), RecordError> {
        if self.dirty.swap(false, Ordering::AcqRel) {
            self.change(|_| ()).await?;
        }
        Ok(())
    }

    fn write(&self, value: &T) -> Result<(), RecordError> {
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(|e| RecordError::Io { path: self.path.clone(), source: e.into() })?;
        bytes.push(b'\n');
        Ok(write_atomic(&self.path, &bytes, 0o600)?)
    }
}

/// `relay-tokens.json`: servers that this one is paired with, by the name they gave (`threadline-wire.md` §3.1).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Pairings(pub(crate) BTreeMap<String, Pairing>);

/// One pairing. Members beyond the first three are ours; existing installs ignore them.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pairing {
    /// 64 hex digits.
    pub(crate) token: String,
    pub(crate) established_at: String,
    /// 64 hex digits.
    pub(crate) their_identity_pub: String,
    /// Where the peer listens, where this side began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    #[serde(default, rename = "pairingId")]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) sas_fingerprint: String,
    /// What the owners compare; never sent or logged.
    #[serde(default)]
    pub(crate) words: Vec<String>,
    /// When the owner said that the words are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) confirmed_at: Option<String>,
}

impl std::fmt::Debug for Pairing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pairing")
            .field("their_identity_pub", &self.their_identity_pub)
            .finish_non_exhaustive()
    }
}

impl Pairing {
    /// The token's bytes, if the file holds a usable one.
    pub(crate) fn token(&self) -> Option<[u8; 32]> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(&self.token, &mut bytes).ok()?;
        Some(bytes)
    }

    /// The peer's key, if the file holds a usable one.
    pub(crate) fn key(&self) -> Option<PublicIdentity> {
        PublicIdentity::from_bytes(&hex::decode(&self.their_identity_pub).ok()?).ok()
    }
}

/// `known-agents.json`: agents of this host, for tools that read it and for finding back to one that is down.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KnownAgents {
    #[serde(default)]
    pub(crate) agents: Vec<KnownAgent>,
    #[serde(default)]
    pub(crate) updated_at: String,
}

/// One agent of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KnownAgent {
    pub(crate) name: String,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) port: u16,
    #[serde(default)]
    pub(crate) framework: String,
}

impl KnownAgents {
    /// Takes over what was heard; an address is there once. Whether something changed.
    pub(crate) fn merge(&mut self, heard: &[KnownAgent]) -> bool {
        let before = self.agents.clone();
        for agent in heard {
            self.agents.retain(|known| known.fingerprint != agent.fingerprint);
            self.agents.push(agent.clone());
        }
        self.agents.sort_by_key(|agent| agent.fingerprint);
        let excess = self.agents.len().saturating_sub(MAX_KNOWN_AGENTS);
        self.agents.drain(..excess);
        self.agents != before
    }
}

/// Agents of this host that are remembered.
const MAX_KNOWN_AGENTS: usize = 256;

/// `nicknames.json` (`threadline-agent.md` §12.2).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Nicknames {
    pub(crate) version: u32,
    #[serde(default)]
    pub(crate) nicknames: BTreeMap<Fingerprint, Nickname>,
}

impl Default for Nicknames {
    fn default() -> Self {
        Self { version: 1, nicknames: BTreeMap::new() }
    }
}

impl Nicknames {
    /// The name by which the owner calls an agent; suggestions do not count.
    pub(crate) fn given(&self, peer: &Fingerprint) -> Option<&str> {
        let nickname = self.nicknames.get(peer)?;
        (nickname.source != NicknameSource::Suggested).then_some(&*nickname.name)
    }
}

/// One nickname.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Nickname {
    #[serde(rename = "nickname")]
    pub(crate) name: String,
    pub(crate) source: NicknameSource,
    pub(crate) updated_at: String,
}

/// Who gave a nickname. A suggested one never resolves a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NicknameSource {
    User,
    Suggested,
    Import,
}

/// `agent-controls.json` (`threadline-agent.md` §8.3).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Controls {
    #[serde(default)]
    pub(crate) agents: BTreeMap<Fingerprint, Control>,
    #[serde(default)]
    pub(crate) all: AllControl,
}

/// What the owner stopped for everyone.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct AllControl {
    #[serde(default)]
    pub(crate) paused: bool,
}

/// What the owner stopped for one agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Control {
    pub(crate) status: ControlStatus,
    pub(crate) since: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// How an agent is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ControlStatus {
    Paused,
    Blocked,
}

impl Controls {
    /// With the block list lost, nobody gets through until the owner has looked.
    pub(crate) fn restrictive() -> Self {
        Self { agents: BTreeMap::new(), all: AllControl { paused: true } }
    }

    pub(crate) fn is_blocked(&self, peer: &Fingerprint) -> bool {
        self.agents.get(peer).is_some_and(|c| c.status == ControlStatus::Blocked)
    }

    pub(crate) fn is_paused(&self, peer: &Fingerprint) -> bool {
        self.all.paused || self.agents.get(peer).is_some_and(|c| c.status == ControlStatus::Paused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_on_disk_when_it_returns_and_a_touch_after_the_flush() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("agent-controls.json");
        let record = Record::<Controls>::open(&path, Controls::restrictive(), 0).expect("open").record;
        record.change(|c| c.all.paused = true).await.expect("change");
        let read = || Record::<Controls>::open(&path, Controls::restrictive(), 0).expect("open").record.get();
        assert!(read().all.paused);
        record.touch(|c| c.all.paused = false);
        assert!(read().all.paused);
        record.flush().await.expect("flush");
        assert!(!read().all.paused);
    }

    #[test]
    fn a_damaged_block_list_lets_nobody_in() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("agent-controls.json");
        std::fs::write(&path, "{\"agents\":").expect("write");
        let opened = Record::<Controls>::open(&path, Controls::restrictive(), 7).expect("open");
        assert_eq!(opened.set_aside, Some(dir.path().join("agent-controls.json.corrupt-7")));
        assert!(opened.record.get().is_paused(&Fingerprint::from_bytes([1; 16])));
        let again = Record::<Controls>::open(&path, Controls::restrictive(), 8).expect("open");
        assert!(again.set_aside.is_none() && again.record.get().all.paused);
    }
}
