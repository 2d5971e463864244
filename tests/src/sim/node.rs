//! A node: its link, its spool, its pipeline and its outbox, as far as the mesh can tell.

mod pipeline;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rand::RngExt as _;
use rand::rngs::StdRng;
use sha2::{Digest as _, Sha256};
use threadline::delivery::{
    DEFAULT_TTL_MS, Delivery, DeliveryState, Evidence, RESUME_JITTER_MS, due_in_order,
};
use threadline::identity::Identity;
use threadline::inbound::{Incoming, Refusal};
use threadline::limits::Window;
use threadline::v1::client::{
    ACK_PATIENCE_MS, Client, ClientConfig, ConnectionId, DeliveryEvent, Effect, LinkState, Ticket,
};
use threadline::v1::envelope::{Content, Envelope, Header, clear, seal};
use threadline::v1::frames::{ErrorCode, Metadata, Visibility};
use threadline::{Fingerprint, MessageId, ThreadId, TrustLevel};

use super::Defect;
use super::ledger::Violation;
use super::socket::End;
use super::world::{Happening, Life, World};

/// A node that comes to a final state is switched on again by its owner after this time, ms.
const OWNER_MS: i64 = 60_000;
/// Pause before a failed commit is tried again, ms.
const STORE_RETRY_MS: i64 = 1_000;
const ANSWERS: u32 = 30;

/// Something that is to be said.
#[derive(Debug, Clone)]
pub(super) struct Saying {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) thread: ThreadId,
    pub(super) answers: Option<MessageId>,
}

/// Evidence about a message, on its way to storage.
#[derive(Debug, Clone)]
pub(super) struct Learnt {
    id: MessageId,
    evidence: Evidence,
}

struct SpoolRow {
    from: Fingerprint,
    id: MessageId,
    bytes: Vec<u8>,
    received_at: i64,
    is_new: bool,
}

struct OutboxRow {
    peer: Fingerprint,
    thread: ThreadId,
    id: MessageId,
    envelope: Envelope,
    delivery: Delivery,
}

struct Stored {
    at: i64,
    body_hash: [u8; 32],
}

/// What survives a crash.
#[derive(Default)]
struct Disk {
    spool: Vec<SpoolRow>,
    spool_keys: BTreeSet<(Fingerprint, MessageId, [u8; 32])>,
    ingested_to: usize,
    seen: BTreeSet<(Fingerprint, MessageId)>,
    threads: BTreeMap<(Fingerprint, ThreadId), Vec<Stored>>,
    windows: BTreeMap<(&'static str, String), VecDeque<i64>>,
    outbox: Vec<OutboxRow>,
    minted: u64,
}

/// What a crash destroys.
struct Process {
    client: Client,
    socket: Option<usize>,
    /// Received and not yet given to a commit.
    unstored: Vec<(Ticket, Envelope)>,
    /// In a commit that runs.
    storing: Vec<(Ticket, Envelope)>,
    /// Committed and not yet reported.
    stored: Vec<Ticket>,
    committing: bool,
    ingesting: bool,
    written: BTreeMap<MessageId, i64>,
    answers_left: u32,
    restart_planned: bool,
}

/// A node process and its disk.
pub(super) struct Node {
    identity: Arc<Identity>,
    /// Address and pinned key of the others, and how far they are trusted.
    peers: BTreeMap<Fingerprint, (usize, Identity, TrustLevel)>,
    life: Life,
    disk: Disk,
    process: Option<Process>,
    wake_at: Option<i64>,
    /// Whether the node knows the relay to be one of ours, so that its word counts as custody.
    relay_is_ours: bool,
    pub(super) disk_full_until: i64,
}

impl Node {
    pub(super) fn all(count: usize, rng: &mut StdRng) -> Vec<Self> {
        let identities: Vec<Identity> = (0..count).map(|_| Identity::generate(rng)).collect();
        let ours = rng.random_ratio(3, 4);
        let mut nodes = Vec::new();
        for (me, identity) in identities.iter().enumerate() {
            let others = identities.iter().enumerate().filter(|(other, _)| *other != me);
            let peers = others
                .map(|(number, other)| {
                    let level = match rng.random_range(0..10) {
                        0 => TrustLevel::Trusted,
                        1 => TrustLevel::Autonomous,
                        _ => TrustLevel::Verified,
                    };
                    (other.fingerprint(), (number, other.clone(), level))
                })
                .collect();
            nodes.push(Self {
                identity: Arc::new(identity.clone()),
                peers,
                life: 0,
                disk: Disk::default(),
                process: None,
                wake_at: None,
                relay_is_ours: ours,
                disk_full_until: 0,
            });
        }
        nodes
    }

