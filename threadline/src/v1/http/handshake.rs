//! Two servers prove their keys to each other and agree on a token (`threadline-wire.md` §3.1).

use std::collections::{BTreeMap, VecDeque};

use rand::CryptoRng;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::pairing::PairSecret;
use super::{TlCode, TlError, hex_of};
use crate::identity::{self, Identity, PublicIdentity, Purpose};

/// Life of a handshake that waits for its confirmation, ms.
pub const PENDING_MS: i64 = 30_000;
/// Hellos of one claimed name in a minute.
pub const HELLOS_PER_MINUTE: usize = 5;
/// Hellos of one source address in a minute.
pub const SOURCE_PER_MINUTE: usize = 20;
/// Failures of one claimed name in an hour, after which it is refused for an hour.
pub const FAILURES_PER_HOUR: usize = 10;

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;
/// Names and sources that are remembered at once; the oldest leave.
const MAX_TRACKED: usize = 4_096;
/// Handshakes that wait at once.
const MAX_PENDING: usize = 256;

/// 64 hex digits, lowercase. The grammar keeps the signed digest apart from every other digest that the key signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nonce(String);

impl Nonce {
    fn random(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Self(hex::encode(bytes))
    }

    fn parse(text: &str) -> Option<Self> {
        hex_of::<32>(text).map(|_| Self(text.to_owned()))
    }
}

/// What either side says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Name; a label that the token is filed under.
    pub agent: String,
    /// Identity key.
    pub identity: PublicIdentity,
    ephemeral: [u8; 32],
    nonce: Nonce,
    /// Signature over the other side's nonce.
    challenge_response: Option<[u8; 64]>,
}

impl Hello {
    /// Reads the body of a hello, or of its answer.
    pub fn parse(body: &Value) -> Result<Self, TlError> {
        let word = |name: &str| {
            let found = body.get(name).and_then(Value::as_str);
            found.ok_or_else(|| TlError::payload(format!("{name} is missing or not a text")))
        };
        let hex_word = |name: &str| Ok::<_, TlError>((word(name)?, bad_hex(name)));
        let agent = agent_name(word("agent")?)?;
        let (text, bad) = hex_word("identityPub")?;
        let key = hex_of::<32>(text).and_then(|bytes| PublicIdentity::from_bytes(&bytes).ok());
        let identity = key.ok_or(bad)?;
        let (text, bad) = hex_word("ephemeralPub")?;
        let ephemeral = hex_of::<32>(text).ok_or(bad)?;
        let (text, bad) = hex_word("nonce")?;
        let nonce = Nonce::parse(text).ok_or(bad)?;
        let challenge_response = match body.get("challengeResponse") {
            None | Some(Value::Null) => None,
            Some(_) => Some(response(body)?),
        };
        Ok(Self { agent, identity, ephemeral, nonce, challenge_response })
    }

    /// The body that travels.
    pub fn to_json(&self) -> Value {
        let mut body = json!({
            "agent": self.agent,
            "identityPub": hex::encode(self.identity.as_bytes()),
            "ephemeralPub": hex::encode(self.ephemeral),
            "nonce": self.nonce.0,
        });
        if let Some(signature) = &self.challenge_response {
            body["challengeResponse"] = hex::encode(signature).into();
        }
        body
    }

    /// Whether this is the initiator's copy of a response: it then confirms instead of beginning.
    pub fn is_confirmation(&self) -> bool {
        self.challenge_response.is_some()
    }
}

fn bad_hex(name: &str) -> TlError {
    TlError::payload(format!("{name} is not lowercase hex of the right length"))
}

fn response(body: &Value) -> Result<[u8; 64], TlError> {
    let text = body.get("challengeResponse").and_then(Value::as_str);
    text.and_then(hex_of::<64>).ok_or_else(|| bad_hex("challengeResponse"))
}

fn agent_name(text: &str) -> Result<String, TlError> {
    let fits = (1..=64).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits {
        Ok(text.to_owned())
    } else {
        Err(TlError::payload("agent is not a name of 1 to 64 characters"))
    }
}

