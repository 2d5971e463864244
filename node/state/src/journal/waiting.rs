//! Inputs that wait: accepted once, in order, and held back when they are overdue.

use rusqlite::{OptionalExtension, params};
use ulid::Ulid;

use super::row::{COLUMNS, InboxRow, kind_text, parsed, row, state_at, ulid_at};
use super::{Journal, Result};
use crate::ids::ConversationKey;
use crate::ports::{InputState, SessionInput};

/// Age at which a waiting row is not given to a session unless the owner says so, milliseconds.
pub const OVERDUE_MS: i64 = 6 * 3_600_000;
/// Rows that may go to a session; those queued up to ?2 are overdue. What agents say has limits of its own.
const DUE: &str = "(kind = 'agent' OR queued_at > ?2 OR released_at IS NOT NULL)";

/// Result of [`Journal::enqueue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// Id of the row with this inbox key.
    pub ulid: Ulid,
    /// Whether this call made the row.
    pub fresh: bool,
    /// State of the row.
    pub state: InputState,
}

impl Journal {
    /// Stores an input as `queued`. The same inbox key always yields the same row, whatever its state.
    pub async fn enqueue(&self, input: SessionInput, now_ms: i64) -> Result<Enqueued> {
        let random = rand::random::<u128>();
        self.db
            .write(move |c| {
                let known = c
                    .prepare_cached("SELECT ulid, state FROM session_inbox WHERE inbox_key = ?1")?
                    .query_row([&input.inbox_key], |r| Ok((ulid_at(r, 0)?, state_at(r, 1)?)))
                    .optional()?;
                if let Some((ulid, state)) = known {
                    return Ok(Enqueued { ulid, fresh: false, state });
                }
                let last = c
                    .prepare_cached("SELECT ulid FROM session_inbox ORDER BY ulid DESC LIMIT 1")?
                    .query_row([], |r| ulid_at(r, 0))
                    .optional()?;
                let ulid = next_ulid(last, now_ms, random);
                c.prepare_cached(
                    "INSERT INTO session_inbox(ulid, inbox_key, conversation, kind, tag, body, steer, state, queued_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'queued', ?8)",
                )?
                .execute(params![
                    ulid.to_string(),
                    input.inbox_key,
                    input.conversation.as_str(),
                    kind_text(input.kind),
                    input.tag,
                    input.body,
                    input.steer,
                    now_ms
                ])?;
                Ok(Enqueued { ulid, fresh: true, state: InputState::Queued })
            })
            .await
    }

    /// The next waiting row of a conversation: steering ones first, then in order of arrival. Overdue ones are left
    /// out.
    pub async fn next_queued(&self, conversation: &ConversationKey, now_ms: i64) -> Result<Option<InboxRow>> {
        let conversation = conversation.clone();
        self.db
            .read(move |c| {
                let sql = format!(
                    "SELECT {COLUMNS} FROM session_inbox WHERE conversation = ?1 AND state = 'queued' AND {DUE}
                     ORDER BY steer DESC, ulid LIMIT 1"
                );
                Ok(c.prepare_cached(&sql)?
                    .query_row(params![conversation.as_str(), now_ms - OVERDUE_MS], row)
                    .optional()?)
            })
            .await
    }