    pub(super) fn address(&self) -> Fingerprint {
        self.identity.fingerprint()
    }

    pub(super) fn life(&self) -> Life {
        self.life
    }

    pub(super) fn is_up(&self) -> bool {
        self.process.is_some()
    }

    pub(super) fn kill(&mut self) {
        self.process = None;
        self.life += 1;
        self.wake_at = None;
    }

    /// Whether the outbox will write the message again.
    pub(super) fn will_repeat(&self, id: &MessageId) -> bool {
        let mut rows = self.disk.outbox.iter();
        rows.any(|row| {
            row.id == *id && !row.delivery.state.is_final() && row.delivery.next_retry_at.is_some()
        })
    }

    /// Whether the spool holds the message and will ingest it.
    pub(super) fn has_spooled(&self, from: Fingerprint, id: &MessageId) -> bool {
        self.disk.spool.iter().any(|row| row.is_new && row.from == from && row.id == *id)
    }
}

impl World {
    pub(super) fn node_of(&self, address: &Fingerprint) -> Option<usize> {
        self.nodes.iter().position(|node| node.address() == *address)
    }

    pub(super) fn start_node(&mut self, node: usize) {
        if self.nodes[node].is_up() {
            return;
        }
        let seed = self.rng.random();
        let now = self.now;
        let forget = self.defect == Defect::DedupForgotten;
        let this = &mut self.nodes[node];
        if forget {
            this.disk.seen.clear();
            this.disk.spool_keys.clear();
        }
        for row in &mut this.disk.outbox {
            if row.delivery.next_retry_at.is_some() {
                row.delivery.next_retry_at = Some(now + self.rng.random_range(0..=RESUME_JITTER_MS));
            }
        }
        let config = ClientConfig {
            url: "ws://relay/v1/connect".into(),
            metadata: Metadata { name: format!("node {node}"), ..Metadata::default() },
            visibility: Visibility::Unlisted,
            registry: None,
            watch_presence: false,
        };
        let mut client = Client::new(config, Arc::clone(&this.identity), seed);
        client.start(now);
        this.process = Some(Process {
            client,
            socket: None,
            unstored: Vec::new(),
            storing: Vec::new(),
            stored: Vec::new(),
            committing: false,
            ingesting: false,
            written: BTreeMap::new(),
            answers_left: ANSWERS,
            restart_planned: false,
        });
        self.plan_ingest(node);
        self.settle(node);
    }

    pub(super) fn dial_failed(&mut self, node: usize, life: Life, connection: ConnectionId) {
        let now = self.now;
        self.with_client(node, life, |client| client.handle_closed(connection, None, "refused", now));
    }

    pub(super) fn node_connected(&mut self, socket: usize, life: Life) {
        let (node, connection) = (self.sockets[socket].node, self.sockets[socket].connection);
        let now = self.now;
        let this = &mut self.nodes[node];
        let Some(process) = this.process.as_mut().filter(|_| this.life == life) else { return };
        process.socket = Some(socket);
        self.with_client(node, life, |client| client.handle_connected(connection, now));
    }

    pub(super) fn node_text(&mut self, socket: usize, text: &str) {
        let (node, connection) = (self.sockets[socket].node, self.sockets[socket].connection);
        let (now, life) = (self.now, self.nodes[node].life);
        self.with_client(node, life, |client| client.handle_text(connection, text, now));
        let bad = self.nodes[node].process.as_ref().is_some_and(|p| p.client.bad_frames() > 0);
        if bad {
            self.violate(Violation::BadFrame(text.chars().take(200).collect()));
        }
    }

    pub(super) fn node_closed(&mut self, socket: usize, code: Option<u16>) {
        let (node, connection) = (self.sockets[socket].node, self.sockets[socket].connection);
        let (now, life) = (self.now, self.nodes[node].life);
        self.with_client(node, life, |client| client.handle_closed(connection, code, "gone", now));
    }

