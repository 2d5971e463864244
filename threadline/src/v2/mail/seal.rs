//! From a draft to the finished envelope (`threadline-wire.md` §4.3, §4.5).

use std::collections::BTreeMap;

use super::{
    Commit, DEFAULT_TTL_MS, Mail, MailError, OutRow, OutThread, PeerRow, SESSION_LIFE_MS, SESSION_MESSAGES,
    SessionKey, SessionRow, Write,
};
use crate::ThreadId;
use crate::delivery::DeliveryState;
use crate::v2::content::{Attachment, Body, Content, Need};
use crate::v2::envelope::{
    ContentKey, Header, SUITE_BARE, SUITE_OLM, assemble, content_hash, encode_legs, seal_body, thread_tag,
};
use crate::v2::frames::{Keys, SignedBytes};
use crate::v2::objects::{
    DeviceCert, DeviceList, FALLBACK, ListChange, ObjectError, Prekey, Signed, VerifiedDevice, compare_lists,
};
use crate::v2::olm::{DeviceAccount, Ratchet};
use crate::v2::{Bin, Blob, DeviceId, Id, Key, MAX_LIFE_MS, sha256};

/// Messages sealed for a peer that no carrier holds yet: more could outrun the keys its ratchet keeps.
pub const MAX_UNHELD: usize = 32;
/// Keys of one peer are asked for at most this often, ms.
const CLAIM_EVERY_MS: u64 = 60_000;
/// Pauses after the first and later claims in a row that gave none, ms: a peer that just starts has keys in a moment,
/// and a relay answers ten claims an hour about one peer.
const CLAIM_AGAIN_MS: [u64; 7] = [1_000, 3_000, 10_000, 30_000, 60_000, 300_000, 600_000];

/// Something to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Type (`threadline-agent.md` §7.2).
    pub kind: String,
    /// Thread.
    pub thread: ThreadId,
    /// What it says.
    pub body: Body,
    /// Blobs.
    pub attachments: Vec<Attachment>,
    /// The message it answers.
    pub reply_to: Option<Id>,
    /// Subject.
    pub subject: Option<String>,
    /// Whether a reply is wanted.
    pub need: Option<Need>,
    /// Life, ms; [`DEFAULT_TTL_MS`] when absent, at most 30 days.
    pub ttl_ms: Option<u64>,
    /// 0 to 3.
    pub priority: u8,
}

impl Draft {
    /// A plain text.
    pub fn text(thread: ThreadId, text: &str) -> Self {
        Self {
            kind: "chat".into(),
            thread,
            body: Body::Text(text.to_owned()),
            attachments: Vec::new(),
            reply_to: None,
            subject: None,
            need: None,
            ttl_ms: None,
            priority: 1,
        }
    }
}

/// Why a draft is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too long, too many, out of range.
    #[error("the message breaks a limit of the protocol")]
    Limit,
    /// To ourselves.
    #[error("the message is addressed to ourselves")]
    Self_,
    /// A message with this id is on its way.
    #[error("a message with this id is on its way already")]
    Known,
    /// See [`MailError`].
    #[error(transparent)]
    Mail(#[from] MailError),
}

/// What sealing came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the envelopes may only leave after the commit"]
pub struct Sealing {
    /// Sessions and finished envelopes, together.
    pub commit: Commit,
    /// Whether keys of the peer have to be claimed first.
    pub needs_keys: bool,
}

impl Mail {
    /// Takes a message over: with the commit stored, it is sent until its peer confirms it or its life ends.
    pub fn submit(&mut self, peer: Key, draft: Draft, now_ms: u64) -> Result<(Id, Commit), SubmitError> {
        let content = self.check(&peer, &draft)?;
        let mut commit = Commit::default();
        let id = self.next_id(now_ms, &mut commit);
        self.file_out(peer, id, content, &draft, now_ms, &mut commit);
        Ok((id, commit))
    }

    /// [`Mail::submit`] under an id that its author was told already. It must be a fresh UUIDv7.
    pub fn submit_as(
        &mut self,
        peer: Key,
        id: Id,
        draft: &Draft,
        now_ms: u64,
    ) -> Result<Commit, SubmitError> {
        let content = self.check(&peer, draft)?;
        if self.records.outbox.contains_key(&(peer, id)) {
            return Err(SubmitError::Known);
        }
        let mut commit = Commit::default();
        self.file_out(peer, id, content, draft, now_ms, &mut commit);
        Ok(commit)
    }

