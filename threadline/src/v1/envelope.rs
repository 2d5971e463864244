//! The two shapes of a v1 envelope, clear and sealed, byte for byte (`threadline-wire.md` §2.5).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use rand::CryptoRng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{MAX_ENVELOPE, MAX_PAYLOAD};
use crate::identity::{self, Identity, PublicIdentity, Purpose};
use crate::time::{iso_ms, parse_iso};
use crate::v2::inside_v1::INTRODUCTION;
use crate::{Fingerprint, MessageId, ThreadId, jcs};

/// Member of a sealed envelope that names the sender's full key. The signature covers it, and whoever does not know it
/// keeps it as any other member.
const SENDER_KEY: &str = "identityKey";

/// How far a timestamp may be ahead of our clock, ms.
pub const MAX_AHEAD_MS: i64 = 2 * 60 * 1000;
/// How old a v1 message may be, ms: life of a queue and 5 minutes.
pub const MAX_AGE_MS: i64 = (24 * 60 + 5) * 60 * 1000;

/// An envelope exactly as it was received: unknown members and their order are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Envelope {
    fields: Map<String, Value>,
}

/// The readable part of an envelope that follows the grammar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Claimed sender.
    pub from: Fingerprint,
    /// Addressee.
    pub to: Fingerprint,
    /// Thread; absent only from some foreign clients.
    pub thread_id: Option<ThreadId>,
    /// Id, unique per sender.
    pub message_id: MessageId,
    /// Sender's clock, Unix ms.
    pub timestamp: i64,
}

/// What a message says, in either shape.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Content {
    /// The text.
    pub text: String,
    /// Message kind (`chat`, `query`, …), if the sender gave one.
    pub kind: Option<String>,
    /// Further members (`inReplyTo`, `subject`, …).
    pub metadata: Option<Map<String, Value>>,
}

/// Why a received envelope is not taken. Each has its own counter; none is answered on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ReceiveError {
    /// A member is missing or does not follow its grammar.
    #[error("a member of the envelope is missing or malformed")]
    Malformed,
    /// Envelope above 256 KiB.
    #[error("the envelope is too large")]
    TooLarge,
    /// Addressed to somebody else.
    #[error("the envelope is not addressed to this agent")]
    NotForUs,
    /// Sealed, and the sender's key is not known.
    #[error("the key of the sender is not known")]
    UnknownSender,
    /// The signature does not verify, or the sender's key is another one.
    #[error("the signature does not verify")]
    BadSignature,
    /// Older than the life of a queue.
    #[error("the message is too old")]
    Stale,
    /// More than 2 minutes ahead.
    #[error("the message is from the future")]
    Ahead,
    /// The ephemeral key, salt or nonce is unusable.
    #[error("key agreement failed")]
    KeyAgreement,
    /// The ciphertext does not open.
    #[error("the payload does not open")]
    Decrypt,
    /// Decoded payload above 64 KiB.
    #[error("the payload is too large")]
    PayloadTooLarge,
    /// Not base64, UTF-8 or JSON.
    #[error("the payload cannot be decoded")]
    Undecodable,
}

impl ReceiveError {
    /// Kebab-case reason for logs and counters.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLarge => "envelope-too-large",
            Self::NotForUs => "not-for-us",
            Self::UnknownSender => "unknown-sender",
            Self::BadSignature => "bad-signature",
            Self::Stale => "stale",
            Self::Ahead => "clock-skew",
            Self::KeyAgreement => "key-agreement",
            Self::Decrypt => "undecryptable",
            Self::PayloadTooLarge => "payload-too-large",
            Self::Undecodable => "undecodable",
        }
    }
}

/// The bytes that a sealed envelope's signature covers. Only this module makes one.
#[derive(Debug)]
pub struct CanonicalEnvelope(String);

impl CanonicalEnvelope {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    #[cfg(test)]
    pub(crate) fn example() -> Self {
        let fields = serde_json::json!({"from": "a".repeat(32), "to": "b".repeat(32)});
        Envelope::from_fields(fields.as_object().cloned().unwrap_or_default()).canonical(false)
    }
}

impl Envelope {
    /// Takes the members of a received `envelope`.
    pub fn from_fields(fields: Map<String, Value>) -> Self {
        Self { fields }
    }

