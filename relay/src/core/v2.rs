//! Sessions of v2: login, roles and leases. What is said in them: [`frames`]; what their bytes mean: [`inbound`].

mod blobs;
mod elsewhere;
mod frames;
mod inbound;

use std::collections::{BTreeMap, HashMap};

use ed25519_dalek::Signer as _;
use threadline::Fingerprint;
use threadline::v1::frames::{ErrorCode, RegistryWish, ServerFrame, Visibility as V1Visibility};
use threadline::v2::envelope::Envelope;
use threadline::v2::frames::{
    Deliver, Fault, Frame, FrameId, Presence, QueueSize, Refuse, RelayLimits, Role, Target, Via, Visibility,
    Welcome,
};
use threadline::v2::session::{LoginRequest, RelaySession, RelayStep, close};
use threadline::v2::{Bin, Blob, Code, DeviceId};

use super::conn::{Delivery, Phase, Session, Subscription};
use super::delivery::HEARTBEAT_V2_MS;
use super::login::{Admitted, Wish, YOUNG_MS};
use super::pipeline::is_sealed;
use super::refusal::{Refusal, retry_ms};
use super::{ConnId, Core, Effect, Lane, Outgoing, Source, Written};
use crate::registry::clean;
use crate::store::registry::devices::{DeviceAnswer, DeviceOp, Greeted, Lease};
use crate::store::{
    Listing, QueueAnswer, QueueOp, RegistryAnswer, RegistryOp, Row, StoreAnswer, StoreFailed,
};
pub(super) use blobs::Transfers;
pub use inbound::V2Frame;

/// Bytes a connection may send before it is logged in.
pub(super) const MAX_BYTES: usize = 24 << 10;
/// An identity younger than this has to work.
const WORKS_MS: i64 = 3_600_000;
/// Codes of WebSocket/2 begin here.
const CLOSE_BASE: u16 = 4_000;

/// What carries a session of v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum V2Carrier {
    /// Frames prove the key.
    WebSocket,
    /// TLS proved the key.
    Quic {
        /// The key.
        key: [u8; 32],
    },
}

/// A connection that is not logged in.
pub(super) struct Greeting {
    machine: RelaySession,
    carrier: V2Carrier,
    request: Option<Box<LoginRequest>>,
    /// Bits of the puzzle and when it was posed.
    puzzle: Option<(u32, i64)>,
    worked: bool,
    admitted: Option<Admitted>,
    greeted: Option<Greeted>,
}

/// The device of a session.
pub(super) struct Device {
    pub(super) machine: RelaySession,
    pub(super) id: DeviceId,
    carrier: V2Carrier,
    /// Its lease epoch.
    lease: u64,
    /// The highest epoch of its key.
    fence: u64,
    /// Since when it is the active one, in Unix milliseconds.
    active_ms: i64,
    /// When it last got a registry token.
    token_ms: i64,
    /// Streams on which a message was refused for now: what follows there is refused in the same way.
    pub(super) refused: BTreeMap<u64, Refusal>,
    /// Deliveries that were not taken, and how often they were tried.
    tries: HashMap<u64, u16>,
    /// Blobs that it is sending.
    pub(super) blobs: Vec<[u8; 32]>,
}

/// A question to storage about a session.
pub(super) enum Pending {
    Age,
    Greet,
    Depth,
    Lease(u64),
    KeysPut,
    Correspondent { rid: u32, to: Target, address: Fingerprint },
    Claim { rid: u32 },
    Lookup { rid: u32 },
    Search { rid: u32, query: String },
    Quiet,
}

/// A time of ours as v2 writes it.
pub(super) fn unsigned(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0)
}

/// The close code of v2 for one of v1.
pub(super) fn close_code(code: u16) -> u16 {
    use threadline::v1::close as v1;
    CLOSE_BASE
        + match code {
            v1::GOING_AWAY => close::DRAINING,
            v1::DISPLACED => close::REPLACED,
            v1::BANNED => close::BANNED,
            v1::AUTH_REFUSED | v1::AUTH_RATE_LIMITED => close::REFUSED,
            v1::TOO_LARGE | v1::AUTH_TIMEOUT => close::PROTOCOL,
            _ => close::NORMAL,
        }
}

