//! Pause between attempts: full jitter, `rand(0, min(60 s, 1 s · 2^n))`, at least 250 ms.

use rand::RngExt as _;
use rand::rngs::StdRng;

const FLOOR_MS: u64 = 250;
const CEILING_MS: u64 = 60_000;

/// Counts failed attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next pause, not below `least`, ms.
    pub(super) fn next(&mut self, rng: &mut StdRng, least: u64) -> u64 {
        let most = 1_000_u64.checked_shl(self.attempts.min(16)).unwrap_or(CEILING_MS).min(CEILING_MS);
        self.attempts = self.attempts.saturating_add(1);
        rng.random_range(0..=most).max(FLOOR_MS).max(least)
    }

    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn pauses_stay_in_their_window_and_spread() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut sum = 0;
        for _ in 0..200 {
            let mut backoff = Backoff::default();
            for n in 0..12_u32 {
                let pause = backoff.next(&mut rng, 0);
                assert!((FLOOR_MS..=(1_000_u64 << n.min(6)).min(CEILING_MS)).contains(&pause));
                sum += u64::from(n == 11) * pause;
            }
            assert!(backoff.next(&mut rng, 90_000) >= 90_000, "a relay's word is a floor");
        }
        assert!((20_000..40_000).contains(&(sum / 200)), "full jitter: half of the ceiling on average");
    }
}
