//! The clock, the connections, the trouble and the promises.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use threadline::v2::Key;
use threadline::v2::frames::{Frame, FramePhase};
use threadline::v2::mail::Marker;
use threadline::v2::session::{Carrier, ConnectionId};

use super::HOST;
use super::node::{Ask, Killed, Node};
use super::relay::{Out, Relay};
use super::{SealedDefect, SealedStats, SealedViolation};

const START_MS: u64 = 1_768_478_400_000;
const STEP_MS: u64 = 50;
/// Messages per seed while there is trouble.
const MESSAGES: u64 = 150;
/// After the trouble everything has to arrive within this time, ms.
const PATIENCE_MS: u64 = 4 * 3_600_000;

struct Connection {
    node: usize,
    relay: usize,
    id: ConnectionId,
    up: VecDeque<(u64, Vec<u8>)>,
    down: VecDeque<(u64, Vec<u8>)>,
}

pub(super) struct World {
    rng: StdRng,
    now: u64,
    nodes: Vec<Node>,
    relays: Vec<Relay>,
    relay_up: Vec<bool>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    restarts: BTreeMap<usize, u64>,
    submitted: Vec<Submitted>,
    kills: u64,
    keys_used: BTreeMap<(usize, Vec<u8>), Vec<u8>>,
    stats: SealedStats,
}

struct Submitted {
    from: usize,
    to: usize,
    thread: String,
    text: String,
}

