//! What a hostile relay does with frames.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use rand::RngExt as _;
use threadline::identity::Identity;
use threadline::v2::envelope::{Envelope, assemble, encode_legs};
use threadline::v2::frames::{
    Deliver, Found, FoundRow, Frame, Keys, KeysPut, Looked, Outcome, Presence, Rejected, SignedBytes, Status,
    Target,
};
use threadline::v2::mail::{Mail, Records};
use threadline::v2::objects::{DeviceCert, DeviceList, FALLBACK, ONE_TIME, Signed};
use threadline::v2::{Blob, Code, Key};

use super::now;

/// What it is told to do.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a crime of its own")]
pub struct Crimes {
    /// Answers a claim of somebody's keys with its own, with another agent's, or with a mixture.
    pub swaps_keys: bool,
    /// Answers a claim with what was true once: keys and list of a device that is gone.
    pub serves_the_past: bool,
    /// Gives everybody the same one-time key of a peer.
    pub repeats_keys: bool,
    /// Answers a question about somebody's devices with its own, another agent's, a mixture, or with none.
    pub forges_devices: bool,
    /// Lists itself in its directory under everybody's names, and everybody under another name.
    pub impersonates: bool,
    /// How far the clock that it tells is off, ms. Unless that is 0, it says of every message that it has expired.
    pub clock_ms: i64,
    /// Says that it speaks v1 alone, and ends every session of v2.
    pub denies: Option<Denial>,
    /// Says that it knows newer keys of each device that logs in.
    pub disowns: bool,
    /// Takes messages and never delivers one.
    pub withholds: bool,
    /// Says that messages were taken that were not, and that agents come and go.
    pub lies: bool,
    /// Leaves some messages without an answer, and refuses others for good.
    pub drops: bool,
    /// Delivers every message with changed copies of it before and after: other bytes, another sender, its own signature.
    pub forges: bool,
}

/// How it says that it speaks v1 alone. Either way it offers a login by v1 then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// By a document with its signature.
    Document,
    /// By having none.
    NotFound,
}

/// How often it did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deeds {
    /// Claims answered with keys that are not the peer's.
    pub swapped: usize,
    /// Claims answered with keys of devices that are gone.
    pub past: usize,
    /// Claims answered with a key that somebody else had.
    pub repeated_keys: usize,
    /// Questions about devices answered with what is not true.
    pub misnamed: usize,
    /// Rows of its directory that were false.
    pub listed: usize,
    /// Frames that carried its wrong time.
    pub misdated: usize,
    /// Messages that came with a time outside what peers take, or for which it was no time any more.
    pub skewed: usize,
    /// Times that somebody asked whether it speaks v2, and heard that it does not.
    pub denied: usize,
    /// Words of clients that wanted to log in by v1.
    pub v1_logins: usize,
    /// Logins at which it said that the device is an old copy.
    pub disowned: usize,
    /// Deliveries that were not made.
    pub withheld: usize,
    /// Lies about messages and presence.
    pub lied: usize,
    /// Messages that went nowhere.
    pub dropped: usize,
    /// Forged deliveries.
    pub forged: usize,
    /// Deliveries of what was delivered before: any relay of this harness repeats and shuffles.
    pub repeated: usize,
}

/// The hand that forges, with an identity and keys of its own.
pub(super) struct Mallory {
    identity: Arc<Identity>,
    keys: KeysPut,
    next_delivery: u64,
    /// What each agent left first.
    past: BTreeMap<Key, KeysPut>,
    /// The last answers about each agent.
    told: BTreeMap<Key, Keys>,
    /// The one-time key that everybody is given.
    given: BTreeMap<Key, SignedBytes>,
    /// Names and capabilities of who logged in.
    names: BTreeMap<Key, (String, Vec<String>)>,
}

/// A peer's clock may be this far off, ms.
const MAX_SKEW_MS: u64 = 120_000;

