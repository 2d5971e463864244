//! Custody to a v1 session: in order, at most 32 in flight, gone only when confirmed (`relay.md` §7).

use threadline::v1::close;
use threadline::v1::frames::{Ack, AckStatus, ServerFrame};

use super::conn::{Delivery, InFlight, Ping, Session};
use super::pipeline::is_sealed;
use super::v2::Device;
use super::{ConnId, Core, Effect, Outgoing, Pending, RETRY_MS};
use crate::store::{QueueOp, Row};

const IN_FLIGHT: usize = 32;
/// With what is ready, a session that reads nothing holds less than a mebibyte.
const IN_FLIGHT_BYTES: usize = 768 << 10;
/// Messages read from storage or held ready at a time.
const PORTION: u32 = 64;
const PORTION_BYTES: u64 = 128 << 10;
/// Messages of a returning recipient per second.
const DRAIN_PER_SECOND: u32 = 200;
/// A ping follows a message within this time.
const PING_AFTER_MS: i64 = 50;
/// Without a pong for this long messages are sent again.
const PONG_WITHIN_MS: i64 = 20_000;
/// Unanswered pings after which the next heartbeat closes.
const MISSED: u8 = 3;
const PINGS_KEPT: usize = 64;
/// The carrier of v2 is pinged this often.
pub(super) const HEARTBEAT_V2_MS: i64 = 30_000;

impl Core {
    pub(super) fn read_backlog(&mut self, id: ConnId, now_ms: i64) {
        let Some(session) = self.session_mut(id) else { return };
        let recipient = session.address;
        let delivery = &mut session.delivery;
        if delivery.reading || delivery.retry_ms.is_some() {
            return;
        }
        delivery.reading = true;
        delivery.behind = false;
        let after = delivery.read_to;
        let op = QueueOp::Backlog { recipient, after, now_ms, limit: PORTION, bytes: PORTION_BYTES };
        self.store_queue(Pending::Backlog(id), op);
    }

    pub(super) fn backlog(&mut self, id: ConnId, rows: Vec<Row>, more: bool, now_ms: i64) {
        let Some(delivery) = self.session_mut(id).map(|session| &mut session.delivery) else { return };
        delivery.reading = false;
        if std::mem::take(&mut delivery.outdated) {
            return self.read_backlog(id, now_ms);
        }
        let read_to = delivery.read_to;
        rows.into_iter().filter(|row| row.seq > read_to).for_each(|row| delivery.ready.push(row));
        delivery.read_to = delivery.ready.last().map_or(read_to, |row| row.seq);
        delivery.caught_up = !more && !delivery.behind;
        if delivery.caught_up && delivery.old_to == u64::MAX {
            delivery.old_to = delivery.read_to;
        }
        self.pump(id, now_ms);
    }

    pub(super) fn backlog_failed(&mut self, id: ConnId, now_ms: i64) {
        let Some(delivery) = self.session_mut(id).map(|session| &mut session.delivery) else { return };
        delivery.reading = false;
        delivery.retry_ms = Some(now_ms + RETRY_MS);
        self.wake(id, now_ms + RETRY_MS);
    }

    /// A message was stored for a live session.
    pub(super) fn offer(&mut self, id: ConnId, row: Row, now_ms: i64) {
        let Some(delivery) = self.session_mut(id).map(|session| &mut session.delivery) else { return };
        if row.seq <= delivery.read_to {
            return;
        }
        if delivery.stirred && !delivery.has_place_for(&row) {
            self.pump(id, now_ms);
        }
        let Some(delivery) = self.session_mut(id).map(|session| &mut session.delivery) else { return };
        if delivery.caught_up && !delivery.reading && delivery.has_place_for(&row) {
            delivery.read_to = row.seq;
            delivery.ready.push(row);
            self.stir(id, now_ms);
        } else {
            delivery.caught_up = false;
            delivery.behind = true;
        }
    }

    /// Something can be written to a session; that waits for the other events at hand.
    fn stir(&mut self, id: ConnId, now_ms: i64) {
        let Some(session) = self.session_mut(id) else { return };
        if !std::mem::replace(&mut session.delivery.stirred, true) {
            self.stirred.push((id, now_ms));
        }
    }

