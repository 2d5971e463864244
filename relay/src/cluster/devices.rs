//! Devices, keys and leases of an identity, for all relays: what the tables of a relay have of it is one value in the
//! engine, and only who knew the last one replaces it. The rules are those of a single relay, run on its own tables.

use std::time::Duration;

use async_nats::jetstream::kv::UpdateErrorKind;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use instar_durable::DatabaseError;
use rusqlite::types::{Value as Sql, ValueRef};
use rusqlite::{Connection, OptionalExtension as _, params_from_iter};
use serde::{Deserialize, Serialize};
use threadline::Fingerprint;
use threadline::v2::{Bin, Blob};

use super::engine::{Engine, bytes, failed};
use super::layout::DEVICES;
use super::replica::quietly;
use crate::store::StoreFailed;
use crate::store::registry::devices::{self, DeviceAnswer, DeviceOp, TABLES};

/// Relays that change the same identity at the same time try this often.
const TRIES: u32 = 12;
/// Longest pause between two tries, in milliseconds.
const PAUSE_MS: u64 = 40;
/// A question that changes nothing is answered with what is known here after this time.
const LOOK: Duration = Duration::from_secs(1);

/// What the engine has of an identity.
#[derive(Debug, PartialEq)]
enum Known {
    /// It never heard of it.
    Never,
    /// The identity was erased.
    Erased,
    Rows(Dossier),
}

/// Everything that the tables have of an identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Dossier {
    key: Bin<32>,
    sheets: Vec<Sheet>,
}

/// Rows of one table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sheet {
    table: String,
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Cell {
    Null,
    Number(i64),
    Text(String),
    Bytes(Blob),
}

