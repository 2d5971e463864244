//! Sealed mail over real sockets and a real store, with a relay that runs the relay's own session machine.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use ed25519_dalek::{Signer as _, SigningKey};
use threadline::delivery::{Delivery, DeliveryState};
use threadline::identity::{Identity, PublicIdentity};
use threadline::v2::content::ReceiptStatus;
use threadline::v2::frames::{FrameBuffer, FramePhase, Visibility};
use threadline::v2::login::QuicAddress;
use threadline::v2::opened::{OpenedMessage, message_id};
use threadline::v2::session::{RelaySession, RelayStep, ResolveOutcome};
use threadline::v2::{Bin, Id, Key};
use threadline::{MessageId, ThreadKey, TrustLevel};
use threadline_net::quic::{QuicConnection, QuicError};
use threadline_net::sealed::{
    Introduction, SealedDeps, SealedDraft, SealedEvent, SealedHandle, SealedRelay, Standing, ask_relay,
    run_sealed,
};
use threadline_net::store::{Auth, OutboundDraft, Queued, SpoolRow, Store};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::node::{cleared, now};
use super::relay_script::LIMIT;
use super::sealed_relay::{Disk, HOST, TestRelay, answer, deliveries, welcome};

/// Twenty seconds in one: retries come as they would, only sooner.
fn hurried() -> i64 {
    static START: LazyLock<(Instant, i64)> = LazyLock::new(|| (Instant::now(), now()));
    START.1 + 20 * i64::try_from(START.0.elapsed().as_millis()).expect("in range")
}

/// The same relay over QUIC.
fn start_quic(seed: u8) -> TestRelay {
    let signer = SigningKey::from_bytes(&[seed; 32]);
    let key: Key = Identity::from_seed(&[seed; 32]).public().into();
    let endpoint = super::quic_script::endpoint(&[seed; 32]);
    let port = endpoint.local_addr().expect("address").port();
    let disk = Arc::new(Mutex::new(Disk::default()));
    let (shared, woken) = (Arc::clone(&disk), Arc::new(watch::channel(0_u64).0));
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Some(incoming) = endpoint.accept().await {
            let (disk, woken, signer) = (Arc::clone(&shared), Arc::clone(&woken), signer.clone());
            connections.spawn(async move {
                let connection = incoming.await.ok()?;
                serve_quic(connection, key, signer, disk, woken).await
            });
        }
    });
    let quic = vec![QuicAddress { host: HOST.into(), port }];
    TestRelay {
        relay: SealedRelay { name: "quic".into(), url: None, quic, host: HOST.into(), key, remember: true },
        disk,
        task,
    }
}

async fn serve_quic(
    connection: quinn::Connection,
    key: Key,
    signer: SigningKey,
    disk: Arc<Mutex<Disk>>,
    woken: Arc<watch::Sender<u64>>,
) -> Option<()> {
    let now = now().unsigned_abs();
    let client = super::quic_script::client_key(&connection);
    let session = Arc::new(tokio::sync::Mutex::new(RelaySession::quic(key, client, now)));
    let mut tasks = tokio::task::JoinSet::new();
    let (shared, shelf, mut changes) = (Arc::clone(&session), Arc::clone(&disk), woken.subscribe());
    let delivering = connection.clone();
    tasks.spawn(async move {
        let mut stream = None;
        loop {
            let frames = deliveries(&mut *shared.lock().await, &mut shelf.lock().expect("lock"), now);
            for frame in frames {
                if stream.is_none() {
                    stream = Some(delivering.open_uni().await.ok()?);
                }
                stream.as_mut()?.write_all(&frame.encode()).await.ok()?;
            }
            changes.changed().await.ok()?;
        }
    });
    loop {
        let (mut send, mut receive) = connection.accept_bi().await.ok()?;
        let (session, disk, woken, signer) =
            (Arc::clone(&session), Arc::clone(&disk), Arc::clone(&woken), signer.clone());
        tasks.spawn(async move {
            let mut buffer = FrameBuffer::default();
            while let Ok(Some(chunk)) = receive.read_chunk(65_536, true).await {
                buffer.extend(&chunk.bytes);
                while let Some(frame) = buffer.next(FramePhase::Open).expect("a frame of ours") {
                    let mut session = session.lock().await;
                    let mut pending: VecDeque<RelayStep> = session.handle_frame(frame, now).into();
                    while let Some(step) = pending.pop_front() {
                        let answer = match step {
                            RelayStep::Write(frame) => Some(*frame),
                            RelayStep::Close(_) => return None,
                            RelayStep::Login(_) | RelayStep::WorkDone(_) => {
                                let signed = |text: &[u8]| signer.sign(text).to_bytes();
                                pending.extend(session.welcome(welcome(key, now), signed));
                                None
                            }
                            RelayStep::Frame(frame) => {
                                let from = session.open().map(|(key, ..)| *key)?;
                                answer(from, *frame, &mut session, &mut disk.lock().expect("lock"), now)
                            }
                        };
                        if let Some(frame) = answer {
                            send.write_all(&frame.encode()).await.ok()?;
                        }
                    }
                    woken.send_modify(|count| *count += 1);
                }
            }
            Some(())
        });
    }
}

