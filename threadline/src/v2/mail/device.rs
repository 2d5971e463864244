//! This device: its certificate, its list, the keys others start sessions with (`threadline-wire.md` §4.2, §4.5).

use super::{Commit, DeviceRow, Mail, MailError, PeerRow, UnpublishedKey, Write};
use crate::v2::frames::{KeysOk, KeysPut, MAX_ONE_TIME_KEYS};
use crate::v2::inside_v1::Introduction;
use crate::v2::objects::{
    CERT_LIFE_MS, DeviceCert, DeviceList, FALLBACK, LIST_RENEW_MS, ONE_TIME, Prekey, Signed, next_seq,
};
use crate::v2::olm::DeviceAccount;
use crate::v2::{Bin, Blob, DeviceId, Key};

const DAY_MS: u64 = 24 * 3_600_000;
/// One-time keys kept at the relay.
pub const ONE_TIME_KEYS: u16 = 50;
/// Below this many, new ones are made.
pub const REFILL_BELOW: u16 = 25;
/// A fallback key is replaced after this, ms.
const FALLBACK_RENEW_MS: u64 = 7 * DAY_MS;
/// A fallback key is offered this long, ms.
pub const FALLBACK_LIFE_MS: u64 = 8 * DAY_MS;
/// One-time keys are offered this long, ms.
const ONE_TIME_LIFE_MS: u64 = 30 * DAY_MS;

/// What a relay's memory of this device says about our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HighWater {
    /// Nothing newer there.
    Fits,
    /// The relay saw newer objects of this device: this is an old copy, and needs [`Mail::replace_device`].
    OldCopy,
    /// The relay says so of a device that was minted for that reason within a day: it lies, or there is a second copy.
    Disputed,
}

/// One relay's word makes this machine a new device at most once in this time, ms.
const REPLACE_EVERY_MS: u64 = DAY_MS;

impl Mail {
    /// Makes this machine a device if it is none, and renews certificate and list when due.
    pub fn ensure_device(&mut self, name: &str, now_ms: u64) -> Result<Commit, MailError> {
        let mut commit = Commit::default();
        let Some(mut row) = self.records.device.clone() else {
            let row = self.mint(name, Vec::new(), 0, now_ms);
            self.put(&mut commit, Write::Device(Box::new(row)));
            return Ok(commit);
        };
        let cert = row.cert.object();
        let life = cert.not_after.saturating_sub(cert.not_before);
        let renew_cert = now_ms >= cert.not_before.saturating_add(life / 3 * 2);
        let renew_list = now_ms >= row.list.object().issued_at.saturating_add(LIST_RENEW_MS);
        if renew_cert {
            let seq = next_seq(cert.seq, now_ms);
            row.cert = self.certify(row.device, row.curve, &row.name, seq, now_ms);
        }
        if renew_list {
            row.list = self.list(row.list.object(), row.list.object().devices.clone(), now_ms);
        }
        if renew_cert || renew_list {
            self.put(&mut commit, Write::Device(Box::new(row)));
        }
        Ok(commit)
    }

    /// Makes this machine another device: the old one is listed as removed, its ratchets are gone, its threads begin
    /// anew.
    pub fn replace_device(&mut self, now_ms: u64) -> Result<Commit, MailError> {
        let old = self.records.device.clone().ok_or(MailError::NoDevice)?;
        let mut commit = Commit::default();
        for key in self.records.sessions.keys().cloned().collect::<Vec<_>>() {
            self.put(&mut commit, Write::DropSession(key));
        }
        let open: Vec<_> = self.records.outbox.values().filter(|row| row.is_open()).cloned().collect();
        for mut row in open {
            row.env = None;
            row.hash = None;
            row.held = false;
            row.content.device = None;
            self.put(&mut commit, Write::Out(Box::new(row)));
        }
        for (peer, known) in self.records.peers.clone() {
            let anew = PeerRow { claimed_at: 0, renew: Vec::new(), ..known };
            self.put(&mut commit, Write::Peer(peer, Box::new(anew)));
        }
        for (peer, thread) in self.records.out_threads.keys().cloned().collect::<Vec<_>>() {
            self.put(&mut commit, Write::DropOutThread(peer, thread));
        }
        let mut removed = old.list.object().removed.clone();
        removed.push(old.device);
        removed.drain(..removed.len().saturating_sub(32));
        let row = self.mint(&old.name, removed, old.list.object().seq, now_ms);
        self.put(&mut commit, Write::Device(Box::new(row)));
        Ok(commit)
    }

