//! Messages and what became of them.

use serde::{Deserialize, Serialize};

use super::{FORMAT_V2, FrameId, Target};
use crate::v2::{Blob, Code, ThreadTag};

/// Default delivery credit.
pub const DEFAULT_WINDOW: u16 = 64;

/// Most delivery ids in one TAKEN.
pub const MAX_TAKEN: usize = 256;

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_default_format(value: &u8) -> bool {
    *value == FORMAT_V2
}

fn default_format() -> u8 {
    FORMAT_V2
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
