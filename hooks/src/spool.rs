//! Reports that could not be handed over, kept as files until the node drains them at boot.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::files;
use crate::report::HookReport;

/// Most reports that wait.
pub const MAX_FILES: usize = 200;
/// Largest report, in bytes.
pub const MAX_BYTES: usize = 8 * 1024;

/// Keeps a report. A full spool or a report over [`MAX_BYTES`] is dropped: reports are observations, not orders.
pub fn keep(state_dir: &Path, report: &HookReport) -> io::Result<bool> {
    let directory = directory(state_dir);
    let bytes = serde_json::to_vec(report).map_err(io::Error::other)?;
    let waiting = fs::read_dir(&directory).map_or(0, |entries| entries.take(MAX_FILES).count());
    if bytes.len() > MAX_BYTES || waiting >= MAX_FILES {
        return Ok(false);
    }
    // Names sort by time, so that the node reads them in order.
    let name: String =
        report.id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
    files::place(&directory.join(format!("{:013}-{name}.json", report.at_ms)), &bytes, 0o600)?;
    Ok(true)
}

/// Takes all waiting reports, oldest first. Files that are no reports are removed and not returned.
pub fn drain(state_dir: &Path) -> io::Result<Vec<HookReport>> {
    let entries = match fs::read_dir(directory(state_dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let mut reports = Vec::with_capacity(files.len());
    for file in files {
        if let Some(report) = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            reports.push(report);
        }
        fs::remove_file(&file)?;
    }
    Ok(reports)
}

fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("run/hook-spool")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, EventInput};
    use crate::report::ReportFacts;

    fn report(at_ms: u64) -> HookReport {
        let facts = ReportFacts { id: format!("r{at_ms}"), at_ms, ..ReportFacts::default() };
        HookReport::new(Event::Stop, &EventInput::default(), facts)
    }

    #[test]
    fn reports_come_back_in_order_once() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(drain(directory.path()).ok(), Some(vec![]));
        for at in [30, 4, 200] {
            assert_eq!(keep(directory.path(), &report(at)).ok(), Some(true));
        }
        fs::write(directory.path().join("run/hook-spool/0.json"), "torn").expect("writes");
        assert_eq!(drain(directory.path()).ok(), Some(vec![report(4), report(30), report(200)]));
        assert_eq!(drain(directory.path()).ok(), Some(vec![]));
    }

    #[test]
    fn the_spool_is_bounded() {
        let directory = tempfile::tempdir().expect("a directory");
        let long = HookReport { last_assistant_message: Some("x".repeat(MAX_BYTES)), ..report(1) };
        assert_eq!(keep(directory.path(), &long).ok(), Some(false));
        for at in 0..MAX_FILES as u64 {
            assert_eq!(keep(directory.path(), &report(at)).ok(), Some(true));
        }
        assert_eq!(keep(directory.path(), &report(999)).ok(), Some(false));
    }
}
