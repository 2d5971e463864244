//! The relay: its core, its storage, and the edge that carries out the core's effects.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};
use threadline::v1::client::ConnectionId;
use threadline::v1::envelope::Envelope;
use threadline::{Fingerprint, MessageId};
use threadline_relay::RelayConfig;
use threadline_relay::core::{Core, Effect, Event, Inbound, Outgoing, Source, Start};
use threadline_relay::store::{
    Accepted, Departed, QueueAnswer, QueueOp, QueueRules, Store, StoreAnswer, StoreFailed, StoreOp,
};

use super::Defect;
use super::ledger::Violation;
use super::socket::{End, Socket};
use super::world::{Happening, Life, World};

/// A relay process and its disk.
pub(super) struct Relay {
    config: Arc<RelayConfig>,
    life: Life,
    core: Option<Core>,
    store: Store,
    queue_ops: VecDeque<(u64, StoreOp)>,
    registry_ops: VecDeque<(u64, StoreOp)>,
    busy_to: [i64; 2],
    wake_at: Option<i64>,
    /// What is in custody, by sender and id: the number in the queue.
    custody: BTreeMap<(Fingerprint, MessageId), u64>,
    pub(super) disk_full_until: i64,
}

impl Relay {
    pub(super) fn new(rng: &mut StdRng) -> Self {
        let mut config = RelayConfig::embedded("/");
        config.limits.messages_per_minute = 100_000;
        config.limits.messages_per_hour = 100_000;
        config.limits.global_per_minute = 100_000;
        config.queue.strangers = 10_000;
        config.queue.stranger_each = 10_000;
        config.queue.unknown_recipient = 10_000;
        let rules = QueueRules { queue: config.queue.clone() };
        let _ = rng.next_u64();
        Self {
            config: Arc::new(config),
            life: 0,
            core: None,
            store: Store::in_memory(rules).expect("databases in memory"),
            queue_ops: VecDeque::new(),
            registry_ops: VecDeque::new(),
            busy_to: [0; 2],
            wake_at: None,
            custody: BTreeMap::new(),
            disk_full_until: 0,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.core.is_some()
    }

    pub(super) fn kill(&mut self) {
        self.core = None;
        self.life += 1;
        self.queue_ops.clear();
        self.registry_ops.clear();
        self.wake_at = None;
    }

    pub(super) fn holds(&self, sender: Fingerprint, id: &MessageId) -> bool {
        self.custody.contains_key(&(sender, id.clone()))
    }
}

impl World {
    pub(super) fn start_relay(&mut self) {
        if self.relay.is_up() {
            return;
        }
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let start = Start {
            last_seq: self.relay.store.last_seq(),
            totals: self.relay.store.totals(),
            relay_id: "relay-simulated".into(),
            signer: SigningKey::from_bytes(&[7; 32]),
            hosts: vec!["localhost".into()],
            seed,
        };
        self.relay.core = Some(Core::new(Arc::clone(&self.relay.config), start, self.now));
        self.relay_event(Event::Tick);
    }

    /// A connection attempt arrives.
    pub(super) fn dialled(&mut self, node: usize, life: Life, connection: ConnectionId) {
        if self.nodes[node].life() != life {
            return;
        }
        if !self.relay.is_up() {
            return self.soon(300, Happening::DialFailed { node, life, connection });
        }
        let socket = self.sockets.len();
        let conn = socket as u64;
        self.sockets.push(Socket::new(node, connection, conn));
        self.soon(50, Happening::Up { socket, life });
        let source = Source { net: [0; 8], pseudonym: [0; 16] };
        self.relay_event(Event::Opened { conn, source });
    }

    pub(super) fn relay_text(&mut self, socket: usize, text: &str) {
        let conn = self.sockets[socket].conn;
        self.relay_event(Event::Received { conn, inbound: Inbound::read(text) });
    }

    pub(super) fn relay_closed(&mut self, socket: usize) {
        let conn = self.sockets[socket].conn;
        self.relay_event(Event::Closed { conn });
    }

    pub(super) fn relay_wake(&mut self, at: i64) {
        if self.relay.wake_at == Some(at) {
            self.relay.wake_at = None;
            self.relay_event(Event::Tick);
        }
    }

