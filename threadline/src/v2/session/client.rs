//! The node's end: races the carriers, proves its key, keeps the session, numbers its requests.

mod login;
mod open;
mod quic;
mod requests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use self::quic::{Probe, QuicRecord};
use super::backoff::Backoff;
use super::{Carrier, close};
use crate::identity::Identity;
use crate::v2::frames::{
    Accepted, Deliver, Frame, FrameId, Hello, KeysOk, Outcome, PowDone, Presence, Role, Welcome,
};
use crate::v2::login::{PowPuzzle, WsExchange};
use crate::v2::{Bin, Code, Id, Key};

/// WebSocket/2 starts this long after QUIC, ms.
pub const RACE_HEAD_START_MS: u64 = 300;
/// Where QUIC is connected, WebSocket/2 starts only this long after that, ms: one login at a time, because the relay takes
/// a second one for the same device in place of the first.
pub const LOGIN_HEAD_START_MS: u64 = 4_000;
/// An attempt has this long to reach WELCOME, ms.
pub const ATTEMPT_MS: u64 = 10_000;
/// A puzzle gives it this much more, ms.
const PUZZLE_MS: u64 = 120_000;
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

pub use quic::{NEVER_QUIET_MS, QUIC_PATIENCE, QUIC_PROBE_FIRST_MS, QUIC_PROBE_MS, QUIET_MS};

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
    stage: Stage,
    exchange: Option<WsExchange>,
}

/// How far an attempt has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing came back yet.
    Begun,
    /// The relay answers; over QUIC it proved its key. It was told nothing yet.
    Connected,
    /// It was told who is here.
    LoggingIn,
}

#[derive(Debug)]
struct Live {
    connection: ConnectionId,
    carrier: Carrier,
    since: u64,
    role: Role,
    heard_at: u64,
    /// Something was said in it since that was last looked at.
    busy: bool,
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
    probe: Option<Probe>,
    quic: QuicRecord,
    /// QUIC failed since the carriers began to race.
    quic_failed: bool,
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
            probe: None,
            quic: QuicRecord::default(),
            quic_failed: false,
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
        self.quic = QuicRecord::default();
        if self.probe.is_some() {
            self.probe = Some(Probe::at(now_ms));
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
        let probe = self.probe.map(|probe| probe.due);
        attempts.chain([silence, wait, self.websocket_at, self.move_at, probe].into_iter().flatten()).min()
    }

    /// A connection is open (for QUIC: the relay proved its key in TLS, which the driver checked).
    pub fn handle_connected(&mut self, connection: ConnectionId, now_ms: u64) {
        let Some(attempt) = self.attempts.get_mut(&connection) else { return };
        attempt.stage = Stage::Connected;
        if attempt.carrier == Carrier::Quic {
            self.quic_connected(connection, now_ms);
        }
    }

    /// A connection could not be opened, or is closed.
    pub fn handle_closed(&mut self, connection: ConnectionId, code: Option<u16>, now_ms: u64) {
        if self.live.as_ref().is_some_and(|live| live.connection == connection) {
            self.lose_live(code.is_some(), now_ms);
            let banned = code == Some(close::BANNED);
            // Where another session of ours took the place, its WELCOME is on the way.
            if code != Some(close::REPLACED) || self.attempts.is_empty() {
                self.back_off(if banned { BAN_MS } else { 0 }, banned.then_some(Code::Banned), now_ms);
            }
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
        if let Some(probe) = self.probe.filter(|probe| probe.due <= now_ms) {
            self.probe(probe, now_ms);
        }
        self.check_silence(now_ms);
        self.tell();
    }

    fn write(&mut self, connection: ConnectionId, frame: Frame) {
        self.effects.push_back(SessionEffect::Write { connection, frame: Box::new(frame) });
    }

    fn close(&mut self, connection: ConnectionId, code: u16) {
        self.effects.push_back(SessionEffect::Close { connection, code });
    }

    fn tell(&mut self) {
        let state = self.state();
        if state != self.told {
            self.told = state;
            self.effects.push_back(SessionEffect::State(state));
        }
    }
}
