//! Sliding windows (`threadline-agent.md` §4.1 and §9.1). Checking consumes nothing; an accepted message is recorded in
//! every window it was checked against, a refused one in none.

use serde::{Deserialize, Serialize};

use crate::{Fingerprint, ThreadId, TrustLevel};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 86_400_000;

/// Messages of one peer that may wait for a free window.
pub const QUEUE_PER_PEER: u32 = 10;
/// How long they may wait, ms.
pub const QUEUE_LIFE_MS: i64 = 10 * MINUTE_MS;

/// Values of one level; 0 means none allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LevelLimits {
    /// Pings and health questions per hour.
    pub probes_per_hour: u32,
    /// Messages per hour.
    pub messages_per_hour: u32,
    /// Messages per day.
    pub messages_per_day: u32,
    /// Messages per thread and hour.
    pub per_thread_per_hour: u32,
    /// Messages per minute.
    pub burst_per_minute: u32,
    /// Our own messages to the peer per hour.
    pub outbound_per_hour: u32,
    /// Sessions started for the peer per hour.
    pub spawns_per_hour: u32,
}

/// All values of `threadline.limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Strangers.
    pub untrusted: LevelLimits,
    /// See [`TrustLevel::Verified`].
    pub verified: LevelLimits,
    /// See [`TrustLevel::Trusted`].
    pub trusted: LevelLimits,
    /// See [`TrustLevel::Autonomous`].
    pub autonomous: LevelLimits,
    /// Messages of all peers per hour.
    pub global_per_hour: u32,
    /// Messages to all agents of this host per hour.
    pub machine_per_hour: u32,
    /// Control-plane messages of one peer per minute.
    pub control_per_minute: u32,
    /// Plain acknowledgements to one peer per minute.
    pub acks_per_minute: u32,
}

impl Default for Limits {
    fn default() -> Self {
        let level = |probes, hour, day, thread, burst, outbound, spawns| LevelLimits {
            probes_per_hour: probes,
            messages_per_hour: hour,
            messages_per_day: day,
            per_thread_per_hour: thread,
            burst_per_minute: burst,
            outbound_per_hour: outbound,
            spawns_per_hour: spawns,
        };
        Self {
            untrusted: level(5, 0, 0, 0, 5, 30, 0),
            verified: level(20, 10, 50, 10, 5, 30, 5),
            trusted: level(100, 50, 200, 30, 5, 30, 15),
            autonomous: level(500, 500, 10_000, 200, 30, 500, 60),
            global_per_hour: 200,
            machine_per_hour: 500,
            control_per_minute: 60,
            acks_per_minute: 5,
        }
    }
}

/// One window to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Name of the limit, the first part of its key in the store.
    pub limit: &'static str,
    /// Whom it counts; empty when it counts everyone.
    pub key: String,
    /// Length, ms.
    pub span_ms: i64,
    /// Events allowed inside it.
    pub max: u32,
}

/// What the store knows about one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Events later than `now - span`.
    pub used: u32,
    /// Time of the oldest of them, Unix ms.
    pub oldest: Option<i64>,
}

/// A full window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the limit {limit} is reached; the next place is free in {retry_after_s} s")]
pub struct Limited {
    /// Name of the limit.
    pub limit: &'static str,
    /// Seconds until the oldest event leaves the window.
    pub retry_after_s: u64,
}

impl Limits {
    /// The values of a level.
    pub const fn level(&self, level: TrustLevel) -> &LevelLimits {
        match level {
            TrustLevel::Untrusted => &self.untrusted,
            TrustLevel::Verified => &self.verified,
            TrustLevel::Trusted => &self.trusted,
            TrustLevel::Autonomous => &self.autonomous,
        }
    }

    /// The windows of an inbound message.
    pub fn inbound(&self, peer: &Fingerprint, thread: &ThreadId, level: TrustLevel) -> Vec<Window> {
        let limits = self.level(level);
        let key = peer.to_string();
        vec![
            window("burst", &key, MINUTE_MS, limits.burst_per_minute),
            window("inbound-hour", &key, HOUR_MS, limits.messages_per_hour),
            window("inbound-day", &key, DAY_MS, limits.messages_per_day),
            window("thread-hour", &format!("{key}:{thread}"), HOUR_MS, limits.per_thread_per_hour),
            window("global-hour", "", HOUR_MS, self.global_per_hour),
        ]
    }

