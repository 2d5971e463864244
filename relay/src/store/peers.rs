//! Who was ever seen here and who writes to whom: `queue.db`, with everything in memory that a decision needs.

use std::hash::{BuildHasher as _, RandomState};

use instar_durable::Migration;
use rusqlite::{Connection, params};
use threadline::Fingerprint;

use crate::maps::{NumberMap, NumberSet};

/// Schema of `queue.db`. Messages of the first version move to the log at the first start.
pub const MIGRATIONS: &[Migration] = &[Migration {
    sql: "
CREATE TABLE msg(
    seq INTEGER PRIMARY KEY AUTOINCREMENT, rcpt BLOB NOT NULL, sender BLOB NOT NULL, id TEXT NOT NULL,
    body BLOB NOT NULL, size INTEGER NOT NULL, stranger INTEGER NOT NULL, stored_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, tries INTEGER NOT NULL DEFAULT 0, hash BLOB NOT NULL,
    UNIQUE(sender, rcpt, id)) STRICT;
CREATE INDEX msg_rcpt ON msg(rcpt, seq);
CREATE INDEX msg_expires ON msg(expires_at);
CREATE TABLE qstat(
    rcpt BLOB PRIMARY KEY, n INTEGER NOT NULL, bytes INTEGER NOT NULL,
    strangers INTEGER NOT NULL, strangers_bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE pair(
    sender BLOB NOT NULL, rcpt BLOB NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY(sender, rcpt)) STRICT, WITHOUT ROWID;
CREATE TABLE recent(
    sender BLOB NOT NULL, rcpt BLOB NOT NULL, id TEXT NOT NULL, hash BLOB NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY(sender, rcpt, id)) STRICT, WITHOUT ROWID;
CREATE INDEX recent_at ON recent(at);
CREATE TABLE corr(
    owner BLOB NOT NULL, peer BLOB NOT NULL, last_at INTEGER NOT NULL,
    PRIMARY KEY(owner, peer)) STRICT, WITHOUT ROWID;
CREATE TABLE known(addr BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
",
}];

/// Seconds after which somebody one wrote to is no correspondent any more.
const CORRESPONDENT_S: i64 = 30 * 86_400;
/// A newer message to a correspondent is noted again after this many seconds.
const NOTED_FOR_S: i64 = 3_600;
/// Rows written at a time: more would hold up the mail behind them.
const ROWS: usize = 256;
const FORGET_EVERY_S: i64 = 86_400;

/// The tables and what is read from them, kept in memory: 17 bytes and up for an address or a pair, under keyed hashes
/// of them.
pub struct Peers {
    connection: Connection,
    hasher: RandomState,
    known: NumberSet<u64>,
    /// Unix seconds of the last message from one to another.
    wrote: NumberMap<u64, u32>,
    dirty: Vec<Note>,
    forgot_s: i64,
}

enum Note {
    Known(Fingerprint),
    Wrote { owner: Fingerprint, peer: Fingerprint, at_ms: i64 },
}

impl Peers {
    /// Reads the tables of a migrated database.
    pub fn load(connection: Connection) -> rusqlite::Result<Self> {
        let mut peers = Self {
            connection,
            hasher: RandomState::new(),
            known: NumberSet::default(),
            wrote: NumberMap::default(),
            dirty: Vec::new(),
            forgot_s: 0,
        };
        {
            let mut addresses = peers.connection.prepare("SELECT addr FROM known")?;
            let mut rows = addresses.query([])?;
            while let Some(row) = rows.next()? {
                peers.known.insert(peers.hasher.hash_one(Fingerprint::from_bytes(row.get(0)?)));
            }
            let mut pairs = peers.connection.prepare("SELECT owner, peer, last_at FROM corr")?;
            let mut rows = pairs.query([])?;
            while let Some(row) = rows.next()? {
                let (owner, peer) =
                    (Fingerprint::from_bytes(row.get(0)?), Fingerprint::from_bytes(row.get(1)?));
                peers.wrote.insert(peers.hasher.hash_one((owner, peer)), seconds(row.get(2)?));
            }
        }
        Ok(peers)
    }

    /// An agent logged in. Returns whether that is news.
    pub fn arrived(&mut self, who: Fingerprint) -> bool {
        let new = self.known.insert(self.hasher.hash_one(who));
        if new {
            self.dirty.push(Note::Known(who));
        }
        new
    }

    /// Whether it ever logged in.
    pub fn is_known(&self, who: &Fingerprint) -> bool {
        self.known.contains(&self.hasher.hash_one(who))
    }

    /// `owner` wrote to `peer`, who is its correspondent from now on. Returns whether that is noted anew.
    pub fn wrote(&mut self, owner: Fingerprint, peer: Fingerprint, now_ms: i64) -> bool {
        let at = self.wrote.entry(self.hasher.hash_one((owner, peer))).or_default();
        let note = i64::from(*at) + NOTED_FOR_S <= now_ms.div_euclid(1000);
        if note {
            *at = seconds(now_ms);
            self.dirty.push(Note::Wrote { owner, peer, at_ms: now_ms });
        }
        note
    }

    /// Whether `owner` wrote to `peer` in the last 30 days.
    pub fn is_correspondent(&self, owner: &Fingerprint, peer: &Fingerprint, now_ms: i64) -> bool {
        let at = self.wrote.get(&self.hasher.hash_one((*owner, *peer)));
        at.is_some_and(|at| i64::from(*at) + CORRESPONDENT_S > now_ms.div_euclid(1000))
    }

    /// Whether everything noted is in the tables.
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty()
    }

    /// Writes some of what was noted since the last time; the rest, or all of it after an error, stays noted.
    pub fn write_some(&mut self) -> rusqlite::Result<()> {
        let rows = self.dirty.len().min(ROWS);
        let transaction = self.connection.transaction()?;
        for note in &self.dirty[..rows] {
            match note {
                Note::Known(who) => transaction
                    .prepare_cached("INSERT OR IGNORE INTO known(addr) VALUES (?1)")?
                    .execute([who.as_bytes()])?,
                Note::Wrote { owner, peer, at_ms } => transaction
                    .prepare_cached(
                        "INSERT INTO corr(owner, peer, last_at) VALUES (?1, ?2, ?3)
                         ON CONFLICT(owner, peer) DO UPDATE SET last_at = max(last_at, ?3)",
                    )?
                    .execute(params![owner.as_bytes(), peer.as_bytes(), at_ms])?,
            };
        }
        transaction.commit()?;
        self.dirty.drain(..rows);
        Ok(())
    }

    /// Forgets who is no correspondent any more, once a day.
    pub fn forget(&mut self, now_ms: i64) -> rusqlite::Result<()> {
        let now_s = now_ms.div_euclid(1000);
        if self.forgot_s + FORGET_EVERY_S > now_s {
            return Ok(());
        }
        self.forgot_s = now_s;
        self.wrote.retain(|_, at| i64::from(*at) + CORRESPONDENT_S > now_s);
        self.connection
            .execute("DELETE FROM corr WHERE last_at <= ?1", [(now_s - CORRESPONDENT_S) * 1000])
            .map(drop)
    }

    /// The database.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

fn seconds(ms: i64) -> u32 {
    u32::try_from(ms.div_euclid(1000)).unwrap_or(0)
}
