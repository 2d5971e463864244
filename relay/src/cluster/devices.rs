//! Devices, keys and leases of an identity, for all relays: what the tables of a relay have of it is one value in the
//! engine, and only who knew the last one replaces it. The rules are those of a single relay, run on its own tables.

use std::time::Duration;

use async_nats::jetstream::kv::UpdateErrorKind;
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
            let done = self
                .registry
                .write(move |c| run(c, &address, known.as_ref(), &asked).map_err(DatabaseError::from));
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
        let last = self.last_of(&DEVICES, &address.to_string()).await?;
        if last.stored.is_none() {
            return Ok((Known::Never, 0));
        }
        let Some(value) = last.value() else { return Ok((Known::Erased, last.revision)) };
        let dossier = read_dossier(value, address).ok_or_else(|| {
            tracing::error!(%address, "devices of an identity in the engine cannot be read");
            StoreFailed
        })?;
        Ok((Known::Rows(dossier), last.revision))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use threadline::v2::DeviceId;

    use super::*;
    use crate::store::registry::MIGRATIONS;
    use crate::store::registry::devices::{DeviceFacts, Greeted, Lease, Numbered, StoredKey};

    const NOW: i64 = 1_768_478_400_000;
    const KEY: [u8; 32] = [7; 32];
    const DEVICE: DeviceId = Bin([1; 16]);

    /// The tables of a relay that knows the identity.
    fn relay() -> Connection {
        let c = Connection::open_in_memory().expect("memory");
        for migration in MIGRATIONS {
            c.execute_batch(migration.sql).expect("schema");
        }
        super::super::replica::prepare(&c).expect("prepares");
        let insert = "INSERT INTO first_seen(public_key, address, at, source) VALUES (?1,?2,?3,?2)";
        c.execute(insert, rusqlite::params![KEY, &KEY[..16], NOW]).expect("known");
        c
    }

    /// The engine, and what relays do with it one after the other.
    struct World(Known);

    impl World {
        fn on(&mut self, relay: &Connection, op: &DeviceOp) -> DeviceAnswer {
            let address = op.identity().expect("of an identity");
            let (answer, changed) = run(relay, &address, Some(&self.0), op).expect("runs");
            if let Some(dossier) = changed {
                let value = rmp_serde::to_vec(&dossier).expect("encodes");
                let read = read_dossier(&value, &address).expect("reads back");
                assert_eq!(read, dossier);
                self.0 = Known::Rows(read);
            }
            answer
        }

        fn greet(&mut self, relay: &Connection, lease: u64) -> Greeted {
            let op = DeviceOp::Greet {
                facts: Box::new(facts()),
                lease: Some(lease),
                no_v1: false,
                private: false,
            };
            let DeviceAnswer::Greeted(greeted) = self.on(relay, &op) else { panic!("greeted") };
            greeted
        }

        fn claim(&mut self, relay: &Connection) -> Option<Vec<u8>> {
            let op = DeviceOp::ClaimKeys {
                to: KEY[..16].to_vec(),
                correspondent: true,
                one_time: true,
                now_ms: NOW,
            };
            let DeviceAnswer::Bundle(bundle) = self.on(relay, &op) else { panic!("a bundle") };
            bundle.and_then(|(mut devices, _)| devices.pop()).map(|(_, _, prekey, ..)| prekey.0)
        }
    }

    fn facts() -> DeviceFacts {
        let numbered = |byte| Numbered { signed: (Blob(vec![byte; 4]), Bin([byte; 64])), seq: 1 };
        DeviceFacts { key: KEY, device: DEVICE, cert: numbered(1), list: numbered(2), listed: vec![DEVICE] }
    }

    fn keys(ids: std::ops::Range<u64>) -> DeviceOp {
        let key = |key_id: u64| StoredKey {
            key_id,
            signed: (Blob(key_id.to_be_bytes().into()), Bin([3; 64])),
            not_after: NOW as u64 + 1_000,
        };
        let one_time = ids.map(key).collect();
        DeviceOp::PutKeys { facts: Box::new(facts()), one_time, fallback: None, now_ms: NOW }
    }

    #[test]
    fn relays_give_each_key_out_once_and_hold_one_lease() {
        let (here, there) = (relay(), relay());
        let mut world = World(Known::Never);
        assert_eq!(world.greet(&here, 5).granted, Lease::Holds);
        let kept = world.on(&here, &keys(1..4));
        assert!(matches!(kept, DeviceAnswer::Kept { have: 3, mark: 3 }), "{kept:?}");
        for (n, relay) in [&there, &here, &there].into_iter().enumerate() {
            assert_eq!(world.claim(relay), Some((n as u64 + 1).to_be_bytes().into()));
        }
        assert_eq!(world.claim(&here), None, "all are given out");
        let stale = world.greet(&there, 4);
        assert_eq!((stale.granted, stale.lease, stale.mark), (Lease::Stale, 5, (1, 3)));
        let lookup = DeviceOp::Find { to: KEY.to_vec(), now_ms: NOW };
        let DeviceAnswer::Found(Some(known)) = world.on(&there, &lookup) else { panic!("known") };
        assert_eq!(known.certs.len(), 1);
    }

    #[test]
    fn what_was_erased_does_not_come_back_and_old_keys_do_not_come_along() {
        let (here, there) = (relay(), relay());
        let mut world = World(Known::Never);
        world.greet(&here, 5);
        world.on(&here, &keys(1..4));
        world.greet(&there, 5);
        world.0 = Known::Erased;
        assert_eq!(world.claim(&there), None);
        // An engine that lost everything hears of the lease from a relay, and of no key.
        world.0 = Known::Never;
        assert_eq!(world.claim(&here), None);
        assert_eq!(world.greet(&there, 4).granted, Lease::Stale);
    }

    #[test]
    fn a_race_for_the_last_revision_is_run_again_on_what_the_winner_left() {
        let (here, there) = (relay(), relay());
        let mut world = World(Known::Never);
        world.greet(&here, 5);
        world.on(&here, &keys(1..3));
        let Known::Rows(before) = &world.0 else { panic!("rows") };
        let mut late = World(Known::Rows(before.clone()));
        assert_eq!(world.claim(&here), Some(1_u64.to_be_bytes().into()));
        assert_eq!(late.claim(&there), Some(1_u64.to_be_bytes().into()), "its write will be refused");
        assert_eq!(world.claim(&there), Some(2_u64.to_be_bytes().into()));
    }

    proptest! {
        #[test]
        fn what_is_no_dossier_is_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(read_dossier(&bytes, &Fingerprint::from_bytes([7; 16])), None);
        }

        #[test]
        fn rows_of_others_are_not_taken(key in any::<[u8; 32]>(), table in ".{0,20}", number in any::<i64>()) {
            let c = relay();
            let row = vec![Cell::Bytes(Blob(key.to_vec())), Cell::Number(number), Cell::Null];
            let columns = vec!["public_key".to_owned(), "seq".to_owned(), table.clone()];
            let mut sheets = vec![Sheet { table, columns: columns.clone(), rows: vec![row.clone()] }];
            sheets.extend(TABLES.map(|name| {
                Sheet { table: name.to_owned(), columns: columns.clone(), rows: vec![row.clone()] }
            }));
            let _ = take(&c, &Dossier { key: Bin(KEY), sheets });
            let count: u32 = c.query_row("SELECT count(*) FROM device_lists", [], |row| row.get(0)).expect("rows");
            prop_assert_eq!(count, 0);
        }
    }
}
