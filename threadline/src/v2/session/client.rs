//! The node's end: races the carriers, proves its key, keeps the session, numbers its requests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::backoff::Backoff;
use super::{Carrier, close};
use crate::identity::{Identity, Purpose};
use crate::v2::frames::{
    Accepted, BlobOpen, Challenge, Deliver, Fault, Frame, FrameId, GoAway, Hello, KeysClaim, KeysOk, KeysPut,
    Lookup, MAX_TAKEN, NotTaken, Outcome, Ping, Pow, PowDone, Presence, PresenceSet, Proof, Refuse, Rejected,
    Role, Search, Send, Taken, Target, Watch, Welcome,
};
use crate::v2::login::{PowPuzzle, WsExchange};
use crate::v2::{Bin, Blob, Code, Id, Key};

/// WebSocket/2 starts this long after QUIC, ms.
pub const RACE_HEAD_START_MS: u64 = 300;
/// QUIC failures in a row after which WebSocket/2 goes first.
pub const QUIC_PATIENCE: u32 = 3;
/// QUIC is tried again beside a WebSocket session after this, ms.
pub const QUIC_PROBE_MS: u64 = 15 * 60_000;
/// An attempt has this long to reach WELCOME, ms.
pub const ATTEMPT_MS: u64 = 10_000;
/// Silence after which the relay is asked whether it is there, ms.
pub const PING_AFTER_MS: u64 = 25_000;
/// The same after a message that it was given: a socket that is dead at its other end takes bytes and says nothing, ms.
pub const SUSPECT_AFTER_MS: u64 = 3_000;
/// The answer has to come within this time, or the relay counts as gone, ms.
pub const PONG_MS: u64 = 10_000;
/// See [`ClientSession::hurry`], ms.
const HURRY_MS: u64 = 1_000;
/// A session of this length makes the next pause short again, ms.
const STABLE_MS: u64 = 60_000;
const BAN_MS: u64 = 3_600_000;

/// Number of a connection, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

/// What a client session needs to know.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The relay's key: pinned, or configured.
    pub relay: Key,
    /// The name that is dialled.
    pub host: String,
    /// Whether the relay speaks QUIC.
    pub quic: bool,
    /// Whether the relay speaks WebSocket/2.
    pub websocket: bool,
    /// First words.
    pub hello: Hello,
}

/// Where the session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// Switched off.
    Stopped,
    /// Carriers are tried.
    Connecting,
    /// Frames flow.
    Ready {
        /// Since when, Unix ms.
        since: u64,
        /// Over what.
        carrier: Carrier,
        /// What this session may do.
        role: Role,
    },
    /// Waiting for the next attempt.
    Waiting {
        /// Until when, Unix ms.
        until: u64,
        /// The relay's word, if it gave one.
        code: Option<Code>,
    },
    /// Final: the relay is not who it should be.
    WrongRelay,
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum SessionEffect {
    /// Open a connection; report with `handle_connected` or `handle_closed`.
    Connect {
        /// Its number.
        connection: ConnectionId,
        /// Over what.
        carrier: Carrier,
    },
    /// Write a frame.
    Write {
        /// Where.
        connection: ConnectionId,
        /// What.
        frame: Box<Frame>,
    },
    /// Close a connection. Its end need not be reported.
    Close {
        /// Which.
        connection: ConnectionId,
        /// Why.
        code: u16,
    },
    /// Search a nonce, then call [`ClientSession::solved`].
    Solve {
        /// For whom.
        connection: ConnectionId,
        /// The puzzle.
        puzzle: PowPuzzle,
    },
    /// The state changed.
    State(SessionState),
    /// The relay opened the session.
    Welcome(Box<Welcome>),
    /// A message came: store it, then [`ClientSession::taken`] or [`ClientSession::not_taken`].
    Deliver(Box<Deliver>),
    /// The relay answered a SEND.
    Accepted {
        /// Recipient.
        to: Key,
        /// Message.
        id: Id,
        /// Its words.
        answer: Accepted,
    },
    /// The relay refused a SEND.
    Rejected {
        /// Recipient.
        to: Key,
        /// Message.
        id: Id,
        /// Why.
        code: Code,
        /// When a repetition can help, ms.
        retry_ms: Option<u64>,
    },
    /// News of a message that was accepted.
    Status {
        /// Message.
        id: FrameId,
        /// What happened.
        outcome: Outcome,
    },
    /// The relay keeps our keys.
    KeysOk(KeysOk),
    /// An answer to a request of ours: keys, entries, rows, or an error.
    Answer {
        /// Which request.
        request: u32,
        /// KEYS, LOOKED, FOUND or ERROR.
        frame: Box<Frame>,
    },
    /// Somebody came or went.
    Presence(Presence),
    /// A frame about a blob.
    Blob(Box<Frame>),
    /// What was sent and not answered will not be answered.
    Lost,
}

