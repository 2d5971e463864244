//! Conversations: states, where a message belongs, what a session gets to read (`threadline-agent.md` §10 and §11).

use serde::{Deserialize, Serialize};

use crate::v1::envelope::Authentication;
use crate::{ThreadId, TrustLevel, text};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

/// A message without thread id joins a thread used within this time, ms.
pub const AFFINITY_LAST_MS: i64 = 10 * MINUTE_MS;
/// And first used within this time, ms.
pub const AFFINITY_FIRST_MS: i64 = 2 * HOUR_MS;
/// Bytes of history in a prompt.
pub const HISTORY_BYTES: usize = 6 * 1024;
/// Bytes of one message in the history.
pub const HISTORY_MESSAGE_BYTES: usize = 1_536;
/// Bytes of the newest message that stand inline; the rest is read through `threadline_history`.
pub const INLINE_BYTES: usize = 3_584;
/// Failed spawns for the latest message that end a thread.
pub const MAX_SPAWN_FAILURES: u32 = 3;

/// Where a conversation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThreadState {
    /// First message stored.
    Open,
    /// A session works on it.
    Active,
    /// We sent and expect an answer.
    AwaitingReply,
    /// An hour without message.
    Idle,
    /// Waits for the owner.
    Held,
    /// Closed by either side.
    Resolved,
    /// Its latest message could not be given to a session.
    Failed,
    /// Over.
    Archived,
}

/// What happens to a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadEvent {
    /// A message was handed to a session.
    HandedToSession,
    /// We sent and expect an answer.
    AskedPeer,
    /// We sent and expect none.
    AnsweredPeer,
    /// A message is held for the owner.
    Held,
    /// The owner let the held message pass.
    Released,
    /// `thread-resolved` from either side, or the owner.
    Resolved,
    /// The third spawn for the latest message failed.
    SpawnFailed,
    /// Time passed; carries the time since the last activity, ms.
    Quiet(i64),
}

/// The state after an event. Events that mean nothing in a state leave it.
pub const fn next(state: ThreadState, event: ThreadEvent) -> ThreadState {
    use ThreadState::{Active, Archived, AwaitingReply, Failed, Held, Idle, Open, Resolved};
    match (state, event) {
        (Archived, _) => Archived,
        (_, ThreadEvent::Resolved) => Resolved,
        (_, ThreadEvent::HandedToSession) | (Active | AwaitingReply | Open, ThreadEvent::AnsweredPeer) => {
            Active
        }
        (_, ThreadEvent::SpawnFailed) => Failed,
        (_, ThreadEvent::AskedPeer) => AwaitingReply,
        (Open | Active | AwaitingReply | Idle | Resolved | Failed, ThreadEvent::Held) => Held,
        (Held, ThreadEvent::Released) => Open,
        (Active | AwaitingReply, ThreadEvent::Quiet(ms)) if ms >= HOUR_MS && ms < 7 * DAY_MS => Idle,
        (Active | AwaitingReply | Idle, ThreadEvent::Quiet(ms)) if ms >= 7 * DAY_MS => Resolved,
        (Resolved, ThreadEvent::Quiet(ms)) if ms >= 14 * DAY_MS => Archived,
        (Failed, ThreadEvent::Quiet(ms)) if ms >= DAY_MS => Archived,
        (state, _) => state,
    }
}

/// How a thread was used lately, in both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentThread {
    /// The thread.
    pub thread: ThreadId,
    /// First message, Unix ms.
    pub first_used: i64,
    /// Latest message, Unix ms.
    pub last_used: i64,
}

/// Where a message belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// The thread that the message names, or the recent one that it joins.
    Thread(ThreadId),
    /// The persisted `auto-<uuid>` thread of this sender (a new one if there is none).
    SenderDefault,
    /// A thread of its own.
    New,
}

/// Places an inbound message. Only an end-to-end authenticated one joins a recent thread.
pub fn place_inbound(
    named: Option<&ThreadId>,
    authentication: Authentication,
    recent: &[RecentThread],
    now_ms: i64,
) -> Placement {
    match named {
        Some(thread) => Placement::Thread(thread.clone()),
        None if authentication != Authentication::Transport => {
            affine(recent, now_ms).map_or(Placement::SenderDefault, Placement::Thread)
        }
        None => Placement::SenderDefault,
    }
}

