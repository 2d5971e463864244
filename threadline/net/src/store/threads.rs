//! Conversations: listing, history, search, ends.

use rusqlite::{Connection, params};
use threadline::hash_chain::{Link, START, body_sha256};
use threadline::threads::{RecentThread, ThreadEvent, ThreadState};
use threadline::{Fingerprint, ThreadId, ThreadKey};

use super::messages::thread_event;
use super::types::{Direction, StoredMessage, Thread, key_of, parsed, thread_state_text};
use super::{Store, StoreError};

/// Which conversations to list.
#[derive(Debug, Clone, Default)]
pub struct ThreadFilter {
    /// Only with this peer.
    pub peer: Option<Fingerprint>,
    /// Only in this state.
    pub state: Option<ThreadState>,
    /// Only with activity before this time, Unix ms: the cursor of a listing.
    pub before: Option<i64>,
    /// 1 to 200.
    pub limit: u32,
}

/// Whether the hash chain of a thread holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainCheck {
    /// Every link follows from the one before.
    Valid,
    /// The first link that does not.
    BrokenAt(i64),
}

/// One hit of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchHit {
    /// Thread of the hit.
    pub key: ThreadKey,
    /// Message of the hit.
    pub message_id: String,
    /// Text around it.
    pub snippet: String,
}

impl Store {
    /// Whether there is a conversation with this agent.
    pub async fn has_conversation(&self, peer: Fingerprint) -> Result<bool, StoreError> {
        self.db
            .read(move |c| {
                Ok(c.prepare_cached("SELECT 1 FROM conversations WHERE peer_fp = ?1 LIMIT 1")?
                    .exists([peer.to_string()])?)
            })
            .await
    }

