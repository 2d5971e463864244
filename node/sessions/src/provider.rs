//! Whether the model provider answers. While it refuses, sessions that serve peers are not started for nothing: their
//! messages wait. Pure.

/// First pause after a refusal, ms; each further refusal doubles it.
const PAUSE_MS: i64 = 30_000;
/// Longest pause of that kind, ms.
const MAX_PAUSE_MS: i64 = 15 * 60_000;
/// A reset that the provider names is waited for, but no longer than this, ms: the owner may have another plan by then.
const MAX_RESET_MS: i64 = 60 * 60_000;

/// What is remembered. Times are Unix milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provider {
    refusals: u32,
    until: i64,
}

impl Provider {
    /// It refused, until `resets_at` where it said so. Returns when the next session may try.
    pub fn refused(&mut self, now: i64, resets_at: Option<i64>) -> i64 {
        // Several sessions hear of one refusal.
        if self.paused(now).is_none() {
            let pause = (PAUSE_MS << self.refusals.min(8)).min(MAX_PAUSE_MS);
            self.refusals = self.refusals.saturating_add(1);
            self.until = now + pause;
        }
        if let Some(resets_at) = resets_at {
            self.until = resets_at.clamp(now + PAUSE_MS, now + MAX_RESET_MS);
        }
        self.until
    }

    /// It answered a turn.
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// Until when nothing is started, if it refuses now.
    pub fn paused(&self, now: i64) -> Option<i64> {
        (self.until > now).then_some(self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_lengthen_the_pause_and_an_answer_ends_it() {
        let mut provider = Provider::default();
        assert_eq!(provider.paused(0), None);
        assert_eq!(provider.refused(0, None), 30_000);
        assert_eq!(provider.refused(10, None), 30_000, "another session hears of the same refusal");
        assert_eq!((provider.paused(29_999), provider.paused(30_000)), (Some(30_000), None));
        assert_eq!(provider.refused(30_000, None), 90_000);
        let mut now = 90_000;
        for _ in 0..40 {
            now = provider.refused(now, None);
        }
        assert_eq!(provider.refused(now, None), now + MAX_PAUSE_MS);
        provider.answered();
        assert_eq!(provider.paused(now), None);
        assert_eq!(provider.refused(now, None), now + PAUSE_MS);
    }

    #[test]
    fn a_named_reset_is_waited_for_within_reason() {
        let table = [(5, PAUSE_MS), (600_000, 600_000), (i64::MAX, MAX_RESET_MS)];
        for (resets_at, until) in table {
            assert_eq!(Provider::default().refused(0, Some(resets_at)), until);
        }
    }
}
