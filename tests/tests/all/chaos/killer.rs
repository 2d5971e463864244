//! Who is killed, and when.

use instar_tests::harness::processes::{self, Process};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

/// What a kill hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Relay,
    NodeA,
    NodeB,
    SessionHost,
    Runtime,
}

const ALL: [Victim; 5] = [Victim::Relay, Victim::NodeA, Victim::NodeB, Victim::SessionHost, Victim::Runtime];

/// The kills of a run: each kind at least twice, at points of the exchange that the seed chooses.
#[derive(Debug)]
pub(super) struct Killer {
    random: StdRng,
    due: Vec<(usize, Victim)>,
}

impl Killer {
    /// Plans the kills of an exchange of this many messages.
    pub(super) fn new(seed: u64, messages: usize) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut victims = [ALL, ALL].concat();
        victims.extend(ALL.choose(&mut random));
        victims.extend(ALL.choose(&mut random));
        victims.shuffle(&mut random);
        let last = messages * 9 / 10;
        let mut due: Vec<(usize, Victim)> =
            victims.into_iter().map(|victim| (random.random_range(0..last), victim)).collect();
        due.sort_by_key(|(at, _)| *at);
        due.reverse();
        Self { random, due }
    }

    /// The next kill, if the exchange has come that far.
    pub(super) fn next(&mut self, progress: usize) -> Option<Victim> {
        let (at, _) = self.due.last()?;
        if progress < *at {
            return None;
        }
        self.due.pop().map(|(_, victim)| victim)
    }

    /// Whether every planned kill was done.
    pub(super) fn done(&self) -> bool {
        self.due.is_empty()
    }

    /// A pause before or after a kill, in milliseconds.
    pub(super) fn pause(&mut self) -> u64 {
        self.random.random_range(0..400)
    }

    /// A running process of that kind of victim.
    pub(super) fn process(&mut self, victim: Victim) -> Option<Process> {
        let candidates = match victim {
            Victim::SessionHost => processes::session_hosts(),
            Victim::Runtime => processes::runtimes(),
            Victim::Relay | Victim::NodeA | Victim::NodeB => Vec::new(),
        };
        candidates.choose(&mut self.random).cloned()
    }
}
