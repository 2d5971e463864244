//! The messages that a node has, read from its store.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rusqlite::{Connection, OpenFlags};

use super::Agent;

/// One message of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its row; rows are numbered as they are stored.
    pub row: i64,
    /// Fingerprint of the other side.
    pub peer: String,
    /// Thread.
    pub thread: String,
    /// Message id.
    pub id: String,
    /// Whether this agent sent it.
    pub sent: bool,
    /// Text.
    pub body: String,
    /// How it came or went.
    pub transport: String,
    /// Delivery state.
    pub state: String,
}

/// A node's messages, opened for reading.
#[derive(Debug)]
pub struct MessageStore {
    database: Connection,
}

impl MessageStore {
    /// Opens the store of an agent's state folder.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        Ok(Self { database: database.with_context(|| path.display().to_string())? })
    }

    /// Ids of messages sent that nobody confirmed yet: what a relay says does not count.
    pub fn unconfirmed(&self) -> anyhow::Result<Vec<String>> {
        let mut query = self.database.prepare_cached(
            "SELECT message_id FROM deliveries WHERE sealed AND acked_at IS NULL ORDER BY created_at",
        )?;
        let rows = query.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Messages of the rows after `row`, oldest first.
    pub fn after(&self, row: i64) -> anyhow::Result<Vec<Stored>> {
        let mut query = self.database.prepare_cached(
            "SELECT id, peer_fp, thread_id, message_id, direction = 'out', COALESCE(body, ''), transport, state
             FROM messages WHERE id > ?1 ORDER BY id",
        )?;
        let rows = query.query_map([row], |row| {
            Ok(Stored {
                row: row.get(0)?,
                peer: row.get(1)?,
                thread: row.get(2)?,
                id: row.get(3)?,
                sent: row.get(4)?,
                body: row.get(5)?,
                transport: row.get(6)?,
                state: row.get(7)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl Agent {
    /// Where the node stores messages.
    pub fn store(&self) -> PathBuf {
        self.state().join("state/threadline.sqlite")
    }
}
