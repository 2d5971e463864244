//! Rows as the rest of the node sees them.

use rusqlite::Row;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};
use threadline::threads::ThreadState;
use threadline::{Fingerprint, MessageId, ThreadId, ThreadKey, TrustLevel};

macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant),*
        }

        impl $name {
            /// The text in the database and on the API.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// The value with this text.
            pub fn from_text(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(ToSqlOutput::from(self.as_str()))
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                let text = value.as_str()?;
                Self::from_text(text).ok_or_else(|| {
                    FromSqlError::Other(format!(concat!("{:?} is not a ", stringify!($name)), text).into())
                })
            }
        }
    };
}

text_enum! {
    /// Which way a message went.
    Direction {
        /// From the peer.
        In = "in",
        /// To the peer.
        Out = "out",
    }
}

text_enum! {
    /// Who minted the thread.
    Opener {
        /// This node.
        Us = "us",
        /// The other agent.
        Peer = "peer",
    }
}

text_enum! {
    /// Where a message is on its walk.
    MessageState {
        /// Inbound: waits for the owner. Outbound: the same.
        Held = "held",
        /// Inbound: durable, not routed yet.
        Stored = "stored",
        /// Inbound: durable in the session inbox.
        Queued = "queued",
        /// Inbound: a session or a waiting caller has it. Outbound: the peer processed it.
        Delivered = "delivered",
        /// Inbound: needs no answer, kept for the history.
        Noted = "noted",
        /// Outbound: in the outbox, handed to nobody yet.
        PendingSend = "pending-send",
        /// Outbound: written to a carrier.
        Sent = "sent",
        /// Outbound: someone else holds it.
        Accepted = "accepted",
        /// Refused by the owner or the peer.
        Rejected = "rejected",
        /// Too old.
        Expired = "expired",
        /// Given up.
        Failed = "failed",
    }
}

text_enum! {
    /// How sure the sender is (`threadline-wire.md` §2.5.1).
    Auth {
        /// The sender's key authenticated the bytes.
        E2e = "e2e",
        /// Only the relay vouches for the sender.
        Transport = "transport",
        /// A process of this account brought the message.
        LocalToken = "local-token",
        /// The sender's key signed the request that brought the message.
        Signed = "signed",
        /// Written by this node.
        Own = "own",
    }
}

text_enum! {
    /// What the owner is asked.
    ApprovalKind {
        /// A held inbound message.
        Message = "message",
        /// A stranger's first message.
        FirstContact = "first-contact",
        /// A held message of ours.
        Outbound = "outbound",
        /// A level that a session may not grant.
        TrustElevation = "trust-elevation",
        /// Switching the relay on from a session that read foreign text.
        Relay = "relay",
    }
}

text_enum! {
    /// Whether the owner answered.
    ApprovalStatus {
        /// Waits.
        Pending = "pending",
        /// Yes.
        Approved = "approved",
        /// No.
        Rejected = "rejected",
        /// Nobody answered in time.
        Expired = "expired",
    }
}

/// One row of `approvals`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// UUIDv7.
    pub id: String,
    /// What is asked.
    pub kind: ApprovalKind,
    /// About whom.
    pub peer: Fingerprint,
    /// The held message.
    pub message_id: Option<MessageId>,
    /// Its thread.
    pub thread_id: Option<ThreadId>,
    /// Its subject.
    pub subject: String,
    /// First 500 characters.
    pub preview: String,
    /// Facts that depend on the kind.
    pub details: serde_json::Value,
    /// Unix ms.
    pub created_at: i64,
    /// Unix ms.
    pub expires_at: i64,
    /// Whether it still waits.
    pub status: ApprovalStatus,
    /// Unix ms.
    pub decided_at: Option<i64>,
    /// `owner`, or `system` for an expiry.
    pub decided_by: Option<String>,
}

/// One row of `conversations`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Peer and thread id.
    pub key: ThreadKey,
    /// Where it stands.
    pub state: ThreadState,
    /// Sanitised subject of the first message.
    pub subject: String,
    /// Sanitised name of the peer when it was last heard.
    pub peer_name: String,
    /// Who minted it.
    pub opened_by: Opener,
    /// The peer-serving session that last worked on it.
    pub session_id: Option<String>,
    /// Topic that asked for it; the first value wins.
    pub origin_topic_id: Option<i64>,
    /// Session that opened it.
    pub origin_session: Option<String>,
    /// Turns in a row whose text repeats the one before.
    pub similar_turns: u32,
    /// Exempt from forgetting.
    pub pinned: bool,
    /// Whether the owner let this thread pass whatever the level.
    pub approved: bool,
    /// Messages ever stored.
    pub message_count: u32,
    /// Unix ms.
    pub created_at: i64,
    /// Unix ms.
    pub last_activity_at: i64,
    /// Unix ms.
    pub resolved_at: Option<i64>,
}

