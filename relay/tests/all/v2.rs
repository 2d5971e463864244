//! WebSocket/2 against the real program: login, custody, keys, devices, and what passes between the protocols.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use futures::{SinkExt as _, StreamExt as _};
use threadline::identity::{Identity, Purpose};
use threadline::v2::envelope::{Header, SUITE_OLM, assemble, encode_legs, thread_tag};
use threadline::v2::frames::{
    Accepted, Challenge, Custody, FORMAT_V1, Frame, FrameId, FramePhase, Hello, KeysClaim, KeysPut, Lookup,
    NotTaken, Outcome, Ping, Pow, PowDone, PresenceSet, Proof, Role, Search, Send, SignedBytes, Standing,
    Taken, Target, Via, Visibility, Watch, Welcome,
};
use threadline::v2::login::{PowPuzzle, SignedWellKnown, WellKnown, WsExchange};
use threadline::v2::objects::{DeviceCert, DeviceList, FALLBACK, ONE_TIME, Prekey, Signed};
use threadline::v2::{Bin, Blob, Code, DeviceId, Key};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::client::{Client, PATIENCE, address, agent};
use super::stores::{House, On, on_every_store};

pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("in range")
}

pub(crate) fn key(n: u8) -> Key {
    agent(n).public().into()
}

/// One machine of an identity.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) n: u8,
    pub(crate) device: u8,
    /// Devices in its list, and the list's number.
    pub(crate) list: (Vec<u8>, u64),
}

pub(crate) fn device(n: u8) -> DeviceId {
    Bin([n; 16])
}

impl Machine {
    pub(crate) fn of(n: u8) -> Self {
        Self { n, device: n, list: (vec![n], 1) }
    }

    fn objects(&self) -> (Signed<DeviceCert>, Signed<DeviceList>) {
        self.objects_for((now() - 1_000, now() + 86_400_000))
    }

    /// With a certificate for that time, Unix ms.
    fn objects_for(&self, (not_before, not_after): (u64, u64)) -> (Signed<DeviceCert>, Signed<DeviceList>) {
        let identity = agent(self.n);
        let cert = DeviceCert {
            version: 1,
            key: key(self.n),
            device: device(self.device),
            curve: Bin([9; 32]),
            name: "laptop".into(),
            not_before,
            not_after,
            seq: 7,
            caps: Vec::new(),
        };
        let list = DeviceList {
            version: 1,
            key: key(self.n),
            seq: self.list.1,
            issued_at: now(),
            devices: self.list.0.iter().copied().map(device).collect(),
            removed: Vec::new(),
        };
        (Signed::<DeviceCert>::issue(&identity, cert), Signed::<DeviceList>::issue(&identity, list))
    }

    pub(crate) fn hello(&self) -> Hello {
        self.hello_with(&self.objects())
    }

    /// With a certificate for that time, Unix ms.
    pub(crate) fn hello_for(&self, valid: (u64, u64)) -> Hello {
        self.hello_with(&self.objects_for(valid))
    }

    fn hello_with(&self, (cert, list): &(Signed<DeviceCert>, Signed<DeviceList>)) -> Hello {
        Hello {
            v: 2,
            dev: device(self.device),
            cert: Blob(cert.bytes().to_vec()),
            cs: *cert.signature(),
            list: Blob(list.bytes().to_vec()),
            ls: *list.signature(),
            name: format!("agent {}", self.n),
            fw: None,
            ver: None,
            caps: vec!["tl2".into()],
            bio: None,
            tags: Vec::new(),
            vis: None,
            listed: false,
            role: Role::Active,
            sib: Vec::new(),
            vouch: None,
            win: None,
            ep: 0,
            nov1: false,
            feat: Vec::new(),
        }
    }

    fn prekey(&self, key_id: u64, kind: u8) -> SignedBytes {
        let prekey = Prekey {
            version: 1,
            key: key(self.n),
            device: device(self.device),
            kind,
            key_id,
            curve: Bin([8; 32]),
            not_after: now() + 86_400_000,
        };
        let signed = Signed::<Prekey>::issue(&agent(self.n), prekey);
        (Blob(signed.bytes().to_vec()), *signed.signature())
    }

