//! One relay link as a state machine without I/O (`threadline-wire.md` §2.3 and §2.4).
//!
//! The driver feeds it with `handle_*` and carries out what [`Client::poll_effect`] returns, in order; it calls
//! [`Client::handle_timeout`] at [`Client::poll_timeout`]. Time is Unix milliseconds of a clock that never runs
//! backwards. Reports of a connection that is over are ignored, so late reports do no harm.

mod agents;
mod backoff;
mod inbound;
mod types;

pub use agents::{KnownAgent, KnownAgents};
pub use inbound::Ticket;
pub use types::{
    ClientConfig, ConnectionId, DeliveryEvent, Effect, LinkChange, LinkState, SendRefused, Wait,
};

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use self::backoff::Backoff;
use self::inbound::Inbound;
use super::envelope::Envelope;
use super::frames::{
    Ack, AckStatus, Auth, AuthOk, ClientFrame, DiscoverFilter, ErrorCode, PresenceNotice, RelayError,
    ServerFrame,
};
use super::{MAX_ENVELOPE, close};
use crate::identity::{Identity, LoginNonce};
use crate::{Fingerprint, MessageId};

/// From the start of a connection to `auth_ok`, ms.
pub const CONNECT_DEADLINE_MS: i64 = 30_000;
/// Without any frame for this long the link is dead, ms.
pub const DEAD_AFTER_MS: i64 = 240_000;
/// Messages that may wait for their first acknowledgement.
pub const MAX_IN_FLIGHT: usize = 8;
/// A message that is not acknowledged for this long gives its place free; its retry is the outbox's business, ms.
pub const ACK_PATIENCE_MS: i64 = 30_000;

/// Bytes of a `message` frame around its envelope.
const MESSAGE_FRAME: usize = r#"{"type":"message","envelope":}"#.len();
const STABLE_AFTER_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;
const DISPLACED_RETRY_MS: i64 = 30_000;
const DISPLACED_WINDOW_MS: i64 = 600_000;
const MAX_AUTH_FAILURES: u32 = 5;
const DISCOVERS_PER_MINUTE: usize = 10;
const REDISCOVER_EVERY_MS: i64 = 30_000;

#[derive(Debug, Clone, Copy)]
struct InFlight {
    to: Fingerprint,
    since: i64,
}

/// The state machine of one link.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    identity: Arc<Identity>,
    rng: StdRng,
    state: LinkState,
    connection: ConnectionId,
    deadline: Option<i64>,
    backoff: Backoff,
    auth_failures: u32,
    displaced_at: Option<i64>,
    inbound: Inbound,
    in_flight: BTreeMap<MessageId, InFlight>,
    agents: KnownAgents,
    discovers: VecDeque<i64>,
    rediscovered: BTreeMap<String, i64>,
    bad_frames: u64,
    effects: VecDeque<Effect>,
}

impl Client {
    /// A stopped link. `seed` drives the jitter.
    pub fn new(config: ClientConfig, identity: Arc<Identity>, seed: u64) -> Self {
        Self {
            config,
            identity,
            rng: StdRng::seed_from_u64(seed),
            state: LinkState::Stopped,
            connection: ConnectionId(0),
            deadline: None,
            backoff: Backoff::default(),
            auth_failures: 0,
            displaced_at: None,
            inbound: Inbound::default(),
            in_flight: BTreeMap::new(),
            agents: KnownAgents::default(),
            discovers: VecDeque::new(),
            rediscovered: BTreeMap::new(),
            bad_frames: 0,
            effects: VecDeque::new(),
        }
    }

    /// Switches the link on, also out of a final state.
    pub fn start(&mut self, now_ms: i64) {
        if self.state.is_final() {
            self.backoff = Backoff::default();
            self.auth_failures = 0;
            self.displaced_at = None;
            self.connect(now_ms);
        }
    }

    /// Says good-bye and switches the link off.
    pub fn stop(&mut self, now_ms: i64) {
        if self.is_ready() {
            let notice = PresenceNotice {
                status: "offline".into(),
                agent_id: Some(self.identity.fingerprint().to_string()),
            };
            self.send_frame(&ClientFrame::Presence(notice));
        }
        self.close_socket(close::NORMAL);
        self.leave(now_ms);
        self.deadline = None;
        self.enter(LinkState::Stopped, now_ms, None, None);
    }