/// What shared code says in the words of v1.
pub(super) fn translate(frame: &ServerFrame) -> Option<Frame> {
    let code_of = |code: &ErrorCode| match code {
        ErrorCode::RateLimited => Code::RateLimited,
        ErrorCode::Banned => Code::Banned,
        ErrorCode::InternalError => Code::Busy,
        ErrorCode::AuthFailed => Code::TrustInsufficient,
        _ => Code::BadRequest,
    };
    match frame {
        ServerFrame::AuthError(error) => {
            let code = code_of(&error.code);
            let text = Some(error.message.clone());
            Some(Refuse { code, retry_ms: retry_ms(code), text }.into())
        }
        ServerFrame::Error(error) => {
            Some(Fault { rid: None, code: code_of(&error.code), text: Some(error.message.clone()) }.into())
        }
        _ => None,
    }
}

impl Device {
    pub(super) fn is_active(&self) -> bool {
        self.role() == Some(Role::Active)
    }

    pub(super) fn role(&self) -> Option<Role> {
        self.machine.open().map(|(_, _, role)| role)
    }

    /// Unanswered pings after which the connection is dead; `None` where the carrier knows by itself.
    pub(super) fn missed(&self) -> Option<u8> {
        match self.carrier {
            V2Carrier::WebSocket => Some(2),
            V2Carrier::Quic { .. } => None,
        }
    }

    /// What carries it: a place in [`crate::metrics::CARRIERS`].
    pub(super) fn carrier(&self) -> usize {
        match self.carrier {
            V2Carrier::WebSocket => 1,
            V2Carrier::Quic { .. } => 2,
        }
    }

    /// The frame that delivers a message; uses credit.
    pub(super) fn delivery(&mut self, row: &Row, bridge: Option<&Fingerprint>) -> Option<Outgoing> {
        let sealed = is_sealed(&row.body);
        let (id, from, tt) = if sealed {
            let header = Envelope::parse(&row.body).ok()?.header;
            (FrameId::Bin(header.id), Target::Key(header.from), Some(header.tag))
        } else {
            let sender = Target::Address(Bin(*row.sender.as_bytes()));
            (FrameId::Text(row.id.as_str().to_owned()), sender, None)
        };
        let deliver = Deliver {
            did: row.seq,
            id,
            from,
            tt,
            fmt: if sealed { 2 } else { 1 },
            env: Blob(row.body.to_vec()),
            at: unsigned(row.stored_ms),
            attempt: self.tries.get(&row.seq).copied().unwrap_or(0).saturating_add(1),
            via: match sealed {
                true => Via::V2,
                false if bridge == Some(&row.sender) => Via::A2a,
                false => Via::V1,
            },
        };
        let lane = Lane::Delivery(*row.sender.as_bytes(), tt.map_or([0; 8], |tag| tag.0));
        let frame = self.machine.deliver(deliver)?;
        Some(Outgoing::V2(Written { bytes: frame.encode(), lane }))
    }
}

impl Core {
    /// Whether an agent has a session, by either protocol.
    pub(super) fn is_live(&self, address: &Fingerprint) -> bool {
        self.sessions.contains_key(address) || self.devices.contains_key(address)
    }

    /// All sessions of an agent.
    pub(super) fn conns_of(&self, address: &Fingerprint) -> Vec<ConnId> {
        let devices = self.devices.get(address).into_iter().flatten();
        devices.chain(self.sessions.get(address)).copied().collect()
    }

    /// The session of v2 that takes deliveries.
    pub(super) fn active_device(&self, address: &Fingerprint) -> Option<ConnId> {
        let conns = self.devices.get(address)?;
        conns.iter().copied().find(|conn| self.device(*conn).is_some_and(Device::is_active))
    }

    /// The session that mail for an agent goes to; one of v1 cannot read what is sealed by v2.
    pub(super) fn reader(&self, address: &Fingerprint, sealed: bool) -> Option<ConnId> {
        let led_elsewhere = || self.elsewhere(address).iter().any(|agent| agent.lead.is_some());
        let v1 = || self.sessions.get(address).copied().filter(|_| !sealed && !led_elsewhere());
        self.active_device(address).or_else(v1)
    }

    fn device(&self, id: ConnId) -> Option<&Device> {
        self.session(id)?.device.as_deref()
    }

    fn device_mut(&mut self, id: ConnId) -> Option<&mut Device> {
        self.session_mut(id)?.device.as_deref_mut()
    }

