//! Sealed mail in one thread: nodes and relays of v2 with a virtual clock, driven by a seed.
//!
//! The machines are the ones that ship: mail, client session, the relay's session, path choice. This module carries
//! out their effects over connections that break, with processes that are killed before and after every commit and
//! keep nothing but what was committed, with relays that lose everything they held, and with one that delivers in any
//! order and again what was taken.
//!
//! The schedule follows the seed; the ratchets draw from the operating system, so bytes differ between runs.

mod node;
pub(crate) mod relay;
mod world;

use std::fmt;

/// Name every relay of the simulation answers for.
const HOST: &str = "relay.sim";

/// A mistake in carrying out effects, to show that the simulation would see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealedDefect {
    /// None: what ships.
    None,
    /// Envelopes leave before the ratchet that sealed them is stored.
    SessionNotStored,
    /// The node forgets at a restart which messages it has opened.
    SeenForgotten,
    /// A message counts as done when a relay accepted it.
    AcceptedIsEnough,
}

/// What one seed exercised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SealedStats {
    /// Messages submitted and handed on exactly once.
    pub messages: u64,
    /// Processes killed.
    pub kills: u64,
    /// Of these, between a decision and its commit.
    pub kills_before_commit: u64,
    /// Connections cut.
    pub cuts: u64,
    /// Sessions that another one over the other carrier took the place of.
    pub moves: u64,
    /// Relays that lost what they held.
    pub wiped: u64,
    /// Commits.
    pub commits: u64,
    /// Envelopes on the wire.
    pub envelopes: u64,
    /// Messages handed on behind a gap that was shown, or late.
    pub marked: u64,
    /// Virtual time, ms.
    pub took_ms: u64,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SealedViolation {
    /// Submitted, and after all trouble ended not handed on.
    Lost(String),
    /// Handed on twice.
    Twice(String),
    /// Handed on out of order without a mark.
    OutOfOrder(String),
    /// Two different messages under one key of a ratchet.
    KeyReused(String),
    /// Something that must not happen at all.
    Broken(String),
}

impl fmt::Display for SealedViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(what) => write!(f, "lost: {what}"),
            Self::Twice(what) => write!(f, "twice: {what}"),
            Self::OutOfOrder(what) => write!(f, "out of order without a mark: {what}"),
            Self::KeyReused(what) => write!(f, "message key used twice: {what}"),
            Self::Broken(what) => write!(f, "{what}"),
        }
    }
}

/// Runs one seed with at least `kills` kills to the end.
pub fn run_sealed(seed: u64, kills: u64, defect: SealedDefect) -> Result<SealedStats, SealedViolation> {
    world::World::new(seed, kills, defect).run()
}
