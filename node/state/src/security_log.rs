//! `logs/security.jsonl`: refused and suspicious things, each line chained to the one before it
//! (`coherence-safety.md` §15.2).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use instar_durable::{JsonlError, JsonlFile};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::time::{now_ms, rfc3339};

const GENESIS: &str = "GENESIS";
/// Lines after which a new file is begun.
const ROTATE_AT: u64 = 1000;

/// How bad an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth a line.
    Info,
    /// Refused.
    Warning,
    /// The owner should look.
    Critical,
}

/// The security log of one node, its only writer.
#[derive(Debug)]
pub struct SecurityLog {
    path: PathBuf,
    // Held for one write; never across an await.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: JsonlFile,
    previous: String,
    lines: u64,
}

impl SecurityLog {
    /// Opens the log and takes up its chain. Blocks.
    pub fn open(path: &Path) -> Result<Self, JsonlError> {
        let file = JsonlFile::open(path)?;
        let mut previous = GENESIS.to_owned();
        let mut lines = 0;
        for line in JsonlFile::lines(path)? {
            let line = line.map_err(|source| JsonlError::Io { path: path.to_owned(), source })?;
            previous = hash(&line);
            lines += 1;
        }
        Ok(Self { path: path.to_owned(), state: Mutex::new(State { file, previous, lines }) })
    }

    /// Appends an event. `data` holds ids and reasons, never secrets or texts. A failure is logged, not returned:
    /// what was refused stays refused.
    pub fn record(&self, event: &str, severity: Severity, data: &Value) {
        if let Err(error) = self.append(event, severity, data) {
            tracing::error!(%error, event, "the security log was not written");
        }
    }

    fn append(&self, event: &str, severity: Severity, data: &Value) -> Result<(), JsonlError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.lines >= ROTATE_AT {
            self.rotate(&mut state)?;
        }
        let entry = json!({
            "ts": rfc3339(now_ms()), "event": event, "severity": severity, "data": data, "prevHash": state.previous,
        });
        state.write(&entry)
    }

    /// Renames the full file; the new one begins with an anchor that carries the chain on.
    fn rotate(&self, state: &mut State) -> Result<(), JsonlError> {
        let io = |source| JsonlError::Io { path: self.path.clone(), source };
        let name = format!("security-{}.jsonl", now_ms());
        std::fs::rename(&self.path, self.path.with_file_name(&name)).map_err(io)?;
        state.file = JsonlFile::open(&self.path)?;
        state.lines = 0;
        let anchor = json!({"type": "anchor", "previousFile": name, "prevHash": state.previous});
        state.write(&anchor)
    }
}

impl State {
    fn write(&mut self, entry: &Value) -> Result<(), JsonlError> {
        self.file.append_durable(entry)?;
        self.previous = hash(&entry.to_string());
        self.lines += 1;
        Ok(())
    }
}

/// Checks the chain within one file; returns the number of lines or the first bad one, counted from 1.
pub fn verify(path: &Path) -> io::Result<Result<u64, u64>> {
    let lines = match JsonlFile::lines(path) {
        Ok(lines) => lines,
        Err(JsonlError::Io { source, .. }) => return Err(source),
        Err(error @ JsonlError::Serialize(_)) => return Err(io::Error::other(error)),
    };
    let mut expected: Option<String> = None;
    let mut n = 0;
    for line in lines {
        let line = line?;
        n += 1;
        let entry: Value = serde_json::from_str(&line).unwrap_or_default();
        let given = entry.get("prevHash").and_then(Value::as_str);
        let fits = match &expected {
            Some(expected) => given == Some(expected),
            None => given == Some(GENESIS) || entry.get("type").and_then(Value::as_str) == Some("anchor"),
        };
        if !fits {
            return Ok(Err(n));
        }
        expected = Some(hash(&line));
    }
    Ok(Ok(n))
}

fn hash(line: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(line.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_goes_on_after_a_restart_and_a_change_is_found() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("security.jsonl");
        for n in 0..3 {
            SecurityLog::open(&path).expect("open").record(
                "auth_failure",
                Severity::Warning,
                &json!({"n": n}),
            );
        }
        assert_eq!(verify(&path).expect("read"), Ok(3));
        let text = std::fs::read_to_string(&path).expect("read").replace("\"n\":1", "\"n\":7");
        std::fs::write(&path, text).expect("write");
        assert_eq!(verify(&path).expect("read"), Err(3));
    }

    #[test]
    fn a_full_file_is_rotated_and_the_next_begins_with_an_anchor() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("security.jsonl");
        let log = SecurityLog::open(&path).expect("open");
        for _ in 0..=ROTATE_AT {
            log.record("host_rejected", Severity::Info, &Value::Null);
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 2);
        assert_eq!(verify(&path).expect("read"), Ok(2));
    }
}
