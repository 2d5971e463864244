//! Frames in both directions (`threadline-wire.md` §2.2). Reading is lenient where old clients are known to be wrong;
//! writing is exact.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::envelope::Envelope;
use super::{MAX_DEPTH, MAX_FRAME};
use crate::identity::{Identity, LoginNonce, PublicIdentity, Purpose};

/// Why a text is not a frame. The texts of the first three variants are what existing relays answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not JSON.
    #[error("Invalid JSON")]
    NotJson,
    /// JSON, but not an object with a text `type`.
    #[error("Missing or invalid \"type\" field")]
    NoType,
    /// A type that this side does not read.
    #[error("Unknown frame type: {0}")]
    UnknownType(String),
    /// A member is missing or has a wrong type.
    #[error("Invalid {frame} frame: {reason}")]
    Malformed {
        /// Type of the frame.
        frame: String,
        /// What is wrong.
        reason: String,
    },
    /// Above the size limit: close with 1009.
    #[error("Frame too large: {0} bytes")]
    TooLarge(usize),
    /// Nested too deeply.
    #[error("JSON nesting is deeper than {MAX_DEPTH}")]
    TooDeep,
}

/// `public`, `unlisted` or `private`: who can find an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// In presence and directory.
    Public,
    /// Reachable by who knows the address.
    #[default]
    Unlisted,
    /// Hidden.
    Private,
}

/// Whether an agent is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// Connected now.
    Online,
    /// Not connected.
    Offline,
}

/// What an agent tells about itself at login.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Display name; a label, never an address.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// `instar`, …
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub framework: Option<String>,
    /// Slugs.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
    /// Free text.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub bio: Option<String>,
    /// Words.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub interests: Option<Vec<String>>,
    /// Version of the framework.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where its A2A card is.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub agent_card_url: Option<String>,
}

/// Registry wish at login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryWish {
    /// Whether the agent wants to be found.
    pub listed: bool,
    /// https URL.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub homepage: Option<String>,
    /// Whether others see the framework.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub framework_visible: Option<bool>,
}

/// `auth`: the login. Key, address and signature are texts here; [`Auth::verify`] judges them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// Address; absent in a token-only session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// Base64 of the raw 32 bytes.
    pub public_key: String,
    /// Base64 of the 64 bytes over the nonce text.
    pub signature: String,
    /// What the agent tells about itself.
    #[serde(default, deserialize_with = "or_default")]
    pub metadata: Metadata,
    /// Who can find it.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub visibility: Option<Visibility>,
    /// Registry wish.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub registry: Option<RegistryWish>,
}

/// Why a login is refused, in the order of the checks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginRefusal {
    /// The key is not 32 raw bytes.
    #[error("publicKey must be the raw 32 bytes in base64: got {0}")]
    Key(String),
    /// Address and key disagree.
    #[error("agentId does not match the public key")]
    AgentId,
    /// Not a signature of the key over the nonce text.
    #[error("the signature over the challenge text does not verify")]
    Signature,
}

impl Auth {
    /// A login of `identity`. `None` without `agent_id` is never sent by us.
    pub fn new(identity: &Identity, nonce: &LoginNonce, metadata: Metadata, visibility: Visibility) -> Self {
        Self {
            agent_id: Some(identity.fingerprint().to_string()),
            public_key: encode_b64(identity.public().as_bytes()),
            signature: encode_b64(&identity.sign(&Purpose::V1Login(nonce))),
            metadata,
            visibility: Some(visibility),
            registry: None,
        }
    }

    /// Judges the login against the pending challenge.
    pub fn verify(&self, nonce: &LoginNonce) -> Result<PublicIdentity, LoginRefusal> {
        let bytes = decode_b64(&self.public_key).ok_or_else(|| LoginRefusal::Key("no base64".into()))?;
        let key = PublicIdentity::from_bytes(&bytes).map_err(|e| {
            LoginRefusal::Key(match bytes.len() {
                44 => "44 bytes, which is SPKI DER".into(),
                48 => "48 bytes, which is a PKCS#8 private key".into(),
                _ => e.to_string(),
            })
        })?;
        if self.agent_id.as_ref().is_some_and(|id| *id != key.fingerprint().to_string()) {
            return Err(LoginRefusal::AgentId);
        }
        let signature = decode_b64(&self.signature).unwrap_or_default();
        if !key.verifies(nonce.as_str().as_bytes(), &signature) {
            return Err(LoginRefusal::Signature);
        }
        Ok(key)
    }
}

/// Status in an `ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckStatus {
    /// From a relay: written to the recipient's socket. From a client: taken into custody.
    Delivered,
    /// The relay holds the message.
    Queued,
    /// Refused.
    Rejected,
}

