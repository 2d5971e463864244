//! `threadline.sqlite`: what must outlive the process, behind typed operations.
//!
//! Every operation that belongs together is one transaction. Times are integer Unix milliseconds and are always
//! given by the caller.

mod approvals;
mod inbound;
mod invitations;
mod ledger;
mod limits;
mod mail;
mod messages;
mod outbox;
mod peers;
mod spool;
#[cfg(test)]
mod tests;
mod threads;
mod types;

use std::path::Path;

use instar_durable::{Database, DatabaseError, Durability, Migration, OpenOptions};
use sha2::{Digest, Sha256};

pub use approvals::{ApprovalDraft, ApprovalQueueLimits, Decided};
pub use inbound::{APPROVED, Accepted, HELD_BY_PAUSE, Inbound};
pub use invitations::{IssuedInvitation, Join};
pub use ledger::{LedgerFigures, LedgerRow, LedgerStatus};
pub use mail::SEALED;
pub use outbox::{DeliveryHealth, DeliveryRow, OutboundDraft, OutboxRow, Queued};
pub use peers::KnownPeer;
pub use spool::{SpoolDepth, SpoolEntry, SpoolRow, SpoolState, Spooled, TEXT_ELSEWHERE, UNKNOWN_SENDER};
pub use threads::{ChainCheck, SearchHit, ThreadFilter};
pub use types::{
    Approval, ApprovalKind, ApprovalStatus, Auth, Direction, MessageState, Opener, StoredMessage, Thread,
};

const MIGRATIONS: &[Migration] = &[
    Migration { sql: include_str!("schema.sql") },
    Migration { sql: include_str!("schema_2.sql") },
    Migration { sql: include_str!("schema_3.sql") },
    Migration { sql: include_str!("schema_4.sql") },
    Migration { sql: include_str!("schema_5.sql") },
    Migration { sql: include_str!("schema_6.sql") },
];

/// Why an operation on the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused; nothing of the operation took place.
    #[error("threadline store: {0}")]
    Database(#[from] DatabaseError),
    /// A row holds something this build does not understand.
    #[error("threadline store: {table} row {key} is not readable: {detail}")]
    BadRow {
        /// Table of the row.
        table: &'static str,
        /// Key of the row.
        key: String,
        /// What was wrong.
        detail: String,
    },
    /// Another message already answers this one.
    #[error("message {in_reply_to} is already answered by {by}")]
    AlreadyAnswered {
        /// The message that was to be answered.
        in_reply_to: String,
        /// The message that answers it.
        by: String,
    },
    /// The queue of approvals takes no more.
    #[error("the approval queue is full ({limit} {scope})")]
    ApprovalQueueFull {
        /// Rows that may wait.
        limit: u32,
        /// Whose rows.
        scope: &'static str,
    },
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.into())
    }
}

impl StoreError {
    /// Whether the disk is full or the file system refuses writes.
    pub fn is_storage_full(&self) -> bool {
        matches!(self, Self::Database(error) if error.is_storage_full())
    }
}

/// Handle to `threadline.sqlite`; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    db: Database,
}

impl Store {
    /// Opens or creates the file and migrates it. Blocks.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { db: Database::open(OpenOptions::new(path, MIGRATIONS, Durability::Full))? })
    }

    /// Finishes queued work and closes the file. Blocks.
    pub fn close(&self) {
        self.db.close();
    }

    /// Whether any message or conversation was ever stored.
    pub fn has_history_blocking(&self) -> Result<bool, StoreError> {
        Ok(self.db.read_blocking(|c| {
            c.query_row(
                "SELECT EXISTS (SELECT 1 FROM conversations) OR EXISTS (SELECT 1 FROM spool)",
                [],
                |r| r.get(0),
            )
        })?)
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
