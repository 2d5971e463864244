//! The clock, the agenda, and what happens at each step.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use threadline::v1::client::ConnectionId;
use threadline_relay::store::{StoreAnswer, StoreFailed};

use super::faults::{CutStyle, Fault, Triggers};
use super::ledger::{Ledger, Violation};
use super::node::{Learnt, Node, Saying};
use super::relay::Relay;
use super::socket::{End, Socket};
use super::{Defect, Failure, Stats};

/// Start of the virtual clock, Unix ms.
pub(super) const START_MS: i64 = 1_768_478_400_000;
/// Messages are said within this time, ms.
const TALK_MS: i64 = 90_000;
/// No fault begins later, ms.
pub(super) const TROUBLE_MS: i64 = 120_000;
/// By then everything is delivered, ms.
const PATIENCE_MS: i64 = 3 * 3_600_000;

/// Life of a process: events of an earlier one are void.
pub(super) type Life = u32;

/// Something on the agenda.
#[derive(Debug)]
pub(super) enum Happening {
    /// A text reaches one end of a connection.
    Text { socket: usize, end: End, text: String },
    /// A connection attempt reaches the relay.
    Dial { node: usize, life: Life, connection: ConnectionId },
    /// An attempt failed.
    DialFailed { node: usize, life: Life, connection: ConnectionId },
    /// The node hears that its socket is open.
    Up { socket: usize, life: Life },
    /// One end hears that the other is gone.
    Gone { socket: usize, end: End, code: Option<u16> },
    /// The spool of a node commits what it was given.
    SpoolCommit { node: usize, life: Life },
    /// The commit is reported to the link.
    SpoolReport { node: usize, life: Life },
    /// A node takes the next row of its spool.
    Ingest { node: usize, life: Life },
    /// A node stores what it learnt about a message of its own.
    Learn { node: usize, life: Life, learnt: Learnt },
    /// A timer of a node.
    NodeWake { node: usize, at: i64 },
    /// Somebody at a node says something.
    Say(Saying),
    /// The relay's storage carries out its oldest operation on one database.
    RelayCommit { life: Life, registry: bool },
    /// The answer reaches the core.
    RelayReport { life: Life, ticket: u64, answer: Box<Result<StoreAnswer, StoreFailed>> },
    /// A timer of the relay.
    RelayWake { at: i64 },
    /// Something breaks.
    Fault(Fault),
}

struct Planned {
    at: i64,
    order: u64,
    what: Happening,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Everything there is.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) defect: Defect,
    pub(super) now: i64,
    pub(super) rng: StdRng,
    pub(super) nodes: Vec<Node>,
    pub(super) relay: Relay,
    pub(super) sockets: Vec<Socket>,
    pub(super) ledger: Ledger,
    pub(super) stats: Stats,
    pub(super) triggers: Triggers,
    pub(super) violation: Option<Violation>,
    agenda: BinaryHeap<Reverse<Planned>>,
    order: u64,
    to_say: u64,
    digest: DefaultHasher,
}