/// The session is not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the relay session is not open")]
pub struct NotReady;

#[derive(Debug)]
struct Attempt {
    carrier: Carrier,
    deadline: u64,
    exchange: Option<WsExchange>,
}

#[derive(Debug)]
struct Live {
    connection: ConnectionId,
    carrier: Carrier,
    since: u64,
    role: Role,
    heard_at: u64,
    /// When it was given the first message since it was heard, Unix ms.
    gave_at: Option<u64>,
    /// When it was asked whether it is there, and did not answer yet, Unix ms.
    pinged_at: Option<u64>,
    /// The relay's clock at WELCOME, and ours, Unix ms.
    clocks: (u64, u64),
}

impl Live {
    /// Until when it may be silent before it is asked, or is given up, Unix ms.
    fn silence_ends(&self) -> u64 {
        let idle = self.heard_at.saturating_add(PING_AFTER_MS);
        let gave = self.gave_at.map(|at| at.saturating_add(SUSPECT_AFTER_MS));
        match self.pinged_at {
            Some(at) => at.saturating_add(PONG_MS),
            None => gave.map_or(idle, |gave| gave.min(idle)),
        }
    }
}

/// The machine.
pub struct ClientSession {
    config: SessionConfig,
    identity: Arc<Identity>,
    rng: StdRng,
    on: bool,
    wrong_relay: bool,
    next_connection: u64,
    next_request: u32,
    attempts: BTreeMap<ConnectionId, Attempt>,
    live: Option<Live>,
    /// Sends that wait for an answer, by request number.
    sends: BTreeMap<u32, (Key, Id)>,
    websocket_at: Option<u64>,
    wait: Option<(u64, Option<Code>)>,
    move_at: Option<u64>,
    probe_at: Option<u64>,
    quic_failures: u32,
    backoff: Backoff,
    told: SessionState,
    effects: VecDeque<SessionEffect>,
}

impl ClientSession {
    /// A stopped session. `seed` drives jitter and nonces, and must come from the operating system's generator.
    pub fn new(config: SessionConfig, identity: Arc<Identity>, seed: [u8; 32]) -> Self {
        Self {
            config,
            identity,
            rng: StdRng::from_seed(seed),
            on: false,
            wrong_relay: false,
            next_connection: 0,
            next_request: 0,
            attempts: BTreeMap::new(),
            live: None,
            sends: BTreeMap::new(),
            websocket_at: None,
            wait: None,
            move_at: None,
            probe_at: None,
            quic_failures: 0,
            backoff: Backoff::default(),
            told: SessionState::Stopped,
            effects: VecDeque::new(),
        }
    }

    /// Switches the session on.
    pub fn start(&mut self, now_ms: u64) {
        if !self.on {
            self.on = true;
            self.wrong_relay = false;
            self.backoff.reset();
            self.race(now_ms);
            self.tell();
        }
    }

    /// Says good-bye.
    pub fn stop(&mut self, now_ms: u64) {
        self.on = false;
        self.wait = None;
        self.end_attempts();
        self.end_live(close::NORMAL, now_ms);
        self.tell();
    }

    /// Says other first words from the next session on.
    pub fn set_hello(&mut self, hello: Hello) {
        self.config.hello = hello;
    }

