//! Blobs on their way from one session to another (`threadline-wire.md` §4.7). Nothing of them is kept: the recipient
//! says how far the sender may go on, and no more than that is passed on.

use std::collections::HashMap;

use threadline::v2::blob::{MAX_AT_ONCE, MAX_RELAYED, lane_of};
use threadline::v2::frames::{BlobData, BlobEnd, BlobGo, BlobOpen, Frame};
use threadline::v2::{Bin, Code, Key};

use super::address_of;
use crate::core::{ConnId, Core, Lane};

/// Bytes of one blob that may be under way, whatever the recipient says.
const UNDER_WAY: u64 = 256 << 10;
/// A transfer that does not move for this long makes room for another one.
const IDLE_MS: i64 = 60_000;
const MIB: u64 = 1 << 20;

/// One blob under way.
#[derive(Debug)]
struct Transfer {
    from: ConnId,
    sender: [u8; 16],
    to: ConnId,
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
        self.0.get(id).is_some_and(|transfer| transfer.from == from && now_ms - transfer.moved_ms < IDLE_MS)
    }

    /// A session ended, with the blobs that it was sending.
    pub(in crate::core) fn end(&mut self, from: ConnId, ids: &[[u8; 32]]) {
        for id in ids {
            if self.0.get(id).is_some_and(|transfer| transfer.from == from) {
                self.0.remove(id);
            }
        }
    }
}

impl Core {
    pub(super) fn blob_opened(&mut self, id: ConnId, open: &BlobOpen, now_ms: i64) {
        let Some(session) = self.session(id) else { return };
        let (sender, key) = (session.address, session.key);
        let Some(device) = &session.device else { return };
        let stale = device.lease != device.fence;
        let mut own: Vec<[u8; 32]> = device.blobs.clone();
        own.retain(|blob| *blob != open.id.0 && self.transfers.is_of(blob, id, now_ms));
        let taken = self.transfers.0.get(&open.id.0).is_some_and(|transfer| {
            transfer.sender != *sender.as_bytes() && now_ms - transfer.moved_ms < IDLE_MS
        });
        let mebibytes = open.size.div_ceil(MIB);
        let refusal = if stale {
            Some(Code::StaleEpoch)
        } else if open.size == 0 || open.to.0 == key {
            Some(Code::BadRequest)
        } else if open.size > MAX_RELAYED {
            Some(Code::TooLarge)
        } else if own.len() >= MAX_AT_ONCE || taken {
            Some(Code::Busy)
        } else if (0..mebibytes).any(|_| self.windows.blobs.take(&sender, now_ms).is_err()) {
            Some(Code::RateLimited)
        } else {
            None
        };
        if let Some(code) = refusal {
            return self.fault(id, open.rid, code);
        }
        let Some(recipient) = address_of(&open.to.0) else { return };
        if self.active_device(&recipient).is_none() && self.is_elsewhere(&recipient) {
            return self.fault(id, open.rid, Code::UnsupportedVersion);
        }
        // Silence where nobody is there: an error would tell strangers who is.
        let Some(to) = self.active_device(&recipient) else { return };
        if self.session(to).is_none_or(|session| session.key != open.to.0) {
            return;
        }
        own.push(open.id.0);
        if let Some(device) = self.device_mut(id) {
            device.blobs = own;
        }
        let transfer = Transfer {
            from: id,
            sender: *sender.as_bytes(),
            to,
            rid: open.rid,
            size: open.size,
            granted: 0,
            passed: 0,
            moved_ms: now_ms,
        };
        self.transfers.0.insert(open.id.0, transfer);
        self.send_v2(to, BlobOpen { rid: None, ..open.clone() });
    }

    /// Whether the frame belongs to a blob that this session sends or gets.
    pub(super) fn is_of_blob(&self, id: ConnId, frame: &Frame) -> bool {
        let is = |blob: &Key, end: fn(&Transfer) -> ConnId| {
            self.transfers.0.get(&blob.0).is_some_and(|transfer| end(transfer) == id)
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
        self.send_v2(from, BlobGo { id: go.id, upto });
    }

    /// The sender goes on.
    pub(super) fn blob_piece(&mut self, id: ConnId, data: BlobData, now_ms: i64) {
        let Some(transfer) = self.transfers.0.get_mut(&data.id.0) else { return };
        let passed = transfer.passed.saturating_add(data.bytes.0.len() as u64);
        let (to, rid, sender) = (transfer.to, transfer.rid, transfer.sender);
        let fault = if passed > transfer.granted || data.bytes.0.is_empty() {
            Some(Code::BadRequest)
        } else if !self.conns.contains_key(&to) {
            Some(Code::UnknownRecipient)
        } else {
            None
        };
        if let Some(code) = fault {
            self.transfers.0.remove(&data.id.0);
            return self.fault(id, rid, code);
        }
        if let Some(transfer) = self.transfers.0.get_mut(&data.id.0) {
            (transfer.passed, transfer.moved_ms) = (passed, now_ms);
        }
        self.figures.blob_bytes += data.bytes.0.len() as u64;
        let lane = Lane::Delivery(sender, lane_of(&data.id).0);
        self.write_on(to, data.into(), lane);
    }

    /// The sender has said everything.
    pub(super) fn blob_ended(&mut self, end: &BlobEnd) {
        let Some(transfer) = self.transfers.0.remove(&end.hash.0) else { return };
        let lane = Lane::Delivery(transfer.sender, lane_of(&Bin(end.hash.0)).0);
        self.write_on(transfer.to, end.clone().into(), lane);
    }
}
