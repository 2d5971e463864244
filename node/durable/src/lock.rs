//! Locks that the kernel releases when their holder dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it; `holder` is what it wrote about itself.
    #[error("{path} is held by another process{}", holder.as_deref().map(|h| format!(" ({h})")).unwrap_or_default())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// One line that the holder wrote into the file, if any.
        holder: Option<String>,
    },
    /// The file cannot be opened or locked.
    #[error("cannot lock {path}: {source}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// An exclusive advisory lock on a file, held until dropped or until the process dies.
///
/// The file itself is never removed: its existence says nothing, only the kernel lock does.
#[derive(Debug)]
pub struct FileLock {
    file: File,
    path: PathBuf,
}

impl FileLock {
    /// Takes the lock at once or fails with [`LockError::Held`].
    pub fn try_acquire(path: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, path: path.to_owned() }),
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let holder = file.read_to_string(&mut text).ok().map(|_| text.trim().to_owned());
                Err(LockError::Held { path: path.to_owned(), holder: holder.filter(|h| !h.is_empty()) })
            }
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }

    /// Tries for at most `limit`, with pauses from 20 ms doubling to 400 ms. Blocks the calling thread.
    pub fn acquire_within(path: &Path, limit: Duration) -> Result<Self, LockError> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(20);
        loop {
            match Self::try_acquire(path) {
                Err(LockError::Held { .. }) if Instant::now() + pause < deadline => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(400));
                }
                other => return other,
            }
        }
    }

    /// Writes one line about the holder into the file, for whoever is refused.
    pub fn describe(&mut self, holder: &str) -> Result<(), LockError> {
        let written = (|| {
            self.file.rewind()?;
            self.file.set_len(0)?;
            self.file.write_all(holder.as_bytes())?;
            self.file.sync_data()
        })();
        written.map_err(|source| LockError::Io { path: self.path.clone(), source })
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