    /// Uses another introduction from the next login on.
    pub fn set_config(&mut self, config: ClientConfig) {
        self.config = config;
    }

    /// Where the link stands.
    pub fn state(&self) -> LinkState {
        self.state
    }

    /// Whether messages can be sent.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, LinkState::Ready { .. })
    }

    /// Everyone the relay told about.
    pub fn agents(&self) -> &KnownAgents {
        &self.agents
    }

    /// Frames of the relay that could not be read.
    pub fn bad_frames(&self) -> u64 {
        self.bad_frames
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Client::handle_timeout`], Unix ms.
    pub fn poll_timeout(&self) -> Option<i64> {
        let ack = self.in_flight.values().map(|f| f.since + ACK_PATIENCE_MS).min();
        [self.deadline, ack].into_iter().flatten().min()
    }

    /// The socket is open.
    pub fn handle_connected(&mut self, connection: ConnectionId, now_ms: i64) {
        if connection == self.connection && self.state == LinkState::Connecting {
            self.enter(LinkState::Authenticating, now_ms, None, None);
        }
    }

    /// The socket could not be opened, or is closed, with the close code if there was one.
    pub fn handle_closed(&mut self, connection: ConnectionId, code: Option<u16>, reason: &str, now_ms: i64) {
        if connection != self.connection || !self.has_socket() {
            return;
        }
        self.leave(now_ms);
        let code_text = code.map(|c| c.to_string());
        match code {
            Some(close::DISPLACED) => self.displaced(reason, now_ms),
            Some(close::BANNED) => self.wait(Wait::Banned, now_ms + HOUR_MS, now_ms, code_text, Some(reason)),
            Some(close::AUTH_RATE_LIMITED) => {
                self.backoff.at_least(5);
                self.back_off(now_ms, code_text, reason);
            }
            Some(close::GOING_AWAY) => {
                let pause = self.rng.random_range(500..=5_000);
                self.wait(Wait::RelayRestart, now_ms + pause, now_ms, code_text, Some(reason));
            }
            _ => self.back_off(now_ms, code_text, reason),
        }
    }

    /// A text message arrived.
    pub fn handle_text(&mut self, connection: ConnectionId, text: &str, now_ms: i64) {
        if connection != self.connection || !self.has_socket() {
            return;
        }
        let Ok(frame) = ServerFrame::parse(text) else {
            self.bad_frames += 1;
            return;
        };
        if self.is_ready() {
            self.deadline = Some(now_ms + DEAD_AFTER_MS);
        }
        match frame {
            ServerFrame::Challenge(nonce) => self.challenged(&nonce, now_ms),
            ServerFrame::AuthOk(ok) => self.logged_in(ok, now_ms),
            ServerFrame::AuthError(error) => self.login_refused(&error, now_ms),
            ServerFrame::Displaced(reason) => {
                self.close_socket(close::NORMAL);
                self.leave(now_ms);
                self.displaced(&reason, now_ms);
            }
            ServerFrame::Error(error) if error.code == ErrorCode::Banned => self.banned(&error, now_ms),
            frame if self.is_ready() => self.handle_ready(frame),
            _ => {}
        }
    }

    /// The time of [`Client::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now_ms: i64) {
        self.in_flight.retain(|_, flight| flight.since + ACK_PATIENCE_MS > now_ms);
        if self.deadline.is_none_or(|deadline| deadline > now_ms) {
            return;
        }
        self.deadline = None;
        match self.state {
            LinkState::Waiting { .. } => self.connect(now_ms),
            LinkState::Connecting | LinkState::Authenticating => {
                self.give_up(now_ms, "no login within 30 s");
            }
            LinkState::Ready { .. } => self.give_up(now_ms, "no frame for 4 min"),
            LinkState::Stopped | LinkState::Displaced | LinkState::AuthFailed => {}
        }
    }

    /// Sends a finished envelope. The relay's answers come as [`Effect::Delivery`].
    pub fn send(&mut self, envelope: &Envelope, now_ms: i64) -> Result<(), SendRefused> {
        if !self.is_ready() {
            return Err(SendRefused::NotReady);
        }
        let header = envelope.header().map_err(|_| SendRefused::Unsendable)?;
        let text = ClientFrame::Message(envelope.clone()).to_text();
        if text.len() > MAX_ENVELOPE + MESSAGE_FRAME {
            return Err(SendRefused::Unsendable);
        }
        if self.in_flight.len() >= MAX_IN_FLIGHT && !self.in_flight.contains_key(&header.message_id) {
            return Err(SendRefused::Busy);
        }
        self.in_flight.insert(header.message_id.clone(), InFlight { to: header.to, since: now_ms });
        let (connection, message) = (self.connection, Some(header.message_id));
        self.effects.push_back(Effect::Send { connection, text, message });
        Ok(())
    }

    /// Messages that may be handed to [`Client::send`] now.
    pub fn free_places(&self) -> usize {
        if self.is_ready() { MAX_IN_FLIGHT.saturating_sub(self.in_flight.len()) } else { 0 }
    }

    /// A message of [`Effect::Send`] was written to the socket.
    pub fn handle_written(&mut self, connection: ConnectionId, message_id: &MessageId) {
        if connection == self.connection {
            let to = self.in_flight.get(message_id).map(|f| f.to);
            let message_id = message_id.clone();
            self.effects.push_back(Effect::Delivery { to, message_id, event: DeliveryEvent::Written });
        }
    }

    /// The envelope of `ticket` is committed: acknowledge it.
    pub fn spooled(&mut self, ticket: &Ticket) {
        if ticket.connection != self.connection || !self.is_ready() {
            return;
        }
        let ack = Ack::new(ticket.message_id.as_str(), AckStatus::Delivered);
        self.send_frame(&ClientFrame::Ack(ack));
        self.resolve(ticket);
    }

    /// The envelope of `ticket` will never be stored (junk): nothing is acknowledged.
    pub fn refused(&mut self, ticket: &Ticket) {
        if ticket.connection == self.connection && self.is_ready() {
            self.resolve(ticket);
        }
    }

    /// Asks the relay who is there; at most 10 times a minute. Whether it asked.
    pub fn discover(&mut self, filter: Option<DiscoverFilter>, now_ms: i64) -> bool {
        while self.discovers.front().is_some_and(|at| at + 60_000 <= now_ms) {
            self.discovers.pop_front();
        }
        if !self.is_ready() || self.discovers.len() >= DISCOVERS_PER_MINUTE {
            return false;
        }
        self.discovers.push_back(now_ms);
        self.send_frame(&ClientFrame::Discover(filter));
        true
    }

    /// Asks again because `name` only matched agents that are away; once per name and 30 s. Whether it asked.
    pub fn rediscover(&mut self, name: &str, now_ms: i64) -> bool {
        self.rediscovered.retain(|_, at| *at + REDISCOVER_EVERY_MS > now_ms);
        if self.rediscovered.contains_key(name) {
            return false;
        }
        let filter = DiscoverFilter { name: Some(name.to_owned()), ..DiscoverFilter::default() };
        let asked = self.discover(Some(filter), now_ms);
        if asked {
            self.rediscovered.insert(name.to_owned(), now_ms);
        }
        asked
    }

    fn handle_ready(&mut self, frame: ServerFrame) {
        match frame {
            ServerFrame::Message(envelope) => self.message(envelope),
            ServerFrame::Ack(ack) => self.acknowledged(&ack),
            ServerFrame::Ping(timestamp) => {
                for timestamp in self.inbound.ping(timestamp) {
                    self.pong(timestamp);
                }
            }
            ServerFrame::DiscoverResult(found) => {
                self.agents.merge(found);
                self.effects.push_back(Effect::AgentsChanged);
            }
            ServerFrame::PresenceChange(change) => {
                self.agents.presence(change);
                self.effects.push_back(Effect::AgentsChanged);
            }
            ServerFrame::DeliveryExpired(expired) => {
                let to = expired.recipient_id.parse().ok();
                self.delivery(&expired.message_id, to, DeliveryEvent::Expired);
            }
            ServerFrame::Error(error) => self.complained(error),
            ServerFrame::Challenge(_)
            | ServerFrame::AuthOk(_)
            | ServerFrame::AuthError(_)
            | ServerFrame::Displaced(_) => {}
        }
    }

    fn challenged(&mut self, nonce: &str, now_ms: i64) {
        if self.state != LinkState::Authenticating {
            return;
        }
        let Some(nonce) = LoginNonce::parse(nonce) else {
            self.close_socket(close::NORMAL);
            self.leave(now_ms);
            let reason = "the relay asked for a signature over a text that is no login challenge";
            let code = Some("bad_challenge".into());
            self.wait(Wait::BadChallenge, now_ms + HOUR_MS, now_ms, code, Some(reason));
            return;
        };
        let mut auth =
            Auth::new(&self.identity, &nonce, self.config.metadata.clone(), self.config.visibility);
        auth.registry.clone_from(&self.config.registry);
        self.send_frame(&ClientFrame::Auth(Box::new(auth)));
    }

    fn logged_in(&mut self, ok: AuthOk, now_ms: i64) {
        if self.state != LinkState::Authenticating {
            return;
        }
        self.auth_failures = 0;
        self.deadline = Some(now_ms + DEAD_AFTER_MS);
        self.enter(LinkState::Ready { since: now_ms }, now_ms, None, None);
        if let Some(token) = ok.registry_token {
            let expires = ok.registry_token_expires.as_deref().and_then(crate::time::parse_iso);
            self.effects.push_back(Effect::RegistryToken { token, expires, status: ok.registry_status });
        }
        if self.config.watch_presence {
            self.send_frame(&ClientFrame::Subscribe(None));
        }
        self.discover(None, now_ms);
    }

    fn login_refused(&mut self, error: &RelayError, now_ms: i64) {
        if self.state != LinkState::Authenticating {
            return;
        }
        if error.code == ErrorCode::Banned {
            self.banned(error, now_ms);
            return;
        }
        self.close_socket(close::NORMAL);
        self.leave(now_ms);
        self.backoff.at_least(5);
        let code = Some(code_text(&error.code));
        if !is_rate_limit(error) && error.code != ErrorCode::AuthTimeout {
            self.auth_failures += 1;
            if self.auth_failures >= MAX_AUTH_FAILURES {
                self.deadline = None;
                self.enter(LinkState::AuthFailed, now_ms, code, Some(&error.message));
                return;
            }
        }
        self.back_off(now_ms, code, &error.message);
    }

    fn banned(&mut self, error: &RelayError, now_ms: i64) {
        self.close_socket(close::NORMAL);
        self.leave(now_ms);
        let until = ban_end(&error.message).filter(|until| *until > now_ms).unwrap_or(now_ms + HOUR_MS);
        self.wait(Wait::Banned, until, now_ms, Some("banned".into()), Some(&error.message));
    }

    fn displaced(&mut self, reason: &str, now_ms: i64) {
        let again = self.displaced_at.is_some_and(|at| now_ms - at <= DISPLACED_WINDOW_MS);
        self.displaced_at = Some(now_ms);
        let code = Some("displaced".to_owned());
        if again {
            self.deadline = None;
            self.enter(LinkState::Displaced, now_ms, code, Some(reason));
        } else {
            self.wait(Wait::Displaced, now_ms + DISPLACED_RETRY_MS, now_ms, code, Some(reason));
        }
    }

    fn message(&mut self, envelope: Envelope) {
        // Without a readable id it can neither be acknowledged nor stored under a key.
        let Some(message_id) = envelope.text("messageId").and_then(|id| id.parse().ok()) else {
            self.bad_frames += 1;
            return;
        };
        let ticket = self.inbound.message(self.connection, message_id);
        self.effects.push_back(Effect::Store { ticket, envelope });
    }

    fn acknowledged(&mut self, ack: &Ack) {
        let event = match ack.status {
            AckStatus::Delivered => DeliveryEvent::Delivered,
            AckStatus::Queued => DeliveryEvent::Queued { ttl: ack.ttl },
            AckStatus::Rejected if ack.is_replay() => DeliveryEvent::Replay,
            AckStatus::Rejected => {
                let reason = cut(ack.reason.as_deref().unwrap_or_default());
                DeliveryEvent::Rejected { code: None, reason }
            }
        };
        self.delivery(&ack.message_id, None, event);
    }

    fn complained(&mut self, error: RelayError) {
        if is_rate_limit(&error) {
            self.backoff.at_least(5);
        }
        match error.related_message_id {
            Some(id) => {
                let event = if error.code == ErrorCode::ReplayDetected {
                    DeliveryEvent::Replay
                } else {
                    DeliveryEvent::Rejected { reason: cut(&error.message), code: Some(error.code) }
                };
                self.delivery(&id, None, event);
            }
            None => self.effects.push_back(Effect::RelayError(error)),
        }
    }

    fn delivery(&mut self, message_id: &str, to: Option<Fingerprint>, event: DeliveryEvent) {
        let Ok(message_id) = message_id.parse::<MessageId>() else {
            self.bad_frames += 1;
            return;
        };
        let to = self.in_flight.remove(&message_id).map(|f| f.to).or(to);
        self.effects.push_back(Effect::Delivery { to, message_id, event });
    }

    fn resolve(&mut self, ticket: &Ticket) {
        for timestamp in self.inbound.resolve(ticket) {
            self.pong(timestamp);
        }
    }

    fn pong(&mut self, timestamp: Option<Value>) {
        self.send_frame(&ClientFrame::Pong(timestamp));
    }

    fn connect(&mut self, now_ms: i64) {
        self.connection = ConnectionId(self.connection.0 + 1);
        self.deadline = Some(now_ms + CONNECT_DEADLINE_MS);
        self.enter(LinkState::Connecting, now_ms, None, None);
        self.effects.push_back(Effect::Connect { connection: self.connection, url: self.config.url.clone() });
    }

    fn give_up(&mut self, now_ms: i64, reason: &str) {
        self.close_socket(close::NORMAL);
        self.leave(now_ms);
        self.back_off(now_ms, None, reason);
    }

    fn back_off(&mut self, now_ms: i64, code: Option<String>, reason: &str) {
        let delay = self.backoff.next(&mut self.rng);
        self.wait(Wait::Backoff, now_ms + delay, now_ms, code, Some(reason));
    }

    fn wait(&mut self, why: Wait, until: i64, now_ms: i64, code: Option<String>, reason: Option<&str>) {
        self.deadline = Some(until);
        self.enter(LinkState::Waiting { why, until }, now_ms, code, reason);
    }

    /// Forgets what belonged to the connection. Only a login that held for a minute starts the backoff afresh.
    fn leave(&mut self, now_ms: i64) {
        if let LinkState::Ready { since } = self.state {
            if now_ms - since >= STABLE_AFTER_MS {
                self.backoff = Backoff::default();
            }
            self.agents.all_offline();
        }
        self.inbound = Inbound::default();
        self.in_flight.clear();
    }

    fn enter(&mut self, state: LinkState, at: i64, code: Option<String>, reason: Option<&str>) {
        self.state = state;
        self.effects.push_back(Effect::Link(LinkChange { state, at, code, reason: reason.map(cut) }));
    }

    fn has_socket(&self) -> bool {
        matches!(self.state, LinkState::Connecting | LinkState::Authenticating | LinkState::Ready { .. })
    }

    fn close_socket(&mut self, code: u16) {
        if self.has_socket() {
            self.effects.push_back(Effect::Close { connection: self.connection, code });
        }
    }

    fn send_frame(&mut self, frame: &ClientFrame) {
        let (connection, text) = (self.connection, frame.to_text());
        self.effects.push_back(Effect::Send { connection, text, message: None });
    }
}

/// Older relays refuse a login for its rate under another code and say so in words only.
fn is_rate_limit(error: &RelayError) -> bool {
    let message = error.message.to_lowercase();
    let mut words = message.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
    error.code == ErrorCode::RateLimited
        || message.contains("too many")
        || words.any(|word| matches!(word, "rate" | "ratelimit" | "ratelimited"))
}

/// Time after the word `until` in a ban message, Unix ms.
fn ban_end(message: &str) -> Option<i64> {
    let (_, rest) = message.split_once("until ")?;
    let word = rest.split_whitespace().next()?;
    crate::time::parse_iso(word.trim_end_matches(['.', ',', ')']))
}

fn code_text(code: &ErrorCode) -> String {
    serde_json::to_value(code).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn cut(reason: &str) -> String {
    reason.chars().take(300).collect()
}

#[cfg(test)]
mod tests;