    pub(crate) fn keys(&self, one_time: std::ops::Range<u64>, fallback: u64) -> KeysPut {
        let (cert, list) = self.objects();
        KeysPut {
            cert: Blob(cert.bytes().to_vec()),
            cs: *cert.signature(),
            list: Blob(list.bytes().to_vec()),
            ls: *list.signature(),
            otks: one_time.map(|id| self.prekey(id, ONE_TIME)).collect(),
            fb: Some(self.prekey(fallback, FALLBACK)),
        }
    }
}

pub(crate) struct Session {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    n: u8,
    pub(crate) welcome: Option<Welcome>,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn open(at: SocketAddr) -> Socket {
    let mut request = format!("ws://{at}/v2/connect").into_client_request().expect("a URL");
    let protocol = HeaderValue::from_static("threadline.2.msgpack");
    request.headers_mut().insert("sec-websocket-protocol", protocol);
    let (socket, answer) = Box::pin(tokio_tungstenite::connect_async(request)).await.expect("connects");
    assert_eq!(answer.headers()["sec-websocket-protocol"], "threadline.2.msgpack");
    socket
}

impl Session {
    /// Proves the key and says HELLO; whatever comes then is the caller's.
    pub(crate) async fn greet(at: SocketAddr, host: &str, hello: Hello, identity: &Identity, n: u8) -> Self {
        let mut session = Self { socket: open(at).await, n, welcome: None };
        let Frame::Challenge(Challenge { n: nonce, rk, .. }) = session.frame().await.expect("open") else {
            panic!("a challenge first")
        };
        let client_nonce = Bin([n; 32]);
        let exchange =
            WsExchange { relay: rk, nonce, client_nonce, key: identity.public().into(), host: host.into() };
        let proof = Proof {
            k: exchange.key,
            cn: client_nonce,
            host: host.into(),
            s: Bin(identity.sign(&Purpose::WsAuth(&exchange))),
        };
        session.say(proof).await;
        session.say(hello).await;
        session
    }

    pub(crate) async fn log_in(at: SocketAddr, n: u8) -> Self {
        Self::log_in_as(at, Machine::of(n).hello(), n).await
    }

    pub(crate) async fn log_in_as(at: SocketAddr, hello: Hello, n: u8) -> Self {
        let mut session = Self::greet(at, "127.0.0.1", hello, &agent(n), n).await;
        session.welcomed().await;
        session
    }

    /// Unless the relay does not let it in for now.
    pub(crate) async fn try_log_in(at: SocketAddr, n: u8) -> Option<Self> {
        let mut session = Self::greet(at, "127.0.0.1", Machine::of(n).hello(), &agent(n), n).await;
        loop {
            if let Frame::Welcome(welcome) = session.frame().await.ok()? {
                session.welcome = Some(welcome);
                return Some(session);
            }
        }
    }

    async fn welcomed(&mut self) -> Welcome {
        let welcome = self.expect(|frame| match frame {
            Frame::Welcome(welcome) => Some(welcome),
            _ => None,
        });
        let welcome = welcome.await;
        self.welcome = Some(welcome.clone());
        welcome
    }

    pub(crate) async fn say(&mut self, frame: impl Into<Frame>) {
        let bytes = Bytes::from(frame.into().encode());
        self.socket.send(Message::Binary(bytes)).await.expect("sends");
    }

    /// Says it, unless the relay is gone.
    pub(crate) async fn try_say(&mut self, frame: impl Into<Frame>) {
        let _ = self.socket.send(Message::Binary(Bytes::from(frame.into().encode()))).await;
    }

    /// The next frame, or the close code.
    pub(crate) async fn frame(&mut self) -> Result<Frame, u16> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("a frame in time");
            match message {
                Some(Ok(Message::Binary(bytes))) => {
                    return Ok(Frame::decode(&bytes, FramePhase::Open).expect("a frame"));
                }
                Some(Ok(Message::Close(frame))) => return Err(frame.map_or(1005, |f| f.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(1006),
            }
        }
    }

    pub(crate) async fn expect<T>(&mut self, wanted: impl Fn(Frame) -> Option<T>) -> T {
        loop {
            let frame = self.frame().await.unwrap_or_else(|code| panic!("closed with {code}"));
            if let Some(found) = wanted(frame) {
                return found;
            }
        }
    }

    /// Everything until the connection ends, and its code.
    pub(crate) async fn end(&mut self) -> (Vec<Frame>, u16) {
        let mut frames = Vec::new();
        loop {
            match self.frame().await {
                Ok(frame) => frames.push(frame),
                Err(code) => return (frames, code),
            }
        }
    }

