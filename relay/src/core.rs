//! Every decision of the relay, without sockets, files or clocks.
//!
//! An edge feeds [`Event`]s with the time and carries out the [`Effect`]s; a simulation does the same with a virtual
//! clock. What must survive is a [`StoreOp`]: the effect that depends on it is only emitted once
//! [`Event::Stored`] reports the commit.

mod bans;
mod bridge;
mod cluster;
mod conn;
mod delivery;
mod effect;
mod event;
mod inspect;
mod login;
mod pipeline;
mod presence;
mod refusal;
mod scan;
mod totals;
mod v2;
mod windows;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use threadline::v1::close;
use threadline::v1::frames::{ClientFrame, ErrorCode, FrameError, RelayError, ServerFrame};
use threadline::{Fingerprint, MessageId};

use crate::abuse::Abuse;
use crate::config::RelayConfig;
use crate::maps::{AddressMap, NumberMap, NumberSet};
use crate::metrics::{CarrierFigures, Figures};
use crate::store::{
    OnlineAgent, QueueAnswer, QueueOp, QueueTotals, RegistryAnswer, RegistryOp, StoreAnswer, StoreFailed,
    StoreOp,
};
use crate::sybil::Price;
pub use cluster::{ClusterEvent, Gone};
use conn::{Conn, Phase, Session};
pub use effect::{Effect, Lane, Outgoing, Written};
pub use event::{Event, Inbound, InboundFrame, Signature, Source, Submission};
pub use inspect::SessionInfo;
use pipeline::{Awaiting, Submitted};
use presence::{Leaving, Presences};
pub use totals::{Counters, Snapshot};
pub use v2::{V2Carrier, V2Frame};
use windows::CoreWindows;

/// Number of a connection, never used twice by one edge.
pub type ConnId = u64;

/// What the core starts from.
pub struct Start {
    /// Highest message number in storage.
    pub last_seq: u64,
    /// Totals of the queue in storage.
    pub totals: QueueTotals,
    /// Name in tokens.
    pub relay_id: String,
    /// Key that signs tokens, and what v2 says of the relay.
    pub signer: SigningKey,
    /// Names that this relay answers for.
    pub hosts: Vec<String>,
    /// Seed of everything random: nonces, session ids, jitter.
    pub seed: [u8; 32],
}

/// What a ticket stands for.
enum Pending {
    Login {
        conn: ConnId,
        key: [u8; 32],
    },
    /// What an identity that logs in by v1 said to other relays.
    LookedUp(ConnId),
    Accept(Box<Submitted>),
    Standing(Box<Submitted>),
    Backlog(ConnId),
    Confirm(Fingerprint, Vec<u64>),
    /// A message that its recipient does not want.
    Refused(Fingerprint, u64),
    Discover(ConnId, threadline::v1::frames::DiscoverFilter),
    V2(ConnId, v2::Pending),
    Ban(Fingerprint),
    /// Whether the address somebody wrote to was ever here.
    Lookup(Fingerprint),
    Sweep,
    Quiet,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Conn(ConnId),
    Offline(Fingerprint),
    Confirm(Fingerprint, Vec<u64>),
    Sweep,
}

const SWEEP_MS: i64 = 30_000;
const SWEEP_BATCH: u32 = 500;
/// Pause before a failed storage operation that must happen is tried again.
const RETRY_MS: i64 = 1_000;

/// The relay's state machine.
pub struct Core {
    config: Arc<RelayConfig>,
    relay_id: String,
    signer: SigningKey,
    hosts: Vec<String>,
    /// Whether what is accepted is on the disks of a majority of an engine.
    replicated: bool,
    /// Signs where pages of the directory go on.
    cursor_secret: [u8; 32],
    rng: StdRng,
    conns: NumberMap<ConnId, Conn>,
    /// Sessions of v1.
    sessions: AddressMap<Fingerprint, ConnId>,
    /// Sessions of v2: one per device.
    devices: AddressMap<Fingerprint, Vec<ConnId>>,
    price: Price,
    leaving: HashMap<Fingerprint, Leaving>,
    /// Sessions of agents on other relays of the cluster.
    remote: AddressMap<Fingerprint, Vec<OnlineAgent>>,
    presences: Presences,
    windows: CoreWindows,
    abuse: Abuse,
    pending: NumberMap<u64, Pending>,
    next_ticket: u64,
    last_seq: u64,
    /// Accepted messages whose sender has not heard yet, by number.
    awaiting: NumberMap<u64, Awaiting>,
    /// When each of them hears `queued`, in order: everybody waits equally long.
    patience: VecDeque<(i64, u64)>,
    /// Confirmed messages whose removal is not committed yet.
    confirming: NumberSet<u64>,
    timers: BTreeSet<(i64, Timer)>,
    /// Confirmed messages that storage has not heard of: whose, which, and since when.
    taken: Vec<(Fingerprint, Vec<u64>, i64)>,
    /// Sessions to which something can be written, and since when.
    stirred: Vec<(ConnId, i64)>,
    effects: VecDeque<Effect>,
    custody_open: bool,
    totals: QueueTotals,
    counters: Counters,
    figures: Figures,
    bridge: Option<bridge::Bridge>,
    /// Blobs under way.
    transfers: v2::Transfers,
}

