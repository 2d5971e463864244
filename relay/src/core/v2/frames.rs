//! What an open session of v2 says (`threadline-wire.md` §5.5).

use threadline::Fingerprint;
use threadline::v1::frames::Visibility as V1Visibility;
use threadline::v2::frames::{
    Fault, Found, FoundRow, Frame, Keys, KeysOk, Looked, MAX_WATCHED, NotTaken, Ping, Pong, Presence,
    PresenceSet, Role, Search, Send, Target, Watch,
};
use threadline::v2::{Bin, Code};

use super::inbound::{Prepared, PreparedSend};
use super::{Pending, address_of, unsigned, visibility_of};
use crate::core::pipeline::{Origin, SendOrigin};
use crate::core::refusal::Refusal;
use crate::core::{ConnId, Core};
use crate::registry::cursor::Cursor;
use crate::registry::{clean, search};
use crate::store::QueueOp;
use crate::store::registry::devices::{DeviceAnswer, DeviceOp, Known, Lease};

/// A fresh registry token at most this often.
const TOKEN_EVERY_MS: i64 = 300_000;
/// A delivery that was not taken is offered again after this time.
const BACK_OFF_MS: i64 = 30_000;
/// Streams that are remembered as refused; a client has 64 at a time.
const STREAMS: usize = 256;
/// Priority of receipts and other control mail.
const CONTROL: u8 = 3;
const ROWS: u32 = 50;
const MOST_ROWS: u32 = 100;

impl Core {
    pub(super) fn frame_v2(
        &mut self,
        id: ConnId,
        frame: Frame,
        (prepared, stream): (Prepared, Option<u64>),
        now_ms: i64,
    ) {
        let expected = matches!(frame, Frame::Send(_) | Frame::Taken(_) | Frame::NotTaken(_));
        let of_blob = self.is_of_blob(id, &frame);
        if !expected && !of_blob && !self.count_frame(id, now_ms) {
            return;
        }
        match (frame, prepared) {
            (Frame::Send(send), Prepared::Send(prepared)) => {
                self.send_frame(id, &send, (*prepared, stream), now_ms);
            }
            (Frame::Taken(taken), _) => self.taken_v2(id, &taken.dids, now_ms),
            (Frame::NotTaken(refused), _) => self.not_taken(id, &refused, now_ms),
            (Frame::Ping(ping), _) => self.ping_v2(id, &ping, now_ms),
            (Frame::PresenceSet(set), _) => self.set_presence(id, &set, now_ms),
            (Frame::Watch(watch), _) => self.watch_v2(id, &watch, now_ms),
            (Frame::Lookup(lookup), _) => self.look_up(id, lookup.rid, lookup.to, now_ms),
            (Frame::Search(search), _) => self.search(id, &search, now_ms),
            (Frame::KeysPut(_), Prepared::Keys(Err(code)))
            | (Frame::AddrPut(_), Prepared::Address(Err(code))) => self.fault(id, None, code),
            (Frame::KeysPut(_), Prepared::Keys(Ok(keys))) => {
                let fits = self.session(id).is_some_and(|session| {
                    session.key == keys.facts.key
                        && session.device.as_ref().is_some_and(|device| device.id == keys.facts.device)
                });
                if !fits {
                    return self.fault(id, None, Code::BadDevice);
                }
                let op = DeviceOp::PutKeys {
                    facts: Box::new(keys.facts),
                    one_time: keys.one_time,
                    fallback: keys.fallback,
                    now_ms,
                };
                self.ask(id, Pending::KeysPut, op);
            }
            (Frame::KeysClaim(claim), _) => self.claim_asked(id, claim.rid, claim.to, now_ms),
            (Frame::AddrPut(_), Prepared::Address(Ok((key, record, expires_ms)))) => {
                if self.session(id).is_none_or(|session| session.key != key.0) {
                    return self.fault(id, None, Code::BadSignature);
                }
                self.ask(id, Pending::Quiet, DeviceOp::Address { key: key.0, record, expires_ms });
            }
            (Frame::BlobOpen(open), _) => self.blob_opened(id, &open, now_ms),
            (Frame::BlobGo(go), _) if of_blob => self.blob_goes_on(&go, now_ms),
            (Frame::BlobData(data), _) if of_blob => self.blob_piece(data, now_ms),
            (Frame::BlobEnd(end), _) if of_blob => self.blob_ended(&end),
            // What was given up may still be under way.
            (Frame::BlobGo(_) | Frame::BlobData(_) | Frame::BlobEnd(_), _) => {}
            (Frame::ChainsGet(get), _) => self.fault(id, Some(get.rid), Code::UnsupportedVersion),
            _ => self.fault(id, None, Code::UnsupportedVersion),
        }
    }

