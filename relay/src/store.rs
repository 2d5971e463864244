//! What the core asks of storage, and what answers: the log of the queue and the tables of the registry.
//!
//! An operation is data: the core emits it, an edge runs it in a transaction, the answer comes back as an event.
//! Operations on the queue must take effect in the order in which they were emitted.

mod blob_note;
mod body;
pub mod custody;
pub mod journal;
pub mod medium;
pub mod peers;
pub mod queue;
pub mod record;
pub mod registry;
#[cfg(test)]
mod suite;

pub use blob_note::{BlobNews, BlobNote, RelayName};
pub use body::BodyCipher;
pub use custody::Custody;
pub use journal::{JournalError, JournalRules};
pub use medium::{Directory, Media, Medium, Memory};
pub use peers::Peers;
pub use queue::{
    Accept, Accepted, Departed, Depth, Lead, OnlineAgent, QueueAnswer, QueueFull, QueueLook, QueueOp,
    QueueRules, QueueTotals, Row, Slot, Standing,
};
pub use registry::{
    Listing, Login, LoginOutcome, LoginRules, Profile, RegistryAnswer, RegistryOp, TierCounts, Visibility,
};

use rusqlite::Connection;

/// One operation on either database.
#[derive(Debug, Clone)]
pub enum StoreOp {
    /// On the queue.
    Queue(QueueOp),
    /// On `registry.db`.
    Registry(RegistryOp),
}

/// The answer to a [`StoreOp`].
#[derive(Debug, Clone)]
pub enum StoreAnswer {
    /// From the queue.
    Queue(QueueAnswer),
    /// From `registry.db`.
    Registry(RegistryAnswer),
}

/// The operation was not carried out: nothing of it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("storage is unavailable")]
pub struct StoreFailed;

/// Queue and registry in memory, each operation for itself.
///
/// For simulations and tests of the core; [`crate::serve`] uses a directory, threads and group commit instead.
pub struct Store {
    queue: Custody<Memory>,
    registry: Connection,
}

impl Store {
    /// An empty one.
    pub fn in_memory(rules: QueueRules) -> rusqlite::Result<Self> {
        let peers = Connection::open_in_memory()?;
        let registry = Connection::open_in_memory()?;
        for migration in peers::MIGRATIONS {
            peers.execute_batch(migration.sql)?;
        }
        for migration in registry::MIGRATIONS {
            registry.execute_batch(migration.sql)?;
        }
        let queue = in_memory(Media::default(), Peers::load(peers)?, rules, false)
            .expect("an empty log has no damage");
        Ok(Self { queue, registry })
    }

    /// On segments as they are found on a disk.
    pub fn on_segments(
        medium: Memory,
        rules: QueueRules,
        accept_data_loss: bool,
    ) -> Result<Self, JournalError> {
        let mut store = Self::in_memory(rules.clone()).expect("SQLite in memory");
        let (_, peers) = store.queue.into_parts();
        store.queue = in_memory(medium.into(), peers, rules, accept_data_loss)?;
        Ok(store)
    }

    /// Highest message number ever given out; the core continues after it.
    pub fn last_seq(&self) -> u64 {
        self.queue.last_seq()
    }

    /// Totals of the queue, for the counters of the core.
    pub fn totals(&self) -> QueueTotals {
        self.queue.totals()
    }

    /// Runs one operation; when it fails nothing of it is stored.
    pub fn apply(&mut self, op: &StoreOp) -> Result<StoreAnswer, StoreFailed> {
        match op {
            StoreOp::Queue(op) => {
                let answer = self.queue.apply(std::iter::once(op)).pop().unwrap_or(Err(StoreFailed));
                self.queue.tidy();
                answer.map(StoreAnswer::Queue)
            }
            StoreOp::Registry(op) => self.apply_to_registry(op).map(StoreAnswer::Registry).map_err(|error| {
                tracing::error!(%error, "storage operation failed");
                StoreFailed
            }),
        }
    }

    fn apply_to_registry(&mut self, op: &RegistryOp) -> rusqlite::Result<RegistryAnswer> {
        let transaction = self.registry.transaction()?;
        let answer = registry::apply(&transaction, op)?;
        transaction.commit()?;
        Ok(answer)
    }
}

/// Small segments, so that a simulation sees many of them.
fn in_memory(
    media: Media<Memory>,
    peers: Peers,
    rules: QueueRules,
    accept_data_loss: bool,
) -> Result<Custody<Memory>, JournalError> {
    let log = JournalRules { sync: true, segment: 64 << 10, boot: [0; 16], accept_data_loss };
    Custody::open(media, log, peers, rules, BodyCipher::new(&[0; 32]), 0)
}

/// A stored integer that is never negative.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