    /// Conversations by latest activity.
    pub async fn threads(&self, filter: ThreadFilter) -> Result<Vec<Thread>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT * FROM conversations WHERE deleted_at IS NULL AND (?1 IS NULL OR peer_fp = ?1)
                        AND (?2 IS NULL OR state = ?2) AND (?3 IS NULL OR last_activity_at < ?3)
                     ORDER BY last_activity_at DESC, thread_id LIMIT ?4",
                )?;
                let rows = statement.query_map(
                    params![
                        filter.peer.map(|p| p.to_string()),
                        filter.state.map(thread_state_text),
                        filter.before,
                        filter.limit.clamp(1, 200)
                    ],
                    Thread::from_row,
                )?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Peers that use this thread id.
    pub async fn peers_of_thread(&self, thread: ThreadId) -> Result<Vec<Fingerprint>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT peer_fp FROM conversations WHERE thread_id = ?1 AND deleted_at IS NULL",
                )?;
                let rows = statement.query_map([thread.as_str()], |r| parsed(r, "peer_fp"))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// The peer's threads used after `since` that are not over.
    pub async fn recent_threads(
        &self,
        peer: Fingerprint,
        since: i64,
    ) -> Result<Vec<RecentThread>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT thread_id, created_at, last_activity_at FROM conversations
                     WHERE peer_fp = ?1 AND last_activity_at >= ?2 AND deleted_at IS NULL
                     AND state NOT IN ('resolved', 'archived')",
                )?;
                let rows = statement.query_map(params![peer.to_string(), since], |r| {
                    Ok(RecentThread {
                        thread: parsed(r, "thread_id")?,
                        first_used: r.get(1)?,
                        last_used: r.get(2)?,
                    })
                })?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// The thread for messages of this peer that name none.
    pub async fn default_thread(&self, peer: Fingerprint) -> Result<Option<ThreadId>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT thread_id FROM conversations WHERE peer_fp = ?1 AND thread_id LIKE 'auto-%'
                     AND opened_by = 'peer' AND deleted_at IS NULL ORDER BY created_at DESC LIMIT 1",
                )?;
                let mut rows = statement.query_map([peer.to_string()], |r| parsed(r, "thread_id"))?;
                Ok(rows.next().transpose()?)
            })
            .await
    }

    /// The newest `limit` messages with text before row `before`, oldest first, and the number of all.
    pub async fn history(
        &self,
        key: ThreadKey,
        before_seq: Option<i64>,
        limit: u32,
    ) -> Result<(Vec<StoredMessage>, u32), StoreError> {
        self.db
            .read(move |c| {
                let peer = key.peer.to_string();
                let total: u32 = c.query_row(
                    "SELECT count(*) FROM messages WHERE peer_fp = ?1 AND thread_id = ?2 AND body IS NOT NULL",
                    params![peer, key.thread.as_str()],
                    |r| r.get(0),
                )?;
                let mut statement = c.prepare_cached(
                    "SELECT * FROM messages WHERE peer_fp = ?1 AND thread_id = ?2 AND body IS NOT NULL
                     AND (?3 IS NULL OR seq < ?3) ORDER BY seq DESC LIMIT ?4",
                )?;
                let rows = statement.query_map(
                    params![peer, key.thread.as_str(), before_seq, limit],
                    StoredMessage::from_row,
                )?;
                let mut messages: Vec<StoredMessage> = rows.collect::<rusqlite::Result<_>>()?;
                messages.reverse();
                Ok((messages, total))
            })
            .await
    }

    /// Place of the first message of a thread that is not older than `time`.
    pub async fn seq_at(&self, key: ThreadKey, time: i64) -> Result<Option<i64>, StoreError> {
        self.db
            .read(move |c| {
                Ok(c.query_row(
                    "SELECT min(seq) FROM messages WHERE peer_fp = ?1 AND thread_id = ?2 AND stored_at >= ?3",
                    params![key.peer.to_string(), key.thread.as_str(), time],
                    |r| r.get(0),
                )?)
            })
            .await
    }

    /// Place of a message in its thread, by id.
    pub async fn seq_of(&self, key: ThreadKey, id: &str) -> Result<Option<i64>, StoreError> {
        let id = id.to_owned();
        self.db
            .read(move |c| {
                Ok(c.query_row(
                    "SELECT min(seq) FROM messages WHERE peer_fp = ?1 AND thread_id = ?2 AND message_id = ?3",
                    params![key.peer.to_string(), key.thread.as_str(), id],
                    |r| r.get(0),
                )?)
            })
            .await
    }

    /// Newest messages over all threads, newest first.
    pub async fn recent(
        &self,
        direction: Option<Direction>,
        limit: u32,
    ) -> Result<Vec<StoredMessage>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT * FROM messages WHERE body IS NOT NULL AND (?1 IS NULL OR direction = ?1)
                     ORDER BY id DESC LIMIT ?2",
                )?;
                let rows = statement.query_map(params![direction, limit], StoredMessage::from_row)?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Checks the hash chain of a thread from its first message.
    pub async fn check_chain(&self, key: ThreadKey) -> Result<ChainCheck, StoreError> {
        self.db.read(move |c| check_chain(c, &key)).await
    }

    /// Threads that hold an answer to a peer's message, by peer.
    pub async fn active_threads(&self) -> Result<Vec<(Fingerprint, u32)>, StoreError> {
        self.db
            .read(|c| {
                let mut statement = c.prepare_cached(
                    "SELECT peer_fp, count(*) FROM conversations WHERE deleted_at IS NULL
                     AND state NOT IN ('resolved', 'archived', 'failed') GROUP BY peer_fp",
                )?;
                let rows = statement.query_map([], |r| Ok((parsed(r, "peer_fp")?, r.get(1)?)))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Texts and subjects that hold every word of `query`.
    pub async fn search(&self, query: &str, limit: u32) -> Result<Vec<SearchHit>, StoreError> {
        let words: Vec<String> =
            query.split_whitespace().map(|word| format!("\"{}\"", word.replace('"', "\"\""))).collect();
        if words.is_empty() {
            return Ok(Vec::new());
        }
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT m.peer_fp, m.thread_id, m.message_id,
                        snippet(messages_fts, -1, '«', '»', '…', 16)
                     FROM messages_fts JOIN messages m ON m.id = messages_fts.rowid
                     WHERE messages_fts MATCH ?1 ORDER BY rank LIMIT ?2",
                )?;
                let rows = statement.query_map(params![words.join(" "), limit], |r| {
                    Ok(SearchHit { key: key_of(r)?, message_id: r.get(2)?, snippet: r.get(3)? })
                })?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Closes a conversation. False when there is none.
    pub async fn resolve_thread(&self, key: ThreadKey, now: i64) -> Result<bool, StoreError> {
        self.db
            .write(move |c| {
                thread_event(c, &key, ThreadEvent::Resolved)?;
                let changed = c.execute(
                    "UPDATE conversations SET resolved_at = ?3
                     WHERE peer_fp = ?1 AND thread_id = ?2 AND deleted_at IS NULL",
                    params![key.peer.to_string(), key.thread.as_str(), now],
                )?;
                Ok(changed > 0)
            })
            .await
    }

    /// The text of the peer's message before this one in the thread.
    pub async fn previous_inbound(&self, key: ThreadKey, seq: i64) -> Result<Option<String>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT body FROM messages WHERE peer_fp = ?1 AND thread_id = ?2 AND direction = 'in'
                     AND seq < ?3 AND body IS NOT NULL ORDER BY seq DESC LIMIT 1",
                )?;
                let mut rows = statement
                    .query_map(params![key.peer.to_string(), key.thread.as_str(), seq], |r| r.get(0))?;
                Ok(rows.next().transpose()?)
            })
            .await
    }

    /// Moves a conversation by an event.
    pub async fn thread_event(&self, key: ThreadKey, event: ThreadEvent) -> Result<(), StoreError> {
        self.db.write(move |c| thread_event(c, &key, event)).await
    }

    /// Pins or unpins; at most `max` conversations are pinned. False when there is no room or no such thread.
    pub async fn set_pinned(&self, key: ThreadKey, pinned: bool, max: u32) -> Result<bool, StoreError> {
        self.db
            .write(move |c| {
                let changed = c.execute(
                    "UPDATE conversations SET pinned = ?3 WHERE peer_fp = ?1 AND thread_id = ?2
                     AND deleted_at IS NULL
                     AND (NOT ?3 OR pinned OR (SELECT count(*) FROM conversations WHERE pinned) < ?4)",
                    params![key.peer.to_string(), key.thread.as_str(), pinned, max],
                )?;
                Ok(changed > 0)
            })
            .await
    }

    /// Removes texts and everything that would still act; the chain keeps its links. Returns the messages removed.
    pub async fn delete_thread(&self, key: ThreadKey, now: i64) -> Result<usize, StoreError> {
        self.db
            .write(move |c| {
                let peer = key.peer.to_string();
                let thread = key.thread.as_str();
                c.execute(
                    "DELETE FROM outbox WHERE peer_fp = ?1 AND message_id IN (
                        SELECT message_id FROM deliveries WHERE peer_fp = ?1 AND thread_id = ?2)",
                    params![peer, thread],
                )?;
                c.execute(
                    "UPDATE deliveries SET state = 'failed', next_retry_at = NULL WHERE peer_fp = ?1
                     AND thread_id = ?2 AND state IN ('pending', 'sent', 'accepted', 'escalated')",
                    params![peer, thread],
                )?;
                c.execute(
                    "UPDATE approvals SET status = 'rejected', decided_by = 'system', decided_at = ?3, preview = ''
                     WHERE peer_fp = ?1 AND thread_id = ?2 AND status = 'pending'",
                    params![peer, thread, now],
                )?;
                c.execute(
                    "UPDATE messages SET state = 'failed', reason = 'thread-deleted' WHERE peer_fp = ?1
                     AND thread_id = ?2 AND state IN ('held', 'stored', 'queued', 'pending-send')",
                    params![peer, thread],
                )?;
                let removed = c.execute(
                    "UPDATE messages SET body = NULL WHERE peer_fp = ?1 AND thread_id = ?2 AND body IS NOT NULL",
                    params![peer, thread],
                )?;
                c.execute(
                    "UPDATE conversations SET deleted_at = ?3, session_id = NULL, approved = 0, pinned = 0
                     WHERE peer_fp = ?1 AND thread_id = ?2",
                    params![peer, thread, now],
                )?;
                Ok(removed)
            })
            .await
    }

    /// Tells every conversation that is not over how long it has been quiet.
    pub async fn age_threads(&self, now: i64) -> Result<(), StoreError> {
        self.db
            .write(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT peer_fp, thread_id, last_activity_at FROM conversations
                     WHERE state <> 'archived' AND NOT pinned AND last_activity_at < ?1",
                )?;
                let quiet: Vec<(ThreadKey, i64)> = statement
                    .query_map([now - 3_600_000], |r| Ok((key_of(r)?, r.get(2)?)))?
                    .collect::<rusqlite::Result<_>>()?;
                quiet.iter().try_for_each(|(key, last)| thread_event(c, key, ThreadEvent::Quiet(now - last)))
            })
            .await
    }

    /// Forgets seen ids stored before `before`.
    pub async fn purge_seen(&self, before: i64) -> Result<usize, StoreError> {
        self.db.write(move |c| Ok(c.execute("DELETE FROM seen WHERE at < ?1", [before])?)).await
    }
}

fn check_chain(c: &Connection, key: &ThreadKey) -> Result<ChainCheck, StoreError> {
    let mut statement =
        c.prepare_cached("SELECT * FROM messages WHERE peer_fp = ?1 AND thread_id = ?2 ORDER BY seq")?;
    let mut rows = statement.query(params![key.peer.to_string(), key.thread.as_str()])?;
    let mut previous = START;
    let mut expected = 1;
    while let Some(row) = rows.next()? {
        let m = StoredMessage::from_row(row)?;
        let stored: [u8; 32] = row.get("hash")?;
        let link = Link {
            seq: m.seq,
            key,
            message_id: &m.id,
            direction: m.direction.as_str(),
            created_at: m.created_at,
            body_sha256: row.get("body_sha256")?,
        };
        let body_matches = m.body.as_deref().is_none_or(|body| body_sha256(body) == link.body_sha256);
        if m.seq != expected || stored != link.hash(&previous) || !body_matches {
            return Ok(ChainCheck::BrokenAt(m.seq));
        }
        previous = stored;
        expected += 1;
    }
    Ok(ChainCheck::Valid)
}