    /// Does at once what the events so far asked for again and again: confirmations go to storage together, and each
    /// session is looked at once.
    pub(super) fn finish_round(&mut self) {
        for (recipient, seqs, now_ms) in std::mem::take(&mut self.taken) {
            let pending = Pending::Confirm(recipient, seqs.clone());
            self.store_queue(pending, QueueOp::Confirm { recipient, seqs, now_ms });
        }
        let mut stirred = std::mem::take(&mut self.stirred);
        for (id, now_ms) in stirred.drain(..) {
            if let Some(session) = self.session_mut(id) {
                session.delivery.stirred = false;
            }
            self.pump(id, now_ms);
        }
        if self.stirred.is_empty() {
            self.stirred = stirred;
        }
    }

    /// Something was stored for a live session that only a read brings in order.
    pub(super) fn mail_waits(&mut self, id: ConnId, now_ms: i64) {
        let Some(delivery) = self.session_mut(id).map(|session| &mut session.delivery) else { return };
        delivery.caught_up = false;
        delivery.behind = true;
        self.pump(id, now_ms);
    }

    /// Writes what may be written now.
    pub(super) fn pump(&mut self, id: ConnId, now_ms: i64) {
        let Some(address) = self.address(id) else { return };
        // A newer session may have taken over.
        if self.reader(&address, false) != Some(id) {
            return;
        }
        let bridge = self.bridge_address();
        let Some(session) = self.conns.get_mut(&id).and_then(|conn| conn.session_mut()) else { return };
        let Session { delivery, device, .. } = session;
        let mut wake = None;
        while let Some(row) = delivery.ready.first() {
            let again = delivery.flight.iter().position(|sent| sent.seq == row.seq);
            let written = again.and_then(|at| delivery.flight.get(at)).is_some_and(|sent| !sent.again);
            let unreadable = device.is_none() && is_sealed(&row.body);
            let deferred = delivery.deferred.iter().any(|(_, seq)| *seq == row.seq);
            if written
                || row.expires_ms <= now_ms
                || unreadable
                || deferred
                || self.confirming.contains(&row.seq)
            {
                delivery.ready.pop();
                continue;
            }
            if again.is_none() && !delivery.has_room_for(row.body.len(), device.as_deref()) {
                break;
            }
            if row.seq <= delivery.old_to {
                let second = now_ms.div_euclid(1000);
                if delivery.drained.0 != second {
                    delivery.drained = (second, 0);
                }
                if delivery.drained.1 >= DRAIN_PER_SECOND {
                    wake = Some((second + 1) * 1000);
                    break;
                }
                delivery.drained.1 += 1;
            }
            let Some(row) = delivery.ready.pop() else { break };
            delivery.note_written(&row, again);
            if let Some(device) = device {
                if let Some(what) = device.delivery(&row, bridge.as_ref()) {
                    self.effects.push_back(Effect::Send { conn: id, what });
                }
                continue;
            }
            let due = delivery.ping_due_ms.get_or_insert(now_ms + PING_AFTER_MS);
            wake = Some(wake.map_or(*due, |at: i64| at.min(*due)));
            self.effects.push_back(Effect::Send { conn: id, what: Outgoing::Message(row.body) });
        }
        let next = delivery.ready.first().map_or(0, |row| row.body.len());
        let full = !delivery.has_room_for(next.max(1), device.as_deref());
        let more = delivery.ready.is_empty() && !delivery.caught_up && (!full || delivery.resends());
        let ping_now = full && delivery.ping_due_ms.is_some();
        if let Some(at) = wake {
            self.wake(id, at);
        }
        if ping_now {
            self.ping(id, now_ms);
        }
        if more {
            self.read_backlog(id, now_ms);
        }
    }

    fn ping(&mut self, id: ConnId, now_ms: i64) {
        if self.conns.get(&id).is_some_and(super::conn::Conn::is_v2) {
            return self.effects.push_back(Effect::Send { conn: id, what: Outgoing::Ping });
        }
        let Some(delivery) = self.session_mut(id).map(|session| &mut session.delivery) else { return };
        delivery.ping_due_ms = None;
        delivery.written += 1;
        delivery.pings.push_back(Ping { sent_ms: now_ms, at: delivery.written });
        if delivery.pings.len() > PINGS_KEPT {
            delivery.pings.pop_front();
        }
        let due = delivery.redeliver_at();
        delivery.redeliver_ms = due;
        self.send(id, ServerFrame::Ping(Some(now_ms.into())));
        if let Some(at) = due {
            self.wake(id, at);
        }
    }