    fn mint(&mut self, name: &str, removed: Vec<DeviceId>, list_seq: u64, now_ms: u64) -> DeviceRow {
        let account = DeviceAccount::new();
        let (device, curve) = (self.random(), account.curve());
        let mut name = name.to_owned();
        while name.len() > 32 {
            name.pop();
        }
        let list = DeviceList {
            version: 1,
            key: self.key,
            seq: next_seq(list_seq, now_ms),
            issued_at: now_ms,
            devices: vec![device],
            removed,
        };
        DeviceRow {
            device,
            curve,
            pickle: account.pickle(&self.store_key, &mut self.rng),
            cert: self.certify(device, curve, &name, now_ms, now_ms),
            list: Signed::<DeviceList>::issue(&self.identity, list),
            name,
            next_key_id: 1,
            unpublished: Vec::new(),
            fallback: None,
            fallback_at: 0,
        }
    }

    fn certify(
        &self,
        device: DeviceId,
        curve: Bin<32>,
        name: &str,
        seq: u64,
        now_ms: u64,
    ) -> Signed<DeviceCert> {
        let cert = DeviceCert {
            version: 1,
            key: self.key,
            device,
            curve,
            name: name.to_owned(),
            not_before: now_ms,
            not_after: now_ms.saturating_add(CERT_LIFE_MS),
            seq,
            caps: vec!["tl2".into()],
        };
        Signed::<DeviceCert>::issue(&self.identity, cert)
    }

    fn list(&self, known: &DeviceList, devices: Vec<DeviceId>, now_ms: u64) -> Signed<DeviceList> {
        let list = DeviceList {
            seq: next_seq(known.seq, now_ms),
            issued_at: now_ms,
            devices,
            removed: known.removed.clone(),
            ..*known
        };
        Signed::<DeviceList>::issue(&self.identity, list)
    }

    /// Whether a newer device list of our own key says that this device was removed: it must stop sending.
    pub fn is_removed_by(&self, list: &Signed<DeviceList>) -> bool {
        self.records.device.as_ref().is_some_and(|own| {
            list.object().key == self.key
                && list.object().seq > own.list.object().seq
                && list.object().removed.contains(&own.device)
        })
    }

    /// Takes a newer list of our own key. If it knows nothing of this device, the union is published once.
    pub fn join_list(&mut self, list: &Signed<DeviceList>, now_ms: u64) -> Result<Commit, MailError> {
        let mut row = self.records.device.clone().ok_or(MailError::NoDevice)?;
        let mut commit = Commit::default();
        let theirs = list.object();
        let newer = theirs.key == self.key && theirs.seq > row.list.object().seq;
        if !newer || theirs.removed.contains(&row.device) || theirs.check_time(now_ms).is_err() {
            return Ok(commit);
        }
        row.list = if theirs.devices.contains(&row.device) || theirs.devices.len() >= 8 {
            list.clone()
        } else {
            let devices = theirs.devices.iter().copied().chain([row.device]).collect();
            self.list(theirs, devices, now_ms)
        };
        self.put(&mut commit, Write::Device(Box::new(row)));
        Ok(commit)
    }

    /// What a relay remembers of this device, from its WELCOME.
    pub fn check_high_water(&self, (cert_seq, key_id): (u64, u64), now_ms: u64) -> HighWater {
        let Some(row) = &self.records.device else { return HighWater::Fits };
        let cert = row.cert.object();
        if cert_seq <= cert.seq && key_id < row.next_key_id {
            return HighWater::Fits;
        }
        let replaced = !row.list.object().removed.is_empty();
        if replaced && now_ms < cert.not_before.saturating_add(REPLACE_EVERY_MS) {
            return HighWater::Disputed;
        }
        HighWater::OldCopy
    }

