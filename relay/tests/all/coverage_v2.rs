//! Every frame type of v2 (`threadline-wire.md` §5.5) and every error code (§4.10) passes between a client and the real
//! program here. A type or a code of the tables that nobody says makes the test fail.

use std::collections::{BTreeMap, BTreeSet};

use rustix::process::Signal;
use threadline::identity::Identity;
use threadline::v2::blob::seal;
use threadline::v2::frames::{
    AddrPut, BlobData, BlobEnd, BlobGo, BlobOpen, Chains, ChainsGet, Fault, Frame, FrameId, Hello, KeysClaim,
    Lookup, NotTaken, Outcome, Ping, PowDone, PresenceSet, Role, Search, Send, Taken, Target, Visibility,
    VouchPut, Watch,
};
use threadline::v2::objects::{AddressRecord, Signed};
use threadline::v2::{Bin, Blob, Code};

use super::client::agent;
use super::process::Relay;
use super::v2::{Machine, Session, device, key, now, send, work_done};

/// Codes of §4.10 that a relay says, and here is made to say. The others are words between nodes, which pass it in
/// NOT_TAKEN; but for `storage_unavailable`, for which its disk must break, and `internal`, for which it must.
const OF_RELAYS: [Code; 20] = [
    Code::BadRequest,
    Code::BadSignature,
    Code::Expired,
    Code::ClockSkew,
    Code::Duplicate,
    Code::TooLarge,
    Code::UnsupportedVersion,
    Code::UnknownRecipient,
    Code::RecipientFull,
    Code::SenderFull,
    Code::BytesFull,
    Code::RateLimited,
    Code::NewAgentLimit,
    Code::TrustInsufficient,
    Code::Busy,
    Code::BadDevice,
    Code::StaleEpoch,
    Code::Draining,
    Code::PowRequired,
    Code::Banned,
];

const DAY_MS: u64 = 86_400_000;

/// What passed so far.
#[derive(Default)]
struct Seen {
    frames: BTreeSet<&'static str>,
    /// Codes that the relay said, with a frame that holds each.
    codes: BTreeMap<Code, &'static str>,
}

impl Seen {
    async fn say(&mut self, session: &mut Session, frame: impl Into<Frame>) {
        let frame = frame.into();
        self.frames.insert(frame.name());
        session.say(frame).await;
    }

    fn note(&mut self, frame: &Frame) {
        self.frames.insert(frame.name());
        let code = match frame {
            Frame::Refuse(refuse) => Some(refuse.code),
            Frame::Rejected(rejected) => Some(rejected.code),
            Frame::Fault(fault) => Some(fault.code),
            Frame::GoAway(away) => Some(Code::parse(&away.code)),
            _ => None,
        };
        if let Some(code) = code {
            self.codes.insert(code, frame.name());
        }
    }

    /// Reads until a frame of this name comes; every frame on the way counts.
    async fn hear(&mut self, session: &mut Session, wanted: &str) -> Frame {
        loop {
            let frame = session.frame().await.unwrap_or_else(|code| panic!("{wanted}: closed with {code}"));
            self.note(&frame);
            if frame.name() == wanted {
                return frame;
            }
        }
    }

    /// Reads until the relay says this code.
    async fn refused(&mut self, session: &mut Session, code: Code) {
        while !self.codes.contains_key(&code) {
            let frame = session.frame().await.unwrap_or_else(|end| panic!("{code}: closed with {end}"));
            self.note(&frame);
        }
    }

    async fn log_in(&mut self, relay: &Relay, hello: Hello, n: u8) -> Session {
        let session = Session::log_in_as(relay.at, hello, n).await;
        self.frames.extend(["CHALLENGE", "PROOF", "HELLO", "WELCOME"]);
        session
    }

    /// A login that ends with this code.
    async fn no_login(&mut self, relay: &Relay, hello: Hello, who: (&Identity, u8), code: Code) {
        let mut session = Session::greet(relay.at, "127.0.0.1", hello, who.0, who.1).await;
        self.refused(&mut session, code).await;
    }
}

