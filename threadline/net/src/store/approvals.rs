//! What waits for the owner.

use rusqlite::{Connection, OptionalExtension, params};
use threadline::threads::ThreadEvent;
use threadline::{Fingerprint, MessageId, ThreadId, ThreadKey};

use super::inbound::APPROVED;
use super::types::{Approval, ApprovalKind, ApprovalStatus, Direction, MessageState};
use super::{Store, StoreError, messages};

/// A question to the owner.
#[derive(Debug, Clone)]
pub struct ApprovalDraft {
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
    /// Cut to 500 characters when stored.
    pub preview: String,
    /// Facts that depend on the kind.
    pub details: serde_json::Value,
    /// Unix ms.
    pub expires_at: i64,
}

/// How many questions may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApprovalQueueLimits {
    /// Pending, all peers.
    pub pending: u32,
    /// Pending of one peer.
    pub pending_per_peer: u32,
    /// Pending of kind `first-contact`.
    pub first_contacts: u32,
}

impl Default for ApprovalQueueLimits {
    fn default() -> Self {
        Self { pending: 100, pending_per_peer: 20, first_contacts: 20 }
    }
}

/// Outcome of a decision.
#[derive(Debug, Clone, PartialEq)]
pub enum Decided {
    /// The decision counts.
    Now(Box<Approval>),
    /// Someone decided before.
    Before(Box<Approval>),
    /// No such question.
    Unknown,
}

impl Store {
    /// Stores a question.
    pub async fn ask(
        &self,
        draft: ApprovalDraft,
        queue: ApprovalQueueLimits,
        now: i64,
    ) -> Result<(), StoreError> {
        self.db.write(move |c| insert(c, &draft, queue, now)).await
    }

