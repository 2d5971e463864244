//! The queue: accepted messages until they are confirmed or expire. Bodies lie in the [`Journal`]; memory holds a
//! place for each message, some 50 bytes, and nothing that grows with its size.
//!
//! Operations are decided in memory, written together as one batch, and answered once the batch is stored. When it
//! cannot be stored every change is taken back.

mod import;
mod index;
mod memories;

use std::collections::VecDeque;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use threadline::{Fingerprint, MessageId};

use super::StoreFailed;
use super::body::{BodyCipher, Sealer};
use super::journal::{self, Journal, JournalError, JournalRules, Place, Segment};
use super::medium::{Media, Medium};
use super::peers::Peers;
use super::queue::{
    Accept, Accepted, Departed, QueueAnswer, QueueFull, QueueLook, QueueOp, QueueRules, QueueTotals, Row,
    Standing,
};
use super::record::{
    self, BATCH_HEADER, Mail, Recent, Record, Settled, open_body, write_mail, write_settled,
};
pub use import::ImportError;
use index::{CARRIED, Index, Seen};
use memories::Memories;

/// Milliseconds a confirmed message is remembered, so that a repeat gets the same answer.
const RECENT_MS: i64 = 5 * 60_000;
/// Most messages that are remembered, whatever the rate: about 40 bytes each.
const RECENT_MOST: usize = 2_000_000;
/// The log may be this many segments larger than the mail that lives in it before the rest of the oldest is copied.
const SPARE_SEGMENTS: u64 = 16;
/// Memories written down again at a time.
const CARRIED_AT_ONCE: usize = 2_048;
/// Bytes copied at a time.
const COPY_BYTES: usize = 512 << 10;

/// The queue on some medium.
pub struct Custody<M> {
    journal: Journal<M>,
    memories: Memories<M>,
    index: Index,
    peers: Peers,
    rules: QueueRules,
    cipher: BodyCipher,
    sealer: Sealer,
    /// Records of the group that is being decided.
    batch: Vec<u8>,
    /// Where the batch will stand.
    base: Option<Place>,
    undo: Vec<Undo>,
    scratch: Vec<u8>,
    last_seq: u64,
    peers_failed: bool,
}

/// How to take a change back.
enum Undo {
    Accepted(u64, Arc<Mail>),
    Removed { key: u64, mail: Arc<Mail>, place: Place, remembered: bool },
}

impl<M: Medium> Custody<M> {
    /// Reads the log.
    pub fn open(
        media: Media<M>,
        log: JournalRules,
        peers: Peers,
        rules: QueueRules,
        cipher: BodyCipher,
        now_ms: i64,
    ) -> Result<Self, JournalError> {
        let mut index = Index::default();
        let young = |at_s: u32| i64::from(at_s) * 1000 > now_ms - RECENT_MS;
        let memories = Memories::open(media.memories, log, now_ms, |Recent { at_s, key, content }| {
            if young(at_s) {
                index.remember(key, content, at_s, CARRIED);
            }
        })?;
        let mut last_seq = 0;
        // Records that settle mail come behind it, but its size stands only with it.
        let mut live: std::collections::HashMap<u64, Mail> = std::collections::HashMap::new();
        let journal = Journal::open(media.mail, log, now_ms, |segments, place, record| match record {
            Record::Mail(mail, _) => {
                last_seq = last_seq.max(mail.seq);
                let key = key(&cipher, &mail.sender, &mail.recipient, &mail.id);
                if let Some(old) = live.insert(mail.seq, mail.clone()) {
                    // A copy that was made to free an older segment.
                    forget(&mut index, segments, key, &old);
                }
                enter(&mut index, segments, key, &mail, place);
            }
            Record::Settled(at_ms, entries) => {
                for entry in entries {
                    // Its record may be gone with an older segment.
                    if let Some(mail) = live.remove(&entry.seq) {
                        forget(&mut index, segments, entry.key, &mail);
                    }
                    if entry.content != 0 && at_ms > now_ms - RECENT_MS {
                        index.remember(entry.key, entry.content, (at_ms / 1000) as u32, place.segment);
                    }
                }
            }
            // As earlier versions kept them.
            Record::Recent(entries) => {
                for Recent { at_s, key, content } in entries.into_iter().filter(|entry| young(entry.at_s)) {
                    index.remember(key, content, at_s, place.segment);
                }
            }
        })?;
        drop(live);
        index.order();
        Ok(Self {
            journal,
            memories,
            index,
            peers,
            rules,
            sealer: cipher.sealer(),
            cipher,
            batch: Vec::new(),
            base: None,
            undo: Vec::new(),
            scratch: Vec::new(),
            last_seq,
            peers_failed: false,
        })
    }

