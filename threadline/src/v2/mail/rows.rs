//! The form in which a store keeps [`Records`]: one row per record, a kind, a key and a value of bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    DeviceRow, DueReceipt, InThread, InThreadKey, InboxRow, OutRow, OutThread, PeerRow, Records, SeenRow,
    SessionKey, SessionRow, SpoolKey, SpoolRow, Write,
};
use crate::ThreadId;
use crate::v2::strict::encode_array;
use crate::v2::{Id, Key};

/// What a row is. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RowKind {
    /// This device.
    Device = 1,
    /// A peer.
    Peer = 2,
    /// A session.
    Session = 3,
    /// A message of ours.
    Out = 4,
    /// Our place in a thread.
    OutThread = 5,
    /// A received envelope.
    Spool = 6,
    /// A message that was opened.
    Seen = 7,
    /// A message to be handed on.
    Inbox = 8,
    /// How far a thread was handed on.
    InThread = 9,
    /// A due receipt.
    Receipt = 10,
    /// The newest message id of ours.
    LastId = 11,
}

/// One row to put, or to remove when it has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    /// What it is.
    pub kind: RowKind,
    /// Its key.
    pub key: Vec<u8>,
    /// Its content; removed when absent.
    pub value: Option<Vec<u8>>,
}

/// A stored row that this build cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a stored row of kind {kind} is not readable: {reason}")]
pub struct RowError {
    /// Its kind.
    pub kind: i64,
    /// Why.
    pub reason: String,
}

fn put<K: Serialize, V: Serialize>(kind: RowKind, key: &K, value: &V) -> StoredRow {
    StoredRow { kind, key: encode_array(key), value: Some(encode_array(value)) }
}

fn remove<K: Serialize>(kind: RowKind, key: &K) -> StoredRow {
    StoredRow { kind, key: encode_array(key), value: None }
}

impl Write {
    /// The change of the store.
    pub fn to_row(&self) -> StoredRow {
        match self {
            Self::Device(row) => put(RowKind::Device, &(), row),
            Self::LastId(id) => put(RowKind::LastId, &(), id),
            Self::Peer(key, row) => put(RowKind::Peer, key, row),
            Self::Session(row) => put(RowKind::Session, &(row.peer, row.device, &row.id), row),
            Self::DropSession(key) => remove(RowKind::Session, key),
            Self::Out(row) => put(RowKind::Out, &(row.peer, row.id), row),
            Self::DropOut(peer, id) => remove(RowKind::Out, &(peer, id)),
            Self::OutThread(peer, thread, row) => put(RowKind::OutThread, &(peer, thread), row),
            Self::DropOutThread(peer, thread) => remove(RowKind::OutThread, &(peer, thread)),
            Self::Spool(row) => put(RowKind::Spool, &row.key(), row),
            Self::DropSpool(key) => remove(RowKind::Spool, key),
            Self::Seen(peer, id, row) => put(RowKind::Seen, &(peer, id), row),
            Self::DropSeen(peer, id) => remove(RowKind::Seen, &(peer, id)),
            Self::Inbox(row) => put(RowKind::Inbox, &(row.peer, row.id), row),
            Self::Dispatched(peer, id) => remove(RowKind::Inbox, &(peer, id)),
            Self::InThread(key, row) => put(RowKind::InThread, key, row),
            Self::Receipt(peer, id, row) => put(RowKind::Receipt, &(peer, id), row),
            Self::DropReceipt(peer, id) => remove(RowKind::Receipt, &(peer, id)),
        }
    }
}

impl Records {
    /// Puts a stored row back.
    pub fn restore(&mut self, kind: i64, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        const DEVICE: i64 = RowKind::Device as i64;
        const PEER: i64 = RowKind::Peer as i64;
        const SESSION: i64 = RowKind::Session as i64;
        const OUT: i64 = RowKind::Out as i64;
        const OUT_THREAD: i64 = RowKind::OutThread as i64;
        const SPOOL: i64 = RowKind::Spool as i64;
        const SEEN: i64 = RowKind::Seen as i64;
        const INBOX: i64 = RowKind::Inbox as i64;
        const IN_THREAD: i64 = RowKind::InThread as i64;
        const RECEIPT: i64 = RowKind::Receipt as i64;
        const LAST_ID: i64 = RowKind::LastId as i64;
        match kind {
            LAST_ID => self.last_id = Some(read::<Id>(kind, value)?),
            DEVICE => self.device = Some(read::<DeviceRow>(kind, value)?),
            PEER => {
                self.peers.insert(read::<Key>(kind, key)?, read::<PeerRow>(kind, value)?);
            }
            SESSION => {
                self.sessions.insert(read::<SessionKey>(kind, key)?, read::<SessionRow>(kind, value)?);
            }
            OUT => {
                self.outbox.insert(read::<(Key, Id)>(kind, key)?, read::<OutRow>(kind, value)?);
            }
            OUT_THREAD => {
                let key = read::<(Key, ThreadId)>(kind, key)?;
                self.out_threads.insert(key, read::<OutThread>(kind, value)?);
            }
            SPOOL => {
                self.spool.insert(read::<SpoolKey>(kind, key)?, read::<SpoolRow>(kind, value)?);
            }
            SEEN => {
                self.seen.insert(read::<(Key, Id)>(kind, key)?, read::<SeenRow>(kind, value)?);
            }
            INBOX => {
                self.inbox.insert(read::<(Key, Id)>(kind, key)?, read::<InboxRow>(kind, value)?);
            }
            IN_THREAD => {
                self.in_threads.insert(read::<InThreadKey>(kind, key)?, read::<InThread>(kind, value)?);
            }
            RECEIPT => {
                self.receipts.insert(read::<(Key, Id)>(kind, key)?, read::<DueReceipt>(kind, value)?);
            }
            _ => return Err(RowError { kind, reason: "a newer version wrote it".into() }),
        }
        Ok(())
    }
}

fn read<T: DeserializeOwned>(kind: i64, bytes: &[u8]) -> Result<T, RowError> {
    rmp_serde::from_slice(bytes).map_err(|error| RowError { kind, reason: error.to_string() })
}
