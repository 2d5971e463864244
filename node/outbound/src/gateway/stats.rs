//! What the gateway counted, per channel, since it was built.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::{ChannelId, StageId};

/// Answer of `GET /send-gateway/stats`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GatewayStats {
    /// By channel.
    pub channels: BTreeMap<ChannelId, ChannelStats>,
    /// All twelve, in order.
    pub stages: Vec<StageStats>,
}

/// Counters of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ChannelStats {
    /// Messages looked at.
    pub reviewed: u64,
    /// Cleared.
    pub passed: u64,
    /// Refused, exact duplicates included.
    pub blocked: u64,
    /// Waiting for a person.
    pub held: u64,
    /// Findings that stopped nothing.
    pub warnings: u64,
    /// Stages that could not look.
    pub abstained: u64,
}

/// Whether a stage exists on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StagePresence {
    /// Runs.
    Present,
    /// Not built or switched off.
    Absent,
}

/// One stage in the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StageStats {
    /// Position, 0 to 11.
    pub number: u8,
    /// Name.
    pub stage: StageId,
    /// Whether it runs.
    pub presence: StagePresence,
}

impl StageStats {
    pub(super) fn new(stage: StageId, presence: StagePresence) -> Self {
        Self { number: stage.number(), stage, presence }
    }
}

#[derive(Default)]
pub(super) struct Counters {
    reviewed: AtomicU64,
    passed: AtomicU64,
    blocked: AtomicU64,
    held: AtomicU64,
    warnings: AtomicU64,
    abstained: AtomicU64,
}

impl Counters {
    pub(super) fn reviewed(&self) {
        self.reviewed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn passed(&self) {
        self.passed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn blocked(&self) {
        self.blocked.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn held(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn warned(&self, findings: usize) {
        self.warnings.fetch_add(findings as u64, Ordering::Relaxed);
    }

    pub(super) fn abstained(&self) {
        self.abstained.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> ChannelStats {
        ChannelStats {
            reviewed: self.reviewed.load(Ordering::Relaxed),
            passed: self.passed.load(Ordering::Relaxed),
            blocked: self.blocked.load(Ordering::Relaxed),
            held: self.held.load(Ordering::Relaxed),
            warnings: self.warnings.load(Ordering::Relaxed),
            abstained: self.abstained.load(Ordering::Relaxed),
        }
    }
}
