//! What "sent" means: states of an outgoing message, evidence for them, and when to try again (`threadline-agent.md`
//! §12.3, `threadline-wire.md` §5.7; rows of v1).

use serde::{Deserialize, Serialize};

use crate::v1::client::DeliveryEvent;
use crate::v1::frames::ErrorCode;

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;

/// Life of an unconfirmed v1 message, ms (`delivery.ttlHoursV1`).
pub const DEFAULT_TTL_MS: i64 = 24 * HOUR_MS;
/// The owner hears of messages unconfirmed for this long, ms (`delivery.escalateAfterHours`).
pub const DEFAULT_ESCALATE_MS: i64 = 6 * HOUR_MS;
/// A row whose message a carrier confirmed is kept this much longer, ms.
pub const KEEP_AFTER_ACK_MS: i64 = 24 * HOUR_MS;
/// A v1 `rejected` has no code, so it may be a limit that passes: only this many make it final.
pub const MAX_REJECTIONS: u32 = 6;
/// After a restart open rows resume within this time, ms.
pub const RESUME_JITTER_MS: i64 = 5_000;

/// Where an outgoing message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryState {
    /// Committed here.
    Pending,
    /// Handed to a carrier that proves nothing.
    Sent,
    /// Someone else holds it.
    Accepted,
    /// The peer processed it.
    Delivered,
    /// The peer refused it.
    Rejected,
    /// Every path refused it.
    Failed,
    /// Its life is over.
    Expired,
}

impl DeliveryState {
    /// Whether nothing follows.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Delivered | Self::Rejected | Self::Failed | Self::Expired)
    }

    const fn rank(self) -> u8 {
        match self {
            Self::Pending => 0,
            Self::Sent => 1,
            Self::Accepted => 2,
            Self::Delivered | Self::Rejected | Self::Failed | Self::Expired => 3,
        }
    }
}

/// What is known about an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Written to a relay.
    Written,
    /// The relay holds it; `ours`: in durable storage.
    RelayQueued {
        /// Whether the relay is known to be one of ours.
        ours: bool,
    },
    /// The relay passed it on; `ours`: and the recipient confirmed it.
    RelayDelivered {
        /// Whether the relay is known to be one of ours.
        ours: bool,
    },
    /// The recipient's node holds it.
    PeerHolds,
    /// It waits in a file of this host. A peer that drops repeated ids is asked again until it has it, so that nothing of
    /// the thread overtakes the file.
    Dropped,
    /// The relay knows the id: an earlier attempt went through.
    RelayReplay,
    /// The relay refused it, without saying for how long.
    RelayRejected,
    /// The relay refused it with a code that no repetition changes.
    RelayRefusedForGood,
    /// The relay gave it up.
    RelayExpired,
    /// A message of that peer names it as the one it answers.
    Reply,
    /// Any later message of that peer in the thread. It may have crossed ours, so it proves nothing about a message
    /// that no carrier confirmed.
    LaterMessage,
}

impl Evidence {
    /// Reads the client's report. `ours`: the relay is known to be one of ours.
    pub fn of(event: &DeliveryEvent, ours: bool) -> Self {
        match event {
            DeliveryEvent::Written => Self::Written,
            DeliveryEvent::Queued { .. } => Self::RelayQueued { ours },
            DeliveryEvent::TakenByPeer => Self::PeerHolds,
            DeliveryEvent::Dropped => Self::Dropped,
            DeliveryEvent::Delivered => Self::RelayDelivered { ours },
            DeliveryEvent::Replay => Self::RelayReplay,
            DeliveryEvent::Expired => Self::RelayExpired,
            DeliveryEvent::Rejected { code: Some(code), .. } if is_for_good(code) => {
                Self::RelayRefusedForGood
            }
            DeliveryEvent::Rejected { .. } => Self::RelayRejected,
        }
    }
}

const fn is_for_good(code: &ErrorCode) -> bool {
    matches!(code, ErrorCode::EnvelopeTooLarge | ErrorCode::InvalidSignature | ErrorCode::InvalidFrame)
}

