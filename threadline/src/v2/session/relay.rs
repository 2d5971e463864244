//! The relay's end of one session: login, what may be said when, delivery credit. Who may enter and what happens to
//! messages is the relay's to decide.

use std::collections::BTreeSet;

use super::{Carrier, close};
use crate::v2::envelope::{Envelope, EnvelopeError, Header};
use crate::v2::frames::{
    Challenge, DEFAULT_WINDOW, Deliver, FORMAT_V2, Fault, Frame, FrameError, FrameId, FramePhase, Hello,
    MAX_TAKEN, Pow, Refuse, Role, Send, Target, Welcome,
};
use crate::v2::login::{PowPuzzle, WsExchange};
use crate::v2::objects::{DeviceCert, DeviceList, ObjectError, Signed, VerifiedDevice};
use crate::v2::{Bin, Code, DeviceId, Key};

/// HELLO has to come within this time, ms; over WebSocket the proof as well.
pub const HELLO_MS: u64 = 5_000;
/// A puzzle has to be solved within this time, ms.
pub const POW_MS: u64 = 120_000;
/// Most credit a node may give.
pub const MAX_WINDOW: u16 = 1_024;

/// A node that has proved who it is and asks to enter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginRequest {
    /// Its key.
    pub key: Key,
    /// Its device, certificate and list checked.
    pub device: VerifiedDevice,
    /// Its first words.
    pub hello: Hello,
}

/// What the relay has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayStep {
    /// Write a frame.
    Write(Box<Frame>),
    /// Decide on a login: [`RelaySession::welcome`], [`RelaySession::demand_work`] or [`RelaySession::refuse`].
    Login(Box<LoginRequest>),
    /// The work was done: decide again.
    WorkDone(Box<LoginRequest>),
    /// A frame that an open session may say.
    Frame(Box<Frame>),
    /// Close with an application code.
    Close(u16),
}

#[derive(Debug)]
enum Phase {
    /// Over WebSocket, before the proof.
    Proving { nonce: Bin<32> },
    /// The key is proven.
    Greeting { key: Key, exchange: Option<Box<WsExchange>> },
    /// The relay decides.
    Deciding { request: Box<LoginRequest>, exchange: Option<Box<WsExchange>> },
    /// The node works.
    Working { request: Box<LoginRequest>, exchange: Option<Box<WsExchange>>, puzzle: PowPuzzle },
    /// Frames flow.
    Open { key: Key, device: DeviceId, role: Role },
    /// Nothing more.
    Closed,
}

/// The machine.
#[derive(Debug)]
pub struct RelaySession {
    relay: Key,
    hosts: Vec<String>,
    phase: Phase,
    deadline: Option<u64>,
    window: u16,
    unconfirmed: BTreeSet<u64>,
}

impl RelaySession {
    /// A QUIC connection whose client proved `key` in TLS.
    pub fn quic(relay: Key, key: Key, now_ms: u64) -> Self {
        Self::new(relay, Vec::new(), Phase::Greeting { key, exchange: None }, now_ms)
    }

    /// A WebSocket; the returned CHALLENGE goes first. `hosts` are the names this relay answers for, `nonce` is random.
    pub fn websocket(relay: Key, hosts: Vec<String>, nonce: Bin<32>, now_ms: u64) -> (Self, Frame) {
        let challenge = Challenge { n: nonce, rk: relay, ts: now_ms };
        (Self::new(relay, hosts, Phase::Proving { nonce }, now_ms), challenge.into())
    }

    fn new(relay: Key, hosts: Vec<String>, phase: Phase, now_ms: u64) -> Self {
        let deadline = Some(now_ms.saturating_add(HELLO_MS));
        Self { relay, hosts, phase, deadline, window: DEFAULT_WINDOW, unconfirmed: BTreeSet::new() }
    }

    /// Over what it runs, before it is open.
    pub fn carrier(&self) -> Option<Carrier> {
        match &self.phase {
            Phase::Proving { .. } => Some(Carrier::WebSocket),
            Phase::Greeting { exchange, .. }
            | Phase::Deciding { exchange, .. }
            | Phase::Working { exchange, .. } => {
                Some(if exchange.is_some() { Carrier::WebSocket } else { Carrier::Quic })
            }
            Phase::Open { .. } | Phase::Closed => None,
        }
    }

    /// What frames may weigh now.
    pub const fn frame_phase(&self) -> FramePhase {
        if matches!(self.phase, Phase::Open { .. }) { FramePhase::Open } else { FramePhase::Early }
    }

    /// Key, device and role of an open session.
    pub const fn open(&self) -> Option<(&Key, &DeviceId, Role)> {
        match &self.phase {
            Phase::Open { key, device, role } => Some((key, device, *role)),
            _ => None,
        }
    }