    /// The machine may have moved to another network: QUIC gets another chance at once.
    pub fn network_changed(&mut self, now_ms: u64) {
        self.quic_failures = 0;
        if self.probe_at.is_some() {
            self.probe_at = Some(now_ms);
        }
        if let Some((until, None)) = &mut self.wait {
            *until = now_ms;
        }
    }

    /// Another relay was lost: a pause of ours, unless the relay asked for it, ends within a second. Two agents that each
    /// have one relay left may have different ones, while a third is long back.
    pub fn hurry(&mut self, now_ms: u64) {
        let soon = now_ms.saturating_add(self.rng.random_range(0..=HURRY_MS));
        if let Some((until, None)) = &mut self.wait {
            *until = soon.min(*until);
        }
    }

    /// Where it stands.
    pub fn state(&self) -> SessionState {
        match (&self.live, &self.wait) {
            (Some(live), _) => {
                SessionState::Ready { since: live.since, carrier: live.carrier, role: live.role }
            }
            _ if self.wrong_relay => SessionState::WrongRelay,
            _ if !self.on => SessionState::Stopped,
            (None, Some((until, code))) if self.attempts.is_empty() => {
                SessionState::Waiting { until: *until, code: *code }
            }
            _ => SessionState::Connecting,
        }
    }

    /// Whether requests can be made.
    pub fn is_ready(&self) -> bool {
        self.live.is_some()
    }

    /// What the relay's clock shows, Unix ms: the relay's word, good for what only the relay decides by it.
    pub fn relay_time(&self, now_ms: u64) -> u64 {
        let (theirs, ours) = self.live.as_ref().map_or((now_ms, now_ms), |live| live.clocks);
        now_ms.saturating_sub(ours).saturating_add(theirs)
    }

    /// How far the relay's clock was ahead of ours at WELCOME, ms; absent without a session.
    pub fn clock_ahead_ms(&self) -> Option<i64> {
        let (theirs, ours) = self.live.as_ref()?.clocks;
        let ahead = i128::from(theirs) - i128::from(ours);
        Some(i64::try_from(ahead).unwrap_or(if ahead > 0 { i64::MAX } else { i64::MIN }))
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<SessionEffect> {
        self.effects.pop_front()
    }

    /// When to call [`ClientSession::handle_timeout`], Unix ms.
    pub fn poll_timeout(&self) -> Option<u64> {
        let attempts = self.attempts.values().map(|attempt| attempt.deadline);
        let silence = self.live.as_ref().map(Live::silence_ends);
        let wait = self.wait.map(|(until, _)| until);
        attempts
            .chain([silence, wait, self.websocket_at, self.move_at, self.probe_at].into_iter().flatten())
            .min()
    }

    /// A connection is open (for QUIC: the relay proved its key in TLS, which the driver checked).
    pub fn handle_connected(&mut self, connection: ConnectionId) {
        if self.attempts.get(&connection).is_some_and(|attempt| attempt.carrier == Carrier::Quic) {
            let hello = self.config.hello.clone();
            self.write(connection, hello.into());
        }
    }

    /// A connection could not be opened, or is closed.
    pub fn handle_closed(&mut self, connection: ConnectionId, code: Option<u16>, now_ms: u64) {
        if self.live.as_ref().is_some_and(|live| live.connection == connection) {
            self.end_live(close::NORMAL, now_ms);
            let banned = code == Some(close::BANNED);
            self.back_off(if banned { BAN_MS } else { 0 }, banned.then_some(Code::Banned), now_ms);
        } else if self.attempts.contains_key(&connection) {
            self.attempt_failed(connection, 0, None, now_ms);
        }
        self.tell();
    }

    /// A frame arrived.
    pub fn handle_frame(&mut self, connection: ConnectionId, frame: Frame, now_ms: u64) {
        if self.live.as_ref().is_some_and(|live| live.connection == connection) {
            self.handle_open(frame, now_ms);
        } else if self.attempts.contains_key(&connection) {
            self.handle_early(connection, frame, now_ms);
        }
        self.tell();
    }

    /// The puzzle of [`SessionEffect::Solve`] is solved.
    pub fn solved(&mut self, connection: ConnectionId, epoch: &str, nonce: Bin<8>) {
        if self.attempts.contains_key(&connection) {
            self.write(connection, PowDone { e: epoch.to_owned(), n: nonce }.into());
        }
    }

    /// The time of [`ClientSession::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        let late: Vec<_> =
            self.attempts.iter().filter(|(_, a)| a.deadline <= now_ms).map(|(id, _)| *id).collect();
        for connection in late {
            self.close(connection, close::NORMAL);
            self.attempt_failed(connection, 0, None, now_ms);
        }
        if self.websocket_at.is_some_and(|at| at <= now_ms) {
            self.websocket_at = None;
            self.attempt(Carrier::WebSocket, now_ms);
        }
        if self.wait.is_some_and(|(until, _)| until <= now_ms) {
            self.wait = None;
            self.race(now_ms);
        }
        if self.move_at.is_some_and(|at| at <= now_ms) {
            self.move_at = None;
            self.race(now_ms);
        }
        if self.probe_at.is_some_and(|at| at <= now_ms) {
            self.probe_at = Some(now_ms.saturating_add(QUIC_PROBE_MS));
            self.attempt(Carrier::Quic, now_ms);
        }
        self.check_silence(now_ms);
        self.tell();
    }