impl World {
    pub(super) fn new(seed: u64, kills: u64, defect: SealedDefect) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut seed32 = || {
            let mut bytes = [0; 32];
            rng.fill_bytes(&mut bytes);
            bytes
        };
        let relays: Vec<Relay> =
            (0..2).map(|n| Relay::new(seed32(), vec![HOST.to_owned()], n == 1)).collect();
        let keys: Vec<Key> = relays.iter().map(|relay| relay.key).collect();
        let nodes = (0..3).map(|_| Node::new(seed32(), keys.clone(), defect)).collect();
        Self {
            rng,
            now: START_MS,
            nodes,
            relay_up: vec![true; relays.len()],
            relays,
            connections: BTreeMap::new(),
            next_connection: 0,
            restarts: BTreeMap::new(),
            submitted: Vec::new(),
            kills,
            keys_used: BTreeMap::new(),
            stats: SealedStats::default(),
        }
    }

    pub(super) fn run(mut self) -> Result<SealedStats, SealedViolation> {
        for node in 0..self.nodes.len() {
            self.start_node(node);
        }
        while self.total_kills() < self.kills || (self.submitted.len() as u64) < MESSAGES {
            self.trouble();
            self.step()?;
        }
        for node in &mut self.nodes {
            node.danger = 0;
        }
        self.relay_up.fill(true);
        let calm_since = self.now;
        while self.nodes.iter().any(|node| !node.is_running() || node.open_messages() > 0)
            || !self.missing().is_empty()
        {
            self.step()?;
            if self.now > calm_since + PATIENCE_MS {
                return Err(SealedViolation::Lost(self.missing().join(", ")));
            }
            let busy = self.connections.values().any(|c| !c.up.is_empty() || !c.down.is_empty());
            self.now += if busy { 0 } else { 5_000 };
        }
        self.check_order()?;
        self.stats.messages = self.submitted.len() as u64;
        self.stats.kills = self.total_kills();
        for node in &self.nodes {
            self.stats.kills_before_commit += node.stats.kills_before_commit;
            self.stats.commits += node.stats.commits;
            self.stats.moves += node.stats.moves;
            self.stats.envelopes += node.stats.envelopes;
            self.stats.marked +=
                node.stored.iter().filter(|stored| stored.marker != Marker::InOrder).count() as u64;
        }
        self.stats.took_ms = self.now - START_MS;
        Ok(self.stats)
    }

    fn total_kills(&self) -> u64 {
        self.nodes.iter().map(|node| node.stats.kills).sum()
    }

    fn start_node(&mut self, node: usize) {
        self.nodes[node].danger = 15;
        if self.nodes[node].start(self.now).is_err() {
            self.nodes[node].stats.kills += 1;
            self.killed(node);
        }
    }

    fn killed(&mut self, node: usize) {
        self.nodes[node].kill();
        let cut: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.node == node).map(|(id, _)| *id).collect();
        for id in cut {
            self.cut(id, None);
        }
        let pause = self.rng.random_range(0..2_000);
        self.restarts.insert(node, self.now + pause);
    }

    fn cut(&mut self, id: u64, code: Option<u16>) {
        if let Some(connection) = self.connections.remove(&id) {
            self.relays[connection.relay].closed(id);
            self.nodes[connection.node].closed(connection.relay, connection.id, code, self.now);
            self.stats.cuts += 1;
        }
    }

    fn trouble(&mut self) {
        if self.rng.random_bool(0.1) && (self.submitted.len() as u64) < 4 * MESSAGES {
            self.submit();
        }
        if self.rng.random_bool(0.01) {
            let node = self.rng.random_range(0..self.nodes.len());
            if self.nodes[node].is_running() {
                self.killed(node);
            }
        }
        if self.rng.random_bool(0.02) && !self.connections.is_empty() {
            let position = self.rng.random_range(0..self.connections.len());
            let id = self.connections.keys().nth(position).copied();
            if let Some(id) = id {
                self.cut(id, None);
            }
        }
        if self.rng.random_bool(0.004) {
            let relay = self.rng.random_range(0..self.relays.len());
            let wiped = self.rng.random_bool(0.15);
            self.stats.wiped += u64::from(wiped && self.relays[relay].held() > 0);
            let cut: Vec<u64> =
                self.connections.iter().filter(|(_, c)| c.relay == relay).map(|(id, _)| *id).collect();
            for id in cut {
                self.cut(id, None);
            }
            if wiped {
                self.relays[relay].wipe();
            } else {
                self.relays[relay].kill();
            }
            self.relay_up[relay] = false;
        }
        for up in &mut self.relay_up {
            *up |= self.rng.random_bool(0.05);
        }
    }

    fn submit(&mut self) {
        let from = self.rng.random_range(0..self.nodes.len());
        let to = (from + self.rng.random_range(1..self.nodes.len())) % self.nodes.len();
        let thread = format!("t{}", self.rng.random_range(0..3));
        let text = format!("{} from {from} in {thread}", self.submitted.len());
        let key = self.nodes[to].key;
        let Some(outcome) = self.nodes[from].submit(key, &thread, &text, self.now) else { return };
        if outcome.is_err() {
            self.killed(from);
        }
        if self.nodes[from].has_taken(&text) {
            self.submitted.push(Submitted { from, to, thread, text });
        }
    }

    fn step(&mut self) -> Result<(), SealedViolation> {
        self.now += STEP_MS;
        let due: Vec<usize> =
            self.restarts.iter().filter(|(_, at)| **at <= self.now).map(|(node, _)| *node).collect();
        for node in due {
            self.restarts.remove(&node);
            let danger = self.nodes[node].danger;
            self.start_node(node);
            self.nodes[node].danger = danger;
        }
        self.carry()?;
        for node in 0..self.nodes.len() {
            if let Err(Killed) = self.nodes[node].pump(self.now) {
                self.killed(node);
            } else {
                self.ask(node)?;
            }
            if let Some(text) = self.nodes[node].twice.take() {
                return Err(SealedViolation::Twice(text));
            }
        }
        Ok(())
    }

    fn carry(&mut self) -> Result<(), SealedViolation> {
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            while let Some(bytes) = self.connections.get_mut(&id).and_then(|c| arrived(&mut c.up, self.now)) {
                let frame = read(&bytes)?;
                let relay = self.connections[&id].relay;
                let out = self.relays[relay].received(id, frame, self.now);
                self.relay_says(out);
            }
            while let Some(bytes) = self.connections.get_mut(&id).and_then(|c| arrived(&mut c.down, self.now))
            {
                let frame = read(&bytes)?;
                let (node, relay, connection) = {
                    let c = &self.connections[&id];
                    (c.node, c.relay, c.id)
                };
                self.nodes[node].received(relay, connection, frame, self.now);
            }
        }
        for relay in 0..self.relays.len() {
            let mut out = Vec::new();
            self.relays[relay].deliver(&mut out);
            self.relay_says(out);
        }
        Ok(())
    }

    fn relay_says(&mut self, out: Vec<Out>) {
        for out in out {
            match out {
                Out::Frame(id, frame) => {
                    let at = self.now + self.rng.random_range(1..40);
                    if let Some(connection) = self.connections.get_mut(&id) {
                        push(&mut connection.down, at, frame.encode());
                    }
                }
                Out::Close(id, code) => self.cut(id, code),
            }
        }
    }

    fn ask(&mut self, node: usize) -> Result<(), SealedViolation> {
        for ask in self.nodes[node].asks() {
            match ask {
                Ask::Connect { relay, connection, carrier } if self.relay_up[relay] => {
                    self.connect(node, relay, connection, carrier);
                }
                Ask::Connect { relay, connection, .. } => {
                    self.nodes[node].closed(relay, connection, None, self.now);
                }
                Ask::Write { relay, connection, frame } => {
                    self.watch_keys(node, &frame)?;
                    let at = self.now + self.rng.random_range(1..40);
                    let found = self.connections.values_mut().find(|c| is(c, node, relay, connection));
                    if let Some(connection) = found {
                        push(&mut connection.up, at, frame.encode());
                    }
                }
                Ask::Close { relay, connection } => {
                    let id = self
                        .connections
                        .iter()
                        .find(|(_, c)| is(c, node, relay, connection))
                        .map(|(id, _)| *id);
                    if let Some(id) = id {
                        self.cut(id, None);
                    }
                }
            }
        }
        Ok(())
    }

    /// Datagrams get through, are refused, or vanish.
    fn connect(&mut self, node: usize, relay: usize, connection: ConnectionId, carrier: Carrier) {
        self.next_connection += 1;
        let id = self.next_connection;
        let mut down = VecDeque::new();
        if carrier == Carrier::WebSocket {
            let mut nonce = [0; 32];
            self.rng.fill_bytes(&mut nonce);
            let challenge = self.relays[relay].opened(id, nonce, self.now);
            push(&mut down, self.now + 1, challenge.encode());
        } else {
            match self.rng.random_range(0..4) {
                0 => return,
                1 => return self.nodes[node].closed(relay, connection, None, self.now),
                _ => self.relays[relay].opened_over_quic(id, self.nodes[node].key, self.now),
            }
        }
        self.connections.insert(id, Connection { node, relay, id: connection, up: VecDeque::new(), down });
        self.nodes[node].connected(relay, connection, self.now);
    }

    /// No key of a ratchet may ever encrypt two different things.
    fn watch_keys(&mut self, node: usize, frame: &Frame) -> Result<(), SealedViolation> {
        let Frame::Send(send) = frame else { return Ok(()) };
        let envelope = threadline::v2::envelope::Envelope::parse(&send.env.0)
            .map_err(|error| SealedViolation::Broken(error.to_string()))?;
        for leg in &envelope.legs {
            let Some(place) = ratchet_place(&leg.olm.0, leg.starts_session) else {
                return Err(SealedViolation::Broken("a leg that is no Olm message".into()));
            };
            let known = self.keys_used.entry((node, place)).or_insert_with(|| leg.olm.0.clone());
            // The first messages of a session carry the same inner message in another wrapping only if they repeat.
            if *known != leg.olm.0 {
                return Err(SealedViolation::KeyReused(format!(
                    "node {node}, message {}",
                    envelope.header.id
                )));
            }
        }
        Ok(())
    }

    fn missing(&self) -> Vec<String> {
        let stored: BTreeSet<(usize, &str)> = self
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(n, node)| node.stored.iter().map(move |stored| (n, stored.text.as_str())))
            .collect();
        self.submitted
            .iter()
            .filter(|message| !stored.contains(&(message.to, message.text.as_str())))
            .map(|message| message.text.clone())
            .collect()
    }

    fn check_order(&self) -> Result<(), SealedViolation> {
        let mut sent: BTreeMap<&str, usize> = BTreeMap::new();
        for (position, message) in self.submitted.iter().enumerate() {
            sent.insert(&message.text, position);
        }
        for (to, node) in self.nodes.iter().enumerate() {
            let mut last: BTreeMap<(Key, &str), usize> = BTreeMap::new();
            for stored in &node.stored {
                let Some(position) = sent.get(stored.text.as_str()).copied() else {
                    return Err(SealedViolation::Broken(format!("nobody sent {:?}", stored.text)));
                };
                let message = &self.submitted[position];
                let right = message.to == to
                    && message.thread == stored.thread
                    && self.nodes[message.from].key == stored.peer;
                if !right {
                    return Err(SealedViolation::Broken(format!("{:?} is not for node {to}", stored.text)));
                }
                if stored.marker == Marker::Late {
                    continue;
                }
                let before = last.insert((stored.peer, &stored.thread), position);
                if before.is_some_and(|before| before > position) {
                    return Err(SealedViolation::OutOfOrder(stored.text.clone()));
                }
            }
        }
        Ok(())
    }
}