    /// When to call [`RelaySession::handle_timeout`], Unix ms.
    pub const fn poll_timeout(&self) -> Option<u64> {
        self.deadline
    }

    /// The time of [`RelaySession::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now_ms: u64) -> Vec<RelayStep> {
        if self.deadline.is_some_and(|at| at <= now_ms) { self.end(close::PROTOCOL) } else { Vec::new() }
    }

    /// Bytes were no frame.
    pub fn handle_error(&mut self, error: &FrameError) -> Vec<RelayStep> {
        let fault = Fault { rid: None, code: error.code(), text: Some(error.to_string()) };
        let mut steps = vec![write(fault)];
        if error.is_fatal() || self.open().is_none() {
            steps.extend(self.end(close::PROTOCOL));
        }
        steps
    }

    /// A frame of the node.
    pub fn handle_frame(&mut self, frame: Frame, now_ms: u64) -> Vec<RelayStep> {
        match (std::mem::replace(&mut self.phase, Phase::Closed), frame) {
            (Phase::Proving { nonce }, Frame::Proof(proof)) => {
                let known_host = self.hosts.iter().any(|host| host.eq_ignore_ascii_case(&proof.host));
                let exchange = WsExchange {
                    relay: self.relay,
                    nonce,
                    client_nonce: proof.cn,
                    key: proof.k,
                    host: proof.host,
                };
                if !known_host || !exchange.client_proved(&proof.s.0) {
                    return self.refuse(Code::BadSignature, None);
                }
                self.phase = Phase::Greeting { key: proof.k, exchange: Some(Box::new(exchange)) };
                Vec::new()
            }
            (Phase::Greeting { key, exchange }, Frame::Hello(hello)) => {
                self.greeted(key, exchange, hello, now_ms)
            }
            (Phase::Working { request, exchange, puzzle }, Frame::PowDone(done)) => {
                if done.e != puzzle.epoch || !puzzle.is_current(now_ms) || !puzzle.is_solved_by(done.n) {
                    return self.refuse(Code::PowRequired, None);
                }
                self.deadline = None;
                self.phase = Phase::Deciding { request: request.clone(), exchange };
                vec![RelayStep::WorkDone(request)]
            }
            (phase @ Phase::Open { role, .. }, frame) => {
                self.phase = phase;
                self.handle_open(role, frame)
            }
            (Phase::Closed, _) => Vec::new(),
            _ => self.end(close::PROTOCOL),
        }
    }

    fn greeted(
        &mut self,
        key: Key,
        exchange: Option<Box<WsExchange>>,
        hello: Hello,
        now_ms: u64,
    ) -> Vec<RelayStep> {
        if !hello.is_within_limits() {
            return self.refuse(Code::BadRequest, None);
        }
        let device = match verified(&key, &hello, now_ms) {
            Ok(device) => device,
            Err(ObjectError::Future) => return self.refuse(Code::ClockSkew, None),
            Err(ObjectError::Expired) => return self.refuse(Code::Expired, None),
            Err(_) => return self.refuse(Code::BadDevice, None),
        };
        self.deadline = None;
        self.window = hello.win.unwrap_or(DEFAULT_WINDOW).clamp(1, MAX_WINDOW);
        let request = Box::new(LoginRequest { key, device, hello });
        self.phase = Phase::Deciding { request: request.clone(), exchange };
        vec![RelayStep::Login(request)]
    }

    /// Opens the session. Over WebSocket `sign` makes the relay's signature.
    pub fn welcome(&mut self, welcome: Welcome, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Vec<RelayStep> {
        let Phase::Deciding { request, exchange } = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return Vec::new();
        };
        let rs = exchange.map(|exchange| Bin(sign(&exchange.relay_text())));
        self.phase = Phase::Open { key: request.key, device: request.hello.dev, role: welcome.role };
        // Asked for only before the login; sessions are many.
        self.hosts = Vec::new();
        vec![write(Welcome { relay: self.relay, rs, ..welcome })]
    }

    /// Asks for work first. `challenge` is random.
    pub fn demand_work(&mut self, bits: u8, challenge: Bin<16>, now_ms: u64) -> Vec<RelayStep> {
        let Phase::Deciding { request, exchange } = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return Vec::new();
        };
        let puzzle = PowPuzzle {
            epoch: PowPuzzle::epoch_at(now_ms),
            challenge,
            bits,
            relay: self.relay,
            client: request.key,
        };
        let frame = Pow { e: puzzle.epoch.clone(), bits, h: challenge };
        self.deadline = Some(now_ms.saturating_add(POW_MS));
        self.phase = Phase::Working { request, exchange, puzzle };
        vec![write(frame)]
    }

    /// Refuses the login.
    pub fn refuse(&mut self, code: Code, retry_ms: Option<u64>) -> Vec<RelayStep> {
        let mut steps = vec![write(Refuse { code, retry_ms, text: None })];
        steps.extend(self.end(if code == Code::Banned { close::BANNED } else { close::REFUSED }));
        steps
    }

    /// Ends the session.
    pub fn end(&mut self, code: u16) -> Vec<RelayStep> {
        self.phase = Phase::Closed;
        self.deadline = None;
        vec![RelayStep::Close(code)]
    }

    /// The relay gave the session another role.
    pub fn set_role(&mut self, new: Role) {
        if let Phase::Open { role, .. } = &mut self.phase {
            *role = new;
        }
    }

    fn handle_open(&mut self, role: Role, frame: Frame) -> Vec<RelayStep> {
        match &frame {
            Frame::Ping(_) | Frame::Lookup(_) | Frame::Search(_) => {}
            Frame::Send(_)
            | Frame::NotTaken(_)
            | Frame::PresenceSet(_)
            | Frame::Watch(_)
            | Frame::VouchPut(_)
            | Frame::ChainsGet(_)
            | Frame::KeysPut(_)
            | Frame::KeysClaim(_)
            | Frame::BlobOpen(_)
            | Frame::BlobGo(_)
            | Frame::BlobData(_)
            | Frame::BlobEnd(_)
            | Frame::AddrPut(_)
                if role != Role::Token => {}
            Frame::Taken(taken) if role != Role::Token && taken.dids.len() <= MAX_TAKEN => {}
            Frame::Fault(_) | Frame::Pong(_) | Frame::Ignored(_) => return Vec::new(),
            _ => {
                let fault = Fault { rid: None, code: Code::BadRequest, text: None };
                let mut steps = vec![write(fault)];
                steps.extend(self.end(close::PROTOCOL));
                return steps;
            }
        }
        vec![RelayStep::Frame(Box::new(frame))]
    }

    /// How many deliveries may be written now.
    pub fn credit(&self) -> usize {
        match self.phase {
            Phase::Open { role: Role::Active, .. } => {
                usize::from(self.window).saturating_sub(self.unconfirmed.len())
            }
            _ => 0,
        }
    }

    /// Uses credit for a delivery; `None` when there is none.
    pub fn deliver(&mut self, deliver: Deliver) -> Option<Frame> {
        (self.credit() > 0 && self.unconfirmed.insert(deliver.did)).then(|| deliver.into())
    }

    /// A delivery was taken or not taken: its credit comes back. Whether it was under way at all.
    pub fn confirmed(&mut self, delivery: u64) -> bool {
        self.unconfirmed.remove(&delivery)
    }

    /// Deliveries that were written and neither taken nor refused.
    pub fn unconfirmed(&self) -> impl Iterator<Item = u64> + '_ {
        self.unconfirmed.iter().copied()
    }
}

