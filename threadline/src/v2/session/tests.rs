use std::sync::Arc;

use super::*;
use crate::identity::Identity;
use crate::testing::identity;
use crate::v2::frames::*;
use crate::v2::mail::{Mail, Records};
use crate::v2::{Bin, Blob, Code, Key};

mod asking;
mod carriers;

const NOW: u64 = 1_768_478_400_000;
const HOST: &str = "relay.example.test";

fn hello(identity: &Arc<Identity>) -> Hello {
    let mut mail = Mail::new(identity.clone(), Records::default(), [3; 32]);
    let _ = mail.ensure_device("laptop", NOW).expect("mints");
    let row = mail.records().device.clone().expect("device");
    Hello {
        v: 2,
        dev: row.device,
        cert: Blob(row.cert.bytes().to_vec()),
        cs: *row.cert.signature(),
        list: Blob(row.list.bytes().to_vec()),
        ls: *row.list.signature(),
        name: "alice".into(),
        fw: None,
        ver: None,
        caps: Vec::new(),
        bio: None,
        tags: Vec::new(),
        vis: None,
        listed: false,
        role: Role::Active,
        sib: Vec::new(),
        vouch: None,
        win: Some(2),
        ep: 0,
        nov1: false,
        feat: Vec::new(),
    }
}

fn relay_key() -> Key {
    identity("relay").public().into()
}

fn welcome(role: Role) -> Welcome {
    Welcome {
        sid: Bin([1; 16]),
        relay: relay_key(),
        now: NOW,
        lim: RelayLimits { env: 262_144, ttl_s: 604_800, msg_min: 60, msg_hour: 1_000, disc_min: 10 },
        q: QueueSize { n: 0, bytes: 0 },
        tok: None,
        tok_x: None,
        age_ms: 0,
        hw: (0, 0),
        ep: 0,
        role,
        notice: None,
        rs: None,
    }
}

fn client(quic: bool, websocket: bool) -> ClientSession {
    let alice = Arc::new(identity("alice"));
    let config =
        SessionConfig { relay: relay_key(), host: HOST.into(), quic, websocket, hello: hello(&alice) };
    ClientSession::new(config, alice, [4; 32])
}

fn relay_signs(text: &[u8]) -> [u8; 64] {
    use ed25519_dalek::Signer as _;
    let seed = crate::testing::hex32(&crate::testing::vectors()["identities"]["relay"]["ed25519Seed"]);
    ed25519_dalek::SigningKey::from_bytes(&seed).sign(text).to_bytes()
}

fn effects(client: &mut ClientSession) -> Vec<SessionEffect> {
    std::iter::from_fn(|| client.poll_effect()).collect()
}

fn connections(effects: &[SessionEffect]) -> Vec<(ConnectionId, Carrier)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            SessionEffect::Connect { connection, carrier } => Some((*connection, *carrier)),
            _ => None,
        })
        .collect()
}

fn written(effects: &[SessionEffect]) -> Vec<Frame> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            SessionEffect::Write { frame, .. } => Some((**frame).clone()),
            _ => None,
        })
        .collect()
}

fn relay_frames(steps: &[RelayStep]) -> Vec<Frame> {
    steps
        .iter()
        .filter_map(|step| match step {
            RelayStep::Write(frame) => Some((**frame).clone()),
            _ => None,
        })
        .collect()
}

/// Logs a client in over WebSocket against the relay's machine.
fn logged_in() -> (ClientSession, RelaySession, ConnectionId) {
    logged_in_at(NOW)
}

/// The same, while the client's clock shows `now`.
fn logged_in_at(now: u64) -> (ClientSession, RelaySession, ConnectionId) {
    let mut client = client(false, true);
    client.start(now);
    let (connection, _) = connections(&effects(&mut client))[0];
    let (mut relay, challenge) = RelaySession::websocket(relay_key(), vec![HOST.into()], Bin([7; 32]), NOW);
    client.handle_connected(connection, NOW);
    client.handle_frame(connection, challenge, now);
    let mut login = None;
    for frame in written(&effects(&mut client)) {
        for step in relay.handle_frame(frame, NOW) {
            if let RelayStep::Login(request) = step {
                login = Some(request);
            }
        }
    }
    assert_eq!(login.expect("asks to enter").key, identity("alice").public().into());
    for frame in relay_frames(&relay.welcome(welcome(Role::Active), relay_signs)) {
        client.handle_frame(connection, frame, now);
    }
    assert!(client.is_ready() && relay.open().is_some());
    effects(&mut client);
    (client, relay, connection)
}

