//! Bodies of the frames. Members are named as they travel.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::v2::{Bin, Blob, Code, DeviceId, Id, Key, ThreadTag};

/// Default delivery credit.
pub const DEFAULT_WINDOW: u16 = 64;
/// Most delivery ids in one TAKEN.
pub const MAX_TAKEN: usize = 256;
/// Most one-time keys in one KEYS_PUT.
pub const MAX_ONE_TIME_KEYS: usize = 100;
/// Most keys in one WATCH.
pub const MAX_WATCHED: usize = 512;

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_default_format(value: &u8) -> bool {
    *value == FORMAT_V2
}

fn default_format() -> u8 {
    FORMAT_V2
}

/// `env` is a v2 envelope.
pub const FORMAT_V2: u8 = 2;
/// `env` is the JSON of a v1 envelope.
pub const FORMAT_V1: u8 = 1;

/// What a session may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes deliveries.
    Active,
    /// Watches the active device.
    Standby,
    /// Fetches a registry token and looks up.
    Token,
}

/// Who can find an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// In the directory.
    Public,
    /// By address.
    Unlisted,
    /// By siblings and named keys.
    Private,
}

/// A recipient: a key, or the address that begins it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The whole key.
    Key(Key),
    /// Its first 16 bytes.
    Address(Bin<16>),
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Key(key) => key.serialize(serializer),
            Self::Address(address) => address.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Blob::deserialize(deserializer)?.0;
        if let Ok(key) = <[u8; 32]>::try_from(bytes.as_slice()) {
            return Ok(Self::Key(Bin(key)));
        }
        let address = <[u8; 16]>::try_from(bytes.as_slice());
        address.map(|a| Self::Address(Bin(a))).map_err(|_| D::Error::custom("neither key nor address"))
    }
}

/// Id of a message in a frame: 16 bytes, or the text of a v1 id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FrameId {
    /// v2.
    Bin(Id),
    /// v1.
    Text(String),
}

impl From<Id> for FrameId {
    fn from(id: Id) -> Self {
        Self::Bin(id)
    }
}

/// Bytes with the signature over them.
pub type SignedBytes = (Blob, Bin<64>);

/// First words of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// 2.
    pub v: u8,
    /// The device.
    pub dev: DeviceId,
    /// Its certificate.
    pub cert: Blob,
    /// Signature of the certificate.
    pub cs: Bin<64>,
    /// The device list.
    pub list: Blob,
    /// Signature of the list.
    pub ls: Bin<64>,
    /// Name, ≤ 64.
    #[serde(default)]
    pub name: String,
    /// Framework.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fw: Option<String>,
    /// Version of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ver: Option<String>,
    /// Capabilities, ≤ 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caps: Vec<String>,
    /// ≤ 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bio: Option<String>,
    /// Interests, ≤ 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Who can find it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vis: Option<Visibility>,
    /// Whether it wants an entry in the directory.
    #[serde(default, skip_serializing_if = "is_false")]
    pub listed: bool,
    /// What it wants to do.
    pub role: Role,
    /// Keys that may see it even when private, ≤ 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sib: Vec<Key>,
    /// A vouch for this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vouch: Option<SignedBytes>,
    /// Delivery credit; [`DEFAULT_WINDOW`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub win: Option<u16>,
    /// Lease epoch, 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ep: u64,
    /// Whether v1 logins with this key are to be refused.
    #[serde(default, skip_serializing_if = "is_false")]
    pub nov1: bool,
    /// Features.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub feat: Vec<String>,
}

impl Hello {
    /// Whether its lists and texts keep to their limits.
    pub fn is_within_limits(&self) -> bool {
        let short = |text: &Option<String>, limit: usize| text.as_ref().is_none_or(|t| t.len() <= limit);
        self.v == 2
            && self.name.len() <= 256
            && short(&self.fw, 64)
            && short(&self.ver, 64)
            && self.bio.as_ref().is_none_or(|bio| bio.chars().count() <= 500)
            && self.caps.len() <= 20
            && self.tags.len() <= 20
            && self.sib.len() <= 16
            && self.feat.len() <= 32
    }
}

/// Limits a relay tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayLimits {
    /// Largest envelope, bytes.
    pub env: u64,
    /// Longest life, s.
    pub ttl_s: u64,
    /// Messages per minute.
    pub msg_min: u64,
    /// Messages per hour.
    pub msg_hour: u64,
    /// Discoveries per minute.
    pub disc_min: u64,
}

