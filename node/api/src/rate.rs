//! Sliding-window limits of the HTTP surface (`agent-core.md` §4.4).

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Configured limits (`http.limits`).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests of one caller per minute; 300 by default.
    pub requests_per_minute: u32,
    /// Sessions that one caller may start per minute; 10 by default.
    pub spawns_per_minute: u32,
    /// Hook requests of one session per second; 50 by default.
    pub hooks_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests_per_minute: 300, spawns_per_minute: 10, hooks_per_second: 50 }
    }
}

/// Groups of routes with a limit of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// Everything without a group.
    Default,
    /// Starting sessions.
    Spawn,
    /// Hooks, outside the default.
    Hook,
    /// The identity challenge, open to everyone: 30 per minute for callers without a credential.
    Challenge,
    /// Failed authentications: 20 per minute, then refused for a minute.
    AuthFailure,
}

impl Group {
    const fn window(self, limits: &Limits) -> (usize, Duration) {
        match self {
            Self::Default => (limits.requests_per_minute as usize, Duration::from_mins(1)),
            Self::Spawn => (limits.spawns_per_minute as usize, Duration::from_mins(1)),
            Self::Hook => (limits.hooks_per_second as usize, Duration::from_secs(1)),
            Self::Challenge => (30, Duration::from_mins(1)),
            Self::AuthFailure => (20, Duration::from_mins(1)),
        }
    }
}

/// Event times per (group, caller). Idle keys are dropped when the table grows past 4,096 entries.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    limits: Limits,
    // Held for a few comparisons only, never across an await.
    events: Mutex<HashMap<(Group, String), VecDeque<Instant>>>,
}

const MAX_KEYS: usize = 4096;

impl RateLimiter {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, events: Mutex::default() }
    }

    /// Records one event, or says how long to wait.
    pub(crate) fn check(&self, group: Group, key: &str, now: Instant) -> Result<(), Duration> {
        self.look(group, key, now, true)
    }

    /// Says whether the window is full without recording anything.
    pub(crate) fn peek(&self, group: Group, key: &str, now: Instant) -> Result<(), Duration> {
        self.look(group, key, now, false)
    }

    fn look(&self, group: Group, key: &str, now: Instant, record: bool) -> Result<(), Duration> {
        let (limit, window) = group.window(&self.limits);
        let mut events = self.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if events.len() > MAX_KEYS {
            events.retain(|(g, _), times| {
                times.back().is_some_and(|t| now.duration_since(*t) < g.window(&self.limits).1)
            });
        }
        let times = events.entry((group, key.to_owned())).or_default();
        while times.front().is_some_and(|t| now.duration_since(*t) >= window) {
            times.pop_front();
        }
        if times.len() >= limit {
            let oldest = times.front().copied().unwrap_or(now);
            return Err(window.saturating_sub(now.duration_since(oldest)));
        }
        if record {
            times.push_back(now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_window_refuses_until_its_oldest_event_leaves() {
        let limiter = RateLimiter::new(Limits::default());
        let start = Instant::now();
        for _ in 0..10 {
            assert_eq!(limiter.check(Group::Spawn, "a", start), Ok(()));
        }
        assert_eq!(
            limiter.check(Group::Spawn, "a", start + Duration::from_secs(59)),
            Err(Duration::from_secs(1))
        );
        assert_eq!(limiter.check(Group::Spawn, "b", start), Ok(()));
        assert_eq!(limiter.check(Group::Spawn, "a", start + Duration::from_mins(1)), Ok(()));
    }
}