/// `ack`, both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ack {
    /// The message meant.
    pub message_id: String,
    /// What happened to it.
    pub status: AckStatus,
    /// For people, but for the replay text (`Rejection::is_replay`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Seconds it is held, with `queued`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
}

impl Ack {
    /// An acknowledgement without reason or ttl.
    pub fn new(message_id: impl Into<String>, status: AckStatus) -> Self {
        Self { message_id: message_id.into(), status, reason: None, ttl: None }
    }

    /// Whether this rejection says that an id was seen before: the message went through earlier.
    pub fn is_replay(&self) -> bool {
        self.status == AckStatus::Rejected
            && self.reason.as_deref().is_some_and(|r| r.to_lowercase().contains("replay detected"))
    }
}

/// Filter of `discover`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DiscoverFilter {
    /// Capability slug.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub capability: Option<String>,
    /// Framework.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub framework: Option<String>,
    /// Name.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A frame of a client.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientFrame {
    /// Login.
    Auth(Box<Auth>),
    /// A message in its envelope.
    Message(Envelope),
    /// A message as third-party clients write it; the relay makes the envelope.
    FlatMessage(FlatMessage),
    /// The client has taken a message.
    Ack(Ack),
    /// Asks who is there.
    Discover(Option<DiscoverFilter>),
    /// Asks for presence of these agents, or of all.
    Subscribe(Option<Vec<String>>),
    /// Announces leaving.
    Presence(PresenceNotice),
    /// Answer to a ping.
    Pong(Option<Value>),
}

/// `message` with top-level `to`, `threadId` and `text`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlatMessage {
    /// Address.
    pub to: String,
    /// Thread, if any.
    #[serde(default, deserialize_with = "or_default")]
    pub thread_id: Option<String>,
    /// The text.
    pub text: String,
}

/// `presence` of a client; only `offline` has an effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PresenceNotice {
    /// `offline`, or anything.
    pub status: String,
    /// Own address.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
}

impl ClientFrame {
    /// Reads a text message of a client.
    pub fn parse(text: &str) -> Result<Self, FrameError> {
        let (kind, mut fields) = open(text)?;
        Ok(match kind.as_str() {
            "auth" => {
                lift_flat_metadata(&mut fields);
                Self::Auth(Box::new(body(&kind, fields)?))
            }
            "message" => match fields.remove("envelope") {
                Some(Value::Object(envelope)) => Self::Message(Envelope::from_fields(envelope)),
                Some(_) => return Err(malformed(&kind, "envelope is not an object")),
                None if fields.contains_key("text") => Self::FlatMessage(body(&kind, fields)?),
                None => return Err(malformed(&kind, "envelope is missing")),
            },
            "ack" => Self::Ack(body(&kind, fields)?),
            "discover" => Self::Discover(optional(&kind, fields.remove("filter"))?),
            "subscribe" => Self::Subscribe(optional(&kind, fields.remove("agentIds"))?),
            "presence" => Self::Presence(body(&kind, fields)?),
            "pong" => Self::Pong(fields.remove("timestamp")),
            _ => return Err(FrameError::UnknownType(kind.chars().take(64).collect())),
        })
    }

    /// The text to send.
    pub fn to_text(&self) -> String {
        match self {
            Self::Auth(auth) => tagged("auth", auth),
            Self::Message(envelope) => tagged("message", &Enveloped { envelope }),
            Self::FlatMessage(flat) => {
                let mut fields = serde_json::json!({"to": flat.to, "text": flat.text});
                if let Some(thread) = &flat.thread_id {
                    fields["threadId"] = thread.as_str().into();
                }
                tagged("message", &fields)
            }
            Self::Ack(ack) => tagged("ack", ack),
            Self::Discover(filter) => {
                tagged("discover", &filter.as_ref().map(|f| serde_json::json!({"filter": f})))
            }
            Self::Subscribe(ids) => {
                tagged("subscribe", &ids.as_ref().map(|i| serde_json::json!({"agentIds": i})))
            }
            Self::Presence(notice) => tagged("presence", notice),
            Self::Pong(timestamp) => {
                tagged("pong", &timestamp.as_ref().map(|t| serde_json::json!({"timestamp": t})))
            }
        }
    }
}

/// `auth_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthOk {
    /// `relay-` and 16 hex digits.
    #[serde(rename = "sessionId", default, deserialize_with = "or_default")]
    pub session_id: String,
    /// Time between pings, ms.
    #[serde(rename = "heartbeatInterval", default = "default_heartbeat")]
    pub heartbeat_interval: u64,
    /// `listed`, `not_listed` or `updated`.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub registry_status: Option<String>,
    /// Bearer token of the registry.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub registry_token: Option<String>,
    /// When the token ends, ISO 8601.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub registry_token_expires: Option<String>,
    /// For people.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub registry_notice: Option<String>,
}