#[test]
fn a_slow_clock_knows_what_the_clock_of_the_relay_shows() {
    let slow = NOW - 3_600_000;
    let (client, ..) = logged_in_at(slow);
    assert_eq!(client.relay_time(slow + 5), NOW + 5);
}

#[test]
fn both_ends_prove_their_keys_over_websocket() {
    let (mut client, mut relay, _) = logged_in();
    client.send(Bin([1; 32]), Bin([2; 16]), Bin([3; 8]), Blob(vec![1]), 60, 1, NOW).expect("ready");
    let frames = written(&effects(&mut client));
    assert!(matches!(relay.handle_frame(frames[0].clone(), NOW)[0], RelayStep::Frame(_)));
}

#[test]
fn a_relay_that_is_another_gets_no_signature() {
    let mut client = client(false, true);
    client.start(NOW);
    let (connection, _) = connections(&effects(&mut client))[0];
    let challenge = Challenge { n: Bin([7; 32]), rk: identity("carol").public().into(), ts: NOW };
    client.handle_frame(connection, challenge.into(), NOW);
    assert!(written(&effects(&mut client)).is_empty());
    assert_eq!((client.state(), client.poll_timeout()), (SessionState::WrongRelay, None));
}

#[test]
fn a_login_relayed_to_another_relay_is_refused_there() {
    let mut client = client(false, true);
    client.start(NOW);
    let (connection, _) = connections(&effects(&mut client))[0];
    let challenge = Challenge { n: Bin([7; 32]), rk: relay_key(), ts: NOW };
    client.handle_frame(connection, challenge.into(), NOW);
    let proof = written(&effects(&mut client)).remove(0);
    let (mut other, _) =
        RelaySession::websocket(relay_key(), vec!["other.example".into()], Bin([7; 32]), NOW);
    let steps = other.handle_frame(proof.clone(), NOW);
    assert!(matches!(&relay_frames(&steps)[0], Frame::Refuse(refuse) if refuse.code == Code::BadSignature));
    let (mut elsewhere, _) =
        RelaySession::websocket(identity("bob").public().into(), vec![HOST.into()], Bin([7; 32]), NOW);
    assert_eq!(elsewhere.handle_frame(proof, NOW).last(), Some(&RelayStep::Close(close::REFUSED)));
    let unproven = Welcome { rs: Some(Bin([0; 64])), ..welcome(Role::Active) };
    client.handle_frame(connection, unproven.into(), NOW);
    assert_eq!(client.state(), SessionState::WrongRelay, "the relay proves its key as well");
}

#[test]
fn nothing_but_the_login_is_heard_before_welcome() {
    let quic = || RelaySession::quic(relay_key(), identity("alice").public().into(), NOW);
    let hello = hello(&Arc::new(identity("alice")));
    for frame in [Frame::from(Ping { t: 1, tok: false }), Taken { dids: vec![1] }.into()] {
        assert_eq!(quic().handle_frame(frame, NOW), [RelayStep::Close(close::PROTOCOL)]);
    }
    let mut slow = quic();
    assert_eq!(slow.poll_timeout(), Some(NOW + HELLO_MS));
    assert_eq!(slow.handle_timeout(NOW + HELLO_MS), [RelayStep::Close(close::PROTOCOL)]);
    let mut foreign = RelaySession::quic(relay_key(), identity("bob").public().into(), NOW);
    let steps = foreign.handle_frame(hello.clone().into(), NOW);
    assert!(matches!(&relay_frames(&steps)[0], Frame::Refuse(refuse) if refuse.code == Code::BadDevice));
    let mut twice = quic();
    assert!(matches!(twice.handle_frame(hello.clone().into(), NOW)[0], RelayStep::Login(_)));
    assert_eq!(twice.handle_frame(hello.into(), NOW), [RelayStep::Close(close::PROTOCOL)]);
}