    pub(super) fn send_v2(&mut self, id: ConnId, frame: impl Into<Frame>) {
        self.write_v2(id, frame.into());
    }

    pub(super) fn write_v2(&mut self, id: ConnId, frame: Frame) {
        let lane = if matches!(frame, Frame::Welcome(_)) { Lane::Welcome } else { Lane::Control };
        self.write_on(id, frame, lane);
    }

    /// Answers on the stream that the question came on.
    pub(super) fn answer_v2(&mut self, id: ConnId, frame: impl Into<Frame>, stream: Option<u64>) {
        self.write_on(id, frame.into(), stream.map_or(Lane::Control, Lane::Stream));
    }

    fn write_on(&mut self, id: ConnId, frame: Frame, lane: Lane) {
        let what = Outgoing::V2(Written { bytes: frame.encode(), lane });
        self.effects.push_back(Effect::Send { conn: id, what });
    }

    pub(super) fn opened_v2(&mut self, id: ConnId, source: Source, carrier: V2Carrier, now_ms: i64) {
        if let Some(refusal) = self.refuse_connection(&source, now_ms) {
            let code = Code::RateLimited;
            let refuse = Refuse { code, retry_ms: retry_ms(code), text: Some(refusal.to_owned()) };
            self.send_v2(id, refuse);
            let (code, reason) = (CLOSE_BASE + close::REFUSED, "Too many connections");
            return self.effects.push_back(Effect::Close { conn: id, code, reason });
        }
        let relay = Bin(self.signer.verifying_key().to_bytes());
        let now = unsigned(now_ms);
        let (machine, challenge) = match carrier {
            V2Carrier::Quic { key } => (RelaySession::quic(relay, Bin(key), now), None),
            V2Carrier::WebSocket => {
                let nonce = Bin(self.random());
                let (machine, challenge) = RelaySession::websocket(relay, self.hosts.clone(), nonce, now);
                (machine, Some(challenge))
            }
        };
        let greeting = Greeting {
            machine,
            carrier,
            request: None,
            puzzle: None,
            worked: false,
            admitted: None,
            greeted: None,
        };
        self.enter(id, source, Phase::Greeting(Box::new(greeting)), now_ms);
        if let Some(challenge) = challenge {
            self.write_v2(id, challenge);
        }
        self.wake_greeting(id);
    }

    fn wake_greeting(&mut self, id: ConnId) {
        if let Some(at) = self.greeting(id).and_then(|greeting| greeting.machine.poll_timeout()) {
            self.wake(id, i64::try_from(at).unwrap_or(i64::MAX));
        }
    }

    fn greeting(&mut self, id: ConnId) -> Option<&mut Greeting> {
        match &mut self.conns.get_mut(&id)?.phase {
            Phase::Greeting(greeting) => Some(greeting),
            _ => None,
        }
    }

    /// The timer of a connection that is not logged in.
    pub(super) fn greeting_due(&mut self, id: ConnId, now_ms: i64) {
        let Some(greeting) = self.greeting(id) else { return };
        let steps = greeting.machine.handle_timeout(unsigned(now_ms));
        self.carry(id, steps, (inbound::Prepared::Nothing, None), now_ms);
        self.wake_greeting(id);
    }

    pub(super) fn received_v2(&mut self, id: ConnId, frame: V2Frame, now_ms: i64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let machine = match &mut conn.phase {
            Phase::Greeting(greeting) => &mut greeting.machine,
            Phase::Live(session) => {
                session.unanswered = 0;
                let Some(device) = &mut session.device else { return };
                &mut device.machine
            }
            Phase::Challenged(_) | Phase::LoggingIn(_) | Phase::TokenOnly => return,
        };
        let bad = frame.frame.is_err();
        let steps = match frame.frame {
            Ok(frame) => machine.handle_frame(frame, unsigned(now_ms)),
            Err(error) => machine.handle_error(&error),
        };
        if bad {
            self.malformed(id, now_ms);
        }
        self.carry(id, steps, (frame.prepared, frame.stream), now_ms);
        self.wake_greeting(id);
    }