fn write(frame: impl Into<Frame>) -> RelayStep {
    RelayStep::Write(Box::new(frame.into()))
}

fn verified(key: &Key, hello: &Hello, now_ms: u64) -> Result<VerifiedDevice, ObjectError> {
    let cert = Signed::<DeviceCert>::parse(&hello.cert.0, &hello.cs.0)?;
    let list = Signed::<DeviceList>::parse(&hello.list.0, &hello.ls.0)?;
    if cert.object().device != hello.dev {
        return Err(ObjectError::BadDevice);
    }
    VerifiedDevice::new(key, cert, list, now_ms)
}

/// Checks a SEND against the envelope in it: for v2 the header is the only truth. The signature is
/// [`Envelope::verify`]'s, to be checked last.
pub fn check_send<'a>(send: &'a Send, session: &Key, now_ms: u64) -> Result<Envelope<'a>, Code> {
    if send.fmt != FORMAT_V2 || send.pri > 3 {
        return Err(Code::BadRequest);
    }
    let envelope = Envelope::parse(&send.env.0).map_err(|error| match error {
        EnvelopeError::TooLarge => Code::TooLarge,
        EnvelopeError::Suite(_) => Code::UnsupportedVersion,
        _ => Code::BadRequest,
    })?;
    let Header { from, to, id, tag, expires, .. } = envelope.header;
    if from != *session {
        return Err(Code::BadSignature);
    }
    let addressed = match send.to {
        Target::Key(key) => key == to || key == from,
        Target::Address(address) => to.0.starts_with(&address.0),
    };
    if !addressed || send.id != FrameId::Bin(id) || send.tt.is_some_and(|claimed| claimed != tag) {
        return Err(Code::BadRequest);
    }
    if expires <= now_ms {
        return Err(Code::Expired);
    }
    let kept_until = now_ms.saturating_add(send.ttl.saturating_mul(1_000));
    if kept_until > expires { Err(Code::BadRequest) } else { Ok(envelope) }
}