    pub(super) fn fault(&mut self, id: ConnId, rid: Option<u32>, code: Code) {
        self.send_v2(id, Fault { rid, code, text: None });
    }

    fn send_frame(
        &mut self,
        id: ConnId,
        send: &Send,
        (prepared, stream): (PreparedSend, Option<u64>),
        now_ms: i64,
    ) {
        let Some(session) = self.session(id) else { return };
        let Some(device) = &session.device else { return };
        let PreparedSend { submission, from, fault } = prepared;
        let fault = if from.is_some_and(|from| from.0 != session.key) {
            Some(Refusal::Mismatch)
        } else if let Some(code) = fault {
            Some(if code == Code::TooLarge {
                Refusal::TooLarge(submission.body.len())
            } else {
                Refusal::Frame(code)
            })
        } else if device.lease != device.fence {
            Some(Refusal::StaleLease)
        } else {
            stream.and_then(|stream| device.refused.get(&stream)).cloned()
        };
        let life_s = send.ttl.min(u64::from(self.config.queue.max_ttl_s));
        let life_ms = i64::try_from(life_s.saturating_mul(1_000)).unwrap_or(i64::MAX);
        let origin = SendOrigin {
            rid: send.rid,
            id: send.id.clone(),
            fault,
            expires_ms: now_ms.saturating_add(life_ms),
            version: 1,
            stream,
            control: send.pri == CONTROL,
        };
        self.submit_from(id, submission, Origin::V2(Box::new(origin)), now_ms);
    }

    /// Nothing may overtake a message that was refused for now: what follows on its stream is refused as well.
    pub(in crate::core) fn close_stream(&mut self, id: ConnId, stream: u64, refusal: &Refusal) {
        let Some(device) = self.device_mut(id) else { return };
        device.refused.entry(stream).or_insert_with(|| refusal.clone());
        if device.refused.len() > STREAMS {
            device.refused.pop_first();
        }
    }

    fn taken_v2(&mut self, id: ConnId, deliveries: &[u64], now_ms: i64) {
        let Some(session) = self.session_mut(id) else { return };
        let Some(device) = &mut session.device else { return };
        if !device.is_active() {
            return self.fault(id, None, Code::StaleEpoch);
        }
        let mut seqs = Vec::new();
        for did in deliveries.iter().filter(|did| device.machine.confirmed(**did)) {
            device.tries.remove(did);
            if let Some(at) = session.delivery.flight.iter().position(|sent| sent.seq == *did)
                && let Some(sent) = session.delivery.flight.remove(at)
            {
                session.delivery.flight_bytes -= sent.size;
                seqs.push(sent.seq);
            }
        }
        if !seqs.is_empty() {
            self.confirm(id, seqs, now_ms);
        }
    }

