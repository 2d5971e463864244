//! Inputs on their way to a session and back from one that is gone.

use rusqlite::params;
use ulid::Ulid;

use super::row::{state_of, ulid_at};
use super::{Journal, Result};
use crate::ids::SessionId;
use crate::ports::InputState;

impl Journal {
    /// Records that a delivery to `session` begins. Returns whether the row still waits.
    pub async fn begin_attempt(&self, ulid: Ulid, session: SessionId) -> Result<bool> {
        self.db
            .write(move |c| {
                let changed = c
                    .prepare_cached(
                        "UPDATE session_inbox SET attempts = attempts + 1, session_id = ?2
                         WHERE ulid = ?1 AND state = 'queued'",
                    )?
                    .execute(params![ulid.to_string(), session.to_string()])?;
                Ok(changed == 1)
            })
            .await
    }

    /// Takes back an attempt that did not reach the runtime: it counts for nothing, and no session has the row.
    pub async fn cancel_attempt(&self, ulid: Ulid, session: SessionId, error: &str) -> Result<()> {
        let error = error.to_owned();
        self.db
            .write(move |c| {
                c.prepare_cached(
                    "UPDATE session_inbox SET attempts = max(attempts - 1, 0), session_id = NULL, error = ?3
                     WHERE ulid = ?1 AND session_id = ?2 AND state = 'queued'",
                )?
                .execute(params![ulid.to_string(), session.to_string(), error])?;
                Ok(())
            })
            .await
    }

    /// Records that the runtime has the text, proven by its ULID. Returns the row's state afterwards: a row that
    /// was answered in the meantime stays answered.
    pub async fn mark_injected(
        &self,
        ulid: Ulid,
        session: SessionId,
        now_ms: i64,
    ) -> Result<Option<InputState>> {
        self.db
            .write(move |c| {
                c.prepare_cached(
                    "UPDATE session_inbox SET state = 'injected', session_id = ?2, injected_at = ?3, error = NULL
                     WHERE ulid = ?1 AND state IN ('queued', 'failed')",
                )?
                .execute(params![ulid.to_string(), session.to_string(), now_ms])?;
                state_of(c, ulid)
            })
            .await
    }

    /// Notes why a delivery did not succeed; the row keeps waiting, and no session counts as having it.
    pub async fn note_error(&self, ulid: Ulid, error: &str) -> Result<()> {
        let error = error.to_owned();
        self.db
            .write(move |c| {
                c.prepare_cached(
                    "UPDATE session_inbox SET error = ?2, session_id = NULL WHERE ulid = ?1 AND state = 'queued'",
                )?
                    .execute(params![ulid.to_string(), error])?;
                Ok(())
            })
            .await
    }

    /// Gives a row up. Answered rows stay answered.
    pub async fn mark_failed(&self, ulid: Ulid, error: &str, now_ms: i64) -> Result<Option<InputState>> {
        let error = error.to_owned();
        self.db
            .write(move |c| {
                c.prepare_cached(
                    "UPDATE session_inbox SET state = 'failed', error = ?2, ended_at = ?3
                     WHERE ulid = ?1 AND state IN ('queued', 'injected')",
                )?
                .execute(params![ulid.to_string(), error, now_ms])?;
                state_of(c, ulid)
            })
            .await
    }

    /// Takes back the attempt of each open row that a session has: it was no fault of the input that it failed.
    pub async fn excuse(&self, session: SessionId) -> Result<()> {
        self.db
            .write(move |c| {
                c.prepare_cached(
                    "UPDATE session_inbox SET attempts = max(attempts - 1, 0)
                     WHERE session_id = ?1 AND state = 'injected'",
                )?
                .execute([session.to_string()])?;
                Ok(())
            })
            .await
    }

    /// Puts unanswered rows of a session that is gone back into the queue, oldest first in the answer.
    pub async fn requeue_session(&self, session: SessionId, reason: &str) -> Result<Vec<Ulid>> {
        let reason = reason.to_owned();
        self.db
            .write(move |c| {
                let mut update = c.prepare_cached(
                    "UPDATE session_inbox SET state = 'queued', session_id = NULL, injected_at = NULL, error = ?2
                     WHERE session_id = ?1 AND state IN ('queued', 'injected') RETURNING ulid",
                )?;
                let rows = update.query_map(params![session.to_string(), reason], |r| ulid_at(r, 0))?;
                let mut back = rows.collect::<rusqlite::Result<Vec<_>>>()?;
                back.sort_unstable();
                Ok(back)
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{input, journal};
    use super::*;
    use crate::ids::ConversationKey;

    #[tokio::test]
    async fn a_dead_session_gives_its_unanswered_rows_back() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = journal(dir.path());
        let conversation: ConversationKey = "local:x".parse().expect("key");
        let session = SessionId::random();
        let mut ids = Vec::new();
        for n in 0..3 {
            let row = journal.enqueue(input(&format!("cli:{n}"), "local:x"), n).await.expect("row");
            journal.begin_attempt(row.ulid, session).await.expect("attempt");
            ids.push(row.ulid);
        }
        for id in &ids[..2] {
            journal.mark_injected(*id, session, 9).await.expect("injected");
        }
        let closed = journal.acknowledge(&conversation, Some("cli:0"), 10).await.expect("ack");
        assert_eq!(closed, ids[..1]);
        let back = journal.requeue_session(session, "the session ended").await.expect("requeue");
        assert_eq!(back, ids[1..]);
        let counts = journal.counts(Some(&conversation)).await.expect("counts");
        assert_eq!((counts.queued, counts.acked), (2, 1));
        let row = journal.get(ids[1]).await.expect("get").expect("row");
        assert_eq!((row.state, row.session, row.attempts), (InputState::Queued, None, 1));
        assert_eq!(journal.waiting_conversations().await.expect("waiting"), [conversation]);
    }

    #[tokio::test]
    async fn excused_attempts_do_not_count() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = journal(dir.path());
        let session = SessionId::random();
        let ulid = journal.enqueue(input("cli:1", "local:x"), 1).await.expect("row").ulid;
        for _ in 0..12 {
            journal.begin_attempt(ulid, session).await.expect("attempt");
            journal.mark_injected(ulid, session, 2).await.expect("injected");
            journal.excuse(session).await.expect("excused");
            assert_eq!(journal.requeue_session(session, "refused").await.expect("requeue"), [ulid]);
        }
        assert_eq!(journal.get(ulid).await.expect("get").expect("row").attempts, 0);
    }

    #[tokio::test]
    async fn an_attempt_that_was_not_made_does_not_count() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = journal(dir.path());
        let session = SessionId::random();
        let ulid = journal.enqueue(input("cli:1", "local:x"), 1).await.expect("row").ulid;
        for _ in 0..2 {
            assert!(journal.begin_attempt(ulid, session).await.expect("attempt"));
        }
        journal.cancel_attempt(ulid, SessionId::random(), "another session's").await.expect("nothing");
        journal.cancel_attempt(ulid, session, "no space").await.expect("cancelled");
        journal.cancel_attempt(ulid, session, "again").await.expect("nothing");
        let row = journal.get(ulid).await.expect("get").expect("row");
        assert_eq!((row.attempts, row.session, row.error.as_deref()), (1, None, Some("no space")));
    }
}
