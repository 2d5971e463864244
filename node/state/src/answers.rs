//! Answers of the node's HTTP routes that were given under an `Idempotency-Key`, kept for a day
//! (`agent-core.md` §4.4).

use std::time::Duration;

use instar_durable::{Database, DatabaseError, Migration};
use rusqlite::{OptionalExtension, params};

/// How long an answer is kept.
pub const ANSWER_LIFE: Duration = Duration::from_hours(24);
/// Most answers that are kept; the oldest go first.
const MAX_ANSWERS: i64 = 20_000;

/// The table; part of `messaging.sqlite`.
pub(crate) const MIGRATION: Migration = Migration {
    sql: "CREATE TABLE http_answers(
            caller TEXT NOT NULL,
            key TEXT NOT NULL,
            request BLOB NOT NULL,
            status INTEGER NOT NULL,
            body BLOB NOT NULL,
            at INTEGER NOT NULL,
            PRIMARY KEY(caller, key)
          ) STRICT;
          CREATE INDEX http_answers_at ON http_answers(at);",
};

/// An answer as it was given first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Digest of the request that it answers.
    pub request: [u8; 32],
    /// HTTP status.
    pub status: u16,
    /// JSON body.
    pub body: Vec<u8>,
}

/// The kept answers; cheap to clone.
#[derive(Debug, Clone)]
pub struct Answers {
    db: Database,
}

impl Answers {
    pub(crate) fn new(db: Database) -> Self {
        Self { db }
    }

    /// The answer that `caller` got under `key`, if it is not too old.
    pub async fn get(&self, caller: &str, key: &str, now_ms: i64) -> Result<Option<Answer>, DatabaseError> {
        let (caller, key) = (caller.to_owned(), key.to_owned());
        self.db
            .read(move |c| {
                let mut query = c.prepare_cached(
                    "SELECT request, status, body FROM http_answers WHERE caller = ?1 AND key = ?2 AND at > ?3",
                )?;
                let found = query.query_row(params![caller, key, oldest(now_ms)], |row| {
                    Ok(Answer { request: row.get(0)?, status: row.get(1)?, body: row.get(2)? })
                });
                Ok(found.optional()?)
            })
            .await
    }

    /// Keeps an answer, on disk when this returns, and forgets those that are too old.
    pub async fn keep(
        &self,
        caller: &str,
        key: &str,
        answer: Answer,
        now_ms: i64,
    ) -> Result<(), DatabaseError> {
        let (caller, key) = (caller.to_owned(), key.to_owned());
        self.db
            .write(move |c| {
                c.prepare_cached("DELETE FROM http_answers WHERE at <= ?1")?.execute([oldest(now_ms)])?;
                c.prepare_cached(
                    "INSERT OR REPLACE INTO http_answers(caller, key, request, status, body, at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    caller,
                    key,
                    answer.request,
                    answer.status,
                    answer.body,
                    now_ms
                ])?;
                c.prepare_cached(
                    "DELETE FROM http_answers WHERE rowid IN
                     (SELECT rowid FROM http_answers ORDER BY at DESC LIMIT -1 OFFSET ?1)",
                )?
                .execute([MAX_ANSWERS])?;
                Ok(())
            })
            .await
    }
}

fn oldest(now_ms: i64) -> i64 {
    now_ms - ANSWER_LIFE.as_millis() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::EventBus;
    use crate::journal::Journal;
    use crate::notices::NoticeBoard;

    #[tokio::test]
    async fn an_answer_outlives_the_node_for_a_day() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("messaging.sqlite");
        let open =
            || Journal::open(&path, &NoticeBoard::new(EventBus::default()), 0).expect("journal").answers();
        let first = Answer { request: [1; 32], status: 201, body: b"{}".to_vec() };
        open().keep("local", "k", first.clone(), 1_000).await.expect("keep");
        let day = ANSWER_LIFE.as_millis() as i64;
        let again = open();
        assert_eq!(again.get("local", "k", day).await.expect("read"), Some(first.clone()));
        assert_eq!(again.get("agent", "k", day).await.expect("read"), None, "keys belong to their caller");
        assert_eq!(again.get("local", "k", day + 1_000).await.expect("read"), None);
        again.keep("local", "other", first, day + 1_000).await.expect("keep");
        assert_eq!(again.get("local", "k", 1_000).await.expect("read"), None, "the old one is gone");
    }
}