    /// Highest message number that stands in the log.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Totals of the queue.
    pub fn totals(&self) -> QueueTotals {
        self.index.totals()
    }

    /// Bytes of its logs.
    pub fn bytes(&self) -> u64 {
        self.journal.bytes() + self.memories.bytes()
    }

    /// Where the segments with mail lie.
    pub fn medium(&mut self) -> &mut M {
        self.journal.medium()
    }

    /// Ends the queue and gives its segments and tables back.
    pub fn into_parts(self) -> (Media<M>, Peers) {
        let media = Media { mail: self.journal.into_medium(), memories: self.memories.into_medium() };
        (media, self.peers)
    }

    /// Runs a group of operations in their order, reads last. What is written is stored when this returns.
    pub fn apply<'a>(
        &mut self,
        ops: impl Iterator<Item = &'a QueueOp> + Clone,
    ) -> Vec<Result<QueueAnswer, StoreFailed>> {
        let mut answers = match self.attempt(ops.clone(), false) {
            Ok(answers) => answers,
            // What frees space still works on a full disk: it needs little.
            Err(_) => match self.attempt(ops.clone(), true) {
                Ok(answers) => answers,
                Err(error) => {
                    tracing::error!(%error, "the log of the queue cannot be written");
                    ops.clone().map(|_| Err(StoreFailed)).collect()
                }
            },
        };
        for (op, answer) in ops.zip(&mut answers) {
            match op {
                QueueOp::Backlog { recipient, after, now_ms, limit, bytes } => {
                    *answer = Ok(self.backlog(recipient, *after, *now_ms, *limit, *bytes));
                }
                QueueOp::Look { most, of } => *answer = Ok(self.look(*most as usize, of.as_ref())),
                _ => {}
            }
        }
        answers
    }

    fn attempt<'a>(
        &mut self,
        ops: impl Iterator<Item = &'a QueueOp>,
        without_mail: bool,
    ) -> std::io::Result<Vec<Result<QueueAnswer, StoreFailed>>> {
        self.begin();
        let mut answers = Vec::with_capacity(ops.size_hint().0);
        let mut mail = false;
        for op in ops {
            let accept = matches!(op, QueueOp::Accept(_));
            mail |= accept;
            answers.push(if accept && without_mail { Err(StoreFailed) } else { self.decide(op) });
        }
        self.commit(mail && !without_mail)?;
        Ok(answers)
    }

    fn begin(&mut self) {
        self.undo.clear();
        self.batch.clear();
        self.batch.resize(BATCH_HEADER, 0);
        self.base = None;
    }

    fn decide(&mut self, op: &QueueOp) -> Result<QueueAnswer, StoreFailed> {
        match op {
            QueueOp::Accept(message) => self.accept(message).map(QueueAnswer::Accepted),
            QueueOp::Standing { sender, recipient, id, body, now_ms } => {
                let key = key(&self.cipher, sender, recipient, id);
                Ok(QueueAnswer::Standing {
                    standing: self.standing(key, self.cipher.content_of(body))?,
                    reply: self.peers.is_correspondent(recipient, sender, *now_ms),
                })
            }
            QueueOp::Arrived { recipient, siblings, now_ms } => {
                self.peers.arrived(*recipient);
                for sibling in siblings {
                    self.peers.wrote(*recipient, *sibling, *now_ms);
                }
                Ok(QueueAnswer::Done)
            }
            QueueOp::Confirm { recipient, seqs, now_ms } => {
                self.settle(recipient, seqs.iter().copied(), *now_ms, true).map(QueueAnswer::Confirmed)
            }
            QueueOp::Expire { now_ms, limit } => self.expire(*now_ms, *limit).map(QueueAnswer::Expired),
            QueueOp::Drop { recipient, now_ms, limit } => {
                let seqs = self.index.waiting(recipient, *limit as usize);
                self.settle(recipient, seqs.into_iter(), *now_ms, false).map(QueueAnswer::Dropped)
            }
            QueueOp::Look { .. } | QueueOp::Backlog { .. } | QueueOp::Online(_) | QueueOp::Offline { .. } => {
                Ok(QueueAnswer::Done)
            }
            // Of one relay devices are in its registry, and there is no other to talk to.
            QueueOp::Devices(_) | QueueOp::Blob(..) => Err(StoreFailed),
        }
    }

    fn commit(&mut self, mail: bool) -> std::io::Result<()> {
        if self.batch.len() == BATCH_HEADER {
            return Ok(());
        }
        let mut batch = std::mem::take(&mut self.batch);
        let written = self.place().and_then(|_| self.journal.append(&mut batch, mail));
        if written.is_err() {
            self.take_back();
        }
        // A group with large mail must not hold its memory for ever.
        if batch.capacity() <= 1 << 20 {
            self.batch = batch;
        }
        written
    }

    fn take_back(&mut self) {
        while let Some(change) = self.undo.pop() {
            let segments = self.journal.segments_mut();
            match change {
                Undo::Accepted(key, mail) => forget(&mut self.index, segments, key, &mail),
                Undo::Removed { key, mail, place, remembered } => {
                    if remembered {
                        self.index.unremember();
                    }
                    enter(&mut self.index, segments, key, &mail, place);
                }
            }
        }
        self.index.order();
    }

    /// Where the next record of the batch will stand.
    fn place(&mut self) -> std::io::Result<Place> {
        let base = match self.base {
            Some(base) => base,
            None => *self.base.insert(self.journal.prepare()?),
        };
        Ok(Place {
            segment: base.segment,
            at: base.at + (self.batch.len().max(BATCH_HEADER) - BATCH_HEADER) as u32,
        })
    }

    fn standing(&mut self, key: u64, content: u64) -> Result<Standing, StoreFailed> {
        match self.index.get(key) {
            None => Ok(Standing::Unknown),
            Some(Seen::Settled(known)) if known == content => Ok(Standing::Delivered),
            Some(Seen::Settled(_)) => Ok(Standing::OtherBytes),
            Some(Seen::Waiting(place)) => {
                let mail = self.mail(place)?;
                let same = mail.content == content;
                let queued = Standing::Queued { seq: mail.seq, expires_ms: mail.expires_ms };
                Ok(if same { queued } else { Standing::OtherBytes })
            }
        }
    }

    fn accept(&mut self, message: &Accept) -> Result<Accepted, StoreFailed> {
        let Accept { sender, recipient, id, now_ms, .. } = message;
        let key = key(&self.cipher, sender, recipient, id);
        let content = self.cipher.content_of(&message.body);
        let standing = self.standing(key, content)?;
        if standing != Standing::Unknown {
            return Ok(Accepted::Repeat(standing));
        }
        let reply = self.peers.is_correspondent(recipient, sender, *now_ms);
        let size = message.body.len() as u64;
        if let Some(full) = self.overflow(message, reply, size) {
            return Ok(Accepted::Full(full));
        }
        let Ok(place) = self.place() else { return Err(StoreFailed) };
        let mail = Mail {
            seq: message.seq,
            recipient: *recipient,
            sender: *sender,
            stored_ms: *now_ms,
            expires_ms: message.expires_ms,
            content,
            stranger: !reply,
            control: reply && message.control,
            id: id.clone(),
            size: size as u32,
        };
        write_mail(&mail, &message.body, &mut self.sealer, &mut self.batch);
        let first = enter(&mut self.index, self.journal.segments_mut(), key, &mail, place);
        let mail = Arc::new(mail);
        self.index.keep_fresh(key, &mail);
        self.last_seq = self.last_seq.max(mail.seq);
        self.undo.push(Undo::Accepted(key, mail));
        self.peers.wrote(*sender, *recipient, *now_ms);
        Ok(Accepted::Stored { seq: message.seq, reply, first })
    }

    fn overflow(&self, message: &Accept, correspondent: bool, size: u64) -> Option<QueueFull> {
        let rules = &self.rules.queue;
        let pair = u64::from(self.index.pair(&message.sender, &message.recipient));
        let (control_pair, control, control_bytes) = self.index.control(&message.sender, &message.recipient);
        if message.control && correspondent {
            let each = control_pair >= rules.control_each;
            let all = control >= u64::from(rules.control);
            return each.then_some(QueueFull::Sender).or(all.then_some(QueueFull::Recipient));
        }
        let (n, bytes, strangers, strangers_bytes) = self.index.mailbox(&message.recipient);
        let (n, bytes) = (n - control, bytes.saturating_sub(control_bytes));
        let known = n < u64::from(rules.unknown_recipient) || self.peers.is_known(&message.recipient);
        let most = if known { rules.per_recipient } else { rules.unknown_recipient.min(rules.per_recipient) };
        if pair >= u64::from(rules.per_pair) {
            return Some(QueueFull::Sender);
        }
        if n >= u64::from(most) {
            return Some(QueueFull::Recipient);
        }
        if bytes + size > rules.bytes_per_recipient {
            return Some(QueueFull::Bytes);
        }
        if correspondent {
            return None;
        }
        let each = pair >= u64::from(rules.stranger_each);
        let share = strangers >= u64::from(rules.strangers) || strangers_bytes + size > rules.strangers_bytes;
        (each || share).then_some(QueueFull::Recipient)
    }

    /// Messages of one recipient leave custody; those that are not in it are passed over.
    fn settle(
        &mut self,
        recipient: &Fingerprint,
        seqs: impl Iterator<Item = u64>,
        now_ms: i64,
        remember: bool,
    ) -> Result<Vec<Departed>, StoreFailed> {
        let (mut gone, mut entries) = (Vec::new(), Vec::new());
        let head = self.place().map_err(|_| StoreFailed)?.segment;
        for seq in seqs {
            let Some(place) = self.index.find(recipient, seq) else { continue };
            let (key, mail) = if let Some(known) = self.index.fresh(seq) {
                known
            } else {
                let mail = self.mail(place)?;
                (key(&self.cipher, &mail.sender, recipient, &mail.id), Arc::new(mail))
            };
            let content = if remember { mail.content } else { 0 };
            leave(&mut self.index, self.journal.segments_mut(), &mail);
            let remembered = remember && self.index.remembered() < RECENT_MOST;
            if remembered {
                self.index.remember(key, content, (now_ms / 1000) as u32, head);
            } else {
                self.index.forget(key);
            }
            entries.push(Settled { seq, recipient: *recipient, key, content });
            gone.push(Departed {
                sender: mail.sender,
                recipient: *recipient,
                id: mail.id.clone(),
                stored_ms: mail.stored_ms,
                size: u64::from(mail.size),
                last: self.index.mailbox(recipient).0 == 0,
            });
            self.undo.push(Undo::Removed { key, mail, place, remembered });
        }
        if !entries.is_empty() {
            write_settled(now_ms, &entries, &mut self.batch);
        }
        Ok(gone)
    }

    fn expire(&mut self, now_ms: i64, limit: u32) -> Result<Vec<Departed>, StoreFailed> {
        let before_s = ((now_ms - RECENT_MS) / 1000) as u32;
        self.index.forget_recent(before_s);
        if let Err(error) = self.memories.forget(before_s) {
            tracing::warn!(%error, "old memories of confirmed messages cannot be removed");
        }
        if let Err(error) = self.peers.forget(now_ms) {
            tracing::error!(%error, "old correspondents cannot be forgotten");
        }
        let due: Vec<u32> = self
            .journal
            .segments()
            .iter()
            .filter(|s| s.live > 0 && s.expires_ms <= now_ms)
            .map(|s| s.id)
            .collect();
        let mut gone = Vec::new();
        for id in due {
            let bytes = self.journal.segment(id).map_err(|_| StoreFailed)?;
            let (mut expired, mut next) = (Vec::new(), i64::MAX);
            journal::for_each(&bytes, |at, record| {
                let Record::Mail(mail, _) = record else { return };
                let place = Place { segment: id, at: at as u32 };
                if self.index.find(&mail.recipient, mail.seq) != Some(place) {
                    return;
                }
                if mail.expires_ms <= now_ms && gone.len() + expired.len() < limit as usize {
                    expired.push(mail);
                } else {
                    next = next.min(mail.expires_ms);
                }
            });
            for mail in expired {
                gone.extend(self.settle(&mail.recipient, std::iter::once(mail.seq), now_ms, false)?);
            }
            if let Some(segment) = self.journal.find(id) {
                segment.expires_ms = next;
            }
        }
        Ok(gone)
    }

    fn backlog(
        &mut self,
        recipient: &Fingerprint,
        after: u64,
        now_ms: i64,
        limit: u32,
        bytes: u64,
    ) -> QueueAnswer {
        let (mut rows, mut total) = (Vec::new(), 0);
        let mut after = after;
        while let Some((seq, place)) = self.index.next(recipient, after) {
            if rows.len() >= limit as usize || total >= bytes {
                return QueueAnswer::Backlog { rows, more: true };
            }
            after = seq;
            let mut buffer = std::mem::take(&mut self.scratch);
            let read = self.journal.mail(place, &mut buffer);
            let opened = read.ok().and_then(|()| open_body(&buffer, &self.cipher));
            let mail = match (opened, record::read(&buffer)) {
                (Some(body), Some((Record::Mail(mail, _), _))) if mail.seq == seq => Some((body, mail)),
                _ => None,
            };
            self.scratch = buffer;
            self.scratch.shrink_to(64 << 10);
            let Some((body, mail)) = mail else {
                // The bytes cannot be given to anybody; they stay for whoever can repair the disk or the key.
                tracing::error!(
                    seq,
                    "a stored message cannot be read or opened with queue.key; it is skipped"
                );
                continue;
            };
            if mail.expires_ms <= now_ms {
                continue;
            }
            total += body.len() as u64;
            let Mail { sender, id, stored_ms, expires_ms, .. } = mail;
            rows.push(Row { seq, sender, id, body: body.into(), stored_ms, expires_ms });
        }
        QueueAnswer::Backlog { rows, more: false }
    }

    fn look(&mut self, most: usize, of: Option<&Fingerprint>) -> QueueAnswer {
        let (by_messages, by_bytes) = self.index.largest(most);
        let oldest = if most > 0 { self.index.oldest() } else { None };
        let oldest_ms = oldest.and_then(|place| self.mail(place).ok()).map(|mail| mail.stored_ms);
        let of = of.map(|recipient| self.index.depth(recipient));
        QueueAnswer::Look(QueueLook { oldest_ms, by_messages, by_bytes, of })
    }

    /// The head of a mail record.
    fn mail(&mut self, place: Place) -> Result<Mail, StoreFailed> {
        // What this group has accepted is not on the medium yet.
        if let Some(base) = self.base
            && place.segment == base.segment
            && place.at >= base.at
        {
            let at = (place.at - base.at) as usize + BATCH_HEADER;
            return match self.batch.get(at..).and_then(record::read) {
                Some((Record::Mail(mail, _), _)) => Ok(mail),
                _ => Err(StoreFailed),
            };
        }
        let mut buffer = std::mem::take(&mut self.scratch);
        let read = self.journal.mail(place, &mut buffer);
        let mail = match (read, record::read(&buffer)) {
            (Ok(()), Some((Record::Mail(mail, _), _))) => Ok(mail),
            (read, _) => {
                tracing::error!(?read, segment = place.segment, "a stored message cannot be read");
                Err(StoreFailed)
            }
        };
        self.scratch = buffer;
        self.scratch.shrink_to(64 << 10);
        mail
    }

    /// Frees what no mail needs any more, a little at a time. Returns whether there is more to do.
    pub fn tidy(&mut self) -> bool {
        let noted = self.write_notes();
        let Some(oldest) = self.journal.segments().front().copied() else { return false };
        // Until they are in the tables, notes can be made again from the mail.
        if self.journal.segments().len() < 2 || (noted && !self.peers.is_clean()) {
            return noted && !self.peers.is_clean();
        }
        if oldest.live == 0 {
            return self.leave_oldest(oldest.id).inspect_err(warn).is_ok();
        }
        let spare = self.journal.bytes().saturating_sub(self.index.totals().bytes);
        if spare > (SPARE_SEGMENTS * self.journal.segment_bytes()).max(self.index.totals().bytes / 4) {
            return self.copy_some(oldest.id).inspect_err(warn).unwrap_or(false);
        }
        false
    }

    /// Writes what was noted of peers, a little at a time. Returns whether that is possible.
    fn write_notes(&mut self) -> bool {
        let written = if self.peers.is_clean() { Ok(()) } else { self.peers.write_some() };
        let failed = written.is_err();
        if failed != std::mem::replace(&mut self.peers_failed, failed) {
            tracing::warn!(?written, "writing to queue.db fails, or works again");
        }
        !failed
    }

    /// Writes everything that was noted of peers, before an orderly end.
    pub fn finish(&mut self) {
        while !self.peers.is_clean() && self.write_notes() {}
    }

    /// A segment without mail goes once its memories stand in the log of memories, some at a time.
    fn leave_oldest(&mut self, id: u32) -> std::io::Result<()> {
        let (count, hold) = self.index.recent_in(id, CARRIED_AT_ONCE);
        if count == 0 {
            return self.journal.remove_oldest();
        }
        if !hold.is_empty() {
            self.memories.keep(&hold)?;
        }
        self.index.carried(count);
        Ok(())
    }

    /// Copies mail of the oldest segment to the end of the log. Returns whether that got any further.
    fn copy_some(&mut self, id: u32) -> std::io::Result<bool> {
        let bytes = self.journal.segment(id)?;
        self.begin();
        let mut moved: Vec<(u64, Mail, Place)> = Vec::new();
        let base = self.place()?;
        if base.segment == id {
            return Ok(false);
        }
        journal::for_each(&bytes, |at, record| {
            let Record::Mail(mail, _) = record else { return };
            let place = Place { segment: id, at: at as u32 };
            if self.batch.len() >= COPY_BYTES || self.index.find(&mail.recipient, mail.seq) != Some(place) {
                return;
            }
            let Some(length) = record::mail_length(&bytes[at..]) else { return };
            let to = Place { segment: base.segment, at: base.at + (self.batch.len() - BATCH_HEADER) as u32 };
            self.batch.extend_from_slice(&bytes[at..at + length]);
            let key = key(&self.cipher, &mail.sender, &mail.recipient, &mail.id);
            moved.push((key, mail, to));
        });
        self.commit(true)?;
        if moved.is_empty()
            && let Some(from) = self.journal.find(id)
        {
            from.live = 0;
        }
        for (key, mail, place) in moved {
            self.index.relocate(key, &mail, place);
            if let Some(from) = self.journal.find(id) {
                from.live = from.live.saturating_sub(1);
            }
            if let Some(to) = self.journal.find(place.segment) {
                to.live += 1;
                to.expires_ms = to.expires_ms.min(mail.expires_ms);
            }
        }
        Ok(true)
    }
}