    fn not_taken(&mut self, id: ConnId, refused: &NotTaken, now_ms: i64) {
        let Some(session) = self.session_mut(id) else { return };
        let Some(device) = &mut session.device else { return };
        if !device.is_active() {
            return self.fault(id, None, Code::StaleEpoch);
        }
        if !device.machine.confirmed(refused.did) {
            return;
        }
        let delivery = &mut session.delivery;
        if let Some(at) = delivery.flight.iter().position(|sent| sent.seq == refused.did)
            && let Some(sent) = delivery.flight.remove(at)
        {
            delivery.flight_bytes -= sent.size;
        }
        if refused.code.drops_delivery() {
            device.tries.remove(&refused.did);
            if refused.code == Code::Duplicate {
                self.confirm(id, vec![refused.did], now_ms);
            } else {
                self.drop_delivery(id, refused.did, now_ms);
            }
            return;
        }
        let tries = device.tries.entry(refused.did).or_default();
        *tries = tries.saturating_add(1);
        let due = now_ms + BACK_OFF_MS;
        delivery.deferred.push_back((due, refused.did));
        self.wake(id, due);
        self.pump(id, now_ms);
    }

    fn ping_v2(&mut self, id: ConnId, ping: &Ping, now_ms: i64) {
        let Some(session) = self.session(id) else { return };
        let key = session.key;
        let Some(device) = &session.device else { return };
        let (ep, role, token_ms) = (device.fence, device.role(), device.token_ms);
        let token = (ping.tok && now_ms - token_ms >= TOKEN_EVERY_MS).then(|| self.token(&key, now_ms));
        if token.is_some()
            && let Some(device) = self.device_mut(id)
        {
            device.token_ms = now_ms;
        }
        let (tok, tok_x) = token.map_or((None, None), |(token, ends)| (Some(token), Some(unsigned(ends))));
        self.send_v2(id, Pong { t: ping.t, now: unsigned(now_ms), ep, role, tok, tok_x });
    }

    fn set_presence(&mut self, id: ConnId, set: &PresenceSet, now_ms: i64) {
        let Some(session) = self.session_mut(id) else { return };
        let (key, address) = (session.key, session.address);
        if set.vis.is_some() {
            session.visibility = visibility_of(set.vis);
            self.claim_in_cluster(id);
        }
        match set.role {
            Some(Role::Active) => {
                self.ask(id, Pending::Lease(set.ep), DeviceOp::Lease { key, epoch: set.ep });
            }
            Some(Role::Standby) if self.device(id).is_some_and(super::Device::is_active) => {
                self.demote(id, now_ms);
                // Mail goes to a session of v1 again, if there is one.
                self.read_anew(&address, now_ms);
            }
            Some(Role::Standby | Role::Token) | None => {}
        }
    }

    fn watch_v2(&mut self, id: ConnId, watch: &Watch, now_ms: i64) {
        if watch.all {
            return self.watch(id, None);
        }
        let keys = watch.keys.get(..MAX_WATCHED).unwrap_or(&watch.keys);
        let addresses: Vec<Fingerprint> = keys.iter().filter_map(|key| address_of(&key.0)).collect();
        self.watch(id, Some(addresses.clone()));
        for address in addresses {
            let Some(key) = self.seen_by(id, &address) else { continue };
            let news = Presence { key: Bin(key), dev: None, on: true, role: None, at: unsigned(now_ms) };
            self.send_v2(id, news);
        }
    }

    /// The key of an agent that is there, where the one who asks may know it.
    fn seen_by(&self, asker: ConnId, address: &Fingerprint) -> Option<[u8; 32]> {
        let who = self.address(asker)?;
        let there = self.conns_of(address).into_iter().filter_map(|conn| self.session(conn));
        let there = there.map(|session| (session.visibility, &*session.siblings, session.key));
        let elsewhere = self.elsewhere(address).iter();
        let elsewhere = elsewhere.map(|agent| (agent.visibility, &*agent.siblings, agent.key));
        let mut may = there.chain(elsewhere).filter(|(visibility, siblings, _)| {
            *visibility != V1Visibility::Private || siblings.contains(&who) || who == *address
        });
        may.next().map(|(_, _, key)| key)
    }

    fn look_up(&mut self, id: ConnId, rid: u32, to: Target, now_ms: i64) {
        let Some(address) = self.address(id) else { return };
        if self.windows.lookups.take(&address, now_ms).is_err() {
            return self.fault(id, Some(rid), Code::RateLimited);
        }
        self.ask(id, Pending::Lookup { rid }, DeviceOp::Find { to: bytes_of(to), now_ms });
    }

