//! One message in: the checks in their order, then custody, then the answer (`relay.md` §6, §7.1).

use std::sync::Arc;

use threadline::v1::MAX_ENVELOPE;
use threadline::v1::envelope::{self, Content, Header};
use threadline::v1::frames::{
    Ack, AckStatus, DeliveryExpired, ErrorCode, FlatMessage, RelayError, ServerFrame,
};
use threadline::v2::frames::{self, Custody, FrameId, Outcome, Rejected, Standing as StandingWord, Status};
use threadline::v2::{Bin, Code};
use threadline::{Fingerprint, MessageId};

use super::conn::Session;
use super::refusal::Refusal;
use super::v2::unsigned;
use super::{ConnId, Core, Pending, SWEEP_BATCH, Source, Submission};
use crate::store::{Accept, Accepted, Departed, QueueOp, RegistryOp, Row, Standing, TierCounts};

/// Milliseconds a sender waits for `delivered` before it hears `queued`.
const PATIENCE_MS: i64 = 2_000;
/// Versions of one message of v2: sealed anew under its id.
const VERSIONS: u8 = 3;
/// Largest envelope that is control mail: a receipt.
const CONTROL_BYTES: usize = 2 << 10;
/// Of control mail to correspondents one in so many counts for the rates.
const CONTROL_COUNTS: u64 = 10;

/// A message between its arrival and the answer of storage.
pub(super) struct Submitted {
    pub(super) conn: ConnId,
    /// What it came over: a place in [`crate::metrics::CARRIERS`].
    pub(super) carrier: usize,
    pub(super) sender: Fingerprint,
    pub(super) source: Source,
    pub(super) recipient: Fingerprint,
    pub(super) id: MessageId,
    pub(super) origin: Origin,
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

/// Which frame brought a message, and so what its answer looks like.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// `message` of v1.
    V1,
    /// SEND of v2.
    V2(Box<SendOrigin>),
}

/// A SEND.
#[derive(Debug, Clone)]
pub(super) struct SendOrigin {
    pub(super) rid: u32,
    pub(super) id: FrameId,
    /// What is wrong with the frame, if anything is.
    pub(super) fault: Option<Refusal>,
    pub(super) expires_ms: i64,
    /// Which version of the message is tried.
    pub(super) version: u8,
    /// The stream it came on, where the carrier has several.
    pub(super) stream: Option<u64>,
    /// Whether its sender calls it control mail.
    pub(super) control: bool,
}