/// What waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSize {
    /// Messages.
    pub n: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The session is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Session id.
    pub sid: Bin<16>,
    /// The relay's key.
    pub relay: Key,
    /// Unix ms.
    pub now: u64,
    /// Limits.
    pub lim: RelayLimits,
    /// What waits for this key.
    pub q: QueueSize,
    /// Registry token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tok: Option<String>,
    /// End of the token, Unix ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tok_x: Option<u64>,
    /// How long this key is known here, ms.
    #[serde(default)]
    pub age_ms: u64,
    /// Highest certificate number and key id of this device.
    #[serde(default)]
    pub hw: (u64, u64),
    /// Highest lease epoch seen.
    #[serde(default)]
    pub ep: u64,
    /// What is granted.
    pub role: Role,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// The relay's proof over WebSocket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rs: Option<Bin<64>>,
}

/// No session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// Why.
    pub code: Code,
    /// Not before this, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_ms: Option<u64>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// The relay's nonce over WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// Nonce.
    pub n: Bin<32>,
    /// The relay's key.
    pub rk: Key,
    /// Unix ms.
    pub ts: u64,
}

/// The client's proof over WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The client's key.
    pub k: Key,
    /// The client's nonce.
    pub cn: Bin<32>,
    /// The name that was dialled.
    pub host: String,
    /// Signature.
    pub s: Bin<64>,
}

/// A puzzle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pow {
    /// Window.
    pub e: String,
    /// Leading zero bits.
    pub bits: u8,
    /// Challenge.
    pub h: Bin<16>,
}

/// Its solution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowDone {
    /// Window.
    pub e: String,
    /// Nonce.
    pub n: Bin<8>,
}

/// Are you there?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Random, comes back.
    pub t: u64,
    /// Asks for a fresh registry token.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tok: bool,
}

/// Yes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// From the ping.
    pub t: u64,
    /// Unix ms.
    #[serde(default)]
    pub now: u64,
    /// Highest lease epoch.
    #[serde(default)]
    pub ep: u64,
    /// Role of this session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Registry token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tok: Option<String>,
    /// End of the token, Unix ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tok_x: Option<u64>,
}

/// A message to somebody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Send {
    /// Links the answer.
    pub rid: u32,
    /// Message id.
    pub id: FrameId,
    /// Recipient.
    pub to: Target,
    /// Thread tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tt: Option<ThreadTag>,
    /// [`FORMAT_V2`] or [`FORMAT_V1`].
    #[serde(default = "default_format", skip_serializing_if = "is_default_format")]
    pub fmt: u8,
    /// The envelope.
    pub env: Blob,
    /// Life, s.
    pub ttl: u64,
    /// 0 to 3.
    #[serde(default)]
    pub pri: u8,
}

/// How safely a message is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Custody {
    /// On the disk of one machine.
    Durable,
    /// On several machines.
    Replicated,
    /// Committed by the recipient itself.
    Inbox,
}

/// Where an accepted message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// A session is there.
    Live,
    /// It waits.
    Queued,
}

/// The relay keeps a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// From the SEND.
    pub rid: u32,
    /// Message id.
    pub id: FrameId,
    /// How safely.
    pub cu: Custody,
    /// Whether somebody is there.
    pub st: Standing,
    /// Until when, Unix ms.
    pub exp: u64,
    /// Whether it was known.
    #[serde(default)]
    pub dup: bool,
}

/// The relay does not keep a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// From the SEND.
    pub rid: u32,
    /// Message id.
    pub id: FrameId,
    /// Why.
    pub code: Code,
    /// When a repetition can help, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_ms: Option<u64>,
}

/// The weakest hop of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// v2 from the sender on.
    V2,
    /// A v1 session.
    V1,
    /// The bridge.
    A2a,
}

/// A message for this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deliver {
    /// Delivery id.
    pub did: u64,
    /// Message id.
    pub id: FrameId,
    /// Sender: a key, or what of it is known of a v1 sender.
    pub from: Target,
    /// Thread tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tt: Option<ThreadTag>,
    /// [`FORMAT_V2`] or [`FORMAT_V1`].
    #[serde(default = "default_format", skip_serializing_if = "is_default_format")]
    pub fmt: u8,
    /// The envelope.
    pub env: Blob,
    /// Stored, Unix ms.
    pub at: u64,
    /// Which attempt.
    #[serde(rename = "try")]
    pub attempt: u16,
    /// The weakest hop.
    pub via: Via,
}

/// Deliveries that the node committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// ≤ [`MAX_TAKEN`].
    pub dids: Vec<u64>,
}

/// A delivery that the node does not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotTaken {
    /// Which.
    pub did: u64,
    /// Why.
    pub code: Code,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The recipient took it.
    Taken,
    /// Its life ended.
    Expired,
    /// It was given up.
    Dropped,
}

/// News of a message of ours; a courtesy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Message id.
    pub id: FrameId,
    /// What happened.
    pub st: Outcome,
    /// Unix ms.
    pub at: u64,
}

/// Changes this session's standing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceSet {
    /// New role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Lease epoch for the role.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ep: u64,
    /// Who can find it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vis: Option<Visibility>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}

/// Asks for presence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// ≤ [`MAX_WATCHED`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Key>,
    /// All public agents.
    #[serde(default, skip_serializing_if = "is_false")]
    pub all: bool,
}

