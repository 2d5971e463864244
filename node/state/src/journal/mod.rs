//! `messaging.sqlite`: in this build the session inbox, the durable queue of everything a session is told, and the
//! kept answers of HTTP routes.

mod closing;
mod giving;
mod row;
mod waiting;

use std::path::{Path, PathBuf};

use instar_durable::{Database, DatabaseError, Durability, Migration, OpenOptions};
use rusqlite::{OptionalExtension, params};
use serde::Serialize;
use ulid::Ulid;

use self::row::{COLUMNS, row, state_at, state_text};
use crate::answers::Answers;
use crate::ids::{ConversationKey, SessionId};
use crate::ports::{InputState, Notice, Notices};

pub use row::InboxRow;
pub use waiting::{Enqueued, OVERDUE_MS};

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

    /// Moves the write-ahead log into the main file.
    pub async fn checkpoint(&self) -> Result<()> {
        self.db.checkpoint().await
    }

    /// Finishes queued work and closes the file. Blocks.
    pub fn close(&self) {
        self.db.close();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::EventBus;
    use crate::notices::NoticeBoard;
    use crate::ports::{InputKind, SessionInput};

    fn board() -> NoticeBoard {
        NoticeBoard::new(EventBus::default())
    }

    pub(super) fn journal(dir: &Path) -> Journal {
        Journal::open(&dir.join("messaging.sqlite"), &board(), 1).expect("open")
    }

    pub(super) fn input(key: &str, conversation: &str) -> SessionInput {
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
}