    /// The oldest operation on one database takes effect; a crash from here on does not undo it.
    pub(super) fn relay_commit(&mut self, life: Life, registry: bool) {
        if self.relay.life != life {
            return;
        }
        let ops = if registry { &mut self.relay.registry_ops } else { &mut self.relay.queue_ops };
        let Some((ticket, op)) = ops.pop_front() else { return };
        let answer = self.carry_out(&op);
        // Answers of one database keep their order, as those of a writer thread do.
        let at = self.now.max(self.relay.busy_to[usize::from(registry)]) + self.rng.random_range(0..3);
        self.relay.busy_to[usize::from(registry)] = at;
        self.at(at, Happening::RelayReport { life, ticket, answer: Box::new(answer) });
    }

    pub(super) fn relay_report(&mut self, life: Life, ticket: u64, answer: Result<StoreAnswer, StoreFailed>) {
        if self.relay.life == life {
            self.relay_event(Event::Stored { ticket, answer });
        }
    }

    fn carry_out(&mut self, op: &StoreOp) -> Result<StoreAnswer, StoreFailed> {
        let reads = matches!(op, StoreOp::Queue(op) if op.is_read());
        if self.now < self.relay.disk_full_until && !reads {
            self.stats.failed_commits += 1;
            return Err(StoreFailed);
        }
        let answer = self.relay.store.apply(op)?;
        match (op, &answer) {
            (
                StoreOp::Queue(QueueOp::Accept(message)),
                StoreAnswer::Queue(QueueAnswer::Accepted(Accepted::Stored { .. })),
            ) => {
                self.relay.custody.insert((message.sender, message.id.clone()), message.seq);
            }
            (_, StoreAnswer::Queue(QueueAnswer::Confirmed(gone) | QueueAnswer::Expired(gone))) => {
                self.departed(gone);
            }
            _ => {}
        }
        Ok(answer)
    }

    /// What leaves custody must be in the recipient's hands.
    fn departed(&mut self, gone: &[Departed]) {
        for message in gone {
            self.relay.custody.remove(&(message.sender, message.id.clone()));
            if let Some(sender) = self.node_of(&message.sender) {
                self.check_place(sender, &message.id, "the relay let it go");
            }
        }
    }

    fn relay_event(&mut self, event: Event) {
        let Some(core) = self.relay.core.as_mut() else { return };
        core.handle(event, self.now);
        while let Some(effect) = self.relay.core.as_mut().and_then(Core::poll_effect) {
            self.relay_effect(effect);
        }
        let Some(next) = self.relay.core.as_ref().and_then(Core::next_deadline) else { return };
        if self.relay.wake_at.is_none_or(|at| next < at) {
            self.relay.wake_at = Some(next);
            self.at(next, Happening::RelayWake { at: next });
        }
    }

    fn relay_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Send { conn, what } => {
                let socket = conn as usize;
                self.transmit(socket, End::Node, what.to_text());
                if let Outgoing::Message(body) = what {
                    if self.defect == Defect::QueueDrainedEarly {
                        self.drain_early(&body);
                    }
                    self.trigger_relay();
                }
            }
            Effect::Close { conn, code, .. } => self.hang_up(conn as usize, End::Relay, Some(code)),
            Effect::Store { ticket, op } => {
                let registry = matches!(op, StoreOp::Registry(_));
                let ops = if registry { &mut self.relay.registry_ops } else { &mut self.relay.queue_ops };
                ops.push_back((ticket, op));
                let life = self.relay.life;
                self.soon(12, Happening::RelayCommit { life, registry });
            }
        }
    }

    fn drain_early(&mut self, body: &[u8]) {
        let Ok(header) = Envelope::parse(body).and_then(|e| e.header()) else { return };
        let Some(seq) = self.relay.custody.get(&(header.from, header.message_id)) else { return };
        let op =
            StoreOp::Queue(QueueOp::Confirm { recipient: header.to, seqs: vec![*seq], now_ms: self.now });
        let _ = self.carry_out(&op);
    }

    /// Sees to it that an accepted message that is not in its thread is in at least one durable place.
    pub(super) fn check_place(&mut self, sender: usize, id: &MessageId, when: &str) {
        if self.ledger.is_delivered(sender, id) {
            return;
        }
        let from = self.nodes[sender].address();
        let at_recipient =
            self.ledger.recipient(sender, id).is_some_and(|to| self.nodes[to].has_spooled(from, id));
        if !self.nodes[sender].will_repeat(id) && !self.relay.holds(from, id) && !at_recipient {
            let detail = format!("{id} of node {sender} when {when}");
            self.violate(Violation::Lost(detail));
        }
    }
}