impl World {
    pub(super) fn new(seed: u64, defect: Defect) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(5..=7);
        let nodes = Node::all(count, &mut rng);
        let mut world = Self {
            seed,
            defect,
            now: START_MS,
            relay: Relay::new(&mut rng),
            triggers: Triggers::plan(count, &mut rng),
            rng,
            nodes,
            sockets: Vec::new(),
            ledger: Ledger::default(),
            stats: Stats { nodes: count as u64, ..Stats::default() },
            violation: None,
            agenda: BinaryHeap::new(),
            order: 0,
            to_say: 0,
            digest: DefaultHasher::new(),
        };
        world.plan_talk();
        world.plan_faults();
        world.start_relay();
        for node in 0..count {
            world.start_node(node);
        }
        world
    }

    pub(super) fn run(mut self) -> Result<Stats, Failure> {
        while self.to_say > 0 || self.ledger.open() > 0 || self.elapsed() < TROUBLE_MS {
            let Some(Reverse(Planned { at, what, .. })) = self.agenda.pop() else {
                self.violate(Violation::Undelivered(self.ledger.some_open()));
                break;
            };
            self.now = self.now.max(at);
            self.stats.steps += 1;
            self.step(what);
            if self.elapsed() > PATIENCE_MS {
                self.violate(Violation::Undelivered(self.ledger.some_open()));
            }
            if self.violation.is_some() {
                break;
            }
        }
        self.stats.messages = self.ledger.accepted_count();
        self.stats.steps.hash(&mut self.digest);
        self.stats.digest = self.digest.finish();
        match self.violation {
            Some(violation) => Err(Failure {
                seed: self.seed,
                step: self.stats.steps,
                at_ms: self.now - START_MS,
                violation,
            }),
            None => Ok(self.stats),
        }
    }

    fn step(&mut self, what: Happening) {
        (self.now, std::mem::discriminant(&what)).hash(&mut self.digest);
        match what {
            Happening::Text { socket, end, text } => self.text(socket, end, &text),
            Happening::Dial { node, life, connection } => self.dialled(node, life, connection),
            Happening::DialFailed { node, life, connection } => self.dial_failed(node, life, connection),
            Happening::Up { socket, life } => self.node_connected(socket, life),
            Happening::Gone { socket, end, code } => self.gone(socket, end, code),
            Happening::SpoolCommit { node, life } => self.spool_commit(node, life),
            Happening::SpoolReport { node, life } => self.spool_report(node, life),
            Happening::Ingest { node, life } => self.ingest(node, life),
            Happening::Learn { node, life, learnt } => self.learn(node, life, &learnt),
            Happening::NodeWake { node, at } => self.node_wake(node, at),
            Happening::Say(saying) => self.say(saying),
            Happening::RelayCommit { life, registry } => self.relay_commit(life, registry),
            Happening::RelayReport { life, ticket, answer } => self.relay_report(life, ticket, *answer),
            Happening::RelayWake { at } => self.relay_wake(at),
            Happening::Fault(fault) => self.fault(fault),
        }
    }

    fn text(&mut self, socket: usize, end: End, text: &str) {
        let Some(link) = self.sockets.get(socket) else { return };
        if link.cut || !link.is_open(end) {
            self.stats.lost_texts += 1;
            return;
        }
        text.hash(&mut self.digest);
        match end {
            End::Node => self.node_text(socket, text),
            End::Relay => self.relay_text(socket, text),
        }
    }

    fn gone(&mut self, socket: usize, end: End, code: Option<u16>) {
        let Some(link) = self.sockets.get_mut(socket) else { return };
        if !link.is_open(end) {
            return;
        }
        link.close(end);
        match end {
            End::Node => self.node_closed(socket, code),
            End::Relay => self.relay_closed(socket),
        }
    }

    /// Puts a text on its way.
    pub(super) fn transmit(&mut self, socket: usize, towards: End, text: String) {
        let earliest = self.now + self.latency();
        let Some(link) = self.sockets.get_mut(socket) else { return };
        let at = link.arrival(towards, earliest);
        self.at(at, Happening::Text { socket, end: towards, text });
    }

    /// One end closes in order: what it sent before arrives, then the other end hears of it.
    pub(super) fn hang_up(&mut self, socket: usize, end: End, code: Option<u16>) {
        let earliest = self.now + self.latency();
        let Some(link) = self.sockets.get_mut(socket) else { return };
        link.close(end);
        let other = if end == End::Node { End::Relay } else { End::Node };
        let at = link.arrival(other, earliest);
        self.at(at, Happening::Gone { socket, end: other, code });
    }

    /// What is under way is lost. `style` says who hears of it.
    pub(super) fn cut(&mut self, socket: usize, style: CutStyle) {
        let Some(link) = self.sockets.get_mut(socket) else { return };
        if link.cut {
            return;
        }
        link.cut = true;
        self.stats.cuts += 1;
        let (node, relay) = style.heard_by();
        for (hears, end) in [(node, End::Node), (relay, End::Relay)] {
            if hears {
                let at = self.now + self.rng.random_range(1..2_000);
                self.at(at, Happening::Gone { socket, end, code: None });
            }
        }
    }

    pub(super) fn latency(&mut self) -> i64 {
        if self.rng.random_ratio(1, 20) {
            self.rng.random_range(100..800)
        } else {
            self.rng.random_range(1..40)
        }
    }

    pub(super) fn at(&mut self, at: i64, what: Happening) {
        self.order += 1;
        self.agenda.push(Reverse(Planned { at, order: self.order, what }));
    }

    pub(super) fn soon(&mut self, within_ms: i64, what: Happening) {
        let at = self.now + self.rng.random_range(1..=within_ms);
        self.at(at, what);
    }

    pub(super) fn elapsed(&self) -> i64 {
        self.now - START_MS
    }

    pub(super) fn violate(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    /// A saying that was planned has become a message, or never will.
    pub(super) fn said(&mut self) {
        self.to_say -= 1;
    }

    pub(super) fn plan_saying(&mut self, at: i64, saying: Saying) {
        self.to_say += 1;
        self.at(at, Happening::Say(saying));
    }

    fn plan_talk(&mut self) {
        let count = self.nodes.len();
        for _ in 0..self.rng.random_range(100..111) {
            let from = self.rng.random_range(0..count);
            let to = (from + self.rng.random_range(1..count)) % count;
            let thread = self.rng.random_range(0..2);
            let (a, b) = (from.min(to), from.max(to));
            let thread = format!("t-{a}-{b}-{thread}").parse().expect("an id");
            let at = START_MS + self.rng.random_range(0..TALK_MS);
            self.plan_saying(at, Saying { from, to, thread, answers: None });
        }
    }
}
