//! Which transcript a conversation continues (`agent-core.md` §6.11).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use instar_durable::{AtomicWriteError, write_atomic};
use instar_state::ids::ConversationKey;
use serde::{Deserialize, Serialize};

use crate::transcript;

/// How long an entry is of use, in milliseconds: 7 days.
const LIFE_MS: i64 = 7 * 24 * 3600 * 1000;

/// Where a conversation stands. Only ids that the runtime itself reported are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResumeEntry {
    /// Runtime.
    pub runtime: String,
    /// The runtime's session id.
    pub runtime_session_id: String,
    /// Directory of the session.
    pub cwd: PathBuf,
    /// Transcript.
    pub transcript_path: PathBuf,
    /// Unix milliseconds.
    pub saved_at: i64,
    /// Name of the session.
    pub session_name: String,
    /// Model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl ResumeEntry {
    /// Whether the entry is fresh and its transcript exists and was made in this directory.
    pub fn is_valid(&self, runtime: &str, cwd: &Path, now: i64) -> bool {
        self.runtime == runtime
            && now - self.saved_at < LIFE_MS
            && self.cwd == cwd
            && transcript::recorded_cwd(&self.transcript_path)
                .is_ok_and(|recorded| recorded.is_some_and(|recorded| recorded == cwd))
    }
}

/// The file `state/resume-map.json`.
#[derive(Debug)]
pub struct ResumeMap {
    path: PathBuf,
    entries: BTreeMap<ConversationKey, ResumeEntry>,
}

impl ResumeMap {
    /// Reads the file. An unreadable one is set aside: conversations then start afresh.
    pub fn open(path: &Path, now: i64) -> io::Result<Self> {
        let entries = match fs::read(path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(entries) => entries,
                Err(error) => {
                    let aside = instar_durable::set_aside(path, now)?;
                    tracing::warn!(%error, aside = %aside.display(), "resume map was unreadable");
                    BTreeMap::new()
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path: path.to_owned(), entries })
    }

    /// The entry of a conversation.
    pub fn get(&self, conversation: &ConversationKey) -> Option<&ResumeEntry> {
        self.entries.get(conversation)
    }

    /// Sets an entry; true if the file should be written.
    pub fn put(&mut self, conversation: ConversationKey, entry: ResumeEntry) -> bool {
        const FRESH_ENOUGH_MS: i64 = 60_000;
        let known = self.entries.get(&conversation).is_some_and(|old| {
            old.runtime_session_id == entry.runtime_session_id
                && old.transcript_path == entry.transcript_path
                && entry.saved_at - old.saved_at < FRESH_ENOUGH_MS
        });
        self.entries.insert(conversation, entry);
        !known
    }

    /// Removes an entry that turned out to be of no use; true if there was one.
    pub fn drop_entry(&mut self, conversation: &ConversationKey) -> bool {
        self.entries.remove(conversation).is_some()
    }

    /// Writes the file without entries that are too old.
    pub fn save(&mut self, now: i64) -> Result<(), AtomicWriteError> {
        self.entries.retain(|_, entry| now - entry.saved_at < LIFE_MS);
        let bytes = serde_json::to_vec_pretty(&self.entries).unwrap_or_default();
        write_atomic(&self.path, &bytes, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_valid_while_its_transcript_is_of_this_directory() {
        let dir = tempfile::tempdir().expect("dir");
        let transcript_path = dir.path().join("t.jsonl");
        fs::write(&transcript_path, "{\"type\":\"user\",\"cwd\":\"/a\"}\n").expect("write");
        let entry = ResumeEntry {
            runtime: "claude-code".into(),
            runtime_session_id: "x".into(),
            cwd: "/a".into(),
            transcript_path: transcript_path.clone(),
            saved_at: 0,
            session_name: "n".into(),
            model: None,
        };
        assert!(entry.is_valid("claude-code", Path::new("/a"), 1));
        assert!(!entry.is_valid("claude-code", Path::new("/b"), 1));
        assert!(!entry.is_valid("codex-cli", Path::new("/a"), 1));
        assert!(!entry.is_valid("claude-code", Path::new("/a"), LIFE_MS));
        fs::remove_file(&transcript_path).expect("remove");
        assert!(!entry.is_valid("claude-code", Path::new("/a"), 1));
    }

    #[test]
    fn the_map_survives_and_a_broken_one_is_set_aside() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("resume-map.json");
        let conversation: ConversationKey = "threadline:a:t".parse().expect("key");
        let entry = ResumeEntry {
            runtime: "claude-code".into(),
            runtime_session_id: "x".into(),
            cwd: "/a".into(),
            transcript_path: "/t".into(),
            saved_at: 5,
            session_name: "n".into(),
            model: None,
        };
        let mut map = ResumeMap::open(&path, 5).expect("open");
        assert!(map.put(conversation.clone(), entry.clone()));
        assert!(!map.put(conversation.clone(), entry.clone()));
        map.save(5).expect("save");
        assert_eq!(ResumeMap::open(&path, 6).expect("open").get(&conversation), Some(&entry));
        fs::write(&path, "{").expect("write");
        assert!(ResumeMap::open(&path, 7).expect("open").get(&conversation).is_none());
        assert!(dir.path().join("resume-map.json.corrupt-7").exists());
    }
}
