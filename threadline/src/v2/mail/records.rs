//! What a node keeps of its sealed mail, and the commits that change it. A [`Commit`] is one transaction: after a crash
//! either all of its writes are there or none.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ThreadId;
use crate::delivery::DeliveryState;
use crate::v2::content::{Content, ReceiptStatus};
use crate::v2::objects::{DeviceCert, DeviceList, Signed};
use crate::v2::{Bin, Blob, DeviceId, Id, Key};

/// This device: its Olm account and what it published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRow {
    /// The device.
    pub device: DeviceId,
    /// For people, ≤ 32 bytes.
    pub name: String,
    /// Its Curve25519 key.
    pub curve: Bin<32>,
    /// The account, encrypted.
    pub pickle: Blob,
    /// Its certificate.
    pub cert: Signed<DeviceCert>,
    /// Our device list.
    pub list: Signed<DeviceList>,
    /// Next number of a prekey; rises for ever.
    pub next_key_id: u64,
    /// Signed one-time keys that their relay did not confirm yet.
    pub unpublished: Vec<UnpublishedKey>,
    /// The fallback key on offer, with its number.
    pub fallback: Option<(u64, Blob, Bin<64>)>,
    /// When it was made, Unix ms.
    pub fallback_at: u64,
}

/// A one-time key on its way to the one relay that will give it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpublishedKey {
    /// The relay.
    pub relay: Key,
    /// Its number.
    pub id: u64,
    /// The signed prekey.
    pub bytes: Blob,
    /// Its signature.
    pub signature: Bin<64>,
}

/// What is known of a peer's devices.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PeerRow {
    /// Its newest list.
    pub list: Option<Signed<DeviceList>>,
    /// Certificates of its devices.
    pub certs: BTreeMap<DeviceId, Signed<DeviceCert>>,
    /// A message spoke of a newer list than ours.
    pub wanted_list: u64,
    /// When keys were last claimed, Unix ms.
    pub claimed_at: u64,
    /// Devices that need a new session although one exists.
    pub renew: Vec<DeviceId>,
    /// When we last told one of its devices that a session is missing, Unix ms.
    pub complained: BTreeMap<DeviceId, u64>,
    /// When its devices told us so, Unix ms: the last 24 h.
    pub complaints: BTreeMap<DeviceId, Vec<u64>>,
}

/// A ratchet with one device of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// The peer.
    pub peer: Key,
    /// Its device.
    pub device: DeviceId,
    /// Olm's id of the session.
    pub id: String,
    /// The device's Curve25519 key.
    pub curve: Bin<32>,
    /// The ratchet, encrypted.
    pub pickle: Blob,
    /// Unix ms.
    pub created_at: u64,
    /// When it last opened a message or was made to be used, Unix ms: the highest is used to send.
    pub preferred_at: u64,
    /// Messages sealed with it.
    pub sealed: u32,
    /// Begun with a fallback key: weaker secrecy of the first message.
    pub weak: bool,
    /// The newest chains that we sealed in, oldest first.
    #[serde(default)]
    pub chains: Vec<Bin<32>>,
}

/// Key of a [`SessionRow`].
pub type SessionKey = (Key, DeviceId, String);

/// A message of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutRow {
    /// Recipient.
    pub peer: Key,
    /// Message id.
    pub id: Id,
    /// The content. Its number and its predecessor are set when it is first sealed and never change then.
    pub content: Content,
    /// Content hash, once it was sealed.
    pub hash: Option<Bin<32>>,
    /// The finished envelope; absent before it is sealed, or when it has to be sealed again.
    pub env: Option<Blob>,
    /// Devices it was sealed for, and with which sessions.
    pub legs: Vec<(DeviceId, String)>,
    /// How often it was sealed again.
    pub reseals: u8,
    /// Unix ms.
    pub created: u64,
    /// Unix ms.
    pub expires: u64,
    /// Where it is.
    pub state: DeliveryState,
    /// Whether a carrier holds these bytes.
    pub held: bool,
    /// Whether the peer said that it has the message: it is only kept to learn what became of it there.
    pub confirmed: bool,
    /// Attempts.
    pub attempts: u32,
    /// Next attempt, Unix ms; absent when there is nothing to try.
    pub next_at: Option<u64>,
    /// 0 to 3.
    pub priority: u8,
    /// What its envelope says about when it was sealed, Unix ms.
    #[serde(default)]
    pub sealed_at: u64,
}

impl OutRow {
    /// Whether it has to reach the peer still.
    pub fn is_open(&self) -> bool {
        !self.confirmed && !self.state.is_final()
    }
}

/// Place of our messages in a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutThread {
    /// Number of the last one.
    pub seq: u64,
    /// Its content hash.
    pub last: Bin<32>,
}

/// A received envelope that is not opened yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolRow {
    /// Sender.
    pub from: Key,
    /// Sender's device.
    pub device: DeviceId,
    /// Message id.
    pub id: Id,
    /// SHA-256 of the envelope: a message that was sealed again has the same id and other bytes.
    pub hash: Bin<32>,
    /// The envelope.
    pub env: Blob,
    /// Unix ms.
    pub arrived_at: u64,
    /// Not to be opened before, Unix ms.
    pub not_before: u64,
}

/// Key of a [`SpoolRow`]: its order is the order of opening.
pub type SpoolKey = (Key, DeviceId, Id, Bin<32>);

impl SpoolRow {
    /// Its key.
    pub fn key(&self) -> SpoolKey {
        (self.from, self.device, self.id, self.hash)
    }
}