/// The last message of the initiator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirm {
    /// Name given in the hello.
    pub agent: String,
    challenge_response: [u8; 64],
}

impl Confirm {
    /// Reads the body.
    pub fn parse(body: &Value) -> Result<Self, TlError> {
        let agent = body.get("agent").and_then(Value::as_str);
        let agent = agent_name(agent.ok_or_else(|| TlError::payload("agent is missing or not a text"))?)?;
        Ok(Self { agent, challenge_response: response(body)? })
    }

    /// The body that travels.
    pub fn to_json(&self) -> Value {
        json!({"agent": self.agent, "challengeResponse": hex::encode(self.challenge_response)})
    }
}

/// What one side signs: a digest whose preimage begins with 64 hex digits.
#[derive(Debug)]
pub struct HandshakeStatement([u8; 32]);

impl HandshakeStatement {
    /// `signer` answers the nonce of `other`.
    fn new(signer: &Hello, other: &Hello) -> Self {
        let digest = Sha256::new()
            .chain_update(&other.nonce.0)
            .chain_update(other.identity.as_bytes())
            .chain_update(signer.identity.as_bytes())
            .chain_update(other.ephemeral)
            .chain_update(signer.ephemeral);
        Self(digest.finalize().into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One side of one handshake: its hello and the secret behind it.
#[derive(Debug)]
pub struct Side {
    hello: Hello,
    secret: Zeroizing<[u8; 32]>,
}

impl Side {
    /// A fresh side of `identity` under this name.
    pub fn new(identity: &Identity, agent: &str, rng: &mut impl CryptoRng) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *secret);
        let nonce = Nonce::random(rng);
        Self::of(identity, agent, secret, nonce)
    }

    fn of(identity: &Identity, agent: &str, secret: Zeroizing<[u8; 32]>, nonce: Nonce) -> Self {
        let ephemeral = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*secret)).to_bytes();
        let hello = Hello {
            agent: agent.to_owned(),
            identity: *identity.public(),
            ephemeral,
            nonce,
            challenge_response: None,
        };
        Self { hello, secret }
    }

    /// What it says first.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    fn sign(&self, identity: &Identity, other: &Hello) -> [u8; 64] {
        identity.sign(&Purpose::V1Handshake(&HandshakeStatement::new(&self.hello, other)))
    }

    /// Checks the other side's signature over our nonce; only then is a secret agreed on.
    fn agree(&self, other: &Hello, signature: &[u8; 64]) -> Result<PairSecret, TlError> {
        let failed = |message| TlError::new(TlCode::HandshakeFailed, message);
        let statement = HandshakeStatement::new(other, &self.hello);
        if !other.identity.verifies(statement.as_bytes(), signature) {
            return Err(failed("the signature over the challenge does not verify"));
        }
        let shared = identity::agree(&self.secret, &other.ephemeral)
            .ok_or_else(|| failed("the ephemeral key is unusable"))?;
        Ok(PairSecret::new(shared, &self.hello.identity, &other.identity))
    }

    /// The initiator reads the answer to its hello: what to confirm with, the peer, and the secret.
    pub fn finish(
        &self,
        identity: &Identity,
        answer: &Value,
    ) -> Result<(Confirm, PublicIdentity, PairSecret), TlError> {
        let other = Hello::parse(answer)?;
        let signature = other.challenge_response.ok_or_else(|| bad_hex("challengeResponse"))?;
        let secret = self.agree(&other, &signature)?;
        let confirm =
            Confirm { agent: self.hello.agent.clone(), challenge_response: self.sign(identity, &other) };
        Ok((confirm, other.identity, secret))
    }
}

/// A finished handshake.
#[derive(Debug)]
pub struct Paired {
    /// Name of the peer.
    pub agent: String,
    /// Its key.
    pub identity: PublicIdentity,
    /// What both sides know now.
    pub secret: PairSecret,
}