    /// Carries out what the machine of a session says.
    fn carry(
        &mut self,
        id: ConnId,
        steps: Vec<RelayStep>,
        (prepared, stream): (inbound::Prepared, Option<u64>),
        now_ms: i64,
    ) {
        let mut prepared = Some(prepared);
        for step in steps {
            match step {
                RelayStep::Write(frame) => self.write_v2(id, *frame),
                RelayStep::Login(request) => self.asked_in(id, request, now_ms),
                RelayStep::WorkDone(_) => self.worked(id, now_ms),
                RelayStep::Frame(frame) => {
                    let prepared = prepared.take().unwrap_or(inbound::Prepared::Nothing);
                    self.frame_v2(id, *frame, (prepared, stream), now_ms);
                }
                RelayStep::Close(code) => self.end_v2(id, code, now_ms),
            }
        }
    }

    fn end_v2(&mut self, id: ConnId, code: u16, now_ms: i64) {
        let Some(conn) = self.conns.get(&id) else { return };
        let source = conn.source;
        if conn.is_before_login() {
            self.counters.auth_failures += 1;
            self.windows.failed(&source, now_ms);
        }
        self.effects.push_back(Effect::Close { conn: id, code: CLOSE_BASE + code, reason: "" });
        self.closed(id, now_ms);
    }

    fn refuse_v2(&mut self, id: ConnId, code: Code, now_ms: i64) {
        let Some(greeting) = self.greeting(id) else { return };
        let steps = greeting.machine.refuse(code, retry_ms(code));
        self.carry(id, steps, (inbound::Prepared::Nothing, None), now_ms);
    }

    /// A node proved its key and wants to enter.
    fn asked_in(&mut self, id: ConnId, request: Box<LoginRequest>, now_ms: i64) {
        let Some(source) = self.conns.get(&id).map(|conn| conn.source) else { return };
        if self.windows.per_source && self.windows.auth.take(&source.net, now_ms).is_err() {
            return self.refuse_v2(id, Code::RateLimited, now_ms);
        }
        let key = request.key.0;
        let token_only = request.hello.role == Role::Token;
        if !self.may_enter(id, &key, token_only, now_ms) {
            return;
        }
        let Some(greeting) = self.greeting(id) else { return };
        greeting.request = Some(request);
        if self.config.tiers() {
            let op = RegistryOp::Devices(DeviceOp::Age { key });
            self.store_registry(super::Pending::V2(id, Pending::Age), op);
        } else {
            self.ask_storage(id, now_ms);
        }
    }

    fn aged(&mut self, id: ConnId, age: Option<(i64, bool)>, now_ms: i64) {
        let Some(source) = self.conns.get(&id).map(|conn| conn.source) else { return };
        if age.is_some_and(|(first_ms, worked)| worked || now_ms - first_ms >= WORKS_MS) {
            return self.ask_storage(id, now_ms);
        }
        let bits = self.price.bits(&source.net, now_ms);
        let challenge = Bin(self.random());
        let Some(greeting) = self.greeting(id) else { return };
        greeting.puzzle = Some((bits, now_ms));
        let bits = u8::try_from(bits).unwrap_or(u8::MAX);
        let steps = greeting.machine.demand_work(bits, challenge, unsigned(now_ms));
        self.figures.puzzles.0 += 1;
        self.carry(id, steps, (inbound::Prepared::Nothing, None), now_ms);
        self.wake_greeting(id);
    }

    fn worked(&mut self, id: ConnId, now_ms: i64) {
        let Some(source) = self.conns.get(&id).map(|conn| conn.source) else { return };
        let Some(greeting) = self.greeting(id) else { return };
        greeting.worked = true;
        let puzzle = greeting.puzzle;
        self.figures.puzzles.1 += 1;
        if let Some((bits, posed_ms)) = puzzle {
            self.price.solved(source.net, bits, now_ms - posed_ms, now_ms);
        }
        self.ask_storage(id, now_ms);
    }

    /// Asks storage to let the identity in, and tells it of the device in the same breath.
    fn ask_storage(&mut self, id: ConnId, now_ms: i64) {
        let Some(source) = self.conns.get(&id).map(|conn| conn.source) else { return };
        let Some(request) = self.greeting(id).and_then(|greeting| greeting.request.clone()) else { return };
        let LoginRequest { key, hello, .. } = *request;
        let metadata = inbound::metadata_of(&hello);
        let registry = registry_of(&hello);
        let wish = Wish {
            metadata: &metadata,
            registry: registry.as_ref(),
            visibility: visibility_of(hello.vis),
            token_only: hello.role == Role::Token,
            v2: true,
        };
        let login = self.login(&key.0, &source, &wish, now_ms);
        self.store_registry(
            super::Pending::Login { conn: id, key: key.0 },
            RegistryOp::Login(Box::new(login)),
        );
        // What relays share is asked for behind the login, which nothing else orders.
        if hello.role != Role::Token && !self.is_clustered() {
            self.greet(id);
        }
    }

