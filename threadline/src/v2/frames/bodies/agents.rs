//! Who is there, and what is known of agents.

use serde::{Deserialize, Serialize};

use super::{Role, SignedBytes, Target, Visibility, is_false, is_zero};
use crate::v2::{Bin, Blob, DeviceId, Key};

/// Most keys in one WATCH.
pub const MAX_WATCHED: usize = 512;

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

/// Leaves an address record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddrPut {
    /// The record.
    pub rec: Blob,
    /// Its signature.
    pub s: Bin<64>,
}
