//! The directory, bans and first logins on every relay of a cluster: rows that change here go to the engine, rows that
//! changed elsewhere come from it. Searches stay local.
//!
//! What changes a row is not asked: triggers of the writing connection note which rows to send.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::kv::{Entry, Operation};
use futures::StreamExt as _;
use instar_durable::{Database, DatabaseError};
use rusqlite::types::{Value as Sql, ValueRef};
use rusqlite::{Connection, OptionalExtension as _, params_from_iter};
use serde_json::{Map, Value, json};
use threadline::Fingerprint;

use super::engine::{Engine, bytes, note, now_ms};
use super::lanes::FromEngine;
use super::layout::{self, BANS, DEVICES, DIRECTORY, SEEN};
use crate::core::Event;

/// How often changed rows are looked for; others see them within a second.
const EVERY: Duration = Duration::from_millis(300);
const ROWS: u32 = 256;

struct Table {
    name: &'static str,
    bucket: layout::Bucket,
    /// Of this relay alone.
    local: &'static [&'static str],
    /// Columns that keep the smaller value.
    smallest: &'static [&'static str],
}

/// Devices of an identity are one value, which [`super::devices`] writes; it goes when the identity is erased.
static ERASED: Table = Table { name: "device_lists", bucket: DEVICES, local: &[], smallest: &[] };

static TABLES: [Table; 3] = [
    Table { name: "agents", bucket: DIRECTORY, local: &["id"], smallest: &[] },
    Table { name: "bans", bucket: BANS, local: &[], smallest: &[] },
    Table { name: "first_seen", bucket: SEEN, local: &[], smallest: &["at"] },
];

impl Engine {
    /// Keeps the tables of `registry` like those of the other relays.
    pub async fn replicate(self: Arc<Self>) {
        let registry = self.registry.clone();
        // The first relay brings its entries along. Later, what a relay kept while it was away is older than what others
        // sent meanwhile.
        for table in &TABLES {
            let values = self.bucket(&table.bucket).status().await.map(|status| status.values());
            if matches!(values, Ok(0))
                && let Err(error) = registry.write(|c| bring_along(c, table)).await
            {
                note(&error);
            }
        }
        let taken = TABLES.iter().map(|table| Box::pin(self.take_rows(table, &registry)));
        tokio::join!(self.send_rows(&registry), futures::future::join_all(taken));
    }

    async fn send_rows(&self, registry: &Database) {
        loop {
            let changed = registry.write(changes).await.unwrap_or_else(|error| {
                note(&error);
                Vec::new()
            });
            let mut unsent = Vec::new();
            for Change { table, key, row } in &changed {
                let (bucket, name) = (self.bucket(&table.bucket), table.key(key));
                let sent = match row {
                    Some(row) => {
                        bucket.put(&name, bytes(row.to_string())).await.map(drop).map_err(|e| e.to_string())
                    }
                    None => bucket.delete(&name).await.map_err(|e| e.to_string()),
                };
                if let Err(error) = sent {
                    note(&error);
                    unsent.push((table.name, key.clone()));
                }
            }
            if !unsent.is_empty() {
                // Sent with the next ones.
                let again = registry.write(move |c| {
                    let mut insert =
                        c.prepare_cached("INSERT OR IGNORE INTO temp.changed VALUES (?1, ?2)")?;
                    unsent.iter().try_for_each(|(table, key)| insert.execute((table, key)).map(drop))?;
                    Ok::<(), DatabaseError>(())
                });
                let _ = again.await;
            }
            if changed.len() < ROWS as usize {
                tokio::time::sleep(EVERY).await;
            }
        }
    }

