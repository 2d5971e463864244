//! Messages between agents of one host: the request that servers post to each other, and the file that waits for one
//! that is down (`threadline-wire.md` §3.3).

use std::collections::VecDeque;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::MAX_ENVELOPE;
use super::envelope::{self, Content, Envelope, Header};
use crate::time::{iso_ms, parse_iso};
use crate::{Fingerprint, MessageId, ParseIdError, ThreadId, jcs, text};

/// The same text of one sender in one thread within this time is answered and not taken again, ms.
pub const SAME_TEXT_MS: i64 = 60_000;
/// Largest request or file, bytes: an envelope inside its wrapping.
pub const MAX_BYTES: usize = 2 * MAX_ENVELOPE;
/// Texts that are remembered for [`SAME_TEXT_MS`].
const MAX_RECENT: usize = 1_024;

/// Name of an agent as it stands in file names: `^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentName(String);

impl AgentName {
    /// `None` for a text outside the grammar.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = text.len() <= 64
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        fits.then(|| Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for AgentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a request or file is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// Not the JSON of a message.
    #[error("the body is not a message: {0}")]
    Shape(String),
    /// Written by a version that this build does not know.
    #[error("schemaVersion {0} is not known; this build reads 1")]
    Version(u64),
    /// Too large.
    #[error("the message is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// A member does not follow its grammar.
    #[error("{member}: {problem}")]
    Member {
        /// Path of the member.
        member: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// It went through this agent before.
    #[error("the message went through this agent before")]
    Loop,
    /// The file was not written by the agent that it names.
    #[error("the authentication code is missing or wrong")]
    BadHmac,
}

impl LocalError {
    fn member(member: &'static str, problem: impl std::fmt::Display) -> Self {
        Self::Member { member, problem: problem.to_string() }
    }
}

/// One end of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// Name of the agent.
    pub agent: String,
    /// Session there.
    #[serde(default)]
    pub session: String,
    /// Machine.
    #[serde(default)]
    pub machine: String,
}

/// A message as it travels on one host.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalMessage {
    /// Sender.
    pub from: Party,
    /// Recipient.
    pub to: Party,
    /// Id, unique per sender.
    pub id: MessageId,
    /// Thread, if any.
    pub thread_id: Option<ThreadId>,
    /// Where the sender listens, `http://localhost:<port>`.
    pub origin_server: String,
    /// Name of the agent whose token made the code of a file.
    pub signed_by: Option<String>,
    fields: Map<String, Value>,
    transport: Map<String, Value>,
    envelope: Option<Envelope>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    #[serde(default)]
    schema_version: Option<u64>,
    message: Map<String, Value>,
    #[serde(default)]
    transport: Map<String, Value>,
}

