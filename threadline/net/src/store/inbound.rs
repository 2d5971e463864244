//! Step 13 of the inbound pipeline: message, seen id, windows, approval and spool mark in one transaction.

use rusqlite::{Connection, OptionalExtension, params};
use threadline::delivery::DeliveryState;
use threadline::limits::Window;
use threadline::threads::ThreadEvent;
use threadline::{Fingerprint, MessageId, ThreadKey, TrustLevel};

use super::approvals::{ApprovalDraft, ApprovalQueueLimits};
use super::messages::{self, NewMessage};
use super::types::{Auth, Direction, MessageState, StoredMessage, Thread, parsed};
use super::{Store, StoreError, approvals, limits, outbox, sha256, spool};

/// Reason of messages that the owner let in, until they are answered.
pub const APPROVED: &str = "approved";
/// Reason of messages that only a pause holds.
pub const HELD_BY_PAUSE: &str = "paused";

/// A checked message to be stored.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Spool row it came from.
    pub spool_seq: Option<i64>,
    /// Sender and thread.
    pub key: ThreadKey,
    /// Sanitised name of the sender.
    pub peer_name: String,
    /// Id given by the sender.
    pub id: MessageId,
    /// Payload type.
    pub kind: String,
    /// Text.
    pub body: String,
    /// Sanitised subject.
    pub subject: String,
    /// Message of ours that it answers.
    pub in_reply_to: Option<String>,
    /// Sender's clock, Unix ms.
    pub created_at: i64,
    /// Carrier.
    pub transport: String,
    /// How sure the sender is.
    pub auth: Auth,
    /// Level now.
    pub trust: TrustLevel,
    /// [`MessageState::Stored`] to be routed, or [`MessageState::Held`].
    pub state: MessageState,
    /// Why it is held.
    pub reason: Option<String>,
    /// What the owner is asked about a held message.
    pub approval: Option<ApprovalDraft>,
    /// Windows it uses.
    pub windows: Vec<Window>,
}

/// What the transaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// A new message row.
    New {
        /// Its row id.
        row: i64,
        /// Whether the same thread id exists with another peer.
        collision: bool,
    },
    /// The id was stored before; nothing changed but the spool mark.
    Duplicate,
}

impl Store {
    /// Stores one message. Repeating it changes nothing.
    pub async fn accept(
        &self,
        message: Inbound,
        queue: ApprovalQueueLimits,
        now: i64,
    ) -> Result<Accepted, StoreError> {
        self.db.write(move |c| accept(c, &message, queue, now)).await
    }

    /// Whether this id of this peer was stored before.
    pub async fn is_seen(&self, peer: Fingerprint, id: MessageId) -> Result<bool, StoreError> {
        self.db.read(move |c| is_seen(c, &peer, &id)).await
    }

    /// Whether the thread received the same text at or after `since`.
    pub async fn same_text_since(&self, key: ThreadKey, body: &str, since: i64) -> Result<bool, StoreError> {
        let hash = sha256(body.as_bytes());
        self.db
            .read(move |c| {
                Ok(c.prepare_cached(
                    "SELECT 1 FROM messages WHERE peer_fp = ?1 AND thread_id = ?2 AND body_sha256 = ?3
                     AND direction = 'in' AND stored_at >= ?4",
                )?
                .query_row(params![key.peer.to_string(), key.thread.as_str(), hash, since], |_| Ok(()))
                .optional()?
                .is_some())
            })
            .await
    }

    /// Inbound messages that are to be routed, in order of storing.
    pub async fn unrouted(&self, limit: u32) -> Result<Vec<StoredMessage>, StoreError> {
        self.inbound_in_state(MessageState::Stored, 0, limit).await
    }

    /// Inbound messages that wait in the session inbox, those behind row `after` only.
    pub async fn queued_inbound(&self, after: i64, limit: u32) -> Result<Vec<StoredMessage>, StoreError> {
        self.inbound_in_state(MessageState::Queued, after, limit).await
    }

