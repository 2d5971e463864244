//! The session's JSONL transcript, in the place where the real CLI keeps it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Args, config_dir};

/// An open transcript.
#[derive(Debug)]
pub(super) struct Transcript {
    path: PathBuf,
    file: File,
    session: String,
    cwd: String,
    last: Option<String>,
    kept: Vec<Value>,
}

impl Transcript {
    /// Opens the transcript of a new session, or of the one that is resumed.
    pub(super) fn open(home: &Path, cwd: &Path, args: &Args) -> anyhow::Result<Self> {
        let slug: String =
            cwd.to_string_lossy().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let dir = config_dir(home).join("projects").join(slug);
        let path = dir.join(format!("{}.jsonl", args.session_id));
        let exists = path.exists();
        if args.resume && !exists {
            bail!("No conversation found with session ID: {}", args.session_id);
        }
        if !args.resume && exists {
            bail!("Error: Session ID {} is already in use.", args.session_id);
        }
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let kept = std::fs::read_to_string(&path).map(|text| parse(&text)).unwrap_or_default();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        let last = kept.last().and_then(|line: &Value| line["uuid"].as_str().map(str::to_owned));
        let cwd = cwd.to_string_lossy().into_owned();
        Ok(Self { path, file, session: args.session_id.clone(), cwd, last, kept })
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Messages of the earlier run.
    pub(super) fn messages(&self) -> Vec<Value> {
        self.kept.iter().map(|line| line["message"].clone()).collect()
    }

    /// Uuids of what the client said in the earlier run.
    pub(super) fn inputs(&self) -> Vec<String> {
        let users = self.kept.iter().filter(|line| line["type"] == "user");
        users.filter_map(|line| line["uuid"].as_str().map(str::to_owned)).collect()
    }

    /// Appends a message; gives back its id.
    pub(super) fn push(&mut self, message: &Value) -> String {
        let uuid = Uuid::new_v4().to_string();
        self.push_as(message, uuid.clone());
        uuid
    }

    /// Appends a message under this id.
    pub(super) fn push_as(&mut self, message: &Value, uuid: String) {
        let line = json!({
            "parentUuid": self.last, "isSidechain": false, "type": message["role"], "message": message,
            "uuid": uuid, "timestamp": Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
            "userType": "external", "entrypoint": "sdk-cli", "cwd": self.cwd, "sessionId": self.session,
            "version": "2.1.330"
        });
        if let Err(error) = self.file.write_all(format!("{line}\n").as_bytes()) {
            eprintln!("transcript not written: {error}");
        }
        self.last = Some(uuid);
    }
}

/// User and assistant lines; a torn last line is left out.
fn parse(text: &str) -> Vec<Value> {
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["type"] == "user" || line["type"] == "assistant")
        .collect()
}
