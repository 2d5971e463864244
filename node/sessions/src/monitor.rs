//! What the regular look at each session leads to (`agent-core.md` §6.8). Pure.

use crate::reap::{Keep, ReapFacts, reason_to_keep};
use crate::record::{Activity, Status};

/// What is known of a live session.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionFacts {
    /// For the reap guard.
    pub reap: ReapFacts,
    /// Whether its conversation lives on without it.
    pub bound: bool,
    /// Milliseconds since it became idle.
    pub idle_ms: Option<i64>,
    /// Milliseconds after which an idle session of its kind is ended.
    pub idle_limit_ms: i64,
    /// Longest life in minutes.
    pub max_duration_minutes: u32,
    /// What it goes through since a turn ended with an error.
    pub episode: Option<Episode>,
    /// Whether it serves a peer.
    pub serves_peer: bool,
    /// Milliseconds since its last event, or since it was adopted.
    pub silent_ms: i64,
}

/// Since a turn ended with an error, until one ends well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Episode {
    /// The provider's limit is reached: asking again is of no use.
    Quota,
    /// Nobody asked it to go on yet.
    Fresh,
    /// It was asked to go on.
    Nudged,
    /// It was asked to go on, and that failed too.
    Persistent,
}

impl Episode {
    /// The episode after one more turn that ended with an error.
    pub fn after(before: Option<Self>, quota: bool) -> Self {
        match before {
            _ if quota => Self::Quota,
            Some(Self::Nudged | Self::Persistent) => Self::Persistent,
            Some(Self::Fresh | Self::Quota) | None => Self::Fresh,
        }
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// End it.
    Reap(Reason),
    /// It is over its time and busy: say so once.
    Overdue,
    /// Ask it to go on after an error.
    Nudge,
    /// End it as failed: the provider refuses it. Its inputs wait for the next session, in their order.
    Abandon,
    /// End it as failed: its turn makes no progress. Its open inputs go to the next session.
    Stalled,
    /// Take it for idle: it was adopted in the middle of something and nothing moves.
    AssumeIdle,
}

/// Why a session is ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Over its time.
    Timeout,
    /// Nothing to do.
    Idle,
}

impl Reason {
    /// Word for records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Idle => "idle",
        }
    }
}

/// Sessions younger than this are left alone.
const YOUNG_MS: i64 = 15_000;
/// Silence after which a turn without a process at work counts as stuck.
const STALLED_MS: i64 = 10 * 60_000;
/// Silence after which an adopted session without a process at work counts as idle.
const SETTLED_MS: i64 = 30_000;
/// Time in which a session that was asked to go on must begin to.
const NUDGE_LIMIT_MS: i64 = 2 * 60_000;

/// The first thing that is due. The end of a process is noticed elsewhere, at once.
pub fn decide(facts: &SessionFacts) -> Option<Action> {
    let reap = &facts.reap;
    if reap.age_ms < YOUNG_MS || reap.status != Status::Running {
        return None;
    }
    let at_rest = reap.foreign_children == Some(0) && reap.cpu_percent.is_some_and(|percent| percent <= 2.0);
    match reap.activity {
        Activity::Unknown if at_rest && facts.silent_ms > SETTLED_MS => return Some(Action::AssumeIdle),
        Activity::Busy | Activity::Compacting if at_rest && facts.silent_ms > STALLED_MS => {
            return Some(Action::Stalled);
        }
        _ => {}
    }
    let stalled = if reap.activity == Activity::ErrorStalled { facts.episode } else { None };
    // Nobody types into it to make it go on, and meanwhile it takes a slot from the other peers.
    let in_vain = match stalled {
        Some(Episode::Quota | Episode::Persistent) => true,
        Some(Episode::Nudged) => facts.idle_ms.is_some_and(|ms| ms > NUDGE_LIMIT_MS),
        Some(Episode::Fresh) | None => false,
    };
    if facts.serves_peer && in_vain {
        return Some(Action::Abandon);
    }
    let keep = reason_to_keep(reap);
    if reap.age_ms > life_limit_ms(facts.max_duration_minutes) {
        return match keep {
            None => Some(Action::Reap(Reason::Timeout)),
            Some(Keep::Busy) => Some(Action::Overdue),
            Some(_) => None,
        };
    }
    if stalled == Some(Episode::Fresh) {
        return Some(Action::Nudge);
    }
    let idle_too_long = facts.idle_ms.is_some_and(|ms| ms > facts.idle_limit_ms);
    (idle_too_long && keep.is_none()).then_some(Action::Reap(Reason::Idle))
}