    /// Takes back a message whose commit was never stored.
    pub fn withdraw(&mut self, peer: &Key, id: &Id) {
        self.records.outbox.remove(&(*peer, *id));
    }

    fn check(&self, peer: &Key, draft: &Draft) -> Result<Content, SubmitError> {
        if *peer == self.key {
            return Err(SubmitError::Self_);
        }
        if self.records.device.is_none() {
            return Err(MailError::NoDevice.into());
        }
        let mut content = Content::new(&draft.kind, draft.thread.clone(), draft.body.clone());
        content.attachments.clone_from(&draft.attachments);
        content.reply_to = draft.reply_to;
        content.subject.clone_from(&draft.subject);
        content.need = draft.need;
        if content.is_within_limits() { Ok(content) } else { Err(SubmitError::Limit) }
    }

    fn file_out(
        &mut self,
        peer: Key,
        id: Id,
        content: Content,
        draft: &Draft,
        now_ms: u64,
        commit: &mut Commit,
    ) {
        let ttl = draft.ttl_ms.unwrap_or(DEFAULT_TTL_MS).min(MAX_LIFE_MS);
        let row = OutRow {
            peer,
            id,
            content,
            hash: None,
            env: None,
            legs: Vec::new(),
            reseals: 0,
            created: now_ms,
            expires: now_ms.saturating_add(ttl),
            state: DeliveryState::Pending,
            held: false,
            confirmed: false,
            attempts: 0,
            next_at: None,
            priority: draft.priority.min(3),
            sealed_at: 0,
        };
        self.put(commit, Write::Out(Box::new(row)));
    }

    /// When keys of a peer may be asked for, Unix ms.
    fn claim_at(&self, peer: &Key) -> u64 {
        let claimed_at = self.records.peers.get(peer).map_or(0, |known| known.claimed_at);
        if claimed_at == 0 {
            return 0;
        }
        let pause = match self.claim_failures.get(peer).copied().unwrap_or_default() {
            0 => CLAIM_EVERY_MS,
            n => CLAIM_AGAIN_MS[(n - 1).min(CLAIM_AGAIN_MS.len() - 1)],
        };
        claimed_at.saturating_add(pause)
    }

    /// When keys are asked for again that a message waits for, Unix ms.
    pub fn next_claim(&self) -> Option<u64> {
        self.peers_to_seal().iter().map(|peer| self.claim_at(peer)).min()
    }

    /// Peers with messages that are not sealed yet.
    pub fn peers_to_seal(&self) -> Vec<Key> {
        let waiting = |row: &&OutRow| row.env.is_none() && row.is_open();
        let mut peers: Vec<_> = self.records.outbox.values().filter(waiting).map(|row| row.peer).collect();
        peers.dedup();
        peers
    }

    /// Whether a device of this peer is known and has a session.
    pub fn can_seal(&self, peer: &Key) -> bool {
        self.records.peers.get(peer).is_some_and(|known| !self.sendable_devices(peer, known).is_empty())
    }

    /// Seals what waits for a peer, in order, as far as sessions and the window allow.
    pub fn seal(&mut self, peer: &Key, now_ms: u64) -> Result<Sealing, MailError> {
        let mut commit = Commit::default();
        let rows: Vec<_> = self.rows_of(peer);
        let unheld = rows.iter().filter(|row| row.env.is_some() && !row.held).count();
        let waiting: Vec<_> = rows.into_iter().filter(|row| row.env.is_none()).collect();
        if waiting.is_empty() {
            return Ok(Sealing { commit, needs_keys: false });
        }
        let known = self.records.peers.get(peer).cloned().unwrap_or_default();
        let devices = self.sendable_devices(peer, &known);
        let missing = devices.is_empty() || self.lacks_session(peer, &known, now_ms);
        let may_claim = now_ms >= self.claim_at(peer);
        if devices.is_empty() || (missing && may_claim) {
            return Ok(Sealing { commit, needs_keys: may_claim });
        }
        let mut ratchets: BTreeMap<SessionKey, (Ratchet, SessionRow)> = BTreeMap::new();
        for device in &devices {
            if let Some(row) = self.session_to_use(peer, device).cloned() {
                let ratchet = Ratchet::open(&row.pickle, &self.store_key)?;
                ratchets.insert((row.peer, row.device, row.id.clone()), (ratchet, row));
            }
        }
        for row in waiting.into_iter().take(MAX_UNHELD.saturating_sub(unheld)) {
            self.seal_row(row, &mut ratchets, &mut commit, now_ms)?;
        }
        for (_, (ratchet, mut row)) in ratchets {
            row.pickle = ratchet.pickle(&self.store_key, &mut self.rng);
            self.put(&mut commit, Write::Session(row));
        }
        Ok(Sealing { commit, needs_keys: false })
    }

