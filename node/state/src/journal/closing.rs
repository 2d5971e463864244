//! Inputs that are done with: answered, taken back, too old, forgotten.

use rusqlite::{OptionalExtension, params};
use ulid::Ulid;

use super::row::ulid_at;
use super::{Journal, Result};
use crate::ids::{ConversationKey, SessionId};

impl Journal {
    /// Closes rows of a conversation that a session has or is being given: those up to and including `inbox_key`,
    /// or all. The row of `inbox_key` is closed even where nobody has it any more: its session may have died while its
    /// answer was on the way. Returns what was closed.
    pub async fn acknowledge(
        &self,
        conversation: &ConversationKey,
        inbox_key: Option<&str>,
        now_ms: i64,
    ) -> Result<Vec<Ulid>> {
        let (conversation, key) = (conversation.clone(), inbox_key.map(str::to_owned));
        self.db
            .write(move |c| {
                let mut update = c.prepare_cached(
                    "UPDATE session_inbox SET state = 'acked', acked_at = ?3, ended_at = ?3, error = NULL
                     WHERE conversation = ?1
                       AND (state = 'injected'
                            OR (state = 'queued' AND (session_id IS NOT NULL OR inbox_key = ?2)))
                       AND (?2 IS NULL OR ulid <= (SELECT ulid FROM session_inbox
                                                   WHERE inbox_key = ?2 AND conversation = ?1))
                     RETURNING ulid",
                )?;
                let rows =
                    update.query_map(params![conversation.as_str(), key, now_ms], |r| ulid_at(r, 0))?;
                let mut closed = rows.collect::<rusqlite::Result<Vec<_>>>()?;
                closed.sort_unstable();
                Ok(closed)
            })
            .await
    }

    /// Closes exactly this row, if `session` has it. Returns whether it was closed.
    pub async fn settle(&self, ulid: Ulid, session: SessionId, now_ms: i64) -> Result<bool> {
        self.db
            .write(move |c| {
                let sql =
                    "UPDATE session_inbox SET state = 'acked', acked_at = ?3, ended_at = ?3, error = NULL
                           WHERE ulid = ?1 AND session_id = ?2 AND state = 'injected'";
                let params = params![ulid.to_string(), session.to_string(), now_ms];
                Ok(c.prepare_cached(sql)?.execute(params)? == 1)
            })
            .await
    }

    /// Gives up an open row: no session gets it, not even when the one that has it ends. Returns what was open.
    pub async fn withdraw(&self, inbox_key: &str, now_ms: i64) -> Result<Option<Ulid>> {
        let key = inbox_key.to_owned();
        self.db
            .write(move |c| {
                let sql = "UPDATE session_inbox SET state = 'expired', ended_at = ?2
                           WHERE inbox_key = ?1 AND state IN ('queued', 'injected') RETURNING ulid";
                Ok(c.prepare_cached(sql)?.query_row(params![key, now_ms], |r| ulid_at(r, 0)).optional()?)
            })
            .await
    }

    /// Takes back what no session of a conversation shall get any more: open rows expire with this reason, and the
    /// texts of all its rows are forgotten. Returns what was open.
    pub async fn retract(
        &self,
        conversation: &ConversationKey,
        reason: &str,
        now_ms: i64,
    ) -> Result<Vec<Ulid>> {
        let (conversation, reason) = (conversation.clone(), reason.to_owned());
        self.db
            .write(move |c| {
                let mut update = c.prepare_cached(
                    "UPDATE session_inbox SET state = 'expired', ended_at = ?3, error = ?2
                     WHERE conversation = ?1 AND state IN ('queued', 'injected') RETURNING ulid",
                )?;
                let rows =
                    update.query_map(params![conversation.as_str(), reason, now_ms], |r| ulid_at(r, 0))?;
                let mut gone = rows.collect::<rusqlite::Result<Vec<_>>>()?;
                gone.sort_unstable();
                c.prepare_cached(
                    "UPDATE session_inbox SET body = '' WHERE conversation = ?1 AND body <> ''",
                )?
                .execute([conversation.as_str()])?;
                Ok(gone)
            })
            .await
    }

