//! Blobs on their way from one session to another (`threadline-wire.md` §4.7). Nothing of them is kept: the recipient
//! says how far the sender may go on, and no more than that is passed on. Where the recipient is at another relay of a
//! cluster, each relay has its half of the transfer and they tell each other.

use std::collections::HashMap;

use threadline::v2::blob::{MAX_AT_ONCE, MAX_RELAYED, lane_of};
use threadline::v2::frames::{BlobData, BlobEnd, BlobGo, BlobOpen, Frame};
use threadline::v2::{Bin, Code, Key};

use super::address_of;
use crate::core::{ConnId, Core, Lane, Pending};
use crate::store::{BlobNews, BlobNote, QueueOp, RelayName};

/// Bytes of one blob that may be under way, whatever the recipient says.
const UNDER_WAY: u64 = 256 << 10;
/// A transfer that does not move for this long makes room for another one.
const IDLE_MS: i64 = 60_000;
const MIB: u64 = 1 << 20;

/// Where one of the two sessions of a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Here(ConnId),
    There(RelayName),
}

/// One blob under way.
#[derive(Debug)]
struct Transfer {
    from: End,
    sender: Key,
    to: End,
    rid: Option<u32>,
    size: u64,
    granted: u64,
    passed: u64,
    moved_ms: i64,
}

/// All blobs under way, by their ids.
#[derive(Debug, Default)]
pub(in crate::core) struct Transfers(HashMap<[u8; 32], Transfer>);

impl Transfers {
    fn is_of(&self, id: &[u8; 32], from: ConnId, now_ms: i64) -> bool {
        self.0
            .get(id)
            .is_some_and(|transfer| transfer.from == End::Here(from) && now_ms - transfer.moved_ms < IDLE_MS)
    }

    /// Whether somebody else is sending what has this id.
    fn is_of_another(&self, id: &Key, sender: &Key, now_ms: i64) -> bool {
        let other = |transfer: &Transfer| transfer.sender != *sender && now_ms - transfer.moved_ms < IDLE_MS;
        self.0.get(&id.0).is_some_and(other)
    }

    fn comes_from(&self, id: &Key, relay: RelayName) -> bool {
        self.0.get(&id.0).is_some_and(|transfer| transfer.from == End::There(relay))
    }

    fn goes_to(&self, id: &Key, relay: RelayName) -> bool {
        self.0.get(&id.0).is_some_and(|transfer| transfer.to == End::There(relay))
    }

    /// Forgets what other relays began and did not go on with; what sessions began ends with them.
    pub(in crate::core) fn forget_idle(&mut self, now_ms: i64) {
        self.0.retain(|_, transfer| {
            matches!(transfer.from, End::Here(_)) || now_ms - transfer.moved_ms < IDLE_MS
        });
    }
}

impl Core {
    pub(super) fn blob_opened(&mut self, id: ConnId, open: &BlobOpen, now_ms: i64) {
        let Some(session) = self.session(id) else { return };
        let (address, sender) = (session.address, Bin(session.key));
        let Some(device) = &session.device else { return };
        let stale = device.lease != device.fence;
        let mut own: Vec<[u8; 32]> = device.blobs.clone();
        own.retain(|blob| *blob != open.id.0 && self.transfers.is_of(blob, id, now_ms));
        let taken = self.transfers.is_of_another(&open.id, &sender, now_ms);
        let mebibytes = open.size.div_ceil(MIB);
        let refusal = if stale {
            Some(Code::StaleEpoch)
        } else if open.size == 0 || open.to == sender {
            Some(Code::BadRequest)
        } else if open.size > MAX_RELAYED {
            Some(Code::TooLarge)
        } else if own.len() >= MAX_AT_ONCE || taken {
            Some(Code::Busy)
        } else if (0..mebibytes).any(|_| self.windows.blobs.take(&address, now_ms).is_err()) {
            Some(Code::RateLimited)
        } else {
            None
        };
        if let Some(code) = refusal {
            return self.fault(id, open.rid, code);
        }
        // Silence where nobody is there: an error would tell strangers who is.
        let Some(to) = self.taker(&open.to) else { return };
        own.push(open.id.0);
        if let Some(device) = self.device_mut(id) {
            device.blobs = own;
        }
        self.begin(open, (End::Here(id), sender, to), now_ms);
        match to {
            End::Here(conn) => self.send_v2(conn, BlobOpen { rid: None, ..open.clone() }),
            End::There(relay) => {
                self.note(relay, open.id, BlobNews::Open { from: sender, to: open.to, size: open.size });
            }
        }
    }