/// The responder: handshakes that wait, and the limits. Time is Unix ms.
#[derive(Debug, Default)]
pub struct Handshakes {
    pending: BTreeMap<String, Pending>,
    /// Our own hellos that wait for an answer, by the key they are meant for.
    outgoing: BTreeMap<[u8; 32], i64>,
    names: BTreeMap<String, Track>,
    sources: BTreeMap<String, Track>,
}

#[derive(Debug)]
struct Pending {
    since: i64,
    side: Side,
    other: Hello,
}

#[derive(Debug, Default)]
struct Track {
    hellos: VecDeque<i64>,
    failures: VecDeque<i64>,
    blocked_until: i64,
}

impl Handshakes {
    /// Answers a hello. `pinned` is the key of an earlier pairing under this name.
    pub fn hello(
        &mut self,
        hello: Hello,
        us: (&Identity, &str),
        pinned: Option<&PublicIdentity>,
        source: &str,
        now_ms: i64,
        rng: &mut impl CryptoRng,
    ) -> Result<Value, TlError> {
        self.forget(now_ms);
        self.limit(&hello.agent, source, now_ms)?;
        if hello.identity == *us.0.public() {
            return Err(self.failed(&hello.agent, now_ms, "this is your own identity"));
        }
        if pinned.is_some_and(|key| *key != hello.identity) {
            self.failed(&hello.agent, now_ms, "");
            let message = "another key is paired under this name";
            return Err(TlError::new(TlCode::HandshakeFailed, message).status(409));
        }
        if self.outgoing.contains_key(hello.identity.as_bytes()) {
            if us.0.public().as_bytes() < hello.identity.as_bytes() {
                let message = "both sides began at once; this one keeps the initiator's part";
                return Err(TlError::new(TlCode::HandshakeFailed, message));
            }
            self.outgoing.remove(hello.identity.as_bytes());
        }
        if self.pending.len() >= MAX_PENDING && !self.pending.contains_key(&hello.agent) {
            return Err(TlError::new(TlCode::RateLimited, "too many handshakes wait").retry_after(30));
        }
        let side = Side::new(us.0, us.1, rng);
        let mut answer = side.hello().clone();
        answer.challenge_response = Some(side.sign(us.0, &hello));
        let mut body = json!({"type": "hello-response"});
        if let (Some(body), Value::Object(fields)) = (body.as_object_mut(), answer.to_json()) {
            body.extend(fields);
        }
        self.pending.insert(hello.agent.clone(), Pending { since: now_ms, side, other: hello });
        Ok(body)
    }

    /// Takes a confirmation. The caller files the token before it answers [`confirm_ack`].
    pub fn confirm(&mut self, confirm: &Confirm, now_ms: i64) -> Result<Paired, TlError> {
        let late = || {
            let message = "no handshake waits for this confirmation, or its 30 s are over";
            TlError::new(TlCode::HandshakeFailed, message).status(408)
        };
        if self.names.get(&confirm.agent).is_some_and(|track| track.blocked_until > now_ms) {
            return Err(TlError::new(TlCode::RateLimited, "too many failed handshakes").retry_after(3_600));
        }
        let pending = self.pending.remove(&confirm.agent).ok_or_else(late)?;
        if pending.since + PENDING_MS < now_ms {
            return Err(late());
        }
        let secret = match pending.side.agree(&pending.other, &confirm.challenge_response) {
            Ok(secret) => secret,
            Err(error) => {
                self.failed(&confirm.agent, now_ms, "");
                return Err(error);
            }
        };
        Ok(Paired { agent: pending.other.agent, identity: pending.other.identity, secret })
    }

    /// A hello that repeats a response confirms what its nonce began.
    pub fn confirm_by_hello(&mut self, hello: &Hello, now_ms: i64) -> Result<Paired, TlError> {
        let signature = hello.challenge_response.ok_or_else(|| bad_hex("challengeResponse"))?;
        let confirm = Confirm { agent: hello.agent.clone(), challenge_response: signature };
        self.confirm(&confirm, now_ms)
    }

    /// We begin a handshake with this key.
    pub fn begin(&mut self, with: &PublicIdentity, now_ms: i64) {
        self.forget(now_ms);
        self.outgoing.insert(*with.as_bytes(), now_ms);
    }