    /// Expires rows that have waited since before `before_ms`, of one conversation or of all.
    pub async fn expire(
        &self,
        conversation: Option<&ConversationKey>,
        before_ms: i64,
        now_ms: i64,
    ) -> Result<Vec<Ulid>> {
        let conversation = conversation.map(|c| c.as_str().to_owned());
        self.db
            .write(move |c| {
                let mut update = c.prepare_cached(
                    "UPDATE session_inbox SET state = 'expired', ended_at = ?3
                     WHERE state = 'queued' AND queued_at < ?2 AND (?1 IS NULL OR conversation = ?1)
                     RETURNING ulid",
                )?;
                let rows = update.query_map(params![conversation, before_ms, now_ms], |r| ulid_at(r, 0))?;
                let mut gone = rows.collect::<rusqlite::Result<Vec<_>>>()?;
                gone.sort_unstable();
                Ok(gone)
            })
            .await
    }

    /// Expires one waiting row. Returns whether it waited.
    pub async fn expire_one(&self, ulid: Ulid, now_ms: i64) -> Result<bool> {
        self.db
            .write(move |c| {
                let sql = "UPDATE session_inbox SET state = 'expired', ended_at = ?2
                           WHERE ulid = ?1 AND state = 'queued'";
                Ok(c.prepare_cached(sql)?.execute(params![ulid.to_string(), now_ms])? == 1)
            })
            .await
    }

    /// Empties the bodies of rows that ended more than 7 days ago and removes those older than 30 days.
    pub async fn purge(&self, now_ms: i64) -> Result<()> {
        const DAY: i64 = 86_400_000;
        self.db
            .write(move |c| {
                c.execute(
                    "UPDATE session_inbox SET body = '' WHERE ended_at < ?1 AND body <> ''",
                    [now_ms - 7 * DAY],
                )?;
                c.execute("DELETE FROM session_inbox WHERE ended_at < ?1", [now_ms - 30 * DAY])?;
                Ok(())
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{input, journal};
    use super::*;
    use crate::ports::InputState;

    #[tokio::test]
    async fn a_settled_row_closes_no_older_one() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = journal(dir.path());
        let session = SessionId::random();
        let tried = journal.enqueue(input("cli:1", "local:x"), 1).await.expect("row").ulid;
        let steer = journal.enqueue(input("cli:2", "local:x"), 2).await.expect("row").ulid;
        journal.begin_attempt(tried, session).await.expect("attempt");
        journal.mark_injected(steer, session, 3).await.expect("injected");
        assert!(!journal.settle(steer, SessionId::random(), 4).await.expect("settle"), "another session's");
        assert!(journal.settle(steer, session, 4).await.expect("settle"));
        assert!(!journal.settle(tried, session, 4).await.expect("settle"), "it was never delivered");
        journal.note_error(tried, "not confirmed").await.expect("noted");
        let conversation: ConversationKey = "local:x".parse().expect("key");
        assert!(journal.acknowledge(&conversation, None, 5).await.expect("ack").is_empty());
        let next = journal.next_queued(&conversation, 9).await.expect("next").expect("row");
        assert_eq!(next.ulid, tried, "it still waits");
    }

    #[tokio::test]
    async fn a_withdrawn_row_comes_back_to_no_session() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = journal(dir.path());
        let conversation: ConversationKey = "local:x".parse().expect("key");
        let session = SessionId::random();
        let given = journal.enqueue(input("cli:1", "local:x"), 1).await.expect("row").ulid;
        let waiting = journal.enqueue(input("cli:2", "local:x"), 2).await.expect("row").ulid;
        let next = journal.enqueue(input("cli:3", "local:x"), 3).await.expect("row").ulid;
        journal.mark_injected(given, session, 4).await.expect("injected");
        assert_eq!(journal.withdraw("cli:1", 5).await.expect("withdrawn"), Some(given));
        assert_eq!(journal.withdraw("cli:2", 5).await.expect("withdrawn"), Some(waiting));
        assert_eq!(journal.withdraw("cli:2", 6).await.expect("withdrawn"), None);
        assert!(journal.requeue_session(session, "ended").await.expect("requeue").is_empty());
        let left = journal.next_queued(&conversation, 9).await.expect("next").expect("row");
        assert_eq!(left.ulid, next);
    }

    #[tokio::test]
    async fn retracted_rows_come_back_to_no_session() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = journal(dir.path());
        let conversation: ConversationKey = "local:x".parse().expect("key");
        let session = SessionId::random();
        let mut ids = Vec::new();
        for n in 0..3 {
            ids.push(journal.enqueue(input(&format!("cli:{n}"), "local:x"), n).await.expect("row").ulid);
        }
        let other = journal.enqueue(input("cli:9", "local:y"), 9).await.expect("row").ulid;
        journal.mark_injected(ids[0], session, 3).await.expect("injected");
        journal.settle(ids[0], session, 4).await.expect("settle");
        journal.mark_injected(ids[1], session, 4).await.expect("injected");
        assert_eq!(journal.retract(&conversation, "deleted", 5).await.expect("retract"), ids[1..]);
        assert!(journal.requeue_session(session, "ended").await.expect("requeue").is_empty());
        assert_eq!(journal.mark_injected(ids[2], session, 6).await.expect("late"), Some(InputState::Expired));
        assert_eq!(journal.next_queued(&conversation, 9).await.expect("next"), None);
        for id in ids {
            assert_eq!(journal.get(id).await.expect("get").expect("row").input.body, "");
        }
        assert_eq!(journal.get(other).await.expect("get").expect("row").input.body, "body of cli:9");
    }