struct Party {
    key: Key,
    handle: SealedHandle,
    store: Store,
    events: mpsc::Receiver<SealedEvent>,
    task: JoinHandle<()>,
    dir: tempfile::TempDir,
    relays: Vec<SealedRelay>,
    seed: u8,
}

impl Party {
    async fn start(seed: u8, relays: &[&TestRelay]) -> Self {
        Self::with_clock(seed, relays, now).await
    }

    async fn with_clock(seed: u8, relays: &[&TestRelay], clock: fn() -> i64) -> Self {
        let addresses: Vec<_> = relays.iter().map(|relay| relay.relay.clone()).collect();
        let dir = tempfile::tempdir().expect("dir");
        let party = Self::at(dir, seed, addresses, clock).await;
        for relay in relays {
            tokio::time::timeout(LIMIT, relay.has_keys_of(party.key)).await.expect("keys in time");
        }
        party
    }

    async fn at(dir: tempfile::TempDir, seed: u8, relays: Vec<SealedRelay>, clock: fn() -> i64) -> Self {
        let store = Store::open(&dir.path().join("threadline.sqlite")).expect("store");
        let identity = Arc::new(Identity::from_seed(&[seed; 32]));
        let key = identity.public().into();
        let (events_tx, events) = mpsc::channel(1_000);
        let deps = SealedDeps {
            identity,
            store: store.clone(),
            device_name: "test".into(),
            introduce: Arc::new(|| Introduction {
                name: "test".into(),
                capabilities: vec!["tl2".into()],
                visibility: Visibility::Unlisted,
                listed: false,
            }),
            relays: watch::channel(relays.clone()).1,
            standing: Arc::new(|_: &Key| Standing::Contact),
            events: events_tx,
            now: clock,
            link: None,
        };
        let (handle, future) = run_sealed(deps, CancellationToken::new());
        let mut status = handle.watch_status();
        let task = tokio::spawn(future);
        let ready = status.wait_for(|all| !all.is_empty() && all.iter().all(|s| s.state == "ready"));
        tokio::time::timeout(LIMIT, ready).await.expect("ready in time").expect("runs");
        Self { key, handle, store, events, task, dir, relays, seed }
    }

    /// Stopped at whatever it waits for, and started again from its disk.
    async fn restart(self) -> Self {
        self.task.abort();
        let _ = self.task.await;
        Self::at(self.dir, self.seed, self.relays, now).await
    }

    async fn say(&self, to: Key, text: &str) -> Id {
        let id = uuid::Uuid::now_v7();
        let sealed = SealedDraft { need: None, ttl_ms: 604_800_000, priority: 1 };
        let queued = self.handle.submit(to, cleared(text), Self::draft(to, id), sealed).await.expect("taken");
        assert_eq!(queued, Queued::New);
        Bin(id.into_bytes())
    }

    fn draft(to: Key, id: uuid::Uuid) -> OutboundDraft {
        let peer = PublicIdentity::from_bytes(&to.0).expect("key").fingerprint();
        OutboundDraft {
            key: ThreadKey { peer, thread: "lunch".parse().expect("thread") },
            peer_name: "b".into(),
            id: MessageId::from_uuid(id),
            kind: "chat".into(),
            subject: "lunch".into(),
            in_reply_to: None,
            auth: Auth::E2e,
            trust: TrustLevel::Verified,
            author_session: None,
            origin_topic_id: None,
            idempotency_key: Some(format!("key-{id}")),
            windows: Vec::new(),
            delivery: Delivery::new(now(), 604_800_000, true),
        }
    }

    /// What the thread store knows about a message of this party.
    async fn delivery(&self, to: Key, id: Id) -> Delivery {
        let peer = PublicIdentity::from_bytes(&to.0).expect("key").fingerprint();
        self.store.delivery(peer, message_id(&id)).await.expect("read").expect("stored").delivery
    }

