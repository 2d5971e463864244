//! The mesh under fire: three relays, twenty nodes, messages on eighty lanes at once, while relays and nodes are killed,
//! sockets go dead without a word, clocks are wrong and a disk is full.
//!
//! Between nodes every message is in its recipient's store once and in its lane's order; clients of v1 get what a relay
//! promises them. No node runs a session. Nodes and relays live in memory, so that nothing waits for the machine's disk:
//! what is killed here is processes, and what a process has written survives it.

mod campaign;
mod fleet;
mod lanes;
mod v1;

use campaign::run;
use instar_tests::harness::isolated;

/// What a run does.
#[derive(Debug, Clone, Copy)]
struct Plan {
    seed: u64,
    nodes: usize,
    /// Messages of each lane.
    per_lane: usize,
    /// How often the whole list of faults is gone through.
    rounds: usize,
    /// Fewest kills that count as a run.
    kills: usize,
    /// Whether faults that need minutes to be noticed are among them.
    slow_faults: bool,
}

#[test]
#[ignore = "kills real processes: tests/run chaos"]
fn two_thousand_messages() {
    let plan = Plan { seed: 1, nodes: 20, per_lane: 25, rounds: 1, kills: 20, slow_faults: false };
    isolated(two_thousand_messages, run(plan));
}

/// Twenty thousand messages by command: `tests/chaos mesh SEED`.
mod by_command {
    use super::{Plan, isolated, run};

    #[test]
    #[ignore = "takes its seed from the environment: tests/chaos mesh"]
    fn one_seed() {
        let seed = std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.expect("CHAOS_SEED is a number");
        let plan = Plan { seed, nodes: 20, per_lane: 250, rounds: 10, kills: 200, slow_faults: true };
        isolated(one_seed, run(plan));
    }
}
