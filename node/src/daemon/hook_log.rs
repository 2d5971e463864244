//! `logs/hooks-<day>.jsonl`: one line per firing of the hook program. A report whose answer was lost comes again
//! through the spool; only one that comes again after a restart of the node may stand twice, with the same id.

use std::collections::VecDeque;
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
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    file: Option<(String, JsonlFile)>,
    /// Ids of the newest lines, oldest first.
    recent: VecDeque<String>,
}

/// Ids that are remembered.
const RECENT: usize = 1000;

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
        if !report.id.is_empty() && open.recent.contains(&report.id) {
            return Ok(());
        }
        if open.file.as_ref().is_none_or(|(of, _)| *of != day) {
            let file = JsonlFile::open(&self.dir.join(format!("hooks-{day}.jsonl")))?;
            open.file = Some((day, file));
        }
        if let Some((_, file)) = open.file.as_mut() {
            file.append(&line)?;
        }
        open.recent.push_back(report.id.chars().take(64).collect());
        let extra = open.recent.len().saturating_sub(RECENT);
        open.recent.drain(..extra);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use instar_hooks::{Event, EventInput, ReportFacts};

    use super::*;

    #[test]
    fn a_report_that_comes_again_is_one_line() {
        let dir = tempfile::tempdir().expect("dir");
        let log = HookLog::new(dir.path().to_owned());
        let input = EventInput::parse(b"{}").expect("input");
        for id in ["a", "b", "a", "", ""] {
            let facts = ReportFacts { id: id.into(), ..ReportFacts::default() };
            log.record(&HookReport { at_ms: 1, ..HookReport::new(Event::Stop, &input, facts) });
        }
        let text = std::fs::read_to_string(dir.path().join("hooks-1970-01-01.jsonl")).expect("log");
        assert_eq!(text.lines().count(), 4, "{text}");
    }
}