    /// These messages lie in the spool of the inbound pipeline, once and in order.
    async fn heard(&self, texts: &[String]) {
        let all = async {
            loop {
                let rows = self.store.spool_due(i64::MAX, 1_000).await.expect("spool");
                if rows.len() >= texts.len() {
                    return rows;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let rows = tokio::time::timeout(6 * LIMIT, all).await.expect("in time");
        let read = |row: SpoolRow| OpenedMessage::from_bytes(&row.envelope).expect("readable").text;
        assert_eq!(rows.into_iter().map(read).collect::<Vec<_>>(), texts, "once and in order");
    }

    async fn event(&mut self, wanted: impl Fn(&SealedEvent) -> bool) {
        let found = async {
            while let Some(event) = self.events.recv().await {
                if wanted(&event) {
                    return;
                }
            }
            panic!("stopped");
        };
        tokio::time::timeout(6 * LIMIT, found).await.expect("in time");
    }

    async fn confirmed(&mut self, id: Id) {
        self.event(|event| matches!(event, SealedEvent::Delivery(c) if c.id == id && c.confirmed)).await;
    }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn messages_travel_sealed_and_are_confirmed_by_their_peer() {
    let relay = TestRelay::start(50).await;
    let mut alice = Party::start(1, &[&relay]).await;
    let bob = Party::start(2, &[&relay]).await;
    let first = alice.say(bob.key, "0").await;
    bob.heard(&numbers(0..1)).await;
    alice.confirmed(first).await;
    let delivery = alice.delivery(bob.key, first).await;
    assert_eq!((delivery.state, delivery.next_retry_at), (DeliveryState::Accepted, None));
    assert!(delivery.acked_at.is_some(), "its peer has it");
    let bobs = PublicIdentity::from_bytes(&bob.key.0).expect("key").fingerprint();
    assert!(alice.store.speaks_v2(bobs).await.expect("read"), "never in clear again");
    bob.handle.receipt(alice.key, first, ReceiptStatus::Delivered).await;
    alice.event(|e| matches!(e, SealedEvent::Delivery(c) if c.state == DeliveryState::Delivered)).await;
    assert_eq!(alice.delivery(bob.key, first).await.state, DeliveryState::Delivered);
    bob.say(alice.key, "0").await;
    alice.heard(&numbers(0..1)).await;
    for text in numbers(1..40) {
        alice.say(bob.key, &text).await;
    }
    bob.heard(&numbers(0..40)).await;
    assert_eq!(alice.handle.status()[0].carrier, Some("websocket"));
}

#[tokio::test]
async fn a_process_that_is_stopped_anywhere_goes_on_from_its_disk() {
    let relay = TestRelay::start(51).await;
    let mut alice = Party::start(3, &[&relay]).await;
    let mut bob = Party::start(4, &[&relay]).await;
    for (n, text) in numbers(0..40).iter().enumerate() {
        alice.say(bob.key, text).await;
        match n % 8 {
            3 => alice = alice.restart().await,
            7 => bob = bob.restart().await,
            _ => {}
        }
    }
    bob.heard(&numbers(0..40)).await;
}

#[tokio::test]
async fn quic_carries_the_same_over_a_stream_per_thread() {
    let relay = start_quic(55);
    let mut alice = Party::start(9, &[&relay]).await;
    let bob = Party::start(10, &[&relay]).await;
    let first = alice.say(bob.key, "0").await;
    alice.confirmed(first).await;
    for text in numbers(1..40) {
        alice.say(bob.key, &text).await;
    }
    bob.heard(&numbers(0..40)).await;
    assert_eq!(alice.handle.status()[0].carrier, Some("quic"));
}

#[tokio::test]
async fn without_udp_the_session_goes_over_websocket() {
    let relay = TestRelay::start(56).await;
    let mut blocked = relay.relay.clone();
    // Nobody answers on this port.
    let silent = std::net::UdpSocket::bind((HOST, 0)).expect("bind");
    let port = silent.local_addr().expect("address").port();
    blocked.quic = vec![QuicAddress { host: HOST.into(), port }];
    let dir = tempfile::tempdir().expect("dir");
    let alice = Party::at(dir, 11, vec![blocked], now).await;
    assert_eq!(alice.handle.status()[0].carrier, Some("websocket"));
}

#[tokio::test]
async fn a_relay_with_another_key_is_not_spoken_to() {
    let relay = start_quic(57);
    let identity = Arc::new(Identity::from_seed(&[12; 32]));
    let wrong: Key = Identity::from_seed(&[58; 32]).public().into();
    let refused = QuicConnection::open(&identity, &wrong, &relay.relay.quic).await;
    assert!(matches!(refused, Err(QuicError::Connection(_))), "{refused:?}");
    QuicConnection::open(&identity, &relay.relay.key, &relay.relay.quic).await.expect("the right key");
}

#[tokio::test]
async fn a_message_is_taken_once_whatever_its_caller_repeats() {
    let relay = TestRelay::start(54).await;
    let alice = Party::start(7, &[&relay]).await;
    let bob = Party::start(8, &[&relay]).await;
    let id = uuid::Uuid::now_v7();
    let sealed = SealedDraft { need: None, ttl_ms: 604_800_000, priority: 1 };
    let first = Party::draft(bob.key, id);
    let again = OutboundDraft { id: MessageId::from_uuid(uuid::Uuid::now_v7()), ..first.clone() };
    let submit = |draft| alice.handle.submit(bob.key, cleared("0"), draft, sealed.clone());
    assert_eq!(submit(first).await.expect("taken"), Queued::New);
    let Queued::Existing(earlier) = submit(again).await.expect("known") else { panic!("one message") };
    assert_eq!(earlier.id, MessageId::from_uuid(id));
    alice.say(bob.key, "1").await;
    bob.heard(&numbers(0..2)).await;
}

#[tokio::test]
async fn a_relay_that_withholds_is_gone_around() {
    let (bad, good) = (TestRelay::start(52).await, TestRelay::start(53).await);
    let bob = Party::with_clock(6, &[&good, &bad], hurried).await;
    let mut alice = Party::with_clock(5, &[&bad, &good], hurried).await;
    let id = alice.say(bob.key, "0").await;
    bob.heard(&numbers(0..1)).await;
    alice.confirmed(id).await;
    bad.disk.lock().expect("lock").withholds = true;
    let id = alice.say(bob.key, "1").await;
    alice
        .event(|event| {
            matches!(event, SealedEvent::Delivery(c) if c.id == id && c.state == DeliveryState::Accepted)
        })
        .await;
    bob.heard(&numbers(0..2)).await;
}

#[tokio::test]
async fn receipts_that_a_relay_swallows_come_another_way() {
    let (bad, good) = (TestRelay::start(54).await, TestRelay::start(55).await);
    let bob = Party::with_clock(6, &[&bad, &good], hurried).await;
    let mut alice = Party::with_clock(5, &[&bad, &good], hurried).await;
    let id = alice.say(bob.key, "0").await;
    bob.heard(&numbers(0..1)).await;
    alice.confirmed(id).await;
    bad.disk.lock().expect("lock").withholds_from = Some(alice.key);
    for n in 1..3 {
        let id = alice.say(bob.key, &n.to_string()).await;
        bob.heard(&numbers(0..n + 1)).await;
        alice.confirmed(id).await;
    }
}

/// Answers one request with these bytes and returns its address.
async fn answers(head: &str, body: &str) -> (String, JoinHandle<()>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind((HOST, 0)).await.expect("bind");
    let base = format!("http://{}", listener.local_addr().expect("address"));
    let answer =
        format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a request");
        let mut request = [0; 1_024];
        let read = stream.read(&mut request).await.expect("read");
        assert!(request[..read].starts_with(b"GET /.well-known/threadline "));
        let _ = stream.write_all(answer.as_bytes()).await;
    });
    (base, task)
}

#[tokio::test]
async fn a_relay_says_what_it_speaks_and_only_a_404_says_nothing() {
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../../../vectors/threadline-v2.json")).expect("JSON");
    let member = &vectors["wellKnown"];
    let good = serde_json::json!({"doc": member["doc"], "sig": member["sig"]}).to_string();
    let forged = good.replace("\"g9p6", "\"h9p6");
    assert_ne!(good, forged);
    let (base, _task) = answers("200 OK", &good).await;
    let ResolveOutcome::Document(document) = ask_relay(&base).await else { panic!("a good document") };
    assert_eq!(document.relay_id, "relay-test");
    let (base, _task) = answers("404 Not Found", "").await;
    assert_eq!(ask_relay(&base).await, ResolveOutcome::NotFound);
    let large = " ".repeat(200_000);
    for (head, body) in [
        ("200 OK", forged.as_str()),
        ("200 OK", "{}"),
        ("200 OK", &large),
        ("500 Oops", &good),
        ("302 Found\r\nlocation: http://127.0.0.1:1/", ""),
    ] {
        let (base, _task) = answers(head, body).await;
        assert_eq!(ask_relay(&base).await, ResolveOutcome::Failed, "{head}");
    }
    assert_eq!(ask_relay("http://127.0.0.1:1").await, ResolveOutcome::Failed);
}
