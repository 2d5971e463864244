//! Figures of operation and their Prometheus text (`relay.md` §14.2). No label ever holds an agent.

use std::fmt::Write as _;

use crate::abuse::Pattern;

/// Upper bounds of the histogram buckets, in milliseconds: 1 ms to 60 s.
const BOUNDS_MS: [u32; 14] = [1, 2, 5, 10, 20, 50, 100, 250, 500, 1_000, 5_000, 10_000, 30_000, 60_000];

/// Durations, counted by size.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Histogram {
    counts: [u64; BOUNDS_MS.len()],
    count: u64,
    sum_ms: f64,
}

impl Histogram {
    /// Counts one duration in milliseconds; a negative one counts as none.
    pub fn add(&mut self, ms: f64) {
        let ms = ms.max(0.0);
        self.count += 1;
        self.sum_ms += ms;
        let place = BOUNDS_MS.partition_point(|bound| f64::from(*bound) < ms);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
    }

    /// Number of durations.
    pub fn count(&self) -> u64 {
        self.count
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

    /// A histogram in seconds.
    pub fn histogram(&mut self, name: &str, help: &str, durations: &Histogram) {
        self.head("histogram", name, help);
        let mut below = 0;
        for (bound, count) in BOUNDS_MS.iter().zip(durations.counts) {
            below += count;
            let _ = writeln!(self.text, "{name}_bucket{{le=\"{}\"}} {below}", f64::from(*bound) / 1000.0);
        }
        let _ = writeln!(self.text, "{name}_bucket{{le=\"+Inf\"}} {}", durations.count);
        let _ = writeln!(self.text, "{name}_sum {}", durations.sum_ms / 1000.0);
        let _ = writeln!(self.text, "{name}_count {}", durations.count);
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
    fn labels_stand_in_the_order_of_reasons() {
        for (at, (reason, _)) in Reject::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
        }
    }
}