    fn check_silence(&mut self, now_ms: u64) {
        let Some(live) = self.live.as_mut().filter(|live| live.silence_ends() <= now_ms) else { return };
        if live.pinged_at.is_some() {
            self.end_live(close::NORMAL, now_ms);
            self.back_off(0, None, now_ms);
        } else {
            live.pinged_at = Some(now_ms);
            let connection = live.connection;
            let t = self.rng.next_u64();
            self.write(connection, Ping { t, tok: false }.into());
        }
    }

    /// Hands a sealed message to the relay.
    #[allow(clippy::too_many_arguments, reason = "the members of one frame, and the time")]
    pub fn send(
        &mut self,
        to: Key,
        id: Id,
        tag: Bin<8>,
        env: Blob,
        ttl_s: u64,
        priority: u8,
        now_ms: u64,
    ) -> Result<(), NotReady> {
        let rid = self.request_number();
        let frame = Send {
            rid,
            id: id.into(),
            to: Target::Key(to),
            tt: Some(tag),
            fmt: crate::v2::frames::FORMAT_V2,
            env,
            ttl: ttl_s,
            pri: priority,
        };
        self.say(frame.into())?;
        self.sends.insert(rid, (to, id));
        if let Some(live) = &mut self.live {
            live.gave_at.get_or_insert(now_ms);
        }
        Ok(())
    }

    /// Deliveries are stored: gives them back as taken.
    pub fn taken(&mut self, deliveries: &[u64]) -> Result<(), NotReady> {
        deliveries.chunks(MAX_TAKEN).try_for_each(|part| self.say(Taken { dids: part.to_vec() }.into()))
    }

    /// A delivery is not taken.
    pub fn not_taken(&mut self, delivery: u64, code: Code) -> Result<(), NotReady> {
        self.say(NotTaken { did: delivery, code }.into())
    }

    /// Leaves keys at the relay; it answers with [`SessionEffect::KeysOk`].
    pub fn put_keys(&mut self, keys: KeysPut) -> Result<(), NotReady> {
        self.say(keys.into())
    }

    /// Asks for keys of a peer's devices; the number comes back with the answer.
    pub fn claim_keys(&mut self, to: Key) -> Result<u32, NotReady> {
        let rid = self.request_number();
        self.say(KeysClaim { rid, to: Target::Key(to) }.into()).map(|()| rid)
    }

    /// Asks for one agent; the number comes back with the answer.
    pub fn lookup(&mut self, to: Target) -> Result<u32, NotReady> {
        let rid = self.request_number();
        self.say(Lookup { rid, to }.into()).map(|()| rid)
    }

    /// Asks the directory; the number comes back with the answer.
    pub fn search(&mut self, search: Search) -> Result<u32, NotReady> {
        let rid = self.request_number();
        self.say(Search { rid, ..search }.into()).map(|()| rid)
    }