    fn rows_of(&self, peer: &Key) -> Vec<OutRow> {
        let range = (*peer, Bin([0; 16]))..=(*peer, Bin([0xff; 16]));
        let open = |row: &&OutRow| row.is_open();
        self.records.outbox.range(range).map(|(_, row)| row).filter(open).cloned().collect()
    }

    fn sendable_devices(&self, peer: &Key, known: &PeerRow) -> Vec<DeviceId> {
        let listed = known.list.as_ref().map(|list| list.object().devices.clone()).unwrap_or_default();
        listed.into_iter().filter(|device| self.session_to_use(peer, device).is_some()).collect()
    }

    fn lacks_session(&self, peer: &Key, known: &PeerRow, now_ms: u64) -> bool {
        let Some(list) = &known.list else { return true };
        let outdated = known.wanted_list > list.object().seq || !known.renew.is_empty();
        outdated
            || list.object().devices.iter().any(|device| {
                self.session_to_use(peer, device).is_none_or(|session| {
                    session.sealed >= SESSION_MESSAGES
                        || session.created_at.saturating_add(SESSION_LIFE_MS) <= now_ms
                })
            })
    }

    fn session_to_use(&self, peer: &Key, device: &DeviceId) -> Option<&SessionRow> {
        self.sessions_with(peer, device).max_by_key(|session| session.preferred_at)
    }

    pub(super) fn sessions_with(&self, peer: &Key, device: &DeviceId) -> impl Iterator<Item = &SessionRow> {
        let first = (*peer, *device, String::new());
        let (peer, device) = (*peer, *device);
        self.records
            .sessions
            .range(first..)
            .map(|(_, row)| row)
            .take_while(move |row| row.peer == peer && row.device == device)
    }

    fn seal_row(
        &mut self,
        mut row: OutRow,
        ratchets: &mut BTreeMap<SessionKey, (Ratchet, SessionRow)>,
        commit: &mut Commit,
        now_ms: u64,
    ) -> Result<(), MailError> {
        let device = self.records.device.clone().ok_or(MailError::NoDevice)?;
        let header = Header {
            suite: SUITE_OLM,
            from: self.key,
            to: row.peer,
            device: device.device,
            id: row.id,
            created: now_ms,
            expires: row.expires.clamp(now_ms, now_ms.saturating_add(MAX_LIFE_MS)),
            tag: thread_tag(&self.key, &row.peer, &row.content.thread),
            nonce: Some(self.random()),
        };
        let header_bytes = header.to_bytes();
        let header_hash = sha256(&[&header_bytes]);
        let key = ContentKey::from_bytes(self.random().0);
        let plaintext = key.leg_plaintext(&header_hash);
        let mut legs = Vec::new();
        row.legs.clear();
        for ((_, to, session), (ratchet, session_row)) in ratchets.iter_mut() {
            if let Some(leg) = ratchet.encrypt(*to, &plaintext) {
                super::stale::note_chain(session_row, &leg);
                legs.push(leg);
                row.legs.push((*to, session.clone()));
                session_row.sealed = session_row.sealed.saturating_add(1);
            }
        }
        if row.hash.is_none() {
            self.number(&mut row.content, &row.peer);
            row.content.list_seq = Some(device.list.object().seq);
            if legs.iter().any(|leg| leg.starts_session) {
                row.content.device = Some((
                    Blob(device.cert.bytes().to_vec()),
                    *device.cert.signature(),
                    Blob(device.list.bytes().to_vec()),
                    *device.list.signature(),
                ));
            }
        }
        let content = row.content.to_bytes();
        if row.hash.is_none() {
            let hash = content_hash(&self.key, &device.device, &row.id, &content);
            row.hash = Some(hash);
            let place = OutThread { seq: row.content.seq, last: hash };
            self.put(commit, Write::OutThread(row.peer, row.content.thread.clone(), place));
        }
        let body = seal_body(&key, &header.nonce.unwrap_or(Bin([0; 24])), &header_hash, &content);
        row.env = Some(Blob(assemble(&self.identity, &header_bytes, &encode_legs(&legs), &body)));
        row.sealed_at = now_ms;
        row.held = false;
        row.next_at = Some(now_ms);
        self.put(commit, Write::Out(Box::new(row)));
        Ok(())
    }

