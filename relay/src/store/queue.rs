//! Operations on the queue as data, and their answers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use threadline::v1::frames::{Metadata, Visibility};
use threadline::{Fingerprint, MessageId};

use super::blob_note::{BlobNote, RelayName};
use super::registry::devices::{DeviceAnswer, DeviceOp};

/// Limits of custody (`relay.md` §7.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueRules {
    /// The configured limits.
    pub queue: crate::config::Queue,
}

/// A message to take into custody.
#[derive(Debug, Clone)]
pub struct Accept {
    /// Number of the message, higher than every earlier one.
    pub seq: u64,
    /// Who sent it.
    pub sender: Fingerprint,
    /// Who shall get it.
    pub recipient: Fingerprint,
    /// Id, unique per sender and recipient.
    pub id: MessageId,
    /// The envelope as received: JSON of v1, or the MessagePack of v2.
    pub body: Arc<[u8]>,
    /// Now, in Unix milliseconds.
    pub now_ms: i64,
    /// When it is given up, in Unix milliseconds.
    pub expires_ms: i64,
    /// Whether it says that it is control mail; it is, if its sender is a correspondent of the recipient.
    pub control: bool,
}

/// What became of a message that was seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Never seen, or forgotten.
    Unknown,
    /// In custody until the given Unix millisecond.
    Queued {
        /// Its number.
        seq: u64,
        /// When it is given up.
        expires_ms: i64,
    },
    /// Confirmed by the recipient.
    Delivered,
    /// The id is taken by other bytes.
    OtherBytes,
}

/// Which limit of custody refuses a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueFull {
    /// Messages of one sender for one recipient.
    Sender,
    /// Messages for one recipient, or the share of strangers in them.
    Recipient,
    /// Bytes for one recipient.
    Bytes,
}

/// The outcome of [`QueueOp::Accept`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Stored.
    Stored {
        /// The number under which it is read and confirmed.
        seq: u64,
        /// Whether the recipient wrote to the sender in the last 30 days.
        reply: bool,
        /// Whether nothing else was waiting for the recipient.
        first: bool,
    },
    /// Seen before; nothing was changed. Never [`Standing::Unknown`].
    Repeat(Standing),
    /// A limit refuses it.
    Full(QueueFull),
}

/// A message in custody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Number of the message.
    pub seq: u64,
    /// Who sent it.
    pub sender: Fingerprint,
    /// Its id.
    pub id: MessageId,
    /// The envelope.
    pub body: Arc<[u8]>,
    /// When it was stored, in Unix milliseconds.
    pub stored_ms: i64,
    /// When it is given up, in Unix milliseconds.
    pub expires_ms: i64,
}

/// A message that left custody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departed {
    /// Who sent it.
    pub sender: Fingerprint,
    /// Who should have got it.
    pub recipient: Fingerprint,
    /// Its id.
    pub id: MessageId,
    /// When it was stored, in Unix milliseconds.
    pub stored_ms: i64,
    /// Bytes of its envelope.
    pub size: u64,
    /// Whether nothing else is waiting for the recipient.
    pub last: bool,
}

/// Which of an agent's sessions: that of a device, or `None` for the one that speaks v1.
pub type Slot = Option<[u8; 16]>;

/// Since when a device takes the mail. Of two the greater does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lead {
    /// Its lease epoch.
    pub lease: u64,
    /// Since when, in Unix milliseconds.
    pub since_ms: i64,
}

/// A session of an agent, as other relays of a cluster hear of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnlineAgent {
    /// Its key.
    pub key: [u8; 32],
    /// Its address.
    pub address: Fingerprint,
    /// Who may know that it is there.
    pub visibility: Visibility,
    /// Whether it is in the directory.
    pub listed: bool,
    /// When it was first here, in Unix milliseconds.
    pub first_seen_ms: i64,
    /// Since when it is there, in Unix milliseconds.
    pub since_ms: i64,
    /// What it tells about itself.
    pub metadata: Metadata,
    /// Which of its sessions this is.
    #[serde(default)]
    pub slot: Slot,
    /// Of the device that takes the mail.
    #[serde(default)]
    pub lead: Option<Lead>,
    /// Who may know that it is there even when it is private.
    #[serde(default)]
    pub siblings: Vec<Fingerprint>,
    /// The relay that has it, of sessions on other relays.
    #[serde(skip)]
    pub relay: RelayName,
}