    /// Reads stored bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReceiveError> {
        if bytes.len() > MAX_ENVELOPE {
            return Err(ReceiveError::TooLarge);
        }
        serde_json::from_slice(bytes).map_err(|_| ReceiveError::Malformed)
    }

    /// The members, as received.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// A text member; absent and of another type are both `None`.
    pub fn text(&self, member: &str) -> Option<&str> {
        self.fields.get(member)?.as_str()
    }

    /// Compact JSON, the form that is stored and whose length counts.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.fields).expect("a JSON object serialises")
    }

    /// Whether the envelope is end-to-end encrypted: decided by content.
    pub fn is_sealed(&self) -> bool {
        ["nonce", "ephemeralPubKey", "salt", "signature"]
            .iter()
            .all(|member| self.text(member).is_some_and(|text| !text.is_empty()))
    }

    /// The full key that the envelope names for its sender, if it belongs to the address in `from`. It proves something
    /// only together with the signature.
    pub fn sender_key(&self) -> Option<PublicIdentity> {
        let key = PublicIdentity::from_bytes(&STANDARD.decode(self.text(SENDER_KEY)?).ok()?).ok()?;
        (self.text("from") == Some(&*key.fingerprint().to_string())).then_some(key)
    }

    /// The header, when every part follows its grammar.
    pub fn header(&self) -> Result<Header, ReceiveError> {
        let field = |member| self.text(member).ok_or(ReceiveError::Malformed);
        let thread_id = match self.fields.get("threadId") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) => Some(text.parse().map_err(|_| ReceiveError::Malformed)?),
            Some(_) => return Err(ReceiveError::Malformed),
        };
        Ok(Header {
            from: field("from")?.parse().map_err(|_| ReceiveError::Malformed)?,
            to: field("to")?.parse().map_err(|_| ReceiveError::Malformed)?,
            thread_id,
            message_id: field("messageId")?.parse().map_err(|_| ReceiveError::Malformed)?,
            timestamp: parse_iso(field("timestamp")?).ok_or(ReceiveError::Malformed)?,
        })
    }

    /// `canon` (`threadline-wire.md` §2.5.2) over every received member but `signature`, `payload` blanked on request.
    fn canonical(&self, blank_payload: bool) -> CanonicalEnvelope {
        let mut members: Vec<_> = self.fields.iter().filter(|(key, _)| *key != "signature").collect();
        members.sort_by(|a, b| jcs::key_order(a.0, b.0));
        let mut out = String::with_capacity(512);
        out.push('{');
        for (i, (key, value)) in members.into_iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            jcs::write_string(key, &mut out);
            out.push(':');
            if blank_payload && key == "payload" {
                out.push_str("\"\"");
            } else {
                jcs::stringify(value, &mut out);
            }
        }
        out.push('}');
        CanonicalEnvelope(out)
    }

    fn set(&mut self, member: &str, value: impl Into<Value>) {
        self.fields.insert(member.to_owned(), value.into());
    }
}

/// Makes a clear envelope, which every existing install can read.
pub fn clear(header: &Header, content: &Content) -> Envelope {
    let mut payload = Map::new();
    payload.insert("text".into(), content.text.as_str().into());
    payload.insert("type".into(), content.kind.as_deref().unwrap_or("chat").into());
    if let Some(metadata) = &content.metadata {
        let mut metadata = metadata.clone();
        if let Some(introduction) = metadata.remove(INTRODUCTION) {
            payload.insert(INTRODUCTION.into(), introduction);
        }
        payload.insert("metadata".into(), Value::Object(metadata));
    }
    let json = serde_json::to_vec(&payload).expect("a JSON object serialises");
    let mut envelope = start(header);
    envelope.set("payload", STANDARD.encode(json));
    envelope.set("timestamp", iso_ms(header.timestamp));
    envelope
}

/// Why a message cannot be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The header names another sender or recipient than the keys.
    #[error("the header does not belong to the keys")]
    WrongHeader,
    /// The recipient's key gives an all-zero secret.
    #[error("the recipient's key is unusable")]
    Key,
}

/// Makes a sealed envelope for a recipient whose full key is pinned and who advertises `tl-e2e`.
pub fn seal(
    sender: &Identity,
    recipient: &PublicIdentity,
    header: &Header,
    content: &Content,
    rng: &mut impl CryptoRng,
) -> Result<Envelope, SealError> {
    if header.from != sender.fingerprint() || header.to != recipient.fingerprint() {
        return Err(SealError::WrongHeader);
    }
    let mut random = SealRandomness::default();
    rng.fill_bytes(&mut *random.ephemeral);
    rng.fill_bytes(&mut random.salt);
    rng.fill_bytes(&mut random.nonce);
    let mut envelope = start(header);
    envelope.set("timestamp", iso_ms(header.timestamp));
    envelope.set(SENDER_KEY, STANDARD.encode(sender.public().as_bytes()));
    seal_fields(envelope, sender, recipient, &plaintext(content), &random)
}

