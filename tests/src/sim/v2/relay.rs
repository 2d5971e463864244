//! A relay: sessions, a queue and a shelf of keys. Queue and shelf survive a kill, not a wipe. A hostile one delivers in
//! any order and again what was taken long ago.

use std::collections::{BTreeMap, VecDeque};

use ed25519_dalek::{Signer as _, SigningKey};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use threadline::identity::Identity;
use threadline::v2::frames::{
    Accepted, Custody, DEFAULT_WINDOW, Deliver, FORMAT_V2, Fault, Frame, Keys, KeysOk, KeysPut, Looked, Pong,
    QueueSize, Rejected, RelayLimits, Role, Send, SignedBytes, Standing, Target, Via, Welcome,
};
use threadline::v2::objects::{FALLBACK, ONE_TIME, Prekey, Signed};
use threadline::v2::session::{RelaySession, RelayStep, check_send, close};
use threadline::v2::{Bin, Blob, Code, Id, Key, ThreadTag};

#[derive(Debug, Clone)]
struct Held {
    id: Id,
    from: Key,
    to: Key,
    tag: ThreadTag,
    env: Blob,
    at: u64,
    attempts: u16,
}

#[derive(Debug, Default, Clone)]
struct Shelf {
    put: Option<KeysPut>,
    one_time: VecDeque<SignedBytes>,
    highest: u64,
    cert_seq: u64,
}

/// What survives a kill.
#[derive(Default, Clone)]
struct Disk {
    queue: BTreeMap<u64, Held>,
    shelves: BTreeMap<Key, Shelf>,
    next: u64,
}

pub(crate) struct Relay {
    /// Names that it answers for.
    hosts: Vec<String>,
    signer: SigningKey,
    pub(crate) key: Key,
    disk: Disk,
    sessions: BTreeMap<u64, RelaySession>,
    hostile: Option<StdRng>,
    /// What a hostile relay kept although it was taken.
    kept: Vec<Held>,
}

/// A frame for a connection, or its end with a code.
pub(crate) enum Out {
    Frame(u64, Frame),
    Close(u64, Option<u16>),
}

impl Relay {
    pub(crate) fn new(seed: [u8; 32], hosts: Vec<String>, hostile: bool) -> Self {
        let key = Identity::from_seed(&seed).public().into();
        let signer = SigningKey::from_bytes(&seed);
        let hostile = hostile.then(|| StdRng::from_seed(seed));
        Self {
            hosts,
            signer,
            key,
            disk: Disk::default(),
            sessions: BTreeMap::new(),
            hostile,
            kept: Vec::new(),
        }
    }

    pub(crate) fn kill(&mut self) {
        self.sessions.clear();
    }

    /// The disk is gone; the key is configured elsewhere.
    pub(super) fn wipe(&mut self) {
        self.kill();
        self.disk = Disk::default();
    }

    pub(super) fn held(&self) -> usize {
        self.disk.queue.len()
    }

    pub(crate) fn opened(&mut self, connection: u64, nonce: [u8; 32], now: u64) -> Frame {
        let (session, challenge) = RelaySession::websocket(self.key, self.hosts.clone(), Bin(nonce), now);
        self.sessions.insert(connection, session);
        challenge
    }

    pub(super) fn opened_over_quic(&mut self, connection: u64, client: Key, now: u64) {
        self.sessions.insert(connection, RelaySession::quic(self.key, client, now));
    }

    pub(crate) fn closed(&mut self, connection: u64) {
        self.sessions.remove(&connection);
    }

    pub(crate) fn received(&mut self, connection: u64, frame: Frame, now: u64) -> Vec<Out> {
        let Some(session) = self.sessions.get_mut(&connection) else {
            return vec![Out::Close(connection, None)];
        };
        let steps = session.handle_frame(frame, now);
        let mut out = Vec::new();
        for step in steps {
            self.step(connection, step, now, &mut out);
        }
        self.replay();
        self.deliver(&mut out);
        out
    }

