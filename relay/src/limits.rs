//! Sliding windows of ring buckets: 60 buckets per window, whatever the number of events.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Buckets per window; the window slides in steps of one sixtieth of its length.
const BUCKETS: i64 = 60;

/// How many events a window of a given length admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Length of the window in milliseconds.
    pub window_ms: i64,
    /// Most events in one window.
    pub limit: u32,
}

impl Rule {
    /// `limit` events per minute.
    pub const fn per_minute(limit: u32) -> Self {
        Self { window_ms: 60_000, limit }
    }

    /// `limit` events per hour.
    pub const fn per_hour(limit: u32) -> Self {
        Self { window_ms: 3_600_000, limit }
    }

    fn bucket(&self, at_ms: i64) -> i64 {
        at_ms.div_euclid((self.window_ms / BUCKETS).max(1))
    }
}

/// A refusal by a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverLimit {
    /// Milliseconds until one event would be admitted again.
    pub retry_ms: i64,
}

#[derive(Debug, Default, Clone)]
struct Counter {
    buckets: VecDeque<(i64, u32)>,
    total: u32,
}

impl Counter {
    fn forget_before(&mut self, oldest: i64) {
        while let Some(&(bucket, n)) = self.buckets.front() {
            if bucket >= oldest {
                return;
            }
            self.total -= n;
            self.buckets.pop_front();
        }
    }

    fn add(&mut self, bucket: i64) {
        match self.buckets.back_mut() {
            // A clock that steps back counts into the newest bucket: never an earlier release.
            Some((last, n)) if *last >= bucket => *n += 1,
            _ => self.buckets.push_back((bucket, 1)),
        }
        self.total += 1;
    }

    fn take_back(&mut self, bucket: i64) {
        let found = self.buckets.iter_mut().rev().find(|(b, n)| *b <= bucket && *n > 0);
        if let Some((_, n)) = found {
            *n -= 1;
            self.total -= 1;
        }
    }
}

/// One window per key.
#[derive(Debug, Clone)]
pub struct Windows<K> {
    rule: Rule,
    counters: HashMap<K, Counter>,
    max_keys: usize,
}

impl<K: Hash + Eq + Clone> Windows<K> {
    /// Empty windows; when more than `max_keys` keys are alive the longest idle ones are forgotten.
    pub fn new(rule: Rule, max_keys: usize) -> Self {
        Self { rule, counters: HashMap::new(), max_keys: max_keys.max(1) }
    }

    /// The rule.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// Events of `key` in the window that ends now.
    pub fn count(&mut self, key: &K, now_ms: i64) -> u32 {
        let oldest = self.rule.bucket(now_ms) - BUCKETS + 1;
        let Some(counter) = self.counters.get_mut(key) else { return 0 };
        counter.forget_before(oldest);
        counter.total
    }

    /// Whether one more event would be admitted; counts nothing.
    pub fn check(&mut self, key: &K, now_ms: i64) -> Result<(), OverLimit> {
        if self.count(key, now_ms) < self.rule.limit {
            return Ok(());
        }
        let first = self.counters.get(key).and_then(|c| c.buckets.front()).map_or(0, |(b, _)| *b);
        let width = (self.rule.window_ms / BUCKETS).max(1);
        Err(OverLimit { retry_ms: ((first + BUCKETS) * width - now_ms).max(1) })
    }

    /// Counts one event whether or not it is within the limit; returns the events in the window.
    pub fn add(&mut self, key: &K, now_ms: i64) -> u32 {
        let bucket = self.rule.bucket(now_ms);
        if !self.counters.contains_key(key) && self.counters.len() >= self.max_keys {
            self.forget_idle(now_ms);
        }
        let counter = self.counters.entry(key.clone()).or_default();
        counter.forget_before(bucket - BUCKETS + 1);
        counter.add(bucket);
        counter.total
    }

    /// Counts one event if it is within the limit.
    pub fn take(&mut self, key: &K, now_ms: i64) -> Result<(), OverLimit> {
        self.check(key, now_ms)?;
        self.add(key, now_ms);
        Ok(())
    }

    /// Un-counts an event that was counted at `at_ms` and did not take place after all.
    pub fn take_back(&mut self, key: &K, at_ms: i64) {
        let bucket = self.rule.bucket(at_ms);
        if let Some(counter) = self.counters.get_mut(key) {
            counter.take_back(bucket);
        }
    }

    /// Drops keys without an event in the window, then, if still too many, the longest idle tenth.
    pub fn forget_idle(&mut self, now_ms: i64) {
        let oldest = self.rule.bucket(now_ms) - BUCKETS + 1;
        self.counters.retain(|_, c| c.buckets.back().is_some_and(|(b, _)| *b >= oldest));
        if self.counters.len() < self.max_keys {
            return;
        }
        let mut last: Vec<i64> =
            self.counters.values().filter_map(|c| c.buckets.back().map(|(b, _)| *b)).collect();
        last.sort_unstable();
        let cut = last.get(last.len() / 10).copied().unwrap_or(i64::MAX);
        let mut spare = self.counters.len() / 10 + 1;
        self.counters.retain(|_, c| {
            let idle = spare > 0 && c.buckets.back().is_none_or(|(b, _)| *b <= cut);
            spare -= usize::from(idle);
            !idle
        });
    }

    /// Number of keys held.
    pub fn len(&self) -> usize {
        self.counters.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.counters.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_limit_is_exact_at_the_edges_of_the_window() {
        let mut windows = Windows::new(Rule::per_minute(3), 10);
        let base = 1_768_478_400_000;
        for n in 0..3 {
            assert!(windows.take(&"a", base + n).is_ok(), "event {n}");
        }
        assert_eq!(windows.take(&"a", base + 500), Err(OverLimit { retry_ms: 59_500 }));
        assert!(windows.take(&"b", base).is_ok(), "keys are independent");
        assert!(windows.check(&"a", base + 59_999).is_err());
        assert!(windows.check(&"a", base + 60_000).is_ok());
    }

    #[test]
    fn an_event_that_did_not_happen_is_given_back() {
        let mut windows = Windows::new(Rule::per_hour(1), 10);
        windows.take(&1, 10_000).expect("first");
        assert!(windows.take(&1, 20_000).is_err());
        windows.take_back(&1, 10_000);
        assert!(windows.take(&1, 20_000).is_ok());
    }

    #[test]
    fn the_number_of_keys_is_bounded_and_the_busy_ones_stay() {
        let mut windows = Windows::new(Rule::per_minute(5), 100);
        for key in 0..1_000 {
            windows.add(&key, i64::from(key) * 10);
        }
        assert!(windows.len() <= 100);
        assert_eq!(windows.count(&999, 9_990), 1);
    }

    proptest! {
        /// Compared with a list of events, the ring may be early by one bucket at most and never late.
        #[test]
        fn a_ring_counts_like_a_list(steps in proptest::collection::vec(0i64..5_000, 1..200)) {
            let rule = Rule::per_minute(20);
            let mut windows = Windows::new(rule, 10);
            let (mut now, mut events) = (0i64, Vec::new());
            for step in steps {
                now += step;
                let admitted = windows.take(&(), now).is_ok();
                let strict = events.iter().filter(|t| now - **t < 60_000).count();
                let lax = events.iter().filter(|t| now - **t < 59_000).count();
                prop_assert!(!(admitted && lax >= 20));
                prop_assert!(admitted || strict >= 20);
                if admitted { events.push(now); }
            }
        }
    }
}
