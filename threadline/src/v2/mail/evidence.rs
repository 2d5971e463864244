//! What is known of messages of ours, from carriers and from their peers (`threadline-wire.md` §5.7).

use super::{Commit, Mail, MailError, OutRow, Write};
use crate::ThreadId;
use crate::delivery::{DeliveryState, retry_delay_ms};
use crate::path::{CUSTODY_PATIENCE_MS, PATIENCE_MS};
use crate::v2::content::{Body, CONTROL_THREAD, MAX_RECEIPT_IDS, Receipt, ReceiptStatus};
use crate::v2::mail::open::Opened;
use crate::v2::mail::seal::{Draft, SubmitError};
use crate::v2::{Bin, Code, Id, Key};

/// A peer's word about a message of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// A sealed receipt.
    Receipt {
        /// How far.
        status: ReceiptStatus,
        /// Content hash that it names.
        hash: Bin<32>,
        /// Not before, s.
        retry_after_s: Option<u64>,
    },
    /// A message that answers it.
    Reply,
    /// A sealed error about it.
    Error(Code),
}

/// What a carrier answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CarrierAnswer {
    /// It holds the message.
    Accepted {
        /// Whether it says that the recipient is there.
        live: bool,
        /// Whether another carrier is there that had not the message yet.
        others: bool,
    },
    /// It does not.
    Rejected {
        /// Why.
        code: Code,
        /// Not before, ms.
        retry_ms: Option<u64>,
        /// Whether no other path is left.
        last_path: bool,
    },
    /// It gave a message up that it held.
    GaveUp {
        /// Whether another carrier is there that had not the message yet.
        others: bool,
    },
    /// It wrote the message to somebody whose word about it proves nothing.
    Written,
}

/// A message of ours moved on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Recipient.
    pub peer: Key,
    /// Which.
    pub id: Id,
    /// Where it is now.
    pub state: DeliveryState,
    /// Whether the peer itself holds it.
    pub confirmed: bool,
}

const fn rank(state: DeliveryState) -> u8 {
    match state {
        DeliveryState::Pending => 0,
        DeliveryState::Sent => 1,
        DeliveryState::Accepted => 2,
        _ => 3,
    }
}

fn is_control(row: &OutRow) -> bool {
    matches!(row.content.body, Body::Receipt(_) | Body::Probe(_) | Body::Error(_))
}

impl Mail {
    /// Messages to hand to a carrier now, in order; none behind one of the same peer that waits for another attempt.
    pub fn due(&self, now_ms: u64) -> Vec<(Key, Id)> {
        let mut places = super::MAX_IN_FLIGHT.saturating_sub(self.in_flight.len());
        let mut due = Vec::new();
        let mut blocked = None;
        for (key, row) in &self.records.outbox {
            if !row.is_open() || row.expires <= now_ms || blocked == Some(key.0) {
                continue;
            }
            if row.env.is_none() {
                blocked = Some(key.0);
                continue;
            }
            if self.in_flight.contains_key(key) {
                continue;
            }
            if row.next_at.is_some_and(|at| at <= now_ms) {
                if places == 0 {
                    break;
                }
                places -= 1;
                due.push(*key);
            } else if !row.held {
                blocked = Some(key.0);
            }
        }
        due
    }

    /// Messages whose carrier gave no answer for `patience_ms`: another one may be tried beside it.
    pub fn slow(&self, patience_ms: u64, now_ms: u64) -> Vec<(Key, Id)> {
        let slow = |at: &u64| at.saturating_add(patience_ms) <= now_ms;
        self.in_flight.iter().filter(|(_, at)| slow(at)).map(|(key, _)| *key).collect()
    }

    /// When [`Mail::due`] has something next, Unix ms.
    pub fn next_due(&self) -> Option<u64> {
        let waiting = |row: &&OutRow| row.is_open() && row.env.is_some();
        self.records.outbox.values().filter(waiting).filter_map(|row| row.next_at).min()
    }

    /// A message was handed to a carrier, the first of an attempt or one more. Not stored: after a restart everything open
    /// goes out again.
    pub fn handed(&mut self, peer: &Key, id: &Id, first: bool, now_ms: u64) {
        if let Some(row) = self.records.outbox.get_mut(&(*peer, *id)) {
            row.attempts = row.attempts.saturating_add(u32::from(first));
            row.next_at = Some(now_ms.saturating_add(retry_delay_ms(row.attempts).unsigned_abs()));
            if row.state == DeliveryState::Pending {
                row.state = DeliveryState::Sent;
            }
            self.in_flight.insert((*peer, *id), now_ms);
        }
    }

    /// The carrier's answers to what is in flight will not come any more.
    pub fn carrier_lost(&mut self, now_ms: u64) {
        for key in std::mem::take(&mut self.in_flight).into_keys() {
            if let Some(row) = self.records.outbox.get_mut(&key) {
                row.next_at = Some(now_ms);
            }
        }
    }

