//! What a link is told and what it says: configuration, states, effects.

use super::Ticket;
use crate::v1::envelope::Envelope;
use crate::v1::frames::{ErrorCode, Metadata, RegistryWish, RelayError, Visibility};
use crate::{Fingerprint, MessageId};

/// How a link introduces itself.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `ws://…/v1/connect` or `wss://…`.
    pub url: String,
    /// What the agent tells about itself.
    pub metadata: Metadata,
    /// Who can find it.
    pub visibility: Visibility,
    /// Registry wish, if any.
    pub registry: Option<RegistryWish>,
    /// Whether to ask for presence of everyone after login.
    pub watch_presence: bool,
}

/// Number of a connection attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub(super) u64);

/// Where the link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Switched off.
    Stopped,
    /// A socket is being opened.
    Connecting,
    /// The socket is open, the login is not finished.
    Authenticating,
    /// Messages flow.
    Ready {
        /// Since when, Unix ms.
        since: i64,
    },
    /// Waiting for the next attempt.
    Waiting {
        /// Why.
        why: Wait,
        /// When it is over, Unix ms.
        until: i64,
    },
    /// Final: another process or machine uses the identity.
    Displaced,
    /// Final: the relay refuses the login.
    AuthFailed,
}

/// Why the link waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// An attempt failed or the link broke.
    Backoff,
    /// The relay announced its restart.
    RelayRestart,
    /// The relay banned this identity.
    Banned,
    /// The relay asked for a signature over a text that must not be signed.
    BadChallenge,
    /// Another connection took the identity once.
    Displaced,
}

impl LinkState {
    /// Word for logs and status.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Connecting => "connecting",
            Self::Authenticating => "authenticating",
            Self::Ready { .. } => "connected",
            Self::Waiting { why: Wait::Backoff | Wait::RelayRestart, .. } => "backoff",
            Self::Waiting { why: Wait::Banned, .. } => "banned_until",
            Self::Waiting { why: Wait::BadChallenge, .. } => "bad_challenge",
            Self::Waiting { why: Wait::Displaced, .. } | Self::Displaced => "displaced",
            Self::AuthFailed => "auth-failed",
        }
    }

    /// Whether the link stays so until somebody calls [`Client::start`](super::Client::start).
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Stopped | Self::Displaced | Self::AuthFailed)
    }
}

/// A transition, for the log and the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkChange {
    /// The new state.
    pub state: LinkState,
    /// When, Unix ms.
    pub at: i64,
    /// WebSocket close code or error code, if one was the cause.
    pub code: Option<String>,
    /// Words of the relay or of the transport, ≤ 300 characters.
    pub reason: Option<String>,
}

/// What became of an outgoing message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryEvent {
    /// Written to the socket.
    Written,
    /// The relay holds it for this many seconds.
    Queued {
        /// Announced life, s.
        ttl: Option<u64>,
    },
    /// Written to the recipient's socket, or taken by the recipient, depending on the relay.
    Delivered,
    /// The relay saw the id before: the message went through earlier.
    Replay,
    /// The relay refuses it.
    Rejected {
        /// Code, when the refusal came as an `error` frame.
        code: Option<ErrorCode>,
        /// Words of the relay, ≤ 300 characters.
        reason: String,
    },
    /// The relay gave it up.
    Expired,
    /// The recipient's own node took it, without a relay.
    TakenByPeer,
    /// It waits in a file for a recipient of this host that is down.
    Dropped,
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Open a socket; report with [`Client::handle_connected`](super::Client::handle_connected) or [`Client::handle_closed`](super::Client::handle_closed).
    Connect {
        /// Number of the attempt, given back with every report.
        connection: ConnectionId,
        /// Where.
        url: String,
    },
    /// Write a text message. When `message` is set, report [`Client::handle_written`](super::Client::handle_written) after it left.
    Send {
        /// On which connection.
        connection: ConnectionId,
        /// The frame.
        text: String,
        /// The message in it.
        message: Option<MessageId>,
    },
    /// Close the socket. Its end need not be reported.
    Close {
        /// Which connection.
        connection: ConnectionId,
        /// WebSocket close code.
        code: u16,
    },
    /// Commit the envelope to the spool, then report [`Client::spooled`](super::Client::spooled): only that lets the acknowledgement out. A
    /// store that fails is tried again; until then neither an acknowledgement nor a pong leaves.
    Store {
        /// Given back with the report.
        ticket: Ticket,
        /// As received.
        envelope: Envelope,
    },
    /// Something happened to an outgoing message.
    Delivery {
        /// Recipient, when the message was sent over this connection.
        to: Option<Fingerprint>,
        /// The message.
        message_id: MessageId,
        /// What happened.
        event: DeliveryEvent,
    },
    /// The link moved to another state.
    Link(LinkChange),
    /// [`Client::agents`](super::Client::agents) changed.
    AgentsChanged,
    /// The relay issued a registry token.
    RegistryToken {
        /// Bearer token.
        token: String,
        /// End of life, Unix ms, if announced.
        expires: Option<i64>,
        /// `listed`, `not_listed` or `updated`.
        status: Option<String>,
    },
    /// The relay complains about something that is not a message.
    RelayError(RelayError),
}

/// Why a message was not taken for sending. It stays in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendRefused {
    /// The link is not ready.
    #[error("the link to the relay is down")]
    NotReady,
    /// [`super::MAX_IN_FLIGHT`] messages wait for their acknowledgement.
    #[error("too many messages wait for the relay")]
    Busy,
    /// Above [`crate::v1::MAX_ENVELOPE`], or without a valid header.
    #[error("the envelope is too large or malformed")]
    Unsendable,
}
