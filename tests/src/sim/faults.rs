//! What breaks, and when.

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::socket::End;
use super::world::{Happening, START_MS, TROUBLE_MS, World};

/// Something that breaks or is mended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// A connection is cut.
    Cut,
    /// A node is killed.
    NodeCrash(usize),
    /// It comes back.
    NodeStart(usize),
    /// The relay is killed.
    RelayCrash,
    /// It comes back.
    RelayStart,
    /// Commits of a node fail until the given time.
    NodeDisk(usize, i64),
    /// Writes of the relay fail until the given time.
    RelayDisk(i64),
}

/// Who hears that a connection is cut; who does not finds out by silence.
#[derive(Debug, Clone, Copy)]
pub(super) enum CutStyle {
    Both,
    NodeAlone,
    RelayAlone,
    Nobody,
}

impl CutStyle {
    pub(super) fn any(rng: &mut StdRng) -> Self {
        match rng.random_range(0..8) {
            0..=3 => Self::Both,
            4 | 5 => Self::NodeAlone,
            6 => Self::RelayAlone,
            _ => Self::Nobody,
        }
    }

    /// Whether the node hears, and whether the relay does.
    pub(super) const fn heard_by(self) -> (bool, bool) {
        match self {
            Self::Both => (true, true),
            Self::NodeAlone => (true, false),
            Self::RelayAlone => (false, true),
            Self::Nobody => (false, false),
        }
    }
}

/// Crashes at the worst instant: right after an effect that a commit or an acknowledgement has to follow.
#[derive(Debug)]
pub(super) struct Triggers {
    /// Per node: crash after this many further envelopes were given to its spool.
    node_store: Vec<Option<u32>>,
    /// Crash the relay after this many further messages were written to recipients.
    relay_write: Option<u32>,
}

impl Triggers {
    pub(super) fn plan(nodes: usize, rng: &mut StdRng) -> Self {
        let mut node_store = vec![None; nodes];
        for _ in 0..2 {
            node_store[rng.random_range(0..nodes)] = Some(rng.random_range(0..12));
        }
        Self { node_store, relay_write: Some(rng.random_range(0..60)) }
    }

    /// Whether the node dies after this envelope.
    pub(super) fn node_store(&mut self, node: usize) -> bool {
        self.node_store.get_mut(node).is_some_and(fires)
    }

    /// Whether the relay dies after this message.
    pub(super) fn relay_write(&mut self) -> bool {
        fires(&mut self.relay_write)
    }
}

fn fires(counter: &mut Option<u32>) -> bool {
    match counter {
        Some(0) => {
            *counter = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

impl World {
    pub(super) fn plan_faults(&mut self) {
        let nodes = self.nodes.len();
        let plan = |world: &mut Self, fault: &dyn Fn(&mut StdRng, i64) -> Fault, count: usize| {
            for _ in 0..count {
                let at = START_MS + world.rng.random_range(500..TROUBLE_MS);
                let fault = fault(&mut world.rng, at);
                world.at(at, Happening::Fault(fault));
            }
        };
        let cuts = self.rng.random_range(6..20);
        plan(self, &|_, _| Fault::Cut, cuts);
        let crashes = self.rng.random_range(2..5);
        plan(self, &|rng, _| Fault::NodeCrash(rng.random_range(0..nodes)), crashes);
        let crashes = self.rng.random_range(1..3);
        plan(self, &|_, _| Fault::RelayCrash, crashes);
        let full = self.rng.random_range(0..2);
        plan(
            self,
            &|rng, at| Fault::NodeDisk(rng.random_range(0..nodes), at + rng.random_range(500..5_000)),
            full,
        );
        let full = self.rng.random_range(0..2);
        plan(self, &|rng, at| Fault::RelayDisk(at + rng.random_range(500..5_000)), full);
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Cut => {
                let open: Vec<usize> = self.open_sockets();
                if let Some(socket) = open.get(self.rng.random_range(0..open.len().max(1))) {
                    let style = CutStyle::any(&mut self.rng);
                    self.cut(*socket, style);
                }
            }
            Fault::NodeCrash(node) => self.crash_node(node),
            Fault::NodeStart(node) => self.start_node(node),
            Fault::RelayCrash => self.crash_relay(),
            Fault::RelayStart => self.start_relay(),
            Fault::NodeDisk(node, until) => self.nodes[node].disk_full_until = until,
            Fault::RelayDisk(until) => self.relay.disk_full_until = until,
        }
    }

    fn open_sockets(&self) -> Vec<usize> {
        let open = self.sockets.iter().enumerate().filter(|(_, s)| !s.cut && s.node_open && s.relay_open);
        open.map(|(number, _)| number).collect()
    }

    fn crash_node(&mut self, node: usize) {
        if !self.nodes[node].is_up() {
            return;
        }
        self.stats.crashes += 1;
        self.nodes[node].kill();
        self.cut_all(|s| s.node == node && s.node_open, End::Node);
        let at = self.now + self.rng.random_range(100..12_000);
        self.at(at, Happening::Fault(Fault::NodeStart(node)));
    }

    fn crash_relay(&mut self) {
        if !self.relay.is_up() {
            return;
        }
        self.stats.crashes += 1;
        self.relay.kill();
        self.cut_all(|s| s.relay_open, End::Relay);
        let at = self.now + self.rng.random_range(100..12_000);
        self.at(at, Happening::Fault(Fault::RelayStart));
    }

    /// The process behind `end` is gone, and with it its ends; the other ends may or may not hear of it.
    fn cut_all(&mut self, which: impl Fn(&super::socket::Socket) -> bool, end: End) {
        let sockets: Vec<usize> =
            self.sockets.iter().enumerate().filter(|(_, s)| which(s)).map(|(n, _)| n).collect();
        for socket in sockets {
            let style = if self.rng.random_ratio(3, 4) { CutStyle::Both } else { CutStyle::Nobody };
            self.cut(socket, style);
            self.sockets[socket].close(end);
        }
    }

    /// Kills the node at once if its trigger fires.
    pub(super) fn trigger_node(&mut self, node: usize) -> bool {
        let fires = self.elapsed() < TROUBLE_MS && self.triggers.node_store(node);
        if fires {
            self.crash_node(node);
        }
        fires
    }

    /// Kills the relay at once if its trigger fires.
    pub(super) fn trigger_relay(&mut self) -> bool {
        let fires = self.elapsed() < TROUBLE_MS && self.triggers.relay_write();
        if fires {
            self.crash_relay();
        }
        fires
    }
}
