//! `logs/node.log`: JSON lines, redacted before they reach the disk, rotated by size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use instar_redact::Redactor;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Size and number of the log's files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotation {
    /// Bytes after which a file is rotated.
    pub(crate) max_bytes: u64,
    /// Files kept beside the current one.
    pub(crate) keep: u32,
}

/// Sends everything that is traced from now on to `path`. `filter` is a level or an `EnvFilter` directive list.
pub(crate) fn install(
    path: &Path,
    filter: &str,
    rotation: Rotation,
    redactor: Redactor,
) -> anyhow::Result<()> {
    let writer = LogFile::open(path, rotation, redactor)?;
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer);
    tracing_subscriber::registry().with(filter).with(lines).try_init()?;
    Ok(())
}

#[derive(Clone)]
struct LogFile(Arc<Mutex<Inner>>);

struct Inner {
    path: PathBuf,
    file: File,
    size: u64,
    rotation: Rotation,
    redactor: Redactor,
}

impl LogFile {
    fn open(path: &Path, rotation: Rotation, redactor: Redactor) -> io::Result<Self> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self(Arc::new(Mutex::new(Inner { path: path.to_owned(), file, size, rotation, redactor }))))
    }
}

/// One event; the formatter writes a whole line at once.
impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.write_line(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Inner {
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        let text = String::from_utf8_lossy(line);
        let clean = self.redactor.redact(&text);
        if self.size > 0 && self.size + clean.len() as u64 > self.rotation.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(clean.as_bytes())?;
        self.size += clean.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for index in (1..self.rotation.keep).rev() {
            let from = numbered(&self.path, index);
            if from.exists() {
                fs::rename(from, numbered(&self.path, index + 1))?;
            }
        }
        if self.rotation.keep > 0 {
            fs::rename(&self.path, numbered(&self.path, 1))?;
        } else {
            fs::remove_file(&self.path)?;
        }
        self.file = append(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn numbered(path: &Path, index: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use instar_redact::OwnSecrets;

    use super::*;

    #[test]
    fn lines_are_redacted_and_files_rotate() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("node.log");
        let redactor = Redactor::new(OwnSecrets::new(["correct horse battery"]));
        let mut log = LogFile::open(&path, Rotation { max_bytes: 64, keep: 2 }, redactor).expect("open");
        for index in 0..6 {
            log.write_all(format!("{{\"n\":{index},\"secret\":\"correct horse battery\"}}\n").as_bytes())
                .expect("write");
        }
        let names =
            |suffix: &str| fs::read_to_string(format!("{}{suffix}", path.display())).unwrap_or_default();
        let all = [names(""), names(".1"), names(".2")].concat();
        assert!(all.contains("\"n\":5"), "{all}");
        assert!(!all.contains("horse"), "{all}");
        assert!(!dir.path().join("node.log.3").exists());
        assert!(dir.path().join("node.log.2").exists());
    }
}