    pub(super) fn node_wake(&mut self, node: usize, at: i64) {
        if self.nodes[node].wake_at != Some(at) {
            return;
        }
        self.nodes[node].wake_at = None;
        let (now, life) = (self.now, self.nodes[node].life);
        self.with_client(node, life, |client| {
            if client.state().is_final() {
                client.start(now);
            } else if client.poll_timeout().is_some_and(|due| due <= now) {
                client.handle_timeout(now);
            }
        });
    }

    fn with_client(&mut self, node: usize, life: Life, act: impl FnOnce(&mut Client)) {
        if self.nodes[node].life != life {
            return;
        }
        let Some(process) = self.nodes[node].process.as_mut() else { return };
        act(&mut process.client);
        self.settle(node);
    }

    /// Carries out every effect of the link, then writes what is due, then sets the timer.
    fn settle(&mut self, node: usize) {
        loop {
            while let Some(effect) = self.nodes[node].process.as_mut().and_then(|p| p.client.poll_effect()) {
                self.node_effect(node, effect);
            }
            if !self.pump(node) {
                break;
            }
        }
        self.plan_commit(node);
        self.set_timer(node);
    }

    fn node_effect(&mut self, node: usize, effect: Effect) {
        let life = self.nodes[node].life;
        let Some(process) = self.nodes[node].process.as_mut() else { return };
        match effect {
            Effect::Connect { connection, .. } => {
                process.socket = None;
                self.soon(60, Happening::Dial { node, life, connection });
            }
            Effect::Send { connection, text, message } => {
                let Some(socket) = process.socket.filter(|s| self.sockets[*s].connection == connection)
                else {
                    return;
                };
                if let Some(id) = message {
                    process.client.handle_written(connection, &id);
                }
                self.transmit(socket, End::Relay, text);
            }
            Effect::Close { connection, code } => {
                if let Some(socket) = process.socket.take_if(|s| self.sockets[*s].connection == connection) {
                    self.hang_up(socket, End::Node, Some(code));
                }
            }
            Effect::Store { ticket, envelope } => {
                if self.defect == Defect::AckBeforeStore {
                    process.client.spooled(&ticket);
                }
                let us = self.nodes[node].address();
                if envelope.header().is_ok_and(|header| header.to == us) {
                    if let Some(process) = self.nodes[node].process.as_mut() {
                        process.unstored.push((ticket, envelope));
                    }
                } else {
                    self.violate(Violation::Refused(format!("node {node} was given foreign mail")));
                }
                self.trigger_node(node);
            }
            Effect::Delivery { message_id, event, .. } => {
                if event != DeliveryEvent::Written {
                    process.written.remove(&message_id);
                }
                let learnt =
                    Learnt { id: message_id, evidence: Evidence::of(&event, self.nodes[node].relay_is_ours) };
                self.soon(8, Happening::Learn { node, life, learnt });
            }
            Effect::Link(change) => {
                process.written.clear();
                match change.state {
                    LinkState::Ready { .. } => {
                        self.stats.logins += 1;
                        for row in &mut self.nodes[node].disk.outbox {
                            let due = &mut row.delivery.next_retry_at;
                            *due = due.map(|at| at.min(change.at));
                        }
                    }
                    _ => process.unstored.clear(),
                }
            }
            Effect::AgentsChanged | Effect::RegistryToken { .. } => {}
            // The relay says so when its disk is full.
            Effect::RelayError(error) if error.code == ErrorCode::InternalError => {}
            Effect::RelayError(error) => {
                let detail = format!("node {node}: {error:?}");
                self.violate(Violation::Refused(detail));
            }
        }
    }

    fn set_timer(&mut self, node: usize) {
        let now = self.now;
        let this = &mut self.nodes[node];
        let Some(process) = this.process.as_mut() else { return };
        let mut next = process.client.poll_timeout();
        if process.client.state().is_final() && !process.restart_planned {
            process.restart_planned = true;
            next = Some(now + OWNER_MS);
        }
        if process.client.free_places() > 0 {
            let retries = this.disk.outbox.iter().filter_map(|row| row.delivery.next_retry_at);
            // What is due but was written a moment ago waits for its acknowledgement.
            next = next.into_iter().chain(retries.map(|at| if at <= now { now + 5_000 } else { at })).min();
        }
        if let Some(next) = next
            && this.wake_at.is_none_or(|at| next < at)
        {
            this.wake_at = Some(next);
            self.at(next, Happening::NodeWake { node, at: next });
        }
    }