    /// Asks for presence.
    pub fn watch(&mut self, keys: Vec<Key>, all: bool) -> Result<(), NotReady> {
        self.say(Watch { keys, all }.into())
    }

    /// Changes this session's standing.
    pub fn set_presence(&mut self, presence: PresenceSet) -> Result<(), NotReady> {
        self.say(presence.into())
    }

    /// Asks the relay to pass on a blob; a refusal comes back with the number.
    pub fn open_blob(&mut self, open: BlobOpen) -> Result<u32, NotReady> {
        let rid = self.request_number();
        self.say(BlobOpen { rid: Some(rid), ..open }.into()).map(|()| rid)
    }

    /// Says what follows about a blob.
    pub fn blob(&mut self, frame: Frame) -> Result<(), NotReady> {
        self.say(frame)
    }

    fn say(&mut self, frame: Frame) -> Result<(), NotReady> {
        let connection = self.live.as_ref().ok_or(NotReady)?.connection;
        self.write(connection, frame);
        Ok(())
    }

    fn request_number(&mut self) -> u32 {
        self.next_request = self.next_request.wrapping_add(1);
        self.next_request
    }

    fn write(&mut self, connection: ConnectionId, frame: Frame) {
        self.effects.push_back(SessionEffect::Write { connection, frame: Box::new(frame) });
    }

    fn close(&mut self, connection: ConnectionId, code: u16) {
        self.effects.push_back(SessionEffect::Close { connection, code });
    }

    /// Tries both carriers; the first to open the session wins.
    fn race(&mut self, now_ms: u64) {
        let quic_first = self.config.quic && self.quic_failures < QUIC_PATIENCE;
        if quic_first || !self.config.websocket {
            self.attempt(Carrier::Quic, now_ms);
            self.websocket_at = self.config.websocket.then(|| now_ms.saturating_add(RACE_HEAD_START_MS));
        } else {
            self.attempt(Carrier::WebSocket, now_ms);
        }
    }

    fn attempt(&mut self, carrier: Carrier, now_ms: u64) {
        self.next_connection += 1;
        let connection = ConnectionId(self.next_connection);
        let deadline = now_ms.saturating_add(ATTEMPT_MS);
        self.attempts.insert(connection, Attempt { carrier, deadline, exchange: None });
        self.effects.push_back(SessionEffect::Connect { connection, carrier });
    }

    fn attempt_failed(&mut self, connection: ConnectionId, least: u64, code: Option<Code>, now_ms: u64) {
        let Some(attempt) = self.attempts.remove(&connection) else { return };
        if attempt.carrier == Carrier::Quic {
            self.quic_failures = self.quic_failures.saturating_add(1);
            if let Some(at) = &mut self.websocket_at {
                *at = (*at).min(now_ms);
            }
        }
        let others = !self.attempts.is_empty() || self.websocket_at.is_some() || self.live.is_some();
        if !others {
            self.back_off(least, code, now_ms);
        }
    }

    fn back_off(&mut self, least: u64, code: Option<Code>, now_ms: u64) {
        if self.on && !self.wrong_relay {
            let pause = self.backoff.next(&mut self.rng, least);
            self.wait = Some((now_ms.saturating_add(pause), code));
        }
    }

    fn end_attempts(&mut self) {
        self.websocket_at = None;
        self.move_at = None;
        self.probe_at = None;
        for connection in std::mem::take(&mut self.attempts).into_keys() {
            self.close(connection, close::NORMAL);
        }
    }

    fn end_live(&mut self, code: u16, now_ms: u64) {
        let Some(live) = self.live.take() else { return };
        if now_ms.saturating_sub(live.since) >= STABLE_MS {
            self.backoff.reset();
        }
        self.move_at = None;
        self.probe_at = None;
        self.close(live.connection, code);
        self.sends.clear();
        self.effects.push_back(SessionEffect::Lost);
    }

