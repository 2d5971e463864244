//! Pause between attempts: `min(1000·2^n, 60000)` ms ± 25 %, at least 100 ms.

use rand::RngExt as _;
use rand::rngs::StdRng;

/// Counts failed attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The pause before the next attempt, ms.
    pub(super) fn next(&mut self, rng: &mut StdRng) -> i64 {
        let base = 1_000_i64.checked_shl(self.attempts.min(16)).unwrap_or(i64::MAX).min(60_000);
        self.attempts = self.attempts.saturating_add(1);
        let quarter = base / 4;
        (base + rng.random_range(-quarter..=quarter)).max(100)
    }

    /// Makes the next pause as long as after `attempts` failures.
    pub(super) fn at_least(&mut self, attempts: u32) {
        self.attempts = self.attempts.max(attempts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn pauses_double_up_to_a_minute_with_a_quarter_of_jitter() {
        let mut rng = StdRng::seed_from_u64(1);
        for round in 0..50 {
            let mut backoff = Backoff::default();
            for n in 0..40_u32 {
                let base = (1_000_i64 << n.min(6)).min(60_000);
                let pause = backoff.next(&mut rng);
                assert!((base * 3 / 4..=base * 5 / 4).contains(&pause), "round {round}, n {n}: {pause}");
            }
        }
    }

    #[test]
    fn a_rate_limit_starts_at_half_a_minute() {
        let mut backoff = Backoff::default();
        backoff.at_least(5);
        assert!(backoff.next(&mut StdRng::seed_from_u64(1)) >= 24_000);
    }
}