    /// Our handshake ended. False when the other side's own hello took its place meanwhile.
    pub fn end(&mut self, with: &PublicIdentity) -> bool {
        self.outgoing.remove(with.as_bytes()).is_some()
    }

    fn limit(&mut self, name: &str, source: &str, now_ms: i64) -> Result<(), TlError> {
        let limited = |message, seconds| Err(TlError::new(TlCode::RateLimited, message).retry_after(seconds));
        if self.names.get(name).is_some_and(|track| track.blocked_until > now_ms) {
            return limited("too many failed handshakes of this name", 3_600);
        }
        let count = |track: Option<&Track>| track.map_or(0, |track| track.hellos.len());
        if count(self.sources.get(source)) >= SOURCE_PER_MINUTE {
            return limited("too many handshakes from this address", 60);
        }
        if count(self.names.get(name)) >= HELLOS_PER_MINUTE {
            return limited("too many handshakes of this name", 60);
        }
        self.names.entry(name.to_owned()).or_default().hellos.push_back(now_ms);
        self.sources.entry(source.to_owned()).or_default().hellos.push_back(now_ms);
        Ok(())
    }

    fn failed(&mut self, name: &str, now_ms: i64, message: &str) -> TlError {
        let track = self.names.entry(name.to_owned()).or_default();
        track.failures.push_back(now_ms);
        if track.failures.len() >= FAILURES_PER_HOUR {
            track.failures.clear();
            track.blocked_until = now_ms + HOUR_MS;
        }
        TlError::new(TlCode::HandshakeFailed, message)
    }

    fn forget(&mut self, now_ms: i64) {
        self.pending.retain(|_, pending| pending.since + PENDING_MS >= now_ms);
        self.outgoing.retain(|_, since| *since + PENDING_MS >= now_ms);
        for tracks in [&mut self.names, &mut self.sources] {
            for track in tracks.values_mut() {
                track.hellos.retain(|at| at + MINUTE_MS > now_ms);
                track.failures.retain(|at| at + HOUR_MS > now_ms);
            }
            tracks.retain(|_, t| !t.hellos.is_empty() || !t.failures.is_empty() || t.blocked_until > now_ms);
            while tracks.len() > MAX_TRACKED {
                tracks.pop_first();
            }
        }
    }
}

/// The answer to a confirmation, from the agent of this name.
pub fn confirm_ack(agent: &str) -> Value {
    json!({"type": "confirm-ack", "agent": agent, "status": "paired"})
}

