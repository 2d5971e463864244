//! The spawn ledger: one row per session that was started for a peer, before it is started.

use rusqlite::{OptionalExtension, Row, params};
use threadline::{Fingerprint, ThreadKey};

use super::types::key_of;
use super::{Store, StoreError};

const DAY_MS: i64 = 86_400_000;

/// Where a spawn stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerStatus {
    /// Asked for; no proof of life yet.
    Spawning,
    /// Its supervisor proved itself.
    Verified,
    /// Ended in order.
    Completed,
    /// Did not start, or its proof of life stopped.
    Failed,
}

impl LedgerStatus {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Spawning => "spawning",
            Self::Verified => "verified",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    fn from_text(text: &str) -> Self {
        match text {
            "spawning" => Self::Spawning,
            "verified" => Self::Verified,
            "completed" => Self::Completed,
            _ => Self::Failed,
        }
    }
}

/// One spawn.
#[derive(Clone, PartialEq, Eq)]
pub struct LedgerRow {
    /// Hex SHA-256 over signer, transport nonce and message id.
    pub event_id: String,
    /// The conversation it serves.
    pub key: ThreadKey,
    /// Secret of the proof of life.
    pub nonce: Vec<u8>,
    /// Unix ms.
    pub spawned_at: i64,
    /// Where it stands.
    pub status: LedgerStatus,
    /// The session, once known.
    pub session_id: Option<String>,
}

impl std::fmt::Debug for LedgerRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LedgerRow")
            .field("event_id", &self.event_id)
            .field("key", &self.key)
            .field("status", &self.status)
            .field("session_id", &self.session_id)
            .finish_non_exhaustive()
    }
}

/// What the ledger says about a peer, for the decision whether it gets another session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerFigures {
    /// Spawns of the peer in 24 h.
    pub of_peer_today: u32,
    /// Spawns of all peers that are neither completed nor failed.
    pub in_flight: u32,
    /// Rows in all.
    pub rows: u32,
}

impl Store {
    /// Counts what the limits of the spawn manager are about.
    pub async fn ledger_figures(&self, peer: Fingerprint, now: i64) -> Result<LedgerFigures, StoreError> {
        self.db
            .read(move |c| {
                let mut counts = c.prepare_cached(
                    "SELECT count(*) FILTER (WHERE peer_fp = ?1 AND spawned_at > ?2),
                        count(*) FILTER (WHERE status IN ('spawning', 'verified')), count(*) FROM spawn_ledger",
                )?;
                Ok(counts.query_row(params![peer.to_string(), now - DAY_MS], |r| {
                    Ok(LedgerFigures { of_peer_today: r.get(0)?, in_flight: r.get(1)?, rows: r.get(2)? })
                })?)
            })
            .await
    }

    /// Notes a spawn before it begins. False when this event already has a row.
    pub async fn reserve_spawn(&self, row: LedgerRow) -> Result<bool, StoreError> {
        self.db
            .write(move |c| {
                let noted = c.execute(
                    "INSERT INTO spawn_ledger(event_id, peer_fp, thread_id, nonce, spawned_at, status)
                     VALUES (?1, ?2, ?3, ?4, ?5, 'spawning') ON CONFLICT (event_id) DO NOTHING",
                    params![
                        row.event_id,
                        row.key.peer.to_string(),
                        row.key.thread.as_str(),
                        row.nonce,
                        row.spawned_at
                    ],
                )?;
                Ok(noted > 0)
            })
            .await
    }

    /// Notes which session a spawn became, in the ledger and at its thread.
    pub async fn bind_spawn(
        &self,
        event_id: &str,
        key: ThreadKey,
        session_id: &str,
    ) -> Result<(), StoreError> {
        let (event_id, session_id) = (event_id.to_owned(), session_id.to_owned());
        self.db
            .write(move |c| {
                c.execute(
                    "UPDATE spawn_ledger SET session_id = ?2 WHERE event_id = ?1",
                    params![event_id, session_id],
                )?;
                c.execute(
                    "UPDATE conversations SET session_id = ?3 WHERE peer_fp = ?1 AND thread_id = ?2",
                    params![key.peer.to_string(), key.thread.as_str(), session_id],
                )?;
                Ok(())
            })
            .await
    }

    /// Moves a spawn; a terminal row stays as it is.
    pub async fn set_spawn(
        &self,
        event_id: &str,
        status: LedgerStatus,
        reason: Option<&str>,
        pid: Option<i32>,
        now: i64,
    ) -> Result<bool, StoreError> {
        let (event_id, reason) = (event_id.to_owned(), reason.map(str::to_owned));
        self.db
            .write(move |c| {
                let terminal =
                    matches!(status, LedgerStatus::Completed | LedgerStatus::Failed).then_some(now);
                let changed = c.execute(
                    "UPDATE spawn_ledger SET status = ?2, failure_reason = coalesce(?3, failure_reason),
                        terminal_at = ?4, pid = coalesce(?5, pid)
                     WHERE event_id = ?1 AND status IN ('spawning', 'verified') AND status <> ?2",
                    params![event_id, status.as_str(), reason, terminal, pid],
                )?;
                Ok(changed > 0)
            })
            .await
    }

    /// Spawns that are neither completed nor failed.
    pub async fn open_spawns(&self) -> Result<Vec<LedgerRow>, StoreError> {
        self.db
            .read(|c| {
                let mut statement = c.prepare_cached(
                    "SELECT * FROM spawn_ledger WHERE status IN ('spawning', 'verified') ORDER BY spawned_at",
                )?;
                let rows = statement.query_map([], read_row)?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// The latest spawn of a session.
    pub async fn spawn_of_session(&self, session_id: &str) -> Result<Option<LedgerRow>, StoreError> {
        let session_id = session_id.to_owned();
        self.db
            .read(move |c| {
                Ok(c.prepare_cached(
                    "SELECT * FROM spawn_ledger WHERE session_id = ?1 ORDER BY spawned_at DESC LIMIT 1",
                )?
                .query_row([session_id], read_row)
                .optional()?)
            })
            .await
    }

    /// One spawn.
    pub async fn spawn(&self, event_id: &str) -> Result<Option<LedgerRow>, StoreError> {
        let event_id = event_id.to_owned();
        self.db
            .read(move |c| {
                Ok(c.prepare_cached("SELECT * FROM spawn_ledger WHERE event_id = ?1")?
                    .query_row([event_id], read_row)
                    .optional()?)
            })
            .await
    }

    /// Deletes terminal rows older than `before`.
    pub async fn purge_spawns(&self, before: i64) -> Result<usize, StoreError> {
        self.db
            .write(move |c| Ok(c.execute("DELETE FROM spawn_ledger WHERE terminal_at < ?1", [before])?))
            .await
    }
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<LedgerRow> {
    let status: String = row.get("status")?;
    Ok(LedgerRow {
        event_id: row.get("event_id")?,
        key: key_of(row)?,
        nonce: row.get("nonce")?,
        spawned_at: row.get("spawned_at")?,
        status: LedgerStatus::from_text(&status),
        session_id: row.get("session_id")?,
    })
}
