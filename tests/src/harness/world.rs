//! A temporary machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use super::{Account, Tmpfs};

/// Everything a scenario makes lies below one folder that goes when the world does.
#[derive(Debug)]
pub struct World {
    memory: Option<Tmpfs>,
    root: TempDir,
    binary: PathBuf,
}

impl World {
    /// Makes the folder and finds the binary under test: `INSTAR_BIN`, else the release build of the target folder.
    pub fn new() -> anyhow::Result<Self> {
        let binary = match std::env::var_os("INSTAR_BIN") {
            Some(path) => PathBuf::from(path),
            None => beside_tests("../../release/instar")?,
        };
        ensure!(
            binary.is_file(),
            "{} is missing: cargo build --release -p instar -p instar-hooks",
            binary.display()
        );
        // Short, since socket paths lie below it.
        let root = tempfile::Builder::new().prefix("it").rand_bytes(4).tempdir()?;
        Ok(Self { memory: None, root, binary })
    }

    /// A world in memory, for scenarios in which processes die but never the machine: nothing waits for a disk there. Only
    /// inside a scenario's own namespaces.
    pub fn in_memory(size: &str) -> anyhow::Result<Self> {
        let mut world = Self::new()?;
        if !kept() {
            world.memory = Some(Tmpfs::mount(world.path(), size)?);
        }
        Ok(world)
    }

    /// A person's home directory on this machine.
    pub fn account(&self, name: &str) -> anyhow::Result<Account> {
        Account::new(self.root.path().join(name), self.binary.clone())
    }

    /// The binary under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// A folder for the scenario's own files.
    pub fn path(&self) -> &Path {
        self.root.path()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.memory.take());
        if kept() {
            self.root.disable_cleanup(true);
            eprintln!("kept: {}", self.root.path().display());
        }
    }
}

fn kept() -> bool {
    std::env::var_os("INSTAR_TESTS_KEEP").is_some()
}

/// A file relative to the folder of the test binary.
pub(super) fn beside_tests(relative: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("path of the test binary")?;
    let folder = own.parent().context("folder of the test binary")?;
    Ok(folder.join(relative))
}
