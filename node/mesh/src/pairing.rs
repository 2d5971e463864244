//! Pairing with other servers over HTTP, and what paired servers may ask (`threadline-wire.md` §3).

use std::collections::{HashMap, VecDeque};
use std::sync::{MutexGuard, PoisonError};

use serde_json::{Value, json};
use threadline::identity::PublicIdentity;
use threadline::service::{Caller, ServiceError};
use threadline::time::iso_ms;
use threadline::trust::TrustSource;
use threadline::v1::http::handshake::{Confirm, Handshakes, Hello, Paired, Side, confirm_ack};
use threadline::v1::http::pairing::{PairSecret, Receipt};
use threadline::v1::http::signed::{NONCE_LIFE_MS, SignedHeaders};
use threadline::v1::http::{TlCode, TlError};
use threadline::v1::local::LocalMessage;
use threadline::{Fingerprint, ThreadId, ThreadKey, TrustLevel, text};
use threadline_net::store::{Direction, KnownPeer, MessageState};

use crate::core::{Core, record_failed};
use crate::direct::{Taken, WireAnswer};
use crate::ingest::HTTP;
use crate::records::Pairing;
use crate::trust::require_owner;

/// Signed requests of one paired server in a minute.
const REQUESTS_PER_MINUTE: usize = 120;
const MINUTE_MS: i64 = 60_000;
/// Messages in one answer.
const MAX_PAGE: u32 = 100;

/// Handshakes that wait, and how often paired servers asked. Held only to decide.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    pub(crate) handshakes: Handshakes,
    requests: HashMap<String, VecDeque<i64>>,
}

impl Guests {
    fn asks(&mut self, agent: &str, now: i64) -> Result<(), TlError> {
        let times = self.requests.entry(agent.to_owned()).or_default();
        times.retain(|at| at + MINUTE_MS > now);
        if times.len() >= REQUESTS_PER_MINUTE {
            return Err(TlError::new(TlCode::RateLimited, "too many requests in a minute").retry_after(60));
        }
        times.push_back(now);
        Ok(())
    }
}

/// A signed request as the route got it.
#[derive(Debug, Clone, Copy)]
pub struct SignedRequest<'a> {
    /// Method.
    pub method: &'a str,
    /// Path without query.
    pub path: &'a str,
    /// Bytes of the body, empty when there is none.
    pub body: &'a [u8],
}

fn refused(error: &TlError) -> WireAnswer {
    WireAnswer { status: error.status, body: error.body() }
}

fn failed(error: impl std::fmt::Display) -> TlError {
    tracing::error!(%error, "a request of another server was not carried out");
    TlError::new(TlCode::InternalError, "this agent failed to answer").retry_after(5)
}

fn json_of(body: &[u8]) -> Result<Value, TlError> {
    serde_json::from_slice(body).map_err(|_| TlError::payload("the body is not JSON"))
}

impl Core {
    /// `POST /threadline/handshake/hello`
    pub(crate) async fn handshake_hello(&self, source: &str, body: &[u8]) -> WireAnswer {
        match self.try_hello(source, body).await {
            Ok(body) => WireAnswer { status: 200, body },
            Err(error) => refused(&error),
        }
    }

    async fn try_hello(&self, source: &str, body: &[u8]) -> Result<Value, TlError> {
        let hello = Hello::parse(&json_of(body)?)?;
        let now = self.now();
        if hello.is_confirmation() {
            let paired = self.guests().handshakes.confirm_by_hello(&hello, now)?;
            return self.file_pairing(paired, None).await;
        }
        let pinned = self.pairings.get().0.get(&hello.agent).and_then(Pairing::key);
        let (name, key) = (hello.agent.clone(), hello.identity);
        let us = (&*self.identity, self.agent_name.as_str());
        let answer =
            self.guests().handshakes.hello(hello, us, pinned.as_ref(), source, now, &mut rand::rng());
        if answer.as_ref().is_err_and(|e| e.status == 409) {
            let text = format!(
                "A server that calls itself {:?} wants to pair with another key ({}) than the one paired under this \
                 name. Nothing was changed",
                text::name(&name),
                key.display_fingerprint()
            );
            self.notify(format!("pairing-conflict:{}", key.fingerprint()), text, true);
        }
        answer
    }