    fn handle_early(&mut self, connection: ConnectionId, frame: Frame, now_ms: u64) {
        match frame {
            Frame::Challenge(challenge) => self.challenged(connection, &challenge),
            Frame::Pow(pow) => self.puzzled(connection, pow),
            Frame::Welcome(welcome) => self.welcomed(connection, welcome, now_ms),
            Frame::Refuse(refuse) => self.refused(connection, &refuse, now_ms),
            _ => {
                self.close(connection, close::PROTOCOL);
                self.attempt_failed(connection, 0, None, now_ms);
            }
        }
    }

    fn challenged(&mut self, connection: ConnectionId, challenge: &Challenge) {
        let client_nonce = {
            let mut bytes = [0; 32];
            self.rng.fill_bytes(&mut bytes);
            Bin(bytes)
        };
        let Some(attempt) = self.attempts.get_mut(&connection) else { return };
        if attempt.carrier != Carrier::WebSocket || attempt.exchange.is_some() {
            return;
        }
        if challenge.rk != self.config.relay {
            self.not_our_relay(connection);
            return;
        }
        let exchange = WsExchange {
            relay: challenge.rk,
            nonce: challenge.n,
            client_nonce,
            key: self.identity.public().into(),
            host: self.config.host.clone(),
        };
        let proof = Proof {
            k: exchange.key,
            cn: client_nonce,
            host: exchange.host.clone(),
            s: Bin(self.identity.sign(&Purpose::WsAuth(&exchange))),
        };
        attempt.exchange = Some(exchange);
        let hello = self.config.hello.clone();
        self.write(connection, proof.into());
        self.write(connection, hello.into());
    }

    fn not_our_relay(&mut self, connection: ConnectionId) {
        self.close(connection, close::PROTOCOL);
        self.attempts.remove(&connection);
        if self.live.is_none() {
            self.wrong_relay = true;
            self.on = false;
            self.wait = None;
            self.end_attempts();
        }
    }

    fn puzzled(&mut self, connection: ConnectionId, pow: Pow) {
        let puzzle = PowPuzzle {
            epoch: pow.e,
            challenge: pow.h,
            bits: pow.bits,
            relay: self.config.relay,
            client: self.identity.public().into(),
        };
        if let Some(attempt) = self.attempts.get_mut(&connection) {
            attempt.deadline = attempt.deadline.saturating_add(120_000);
            self.effects.push_back(SessionEffect::Solve { connection, puzzle });
        }
    }

    fn welcomed(&mut self, connection: ConnectionId, welcome: Welcome, now_ms: u64) {
        let Some(attempt) = self.attempts.get(&connection) else { return };
        let proven = match (attempt.carrier, &attempt.exchange) {
            (Carrier::Quic, _) => true,
            (Carrier::WebSocket, Some(exchange)) => {
                welcome.rs.is_some_and(|signature| exchange.relay_proved(&signature.0))
            }
            (Carrier::WebSocket, None) => false,
        };
        if !proven || welcome.relay != self.config.relay {
            self.not_our_relay(connection);
            return;
        }
        let carrier = attempt.carrier;
        self.attempts.remove(&connection);
        if carrier == Carrier::Quic {
            self.quic_failures = 0;
        } else if self.attempts.values().any(|other| other.carrier == Carrier::Quic) {
            // Where packets vanish, QUIC never fails: it is overtaken.
            self.quic_failures = self.quic_failures.saturating_add(1);
        }
        self.end_attempts();
        self.end_live(close::NORMAL, now_ms);
        self.wait = None;
        let probes = carrier == Carrier::WebSocket && self.config.quic;
        self.probe_at = probes.then(|| now_ms.saturating_add(QUIC_PROBE_MS));
        let role = welcome.role;
        let clocks = (welcome.now, now_ms);
        self.live = Some(Live {
            connection,
            carrier,
            since: now_ms,
            role,
            heard_at: now_ms,
            gave_at: None,
            pinged_at: None,
            clocks,
        });
        self.tell();
        self.effects.push_back(SessionEffect::Welcome(Box::new(welcome)));
    }

