//! The append-only log of a runtime's events. Offsets count from the session's first byte and survive rotation.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Length at which a new file is begun.
const ROTATE_AT: u64 = 50 * 1024 * 1024;
/// Age at which a full file is removed.
const KEEP: Duration = Duration::from_hours(7 * 24);
/// Longest line that is read.
pub const MAX_LINE: usize = 64 * 1024 * 1024;

/// The writing end; one per session.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
    /// Offset of the current file's first byte.
    base: u64,
    end: u64,
    /// Whether half a line stands after `end` that could not be taken back.
    is_torn: bool,
}

impl EventLog {
    /// Opens or creates the log. A last line without a newline is completed, so that it stands alone.
    pub fn open(path: &Path) -> io::Result<Self> {
        let base = rotated(path).last().map_or(0, |(end, _)| *end);
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        let mut log_end = base + length;
        if length > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                log_end += 1;
            }
        }
        Ok(Self { path: path.to_owned(), file, base, end: log_end, is_torn: false })
    }

    /// Appends one line and returns the new end.
    pub fn append(&mut self, line: &[u8]) -> io::Result<u64> {
        if self.end - self.base >= ROTATE_AT {
            self.rotate()?;
        }
        let mut whole = Vec::with_capacity(line.len() + 1);
        whole.extend_from_slice(line);
        whole.push(b'\n');
        if let Err(error) = self.write(&whole) {
            // What was written of the line would stand before the next one and make both unreadable.
            self.is_torn = self.file.set_len(self.end - self.base).is_err();
            return Err(error);
        }
        self.end += whole.len() as u64;
        Ok(self.end)
    }

    fn write(&mut self, whole: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.file.set_len(self.end - self.base)?;
            self.is_torn = false;
        }
        self.file.write_all(whole)
    }

    /// Offset after the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(&self.path, rotated_path(&self.path, self.end))?;
        self.file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        self.base = self.end;
        for (_, path) in rotated(&self.path) {
            let old = fs::metadata(&path)
                .and_then(|m| m.modified())
                .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > KEEP));
            if old {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// Lines from `offset` on, and the offset after each; at most about `limit` bytes, whole lines only.
///
/// An offset in a part that was removed continues at the oldest part that is left.
pub fn read_from(path: &Path, offset: u64, limit: usize) -> io::Result<Vec<(u64, String)>> {
    let mut start = 0;
    for (end, part) in rotated(path) {
        if offset < end {
            return read_part(&part, start, offset, limit);
        }
        start = end;
    }
    read_part(path, start, offset, limit)
}

/// The last `count` lines of the current part.
pub fn tail(path: &Path, count: usize) -> io::Result<Vec<String>> {
    const WINDOW: u64 = 8 * 1024 * 1024;
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let start = file.metadata()?.len().saturating_sub(WINDOW);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(WINDOW).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let whole = if start == 0 { &*text } else { text.split_once('\n').map_or("", |(_, rest)| rest) };
    let lines: Vec<&str> = whole.lines().collect();
    Ok(lines.iter().skip(lines.len().saturating_sub(count)).map(|l| (*l).to_owned()).collect())
}

/// Removes every part of the log.
pub fn remove(path: &Path) {
    for (_, part) in rotated(path) {
        let _ = fs::remove_file(part);
    }
    let _ = fs::remove_file(path);
}

fn read_part(path: &Path, base: u64, offset: u64, limit: usize) -> io::Result<Vec<(u64, String)>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut at = offset.max(base);
    file.seek(SeekFrom::Start(at - base))?;
    let mut reader = BufReader::new(file);
    let (mut lines, mut taken) = (Vec::new(), 0);
    while taken < limit {
        let mut line = Vec::new();
        let read = reader.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            break;
        }
        at += read as u64;
        taken += read;
        lines.push((at, String::from_utf8_lossy(&line).into_owned()));
    }
    Ok(lines)
}

/// Full parts with the offset after each, oldest first.
fn rotated(path: &Path) -> Vec<(u64, PathBuf)> {
    let (Some(dir), Some(stem)) = (path.parent(), path.file_stem().and_then(|s| s.to_str())) else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut parts: Vec<(u64, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let end = name.to_str()?.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(".ndjson")?;
            Some((end.parse().ok()?, entry.path()))
        })
        .collect();
    parts.sort();
    parts
}

fn rotated_path(path: &Path, end: u64) -> PathBuf {
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!("{stem}.{end:020}.ndjson"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_survive_rotation_and_torn_lines_wait() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s.ndjson");
        let mut log = EventLog::open(&path).expect("open");
        let first = log.append(b"one").expect("append");
        log.rotate().expect("rotate");
        let second = log.append(b"two").expect("append");
        log.file.write_all(b"torn").expect("write");

        assert_eq!(read_from(&path, 0, 1 << 20).expect("read"), [(first, "one".to_owned())]);
        assert_eq!(read_from(&path, first, 1 << 20).expect("read"), [(second, "two".to_owned())]);
        assert_eq!(read_from(&path, second, 1 << 20).expect("read"), []);

        let again = EventLog::open(&path).expect("open");
        assert_eq!(again.end(), second + 5);
        assert_eq!(read_from(&path, second, 1 << 20).expect("read"), [(second + 5, "torn".to_owned())]);
        assert_eq!(tail(&path, 1).expect("tail"), ["torn"]);
    }

    #[tokio::test]
    async fn half_a_line_is_taken_back() {
        // Caught, it ends no process and the write fails.
        let too_long = tokio::signal::unix::SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
        let _caught = tokio::signal::unix::signal(too_long).expect("signal");
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s.ndjson");
        let mut log = EventLog::open(&path).expect("open");
        let first = log.append(b"one").expect("append");
        // The longest file that this process may write stands in for a full disk.
        let limits = rustix::process::getrlimit(rustix::process::Resource::Fsize);
        let full = rustix::process::Rlimit { current: Some(first + 10), maximum: limits.maximum };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, full).expect("limit");
        let failed = log.append(&[b'x'; 100]);
        rustix::process::setrlimit(rustix::process::Resource::Fsize, limits).expect("limit");
        failed.expect_err("no room");
        let second = log.append(b"two").expect("room again");
        assert_eq!(
            read_from(&path, 0, 1 << 20).expect("read"),
            [(first, "one".to_owned()), (second, "two".to_owned())]
        );
    }
}