const fn default_heartbeat() -> u64 {
    60_000
}

/// Error codes of v1. Only these may drive a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Login failed, or a frame before login.
    AuthFailed,
    /// No login in time.
    AuthTimeout,
    /// Not a frame.
    InvalidFrame,
    /// The recipient is away and cannot be queued for.
    RecipientOffline,
    /// The recipient was never seen.
    RecipientUnknown,
    /// Envelope above [`super::MAX_ENVELOPE`].
    EnvelopeTooLarge,
    /// Too much.
    RateLimited,
    /// A signature does not verify.
    InvalidSignature,
    /// The id was seen before.
    ReplayDetected,
    /// Banned; the message may name the end.
    Banned,
    /// The relay failed.
    InternalError,
    /// A code that this build does not know.
    #[serde(untagged)]
    Other(String),
}

/// `error`, and with the tag `auth_error` the refusal of a login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayError {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    #[serde(default, deserialize_with = "or_default")]
    pub message: String,
    /// The message meant, if any.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub related_message_id: Option<String>,
}

/// An agent in `discover_result`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiscoveredAgent {
    /// Address.
    pub agent_id: crate::Fingerprint,
    /// Label.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// Framework.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub framework: Option<String>,
    /// Slugs.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
    /// Whether it is connected.
    pub status: Presence,
    /// ISO 8601.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub connected_since: Option<String>,
    /// ISO 8601.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<String>,
    /// Base64 of the full key, from relays of ours. The names `publicKey` and `x25519PublicKey` must not be used here:
    /// they break existing clients.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub identity_key: Option<String>,
}

impl DiscoveredAgent {
    /// The full key, if the relay gave one that belongs to the address.
    pub fn key(&self) -> Option<PublicIdentity> {
        let key = PublicIdentity::from_bytes(&decode_b64(self.identity_key.as_deref()?)?).ok()?;
        (key.fingerprint() == self.agent_id).then_some(key)
    }
}

/// `presence_change`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PresenceChange {
    /// Address.
    pub agent_id: crate::Fingerprint,
    /// New state.
    pub status: Presence,
    /// What the agent tells about itself.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
}

/// `delivery_expired`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryExpired {
    /// The message.
    pub message_id: String,
    /// Whom it did not reach.
    #[serde(default, deserialize_with = "or_default")]
    pub recipient_id: String,
    /// ISO 8601.
    #[serde(default, deserialize_with = "or_default")]
    pub queued_at: String,
}

/// A frame of a relay.
#[derive(Debug, Clone, PartialEq)]
pub enum ServerFrame {
    /// What to sign. The text is not yet known to be safe: see [`LoginNonce::parse`].
    Challenge(String),
    /// Login succeeded.
    AuthOk(AuthOk),
    /// Login failed.
    AuthError(RelayError),
    /// A message for this client.
    Message(Envelope),
    /// What happened to a message of this client.
    Ack(Ack),
    /// Who is there. Entries that cannot be read are left out.
    DiscoverResult(Vec<DiscoveredAgent>),
    /// An agent came or went.
    PresenceChange(PresenceChange),
    /// Asks for a pong; the timestamp is returned as it came.
    Ping(Option<Value>),
    /// A frame or message failed.
    Error(RelayError),
    /// Another connection took the identity.
    Displaced(String),
    /// A queued message reached its end of life.
    DeliveryExpired(DeliveryExpired),
}

impl ServerFrame {
    /// Reads a text message of a relay.
    pub fn parse(text: &str) -> Result<Self, FrameError> {
        let (kind, mut fields) = open(text)?;
        Ok(match kind.as_str() {
            "challenge" => match fields.remove("nonce") {
                Some(Value::String(nonce)) => Self::Challenge(nonce),
                _ => return Err(malformed(&kind, "nonce is not a text")),
            },
            "auth_ok" => Self::AuthOk(body(&kind, fields)?),
            "auth_error" => Self::AuthError(body(&kind, fields)?),
            "message" => match fields.remove("envelope") {
                Some(Value::Object(envelope)) => Self::Message(Envelope::from_fields(envelope)),
                _ => return Err(malformed(&kind, "envelope is not an object")),
            },
            "ack" => Self::Ack(body(&kind, fields)?),
            "discover_result" => match fields.remove("agents") {
                Some(Value::Array(agents)) => Self::DiscoverResult(
                    agents.into_iter().filter_map(|a| serde_json::from_value(a).ok()).collect(),
                ),
                _ => return Err(malformed(&kind, "agents is not a list")),
            },
            "presence_change" => Self::PresenceChange(body(&kind, fields)?),
            "ping" => Self::Ping(fields.remove("timestamp")),
            "error" => Self::Error(body(&kind, fields)?),
            "displaced" => Self::Displaced(match fields.remove("reason") {
                Some(Value::String(reason)) => reason,
                _ => String::new(),
            }),
            "delivery_expired" => Self::DeliveryExpired(body(&kind, fields)?),
            _ => return Err(FrameError::UnknownType(kind.chars().take(64).collect())),
        })
    }