impl LocalMessage {
    /// Reads a request body or a drop file.
    pub fn parse(bytes: &[u8]) -> Result<Self, LocalError> {
        if bytes.len() > MAX_BYTES {
            return Err(LocalError::TooLarge);
        }
        let body: Body = serde_json::from_slice(bytes).map_err(|e| LocalError::Shape(e.to_string()))?;
        if let Some(version) = body.schema_version.filter(|v| *v != 1) {
            return Err(LocalError::Version(version));
        }
        let fields = body.message;
        let word = |member: &'static str, key: &str| {
            let found = fields.get(key).and_then(Value::as_str);
            found.ok_or_else(|| LocalError::member(member, "a text is expected"))
        };
        let party = |member: &'static str, key: &str| {
            let value = fields.get(key).cloned().unwrap_or_default();
            serde_json::from_value::<Party>(value).map_err(|e| LocalError::member(member, e))
        };
        let id: MessageId = word("message.id", "id")?
            .parse()
            .map_err(|e: ParseIdError| LocalError::member("message.id", e))?;
        let thread_id = match fields.get("threadId") {
            None | Some(Value::Null) => None,
            Some(_) => {
                let text = word("message.threadId", "threadId")?;
                let parsed =
                    text.parse().map_err(|e: ParseIdError| LocalError::member("message.threadId", e));
                (!text.is_empty()).then_some(parsed).transpose()?
            }
        };
        word("message.body", "body")?;
        if parse_iso(word("message.createdAt", "createdAt")?).is_none() {
            return Err(LocalError::member("message.createdAt", "an ISO 8601 time is expected"));
        }
        let envelope = match fields.get("payload").and_then(|p| p.get("envelope")) {
            Some(Value::Object(envelope)) => Some(Envelope::from_fields(envelope.clone())),
            _ => None,
        };
        let text_of = |key: &str| body.transport.get(key).and_then(Value::as_str).map(str::to_owned);
        Ok(Self {
            from: party("message.from", "from")?,
            to: party("message.to", "to")?,
            id,
            thread_id,
            origin_server: text_of("originServer").unwrap_or_default(),
            signed_by: text_of("hmacBy"),
            envelope,
            fields,
            transport: body.transport,
        })
    }

    /// The message of a finished envelope, between two agents of this host. A sealed envelope travels inside as it is,
    /// so that every carrier brings the same bytes.
    pub fn of_envelope(
        envelope: &Envelope,
        from: &AgentName,
        to: &str,
        origin_server: &str,
        nonce: uuid::Uuid,
        now_ms: i64,
    ) -> Result<Self, LocalError> {
        let header = envelope.header().map_err(|e| LocalError::member("envelope", e))?;
        let party =
            |agent: &str, session: &str| json!({"agent": agent, "session": session, "machine": "local"});
        let mut fields = Map::new();
        fields.insert("id".into(), header.message_id.as_str().into());
        fields.insert("from".into(), party(from.as_str(), "threadline"));
        fields.insert("to".into(), party(to, "best"));
        let (kind, subject, body, in_reply_to) = if envelope.is_sealed() {
            ("query".to_owned(), String::new(), String::new(), None)
        } else {
            let content = envelope::read_clear(envelope).map_err(|e| LocalError::member("envelope", e))?;
            let word = |key: &str| Some(content.metadata.as_ref()?.get(key)?.as_str()?.to_owned());
            let subject = word("subject").unwrap_or_default();
            let in_reply_to = word("inReplyTo");
            (content.kind.unwrap_or_else(|| "chat".into()), subject, content.text, in_reply_to)
        };
        fields.insert("type".into(), if kind == "chat" { "query".into() } else { kind.into() });
        fields.insert("priority".into(), "medium".into());
        fields.insert("subject".into(), text::subject(&subject).into());
        fields.insert("body".into(), body.into());
        if let Some(thread) = &header.thread_id {
            fields.insert("threadId".into(), thread.as_str().into());
        }
        if let Some(answered) = in_reply_to {
            fields.insert("inReplyTo".into(), answered.into());
        }
        fields.insert("createdAt".into(), iso_ms(header.timestamp).into());
        fields.insert("ttlMinutes".into(), 60.into());
        if envelope.is_sealed() {
            fields.insert("payload".into(), json!({"envelope": envelope}));
        }
        let now = iso_ms(now_ms);
        let mut transport = Map::new();
        transport.insert("relayChain".into(), json!([]));
        transport.insert("originServer".into(), origin_server.into());
        transport.insert("nonce".into(), format!("{nonce}:{now}").into());
        transport.insert("timestamp".into(), now.into());
        let body = json!({"message": fields, "transport": transport});
        Self::parse(body.to_string().as_bytes())
    }

    /// The request body.
    pub fn to_json(&self) -> Value {
        json!({
            "schemaVersion": 1,
            "message": self.fields,
            "transport": self.transport,
            "delivery": {"phase": "sent", "transitions": [], "attempts": 1},
        })
    }

    /// The drop file: the request with a code that only who holds the sender's token can make.
    pub fn to_drop(&self, sender: &AgentName, token: &str) -> Value {
        let mut file = self.to_json();
        file["transport"]["hmac"] = hex::encode(self.code(token)).into();
        file["transport"]["hmacBy"] = sender.as_str().into();
        file
    }

    /// Checks the code of a drop file with the token of the agent that [`LocalMessage::signed_by`] names, which must be
    /// the sender.
    pub fn check_drop(&self, token: &str) -> Result<(), LocalError> {
        let given =
            self.transport.get("hmac").and_then(Value::as_str).and_then(|text| hex::decode(text).ok());
        let holds = self.signed_by.as_deref() == Some(self.from.agent.as_str())
            && given.is_some_and(|given| bool::from(given.ct_eq(self.code(token).as_slice())));
        if holds { Ok(()) } else { Err(LocalError::BadHmac) }
    }

    /// Refuses what names this agent as one that it went through.
    pub fn check_loop(&self, us: &AgentName, our_server: &str) -> Result<(), LocalError> {
        let through = |hop: &Value| hop.as_str().is_some_and(|hop| hop == us.as_str() || hop == our_server);
        let chain = self.transport.get("relayChain").and_then(Value::as_array);
        if chain.is_some_and(|chain| chain.iter().any(through)) {
            return Err(LocalError::Loop);
        }
        Ok(())
    }

    /// The envelope to spool: the one inside, or a clear one of the message. `from` is the sender as this node knows it.
    pub fn to_envelope(&self, from: Fingerprint, to: Fingerprint) -> Envelope {
        if let Some(envelope) = &self.envelope {
            return envelope.clone();
        }
        let word = |key: &str| self.fields.get(key).and_then(Value::as_str);
        let mut metadata = Map::new();
        for key in ["subject", "inReplyTo"] {
            if let Some(text) = word(key).filter(|text| !text.is_empty()) {
                metadata.insert(key.into(), text.into());
            }
        }
        let header = Header {
            from,
            to,
            thread_id: self.thread_id.clone(),
            message_id: self.id.clone(),
            timestamp: word("createdAt").and_then(parse_iso).unwrap_or_default(),
        };
        let content = Content {
            text: word("body").unwrap_or_default().to_owned(),
            kind: word("type").map(str::to_owned),
            metadata: Some(metadata),
        };
        envelope::clear(&header, &content)
    }

    /// The sealed envelope inside, as only nodes of this kind send it.
    pub fn sealed(&self) -> Option<&Envelope> {
        self.envelope.as_ref().filter(|envelope| envelope.is_sealed())
    }

    /// Digest of sender, thread and text with its whitespace collapsed.
    fn text_digest(&self) -> [u8; 32] {
        let body = self.fields.get("body").and_then(Value::as_str).unwrap_or_default();
        let words: Vec<&str> = body.split_whitespace().collect();
        let thread = self.thread_id.as_ref().map_or("", ThreadId::as_str);
        Sha256::digest(json!([self.from.agent, thread, words.join(" ")]).to_string()).into()
    }

    fn code(&self, token: &str) -> [u8; 32] {
        let member = |key: &str| self.transport.get(key).cloned().unwrap_or_default();
        let signed = json!({
            "message": self.fields,
            "originServer": member("originServer"),
            "nonce": member("nonce"),
            "timestamp": member("timestamp"),
        });
        let mut mac = Hmac::<Sha256>::new_from_slice(token.as_bytes()).expect("any length is a key");
        mac.update(jcs::to_string(&signed).as_bytes());
        mac.finalize().into_bytes().into()
    }
}

