//! A file system in memory with a size of its own: a disk that fills up.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// A mounted file system; unmounted when dropped. Only inside a scenario's own namespaces.
#[derive(Debug)]
pub struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    /// Mounts one of this size (`24m`) on a folder, which is made if need be.
    pub fn mount(path: &Path, size: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)?;
        let options = format!("size={size},mode=0755");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).status();
        ensure!(status.context("mount runs")?.success(), "no file system on {}", path.display());
        Ok(Self { path: path.to_owned() })
    }

    /// Writes a file until there is no room left.
    pub fn fill(&self) -> anyhow::Result<()> {
        use std::io::Write;
        let mut ballast = std::fs::File::create(self.ballast())?;
        for piece in [&[0_u8; 8 * 1024][..], &[0; 1]] {
            while ballast.write_all(piece).is_ok() {}
        }
        Ok(())
    }

    /// Removes that file.
    pub fn relieve(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.ballast())?)
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: processes may still have files open there; the namespace ends them.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
