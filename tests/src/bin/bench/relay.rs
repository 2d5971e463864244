//! The relay under load: a process of its own on one core, the load generator on the other. Paced load is open loop,
//! its latency counted from the intended time of sending, so that a stalled relay cannot hide.
//!
//! The generator is one thread that polls without sleeping: timers of an operating system are coarser than what is
//! measured.

mod custody;
mod echo;
mod hostile;
mod idle;
mod load;
mod logins;
mod round_trip;
mod rounds;
mod sealed;
mod subject;
mod tls;
mod v2_client;
mod wire;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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
        Self { seconds: 10, connections: vec![1000, 5000, 18_000], only: Vec::new() }
    }
}

impl Plan {
    fn has(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }

    /// Whether an attack is wanted: all are, unless words out of their names are among the parts.
    fn has_attack(&self, name: &str) -> bool {
        self.has("hostile") || self.only.iter().any(|only| name.contains(only.as_str()))
    }

    fn length(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

pub(crate) fn all(bin_dir: &Path, plan: &Plan) -> Result<()> {
    pin(OWN_CORE)?;
    let disk = Disk::measure()?;
    mail(bin_dir, plan, &disk)?;
    if plan.has("rounds") {
        rounds::figures(bin_dir, plan, &disk)?;
    }
    connections(bin_dir, plan, &disk)?;
    if plan.has("hostile") {
        disk.under("process", NO_TLS);
        hostile::figures(bin_dir, plan)?;
    }
    Ok(())
}

/// Only what others feel while somebody misbehaves.
pub(crate) fn hostile(bin_dir: &Path, plan: &Plan) -> Result<()> {
    pin(OWN_CORE)?;
    Disk::measure()?.under("process", NO_TLS);
    hostile::figures(bin_dir, plan)
}

const SIZES: [usize; 2] = [1024, 16 * 1024];
const NO_TLS: &str = "no TLS";

/// What messages take, over every protocol and with both kinds of durability.
fn mail(bin_dir: &Path, plan: &Plan, disk: &Disk) -> Result<()> {
    if plan.has("echo") {
        disk.under("written, never synced", NO_TLS);
        for size in SIZES {
            echo::measure(size, plan.length())?;
        }
    }
    for durability in ["process", "power"] {
        let fsync = (durability == "power").then_some(&disk.fsync);
        let relay = || Subject::relay(bin_dir, &["durability", durability]);
        for size in SIZES {
            if plan.has("capacity") || plan.has("latency") {
                disk.under(durability, NO_TLS);
                let what = format!("v1, {} KiB, {durability}", size / 1024);
                load::figures(&relay()?, &what, size, plan, fsync)?;
            }
            for carrier in Carrier::FOR_MAIL {
                if plan.has("v2") {
                    disk.under(durability, carrier.protection());
                    sealed::figures(&relay()?, durability, carrier, size, plan, fsync)?;
                }
            }
        }
        for carrier in Carrier::FOR_MAIL {
            if plan.has("round-trip") {
                disk.under(&format!("relay {durability}, nodes power"), carrier.protection());
                round_trip::figures(&relay()?, durability, carrier, plan)?;
            }
        }
        if plan.has("custody") {
            disk.under(durability, NO_TLS);
            custody::figures(bin_dir, durability)?;
        }
    }
    Ok(())
}

/// What logins and idle connections cost, each number of them in a process of its own.
fn connections(bin_dir: &Path, plan: &Plan, disk: &Disk) -> Result<()> {
    if !plan.has("connections") && !plan.has("v2-connections") {
        return Ok(());
    }
    let descriptors = raise_descriptors()?;
    let most = plan.connections.iter().copied().max().unwrap_or(0);
    ensure!(
        most as u64 + SPARE_DESCRIPTORS <= descriptors,
        "{most} connections need more than {descriptors} descriptors: raise the hard limit (ulimit -Hn)"
    );
    if plan.has("connections") {
        for (kind, tls) in [(&logins::PLAIN, false), (&logins::OVER_TLS, true)] {
            disk.under("power", if tls { "TLS 1.3" } else { NO_TLS });
            let start = if tls { Subject::tls_relay } else { Subject::relay };
            each(plan, kind, |count| logins::figures(&start(bin_dir, &[])?, count))?;
        }
    }
    if plan.has("v2-connections") {
        for carrier in [Carrier::WebSocket, Carrier::WebSocketTls, Carrier::Quic] {
            disk.under("power", carrier.protection());
            let tls = carrier == Carrier::WebSocketTls;
            let start = if tls { Subject::tls_relay } else { Subject::relay };
            each(plan, &carrier.kind(), |count| sealed::connections(&start(bin_dir, &[])?, carrier, count))?;
        }
    }
    Ok(())
}

fn each(plan: &Plan, kind: &idle::Kind, measure: impl Fn(usize) -> Result<idle::Readings>) -> Result<()> {
    let mut all = Vec::new();
    for &count in &plan.connections {
        let readings = measure(count).with_context(|| format!("{}: {count} connections", kind.name))?;
        readings.report(kind);
        all.push(readings);
    }
    idle::slope(kind, &all);
    Ok(())
}

/// Files, the log, listeners: what a process has open beside its connections.
const SPARE_DESCRIPTORS: u64 = 256;

/// As many descriptors as the system allows, here and in the processes that are started from here. Returns how many.
fn raise_descriptors() -> Result<u64> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum.unwrap_or(u64::MAX))
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

/// The disk that the relay writes to, as it was at the start of this run.
struct Disk {
    fsync: Samples,
}

impl Disk {
    fn measure() -> Result<Self> {
        let mut file = tempfile::tempfile_in(scratch())?;
        let mut fsync = Samples::new();
        for _ in 0..300 {
            file.write_all(&[7; 4096])?;
            let start = Instant::now();
            file.sync_data()?;
            fsync.record(start.elapsed());
        }
        report::times("disk: fdatasync after 4 KiB", &fsync, "-", None);
        Ok(Self { fsync })
    }

    /// Says what the figures from here on are measured under.
    fn under(&self, durability: &str, protection: &str) {
        let (p50, p99) = (report::show(self.fsync.at(50.0)), report::show(self.fsync.at(99.0)));
        report::under(format!(
            "durability: {durability}; {protection}; limits raised by configuration; fdatasync p50 {p50}, p99 {p99}"
        ));
    }
}