#[test]
fn work_is_asked_checked_and_bound_to_the_session() {
    let alice = Arc::new(identity("alice"));
    let mut relay = RelaySession::quic(relay_key(), alice.public().into(), NOW);
    relay.handle_frame(hello(&alice).into(), NOW);
    let mut client = client(true, false);
    client.start(NOW);
    let (connection, _) = connections(&effects(&mut client))[0];
    for frame in relay_frames(&relay.demand_work(8, Bin([9; 16]), NOW)) {
        client.handle_frame(connection, frame, NOW);
    }
    let puzzle = effects(&mut client).into_iter().find_map(|effect| match effect {
        SessionEffect::Solve { puzzle, .. } => Some(puzzle),
        _ => None,
    });
    let puzzle = puzzle.expect("asked to work");
    let nonce = puzzle.search(0, 100_000).expect("8 bits");
    client.solved(connection, &puzzle.epoch, nonce);
    let done = written(&effects(&mut client)).remove(0);
    assert!(matches!(relay.handle_frame(done, NOW)[0], RelayStep::WorkDone(_)));
    assert_eq!(relay.carrier(), Some(Carrier::Quic));
    assert_eq!(relay_frames(&relay.welcome(welcome(Role::Active), relay_signs)).len(), 1);
}

#[test]
fn token_sessions_look_up_and_do_nothing_else() {
    let (_, mut relay, _) = logged_in();
    relay.set_role(Role::Token);
    let lookup = Lookup { rid: 1, to: Target::Key(relay_key()) };
    assert!(matches!(relay.handle_frame(lookup.into(), NOW)[0], RelayStep::Frame(_)));
    assert_eq!(relay.credit(), 0);
    let steps = relay.handle_frame(Taken { dids: vec![1] }.into(), NOW);
    assert_eq!(steps.last(), Some(&RelayStep::Close(close::PROTOCOL)));
}

#[test]
fn deliveries_keep_to_the_credit_of_the_node() {
    let (mut client, mut relay, connection) = logged_in();
    let deliver = |did| Deliver {
        did,
        id: Bin([1; 16]).into(),
        from: Target::Key(relay_key()),
        tt: None,
        fmt: FORMAT_V2,
        env: Blob(vec![1]),
        at: NOW,
        attempt: 1,
        via: Via::V2,
    };
    assert_eq!(relay.credit(), 2);
    for did in [1, 2] {
        let frame = relay.deliver(deliver(did)).expect("credit");
        client.handle_frame(connection, frame, NOW);
    }
    assert!(relay.deliver(deliver(3)).is_none());
    client.taken(&[1]).expect("ready");
    let taken = written(&effects(&mut client)).remove(0);
    assert!(matches!(relay.handle_frame(taken, NOW)[0], RelayStep::Frame(_)));
    assert!(relay.confirmed(1) && !relay.confirmed(1) && !relay.confirmed(99));
    assert!(relay.deliver(deliver(3)).is_some());
    assert_eq!(relay.unconfirmed().collect::<Vec<_>>(), [2, 3]);
    relay.set_role(Role::Standby);
    assert_eq!(relay.credit(), 0);
}

#[test]
fn silence_is_asked_about_and_then_ends_the_session() {
    let (mut client, _, _) = logged_in();
    client.handle_timeout(NOW + PING_AFTER_MS - 1);
    assert!(effects(&mut client).is_empty());
    client.handle_timeout(NOW + PING_AFTER_MS);
    assert!(matches!(written(&effects(&mut client))[0], Frame::Ping(_)));
    client.send(Bin([1; 32]), Bin([2; 16]), Bin([3; 8]), Blob(vec![1]), 60, 1, NOW + 26_000).expect("ready");
    client.handle_timeout(NOW + PING_AFTER_MS + PONG_MS - 1);
    assert!(client.is_ready());
    client.handle_timeout(NOW + PING_AFTER_MS + PONG_MS);
    assert!(effects(&mut client).contains(&SessionEffect::Lost), "what was sent will not be answered");
    assert!(matches!(client.state(), SessionState::Waiting { .. }));
    assert!(client.taken(&[1]).is_err());
}

#[test]
fn a_relay_that_is_given_a_message_and_says_nothing_is_asked_soon() {
    let (mut client, _, connection) = logged_in();
    let give = |client: &mut ClientSession, at| {
        client.send(Bin([1; 32]), Bin([2; 16]), Bin([3; 8]), Blob(vec![1]), 60, 1, at).expect("ready");
        effects(client);
    };
    give(&mut client, NOW);
    give(&mut client, NOW + 2_000);
    assert_eq!(client.poll_timeout(), Some(NOW + SUSPECT_AFTER_MS));
    client.handle_timeout(NOW + SUSPECT_AFTER_MS);
    let Some(Frame::Ping(ping)) = written(&effects(&mut client)).pop() else { panic!("is asked") };
    let pong = Pong { t: ping.t, now: NOW, ep: 0, role: None, tok: None, tok_x: None };
    client.handle_frame(connection, pong.into(), NOW + 4_000);
    assert_eq!(client.poll_timeout(), Some(NOW + 4_000 + PING_AFTER_MS), "it is there, only slow");
    give(&mut client, NOW + 5_000);
    client.handle_timeout(NOW + 5_000 + SUSPECT_AFTER_MS);
    client.handle_timeout(NOW + 5_000 + SUSPECT_AFTER_MS + PONG_MS);
    assert!(effects(&mut client).contains(&SessionEffect::Lost));
}