/// Places a message of ours to a peer.
pub fn place_outbound(
    named: Option<&ThreadId>,
    new_thread: bool,
    recent: &[RecentThread],
    now_ms: i64,
) -> Placement {
    match named {
        Some(thread) => Placement::Thread(thread.clone()),
        None if new_thread => Placement::New,
        None => affine(recent, now_ms).map_or(Placement::New, Placement::Thread),
    }
}

fn affine(recent: &[RecentThread], now_ms: i64) -> Option<ThreadId> {
    recent
        .iter()
        .filter(|r| now_ms - r.last_used <= AFFINITY_LAST_MS && now_ms - r.first_used <= AFFINITY_FIRST_MS)
        .max_by_key(|r| r.last_used)
        .map(|r| r.thread.clone())
}

/// Who takes a stored, gated message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// A send of ours waits for it.
    Waiter,
    /// The live session of the thread.
    Inject,
    /// Its parked session.
    Resume,
    /// A new session.
    Spawn,
    /// An earlier message of the thread is not done.
    Wait,
}

/// What is true of a thread when its next message is to be routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteFacts {
    /// A call waits on this thread and this peer.
    pub waiter: bool,
    /// The message is an automatic acknowledgement or only acknowledgement words.
    pub ack_like: bool,
    /// A session of this thread lives.
    pub live_session: bool,
    /// It is not in a turn.
    pub idle: bool,
    /// A parked session can be resumed.
    pub parked_session: bool,
    /// A session of this thread is starting.
    pub starting: bool,
}

/// Decides who takes the message (`threadline-agent.md` §11).
pub const fn route(facts: RouteFacts) -> Route {
    if facts.waiter && !facts.ack_like {
        return Route::Waiter;
    }
    if facts.starting || (facts.live_session && !facts.idle) {
        return Route::Wait;
    }
    if facts.live_session {
        return Route::Inject;
    }
    if facts.parked_session { Route::Resume } else { Route::Spawn }
}

/// Messages of history that a session gets at a level.
pub const fn history_count(level: TrustLevel) -> usize {
    match level {
        TrustLevel::Untrusted => 0,
        TrustLevel::Verified => 5,
        TrustLevel::Trusted => 10,
        TrustLevel::Autonomous => 20,
    }
}

