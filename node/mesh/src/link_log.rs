//! `logs/threadline.jsonl`: one line per transition of the link (`threadline-wire.md` §2.4).

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use instar_durable::{JsonlError, JsonlFile};
use serde_json::{Map, json};
use threadline::time::iso_ms;
use threadline::v1::client::LinkChange;

/// A file of this many bytes is put aside, 10 MiB.
const MAX_BYTES: u64 = 10 * 1024 * 1024;
/// Files kept beside the current one.
const KEPT: u32 = 4;

/// The log of one agent; the file is opened with its first line.
pub(crate) struct LinkLog {
    path: PathBuf,
    // One short append at a time; never held across an await.
    file: Mutex<Option<JsonlFile>>,
}

impl LinkLog {
    pub(crate) fn new(logs: &Path) -> Self {
        Self { path: logs.join("threadline.jsonl"), file: Mutex::default() }
    }

    /// Adds a line. A failure is logged: the link goes on.
    pub(crate) fn record(&self, relay: &str, change: &LinkChange) {
        let mut line = Map::new();
        line.insert("event".into(), json!("link"));
        line.insert("ts".into(), json!(iso_ms(change.at)));
        line.insert("relay".into(), json!(relay));
        line.insert("state".into(), json!(change.state.name()));
        if let Some(code) = &change.code {
            line.insert("code".into(), json!(code));
        }
        if let Some(reason) = &change.reason {
            line.insert("reason".into(), json!(reason));
        }
        line.insert("terminal".into(), json!(change.state.is_final()));
        if let Err(error) = self.append(&line) {
            tracing::warn!(%error, "a transition of the link was not recorded");
        }
    }

    fn append(&self, line: &Map<String, serde_json::Value>) -> Result<(), JsonlError> {
        let mut open = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if open.is_none() {
            *open = Some(JsonlFile::open(&self.path)?);
        }
        if open.as_ref().is_some_and(|file| file.len().is_ok_and(|bytes| bytes >= MAX_BYTES)) {
            *open = None;
            self.rotate().map_err(|source| JsonlError::Io { path: self.path.clone(), source })?;
            *open = Some(JsonlFile::open(&self.path)?);
        }
        match open.as_mut() {
            Some(file) => file.append(line),
            None => Ok(()),
        }
    }

    fn rotate(&self) -> std::io::Result<()> {
        let numbered = |n: u32| self.path.with_extension(format!("jsonl.{n}"));
        for n in (1..KEPT).rev() {
            if numbered(n).exists() {
                std::fs::rename(numbered(n), numbered(n + 1))?;
            }
        }
        std::fs::rename(&self.path, numbered(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use threadline::v1::client::LinkState;

    #[test]
    fn every_transition_is_a_line_and_a_full_file_is_put_aside() {
        let dir = tempfile::tempdir().expect("dir");
        let log = LinkLog::new(dir.path());
        let path = dir.path().join("threadline.jsonl");
        let change = LinkChange {
            state: LinkState::Displaced,
            at: 0,
            code: Some("displaced".into()),
            reason: Some("x".repeat(300)),
        };
        log.record("wss://relay/v1/connect", &change);
        let line = std::fs::read_to_string(&path).expect("log");
        let line: serde_json::Value = serde_json::from_str(line.trim()).expect("one line");
        assert_eq!((&line["state"], &line["terminal"]), (&json!("displaced"), &json!(true)));
        assert_eq!((&line["event"], &line["ts"]), (&json!("link"), &json!("1970-01-01T00:00:00.000Z")));
        for _ in 0..6 {
            let grown = std::fs::OpenOptions::new().append(true).open(&path).expect("log");
            grown.set_len(MAX_BYTES).expect("grow");
            log.record("r", &change);
        }
        assert!(path.with_extension("jsonl.4").exists() && !path.with_extension("jsonl.5").exists());
        assert!(std::fs::metadata(&path).expect("log").len() < 1_000);
    }
}