#[tokio::test]
async fn every_frame_and_code_of_v2_is_sent_or_provoked() {
    let dir = tempfile::tempdir().expect("dir");
    let mut seen = Seen::default();
    work_before_the_welcome(&mut seen).await;
    let relay = Relay::start_with(dir.path(), &["queue.per_recipient=60", "limits.claims_per_minute=3"]);
    messages(&mut seen, &relay).await;
    refused_messages(&mut seen, &relay).await;
    refused_logins(&mut seen, &relay).await;
    keys_and_directory(&mut seen, &relay).await;
    blobs(&mut seen, &relay).await;
    features_that_are_not_spoken(&mut seen, &relay).await;
    too_much(&mut seen).await;
    let mut last = seen.log_in(&relay, Machine::of(20).hello(), 20).await;
    relay.signal(Signal::TERM);
    seen.refused(&mut last, Code::Draining).await;

    let names: BTreeSet<_> = Frame::TYPES.iter().map(|(_, name)| *name).collect();
    assert_eq!(seen.frames, names);
    let said: BTreeSet<_> = seen.codes.keys().copied().collect();
    assert_eq!(said, BTreeSet::from(OF_RELAYS));
}

async fn work_before_the_welcome(seen: &mut Seen) {
    let dir = tempfile::tempdir().expect("dir");
    let relay = Relay::start_with(dir.path(), &["sybil.tiers=true"]);
    let mut idle = Session::greet(relay.at, "127.0.0.1", Machine::of(2).hello(), &agent(2), 2).await;
    let Frame::Pow(pow) = seen.hear(&mut idle, "POW").await else { panic!("work") };
    seen.say(&mut idle, PowDone { e: pow.e, n: Bin([0; 8]) }).await;
    seen.refused(&mut idle, Code::PowRequired).await;
    // Who works is let in, and may say little at first.
    let mut young = Session::greet(relay.at, "127.0.0.1", Machine::of(1).hello(), &agent(1), 1).await;
    let Frame::Pow(pow) = seen.hear(&mut young, "POW").await else { panic!("work") };
    let done = work_done(relay.at, key(1), pow).await;
    seen.say(&mut young, done).await;
    seen.hear(&mut young, "WELCOME").await;
    for id in 1..=31 {
        seen.say(&mut young, send(1, 2, id, 1)).await;
    }
    seen.refused(&mut young, Code::NewAgentLimit).await;
}

/// Every code as a node says it of a delivery: what is dropped with it is gone, everything else comes again.
async fn messages(seen: &mut Seen, relay: &Relay) {
    let mut alice = seen.log_in(relay, Machine::of(1).hello(), 1).await;
    let mut bob = seen.log_in(relay, Machine::of(2).hello(), 2).await;
    seen.say(&mut alice, Ping { t: 1, tok: false }).await;
    seen.hear(&mut alice, "PONG").await;
    seen.say(&mut alice, send(1, 2, 200, 1)).await;
    seen.hear(&mut alice, "ACCEPTED").await;
    let Frame::Deliver(first) = seen.hear(&mut bob, "DELIVER").await else { panic!("a delivery") };
    seen.say(&mut bob, Taken { dids: vec![first.did] }).await;
    seen.hear(&mut alice, "STATUS").await;
    let mut kept = Vec::new();
    for (id, code) in (1..).zip(Code::ALL) {
        seen.say(&mut alice, send(1, 2, id, 1)).await;
        alice.answer(id).await.expect("accepted");
        let did = bob.delivered().await.did;
        seen.say(&mut bob, NotTaken { did, code: *code }).await;
        if code.drops_delivery() {
            // Who has a message already took it.
            let outcome = if *code == Code::Duplicate { Outcome::Taken } else { Outcome::Dropped };
            assert_eq!(alice.status().await, (FrameId::Bin(Bin([id; 16])), outcome), "{code}");
        } else {
            kept.push(FrameId::Bin(Bin([id; 16])));
        }
    }
    drop(bob);
    let mut bob = Session::log_in(relay.at, 2).await;
    for id in kept {
        let again = bob.delivered().await;
        assert_eq!(again.id, id);
        bob.take(again.did).await;
    }
}

