//! The relay under load: a process of its own on one core, the load generator on the other. Paced load is open loop,
//! its latency counted from the intended time of sending, so that a stalled relay cannot hide.
//!
//! The generator is one thread that polls without sleeping: timers of an operating system are coarser than what is
//! measured.

mod custody;
mod echo;
mod hostile;
mod load;
mod logins;
mod sealed;
mod subject;
mod v2_client;
mod wire;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::report::{self, Samples};
pub(crate) use echo::{ARGUMENT as ECHO, serve as serve_echo};
use subject::Subject;
use v2_client::Carrier;

/// Core of the process under test; the load generator has the other.
const SUBJECT_CORE: usize = 0;
const OWN_CORE: usize = 1;

/// What to measure and for how long.
pub(crate) struct Plan {
    pub(crate) seconds: u64,
    pub(crate) connections: Vec<usize>,
    /// Names of parts; all when empty.
    pub(crate) only: Vec<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { seconds: 10, connections: vec![1000, 5000], only: Vec::new() }
    }
}

impl Plan {
    fn has(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }

    fn length(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

pub(crate) fn all(bin_dir: &Path, plan: &Plan) -> Result<()> {
    pin(OWN_CORE)?;
    let fsync = fsync()?;
    if plan.has("echo") {
        for size in [1024, 16 * 1024] {
            echo::measure(size, plan.length())?;
        }
    }
    for durability in ["process", "power"] {
        for size in [1024, 16 * 1024] {
            if plan.has("capacity") || plan.has("latency") {
                let relay = Subject::relay(bin_dir, &["durability", durability])?;
                let what = format!("v1, {} KiB, {durability}", size / 1024);
                load::figures(&relay, &what, size, plan, (durability == "power").then_some(&fsync))?;
            }
        }
        for carrier in [Carrier::WebSocket, Carrier::Quic] {
            if plan.has("v2") {
                let relay = Subject::relay(bin_dir, &["durability", durability])?;
                sealed::figures(
                    &relay,
                    durability,
                    carrier,
                    plan,
                    (durability == "power").then_some(&fsync),
                )?;
            }
        }
        if plan.has("custody") {
            custody::figures(bin_dir, durability)?;
        }
    }
    for &count in &plan.connections {
        if plan.has("connections") {
            logins::figures(&Subject::relay(bin_dir, &[])?, count)?;
        }
        for carrier in [Carrier::WebSocket, Carrier::Quic] {
            if plan.has("v2-connections") {
                sealed::connections(&Subject::relay(bin_dir, &[])?, carrier, count)?;
            }
        }
    }
    if plan.has("hostile") {
        hostile::figures(bin_dir, plan)?;
    }
    Ok(())
}

/// Only what others feel while somebody misbehaves.
pub(crate) fn hostile(bin_dir: &Path, plan: &Plan) -> Result<()> {
    pin(OWN_CORE)?;
    hostile::figures(bin_dir, plan)
}

fn pin(core: usize) -> Result<()> {
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(core);
    rustix::thread::sched_setaffinity(None, &cores).context("cannot bind the load generator to its core")
}

/// The disk under test, not a memory file system.
fn scratch() -> PathBuf {
    std::env::var_os("INSTAR_BENCH_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

fn fsync() -> Result<Samples> {
    let mut file = tempfile::tempfile_in(scratch())?;
    let mut samples = Samples::new();
    for _ in 0..300 {
        file.write_all(&[7; 4096])?;
        let start = Instant::now();
        file.sync_data()?;
        samples.record(start.elapsed());
    }
    report::times("disk: fdatasync after 4 KiB", &samples, "-", None);
    Ok(samples)
}
