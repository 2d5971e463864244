//! What the core hears.

use std::sync::Arc;

use threadline::Fingerprint;
use threadline::identity::PublicIdentity;
use threadline::v1::envelope::{self, Envelope, Header};
use threadline::v1::frames::{ClientFrame, FrameError};

use super::{ClusterEvent, ConnId, V2Carrier, V2Frame, scan};
use crate::store::{Departed, StoreAnswer, StoreFailed};

/// Where a connection comes from: IPv4 address or IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// The address or network; equal for connections that share limits.
    pub net: [u8; 8],
    /// Pseudonym under which the source is stored.
    pub pseudonym: [u8; 16],
}

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// A socket was upgraded.
    Opened {
        /// Its number.
        conn: ConnId,
        /// Where it comes from.
        source: Source,
    },
    /// A connection that speaks v2 begins.
    OpenedV2 {
        /// Its number.
        conn: ConnId,
        /// Where it comes from.
        source: Source,
        /// What carries it.
        carrier: V2Carrier,
    },
    /// A message arrived.
    Received {
        /// On which connection.
        conn: ConnId,
        /// What it says.
        inbound: Inbound,
    },
    /// A socket is gone.
    Closed {
        /// Its number.
        conn: ConnId,
    },
    /// A storage operation ended.
    Stored {
        /// Ticket of the operation.
        ticket: u64,
        /// Its answer; when it failed, nothing of it is stored.
        answer: Result<StoreAnswer, StoreFailed>,
    },
    /// Whether the disk has room for new custody.
    Custody {
        /// Whether messages may be accepted.
        open: bool,
    },
    /// An identity was banned by a person.
    Banned {
        /// Its address.
        address: Fingerprint,
        /// When the ban ends, in Unix milliseconds.
        until_ms: i64,
    },
    /// The A2A bridge begins or ends to wait for an agent in a conversation.
    BridgeAwaits {
        /// The agent.
        agent: Fingerprint,
        /// Thread id.
        thread: String,
        /// Whether it waits.
        waits: bool,
    },
    /// An agent asked the directory for an address that was never here.
    UnknownLookup {
        /// The agent's key.
        key: [u8; 32],
    },
    /// An operator emptied a mailbox.
    Dropped {
        /// What was in it.
        gone: Vec<Departed>,
    },
    /// An agent changed its entry by REST.
    Listed {
        /// Its key.
        key: [u8; 32],
        /// Whether it is in the directory now.
        listed: bool,
    },
    /// Another relay of the cluster, or the engine that they share, has news.
    Cluster(ClusterEvent),
    /// Time has passed.
    Tick,
}

/// A message of a client, read.
#[derive(Debug)]
pub struct Inbound {
    /// Bytes of it.
    pub bytes: usize,
    /// The frame, or why it is none.
    pub content: Result<InboundFrame, FrameError>,
}

/// A frame of a client; messages are prepared for storage.
#[derive(Debug)]
pub enum InboundFrame {
    /// A message in its envelope.
    Message(Box<Submission>),
    /// Any other frame.
    Other(Box<ClientFrame>),
    /// A frame of v2.
    V2(Box<V2Frame>),
    /// A ping or pong of the carrier.
    Control,
}

/// An envelope as it will be stored.
#[derive(Debug)]
pub struct Submission {
    /// Who writes to whom, or the id of what is malformed, where it has one.
    pub header: Result<Header, Option<String>>,
    /// What is known of its signature.
    pub signature: Signature,
    /// The envelope as it came.
    pub body: Arc<[u8]>,
}

/// What is known of the signature of an envelope.
#[derive(Debug)]
pub enum Signature {
    /// It needs none.
    None,
    /// A sealed envelope of v1, to be checked with the key of the session.
    V1(Box<Envelope>),
    /// An envelope of v2: whether it was signed by the key in its header.
    V2(bool),
}

impl Signature {
    /// Whether the envelope was signed by whom it needs to be.
    pub(super) fn holds(&self, key: &[u8; 32]) -> bool {
        match self {
            Self::None => true,
            Self::V1(sealed) => PublicIdentity::from_bytes(key)
                .is_ok_and(|key| envelope::check_signature(sealed, &key).is_ok()),
            Self::V2(holds) => *holds,
        }
    }
}

impl Submission {
    /// Prepares an envelope.
    pub fn new(envelope: Envelope) -> Self {
        let body = envelope.to_bytes().into();
        let related = || envelope.text("messageId").filter(|id| id.len() <= 128).map(str::to_owned);
        let header = envelope.header().map_err(|_| related());
        let signature =
            if envelope.is_sealed() { Signature::V1(Box::new(envelope)) } else { Signature::None };
        Self { header, signature, body }
    }

    /// Takes an envelope as the bytes that it is.
    pub(super) fn of_bytes(
        header: Result<Header, Option<String>>,
        signature: Signature,
        bytes: Vec<u8>,
    ) -> Self {
        Self { header, signature, body: bytes.into() }
    }

    /// Takes an envelope that is not sealed as the text that it is.
    pub(super) fn of_text(header: Header, text: &str) -> Self {
        Self { header: Ok(header), signature: Signature::None, body: text.as_bytes().into() }
    }
}

impl Inbound {
    /// Reads a text message; pure and the only costly part of taking a frame.
    pub fn read(text: &str) -> Self {
        if let Some(frame) = scan::frame(text) {
            return Self { bytes: text.len(), content: Ok(frame) };
        }
        let content = ClientFrame::parse(text).map(|frame| match frame {
            ClientFrame::Message(envelope) => InboundFrame::Message(Box::new(Submission::new(envelope))),
            other => InboundFrame::Other(Box::new(other)),
        });
        Self { bytes: text.len(), content }
    }
}