impl Mallory {
    pub(super) fn new() -> anyhow::Result<Self> {
        let identity = Arc::new(Identity::generate(&mut rand::rng()));
        let mut mail = Mail::new(Arc::clone(&identity), Records::default(), rand::random());
        let _ = mail.ensure_device("mallory", now())?;
        let (_, keys) = mail.publish(&Key::from(identity.public()), Some(0), now())?;
        Ok(Self {
            identity,
            keys: keys.context("keys of its own")?,
            next_delivery: 1 << 40,
            past: BTreeMap::new(),
            told: BTreeMap::new(),
            given: BTreeMap::new(),
            names: BTreeMap::new(),
        })
    }

    pub(super) fn key(&self) -> Key {
        self.identity.public().into()
    }

    /// What it says besides when a frame comes; `None` when the frame is dropped.
    pub(super) fn before(
        &mut self,
        frame: &Frame,
        crimes: Crimes,
        deeds: &mut Deeds,
        now_ms: u64,
    ) -> Option<Vec<Frame>> {
        let mut lies = Vec::new();
        self.note(frame, deeds, now_ms);
        match frame {
            Frame::Search(search) => {
                let rows = if crimes.impersonates { self.false_directory() } else { self.directory() };
                deeds.listed += if crimes.impersonates { rows.len() } else { 0 };
                let total = u64::try_from(rows.len()).unwrap_or(u64::MAX);
                lies.push(Found { rid: search.rid, n: total, total, rows, cur: None }.into());
            }
            Frame::Send(send) if crimes.clock_ms != 0 => {
                lies.push(Status { id: send.id.clone(), st: Outcome::Expired, at: now_ms }.into());
            }
            Frame::Send(_) if crimes.drops && rand::rng().random_bool(0.2) => {
                deeds.dropped += 1;
                return None;
            }
            Frame::Send(send) if crimes.lies => {
                lies.push(Status { id: send.id.clone(), st: Outcome::Taken, at: now_ms }.into());
                let on = rand::rng().random();
                if let Target::Key(key) = send.to {
                    lies.push(Presence { key, dev: None, on, role: None, at: now_ms }.into());
                }
                deeds.lied += lies.len();
            }
            _ => {}
        }
        Some(lies)
    }

    fn note(&mut self, frame: &Frame, deeds: &mut Deeds, now_ms: u64) {
        match frame {
            Frame::Hello(hello) => {
                if let Ok(cert) = Signed::<DeviceCert>::parse(&hello.cert.0, &hello.cs.0) {
                    let said = (hello.name.clone(), hello.caps.clone());
                    self.names.insert(cert.object().key, said);
                }
            }
            Frame::KeysPut(put) => {
                if let Some(key) = owner(&put.list, &put.ls.0) {
                    self.past.entry(key).or_insert_with(|| put.clone());
                }
            }
            Frame::Send(send) => {
                let header = Envelope::parse(&send.env.0).map(|envelope| envelope.header);
                let fits =
                    header.is_ok_and(|h| h.created.abs_diff(now_ms) < MAX_SKEW_MS && h.expires > now_ms);
                deeds.skewed += usize::from(!fits);
            }
            _ => {}
        }
    }

    fn directory(&self) -> Vec<FoundRow> {
        let row = |(key, (name, caps)): (&Key, &(String, Vec<String>))| FoundRow {
            key: *key,
            name: name.clone(),
            fw: Some("instar".into()),
            caps: caps.clone(),
            tags: Vec::new(),
            bio: None,
            on: true,
            seen: None,
        };
        self.names.iter().map(row).collect()
    }

    /// Itself under the name of everybody, and everybody as somebody else.
    fn false_directory(&self) -> Vec<FoundRow> {
        let mallory = self.identity.public().into();
        let all = self.directory();
        let own = all.iter().map(|row| FoundRow { key: mallory, ..row.clone() });
        let others = all.iter().map(|row| FoundRow { name: "somebody-else".into(), ..row.clone() });
        own.chain(others).collect()
    }