/// Chooses the newest bodies that fit count and bytes, long ones cut. `newest_first` in; oldest first out.
pub fn history_window<'a>(newest_first: impl IntoIterator<Item = &'a str>, level: TrustLevel) -> Vec<String> {
    let mut left = HISTORY_BYTES;
    let mut chosen = Vec::new();
    for body in newest_first.into_iter().take(history_count(level)) {
        let body = text::cut(body, HISTORY_MESSAGE_BYTES, "[cut]");
        let Some(rest) = left.checked_sub(body.len()) else { break };
        left = rest;
        chosen.push(body);
    }
    chosen.reverse();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_table_of_transitions() {
        use ThreadEvent as E;
        use ThreadState as S;
        let cases = [
            (S::Open, E::HandedToSession, S::Active),
            (S::Idle, E::HandedToSession, S::Active),
            (S::AwaitingReply, E::HandedToSession, S::Active),
            (S::Resolved, E::HandedToSession, S::Active),
            (S::Active, E::AskedPeer, S::AwaitingReply),
            (S::AwaitingReply, E::AnsweredPeer, S::Active),
            (S::Active, E::Quiet(HOUR_MS - 1), S::Active),
            (S::Active, E::Quiet(HOUR_MS), S::Idle),
            (S::AwaitingReply, E::Quiet(HOUR_MS), S::Idle),
            (S::Open, E::Quiet(HOUR_MS), S::Open),
            (S::Idle, E::Quiet(7 * DAY_MS - 1), S::Idle),
            (S::Idle, E::Quiet(7 * DAY_MS), S::Resolved),
            (S::Active, E::Quiet(7 * DAY_MS), S::Resolved),
            (S::Resolved, E::Quiet(14 * DAY_MS - 1), S::Resolved),
            (S::Resolved, E::Quiet(14 * DAY_MS), S::Archived),
            (S::Held, E::Quiet(99 * DAY_MS), S::Held),
            (S::Held, E::Released, S::Open),
            (S::Held, E::Resolved, S::Resolved),
            (S::Active, E::SpawnFailed, S::Failed),
            (S::Failed, E::Quiet(DAY_MS), S::Archived),
            (S::Archived, E::HandedToSession, S::Archived),
        ];
        for (from, event, to) in cases {
            assert_eq!(next(from, event), to, "{from:?} {event:?}");
        }
    }

    fn recent(thread: &str, first_used: i64, last_used: i64) -> RecentThread {
        RecentThread { thread: thread.parse().expect("id"), first_used, last_used }
    }

    #[test]
    fn only_a_proven_sender_joins_a_recent_thread() {
        let now = 10 * HOUR_MS;
        let joined = |r: &RecentThread| Placement::Thread(r.thread.clone());
        let fresh = recent("fresh", now - AFFINITY_FIRST_MS, now - AFFINITY_LAST_MS);
        let stale = recent("stale", now - AFFINITY_FIRST_MS, now - AFFINITY_LAST_MS - 1);
        let old = recent("old", now - AFFINITY_FIRST_MS - 1, now);
        let newer = recent("newer", now - 5, now - 5);
        let e2e = |threads: &[RecentThread]| place_inbound(None, Authentication::E2e, threads, now);
        assert_eq!(e2e(&[fresh.clone(), stale.clone(), old.clone()]), joined(&fresh));
        assert_eq!(e2e(&[fresh.clone(), newer.clone()]), joined(&newer));
        assert_eq!(e2e(&[stale, old]), Placement::SenderDefault);
        let open = std::slice::from_ref(&fresh);
        assert_eq!(place_inbound(None, Authentication::Transport, open, now), Placement::SenderDefault);
        let named: ThreadId = "named".parse().expect("id");
        assert_eq!(
            place_inbound(Some(&named), Authentication::Transport, &[], now),
            Placement::Thread(named.clone())
        );
        assert_eq!(place_outbound(None, false, open, now), joined(&fresh));
        assert_eq!(place_outbound(None, true, open, now), Placement::New);
        assert_eq!(place_outbound(Some(&named), true, open, now), Placement::Thread(named));
    }

    #[test]
    fn routing_order() {
        let facts = RouteFacts::default();
        assert_eq!(route(facts), Route::Spawn);
        assert_eq!(route(RouteFacts { parked_session: true, ..facts }), Route::Resume);
        let live = RouteFacts { live_session: true, idle: true, ..facts };
        assert_eq!(route(live), Route::Inject);
        assert_eq!(route(RouteFacts { idle: false, ..live }), Route::Wait);
        assert_eq!(route(RouteFacts { starting: true, ..facts }), Route::Wait);
        assert_eq!(route(RouteFacts { waiter: true, starting: true, ..live }), Route::Waiter);
        assert_eq!(route(RouteFacts { waiter: true, ack_like: true, ..live }), Route::Inject);
    }

    #[test]
    fn history_is_newest_within_count_and_bytes() {
        let bodies: Vec<String> = (0..30).map(|n| format!("m{n}")).collect();
        let newest = || bodies.iter().rev().map(String::as_str);
        assert_eq!(history_window(newest(), TrustLevel::Untrusted), Vec::<String>::new());
        assert_eq!(history_window(newest(), TrustLevel::Verified), ["m25", "m26", "m27", "m28", "m29"]);
        assert_eq!(history_window(newest(), TrustLevel::Autonomous).len(), 20);
        let long = "x".repeat(5_000);
        let window = history_window([long.as_str(); 8], TrustLevel::Trusted);
        assert_eq!(window.len(), 4);
        assert!(window.iter().all(|m| m.ends_with("[cut]") && m.len() == HISTORY_MESSAGE_BYTES));
    }

    proptest! {
        #[test]
        fn history_stays_within_its_budget(bodies in proptest::collection::vec(".{0,2000}", 0..25)) {
            let window = history_window(bodies.iter().map(String::as_str), TrustLevel::Autonomous);
            prop_assert!(window.iter().map(String::len).sum::<usize>() <= HISTORY_BYTES);
        }
    }
}