async fn refused_messages(seen: &mut Seen, relay: &Relay) {
    let mut alice = seen.log_in(relay, Machine::of(1).hello(), 1).await;
    let mut forged = send(1, 2, 90, 1);
    if let Some(last) = forged.env.0.last_mut() {
        *last ^= 1;
    }
    seen.say(&mut alice, forged).await;
    seen.refused(&mut alice, Code::BadSignature).await;
    for version in 1..=4 {
        seen.say(&mut alice, send(1, 2, 91, version)).await;
    }
    seen.refused(&mut alice, Code::Duplicate).await;
    seen.say(&mut alice, Send { ttl: 3_601, ..send(1, 2, 92, 1) }).await;
    seen.hear(&mut alice, "REJECTED").await;
    seen.refused(&mut alice, Code::BadRequest).await;
}

async fn refused_logins(seen: &mut Seen, relay: &Relay) {
    let other = Machine::of(9).hello();
    seen.no_login(relay, other, (&agent(8), 8), Code::BadDevice).await;
    let ahead = Machine::of(9).hello_for((now() + 2 * DAY_MS, now() + 3 * DAY_MS));
    seen.no_login(relay, ahead, (&agent(9), 9), Code::ClockSkew).await;
    let over = Machine::of(9).hello_for((now() - 3 * DAY_MS, now() - DAY_MS));
    seen.no_login(relay, over, (&agent(9), 9), Code::Expired).await;
    let mut second = seen.log_in(relay, Hello { ep: 3, ..Machine::of(9).hello() }, 9).await;
    seen.say(&mut second, PresenceSet { role: Some(Role::Active), ep: 2, vis: None, status: None }).await;
    seen.refused(&mut second, Code::StaleEpoch).await;
    let dir = tempfile::tempdir().expect("dir");
    let private = Relay::start_with(dir.path(), &["mode=private"]);
    seen.no_login(&private, Machine::of(9).hello(), (&agent(9), 9), Code::TrustInsufficient).await;
}

async fn keys_and_directory(seen: &mut Seen, relay: &Relay) {
    let mut alice = seen.log_in(relay, Machine::of(1).hello(), 1).await;
    seen.say(&mut alice, Watch { keys: vec![key(3)], all: false }).await;
    let listed = Hello { vis: Some(Visibility::Public), listed: true, ..Machine::of(3).hello() };
    let mut carol = seen.log_in(relay, listed, 3).await;
    seen.hear(&mut alice, "PRESENCE").await;
    seen.say(&mut carol, Machine::of(3).keys(1..5, 5)).await;
    seen.hear(&mut carol, "KEYS_OK").await;
    let record = AddressRecord {
        version: 1,
        key: key(3),
        seq: 1,
        issued_at: now(),
        expires: now() + 3_600_000,
        addresses: vec!["/ip4/192.0.2.1/udp/1/quic-v1".into()],
        relays: Vec::new(),
        devices: vec![device(3)],
    };
    let record = Signed::<AddressRecord>::issue(&agent(3), record);
    seen.say(&mut carol, AddrPut { rec: Blob(record.bytes().to_vec()), s: *record.signature() }).await;
    seen.say(&mut alice, Lookup { rid: 1, to: Target::Key(key(3)) }).await;
    seen.hear(&mut alice, "LOOKED").await;
    let all = Search { rid: 2, q: None, cap: None, int: None, fw: None, on: None, cur: None, lim: None };
    seen.say(&mut alice, all).await;
    seen.hear(&mut alice, "FOUND").await;
    seen.say(&mut alice, KeysClaim { rid: 3, to: Target::Key(key(3)) }).await;
    seen.hear(&mut alice, "KEYS").await;
    seen.say(&mut alice, KeysClaim { rid: 4, to: Target::Key(key(77)) }).await;
    seen.refused(&mut alice, Code::UnknownRecipient).await;
    for rid in 5..10 {
        seen.say(&mut alice, KeysClaim { rid, to: Target::Key(key(3)) }).await;
    }
    seen.refused(&mut alice, Code::RateLimited).await;
}