    /// The client took a message. Returns whether one was in flight.
    pub(super) fn taken(&mut self, id: ConnId, ack: &Ack, now_ms: i64) -> bool {
        let Some(delivery) = self.session_mut(id).map(|session| &mut session.delivery) else { return false };
        if ack.status != AckStatus::Delivered {
            return false;
        }
        let Some(at) = delivery.flight.iter().position(|sent| sent.id.as_str() == ack.message_id) else {
            return false;
        };
        let Some(sent) = delivery.flight.remove(at) else { return false };
        delivery.flight_bytes -= sent.size;
        let Some(recipient) = self.address(id) else { return false };
        self.confirming.insert(sent.seq);
        match self.taken.last_mut() {
            Some((last, seqs, _)) if *last == recipient => seqs.push(sent.seq),
            _ => self.taken.push((recipient, vec![sent.seq], now_ms)),
        }
        self.stir(id, now_ms);
        true
    }

    /// The client answered the oldest ping: it has read everything that was written before.
    /// Returns whether a ping was out.
    pub(super) fn ponged(&mut self, id: ConnId, now_ms: i64) -> bool {
        let Some(session) = self.session_mut(id) else { return false };
        session.unanswered = 0;
        let delivery = &mut session.delivery;
        let Some(ping) = delivery.pings.pop_front() else { return false };
        let mut seqs = Vec::new();
        delivery.flight.retain(|sent| {
            let read = sent.at < ping.at;
            if read {
                seqs.push(sent.seq);
            }
            !read
        });
        delivery.flight_bytes = delivery.flight.iter().map(|sent| sent.size).sum();
        delivery.redeliver_ms = delivery.redeliver_at();
        let wake = delivery.redeliver_ms;
        if let Some(at) = wake {
            self.wake(id, at);
        }
        if !seqs.is_empty() {
            self.confirm(id, seqs, now_ms);
        }
        true
    }

    pub(super) fn confirm(&mut self, id: ConnId, seqs: Vec<u64>, now_ms: i64) {
        let Some(recipient) = self.address(id) else { return };
        if let Some(figures) = self.carrier_figures(id) {
            figures.confirmed += seqs.len() as u64;
        }
        self.confirming.extend(&seqs);
        let pending = Pending::Confirm(recipient, seqs.clone());
        self.store_queue(pending, QueueOp::Confirm { recipient, seqs, now_ms });
        self.pump(id, now_ms);
    }

    /// The node does not want a message: it leaves custody.
    pub(super) fn drop_delivery(&mut self, id: ConnId, seq: u64, now_ms: i64) {
        let Some(recipient) = self.address(id) else { return };
        self.confirming.insert(seq);
        let op = QueueOp::Confirm { recipient, seqs: vec![seq], now_ms };
        self.store_queue(Pending::Refused(recipient, seq), op);
        self.pump(id, now_ms);
    }

    /// What a session had in flight will be offered again.
    pub(super) fn give_back(&mut self, session: &Session) {
        self.counters.redelivered += session.delivery.flight.len() as u64;
    }

