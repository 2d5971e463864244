//! `messaging.sqlite`: in this build the session inbox, the durable queue of everything a session is told, and the
//! kept answers of HTTP routes.

use std::path::{Path, PathBuf};

use instar_durable::{Database, DatabaseError, Durability, Migration, OpenOptions};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use ulid::Ulid;

use crate::answers::Answers;
use crate::ids::{ConversationKey, SessionId};
use crate::ports::{InputKind, InputState, Notice, Notices, SessionInput};

const MIGRATIONS: &[Migration] = &[
    Migration {
        sql: "CREATE TABLE session_inbox(
            ulid TEXT PRIMARY KEY,
            inbox_key TEXT NOT NULL UNIQUE,
            conversation TEXT NOT NULL,
            kind TEXT NOT NULL,
            tag TEXT NOT NULL,
            body TEXT NOT NULL,
            steer INTEGER NOT NULL,
            state TEXT NOT NULL,
            session_id TEXT,
            attempts INTEGER NOT NULL DEFAULT 0,
            queued_at INTEGER NOT NULL,
            injected_at INTEGER,
            acked_at INTEGER,
            ended_at INTEGER,
            error TEXT
          ) STRICT;
          CREATE INDEX session_inbox_conversation ON session_inbox(conversation, state, steer DESC, ulid);
          CREATE INDEX session_inbox_session ON session_inbox(session_id, ulid);
          CREATE INDEX session_inbox_open ON session_inbox(state, ulid);",
    },
    Migration { sql: "ALTER TABLE session_inbox ADD COLUMN released_at INTEGER;" },
    crate::answers::MIGRATION,
];

/// Age at which a waiting row is not given to a session unless the owner says so, milliseconds.
pub const OVERDUE_MS: i64 = 6 * 3_600_000;
/// Rows that may go to a session; those queued up to ?2 are overdue. What agents say has limits of its own.
const DUE: &str = "(kind = 'agent' OR queued_at > ?2 OR released_at IS NOT NULL)";

const COLUMNS: &str = "ulid, inbox_key, conversation, kind, tag, body, steer, state, session_id, attempts, \
                       queued_at, injected_at, acked_at, error";

/// One row of the session inbox. Times are Unix milliseconds.
#[derive(Clone, PartialEq, Eq)]
pub struct InboxRow {
    /// Id that travels in the tag of the injected text.
    pub ulid: Ulid,
    /// What was accepted.
    pub input: SessionInput,
    /// Where it stands.
    pub state: InputState,
    /// Session that has it or was last given it.
    pub session: Option<SessionId>,
    /// Deliveries begun.
    pub attempts: u32,
    /// When it was accepted.
    pub queued_at: i64,
    /// When the runtime had it.
    pub injected_at: Option<i64>,
    /// When it was answered.
    pub acked_at: Option<i64>,
    /// Why the last delivery failed.
    pub error: Option<String>,
}

impl std::fmt::Debug for InboxRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InboxRow")
            .field("ulid", &self.ulid)
            .field("inbox_key", &self.input.inbox_key)
            .field("state", &self.state)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

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

/// Rows by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InboxCounts {
    /// Waiting for a session.
    pub queued: u64,
    /// With a session, not answered.
    pub injected: u64,
    /// Answered.
    pub acked: u64,
    /// Given up.
    pub failed: u64,
    /// Too old.
    pub expired: u64,
}

/// What [`Journal::list`] returns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InboxFilter {
    /// Rows of this conversation.
    pub conversation: Option<ConversationKey>,
    /// Rows last given to this session.
    pub session: Option<SessionId>,
    /// Rows in this state.
    pub state: Option<InputState>,
    /// Most rows, newest first; at most 1,000.
    pub limit: u32,
}

/// The message journal; cheap to clone. Every write is on disk when its call returns.
#[derive(Debug, Clone)]
pub struct Journal {
    db: Database,
}

type Result<T> = std::result::Result<T, DatabaseError>;

