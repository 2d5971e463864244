//! From received bytes to the inbox (`threadline-wire.md` §4.5).

use vodozemac::olm::OlmMessage;

use super::{
    Commit, DueReceipt, Evidence, InboxRow, Mail, MailError, PeerRow, SeenRow, SessionRow, SpoolKey,
    SpoolRow, Write,
};
use crate::v2::content::{Body, Content, ReceiptStatus};
use crate::v2::envelope::{ContentKey, Envelope, EnvelopeError, SUITE_BARE, content_hash};
use crate::v2::objects::{DeviceCert, DeviceList, ListChange, Prekey, Signed, VerifiedDevice, compare_lists};
use crate::v2::olm::{DeviceAccount, LegError, Ratchet, olm_message};
use crate::v2::strict::decode_array;
use crate::v2::{Bin, Blob, Code, Id, Key, MAX_AHEAD_MS, ThreadTag, sha256};

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// New sessions per hour that strangers get together.
const STRANGERS_PER_HOUR: usize = 60;
/// New sessions per hour and key: strangers, others.
const SESSIONS_PER_HOUR: (usize, usize) = (2, 6);
/// A number may be this far above the last one of its thread.
const MAX_JUMP: u64 = 10_000;

/// What becomes of an envelope that a carrier brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Confirm custody once this is stored.
    Take(Commit),
    /// Do not take it.
    Refuse(Code),
}

/// Why a message was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// Past its life.
    Expired,
    /// Its parts do not belong together, or to that device.
    BadDevice,
    /// It does not open, or its content breaks a rule.
    Malformed,
    /// A number far beyond its thread.
    Sequence,
}

/// Why a message cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unopened {
    /// No session or no leg: the sender is told, and seals it again.
    NoSession,
    /// The key of this one message is gone: the sender is told, and seals it again.
    LostKey,
    /// The sender's device is not known: look the sender up, then open again.
    UnknownDevice,
    /// Too many new sessions: it waits.
    Limit,
}

/// What opening came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "nothing of it counts before the commit"]
pub struct Opened {
    /// Session, inbox, duplicate mark and receipt, together.
    pub commit: Commit,
    /// Which envelope.
    pub from: Key,
    /// Which message.
    pub id: Id,
    /// What it came to.
    pub outcome: Outcome,
    /// A bare envelope to hand to a carrier after the commit, once: recipient, id, bytes.
    pub answer: Option<(Key, Id, Blob)>,
    /// What it says about messages of ours.
    pub evidence: Vec<super::evidence::Change>,
    /// Whether it says that the keys that we had of its sender lead nowhere: another relay is asked for others.
    pub keys_failed: bool,
}

/// Kinds of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// In the inbox, to be handed on by [`Mail::dispatch`].
    Inbox,
    /// A receipt, ping, pong or error: done.
    Control,
    /// Known; the receipt is repeated.
    Duplicate,
    /// Of no use.
    Dropped(Dropped),
    /// Not opened.
    Unopened(Unopened),
}

impl Mail {
    /// Checks an envelope and takes it into the spool. `frame` is what the carrier said around it: id, sender, tag.
    pub fn receive(&mut self, env: &[u8], frame: Option<(Id, Key, ThreadTag)>, now_ms: u64) -> Received {
        let Ok(envelope) = Envelope::parse(env) else { return Received::Refuse(Code::BadSignature) };
        let header = envelope.header;
        let frame_fits = frame.is_none_or(|claim| claim == (header.id, header.from, header.tag));
        let for_us = header.to == self.key && header.from != self.key;
        if !frame_fits || !for_us || envelope.verify().is_err() {
            return Received::Refuse(Code::BadSignature);
        }
        if header.expires <= now_ms {
            return Received::Refuse(Code::Expired);
        }
        let mut commit = Commit::default();
        // Whatever its time: it may have been sealed again since.
        if self.records.seen.contains_key(&(header.from, header.id)) {
            self.receipt_again(&header.from, &header.id, now_ms, &mut commit);
            return Received::Take(commit);
        }
        if header.created > now_ms.saturating_add(MAX_AHEAD_MS) {
            return Received::Refuse(Code::ClockSkew);
        }
        let row = SpoolRow {
            from: header.from,
            device: header.device,
            id: header.id,
            hash: Bin(sha256(&[env])),
            env: Blob(env.to_vec()),
            arrived_at: now_ms,
            not_before: 0,
        };
        if !self.records.spool.contains_key(&row.key()) {
            self.put(&mut commit, Write::Spool(row));
        }
        Received::Take(commit)
    }