/// That a message was opened: outlives its expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenRow {
    /// Content hash.
    pub hash: Bin<32>,
    /// What was receipted, if anything.
    pub status: Option<ReceiptStatus>,
    /// May be forgotten after, Unix ms.
    pub until: u64,
}

/// A message in the inbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxRow {
    /// Sender.
    pub peer: Key,
    /// Sender's device.
    pub device: DeviceId,
    /// Message id.
    pub id: Id,
    /// What it says.
    pub content: Content,
    /// Content hash.
    pub hash: Bin<32>,
    /// Created by the sender, Unix ms.
    pub created: u64,
    /// Opened here, Unix ms.
    pub opened_at: u64,
}

/// How far a thread of a peer's device was handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InThread {
    /// Highest number handed on.
    pub seq: u64,
    /// Content hash of the one with that number.
    pub last: Option<Bin<32>>,
    /// The peer's chain contradicted itself.
    pub diverged: bool,
}

/// Key of an [`InThread`].
pub type InThreadKey = (Key, DeviceId, ThreadId);

/// A receipt that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DueReceipt {
    /// Content hash.
    pub hash: Bin<32>,
    /// What to say.
    pub status: ReceiptStatus,
    /// Since, Unix ms.
    pub since: u64,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Puts the device.
    Device(Box<DeviceRow>),
    /// Puts the newest message id of ours.
    LastId(Id),
    /// Puts a peer.
    Peer(Key, Box<PeerRow>),
    /// Puts a session.
    Session(SessionRow),
    /// Removes a session.
    DropSession(SessionKey),
    /// Puts a message of ours.
    Out(Box<OutRow>),
    /// Removes a message of ours.
    DropOut(Key, Id),
    /// Puts the place in a thread.
    OutThread(Key, ThreadId, OutThread),
    /// Forgets the place in a thread: another device begins it anew.
    DropOutThread(Key, ThreadId),
    /// Puts a received envelope.
    Spool(SpoolRow),
    /// Removes a received envelope.
    DropSpool(SpoolKey),
    /// Remembers a message.
    Seen(Key, Id, SeenRow),
    /// Forgets a message.
    DropSeen(Key, Id),
    /// Puts a message into the inbox, to be handed on.
    Inbox(Box<InboxRow>),
    /// A message of the inbox was handed on.
    Dispatched(Key, Id),
    /// Puts how far a thread was handed on.
    InThread(InThreadKey, InThread),
    /// Puts a due receipt.
    Receipt(Key, Id, DueReceipt),
    /// Removes a due receipt.
    DropReceipt(Key, Id),
}

/// Changes that must be stored together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "what is not committed is lost with the process"]
pub struct Commit {
    /// In this order.
    pub writes: Vec<Write>,
}

impl Commit {
    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// Everything a node keeps of its sealed mail but the messages that were handed on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Records {
    /// This device.
    pub device: Option<DeviceRow>,
    /// Newest message id of ours: ids only rise.
    pub last_id: Option<Id>,
    /// Peers.
    pub peers: BTreeMap<Key, PeerRow>,
    /// Sessions.
    pub sessions: BTreeMap<SessionKey, SessionRow>,
    /// Messages of ours.
    pub outbox: BTreeMap<(Key, Id), OutRow>,
    /// Places in threads.
    pub out_threads: BTreeMap<(Key, ThreadId), OutThread>,
    /// Received envelopes.
    pub spool: BTreeMap<SpoolKey, SpoolRow>,
    /// Messages that were opened.
    pub seen: BTreeMap<(Key, Id), SeenRow>,
    /// Messages that wait to be handed on.
    pub inbox: BTreeMap<(Key, Id), InboxRow>,
    /// How far threads were handed on.
    pub in_threads: BTreeMap<InThreadKey, InThread>,
    /// Receipts that are due.
    pub receipts: BTreeMap<(Key, Id), DueReceipt>,
}

impl Records {
    /// Carries out one change, as a store would.
    pub fn apply(&mut self, write: &Write) {
        match write.clone() {
            Write::Device(row) => self.device = Some(*row),
            Write::LastId(id) => self.last_id = Some(id),
            Write::Peer(key, row) => drop(self.peers.insert(key, *row)),
            Write::Session(row) => {
                self.sessions.insert((row.peer, row.device, row.id.clone()), row);
            }
            Write::DropSession(key) => drop(self.sessions.remove(&key)),
            Write::Out(row) => drop(self.outbox.insert((row.peer, row.id), *row)),
            Write::DropOut(peer, id) => drop(self.outbox.remove(&(peer, id))),
            Write::OutThread(peer, thread, row) => {
                self.out_threads.insert((peer, thread), row);
            }
            Write::DropOutThread(peer, thread) => {
                self.out_threads.remove(&(peer, thread));
            }
            Write::Spool(row) => drop(self.spool.insert(row.key(), row)),
            Write::DropSpool(key) => drop(self.spool.remove(&key)),
            Write::Seen(peer, id, row) => {
                self.seen.insert((peer, id), row);
            }
            Write::DropSeen(peer, id) => {
                self.seen.remove(&(peer, id));
            }
            Write::Inbox(row) => drop(self.inbox.insert((row.peer, row.id), *row)),
            Write::Dispatched(peer, id) => drop(self.inbox.remove(&(peer, id))),
            Write::InThread(key, row) => {
                self.in_threads.insert(key, row);
            }
            Write::Receipt(peer, id, row) => {
                self.receipts.insert((peer, id), row);
            }
            Write::DropReceipt(peer, id) => {
                self.receipts.remove(&(peer, id));
            }
        }
    }

    /// Carries out a commit.
    pub fn commit(&mut self, commit: &Commit) {
        for write in &commit.writes {
            self.apply(write);
        }
    }
}