    fn search(&mut self, id: ConnId, search: &Search, now_ms: i64) {
        let Some(address) = self.address(id) else { return };
        if self.windows.lookups.take(&address, now_ms).is_err() {
            return self.fault(id, Some(search.rid), Code::RateLimited);
        }
        // A tag that is none cannot match: an empty one finds nothing.
        let tag = |raw: &String| clean::tag(raw).unwrap_or_else(|| "-".into());
        let mut query = search::Search {
            text: search.q.clone().unwrap_or_default(),
            capabilities: search.cap.iter().map(tag).collect(),
            interests: search.int.iter().map(tag).collect(),
            framework: search.fw.as_ref().map(tag),
            online: search.on,
            limit: search.lim.map_or(ROWS, u32::from).clamp(1, MOST_ROWS),
            ..search::Search::default()
        };
        let fingerprint = query.fingerprint();
        if let Some(text) = &search.cur {
            query.after = Cursor::decode(text, &self.cursor_secret, &fingerprint, now_ms);
            if query.after.is_none() {
                return self.fault(id, Some(search.rid), Code::BadRequest);
            }
        }
        let pending = Pending::Search { rid: search.rid, query: fingerprint };
        self.ask(id, pending, DeviceOp::Search(Box::new(query), now_ms));
    }

    fn claim_asked(&mut self, id: ConnId, rid: u32, to: Target, now_ms: i64) {
        let Some(claimer) = self.address(id) else { return };
        let target = match to {
            Target::Key(key) => address_of(&key.0),
            Target::Address(address) => Some(Fingerprint::from_bytes(address.0)),
        };
        let Some(target) = target else { return };
        let free = self.windows.claims.take(&claimer, now_ms).is_ok()
            && self.windows.claims_of_pair.take(&(claimer, target), now_ms).is_ok();
        let Some(id_of_nothing) = "claim".parse().ok().filter(|_| free) else {
            return self.fault(id, Some(rid), Code::RateLimited);
        };
        // Whether the target wrote to the claimer lately is what the queue knows of a reply.
        let op = QueueOp::Standing {
            sender: claimer,
            recipient: target,
            id: id_of_nothing,
            body: std::sync::Arc::default(),
            now_ms,
        };
        let pending = Pending::Correspondent { rid, to, address: target };
        self.store_queue(crate::core::Pending::V2(id, pending), op);
    }

    pub(super) fn claim(
        &mut self,
        id: ConnId,
        rid: u32,
        to: Target,
        target: Fingerprint,
        correspondent: bool,
        now_ms: i64,
    ) {
        let one_time = correspondent || self.windows.claims_of_target.take(&target, now_ms).is_ok();
        let op = DeviceOp::ClaimKeys { to: bytes_of(to), correspondent, one_time, now_ms };
        self.ask(id, Pending::Claim { rid }, op);
    }

    pub(super) fn answered(
        &mut self,
        id: ConnId,
        pending: &Pending,
        answer: Option<DeviceAnswer>,
        now_ms: i64,
    ) {
        if self.device(id).is_none() {
            return;
        }
        match (pending, answer) {
            (Pending::KeysPut, Some(DeviceAnswer::Kept { have, mark })) => {
                self.send_v2(id, KeysOk { have, hw: mark });
            }
            (Pending::KeysPut, Some(DeviceAnswer::Done)) => self.fault(id, None, Code::BadDevice),
            (Pending::Claim { rid }, Some(DeviceAnswer::Bundle(Some((devs, (list, ls)))))) => {
                self.send_v2(id, Keys { rid: *rid, devs, list, ls });
            }
            (Pending::Claim { rid }, Some(DeviceAnswer::Bundle(None)))
            | (Pending::Lookup { rid }, Some(DeviceAnswer::Found(None))) => self.unknown(id, *rid, now_ms),
            (Pending::Lookup { rid }, Some(DeviceAnswer::Found(Some(known)))) => {
                self.looked_up(id, *rid, *known, now_ms);
            }
            (Pending::Search { rid, query }, Some(DeviceAnswer::Page(page))) => {
                self.found(id, *rid, query, page);
            }
            (Pending::Lease(epoch), Some(DeviceAnswer::Leased(highest, lease))) => match lease {
                Lease::Holds => self.activate(id, *epoch, now_ms),
                Lease::Stale => {
                    if let Some(device) = self.device_mut(id) {
                        device.fence = device.fence.max(highest);
                    }
                    self.fault(id, None, Code::StaleEpoch);
                }
                Lease::TooFar => self.fault(id, None, Code::BadRequest),
            },
            (Pending::Claim { rid } | Pending::Lookup { rid } | Pending::Search { rid, .. }, _) => {
                self.fault(id, Some(*rid), Code::StorageUnavailable);
            }
            (Pending::Lease(_) | Pending::KeysPut, _) => self.fault(id, None, Code::StorageUnavailable),
            _ => {}
        }
    }

