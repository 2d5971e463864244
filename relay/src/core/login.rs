//! From the challenge to `auth_ok` (`threadline-wire.md` §2.3, `relay.md` §4).

use threadline::Fingerprint;
use threadline::identity::LoginNonce;
use threadline::time::iso_ms;
use threadline::v1::close;
use threadline::v1::frames::{Auth, AuthOk, ErrorCode, Metadata, RegistryWish, ServerFrame, Visibility};

use super::conn::{Conn, Delivery, LoggingIn, Phase, Session, Subscription};
use super::{ConnId, Core, Pending, Source};
use crate::config::Mode;
use crate::registry::clean;
use crate::store::registry::devices::DeviceOp;
use crate::store::{Listing, Login, LoginOutcome, LoginRules, QueueOp, RegistryOp, TierCounts};
use crate::token;

/// Milliseconds a socket has to log in.
pub(super) const TIMEOUT_MS: i64 = 10_000;
/// Bytes a socket may send before it is logged in.
pub(super) const MAX_BYTES: usize = 4_096;
const TOKEN_ONLY_MS: i64 = 30_000;
const HEARTBEAT_MS: u64 = 60_000;
const BEFORE_LOGIN: u32 = 1_024;
const BEFORE_LOGIN_PER_SOURCE: u32 = 16;
/// An identity is young for a day.
pub(super) const YOUNG_MS: i64 = 86_400_000;

/// What an agent tells of itself and wants, whatever it speaks.
pub(super) struct Wish<'a> {
    pub(super) metadata: &'a Metadata,
    pub(super) registry: Option<&'a RegistryWish>,
    pub(super) visibility: Visibility,
    pub(super) token_only: bool,
    pub(super) v2: bool,
}

/// What storage says of an identity that is let in.
pub(super) struct Admitted {
    pub(super) first_seen_ms: i64,
    pub(super) counts: TierCounts,
    pub(super) listing: Listing,
    pub(super) framework_visible: bool,
}

/// Text of a `banned` error; clients look for `until <ISO>`.
pub(super) fn banned_text(until_ms: i64) -> String {
    format!("Banned until {}", iso_ms(until_ms))
}

impl Core {
    pub(super) fn opened(&mut self, id: ConnId, source: Source, now_ms: i64) {
        if let Some(refusal) = self.refuse_connection(&source, now_ms) {
            self.send_auth_error(id, ErrorCode::RateLimited, refusal);
            let (code, reason) = (close::AUTH_RATE_LIMITED, "Too many connections");
            return self.effects.push_back(super::Effect::Close { conn: id, code, reason });
        }
        let nonce = LoginNonce::from_bytes(&self.random());
        self.send(id, ServerFrame::Challenge(nonce.as_str().to_owned()));
        self.enter(id, source, Phase::Challenged(Box::new(nonce)), now_ms);
        self.wake(id, now_ms + TIMEOUT_MS);
    }

    pub(super) fn enter(&mut self, id: ConnId, source: Source, phase: Phase, now_ms: i64) {
        self.windows.entered(&source);
        let conn = Conn { source, opened_ms: now_ms, bytes_before_login: 0, phase, wake_at: None };
        self.conns.insert(id, conn);
    }