    /// Tells storage of the device that logs in.
    fn greet(&mut self, id: ConnId) {
        let Some(LoginRequest { device, hello, .. }) =
            self.greeting(id).and_then(|greeting| greeting.request.as_deref())
        else {
            return;
        };
        let op = DeviceOp::Greet {
            facts: Box::new(inbound::facts_of(device)),
            lease: (hello.role == Role::Active).then_some(hello.ep),
            no_v1: hello.nov1,
            private: hello.vis == Some(Visibility::Private),
        };
        self.ask(id, Pending::Greet, op);
    }

    /// Storage lets the identity in.
    pub(super) fn admitted(&mut self, id: ConnId, admitted: Admitted, now_ms: i64) {
        let Some(greeting) = self.greeting(id) else { return };
        greeting.admitted = Some(admitted);
        if greeting.request.as_ref().is_some_and(|request| request.hello.role == Role::Token) {
            self.open_session(id, QueueSize { n: 0, bytes: 0 }, now_ms);
        } else if self.is_clustered() {
            self.greet(id);
        }
    }

    fn greeted(&mut self, id: ConnId, greeted: Greeted, now_ms: i64) {
        let Some(greeting) = self.greeting(id) else { return };
        if greeted.removed {
            return self.refuse_v2(id, Code::BadDevice, now_ms);
        }
        if greeted.granted == Lease::TooFar {
            return self.refuse_v2(id, Code::BadRequest, now_ms);
        }
        greeting.greeted = Some(greeted);
        let of = greeting.request.as_ref().and_then(|request| address_of(&request.key.0));
        self.store_queue(super::Pending::V2(id, Pending::Depth), QueueOp::Look { most: 0, of });
    }