    fn refused(&mut self, connection: ConnectionId, refuse: &Refuse, now_ms: u64) {
        self.close(connection, close::NORMAL);
        let ban = if refuse.code == Code::Banned { BAN_MS } else { 0 };
        let least = refuse.retry_ms.unwrap_or(ban);
        if self.live.is_none() {
            self.attempts.remove(&connection);
            self.end_attempts();
            self.back_off(least, Some(refuse.code), now_ms);
        } else {
            self.attempt_failed(connection, least, Some(refuse.code), now_ms);
        }
    }

    fn handle_open(&mut self, frame: Frame, now_ms: u64) {
        if let Some(live) = &mut self.live {
            live.heard_at = now_ms;
            (live.gave_at, live.pinged_at) = (None, None);
        }
        match frame {
            Frame::Deliver(deliver) => self.effects.push_back(SessionEffect::Deliver(Box::new(deliver))),
            Frame::Accepted(answer) => self.accepted(answer),
            Frame::Rejected(answer) => self.rejected(&answer),
            Frame::Status(status) => {
                self.effects.push_back(SessionEffect::Status { id: status.id, outcome: status.st });
            }
            Frame::KeysOk(answer) => self.effects.push_back(SessionEffect::KeysOk(answer)),
            Frame::Presence(presence) => self.presence(presence),
            Frame::Ping(ping) => {
                let pong = crate::v2::frames::Pong {
                    t: ping.t,
                    now: now_ms,
                    ep: self.config.hello.ep,
                    role: None,
                    tok: None,
                    tok_x: None,
                };
                let _ = self.say(pong.into());
            }
            Frame::Pong(pong) => self.granted(pong.role),
            Frame::BlobOpen(_) | Frame::BlobGo(_) | Frame::BlobData(_) | Frame::BlobEnd(_) => {
                self.effects.push_back(SessionEffect::Blob(Box::new(frame)));
            }
            Frame::GoAway(away) => self.going_away(&away, now_ms),
            Frame::Keys(ref keys) => self.answer(keys.rid, frame),
            Frame::Looked(ref looked) => self.answer(looked.rid, frame),
            Frame::Found(ref found) => self.answer(found.rid, frame),
            Frame::Fault(Fault { rid: Some(rid), code, text }) => self.fault(rid, code, text),
            _ => {}
        }
    }

    fn answer(&mut self, request: u32, frame: Frame) {
        self.effects.push_back(SessionEffect::Answer { request, frame: Box::new(frame) });
    }

    fn fault(&mut self, rid: u32, code: Code, text: Option<String>) {
        if let Some((to, id)) = self.sends.remove(&rid) {
            self.effects.push_back(SessionEffect::Rejected { to, id, code, retry_ms: None });
        } else {
            self.answer(rid, Fault { rid: Some(rid), code, text }.into());
        }
    }

    fn accepted(&mut self, answer: Accepted) {
        if let Some((to, id)) = self.sends.remove(&answer.rid) {
            self.effects.push_back(SessionEffect::Accepted { to, id, answer });
        }
    }

    fn rejected(&mut self, answer: &Rejected) {
        if let Some((to, id)) = self.sends.remove(&answer.rid) {
            let (code, retry_ms) = (answer.code, answer.retry_ms);
            self.effects.push_back(SessionEffect::Rejected { to, id, code, retry_ms });
        }
    }

    fn presence(&mut self, presence: Presence) {
        let own = presence.key == self.identity.public().into();
        if own && presence.dev == Some(self.config.hello.dev) {
            self.granted(presence.role);
        }
        self.effects.push_back(SessionEffect::Presence(presence));
    }

    fn granted(&mut self, role: Option<Role>) {
        if let (Some(live), Some(role)) = (&mut self.live, role) {
            live.role = role;
        }
    }

    /// Another session is opened within the time the relay gave; this one stays until that one is ready.
    fn going_away(&mut self, away: &GoAway, now_ms: u64) {
        if self.move_at.is_none() {
            let pause = self.rng.random_range(0..=away.after_ms.min(600_000));
            self.move_at = Some(now_ms.saturating_add(pause));
        }
    }

    fn tell(&mut self) {
        let state = self.state();
        if state != self.told {
            self.told = state;
            self.effects.push_back(SessionEffect::State(state));
        }
    }
}