    /// What comes until a PING is answered.
    pub(crate) async fn rest(&mut self) -> Vec<Frame> {
        self.say(Ping { t: 77, tok: false }).await;
        let mut frames = Vec::new();
        loop {
            match self.frame().await.expect("open") {
                Frame::Pong(pong) if pong.t == 77 => return frames,
                frame => frames.push(frame),
            }
        }
    }

    pub(crate) async fn send(&mut self, to: u8, id: u8, version: u8) {
        self.say(send(self.n, to, id, version)).await;
    }

    /// The answer to the SEND with this id.
    pub(crate) async fn answer(&mut self, id: u8) -> Result<Accepted, Code> {
        self.expect(|frame| match frame {
            Frame::Accepted(answer) if answer.id == FrameId::Bin(Bin([id; 16])) => Some(Ok(answer)),
            Frame::Rejected(answer) if answer.id == FrameId::Bin(Bin([id; 16])) => Some(Err(answer.code)),
            _ => None,
        })
        .await
    }

    pub(crate) async fn delivered(&mut self) -> threadline::v2::frames::Deliver {
        self.expect(|frame| match frame {
            Frame::Deliver(deliver) => Some(deliver),
            _ => None,
        })
        .await
    }

    pub(crate) async fn take(&mut self, did: u64) {
        self.say(Taken { dids: vec![did] }).await;
    }