/// The limit and 20 % more, but at most an hour more.
fn life_limit_ms(minutes: u32) -> i64 {
    let minutes = i64::from(minutes);
    (minutes + (minutes / 5).min(60)) * 60_000
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts() -> SessionFacts {
        SessionFacts {
            reap: ReapFacts {
                status: Status::Running,
                activity: Activity::Idle,
                protected: false,
                attached: false,
                age_ms: 20 * 60_000,
                recovering: false,
                open_user_inputs: 0,
                queued_inputs: 0,
                since_user_ms: None,
                subagents: 0,
                foreign_children: Some(0),
                cpu_percent: Some(0.0),
            },
            bound: false,
            idle_ms: Some(16 * 60_000),
            idle_limit_ms: 15 * 60_000,
            max_duration_minutes: 240,
            episode: None,
            serves_peer: false,
            silent_ms: 0,
        }
    }

    #[test]
    fn a_turn_without_progress_ends_unless_something_works() {
        let mut stuck = facts();
        stuck.reap.activity = Activity::Busy;
        stuck.silent_ms = STALLED_MS + 1;
        assert_eq!(decide(&stuck), Some(Action::Stalled));
        stuck.reap.foreign_children = Some(1);
        assert_eq!(decide(&stuck), None);
        let mut adopted = facts();
        adopted.reap.activity = Activity::Unknown;
        adopted.silent_ms = SETTLED_MS + 1;
        assert_eq!(decide(&adopted), Some(Action::AssumeIdle));
    }

    #[test]
    fn idle_and_overdue_sessions_end_and_busy_ones_are_deferred() {
        assert_eq!(decide(&facts()), Some(Action::Reap(Reason::Idle)));
        let mut short = facts();
        short.idle_ms = Some(60_000);
        assert_eq!(decide(&short), None);
        let mut overdue = short.clone();
        overdue.reap.age_ms = (240 + 48) * 60_000 + 1;
        assert_eq!(decide(&overdue), Some(Action::Reap(Reason::Timeout)));
        overdue.reap.activity = Activity::Busy;
        assert_eq!(decide(&overdue), Some(Action::Overdue));
    }

    #[test]
    fn one_nudge_for_each_episode() {
        let mut stalled = facts();
        stalled.idle_ms = Some(0);
        stalled.reap.activity = Activity::ErrorStalled;
        stalled.episode = Some(Episode::after(None, false));
        assert_eq!(decide(&stalled), Some(Action::Nudge));
        stalled.episode = Some(Episode::Nudged);
        assert_eq!(decide(&stalled), None);
    }

    #[test]
    fn a_session_for_a_peer_that_the_provider_refuses_frees_its_slot() {
        let mut stalled = facts();
        stalled.idle_ms = Some(0);
        stalled.reap.activity = Activity::ErrorStalled;
        stalled.reap.queued_inputs = 3;
        stalled.serves_peer = true;
        stalled.episode = Some(Episode::after(None, true));
        assert_eq!(decide(&stalled), Some(Action::Abandon), "its limit is reached");
        stalled.episode = Some(Episode::after(None, false));
        assert_eq!(decide(&stalled), Some(Action::Nudge));
        stalled.episode = Some(Episode::Nudged);
        assert_eq!(decide(&stalled), None, "it is about to go on");
        stalled.idle_ms = Some(NUDGE_LIMIT_MS + 1);
        assert_eq!(decide(&stalled), Some(Action::Abandon), "it did not");
        stalled.idle_ms = Some(0);
        stalled.episode = Some(Episode::after(Some(Episode::Nudged), false));
        assert_eq!(decide(&stalled), Some(Action::Abandon), "it failed again");
        stalled.reap.age_ms = 1_000_000_000;
        assert_eq!(decide(&stalled), Some(Action::Abandon), "however old it is");
        stalled.reap.activity = Activity::Busy;
        assert_ne!(decide(&stalled), Some(Action::Abandon), "it is in a turn");
        stalled.reap.activity = Activity::ErrorStalled;
        stalled.serves_peer = false;
        stalled.reap.age_ms = 60_000;
        assert_eq!(decide(&stalled), None, "a person can make it go on");
    }

    proptest! {
        #[test]
        fn whatever_holds_an_attached_or_protected_session_is_never_reaped(
            age in 0i64..1_000_000_000, idle in 0i64..1_000_000_000, attached in any::<bool>(),
        ) {
            let mut facts = facts();
            facts.reap.age_ms = age;
            facts.idle_ms = Some(idle);
            facts.reap.attached = attached;
            facts.reap.protected = !attached;
            prop_assert!(!matches!(decide(&facts), Some(Action::Reap(_))));
        }
    }
}
