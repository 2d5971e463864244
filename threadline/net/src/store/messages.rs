//! The hash chain of a thread: the one place where message rows are made.

use rusqlite::{Connection, OptionalExtension, params};
use threadline::hash_chain::{Link, body_sha256};
use threadline::threads::{ThreadEvent, next};
use threadline::{Fingerprint, MessageId, ThreadKey, TrustLevel};

use super::StoreError;
use super::types::{Auth, Direction, MessageState, Opener, thread_state, thread_state_text};

/// A message about to be appended to its thread.
pub(super) struct NewMessage<'a> {
    pub(super) key: &'a ThreadKey,
    pub(super) peer_name: &'a str,
    pub(super) id: &'a MessageId,
    pub(super) direction: Direction,
    pub(super) kind: &'a str,
    pub(super) body: &'a str,
    pub(super) subject: &'a str,
    pub(super) in_reply_to: Option<&'a str>,
    pub(super) created_at: i64,
    pub(super) transport: &'a str,
    pub(super) auth: Auth,
    pub(super) trust: TrustLevel,
    pub(super) state: MessageState,
    pub(super) reason: Option<&'a str>,
    pub(super) author_session: Option<&'a str>,
    pub(super) idempotency_key: Option<&'a str>,
}

/// Appends to the thread, opening it if needed. Returns the row id.
pub(super) fn append(c: &Connection, m: &NewMessage<'_>, now: i64) -> Result<i64, StoreError> {
    let peer = m.key.peer.to_string();
    let opener = if m.direction == Direction::In { Opener::Peer } else { Opener::Us };
    c.prepare_cached(
        "INSERT INTO conversations(peer_fp, thread_id, state, subject, peer_name, opened_by, head_hash,
            created_at, last_activity_at) VALUES (?1, ?2, 'open', ?3, ?4, ?5, zeroblob(32), ?6, ?6)
         ON CONFLICT DO NOTHING",
    )?
    .execute(params![peer, m.key.thread.as_str(), m.subject, m.peer_name, opener, now])?;
    let (seq, prev_hash): (i64, [u8; 32]) = c
        .prepare_cached(
            "SELECT next_seq, head_hash FROM conversations WHERE peer_fp = ?1 AND thread_id = ?2",
        )?
        .query_row(params![peer, m.key.thread.as_str()], |r| Ok((r.get(0)?, r.get(1)?)))?;
    let body_hash = body_sha256(m.body);
    let link = Link {
        seq,
        key: m.key,
        message_id: m.id,
        direction: m.direction.as_str(),
        created_at: m.created_at,
        body_sha256: body_hash,
    };
    let hash = link.hash(&prev_hash);
    c.prepare_cached(
        "INSERT INTO messages(peer_fp, message_id, direction, thread_id, seq, type, body, body_sha256, subject,
            in_reply_to, created_at, stored_at, transport, auth, trust_at_receipt, state, reason, author_session,
            idempotency_key, prev_hash, hash)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)",
    )?
    .execute(params![
        peer,
        m.id.as_str(),
        m.direction,
        m.key.thread.as_str(),
        seq,
        m.kind,
        m.body,
        body_hash,
        m.subject,
        m.in_reply_to,
        m.created_at,
        now,
        m.transport,
        m.auth,
        m.trust.to_string(),
        m.state,
        m.reason,
        m.author_session,
        m.idempotency_key,
        prev_hash,
        hash,
    ])?;
    let row = c.last_insert_rowid();
    c.prepare_cached(
        "UPDATE conversations SET next_seq = next_seq + 1, message_count = message_count + 1, head_hash = ?3,
            last_activity_at = ?4, deleted_at = NULL,
            peer_name = CASE WHEN ?5 = '' THEN peer_name ELSE ?5 END,
            state = CASE WHEN state = 'archived' THEN 'open' ELSE state END
         WHERE peer_fp = ?1 AND thread_id = ?2",
    )?
    .execute(params![peer, m.key.thread.as_str(), hash, now, m.peer_name])?;
    Ok(row)
}

/// Whether a message row exists.
pub(super) fn exists(
    c: &Connection,
    peer: &Fingerprint,
    id: &MessageId,
    direction: Direction,
) -> Result<bool, StoreError> {
    Ok(c.prepare_cached("SELECT 1 FROM messages WHERE peer_fp = ?1 AND message_id = ?2 AND direction = ?3")?
        .query_row(params![peer.to_string(), id.as_str(), direction], |_| Ok(()))
        .optional()?
        .is_some())
}

/// Whether a message stands in this state.
pub(super) fn is_in_state(
    c: &Connection,
    peer: &Fingerprint,
    id: &MessageId,
    direction: Direction,
    state: MessageState,
) -> rusqlite::Result<bool> {
    c.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM messages
         WHERE peer_fp = ?1 AND message_id = ?2 AND direction = ?3 AND state = ?4)",
    )?
    .query_row(params![peer.to_string(), id.as_str(), direction, state], |r| r.get(0))
}

/// Sets state and reason; neither is part of the chain.
pub(super) fn set_state(
    c: &Connection,
    peer: &Fingerprint,
    id: &MessageId,
    direction: Direction,
    state: MessageState,
    reason: Option<&str>,
) -> Result<bool, StoreError> {
    let changed = c
        .prepare_cached(
            "UPDATE messages SET state = ?4, reason = ?5
             WHERE peer_fp = ?1 AND message_id = ?2 AND direction = ?3 AND state <> ?4",
        )?
        .execute(params![peer.to_string(), id.as_str(), direction, state, reason])?;
    Ok(changed > 0)
}

/// Moves a conversation by an event.
pub(super) fn thread_event(c: &Connection, key: &ThreadKey, event: ThreadEvent) -> Result<(), StoreError> {
    let (peer, thread) = (key.peer.to_string(), key.thread.as_str());
    let state = c
        .prepare_cached("SELECT state FROM conversations WHERE peer_fp = ?1 AND thread_id = ?2")?
        .query_row(params![peer, thread], thread_state)
        .optional()?;
    let Some(state) = state else { return Ok(()) };
    let moved = next(state, event);
    if moved != state {
        c.prepare_cached("UPDATE conversations SET state = ?3 WHERE peer_fp = ?1 AND thread_id = ?2")?
            .execute(params![peer, thread, thread_state_text(moved)])?;
    }
    Ok(())
}
