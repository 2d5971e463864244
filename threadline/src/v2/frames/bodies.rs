//! Bodies of the frames. Members are named as they travel.

mod agents;
mod blobs;
mod keys;
mod login;
mod messages;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::v2::{Bin, Blob, Code, Id, Key};

pub use agents::*;
pub use blobs::*;
pub use keys::*;
pub use login::*;
pub use messages::*;

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// `env` is a v2 envelope.
pub const FORMAT_V2: u8 = 2;

/// `env` is the JSON of a v1 envelope.
pub const FORMAT_V1: u8 = 1;

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
