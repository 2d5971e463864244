//! Figures of operation and their Prometheus text (`relay.md` §14.2). No label ever holds an agent.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::abuse::Pattern;

const BUCKETS: usize = 14;

/// Upper bounds of buckets, and how many of their unit make one of what is exported.
#[derive(Debug, PartialEq)]
struct Scale {
    bounds: [u32; BUCKETS],
    per_unit: f64,
}

/// Durations: added in milliseconds, exported in seconds, 1 ms to 60 s.
static DURATIONS: Scale = Scale {
    bounds: [1, 2, 5, 10, 20, 50, 100, 250, 500, 1_000, 5_000, 10_000, 30_000, 60_000],
    per_unit: 1000.0,
};

/// Numbers of things.
static SIZES: Scale =
    Scale { bounds: [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192], per_unit: 1.0 };

/// Values, counted by size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Histogram {
    scale: &'static Scale,
    counts: [u64; BUCKETS],
    count: u64,
    sum: f64,
}

/// Of durations.
impl Default for Histogram {
    fn default() -> Self {
        Self::of(&DURATIONS)
    }
}

impl Histogram {
    const fn of(scale: &'static Scale) -> Self {
        Self { scale, counts: [0; BUCKETS], count: 0, sum: 0.0 }
    }

    /// Of numbers of things.
    pub fn sizes() -> Self {
        Self::of(&SIZES)
    }

    /// Counts one duration in milliseconds, or one number of things; a negative one counts as none.
    pub fn add(&mut self, value: f64) {
        let value = value.max(0.0);
        self.count += 1;
        self.sum += value;
        let place = self.scale.bounds.partition_point(|bound| f64::from(*bound) < value);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// What the engine of a cluster takes.
#[derive(Debug, Default)]
pub struct Publishing {
    took: Mutex<Histogram>,
    retries: AtomicU64,
}

impl Publishing {
    /// Notes a message that was published, or given up.
    pub fn done(&self, since: Instant) {
        let mut took = self.took.lock().unwrap_or_else(PoisonError::into_inner);
        took.add(since.elapsed().as_secs_f64() * 1000.0);
    }

    /// Notes that a message is published again.
    pub fn again(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Times and retries so far.
    pub fn so_far(&self) -> (Histogram, u64) {
        (*self.took.lock().unwrap_or_else(PoisonError::into_inner), self.retries.load(Ordering::Relaxed))
    }
}

/// Why messages are refused, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// The sender is not who it says.
    Mismatch,
    /// Above the size limit.
    TooLarge,
    /// A bad signature.
    Signature,
    /// The id is taken.
    Duplicate,
    /// Rates.
    Rate,
    /// Limits of a young identity.
    Young,
    /// Limits of the queue.
    Full,
    /// Storage.
    Storage,
    /// Anything else.
    Other,
}

impl Reject {
    /// All reasons with their labels.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::Mismatch, "sender_mismatch"),
        (Self::TooLarge, "too_large"),
        (Self::Signature, "invalid_signature"),
        (Self::Duplicate, "duplicate"),
        (Self::Rate, "rate_limited"),
        (Self::Young, "new_agent_limit"),
        (Self::Full, "queue_full"),
        (Self::Storage, "storage_unavailable"),
        (Self::Other, "other"),
    ];
}

/// What carries a session, as a label.
pub const CARRIERS: [&str; 3] = ["ws1", "ws2", "quic"];

/// What one carrier brought since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CarrierFigures {
    /// Sessions opened.
    pub logins: u64,
    /// Messages that came over it and were taken into custody.
    pub accepted: u64,
    /// Messages that were delivered over it and confirmed.
    pub confirmed: u64,
}

/// What the core counts beside its totals.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    /// Refusals, in the order of [`Reject::ALL`].
    pub rejects: [u64; Reject::ALL.len()],
    /// From the frame to its answer.
    pub accept: Histogram,
    /// From the commit to the confirmation of the recipient.
    pub deliver: Histogram,
    /// Identities seen for the first time.
    pub new_identities: u64,
    /// Puzzles posed, and how many of them were solved.
    pub puzzles: (u64, u64),
    /// Bytes of blobs that were passed on.
    pub blob_bytes: u64,
    /// By carrier, in the order of [`CARRIERS`].
    pub carriers: [CarrierFigures; CARRIERS.len()],
}

/// Prometheus text, built up line by line.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// One counter or gauge without labels.
    pub fn single(&mut self, kind: &str, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(kind, name, help);
        let _ = writeln!(self.text, "{name} {value}");
    }

    /// Counters or gauges that one label tells apart.
    pub fn labelled<V: std::fmt::Display>(
        &mut self,
        (kind, name, help): (&str, &str, &str),
        label: &str,
        values: impl IntoIterator<Item = (&'static str, V)>,
    ) {
        self.head(kind, name, help);
        for (which, value) in values {
            let _ = writeln!(self.text, "{name}{{{label}=\"{which}\"}} {value}");
        }
    }

    /// A histogram; durations in seconds.
    pub fn histogram(&mut self, name: &str, help: &str, values: &Histogram) {
        self.head("histogram", name, help);
        let Scale { bounds, per_unit } = values.scale;
        let mut below = 0;
        for (bound, count) in bounds.iter().zip(values.counts) {
            below += count;
            let _ = writeln!(self.text, "{name}_bucket{{le=\"{}\"}} {below}", f64::from(*bound) / per_unit);
        }
        let _ = writeln!(self.text, "{name}_bucket{{le=\"+Inf\"}} {}", values.count);
        let _ = writeln!(self.text, "{name}_sum {}", values.sum / per_unit);
        let _ = writeln!(self.text, "{name}_count {}", values.count);
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }

    fn head(&mut self, kind: &str, name: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }
}

/// Bans with their label.
pub fn bans(by_pattern: &[u64; Pattern::ALL.len()]) -> impl Iterator<Item = (&'static str, u64)> {
    Pattern::ALL.iter().map(|pattern| pattern.name()).zip(*by_pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_their_bounds_inclusive() {
        let mut durations = Histogram::default();
        for ms in [-1.0, 1.0, 1.1, 60_000.0, 60_001.0] {
            durations.add(ms);
        }
        let mut text = Exposition::default();
        text.histogram("t", "h", &durations);
        let text = text.finish();
        assert!(text.contains("t_bucket{le=\"0.001\"} 2\n"), "{text}");
        assert!(text.contains("t_bucket{le=\"0.002\"} 3\n"));
        assert!(text.contains("t_bucket{le=\"60\"} 4\nt_bucket{le=\"+Inf\"} 5\n"));
        assert!(text.ends_with("t_count 5\n"));
    }

    #[test]
    fn numbers_of_things_are_exported_as_they_are() {
        let mut sizes = Histogram::sizes();
        sizes.add(256.0);
        let mut text = Exposition::default();
        text.histogram("t", "h", &sizes);
        let text = text.finish();
        assert!(text.contains("t_bucket{le=\"128\"} 0\nt_bucket{le=\"256\"} 1\n"), "{text}");
        assert!(text.contains("t_sum 256\n"));
    }

    #[test]
    fn labels_stand_in_the_order_of_reasons() {
        for (at, (reason, _)) in Reject::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
        }
    }
}
