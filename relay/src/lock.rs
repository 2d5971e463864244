//! The lock on a data directory: one relay per directory, released by the kernel when its holder dies.

use std::path::{Path, PathBuf};

use instar_durable::{FileLock, LockError};

/// Why the data directory was not taken.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another relay runs on it.
    #[error("another relay is running on {dir}{}", holder.as_deref().map(|h| format!(" (pid {h})")).unwrap_or_default())]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Process id of the holder, if it wrote it.
        holder: Option<String>,
    },
    /// The directory or the lock file cannot be made.
    #[error("cannot use {dir} as data directory: {detail}")]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the operating system said.
        detail: String,
    },
}

/// Holds `<data>/relay.pid` until dropped or until the process dies.
#[derive(Debug)]
pub struct DataDirLock {
    lock: FileLock,
    dir: PathBuf,
}

impl DataDirLock {
    /// Creates the directory (0700) and takes the lock at once, or names who has it.
    pub fn try_take(dir: &Path) -> Result<Self, DataDirError> {
        let io = |detail: String| DataDirError::Io { dir: dir.to_owned(), detail };
        instar_durable::create_dir_private(dir).map_err(|e| io(e.to_string()))?;
        let mut lock = match FileLock::try_acquire(&dir.join("relay.pid")) {
            Ok(lock) => lock,
            Err(LockError::Held { holder, .. }) => {
                return Err(DataDirError::Held { dir: dir.to_owned(), holder });
            }
            Err(other) => return Err(io(other.to_string())),
        };
        lock.describe(&std::process::id().to_string()).map_err(|e| io(e.to_string()))?;
        Ok(Self { lock, dir: dir.to_owned() })
    }

    /// Process id of the relay that runs on `dir`, if one does.
    pub fn holder(dir: &Path) -> Option<u32> {
        match FileLock::try_acquire(&dir.join("relay.pid")) {
            Err(LockError::Held { holder, .. }) => holder.and_then(|pid| pid.parse().ok()),
            _ => None,
        }
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        self.lock.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_by_name_until_the_first_is_gone() {
        let dir = tempfile::tempdir().expect("dir");
        let first = DataDirLock::try_take(dir.path()).expect("first");
        let Err(DataDirError::Held { holder, .. }) = DataDirLock::try_take(dir.path()) else {
            panic!("second is refused")
        };
        assert_eq!(holder, Some(std::process::id().to_string()));
        assert_eq!(DataDirLock::holder(dir.path()), Some(std::process::id()));
        drop(first);
        assert!(DataDirLock::try_take(dir.path()).is_ok());
    }
}