/// Somebody came or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Who.
    pub key: Key,
    /// Which device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev: Option<DeviceId>,
    /// Whether it is there.
    pub on: bool,
    /// Its role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Unix ms.
    pub at: u64,
}

/// Asks for one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// Links the answer.
    pub rid: u32,
    /// Whom.
    pub to: Target,
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// From the LOOKUP.
    pub rid: u32,
    /// Its key.
    pub key: Key,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Certificates of its devices.
    #[serde(default)]
    pub certs: Vec<SignedBytes>,
    /// Its device list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<SignedBytes>,
    /// Its address record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<SignedBytes>,
    /// Whether it is there.
    pub on: bool,
    /// Spoken versions.
    #[serde(default)]
    pub proto: Vec<u8>,
    /// Relays it listens at.
    #[serde(default)]
    pub relays: Vec<String>,
}

/// Asks the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Search {
    /// Links the answer.
    pub rid: u32,
    /// Words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub q: Option<String>,
    /// Capability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<String>,
    /// Interest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub int: Option<String>,
    /// Framework.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fw: Option<String>,
    /// Only who is there, or only who is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<bool>,
    /// Continues an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cur: Option<String>,
    /// Most rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lim: Option<u16>,
}

/// A row of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundRow {
    /// Its key.
    pub key: Key,
    /// Its name.
    pub name: String,
    /// Framework, where it shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fw: Option<String>,
    /// Capabilities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caps: Vec<String>,
    /// Interests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What it says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bio: Option<String>,
    /// Whether it is there.
    pub on: bool,
    /// When it was last there, Unix ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<u64>,
}

/// An answer of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// From the SEARCH.
    pub rid: u32,
    /// Rows here.
    pub n: u64,
    /// Rows in all.
    pub total: u64,
    /// The rows.
    #[serde(default)]
    pub rows: Vec<FoundRow>,
    /// Continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cur: Option<String>,
}

/// Leaves a public vouch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VouchPut {
    /// The vouch and its signature.
    pub vouch: SignedBytes,
}

/// Asks for chains of vouches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainsGet {
    /// Links the answer.
    pub rid: u32,
    /// Begin.
    pub from: Key,
    /// End.
    pub to: Key,
}

/// Chains of vouches, ≤ 4.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chains {
    /// From the request.
    pub rid: u32,
    /// Vouches in order.
    #[serde(default)]
    pub chains: Vec<Vec<SignedBytes>>,
}

/// Leaves keys to start sessions with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysPut {
    /// Certificate.
    pub cert: Blob,
    /// Its signature.
    pub cs: Bin<64>,
    /// Device list.
    pub list: Blob,
    /// Its signature.
    pub ls: Bin<64>,
    /// One-time keys, ≤ [`MAX_ONE_TIME_KEYS`].
    #[serde(default)]
    pub otks: Vec<SignedBytes>,
    /// Fallback key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fb: Option<SignedBytes>,
}

/// They are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysOk {
    /// One-time keys there.
    pub have: u16,
    /// Highest key id ever taken.
    pub hw: u64,
}

/// Asks for keys of somebody's devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysClaim {
    /// Links the answer.
    pub rid: u32,
    /// Whose.
    pub to: Target,
}

/// Certificate, signature, prekey, signature and kind of prekey.
pub type DeviceKeys = (Blob, Bin<64>, Blob, Bin<64>, u8);

/// One key per device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// From the claim.
    pub rid: u32,
    /// The devices.
    #[serde(default)]
    pub devs: Vec<DeviceKeys>,
    /// Device list.
    pub list: Blob,
    /// Its signature.
    pub ls: Bin<64>,
}

/// Wants to send a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobOpen {
    /// Request number, toward the relay: an ERROR names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rid: Option<u32>,
    /// Hash of the ciphertext.
    pub id: Bin<32>,
    /// Recipient.
    pub to: Key,
    /// Bytes.
    pub size: u64,
}

/// The other side is ready for more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobGo {
    /// Which blob.
    pub id: Bin<32>,
    /// Up to this byte, counted from its beginning.
    pub upto: u64,
}

/// A piece of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobData {
    /// Which blob.
    pub id: Bin<32>,
    /// The next piece.
    pub bytes: Blob,
}

/// The end of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobEnd {
    /// Hash of the ciphertext.
    pub hash: Bin<32>,
}

/// Leaves an address record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddrPut {
    /// The record.
    pub rec: Blob,
    /// Its signature.
    pub s: Bin<64>,
}

/// Connect elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoAway {
    /// `draining` or `rebalancing`.
    pub code: String,
    /// Within this time, ms.
    #[serde(default)]
    pub after_ms: u64,
    /// Other relays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alt: Vec<String>,
}

/// Something cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Of which request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rid: Option<u32>,
    /// Why.
    pub code: Code,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}