    /// Opens the first envelope of the spool that may be opened now. `knows` tells contacts from strangers.
    pub fn open_next(
        &mut self,
        knows: &dyn Fn(&Key) -> bool,
        now_ms: u64,
    ) -> Result<Option<Opened>, MailError> {
        let due = |row: &&SpoolRow| row.not_before <= now_ms;
        let Some(row) = self.records.spool.values().find(due).cloned() else { return Ok(None) };
        let mut opened = Opened {
            commit: Commit::default(),
            from: row.from,
            id: row.id,
            outcome: Outcome::Duplicate,
            answer: None,
            evidence: Vec::new(),
            keys_failed: false,
        };
        opened.outcome = self.open_row(&row, knows, now_ms, &mut opened)?;
        match opened.outcome {
            Outcome::Unopened(why @ (Unopened::UnknownDevice | Unopened::Limit)) => {
                let pause = if why == Unopened::Limit { 10 * 60_000 } else { 60_000 };
                let later = SpoolRow { not_before: now_ms.saturating_add(pause), ..row };
                self.put(&mut opened.commit, Write::Spool(later));
            }
            Outcome::Unopened(Unopened::NoSession) => {
                opened.answer = self.complain(&row, Code::NoSession, now_ms, &mut opened.commit);
                self.put(&mut opened.commit, Write::DropSpool(row.key()));
            }
            Outcome::Unopened(Unopened::LostKey) => {
                opened.answer = self.complain(&row, Code::LostKey, now_ms, &mut opened.commit);
                self.put(&mut opened.commit, Write::DropSpool(row.key()));
            }
            _ => self.put(&mut opened.commit, Write::DropSpool(row.key())),
        }
        Ok(Some(opened))
    }

    /// Opens envelopes of a sender again whose device was not known.
    pub fn retry_spool(&mut self, peer: &Key) -> Commit {
        let mut commit = Commit::default();
        let rows: Vec<_> = self.records.spool.values().filter(|row| row.from == *peer).cloned().collect();
        for row in rows {
            self.put(&mut commit, Write::Spool(SpoolRow { not_before: 0, ..row }));
        }
        commit
    }

    fn open_row(
        &mut self,
        row: &SpoolRow,
        knows: &dyn Fn(&Key) -> bool,
        now_ms: u64,
        opened: &mut Opened,
    ) -> Result<Outcome, MailError> {
        let Ok(envelope) = Envelope::parse(&row.env.0) else {
            return Ok(Outcome::Dropped(Dropped::Malformed));
        };
        if self.records.seen.contains_key(&(row.from, row.id)) {
            self.receipt_again(&row.from, &row.id, now_ms, &mut opened.commit);
            return Ok(Outcome::Duplicate);
        }
        if envelope.header.expires <= now_ms {
            return Ok(Outcome::Dropped(Dropped::Expired));
        }
        if envelope.header.suite == SUITE_BARE {
            return Ok(self.open_bare(&envelope, now_ms, opened));
        }
        let own = self.records.device.clone().ok_or(MailError::NoDevice)?;
        let Some(leg) = envelope.leg(&own.device) else {
            return Ok(Outcome::Unopened(Unopened::NoSession));
        };
        let Some(message) = olm_message(leg) else { return Ok(Outcome::Dropped(Dropped::Malformed)) };
        let leg = match self.open_leg(row, &message, knows, now_ms)? {
            Ok(leg) => leg,
            Err(outcome) => return Ok(outcome),
        };
        let hash = envelope.header_hash();
        let content = ContentKey::from_leg(&leg.plaintext, &hash)
            .ok_or(EnvelopeError::Body)
            .and_then(|key| envelope.open_body(&key));
        let Ok(bytes) = content else { return Ok(Outcome::Dropped(Dropped::Malformed)) };
        let Ok(content) = Content::parse(&bytes) else { return Ok(Outcome::Dropped(Dropped::Malformed)) };
        let known = match self.check_sender(row, &leg, &content, now_ms) {
            Ok(known) => known,
            Err(outcome) => return Ok(outcome),
        };
        if content.seq > self.highest(row, &content).saturating_add(MAX_JUMP) {
            return Ok(Outcome::Dropped(Dropped::Sequence));
        }
        let commit = &mut opened.commit;
        if self.records.peers.get(&row.from) != Some(&known) {
            self.put(commit, Write::Peer(row.from, Box::new(known)));
        }
        self.keep_leg(row, leg, commit, now_ms);
        let hash = content_hash(&row.from, &row.device, &row.id, &bytes);
        Ok(self.file(row, &envelope, content, hash, opened, now_ms))
    }