/// The tracked facts of one outgoing message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Where it is.
    pub state: DeliveryState,
    /// Attempts so far.
    pub attempts: u32,
    /// Of these, rejected.
    pub rejections: u32,
    /// Unix ms.
    pub created_at: i64,
    /// Unix ms.
    pub expires_at: i64,
    /// Unix ms; absent before the first attempt.
    pub last_attempt_at: Option<i64>,
    /// When a carrier last confirmed it, Unix ms.
    pub acked_at: Option<i64>,
    /// When the next attempt is due, Unix ms.
    pub next_retry_at: Option<i64>,
    /// Whether the peer is known to drop repeated ids durably. A repetition to any other may start a second session
    /// there, so what its relay confirmed is not sent again.
    pub peer_dedups: bool,
}

impl Delivery {
    /// A message that was just committed, due now.
    pub fn new(now_ms: i64, ttl_ms: i64, peer_dedups: bool) -> Self {
        Self {
            state: DeliveryState::Pending,
            attempts: 0,
            rejections: 0,
            created_at: now_ms,
            expires_at: now_ms.saturating_add(ttl_ms),
            last_attempt_at: None,
            acked_at: None,
            next_retry_at: Some(now_ms),
            peer_dedups,
        }
    }

    /// Whether to try now: due by schedule, or, right after a reconnect, whenever the next try is open at all.
    pub fn is_due(&self, now_ms: i64, reconnected: bool) -> bool {
        !self.is_expired(now_ms) && self.next_retry_at.is_some_and(|at| reconnected || at <= now_ms)
    }

    /// An attempt starts: the next one is planned before the bytes leave.
    pub fn attempted(&mut self, now_ms: i64) {
        self.attempts = self.attempts.saturating_add(1);
        self.last_attempt_at = Some(now_ms);
        self.next_retry_at = Some(now_ms.saturating_add(retry_delay_ms(self.attempts)));
    }

    /// Takes evidence in. The state never moves back. Returns whether the state changed.
    pub fn learn(&mut self, evidence: Evidence, now_ms: i64) -> bool {
        if self.state.is_final() {
            return false;
        }
        let before = self.state;
        match evidence {
            Evidence::Written => self.raise(DeliveryState::Sent),
            Evidence::RelayQueued { ours } | Evidence::RelayDelivered { ours } => {
                self.confirmed(now_ms, ours);
                self.raise(if ours { DeliveryState::Accepted } else { DeliveryState::Sent });
            }
            Evidence::PeerHolds => {
                self.confirmed(now_ms, true);
                self.raise(DeliveryState::Accepted);
            }
            Evidence::Dropped => {
                if !self.peer_dedups {
                    self.confirmed(now_ms, false);
                }
                self.raise(DeliveryState::Sent);
            }
            Evidence::RelayReplay => {
                self.confirmed(now_ms, false);
                self.raise(DeliveryState::Sent);
            }
            Evidence::Reply => self.end(DeliveryState::Delivered),
            Evidence::LaterMessage if self.acked_at.is_some() => self.end(DeliveryState::Delivered),
            Evidence::LaterMessage => {}
            Evidence::RelayRefusedForGood => self.end(DeliveryState::Failed),
            Evidence::RelayRejected => {
                self.rejections = self.rejections.saturating_add(1);
                // An attempt without an answer may have gone through: then it is not called failed.
                let all_refused = self.acked_at.is_none() && self.rejections >= self.attempts;
                let unproven = matches!(self.state, DeliveryState::Pending | DeliveryState::Sent);
                if self.rejections >= MAX_REJECTIONS && all_refused && unproven {
                    self.end(DeliveryState::Failed);
                }
            }
            Evidence::RelayExpired => {
                self.acked_at = None;
                self.next_retry_at = Some(now_ms);
            }
        }
        self.state != before
    }

    /// Ends a message whose life is over. Returns whether it ended now.
    pub fn expire(&mut self, now_ms: i64) -> bool {
        let open = !self.state.is_final() && self.is_expired(now_ms);
        if open {
            self.end(DeliveryState::Expired);
        }
        open
    }

    /// Whether the finished envelope may be forgotten.
    pub fn may_be_dropped(&self, now_ms: i64) -> bool {
        self.state.is_final()
            || self.acked_at.is_some_and(|at| at.saturating_add(KEEP_AFTER_ACK_MS) <= now_ms)
    }

    /// Whether later messages of the thread have to wait for this one.
    pub fn blocks_thread(&self, now_ms: i64) -> bool {
        !self.state.is_final() && self.acked_at.is_none() && !self.is_expired(now_ms)
    }

