//! Before a session, and what keeps it.

use serde::{Deserialize, Serialize};

use super::{SignedBytes, is_false, is_zero};
use crate::v2::{Bin, Blob, Code, DeviceId, Key};

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
