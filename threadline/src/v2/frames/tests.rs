use super::*;
use crate::testing::{bytes, vectors_v2};
use crate::v2::{Bin, Blob};
use proptest::prelude::*;

/// One frame of every type, all members set.
pub(crate) fn examples() -> Vec<Frame> {
    let (key, id, sig) = (Bin([3; 32]), Bin([4; 16]), Bin([5; 64]));
    let blob = || Blob(vec![7; 20]);
    let signed = || (blob(), sig);
    vec![
        Hello {
            v: 2,
            dev: id,
            cert: blob(),
            cs: sig,
            list: blob(),
            ls: sig,
            name: "alice".into(),
            fw: Some("instar".into()),
            ver: Some("1".into()),
            caps: vec!["chat".into()],
            bio: Some("hello".into()),
            tags: vec!["tea".into()],
            vis: Some(Visibility::Public),
            listed: true,
            role: Role::Active,
            sib: vec![key],
            vouch: Some(signed()),
            win: Some(64),
            ep: 7,
            nov1: true,
            feat: vec!["vouch".into()],
        }
        .into(),
        Welcome {
            sid: id,
            relay: key,
            now: 1,
            lim: RelayLimits { env: 262_144, ttl_s: 1, msg_min: 60, msg_hour: 1000, disc_min: 10 },
            q: QueueSize { n: 1, bytes: 2 },
            tok: Some("eyJ".into()),
            tok_x: Some(5),
            age_ms: 9,
            hw: (1, 2),
            ep: 7,
            role: Role::Standby,
            notice: Some("new".into()),
            rs: Some(sig),
        }
        .into(),
        Refuse { code: Code::Banned, retry_ms: Some(5), text: Some("why".into()) }.into(),
        Challenge { n: key, rk: key, ts: 1 }.into(),
        Proof { k: key, cn: key, host: "h".into(), s: sig }.into(),
        Pow { e: "2cf988".into(), bits: 20, h: id }.into(),
        PowDone { e: "2cf988".into(), n: Bin([1; 8]) }.into(),
        Ping { t: u64::MAX, tok: true }.into(),
        Pong { t: 1, now: 2, ep: 3, role: Some(Role::Active), tok: Some("t".into()), tok_x: Some(1) }.into(),
        Send {
            rid: 1,
            id: FrameId::Text("a2a-1".into()),
            to: Target::Address(id),
            tt: Some(Bin([1; 8])),
            fmt: FORMAT_V1,
            env: blob(),
            ttl: 60,
            pri: 1,
        }
        .into(),
        Accepted { rid: 1, id: id.into(), cu: Custody::Durable, st: Standing::Queued, exp: 1, dup: true }
            .into(),
        Rejected { rid: 1, id: id.into(), code: Code::Busy, retry_ms: Some(1) }.into(),
        Deliver {
            did: 1,
            id: id.into(),
            from: Target::Key(key),
            tt: None,
            fmt: FORMAT_V2,
            env: blob(),
            at: 1,
            attempt: 2,
            via: Via::A2a,
        }
        .into(),
        Taken { dids: vec![1, 300, 70_000] }.into(),
        NotTaken { did: 1, code: Code::Blocked }.into(),
        Status { id: id.into(), st: Outcome::Taken, at: 1 }.into(),
        PresenceSet {
            role: Some(Role::Active),
            ep: 8,
            vis: Some(Visibility::Private),
            status: Some("x".into()),
        }
        .into(),
        Watch { keys: vec![key], all: true }.into(),
        Presence { key, dev: Some(id), on: true, role: Some(Role::Token), at: 1 }.into(),
        Lookup { rid: 1, to: Target::Key(key) }.into(),
        Looked {
            rid: 1,
            key,
            name: "bob".into(),
            certs: vec![signed()],
            list: Some(signed()),
            addr: Some(signed()),
            on: true,
            proto: vec![1, 2],
            relays: vec!["wss://r".into()],
        }
        .into(),
        Search {
            rid: 1,
            q: Some("tea".into()),
            cap: Some("chat".into()),
            int: Some("tea".into()),
            fw: Some("instar".into()),
            on: Some(true),
            cur: Some("c".into()),
            lim: Some(20),
        }
        .into(),
        Found {
            rid: 1,
            n: 1,
            total: 1,
            rows: vec![FoundRow {
                key,
                name: "bob".into(),
                fw: Some("instar".into()),
                caps: vec!["chat".into()],
                tags: vec!["tea".into()],
                bio: Some("b".into()),
                on: false,
                seen: Some(1),
            }],
            cur: Some("d".into()),
        }
        .into(),
        VouchPut { vouch: signed() }.into(),
        ChainsGet { rid: 1, from: key, to: key }.into(),
        Chains { rid: 1, chains: vec![vec![signed()], vec![]] }.into(),
        KeysPut { cert: blob(), cs: sig, list: blob(), ls: sig, otks: vec![signed()], fb: Some(signed()) }
            .into(),
        KeysOk { have: 50, hw: 51 }.into(),
        KeysClaim { rid: 1, to: Target::Key(key) }.into(),
        Keys { rid: 1, devs: vec![(blob(), sig, blob(), sig, 1)], list: blob(), ls: sig }.into(),
        BlobOpen { rid: Some(1), id: key, to: key, size: 5 }.into(),
        BlobGo { id: key, upto: 5 }.into(),
        BlobData { id: key, bytes: blob() }.into(),
        BlobEnd { hash: key }.into(),
        AddrPut { rec: blob(), s: sig }.into(),
        GoAway { code: "draining".into(), after_ms: 5_000, alt: vec!["wss://r".into()] }.into(),
        Fault { rid: Some(1), code: Code::BadRequest, text: Some("no".into()) }.into(),
    ]
}