/// One row of `messages`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Row id: order of storing over all threads.
    pub row: i64,
    /// The other agent and the thread.
    pub key: ThreadKey,
    /// Id on the wire.
    pub id: MessageId,
    /// Which way.
    pub direction: Direction,
    /// Place in the thread, from 1.
    pub seq: i64,
    /// Payload type.
    pub kind: String,
    /// Text; absent after the thread was deleted.
    pub body: Option<String>,
    /// Sanitised subject.
    pub subject: String,
    /// Message that it answers.
    pub in_reply_to: Option<String>,
    /// Sender's clock, Unix ms.
    pub created_at: i64,
    /// Our clock, Unix ms.
    pub stored_at: i64,
    /// Carrier.
    pub transport: String,
    /// How sure the sender is.
    pub auth: Auth,
    /// Level of the peer when it came.
    pub trust: TrustLevel,
    /// Where it is.
    pub state: MessageState,
    /// Why it is there.
    pub reason: Option<String>,
    /// Session that wrote it.
    pub author_session: Option<String>,
}

/// Reads a column through `FromStr`.
pub(super) fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|e| conversion(row, column, e))
}

/// [`parsed`] for a column that may be empty.
pub(super) fn parsed_opt<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: Option<String> = row.get(column)?;
    text.map(|t| t.parse().map_err(|e| conversion(row, column, e))).transpose()
}

fn conversion<E: std::error::Error + Send + Sync + 'static>(
    row: &Row<'_>,
    column: &str,
    error: E,
) -> rusqlite::Error {
    let index = row.as_ref().column_index(column).unwrap_or_default();
    rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(error))
}

pub(super) fn key_of(row: &Row<'_>) -> rusqlite::Result<ThreadKey> {
    Ok(ThreadKey { peer: parsed(row, "peer_fp")?, thread: parsed(row, "thread_id")? })
}

const THREAD_STATES: [ThreadState; 8] = [
    ThreadState::Open,
    ThreadState::Active,
    ThreadState::AwaitingReply,
    ThreadState::Idle,
    ThreadState::Held,
    ThreadState::Resolved,
    ThreadState::Failed,
    ThreadState::Archived,
];

/// The text of a thread state, as in the database and on the API.
pub(super) const fn thread_state_text(state: ThreadState) -> &'static str {
    match state {
        ThreadState::Open => "open",
        ThreadState::Active => "active",
        ThreadState::AwaitingReply => "awaiting-reply",
        ThreadState::Idle => "idle",
        ThreadState::Held => "held",
        ThreadState::Resolved => "resolved",
        ThreadState::Failed => "failed",
        ThreadState::Archived => "archived",
    }
}

/// The thread state with this text.
pub(super) fn thread_state_of(text: &str) -> Option<ThreadState> {
    THREAD_STATES.into_iter().find(|state| thread_state_text(*state) == text)
}

pub(super) fn thread_state(row: &Row<'_>) -> rusqlite::Result<ThreadState> {
    let text: String = row.get("state")?;
    thread_state_of(&text)
        .ok_or_else(|| FromSqlError::Other(format!("{text:?} is not a thread state").into()).into())
}

impl Thread {
    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            key: key_of(row)?,
            state: thread_state(row)?,
            subject: row.get("subject")?,
            peer_name: row.get("peer_name")?,
            opened_by: row.get("opened_by")?,
            session_id: row.get("session_id")?,
            origin_topic_id: row.get("origin_topic_id")?,
            origin_session: row.get("origin_session")?,
            similar_turns: row.get("similar_turns")?,
            pinned: row.get("pinned")?,
            approved: row.get("approved")?,
            message_count: row.get("message_count")?,
            created_at: row.get("created_at")?,
            last_activity_at: row.get("last_activity_at")?,
            resolved_at: row.get("resolved_at")?,
        })
    }
}

impl StoredMessage {
    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            row: row.get("id")?,
            key: key_of(row)?,
            id: parsed(row, "message_id")?,
            direction: row.get("direction")?,
            seq: row.get("seq")?,
            kind: row.get("type")?,
            body: row.get("body")?,
            subject: row.get("subject")?,
            in_reply_to: row.get("in_reply_to")?,
            created_at: row.get("created_at")?,
            stored_at: row.get("stored_at")?,
            transport: row.get("transport")?,
            auth: row.get("auth")?,
            trust: parsed(row, "trust_at_receipt")?,
            state: row.get("state")?,
            reason: row.get("reason")?,
            author_session: row.get("author_session")?,
        })
    }
}

impl Approval {
    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let details: String = row.get("details")?;
        Ok(Self {
            id: row.get("id")?,
            kind: row.get("kind")?,
            peer: parsed(row, "peer_fp")?,
            message_id: parsed_opt(row, "message_id")?,
            thread_id: parsed_opt(row, "thread_id")?,
            subject: row.get("subject")?,
            preview: row.get("preview")?,
            details: serde_json::from_str(&details).map_err(|e| conversion(row, "details", e))?,
            created_at: row.get("created_at")?,
            expires_at: row.get("expires_at")?,
            status: row.get("status")?,
            decided_at: row.get("decided_at")?,
            decided_by: row.get("decided_by")?,
        })
    }
}
