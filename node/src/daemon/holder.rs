//! The one node of a state directory: its lock, and who holds it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use instar_durable::{FileLock, LockError};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde::{Deserialize, Serialize};

/// What a running node writes into its lock file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Holder {
    pub(crate) pid: i32,
    pub(crate) started_at: String,
    pub(crate) boot_id: String,
}

/// Result of asking for the lock.
pub(crate) enum Claim {
    Ours(FileLock),
    Held(Option<Holder>),
}

/// Takes the lock for this process, or tells who has it.
pub(crate) fn claim(path: &Path) -> Result<Claim> {
    match FileLock::try_acquire(path) {
        Ok(lock) => Ok(Claim::Ours(lock)),
        Err(LockError::Held { holder, .. }) => {
            Ok(Claim::Held(holder.and_then(|text| serde_json::from_str(&text).ok())))
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes this process into its lock.
pub(crate) fn sign(lock: &mut FileLock, boot_id: &str) -> Result<()> {
    let holder = Holder {
        pid: rustix::process::getpid().as_raw_pid(),
        started_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        boot_id: boot_id.to_owned(),
    };
    lock.describe(&serde_json::to_string(&holder)?)?;
    Ok(())
}

/// The running node of this lock file, if there is one.
pub(crate) fn running(path: &Path) -> Result<Option<Holder>> {
    if !path.exists() {
        return Ok(None);
    }
    match claim(path)? {
        Claim::Ours(_) => Ok(None),
        Claim::Held(Some(holder)) => Ok(Some(holder)),
        Claim::Held(None) => {
            anyhow::bail!("{} is locked by a process that did not say who it is", path.display())
        }
    }
}

/// How a stop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    Gracefully,
    ByForce,
}

/// Asks the process to stop and waits until its lock is free; kills it after `patience`.
pub(crate) fn stop(path: &Path, holder: &Holder, patience: Duration) -> Result<Stopped> {
    let pid = Pid::from_raw(holder.pid).context("the lock names no process")?;
    // The process may end between the look and the signal; then its lock is free below.
    let _ = kill_process(pid, Signal::TERM);
    if wait_free(path, patience)? {
        return Ok(Stopped::Gracefully);
    }
    let _ = kill_process(pid, Signal::KILL);
    if wait_free(path, Duration::from_secs(5))? || test_kill_process(pid).is_err() {
        return Ok(Stopped::ByForce);
    }
    anyhow::bail!("process {} did not end", holder.pid)
}

fn wait_free(path: &Path, patience: Duration) -> Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        if running(path)?.is_none() {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