    /// A carrier that held these can't be asked any more: what no peer confirmed is tried again now.
    pub fn custody_lost(&mut self, messages: impl Iterator<Item = (Key, Id)>, now_ms: u64) {
        for message in messages {
            let row = self.records.outbox.get_mut(&message);
            if let Some(row) = row.filter(|row| row.is_open() && row.env.is_some()) {
                row.next_at = Some(now_ms);
            }
        }
    }

    /// Everything that no peer confirmed is tried again now, and what could not be opened: a relay came back, or another
    /// one, and may know the device that wrote it.
    pub fn reconnected(&mut self, now_ms: u64) {
        self.carrier_lost(now_ms);
        self.records.spool.values_mut().for_each(|row| row.not_before = 0);
        self.claim_failures.values_mut().for_each(|failures| *failures = 1);
        for row in self.records.outbox.values_mut().filter(|row| row.is_open() && row.env.is_some()) {
            row.next_at = Some(now_ms);
        }
    }

    /// A carrier answered.
    pub fn answered(
        &mut self,
        peer: &Key,
        id: &Id,
        answer: CarrierAnswer,
        now_ms: u64,
    ) -> (Commit, Option<Change>) {
        let mut commit = Commit::default();
        self.in_flight.remove(&(*peer, *id));
        let Some(mut row) = self.records.outbox.get(&(*peer, *id)).filter(|row| row.is_open()).cloned()
        else {
            return (commit, None);
        };
        let before = row.state;
        match answer {
            CarrierAnswer::Accepted { .. } | CarrierAnswer::Written if is_control(&row) => {
                self.put(&mut commit, Write::DropOut(*peer, *id));
                return (commit, None);
            }
            CarrierAnswer::Accepted { live, others } => {
                row.held = true;
                row.state = DeliveryState::Accepted;
                let pause = match (others, live) {
                    (true, true) => CUSTODY_PATIENCE_MS,
                    (true, false) => PATIENCE_MS,
                    (false, _) => retry_delay_ms(row.attempts).unsigned_abs(),
                };
                row.next_at = Some(now_ms.saturating_add(pause));
            }
            CarrierAnswer::Rejected { code, retry_ms, last_path } => {
                if last_path && !code.is_retryable() && !row.held {
                    row.state = DeliveryState::Failed;
                } else {
                    let pause = retry_ms.unwrap_or(if code.is_retryable() || last_path { 5_000 } else { 0 });
                    row.next_at = Some(now_ms.saturating_add(pause));
                }
            }
            CarrierAnswer::GaveUp { others } => {
                let pause = if others { 0 } else { retry_delay_ms(row.attempts).unsigned_abs() };
                row.next_at = Some(now_ms.saturating_add(pause));
            }
            CarrierAnswer::Written => {
                // Its order is kept there, so what was written after it may follow.
                row.held = true;
                raise(&mut row.state, DeliveryState::Sent);
                row.next_at = Some(now_ms.saturating_add(retry_delay_ms(row.attempts).unsigned_abs()));
            }
        }
        let is_news = row.state != before || answer == CarrierAnswer::Written && row.attempts <= 1;
        let change = is_news.then_some(Change { peer: *peer, id: *id, state: row.state, confirmed: false });
        self.keep_out(row, &mut commit);
        (commit, change)
    }

    fn keep_out(&mut self, row: OutRow, commit: &mut Commit) {
        let write =
            if row.state.is_final() { Write::DropOut(row.peer, row.id) } else { Write::Out(Box::new(row)) };
        self.put(commit, write);
    }

    /// A peer spoke about a message of ours. It counts only from the peer it was for, and for bytes that we sealed.
    pub(super) fn learn(
        &mut self,
        peer: &Key,
        about: &Id,
        evidence: Evidence,
        now_ms: u64,
        opened: &mut Opened,
    ) {
        let Some(mut row) = self.records.outbox.get(&(*peer, *about)).cloned() else { return };
        let before = (row.state, row.confirmed);
        match evidence {
            Evidence::Reply => row.state = DeliveryState::Delivered,
            Evidence::Error(code) if code.is_retryable() => {
                row.next_at = Some(now_ms.saturating_add(30_000));
            }
            Evidence::Error(_) => row.state = DeliveryState::Failed,
            Evidence::Receipt { status, hash, retry_after_s } => {
                let unread =
                    hash == Bin([0; 32]) && matches!(status, ReceiptStatus::Rejected | ReceiptStatus::Failed);
                if row.hash != Some(hash) && !unread {
                    return;
                }
                match status {
                    ReceiptStatus::Accepted | ReceiptStatus::Held => {
                        row.confirmed = true;
                        raise(&mut row.state, DeliveryState::Accepted);
                    }
                    ReceiptStatus::Delivered => row.state = DeliveryState::Delivered,
                    ReceiptStatus::Rejected => row.state = DeliveryState::Rejected,
                    ReceiptStatus::Failed => row.state = DeliveryState::Failed,
                    ReceiptStatus::Expired => row.state = DeliveryState::Expired,
                    ReceiptStatus::Queued => {
                        raise(&mut row.state, DeliveryState::Sent);
                        let pause = retry_after_s.unwrap_or(60).saturating_mul(1_000);
                        row.next_at = Some(now_ms.saturating_add(pause));
                    }
                }
            }
        }
        if row.confirmed {
            row.env = None;
            row.next_at = None;
        }
        self.in_flight.remove(&(*peer, *about));
        if (row.state, row.confirmed) != before {
            let (state, confirmed) = (row.state, row.confirmed);
            opened.evidence.push(Change { peer: *peer, id: *about, state, confirmed });
        }
        self.keep_out(row, &mut opened.commit);
    }