    /// Writes one message that is due. Returns whether it did.
    fn pump(&mut self, node: usize) -> bool {
        let now = self.now;
        let this = &mut self.nodes[node];
        let Some(process) = this.process.as_mut() else { return false };
        if process.client.free_places() == 0 {
            return false;
        }
        let rows = this.disk.outbox.iter().map(|row| ((row.peer, &row.thread), &row.delivery));
        let recently = |id: &MessageId| process.written.get(id).is_some_and(|at| now - at < ACK_PATIENCE_MS);
        let due = if self.defect == Defect::ThreadOrderIgnored {
            rows.enumerate().filter(|(_, (_, row))| row.is_due(now, false)).map(|(at, _)| at).collect()
        } else {
            due_in_order(rows, now, false)
        };
        let Some(at) = due.into_iter().find(|at| !recently(&this.disk.outbox[*at].id)) else { return false };
        let row = &mut this.disk.outbox[at];
        row.delivery.attempted(now);
        process.written.insert(row.id.clone(), now);
        process.client.send(&row.envelope, now).is_ok()
    }

    fn plan_commit(&mut self, node: usize) {
        let life = self.nodes[node].life;
        let Some(process) = self.nodes[node].process.as_mut() else { return };
        if process.committing || process.unstored.is_empty() {
            return;
        }
        process.committing = true;
        process.storing = std::mem::take(&mut process.unstored);
        self.soon(15, Happening::SpoolCommit { node, life });
    }

    /// The spool commits; a crash from here on does not undo it.
    pub(super) fn spool_commit(&mut self, node: usize, life: Life) {
        let now = self.now;
        let this = &mut self.nodes[node];
        let Some(process) = this.process.as_mut().filter(|_| this.life == life) else { return };
        if now < this.disk_full_until {
            self.stats.failed_commits += 1;
            return self.at(now + STORE_RETRY_MS, Happening::SpoolCommit { node, life });
        }
        for (ticket, envelope) in std::mem::take(&mut process.storing) {
            let bytes = envelope.to_bytes();
            let Ok(header) = envelope.header() else { continue };
            let key = (header.from, header.message_id.clone(), Sha256::digest(&bytes).into());
            if this.disk.spool_keys.insert(key) {
                let row = SpoolRow {
                    from: header.from,
                    id: header.message_id,
                    bytes,
                    received_at: now,
                    is_new: true,
                };
                this.disk.spool.push(row);
            } else {
                self.stats.duplicates += 1;
            }
            process.stored.push(ticket);
        }
        self.soon(8, Happening::SpoolReport { node, life });
        self.plan_ingest(node);
    }

    pub(super) fn spool_report(&mut self, node: usize, life: Life) {
        let this = &mut self.nodes[node];
        let Some(process) = this.process.as_mut().filter(|_| this.life == life) else { return };
        process.committing = false;
        for ticket in std::mem::take(&mut process.stored) {
            process.client.spooled(&ticket);
        }
        self.settle(node);
    }

    fn plan_ingest(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        let life = this.life;
        let Some(process) = this.process.as_mut() else { return };
        if !process.ingesting && this.disk.ingested_to < this.disk.spool.len() {
            process.ingesting = true;
            self.soon(10, Happening::Ingest { node, life });
        }
    }

    /// One row of the spool goes through the pipeline, in one transaction.
    pub(super) fn ingest(&mut self, node: usize, life: Life) {
        let this = &mut self.nodes[node];
        let Some(process) = this.process.as_mut().filter(|_| this.life == life) else { return };
        process.ingesting = false;
        let Some(row) = this.disk.spool.get_mut(this.disk.ingested_to) else { return };
        row.is_new = false;
        this.disk.ingested_to += 1;
        let (bytes, received_at) = (row.bytes.clone(), row.received_at);
        match this.judge(&bytes, received_at, self.now) {
            Ok((incoming, record)) => self.store(node, incoming, &record),
            Err(Some(Refusal::Duplicate)) => self.stats.duplicates += 1,
            Err(refusal) => self.violate(Violation::Refused(format!("node {node}: {refusal:?}"))),
        }
        self.plan_ingest(node);
        self.settle(node);
    }