    /// What it says instead of what a good relay would.
    pub(super) fn instead_of(&mut self, frame: Frame, crimes: Crimes, deeds: &mut Deeds) -> Vec<Frame> {
        match frame {
            Frame::Keys(keys) if crimes.swaps_keys => {
                deeds.swapped += 1;
                let swapped = self.swapped(&keys, deeds.swapped);
                if let Some(peer) = owner(&keys.list, &keys.ls.0) {
                    self.told.insert(peer, keys);
                }
                vec![swapped.into()]
            }
            Frame::Keys(keys) if crimes.serves_the_past => {
                let keys = self.of_the_past(keys, deeds);
                vec![keys.into()]
            }
            Frame::Keys(keys) if crimes.repeats_keys => {
                let keys = self.repeated(keys, deeds);
                vec![keys.into()]
            }
            Frame::Looked(looked) if crimes.forges_devices => {
                deeds.misnamed += 1;
                vec![self.misnamed(looked, deeds.misnamed).into()]
            }
            Frame::Welcome(mut welcome) if crimes.disowns => {
                deeds.disowned += 1;
                welcome.hw = (1 << 52, 1 << 52);
                vec![welcome.into()]
            }
            Frame::Accepted(accepted) if crimes.drops && rand::rng().random_bool(0.2) => {
                deeds.dropped += 1;
                let (rid, id) = (accepted.rid, accepted.id);
                vec![Rejected { rid, id, code: Code::Blocked, retry_ms: None }.into()]
            }
            Frame::Deliver(_) if crimes.withholds => {
                deeds.withheld += 1;
                Vec::new()
            }
            Frame::Deliver(deliver) => {
                deeds.repeated += usize::from(deliver.attempt > 1);
                let mut frames = Vec::new();
                if crimes.forges {
                    let mut forged = self.forged(&deliver);
                    deeds.forged += forged.len();
                    let after = forged.split_off(forged.len() / 2);
                    frames.extend(forged);
                    frames.push(deliver.into());
                    frames.extend(after);
                } else {
                    frames.push(deliver.into());
                }
                frames
            }
            frame => vec![frame],
        }
    }

    /// A peer's keys, changed in one of five ways.
    fn swapped(&self, keys: &Keys, number: usize) -> Keys {
        let mut keys = keys.clone();
        let Some((prekey, signature)) = self.keys.otks.first().cloned() else { return keys };
        let own = (self.keys.cert.clone(), self.keys.cs, prekey.clone(), signature, 1);
        match number % 5 {
            // Somebody else altogether.
            0 => {
                keys =
                    Keys { rid: keys.rid, devs: vec![own], list: self.keys.list.clone(), ls: self.keys.ls };
            }
            // The peer's device with a key of ours.
            1 => {
                for device in &mut keys.devs {
                    (device.2, device.3) = (prekey.clone(), signature);
                }
            }
            // A device of ours in the peer's list.
            2 => keys.devs = vec![own],
            // All that an honest agent signed, which is not the one that was asked for.
            3 => {
                let other = self.told.values().find(|other| other.list != keys.list);
                keys = other.map_or(keys.clone(), |other| Keys { rid: keys.rid, ..other.clone() });
            }
            // The peer's key, a bit of it turned.
            _ => {
                for device in &mut keys.devs {
                    turn_a_bit(&mut device.2);
                }
            }
        }
        keys
    }

    /// What is true of a peer's devices, changed in one of six ways.
    fn misnamed(&self, mut looked: Looked, number: usize) -> Looked {
        let own = (self.keys.cert.clone(), self.keys.cs);
        let own_list = (self.keys.list.clone(), self.keys.ls);
        match number % 6 {
            // Somebody else altogether, under the peer's key.
            0 => (looked.certs, looked.list) = (vec![own], Some(own_list)),
            // A device of ours in the peer's list.
            1 => looked.certs.insert(0, own),
            // The peer's device in a list of ours.
            2 => looked.list = Some(own_list),
            // All that an honest agent signed, which is not the one that was asked for.
            3 => {
                let other = self.past.iter().find(|(key, _)| **key != looked.key);
                if let Some((_, put)) = other {
                    looked.certs = vec![(put.cert.clone(), put.cs)];
                    looked.list = Some((put.list.clone(), put.ls));
                }
            }
            // The peer's certificate, a bit of it turned.
            4 => looked.certs.iter_mut().for_each(|(cert, _)| turn_a_bit(cert)),
            // The truth, but for the device.
            _ => looked.certs.clear(),
        }
        looked
    }

