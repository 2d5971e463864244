//! Reports that could not be handed over in time, kept as files until the node takes them in.

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

/// A report that waits in its file.
#[derive(Debug)]
pub struct Kept {
    /// The report.
    pub report: HookReport,
    file: PathBuf,
}

impl Kept {
    /// Removes the file: the report was handed over.
    pub fn forget(self) -> io::Result<()> {
        fs::remove_file(self.file)
    }
}

/// All waiting reports, oldest first; each stays until it is forgotten. Files that are no reports are removed.
pub fn waiting(state_dir: &Path) -> io::Result<Vec<Kept>> {
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
        match fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            Some(report) => reports.push(Kept { report, file }),
            None => fs::remove_file(&file)?,
        }
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

    fn take(directory: &Path) -> Vec<HookReport> {
        let taken = waiting(directory).expect("readable").into_iter().map(|kept| {
            let report = kept.report.clone();
            kept.forget().expect("removes");
            report
        });
        taken.collect()
    }

    #[test]
    fn reports_come_back_in_order_until_they_are_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(take(directory.path()), []);
        for at in [30, 4, 200] {
            assert_eq!(keep(directory.path(), &report(at)).ok(), Some(true));
        }
        fs::write(directory.path().join("run/hook-spool/0.json"), "torn").expect("writes");
        assert_eq!(waiting(directory.path()).map(|kept| kept.len()).ok(), Some(3));
        assert_eq!(take(directory.path()), [report(4), report(30), report(200)]);
        assert_eq!(take(directory.path()), []);
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