    async fn inbound_in_state(
        &self,
        state: MessageState,
        after: i64,
        limit: u32,
    ) -> Result<Vec<StoredMessage>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT * FROM messages WHERE direction = 'in' AND state = ?1 AND id > ?2
                     ORDER BY id LIMIT ?3",
                )?;
                let rows = statement.query_map(params![state, after, limit], StoredMessage::from_row)?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Inbound messages of one thread that wait in the session inbox.
    pub async fn queued_of(&self, key: ThreadKey) -> Result<Vec<StoredMessage>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT * FROM messages WHERE direction = 'in' AND state = 'queued'
                     AND peer_fp = ?1 AND thread_id = ?2 ORDER BY id",
                )?;
                let of_thread = params![key.peer.to_string(), key.thread.as_str()];
                let rows = statement.query_map(of_thread, StoredMessage::from_row)?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Marks a message that the session inbox holds, together with the repetitions counted with it.
    pub async fn set_queued(
        &self,
        key: ThreadKey,
        id: MessageId,
        similar_turns: u32,
    ) -> Result<(), StoreError> {
        self.db
            .write(move |c| {
                let (peer, thread) = (key.peer.to_string(), key.thread.as_str());
                c.prepare_cached(
                    "UPDATE messages SET state = 'queued'
                     WHERE peer_fp = ?1 AND message_id = ?2 AND direction = 'in'",
                )?
                .execute(params![peer, id.as_str()])?;
                c.prepare_cached(
                    "UPDATE conversations SET similar_turns = ?3 WHERE peer_fp = ?1 AND thread_id = ?2",
                )?
                .execute(params![peer, thread, similar_turns])?;
                Ok(())
            })
            .await
    }

    /// Moves an inbound message, and its thread by `event`.
    pub async fn set_inbound_state(
        &self,
        key: ThreadKey,
        id: MessageId,
        state: MessageState,
        reason: Option<String>,
        event: Option<ThreadEvent>,
    ) -> Result<bool, StoreError> {
        self.db
            .write(move |c| {
                let moved = messages::set_state(c, &key.peer, &id, Direction::In, state, reason.as_deref())?;
                if let Some(event) = event {
                    messages::thread_event(c, &key, event)?;
                }
                Ok(moved)
            })
            .await
    }

    /// Lets messages of a peer go on that only a pause held. Returns how many.
    pub async fn release_paused(&self, peer: Fingerprint) -> Result<usize, StoreError> {
        self.db
            .write(move |c| {
                Ok(c.execute(
                    "UPDATE messages SET state = 'stored', reason = NULL WHERE direction = 'in'
                     AND state = 'held' AND reason = ?2 AND peer_fp = ?1",
                    params![peer.to_string(), HELD_BY_PAUSE],
                )?)
            })
            .await
    }

    /// Peers with held inbound messages.
    pub async fn known_held_peers(&self) -> Result<Vec<Fingerprint>, StoreError> {
        self.db
            .read(|c| {
                let mut statement = c.prepare_cached(
                    "SELECT DISTINCT peer_fp FROM messages WHERE direction = 'in' AND state = 'held'",
                )?;
                let rows = statement.query_map([], |r| parsed(r, "peer_fp"))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }
}

fn accept(c: &Connection, m: &Inbound, queue: ApprovalQueueLimits, now: i64) -> Result<Accepted, StoreError> {
    if let Some(seq) = m.spool_seq {
        spool::mark_ingested(c, seq)?;
    }
    if is_seen(c, &m.key.peer, &m.id)? {
        return Ok(Accepted::Duplicate);
    }
    let collision = c
        .prepare_cached("SELECT 1 FROM conversations WHERE thread_id = ?1 AND peer_fp <> ?2")?
        .query_row(params![m.key.thread.as_str(), m.key.peer.to_string()], |_| Ok(()))
        .optional()?
        .is_some();
    let row = messages::append(
        c,
        &NewMessage {
            key: &m.key,
            peer_name: &m.peer_name,
            id: &m.id,
            direction: Direction::In,
            kind: &m.kind,
            body: &m.body,
            subject: &m.subject,
            in_reply_to: m.in_reply_to.as_deref(),
            created_at: m.created_at,
            transport: &m.transport,
            auth: m.auth,
            trust: m.trust,
            state: m.state,
            reason: m.reason.as_deref(),
            author_session: None,
            idempotency_key: None,
        },
        now,
    )?;
    c.prepare_cached("INSERT INTO seen(peer_fp, message_id, content_hash, at) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![m.key.peer.to_string(), m.id.as_str(), sha256(m.body.as_bytes()), now])?;
    for window in &m.windows {
        limits::record(c, window, now)?;
    }
    if let Some(draft) = &m.approval {
        approvals::insert(c, draft, queue, now)?;
        messages::thread_event(c, &m.key, ThreadEvent::Held)?;
    }
    outbox::acknowledge_thread(c, &m.key, DeliveryState::Delivered, now)?;
    Ok(Accepted::New { row, collision })
}

pub(super) fn is_seen(c: &Connection, peer: &Fingerprint, id: &MessageId) -> Result<bool, StoreError> {
    Ok(c.prepare_cached("SELECT 1 FROM seen WHERE peer_fp = ?1 AND message_id = ?2")?
        .query_row(params![peer.to_string(), id.as_str()], |_| Ok(()))
        .optional()?
        .is_some())
}

impl Store {
    /// One conversation, unless it was deleted.
    pub async fn thread(&self, key: ThreadKey) -> Result<Option<Thread>, StoreError> {
        self.db
            .read(move |c| {
                Ok(c.prepare_cached(
                    "SELECT * FROM conversations WHERE peer_fp = ?1 AND thread_id = ?2 AND deleted_at IS NULL",
                )?
                .query_row(params![key.peer.to_string(), key.thread.as_str()], Thread::from_row)
                .optional()?)
            })
            .await
    }

    /// One message.
    pub async fn message(
        &self,
        peer: Fingerprint,
        id: MessageId,
        direction: Direction,
    ) -> Result<Option<StoredMessage>, StoreError> {
        self.db
            .read(move |c| {
                Ok(c.prepare_cached(
                    "SELECT * FROM messages WHERE peer_fp = ?1 AND message_id = ?2 AND direction = ?3",
                )?
                .query_row(params![peer.to_string(), id.as_str(), direction], StoredMessage::from_row)
                .optional()?)
            })
            .await
    }
}