impl Journal {
    /// Opens or creates the journal. Blocks.
    ///
    /// A damaged file is renamed, an empty one takes its place, and the owner gets an urgent notice. A file of a
    /// newer version is refused untouched.
    pub fn open(path: &Path, notices: &dyn Notices, now_ms: i64) -> Result<Self> {
        match Self::open_plain(path) {
            Err(DatabaseError::Corrupt { detail, .. }) => {
                let aside = set_aside_with_wal(path, now_ms)
                    .map_err(|e| DatabaseError::Open { path: path.to_owned(), detail: e.to_string() })?;
                notices.notify(Notice {
                    cause: "messaging_db_corrupt".into(),
                    text: format!(
                        "The message journal was damaged ({detail}) and is now {}. Messages that no session had \
                         seen yet may be lost.",
                        aside.display()
                    ),
                    urgent: true,
                });
                Self::open_plain(path)
            }
            other => other,
        }
    }

    fn open_plain(path: &Path) -> Result<Self> {
        Ok(Self { db: Database::open(OpenOptions::new(path, MIGRATIONS, Durability::Full))? })
    }

    /// Answers of HTTP routes, which lie in the same file.
    pub fn answers(&self) -> Answers {
        Answers::new(self.db.clone())
    }

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

    /// Closes rows of a conversation that a session has or is being given: those up to and including `inbox_key`,
    /// or all. Returns what was closed.
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
                       AND (state = 'injected' OR (state = 'queued' AND session_id IS NOT NULL))
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

    /// The row with this ULID.
    pub async fn get(&self, ulid: Ulid) -> Result<Option<InboxRow>> {
        self.one("ulid", ulid.to_string()).await
    }

    /// The row with this inbox key.
    pub async fn by_key(&self, inbox_key: &str) -> Result<Option<InboxRow>> {
        self.one("inbox_key", inbox_key.to_owned()).await
    }

    async fn one(&self, column: &'static str, value: String) -> Result<Option<InboxRow>> {
        self.db
            .read(move |c| {
                let sql = format!("SELECT {COLUMNS} FROM session_inbox WHERE {column} = ?1");
                Ok(c.prepare_cached(&sql)?.query_row([value], row).optional()?)
            })
            .await
    }