    #[tokio::test]
    async fn an_answer_that_overtakes_its_confirmation_closes_the_row() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = journal(dir.path());
        let conversation: ConversationKey = "local:x".parse().expect("key");
        let session = SessionId::random();
        let given = journal.enqueue(input("cli:1", "local:x"), 1).await.expect("row").ulid;
        let waiting = journal.enqueue(input("cli:2", "local:x"), 2).await.expect("row").ulid;
        journal.begin_attempt(given, session).await.expect("attempt");
        assert_eq!(journal.acknowledge(&conversation, None, 3).await.expect("ack"), [given]);
        assert_eq!(journal.mark_injected(given, session, 4).await.expect("late"), Some(InputState::Acked));
        let next = journal.next_queued(&conversation, 9).await.expect("next").expect("row");
        assert_eq!(next.ulid, waiting);
    }

    #[tokio::test]
    async fn an_answer_that_outlives_its_session_closes_the_row() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = journal(dir.path());
        let conversation: ConversationKey = "local:x".parse().expect("key");
        let session = SessionId::random();
        let answered = journal.enqueue(input("cli:1", "local:x"), 1).await.expect("row").ulid;
        let other = journal.enqueue(input("cli:2", "local:x"), 2).await.expect("row").ulid;
        for ulid in [answered, other] {
            journal.mark_injected(ulid, session, 3).await.expect("injected");
        }
        journal.requeue_session(session, "killed").await.expect("requeue");
        assert_eq!(journal.acknowledge(&conversation, Some("cli:1"), 4).await.expect("ack"), [answered]);
        let next = journal.next_queued(&conversation, 9).await.expect("next").expect("row");
        assert_eq!(next.ulid, other);
    }

    #[tokio::test]
    async fn an_answer_to_another_conversation_closes_nothing() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = journal(dir.path());
        let session = SessionId::random();
        let row = journal.enqueue(input("cli:1", "local:x"), 1).await.expect("row").ulid;
        journal.mark_injected(row, session, 2).await.expect("injected");
        let other: ConversationKey = "local:y".parse().expect("key");
        assert!(journal.acknowledge(&other, Some("cli:1"), 3).await.expect("ack").is_empty());
    }

    #[tokio::test]
    async fn old_rows_expire_and_ended_ones_are_purged() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = journal(dir.path());
        let old = journal.enqueue(input("cli:1", "local:x"), 100).await.expect("row").ulid;
        let young = journal.enqueue(input("cli:2", "local:x"), 200).await.expect("row").ulid;
        assert_eq!(journal.expire(None, 150, 300).await.expect("expire"), [old]);
        let day = 86_400_000;
        journal.purge(300 + 8 * day).await.expect("purge");
        assert_eq!(journal.get(old).await.expect("get").expect("kept").input.body, "");
        journal.purge(300 + 31 * day).await.expect("purge");
        assert!(journal.get(old).await.expect("get").is_none());
        assert_eq!(journal.get(young).await.expect("get").expect("kept").input.body, "body of cli:2");
    }
}