/// Texts of the last minute. Time is Unix ms.
#[derive(Debug, Default)]
pub struct RecentTexts(VecDeque<(i64, [u8; 32])>);

impl RecentTexts {
    /// Whether the same text came within [`SAME_TEXT_MS`]; notes it otherwise. Sealed messages come from nodes whose ids
    /// are exactly-once, so they are never the same.
    pub fn is_repeated(&mut self, message: &LocalMessage, now_ms: i64) -> bool {
        if message.sealed().is_some() {
            return false;
        }
        while self.0.front().is_some_and(|(at, _)| at + SAME_TEXT_MS <= now_ms) || self.0.len() > MAX_RECENT {
            self.0.pop_front();
        }
        let digest = message.text_digest();
        if self.0.iter().any(|(_, known)| *known == digest) {
            return true;
        }
        self.0.push_back((now_ms, digest));
        false
    }

    /// Forgets a text that was not taken after all.
    pub fn forget(&mut self, message: &LocalMessage) {
        let digest = message.text_digest();
        self.0.retain(|(_, known)| *known != digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::testing::{text, vectors};
    use proptest::prelude::*;

    const T0: i64 = 1_768_478_400_000;

    fn recorded() -> LocalMessage {
        let fields = &vectors()["dropHmac"]["fields"];
        let body = json!({"schemaVersion": 1, "message": fields["message"], "transport": {
            "relayChain": [], "originServer": fields["originServer"], "nonce": fields["nonce"],
            "timestamp": fields["timestamp"]}, "delivery": {"phase": "sent"}});
        LocalMessage::parse(body.to_string().as_bytes()).expect("message")
    }

    fn token() -> &'static str {
        text(&vectors()["dropHmac"]["agentToken"])
    }

    fn name(text: &str) -> AgentName {
        AgentName::parse(text).expect("name")
    }

    #[test]
    fn the_recorded_code_of_a_drop() {
        assert_eq!(hex::encode(recorded().code(token())), text(&vectors()["dropHmac"]["hmac"]));
        let file = recorded().to_drop(&name("alice"), token());
        let read = LocalMessage::parse(file.to_string().as_bytes()).expect("drop");
        assert_eq!(read.check_drop(token()), Ok(()));
        assert_eq!(read.check_drop("other"), Err(LocalError::BadHmac));
        let mut changed = file.clone();
        changed["message"]["body"] = "other".into();
        let changed = LocalMessage::parse(changed.to_string().as_bytes()).expect("drop");
        assert_eq!(changed.check_drop(token()), Err(LocalError::BadHmac));
        let foreign = recorded().to_drop(&name("carol"), token());
        let foreign = LocalMessage::parse(foreign.to_string().as_bytes()).expect("drop");
        assert_eq!(foreign.check_drop(token()), Err(LocalError::BadHmac), "signed by somebody else");
    }

    fn parties() -> (Identity, Identity) {
        (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]))
    }

    fn header() -> Header {
        let (alice, bob) = parties();
        Header {
            from: alice.fingerprint(),
            to: bob.fingerprint(),
            thread_id: "t1".parse().ok(),
            message_id: "m1".parse().expect("id"),
            timestamp: T0,
        }
    }

    fn local(envelope: &Envelope) -> LocalMessage {
        let made = LocalMessage::of_envelope(
            envelope,
            &name("alice"),
            "bob",
            "http://localhost:1",
            uuid::Uuid::nil(),
            T0,
        )
        .expect("message");
        LocalMessage::parse(made.to_json().to_string().as_bytes()).expect("readable")
    }

    #[test]
    fn a_clear_envelope_becomes_a_message_that_existing_installs_read_and_comes_back() {
        let (alice, bob) = parties();
        let mut metadata = Map::new();
        metadata.insert("inReplyTo".into(), "m0".into());
        metadata.insert("subject".into(), "Lunch".into());
        let content = Content { text: "Soup?".into(), kind: Some("chat".into()), metadata: Some(metadata) };
        let message = local(&envelope::clear(&header(), &content));
        let json = message.to_json();
        for (path, wanted) in [
            ("/message/from/agent", "alice"),
            ("/message/to/agent", "bob"),
            ("/message/body", "Soup?"),
            ("/message/subject", "Lunch"),
            ("/message/inReplyTo", "m0"),
            ("/message/threadId", "t1"),
            ("/message/createdAt", "2026-01-15T12:00:00.000Z"),
            ("/transport/originServer", "http://localhost:1"),
        ] {
            assert_eq!(json.pointer(path).and_then(Value::as_str), Some(wanted), "{path}");
        }
        let back = message.to_envelope(alice.fingerprint(), bob.fingerprint());
        assert_eq!(back.header().expect("header"), header());
        let read = envelope::read_clear(&back).expect("content");
        assert_eq!(
            (read.text.as_str(), read.metadata.expect("some")["inReplyTo"].as_str()),
            ("Soup?", Some("m0"))
        );
    }

    #[test]
    fn a_sealed_envelope_travels_as_it_is() {
        let (alice, bob) = parties();
        let content = Content { text: "Soup?".into(), ..Content::default() };
        let sealed =
            envelope::seal(&alice, bob.public(), &header(), &content, &mut rand::rng()).expect("sealed");
        let message = local(&sealed);
        assert!(!message.to_json()["message"]["body"].to_string().contains("Soup"));
        let nobody = Fingerprint::from_bytes([0; 16]);
        assert_eq!(message.to_envelope(nobody, nobody).to_bytes(), sealed.to_bytes());
        assert!(message.sealed().is_some());
    }

    #[test]
    fn loops_and_repetitions_are_seen() {
        let mut json = recorded().to_json();
        let us = name("bob");
        assert_eq!(recorded().check_loop(&us, "http://localhost:9"), Ok(()));
        for hop in ["bob", "http://localhost:9"] {
            json["transport"]["relayChain"] = json!(["carol", hop]);
            let looped = LocalMessage::parse(json.to_string().as_bytes()).expect("message");
            assert_eq!(looped.check_loop(&us, "http://localhost:9"), Err(LocalError::Loop));
        }
        let mut recent = RecentTexts::default();
        json["message"]["body"] = "hello   there".into();
        let one = LocalMessage::parse(json.to_string().as_bytes()).expect("message");
        json["message"]["body"] = " hello there\n".into();
        json["message"]["id"] = "another".into();
        let two = LocalMessage::parse(json.to_string().as_bytes()).expect("message");
        assert!(!recent.is_repeated(&one, T0) && recent.is_repeated(&two, T0 + SAME_TEXT_MS - 1));
        assert!(!recent.is_repeated(&two, T0 + SAME_TEXT_MS));
        recent.forget(&two);
        assert!(!recent.is_repeated(&one, T0 + SAME_TEXT_MS));
    }

    #[test]
    fn malformed_messages_are_named() {
        for (path, value, named) in [
            ("/message/id", json!(7), "message.id"),
            ("/message/id", json!("a b"), "message.id"),
            ("/message/from", json!("alice"), "message.from"),
            ("/message/to", Value::Null, "message.to"),
            ("/message/body", Value::Null, "message.body"),
            ("/message/threadId", json!({}), "message.threadId"),
            ("/message/createdAt", json!("yesterday"), "message.createdAt"),
            ("/schemaVersion", json!(2), "schemaVersion"),
        ] {
            let mut json = recorded().to_json();
            *json.pointer_mut(path).expect(path) = value;
            let error = LocalMessage::parse(json.to_string().as_bytes()).expect_err(path);
            assert!(error.to_string().contains(named), "{error}");
        }
        assert!(AgentName::parse("../x").is_none() && AgentName::parse("").is_none());
        assert!(AgentName::parse(&"a".repeat(65)).is_none() && AgentName::parse("-a").is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..600, to in any::<u8>()) {
            let _ = LocalMessage::parse(&bytes);
            let mut json = recorded().to_json().to_string().into_bytes();
            let at = at % json.len();
            json[at] = to;
            if let Ok(message) = LocalMessage::parse(&json) {
                let _ = message.to_envelope(Fingerprint::from_bytes([1; 16]), Fingerprint::from_bytes([2; 16]));
                let _ = message.check_drop(token());
            }
        }
    }
}