    /// Whether the owner should hear of it: unconfirmed by the peer for `after_ms`.
    pub fn needs_escalation(&self, now_ms: i64, after_ms: i64) -> bool {
        matches!(self.state, DeliveryState::Pending | DeliveryState::Sent)
            && self.created_at.saturating_add(after_ms) <= now_ms
    }

    fn is_expired(&self, now_ms: i64) -> bool {
        self.expires_at <= now_ms
    }

    fn confirmed(&mut self, now_ms: i64, custody: bool) {
        self.acked_at = Some(now_ms);
        if custody || !self.peer_dedups {
            self.next_retry_at = None;
        }
    }

    fn raise(&mut self, state: DeliveryState) {
        if state.rank() > self.state.rank() {
            self.state = state;
        }
    }

    fn end(&mut self, state: DeliveryState) {
        self.state = state;
        self.next_retry_at = None;
    }
}

/// Positions of the messages to write now: of each thread nothing behind a message that no carrier has confirmed, so
/// that a lost connection cannot change the order. `rows` come in order of sending, each with its thread.
pub fn due_in_order<'a, T: Ord>(
    rows: impl IntoIterator<Item = (T, &'a Delivery)>,
    now_ms: i64,
    reconnected: bool,
) -> Vec<usize> {
    let mut blocked = std::collections::BTreeSet::new();
    let mut due = Vec::new();
    for (position, (thread, row)) in rows.into_iter().enumerate() {
        if blocked.contains(&thread) {
            continue;
        }
        if row.is_due(now_ms, reconnected) {
            due.push(position);
        }
        if row.blocks_thread(now_ms) {
            blocked.insert(thread);
        }
    }
    due
}