#[test]
fn every_type_comes_back() {
    let examples = examples();
    let names: Vec<_> = examples.iter().map(Frame::name).collect();
    let all: Vec<_> = Frame::TYPES.iter().map(|(_, name)| *name).collect();
    assert_eq!(names, all);
    for frame in examples {
        assert_eq!(Frame::decode(&frame.encode(), FramePhase::Open), Ok(frame));
    }
}

#[test]
fn the_recorded_frame_is_reproduced() {
    let recorded = bytes(&vectors_v2()["sendFrame"]["bytes"]);
    let frame = Frame::decode(&recorded, FramePhase::Open).expect("recorded");
    let Frame::Send(send) = &frame else { panic!("a SEND") };
    assert_eq!(send.env.0, bytes(&vectors_v2()["envelope"]["env"]));
    assert_eq!((send.rid, send.fmt, send.ttl, send.pri), (1, FORMAT_V2, 604_800, 1));
    assert_eq!(frame.encode(), recorded);
}

#[test]
fn nil_members_are_absent_and_unknown_ones_ignored() {
    let body =
        [&[0x92, 0x7f, 0x84][..], b"\xa3rid\xc0", b"\xa4code\xa4busy", b"\xa4text\xc0", b"\xa3new\x91\x01"]
            .concat();
    let fault = Fault { rid: None, code: Code::Busy, text: None };
    assert_eq!(Frame::decode_content(&body, FramePhase::Open), Ok(fault.into()));
    let code_nil = [&[0x92, 0x7f, 0x81][..], b"\xa4code\xc0"].concat();
    assert!(Frame::decode_content(&code_nil, FramePhase::Open).is_err());
}

#[test]
fn unknown_types_are_refused_or_ignored() {
    let open = FramePhase::Open;
    let low = Frame::decode_content(&[0x92, 0x50, 0x80], open);
    assert_eq!(low, Err(FrameError::UnknownType(0x50)));
    assert!(!FrameError::UnknownType(0x50).is_fatal());
    let high = Frame::decode_content(&[0x92, 0xcd, 0x80, 0x01, 0x80], open);
    assert_eq!(high, Ok(Frame::Ignored(0x8001)));
    assert!(Frame::decode_content(&[0x92, 0xce, 0, 1, 0, 0, 0x80], open).is_err());
    assert!(Frame::decode_content(&[0x92, 0x08, 0x90], open).is_err(), "a body is a map");
}

#[test]
fn sizes_follow_type_and_phase() {
    let data = |size| Frame::from(BlobData { id: Bin([0; 32]), bytes: Blob(vec![0; size]) }).encode();
    let fault =
        |size| Frame::from(Fault { rid: None, code: Code::Busy, text: Some("x".repeat(size)) }).encode();
    assert!(Frame::decode(&data(290_000), FramePhase::Open).is_ok());
    assert_eq!(Frame::decode(&data(295_000), FramePhase::Open), Err(FrameError::TooLarge));
    assert_eq!(Frame::decode(&fault(66_000), FramePhase::Open), Err(FrameError::TooLarge));
    assert!(Frame::decode(&fault(4_000), FramePhase::Early).is_ok());
    assert_eq!(Frame::decode(&fault(4_100), FramePhase::Early), Err(FrameError::TooLarge));
    let mut buffer = FrameBuffer::default();
    buffer.extend(&0x10_0000_u32.to_be_bytes());
    assert_eq!(buffer.next(FramePhase::Open), Err(FrameError::TooLarge), "before the bytes arrive");
}

proptest! {
    #[test]
    fn a_stream_is_cut_the_same_however_it_arrives(cuts in proptest::collection::vec(1usize..60, 1..60)) {
        let frames = examples();
        let stream: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        let mut buffer = FrameBuffer::default();
        let (mut read, mut rest, mut cuts) = (Vec::new(), stream.as_slice(), cuts.iter().cycle());
        while !rest.is_empty() {
            let cut = (*cuts.next().expect("cycle")).min(rest.len());
            buffer.extend(&rest[..cut]);
            rest = &rest[cut..];
            while let Some(frame) = buffer.next(FramePhase::Open).expect("well formed") {
                read.push(frame);
            }
        }
        prop_assert_eq!(read, frames);
        prop_assert_eq!(buffer.pending(), 0);
    }

    #[test]
    fn no_bytes_panic(raw in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..0x80) {
        let _ = Frame::decode(&raw, FramePhase::Open);
        let _ = Frame::decode_content(&[&[0x92, kind][..], &raw].concat(), FramePhase::Open);
    }

    #[test]
    fn changed_frames_do_not_panic(which in 0usize..37, position in any::<prop::sample::Index>(), byte: u8) {
        let mut raw = examples()[which].encode();
        let position = position.index(raw.len());
        raw[position] = byte;
        if let Ok(frame) = Frame::decode(&raw, FramePhase::Open) {
            prop_assert_eq!(Frame::decode(&frame.encode(), FramePhase::Open), Ok(frame));
        }
    }
}
