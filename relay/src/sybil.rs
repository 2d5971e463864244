//! Proof of work for new identities (`relay.md` §11.3): challenges, their price, and the check.
//!
//! Pure state; time and randomness are passed in. The puzzle binds a solution to one relay and one key, so that it can
//! neither be used twice nor sold on.

use std::collections::{HashMap, VecDeque};

use sha2::{Digest as _, Sha256};

use crate::limits::{Rule, Windows};

const DOMAIN: &[u8] = b"threadline/2 pow";
const EPOCH_MS: i64 = 600_000;
/// Milliseconds a challenge may be answered.
pub const CHALLENGE_MS: i64 = 120_000;
const BASE_BITS: u32 = 20;
const MOST_BITS: u32 = 24;
/// A solution that comes faster than this at the base price is no laptop.
const FAST_MS: i64 = 100;
const FAST_EXTRA_BITS: u32 = 2;
const FAST_FOR_MS: i64 = 600_000;
/// Challenges that may be open; the oldest gives way.
const OPEN: usize = 10_000;
const SOURCES: usize = 10_000;
/// Fewest newcomers in ten minutes that count as usual.
const USUAL: f64 = 5.0;
const TENS_PER_DAY: f64 = 144.0;

/// What a newcomer has to solve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Lowercase hex of the ten minutes it was made in.
    pub epoch: String,
    /// Leading zero bits that are asked for.
    pub bits: u32,
    /// Random, for one use.
    pub nonce: [u8; 16],
}

/// An answer to a challenge.
#[derive(Debug, Clone, Copy)]
pub struct Solution<'a> {
    /// Epoch of the challenge.
    pub epoch: &'a str,
    /// Random of the challenge.
    pub nonce: [u8; 16],
    /// The number that was found.
    pub found: [u8; 8],
}

/// Why a solution is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PowError {
    /// The challenge was never made here, was used, or is too old.
    #[error("there is no such challenge, or it was used or is too old")]
    Unknown,
    /// The epoch is not the current or the previous one.
    #[error("the epoch is over")]
    Epoch,
    /// Too few leading zero bits.
    #[error("insufficient work: {found} of {wanted} bits")]
    Work {
        /// Bits that the solution has.
        found: u32,
        /// Bits that were asked for.
        wanted: u32,
    },
}

struct Open {
    source: [u8; 8],
    bits: u32,
    made_ms: i64,
}

/// Makes and checks challenges; the price follows the number of newcomers.
pub struct ProofOfWork {
    open: HashMap<[u8; 16], Open>,
    order: VecDeque<([u8; 16], i64)>,
    /// Sources that solve too fast, and until when they pay more.
    fast: HashMap<[u8; 8], i64>,
    ten_minutes: Windows<()>,
    day: Windows<()>,
}

impl Default for ProofOfWork {
    fn default() -> Self {
        let window = |window_ms| Windows::new(Rule { window_ms, limit: u32::MAX }, 1);
        Self {
            open: HashMap::new(),
            order: VecDeque::new(),
            fast: HashMap::new(),
            ten_minutes: window(600_000),
            day: window(86_400_000),
        }
    }
}

impl ProofOfWork {
    /// Counts an identity that came for the first time.
    pub fn newcomer(&mut self, now_ms: i64) {
        self.ten_minutes.add(&(), now_ms);
        self.day.add(&(), now_ms);
    }

    /// Bits that a challenge for `source` asks for now.
    pub fn price(&mut self, source: &[u8; 8], now_ms: i64) -> u32 {
        let newcomers = f64::from(self.ten_minutes.count(&(), now_ms));
        let usual = f64::from(self.day.count(&(), now_ms)) / TENS_PER_DAY;
        let fast = self.fast.get(source).is_some_and(|until| *until > now_ms);
        difficulty(newcomers, usual.max(USUAL)) + if fast { FAST_EXTRA_BITS } else { 0 }
    }