    /// Somebody was asked for who is not known here.
    fn unknown(&mut self, id: ConnId, rid: u32, now_ms: i64) {
        self.fault(id, Some(rid), Code::UnknownRecipient);
        if let Some(address) = self.address(id) {
            self.wrote_to_unknown(&address, now_ms);
        }
    }

    fn looked_up(&mut self, id: ConnId, rid: u32, known: Known, now_ms: i64) {
        let Some(address) = address_of(&known.key) else { return };
        let seen = self.seen_by(id, &address).is_some();
        let own = self.address(id) == Some(address);
        let hidden = self.is_live(&address) || self.is_elsewhere(&address) || known.private;
        if hidden && !seen && !own {
            return self.unknown(id, rid, now_ms);
        }
        let here = self.conns_of(&address).into_iter().find_map(|conn| self.session(conn));
        let here = here.map(|session| &session.metadata.name);
        let name = here.or_else(|| self.elsewhere(&address).first().map(|agent| &agent.metadata.name));
        let name = name.cloned().unwrap_or(known.name);
        let v1_elsewhere = self.elsewhere(&address).iter().any(|agent| agent.slot.is_none());
        let v1 = known.list.is_none() || self.sessions.contains_key(&address) || v1_elsewhere;
        let proto = [(v1, 1), (known.list.is_some(), 2)];
        let record = known.address.as_ref().and_then(|(bytes, signature)| {
            threadline::v2::objects::Signed::<threadline::v2::objects::AddressRecord>::parse(
                &bytes.0,
                &signature.0,
            )
            .ok()
        });
        let looked = Looked {
            rid,
            key: Bin(known.key),
            name,
            certs: known.certs,
            list: known.list,
            addr: known.address,
            on: seen,
            proto: proto.into_iter().filter(|(speaks, _)| *speaks).map(|(_, version)| version).collect(),
            relays: record.map(|record| record.object().relays.clone()).unwrap_or_default(),
        };
        self.send_v2(id, looked);
    }

    fn found(&mut self, id: ConnId, rid: u32, query: &str, page: search::Page) {
        let cur = page.next.map(|cursor| cursor.encode(&self.cursor_secret, query));
        let rows: Vec<FoundRow> = page
            .entries
            .into_iter()
            .map(|entry| FoundRow {
                key: Bin(entry.key),
                name: entry.name,
                fw: Some(entry.framework).filter(|_| entry.framework_visible),
                caps: entry.capabilities,
                tags: entry.interests,
                bio: Some(entry.bio).filter(|bio| !bio.is_empty()),
                on: entry.online,
                seen: Some(unsigned(entry.last_seen_ms)),
            })
            .collect();
        self.counters.discoveries += 1;
        self.send_v2(id, Found { rid, n: rows.len() as u64, total: u64::from(page.total), rows, cur });
    }
}

fn bytes_of(to: Target) -> Vec<u8> {
    match to {
        Target::Key(key) => key.0.to_vec(),
        Target::Address(address) => address.0.to_vec(),
    }
}