    async fn take_rows(&self, table: &'static Table, registry: &Database) {
        loop {
            if let Ok(mut watch) = self.bucket(&table.bucket).watch_with_history(">").await {
                while let Some(Ok(entry)) = watch.next().await {
                    self.take_row(table, registry, &entry).await;
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn take_row(&self, table: &'static Table, registry: &Database, entry: &Entry) {
        let Some(key) = read_row_key(&entry.key) else { return };
        let row: Option<Value> = match entry.operation {
            Operation::Put => match serde_json::from_slice(&entry.value) {
                Ok(row) => Some(row),
                Err(_) => return,
            },
            Operation::Delete | Operation::Purge => None,
        };
        let banned_until = (table.name == BAN_TABLE).then(|| row.as_ref()?["expires_at"].as_i64()).flatten();
        let taken =
            registry.write(move |c| apply(c, table, key, row.as_ref()).map_err(DatabaseError::from)).await;
        if let Err(error) = taken {
            tracing::warn!(%error, table = table.name, "a row of another relay cannot be taken over");
        }
        let address = key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes));
        if let (Some(until_ms), Some(address)) = (banned_until.filter(|until| *until > now_ms()), address) {
            let _ = self.told.send(FromEngine::Event(Event::Banned { address, until_ms })).await;
        }
    }
}

const BAN_TABLE: &str = "bans";

impl Table {
    /// Where the row of an identity lies in the bucket.
    fn key(&self, key: &[u8]) -> String {
        if self.name == ERASED.name { hex::encode(key.get(..16).unwrap_or(key)) } else { row_key(key) }
    }
}

struct Change {
    table: &'static Table,
    key: Vec<u8>,
    /// `None`: it is gone.
    row: Option<Value>,
}

/// Rows are under another kind of key than addresses, which share a bucket with them.
fn row_key(key: &[u8]) -> String {
    format!("row.{}", hex::encode(key))
}

fn read_row_key(text: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    hex::decode_to_slice(text.strip_prefix("row.")?, &mut key).ok()?;
    Some(key)
}

/// Begins to note changes.
pub(super) fn prepare(c: &Connection) -> Result<(), DatabaseError> {
    c.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS changed(name TEXT NOT NULL, key BLOB NOT NULL, PRIMARY KEY(name, key));
         CREATE TEMP TABLE IF NOT EXISTS taking(yes INTEGER);",
    )?;
    for Table { name, .. } in &TABLES {
        for (event, row) in [("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old")] {
            c.execute_batch(&format!(
                "CREATE TEMP TRIGGER IF NOT EXISTS note_{name}_{event} AFTER {event} ON main.{name}
                 WHEN NOT EXISTS (SELECT 1 FROM taking)
                 BEGIN INSERT OR IGNORE INTO changed VALUES ('{name}', {row}.public_key); END;"
            ))?;
        }
    }
    c.execute_batch(&format!(
        "CREATE TEMP TRIGGER IF NOT EXISTS note_erased AFTER DELETE ON main.{name}
         WHEN NOT EXISTS (SELECT 1 FROM taking)
         BEGIN INSERT OR IGNORE INTO changed VALUES ('{name}', old.public_key); END;",
        name = ERASED.name
    ))?;
    Ok(())
}

/// Everything in a table counts as changed.
fn bring_along(c: &Connection, table: &Table) -> Result<(), DatabaseError> {
    let name = table.name;
    c.execute(
        &format!("INSERT OR IGNORE INTO temp.changed SELECT '{name}', public_key FROM main.{name}"),
        [],
    )?;
    Ok(())
}

/// Takes some of what was noted.
fn changes(c: &Connection) -> Result<Vec<Change>, DatabaseError> {
    let mut noted = c.prepare_cached("SELECT name, key FROM temp.changed LIMIT ?1")?;
    let noted: Vec<(String, Vec<u8>)> =
        noted.query_map([ROWS], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let mut changes = Vec::with_capacity(noted.len());
    for (name, key) in noted {
        c.prepare_cached("DELETE FROM temp.changed WHERE name = ?1 AND key = ?2")?.execute((&name, &key))?;
        if let Some(table) = TABLES.iter().find(|table| table.name == name) {
            let row = read(c, table, &key)?;
            changes.push(Change { table, key, row });
        } else if name == ERASED.name {
            changes.push(Change { table: &ERASED, key, row: None });
        }
    }
    Ok(changes)
}

fn read(c: &Connection, table: &Table, key: &[u8]) -> rusqlite::Result<Option<Value>> {
    let mut statement =
        c.prepare_cached(&format!("SELECT * FROM main.{} WHERE public_key = ?1", table.name))?;
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let read = statement.query_row([key], |row| {
        let mut fields = Map::new();
        for (at, column) in
            columns.iter().enumerate().filter(|(_, column)| !table.local.contains(&column.as_str()))
        {
            let value = match row.get_ref(at)? {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(number) => number.into(),
                ValueRef::Real(number) => number.into(),
                ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned().into(),
                ValueRef::Blob(blob) => json!({"hex": hex::encode(blob)}),
            };
            fields.insert(column.clone(), value);
        }
        Ok(Value::Object(fields))
    });
    read.optional()
}

/// Makes a row like that of another relay; an unknown column of a newer one is left out.
fn apply(c: &Connection, table: &Table, key: [u8; 32], row: Option<&Value>) -> rusqlite::Result<()> {
    let Some(row) = row else {
        return quietly(c, |c| {
            c.prepare_cached(&format!("DELETE FROM main.{} WHERE public_key = ?1", table.name))?
                .execute([&key[..]])?;
            Ok(())
        });
    };
    let Some(fields) = row.as_object() else { return Ok(()) };
    if fields.get("public_key").and_then(sql) != Some(Sql::Blob(key.to_vec())) {
        return Ok(());
    }
    let known: Vec<String> = {
        let mut statement = c.prepare_cached("SELECT name FROM pragma_table_info(?1)")?;
        statement.query_map([table.name], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?
    };
    let taken: Vec<(&String, Sql)> = fields
        .iter()
        .filter(|(column, _)| known.contains(column) && !table.local.contains(&column.as_str()))
        .filter_map(|(column, value)| Some((column, sql(value)?)))
        .collect();
    let columns: Vec<&str> = taken.iter().map(|(column, _)| column.as_str()).collect();
    let places: Vec<String> = (1..=taken.len()).map(|n| format!("?{n}")).collect();
    let updates: Vec<String> = columns
        .iter()
        .map(|column| {
            let smallest = table.smallest.contains(column);
            if smallest {
                format!("{column}=min({column}, excluded.{column})")
            } else {
                format!("{column}=excluded.{column}")
            }
        })
        .collect();
    let text = format!(
        "INSERT INTO main.{}({}) VALUES ({}) ON CONFLICT(public_key) DO UPDATE SET {}",
        table.name,
        columns.join(","),
        places.join(","),
        updates.join(",")
    );
    let values: Vec<Sql> = taken.into_iter().map(|(_, value)| value).collect();
    quietly(c, |c| c.prepare_cached(&text)?.execute(params_from_iter(values)).map(drop))
}

/// Makes changes that are not noted.
pub(super) fn quietly(
    c: &Connection,
    change: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    c.execute("INSERT INTO temp.taking VALUES (1)", [])?;
    let changed = change(c);
    c.execute("DELETE FROM temp.taking", [])?;
    changed
}

fn sql(value: &Value) -> Option<Sql> {
    Some(match value {
        Value::Null => Sql::Null,
        Value::Number(number) => {
            number.as_i64().map(Sql::Integer).or_else(|| number.as_f64().map(Sql::Real))?
        }
        Value::String(text) => Sql::Text(text.clone()),
        Value::Object(_) => Sql::Blob(hex::decode(value["hex"].as_str()?).ok()?),
        Value::Bool(_) | Value::Array(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::registry::MIGRATIONS;

    fn registry() -> Connection {
        let c = Connection::open_in_memory().expect("memory");
        for migration in MIGRATIONS {
            c.execute_batch(migration.sql).expect("schema");
        }
        prepare(&c).expect("prepares");
        c
    }

    #[test]
    fn a_ban_and_its_lifting_come_over_and_do_not_go_back() {
        let (here, there) = (registry(), registry());
        let key = [5u8; 32];
        here.execute(
            "INSERT INTO bans(public_key, reason, pattern, banned_at, expires_at, strikes) VALUES (?1, 'r', 'spam', 1, 9, 2)",
            [&key[..]],
        )
        .expect("bans");
        let sent = changes(&here).expect("changes");
        assert_eq!(sent.len(), 1);
        assert!(changes(&here).expect("changes").is_empty(), "once");
        apply(&there, sent[0].table, key, sent[0].row.as_ref()).expect("applies");
        assert!(changes(&there).expect("changes").is_empty(), "what came is not sent back");
        let strikes: i64 = there.query_row("SELECT strikes FROM bans", [], |row| row.get(0)).expect("there");
        assert_eq!(strikes, 2);
        here.execute("DELETE FROM bans", []).expect("lifts");
        let sent = changes(&here).expect("changes");
        assert!(sent[0].row.is_none());
        apply(&there, sent[0].table, key, None).expect("applies");
        let left: i64 = there.query_row("SELECT count(*) FROM bans", [], |row| row.get(0)).expect("count");
        assert_eq!(left, 0);
    }

    #[test]
    fn the_earlier_first_login_counts() {
        let (here, there) = (registry(), registry());
        let key = [5u8; 32];
        for (relay, at) in [(&here, 20), (&there, 10)] {
            let insert = "INSERT INTO first_seen(public_key, address, at, source) VALUES (?1, ?2, ?3, ?4)";
            relay.execute(insert, (&key[..], &key[..16], at, &[0u8; 16][..])).expect("inserts");
        }
        let sent = changes(&here).expect("changes");
        apply(&there, sent[0].table, key, sent[0].row.as_ref()).expect("applies");
        let at: i64 = there.query_row("SELECT at FROM first_seen", [], |row| row.get(0)).expect("there");
        assert_eq!(at, 10);
    }

    proptest::proptest! {
        #[test]
        fn rows_that_mean_nothing_change_nothing_and_do_not_panic(text in ".{0,80}", number in proptest::prelude::any::<i64>()) {
            let there = registry();
            let row = json!({"public_key": {"hex": "05".repeat(32)}, "reason": number, "nonsense": text});
            for table in &TABLES {
                let _ = apply(&there, table, [5; 32], Some(&row));
                let _ = apply(&there, table, [6; 32], Some(&row));
                let _ = apply(&there, table, [5; 32], Some(&json!(text)));
            }
            proptest::prop_assert!(read_row_key(&text).is_none());
        }
    }
}