#[derive(Default)]
struct SealRandomness {
    ephemeral: Zeroizing<[u8; 32]>,
    salt: [u8; 32],
    nonce: [u8; 24],
}

fn start(header: &Header) -> Envelope {
    let mut envelope = Envelope { fields: Map::new() };
    envelope.set("from", header.from.to_string());
    envelope.set("to", header.to.to_string());
    if let Some(thread) = &header.thread_id {
        envelope.set("threadId", thread.as_str());
    }
    envelope.set("messageId", header.message_id.as_str());
    envelope
}

fn plaintext(content: &Content) -> Zeroizing<Vec<u8>> {
    #[derive(Serialize)]
    struct Sealed<'a> {
        content: &'a str,
        #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
        kind: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        metadata: Option<&'a Map<String, Value>>,
    }
    let sealed =
        Sealed { content: &content.text, kind: content.kind.as_deref(), metadata: content.metadata.as_ref() };
    Zeroizing::new(serde_json::to_vec(&sealed).expect("texts and JSON serialise"))
}

fn seal_fields(
    mut envelope: Envelope,
    sender: &Identity,
    recipient: &PublicIdentity,
    plaintext: &[u8],
    random: &SealRandomness,
) -> Result<Envelope, SealError> {
    let ephemeral_public =
        x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*random.ephemeral)).to_bytes();
    let es = identity::agree(&random.ephemeral, &recipient.x25519()).ok_or(SealError::Key)?;
    let ss = sender.agree(&recipient.x25519()).ok_or(SealError::Key)?;
    envelope.set("nonce", STANDARD.encode(random.nonce));
    envelope.set("ephemeralPubKey", STANDARD.encode(ephemeral_public));
    envelope.set("salt", STANDARD.encode(random.salt));
    envelope.set("payload", "");
    let sealed = XChaCha20Poly1305::new((&*message_key(&es, &ss, &random.salt)).into())
        .encrypt(
            &XNonce::from(random.nonce),
            Payload { msg: plaintext, aad: envelope.canonical(true).as_bytes() },
        )
        .expect("a payload is below the cipher's limit");
    envelope.set("payload", STANDARD.encode(sealed));
    let signature = sender.sign(&Purpose::SealedEnvelope(&envelope.canonical(false)));
    envelope.set("signature", STANDARD.encode(signature));
    Ok(envelope)
}

fn message_key(es: &[u8; 32], ss: &[u8; 32], salt: &[u8]) -> Zeroizing<[u8; 32]> {
    let ikm = Zeroizing::new([es.as_slice(), ss].concat());
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(Some(salt), &ikm)
        .expand(b"threadline-relay-v1", &mut *key)
        .expect("32 bytes are a valid HKDF length");
    key
}

/// How the sender of a message is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Authentication {
    /// Signed by the sender's key, readable by us alone.
    E2e,
    /// Only the relay vouches for `from`.
    Transport,
    /// A process of this account, which read this agent's token file, brought it.
    LocalToken,
    /// The sender's key signed the request that brought it in clear.
    Signed,
}

/// An envelope whose header, addressee, signature and time were accepted. The caller now looks for a duplicate, then
/// calls [`Authentic::open`].
#[derive(Debug)]
pub struct Authentic<'a> {
    envelope: &'a Envelope,
    header: Header,
    sender: Option<PublicIdentity>,
}

/// Checks size, addressee, sender key, signature and time, in this order. `sender` is the pinned key of the claimed
/// sender, needed for sealed envelopes only.
pub fn authenticate<'a>(
    envelope: &'a Envelope,
    us: &Fingerprint,
    sender: Option<&PublicIdentity>,
    now_ms: i64,
) -> Result<Authentic<'a>, ReceiveError> {
    if envelope.to_bytes().len() > MAX_ENVELOPE {
        return Err(ReceiveError::TooLarge);
    }
    let header = envelope.header()?;
    if header.to != *us {
        return Err(ReceiveError::NotForUs);
    }
    let sender = if envelope.is_sealed() {
        let sender = sender.ok_or(ReceiveError::UnknownSender)?;
        if sender.fingerprint() != header.from {
            return Err(ReceiveError::BadSignature);
        }
        check_signature(envelope, sender)?;
        Some(*sender)
    } else {
        None
    };
    if header.timestamp > now_ms.saturating_add(MAX_AHEAD_MS) {
        return Err(ReceiveError::Ahead);
    }
    if header.timestamp < now_ms.saturating_sub(MAX_AGE_MS) {
        return Err(ReceiveError::Stale);
    }
    Ok(Authentic { envelope, header, sender })
}