    /// Why a connection is refused before it says anything.
    pub(super) fn refuse_connection(&mut self, source: &Source, now_ms: i64) -> Option<&'static str> {
        self.counters.connections += 1;
        if self.windows.before_login >= BEFORE_LOGIN {
            return Some("Too many connections that are not logged in");
        }
        if !self.windows.per_source {
            return None;
        }
        let open = self.windows.open.get(&source.net).copied().unwrap_or_default();
        let shut_out = self.windows.shut_out.get(&source.net).is_some_and(|(until, _)| *until > now_ms);
        if shut_out {
            return Some("Too many failed logins from this source");
        }
        if open.before_login >= BEFORE_LOGIN_PER_SOURCE || open.all >= self.config.sybil.sessions_per_source {
            return Some("Too many connections from this source");
        }
        self.windows
            .connections
            .take(&source.net, now_ms)
            .is_err()
            .then_some("Too many new connections from this source")
    }

    pub(super) fn authenticate(&mut self, id: ConnId, auth: Auth, now_ms: i64) {
        let Some(conn) = self.conns.get(&id) else { return };
        let source = conn.source;
        let Phase::Challenged(nonce) = &conn.phase else {
            return self.refuse(id, ErrorCode::AuthFailed, "No pending challenge", now_ms);
        };
        let verified = auth.verify(nonce);
        if self.windows.per_source && self.windows.auth.take(&source.net, now_ms).is_err() {
            self.send_auth_error(id, ErrorCode::RateLimited, "Too many login attempts from this source");
            return self.drop_conn(id, close::AUTH_RATE_LIMITED, "Too many login attempts", now_ms);
        }
        let key = match verified {
            Ok(key) => key,
            Err(refusal) => return self.refuse(id, ErrorCode::AuthFailed, refusal.to_string(), now_ms),
        };
        let token_only = auth.agent_id.is_none();
        if !self.may_enter(id, key.as_bytes(), token_only, now_ms) {
            return;
        }
        let logging_in = LoggingIn { key: *key.as_bytes(), address: key.fingerprint(), auth };
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.phase = Phase::LoggingIn(Box::new(logging_in));
        }
        if self.is_clustered() {
            // What the identity said of logins by v1 it may have said to another relay.
            let op = DeviceOp::Find { to: key.as_bytes().to_vec(), now_ms };
            return self.store_queue(Pending::LookedUp(id), QueueOp::Devices(Box::new(op)));
        }
        self.ask_in(id, now_ms);
    }

    /// Asks storage whether an identity may log in by v1.
    pub(super) fn ask_in(&mut self, id: ConnId, now_ms: i64) {
        let Some(conn) = self.conns.get(&id) else { return };
        let Phase::LoggingIn(logging_in) = &conn.phase else { return };
        let LoggingIn { key, auth, .. } = &**logging_in;
        let wish = Wish {
            metadata: &auth.metadata,
            registry: auth.registry.as_ref(),
            visibility: auth.visibility.unwrap_or_default(),
            token_only: auth.agent_id.is_none(),
            v2: false,
        };
        let (key, login) = (*key, self.login(key, &conn.source, &wish, now_ms));
        self.store_registry(Pending::Login { conn: id, key }, RegistryOp::Login(Box::new(login)));
    }

    /// Whether the relay takes this key in at all; refuses the connection otherwise.
    pub(super) fn may_enter(&mut self, id: ConnId, key: &[u8; 32], token_only: bool, now_ms: i64) -> bool {
        let Some(address) = key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes)) else {
            return false;
        };
        let admitted = self.is_bridge(&address) || self.is_admitted(key);
        if self.config.mode == Mode::Private && !admitted {
            let text = "this relay is private and does not know the key";
            self.refuse(id, ErrorCode::AuthFailed, text, now_ms);
            return false;
        }
        let full = self.sessions.len() + self.devices.len() >= self.config.max_sessions as usize;
        if !token_only && full && !self.is_live(&address) {
            self.refuse(id, ErrorCode::InternalError, "the relay is full", now_ms);
            return false;
        }
        true
    }

    /// The question to storage whether an identity may log in.
    pub(super) fn login(&self, key: &[u8; 32], source: &Source, wish: &Wish<'_>, now_ms: i64) -> Login {
        Login {
            key: *key,
            now_ms,
            source: source.pseudonym,
            profile: clean::profile(wish.metadata, wish.registry),
            visibility: wish.visibility,
            v2: wish.v2,
            token_only: wish.token_only,
            listed: wish.registry.map(|wish| wish.listed),
            rules: LoginRules {
                aging_ms: self.config.aging_ms(),
                identities_per_hour: self.windows.per_source.then_some(self.config.sybil.identities_per_hour),
                relay_id: self.relay_id.clone(),
            },
        }
    }

    fn is_admitted(&self, key: &[u8; 32]) -> bool {
        self.config.allow_keys.iter().any(|allowed| crate::keys::decode_public(allowed) == Some(*key))
    }

    pub(super) fn login_failed(&mut self, id: ConnId, now_ms: i64) {
        self.send_auth_error(id, ErrorCode::InternalError, "Relay storage unavailable");
        self.drop_conn(id, close::AUTH_REFUSED, "Relay storage unavailable", now_ms);
    }

    pub(super) fn logged_in(&mut self, id: ConnId, key: &[u8; 32], outcome: LoginOutcome, now_ms: i64) {
        let Some(conn) = self.conns.get_mut(&id) else { return self.unlist_unless_live(key, now_ms) };
        let source = conn.source;
        let welcome = match outcome {
            LoginOutcome::Welcome { first_seen_ms, first, counts, listing, framework_visible } => {
                if first {
                    self.figures.new_identities += 1;
                    self.windows.newcomers.add(&(), now_ms);
                    self.price.newcomer(now_ms);
                }
                Admitted { first_seen_ms, counts, listing, framework_visible }
            }
            LoginOutcome::NoV1 => {
                let text = "this identity does not log in by v1";
                return self.refuse(id, ErrorCode::AuthFailed, text, now_ms);
            }
            LoginOutcome::Banned { until_ms, reason } => {
                self.counters.auth_failures += 1;
                let text = format!("{}: {reason}", banned_text(until_ms));
                self.send_auth_error(id, ErrorCode::Banned, text);
                return self.drop_conn(id, close::BANNED, "Banned", now_ms);
            }
            LoginOutcome::Conflict => {
                self.counters.conflicts += 1;
                tracing::warn!("fingerprint_conflict: a second key for a known address was refused");
                let text = "another key is registered for this address";
                return self.refuse(id, ErrorCode::AuthFailed, text, now_ms);
            }
            LoginOutcome::TooManyIdentities => {
                self.counters.auth_failures += 1;
                let text = "Too many new identities from this source";
                self.send_auth_error(id, ErrorCode::RateLimited, text);
                return self.drop_conn(id, close::AUTH_RATE_LIMITED, text, now_ms);
            }
        };
        if matches!(conn.phase, Phase::Greeting(_)) {
            return self.admitted(id, welcome, now_ms);
        }
        let Admitted { first_seen_ms, counts, listing, framework_visible } = welcome;
        let Phase::LoggingIn(login) = std::mem::replace(&mut conn.phase, Phase::TokenOnly) else { return };
        self.windows.logged_in(&source);
        let LoggingIn { key, address, auth } = *login;
        if auth.agent_id.is_none() {
            let ok = self.auth_ok(&key, None, None, now_ms);
            self.send(id, ServerFrame::AuthOk(ok));
            return self.wake(id, now_ms + TOKEN_ONLY_MS);
        }
        if let Some(old) = self.sessions.get(&address).copied() {
            self.displace(old, now_ms);
        }
        let profile = clean::profile(&auth.metadata, auth.registry.as_ref());
        let young = self.config.tiers() && now_ms - first_seen_ms < YOUNG_MS;
        let listed = listing == Listing::Listed;
        let session = Session {
            key,
            address,
            source,
            visibility: auth.visibility.unwrap_or_default(),
            listed,
            metadata: Box::new(clean::metadata(&auth.metadata, &profile, framework_visible)),
            since_ms: now_ms,
            first_seen_ms,
            tier: young.then(|| Box::new(counts)),
            subscription: Subscription::None,
            heartbeat_ms: now_ms + self.next_heartbeat(),
            unanswered: 0,
            banned: false,
            siblings: Box::default(),
            device: None,
            delivery: Delivery { old_to: self.old_to(), ..Delivery::default() },
        };
        let explicit = auth.registry.as_ref().is_some_and(|wish| wish.listed);
        let notice = self.notice(explicit, &session, now_ms);
        let ok = self.auth_ok(&key, Some(listing), notice, now_ms);
        let heartbeat_ms = session.heartbeat_ms;
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.phase = Phase::Live(Box::new(session));
        }
        if let Some(figures) = self.carrier_figures(id) {
            figures.logins += 1;
        }
        let there = self.is_live(&address);
        self.sessions.insert(address, id);
        self.send(id, ServerFrame::AuthOk(ok));
        self.wake(id, heartbeat_ms);
        let elsewhere = self.moved_here(&address, None);
        if !there {
            self.came(id, elsewhere, now_ms);
        }
        self.claim_in_cluster(id);
        self.store_queue(
            Pending::Quiet,
            QueueOp::Arrived { recipient: address, siblings: Vec::new(), now_ms },
        );
        self.read_backlog(id, now_ms);
        if !self.is_bridge(&address) {
            self.churned(&address, now_ms);
        }
    }

    /// The socket went away while storage was asked: the directory must not show the agent as connected.
    fn unlist_unless_live(&mut self, key: &[u8; 32], now_ms: i64) {
        let address = key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes));
        if address.is_some_and(|address| !self.is_online(&address)) {
            self.store_registry(Pending::Quiet, RegistryOp::Left { key: *key, at_ms: now_ms });
        }
    }

    pub(super) fn displace(&mut self, old: ConnId, now_ms: i64) {
        let reason = "Another device connected with the same identity key";
        self.send(old, ServerFrame::Displaced(reason.to_owned()));
        self.drop_conn(old, close::DISPLACED, "Displaced by new connection", now_ms);
    }

    /// What a listed agent should know: that it can be seen, and from when.
    pub(super) fn notice(&self, explicit: bool, session: &Session, now_ms: i64) -> Option<String> {
        let visible_at = session.first_seen_ms + self.config.aging_ms();
        let hidden = visible_at > now_ms;
        let listing = explicit && session.listed && session.visibility != Visibility::Public;
        let mut text = String::new();
        if listing {
            text.push_str(
                "You are listed in the registry: others can see when you are online and were last seen.",
            );
        }
        if session.listed && hidden {
            let space = if text.is_empty() { "" } else { " " };
            text = format!("{text}{space}New agents are shown in search from {}.", iso_ms(visible_at));
        }
        (!text.is_empty()).then_some(text)
    }

    fn auth_ok(
        &mut self,
        key: &[u8; 32],
        listing: Option<Listing>,
        notice: Option<String>,
        now_ms: i64,
    ) -> AuthOk {
        let (token, token_ends_ms) = self.token(key, now_ms);
        let session_id = format!("relay-{}", hex::encode(self.random::<8>()));
        AuthOk {
            session_id,
            heartbeat_interval: HEARTBEAT_MS,
            registry_status: listing.map(|listing| {
                match listing {
                    Listing::Listed => "listed",
                    Listing::Updated => "updated",
                    Listing::NotListed => "not_listed",
                }
                .to_owned()
            }),
            registry_token: Some(token),
            registry_token_expires: Some(iso_ms(token_ends_ms)),
            registry_notice: notice,
        }
    }

    /// A registry token and when it ends, in Unix milliseconds.
    pub(super) fn token(&mut self, key: &[u8; 32], now_ms: i64) -> (String, i64) {
        let now_s = now_ms.div_euclid(1000);
        let token_id = hex::encode(self.random::<8>());
        let token = token::issue(&self.signer, &self.relay_id, key, now_s, Some(token_id));
        (token, (now_s + token::LIFETIME_S) * 1000)
    }

    /// Milliseconds to the next heartbeat: 60 s ± 15 s.
    pub(super) fn next_heartbeat(&mut self) -> i64 {
        45_000 + i64::from(u32::from_le_bytes(self.random::<4>()) % 30_001)
    }

    pub(super) fn refuse(&mut self, id: ConnId, code: ErrorCode, text: impl Into<String>, now_ms: i64) {
        self.counters.auth_failures += 1;
        if let Some(conn) = self.conns.get(&id) {
            let source = conn.source;
            self.windows.failed(&source, now_ms);
        }
        self.send_auth_error(id, code, text);
        self.drop_conn(id, close::AUTH_REFUSED, "Authentication failed", now_ms);
    }

    /// Counters of a young identity, moved on to the hour of life that `now_ms` is in.
    pub(super) fn tier_of(session: &mut Session, now_ms: i64) -> Option<&mut TierCounts> {
        let age = now_ms - session.first_seen_ms;
        if age >= YOUNG_MS {
            session.tier = None;
        }
        let counts = session.tier.as_deref_mut()?;
        let hour = age.div_euclid(3_600_000);
        if counts.hour != hour {
            *counts = TierCounts { hour, worked: counts.worked, ..TierCounts::default() };
        }
        Some(counts)
    }

    /// Address of the agent on a live connection.
    pub(super) fn address(&self, id: ConnId) -> Option<Fingerprint> {
        self.session(id).map(|session| session.address)
    }
}