    /// Finds or begins the session of a leg. Nothing is stored yet.
    fn open_leg(
        &mut self,
        row: &SpoolRow,
        message: &OlmMessage,
        knows: &dyn Fn(&Key) -> bool,
        now_ms: u64,
    ) -> Result<Result<OpenedLeg, Outcome>, MailError> {
        let sessions: Vec<SessionRow> = self.sessions_with(&row.from, &row.device).cloned().collect();
        let wanted = match message {
            OlmMessage::PreKey(first) => Some(first.session_id()),
            OlmMessage::Normal(_) => None,
        };
        let mut lost = false;
        for session in sessions.into_iter().filter(|s| wanted.as_ref().is_none_or(|id| s.id == *id)) {
            let mut ratchet = Ratchet::open(&session.pickle, &self.store_key)?;
            match ratchet.decrypt(message) {
                Ok(plaintext) => {
                    let curve = session.curve;
                    let origin = Origin::Known(session);
                    return Ok(Ok(OpenedLeg { plaintext, ratchet, curve, origin }));
                }
                Err(LegError::LostKey) => lost = true,
                Err(LegError::NoSession | LegError::Broken) if wanted.is_some() => {
                    return Ok(Err(Outcome::Dropped(Dropped::Malformed)));
                }
                Err(_) => {}
            }
        }
        if lost {
            return Ok(Err(Outcome::Unopened(Unopened::LostKey)));
        }
        let OlmMessage::PreKey(first) = message else {
            return Ok(Err(Outcome::Unopened(Unopened::NoSession)));
        };
        if !self.may_begin(&row.from, knows(&row.from), now_ms) {
            return Ok(Err(Outcome::Unopened(Unopened::Limit)));
        }
        let own = self.records.device.clone().ok_or(MailError::NoDevice)?;
        let mut account = DeviceAccount::open(&own.pickle, &self.store_key)?;
        Ok(match account.answer(first) {
            Ok((ratchet, plaintext)) => {
                let used = Bin(first.one_time_key().to_bytes());
                let curve = Bin(first.identity_key().to_bytes());
                let origin = Origin::New { account: Box::new(account), used };
                Ok(OpenedLeg { plaintext, ratchet, curve, origin })
            }
            Err(LegError::NoSession) => Err(Outcome::Unopened(Unopened::NoSession)),
            Err(LegError::LostKey | LegError::Broken) => Err(Outcome::Dropped(Dropped::Malformed)),
        })
    }

    /// Whether another session may begin with this key now: strangers share an allowance, contacts have their own.
    fn may_begin(&mut self, peer: &Key, known: bool, now_ms: u64) -> bool {
        self.arrivals.retain(|_, times| {
            times.retain(|at| at.saturating_add(HOUR_MS) > now_ms);
            !times.is_empty()
        });
        let (strangers, contacts) = SESSIONS_PER_HOUR;
        let own = self.arrivals.get(peer).map_or(0, Vec::len);
        let all: usize = self.arrivals.values().map(Vec::len).sum();
        let allowed = if known { own < contacts } else { own < strangers && all < STRANGERS_PER_HOUR };
        if allowed {
            self.arrivals.entry(*peer).or_default().push(now_ms);
        }
        allowed
    }