    fn step(&mut self, connection: u64, step: RelayStep, now: u64, out: &mut Vec<Out>) {
        match step {
            RelayStep::Write(frame) => out.push(Out::Frame(connection, *frame)),
            RelayStep::Close(code) => {
                self.sessions.remove(&connection);
                out.push(Out::Close(connection, Some(code)));
            }
            RelayStep::Login(request) | RelayStep::WorkDone(request) => {
                let others: Vec<u64> = self
                    .sessions
                    .iter()
                    .filter(|(id, s)| {
                        **id != connection && s.open().is_some_and(|(key, ..)| *key == request.key)
                    })
                    .map(|(id, _)| *id)
                    .collect();
                for other in others {
                    self.sessions.remove(&other);
                    out.push(Out::Close(other, Some(close::REPLACED)));
                }
                let shelf = self.disk.shelves.entry(request.key).or_default();
                shelf.cert_seq = shelf.cert_seq.max(request.device.cert.object().seq);
                let welcome = Welcome {
                    sid: Bin([0; 16]),
                    relay: self.key,
                    now,
                    lim: RelayLimits {
                        env: 262_144,
                        ttl_s: 2_592_000,
                        msg_min: 60,
                        msg_hour: 1_000,
                        disc_min: 10,
                    },
                    q: QueueSize { n: 0, bytes: 0 },
                    tok: None,
                    tok_x: None,
                    age_ms: 0,
                    hw: (shelf.cert_seq, shelf.highest),
                    ep: 0,
                    role: Role::Active,
                    notice: None,
                    rs: None,
                };
                let signer = self.signer.clone();
                if let Some(session) = self.sessions.get_mut(&connection) {
                    for step in session.welcome(welcome, |text| signer.sign(text).to_bytes()) {
                        self.step(connection, step, now, out);
                    }
                }
            }
            RelayStep::Frame(frame) => self.frame(connection, *frame, now, out),
        }
    }

    fn frame(&mut self, connection: u64, frame: Frame, now: u64, out: &mut Vec<Out>) {
        let Some(key) = self.sessions.get(&connection).and_then(|s| s.open()).map(|(key, ..)| *key) else {
            return;
        };
        let answer: Option<Frame> = match frame {
            Frame::Send(send) => Some(self.send(&key, &send, now)),
            Frame::Taken(taken) => {
                for delivery in taken.dids {
                    self.confirmed(connection, delivery);
                    if self.disk.queue.get(&delivery).is_some_and(|held| held.to == key) {
                        let taken = self.disk.queue.remove(&delivery);
                        self.kept.extend(taken.filter(|_| self.hostile.is_some()));
                    }
                }
                None
            }
            Frame::NotTaken(refused) => {
                self.confirmed(connection, refused.did);
                if refused.code.drops_delivery() {
                    self.disk.queue.remove(&refused.did);
                }
                None
            }
            Frame::KeysPut(put) => Some(self.put(key, put).into()),
            Frame::KeysClaim(claim) => Some(self.claim(claim.rid, claim.to)),
            Frame::Lookup(lookup) => Some(self.look_up(lookup.rid, &lookup.to)),
            Frame::Ping(ping) => {
                Some(Pong { t: ping.t, now, ep: 0, role: Some(Role::Active), tok: None, tok_x: None }.into())
            }
            _ => None,
        };
        out.extend(answer.map(|frame| Out::Frame(connection, frame)));
    }

