//! Who may begin a handshake: it costs the relay a key exchange and a signature before anybody is known.

use std::collections::HashMap;

use crate::limits::{Rule, Windows};

/// Open handshakes above which an address is proven first.
const CROWDED: usize = 256;
/// Open handshakes above which nobody is let in.
const MOST: usize = 1_024;
/// Open handshakes of one source above which it proves its address first.
const PER_SOURCE: u32 = 16;
/// Sources whose handshakes are counted.
const SOURCES: usize = 8_000;

/// A source of connections, as the limits see it.
pub(super) type Net = [u8; 8];

/// What a first packet gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A handshake.
    Begin,
    /// A token to come back with, which proves the address and costs the relay nothing to remember.
    Prove,
    /// A refusal.
    Refuse,
}

/// What became of first packets since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Handshakes {
    /// Handshakes that ended with a proven key.
    pub(crate) completed: u64,
    /// Handshakes that did not.
    pub(crate) failed: u64,
    /// First packets whose address had to be proven.
    pub(crate) validated: u64,
    /// First packets that were refused.
    pub(crate) refused: u64,
}

/// Counts handshakes. An address that is not proven may be forged: what is done in its name never counts against it.
pub(super) struct Gate {
    open: usize,
    /// By source, without those whose address is proven.
    unproven: HashMap<Net, u32>,
    /// Handshakes of proven addresses, where sources are limited.
    begun: Option<Windows<Net>>,
    counts: Handshakes,
}

/// A handshake that was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entered {
    net: Net,
    proven: bool,
}

impl Gate {
    /// `per_minute` is what one source may begin; `None` where sources are not limited.
    pub(super) fn new(per_minute: Option<u32>) -> Self {
        let begun = per_minute.map(|limit| Windows::new(Rule::per_minute(limit), SOURCES));
        Self { open: 0, unproven: HashMap::new(), begun, counts: Handshakes::default() }
    }

    pub(super) fn counts(&self) -> Handshakes {
        self.counts
    }

    /// Decides on a first packet. One that may begin is counted as [`Gate::entered`] says.
    pub(super) fn judge(&mut self, net: Net, proven: bool, now_ms: i64) -> Verdict {
        let over = self.begun.as_mut().is_some_and(|begun| begun.check(&net, now_ms).is_err());
        let limited = self.begun.is_some();
        let many = limited && self.unproven.get(&net).is_some_and(|open| *open >= PER_SOURCE);
        let verdict = match proven {
            _ if self.open >= MOST => Verdict::Refuse,
            true if over => Verdict::Refuse,
            false if over || many || self.open >= CROWDED => Verdict::Prove,
            _ => Verdict::Begin,
        };
        match verdict {
            Verdict::Begin => {}
            Verdict::Prove => self.counts.validated += 1,
            Verdict::Refuse => self.counts.refused += 1,
        }
        verdict
    }

    /// A handshake begins.
    pub(super) fn enter(&mut self, net: Net, proven: bool, now_ms: i64) -> Entered {
        self.open += 1;
        if proven {
            self.count(net, now_ms);
        } else {
            *self.unproven.entry(net).or_default() += 1;
        }
        Entered { net, proven }
    }

    /// A handshake ended; one that was completed has proven its address.
    pub(super) fn left(&mut self, entered: Entered, completed: bool, now_ms: i64) {
        let Entered { net, proven } = entered;
        self.open = self.open.saturating_sub(1);
        if completed {
            self.counts.completed += 1;
        } else {
            self.counts.failed += 1;
        }
        if proven {
            return;
        }
        if completed {
            self.count(net, now_ms);
        }
        if let Some(open) = self.unproven.get_mut(&net) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                self.unproven.remove(&net);
            }
        }
    }

    fn count(&mut self, net: Net, now_ms: i64) {
        if let Some(begun) = &mut self.begun {
            begun.add(&net, now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn begin(gate: &mut Gate, net: u8, proven: bool) -> Entered {
        assert_eq!(gate.judge([net; 8], proven, NOW), Verdict::Begin);
        gate.enter([net; 8], proven, NOW)
    }

    #[test]
    fn a_source_over_its_budget_proves_its_address_and_is_then_refused() {
        let mut gate = Gate::new(Some(2));
        for _ in 0..2 {
            let entered = begin(&mut gate, 1, false);
            gate.left(entered, true, NOW);
        }
        assert_eq!(gate.judge([1; 8], false, NOW), Verdict::Prove);
        assert_eq!(gate.judge([1; 8], true, NOW), Verdict::Refuse);
        assert_eq!(gate.judge([2; 8], false, NOW), Verdict::Begin, "another source");
        assert_eq!(gate.judge([1; 8], false, NOW + 61_000), Verdict::Begin, "a minute later");
        assert_eq!(gate.counts(), Handshakes { completed: 2, failed: 0, validated: 1, refused: 1 });
    }

    #[test]
    fn forged_packets_shut_nobody_out() {
        let mut gate = Gate::new(Some(2));
        let forged: Vec<Entered> = (0..PER_SOURCE).map(|_| begin(&mut gate, 1, false)).collect();
        assert_eq!(gate.judge([1; 8], false, NOW), Verdict::Prove);
        let real = begin(&mut gate, 1, true);
        gate.left(real, true, NOW);
        for entered in forged {
            gate.left(entered, false, NOW);
        }
        assert_eq!(gate.judge([1; 8], false, NOW), Verdict::Begin, "failures are not held against it");
        assert!(gate.unproven.is_empty());
    }

    #[test]
    fn in_a_crowd_everybody_proves_and_at_the_end_nobody_enters() {
        let mut gate = Gate::new(None);
        let crowd: Vec<Entered> = (0..CROWDED).map(|_| begin(&mut gate, 1, false)).collect();
        assert_eq!(gate.judge([2; 8], false, NOW), Verdict::Prove);
        for _ in CROWDED..MOST {
            begin(&mut gate, 2, true);
        }
        assert_eq!(gate.judge([3; 8], true, NOW), Verdict::Refuse);
        gate.left(crowd[0], false, NOW);
        assert_eq!(gate.judge([3; 8], true, NOW), Verdict::Begin);
    }
}
