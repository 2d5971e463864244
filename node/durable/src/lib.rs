//! SQLite, files and locks that survive a crash, written once for every owner of state.
//!
//! ```
//! use instar_durable::{Database, Durability, Migration, OpenOptions};
//!
//! const MIGRATIONS: &[Migration] = &[Migration { sql: "CREATE TABLE t(x INTEGER) STRICT" }];
//! let dir = std::env::temp_dir().join(format!("durable-doc-{}", std::process::id()));
//! std::fs::create_dir_all(&dir).unwrap();
//! let db = Database::open(OpenOptions::new(dir.join("t.sqlite"), MIGRATIONS, Durability::Full)).unwrap();
//! db.write_blocking(|tx| tx.execute("INSERT INTO t VALUES (1)", [])).unwrap();
//! let n: i64 = db.read_blocking(|c| c.query_row("SELECT count(*) FROM t", [], |r| r.get(0))).unwrap();
//! assert_eq!(n, 1);
//! # std::fs::remove_dir_all(&dir).unwrap();
//! ```

mod database;
mod file;
mod jsonl;
mod lock;

pub use database::{
    Database, DatabaseError, Durability, GroupFailure, Migration, OpenOptions, UncleanStop, quick_check,
};
pub use file::{AtomicWriteError, create_dir_private, set_aside, sync_dir, write_atomic};
pub use jsonl::{JsonlError, JsonlFile};
pub use lock::{FileLock, LockError};