    /// Gives a content its number in the thread and the hash of its predecessor.
    fn number(&self, content: &mut Content, peer: &Key) {
        match self.records.out_threads.get(&(*peer, content.thread.clone())) {
            Some(place) => {
                content.seq = place.seq.saturating_add(1);
                content.previous = Some(place.last);
            }
            None => content.seq = 1,
        }
    }

    /// A signed envelope without secrets: an error or a ping.
    pub(super) fn bare(
        &mut self,
        to: Key,
        content: &Content,
        commit: &mut Commit,
        now_ms: u64,
    ) -> Option<(Id, Vec<u8>)> {
        let device_id = self.records.device.as_ref()?.device;
        let header = Header {
            suite: SUITE_BARE,
            from: self.key,
            to,
            device: device_id,
            id: self.next_id(now_ms, commit),
            created: now_ms,
            expires: now_ms.saturating_add(24 * 3_600_000),
            tag: thread_tag(&self.key, &to, &content.thread),
            nonce: None,
        };
        let env = assemble(&self.identity, &header.to_bytes(), &encode_legs(&[]), &content.to_bytes());
        Some((header.id, env))
    }

    /// Keys of a peer's devices arrived: checks them and starts the sessions that are missing.
    pub fn learn_keys(&mut self, peer: &Key, keys: &Keys, now_ms: u64) -> Result<Commit, LearnError> {
        let list = Signed::<DeviceList>::parse(&keys.list.0, &keys.ls.0)?;
        list.object().check_time(now_ms)?;
        if list.object().key != *peer {
            return Err(ObjectError::BadDevice.into());
        }
        let mut known = self.records.peers.get(peer).cloned().unwrap_or_default();
        match compare_lists(known.list.as_ref(), &list) {
            ListChange::Newer => known.list = Some(list.clone()),
            ListChange::Same => {}
            ListChange::Older => return Err(LearnError::OldList),
            ListChange::Forked => return Err(LearnError::ForkedList),
        }
        if list.object().is_stale(now_ms) {
            return Err(LearnError::StaleList);
        }
        let own = self.records.device.as_ref().ok_or(MailError::NoDevice)?;
        let account = DeviceAccount::open(&own.pickle, &self.store_key).map_err(MailError::from)?;
        let mut commit = Commit::default();
        known.claimed_at = now_ms;
        self.claim_failures.remove(peer);
        let mut started = Vec::new();
        for (cert, cert_sig, prekey, prekey_sig, _) in &keys.devs {
            let cert = Signed::<DeviceCert>::parse(&cert.0, &cert_sig.0)?;
            let prekey = Signed::<Prekey>::parse(&prekey.0, &prekey_sig.0)?;
            let device = VerifiedDevice::new(peer, cert, list.clone(), now_ms)?;
            device.check_prekey(&prekey, now_ms)?;
            let id = device.cert.object().device;
            if known.certs.get(&id).is_some_and(|old| old.object().seq > device.cert.object().seq) {
                return Err(ObjectError::BadDevice.into());
            }
            let due = known.renew.contains(&id)
                || self.session_to_use(peer, &id).is_none_or(|session| {
                    session.curve != device.cert.object().curve
                        || session.sealed >= SESSION_MESSAGES
                        || session.created_at.saturating_add(SESSION_LIFE_MS) <= now_ms
                });
            if due {
                let ratchet = account.start(&device.cert.object().curve, &prekey.object().curve);
                started.push((ratchet.ok_or(ObjectError::Key)?, device.clone(), prekey.object().kind));
            }
            known.renew.retain(|other| *other != id);
            known.certs.insert(id, device.cert);
        }
        let listed = &list.object().devices;
        known.certs.retain(|device, _| listed.contains(device));
        // No relay has keys of a device that is gone.
        known.renew.retain(|device| listed.contains(device));
        for (ratchet, device, kind) in started {
            let cert = device.cert.object();
            let row = SessionRow {
                peer: *peer,
                device: cert.device,
                id: ratchet.id(),
                curve: cert.curve,
                pickle: ratchet.pickle(&self.store_key, &mut self.rng),
                created_at: now_ms,
                preferred_at: self.prefer(peer, &cert.device, now_ms),
                sealed: 0,
                weak: kind == FALLBACK,
                chains: Vec::new(),
            };
            self.keep_session(row, &mut commit);
        }
        self.put(&mut commit, Write::Peer(*peer, Box::new(known)));
        Ok(commit)
    }