    /// Questions, newest first, at most `limit`.
    pub async fn approvals(
        &self,
        status: Option<ApprovalStatus>,
        kind: Option<ApprovalKind>,
        limit: u32,
    ) -> Result<Vec<Approval>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT * FROM approvals WHERE (?1 IS NULL OR status = ?1) AND (?2 IS NULL OR kind = ?2)
                     ORDER BY created_at DESC, id DESC LIMIT ?3",
                )?;
                let rows = statement.query_map(params![status, kind, limit], Approval::from_row)?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// One question.
    pub async fn approval(&self, id: &str) -> Result<Option<Approval>, StoreError> {
        let id = id.to_owned();
        self.db.read(move |c| find(c, &id)).await
    }

    /// Pending questions of one peer and kind.
    pub async fn pending_of(&self, peer: Fingerprint, kind: ApprovalKind) -> Result<u32, StoreError> {
        self.db
            .read(move |c| {
                Ok(c.query_row(
                    "SELECT count(*) FROM approvals WHERE status = 'pending' AND peer_fp = ?1 AND kind = ?2",
                    params![peer.to_string(), kind],
                    |r| r.get(0),
                )?)
            })
            .await
    }

    /// Pending questions by kind.
    pub async fn pending_approvals(&self) -> Result<Vec<(ApprovalKind, u32)>, StoreError> {
        self.db
            .read(|c| {
                let mut statement = c.prepare_cached(
                    "SELECT kind, count(*) FROM approvals WHERE status = 'pending' GROUP BY kind",
                )?;
                let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Decides a pending question once.
    pub async fn decide(
        &self,
        id: &str,
        status: ApprovalStatus,
        by: &str,
        now: i64,
    ) -> Result<Decided, StoreError> {
        let (id, by) = (id.to_owned(), by.to_owned());
        self.db.write(move |c| decide(c, &id, status, &by, now)).await
    }

    /// Decides a pending question about a message of a peer once, and lets the message go on or ends it with the same
    /// commit. `whole_thread`: its thread needs no further approval.
    pub async fn decide_inbound(
        &self,
        id: &str,
        status: ApprovalStatus,
        whole_thread: bool,
        by: &str,
        now: i64,
    ) -> Result<Decided, StoreError> {
        let (id, by) = (id.to_owned(), by.to_owned());
        self.db
            .write(move |c| {
                let decided = decide(c, &id, status, &by, now)?;
                let Decided::Now(approval) = &decided else { return Ok(decided) };
                let (Some(message), Some(thread)) = (&approval.message_id, &approval.thread_id) else {
                    return Ok(decided);
                };
                let key = ThreadKey { peer: approval.peer, thread: thread.clone() };
                let held = messages::is_in_state(c, &key.peer, message, Direction::In, MessageState::Held)?;
                if status != ApprovalStatus::Approved {
                    if held {
                        let (state, reason) = (MessageState::Rejected, Some("owner"));
                        messages::set_state(c, &key.peer, message, Direction::In, state, reason)?;
                    }
                    return Ok(decided);
                }
                if held {
                    let (state, reason) = (MessageState::Stored, Some(APPROVED));
                    messages::set_state(c, &key.peer, message, Direction::In, state, reason)?;
                }
                if whole_thread {
                    c.execute(
                        "UPDATE conversations SET approved = 1 WHERE peer_fp = ?1 AND thread_id = ?2",
                        params![key.peer.to_string(), key.thread.as_str()],
                    )?;
                }
                messages::thread_event(c, &key, ThreadEvent::Released)?;
                Ok(decided)
            })
            .await
    }

    /// Expires what nobody decided in time, together with the messages it held. Returns the expired questions.
    pub async fn expire_approvals(&self, now: i64) -> Result<Vec<Approval>, StoreError> {
        self.db
            .write(move |c| {
                let mut statement = c.prepare_cached(
                    "UPDATE approvals SET status = 'expired', decided_at = ?1, decided_by = 'system'
                     WHERE status = 'pending' AND expires_at <= ?1 RETURNING *",
                )?;
                let expired: Vec<Approval> =
                    statement.query_map([now], Approval::from_row)?.collect::<rusqlite::Result<_>>()?;
                for approval in &expired {
                    if let Some(id) = &approval.message_id {
                        c.execute(
                            "UPDATE messages SET state = 'expired', reason = 'approval-expired'
                             WHERE peer_fp = ?1 AND message_id = ?2 AND state = 'held'",
                            params![approval.peer.to_string(), id.as_str()],
                        )?;
                    }
                }
                Ok(expired)
            })
            .await
    }

    /// Deletes decided questions older than `before`.
    pub async fn purge_approvals(&self, before: i64) -> Result<usize, StoreError> {
        self.db
            .write(move |c| {
                Ok(c.execute(
                    "DELETE FROM approvals WHERE status <> 'pending' AND decided_at < ?1",
                    [before],
                )?)
            })
            .await
    }
}

fn decide(
    c: &Connection,
    id: &str,
    status: ApprovalStatus,
    by: &str,
    now: i64,
) -> Result<Decided, StoreError> {
    let changed = c.execute(
        "UPDATE approvals SET status = ?2, decided_by = ?3, decided_at = ?4
         WHERE id = ?1 AND status = 'pending' AND expires_at > ?4",
        params![id, status, by, now],
    )?;
    Ok(match find(c, id)? {
        None => Decided::Unknown,
        Some(approval) if changed > 0 => Decided::Now(Box::new(approval)),
        Some(approval) => Decided::Before(Box::new(approval)),
    })
}

fn find(c: &Connection, id: &str) -> Result<Option<Approval>, StoreError> {
    Ok(c.prepare_cached("SELECT * FROM approvals WHERE id = ?1")?
        .query_row([id], Approval::from_row)
        .optional()?)
}

/// Inserts within the caller's transaction; pending rows are never evicted, the new one is refused.
pub(super) fn insert(
    c: &Connection,
    draft: &ApprovalDraft,
    queue: ApprovalQueueLimits,
    now: i64,
) -> Result<(), StoreError> {
    let peer = draft.peer.to_string();
    let (all, of_peer, first): (u32, u32, u32) = c
        .prepare_cached(
            "SELECT count(*), count(*) FILTER (WHERE peer_fp = ?1),
                count(*) FILTER (WHERE kind = 'first-contact') FROM approvals WHERE status = 'pending'",
        )?
        .query_row([&peer], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
    let full = |limit, scope| Err(StoreError::ApprovalQueueFull { limit, scope });
    if all >= queue.pending {
        return full(queue.pending, "in all");
    }
    if of_peer >= queue.pending_per_peer {
        return full(queue.pending_per_peer, "for one peer");
    }
    if draft.kind == ApprovalKind::FirstContact && first >= queue.first_contacts {
        return full(queue.first_contacts, "first contacts");
    }
    let preview: String = draft.preview.chars().take(500).collect();
    c.prepare_cached(
        "INSERT INTO approvals(id, kind, peer_fp, message_id, thread_id, subject, preview, details, created_at,
            expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![
        draft.id,
        draft.kind,
        peer,
        draft.message_id.as_ref().map(MessageId::as_str),
        draft.thread_id.as_ref().map(ThreadId::as_str),
        draft.subject,
        preview,
        draft.details.to_string(),
        now,
        draft.expires_at
    ])?;
    Ok(())
}
