//! One message in: the checks in their order, then custody, then the answer (`relay.md` §6, §7.1).

use std::sync::Arc;

use threadline::identity::PublicIdentity;
use threadline::v1::MAX_ENVELOPE;
use threadline::v1::envelope::{self, Content, Envelope, Header};
use threadline::v1::frames::{
    Ack, AckStatus, DeliveryExpired, ErrorCode, FlatMessage, RelayError, ServerFrame,
};
use threadline::{Fingerprint, MessageId};

use super::conn::Session;
use super::{ConnId, Core, Pending, Reject, SWEEP_BATCH, Source, Submission};
use crate::store::{Accept, Accepted, Departed, QueueFull, QueueOp, RegistryOp, Row, Standing, TierCounts};

/// Milliseconds a sender waits for `delivered` before it hears `queued`.
const PATIENCE_MS: i64 = 2_000;
const REPLAY: &str = "Duplicate message ID (replay detected)";

/// A message between its arrival and the answer of storage.
pub(super) struct Submitted {
    pub(super) conn: ConnId,
    pub(super) sender: Fingerprint,
    pub(super) source: Source,
    pub(super) recipient: Fingerprint,
    pub(super) id: MessageId,
    pub(super) hash: [u8; 32],
    pub(super) body: Arc<[u8]>,
    pub(super) seq: u64,
    pub(super) at_ms: i64,
    pub(super) expires_ms: i64,
}

/// An accepted message whose sender has not heard yet.
pub(super) struct Awaiting {
    sender: Fingerprint,
    id: MessageId,
    expires_ms: i64,
}

/// Why the limits of steps 6 and 7 refuse.
enum Over {
    Rate(&'static str),
    Tier(String),
    /// Too many new recipients; a reply is exempt.
    Recipients(String),
}

impl Core {
    pub(super) fn submit_flat(&mut self, id: ConnId, flat: FlatMessage, now_ms: i64) {
        let Some(from) = self.address(id) else { return };
        let thread_id = flat.thread_id.as_deref().filter(|text| !text.is_empty()).map(str::parse);
        let (Ok(to), Ok(thread_id)) = (flat.to.parse(), thread_id.transpose()) else {
            let text = "Invalid message frame: to is not an address or threadId is malformed";
            return self.send_error(id, ErrorCode::InvalidFrame, text);
        };
        let uuid = uuid::Builder::from_random_bytes(self.random()).into_uuid();
        let header =
            Header { from, to, thread_id, message_id: MessageId::from_uuid(uuid), timestamp: now_ms };
        let content = Content { text: flat.text, ..Content::default() };
        self.submit(id, Submission::new(envelope::clear(&header, &content)), now_ms);
    }

    pub(super) fn submit(&mut self, conn: ConnId, submission: Submission, now_ms: i64) {
        self.counters.routed += 1;
        self.windows.routed.add(&(), now_ms);
        let Some(session) = self.session(conn) else { return };
        let (sender, source, key) = (session.address, session.source, session.key);
        let header = match submission.header {
            Ok(header) => header,
            Err(related_message_id) => {
                let message =
                    "Invalid message frame: from, to, messageId, threadId or timestamp is malformed";
                let code = ErrorCode::InvalidFrame;
                let error = RelayError { code, message: message.into(), related_message_id };
                return self.send(conn, ServerFrame::Error(error));
            }
        };
        let bridge = self.is_bridge(&sender);
        if self.session(conn).is_some_and(|session| session.banned)
            || !bridge && self.attempted(&sender, now_ms)
        {
            return self.send_error(conn, ErrorCode::Banned, "Banned");
        }
        if header.from != sender {
            return self.reject(sender, &header.message_id, "Sender fingerprint mismatch");
        }
        let size = submission.body.len();
        if size > MAX_ENVELOPE {
            let reason = format!("Envelope too large ({size} > {MAX_ENVELOPE})");
            self.reject(sender, &header.message_id, reason);
            return self.strike(conn, now_ms);
        }
        if submission.sealed.is_some_and(|envelope| !is_signed(&envelope, &key)) {
            return self.reject(sender, &header.message_id, "invalid_signature");
        }
        if self.is_unasked(sender, &header.to, header.thread_id.as_ref()) {
            let reason = "No pending A2A task for this thread";
            return self.reject(sender, &header.message_id, reason);
        }
        let submitted = Submitted {
            conn,
            sender,
            source,
            recipient: header.to,
            id: header.message_id,
            hash: submission.hash,
            body: submission.body,
            seq: 0,
            at_ms: now_ms,
            expires_ms: now_ms + i64::from(self.config.queue.ttl_s) * 1000,
        };
        if bridge || self.over_limit(&submitted, false, now_ms).is_none() {
            return self.accept(submitted);
        }
        // A repeat of a message that was seen comes before the limits, so storage is asked first.
        let Submitted { sender, recipient, hash, .. } = submitted;
        let id = submitted.id.clone();
        let op = QueueOp::Standing { sender, recipient, id, hash, now_ms };
        self.store_queue(Pending::Standing(Box::new(submitted)), op);
    }