    /// The session must belong to the certified device that the header names.
    fn check_sender(
        &self,
        row: &SpoolRow,
        leg: &OpenedLeg,
        content: &Content,
        now_ms: u64,
    ) -> Result<PeerRow, Outcome> {
        let bad = Outcome::Dropped(Dropped::BadDevice);
        let mut known = self.records.peers.get(&row.from).cloned().unwrap_or_default();
        if let Some((cert, cert_sig, list, list_sig)) = &content.device {
            let cert = Signed::<DeviceCert>::parse(&cert.0, &cert_sig.0).map_err(|_| bad)?;
            let list = Signed::<DeviceList>::parse(&list.0, &list_sig.0).map_err(|_| bad)?;
            let newer = compare_lists(known.list.as_ref(), &list) == ListChange::Newer;
            let device = VerifiedDevice::new(&row.from, cert, list, now_ms).map_err(|_| bad)?;
            let id = device.cert.object().device;
            if newer {
                known.certs.retain(|old, _| device.list.object().devices.contains(old));
                known.list = Some(device.list);
            }
            let fresher = known.certs.get(&id).is_none_or(|old| old.object().seq < device.cert.object().seq);
            if fresher {
                known.certs.insert(id, device.cert);
            }
        }
        let Some(list) = &known.list else { return Err(Outcome::Unopened(Unopened::UnknownDevice)) };
        if list.object().removed.contains(&row.device) {
            return Err(bad);
        }
        let Some(cert) = known.certs.get(&row.device) else {
            return Err(Outcome::Unopened(Unopened::UnknownDevice));
        };
        if cert.object().curve != leg.curve || !list.object().devices.contains(&row.device) {
            return Err(bad);
        }
        known.wanted_list = known.wanted_list.max(content.list_seq.unwrap_or(0));
        Ok(known)
    }

    fn highest(&self, row: &SpoolRow, content: &Content) -> u64 {
        let place = self.records.in_threads.get(&(row.from, row.device, content.thread.clone()));
        let waiting = self.records.inbox.values().filter(|other| {
            other.peer == row.from && other.device == row.device && other.content.thread == content.thread
        });
        let waiting = waiting.map(|other| other.content.seq).max().unwrap_or(0);
        waiting.max(place.map_or(0, |place| place.seq))
    }

    fn keep_leg(&mut self, row: &SpoolRow, leg: OpenedLeg, commit: &mut Commit, now_ms: u64) {
        let pickle = leg.ratchet.pickle(&self.store_key, &mut self.rng);
        let preferred_at = self.prefer(&row.from, &row.device, now_ms);
        match leg.origin {
            Origin::Known(session) => {
                self.put(commit, Write::Session(SessionRow { pickle, preferred_at, ..session }));
            }
            Origin::New { account, used } => {
                if let Some(mut own) = self.records.device.clone() {
                    let fallback = own.fallback.as_ref().and_then(|(_, bytes, _)| {
                        decode_array::<Prekey>(&bytes.0, 7).ok().map(|prekey| prekey.curve)
                    });
                    if fallback == Some(used) && self.stocked > 0 {
                        self.fallback_while_stocked.retain(|at| at.saturating_add(DAY_MS) > now_ms);
                        self.fallback_while_stocked.push(now_ms);
                    }
                    own.pickle = account.pickle(&self.store_key, &mut self.rng);
                    self.put(commit, Write::Device(Box::new(own)));
                }
                let session = SessionRow {
                    peer: row.from,
                    device: row.device,
                    id: leg.ratchet.id(),
                    curve: leg.curve,
                    pickle,
                    created_at: now_ms,
                    preferred_at,
                    sealed: 0,
                    weak: false,
                    chains: Vec::new(),
                };
                self.keep_session(session, commit);
            }
        }
    }

