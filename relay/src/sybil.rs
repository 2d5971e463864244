//! What proof of work costs new identities (`relay.md` §11.3).
//!
//! Pure state; time is passed in. Puzzles and their check are part of the session
//! ([`threadline::v2::session::RelaySession`]): each belongs to one connection, one relay and one key.

use std::collections::HashMap;

use crate::limits::{Rule, Windows};

/// Leading zero bits in quiet times.
pub const BASE_BITS: u32 = 20;
const MOST_BITS: u32 = 24;
/// A solution that comes faster than this at the base price is no laptop.
const FAST_MS: i64 = 100;
const FAST_EXTRA_BITS: u32 = 2;
const FAST_FOR_MS: i64 = 600_000;
const SOURCES: usize = 10_000;
/// Fewest newcomers in ten minutes that count as usual.
const USUAL: f64 = 5.0;
const TENS_PER_DAY: f64 = 144.0;

/// The price of a new identity; it follows the number of newcomers.
pub struct Price {
    /// Sources that solve too fast, and until when they pay more.
    fast: HashMap<[u8; 8], i64>,
    ten_minutes: Windows<()>,
    day: Windows<()>,
}

impl Default for Price {
    fn default() -> Self {
        let window = |window_ms| Windows::new(Rule { window_ms, limit: u32::MAX }, 1);
        Self { fast: HashMap::new(), ten_minutes: window(600_000), day: window(86_400_000) }
    }
}

impl Price {
    /// Counts an identity that came for the first time.
    pub fn newcomer(&mut self, now_ms: i64) {
        self.ten_minutes.add(&(), now_ms);
        self.day.add(&(), now_ms);
    }

    /// Leading zero bits that a newcomer from `source` has to find now.
    pub fn bits(&mut self, source: &[u8; 8], now_ms: i64) -> u32 {
        let newcomers = f64::from(self.ten_minutes.count(&(), now_ms));
        let usual = f64::from(self.day.count(&(), now_ms)) / TENS_PER_DAY;
        let fast = self.fast.get(source).is_some_and(|until| *until > now_ms);
        difficulty(newcomers, usual.max(USUAL)) + if fast { FAST_EXTRA_BITS } else { 0 }
    }

    /// Notes how long a puzzle took.
    pub fn solved(&mut self, source: [u8; 8], bits: u32, took_ms: i64, now_ms: i64) {
        if bits < BASE_BITS || took_ms >= FAST_MS {
            return;
        }
        if self.fast.len() >= SOURCES {
            self.fast.retain(|_, until| *until > now_ms);
        }
        if self.fast.len() >= SOURCES {
            self.fast.clear();
        }
        self.fast.insert(source, now_ms + FAST_FOR_MS);
    }
}

/// Bits for a rate of newcomers against the usual one.
pub fn difficulty(rate: f64, usual: f64) -> u32 {
    let ratio = rate / usual;
    if ratio <= 3.0 || ratio.is_nan() {
        return BASE_BITS;
    }
    let more = (((ratio - 3.0) / 7.0).min(1.0) * f64::from(MOST_BITS - BASE_BITS)).floor();
    BASE_BITS + more as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_768_478_400_000;
    const SOURCE: [u8; 8] = [1; 8];

    #[test]
    fn the_price_follows_the_published_curve() {
        let curve = [
            (0.0, 20),
            (1.0, 20),
            (3.0, 20),
            (3.1, 20),
            (4.75, 21),
            (5.0, 21),
            (6.5, 22),
            (8.0, 22),
            (8.25, 23),
            (10.0, 24),
            (100.0, 24),
        ];
        for (rate, bits) in curve {
            assert_eq!(difficulty(rate, 1.0), bits, "{rate}");
        }
    }

    #[test]
    fn many_newcomers_make_it_dearer_for_ten_minutes() {
        let mut price = Price::default();
        for _ in 0..15 {
            price.newcomer(NOW);
        }
        assert_eq!(price.bits(&SOURCE, NOW), 20, "three times the usual five");
        for _ in 0..35 {
            price.newcomer(NOW);
        }
        assert_eq!(price.bits(&SOURCE, NOW), 24);
        assert_eq!(price.bits(&SOURCE, NOW + 599_999), 24);
        assert_eq!(price.bits(&SOURCE, NOW + 600_000), 20);
    }

    #[test]
    fn who_solves_too_fast_pays_more_for_ten_minutes() {
        let mut price = Price::default();
        price.solved(SOURCE, BASE_BITS, FAST_MS, NOW);
        price.solved(SOURCE, BASE_BITS - 1, 0, NOW);
        assert_eq!(price.bits(&SOURCE, NOW), BASE_BITS);
        price.solved(SOURCE, BASE_BITS, FAST_MS - 1, NOW);
        assert_eq!(price.bits(&SOURCE, NOW), BASE_BITS + FAST_EXTRA_BITS);
        assert_eq!(price.bits(&[8; 8], NOW), BASE_BITS, "others do not");
        assert_eq!(price.bits(&SOURCE, NOW + FAST_FOR_MS), BASE_BITS);
    }

    #[test]
    fn sources_are_bounded() {
        let mut price = Price::default();
        for n in 0..2 * SOURCES as u64 {
            price.solved(n.to_be_bytes(), BASE_BITS, 0, NOW);
        }
        assert!(price.fast.len() <= SOURCES);
    }

    proptest! {
        #[test]
        fn the_price_stays_in_its_range(rate in 0.0_f64..1e9, usual in 0.0_f64..1e6) {
            prop_assert!((BASE_BITS..=MOST_BITS).contains(&difficulty(rate, usual)));
        }
    }
}