    fn confirmed(&mut self, connection: u64, delivery: u64) {
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.confirmed(delivery);
        }
    }

    fn send(&mut self, key: &Key, send: &Send, now: u64) -> Frame {
        let envelope = check_send(send, key, now).and_then(|envelope| {
            envelope.verify().map_err(|_| Code::BadSignature)?;
            Ok(envelope.header)
        });
        let header = match envelope {
            Ok(header) => header,
            Err(code) => {
                return Rejected { rid: send.rid, id: send.id.clone(), code, retry_ms: None }.into();
            }
        };
        let dup = self.disk.queue.values().any(|held| held.id == header.id && held.env == send.env);
        if !dup {
            self.disk.next += 1;
            let held = Held {
                id: header.id,
                from: header.from,
                to: header.to,
                tag: header.tag,
                env: send.env.clone(),
                at: now,
                attempts: 0,
            };
            self.disk.queue.insert(self.disk.next, held);
        }
        Accepted {
            rid: send.rid,
            id: send.id.clone(),
            cu: Custody::Durable,
            st: Standing::Queued,
            exp: header.expires,
            dup,
        }
        .into()
    }

    /// A hostile relay puts back what was taken.
    fn replay(&mut self) {
        let Some(rng) = &mut self.hostile else { return };
        if !self.kept.is_empty() && rng.random_bool(0.05) {
            let position = rng.random_range(0..self.kept.len());
            self.disk.next += 1;
            self.disk.queue.insert(self.disk.next, self.kept[position].clone());
        }
    }

    /// Offers what waits, as far as credit goes.
    pub(crate) fn deliver(&mut self, out: &mut Vec<Out>) {
        for (connection, session) in &mut self.sessions {
            let Some(key) = session.open().map(|(key, ..)| *key) else { continue };
            let under_way: Vec<u64> = session.unconfirmed().collect();
            let mut waiting: Vec<u64> = self
                .disk
                .queue
                .iter()
                .filter(|(did, held)| held.to == key && !under_way.contains(did))
                .map(|(did, _)| *did)
                .collect();
            if let Some(rng) = &mut self.hostile {
                waiting.shuffle(rng);
            }
            for did in waiting {
                let Some(held) = self.disk.queue.get_mut(&did) else { continue };
                let attempt = held.attempts.saturating_add(1);
                let deliver = Deliver {
                    did,
                    id: held.id.into(),
                    from: Target::Key(held.from),
                    tt: Some(held.tag),
                    fmt: FORMAT_V2,
                    env: held.env.clone(),
                    at: held.at,
                    attempt,
                    via: Via::V2,
                };
                let Some(frame) = session.deliver(deliver) else { break };
                held.attempts = attempt;
                out.push(Out::Frame(*connection, frame));
            }
            assert!(session.unconfirmed().count() <= usize::from(DEFAULT_WINDOW), "credit is kept to");
        }
    }

    fn put(&mut self, key: Key, put: KeysPut) -> KeysOk {
        let shelf = self.disk.shelves.entry(key).or_default();
        let id = |(bytes, signature): &SignedBytes| {
            Signed::<Prekey>::parse(&bytes.0, &signature.0).map_or(0, |signed| signed.object().key_id)
        };
        for pair in &put.otks {
            if id(pair) > shelf.highest {
                shelf.highest = id(pair);
                shelf.one_time.push_back(pair.clone());
            }
        }
        shelf.highest = shelf.highest.max(put.fb.as_ref().map_or(0, id));
        shelf.put = Some(put);
        KeysOk { have: shelf.one_time.len() as u16, hw: shelf.highest }
    }

    fn claim(&mut self, rid: u32, to: Target) -> Frame {
        let Target::Key(key) = to else { return unknown(rid) };
        let Some(shelf) = self.disk.shelves.get_mut(&key) else { return unknown(rid) };
        let Some(put) = shelf.put.clone() else { return unknown(rid) };
        let prekey = shelf.one_time.pop_front().map(|pair| (pair, ONE_TIME));
        let Some(((bytes, signature), kind)) = prekey.or(put.fb.clone().map(|pair| (pair, FALLBACK))) else {
            return unknown(rid);
        };
        let devs = vec![(put.cert, put.cs, bytes, signature, kind)];
        Keys { rid, devs, list: put.list, ls: put.ls }.into()
    }

    fn look_up(&self, rid: u32, to: &Target) -> Frame {
        let Target::Key(key) = to else { return unknown(rid) };
        let Some(put) = self.disk.shelves.get(key).and_then(|shelf| shelf.put.as_ref()) else {
            return unknown(rid);
        };
        Looked {
            rid,
            key: *key,
            name: String::new(),
            certs: vec![(put.cert.clone(), put.cs)],
            list: Some((put.list.clone(), put.ls)),
            addr: None,
            on: true,
            proto: vec![2],
            relays: Vec::new(),
        }
        .into()
    }
}

fn unknown(rid: u32) -> Frame {
    Fault { rid: Some(rid), code: Code::UnknownRecipient, text: None }.into()
}
