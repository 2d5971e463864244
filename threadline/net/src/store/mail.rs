//! Sealed mail: the records of [`threadline::v2::mail`], stored as that crate encodes them. A commit is a transaction.

use rusqlite::{Connection, params};
use threadline::v2::mail::{Commit, Records, StoredRow, Write};

use super::{Store, StoreError};

/// Kind, key and value.
type Row = (i64, Vec<u8>, Vec<u8>);

impl Store {
    /// Everything that was committed.
    pub async fn mail_load(&self) -> Result<Records, StoreError> {
        let rows = self
            .db
            .read(|c| -> Result<Vec<Row>, StoreError> {
                let mut statement = c.prepare("SELECT kind, key, value FROM mail")?;
                let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await?;
        let mut records = Records::default();
        for (kind, key, value) in rows {
            records.restore(kind, &key, &value).map_err(|error| StoreError::BadRow {
                table: "mail",
                key: hex::encode(&key),
                detail: error.to_string(),
            })?;
        }
        Ok(records)
    }

    /// Stores a commit, all of it or nothing. Only then may anything happen that it stands for.
    pub async fn mail_commit(&self, commit: &Commit) -> Result<(), StoreError> {
        let rows: Vec<StoredRow> = commit.writes.iter().map(Write::to_row).collect();
        self.db
            .write(move |c| -> Result<(), StoreError> { Ok(rows.iter().try_for_each(|row| put(c, row))?) })
            .await
    }
}

fn put(c: &Connection, row: &StoredRow) -> Result<(), rusqlite::Error> {
    let (kind, key) = (row.kind as i64, &row.key);
    match &row.value {
        Some(value) => c
            .prepare_cached("INSERT OR REPLACE INTO mail(kind, key, value) VALUES (?1, ?2, ?3)")?
            .execute(params![kind, key, value])?,
        None => {
            c.prepare_cached("DELETE FROM mail WHERE kind = ?1 AND key = ?2")?.execute(params![kind, key])?
        }
    };
    Ok(())
}