    fn over_limit(&mut self, message: &Submitted, reply: bool, now_ms: i64) -> Option<Over> {
        let windows = &mut self.windows;
        if windows.minute.check(&message.sender, now_ms).is_err() {
            return Some(Over::Rate("per_agent_minute"));
        }
        if windows.hour.check(&message.sender, now_ms).is_err() {
            return Some(Over::Rate("per_agent_hour"));
        }
        if windows.per_source && windows.source.check(&message.source.net, now_ms).is_err() {
            return Some(Over::Rate("per_source_minute"));
        }
        if windows.global.check(&(), now_ms).is_err() {
            return Some(Over::Rate("global_minute"));
        }
        let session = self.session_mut(message.conn)?;
        young_limit(session, &message.recipient, reply, now_ms)
    }

    fn accept(&mut self, mut message: Submitted) {
        if !self.custody_open {
            return self.reject(message.sender, &message.id, "Relay storage unavailable");
        }
        self.last_seq += 1;
        message.seq = self.last_seq;
        let at_ms = message.at_ms;
        self.windows.minute.add(&message.sender, at_ms);
        self.windows.hour.add(&message.sender, at_ms);
        self.windows.source.add(&message.source.net, at_ms);
        self.windows.global.add(&(), at_ms);
        if let Some(counts) = self.session_mut(message.conn).and_then(|s| Self::tier_of(s, at_ms)) {
            counts.messages += 1;
        }
        let op = QueueOp::Accept(Accept {
            seq: message.seq,
            sender: message.sender,
            recipient: message.recipient,
            id: message.id.clone(),
            hash: message.hash,
            body: Arc::clone(&message.body),
            now_ms: at_ms,
            expires_ms: message.expires_ms,
        });
        self.store_queue(Pending::Accept(Box::new(message)), op);
    }

    /// The limits count only what was stored.
    fn uncount(&mut self, message: &Submitted) {
        let at_ms = message.at_ms;
        self.windows.minute.take_back(&message.sender, at_ms);
        self.windows.hour.take_back(&message.sender, at_ms);
        self.windows.source.take_back(&message.source.net, at_ms);
        self.windows.global.take_back(&(), at_ms);
        if let Some(counts) = self.session_mut(message.conn).and_then(|s| Self::tier_of(s, at_ms)) {
            counts.messages = counts.messages.saturating_sub(1);
        }
    }

    pub(super) fn standing(&mut self, message: Submitted, standing: Standing, reply: bool, now_ms: i64) {
        if standing != Standing::Unknown {
            return self.repeat(&message, standing, now_ms);
        }
        let reason = match self.over_limit(&message, reply, now_ms) {
            None => return self.accept(message),
            Some(Over::Rate(which)) => format!("Rate limited ({which})"),
            Some(Over::Tier(text) | Over::Recipients(text)) => text,
        };
        self.contacted(&message.sender, &message.recipient, reply, now_ms);
        self.reject(message.sender, &message.id, reason);
    }

    fn repeat(&mut self, message: &Submitted, standing: Standing, now_ms: i64) {
        match standing {
            // The first copy is still waiting for its answer, which this session will hear.
            Standing::Queued { seq, .. } if self.awaiting.contains_key(&seq) => {}
            Standing::Queued { expires_ms, .. } => {
                self.send_ack(message.sender, queued(&message.id, expires_ms, now_ms));
            }
            Standing::Delivered => {
                self.send_ack(message.sender, Ack::new(message.id.as_str(), AckStatus::Delivered));
            }
            Standing::OtherBytes | Standing::Unknown => self.reject(message.sender, &message.id, REPLAY),
        }
    }

    pub(super) fn not_stored(&mut self, message: Submitted) {
        self.uncount(&message);
        self.reject(message.sender, &message.id, "Relay storage unavailable");
    }

    pub(super) fn accepted(&mut self, message: Submitted, outcome: Accepted, now_ms: i64) {
        let (reply, first) = match outcome {
            Accepted::Stored { reply, first } => (reply, first),
            Accepted::Repeat(standing) => {
                self.uncount(&message);
                return self.repeat(&message, standing, now_ms);
            }
            Accepted::Full(full) => {
                self.uncount(&message);
                let which = match full {
                    QueueFull::Sender => "queue_full_sender",
                    QueueFull::Recipient => "queue_full_recipient",
                    QueueFull::Bytes => "queue_full_bytes",
                };
                return self.reject(message.sender, &message.id, format!("Offline queue full ({which})"));
            }
        };
        self.counters.accepted += 1;
        self.figures.accept.add((now_ms - message.at_ms) as f64);
        self.totals.messages += 1;
        self.totals.bytes += message.body.len() as u64;
        self.totals.recipients += u64::from(first);
        self.keep_counts(&message, reply);
        self.contacted(&message.sender, &message.recipient, reply, now_ms);
        let Submitted { sender, recipient, id, body, seq, at_ms, expires_ms, .. } = message;
        let Some(conn) = self.sessions.get(&recipient).copied() else {
            self.counters.queued += 1;
            return self.send_ack(sender, queued(&id, expires_ms, now_ms));
        };
        self.awaiting.insert(seq, Awaiting { sender, id: id.clone(), expires_ms });
        self.patience.push_back((now_ms + PATIENCE_MS, seq));
        self.offer(conn, Row { seq, sender, id, body, stored_ms: at_ms, expires_ms }, now_ms);
    }