/// Operations on the queue.
#[derive(Debug, Clone)]
pub enum QueueOp {
    /// Takes a message into custody if it is new and the limits allow.
    Accept(Accept),
    /// What is known of a message, and whether it would be a reply.
    Standing {
        /// Who sent it.
        sender: Fingerprint,
        /// Who should get it.
        recipient: Fingerprint,
        /// Its id.
        id: MessageId,
        /// Its envelope.
        body: Arc<[u8]>,
        /// Now, in Unix milliseconds.
        now_ms: i64,
    },
    /// An agent logged in: mail for it is no longer mail for an unknown.
    Arrived {
        /// Its address.
        recipient: Fingerprint,
        /// Whom it names as belonging to it: they are its correspondents.
        siblings: Vec<Fingerprint>,
        /// Now, in Unix milliseconds.
        now_ms: i64,
    },
    /// A session began or changed. Only of interest to an engine that several relays share.
    Online(Box<OnlineAgent>),
    /// A session ended and nobody followed. Only of interest to an engine that several relays share.
    Offline {
        /// Whose.
        address: Fingerprint,
        /// Which.
        slot: Slot,
    },
    /// Says something of a blob to another relay, which may not hear it.
    Blob(RelayName, BlobNote),
    /// Devices, keys and leases where several relays share them. What one relay has for itself is in its registry.
    Devices(Box<DeviceOp>),
    /// Reads waiting messages in order of acceptance.
    Backlog {
        /// Whose.
        recipient: Fingerprint,
        /// Only messages with a higher number.
        after: u64,
        /// Now, in Unix milliseconds; expired ones are left out.
        now_ms: i64,
        /// Most messages.
        limit: u32,
        /// Most bytes (at least one message is returned).
        bytes: u64,
    },
    /// The recipient confirmed: the messages leave custody.
    Confirm {
        /// Whose they were.
        recipient: Fingerprint,
        /// Numbers.
        seqs: Vec<u64>,
        /// Now, in Unix milliseconds.
        now_ms: i64,
    },
    /// Gives up what waits for one recipient, oldest first.
    Drop {
        /// Whose.
        recipient: Fingerprint,
        /// Now, in Unix milliseconds.
        now_ms: i64,
        /// Most messages.
        limit: u32,
    },
    /// Looks at the queue for an operator; changes nothing.
    Look {
        /// Most recipients in each list.
        most: u32,
        /// A recipient of interest.
        of: Option<Fingerprint>,
    },
    /// Removes expired messages and old memories.
    Expire {
        /// Now, in Unix milliseconds.
        now_ms: i64,
        /// Most messages.
        limit: u32,
    },
}

impl QueueOp {
    /// Bytes of mail that the operation stores.
    pub fn weight(&self) -> usize {
        if let Self::Accept(message) = self { message.body.len() } else { 0 }
    }

    /// Whose mail the operation is about; operations on the mail of one recipient keep their order.
    pub fn mailbox(&self) -> Option<Fingerprint> {
        match self {
            Self::Accept(message) => Some(message.recipient),
            Self::Online(agent) => Some(agent.address),
            Self::Offline { address, .. } => Some(*address),
            Self::Standing { recipient, .. }
            | Self::Arrived { recipient, .. }
            | Self::Backlog { recipient, .. }
            | Self::Confirm { recipient, .. }
            | Self::Drop { recipient, .. } => Some(*recipient),
            // Whoever changes one of them says what it was before.
            Self::Expire { .. } | Self::Look { .. } | Self::Devices(_) | Self::Blob(..) => None,
        }
    }

    /// Whether the operation only reads and may overtake writes, so that it works on a full disk.
    pub fn is_read(&self) -> bool {
        matches!(self, Self::Backlog { .. } | Self::Look { .. })
    }
}

/// Answers of the queue, in the order of [`QueueOp`].
#[derive(Debug, Clone)]
pub enum QueueAnswer {
    /// To [`QueueOp::Accept`].
    Accepted(Accepted),
    /// To [`QueueOp::Standing`].
    Standing {
        /// What is known.
        standing: Standing,
        /// Whether the recipient wrote to the sender in the last 30 days.
        reply: bool,
    },
    /// To [`QueueOp::Arrived`], [`QueueOp::Online`], [`QueueOp::Offline`] and [`QueueOp::Blob`].
    Done,
    /// To [`QueueOp::Backlog`].
    Backlog {
        /// The messages.
        rows: Vec<Row>,
        /// Whether more are waiting behind them.
        more: bool,
    },
    /// To [`QueueOp::Confirm`]: those that were still in custody.
    Confirmed(Vec<Departed>),
    /// To [`QueueOp::Drop`].
    Dropped(Vec<Departed>),
    /// To [`QueueOp::Look`].
    Look(QueueLook),
    /// To [`QueueOp::Expire`].
    Expired(Vec<Departed>),
    /// To [`QueueOp::Devices`].
    Devices(DeviceAnswer),
}

/// What waits for one recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Whose.
    pub recipient: Fingerprint,
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The queue as an operator sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueLook {
    /// When the oldest waiting message was stored, in Unix milliseconds.
    pub oldest_ms: Option<i64>,
    /// Recipients with most messages, most first.
    pub by_messages: Vec<Depth>,
    /// Recipients with most bytes, most first.
    pub by_bytes: Vec<Depth>,
    /// The recipient of interest.
    pub of: Option<Depth>,
}

/// Totals of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueTotals {
    /// Recipients with waiting mail.
    pub recipients: u64,
    /// Waiting messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}
