//! What fits into no envelope.

use serde::{Deserialize, Serialize};

use crate::v2::{Bin, Blob, Key};

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