    /// Ends messages whose life is over.
    pub fn expire(&mut self, now_ms: u64) -> (Commit, Vec<Change>) {
        let mut commit = Commit::default();
        let over: Vec<_> =
            self.records.outbox.values().filter(|row| row.expires <= now_ms).cloned().collect();
        let mut changes = Vec::new();
        for row in over {
            self.in_flight.remove(&(row.peer, row.id));
            if row.is_open() {
                let (peer, id) = (row.peer, row.id);
                changes.push(Change { peer, id, state: DeliveryState::Expired, confirmed: false });
            }
            self.put(&mut commit, Write::DropOut(row.peer, row.id));
        }
        (commit, changes)
    }

    /// Says more about a message of the inbox than that it is there: delivered, held, rejected, failed.
    pub fn set_receipt(&mut self, peer: &Key, id: &Id, status: ReceiptStatus, now_ms: u64) -> Commit {
        let mut commit = Commit::default();
        if let Some(mut seen) = self.records.seen.get(&(*peer, *id)).copied() {
            seen.status = Some(status);
            self.put(&mut commit, Write::Seen(*peer, *id, seen));
            let receipt = super::DueReceipt { hash: seen.hash, status, since: now_ms };
            self.put(&mut commit, Write::Receipt(*peer, *id, receipt));
        }
        commit
    }

    /// Turns due receipts into messages, for the peers that `may_know` that we are there.
    pub fn flush_receipts(
        &mut self,
        may_know: &dyn Fn(&Key) -> bool,
        now_ms: u64,
    ) -> Result<Commit, MailError> {
        let mut commit = Commit::default();
        while let Some((peer, status)) = self
            .records
            .receipts
            .iter()
            .find(|((peer, _), _)| may_know(peer))
            .map(|((peer, _), due)| (*peer, due.status))
        {
            let same =
                |((key, _), due): &(&(Key, Id), &super::DueReceipt)| *key == peer && due.status == status;
            let batch: Vec<_> = self
                .records
                .receipts
                .iter()
                .filter(same)
                .take(MAX_RECEIPT_IDS)
                .map(|(k, d)| (k.1, d.hash))
                .collect();
            for (id, _) in &batch {
                self.put(&mut commit, Write::DropReceipt(peer, *id));
            }
            let (ids, hs) = batch.into_iter().unzip();
            let body =
                Body::Receipt(Receipt { ids, hs, status, reason: None, retry_after_s: None, at: now_ms });
            self.control(peer, "receipt", body, None, &mut commit, now_ms)?;
        }
        Ok(commit)
    }

    pub(super) fn answer_ping(
        &mut self,
        peer: Key,
        id: Id,
        nonce: Bin<16>,
        thread: ThreadId,
        commit: &mut Commit,
        now_ms: u64,
    ) {
        let draft = Draft { reply_to: Some(id), ..control_draft("pong", Body::Probe(nonce), thread) };
        if let Ok((_, part)) = self.submit(peer, draft, now_ms) {
            commit.writes.extend(part.writes);
        }
    }

    fn control(
        &mut self,
        peer: Key,
        kind: &str,
        body: Body,
        reply_to: Option<Id>,
        commit: &mut Commit,
        now_ms: u64,
    ) -> Result<(), MailError> {
        let Ok(thread) = CONTROL_THREAD.parse() else { return Ok(()) };
        let draft = Draft { reply_to, ..control_draft(kind, body, thread) };
        match self.submit(peer, draft, now_ms) {
            Ok((_, part)) => commit.writes.extend(part.writes),
            Err(SubmitError::Mail(error)) => return Err(error),
            Err(SubmitError::Limit | SubmitError::Self_ | SubmitError::Known) => {}
        }
        Ok(())
    }
}

fn control_draft(kind: &str, body: Body, thread: ThreadId) -> Draft {
    Draft { kind: kind.into(), body, priority: 3, ..Draft::text(thread, "") }
}

fn raise(state: &mut DeliveryState, to: DeliveryState) {
    if rank(to) > rank(*state) {
        *state = to;
    }
}
