//! The spool: what a carrier gave us, committed before the carrier is told so.

use rusqlite::{Connection, OptionalExtension, Row, params};
use threadline::{Fingerprint, MessageId, ThreadId};

use super::inbound::is_seen;
use super::types::parsed;
use super::{Store, StoreError, sha256};

/// Most rows that may wait; beyond it the carrier keeps the rest.
const MAX_ROWS: i64 = 50_000;
/// Most bytes of waiting envelopes, 256 MiB.
const MAX_BYTES: i64 = 256 * 1024 * 1024;

/// An envelope as it came from a carrier, checked as far as that needs no secret.
#[derive(Debug, Clone)]
pub struct SpoolEntry {
    /// Relay that delivered it.
    pub relay: String,
    /// Sender.
    pub from: Fingerprint,
    /// Id given by the sender.
    pub message_id: MessageId,
    /// Thread given by the sender; some foreign clients give none.
    pub thread_id: Option<ThreadId>,
    /// Carrier kind, `relay`.
    pub transport: &'static str,
    /// Envelope as received.
    pub envelope: Vec<u8>,
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spooled {
    /// Stored under this number.
    New(i64),
    /// These very bytes were stored before; nothing would be different now.
    Known,
    /// No room: must not be acknowledged.
    Full,
}

/// Whether a row still has to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpoolState {
    /// To be ingested.
    New,
    /// In `messages`.
    Ingested,
    /// Refused for good.
    Refused,
}

/// A row to ingest.
#[derive(Debug, Clone)]
pub struct SpoolRow {
    /// Order of arrival.
    pub seq: i64,
    /// Sender as the carrier names it.
    pub from: Fingerprint,
    /// Id given by the sender.
    pub message_id: MessageId,
    /// Carrier kind.
    pub transport: String,
    /// Relay that delivered it.
    pub relay: String,
    /// Envelope as received.
    pub envelope: Vec<u8>,
    /// Unix ms.
    pub received_at: i64,
    /// Tries that could not be evaluated.
    pub attempts: u32,
}

/// Reason of rows that wait for a text that is not in their message.
pub const TEXT_ELSEWHERE: &str = "text";
/// What was written after a text that does not come waits this long for it, ms.
const TEXT_HOLD_MS: i64 = 30_000;
/// Reason of rows that wait for the key of their sender.
pub const UNKNOWN_SENDER: &str = "unknown-sender";

/// How much waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SpoolDepth {
    /// Rows to ingest.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Store {
    /// Commits entries in the given order, all in one transaction; only then may the carrier be acknowledged.
    pub async fn spool_put(&self, entries: Vec<SpoolEntry>, now: i64) -> Result<Vec<Spooled>, StoreError> {
        self.db.write(move |c| entries.iter().map(|entry| put(c, entry, now)).collect()).await
    }

    /// Rows that may be ingested now, in order of arrival. A postponed row holds back later rows of its sender,
    /// for half a minute if only its text is missing.
    pub async fn spool_due(&self, now: i64, limit: u32) -> Result<Vec<SpoolRow>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT * FROM spool s WHERE state = 'new' AND not_before <= ?1 AND NOT EXISTS (
                        SELECT 1 FROM spool e WHERE e.state = 'new' AND e.from_fp = s.from_fp AND e.seq < s.seq
                        AND e.not_before > ?1 AND (e.reason IS NULL OR e.reason <> ?3 OR e.received_at > ?4))
                     ORDER BY seq LIMIT ?2",
                )?;
                let held = now - TEXT_HOLD_MS;
                let rows = statement.query_map(params![now, limit, TEXT_ELSEWHERE, held], read_row)?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Earliest time at which [`Self::spool_due`] has a row: of each sender, only the first row counts.
    pub async fn spool_next_due(&self) -> Result<Option<i64>, StoreError> {
        self.db
            .read(|c| {
                Ok(c.query_row(
                    "SELECT min(not_before) FROM spool s WHERE state = 'new' AND NOT EXISTS (
                        SELECT 1 FROM spool e WHERE e.state = 'new' AND e.from_fp = s.from_fp AND e.seq < s.seq)",
                    [],
                    |r| r.get(0),
                )?)
            })
            .await
    }

    /// Rows of one sender that wait, without row `seq`.
    pub async fn spool_others_of(&self, peer: Fingerprint, seq: i64) -> Result<u32, StoreError> {
        self.db
            .read(move |c| {
                Ok(c.query_row(
                    "SELECT count(*) FROM spool WHERE state = 'new' AND from_fp = ?1 AND seq <> ?2",
                    params![peer.to_string(), seq],
                    |r| r.get(0),
                )?)
            })
            .await
    }

    /// Looks again at a row not before `not_before`.
    pub async fn spool_postpone(&self, seq: i64, not_before: i64, reason: &str) -> Result<(), StoreError> {
        let reason = reason.to_owned();
        self.db
            .write(move |c| {
                c.execute(
                    "UPDATE spool SET not_before = ?2, reason = ?3 WHERE seq = ?1 AND state = 'new'",
                    params![seq, not_before, reason],
                )?;
                Ok(())
            })
            .await
    }

    /// Counts a try that could not be evaluated. Returns the tries so far.
    pub async fn spool_failed(&self, seq: i64, not_before: i64, reason: &str) -> Result<u32, StoreError> {
        let reason = reason.to_owned();
        self.db
            .write(move |c| {
                Ok(c.query_row(
                    "UPDATE spool SET attempts = attempts + 1, not_before = ?2, reason = ?3 WHERE seq = ?1
                     RETURNING attempts",
                    params![seq, not_before, reason],
                    |r| r.get(0),
                )?)
            })
            .await
    }

    /// Refuses a row for good.
    pub async fn spool_refuse(&self, seq: i64, reason: &str) -> Result<(), StoreError> {
        let reason = reason.to_owned();
        self.db
            .write(move |c| {
                c.execute(
                    "UPDATE spool SET state = 'refused', reason = ?2 WHERE seq = ?1",
                    params![seq, reason],
                )?;
                Ok(())
            })
            .await
    }

    /// Marks a row whose message needs no message row.
    pub async fn spool_done(&self, seq: i64) -> Result<(), StoreError> {
        self.db
            .write(move |c| {
                mark_ingested(c, seq)?;
                Ok(())
            })
            .await
    }

    /// Forgets a row, so that a later try of its sender is looked at afresh.
    pub async fn spool_forget(&self, seq: i64) -> Result<(), StoreError> {
        self.db
            .write(move |c| {
                c.execute("DELETE FROM spool WHERE seq = ?1", [seq])?;
                Ok(())
            })
            .await
    }

    /// Rows and bytes that wait.
    pub async fn spool_depth(&self) -> Result<SpoolDepth, StoreError> {
        self.db
            .read(|c| {
                let (rows, bytes) = depth(c)?;
                Ok(SpoolDepth { rows: rows.unsigned_abs(), bytes: bytes.unsigned_abs() })
            })
            .await
    }

    /// Whether a message of this id was stored, or waits to be looked at whatever its bytes.
    pub async fn is_taken(&self, from: Fingerprint, id: MessageId) -> Result<bool, StoreError> {
        self.db
            .read(move |c| {
                if is_seen(c, &from, &id)? {
                    return Ok(true);
                }
                Ok(c.prepare_cached(
                    "SELECT 1 FROM spool WHERE from_fp = ?1 AND message_id = ?2 AND state <> 'refused'",
                )?
                .exists(params![from.to_string(), id.as_str()])?)
            })
            .await
    }

    /// Deletes finished rows received before `before`. Returns how many.
    pub async fn spool_purge(&self, before: i64) -> Result<usize, StoreError> {
        self.db
            .write(move |c| {
                Ok(c.execute("DELETE FROM spool WHERE state <> 'new' AND received_at < ?1", [before])?)
            })
            .await
    }
}