    /// The text to send.
    pub fn to_text(&self) -> String {
        match self {
            Self::Challenge(nonce) => tagged("challenge", &serde_json::json!({"nonce": nonce})),
            Self::AuthOk(ok) => tagged("auth_ok", ok),
            Self::AuthError(error) => tagged("auth_error", error),
            Self::Message(envelope) => tagged("message", &Enveloped { envelope }),
            Self::Ack(ack) => tagged("ack", ack),
            Self::DiscoverResult(agents) => tagged("discover_result", &serde_json::json!({"agents": agents})),
            Self::PresenceChange(change) => tagged("presence_change", change),
            Self::Ping(timestamp) => {
                tagged("ping", &timestamp.as_ref().map(|t| serde_json::json!({"timestamp": t})))
            }
            Self::Error(error) => tagged("error", error),
            Self::Displaced(reason) => tagged("displaced", &serde_json::json!({"reason": reason})),
            Self::DeliveryExpired(expired) => tagged("delivery_expired", expired),
        }
    }
}

#[derive(Serialize)]
struct Enveloped<'a> {
    envelope: &'a Envelope,
}

#[derive(Serialize)]
struct Tagged<'a, T> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(flatten)]
    body: &'a T,
}

fn tagged<T: Serialize>(kind: &str, body: &T) -> String {
    serde_json::to_string(&Tagged { kind, body }).expect("frames hold only what JSON can hold")
}

fn open(text: &str) -> Result<(String, Map<String, Value>), FrameError> {
    if text.len() > MAX_FRAME {
        return Err(FrameError::TooLarge(text.len()));
    }
    if depth(text) > MAX_DEPTH {
        return Err(FrameError::TooDeep);
    }
    let value: Value = serde_json::from_str(text).map_err(|_| FrameError::NotJson)?;
    let Value::Object(mut fields) = value else { return Err(FrameError::NoType) };
    match fields.remove("type") {
        Some(Value::String(kind)) => Ok((kind, fields)),
        _ => Err(FrameError::NoType),
    }
}

/// Deepest nesting of arrays and objects, brackets inside strings not counted.
fn depth(text: &str) -> usize {
    let (mut now, mut most, mut quoted, mut escaped) = (0usize, 0, false, false);
    for byte in text.bytes() {
        match (quoted, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => quoted = !quoted,
            (false, b'{' | b'[') => {
                now += 1;
                most = most.max(now);
            }
            (false, b'}' | b']') => now = now.saturating_sub(1),
            _ => {}
        }
    }
    most
}

fn body<T: serde::de::DeserializeOwned>(kind: &str, fields: Map<String, Value>) -> Result<T, FrameError> {
    serde_json::from_value(Value::Object(fields)).map_err(|e| malformed(kind, e.to_string()))
}

fn optional<T: serde::de::DeserializeOwned>(
    kind: &str,
    field: Option<Value>,
) -> Result<Option<T>, FrameError> {
    field.map_or(Ok(None), |value| serde_json::from_value(value).map_err(|e| malformed(kind, e.to_string())))
}

fn malformed(kind: &str, reason: impl Into<String>) -> FrameError {
    FrameError::Malformed { frame: kind.to_owned(), reason: reason.into().chars().take(200).collect() }
}

/// Third-party clients write `name` and `capabilities` beside the other members of `auth`.
fn lift_flat_metadata(fields: &mut Map<String, Value>) {
    if fields.get("metadata").is_some_and(|m| !m.is_null()) {
        return;
    }
    let lifted: Map<String, Value> =
        ["name", "framework", "capabilities", "bio", "interests", "version", "agentCardUrl"]
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), fields.get(key)?.clone())))
            .collect();
    fields.insert("metadata".into(), Value::Object(lifted));
}

/// Missing, null and wrongly typed optional members all read as absent: an optional member never fails a frame.
fn or_default<'de, D: Deserializer<'de>, T: serde::de::DeserializeOwned + Default>(
    d: D,
) -> Result<T, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(d)?).unwrap_or_default())
}

fn decode_b64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

fn encode_b64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests;