    /// What the peer left first, if that is not what holds now.
    fn of_the_past(&mut self, keys: Keys, deeds: &mut Deeds) -> Keys {
        let peer = owner(&keys.list, &keys.ls.0);
        let Some(past) = peer.and_then(|peer| self.past.get_mut(&peer)) else { return keys };
        let fallback = past.fb.clone().map(|key| (key, FALLBACK));
        let Some(((prekey, signature), kind)) = past.otks.pop().map(|key| (key, ONE_TIME)).or(fallback)
        else {
            return keys;
        };
        deeds.past += usize::from(past.list != keys.list);
        let devs = vec![(past.cert.clone(), past.cs, prekey, signature, kind)];
        Keys { rid: keys.rid, devs, list: past.list.clone(), ls: past.ls }
    }

    fn repeated(&mut self, mut keys: Keys, deeds: &mut Deeds) -> Keys {
        if let (Some(peer), Some(device)) = (owner(&keys.list, &keys.ls.0), keys.devs.first_mut()) {
            let (prekey, signature) =
                self.given.entry(peer).or_insert_with(|| (device.2.clone(), device.3)).clone();
            deeds.repeated_keys += usize::from(device.2 != prekey);
            (device.2, device.3) = (prekey, signature);
        }
        keys
    }

    fn forged(&mut self, deliver: &Deliver) -> Vec<Frame> {
        let mut changed = deliver.clone();
        turn_a_bit(&mut changed.env);
        let mut all = vec![changed];
        if let Ok(envelope) = Envelope::parse(&deliver.env.0) {
            let (header, legs) = (envelope.header.to_bytes(), encode_legs(&envelope.legs));
            // In the peer's name, signed by somebody else.
            let env = assemble(&self.identity, &header, &legs, b"");
            all.push(Deliver { env: Blob(env), ..deliver.clone() });
            // In its own name, under the peer's.
            let mut header = envelope.header;
            header.from = self.identity.public().into();
            let env = assemble(&self.identity, &header.to_bytes(), &legs, b"");
            all.push(Deliver { env: Blob(env), ..deliver.clone() });
        }
        for forged in &mut all {
            forged.did = self.next_delivery;
            self.next_delivery += 1;
        }
        all.into_iter().map(Frame::from).collect()
    }
}

/// The same frame with another time in it.
pub(super) fn misdated(mut frame: Frame, clock_ms: i64, deeds: &mut Deeds) -> Frame {
    let at = match &mut frame {
        Frame::Challenge(challenge) => &mut challenge.ts,
        Frame::Welcome(welcome) => &mut welcome.now,
        Frame::Pong(pong) => &mut pong.now,
        Frame::Accepted(accepted) => &mut accepted.exp,
        Frame::Deliver(deliver) => &mut deliver.at,
        Frame::Status(status) => &mut status.at,
        Frame::Presence(presence) => &mut presence.at,
        _ => return frame,
    };
    *at = at.saturating_add_signed(clock_ms);
    deeds.misdated += usize::from(clock_ms != 0);
    frame
}

/// Whose device list this is.
fn owner(list: &Blob, signature: &[u8; 64]) -> Option<Key> {
    Some(Signed::<DeviceList>::parse(&list.0, signature).ok()?.object().key)
}

fn turn_a_bit(bytes: &mut Blob) {
    let middle = bytes.0.len() / 2;
    if let Some(byte) = bytes.0.get_mut(middle) {
        *byte ^= 1;
    }
}
