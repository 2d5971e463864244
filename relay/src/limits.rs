//! Sliding windows of ring buckets: 60 buckets per window, whatever the number of events.

use std::hash::Hash;

use crate::maps::AddressMap;

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

/// Counts of the newest 60 buckets; an idle key pays for one number only.
#[derive(Debug, Clone)]
enum Ring {
    One(u32),
    Many(Box<[u32; BUCKETS as usize]>),
}

#[derive(Debug, Clone)]
struct Counter {
    /// Newest bucket.
    newest: i64,
    total: u32,
    ring: Ring,
}

fn slot(bucket: i64) -> usize {
    bucket.rem_euclid(BUCKETS) as usize
}

impl Counter {
    fn new(bucket: i64) -> Self {
        Self { newest: bucket, total: 0, ring: Ring::One(0) }
    }

    /// Forgets what is outside of the window that ends with `bucket`.
    fn slide(&mut self, bucket: i64) {
        if bucket - self.newest >= BUCKETS {
            *self = Self::new(bucket);
        }
        if let Ring::Many(counts) = &mut self.ring {
            for passed in self.newest + 1..=bucket {
                self.total -= std::mem::take(&mut counts[slot(passed)]);
            }
            self.newest = self.newest.max(bucket);
        }
    }

    fn add(&mut self, bucket: i64) {
        self.slide(bucket);
        self.total += 1;
        match &mut self.ring {
            // A clock that steps back counts into the newest bucket: never an earlier release.
            Ring::One(count) if bucket <= self.newest || *count == 0 => *count += 1,
            Ring::One(count) => {
                let mut counts = Box::new([0; BUCKETS as usize]);
                counts[slot(self.newest)] = *count;
                counts[slot(bucket)] = 1;
                self.ring = Ring::Many(counts);
            }
            Ring::Many(counts) => counts[slot(self.newest)] += 1,
        }
        self.newest = self.newest.max(bucket);
    }

    fn take_back(&mut self, bucket: i64) {
        let count = match &mut self.ring {
            Ring::One(count) => Some(count),
            Ring::Many(counts) => {
                let last = bucket.min(self.newest);
                let mut held = (self.newest - BUCKETS + 1..=last).rev();
                held.find(|b| counts[slot(*b)] > 0).map(|b| &mut counts[slot(b)])
            }
        };
        if let Some(count) = count.filter(|count| **count > 0) {
            *count -= 1;
            self.total -= 1;
        }
    }

    fn oldest(&self) -> i64 {
        match &self.ring {
            Ring::One(_) => self.newest,
            Ring::Many(counts) => {
                let mut held = self.newest - BUCKETS + 1..=self.newest;
                held.find(|b| counts[slot(*b)] > 0).unwrap_or(self.newest)
            }
        }
    }
}

/// One window per key.
#[derive(Debug, Clone)]
pub struct Windows<K> {
    rule: Rule,
    counters: AddressMap<K, Counter>,
    max_keys: usize,
}

impl<K: Hash + Eq + Clone> Windows<K> {
    /// Empty windows; when more than `max_keys` keys are alive the longest idle ones are forgotten.
    pub fn new(rule: Rule, max_keys: usize) -> Self {
        Self { rule, counters: AddressMap::default(), max_keys: max_keys.max(1) }
    }

    /// The rule.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// Events of `key` in the window that ends now.
    pub fn count(&mut self, key: &K, now_ms: i64) -> u32 {
        let Some(counter) = self.counters.get_mut(key) else { return 0 };
        counter.slide(self.rule.bucket(now_ms));
        counter.total
    }

    /// Whether one more event would be admitted; counts nothing.
    pub fn check(&mut self, key: &K, now_ms: i64) -> Result<(), OverLimit> {
        let bucket = self.rule.bucket(now_ms);
        let Some(counter) = self.counters.get_mut(key) else { return Ok(()) };
        counter.slide(bucket);
        if counter.total < self.rule.limit {
            return Ok(());
        }
        let width = (self.rule.window_ms / BUCKETS).max(1);
        Err(OverLimit { retry_ms: ((counter.oldest() + BUCKETS) * width - now_ms).max(1) })
    }

    /// Counts one event whether or not it is within the limit; returns the events in the window.
    pub fn add(&mut self, key: &K, now_ms: i64) -> u32 {
        let bucket = self.rule.bucket(now_ms);
        if let Some(counter) = self.counters.get_mut(key) {
            counter.add(bucket);
            return counter.total;
        }
        if self.counters.len() >= self.max_keys {
            self.forget_idle(now_ms);
        }
        let mut counter = Counter::new(bucket);
        counter.add(bucket);
        self.counters.insert(key.clone(), counter);
        1
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
        let bucket = self.rule.bucket(now_ms);
        self.counters.retain(|_, counter| {
            counter.slide(bucket);
            counter.total > 0
        });
        if self.counters.len() < self.max_keys {
            return;
        }
        let mut newest: Vec<i64> = self.counters.values().map(|counter| counter.newest).collect();
        let tenth = newest.len() / 10;
        let (_, cut, _) = newest.select_nth_unstable(tenth);
        let cut = *cut;
        let mut spare = tenth + 1;
        self.counters.retain(|_, counter| {
            let idle = spare > 0 && counter.newest <= cut;
            spare -= usize::from(idle);
            !idle
        });
    }

    /// Most bytes these windows use: every key alive, with events in more than one bucket.
    pub fn bound_bytes(&self) -> usize {
        // A hash table is at most half empty, and keeps one byte per place.
        let entry = (size_of::<K>() + size_of::<Counter>() + 1) * 2;
        self.max_keys * (entry + size_of::<[u32; BUCKETS as usize]>())
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

    #[test]
    fn what_is_taken_back_leaves_its_own_bucket() {
        let mut windows = Windows::new(Rule::per_minute(2), 10);
        windows.add(&1, 1_000);
        windows.add(&1, 31_000);
        windows.take_back(&1, 1_000);
        assert!(windows.take(&1, 40_000).is_ok());
        assert_eq!(windows.check(&1, 61_500), Err(OverLimit { retry_ms: 29_500 }), "the first one is gone");
        windows.take_back(&2, 1_000);
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