/// Marks a row whose message is stored in the same transaction.
pub(super) fn mark_ingested(c: &Connection, seq: i64) -> rusqlite::Result<usize> {
    c.execute("UPDATE spool SET state = 'ingested', reason = NULL WHERE seq = ?1", [seq])
}

pub(super) fn put(c: &Connection, entry: &SpoolEntry, now: i64) -> Result<Spooled, StoreError> {
    let hash = sha256(&entry.envelope);
    let known: Option<(i64, bool)> = c
        .prepare_cached(
            "SELECT seq, state = 'refused' AND reason IN ('unknown-sender', 'internal', 'clock-skew')
             FROM spool WHERE from_fp = ?1 AND message_id = ?2 AND env_hash = ?3",
        )?
        .query_row(params![entry.from.to_string(), entry.message_id.as_str(), hash], |r| {
            Ok((r.get(0)?, r.get(1)?))
        })
        .optional()?;
    if matches!(known, Some((_, false))) {
        return Ok(Spooled::Known);
    }
    let (rows, bytes) = depth(c)?;
    if rows >= MAX_ROWS || bytes >= MAX_BYTES {
        return Ok(Spooled::Full);
    }
    if let Some((refused, _)) = known {
        // Its sender tries again, and what was wrong with our knowledge or clock may be right now.
        c.prepare_cached(
            "UPDATE spool SET state = 'new', reason = NULL, attempts = 0, not_before = 0, received_at = ?2
             WHERE seq = ?1",
        )?
        .execute(params![refused, now])?;
        return Ok(Spooled::New(refused));
    }
    c.prepare_cached(
        "INSERT INTO spool(relay, message_id, from_fp, thread_id, transport, envelope, env_hash, received_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        entry.relay,
        entry.message_id.as_str(),
        entry.from.to_string(),
        entry.thread_id.as_ref().map(ThreadId::as_str),
        entry.transport,
        entry.envelope,
        hash,
        now
    ])?;
    Ok(Spooled::New(c.last_insert_rowid()))
}

fn depth(c: &Connection) -> rusqlite::Result<(i64, i64)> {
    c.prepare_cached("SELECT count(*), coalesce(sum(length(envelope)), 0) FROM spool WHERE state = 'new'")?
        .query_row([], |r| Ok((r.get(0)?, r.get(1)?)))
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<SpoolRow> {
    Ok(SpoolRow {
        seq: row.get("seq")?,
        from: parsed(row, "from_fp")?,
        message_id: parsed(row, "message_id")?,
        transport: row.get("transport")?,
        relay: row.get("relay")?,
        envelope: row.get("envelope")?,
        received_at: row.get("received_at")?,
        attempts: row.get("attempts")?,
    })
}