impl Submitted {
    /// Whether it is small and says that it is control mail; whether it is depends on the recipient.
    fn is_control(&self) -> bool {
        let says = matches!(&self.origin, Origin::V2(send) if send.control);
        says && self.body.len() <= CONTROL_BYTES
    }
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
        self.submit_from(conn, submission, Origin::V1, now_ms);
    }

    /// The one way in for messages of every carrier.
    pub(super) fn submit_from(&mut self, conn: ConnId, submission: Submission, origin: Origin, now_ms: i64) {
        self.counters.routed += 1;
        self.windows.routed.add(&(), now_ms);
        let Some(session) = self.session(conn) else { return };
        let (sender, source, key) = (session.address, session.source, session.key);
        let carrier = session.carrier();
        let header = match submission.header {
            Ok(header) => header,
            Err(related_message_id) => {
                if let Origin::V2(send) = &origin {
                    return self.reject_send(conn, send, &Refusal::Frame(Code::BadRequest));
                }
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
            return match &origin {
                Origin::V1 => self.send_error(conn, ErrorCode::Banned, "Banned"),
                Origin::V2(send) => self.reject_send(conn, send, &Refusal::Frame(Code::Banned)),
            };
        }
        let size = submission.body.len();
        let expires_ms = match &origin {
            Origin::V1 => now_ms + i64::from(self.config.queue.ttl_s) * 1000,
            Origin::V2(send) => send.expires_ms,
        };
        let submitted = Submitted {
            conn,
            carrier,
            sender,
            source,
            recipient: header.to,
            id: header.message_id,
            origin,
            body: submission.body,
            seq: 0,
            at_ms: now_ms,
            expires_ms,
        };
        let fault = match &submitted.origin {
            Origin::V2(send) => send.fault.clone(),
            Origin::V1 => None,
        };
        let wrong = if header.from != sender {
            Some(Refusal::Mismatch)
        } else if size > MAX_ENVELOPE {
            self.reject(&submitted, &Refusal::TooLarge(size));
            return self.strike(conn, now_ms);
        } else if fault.is_some() {
            fault
        } else if !submission.signature.holds(&key) {
            Some(Refusal::Signature)
        } else if self.is_unasked(sender, &header.to, header.thread_id.as_ref()) {
            Some(Refusal::Unasked)
        } else {
            None
        };
        if let Some(refusal) = wrong {
            return self.reject(&submitted, &refusal);
        }
        if bridge || self.over_limit(&submitted, false, now_ms).is_none() {
            return self.accept(submitted);
        }
        // A repeat of a message that was seen comes before the limits, so storage is asked first.
        let Submitted { sender, recipient, .. } = submitted;
        let (id, body) = (submitted.id.clone(), Arc::clone(&submitted.body));
        let op = QueueOp::Standing { sender, recipient, id, body, now_ms };
        self.store_queue(Pending::Standing(Box::new(submitted)), op);
    }

    fn over_limit(&mut self, message: &Submitted, reply: bool, now_ms: i64) -> Option<Refusal> {
        let windows = &mut self.windows;
        if let Err(over) = windows.minute.check(&message.sender, now_ms) {
            return Some(Refusal::Rate("per_agent_minute", over.retry_ms));
        }
        if let Err(over) = windows.hour.check(&message.sender, now_ms) {
            return Some(Refusal::Rate("per_agent_hour", over.retry_ms));
        }
        if windows.per_source
            && let Err(over) = windows.source.check(&message.source.net, now_ms)
        {
            return Some(Refusal::Rate("per_source_minute", over.retry_ms));
        }
        if let Err(over) = windows.global.check(&(), now_ms) {
            return Some(Refusal::Rate("global_minute", over.retry_ms));
        }
        let session = self.session_mut(message.conn)?;
        young_limit(session, &message.recipient, reply, now_ms)
    }

    fn accept(&mut self, mut message: Submitted) {
        if !self.custody_open {
            return self.reject(&message, &Refusal::Storage);
        }
        self.last_seq += 1;
        message.seq = self.last_seq;
        let at_ms = message.at_ms;
        self.windows.minute.add(&message.sender, at_ms);
        self.windows.hour.add(&message.sender, at_ms);
        if self.windows.per_source {
            self.windows.source.add(&message.source.net, at_ms);
        }
        self.windows.global.add(&(), at_ms);
        if let Some(counts) = self.session_mut(message.conn).and_then(|s| Self::tier_of(s, at_ms)) {
            counts.messages += 1;
        }
        let op = QueueOp::Accept(Accept {
            seq: message.seq,
            sender: message.sender,
            recipient: message.recipient,
            id: message.id.clone(),
            body: Arc::clone(&message.body),
            now_ms: at_ms,
            expires_ms: message.expires_ms,
            control: message.is_control(),
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
            return self.repeat(message, standing, now_ms);
        }
        let Some(refusal) = self.over_limit(&message, reply, now_ms) else { return self.accept(message) };
        self.contacted(&message.sender, &message.recipient, reply, now_ms);
        self.reject(&message, &refusal);
    }

    fn repeat(&mut self, mut message: Submitted, standing: Standing, now_ms: i64) {
        if let Origin::V2(send) = &mut message.origin {
            match standing {
                Standing::Queued { expires_ms, .. } => {
                    self.accept_send(message.conn, send, expires_ms, AcceptedAs::Known(StandingWord::Queued));
                }
                Standing::Delivered => {
                    let expires_ms = send.expires_ms;
                    self.accept_send(message.conn, send, expires_ms, AcceptedAs::Known(StandingWord::Live));
                    let status = Status { id: send.id.clone(), st: Outcome::Taken, at: unsigned(now_ms) };
                    self.send_v2(message.conn, status);
                }
                // The same message, sealed anew.
                Standing::OtherBytes if is_sealed(&message.body) && send.version < VERSIONS => {
                    send.version += 1;
                    if let Some(id) = version_id(&send.id, send.version) {
                        message.id = id;
                        self.accept(message);
                    }
                }
                Standing::OtherBytes | Standing::Unknown => self.reject(&message, &Refusal::Duplicate),
            }
            return;
        }
        match standing {
            // The first copy is still waiting for its answer, which this session will hear.
            Standing::Queued { seq, .. } if self.awaiting.contains_key(&seq) => {}
            Standing::Queued { expires_ms, .. } => {
                self.send_fate(message.sender, message.id, Some(seconds_left(expires_ms, now_ms)));
            }
            Standing::Delivered => {
                self.send_fate(message.sender, message.id, None);
            }
            Standing::OtherBytes | Standing::Unknown => self.reject(&message, &Refusal::Duplicate),
        }
    }

    pub(super) fn not_stored(&mut self, message: &Submitted) {
        self.uncount(message);
        self.reject(message, &Refusal::Storage);
    }

    pub(super) fn accepted(&mut self, message: Submitted, outcome: Accepted, now_ms: i64) {
        let (seq, reply, first) = match outcome {
            Accepted::Stored { seq, reply, first } => (seq, reply, first),
            Accepted::Repeat(standing) => {
                self.uncount(&message);
                return self.repeat(message, standing, now_ms);
            }
            Accepted::Full(full) => {
                self.uncount(&message);
                return self.reject(&message, &Refusal::Full(full));
            }
        };
        if reply && message.is_control() && !message.seq.is_multiple_of(CONTROL_COUNTS) {
            self.uncount(&message);
        }
        self.counters.accepted += 1;
        if let Some(figures) = self.figures.carriers.get_mut(message.carrier) {
            figures.accepted += 1;
        }
        self.figures.accept.add((now_ms - message.at_ms) as f64);
        self.totals.messages += 1;
        self.totals.bytes += message.body.len() as u64;
        self.totals.recipients += u64::from(first);
        self.keep_counts(&message, reply);
        self.contacted(&message.sender, &message.recipient, reply, now_ms);
        let Submitted { conn: from, sender, recipient, id, origin, body, at_ms, expires_ms, .. } = message;
        let sealed = is_sealed(&body);
        let reader = self.reader(&recipient, sealed);
        let there = reader.is_some() || self.reads_elsewhere(&recipient, sealed);
        self.counters.queued += u64::from(!there);
        match &origin {
            Origin::V2(send) => {
                let word = if there { StandingWord::Live } else { StandingWord::Queued };
                self.accept_send(from, send, expires_ms, AcceptedAs::New(word));
            }
            Origin::V1 if there => {
                self.awaiting.insert(seq, Awaiting { sender, id: id.clone(), expires_ms });
                self.patience.push_back((now_ms + PATIENCE_MS, seq));
            }
            Origin::V1 => self.send_fate(sender, id.clone(), Some(seconds_left(expires_ms, now_ms))),
        }
        let Some(conn) = reader else { return };
        if self.is_clustered() {
            // Other relays store mail for the same session; only the engine knows the order.
            return self.mail_waits(conn, now_ms);
        }
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
            self.send_fate(waiting.sender, waiting.id, Some(seconds_left(waiting.expires_ms, now_ms)));
        }
    }

    pub(super) fn confirmed(&mut self, seqs: &[u64], gone: Vec<Departed>, now_ms: i64) {
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
            if !self.tell_sender(&message, Outcome::Taken, now_ms) {
                self.send_fate(message.sender, message.id, None);
            }
        }
    }

    pub(super) fn expired(&mut self, gone: Vec<Departed>, now_ms: i64) {
        if gone.len() >= SWEEP_BATCH as usize {
            self.store_queue(Pending::Sweep, QueueOp::Expire { now_ms, limit: SWEEP_BATCH });
        }
        for message in gone {
            self.depart(&message);
            self.counters.expired += 1;
            if !self.tell_sender(&message, Outcome::Expired, now_ms) {
                self.tell_expired(&message);
            }
        }
    }

    /// An operator emptied a mailbox; the senders hear of it.
    pub(super) fn dropped(&mut self, gone: Vec<Departed>, now_ms: i64) {
        for message in gone {
            self.depart(&message);
            self.counters.expired += 1;
            if !self.tell_sender(&message, Outcome::Dropped, now_ms) {
                self.tell_expired(&message);
            }
        }
    }

    fn tell_expired(&mut self, message: &Departed) {
        let notice = DeliveryExpired {
            message_id: message.id.as_str().to_owned(),
            recipient_id: message.recipient.to_string(),
            queued_at: threadline::time::iso_ms(message.stored_ms),
        };
        self.send_to(message.sender, ServerFrame::DeliveryExpired(notice));
    }

    fn depart(&mut self, message: &Departed) {
        self.totals.messages = self.totals.messages.saturating_sub(1);
        self.totals.bytes = self.totals.bytes.saturating_sub(message.size);
        self.totals.recipients = self.totals.recipients.saturating_sub(u64::from(message.last));
    }

    /// Tells a sender that speaks v2 what became of its message; `false` when v1 has to.
    pub(super) fn tell_sender(&mut self, message: &Departed, st: Outcome, now_ms: i64) -> bool {
        let sealed = sealed_id(&message.id);
        let Some(conn) = self.active_device(&message.sender) else { return sealed.is_some() };
        if sealed.is_none() && self.sessions.contains_key(&message.sender) {
            return false;
        }
        let id = sealed.unwrap_or_else(|| FrameId::Text(message.id.as_str().to_owned()));
        self.send_v2(conn, Status { id, st, at: unsigned(now_ms) });
        true
    }

    pub(super) fn reject(&mut self, message: &Submitted, refusal: &Refusal) {
        if let Origin::V2(send) = &message.origin {
            return self.reject_send(message.conn, send, refusal);
        }
        self.count_refusal(refusal);
        let ack = Ack {
            message_id: message.id.as_str().to_owned(),
            status: AckStatus::Rejected,
            reason: Some(refusal.text()),
            ttl: None,
        };
        self.send_to(message.sender, ServerFrame::Ack(ack));
    }

    fn count_refusal(&mut self, refusal: &Refusal) {
        self.counters.rejected += 1;
        self.figures.rejects[refusal.label() as usize] += 1;
    }

    fn reject_send(&mut self, conn: ConnId, send: &SendOrigin, refusal: &Refusal) {
        self.count_refusal(refusal);
        let (code, retry_ms) = (refusal.code(), refusal.retry_ms());
        if let Some(stream) = send.stream.filter(|_| code.is_retryable()) {
            self.close_stream(conn, stream, refusal);
        }
        self.answer_v2(conn, Rejected { rid: send.rid, id: send.id.clone(), code, retry_ms }, send.stream);
    }

    fn accept_send(&mut self, conn: ConnId, send: &SendOrigin, expires_ms: i64, how: AcceptedAs) {
        let (dup, st) = match how {
            AcceptedAs::New(st) => (false, st),
            AcceptedAs::Known(st) => (true, st),
        };
        let (rid, id, exp) = (send.rid, send.id.clone(), unsigned(expires_ms));
        let cu = if self.replicated { Custody::Replicated } else { Custody::Durable };
        self.answer_v2(conn, frames::Accepted { rid, id, cu, st, exp, dup }, send.stream);
    }
}