    /// `POST /threadline/handshake/confirm`
    pub(crate) async fn handshake_confirm(&self, body: &[u8]) -> WireAnswer {
        let filed = async {
            let confirm = Confirm::parse(&json_of(body)?)?;
            let paired = self.guests().handshakes.confirm(&confirm, self.now())?;
            self.file_pairing(paired, None).await
        };
        match filed.await {
            Ok(body) => WireAnswer { status: 200, body },
            Err(error) => refused(&error),
        }
    }

    /// Files the token; only then is the pairing acknowledged. A key that conflicts with a pin changes nothing.
    async fn file_pairing(&self, paired: Paired, url: Option<String>) -> Result<Value, TlError> {
        let Paired { agent, identity, secret } = paired;
        let conflict = || {
            TlError::new(TlCode::HandshakeFailed, "another key is known under this name or address")
                .status(409)
        };
        let peer = identity.fingerprint();
        if self.pin(&peer, identity, "pairing").await.map_err(failed)? != Some(identity) {
            return Err(conflict());
        }
        let now = iso_ms(self.now());
        let filed = self.pairings.change(move |pairings| {
            let earlier = pairings.0.get(&agent);
            if earlier.is_some_and(|earlier| earlier.key().is_some_and(|key| key != identity)) {
                return false;
            }
            let pairing = Pairing {
                token: hex::encode(secret.token()),
                established_at: now,
                their_identity_pub: hex::encode(identity.as_bytes()),
                url: url.or_else(|| earlier.and_then(|e| e.url.clone())),
                id: secret.pairing_id(),
                sas_fingerprint: secret.sas_fingerprint(),
                words: secret.words().map(str::to_owned).to_vec(),
                confirmed_at: earlier.and_then(|e| e.confirmed_at.clone()),
            };
            pairings.0.insert(agent, pairing);
            true
        });
        if !filed.await.map_err(failed)? {
            return Err(conflict());
        }
        self.events.publish("paired", json!({"peer": peer}));
        self.refresh_routes();
        Ok(confirm_ack(&self.agent_name))
    }

    /// `POST /threadline/pairings`: begins a handshake with the server at `base`; the owner only.
    pub(crate) async fn pair(&self, caller: &Caller, base: &str) -> Result<Value, ServiceError> {
        require_owner(caller, "pairing with another server")?;
        let base = base.trim().trim_end_matches('/');
        if !is_base(base) {
            let text = "a server is named as http://host:port or https://host[:port]";
            return Err(ServiceError::new("invalid-arguments", text));
        }
        let unreachable =
            |why: String| ServiceError::retry("no-path", format!("{base} does not answer: {why}"), None);
        let health = self.servers.health(base).await.map_err(unreachable)?;
        let name = health["agent"].as_str().map(text::name).filter(|name| !name.is_empty());
        let expected = health["identityPub"].as_str().and_then(|text| hex::decode(text).ok());
        let expected = expected.and_then(|bytes| PublicIdentity::from_bytes(&bytes).ok());
        let (Some(name), Some(expected)) = (name, expected) else {
            return Err(ServiceError::new("not-an-agent", format!("no Threadline agent listens at {base}")));
        };
        if expected == *self.identity.public() {
            return Err(ServiceError::new("self-target", "this is your own server"));
        }
        let side = Side::new(&self.identity, &self.agent_name, &mut rand::rng());
        self.guests().handshakes.begin(&expected, self.now());
        let shaken = self.shake_hands(base, &name, &side).await;
        let still_ours = self.guests().handshakes.end(&expected);
        let (key, secret) = match shaken {
            Ok(shaken) => shaken,
            Err(_) if !still_ours => {
                let text = "the other side began at the same time; see `instar threadline pairings`";
                return Err(ServiceError::retry("pairing-crossed", text, Some(1)));
            }
            Err(error) => return Err(error),
        };
        let words = secret.words();
        let paired = Paired { agent: name.clone(), identity: key, secret };
        self.file_pairing(paired, Some(base.to_owned())).await.map_err(|e| not_paired(&e))?;
        let peer = key.fingerprint();
        self.note_paired(peer, &name, &health).await;
        Ok(json!({
            "agent": name,
            "fingerprint": peer,
            "displayFingerprint": key.display_fingerprint(),
            "words": words,
            "level": self.level(&peer),
            "url": base,
        }))
    }

