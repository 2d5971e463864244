//! `logs/hooks-<day>.jsonl`: one line per firing of the hook program.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use instar_durable::{JsonlError, JsonlFile};
use instar_hooks::HookReport;
use instar_state::time::rfc3339;
use serde_json::json;

/// The log of one agent; the day's file is opened with its first line.
pub(crate) struct HookLog {
    dir: PathBuf,
    // One short append at a time; never held across an await.
    open: Mutex<Option<(String, JsonlFile)>>,
}

impl HookLog {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, open: Mutex::default() }
    }

    /// Adds a line. A failure is logged: it must not hold up the runtime.
    pub(crate) fn record(&self, report: &HookReport) {
        if let Err(error) = self.append(report) {
            tracing::warn!(%error, "a firing of a hook was not recorded");
        }
    }

    fn append(&self, report: &HookReport) -> Result<(), JsonlError> {
        let at = rfc3339(i64::try_from(report.at_ms).unwrap_or(i64::MAX));
        let day = at.get(..10).unwrap_or("unknown").to_owned();
        let line = json!({
            "id": report.id,
            "at": at,
            "event": report.event,
            "session": report.instar_session_id,
            "tool": report.tool_name,
            "hookMs": report.hook_ms,
            "decisions": report.decisions,
        });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.as_ref().is_none_or(|(of, _)| *of != day) {
            let file = JsonlFile::open(&self.dir.join(format!("hooks-{day}.jsonl")))?;
            *open = Some((day, file));
        }
        match open.as_mut() {
            Some((_, file)) => file.append(&line),
            None => Ok(()),
        }
    }
}