    /// Makes a challenge; `nonce` is random.
    pub fn challenge(&mut self, source: [u8; 8], nonce: [u8; 16], now_ms: i64) -> Challenge {
        self.forget_old(now_ms);
        let bits = self.price(&source, now_ms);
        self.open.insert(nonce, Open { source, bits, made_ms: now_ms });
        self.order.push_back((nonce, now_ms));
        Challenge { epoch: epoch(now_ms), bits, nonce }
    }

    /// Checks a solution for the key that logs in. The challenge is used up whatever the outcome.
    pub fn check(
        &mut self,
        solution: &Solution<'_>,
        relay: &[u8; 32],
        client: &[u8; 32],
        now_ms: i64,
    ) -> Result<(), PowError> {
        let open = self.open.remove(&solution.nonce).ok_or(PowError::Unknown)?;
        if now_ms - open.made_ms >= CHALLENGE_MS {
            return Err(PowError::Unknown);
        }
        if solution.epoch != epoch(now_ms) && solution.epoch != epoch(now_ms - EPOCH_MS) {
            return Err(PowError::Epoch);
        }
        let found = work(solution, relay, client);
        if found < open.bits {
            return Err(PowError::Work { found, wanted: open.bits });
        }
        if open.bits >= BASE_BITS && now_ms - open.made_ms < FAST_MS {
            self.fast.insert(open.source, now_ms + FAST_FOR_MS);
        }
        Ok(())
    }

    fn forget_old(&mut self, now_ms: i64) {
        while let Some((nonce, made_ms)) = self.order.front().copied() {
            if now_ms - made_ms < CHALLENGE_MS && self.order.len() < OPEN {
                break;
            }
            self.order.pop_front();
            self.open.remove(&nonce);
        }
        if self.fast.len() >= SOURCES {
            self.fast.retain(|_, until| *until > now_ms);
        }
        if self.fast.len() >= SOURCES {
            self.fast.clear();
        }
    }
}