fn is(connection: &Connection, node: usize, relay: usize, id: ConnectionId) -> bool {
    connection.node == node && connection.relay == relay && connection.id == id
}

/// Bytes leave in the order in which they were written.
fn push(queue: &mut VecDeque<(u64, Vec<u8>)>, at: u64, bytes: Vec<u8>) {
    let at = queue.back().map_or(at, |(last, _)| at.max(*last));
    queue.push_back((at, bytes));
}

fn arrived(queue: &mut VecDeque<(u64, Vec<u8>)>, now: u64) -> Option<Vec<u8>> {
    queue.front().is_some_and(|(at, _)| *at <= now).then(|| queue.pop_front().map(|(_, bytes)| bytes))?
}

fn read(bytes: &[u8]) -> Result<Frame, SealedViolation> {
    Frame::decode(bytes, FramePhase::Open).map_err(|error| SealedViolation::Broken(error.to_string()))
}

/// Ratchet key and index of an Olm message: what a message key hangs on.
fn ratchet_place(olm: &[u8], starts_session: bool) -> Option<Vec<u8>> {
    use vodozemac::olm::OlmMessage;
    let message = OlmMessage::from_parts(usize::from(!starts_session), olm).ok()?;
    let inner = match &message {
        OlmMessage::PreKey(first) => first.message(),
        OlmMessage::Normal(message) => message,
    };
    Some([&inner.ratchet_key().to_bytes()[..], &inner.chain_index().to_be_bytes()].concat())
}
