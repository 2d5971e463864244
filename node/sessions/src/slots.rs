//! Who may have a session now (`agent-core.md` §6.13). Pure.

use crate::config::SessionsConfig;
use crate::record::Priority;

/// Who a slot is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A person asked for it.
    Person,
    /// Nobody waits in front of it.
    Autonomous,
    /// It serves a peer.
    Peer,
}

impl Class {
    /// Class of a session with this priority.
    pub fn of(priority: Priority, serves_peer: bool) -> Self {
        match priority {
            _ if serves_peer => Self::Peer,
            Priority::Human | Priority::Critical => Self::Person,
            Priority::Low | Priority::Medium | Priority::High => Self::Autonomous,
        }
    }
}

/// Memory in use, percent, from which on only persons get a session (`resilience.md` §4.11).
pub const TIGHT_MEMORY: u8 = 85;

/// Why no session may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// A limit is reached.
    Slots {
        /// Sessions of this class that may live.
        max: usize,
        /// Key of the configuration.
        key: &'static str,
    },
    /// Too much of the memory is in use.
    Memory {
        /// How much, percent.
        percent: u8,
    },
}

/// Whether one more session of a class may live with this much of the memory in use, as far as is known.
pub fn fits(class: Class, memory_percent: Option<u8>) -> Result<(), Full> {
    match memory_percent {
        Some(percent) if percent >= TIGHT_MEMORY && class != Class::Person => Err(Full::Memory { percent }),
        _ => Ok(()),
    }
}

/// Whether one more session of a class may live beside `live`. Sessions of persons count against the largest number
/// of all; the others share `maxSessions` less the slots kept for persons, but at least one.
pub fn admit(class: Class, live: &[Class], config: &SessionsConfig) -> Result<(), Full> {
    let key = "sessions.maxSessions";
    if class == Class::Person {
        let max = config.max_sessions.saturating_mul(config.human_factor);
        return if live.len() < max { Ok(()) } else { Err(Full::Slots { max, key }) };
    }
    let peers = live.iter().filter(|other| **other == Class::Peer).count();
    if class == Class::Peer && peers >= config.max_peer_sessions {
        return Err(Full::Slots { max: config.max_peer_sessions, key: "threadline.sessions.maxActive" });
    }
    let max = config.max_sessions.saturating_sub(config.reserve_for_human).max(1);
    let taken = live.iter().filter(|other| **other != Class::Person).count();
    if taken < max { Ok(()) } else { Err(Full::Slots { max, key }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max: usize, factor: usize, reserve: usize, peers: usize) -> SessionsConfig {
        SessionsConfig {
            max_sessions: max,
            human_factor: factor,
            reserve_for_human: reserve,
            max_peer_sessions: peers,
            ..SessionsConfig::default()
        }
    }

    #[test]
    fn each_class_has_its_limit() {
        use Class::{Autonomous, Peer, Person};
        let config = limits(3, 2, 1, 1);
        let table: [(Class, &[Class], Option<usize>); 9] = [
            (Autonomous, &[], None),
            (Autonomous, &[Autonomous], None),
            (Autonomous, &[Autonomous, Autonomous], Some(2)),
            (Autonomous, &[Person, Person, Person, Autonomous], None),
            (Autonomous, &[Autonomous, Peer], Some(2)),
            (Peer, &[Autonomous], None),
            (Peer, &[Peer], Some(1)),
            (Person, &[Autonomous, Autonomous, Peer, Person, Person], None),
            (Person, &[Person; 6], Some(6)),
        ];
        for (class, live, max) in table {
            let refused = match admit(class, live, &config) {
                Err(Full::Slots { max, .. }) => Some(max),
                _ => None,
            };
            assert_eq!(refused, max, "{class:?} beside {live:?}");
        }
    }

    #[test]
    fn with_little_memory_left_only_persons_get_a_session() {
        use Class::{Autonomous, Peer, Person};
        for (class, percent, fit) in [
            (Autonomous, None, true),
            (Autonomous, Some(84), true),
            (Autonomous, Some(85), false),
            (Peer, Some(85), false),
            (Person, Some(100), true),
        ] {
            assert_eq!(fits(class, percent).is_ok(), fit, "{class:?} at {percent:?}");
        }
    }

    #[test]
    fn the_reserve_never_takes_the_last_slot() {
        assert_eq!(admit(Class::Autonomous, &[], &limits(1, 1, 1, 1)), Ok(()));
        assert!(admit(Class::Autonomous, &[Class::Autonomous], &limits(1, 1, 5, 1)).is_err());
    }

    #[test]
    fn a_person_is_never_counted_as_a_peer() {
        assert_eq!(Class::of(Priority::Critical, false), Class::Person);
        assert_eq!(Class::of(Priority::Critical, true), Class::Peer);
        assert_eq!(Class::of(Priority::High, false), Class::Autonomous);
    }
}