    async fn shake_hands(
        &self,
        base: &str,
        name: &str,
        side: &Side,
    ) -> Result<(PublicIdentity, PairSecret), ServiceError> {
        let unreachable = |why: String| ServiceError::retry("no-path", format!("{name}: {why}"), None);
        let answered = |status: u16, answer: &Value| {
            let why = answer["error"]["message"].as_str().unwrap_or("no reason given");
            let why = text::cut(why, 200, "…");
            ServiceError::new("pairing-refused", format!("{name} refused ({status}): {why}"))
        };
        let hello = side.hello().to_json();
        let (status, answer) =
            self.servers.post(base, "/threadline/handshake/hello", &hello).await.map_err(unreachable)?;
        if status != 200 {
            return Err(answered(status, &answer));
        }
        let (confirm, key, secret) = side.finish(&self.identity, &answer).map_err(|e| not_paired(&e))?;
        let pinned = self.pairings.get().0.get(name).and_then(Pairing::key);
        if pinned.is_some_and(|pinned| pinned != key) {
            let text = format!("{name} presents another key than the one paired under its name");
            self.notify(format!("pairing-conflict:{}", key.fingerprint()), text.clone(), true);
            return Err(ServiceError::new("fingerprint-conflict", text));
        }
        let path = "/threadline/handshake/confirm";
        let (status, answer) =
            self.servers.post(base, path, &confirm.to_json()).await.map_err(unreachable)?;
        if status != 200 || answer["status"] != "paired" {
            return Err(answered(status, &answer));
        }
        Ok((key, secret))
    }

    async fn note_paired(&self, peer: Fingerprint, name: &str, health: &Value) {
        let capabilities = health["capabilities"].as_array().into_iter().flatten();
        let known = KnownPeer {
            fingerprint: peer,
            name: name.to_owned(),
            capabilities: capabilities.filter_map(Value::as_str).map(text::name).take(32).collect(),
            framework: health["framework"].as_str().map_or_else(|| "unknown".into(), text::name),
            status: "online".into(),
            first_seen: self.now(),
            last_seen: self.now(),
            machine: None,
            sources: vec!["pairing".into()],
        };
        if let Err(error) = self.store.merge_known(vec![known]).await {
            tracing::error!(%error, "an agent was not noted");
        }
    }

    /// `GET /threadline/pairings`
    pub(crate) fn pairings(&self) -> Value {
        let rows: Vec<Value> = self
            .pairings
            .get()
            .0
            .iter()
            .map(|(name, pairing)| {
                let key = pairing.key();
                json!({
                    "agent": name,
                    "fingerprint": key.map(|key| key.fingerprint()),
                    "displayFingerprint": key.map(|key| key.display_fingerprint()),
                    "establishedAt": pairing.established_at,
                    "url": pairing.url,
                    "words": pairing.words,
                    "confirmedAt": pairing.confirmed_at,
                    "level": key.map(|key| self.level(&key.fingerprint())),
                })
            })
            .collect();
        json!({"count": rows.len(), "pairings": rows})
    }