    /// The window of a probe.
    pub fn probe(&self, peer: &Fingerprint, level: TrustLevel) -> Window {
        window("probe-hour", &peer.to_string(), HOUR_MS, self.level(level).probes_per_hour)
    }

    /// The window of a control-plane message.
    pub fn control(&self, peer: &Fingerprint) -> Window {
        window("control-minute", &peer.to_string(), MINUTE_MS, self.control_per_minute)
    }

    /// The windows of a plain acknowledgement to a v1 peer: one per thread in 10 minutes, 5 per peer and minute.
    pub fn acknowledgement(&self, peer: &Fingerprint, thread: &ThreadId) -> Vec<Window> {
        let key = peer.to_string();
        vec![
            window("ack-thread", &format!("{key}:{thread}"), 10 * MINUTE_MS, 1),
            window("ack-minute", &key, MINUTE_MS, self.acks_per_minute),
        ]
    }

    /// The window of introductions to a peer: one a day (`threadline-wire.md` §4.9).
    pub fn introduction(&self, peer: &Fingerprint) -> Window {
        window("introduction-day", &peer.to_string(), DAY_MS, 1)
    }

    /// The windows of a redemption: 5 of one sender and 50 of all in an hour.
    pub fn redemption(&self, peer: &Fingerprint) -> Vec<Window> {
        vec![window("redeem-hour", &peer.to_string(), HOUR_MS, 5), window("redeem-all-hour", "", HOUR_MS, 50)]
    }

    /// The window of a message of ours.
    pub fn outbound(&self, peer: &Fingerprint, level: TrustLevel) -> Window {
        window("outbound-hour", &peer.to_string(), HOUR_MS, self.level(level).outbound_per_hour)
    }

    /// The window of a session started for a peer.
    pub fn spawn(&self, peer: &Fingerprint, level: TrustLevel) -> Window {
        window("spawn-hour", &peer.to_string(), HOUR_MS, self.level(level).spawns_per_hour)
    }

    /// The window of all agents of this host, kept outside the node.
    pub fn machine(&self) -> Window {
        window("machine-hour", "", HOUR_MS, self.machine_per_hour)
    }
}

fn window(limit: &'static str, key: &str, span_ms: i64, max: u32) -> Window {
    Window { limit, key: key.to_owned(), span_ms, max }
}

/// Whether every window has a free place. The longest wait is reported, because only then all are free.
pub fn check<'a>(windows: impl IntoIterator<Item = (&'a Window, Usage)>, now_ms: i64) -> Result<(), Limited> {
    let full = windows.into_iter().filter(|(window, usage)| usage.used >= window.max);
    let waits = full.map(|(window, usage)| Limited {
        limit: window.limit,
        retry_after_s: retry_after_s(window, usage, now_ms),
    });
    waits.max_by_key(|limited| limited.retry_after_s).map_or(Ok(()), Err)
}

fn retry_after_s(window: &Window, usage: Usage, now_ms: i64) -> u64 {
    let leaves = usage.oldest.unwrap_or(now_ms).saturating_add(window.span_ms);
    let wait_ms = leaves.saturating_sub(now_ms).clamp(1, window.span_ms);
    u64::try_from(wait_ms).unwrap_or(0).div_ceil(1000)
}

/// What to do with a message above a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// Keep it until this time and try again, Unix ms.
    Queue {
        /// Earliest next try.
        not_before: i64,
    },
    /// Refuse it.
    Reject,
}