    /// Keys to leave at `relay`, which holds `have` one-time keys, if any are due; with `have` not known, after login,
    /// what was made before is announced, and the answer tells how many there are. A one-time key is made for one relay,
    /// and its number is in the commit, so none is ever given twice.
    pub fn publish(
        &mut self,
        relay: &Key,
        have: Option<u16>,
        now_ms: u64,
    ) -> Result<(Commit, Option<KeysPut>), MailError> {
        let mut row = self.records.device.clone().ok_or(MailError::NoDevice)?;
        let mut account = DeviceAccount::open(&row.pickle, &self.store_key)?;
        let mut commit = Commit::default();
        let waiting = row.unpublished.iter().filter(|key| key.relay == *relay).count();
        let waiting = u16::try_from(waiting).unwrap_or(u16::MAX);
        let there = have.unwrap_or(ONE_TIME_KEYS).saturating_add(waiting);
        let missing = ONE_TIME_KEYS.saturating_sub(there);
        let refill = there < REFILL_BELOW;
        if refill {
            for curve in account.generate_one_time(usize::from(missing)) {
                let (id, bytes, signature) =
                    self.prekey(&mut row, ONE_TIME, curve, now_ms.saturating_add(ONE_TIME_LIFE_MS));
                row.unpublished.push(UnpublishedKey { relay: *relay, id, bytes, signature });
            }
        }
        let rotate = row.fallback.is_none() || now_ms >= row.fallback_at.saturating_add(FALLBACK_RENEW_MS);
        if rotate {
            account.forget_previous_fallback();
            if let Some(curve) = account.generate_fallback() {
                let until = now_ms.saturating_add(FALLBACK_LIFE_MS);
                row.fallback = Some(self.prekey(&mut row, FALLBACK, curve, until));
                row.fallback_at = now_ms;
            }
        }
        if refill || rotate {
            row.pickle = account.pickle(&self.store_key, &mut self.rng);
            self.put(&mut commit, Write::Device(Box::new(row.clone())));
        }
        let offered = self.offered.get(relay) == row.fallback.as_ref().map(|(id, ..)| id);
        let due = have.is_none() || !offered || waiting > 0 || refill;
        Ok((commit, due.then(|| Self::keys_put(&row, relay))))
    }

    fn keys_put(row: &DeviceRow, relay: &Key) -> KeysPut {
        KeysPut {
            cert: Blob(row.cert.bytes().to_vec()),
            cs: *row.cert.signature(),
            list: Blob(row.list.bytes().to_vec()),
            ls: *row.list.signature(),
            otks: row
                .unpublished
                .iter()
                .filter(|key| key.relay == *relay)
                .take(MAX_ONE_TIME_KEYS)
                .map(|key| (key.bytes.clone(), key.signature))
                .collect(),
            fb: row.fallback.clone().map(|(_, bytes, signature)| (bytes, signature)),
        }
    }

    fn prekey(&self, row: &mut DeviceRow, kind: u8, curve: Bin<32>, not_after: u64) -> (u64, Blob, Bin<64>) {
        let key_id = row.next_key_id;
        row.next_key_id = key_id.saturating_add(1);
        let prekey = Prekey { version: 1, key: self.key, device: row.device, kind, key_id, curve, not_after };
        let signed = Signed::<Prekey>::issue(&self.identity, prekey);
        (key_id, Blob(signed.bytes().to_vec()), *signed.signature())
    }

    /// What this device says of itself to a peer that no relay of v2 tells of it: with a one-time key that nobody else
    /// gets.
    pub fn introduce(&mut self, now_ms: u64) -> Result<(Commit, Introduction), MailError> {
        let mut row = self.records.device.clone().ok_or(MailError::NoDevice)?;
        let mut account = DeviceAccount::open(&row.pickle, &self.store_key)?;
        let curve = account.generate_one_time(1).pop().ok_or(MailError::NoDevice)?;
        let until = now_ms.saturating_add(ONE_TIME_LIFE_MS);
        let (_, prekey, signature) = self.prekey(&mut row, ONE_TIME, curve, until);
        row.pickle = account.pickle(&self.store_key, &mut self.rng);
        let introduction = Introduction {
            key: self.key,
            cert: (Blob(row.cert.bytes().to_vec()), *row.cert.signature()),
            prekey: (prekey, signature),
            list: (Blob(row.list.bytes().to_vec()), *row.list.signature()),
        };
        let mut commit = Commit::default();
        self.put(&mut commit, Write::Device(Box::new(row)));
        Ok((commit, introduction))
    }

    /// `relay` answered KEYS_PUT: what it ever took is not offered again.
    pub fn keys_stored(&mut self, relay: &Key, answer: &KeysOk) -> Result<Commit, MailError> {
        self.stocked = answer.have;
        let mut row = self.records.device.clone().ok_or(MailError::NoDevice)?;
        let mut commit = Commit::default();
        if let Some((id, ..)) = row.fallback.as_ref().filter(|(id, ..)| *id <= answer.hw) {
            self.offered.insert(*relay, *id);
        }
        let before = row.unpublished.len();
        row.unpublished.retain(|key| key.relay != *relay || key.id > answer.hw);
        if row.unpublished.len() == before {
            return Ok(commit);
        }
        if row.unpublished.is_empty() {
            let mut account = DeviceAccount::open(&row.pickle, &self.store_key)?;
            account.mark_published();
            row.pickle = account.pickle(&self.store_key, &mut self.rng);
        }
        self.put(&mut commit, Write::Device(Box::new(row)));
        Ok(commit)
    }
}
