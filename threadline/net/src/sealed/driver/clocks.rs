//! Whether a relay and this machine agree on the time.

use threadline::v2::session::ClientSession;

use super::Driver;
use crate::sealed::SealedEvent;

/// Clocks that differ by less show the same time, ms.
const SAME_TIME_MS: u64 = 120_000;
/// From here on a relay that nobody contradicts keeps messages of ours from expiring, ms.
const DISPUTED_MS: u64 = 600_000;

impl Driver {
    /// Says so when the clock of a relay, which just welcomed us, is not ours.
    pub(super) async fn compare_clocks(&self, relay: usize) {
        let ahead = self.sessions.get(relay).and_then(ClientSession::clock_ahead_ms);
        if let Some(ahead_ms) = ahead.filter(|ahead| ahead.unsigned_abs() > SAME_TIME_MS) {
            let relay = self.relay_url(relay).to_owned();
            let _ = self.deps.events.send(SealedEvent::ClocksDiffer { relay, ahead_ms }).await;
        }
    }

    /// Whether a relay contradicts our clock and no other one confirms it: one of them lies, or ours is wrong
    /// (`threadline-wire.md` §4.11).
    pub(super) fn clock_is_disputed(&self) -> bool {
        let ahead = || self.sessions.iter().filter_map(ClientSession::clock_ahead_ms).map(i64::unsigned_abs);
        ahead().any(|ahead| ahead > DISPUTED_MS) && ahead().all(|ahead| ahead > SAME_TIME_MS)
    }
}