    /// Certificates and list of a peer arrived, without keys: its waiting messages may open now. What says nothing new is
    /// refused: they would only be asked about again.
    pub fn learn_devices(
        &mut self,
        peer: &Key,
        certs: &[SignedBytes],
        list: &SignedBytes,
        now_ms: u64,
    ) -> Result<Commit, LearnError> {
        let list = Signed::<DeviceList>::parse(&list.0.0, &list.1.0)?;
        list.object().check_time(now_ms)?;
        if list.object().key != *peer {
            return Err(ObjectError::BadDevice.into());
        }
        let before = self.records.peers.get(peer).cloned().unwrap_or_default();
        let mut known = before.clone();
        match compare_lists(known.list.as_ref(), &list) {
            ListChange::Newer => known.list = Some(list.clone()),
            ListChange::Same => {}
            ListChange::Older => return Err(LearnError::OldList),
            ListChange::Forked => return Err(LearnError::ForkedList),
        }
        for (bytes, signature) in certs.iter().take(8) {
            let cert = Signed::<DeviceCert>::parse(&bytes.0, &signature.0)?;
            let device = VerifiedDevice::new(peer, cert, list.clone(), now_ms)?;
            let id = device.cert.object().device;
            if known.certs.get(&id).is_none_or(|old| old.object().seq < device.cert.object().seq) {
                known.certs.insert(id, device.cert);
            }
        }
        known.certs.retain(|device, _| list.object().devices.contains(device));
        if known == before {
            return Err(LearnError::NothingNew);
        }
        let mut commit = self.retry_spool(peer);
        self.put(&mut commit, Write::Peer(*peer, Box::new(known)));
        Ok(commit)
    }

    /// A time above that of every session with the device.
    pub(super) fn prefer(&self, peer: &Key, device: &DeviceId, now_ms: u64) -> u64 {
        let newest = self.sessions_with(peer, device).map(|session| session.preferred_at).max();
        newest.map_or(now_ms, |newest| now_ms.max(newest.saturating_add(1)))
    }

    /// Stores a session and lets the one go that was used longest ago.
    pub(super) fn keep_session(&mut self, row: SessionRow, commit: &mut Commit) {
        let (peer, device) = (row.peer, row.device);
        self.put(commit, Write::Session(row));
        let mut all: Vec<_> =
            self.sessions_with(&peer, &device).map(|s| (s.preferred_at, s.id.clone())).collect();
        all.sort();
        let surplus = all.len().saturating_sub(super::MAX_SESSIONS);
        for (_, id) in all.into_iter().take(surplus) {
            self.put(commit, Write::DropSession((peer, device, id)));
        }
    }

    /// The keys could not be had: ask again later, seal for the devices that have sessions meanwhile.
    pub fn keys_unavailable(&mut self, peer: &Key, now_ms: u64) -> Commit {
        let mut commit = Commit::default();
        let mut known = self.records.peers.get(peer).cloned().unwrap_or_default();
        known.claimed_at = now_ms;
        let failures = self.claim_failures.entry(*peer).or_default();
        *failures = failures.saturating_add(1);
        self.put(&mut commit, Write::Peer(*peer, Box::new(known)));
        commit
    }
}

/// Why keys of a peer are not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LearnError {
    /// An object in them.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The relay serves an older list than we have.
    #[error("the relay serves an older device list than is known")]
    OldList,
    /// Two lists with one number.
    #[error("two device lists carry the same number")]
    ForkedList,
    /// It names no device that was not known.
    #[error("the relay's answer names no device that was not known")]
    NothingNew,
    /// Too old to start sessions from.
    #[error("the device list is too old to start a session from")]
    StaleList,
    /// See [`MailError`].
    #[error(transparent)]
    Mail(#[from] MailError),
}