#[test]
fn a_draining_relay_is_left_when_the_next_session_is_open() {
    let (mut client, _, old) = logged_in();
    let away = GoAway { code: "draining".into(), after_ms: 5_000, alt: Vec::new() };
    client.handle_frame(old, away.into(), NOW + 1);
    let at = client.poll_timeout().expect("moves");
    assert!(at <= NOW + 5_001);
    client.handle_timeout(at);
    assert!(client.is_ready(), "the old session stays");
    assert_eq!(connections(&effects(&mut client)).len(), 1);
}

#[test]
fn with_another_relay_lost_a_long_pause_ends_but_not_one_that_the_relay_asked_for() {
    let mut away = client(true, true);
    away.start(NOW);
    let mut now = NOW;
    let until = loop {
        away.handle_timeout(now);
        for (connection, _) in connections(&effects(&mut away)) {
            away.handle_closed(connection, None, now);
        }
        match away.state() {
            SessionState::Waiting { until, .. } if until > now + 5_000 => break until,
            _ => now = away.poll_timeout().expect("goes on").max(now + 1),
        }
    };
    away.hurry(now);
    let SessionState::Waiting { until: hurried, .. } = away.state() else { panic!("{:?}", away.state()) };
    assert!(hurried < until && hurried <= now + 1_000);

    let mut refused = client(true, true);
    refused.start(NOW);
    let (connection, _) = connections(&effects(&mut refused))[0];
    let refuse = Refuse { code: Code::RateLimited, retry_ms: Some(90_000), text: None };
    refused.handle_connected(connection, NOW);
    refused.handle_frame(connection, refuse.into(), NOW);
    let before = refused.state();
    refused.hurry(NOW);
    assert_eq!(refused.state(), before);
}

#[test]
fn a_refusal_waits_as_long_as_the_relay_says() {
    let mut client = client(true, true);
    client.start(NOW);
    let (connection, _) = connections(&effects(&mut client))[0];
    client.handle_connected(connection, NOW);
    let refuse = Refuse { code: Code::RateLimited, retry_ms: Some(90_000), text: None };
    client.handle_frame(connection, refuse.into(), NOW);
    let SessionState::Waiting { until, code } = client.state() else { panic!("{:?}", client.state()) };
    assert!(until >= NOW + 90_000);
    assert_eq!(code, Some(Code::RateLimited));
}

#[test]
fn the_header_beats_the_frame() {
    let recorded = crate::testing::bytes(&crate::testing::vectors_v2()["sendFrame"]["bytes"]);
    let Ok(Frame::Send(good)) = Frame::decode(&recorded, FramePhase::Open) else { panic!("a SEND") };
    let alice: Key = identity("alice").public().into();
    assert!(check_send(&good, &alice, NOW).is_ok_and(|envelope| envelope.verify().is_ok()));
    let header = check_send(&good, &alice, NOW).expect("good").header;
    let cases = [
        (Send { id: Bin([1; 16]).into(), ..good.clone() }, Code::BadRequest),
        (Send { to: Target::Key(Bin([1; 32])), ..good.clone() }, Code::BadRequest),
        (Send { tt: Some(Bin([1; 8])), ..good.clone() }, Code::BadRequest),
        (Send { ttl: u64::MAX, ..good.clone() }, Code::BadRequest),
        (Send { env: Blob(vec![0x90]), ..good.clone() }, Code::BadRequest),
        (Send { env: Blob(vec![0; 262_145]), ..good.clone() }, Code::TooLarge),
    ];
    for (bad, code) in cases {
        assert_eq!(check_send(&bad, &alice, NOW).map(|e| e.header), Err(code));
    }
    let mallory: Key = identity("carol").public().into();
    assert_eq!(check_send(&good, &mallory, NOW).map(|e| e.header), Err(Code::BadSignature));
    let late = check_send(&good, &alice, header.expires).map(|e| e.header);
    assert_eq!(late, Err(Code::Expired));
    let to_self = Send { to: Target::Key(alice), ..good };
    assert!(check_send(&to_self, &alice, NOW).is_ok());
}