    fn keep_counts(&mut self, message: &Submitted, reply: bool) {
        let Some(session) = self.session_mut(message.conn) else { return };
        let key = session.key;
        let Some(counts) = Self::tier_of(session, message.at_ms) else { return };
        if !reply && !counts.recipients.contains(&message.recipient) {
            counts.recipients.push(message.recipient);
        }
        let counts = counts.clone();
        self.store_registry(Pending::Quiet, RegistryOp::Count { key, counts });
    }

    pub(super) fn answer_due(&mut self, seq: u64, now_ms: i64) {
        if let Some(waiting) = self.awaiting.remove(&seq) {
            self.counters.queued += 1;
            self.send_ack(waiting.sender, queued(&waiting.id, waiting.expires_ms, now_ms));
        }
    }

    pub(super) fn confirmed(&mut self, seqs: &[u64], gone: Vec<Departed>) {
        for seq in seqs {
            self.confirming.remove(seq);
            self.awaiting.remove(seq);
        }
        while let Some((_, seq)) = self.patience.front()
            && !self.awaiting.contains_key(seq)
        {
            self.patience.pop_front();
        }
        for message in gone {
            self.depart(&message);
            self.counters.delivered += 1;
            self.send_ack(message.sender, Ack::new(message.id.as_str(), AckStatus::Delivered));
        }
    }

    pub(super) fn expired(&mut self, gone: Vec<Departed>, now_ms: i64) {
        if gone.len() >= SWEEP_BATCH as usize {
            self.store_queue(Pending::Sweep, QueueOp::Expire { now_ms, limit: SWEEP_BATCH });
        }
        for message in gone {
            self.depart(&message);
            self.counters.expired += 1;
            let notice = DeliveryExpired {
                message_id: message.id.as_str().to_owned(),
                recipient_id: message.recipient.to_string(),
                queued_at: threadline::time::iso_ms(message.stored_ms),
            };
            self.send_to(message.sender, ServerFrame::DeliveryExpired(notice));
        }
    }

    fn depart(&mut self, message: &Departed) {
        self.totals.messages = self.totals.messages.saturating_sub(1);
        self.totals.bytes = self.totals.bytes.saturating_sub(message.size);
        self.totals.recipients = self.totals.recipients.saturating_sub(u64::from(message.last));
    }

    pub(super) fn reject(&mut self, sender: Fingerprint, id: &MessageId, reason: impl Into<String>) {
        self.counters.rejected += 1;
        let reason = reason.into();
        self.figures.rejects[Reject::of(&reason) as usize] += 1;
        let ack = Ack {
            message_id: id.as_str().to_owned(),
            status: AckStatus::Rejected,
            reason: Some(reason),
            ttl: None,
        };
        self.send_ack(sender, ack);
    }
}

fn queued(id: &MessageId, expires_ms: i64, now_ms: i64) -> Ack {
    let ttl = u64::try_from((expires_ms - now_ms + 999) / 1000).unwrap_or(0);
    Ack { message_id: id.as_str().to_owned(), status: AckStatus::Queued, reason: None, ttl: Some(ttl) }
}

fn is_signed(envelope: &Envelope, key: &[u8; 32]) -> bool {
    PublicIdentity::from_bytes(key).is_ok_and(|key| envelope::check_signature(envelope, &key).is_ok())
}

/// Limits of the first day (`relay.md` §11.1).
fn young_limit(session: &mut Session, recipient: &Fingerprint, reply: bool, now_ms: i64) -> Option<Over> {
    let counts: &TierCounts = Core::tier_of(session, now_ms)?;
    let (messages, recipients, name) = match counts.hour {
        ..=0 => (Some(10), 5, "in first hour"),
        1 => (Some(30), 10, "in second hour"),
        _ => (None, 50, "per hour"),
    };
    if let Some(most) = messages.filter(|most| counts.messages >= *most) {
        return Some(Over::Tier(format!("New agent rate limit: {most} messages {name}")));
    }
    let new = !reply && !counts.recipients.contains(recipient);
    (new && counts.recipients.len() >= recipients)
        .then(|| Over::Recipients(format!("New agent rate limit: {recipients} new recipients {name}")))
}
