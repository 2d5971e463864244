//! The mesh in one thread: several nodes and a relay with a virtual clock, driven by a seed.
//!
//! The protocol's decisions are the ones that ship: relay client, relay core with its storage operations, inbound
//! pipeline, delivery and outbox order. This module only carries out their effects, over sockets that lose what was
//! under way, with processes that are killed between any two steps and keep nothing but what was committed.
//!
//! After every step that could break it, the ledger checks: each message once in its thread, in order, and until then
//! in at least one durable place.

mod faults;
mod ledger;
mod node;
mod relay;
mod socket;
pub(crate) mod v2;
mod world;

pub use ledger::Violation;
pub use v2::{SealedDefect, SealedStats, SealedViolation, run_sealed};

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A mistake in carrying out effects, to show that the simulation would see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// None: what ships.
    None,
    /// The node lets the acknowledgement out before the envelope is committed to its spool.
    AckBeforeStore,
    /// The node forgets at a restart which messages it has stored.
    DedupForgotten,
    /// The node writes a message while an earlier one of its thread is not confirmed.
    ThreadOrderIgnored,
    /// The relay drops a message from its queue when it has written it, before the recipient confirmed it.
    QueueDrainedEarly,
}

/// What one seed exercised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Nodes in the mesh.
    pub nodes: u64,
    /// Messages that nodes accepted for sending.
    pub messages: u64,
    /// Processes killed.
    pub crashes: u64,
    /// Connections cut.
    pub cuts: u64,
    /// Texts lost on cut connections.
    pub lost_texts: u64,
    /// Copies that a spool or the pipeline recognised.
    pub duplicates: u64,
    /// Storage operations and commits that failed.
    pub failed_commits: u64,
    /// Logins.
    pub logins: u64,
    /// Steps.
    pub steps: u64,
    /// Fingerprint of the whole run: equal for equal seeds.
    pub digest: u64,
}

impl Stats {
    /// Adds another run; the digests are combined.
    pub fn add(&mut self, other: &Self) {
        self.nodes += other.nodes;
        self.messages += other.messages;
        self.crashes += other.crashes;
        self.cuts += other.cuts;
        self.lost_texts += other.lost_texts;
        self.duplicates += other.duplicates;
        self.failed_commits += other.failed_commits;
        self.logins += other.logins;
        self.steps += other.steps;
        self.digest ^= other.digest;
    }
}

/// A broken promise, with what is needed to see it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Seed of the run.
    pub seed: u64,
    /// Step at which it showed.
    pub step: u64,
    /// Virtual time since the start, ms.
    pub at_ms: i64,
    /// What is broken.
    pub violation: Violation,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, step, at_ms, violation } = self;
        write!(f, "seed {seed}, step {step}, at {at_ms} ms: {violation}")
    }
}

/// Runs one seed to the end: all messages delivered, or a broken promise.
pub fn run(seed: u64, defect: Defect) -> Result<Stats, Failure> {
    world::World::new(seed, defect).run()
}

/// Runs the seeds of `range` on all cores and returns what they exercised together. The failure with the lowest seed is
/// reported.
pub fn run_all(range: std::ops::Range<u64>, defect: Defect) -> Result<Stats, Failure> {
    let next = AtomicU64::new(range.start);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<(Stats, Option<Failure>)> = std::thread::scope(|scope| {
        let work = || {
            let mut total = Stats::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= range.end {
                    return (total, None);
                }
                match run(seed, defect) {
                    Ok(stats) => total.add(&stats),
                    Err(failure) => {
                        next.store(range.end, Ordering::Relaxed);
                        return (total, Some(failure));
                    }
                }
            }
        };
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        handles.into_iter().map(|handle| handle.join().expect("a worker does not panic")).collect()
    });
    let mut total = Stats::default();
    let mut first: Option<Failure> = None;
    for (stats, failure) in results {
        total.add(&stats);
        first = [first, failure].into_iter().flatten().min_by_key(|failure| failure.seed);
    }
    first.map_or(Ok(total), Err)
}
