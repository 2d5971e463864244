//! The number two people compare to be sure of each other's keys (`threadline-wire.md` §4.8).

use std::fmt::Write as _;

use sha2::{Digest as _, Sha512};

use crate::identity::PublicIdentity;

const ROUNDS: usize = 5_200;

/// Sixty digits, the same on both sides.
pub fn safety_number(a: &PublicIdentity, b: &PublicIdentity) -> String {
    let (a, b) = (half(a), half(b));
    if a <= b { a + &b } else { b + &a }
}

fn half(key: &PublicIdentity) -> String {
    let canonical = super::sha256(&[b"instar-agent-id-v1", key.as_bytes()]);
    let mut hash = [&[0, 2][..], key.as_bytes(), &canonical].concat();
    for _ in 0..ROUNDS {
        hash = Sha512::new().chain_update(&hash).chain_update(key.as_bytes()).finalize().to_vec();
    }
    hash.chunks_exact(5).take(6).fold(String::with_capacity(30), |mut digits, group| {
        let value = group.iter().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
        let _ = write!(digits, "{:05}", value % 100_000);
        digits
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{identity, text, vectors_v2};

    #[test]
    fn the_recorded_number() {
        let member = &vectors_v2()["safetyNumber"];
        let (alice, bob) = (identity("alice"), identity("bob"));
        assert_eq!(half(alice.public()), text(&member["alice"]));
        assert_eq!(half(bob.public()), text(&member["bob"]));
        for (a, b) in [(&alice, &bob), (&bob, &alice)] {
            assert_eq!(safety_number(a.public(), b.public()), text(&member["number"]));
        }
    }
}