    /// The timer of a live session.
    pub(super) fn session_due(&mut self, id: ConnId, now_ms: i64) {
        let Some(session) = self.session_mut(id) else { return };
        if session.heartbeat_ms <= now_ms {
            let missed = session.device.as_ref().map_or(Some(MISSED), |device| device.missed());
            if missed.is_some_and(|missed| session.unanswered >= missed) {
                return self.drop_conn(id, close::HEARTBEAT_LOST, "Heartbeat lost", now_ms);
            }
            session.unanswered = session.unanswered.saturating_add(1);
            let v2 = session.device.is_some();
            let next = now_ms + if v2 { HEARTBEAT_V2_MS } else { self.next_heartbeat() };
            if let Some(session) = self.session_mut(id) {
                session.heartbeat_ms = next;
            }
            self.ping(id, now_ms);
        }
        let Some(delivery) = self.session_mut(id).map(|session| &mut session.delivery) else { return };
        let redeliver = delivery.redeliver_ms.is_some_and(|at| at <= now_ms);
        let ping = delivery.ping_due_ms.is_some_and(|at| at <= now_ms);
        if delivery.retry_ms.is_some_and(|at| at <= now_ms) {
            delivery.retry_ms = None;
        }
        if redeliver {
            self.redeliver(id);
        }
        self.offer_deferred(id, now_ms);
        self.pump(id, now_ms);
        if ping {
            self.ping(id, now_ms);
        }
        let Some(session) = self.session(id) else { return };
        let delivery = &session.delivery;
        let deferred = delivery.deferred.front().map(|(at, _)| *at);
        let due = [delivery.ping_due_ms, delivery.redeliver_ms, delivery.retry_ms, deferred];
        let next = due.into_iter().flatten().fold(session.heartbeat_ms, i64::min);
        self.wake(id, next);
    }

    /// Deliveries that were not taken are offered again when their time has come.
    fn offer_deferred(&mut self, id: ConnId, now_ms: i64) {
        let Some(delivery) = self.session_mut(id).map(|session| &mut session.delivery) else { return };
        let mut first = None;
        while let Some((at, seq)) = delivery.deferred.front().copied()
            && at <= now_ms
        {
            delivery.deferred.pop_front();
            first = Some(first.map_or(seq, |first: u64| first.min(seq)));
        }
        if let Some(first) = first {
            self.counters.redelivered += 1;
            self.read_again_from(id, first);
        }
    }

    /// What is stored from `first` on is looked at again; what is in flight is passed over.
    pub(super) fn read_again_from(&mut self, id: ConnId, first: u64) {
        let Some(delivery) = self.session_mut(id).map(|session| &mut session.delivery) else { return };
        delivery.ready.clear();
        delivery.read_to = delivery.read_to.min(first.saturating_sub(1));
        delivery.caught_up = false;
        delivery.outdated = delivery.reading;
    }

    fn redeliver(&mut self, id: ConnId) {
        let Some(session) = self.session_mut(id) else { return };
        session.unanswered = session.unanswered.saturating_add(1);
        let delivery = &mut session.delivery;
        delivery.redeliver_ms = None;
        let Some(first) = delivery.flight.iter().map(|sent| sent.seq).min() else { return };
        delivery.resent_at = delivery.written;
        delivery.flight.iter_mut().for_each(|sent| sent.again = true);
        let again = delivery.flight.len() as u64;
        self.counters.redelivered += again;
        self.read_again_from(id, first);
    }
}

impl Delivery {
    /// Whether a message that was just stored is kept ready; else it is read from storage when its turn comes.
    fn has_place_for(&self, row: &Row) -> bool {
        let fits = self.ready.bytes() + row.body.len() <= PORTION_BYTES as usize;
        self.ready.is_empty() || (self.ready.len() < PORTION as usize && fits)
    }

    fn has_room_for(&self, size: usize, device: Option<&Device>) -> bool {
        let places = device.map_or(self.flight.len() < IN_FLIGHT, |device| device.machine.credit() > 0);
        let first = self.flight.is_empty() && device.is_none();
        first || (places && (self.flight.is_empty() || self.flight_bytes + size <= IN_FLIGHT_BYTES))
    }

    fn resends(&self) -> bool {
        self.flight.iter().any(|sent| sent.again)
    }

    fn note_written(&mut self, row: &Row, again: Option<usize>) {
        self.written += 1;
        if let Some(sent) = again.and_then(|at| self.flight.get_mut(at)) {
            sent.again = false;
            return;
        }
        let size = row.body.len();
        self.flight_bytes += size;
        let (seq, id, at) = (row.seq, row.id.clone(), self.written);
        self.flight.push_back(InFlight { seq, id, size, at, again: false });
    }

    /// When messages must be sent again: 20 s after the first ping that followed one and is unanswered.
    fn redeliver_at(&self) -> Option<i64> {
        let oldest = self.flight.iter().map(|sent| sent.at).min()?.max(self.resent_at);
        let ping = self.pings.iter().find(|ping| ping.at > oldest)?;
        Some(ping.sent_ms + PONG_WITHIN_MS)
    }
}