impl Engine {
    /// Runs one operation on what all relays know of an identity.
    pub(super) async fn devices(&self, op: &DeviceOp) -> Result<DeviceAnswer, StoreFailed> {
        let address = op.identity().ok_or(StoreFailed)?;
        let reads = matches!(op, DeviceOp::Find { .. });
        for _ in 0..TRIES {
            let looked = if reads {
                tokio::time::timeout(LOOK, self.look_up(&address)).await.unwrap_or(Err(StoreFailed))
            } else {
                self.look_up(&address).await
            };
            let (known, revision) = match looked {
                Ok((known, revision)) => (Some(known), revision),
                // What this relay knows is better than nothing.
                Err(StoreFailed) if reads => (None, 0),
                Err(StoreFailed) => return Err(StoreFailed),
            };
            let asked = op.clone();
            let done = self.registry.write(move |c| {
                run(c, &address, known.as_ref(), &asked).map_err(DatabaseError::from)
            });
            let (answer, changed) = done.await.map_err(|e| failed(&e))?;
            let Some(dossier) = changed.filter(|_| !reads) else { return Ok(answer) };
            let value = rmp_serde::to_vec(&dossier).map_err(|e| failed(&e))?;
            match self.bucket(&DEVICES).update(address.to_string(), bytes(value), revision).await {
                Ok(_) => return Ok(answer),
                Err(error) if matches!(error.kind(), UpdateErrorKind::WrongLastRevision) => {}
                Err(error) => return Err(failed(&error)),
            }
            // Another relay was faster.
            let pause = 1 + u64::from(rand::random::<u16>()) % PAUSE_MS;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Err(failed(&"an identity is changed by too many relays at once"))
    }

    /// What the leader of the bucket has, and under which revision.
    async fn look_up(&self, address: &Fingerprint) -> Result<(Known, u64), StoreFailed> {
        let subject = format!("$KV.{}.{address}", DEVICES.name);
        let stored = match self.bucket(&DEVICES).stream.get_last_raw_message_by_subject(&subject).await {
            Ok(stored) => stored,
            Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => {
                return Ok((Known::Never, 0));
            }
            Err(error) => return Err(failed(&error)),
        };
        if stored.headers.get("KV-Operation").is_some_and(|operation| operation.as_str() != "PUT") {
            return Ok((Known::Erased, stored.sequence));
        }
        let dossier = read_dossier(&stored.payload, address).ok_or_else(|| {
            tracing::error!(%address, "devices of an identity in the engine cannot be read");
            StoreFailed
        })?;
        Ok((Known::Rows(dossier), stored.sequence))
    }
}

fn read_dossier(value: &[u8], address: &Fingerprint) -> Option<Dossier> {
    let dossier: Dossier = rmp_serde::from_slice(value).ok()?;
    dossier.key.0.starts_with(address.as_bytes()).then_some(dossier)
}

/// Runs an operation on what the engine knows. With the answer comes what it has to know now, if that is something else.
fn run(
    c: &Connection,
    address: &Fingerprint,
    known: Option<&Known>,
    op: &DeviceOp,
) -> rusqlite::Result<(DeviceAnswer, Option<Dossier>)> {
    let here = export(c, address)?;
    match known {
        Some(Known::Rows(dossier)) if here.as_ref() != Some(dossier) => quietly(c, |c| {
            erase(c, here.as_ref())?;
            take(c, dossier)
        })?,
        Some(Known::Erased) => quietly(c, |c| erase(c, here.as_ref()))?,
        // What one relay had for itself comes along, but for keys that may have been given out elsewhere.
        Some(Known::Never) => {
            if let Some(dossier) = &here {
                c.execute("DELETE FROM one_time_keys WHERE public_key=?1", [dossier.key.0])?;
            }
        }
        Some(Known::Rows(_)) | None => {}
    }
    let before = export(c, address)?;
    let answer = devices::apply(c, op)?;
    let after = export(c, address)?;
    let news = after != before || known == Some(&Known::Never);
    Ok((answer, after.filter(|_| news)))
}

fn erase(c: &Connection, known: Option<&Dossier>) -> rusqlite::Result<()> {
    known.map_or(Ok(()), |dossier| devices::erase(c, &dossier.key.0))
}

/// What the tables have of an identity, unless it is unknown.
fn export(c: &Connection, address: &Fingerprint) -> rusqlite::Result<Option<Dossier>> {
    let key: Option<[u8; 32]> = c
        .prepare_cached("SELECT public_key FROM device_lists WHERE address=?1")?
        .query_row([address.as_bytes()], |row| row.get(0))
        .optional()?;
    let Some(key) = key else { return Ok(None) };
    let mut sheets = Vec::with_capacity(TABLES.len());
    for table in TABLES {
        let mut statement =
            c.prepare_cached(&format!("SELECT * FROM {table} WHERE public_key=?1 ORDER BY 1, 2, 3"))?;
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let rows = statement.query_map([key], |row| {
            (0..columns.len()).map(|at| row.get_ref(at).map(cell)).collect::<rusqlite::Result<Vec<Cell>>>()
        })?;
        let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        sheets.push(Sheet { table: table.to_owned(), columns, rows });
    }
    Ok(Some(Dossier { key: Bin(key), sheets }))
}

/// Adds what another relay knows; tables and columns that this one does not have are left out.
fn take(c: &Connection, dossier: &Dossier) -> rusqlite::Result<()> {
    let own = Cell::Bytes(Blob(dossier.key.0.to_vec()));
    for Sheet { table, columns, rows } in &dossier.sheets {
        if !TABLES.contains(&table.as_str()) {
            continue;
        }
        let known: Vec<String> = c
            .prepare_cached("SELECT name FROM pragma_table_info(?1)")?
            .query_map([table], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let taken: Vec<&String> = columns.iter().filter(|column| known.contains(column)).collect();
        let places = vec!["?"; taken.len()].join(",");
        let names: Vec<&str> = taken.iter().map(|column| column.as_str()).collect();
        let text = format!("INSERT OR REPLACE INTO {table}({}) VALUES ({places})", names.join(","));
        for row in rows {
            let cells: Vec<(&String, &Cell)> =
                columns.iter().zip(row).filter(|(column, _)| known.contains(column)).collect();
            let owned = cells.iter().any(|(column, cell)| *column == "public_key" && **cell == own);
            if owned && cells.len() == taken.len() {
                let values = cells.into_iter().map(|(_, cell)| sql(cell));
                c.prepare_cached(&text)?.execute(params_from_iter(values))?;
            }
        }
    }
    Ok(())
}

fn cell(value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Null | ValueRef::Real(_) => Cell::Null,
        ValueRef::Integer(number) => Cell::Number(number),
        ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Cell::Bytes(Blob(bytes.to_vec())),
    }
}

fn sql(cell: &Cell) -> Sql {
    match cell {
        Cell::Null => Sql::Null,
        Cell::Number(number) => Sql::Integer(*number),
        Cell::Text(text) => Sql::Text(text.clone()),
        Cell::Bytes(bytes) => Sql::Blob(bytes.0.clone()),
    }
}