/// How a SEND was taken.
enum AcceptedAs {
    New(StandingWord),
    Known(StandingWord),
}

/// Whether a stored envelope is one of v2: JSON never begins like this.
pub(super) fn is_sealed(body: &[u8]) -> bool {
    body.first() == Some(&0x95)
}

const SEALED: &str = "v2:";

/// The id under which a version of a message of v2 is kept.
pub(super) fn version_id(id: &FrameId, version: u8) -> Option<MessageId> {
    let FrameId::Bin(id) = id else { return None };
    let hex = hex::encode(id.0);
    let text = if version == 1 { format!("{SEALED}{hex}") } else { format!("{SEALED}{hex}:{version}") };
    text.parse().ok()
}

fn sealed_id(id: &MessageId) -> Option<FrameId> {
    let hex = id.as_str().strip_prefix(SEALED)?;
    let bytes = hex::decode(hex.get(..32)?).ok()?;
    Some(FrameId::Bin(Bin(bytes.try_into().ok()?)))
}

/// Seconds until a message is given up.
fn seconds_left(expires_ms: i64, now_ms: i64) -> u64 {
    u64::try_from((expires_ms - now_ms + 999) / 1000).unwrap_or(0)
}

/// Limits of the first day (`relay.md` §11.1).
fn young_limit(session: &mut Session, recipient: &Fingerprint, reply: bool, now_ms: i64) -> Option<Refusal> {
    let counts: &TierCounts = Core::tier_of(session, now_ms)?;
    let (messages, recipients, name) = match counts.hour {
        ..=0 => (Some(if counts.worked { 30 } else { 10 }), 5, "in first hour"),
        1 => (Some(if counts.worked { 60 } else { 30 }), 10, "in second hour"),
        _ => (None, 50, "per hour"),
    };
    if let Some(most) = messages.filter(|most| counts.messages >= *most) {
        return Some(Refusal::Young(format!("New agent rate limit: {most} messages {name}")));
    }
    let new = !reply && !counts.recipients.contains(recipient);
    (new && counts.recipients.len() >= recipients)
        .then(|| Refusal::Young(format!("New agent rate limit: {recipients} new recipients {name}")))
}
