//! Who may use the admin interface (`relay.md` §14.1).

use std::net::IpAddr;

use subtle::ConstantTimeEq as _;

use crate::limits::{Rule, Windows};

/// Wrong keys in a minute after which an address has to wait.
const FAILURES: u32 = 10;
const LOCKED_MS: i64 = 60_000;
/// Shortest key that is taken from a configuration.
pub const MIN_KEY: usize = 16;

/// Why a request is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No key, or a wrong one.
    Unauthorized,
    /// Too many wrong keys: not even the right one counts for this many milliseconds.
    Locked {
        /// Milliseconds to wait.
        retry_ms: i64,
    },
}

/// Compares keys in constant time and locks out addresses that guess.
#[derive(Debug)]
pub struct Gate {
    key: Box<[u8]>,
    failures: Windows<IpAddr>,
    locked: std::collections::HashMap<IpAddr, i64>,
}

impl Gate {
    /// A gate that opens for `key`.
    pub fn new(key: &str) -> Self {
        let failures = Windows::new(Rule::per_minute(FAILURES), 1_000);
        Self { key: key.as_bytes().into(), failures, locked: std::collections::HashMap::new() }
    }

    /// Judges a request; `given` is the bearer token.
    pub fn judge(&mut self, from: IpAddr, given: Option<&str>, now_ms: i64) -> Result<(), Refusal> {
        self.locked.retain(|_, until| *until > now_ms);
        if let Some(until) = self.locked.get(&from) {
            return Err(Refusal::Locked { retry_ms: until - now_ms });
        }
        if given.is_some_and(|given| given.as_bytes().ct_eq(&self.key).into()) {
            return Ok(());
        }
        if self.failures.add(&from, now_ms) >= FAILURES {
            self.locked.insert(from, now_ms + LOCKED_MS);
        }
        Err(Refusal::Unauthorized)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_wrong_keys_lock_an_address_for_a_minute() {
        let (mut gate, here) = (Gate::new("the right key"), IpAddr::from([127, 0, 0, 1]));
        let now = 1_768_478_400_000;
        for n in 0..9 {
            let given = (n % 2 == 0).then_some("wrong");
            assert_eq!(gate.judge(here, given, now + n), Err(Refusal::Unauthorized));
        }
        assert_eq!(gate.judge(here, Some("the right key"), now + 10), Ok(()), "nine are no lock");
        assert_eq!(gate.judge(here, Some("the right ke"), now + 11), Err(Refusal::Unauthorized));
        let locked = Err(Refusal::Locked { retry_ms: 59_999 });
        assert_eq!(gate.judge(here, Some("the right key"), now + 12), locked);
        assert_eq!(gate.judge([10, 0, 0, 1].into(), Some("the right key"), now + 12), Ok(()));
        assert_eq!(gate.judge(here, Some("the right key"), now + 60_011), Ok(()));
    }
}
