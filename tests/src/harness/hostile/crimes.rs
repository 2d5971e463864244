//! What a hostile relay does with frames.

use std::sync::Arc;

use anyhow::Context;
use rand::RngExt as _;
use threadline::identity::Identity;
use threadline::v2::envelope::{Envelope, assemble, encode_legs};
use threadline::v2::frames::{Deliver, Frame, Keys, KeysPut, Outcome, Presence, Rejected, Status};
use threadline::v2::mail::{Mail, Records};
use threadline::v2::{Blob, Code, Key};

use super::now;

/// What it is told to do.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a crime of its own")]
pub struct Crimes {
    /// Answers a claim of somebody's keys with its own, or with a mixture.
    pub swaps_keys: bool,
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

/// How often it did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deeds {
    /// Claims answered with keys that are not the peer's.
    pub swapped: usize,
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
}

impl Mallory {
    pub(super) fn new() -> anyhow::Result<Self> {
        let identity = Arc::new(Identity::generate(&mut rand::rng()));
        let mut mail = Mail::new(Arc::clone(&identity), Records::default(), rand::random());
        let _ = mail.ensure_device("mallory", now())?;
        let (_, keys) = mail.publish(&Key::from(identity.public()), Some(0), now())?;
        Ok(Self { identity, keys: keys.context("keys of its own")?, next_delivery: 1 << 40 })
    }

    /// What it says besides when a frame comes; `None` when the frame is dropped.
    pub(super) fn before(
        frame: &Frame,
        crimes: Crimes,
        deeds: &mut Deeds,
        now_ms: u64,
    ) -> Option<Vec<Frame>> {
        let mut lies = Vec::new();
        match frame {
            Frame::Send(_) if crimes.drops && rand::rng().random_bool(0.2) => {
                deeds.dropped += 1;
                return None;
            }
            Frame::Send(send) if crimes.lies => {
                lies.push(Status { id: send.id.clone(), st: Outcome::Taken, at: now_ms }.into());
                let on = rand::rng().random();
                if let threadline::v2::frames::Target::Key(key) = send.to {
                    lies.push(Presence { key, dev: None, on, role: None, at: now_ms }.into());
                }
                deeds.lied += lies.len();
            }
            _ => {}
        }
        Some(lies)
    }

    /// What it says instead of what a good relay would.
    pub(super) fn instead_of(&mut self, frame: Frame, crimes: Crimes, deeds: &mut Deeds) -> Vec<Frame> {
        match frame {
            Frame::Keys(keys) if crimes.swaps_keys => {
                deeds.swapped += 1;
                vec![self.swapped(keys, deeds.swapped).into()]
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

    /// A peer's keys, changed in one of four ways.
    fn swapped(&self, keys: Keys, number: usize) -> Keys {
        let Some((prekey, signature)) = self.keys.otks.first().cloned() else { return keys };
        let own = (self.keys.cert.clone(), self.keys.cs, prekey.clone(), signature, 1);
        let mut keys = keys;
        match number % 4 {
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
            // The peer's key, a bit of it turned.
            _ => {
                for device in &mut keys.devs {
                    turn_a_bit(&mut device.2);
                }
            }
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

fn turn_a_bit(bytes: &mut Blob) {
    let middle = bytes.0.len() / 2;
    if let Some(byte) = bytes.0.get_mut(middle) {
        *byte ^= 1;
    }
}