    /// What the pipeline's commit does: the message, its id, the windows, and what it proves about ours.
    fn store(&mut self, node: usize, incoming: Incoming, record: &[Window]) {
        let now = self.now;
        let this = &mut self.nodes[node];
        let Header { from, thread_id, message_id, .. } = incoming.header.clone();
        let thread = thread_id.expect("every message here names its thread");
        for window in record {
            this.disk.windows.entry((window.limit, window.key.clone())).or_default().push_back(now);
        }
        this.disk.seen.insert((from, message_id.clone()));
        let stored = Stored { at: now, body_hash: incoming.body_hash };
        this.disk.threads.entry((from, thread.clone())).or_default().push(stored);
        let answered = incoming.in_reply_to();
        let mut proven = Vec::new();
        for row in this.disk.outbox.iter_mut().filter(|row| row.peer == from && row.thread == thread) {
            let evidence =
                if answered == Some(row.id.as_str()) { Evidence::Reply } else { Evidence::LaterMessage };
            if row.delivery.learn(evidence, now) {
                proven.push(row.id.clone());
            }
        }
        let Some((sender, ..)) = this.peers.get(&from) else { return };
        let sender = *sender;
        for id in proven {
            self.check_place(node, &id, "a message of the peer confirmed it");
        }
        if let Err(violation) = self.ledger.appended(&(sender, node, thread.clone()), &message_id) {
            return self.violate(violation);
        }
        let process = self.nodes[node].process.as_mut();
        if let Some(process) = process.filter(|p| p.answers_left > 0)
            && self.rng.random_ratio(1, 6)
        {
            process.answers_left -= 1;
            let at = now + self.rng.random_range(10..3_000);
            self.plan_saying(at, Saying { from: node, to: sender, thread, answers: Some(message_id) });
        }
    }

    pub(super) fn learn(&mut self, node: usize, life: Life, learnt: &Learnt) {
        let this = &mut self.nodes[node];
        if this.life != life {
            return;
        }
        let Some(row) = this.disk.outbox.iter_mut().find(|row| row.id == learnt.id) else { return };
        row.delivery.learn(learnt.evidence, self.now);
        if matches!(row.delivery.state, DeliveryState::Failed | DeliveryState::Expired) {
            let detail = format!("{} of node {node} ended as {:?}", learnt.id, row.delivery.state);
            self.violate(Violation::Refused(detail));
        }
        self.check_place(node, &learnt.id, "its sender learnt of it");
        self.settle(node);
    }

    /// Somebody says something: from the commit of the outbox row on it is accepted.
    pub(super) fn say(&mut self, saying: Saying) {
        let now = self.now;
        self.said();
        if !self.nodes[saying.from].is_up() {
            // A person tries again; an answer of a session that died is not promised to anybody.
            if saying.answers.is_none() {
                self.plan_saying(now + 3_000, saying);
            }
            return;
        }
        let Saying { from, to, thread, answers } = saying;
        let to_address = self.nodes[to].address();
        let number = {
            let disk = &mut self.nodes[from].disk;
            disk.minted += 1;
            disk.minted
        };
        let id: MessageId = format!("m-{from}-{number}").parse().expect("an id");
        let this = &self.nodes[from];
        let Some((_, peer, _)) = this.peers.get(&to_address) else { return };
        let header = Header {
            from: this.address(),
            to: to_address,
            thread_id: Some(thread.clone()),
            message_id: id.clone(),
            timestamp: now,
        };
        let metadata = answers.map(|id| {
            let value = serde_json::json!({"inReplyTo": id});
            value.as_object().cloned().unwrap_or_default()
        });
        let content =
            Content { text: format!("words {number} of {from}"), kind: Some("chat".into()), metadata };
        // Peers above verified take nothing in clear.
        let plain = self.nodes[to].peers.get(&header.from).is_some_and(|(.., l)| *l == TrustLevel::Verified);
        let envelope = if plain && self.rng.random_ratio(5, 6) {
            clear(&header, &content)
        } else {
            seal(&this.identity, peer.public(), &header, &content, &mut self.rng).expect("matching keys")
        };
        let delivery = Delivery::new(now, DEFAULT_TTL_MS, true);
        let row = OutboxRow { peer: to_address, thread: thread.clone(), id: id.clone(), envelope, delivery };
        self.nodes[from].disk.outbox.push(row);
        self.ledger.accepted((from, to, thread), id);
        self.settle(from);
    }
}
