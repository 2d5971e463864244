//! Mail that an earlier version kept in `queue.db`.

use rusqlite::params;
use threadline::{Fingerprint, MessageId};

use super::{Custody, Journal, enter, key};
use crate::store::medium::Medium;
use crate::store::record::{Mail, write_mail};

/// Messages moved at a time.
const PORTION: u32 = 64;

/// Why the mail of an earlier version stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// `queue.db` cannot be read or written.
    #[error("queue.db: {0}")]
    Database(#[from] rusqlite::Error),
    /// The log cannot be written.
    #[error("the log of the queue: {0}")]
    Log(#[from] std::io::Error),
}

impl<M: Medium> Custody<M> {
    /// Moves the messages of `queue.db` into the log; a crash in between repeats nothing. Returns how many.
    pub fn import(&mut self) -> Result<u64, ImportError> {
        let mut moved = 0;
        loop {
            let rows = self.old_rows()?;
            let Some(last) = rows.last().map(|(mail, _)| mail.seq) else { return Ok(moved) };
            self.begin();
            for (mail, sealed) in rows {
                let index_key = key(&self.cipher, &mail.sender, &mail.recipient, &mail.id);
                if self.index.get(index_key).is_some() {
                    continue;
                }
                let Some(body) = self.cipher.open(&mail.seq.to_be_bytes(), &sealed) else {
                    tracing::error!(
                        seq = mail.seq,
                        "a stored message cannot be opened with queue.key; it is dropped"
                    );
                    continue;
                };
                let mail = Mail { content: self.cipher.content_of(&body), ..mail };
                let place = self.place()?;
                write_mail(&mail, &body, &mut self.sealer, &mut self.batch);
                let segments = Journal::segments_mut(&mut self.journal);
                enter(&mut self.index, segments, index_key, &mail, place);
                self.last_seq = self.last_seq.max(mail.seq);
                moved += 1;
            }
            self.commit(true)?;
            let last = i64::try_from(last).unwrap_or(i64::MAX);
            self.peers.connection().execute("DELETE FROM msg WHERE seq <= ?1", [last])?;
        }
    }

    fn old_rows(&mut self) -> rusqlite::Result<Vec<(Mail, Vec<u8>)>> {
        let mut select = self.peers.connection().prepare(
            "SELECT seq, rcpt, sender, stored_at, expires_at, stranger, id, size, body FROM msg
             ORDER BY seq LIMIT ?1",
        )?;
        let rows = select.query_map(params![PORTION], |row| {
            let id = row.get::<_, String>(6)?.parse::<MessageId>();
            let mail = Mail {
                seq: u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0),
                recipient: Fingerprint::from_bytes(row.get(1)?),
                sender: Fingerprint::from_bytes(row.get(2)?),
                stored_ms: row.get(3)?,
                expires_ms: row.get(4)?,
                content: 0,
                stranger: row.get(5)?,
                control: false,
                id: id.map_err(|_| rusqlite::Error::InvalidQuery)?,
                size: row.get(7)?,
            };
            Ok((mail, row.get(8)?))
        })?;
        rows.collect()
    }
}