    /// Rows that match, newest first.
    pub async fn list(&self, filter: InboxFilter) -> Result<Vec<InboxRow>> {
        self.db
            .read(move |c| {
                let sql = format!(
                    "SELECT {COLUMNS} FROM session_inbox
                     WHERE (?1 IS NULL OR conversation = ?1) AND (?2 IS NULL OR session_id = ?2)
                       AND (?3 IS NULL OR state = ?3)
                     ORDER BY ulid DESC LIMIT ?4"
                );
                let mut query = c.prepare_cached(&sql)?;
                let rows = query.query_map(
                    params![
                        filter.conversation.map(String::from),
                        filter.session.map(|s| s.to_string()),
                        filter.state.map(state_text),
                        filter.limit.min(1000)
                    ],
                    row,
                )?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Rows by state, of one conversation or of all.
    pub async fn counts(&self, conversation: Option<&ConversationKey>) -> Result<InboxCounts> {
        let conversation = conversation.map(|c| c.as_str().to_owned());
        self.db
            .read(move |c| {
                let mut query = c.prepare_cached(
                    "SELECT state, count(*) FROM session_inbox WHERE ?1 IS NULL OR conversation = ?1 GROUP BY state",
                )?;
                let rows = query.query_map([conversation], |r| Ok((state_at(r, 0)?, u64::from(r.get::<_, u32>(1)?))))?;
                let mut counts = InboxCounts::default();
                for entry in rows {
                    let (state, n) = entry?;
                    *match state {
                        InputState::Queued => &mut counts.queued,
                        InputState::Injected => &mut counts.injected,
                        InputState::Acked => &mut counts.acked,
                        InputState::Failed => &mut counts.failed,
                        InputState::Expired => &mut counts.expired,
                    } = n;
                }
                Ok(counts)
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

    /// Moves the write-ahead log into the main file.
    pub async fn checkpoint(&self) -> Result<()> {
        self.db.checkpoint().await
    }

    /// Finishes queued work and closes the file. Blocks.
    pub fn close(&self) {
        self.db.close();
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

fn set_aside_with_wal(path: &Path, now_ms: i64) -> std::io::Result<PathBuf> {
    let aside = instar_durable::set_aside(path, now_ms)?;
    for suffix in ["-wal", "-shm"] {
        let with = |p: &Path| {
            let mut name = p.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        match std::fs::rename(with(path), with(&aside)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

fn state_of(c: &Connection, ulid: Ulid) -> Result<Option<InputState>> {
    Ok(c.prepare_cached("SELECT state FROM session_inbox WHERE ulid = ?1")?
        .query_row([ulid.to_string()], |r| state_at(r, 0))
        .optional()?)
}

fn row(r: &Row<'_>) -> rusqlite::Result<InboxRow> {
    let kind: String = r.get(3)?;
    let session: Option<String> = r.get(8)?;
    Ok(InboxRow {
        ulid: ulid_at(r, 0)?,
        input: SessionInput {
            inbox_key: r.get(1)?,
            conversation: parsed(r, 2)?,
            kind: kind_from(&kind).ok_or_else(|| unreadable(3, "kind", &kind))?,
            tag: r.get(4)?,
            body: r.get(5)?,
            steer: r.get(6)?,
        },
        state: state_at(r, 7)?,
        session: session.map(|s| s.parse().map_err(|_| unreadable(8, "session id", &s))).transpose()?,
        attempts: r.get(9)?,
        queued_at: r.get(10)?,
        injected_at: r.get(11)?,
        acked_at: r.get(12)?,
        error: r.get(13)?,
    })
}

fn parsed<T: std::str::FromStr>(r: &Row<'_>, at: usize) -> rusqlite::Result<T> {
    let text: String = r.get(at)?;
    text.parse().map_err(|_| unreadable(at, "value", &text))
}

fn ulid_at(r: &Row<'_>, at: usize) -> rusqlite::Result<Ulid> {
    let text: String = r.get(at)?;
    Ulid::from_string(&text).map_err(|_| unreadable(at, "ULID", &text))
}

fn state_at(r: &Row<'_>, at: usize) -> rusqlite::Result<InputState> {
    let text: String = r.get(at)?;
    state_from(&text).ok_or_else(|| unreadable(at, "state", &text))
}

fn unreadable(at: usize, what: &str, text: &str) -> rusqlite::Error {
    let detail = format!("{text:?} is not a {what}");
    rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Text, detail.into())
}

fn state_text(state: InputState) -> &'static str {
    match state {
        InputState::Queued => "queued",
        InputState::Injected => "injected",
        InputState::Acked => "acked",
        InputState::Failed => "failed",
        InputState::Expired => "expired",
    }
}

fn state_from(text: &str) -> Option<InputState> {
    Some(match text {
        "queued" => InputState::Queued,
        "injected" => InputState::Injected,
        "acked" => InputState::Acked,
        "failed" => InputState::Failed,
        "expired" => InputState::Expired,
        _ => return None,
    })
}

fn kind_text(kind: InputKind) -> &'static str {
    match kind {
        InputKind::User => "user",
        InputKind::System => "system",
        InputKind::Agent => "agent",
    }
}

fn kind_from(text: &str) -> Option<InputKind> {
    Some(match text {
        "user" => InputKind::User,
        "system" => InputKind::System,
        "agent" => InputKind::Agent,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::EventBus;
    use crate::notices::NoticeBoard;
    use proptest::prelude::*;

    fn board() -> NoticeBoard {
        NoticeBoard::new(EventBus::default())
    }

    fn journal(dir: &Path) -> Journal {
        Journal::open(&dir.join("messaging.sqlite"), &board(), 1).expect("open")
    }

    fn input(key: &str, conversation: &str) -> SessionInput {
        SessionInput {
            inbox_key: key.into(),
            conversation: conversation.parse().expect("key"),
            kind: InputKind::Agent,
            body: format!("body of {key}"),
            tag: "threadline:t from 0123abcd \"bob\"".into(),
            steer: false,
        }
    }

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

    #[tokio::test]
    async fn a_damaged_journal_is_set_aside_with_an_urgent_notice() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("messaging.sqlite");
        std::fs::write(&path, vec![0x55; 8192]).expect("write");
        let board = board();
        let journal = Journal::open(&path, &board, 77).expect("open");
        assert_eq!(journal.counts(None).await.expect("counts"), InboxCounts::default());
        assert!(board.notices()[0].notice.urgent);
        assert_eq!(
            std::fs::metadata(dir.path().join("messaging.sqlite.corrupt-77")).expect("kept").len(),
            8192
        );
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