impl Core {
    /// Starts with nobody connected. The first sweep for expired messages is due at once.
    pub fn new(config: Arc<RelayConfig>, start: Start, now_ms: i64) -> Self {
        let windows = CoreWindows::new(&config);
        let abuse = Abuse::new(&config.abuse, &config.limits);
        Self {
            config,
            relay_id: start.relay_id,
            signer: start.signer,
            hosts: start.hosts,
            replicated: false,
            cursor_secret: cursor_secret(&start.seed),
            rng: StdRng::from_seed(start.seed),
            conns: NumberMap::default(),
            sessions: AddressMap::default(),
            devices: AddressMap::default(),
            price: Price::default(),
            leaving: HashMap::new(),
            remote: AddressMap::default(),
            presences: Presences::default(),
            windows,
            abuse,
            pending: NumberMap::default(),
            next_ticket: 0,
            last_seq: start.last_seq,
            awaiting: NumberMap::default(),
            patience: VecDeque::new(),
            confirming: NumberSet::default(),
            timers: BTreeSet::from([(now_ms, Timer::Sweep)]),
            taken: Vec::new(),
            stirred: Vec::new(),
            effects: VecDeque::new(),
            custody_open: true,
            totals: start.totals,
            counters: Counters::default(),
            figures: Figures::default(),
            transfers: v2::Transfers::default(),
            bridge: None,
        }
    }

    /// What is accepted from now on is on the disks of a majority of an engine.
    pub fn set_replicated(&mut self) {
        self.replicated = true;
    }

    /// Takes one event; after it, or after several at the same time, [`Core::poll_effect`] until it is empty.
    pub fn handle(&mut self, event: Event, now_ms: i64) {
        match event {
            Event::Opened { conn, source } => self.opened(conn, source, now_ms),
            Event::OpenedV2 { conn, source, carrier } => self.opened_v2(conn, source, carrier, now_ms),
            Event::Received { conn, inbound } => self.received(conn, inbound, now_ms),
            Event::Closed { conn } => self.closed(conn, now_ms),
            Event::Stored { ticket, answer } => self.stored(ticket, answer, now_ms),
            Event::Custody { open } => self.custody_open = open,
            Event::Banned { address, until_ms } => self.end_banned(&address, until_ms, now_ms),
            Event::UnknownLookup { key } => self.looked_up_unknown(&key, now_ms),
            Event::BridgeAwaits { agent, thread, waits } => self.bridge_awaits(agent, thread, waits),
            Event::Dropped { gone } => self.dropped(gone, now_ms),
            Event::Listed { key, listed } => self.listed(&key, listed),
            Event::Cluster(event) => self.cluster(event, now_ms),
            Event::Tick => {}
        }
        self.run_timers(now_ms);
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if self.effects.is_empty() {
            self.finish_round();
        }
        self.effects.pop_front()
    }