async fn blobs(seen: &mut Seen, relay: &Relay) {
    let mut alice = seen.log_in(relay, Machine::of(1).hello(), 1).await;
    let mut bob = seen.log_in(relay, Machine::of(2).hello(), 2).await;
    let (id, bytes) = seal(&Bin([5; 32]), b"a few bytes");
    let size = bytes.len() as u64;
    seen.say(&mut alice, BlobOpen { rid: Some(1), id, to: key(2), size: 1 << 40 }).await;
    seen.refused(&mut alice, Code::TooLarge).await;
    seen.say(&mut alice, BlobOpen { rid: Some(2), id, to: key(2), size }).await;
    seen.hear(&mut bob, "BLOB_OPEN").await;
    seen.say(&mut bob, BlobGo { id, upto: size }).await;
    seen.hear(&mut alice, "BLOB_GO").await;
    seen.say(&mut alice, BlobData { id, bytes: Blob(bytes) }).await;
    seen.hear(&mut bob, "BLOB_DATA").await;
    seen.say(&mut alice, BlobEnd { hash: id }).await;
    seen.hear(&mut bob, "BLOB_END").await;
    for rid in 3..12 {
        let open = BlobOpen { rid: Some(rid), id: Bin([rid as u8; 32]), to: key(2), size };
        seen.say(&mut alice, open).await;
    }
    seen.refused(&mut alice, Code::Busy).await;
}

async fn features_that_are_not_spoken(seen: &mut Seen, relay: &Relay) {
    let mut alice = seen.log_in(relay, Machine::of(1).hello(), 1).await;
    let nothing = (Blob(Vec::new()), Bin([0; 64]));
    seen.say(&mut alice, VouchPut { vouch: nothing }).await;
    seen.hear(&mut alice, "ERROR").await;
    seen.say(&mut alice, ChainsGet { rid: 7, from: key(1), to: key(2) }).await;
    let Frame::Fault(fault) = seen.hear(&mut alice, "ERROR").await else { panic!("a refusal") };
    assert_eq!((fault.rid, fault.code), (Some(7), Code::UnsupportedVersion));
    seen.say(&mut alice, Fault { rid: None, code: Code::Internal, text: None }).await;
    seen.say(&mut alice, Ping { t: 9, tok: false }).await;
    seen.hear(&mut alice, "PONG").await;
    // A relay's own word from a client ends the session.
    seen.say(&mut alice, Chains { rid: 7, chains: Vec::new() }).await;
    let (rest, code) = alice.end().await;
    let last = rest.iter().find_map(|frame| match frame {
        Frame::Fault(fault) => Some(fault.code),
        _ => None,
    });
    assert_eq!((last, code), (Some(Code::BadRequest), 4001));
}

/// Queues that are full, and a sender that writes to everybody.
async fn too_much(seen: &mut Seen) {
    for (setting, code) in [
        ("queue.per_pair=3", Code::SenderFull),
        ("queue.unknown_recipient=3", Code::RecipientFull),
        ("queue.bytes_per_recipient=2000", Code::BytesFull),
    ] {
        let dir = tempfile::tempdir().expect("dir");
        let relay = Relay::start_with(dir.path(), &[setting]);
        let mut alice = seen.log_in(&relay, Machine::of(1).hello(), 1).await;
        for id in 1..=40 {
            seen.say(&mut alice, send(1, 2, id, 1)).await;
        }
        seen.refused(&mut alice, code).await;
    }
    let dir = tempfile::tempdir().expect("dir");
    let relay = Relay::start_with(dir.path(), &[]);
    let mut everywhere = seen.log_in(&relay, Machine::of(1).hello(), 1).await;
    for id in 2..=120 {
        everywhere.try_say(send(1, id, id, 1)).await;
    }
    assert_eq!(everywhere.end().await.1, 4003);
    seen.no_login(&relay, Machine::of(1).hello(), (&agent(1), 1), Code::Banned).await;
}