/// The epoch of a moment.
pub fn epoch(now_ms: i64) -> String {
    format!("{:x}", now_ms.div_euclid(EPOCH_MS).max(0))
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

/// Leading zero bits of a solution.
pub fn work(solution: &Solution<'_>, relay: &[u8; 32], client: &[u8; 32]) -> u32 {
    let mut hash = Sha256::new();
    for part in [DOMAIN, &[0], solution.epoch.as_bytes(), &solution.nonce, relay, client, &solution.found] {
        hash.update(part);
    }
    leading_zeros(&hash.finalize())
}

fn leading_zeros(bytes: &[u8]) -> u32 {
    let zero = bytes.iter().take_while(|byte| **byte == 0).count() as u32;
    zero * 8 + bytes.get(zero as usize).map_or(0, |byte| byte.leading_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_768_478_400_000;
    const SOURCE: [u8; 8] = [1; 8];
    const RELAY: [u8; 32] = [2; 32];
    const CLIENT: [u8; 32] = [3; 32];

    /// The first number that has enough work.
    fn solve(challenge: &Challenge, client: &[u8; 32], bits: u32) -> [u8; 8] {
        (0..u64::from(u32::MAX))
            .map(u64::to_be_bytes)
            .find(|found| {
                let solution = Solution { epoch: &challenge.epoch, nonce: challenge.nonce, found: *found };
                work(&solution, &RELAY, client) >= bits
            })
            .expect("there is one")
    }

    fn hex_of<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).expect("hex").try_into().expect("length")
    }

    #[test]
    fn the_published_solution_has_the_published_work() {
        let relay = hex_of("4fd099ccd47d7893dfe9ec24414ecb0d9b5420232aad30d91c465be33cbe65c4");
        let client = hex_of("03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8");
        let nonce = hex_of("eec88a08ee5e71908705513601a9f7c0");
        let solution = Solution { epoch: "2cf988", nonce, found: hex_of("0000000000004b11") };
        assert_eq!(epoch(NOW), "2cf988");
        // SHA-256 is 000bfb21…
        assert_eq!(work(&solution, &relay, &client), 12);
        assert_eq!(leading_zeros(&[0; 32]), 256);
    }

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
        let mut pow = ProofOfWork::default();
        for _ in 0..15 {
            pow.newcomer(NOW);
        }
        assert_eq!(pow.price(&SOURCE, NOW), 20, "three times the usual five");
        for _ in 0..35 {
            pow.newcomer(NOW);
        }
        assert_eq!(pow.price(&SOURCE, NOW), 24);
        assert_eq!(pow.price(&SOURCE, NOW + 599_999), 24);
        assert_eq!(pow.price(&SOURCE, NOW + 600_000), 20);
    }

    fn answer(pow: &mut ProofOfWork, age_ms: i64, client: &[u8; 32]) -> Result<(), PowError> {
        let challenge = pow.challenge(SOURCE, [9; 16], NOW);
        // Cheap to solve in a test: the price is lowered, the rest stays.
        if let Some(open) = pow.open.get_mut(&challenge.nonce) {
            open.bits = 8;
        }
        let found = solve(&challenge, &CLIENT, 8);
        let solution = Solution { epoch: &challenge.epoch, nonce: challenge.nonce, found };
        pow.check(&solution, &RELAY, client, NOW + age_ms)
    }

    #[test]
    fn a_challenge_lives_two_minutes_and_is_used_once() {
        let mut pow = ProofOfWork::default();
        assert_eq!(answer(&mut pow, CHALLENGE_MS - 1, &CLIENT), Ok(()));
        assert_eq!(answer(&mut pow, CHALLENGE_MS, &CLIENT), Err(PowError::Unknown));
        assert_eq!(answer(&mut pow, 0, &CLIENT), Ok(()));
        let again = Solution { epoch: &epoch(NOW), nonce: [9; 16], found: [0; 8] };
        assert_eq!(pow.check(&again, &RELAY, &CLIENT, NOW), Err(PowError::Unknown));
        assert!(matches!(answer(&mut pow, 0, &[4; 32]), Err(PowError::Work { .. })), "another's solution");
        let old = Solution { epoch: "2cf986", nonce: [9; 16], found: [0; 8] };
        pow.challenge(SOURCE, [9; 16], NOW);
        assert_eq!(pow.check(&old, &RELAY, &CLIENT, NOW), Err(PowError::Epoch));
    }

    #[test]
    fn who_solves_too_fast_pays_more_for_ten_minutes() {
        let mut pow = ProofOfWork::default();
        for (age_ms, bits) in [(FAST_MS, BASE_BITS), (FAST_MS - 1, BASE_BITS + FAST_EXTRA_BITS)] {
            let challenge = pow.challenge(SOURCE, [7; 16], NOW);
            let found = solve(&challenge, &CLIENT, challenge.bits);
            let solution = Solution { epoch: &challenge.epoch, nonce: challenge.nonce, found };
            assert_eq!(pow.check(&solution, &RELAY, &CLIENT, NOW + age_ms), Ok(()));
            assert_eq!(pow.price(&SOURCE, NOW + age_ms), bits);
        }
        assert_eq!(pow.price(&[8; 8], NOW + 99), BASE_BITS, "others do not");
        assert_eq!(pow.price(&SOURCE, NOW + 99 + FAST_FOR_MS), BASE_BITS);
    }

    #[test]
    fn open_challenges_are_bounded() {
        let mut pow = ProofOfWork::default();
        for n in 0..u128::from(2 * OPEN as u64) {
            pow.challenge(SOURCE, n.to_be_bytes(), NOW);
        }
        assert!(pow.open.len() <= OPEN && pow.order.len() <= OPEN);
        pow.challenge(SOURCE, [0xff; 16], NOW + CHALLENGE_MS);
        assert_eq!(pow.open.len(), 1);
    }

    proptest! {
        #[test]
        fn the_price_stays_in_its_range(rate in 0.0_f64..1e9, usual in 0.0_f64..1e6) {
            prop_assert!((BASE_BITS..=MOST_BITS).contains(&difficulty(rate, usual)));
        }
    }
}