    /// Conversations that have waiting rows, the longest waiting first.
    pub async fn waiting_conversations(&self) -> Result<Vec<ConversationKey>> {
        self.db
            .read(|c| {
                let mut query = c.prepare_cached(
                    "SELECT conversation FROM session_inbox WHERE state = 'queued'
                     GROUP BY conversation ORDER BY min(ulid)",
                )?;
                let rows = query.query_map([], |r| parsed(r, 0))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Rows of persons and of the node that have waited for [`OVERDUE_MS`] and that nobody released, oldest first,
    /// at most 200.
    pub async fn overdue(&self, now_ms: i64) -> Result<Vec<InboxRow>> {
        self.db
            .read(move |c| {
                let sql = format!(
                    "SELECT {COLUMNS} FROM session_inbox
                     WHERE state = 'queued' AND kind <> 'agent' AND queued_at <= ?1 AND released_at IS NULL
                     ORDER BY ulid LIMIT 200"
                );
                let mut query = c.prepare_cached(&sql)?;
                let rows = query.query_map([now_ms - OVERDUE_MS], row)?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Lets an overdue row go to a session. Returns whether it still waits.
    pub async fn release(&self, ulid: Ulid, now_ms: i64) -> Result<bool> {
        self.db
            .write(move |c| {
                let sql = "UPDATE session_inbox SET released_at = ?2 WHERE ulid = ?1 AND state = 'queued'";
                Ok(c.prepare_cached(sql)?.execute(params![ulid.to_string(), now_ms])? == 1)
            })
            .await
    }
}

/// The id after `last`: of `now_ms`, or one above `last` when the clock stands or runs back.
fn next_ulid(last: Option<Ulid>, now_ms: i64, random: u128) -> Ulid {
    let fresh = Ulid::from_parts(u64::try_from(now_ms).unwrap_or(0), random);
    match last {
        Some(last) if fresh.timestamp_ms() <= last.timestamp_ms() => {
            last.increment().unwrap_or_else(|_| Ulid::from_parts(last.timestamp_ms() + 1, random))
        }
        _ => fresh,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{input, journal};
    use super::*;
    use crate::ids::SessionId;
    use crate::ports::InputKind;

    #[tokio::test]
    async fn the_same_key_is_the_same_row_for_ever() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = journal(dir.path());
        let first = journal.enqueue(input("threadline:a:1", "threadline:a:t"), 10).await.expect("first");
        assert!(first.fresh);
        let again = journal.enqueue(input("threadline:a:1", "threadline:a:t"), 20).await.expect("again");
        assert_eq!(again, Enqueued { fresh: false, ..first });
        let session = SessionId::random();
        journal.mark_injected(first.ulid, session, 30).await.expect("injected");
        let again = journal.enqueue(input("threadline:a:1", "threadline:a:t"), 40).await.expect("again");
        assert_eq!((again.ulid, again.state), (first.ulid, InputState::Injected));
    }

    #[tokio::test]
    async fn rows_go_in_order_and_steering_ones_go_first() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = journal(dir.path());
        let conversation: ConversationKey = "local:x".parse().expect("key");
        let mut ids = Vec::new();
        for n in 0..3 {
            ids.push(journal.enqueue(input(&format!("cli:{n}"), "local:x"), 5).await.expect("row").ulid);
        }
        assert!(ids.is_sorted());
        let steer = SessionInput { steer: true, ..input("cli:now", "local:x") };
        let steer = journal.enqueue(steer, 6).await.expect("row").ulid;
        let session = SessionId::random();
        let mut order = Vec::new();
        while let Some(row) = journal.next_queued(&conversation, 9).await.expect("next") {
            assert!(journal.begin_attempt(row.ulid, session).await.expect("attempt"));
            assert_eq!(
                journal.mark_injected(row.ulid, session, 9).await.expect("injected"),
                Some(InputState::Injected)
            );
            order.push(row.ulid);
        }
        assert_eq!(order, [steer, ids[0], ids[1], ids[2]]);
    }

    #[tokio::test]
    async fn overdue_rows_wait_for_a_word_but_those_of_agents_do_not() {
        let dir = tempfile::tempdir().expect("dir");
        let journal = journal(dir.path());
        let conversation: ConversationKey = "local:x".parse().expect("key");
        let queue = async |key: &str, kind, at| {
            let input = SessionInput { kind, ..input(key, "local:x") };
            journal.enqueue(input, at).await.expect("row").ulid
        };
        let old = queue("cli:1", InputKind::User, 0).await;
        let dropped = queue("cli:2", InputKind::System, 1).await;
        let agent = queue("tl:3", InputKind::Agent, 2).await;
        let next =
            async |now| journal.next_queued(&conversation, now).await.expect("row").map(|row| row.ulid);
        assert_eq!(next(OVERDUE_MS - 1).await, Some(old));
        assert_eq!(next(OVERDUE_MS + 5).await, Some(agent));
        let ulids: Vec<Ulid> =
            journal.overdue(OVERDUE_MS + 5).await.expect("overdue").into_iter().map(|row| row.ulid).collect();
        assert_eq!(ulids, [old, dropped]);
        assert!(journal.expire_one(dropped, 9).await.expect("expired"));
        assert!(!journal.expire_one(dropped, 9).await.expect("expired"), "it does not wait any more");
        assert!(journal.release(old, 9).await.expect("released"));
        assert_eq!(next(OVERDUE_MS + 5).await, Some(old));
        assert!(journal.overdue(OVERDUE_MS + 5).await.expect("overdue").is_empty());
    }

    proptest! {
        #[test]
        fn ids_only_grow_whatever_the_clock_does(times in prop::collection::vec(0_i64..5_000, 1..50)) {
            let mut last = None;
            for (n, now) in times.into_iter().enumerate() {
                let next = next_ulid(last, now, u128::MAX - (n as u128));
                prop_assert!(last.is_none_or(|l| l < next));
                last = Some(next);
            }
        }
    }
}
