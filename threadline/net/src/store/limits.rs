//! Sliding windows that survive a restart.

use rusqlite::{Connection, params};

use super::{Store, StoreError};

/// What one window holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Events inside the window.
    pub used: u32,
    /// Time of the oldest of them, Unix ms.
    pub oldest: Option<i64>,
}

impl Store {
    /// Events of each `(limit, key)` after the given time.
    pub async fn usage(&self, windows: Vec<(&'static str, String, i64)>) -> Result<Vec<Usage>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT count(*), min(at) FROM windows WHERE limit_name = ?1 AND key = ?2 AND at > ?3",
                )?;
                windows
                    .iter()
                    .map(|(limit, key, since)| {
                        let read = |r: &rusqlite::Row<'_>| Ok(Usage { used: r.get(0)?, oldest: r.get(1)? });
                        Ok(statement.query_row(params![limit, key, since], read)?)
                    })
                    .collect()
            })
            .await
    }

    /// Times of the events of one window after `since`, oldest first.
    pub async fn events(&self, limit: &'static str, key: String, since: i64) -> Result<Vec<i64>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT at FROM windows WHERE limit_name = ?1 AND key = ?2 AND at > ?3 ORDER BY at",
                )?;
                let rows = statement.query_map(params![limit, key, since], |r| r.get(0))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Records events in one transaction.
    pub async fn record_events(&self, events: Vec<super::WindowEvent>, now: i64) -> Result<(), StoreError> {
        self.db
            .write(move |c| {
                for event in &events {
                    record(c, event.limit, &event.key, now)?;
                }
                Ok(())
            })
            .await
    }

    /// Forgets events older than `before`; the longest window is a day.
    pub async fn purge_events(&self, before: i64) -> Result<usize, StoreError> {
        self.db.write(move |c| Ok(c.execute("DELETE FROM windows WHERE at < ?1", [before])?)).await
    }

    /// Forgets all events, of one key where given.
    pub async fn reset_events(&self, key: Option<String>) -> Result<usize, StoreError> {
        self.db
            .write(move |c| {
                Ok(c.execute(
                    "DELETE FROM windows WHERE ?1 IS NULL OR key = ?1 OR key LIKE ?1 || ':%'",
                    [key],
                )?)
            })
            .await
    }
}

pub(super) fn record(c: &Connection, limit: &str, key: &str, now: i64) -> Result<(), StoreError> {
    c.prepare_cached("INSERT INTO windows(limit_name, key, at) VALUES (?1, ?2, ?3)")?
        .execute(params![limit, key, now])?;
    Ok(())
}