    fn open_session(&mut self, id: ConnId, waiting: QueueSize, now_ms: i64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let source = conn.source;
        let Phase::Greeting(greeting) = std::mem::replace(&mut conn.phase, Phase::TokenOnly) else { return };
        let Greeting { machine, carrier, request, worked, admitted, greeted, .. } = *greeting;
        let (Some(request), Some(admitted)) = (request, admitted) else { return };
        let LoginRequest { key, device, hello } = *request;
        let Some(address) = address_of(&key.0) else { return };
        let device = device.cert.object().device;
        let role = match hello.role {
            Role::Token => Role::Token,
            Role::Active if greeted.is_some_and(|greeted| greeted.granted == Lease::Holds) => Role::Active,
            Role::Active | Role::Standby => Role::Standby,
        };
        self.windows.logged_in(&source);
        let fence = greeted.map_or(0, |greeted| greeted.lease);
        let active_ms = self.lead_from(&address, now_ms);
        let mut elsewhere = false;
        if role != Role::Token {
            self.make_room(&address, &device, role, fence, now_ms);
            elsewhere = self.moved_here(&address, Some(device.0));
        }
        let metadata = inbound::metadata_of(&hello);
        let registry = registry_of(&hello);
        let profile = clean::profile(&metadata, registry.as_ref());
        let Admitted { first_seen_ms, mut counts, listing, framework_visible } = admitted;
        let young = self.config.tiers() && now_ms - first_seen_ms < YOUNG_MS;
        let newly_worked = worked && !counts.worked;
        counts.worked |= worked;
        let mut siblings: Vec<Fingerprint> = hello.sib.iter().filter_map(|key| address_of(&key.0)).collect();
        siblings.push(address);
        let (tok, token_ends_ms) = self.token(&key.0, now_ms);
        let session = Session {
            key: key.0,
            address,
            source,
            visibility: visibility_of(hello.vis),
            listed: listing == Listing::Listed,
            metadata: Box::new(clean::metadata(&metadata, &profile, framework_visible)),
            since_ms: now_ms,
            first_seen_ms,
            tier: young.then(|| Box::new(counts.clone())),
            subscription: Subscription::None,
            heartbeat_ms: now_ms + HEARTBEAT_V2_MS,
            unanswered: 0,
            banned: false,
            siblings: siblings.into(),
            device: Some(Box::new(Device {
                machine,
                id: device,
                carrier,
                lease: hello.ep,
                fence,
                active_ms,
                token_ms: now_ms,
                refused: BTreeMap::new(),
                tries: HashMap::new(),
                blobs: Vec::new(),
            })),
            delivery: Delivery { old_to: self.old_to(), ..Delivery::default() },
        };
        let sid = Bin(self.random());
        let limits = &self.config.limits;
        let welcome = Welcome {
            sid,
            relay: Bin(self.signer.verifying_key().to_bytes()),
            now: unsigned(now_ms),
            lim: RelayLimits {
                env: threadline::v2::MAX_ENVELOPE as u64,
                ttl_s: u64::from(self.config.queue.max_ttl_s),
                msg_min: u64::from(limits.messages_per_minute),
                msg_hour: u64::from(limits.messages_per_hour),
                disc_min: u64::from(limits.lookup_frames_per_minute),
            },
            q: waiting,
            tok: Some(tok),
            tok_x: Some(unsigned(token_ends_ms)),
            age_ms: unsigned(now_ms - first_seen_ms),
            hw: greeted.map_or((0, 0), |greeted| greeted.mark),
            ep: fence,
            role,
            notice: self.notice(hello.listed, &session, now_ms),
            rs: None,
        };
        let there = self.is_live(&address);
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.phase = Phase::Live(Box::new(session));
        let signer = &self.signer;
        let Phase::Live(session) = &mut conn.phase else { return };
        let Some(device) = &mut session.device else { return };
        let steps = device.machine.welcome(welcome, |text| signer.sign(text).to_bytes());
        self.carry(id, steps, (inbound::Prepared::Nothing, None), now_ms);
        self.wake(id, now_ms + HEARTBEAT_V2_MS);
        if let Some(figures) = self.carrier_figures(id) {
            figures.logins += 1;
        }
        if role == Role::Token {
            return;
        }
        self.devices.entry(address).or_default().push(id);
        if young && newly_worked {
            self.store_registry(super::Pending::Quiet, RegistryOp::Count { key: key.0, counts });
        }
        if there || elsewhere {
            self.tell_devices(&address, id, now_ms);
        }
        if !there {
            self.came(id, elsewhere, now_ms);
        }
        self.claim_in_cluster(id);
        let siblings = self.session(id).map(|session| session.siblings.to_vec()).unwrap_or_default();
        let siblings = siblings.into_iter().filter(|sibling| *sibling != address).collect();
        let arrived = QueueOp::Arrived { recipient: address, siblings, now_ms };
        self.store_queue(super::Pending::Quiet, arrived);
        if role == Role::Active {
            self.read_backlog(id, now_ms);
        }
        self.churned(&address, now_ms);
    }

    /// A device takes the place of its own older session and, if it is to be active, that of the active one.
    fn make_room(&mut self, address: &Fingerprint, device: &DeviceId, role: Role, fence: u64, now_ms: i64) {
        for conn in self.devices.get(address).cloned().unwrap_or_default() {
            let Some(other) = self.device_mut(conn) else { continue };
            other.fence = other.fence.max(fence);
            if other.id == *device {
                self.end_v2(conn, close::REPLACED, now_ms);
            } else if role == Role::Active && other.is_active() {
                self.demote(conn, now_ms);
            }
        }
    }

    fn demote(&mut self, id: ConnId, now_ms: i64) {
        let Some(session) = self.session_mut(id) else { return };
        let Some(device) = &mut session.device else { return };
        device.machine.set_role(Role::Standby);
        let under_way: Vec<u64> = device.machine.unconfirmed().collect();
        for delivery in under_way {
            device.machine.confirmed(delivery);
        }
        let again = session.delivery.flight.len() as u64;
        session.delivery = Delivery::default();
        let address = session.address;
        self.counters.redelivered += again;
        self.tell_devices(&address, id, now_ms);
        self.claim_in_cluster(id);
    }

    /// Tells all devices of an agent what one of them is now.
    fn tell_devices(&mut self, address: &Fingerprint, about: ConnId, now_ms: i64) {
        let Some((key, dev, role)) =
            self.session(about).and_then(|s| s.device.as_ref().map(|d| (s.key, d.id, d.role())))
        else {
            return;
        };
        let news = Presence { key: Bin(key), dev: Some(dev), on: true, role, at: unsigned(now_ms) };
        for conn in self.devices.get(address).cloned().unwrap_or_default() {
            self.send_v2(conn, news.clone());
        }
    }