    /// `POST /threadline/pairings/:name/confirm`: the owner compared the words; the peer becomes verified.
    pub(crate) async fn confirm_pairing(&self, caller: &Caller, name: &str) -> Result<Value, ServiceError> {
        require_owner(caller, "confirming the words of a pairing")?;
        let pairing = self.pairing(name)?;
        let key = pairing.key().ok_or_else(|| no_pairing(name))?;
        let peer = key.fingerprint();
        let (at, filed) = (iso_ms(self.now()), name.to_owned());
        let changed = self.pairings.change(move |pairings| {
            if let Some(pairing) = pairings.0.get_mut(&filed) {
                pairing.confirmed_at = Some(at);
            }
        });
        changed.await.map_err(|e| record_failed(&e))?;
        if self.level(&peer) < TrustLevel::Verified {
            let source = TrustSource::UserGranted;
            self.apply_level(peer, name, TrustLevel::Verified, source, "user", Some("pairing")).await?;
        }
        let receipt = Receipt::new(&self.identity, peer, &pairing.id, &pairing.sas_fingerprint);
        Ok(
            json!({"agent": name, "fingerprint": peer, "level": self.level(&peer), "receipt": receipt.to_json()}),
        )
    }

    /// `DELETE /threadline/pairings/:name`: its token opens nothing any more; the level stays.
    pub(crate) async fn remove_pairing(&self, name: &str) -> Result<Value, ServiceError> {
        self.pairing(name)?;
        let removed = name.to_owned();
        let changed = self.pairings.change(move |pairings| pairings.0.remove(&removed).is_some());
        changed.await.map_err(|e| record_failed(&e))?;
        self.refresh_routes();
        Ok(json!({"agent": name, "paired": false}))
    }

    fn pairing(&self, name: &str) -> Result<Pairing, ServiceError> {
        self.pairings.get().0.get(name).cloned().ok_or_else(|| no_pairing(name))
    }

    /// `POST /threadline/messages/receive`
    pub(crate) async fn receive_signed(
        &self,
        headers: Result<SignedHeaders, TlError>,
        request: SignedRequest<'_>,
    ) -> WireAnswer {
        let taken = async {
            let peer = self.admit_signed(headers, request).await?;
            let message = LocalMessage::parse(request.body).map_err(|e| TlError::payload(e.to_string()))?;
            let envelope = message.to_envelope(peer, self.us);
            if envelope.header().is_ok_and(|header| header.from != peer) {
                return Err(TlError::payload("the envelope is not from the agent that signed the request"));
            }
            match self.take(envelope, HTTP, "http").await.map_err(failed)? {
                Taken::New(thread) => {
                    self.is_back(&peer).await;
                    Ok(json!({"accepted": true, "delivered": false, "async": true, "threadId": thread}))
                }
                Taken::Known => Ok(json!({"accepted": true, "delivered": false, "async": true,
                    "threadId": message.thread_id, "duplicate": true})),
                Taken::Full => Err(TlError::new(TlCode::InternalError, "the spool is full").retry_after(30)),
                Taken::Invalid(why) => Err(TlError::payload(why)),
            }
        };
        match taken.await {
            Ok(body) => WireAnswer { status: 200, body },
            Err(error) => refused(&error),
        }
    }

