//! What the core asks of storage, and the SQLite tables that answer.
//!
//! An operation is data: the core emits it, an edge runs it in a transaction, the answer comes back as an event.
//! Operations on the queue must take effect in the order in which they were emitted.

mod body;
pub mod queue;
pub mod registry;

pub use body::BodyCipher;
pub use queue::{
    Accept, Accepted, Departed, QueueAnswer, QueueFull, QueueOp, QueueRules, QueueTotals, Row, Standing,
};
pub use registry::{
    Listing, Login, LoginOutcome, LoginRules, Profile, RegistryAnswer, RegistryOp, TierCounts, Visibility,
};

use rusqlite::Connection;

/// One operation on either database.
#[derive(Debug, Clone)]
pub enum StoreOp {
    /// On `queue.db`.
    Queue(QueueOp),
    /// On `registry.db`.
    Registry(RegistryOp),
}

/// The answer to a [`StoreOp`].
#[derive(Debug, Clone)]
pub enum StoreAnswer {
    /// From `queue.db`.
    Queue(QueueAnswer),
    /// From `registry.db`.
    Registry(RegistryAnswer),
}

/// The operation was not carried out: nothing of it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("storage is unavailable")]
pub struct StoreFailed;

/// Both databases on plain connections, each operation in its own transaction.
///
/// For simulations and tests of the core; [`crate::serve`] uses writer threads with group commit instead.
pub struct Store {
    queue: Connection,
    registry: Connection,
    rules: QueueRules,
    cipher: BodyCipher,
}

impl Store {
    /// Empty databases in memory.
    pub fn in_memory(rules: QueueRules) -> rusqlite::Result<Self> {
        let queue = Connection::open_in_memory()?;
        let registry = Connection::open_in_memory()?;
        for migration in queue::MIGRATIONS {
            queue.execute_batch(migration.sql)?;
        }
        for migration in registry::MIGRATIONS {
            registry.execute_batch(migration.sql)?;
        }
        Ok(Self { queue, registry, rules, cipher: BodyCipher::new(&[0; 32]) })
    }

    /// Highest message number ever given out; the core continues after it.
    pub fn last_seq(&self) -> rusqlite::Result<u64> {
        queue::last_seq(&self.queue)
    }

    /// Totals of the queue, for the counters of the core.
    pub fn totals(&self) -> rusqlite::Result<QueueTotals> {
        queue::totals(&self.queue)
    }

    /// Runs one operation; when it fails nothing of it is stored.
    pub fn apply(&mut self, op: &StoreOp) -> Result<StoreAnswer, StoreFailed> {
        let run = |connection: &mut Connection| -> rusqlite::Result<StoreAnswer> {
            let transaction = connection.transaction()?;
            let answer = match op {
                StoreOp::Queue(op) => {
                    StoreAnswer::Queue(queue::apply(&transaction, op, &self.rules, &self.cipher)?)
                }
                StoreOp::Registry(op) => StoreAnswer::Registry(registry::apply(&transaction, op)?),
            };
            transaction.commit()?;
            Ok(answer)
        };
        let connection = match op {
            StoreOp::Queue(_) => &mut self.queue,
            StoreOp::Registry(_) => &mut self.registry,
        };
        run(connection).map_err(|error| {
            tracing::error!(%error, "storage operation failed");
            StoreFailed
        })
    }
}

/// A stored integer that is never negative.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// An integer as SQLite stores it.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