    /// Where the session is that takes what is sent to a key.
    fn taker(&self, key: &Key) -> Option<End> {
        let address = address_of(&key.0)?;
        if let Some(conn) = self.active_device(&address) {
            return self.session(conn).is_some_and(|session| session.key == key.0).then_some(End::Here(conn));
        }
        let devices = self.elsewhere(&address).iter().filter(|agent| agent.key == key.0);
        let active = devices.filter(|agent| agent.lead.is_some()).max_by_key(|agent| agent.lead)?;
        Some(End::There(active.relay))
    }

    fn begin(&mut self, open: &BlobOpen, (from, sender, to): (End, Key, End), now_ms: i64) {
        let (rid, size) = (open.rid, open.size);
        let transfer = Transfer { from, sender, to, rid, size, granted: 0, passed: 0, moved_ms: now_ms };
        self.transfers.0.insert(open.id.0, transfer);
    }

    /// Whether the frame belongs to a blob that this session sends or gets.
    pub(super) fn is_of_blob(&self, id: ConnId, frame: &Frame) -> bool {
        let is = |blob: &Key, end: fn(&Transfer) -> End| {
            self.transfers.0.get(&blob.0).is_some_and(|transfer| end(transfer) == End::Here(id))
        };
        match frame {
            Frame::BlobGo(go) => is(&go.id, |transfer| transfer.to),
            Frame::BlobData(data) => is(&data.id, |transfer| transfer.from),
            Frame::BlobEnd(end) => is(&end.hash, |transfer| transfer.from),
            _ => false,
        }
    }

    /// The recipient takes more.
    pub(super) fn blob_goes_on(&mut self, go: &BlobGo, now_ms: i64) {
        let Some(transfer) = self.transfers.0.get_mut(&go.id.0) else { return };
        let most = transfer.passed.saturating_add(UNDER_WAY).min(transfer.size);
        transfer.granted = transfer.granted.max(go.upto.min(most));
        transfer.moved_ms = now_ms;
        let (from, upto) = (transfer.from, transfer.granted);
        match from {
            End::Here(conn) => self.send_v2(conn, BlobGo { id: go.id, upto }),
            End::There(relay) => self.note(relay, go.id, BlobNews::Go { upto }),
        }
    }

    /// The sender goes on.
    pub(super) fn blob_piece(&mut self, data: BlobData, now_ms: i64) {
        let Some(transfer) = self.transfers.0.get_mut(&data.id.0) else { return };
        let at = transfer.passed;
        let passed = at.saturating_add(data.bytes.0.len() as u64);
        let (to, sender) = (transfer.to, transfer.sender);
        if passed > transfer.granted || data.bytes.0.is_empty() {
            return self.break_off(&data.id, Code::BadRequest);
        }
        (transfer.passed, transfer.moved_ms) = (passed, now_ms);
        match to {
            End::Here(conn) if !self.conns.contains_key(&conn) => {
                self.break_off(&data.id, Code::UnknownRecipient);
            }
            End::Here(conn) => {
                self.figures.blob_bytes += passed - at;
                let lane = lane(&sender, &data.id);
                self.write_on(conn, data.into(), lane);
            }
            End::There(relay) => self.note(relay, data.id, BlobNews::Piece { at, bytes: data.bytes }),
        }
    }

    /// The sender has said everything.
    pub(super) fn blob_ended(&mut self, end: &BlobEnd) {
        let Some(transfer) = self.transfers.0.remove(&end.hash.0) else { return };
        match transfer.to {
            End::Here(conn) => self.write_on(conn, end.clone().into(), lane(&transfer.sender, &end.hash)),
            End::There(relay) => self.note(relay, end.hash, BlobNews::End),
        }
    }