    /// `GET /threadline/messages/thread/:id`: messages with the caller only; a thread with somebody else is empty.
    pub(crate) async fn thread_signed(
        &self,
        headers: Result<SignedHeaders, TlError>,
        request: SignedRequest<'_>,
        thread: &str,
        limit: Option<u32>,
        before: Option<i64>,
    ) -> WireAnswer {
        let found = async {
            let peer = self.admit_signed(headers, request).await?;
            let thread: ThreadId =
                thread.parse().map_err(|e: threadline::ParseIdError| TlError::payload(e.to_string()))?;
            let limit = limit.unwrap_or(50).clamp(1, MAX_PAGE);
            let key = ThreadKey { peer, thread: thread.clone() };
            let (page, _) = self.store.history(key, before, limit).await.map_err(failed)?;
            let next = (page.len() as u32 == limit).then(|| page.first().map(|m| m.seq)).flatten();
            let messages: Vec<Value> = page
                .iter()
                .filter(|message| message.direction == Direction::In || has_left(message.state))
                .map(|message| {
                    let ours = message.direction == Direction::Out;
                    json!({
                        "id": message.id,
                        "from": if ours { self.us } else { peer },
                        "to": if ours { peer } else { self.us },
                        "type": message.kind,
                        "subject": message.subject,
                        "body": message.body,
                        "inReplyTo": message.in_reply_to,
                        "createdAt": iso_ms(message.created_at),
                    })
                })
                .collect();
            let mut body = json!({"threadId": thread, "messageCount": messages.len(), "messages": messages});
            if let Some(next) = next {
                body["nextCursor"] = json!(next);
            }
            Ok(body)
        };
        match found.await {
            Ok(body) => WireAnswer { status: 200, body },
            Err(error) => refused(&error),
        }
    }

    /// Checks a signed request; its nonce is used up by a success only.
    async fn admit_signed(
        &self,
        headers: Result<SignedHeaders, TlError>,
        request: SignedRequest<'_>,
    ) -> Result<Fingerprint, TlError> {
        let headers = headers?;
        let now = self.now();
        let pairings = self.pairings.get();
        let by_address = |pairing: &&Pairing| {
            pairing.key().is_some_and(|key| key.fingerprint().to_string() == headers.agent)
        };
        let pairing = pairings.0.get(&headers.agent).or_else(|| pairings.0.values().find(by_address));
        let pair = pairing.and_then(|pairing| Some((pairing.token()?, pairing.key()?)));
        let used = self.store.nonce_used(&headers.nonce).await.map_err(failed)?;
        let parts = (request.method, request.path, request.body);
        headers.verify(parts, pair.as_ref().map(|(token, key)| (token, key)), used, now)?;
        if !self.store.use_nonce(&headers.nonce, now + NONCE_LIFE_MS).await.map_err(failed)? {
            return Err(TlError::new(TlCode::ReplayDetected, "the nonce was used before"));
        }
        self.guests().asks(&headers.agent, now)?;
        pair.map(|(_, key)| key.fingerprint()).ok_or_else(|| failed("a verified request without pairing"))
    }

    pub(crate) fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a message of ours was let out: what waits for the owner, or was refused, is nobody else's business.
const fn has_left(state: MessageState) -> bool {
    matches!(state, MessageState::Sent | MessageState::Accepted | MessageState::Delivered)
}

fn no_pairing(name: &str) -> ServiceError {
    ServiceError::new("pairing-not-found", format!("no server is paired under the name {name:?}"))
}

fn not_paired(error: &TlError) -> ServiceError {
    let code = if error.status == 409 { "fingerprint-conflict" } else { "pairing-refused" };
    ServiceError::new(code, error.message.clone())
}

/// Scheme and authority, nothing more.
fn is_base(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(|rest| {
        !rest.is_empty()
            && rest.len() <= 255
            && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_scheme_and_authority() {
        for good in ["http://localhost:4040", "https://example.org", "http://[::1]:4040"] {
            assert!(is_base(good), "{good}");
        }
        for bad in ["ftp://x", "http://", "http://x/y", "http://user@x", "http://x?y", "x:4040"] {
            assert!(!is_base(bad), "{bad}");
        }
    }

    #[test]
    fn a_paired_server_has_a_limit_of_its_own() {
        let mut guests = Guests::default();
        for _ in 0..REQUESTS_PER_MINUTE {
            guests.asks("bob", 0).expect("below");
        }
        assert_eq!(guests.asks("bob", 59_999).expect_err("full").code, TlCode::RateLimited);
        assert!(guests.asks("carol", 0).is_ok() && guests.asks("bob", 60_000).is_ok());
    }
}