/// Decides about a limited message that was received at `received_at`, when `queued` others of its peer wait.
pub fn overflow(
    level: TrustLevel,
    limited: &Limited,
    queued: u32,
    received_at: i64,
    now_ms: i64,
) -> Overflow {
    let wait_ms = i64::try_from(limited.retry_after_s).unwrap_or(i64::MAX / 2000).saturating_mul(1000);
    let not_before = now_ms.saturating_add(wait_ms);
    let in_time = not_before <= received_at.saturating_add(QUEUE_LIFE_MS);
    if level >= TrustLevel::Verified && queued < QUEUE_PER_PEER && in_time {
        return Overflow::Queue { not_before };
    }
    Overflow::Reject
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Fingerprint {
        Fingerprint::from_bytes([1; 16])
    }

    #[test]
    fn the_table_of_the_levels() {
        let limits = Limits::default();
        let thread = "t".parse().expect("id");
        let maxima =
            |level| limits.inbound(&peer(), &thread, level).iter().map(|w| w.max).collect::<Vec<_>>();
        assert_eq!(maxima(TrustLevel::Untrusted), [5, 0, 0, 0, 200]);
        assert_eq!(maxima(TrustLevel::Verified), [5, 10, 50, 10, 200]);
        assert_eq!(maxima(TrustLevel::Trusted), [5, 50, 200, 30, 200]);
        assert_eq!(maxima(TrustLevel::Autonomous), [30, 500, 10_000, 200, 200]);
        assert_eq!(limits.probe(&peer(), TrustLevel::Trusted).max, 100);
        assert_eq!(limits.outbound(&peer(), TrustLevel::Verified).max, 30);
        assert_eq!(limits.spawn(&peer(), TrustLevel::Untrusted).max, 0);
    }

    #[test]
    fn a_window_is_full_at_its_maximum_and_says_when_it_opens() {
        let window = window("w", "", 60_000, 2);
        let usage = |used| Usage { used, oldest: Some(10_000) };
        assert_eq!(check([(&window, usage(1))], 30_000), Ok(()));
        assert_eq!(check([(&window, usage(2))], 30_000), Err(Limited { limit: "w", retry_after_s: 40 }));
        assert_eq!(check([(&window, usage(2))], 69_999), Err(Limited { limit: "w", retry_after_s: 1 }));
        let none = super::window("none", "", 60_000, 0);
        let refused = check([(&none, Usage::default())], 0).expect_err("none allowed");
        assert_eq!(refused.retry_after_s, 60);
        let both = check([(&window, usage(2)), (&none, Usage::default())], 30_000).expect_err("both full");
        assert_eq!(both.limit, "none", "the longer wait decides");
        let backwards = check([(&window, Usage { used: 2, oldest: Some(500_000) })], 0).expect_err("full");
        assert_eq!(backwards.retry_after_s, 60, "a clock that ran back never waits longer than the window");
    }

    #[test]
    fn only_acquaintances_wait_and_not_for_long() {
        let limited = |retry_after_s| Limited { limit: "w", retry_after_s };
        let queue = Overflow::Queue { not_before: 60_000 };
        assert_eq!(overflow(TrustLevel::Verified, &limited(60), 9, 0, 0), queue);
        assert_eq!(overflow(TrustLevel::Verified, &limited(60), 10, 0, 0), Overflow::Reject);
        assert_eq!(overflow(TrustLevel::Untrusted, &limited(60), 0, 0, 0), Overflow::Reject);
        assert_eq!(
            overflow(TrustLevel::Verified, &limited(600), 0, 0, 0),
            Overflow::Queue { not_before: 600_000 }
        );
        assert_eq!(overflow(TrustLevel::Verified, &limited(601), 0, 0, 0), Overflow::Reject);
        assert_eq!(overflow(TrustLevel::Verified, &limited(60), 0, 0, 540_001), Overflow::Reject);
    }

    #[test]
    fn negative_and_unknown_values_are_errors() {
        assert!(serde_json::from_str::<Limits>(r#"{"globalPerHour":-1}"#).is_err());
        assert!(serde_json::from_str::<Limits>(r#"{"globalPerDay":1}"#).is_err());
        let some = serde_json::from_str::<Limits>(r#"{"globalPerHour":7}"#).expect("reads");
        assert_eq!((some.global_per_hour, some.machine_per_hour), (7, 500));
    }
}
