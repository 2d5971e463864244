//! Which relays of the cluster live, by the signs of life that this one hears (`TL_NODE`, `relay.md` §15.2).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::layout::{NODES, PRESENCE};
use crate::store::RelayName;

/// A relay that is not heard for this long while this one hears itself is dead.
const SILENT: Duration = NODES.life;
/// Whoever does not hear itself for this long hears nobody.
const DEAF: Duration = Duration::from_secs(8);

/// After this time nothing of a dead relay is left in the engine.
const REMEMBERED: Duration = PRESENCE.life.saturating_add(SILENT);

/// What was heard of whom, and when.
#[derive(Debug, Default)]
pub(super) struct Signs {
    others: HashMap<RelayName, Instant>,
    /// When this relay last heard itself.
    ours: Option<Instant>,
}

impl Signs {
    /// This relay heard itself. After a time in which it heard nobody, the others get as long as at first.
    pub(super) fn heard_ourselves(&mut self, now: Instant) {
        if self.ours.is_none_or(|at| now.duration_since(at) > DEAF) {
            self.others.values_mut().for_each(|at| *at = now);
        }
        self.ours = Some(now);
    }

    /// Another relay lives.
    pub(super) fn heard(&mut self, relay: RelayName, now: Instant) {
        self.others.insert(relay, now);
    }

    /// A session of another relay is known, and perhaps nothing of the relay.
    pub(super) fn expect(&mut self, relay: RelayName, now: Instant) {
        self.others.entry(relay).or_insert(now);
    }

    /// A relay said that it ends.
    pub(super) fn ended(&mut self, relay: RelayName, now: Instant) {
        let long_ago = now.checked_sub(SILENT);
        self.others.insert(relay, long_ago.unwrap_or(now));
    }

    /// Whether a relay is dead, as far as this one can know.
    pub(super) fn is_dead(&self, relay: RelayName) -> bool {
        let (Some(ours), Some(at)) = (self.ours, self.others.get(&relay)) else { return false };
        ours.saturating_duration_since(*at) >= SILENT
    }

    /// Forgets relays without a session whose claims have expired.
    pub(super) fn keep(&mut self, has_sessions: impl Fn(RelayName) -> bool, now: Instant) {
        self.others.retain(|relay, at| has_sessions(*relay) || now.duration_since(*at) < REMEMBERED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: RelayName = [1; 8];

    #[test]
    fn who_is_not_heard_is_dead_only_for_those_who_hear_themselves() {
        let (mut signs, start) = (Signs::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        signs.expect(A, start);
        for second in (0..14).step_by(2) {
            signs.heard_ourselves(at(second));
        }
        assert!(!signs.is_dead(A));
        signs.heard(A, at(14));
        for second in (14..29).step_by(2) {
            signs.heard_ourselves(at(second));
            assert!(!signs.is_dead(A), "after {second} s");
        }
        signs.heard_ourselves(at(30));
        assert!(signs.is_dead(A), "sixteen seconds");
        signs.heard(A, at(31));
        assert!(!signs.is_dead(A), "it was only slow");
        // The engine is silent for a minute: that says nothing of anybody.
        signs.heard_ourselves(at(91));
        assert!(!signs.is_dead(A));
        signs.heard_ourselves(at(98));
        signs.heard_ourselves(at(105));
        assert!(!signs.is_dead(A));
        signs.heard_ourselves(at(106));
        assert!(signs.is_dead(A));
        signs.keep(|_| false, at(106));
        assert!(signs.is_dead(A), "its claims are still there");
        signs.keep(|_| false, at(91) + REMEMBERED);
        assert!(!signs.is_dead(A), "forgotten");
    }

    #[test]
    fn who_says_goodbye_is_gone_at_once() {
        let (mut signs, start) = (Signs::default(), Instant::now() + SILENT);
        signs.heard_ourselves(start);
        signs.heard(A, start);
        signs.ended(A, start);
        assert!(signs.is_dead(A));
    }
}
