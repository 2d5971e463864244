//! Sliding windows that survive a restart.

use rusqlite::{Connection, params};
use threadline::limits::{Usage, Window};

use super::{Store, StoreError};

impl Store {
    /// What each window holds now.
    pub async fn usage(&self, windows: Vec<Window>, now: i64) -> Result<Vec<(Window, Usage)>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT count(*), min(at) FROM windows WHERE limit_name = ?1 AND key = ?2 AND at > ?3",
                )?;
                let mut used = Vec::with_capacity(windows.len());
                for window in windows {
                    let read = |r: &rusqlite::Row<'_>| Ok(Usage { used: r.get(0)?, oldest: r.get(1)? });
                    let since = now.saturating_sub(window.span_ms);
                    let usage = statement.query_row(params![window.limit, window.key, since], read)?;
                    used.push((window, usage));
                }
                Ok(used)
            })
            .await
    }

    /// Records one event in each window, in one transaction.
    pub async fn record_events(&self, windows: Vec<Window>, now: i64) -> Result<(), StoreError> {
        self.db.write(move |c| windows.iter().try_for_each(|window| record(c, window, now))).await
    }

    /// Forgets events older than `before`; the longest window is a day.
    pub async fn purge_events(&self, before: i64) -> Result<usize, StoreError> {
        self.db.write(move |c| Ok(c.execute("DELETE FROM windows WHERE at < ?1", [before])?)).await
    }

    /// Forgets all events, of one peer where given.
    pub async fn reset_events(&self, key: Option<String>) -> Result<usize, StoreError> {
        self.db
            .write(move |c| {
                let sql = "DELETE FROM windows WHERE ?1 IS NULL OR key = ?1 OR key LIKE ?1 || ':%'";
                Ok(c.execute(sql, [key])?)
            })
            .await
    }
}

pub(super) fn record(c: &Connection, window: &Window, now: i64) -> Result<(), StoreError> {
    c.prepare_cached("INSERT INTO windows(limit_name, key, at) VALUES (?1, ?2, ?3)")?.execute(params![
        window.limit,
        window.key,
        now
    ])?;
    Ok(())
}
