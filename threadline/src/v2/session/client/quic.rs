//! When QUIC is tried: what became of it at one relay decides whether it goes first at the next connection, and how long a
//! session over WebSocket/2 waits before it is tried beside it. It is given up for nothing but what WebSocket/2 did better:
//! a relay that is away says nothing about UDP.

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::STABLE_MS;

/// QUIC failures in a row after which WebSocket/2 goes first.
pub const QUIC_PATIENCE: u32 = 3;
/// QUIC is tried beside a new WebSocket/2 session after this at most, ms; half of that at least, so that the nodes of a
/// relay do not all come at once.
pub const QUIC_PROBE_FIRST_MS: u64 = 20_000;
/// Every failure in a row doubles that pause, up to this, ms.
pub const QUIC_PROBE_MS: u64 = 15 * 60_000;
/// A session counts as quiet when nothing was said in it for this long, ms.
pub const QUIET_MS: u64 = 2_000;
/// A session that is never quiet is left after this all the same, ms.
pub const NEVER_QUIET_MS: u64 = 60_000;

/// What became of QUIC at one relay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct QuicRecord {
    /// Attempts in a row that failed while WebSocket/2 came through.
    missed: u32,
    /// Sessions in a row that broke off early: UDP gets through for a moment only.
    broken: u32,
}

impl QuicRecord {
    /// Whether it goes first at the next connection.
    pub(super) const fn goes_first(self) -> bool {
        self.failures() < QUIC_PATIENCE
    }

    /// An attempt failed, or was overtaken, while WebSocket/2 came through.
    pub(super) fn missed(&mut self) {
        self.missed = self.missed.saturating_add(1);
    }

    /// A session was opened over it.
    pub(super) fn opened(&mut self) {
        self.missed = 0;
    }

    /// A session over it ended after this time, by the relay's word or without one.
    pub(super) fn ended(&mut self, lasted_ms: u64, by_relay: bool) {
        if lasted_ms >= STABLE_MS {
            self.broken = 0;
        } else if !by_relay {
            self.broken = self.broken.saturating_add(1);
        }
    }

    /// Pause before it is tried beside a session over WebSocket/2, ms.
    pub(super) fn pause(self, rng: &mut StdRng) -> u64 {
        let doubled = self.failures().saturating_sub(1).min(16);
        let most = (QUIC_PROBE_FIRST_MS << doubled).min(QUIC_PROBE_MS);
        rng.random_range(most / 2..=most)
    }

    const fn failures(self) -> u32 {
        self.missed.saturating_add(self.broken)
    }
}

/// A try of QUIC beside a session over WebSocket/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    /// When it is due, Unix ms.
    pub(super) due: u64,
    /// When it is made whether the session is quiet or not, Unix ms.
    latest: u64,
}

impl Probe {
    pub(super) fn at(due: u64) -> Self {
        Self { due, latest: due.saturating_add(NEVER_QUIET_MS) }
    }

    /// The same for later, when the session may be quiet; `None` when it cannot wait any more.
    pub(super) fn put_off(self, now_ms: u64) -> Option<Self> {
        let due = now_ms.saturating_add(QUIET_MS).min(self.latest);
        (now_ms < self.latest).then_some(Self { due, ..self })
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn the_pause_doubles_with_every_failure_up_to_a_quarter_of_an_hour() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut record = QuicRecord::default();
        let mut tried = 0_u64;
        let mut tries = 0;
        while tried < 24 * 3_600_000 {
            let pause = record.pause(&mut rng);
            let most =
                (QUIC_PROBE_FIRST_MS << record.failures().saturating_sub(1).min(16)).min(QUIC_PROBE_MS);
            assert!((most / 2..=most).contains(&pause), "{record:?}: {pause}");
            record.missed();
            tried += pause;
            tries += 1;
        }
        assert!((96..210).contains(&tries), "{tries} tries in a day where UDP is blocked");
        record.opened();
        assert!(record.pause(&mut rng) <= QUIC_PROBE_FIRST_MS);
    }

    #[test]
    fn sessions_that_break_off_early_count_and_one_that_lasts_forgives_them() {
        let mut record = QuicRecord::default();
        for _ in 0..QUIC_PATIENCE {
            assert!(record.goes_first());
            record.opened();
            record.ended(STABLE_MS - 1, false);
        }
        assert!(!record.goes_first(), "the handshake gets through, what follows does not");
        record.ended(1_000, true);
        record.opened();
        assert!(!record.goes_first(), "an open session proves nothing yet");
        record.ended(STABLE_MS, false);
        assert!(record.goes_first());
    }

    #[test]
    fn a_try_waits_for_quiet_but_not_for_ever() {
        let mut probe = Probe::at(1_000);
        let mut times = 0;
        let mut now = 1_000;
        while let Some(later) = probe.put_off(now) {
            assert!(later.due > now && later.due <= now + QUIET_MS);
            (probe, now) = (later, later.due);
            times += 1;
        }
        assert_eq!((now, times), (1_000 + NEVER_QUIET_MS, NEVER_QUIET_MS / QUIET_MS));
    }
}