    /// When [`Event::Tick`] is due, in Unix milliseconds.
    pub fn next_deadline(&self) -> Option<i64> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let patience = self.patience.front().map(|(at, _)| *at);
        timer.into_iter().chain(patience).min()
    }

    /// Whether the agent has a live session, or had one less than three seconds ago.
    pub fn is_online(&self, address: &Fingerprint) -> bool {
        self.is_live(address) || self.leaving.contains_key(address) || self.is_elsewhere(address)
    }

    fn received(&mut self, id: ConnId, inbound: Inbound, now_ms: i64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.bytes_before_login += inbound.bytes;
        let phase = match &conn.phase {
            Phase::Greeting(_) if conn.bytes_before_login > v2::MAX_BYTES => {
                return self.drop_conn(id, close::TOO_LARGE, "Too much before login", now_ms);
            }
            Phase::Challenged(_) | Phase::LoggingIn(_) if conn.bytes_before_login > login::MAX_BYTES => {
                return self.drop_conn(id, close::TOO_LARGE, "Too much before login", now_ms);
            }
            phase => phase.kind(),
        };
        let v2 = conn.is_v2();
        let frame = match inbound.content {
            Ok(frame) => frame,
            Err(error) => return self.junk(id, &error, now_ms),
        };
        match (phase, frame) {
            (_, InboundFrame::V2(frame)) => self.received_v2(id, *frame, now_ms),
            (_, _) if v2 => {
                if let Some(session) = self.session_mut(id) {
                    session.unanswered = 0;
                }
            }
            (conn::Kind::Before, InboundFrame::Other(frame)) if matches!(*frame, ClientFrame::Auth(_)) => {
                if let ClientFrame::Auth(auth) = *frame {
                    self.authenticate(id, *auth, now_ms);
                }
            }
            (conn::Kind::Before | conn::Kind::TokenOnly, InboundFrame::Control) => {}
            (conn::Kind::Before | conn::Kind::TokenOnly, _) => {
                self.send_error(id, ErrorCode::AuthFailed, "Not authenticated");
            }
            (conn::Kind::Live, InboundFrame::Message(submission)) => self.submit(id, *submission, now_ms),
            (conn::Kind::Live, InboundFrame::Other(frame)) => self.frame(id, *frame, now_ms),
            (conn::Kind::Live, InboundFrame::Control) => {
                self.count_frame(id, now_ms);
            }
        }
    }

    /// Counts a frame that nobody asked for. Returns whether the session may go on.
    fn count_frame(&mut self, id: ConnId, now_ms: i64) -> bool {
        let within = self.windows.frames.take(&id, now_ms).is_ok();
        if !within {
            self.send_error(id, ErrorCode::RateLimited, "Too many frames");
            self.drop_conn(id, close::AUTH_RATE_LIMITED, "Too many frames", now_ms);
        }
        within
    }

    fn frame(&mut self, id: ConnId, frame: ClientFrame, now_ms: i64) {
        let expected = match &frame {
            ClientFrame::Ack(ack) => self.taken(id, ack, now_ms),
            ClientFrame::Pong(_) => self.ponged(id, now_ms),
            ClientFrame::Message(_) | ClientFrame::FlatMessage(_) => true,
            _ => false,
        };
        if !expected && !self.count_frame(id, now_ms) {
            return;
        }
        match frame {
            ClientFrame::Discover(filter) => self.discover(id, filter.unwrap_or_default(), now_ms),
            ClientFrame::Subscribe(ids) => self.subscribe(id, ids),
            ClientFrame::Presence(notice) if notice.status == "offline" => {
                self.drop_conn(id, close::NORMAL, "Agent going offline", now_ms);
            }
            ClientFrame::FlatMessage(flat) => self.submit_flat(id, flat, now_ms),
            ClientFrame::Message(envelope) => self.submit(id, Submission::new(envelope), now_ms),
            ClientFrame::Auth(_) => {
                self.send_error(id, ErrorCode::AuthFailed, "Already authenticated");
            }
            ClientFrame::Ack(_) | ClientFrame::Pong(_) | ClientFrame::Presence(_) => {}
        }
    }

    fn junk(&mut self, id: ConnId, error: &FrameError, now_ms: i64) {
        self.send_error(id, ErrorCode::InvalidFrame, error.to_string());
        if matches!(error, FrameError::TooLarge(_)) {
            self.strike(id, now_ms);
            return self.drop_conn(id, close::TOO_LARGE, "Frame too large", now_ms);
        }
        self.malformed(id, now_ms);
    }

    fn stored(&mut self, ticket: u64, answer: Result<StoreAnswer, StoreFailed>, now_ms: i64) {
        let Some(pending) = self.pending.remove(&ticket) else { return };
        match (pending, answer) {
            (Pending::Login { conn, key }, Ok(StoreAnswer::Registry(RegistryAnswer::Login(outcome)))) => {
                self.logged_in(conn, &key, outcome, now_ms);
            }
            (Pending::Login { conn, .. }, _) => self.login_failed(conn, now_ms),
            // Where the engine is silent, what this relay knows counts.
            (Pending::LookedUp(conn), _) => self.ask_in(conn, now_ms),
            (Pending::Accept(sub), Ok(StoreAnswer::Queue(QueueAnswer::Accepted(outcome)))) => {
                self.accepted(*sub, outcome, now_ms);
            }
            (Pending::Accept(sub), _) => self.not_stored(&sub),
            (Pending::Standing(sub), Ok(StoreAnswer::Queue(QueueAnswer::Standing { standing, reply }))) => {
                self.standing(*sub, standing, reply, now_ms);
            }
            (Pending::Standing(sub), _) => self.reject(&sub, &refusal::Refusal::Storage),
            (Pending::Backlog(conn), Ok(StoreAnswer::Queue(QueueAnswer::Backlog { rows, more }))) => {
                self.backlog(conn, rows, more, now_ms);
            }
            (Pending::Backlog(conn), _) => self.backlog_failed(conn, now_ms),
            (Pending::Confirm(_, seqs), Ok(StoreAnswer::Queue(QueueAnswer::Confirmed(gone)))) => {
                for message in &gone {
                    self.figures.deliver.add((now_ms - message.stored_ms) as f64);
                }
                self.confirmed(&seqs, gone, now_ms);
            }
            (Pending::Refused(_, seq), Ok(StoreAnswer::Queue(QueueAnswer::Confirmed(gone)))) => {
                self.confirming.remove(&seq);
                self.awaiting.remove(&seq);
                self.dropped(gone, now_ms);
            }
            (Pending::Refused(recipient, seq), _) => {
                self.timers.insert((now_ms + RETRY_MS, Timer::Confirm(recipient, vec![seq])));
            }
            (Pending::Confirm(recipient, seqs), _) => {
                self.timers.insert((now_ms + RETRY_MS, Timer::Confirm(recipient, seqs)));
            }
            (Pending::Discover(conn, filter), Ok(StoreAnswer::Registry(RegistryAnswer::Found(found)))) => {
                self.discovered(conn, &filter, found, now_ms);
            }
            (Pending::Discover(conn, _), _) => {
                self.send_error(conn, ErrorCode::InternalError, "The directory is unavailable");
            }
            (Pending::Lookup(sender), Ok(StoreAnswer::Registry(RegistryAnswer::Known(false)))) => {
                self.wrote_to_unknown(&sender, now_ms);
            }
            (Pending::V2(conn, pending), answer) => self.stored_v2(conn, pending, answer, now_ms),
            (Pending::Ban(address), answer) => self.banned(&address, answer, now_ms),
            (Pending::Sweep, Ok(StoreAnswer::Queue(QueueAnswer::Expired(gone)))) => {
                self.expired(gone, now_ms);
            }
            (Pending::Sweep | Pending::Quiet | Pending::Lookup(_), _) => {}
        }
    }

    fn run_timers(&mut self, now_ms: i64) {
        while let Some((at, seq)) = self.patience.front().copied()
            && at <= now_ms
        {
            self.patience.pop_front();
            self.answer_due(seq, now_ms);
        }
        while let Some((at, _)) = self.timers.first()
            && *at <= now_ms
        {
            let Some((at, timer)) = self.timers.pop_first() else { return };
            match timer {
                Timer::Conn(id) => self.conn_due(id, at, now_ms),
                Timer::Offline(address) => self.offline_due(&address, now_ms),
                Timer::Confirm(recipient, seqs) => {
                    let pending = Pending::Confirm(recipient, seqs.clone());
                    self.store_queue(pending, QueueOp::Confirm { recipient, seqs, now_ms });
                }
                Timer::Sweep => {
                    self.windows.forget_idle(now_ms);
                    self.transfers.forget_idle(now_ms);
                    self.abuse.forget_idle(self.windows.turn(), now_ms);
                    self.store_queue(Pending::Sweep, QueueOp::Expire { now_ms, limit: SWEEP_BATCH });
                    self.timers.insert((now_ms + SWEEP_MS, Timer::Sweep));
                }
            }
        }
    }

    fn conn_due(&mut self, id: ConnId, at: i64, now_ms: i64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.wake_at != Some(at) {
            return;
        }
        conn.wake_at = None;
        match &conn.phase {
            Phase::Challenged(_) | Phase::LoggingIn(_) => {
                if now_ms - conn.opened_ms >= login::TIMEOUT_MS {
                    self.counters.auth_failures += 1;
                    self.send_auth_error(id, ErrorCode::AuthTimeout, "Authentication timed out");
                    self.drop_conn(id, close::AUTH_TIMEOUT, "Authentication timed out", now_ms);
                }
            }
            Phase::Greeting(_) => self.greeting_due(id, now_ms),
            Phase::TokenOnly => self.drop_conn(id, close::NORMAL, "Token session ended", now_ms),
            Phase::Live(_) => self.session_due(id, now_ms),
        }
    }

    /// Sees to it that [`Core::conn_due`] runs at `at` or earlier.
    fn wake(&mut self, id: ConnId, at: i64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match conn.wake_at {
            Some(earlier) if earlier <= at => return,
            Some(later) => {
                self.timers.remove(&(later, Timer::Conn(id)));
            }
            None => {}
        }
        conn.wake_at = Some(at);
        self.timers.insert((at, Timer::Conn(id)));
    }

    /// The figures of what carries a session.
    fn carrier_figures(&mut self, id: ConnId) -> Option<&mut CarrierFigures> {
        let carrier = self.session(id)?.carrier();
        self.figures.carriers.get_mut(carrier)
    }

    fn session(&self, id: ConnId) -> Option<&Session> {
        self.conns.get(&id)?.session()
    }

    fn session_mut(&mut self, id: ConnId) -> Option<&mut Session> {
        self.conns.get_mut(&id)?.session_mut()
    }

    /// Closes a connection from our side and forgets it.
    fn drop_conn(&mut self, id: ConnId, code: u16, reason: &'static str, now_ms: i64) {
        if let Some(conn) = self.conns.get(&id) {
            let code = if conn.is_v2() { v2::close_code(code) } else { code };
            self.effects.push_back(Effect::Close { conn: id, code, reason });
            self.closed(id, now_ms);
        }
    }

    fn closed(&mut self, id: ConnId, now_ms: i64) {
        let Some(conn) = self.conns.remove(&id) else { return };
        if let Some(at) = conn.wake_at {
            self.timers.remove(&(at, Timer::Conn(id)));
        }
        self.windows.left(&conn.source, conn.is_before_login());
        if let Phase::Live(session) = conn.phase {
            self.presences.forget(id, &session);
            self.give_back(&session);
            if let Some(device) = &session.device {
                self.end_blobs(id, &device.blobs);
            }
            let address = session.address;
            let listed = if session.device.is_some() {
                self.forget_device(&address, id)
            } else if self.sessions.get(&address) == Some(&id) {
                self.sessions.remove(&address).is_some()
            } else {
                false
            };
            if listed {
                let device = session.device.as_ref().map(|device| device.id);
                if self.is_live(&address) {
                    self.give_up_claim(address, session.slot());
                    self.left_beside_others(&address, device, session.key, now_ms);
                } else if self.is_elsewhere(&address) {
                    self.give_up_claim(address, session.slot());
                } else {
                    self.start_leaving(*session, now_ms);
                }
            }
        }
    }

    fn store_queue(&mut self, pending: Pending, op: QueueOp) {
        self.store(pending, StoreOp::Queue(op));
    }

    fn store_registry(&mut self, pending: Pending, op: RegistryOp) {
        self.store(pending, StoreOp::Registry(op));
    }

    fn store(&mut self, pending: Pending, op: StoreOp) {
        self.next_ticket += 1;
        self.pending.insert(self.next_ticket, pending);
        self.effects.push_back(Effect::Store { ticket: self.next_ticket, op });
    }

    fn send(&mut self, conn: ConnId, frame: ServerFrame) {
        if self.conns.get(&conn).is_some_and(Conn::is_v2) {
            if let Some(frame) = v2::translate(&frame) {
                self.write_v2(conn, frame);
            }
            return;
        }
        self.effects.push_back(Effect::Send { conn, what: Outgoing::Frame(Box::new(frame)) });
    }

    /// To the live session of an agent, if it has one.
    fn send_to(&mut self, address: Fingerprint, frame: ServerFrame) {
        if let Some(conn) = self.sessions.get(&address).copied() {
            self.send(conn, frame);
        }
    }

    /// Tells a sender what became of its message: delivered, or queued for so many seconds.
    fn send_fate(&mut self, to: Fingerprint, id: MessageId, ttl: Option<u64>) {
        if let Some(conn) = self.sessions.get(&to).copied() {
            self.effects.push_back(Effect::Send { conn, what: Outgoing::Fate(id, ttl) });
        }
    }

    fn send_error(&mut self, conn: ConnId, code: ErrorCode, message: impl Into<String>) {
        let error = RelayError { code, message: message.into(), related_message_id: None };
        self.send(conn, ServerFrame::Error(error));
    }

    fn send_auth_error(&mut self, conn: ConnId, code: ErrorCode, message: impl Into<String>) {
        let error = RelayError { code, message: message.into(), related_message_id: None };
        self.send(conn, ServerFrame::AuthError(error));
    }

    fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests;

/// Another key than what the seed's generator gives out.
fn cursor_secret(seed: &[u8; 32]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::new_with_prefix(b"threadline-relay cursor").chain_update(seed).finalize().into()
}