    pub(crate) async fn status(&mut self) -> (FrameId, Outcome) {
        self.expect(|frame| match frame {
            Frame::Status(status) => Some((status.id, status.st)),
            _ => None,
        })
        .await
    }
}

fn envelope(from: u8, to: u8, id: u8, version: u8) -> Vec<u8> {
    let created = now();
    let thread = "lunch".parse().expect("thread");
    let header = Header {
        suite: SUITE_OLM,
        from: key(from),
        to: key(to),
        device: device(from),
        id: Bin([id; 16]),
        created,
        expires: created + 3_600_000,
        tag: thread_tag(&key(from), &key(to), &thread),
        nonce: Some(Bin([version; 24])),
    };
    assemble(&agent(from), &header.to_bytes(), &encode_legs(&[]), b"nobody on the way can read this")
}

pub(crate) fn send(from: u8, to: u8, id: u8, version: u8) -> Send {
    Send {
        rid: u32::from(id),
        id: FrameId::Bin(Bin([id; 16])),
        to: Target::Key(key(to)),
        tt: None,
        fmt: 2,
        env: Blob(envelope(from, to, id, version)),
        ttl: 600,
        pri: 1,
    }
}

async fn the_document_names_the_relay_that_welcomes(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let url = format!("http://{}/.well-known/threadline", relay.at);
    let answer = reqwest::get(&url).await.expect("answers");
    assert_eq!(answer.headers()["cache-control"], "max-age=300");
    let signed: SignedWellKnown =
        serde_json::from_slice(&answer.bytes().await.expect("bytes")).expect("JSON");
    let document = WellKnown::parse(&signed).expect("signed");
    assert!(document.speaks_v2() && document.may_pin("127.0.0.1", now()));
    assert!(document.may_pin(&relay.at.to_string(), now()) && !document.may_pin("other.example", now()));
    let session = Session::log_in(relay.at, 1).await;
    let welcome = session.welcome.expect("welcome");
    assert_eq!(Some(welcome.relay), document.key());
    assert_eq!((welcome.role, welcome.lim.ttl_s, welcome.hw), (Role::Active, 2_592_000, (7, 0)));
    assert!(welcome.rs.is_some() && welcome.tok.is_some());
}

async fn who_proves_nothing_is_not_let_in(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let mut elsewhere = Session::greet(relay.at, "other.example", Machine::of(1).hello(), &agent(1), 1).await;
    let (frames, code) = elsewhere.end().await;
    assert!(
        matches!(&frames[..], [Frame::Refuse(refuse)] if refuse.code == Code::BadSignature),
        "{frames:?}"
    );
    assert_eq!(code, 4_002);
    let mut foreign = Session::greet(relay.at, "127.0.0.1", Machine::of(2).hello(), &agent(1), 1).await;
    let (frames, _) = foreign.end().await;
    assert!(matches!(&frames[..], [Frame::Refuse(refuse)] if refuse.code == Code::BadDevice), "{frames:?}");
    let mut silent = open(relay.at).await;
    silent.send(Message::text("{}")).await.expect("sends");
    let code = loop {
        match tokio::time::timeout(PATIENCE, silent.next()).await.expect("in time") {
            Some(Ok(Message::Close(Some(frame)))) => break u16::from(frame.code),
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code, 4_001);
    let plain = reqwest::get(format!("http://{}/v2/connect", relay.at)).await.expect("answers");
    assert_eq!(plain.status(), 426);
}

async fn a_message_is_stored_before_it_is_accepted_and_survives_the_relay(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    drop(Session::log_in(relay.at, 2).await);
    let mut alice = Session::log_in(relay.at, 1).await;
    for id in 1..=20 {
        alice.send(2, id, 1).await;
        let answer = alice.answer(id).await.expect("accepted");
        assert_eq!((answer.cu, answer.dup), (Custody::Durable, false));
    }
    relay.kill();
    let relay = house.relay();
    let mut alice = Session::log_in(relay.at, 1).await;
    alice.send(2, 1, 1).await;
    let again = alice.answer(1).await.expect("accepted");
    // Other relays of a cluster cannot know at once that sessions ended with the one that was killed.
    let queued = on == On::Nats || again.st == Standing::Queued;
    assert!(again.dup || queued, "sealed at another moment it counts as a version");
    let mut bob = Session::log_in(relay.at, 2).await;
    assert!(bob.welcome.as_ref().is_some_and(|welcome| welcome.q.n >= 20));
    for id in 1..=20 {
        let deliver = bob.delivered().await;
        assert_eq!(deliver.id, FrameId::Bin(Bin([id; 16])), "in the order of acceptance");
        assert_eq!((deliver.from, deliver.via, deliver.fmt), (Target::Key(key(1)), Via::V2, 2));
        bob.take(deliver.did).await;
        assert_eq!(alice.status().await, (FrameId::Bin(Bin([id; 16])), Outcome::Taken));
    }
    let rest = bob.rest().await;
    assert!(rest.len() <= 1, "nothing but the other version of the first: {rest:?}");
}

async fn a_message_sealed_anew_is_another_version_and_the_fourth_is_refused(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let mut alice = Session::log_in(relay.at, 1).await;
    let first = send(1, 2, 9, 1);
    alice.say(first.clone()).await;
    assert!(!alice.answer(9).await.expect("accepted").dup);
    alice.say(first).await;
    assert!(alice.answer(9).await.expect("accepted").dup, "the same bytes are the same message");
    for version in 2..=3 {
        alice.send(2, 9, version).await;
        assert!(!alice.answer(9).await.expect("a version").dup);
    }
    alice.send(2, 9, 4).await;
    assert_eq!(alice.answer(9).await, Err(Code::Duplicate));
    let mut bob = Session::log_in(relay.at, 2).await;
    for _ in 0..3 {
        let deliver = bob.delivered().await;
        assert_eq!(deliver.id, FrameId::Bin(Bin([9; 16])));
        bob.take(deliver.did).await;
    }
}

async fn receipts_to_correspondents_count_a_tenth(on: On) {
    let house = House::on(on);
    let relay = house.relay_with(&["limits.messages_per_minute=10"]);
    let (mut alice, mut bob) = (Session::log_in(relay.at, 1).await, Session::log_in(relay.at, 2).await);
    bob.send(1, 1, 1).await;
    bob.answer(1).await.expect("accepted");
    for id in 10..40 {
        alice.say(Send { pri: 3, ..send(1, 2, id, 1) }).await;
        alice.answer(id).await.expect("a receipt for somebody who wrote");
    }
    let mut accepted = 0;
    for id in 50..62 {
        alice.say(Send { pri: 3, ..send(1, 9, id, 1) }).await;
        accepted += usize::from(alice.answer(id).await.is_ok());
    }
    assert!((5..10).contains(&accepted), "{accepted}: to anybody else the word counts for nothing");
}

async fn a_frame_that_contradicts_its_envelope_is_refused(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let mut alice = Session::log_in(relay.at, 1).await;
    let good = send(1, 2, 1, 1);
    let mut forged = good.clone();
    let last = forged.env.0.len() - 1;
    forged.env.0[last] ^= 1;
    let wrong = [
        (Send { to: Target::Key(key(3)), ..good.clone() }, Code::BadRequest),
        (Send { tt: Some(Bin([0; 8])), ..good.clone() }, Code::BadRequest),
        (Send { ttl: 3_601, ..good.clone() }, Code::BadRequest),
        (Send { env: Blob(vec![0x95; 40]), ..good.clone() }, Code::BadRequest),
        (Send { env: Blob(envelope(2, 1, 1, 1)), ..good.clone() }, Code::BadSignature),
        (forged, Code::BadSignature),
    ];
    for (send, code) in wrong {
        alice.say(send.clone()).await;
        assert_eq!(alice.answer(1).await, Err(code), "{send:?}");
    }
    alice.say(Send { id: FrameId::Bin(Bin([5; 16])), ..good.clone() }).await;
    assert_eq!(alice.answer(5).await, Err(Code::BadRequest));
    alice.say(good).await;
    assert!(alice.answer(1).await.is_ok(), "junk under a real id burned nothing");
    let mut own = send(1, 2, 2, 1);
    own.to = Target::Key(key(1));
    alice.say(own).await;
    assert!(alice.answer(2).await.is_ok(), "a copy for our own devices");
    assert_eq!(alice.delivered().await.id, FrameId::Bin(Bin([2; 16])));
}

async fn what_is_not_taken_comes_again_or_is_dropped(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let (mut alice, mut bob) = (Session::log_in(relay.at, 1).await, Session::log_in(relay.at, 2).await);
    alice.send(2, 1, 1).await;
    let first = bob.delivered().await;
    bob.say(NotTaken { did: first.did, code: Code::Blocked }).await;
    assert_eq!(alice.status().await, (FrameId::Bin(Bin([1; 16])), Outcome::Dropped));
    alice.send(2, 2, 1).await;
    let second = bob.delivered().await;
    bob.say(NotTaken { did: second.did, code: Code::Busy }).await;
    alice.send(2, 3, 1).await;
    assert_eq!(bob.delivered().await.id, FrameId::Bin(Bin([3; 16])), "others go on");
    drop(bob);
    let mut bob = Session::log_in(relay.at, 2).await;
    assert_eq!(bob.delivered().await.id, FrameId::Bin(Bin([2; 16])), "it is still there");
}

async fn one_time_keys_are_given_out_once_also_after_a_crash(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let mut bob = Session::log_in(relay.at, 2).await;
    bob.say(Machine::of(2).keys(1..31, 31)).await;
    let ok = bob.expect(|frame| if let Frame::KeysOk(ok) = frame { Some(ok) } else { None }).await;
    assert_eq!((ok.have, ok.hw), (30, 31));
    let mut seen = std::collections::BTreeSet::new();
    let mut relay = relay;
    for round in 0..3 {
        let mut alice = Session::log_in(relay.at, 1).await;
        for rid in 0..2 {
            alice.say(KeysClaim { rid, to: Target::Key(key(2)) }).await;
            let keys =
                alice.expect(|frame| if let Frame::Keys(keys) = frame { Some(keys) } else { None }).await;
            let [(_, _, prekey, signature, kind)] = &keys.devs[..] else { panic!("one device") };
            let prekey = Signed::<Prekey>::parse(&prekey.0, &signature.0).expect("signed by its owner");
            let number = prekey.object().key_id;
            if *kind == ONE_TIME {
                assert!(seen.insert(number), "key {number} was given out twice");
            } else {
                assert_eq!(number, 31);
            }
        }
        if round < 2 {
            relay.kill();
            relay = house.relay();
        }
    }
    assert_eq!(seen.len(), 5, "the last 25 are for correspondents");
    let mut bob = Session::log_in(relay.at, 2).await;
    assert_eq!(bob.welcome.as_ref().map(|welcome| welcome.hw), Some((7, 31)));
    bob.send(1, 40, 1).await;
    bob.answer(40).await.expect("accepted");
    let mut alice = Session::log_in(relay.at, 1).await;
    alice.say(KeysClaim { rid: 9, to: Target::Key(key(2)) }).await;
    let keys = alice.expect(|frame| if let Frame::Keys(keys) = frame { Some(keys) } else { None }).await;
    assert_eq!(keys.devs[0].4, ONE_TIME, "whom its owner wrote to gets one of the last");
    alice.say(KeysClaim { rid: 10, to: Target::Key(key(99)) }).await;
    let fault = alice.expect(|frame| if let Frame::Fault(fault) = frame { Some(fault) } else { None }).await;
    assert_eq!((fault.rid, fault.code), (Some(10), Code::UnknownRecipient));
}

async fn devices_take_turns_and_the_lease_is_a_fence(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let both = (vec![11, 12], 2);
    let hello = |device: u8, role: Role, ep: u64| {
        let machine = Machine { n: 1, device, list: both.clone() };
        Hello { role, ep, ..machine.hello() }
    };
    let mut first = Session::log_in_as(relay.at, hello(11, Role::Active, 5), 1).await;
    let mut second = Session::log_in_as(relay.at, hello(12, Role::Standby, 0), 1).await;
    assert_eq!(second.welcome.as_ref().map(|w| (w.role, w.ep)), Some((Role::Standby, 5)));
    let mut sender = Session::log_in(relay.at, 2).await;
    sender.send(1, 1, 1).await;
    let delivery = first.delivered().await;
    second.say(PresenceSet { role: Some(Role::Active), ep: 4, vis: None, status: None }).await;
    let fault = second.expect(|frame| if let Frame::Fault(fault) = frame { Some(fault) } else { None }).await;
    assert_eq!(fault.code, Code::StaleEpoch);
    second.say(PresenceSet { role: Some(Role::Active), ep: 6, vis: None, status: None }).await;
    assert_eq!(second.delivered().await.did, delivery.did, "what was not taken moves");
    first.take(delivery.did).await;
    let fault = first.expect(|frame| if let Frame::Fault(fault) = frame { Some(fault) } else { None }).await;
    assert_eq!(fault.code, Code::StaleEpoch);
    first.send(2, 2, 1).await;
    assert_eq!(first.answer(2).await, Err(Code::StaleEpoch));
    second.take(delivery.did).await;
    second.send(2, 3, 1).await;
    second.answer(3).await.expect("the active one may send");
    relay.kill();
    let relay = house.relay();
    let late = Session::log_in_as(relay.at, hello(11, Role::Active, 5), 1).await;
    assert_eq!(late.welcome.map(|w| (w.role, w.ep)), Some((Role::Standby, 6)), "also after a restart");
    let mut replaced = Session::log_in_as(relay.at, hello(12, Role::Active, 6), 1).await;
    let _newer = Session::log_in_as(relay.at, hello(12, Role::Active, 6), 1).await;
    assert_eq!(replaced.end().await.1, 4_005);
    let mut far = Session::greet(relay.at, "127.0.0.1", hello(12, Role::Active, 2_000), &agent(1), 1).await;
    assert!(matches!(&far.end().await.0[..], [Frame::Refuse(refuse)] if refuse.code == Code::BadRequest));
}

async fn old_clients_and_new_nodes_write_to_each_other(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let mut node = Session::log_in(relay.at, 1).await;
    let mut old = Client::log_in(relay.at, 2).await;
    old.send(1, "from-v1").await;
    let deliver = node.delivered().await;
    assert_eq!((deliver.fmt, deliver.via), (FORMAT_V1, Via::V1));
    assert_eq!(deliver.from, Target::Address(Bin(*agent(2).fingerprint().as_bytes())));
    assert_eq!(deliver.id, FrameId::Text("from-v1".into()));
    node.take(deliver.did).await;
    assert_eq!(old.next("ack").await["status"], "delivered");
    let clear = super::client::envelope(1, 2, "from-v2", "e30=");
    let frame = Send {
        rid: 1,
        id: FrameId::Text("from-v2".into()),
        to: Target::Address(Bin(*agent(2).fingerprint().as_bytes())),
        tt: None,
        fmt: FORMAT_V1,
        env: Blob(clear.to_string().into_bytes()),
        ttl: 600,
        pri: 1,
    };
    node.say(Send { id: FrameId::Text("other".into()), ..frame.clone() }).await;
    node.say(frame).await;
    let refused =
        node.expect(|f| if let Frame::Rejected(refused) = f { Some(refused.code) } else { None }).await;
    assert_eq!(refused, Code::BadRequest);
    assert_eq!(old.next("message").await["envelope"], clear);
    old.ack("from-v2").await;
    assert_eq!(node.status().await, (FrameId::Text("from-v2".into()), Outcome::Taken));
    // What is sealed by v2 waits for a session that can read it.
    node.send(2, 7, 1).await;
    assert_eq!(node.answer(7).await.expect("accepted").st, Standing::Queued);
    let mut new = Session::log_in(relay.at, 2).await;
    assert_eq!(new.delivered().await.id, FrameId::Bin(Bin([7; 16])));
    node.say(Watch { keys: vec![key(2)], all: false }).await;
    let news = node.expect(|f| if let Frame::Presence(news) = f { Some(news) } else { None }).await;
    assert!(news.on && news.key == key(2));
}

async fn who_wants_no_v1_is_not_logged_in_by_it_and_who_is_private_is_not_found(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let hello =
        Hello { nov1: true, vis: Some(Visibility::Private), sib: vec![key(3)], ..Machine::of(1).hello() };
    let _node = Session::log_in_as(relay.at, hello, 1).await;
    let public = Hello { vis: Some(Visibility::Public), listed: true, ..Machine::of(2).hello() };
    let mut other = Session::log_in_as(relay.at, public, 2).await;
    let mut old = Client::connect(relay.at, 1).await;
    let challenge = old.next("challenge").await;
    let nonce =
        threadline::identity::LoginNonce::parse(challenge["nonce"].as_str().expect("text")).expect("nonce");
    let metadata = threadline::v1::frames::Metadata::default();
    let auth = threadline::v1::frames::Auth::new(
        &agent(1),
        &nonce,
        metadata,
        threadline::v1::frames::Visibility::Unlisted,
    );
    old.say(threadline::v1::frames::ClientFrame::Auth(Box::new(auth)).to_text()).await;
    assert_eq!(old.next("auth_error").await["code"], "auth_failed");
    other.say(Lookup { rid: 1, to: Target::Key(key(1)) }).await;
    let fault = other.expect(|f| if let Frame::Fault(fault) = f { Some(fault) } else { None }).await;
    assert_eq!((fault.rid, fault.code), (Some(1), Code::UnknownRecipient));
    let mut sibling = Session::log_in(relay.at, 3).await;
    sibling.say(Lookup { rid: 2, to: Target::Key(key(1)) }).await;
    let looked = sibling.expect(|f| if let Frame::Looked(looked) = f { Some(looked) } else { None }).await;
    assert!(looked.on && looked.proto == [2] && looked.certs.len() == 1 && looked.list.is_some());
    sibling
        .say(Search {
            rid: 3,
            q: Some("agent".into()),
            cap: None,
            int: None,
            fw: None,
            on: None,
            cur: None,
            lim: None,
        })
        .await;
    let found = sibling.expect(|f| if let Frame::Found(found) = f { Some(found) } else { None }).await;
    assert_eq!(found.rows.iter().map(|row| row.key).collect::<Vec<_>>(), [key(2)]);
    let mut old = Client::log_in(relay.at, 4).await;
    old.say(r#"{"type":"discover"}"#).await;
    let agents = old.next("discover_result").await["agents"].clone();
    assert_eq!(agents[0]["agentId"], address(2));
    assert_eq!(agents[0]["status"], "online");
}

async fn the_directory_is_read_page_by_page(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let mut listed = Vec::new();
    for n in 1..=5 {
        let hello = Hello { vis: Some(Visibility::Public), listed: true, ..Machine::of(n).hello() };
        listed.push(Session::log_in_as(relay.at, hello, n).await);
    }
    let mut reader = Session::log_in(relay.at, 9).await;
    let ask = |rid, q: Option<&str>, cur| Search {
        rid,
        q: q.map(str::to_owned),
        cap: None,
        int: None,
        fw: None,
        on: None,
        cur,
        lim: Some(2),
    };
    for words in [None, Some("agent")] {
        let (mut seen, mut cur, mut pages) = (Vec::new(), None, 0);
        loop {
            reader.say(ask(7, words, cur.take())).await;
            let found = reader.expect(|f| if let Frame::Found(found) = f { Some(found) } else { None }).await;
            assert_eq!((found.rid, found.total), (7, 5));
            seen.extend(found.rows.iter().map(|row| row.key));
            (cur, pages) = (found.cur, pages + 1);
            if cur.is_none() {
                break;
            }
        }
        seen.sort_unstable();
        let mut all: Vec<Key> = (1..=5).map(key).collect();
        all.sort_unstable();
        assert_eq!((seen, pages), (all, 3), "every entry once, two to a page");
    }
    reader.say(ask(8, None, None)).await;
    let first = reader.expect(|f| if let Frame::Found(found) = f { Some(found) } else { None }).await;
    for (rid, (words, cur)) in (9..).zip([(Some("agent"), first.cur), (None, Some("made-up".into()))]) {
        reader.say(ask(rid, words, cur)).await;
        let fault = reader.expect(|f| if let Frame::Fault(fault) = f { Some(fault) } else { None }).await;
        assert_eq!((fault.rid, fault.code), (Some(rid), Code::BadRequest), "a cursor is of its own query");
    }
}

async fn who_watches_everybody_hears_no_more_than_its_share(on: On) {
    let house = House::on(on);
    let relay = house.relay_with(&["limits.presence_of_all_per_minute=2"]);
    let mut everybody = Session::log_in(relay.at, 8).await;
    everybody.say(Watch { keys: Vec::new(), all: true }).await;
    let mut named = Session::log_in(relay.at, 9).await;
    named.say(Watch { keys: (1..=4).map(key).collect(), all: false }).await;
    assert!(everybody.rest().await.is_empty() && named.rest().await.is_empty());
    let mut there = Vec::new();
    for n in 1..=4 {
        let hello = Hello { vis: Some(Visibility::Public), listed: true, ..Machine::of(n).hello() };
        there.push(Session::log_in_as(relay.at, hello, n).await);
    }
    for (session, news) in [(&mut everybody, 2), (&mut named, 4)] {
        let told = session.rest().await;
        let told = told.iter().filter(|frame| matches!(frame, Frame::Presence(news) if news.on)).count();
        assert_eq!(told, news);
    }
}

/// Does the work that the relay asks `client` for.
pub(crate) async fn work_done(at: SocketAddr, client: Key, pow: Pow) -> PowDone {
    let url = format!("http://{at}/.well-known/threadline");
    let signed = reqwest::get(&url).await.expect("answers").bytes().await.expect("bytes");
    let document = WellKnown::parse(&serde_json::from_slice(&signed).expect("JSON")).expect("signed");
    let puzzle = PowPuzzle {
        epoch: pow.e.clone(),
        challenge: pow.h,
        bits: pow.bits,
        relay: document.key().expect("key"),
        client,
    };
    let solution = tokio::task::spawn_blocking(move || puzzle.search(0, u64::MAX)).await.expect("works");
    PowDone { e: pow.e, n: solution.expect("a solution") }
}

async fn a_new_identity_works_for_its_place_once(on: On) {
    let house = House::on(on);
    let relay = house.relay_with(&["sybil.tiers=true"]);
    let mut idle = Session::greet(relay.at, "127.0.0.1", Machine::of(2).hello(), &agent(2), 2).await;
    let pow = idle.expect(|f| if let Frame::Pow(pow) = f { Some(pow) } else { None }).await;
    idle.say(PowDone { e: pow.e, n: Bin([0; 8]) }).await;
    assert!(matches!(&idle.end().await.0[..], [Frame::Refuse(refuse)] if refuse.code == Code::PowRequired));

    let mut session = Session::greet(relay.at, "127.0.0.1", Machine::of(1).hello(), &agent(1), 1).await;
    let pow = session.expect(|f| if let Frame::Pow(pow) = f { Some(pow) } else { None }).await;
    assert_eq!(pow.bits, 20);
    session.say(work_done(relay.at, key(1), pow).await).await;
    session.welcomed().await;
    for id in 1..=31 {
        session.send(2, id, 1).await;
        let answer = session.answer(id).await;
        if id <= 20 {
            assert!(answer.is_ok(), "{id}: {answer:?}");
        }
    }
    drop(session);
    relay.kill();
    let relay = house.relay_with(&["sybil.tiers=true"]);
    // Work is remembered.
    let again = tokio::time::timeout(Duration::from_secs(10), Session::log_in(relay.at, 1)).await;
    assert!(again.expect("at once").welcome.is_some());
}

on_every_store!(
    the_document_names_the_relay_that_welcomes,
    who_proves_nothing_is_not_let_in,
    a_message_is_stored_before_it_is_accepted_and_survives_the_relay,
    a_message_sealed_anew_is_another_version_and_the_fourth_is_refused,
    receipts_to_correspondents_count_a_tenth,
    a_frame_that_contradicts_its_envelope_is_refused,
    what_is_not_taken_comes_again_or_is_dropped,
    one_time_keys_are_given_out_once_also_after_a_crash,
    devices_take_turns_and_the_lease_is_a_fence,
    old_clients_and_new_nodes_write_to_each_other,
    who_wants_no_v1_is_not_logged_in_by_it_and_who_is_private_is_not_found,
    the_directory_is_read_page_by_page,
    who_watches_everybody_hears_no_more_than_its_share,
    a_new_identity_works_for_its_place_once,
);
