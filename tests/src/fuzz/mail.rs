//! The node's end of v2: what a relay may hand out, and anything that it may say.

use std::sync::{Arc, LazyLock};

use threadline::identity::Identity;
use threadline::v2::Key;
use threadline::v2::frames::{Frame, FrameBuffer, FrameId, FramePhase, Target};
use threadline::v2::mail::{Draft, Mail, Received, Records};
use threadline::v2::session::{ClientSession, ConnectionId, Courier, SessionConfig, SessionEffect};

use crate::hello::hello;

/// The clock of the vectors.
const NOW: u64 = 1_768_478_400_000;
const SEED: [u8; 32] = [5; 32];

/// A seed of the vectors: 32 numbers from `first` on.
fn seed(first: u8) -> [u8; 32] {
    std::array::from_fn(|at| first + at as u8)
}

/// Bob of the vectors.
fn us() -> Arc<Identity> {
    Arc::new(Identity::from_seed(&seed(32)))
}

/// Alice of the vectors, who is written to.
fn peer() -> Key {
    static PEER: LazyLock<Key> = LazyLock::new(|| Identity::from_seed(&seed(0)).public().into());
    *PEER
}

fn relay() -> Key {
    static RELAY: LazyLock<Key> = LazyLock::new(|| Identity::from_seed(&[6; 32]).public().into());
    *RELAY
}

/// A node with a device and a message for the peer. What is on its disk is made once; nothing after it is stored.
fn node() -> Mail {
    static DISK: LazyLock<Records> = LazyLock::new(|| {
        let mut mail = Mail::new(us(), Records::default(), SEED);
        let _ = mail.ensure_device("fuzz", NOW).expect("a device");
        let draft = Draft::text("fuzz".parse().expect("a thread id"), "for alice alone");
        let _ = mail.submit(peer(), draft, NOW).expect("a device");
        mail.records().clone()
    });
    Mail::new(us(), DISK.clone(), SEED)
}

/// The keys of a peer's devices as a relay hands them out: refused, or every word of them is the peer's.
///
/// # Panics
/// If something is learnt that the peer did not sign, or learnt in part.
pub fn v2_prekey_bundle(data: &[u8]) {
    let Ok(Frame::Keys(keys)) = Frame::decode(data, FramePhase::Open) else { return };
    let mut mail = node();
    let learnt = mail.learn_keys(&peer(), &keys, NOW).is_ok();
    let Some(known) = mail.records().peers.get(&peer()).filter(|_| learnt) else {
        assert!(mail.records().sessions.is_empty(), "a session with somebody unknown");
        return;
    };
    let list = known.list.as_ref().expect("a list is learnt with the keys");
    for cert in known.certs.values() {
        assert_eq!(cert.object().key, peer());
        assert!(list.object().devices.contains(&cert.object().device));
    }
    let _ = mail.seal(&peer(), NOW).expect("our own pickles open");
}

/// A relay that says anything, in frames, to a node that has just connected: no message is confirmed that was not taken,
/// none is opened, and none of ours counts as received.
///
/// # Panics
/// If it is.
pub fn v2_relay_link(data: &[u8]) {
    let mut mail = node();
    let device = mail.records().device.as_ref().expect("it has one").device;
    let hello = hello(&us(), device, "fuzz", NOW);
    let config = SessionConfig { relay: relay(), host: "relay".into(), quic: true, websocket: false, hello };
    let mut sessions = [ClientSession::new(config, us(), SEED)];
    let mut courier = Courier::default();
    sessions[0].start(NOW);
    let mut connection = None;
    let mut now = NOW;
    carry(&mut mail, &mut sessions, &mut courier, &mut connection, now);
    let Some(first) = connection else { panic!("it connects") };
    sessions[0].handle_connected(first, NOW);
    let mut buffer = FrameBuffer::default();
    buffer.extend(data);
    for _ in 0..64 {
        let (Some(connection_now), Ok(Some(frame))) = (connection, buffer.next(FramePhase::Open)) else {
            break;
        };
        sessions[0].handle_frame(connection_now, frame, now);
        now += 997;
        if sessions[0].poll_timeout().is_some_and(|at| at <= now) {
            sessions[0].handle_timeout(now);
        }
        carry(&mut mail, &mut sessions, &mut courier, &mut connection, now);
        while let Some(opened) = mail.open_next(&|_| true, now).expect("our own pickles open") {
            assert!(opened.evidence.is_empty(), "a receipt out of nothing");
        }
        let (_, dispatched) = mail.dispatch(now);
        assert!(dispatched.is_empty(), "a message out of nothing");
        let _ = mail.flush_receipts(&|_| true, now).expect("a device");
        for to in mail.peers_to_seal() {
            if mail.seal(&to, now).expect("our own pickles open").needs_keys {
                courier.claim_keys(&mut sessions, to, now);
            }
        }
        courier.send(&mut mail, &mut sessions, now);
        courier.tidy(&mail);
    }
    assert!(mail.records().outbox.values().any(|row| row.peer == peer()), "it waits for its receipt");
}

/// Does what the session asks for. `connection` is the one that stands.
fn carry(
    mail: &mut Mail,
    sessions: &mut [ClientSession; 1],
    courier: &mut Courier,
    connection: &mut Option<ConnectionId>,
    now: u64,
) {
    while let Some(effect) = sessions[0].poll_effect() {
        match effect {
            SessionEffect::Connect { connection: new, .. } => *connection = Some(new),
            SessionEffect::Close { .. } => *connection = None,
            SessionEffect::Write { frame, .. } => {
                Frame::decode(&frame.encode(), FramePhase::Open).expect("our own frame");
                assert!(!matches!(*frame, Frame::Taken(_)), "nothing was stored");
            }
            SessionEffect::Welcome(welcome) => {
                mail.check_high_water(welcome.hw, now);
                courier.welcomed(mail, now);
                if let (_, Some(put)) = mail.publish(&relay(), None, now).expect("a device") {
                    let _ = sessions[0].put_keys(put);
                }
            }
            SessionEffect::Deliver(deliver) => {
                let claim = match (&deliver.id, &deliver.from, deliver.tt) {
                    (FrameId::Bin(id), Target::Key(from), Some(tag)) => Some((*id, *from, tag)),
                    _ => None,
                };
                if let Received::Refuse(code) = mail.receive(&deliver.env.0, claim, now) {
                    let _ = sessions[0].not_taken(deliver.did, code);
                }
            }
            SessionEffect::Accepted { to, id, answer } => {
                let answer = courier.accepted(0, sessions, (to, id), &answer, now);
                let _ = mail.answered(&to, &id, answer, now);
            }
            SessionEffect::Rejected { to, id, code, retry_ms } => {
                let answer = courier.rejected(0, sessions, (to, id), code, retry_ms, now);
                let _ = mail.answered(&to, &id, answer, now);
            }
            SessionEffect::KeysOk(answer) => {
                let _ = mail.keys_stored(&relay(), &answer).expect("a device");
            }
            SessionEffect::Answer { request, frame } => {
                courier.answer(mail, sessions, (0, request), *frame, now);
            }
            SessionEffect::Lost => courier.lost(mail, sessions, 0, now),
            SessionEffect::State(_)
            | SessionEffect::Status { .. }
            | SessionEffect::Presence(_)
            | SessionEffect::Solve { .. }
            | SessionEffect::Blob(_) => {}
        }
    }
}
