//! Keys that devices leave for others.

use serde::{Deserialize, Serialize};

use super::{SignedBytes, Target};
use crate::v2::{Bin, Blob};

/// Most one-time keys in one KEYS_PUT.
pub const MAX_ONE_TIME_KEYS: usize = 100;

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