    /// Whether relays gave out our fallback key although they held one-time keys: three times in a day.
    pub fn relay_withholds_keys(&self) -> bool {
        self.fallback_while_stocked.len() >= 3
    }

    /// Files an opened content: to the inbox, or to whom it concerns here.
    fn file(
        &mut self,
        row: &SpoolRow,
        envelope: &Envelope<'_>,
        content: Content,
        hash: Bin<32>,
        opened: &mut Opened,
        now_ms: u64,
    ) -> Outcome {
        let (peer, id) = (row.from, row.id);
        let until = envelope.header.expires.saturating_add(DAY_MS).max(now_ms.saturating_add(8 * DAY_MS));
        if let Some(about) = content.reply_to {
            self.learn(&peer, &about, Evidence::Reply, now_ms, opened);
        }
        match content.body {
            Body::Receipt(receipt) => {
                self.put(&mut opened.commit, Write::Seen(peer, id, SeenRow { hash, status: None, until }));
                for (about, hash) in receipt.ids.iter().zip(&receipt.hs) {
                    let evidence = Evidence::Receipt {
                        status: receipt.status,
                        hash: *hash,
                        retry_after_s: receipt.retry_after_s,
                    };
                    self.learn(&peer, about, evidence, now_ms, opened);
                }
                Outcome::Control
            }
            Body::Error(error) => {
                self.put(&mut opened.commit, Write::Seen(peer, id, SeenRow { hash, status: None, until }));
                self.learn(&peer, &error.about, Evidence::Error(error.code), now_ms, opened);
                Outcome::Control
            }
            Body::Probe(nonce) => {
                self.put(&mut opened.commit, Write::Seen(peer, id, SeenRow { hash, status: None, until }));
                if content.kind == "ping" {
                    self.answer_ping(peer, id, nonce, content.thread, &mut opened.commit, now_ms);
                }
                Outcome::Control
            }
            _ => {
                let status = ReceiptStatus::Accepted;
                let seen = SeenRow { hash, status: Some(status), until };
                self.put(&mut opened.commit, Write::Seen(peer, id, seen));
                let receipt = DueReceipt { hash, status, since: now_ms };
                self.put(&mut opened.commit, Write::Receipt(peer, id, receipt));
                let created = envelope.header.created;
                let inbox =
                    InboxRow { peer, device: row.device, id, content, hash, created, opened_at: now_ms };
                self.put(&mut opened.commit, Write::Inbox(Box::new(inbox)));
                Outcome::Inbox
            }
        }
    }

    fn receipt_again(&mut self, peer: &Key, id: &Id, now_ms: u64, commit: &mut Commit) {
        let Some(SeenRow { hash, status: Some(status), .. }) = self.records.seen.get(&(*peer, *id)).copied()
        else {
            return;
        };
        if !self.records.receipts.contains_key(&(*peer, *id)) {
            let receipt = DueReceipt { hash, status, since: now_ms };
            self.put(commit, Write::Receipt(*peer, *id, receipt));
        }
    }

    /// Forgets marks of messages that can come no more.
    pub fn forget_seen(&mut self, now_ms: u64) -> Commit {
        let mut commit = Commit::default();
        let old: Vec<_> =
            self.records.seen.iter().filter(|(_, row)| row.until <= now_ms).map(|(key, _)| *key).collect();
        for (peer, id) in old {
            self.put(&mut commit, Write::DropSeen(peer, id));
        }
        commit
    }

    /// Envelopes that wait to be opened.
    pub fn spooled(&self) -> impl Iterator<Item = &SpoolKey> {
        self.records.spool.keys()
    }
}

struct OpenedLeg {
    plaintext: Vec<u8>,
    ratchet: Ratchet,
    curve: Bin<32>,
    origin: Origin,
}

enum Origin {
    Known(SessionRow),
    New { account: Box<DeviceAccount>, used: Bin<32> },
}
