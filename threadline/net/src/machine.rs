//! `machine-limits.sqlite`: what all agents of the account take together (`threadline-agent.md` §9.1).
//!
//! Several nodes open the file at once; every write is one short transaction.

use std::path::Path;

use instar_durable::{Database, DatabaseError, Durability, Migration, OpenOptions};
use rusqlite::params;
use threadline::limits::{Usage, Window};

const MIGRATIONS: &[Migration] = &[Migration {
    sql: "CREATE TABLE events(limit_name TEXT NOT NULL, at INTEGER NOT NULL) STRICT;
          CREATE INDEX events_by_time ON events(limit_name, at);",
}];

/// The shared counters; cheap to clone.
#[derive(Debug, Clone)]
pub struct MachineLimits {
    db: Database,
}

impl MachineLimits {
    /// Opens or creates the file. Blocks.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        let options = OpenOptions::new(path, MIGRATIONS, Durability::Normal).readers(1);
        Ok(Self { db: Database::open(options)? })
    }

    /// What the window holds now, of all agents together.
    pub async fn usage(&self, window: &Window, now: i64) -> Result<Usage, DatabaseError> {
        let (limit, since) = (window.limit, now.saturating_sub(window.span_ms));
        self.db
            .read(move |c| {
                let sql = "SELECT count(*), min(at) FROM events WHERE limit_name = ?1 AND at > ?2";
                let read = |r: &rusqlite::Row<'_>| Ok(Usage { used: r.get(0)?, oldest: r.get(1)? });
                Ok(c.prepare_cached(sql)?.query_row(params![limit, since], read)?)
            })
            .await
    }

    /// Records one event and forgets those that left the window.
    pub async fn record(&self, window: &Window, now: i64) -> Result<(), DatabaseError> {
        let (limit, before) = (window.limit, now.saturating_sub(window.span_ms));
        self.db
            .write(move |c| {
                c.prepare_cached("DELETE FROM events WHERE limit_name = ?1 AND at <= ?2")?
                    .execute(params![limit, before])?;
                c.prepare_cached("INSERT INTO events(limit_name, at) VALUES (?1, ?2)")?
                    .execute(params![limit, now])?;
                Ok(())
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use threadline::limits::Limits;

    use super::*;

    #[tokio::test]
    async fn two_nodes_count_together_and_old_events_leave() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("machine-limits.sqlite");
        let nodes = [MachineLimits::open(&path).expect("open"), MachineLimits::open(&path).expect("open")];
        let window = Limits::default().machine();
        for (n, at) in [(0, 1_000), (1, 2_000), (0, 3_000)] {
            nodes[n].record(&window, at).await.expect("record");
        }
        for node in &nodes {
            let usage = node.usage(&window, 3_000).await.expect("usage");
            assert_eq!((usage.used, usage.oldest), (3, Some(1_000)));
        }
        let later = 1_500 + window.span_ms;
        nodes[1].record(&window, later).await.expect("record");
        let usage = nodes[0].usage(&window, later).await.expect("usage");
        assert_eq!((usage.used, usage.oldest), (3, Some(2_000)));
    }
}