    /// Removes a session from the devices of an agent. Whether it was one of them.
    pub(super) fn forget_device(&mut self, address: &Fingerprint, id: ConnId) -> bool {
        let Some(conns) = self.devices.get_mut(address) else { return false };
        let before = conns.len();
        conns.retain(|conn| *conn != id);
        let was = conns.len() < before;
        if conns.is_empty() {
            self.devices.remove(address);
        }
        was
    }

    /// A session of an agent ended, another goes on: it takes the mail, and hears of it.
    pub(super) fn left_beside_others(
        &mut self,
        address: &Fingerprint,
        device: Option<DeviceId>,
        key: [u8; 32],
        now_ms: i64,
    ) {
        if let Some(dev) = device {
            let news =
                Presence { key: Bin(key), dev: Some(dev), on: false, role: None, at: unsigned(now_ms) };
            for conn in self.devices.get(address).cloned().unwrap_or_default() {
                self.send_v2(conn, news.clone());
            }
        }
        self.read_anew(address, now_ms);
    }

    /// A device is to be the active one.
    fn activate(&mut self, id: ConnId, lease: u64, now_ms: i64) {
        let Some((address, dev)) =
            self.session(id).and_then(|s| s.device.as_ref().map(|device| (s.address, device.id)))
        else {
            return;
        };
        for conn in self.devices.get(&address).cloned().unwrap_or_default() {
            let Some(other) = self.device_mut(conn) else { continue };
            other.fence = other.fence.max(lease);
            if other.id != dev && other.is_active() {
                self.demote(conn, now_ms);
            }
        }
        let active_ms = self.lead_from(&address, now_ms);
        if let Some(device) = self.device_mut(id) {
            device.lease = lease;
            device.active_ms = active_ms;
            device.machine.set_role(Role::Active);
        }
        self.tell_devices(&address, id, now_ms);
        self.claim_in_cluster(id);
        self.read_again_from(id, 0);
        self.read_backlog(id, now_ms);
    }

    pub(super) fn stored_v2(
        &mut self,
        id: ConnId,
        pending: Pending,
        answer: Result<StoreAnswer, StoreFailed>,
        now_ms: i64,
    ) {
        let answer = match answer {
            Ok(
                StoreAnswer::Registry(RegistryAnswer::Devices(answer))
                | StoreAnswer::Queue(QueueAnswer::Devices(answer)),
            ) => Some(answer),
            Ok(StoreAnswer::Queue(QueueAnswer::Look(look))) => {
                let n = look.of.map_or(0, |depth| depth.messages);
                let bytes = look.of.map_or(0, |depth| depth.bytes);
                return self.open_session(id, QueueSize { n, bytes }, now_ms);
            }
            Ok(StoreAnswer::Queue(QueueAnswer::Standing { reply, .. })) => {
                if let Pending::Correspondent { rid, to, address } = pending {
                    self.claim(id, rid, to, address, reply, now_ms);
                }
                return;
            }
            _ => None,
        };
        match (pending, answer) {
            (Pending::Age, Some(DeviceAnswer::Age(age))) => self.aged(id, age, now_ms),
            (Pending::Greet, Some(DeviceAnswer::Greeted(greeted))) => self.greeted(id, greeted, now_ms),
            (Pending::Age | Pending::Greet | Pending::Depth, _) => {
                if self.greeting(id).is_some() {
                    self.login_failed(id, now_ms);
                }
            }
            (pending, answer) => self.answered(id, &pending, answer, now_ms),
        }
    }
}

fn address_of(key: &[u8; 32]) -> Option<Fingerprint> {
    key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes))
}

fn visibility_of(visibility: Option<Visibility>) -> V1Visibility {
    match visibility {
        Some(Visibility::Public) => V1Visibility::Public,
        Some(Visibility::Private) => V1Visibility::Private,
        Some(Visibility::Unlisted) | None => V1Visibility::Unlisted,
    }
}

/// A node of v2 shows its framework only where it says so, which a HELLO cannot.
fn registry_of(hello: &threadline::v2::frames::Hello) -> Option<RegistryWish> {
    let listed = hello.listed || hello.vis == Some(Visibility::Public);
    listed.then_some(RegistryWish { listed: true, homepage: None, framework_visible: Some(false) })
}