    /// A blob goes no further; its sender hears why.
    fn break_off(&mut self, id: &Key, code: Code) {
        let Some(transfer) = self.transfers.0.remove(&id.0) else { return };
        match transfer.from {
            End::Here(conn) => self.fault(conn, transfer.rid, code),
            End::There(relay) => self.note(relay, *id, BlobNews::Over),
        }
        if let End::There(relay) = transfer.to {
            self.note(relay, *id, BlobNews::Over);
        }
    }

    /// A session ended, with the blobs that it was sending.
    pub(in crate::core) fn end_blobs(&mut self, from: ConnId, ids: &[[u8; 32]]) {
        for id in ids {
            let is_its = |transfer: &Transfer| transfer.from == End::Here(from);
            if !self.transfers.0.get(id).is_some_and(is_its) {
                continue;
            }
            if let Some(Transfer { to: End::There(relay), .. }) = self.transfers.0.remove(id) {
                self.note(relay, Bin(*id), BlobNews::Over);
            }
        }
    }

    fn note(&mut self, relay: RelayName, id: Key, word: BlobNews) {
        self.store_queue(Pending::Quiet, QueueOp::Blob(relay, BlobNote { id, word }));
    }

    /// Another relay says something of a blob.
    pub(in crate::core) fn blob_news(&mut self, relay: RelayName, note: BlobNote, now_ms: i64) {
        let BlobNote { id, word } = note;
        match word {
            BlobNews::Open { from, to, size } => {
                let open = BlobOpen { rid: None, id, to, size };
                self.blob_comes(relay, from, &open, now_ms);
            }
            BlobNews::Go { upto } if self.transfers.goes_to(&id, relay) => {
                self.blob_goes_on(&BlobGo { id, upto }, now_ms);
            }
            BlobNews::Piece { at, bytes } if self.transfers.comes_from(&id, relay) => {
                match self.transfers.0.get(&id.0) {
                    Some(transfer) if transfer.passed == at => {
                        self.blob_piece(BlobData { id, bytes }, now_ms);
                    }
                    _ => self.break_off(&id, Code::BadRequest),
                }
            }
            BlobNews::End if self.transfers.comes_from(&id, relay) => match self.transfers.0.get(&id.0) {
                Some(transfer) if transfer.passed == transfer.size => {
                    self.blob_ended(&BlobEnd { hash: id });
                }
                _ => self.break_off(&id, Code::BadRequest),
            },
            BlobNews::Over if self.transfers.comes_from(&id, relay) => {
                self.transfers.0.remove(&id.0);
            }
            BlobNews::Over if self.transfers.goes_to(&id, relay) => {
                if let Some(Transfer { from: End::Here(conn), rid, .. }) = self.transfers.0.remove(&id.0) {
                    self.fault(conn, rid, Code::UnknownRecipient);
                }
            }
            // Of what was given up, and may still be under way.
            BlobNews::Go { .. } | BlobNews::Piece { .. } | BlobNews::End | BlobNews::Over => {}
        }
    }

    /// A session of another relay has a blob for one of this relay.
    fn blob_comes(&mut self, relay: RelayName, sender: Key, open: &BlobOpen, now_ms: i64) {
        let to = self.taker(&open.to).filter(|to| matches!(to, End::Here(_)));
        let odd = open.size == 0 || open.size > MAX_RELAYED;
        let Some(End::Here(conn)) = to.filter(|_| !odd) else { return };
        if self.transfers.is_of_another(&open.id, &sender, now_ms) {
            return self.note(relay, open.id, BlobNews::Over);
        }
        self.begin(open, (End::There(relay), sender, End::Here(conn)), now_ms);
        self.send_v2(conn, open.clone());
    }
}

/// Pieces of a blob keep their order like messages of a thread.
fn lane(sender: &Key, blob: &Key) -> Lane {
    let sender = sender.0.first_chunk().copied().unwrap_or_default();
    Lane::Delivery(sender, lane_of(blob).0)
}
