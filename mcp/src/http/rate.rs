//! How often one token may ask.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// Requests in one window.
const MOST: usize = 60;
/// Length of the window.
const WINDOW: Duration = Duration::from_mins(1);

/// An exact sliding window per token.
#[derive(Debug, Default)]
pub(super) struct Rate {
    taken: BTreeMap<String, VecDeque<Instant>>,
}

impl Rate {
    /// Takes one request, or says how long to wait for the next. A refused request takes nothing.
    pub(super) fn take(&mut self, token_id: &str, now: Instant) -> Result<(), Duration> {
        let taken = match self.taken.get_mut(token_id) {
            Some(taken) => taken,
            None => self.taken.entry(token_id.to_owned()).or_default(),
        };
        while taken.front().is_some_and(|at| now.duration_since(*at) >= WINDOW) {
            taken.pop_front();
        }
        if let Some(oldest) = taken.front()
            && taken.len() >= MOST
        {
            return Err(WINDOW.saturating_sub(now.duration_since(*oldest)));
        }
        taken.push_back(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_a_minute_and_then_one_for_each_that_leaves_the_window() {
        let mut rate = Rate::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..60 {
            assert_eq!(rate.take("a", at(second / 2)), Ok(()));
        }
        assert_eq!(rate.take("a", at(30)), Err(Duration::from_secs(30)));
        assert_eq!(rate.take("b", at(30)), Ok(()), "another token has its own window");
        assert_eq!(rate.take("a", at(60)), Ok(()));
        assert_eq!(rate.take("a", at(60)), Ok(()));
        assert_eq!(rate.take("a", at(60)), Err(Duration::from_secs(1)));
    }
}