/// Pause after the n-th attempt: 30 s, 2 min, 10 min, 1 h, then hourly.
pub const fn retry_delay_ms(attempts: u32) -> i64 {
    match attempts {
        0 | 1 => 30_000,
        2 => 2 * MINUTE_MS,
        3 => 10 * MINUTE_MS,
        _ => HOUR_MS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_schedule() {
        let mut row = Delivery::new(0, DEFAULT_TTL_MS, true);
        assert!(row.is_due(0, false));
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let now = row.next_retry_at.expect("open");
            row.attempted(now);
            row.learn(Evidence::Written, now);
            pauses.push((row.next_retry_at.expect("open") - now) / 1000);
        }
        assert_eq!(pauses, [30, 120, 600, 3600, 3600, 3600]);
        assert_eq!(row.state, DeliveryState::Sent);
        let next = row.next_retry_at.expect("open");
        assert!(!row.is_due(next - 1, false) && row.is_due(next, false) && row.is_due(next - 1, true));
        assert!(!row.is_due(DEFAULT_TTL_MS, true));
        assert!(!row.expire(DEFAULT_TTL_MS - 1) && row.expire(DEFAULT_TTL_MS) && !row.expire(DEFAULT_TTL_MS));
        assert_eq!((row.state, row.next_retry_at), (DeliveryState::Expired, None));
    }

    #[test]
    fn evidence_yields_the_states_of_the_table() {
        use DeliveryState::{Accepted, Delivered, Failed, Pending, Sent};
        let cases = [
            (Evidence::Written, true, Sent, true),
            (Evidence::RelayQueued { ours: false }, true, Sent, true),
            (Evidence::RelayQueued { ours: false }, false, Sent, false),
            (Evidence::RelayQueued { ours: true }, true, Accepted, false),
            (Evidence::RelayDelivered { ours: true }, true, Accepted, false),
            (Evidence::RelayDelivered { ours: false }, false, Sent, false),
            (Evidence::PeerHolds, true, Accepted, false),
            (Evidence::Dropped, true, Sent, true),
            (Evidence::Dropped, false, Sent, false),
            (Evidence::RelayReplay, false, Sent, false),
            (Evidence::RelayRejected, true, Pending, true),
            (Evidence::RelayRefusedForGood, true, Failed, false),
            (Evidence::Reply, true, Delivered, false),
            (Evidence::LaterMessage, true, Pending, true),
        ];
        for (evidence, dedups, state, retried) in cases {
            let mut row = Delivery::new(0, DEFAULT_TTL_MS, dedups);
            row.attempted(0);
            row.learn(evidence, 1);
            assert_eq!((row.state, row.next_retry_at.is_some()), (state, retried), "{evidence:?}");
        }
    }

    #[test]
    fn rejections_that_may_be_limits_are_tried_again() {
        let mut row = Delivery::new(0, DEFAULT_TTL_MS, true);
        for n in 1..=MAX_REJECTIONS {
            row.attempted(0);
            row.learn(Evidence::Written, 0);
            assert_eq!(row.learn(Evidence::RelayRejected, 0), n == MAX_REJECTIONS);
        }
        assert_eq!(row.state, DeliveryState::Failed);
        let mut sent = Delivery::new(0, DEFAULT_TTL_MS, true);
        sent.attempted(0);
        sent.learn(Evidence::Written, 0);
        for _ in 0..20 {
            sent.attempted(0);
            sent.learn(Evidence::Written, 0);
            assert!(
                !sent.learn(Evidence::RelayRejected, 0),
                "what may have gone through is not called failed"
            );
        }
    }

    #[test]
    fn a_thread_waits_for_its_unconfirmed_message() {
        let open = Delivery::new(0, DEFAULT_TTL_MS, true);
        let mut written = open.clone();
        written.attempted(0);
        written.learn(Evidence::Written, 0);
        let mut confirmed = written.clone();
        confirmed.learn(Evidence::RelayQueued { ours: true }, 0);
        let rows =
            [("a", &confirmed), ("a", &open), ("a", &open), ("b", &written), ("b", &open), ("c", &open)];
        assert_eq!(due_in_order(rows, 1, false), [1, 5]);
        assert_eq!(due_in_order(rows, 1, true), [1, 3, 5], "a reconnect repeats what was not confirmed");
        assert_eq!(due_in_order(rows, DEFAULT_TTL_MS, false), Vec::<usize>::new());
    }

    #[test]
    fn a_relay_that_gave_up_gets_it_again() {
        let mut row = Delivery::new(0, DEFAULT_TTL_MS, true);
        row.learn(Evidence::RelayQueued { ours: true }, 0);
        row.learn(Evidence::RelayExpired, 5);
        assert!(row.is_due(5, false) && !row.may_be_dropped(i64::MAX - 1));
    }

    #[test]
    fn rows_are_kept_a_day_after_the_confirmation_and_escalate_after_six_hours() {
        let mut row = Delivery::new(0, 10 * DEFAULT_TTL_MS, false);
        assert!(!row.needs_escalation(DEFAULT_ESCALATE_MS - 1, DEFAULT_ESCALATE_MS));
        assert!(row.needs_escalation(DEFAULT_ESCALATE_MS, DEFAULT_ESCALATE_MS));
        row.learn(Evidence::RelayDelivered { ours: false }, 100);
        assert!(!row.may_be_dropped(100 + KEEP_AFTER_ACK_MS - 1));
        assert!(row.may_be_dropped(100 + KEEP_AFTER_ACK_MS));
        row.learn(Evidence::RelayQueued { ours: true }, 200);
        assert!(!row.needs_escalation(i64::MAX, DEFAULT_ESCALATE_MS), "held by a relay of ours");
    }

    proptest! {
        #[test]
        fn states_never_move_back(steps in proptest::collection::vec((0u8..10, any::<bool>()), 0..40)) {
            let mut row = Delivery::new(0, DEFAULT_TTL_MS, true);
            for (now, (step, ours)) in steps.into_iter().enumerate() {
                let before = row.state;
                row.learn(match step {
                    0 => Evidence::Written,
                    1 => Evidence::RelayQueued { ours },
                    2 => Evidence::RelayDelivered { ours },
                    3 => Evidence::RelayReplay,
                    4 => Evidence::RelayRejected,
                    5 => Evidence::RelayRefusedForGood,
                    6 => Evidence::RelayExpired,
                    7 => Evidence::LaterMessage,
                    8 => Evidence::PeerHolds,
                    _ => Evidence::Reply,
                }, now as i64);
                prop_assert!(row.state.rank() >= before.rank());
                prop_assert!(!before.is_final() || row.state == before);
                prop_assert!(!row.state.is_final() || row.next_retry_at.is_none());
            }
        }
    }
}