fn warn(error: &std::io::Error) {
    tracing::warn!(%error, "the log of the queue cannot be tidied now");
}

/// Puts a message into the index. Returns whether it is the only one of its recipient.
fn enter(index: &mut Index, segments: &mut VecDeque<Segment>, key: u64, mail: &Mail, place: Place) -> bool {
    if let Some(segment) = journal::find(segments, place.segment) {
        segment.live += 1;
        segment.expires_ms = segment.expires_ms.min(mail.expires_ms);
    }
    index.enter(key, mail, place)
}

fn forget(index: &mut Index, segments: &mut VecDeque<Segment>, key: u64, mail: &Mail) {
    leave(index, segments, mail);
    index.forget(key);
}

/// A message is no longer in its mailbox; what is known of it under its key stays.
fn leave(index: &mut Index, segments: &mut VecDeque<Segment>, mail: &Mail) {
    if let Some(place) = index.leave(mail)
        && let Some(segment) = journal::find(segments, place.segment)
    {
        segment.live = segment.live.saturating_sub(1);
    }
}

/// Place of a message in the index. Nobody without `queue.key` can make two messages share one; should it happen all
/// the same, only the repeat of one of them goes unnoticed.
fn key(cipher: &BodyCipher, sender: &Fingerprint, recipient: &Fingerprint, id: &MessageId) -> u64 {
    let digest = Sha256::new()
        .chain_update(cipher.index)
        .chain_update(sender.as_bytes())
        .chain_update(recipient.as_bytes())
        .chain_update(id.as_str())
        .finalize();
    digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests;