impl Authentic<'_> {
    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How the sender is known.
    pub fn authentication(&self) -> Authentication {
        if self.sender.is_some() { Authentication::E2e } else { Authentication::Transport }
    }

    /// Opens the payload.
    pub fn open(&self, identity: &Identity) -> Result<Content, ReceiveError> {
        match &self.sender {
            Some(sender) => read_json(&decrypt(self.envelope, identity, sender)?),
            None => read_clear(self.envelope),
        }
    }
}

/// Checks the signature of a sealed envelope under the sender's key. Members that are not texts are refused, because
/// foreign number formatting is not reproduced.
pub fn check_signature(envelope: &Envelope, sender: &PublicIdentity) -> Result<(), ReceiveError> {
    if envelope.fields.values().any(|value| !value.is_string()) {
        return Err(ReceiveError::BadSignature);
    }
    let signature =
        envelope.text("signature").and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
    if !sender.verifies(envelope.canonical(false).as_bytes(), &signature) {
        return Err(ReceiveError::BadSignature);
    }
    Ok(())
}

fn decrypt(
    envelope: &Envelope,
    identity: &Identity,
    sender: &PublicIdentity,
) -> Result<Zeroizing<Vec<u8>>, ReceiveError> {
    let member = |name| {
        envelope.text(name).and_then(|text| STANDARD.decode(text).ok()).ok_or(ReceiveError::KeyAgreement)
    };
    let ephemeral: [u8; 32] =
        member("ephemeralPubKey")?.try_into().map_err(|_| ReceiveError::KeyAgreement)?;
    let nonce: [u8; 24] = member("nonce")?.try_into().map_err(|_| ReceiveError::KeyAgreement)?;
    let salt: [u8; 32] = member("salt")?.try_into().map_err(|_| ReceiveError::KeyAgreement)?;
    let es = identity.agree(&ephemeral).ok_or(ReceiveError::KeyAgreement)?;
    let ss = identity.agree(&sender.x25519()).ok_or(ReceiveError::KeyAgreement)?;
    let sealed = decode_payload(envelope, 16)?;
    XChaCha20Poly1305::new((&*message_key(&es, &ss, &salt)).into())
        .decrypt(&XNonce::from(nonce), Payload { msg: &sealed, aad: envelope.canonical(true).as_bytes() })
        .map(Zeroizing::new)
        .map_err(|_| ReceiveError::Decrypt)
}

/// Reads the payload of a clear envelope.
pub fn read_clear(envelope: &Envelope) -> Result<Content, ReceiveError> {
    read_json(&decode_payload(envelope, 0)?)
}

fn decode_payload(envelope: &Envelope, overhead: usize) -> Result<Vec<u8>, ReceiveError> {
    let text = envelope.text("payload").ok_or(ReceiveError::Undecodable)?;
    if text.len() / 4 * 3 > MAX_PAYLOAD + overhead + 2 {
        return Err(ReceiveError::PayloadTooLarge);
    }
    let bytes = STANDARD.decode(text).map_err(|_| ReceiveError::Undecodable)?;
    if bytes.len() > MAX_PAYLOAD + overhead {
        return Err(ReceiveError::PayloadTooLarge);
    }
    Ok(bytes)
}

fn read_json(bytes: &[u8]) -> Result<Content, ReceiveError> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|_| ReceiveError::Undecodable)?;
    let Some(fields) = value.as_object_mut() else {
        return Ok(match value {
            Value::String(text) => Content { text, ..Content::default() },
            other => Content { text: compact(&other), ..Content::default() },
        });
    };
    let kind = fields.get("type").and_then(Value::as_str).map(str::to_owned);
    let mut metadata = fields.get("metadata").and_then(Value::as_object).cloned();
    if let Some(introduction @ Value::Object(_)) = fields.get(INTRODUCTION) {
        metadata.get_or_insert_default().insert(INTRODUCTION.into(), introduction.clone());
    }
    let text = [fields.get("text"), fields.get("content")].into_iter().flatten().find_map(Value::as_str);
    let text = text.map(str::to_owned);
    Ok(Content { text: text.unwrap_or_else(|| compact(&value)), kind, metadata })
}

fn compact(value: &Value) -> String {
    let mut out = String::new();
    jcs::stringify(value, &mut out);
    out
}

/// Whether a message is the automatic acknowledgement of an existing install, which is never answered and ends no wait.
pub fn is_auto_ack(content: &Content) -> bool {
    content.kind.as_deref() == Some("status")
        || content.text.starts_with("Message received.")
        || content.text.starts_with("Message received,")
}

#[cfg(test)]
mod tests;