#[cfg(test)]
pub(crate) fn example(one: &Identity, other: &Identity) -> HandshakeStatement {
    let side = |identity| Side::new(identity, "a", &mut rand::rng());
    HandshakeStatement::new(side(one).hello(), side(other).hello())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hex32, text, vectors};
    use proptest::prelude::*;

    const T0: i64 = 1_768_478_400_000;

    fn of(name: &str) -> Identity {
        Identity::from_seed(&hex32(&vectors()["identities"][name]["ed25519Seed"]))
    }

    fn side(name: &str, letter: &str, hello: &str) -> Side {
        let vector = &vectors()["handshakeHttp"];
        let secret = Zeroizing::new(hex32(&vector[format!("ephemeralPrivate{letter}")]));
        let nonce = Nonce::parse(text(&vector[hello]["nonce"])).expect("nonce");
        Side::of(&of(name), name, secret, nonce)
    }

    #[test]
    fn the_recorded_handshake() {
        let vector = &vectors()["handshakeHttp"];
        let (alice, bob) = (of("alice"), of("bob"));
        let (a, b) = (side("alice", "A", "helloRequest"), side("bob", "B", "helloResponse"));
        assert_eq!(a.hello().to_json(), vector["helloRequest"]);
        let request = Hello::parse(&vector["helloRequest"]).expect("hello");
        let digest = HandshakeStatement::new(b.hello(), &request);
        assert_eq!(hex::encode(digest.as_bytes()), text(&vector["digestSignedByB"]));
        let mut answer = b.hello().clone();
        answer.challenge_response = Some(b.sign(&bob, &request));
        let mut json = answer.to_json();
        json["type"] = "hello-response".into();
        assert_eq!(json, vector["helloResponse"]);

        let digest = HandshakeStatement::new(a.hello(), b.hello());
        assert_eq!(hex::encode(digest.as_bytes()), text(&vector["digestSignedByA"]));
        let (confirm, peer, secret) = a.finish(&alice, &vector["helloResponse"]).expect("finished");
        assert_eq!((confirm.to_json(), peer), (vector["confirmRequest"].clone(), *bob.public()));
        assert_eq!(hex::encode(secret.token()), text(&vector["relayToken"]));

        let mut responder = Handshakes::default();
        responder.pending.insert("alice".into(), Pending { since: T0, side: b, other: request });
        let paired = responder
            .confirm(&Confirm::parse(&vector["confirmRequest"]).expect("confirm"), T0)
            .expect("paired");
        assert_eq!((paired.agent.as_str(), paired.identity), ("alice", *alice.public()));
        assert_eq!(paired.secret.token(), secret.token());
        assert_eq!(confirm_ack("bob"), vector["confirmResponse"]);
    }

    fn begin(responder: &mut Handshakes, who: &Side, now: i64) -> Result<Value, TlError> {
        let bob = of("bob");
        responder.hello(who.hello().clone(), (&bob, "bob"), None, "127.0.0.1", now, &mut rand::rng())
    }

    fn fresh(name: &str) -> Side {
        Side::new(&of(name), name, &mut rand::rng())
    }

    #[test]
    fn a_confirmation_comes_in_time_and_once_and_may_be_a_hello() {
        let mut responder = Handshakes::default();
        let alice = fresh("alice");
        let answer = begin(&mut responder, &alice, T0).expect("answer");
        let (confirm, _, _) = alice.finish(&of("alice"), &answer).expect("finish");
        assert!(responder.confirm(&confirm, T0 + PENDING_MS).is_ok());
        assert_eq!(responder.confirm(&confirm, T0).expect_err("twice").status, 408);

        let answer = begin(&mut responder, &alice, T0).expect("answer");
        let (confirm, _, secret) = alice.finish(&of("alice"), &answer).expect("finish");
        let mut again = alice.hello().clone();
        again.challenge_response = Some(confirm.challenge_response);
        let again = Hello::parse(&again.to_json()).expect("hello");
        assert!(again.is_confirmation());
        let paired = responder.confirm_by_hello(&again, T0 + 1).expect("paired");
        assert_eq!(paired.secret.token(), secret.token());

        let answer = begin(&mut responder, &alice, T0).expect("answer");
        let (confirm, _, _) = alice.finish(&of("alice"), &answer).expect("finish");
        assert_eq!(responder.confirm(&confirm, T0 + PENDING_MS + 1).expect_err("late").status, 408);
    }

    #[test]
    fn signatures_are_checked_before_anything_is_agreed() {
        let mut responder = Handshakes::default();
        let alice = fresh("alice");
        let mut answer = begin(&mut responder, &alice, T0).expect("answer");
        answer["nonce"] = hex::encode([1; 32]).into();
        assert!(
            alice.finish(&of("alice"), &answer).is_ok(),
            "their nonce is what we sign, not what they signed"
        );
        answer["ephemeralPub"] = hex::encode([9; 32]).into();
        assert_eq!(alice.finish(&of("alice"), &answer).expect_err("mixed").code, TlCode::HandshakeFailed);
        let forged = Confirm { agent: "alice".into(), challenge_response: [0; 64] };
        assert_eq!(responder.confirm(&forged, T0).expect_err("forged").code, TlCode::HandshakeFailed);
    }

    #[test]
    fn a_paired_name_keeps_its_key() {
        let mut responder = Handshakes::default();
        let carol = fresh("carol");
        let alice = *of("alice").public();
        let refused = responder.hello(
            Hello { agent: "alice".into(), ..carol.hello().clone() },
            (&of("bob"), "bob"),
            Some(&alice),
            "127.0.0.1",
            T0,
            &mut rand::rng(),
        );
        let refused = refused.expect_err("another key");
        assert_eq!((refused.code, refused.status), (TlCode::HandshakeFailed, 409));
        assert!(responder.pending.is_empty());
    }

    #[test]
    fn when_both_begin_the_lower_key_goes_on() {
        let (alice, bob) = (of("alice"), of("bob"));
        assert!(alice.public().as_bytes() < bob.public().as_bytes());
        let mut of_bob = Handshakes::default();
        of_bob.begin(alice.public(), T0);
        assert!(begin(&mut of_bob, &fresh("alice"), T0).is_ok());
        assert!(!of_bob.end(alice.public()), "the higher key dropped its own hello");

        let mut of_alice = Handshakes::default();
        of_alice.begin(bob.public(), T0);
        let bobs = fresh("bob").hello().clone();
        let refused = of_alice.hello(bobs, (&alice, "alice"), None, "::1", T0, &mut rand::rng());
        assert_eq!(refused.expect_err("glare").status, 400);
        assert!(of_alice.end(bob.public()));
    }

    #[test]
    fn hellos_and_failures_are_limited() {
        let mut responder = Handshakes::default();
        let alice = fresh("alice");
        for _ in 0..HELLOS_PER_MINUTE {
            begin(&mut responder, &alice, T0).expect("below");
        }
        assert_eq!(begin(&mut responder, &alice, T0 + 59_999).expect_err("sixth").code, TlCode::RateLimited);
        assert!(begin(&mut responder, &alice, T0 + 60_000).is_ok());

        let mut responder = Handshakes::default();
        let hello = |responder: &mut Handshakes, n: usize| {
            let named = Hello { agent: format!("a{n}"), ..alice.hello().clone() };
            responder.hello(named, (&of("bob"), "bob"), None, "10.0.0.1", T0, &mut rand::rng())
        };
        for n in 0..SOURCE_PER_MINUTE {
            hello(&mut responder, n).expect("below");
        }
        assert_eq!(hello(&mut responder, 99).expect_err("twenty-first").status, 429);

        let mut responder = Handshakes::default();
        let forged = Confirm { agent: "alice".into(), challenge_response: [0; 64] };
        for n in 0..FAILURES_PER_HOUR as i64 {
            begin(&mut responder, &alice, T0 + n * 60_000).expect("below");
            responder.confirm(&forged, T0 + n * 60_000).expect_err("forged");
        }
        let now = T0 + 10 * 60_000;
        assert_eq!(begin(&mut responder, &alice, now).expect_err("blocked").status, 429);
        assert!(begin(&mut responder, &alice, now + HOUR_MS).is_ok());
    }

    #[test]
    fn malformed_hellos_are_named() {
        let hello = fresh("alice").hello().to_json();
        for (member, value) in [
            ("agent", json!("")),
            ("agent", json!("a".repeat(65))),
            ("identityPub", json!("zz")),
            ("identityPub", json!("00".repeat(32))),
            ("ephemeralPub", json!(7)),
            ("nonce", json!("AB".repeat(32))),
            ("challengeResponse", json!("00")),
        ] {
            let mut bad = hello.clone();
            bad[member] = value;
            let error = Hello::parse(&bad).expect_err(member);
            assert_eq!((error.code, error.status), (TlCode::InvalidPayload, 400));
            assert!(error.message.contains(member), "{error}");
        }
        assert!(Hello::parse(&json!(null)).is_err());
    }

    proptest! {
        #[test]
        fn no_body_panics(text in "[ -~]{0,80}", member in 0usize..5) {
            let mut body = fresh("alice").hello().to_json();
            body[["agent", "identityPub", "ephemeralPub", "nonce", "challengeResponse"][member]] = text.into();
            if let Ok(hello) = Hello::parse(&body) {
                prop_assert_eq!(Hello::parse(&hello.to_json()), Ok(hello));
            }
            let _ = Confirm::parse(&body);
        }
    }
}
