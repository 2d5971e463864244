//! What a crash may not lose or double: the file is reopened after each step, without being closed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use instar_outbound::{
    Channel, ChannelId, Cleared, Latch, Moment, Origin, OutboundMessage, Pel, PelConfig, Recipient,
    RecipientKind, ReplyTarget, SendFlags, SendGateway, SendOutcome,
};
use threadline::delivery::{DEFAULT_TTL_MS, Delivery, DeliveryState, Evidence};
use threadline::limits::Limits;
use threadline::{Fingerprint, MessageId, ThreadKey, TrustLevel};

use super::*;

const NOW: i64 = 1_768_478_400_000;

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&path(dir.path())).expect("open");
        Self { dir, store }
    }

    /// What a killed process leaves: the bytes of the files at this moment.
    fn killed(&self) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        for entry in std::fs::read_dir(self.dir.path()).expect("list") {
            let entry = entry.expect("entry");
            if entry.file_name().to_string_lossy().ends_with("-shm") {
                continue;
            }
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copy");
        }
        let store = Store::open(&path(dir.path())).expect("reopen");
        Self { dir, store }
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("threadline.sqlite")
}

fn peer(n: u8) -> Fingerprint {
    Fingerprint::from_bytes([n; 16])
}

fn key(n: u8, thread: &str) -> ThreadKey {
    ThreadKey { peer: peer(n), thread: thread.parse().expect("id") }
}

fn id(text: &str) -> MessageId {
    text.parse().expect("id")
}

fn entry(n: u8, message: &str) -> SpoolEntry {
    SpoolEntry {
        relay: "ws://relay".into(),
        from: peer(n),
        message_id: id(message),
        thread_id: "t1".parse().ok(),
        transport: "relay",
        envelope: format!("{{\"messageId\":\"{message}\"}}").into_bytes(),
    }
}

fn inbound(n: u8, message: &str, body: &str) -> Inbound {
    Inbound {
        spool_seq: None,
        key: key(n, "t1"),
        peer_name: "bob".into(),
        id: id(message),
        kind: "chat".into(),
        body: body.into(),
        subject: "(no subject)".into(),
        in_reply_to: None,
        created_at: NOW,
        transport: "relay".into(),
        auth: Auth::Transport,
        trust: TrustLevel::Verified,
        state: MessageState::Stored,
        reason: None,
        approval: None,
        windows: vec![Limits::default().probe(&peer(n), TrustLevel::Verified)],
    }
}

fn cleared(text: &str) -> Cleared<OutboundMessage> {
    let gateway = SendGateway::new(Arc::new(Pel::new(PelConfig::default(), Arc::new(|_: &str| Vec::new()))));
    gateway.register(Channel::threadline());
    let message = OutboundMessage {
        text: text.into(),
        subject: None,
        target: ReplyTarget {
            channel: ChannelId::THREADLINE,
            recipient: Recipient {
                kind: RecipientKind::Agent,
                id: peer(1).to_string(),
                trust: None,
                own_values: Vec::new(),
            },
            conversation: None,
        },
        origin: Origin::Threadline,
        session_id: None,
        flags: SendFlags::default(),
        idempotency_key: None,
    };
    let moment = Moment { now_ms: NOW, verdict_id: uuid::Uuid::nil(), latch: Latch::Open };
    let SendOutcome::Cleared(cleared) = gateway.review(message, &moment, &[]) else { panic!("not cleared") };
    cleared
}

fn draft(message: &str) -> OutboundDraft {
    OutboundDraft {
        key: key(1, "t1"),
        peer_name: "bob".into(),
        id: id(message),
        kind: "chat".into(),
        subject: "(no subject)".into(),
        in_reply_to: None,
        auth: Auth::Transport,
        trust: TrustLevel::Verified,
        author_session: None,
        origin_topic_id: None,
        idempotency_key: None,
        windows: Vec::new(),
        delivery: Delivery::new(NOW, DEFAULT_TTL_MS, true),
    }
}

async fn send(store: &Store, draft: OutboundDraft, text: &str) -> Result<Queued, StoreError> {
    store.enqueue(cleared(text), draft, |m| Ok(format!("{{\"payload\":\"{}\"}}", m.text)), NOW).await
}

#[tokio::test]
async fn an_acknowledged_envelope_survives_and_is_ingested_once() {
    let bench = Bench::new();
    let put = bench.store.spool_put(vec![entry(1, "m1")], NOW).await.expect("put");
    let [Spooled::New(seq)] = put[..] else { panic!("{put:?}") };
    let bench = bench.killed();
    let due = bench.store.spool_due(NOW, 10).await.expect("due");
    assert_eq!(due.iter().map(|r| r.seq).collect::<Vec<_>>(), [seq]);

    let mut message = inbound(1, "m1", "hello");
    message.spool_seq = Some(seq);
    let accepted =
        bench.store.accept(message.clone(), ApprovalQueueLimits::default(), NOW).await.expect("accept");
    assert!(matches!(accepted, Accepted::New { collision: false, .. }));
    let bench = bench.killed();
    assert!(bench.store.spool_due(NOW, 10).await.expect("due").is_empty());
    assert_eq!(bench.store.unrouted(10).await.expect("unrouted").len(), 1);
    assert!(bench.store.is_seen(peer(1), id("m1")).await.expect("seen"));
    assert_eq!(bench.store.spool_put(vec![entry(1, "m1")], NOW).await.expect("again"), [Spooled::Known]);
    let again = bench.store.accept(message, ApprovalQueueLimits::default(), NOW).await.expect("accept");
    assert_eq!(again, Accepted::Duplicate);
    assert_eq!(bench.store.unrouted(10).await.expect("unrouted").len(), 1);
}

#[tokio::test]
async fn a_postponed_row_holds_back_its_sender_and_nobody_else() {
    let bench = Bench::new();
    for (n, message) in [(1, "a"), (1, "b"), (2, "c")] {
        bench.store.spool_put(vec![entry(n, message)], NOW).await.expect("put");
    }
    let due = bench.store.spool_due(NOW, 10).await.expect("due");
    bench.store.spool_postpone(due[0].seq, NOW + 1000, "rate-limited").await.expect("postpone");
    let ids = |rows: Vec<SpoolRow>| rows.iter().map(|r| r.message_id.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(bench.store.spool_due(NOW, 10).await.expect("due")), ["c"]);
    assert_eq!(ids(bench.killed().store.spool_due(NOW + 1000, 10).await.expect("due")), ["a", "b", "c"]);
}

#[tokio::test]
async fn a_refused_approval_stores_no_message() {
    let bench = Bench::new();
    let queue = ApprovalQueueLimits { pending: 1, pending_per_peer: 1, first_contacts: 1 };
    for (n, message) in [(1, "a"), (2, "b")] {
        let mut held = inbound(n, message, "hi");
        held.state = MessageState::Held;
        held.approval = Some(ApprovalDraft {
            id: message.into(),
            kind: ApprovalKind::FirstContact,
            peer: peer(n),
            message_id: Some(id(message)),
            thread_id: None,
            subject: String::new(),
            preview: "hi".into(),
            details: serde_json::Value::Null,
            expires_at: NOW + 1000,
        });
        let result = bench.store.accept(held, queue, NOW).await;
        assert_eq!(result.is_ok(), n == 1, "{result:?}");
    }
    assert!(!bench.store.is_seen(peer(2), id("b")).await.expect("seen"));
    let expired = bench.killed().store.expire_approvals(NOW + 1000).await.expect("expire");
    assert_eq!(expired.len(), 1);
    let Decided::Now(_) =
        bench.store.decide("a", ApprovalStatus::Approved, "owner", NOW).await.expect("decide")
    else {
        panic!("not decided")
    };
    let twice = bench.store.decide("a", ApprovalStatus::Rejected, "owner", NOW).await.expect("decide");
    assert!(matches!(twice, Decided::Before(_)));
}

#[tokio::test]
async fn text_in_the_outbox_survives_and_a_thread_keeps_its_order() {
    let bench = Bench::new();
    for message in ["o1", "o2"] {
        assert_eq!(send(&bench.store, draft(message), message).await.expect("send"), Queued::New);
    }
    let bench = bench.killed();
    let due = bench.store.outbox_due(NOW, 8).await.expect("due");
    assert_eq!(due.iter().map(|r| r.id.to_string()).collect::<Vec<_>>(), ["o1"], "one at a time");
    let mut row = due[0].delivery.clone().expect("delivery");
    row.delivery.attempted(NOW);
    row.delivery.learn(Evidence::RelayQueued { ours: false }, NOW);
    bench.store.set_delivery(row, None, true).await.expect("sent");
    let bench = bench.killed();
    let due = bench.store.outbox_due(NOW, 8).await.expect("due");
    assert_eq!(due.iter().map(|r| r.id.to_string()).collect::<Vec<_>>(), ["o2"]);

    // A message of the peer on the thread confirms what the relay had confirmed, and nothing else.
    bench.store.accept(inbound(1, "r1", "yes"), ApprovalQueueLimits::default(), NOW).await.expect("reply");
    let state =
        |id: MessageId| async { bench.store.delivery(peer(1), id).await.expect("read").expect("row") };
    assert_eq!(state(id("o1")).await.delivery.state, DeliveryState::Delivered);
    assert_eq!(state(id("o2")).await.delivery.state, DeliveryState::Pending);
    assert_eq!(bench.store.check_chain(key(1, "t1")).await.expect("chain"), ChainCheck::Valid);
}

#[tokio::test]
async fn what_carries_sealed_mail_is_for_a_relay() {
    let bench = Bench::new();
    for (n, version) in [(1, "2"), (2, "1")] {
        let fields = serde_json::json!({"v": version, "threadId": "tl2-0011", "payload": "AAAA"});
        bench.store.enqueue_carried(peer(n), id("m"), fields.to_string(), NOW).await.expect("queued");
    }
    send(&bench.store, draft("text"), "hello").await.expect("queued");
    let rows = bench.store.outbox_due(NOW, 10).await.expect("rows");
    let relayed: Vec<_> = rows.iter().filter(|row| row.is_for_relay()).map(|row| row.peer).collect();
    assert_eq!((rows.len(), relayed), (3, vec![peer(1)]));
}

#[tokio::test]
async fn one_reply_per_message_and_one_row_per_idempotency_key() {
    let bench = Bench::new();
    bench.store.accept(inbound(1, "q", "question?"), ApprovalQueueLimits::default(), NOW).await.expect("in");
    let answer = |message: &str| OutboundDraft { in_reply_to: Some(id("q")), ..draft(message) };
    assert!(!bench.store.is_answered(peer(1), id("q")).await.expect("asked"));
    send(&bench.store, answer("a1"), "first").await.expect("first");
    assert!(bench.store.is_answered(peer(1), id("q")).await.expect("asked"));
    let second = send(&bench.killed().store, answer("a2"), "second").await;
    assert!(matches!(second, Err(StoreError::AlreadyAnswered { .. })), "{second:?}");

    let keyed = |message: &str| OutboundDraft { idempotency_key: Some("k".into()), ..draft(message) };
    send(&bench.store, keyed("k1"), "once").await.expect("once");
    let Queued::Existing(earlier) = send(&bench.killed().store, keyed("k2"), "once").await.expect("again")
    else {
        panic!("doubled")
    };
    assert_eq!(earlier.id, id("k1"));
}

#[tokio::test]
async fn a_changed_body_breaks_the_chain_and_a_deleted_one_does_not() {
    let bench = Bench::new();
    for (message, body) in [("m1", "one"), ("m2", "two apples"), ("m3", "three")] {
        bench.store.accept(inbound(1, message, body), ApprovalQueueLimits::default(), NOW).await.expect("in");
    }
    assert_eq!(bench.store.search("apples", 10).await.expect("search").len(), 1);
    let tampered = bench.killed();
    tampered
        .store
        .db
        .write(|c| -> Result<(), StoreError> {
            c.execute("UPDATE messages SET body = 'forged' WHERE message_id = 'm2'", [])?;
            Ok(())
        })
        .await
        .expect("tamper");
    assert_eq!(tampered.store.check_chain(key(1, "t1")).await.expect("chain"), ChainCheck::BrokenAt(2));

    assert_eq!(bench.store.delete_thread(key(1, "t1"), NOW).await.expect("delete"), 3);
    assert_eq!(bench.store.check_chain(key(1, "t1")).await.expect("chain"), ChainCheck::Valid);
    assert!(bench.store.thread(key(1, "t1")).await.expect("thread").is_none());
    assert!(bench.store.search("apples", 10).await.expect("search").is_empty());
    assert!(bench.store.unrouted(10).await.expect("unrouted").is_empty());
}

#[tokio::test]
async fn the_same_thread_id_of_another_peer_is_another_conversation() {
    let bench = Bench::new();
    bench.store.accept(inbound(1, "m", "mine"), ApprovalQueueLimits::default(), NOW).await.expect("in");
    let other = bench.store.accept(inbound(2, "m", "theirs"), ApprovalQueueLimits::default(), NOW).await;
    assert!(matches!(other.expect("in"), Accepted::New { collision: true, .. }));
    let (messages, total) = bench.store.history(key(2, "t1"), None, 10).await.expect("history");
    assert_eq!((messages.len(), total, messages[0].body.as_deref()), (1, 1, Some("theirs")));
    assert_eq!(bench.store.peers_of_thread("t1".parse().expect("id")).await.expect("peers").len(), 2);
}

#[tokio::test]
async fn a_spawn_is_reserved_once() {
    let bench = Bench::new();
    let row = LedgerRow {
        event_id: "e1".into(),
        key: key(1, "t1"),
        nonce: vec![7; 32],
        spawned_at: NOW,
        status: LedgerStatus::Spawning,
        session_id: None,
    };
    assert!(bench.store.reserve_spawn(row.clone()).await.expect("first"));
    let bench = bench.killed();
    assert!(!bench.store.reserve_spawn(row.clone()).await.expect("second"));
    let yesterday = LedgerRow { event_id: "e0".into(), spawned_at: NOW - 86_400_001, ..row.clone() };
    let other = LedgerRow { event_id: "e2".into(), key: key(2, "t1"), ..row.clone() };
    for row in [yesterday, other] {
        assert!(bench.store.reserve_spawn(row).await.expect("reserved"));
    }
    let figures = async || bench.store.ledger_figures(row.key.peer, NOW).await.expect("figures");
    assert_eq!(figures().await, LedgerFigures { of_peer_today: 1, in_flight: 3, rows: 3 });
    assert!(bench.store.set_spawn("e1", LedgerStatus::Failed, Some("dead"), None, NOW).await.expect("fail"));
    assert!(!bench.store.set_spawn("e1", LedgerStatus::Verified, None, None, NOW).await.expect("terminal"));
    assert_eq!(figures().await, LedgerFigures { of_peer_today: 1, in_flight: 2, rows: 3 });
}

#[tokio::test]
async fn the_next_look_at_the_spool_is_when_it_has_a_row() {
    let bench = Bench::new();
    assert_eq!(bench.store.spool_next_due().await.expect("next"), None);
    for message in ["a", "b"] {
        bench.store.spool_put(vec![entry(1, message)], NOW).await.expect("put");
    }
    let due = bench.store.spool_due(NOW, 10).await.expect("due");
    bench.store.spool_postpone(due[0].seq, NOW + 10_000, UNKNOWN_SENDER).await.expect("postpone");
    assert!(bench.store.spool_due(NOW, 10).await.expect("due").is_empty());
    assert_eq!(bench.store.spool_next_due().await.expect("next"), Some(NOW + 10_000), "b waits behind a");
}

#[tokio::test]
async fn a_pinned_key_makes_due_what_waited_for_it() {
    let bench = Bench::new();
    let sender = threadline::identity::Identity::from_seed(&[3; 32]);
    let sealed = SpoolEntry { from: sender.fingerprint(), ..entry(1, "a") };
    bench.store.spool_put(vec![sealed, entry(2, "b")], NOW).await.expect("put");
    for row in bench.store.spool_due(NOW, 10).await.expect("due") {
        bench.store.spool_postpone(row.seq, NOW + 900_000, UNKNOWN_SENDER).await.expect("postpone");
    }
    let pinned = bench.store.pin_key(sender.fingerprint(), *sender.public(), "registry", NOW + 1).await;
    assert_eq!(pinned.expect("pin"), threadline::identity::PinOutcome::New);
    let due = bench.store.spool_due(NOW + 1, 10).await.expect("due");
    assert_eq!(due.iter().map(|row| row.message_id.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[tokio::test]
async fn the_resend_of_a_refused_message_is_looked_at_again() {
    let bench = Bench::new();
    bench.store.spool_put(vec![entry(1, "a")], NOW).await.expect("put");
    let seq = bench.store.spool_due(NOW, 10).await.expect("due")[0].seq;
    bench.store.spool_failed(seq, NOW, "internal").await.expect("failed");
    bench.store.spool_refuse(seq, "clock-skew").await.expect("refuse");
    let again = bench.store.spool_put(vec![entry(1, "a")], NOW + 5_000).await.expect("again");
    assert_eq!(again, [Spooled::New(seq)]);
    let due = bench.store.spool_due(NOW + 5_000, 10).await.expect("due");
    assert_eq!((due[0].received_at, due[0].attempts), (NOW + 5_000, 0));
    assert_eq!(bench.store.spool_put(vec![entry(1, "a")], NOW).await.expect("waiting"), [Spooled::Known]);
    bench.store.spool_refuse(seq, "bad-signature").await.expect("refuse");
    assert_eq!(bench.store.spool_put(vec![entry(1, "a")], NOW).await.expect("for good"), [Spooled::Known]);
}

#[tokio::test]
async fn a_decision_about_a_held_message_and_its_effect_are_one() {
    let bench = Bench::new();
    for (message, status, left) in [
        ("m1", ApprovalStatus::Approved, (MessageState::Stored, Some(APPROVED))),
        ("m2", ApprovalStatus::Rejected, (MessageState::Rejected, Some("owner"))),
    ] {
        let mut held = inbound(1, message, message);
        held.state = MessageState::Held;
        held.approval = Some(ApprovalDraft {
            id: format!("a-{message}"),
            kind: ApprovalKind::Message,
            peer: peer(1),
            message_id: Some(id(message)),
            thread_id: "t1".parse().ok(),
            subject: String::new(),
            preview: message.into(),
            details: serde_json::json!({}),
            expires_at: NOW + 1_000,
        });
        bench.store.accept(held, ApprovalQueueLimits::default(), NOW).await.expect("accept");
        let decided = bench
            .store
            .decide_inbound(&format!("a-{message}"), status, false, "owner", NOW)
            .await
            .expect("decide");
        assert!(matches!(decided, Decided::Now(_)), "{decided:?}");
        let after = bench.killed();
        let kept =
            after.store.message(peer(1), id(message), Direction::In).await.expect("read").expect("row");
        assert_eq!((kept.state, kept.reason.as_deref()), left);
    }
    bench.store.set_queued(key(1, "t1"), id("m1"), 2).await.expect("queued");
    let queued = bench.store.queued_of(key(1, "t1")).await.expect("queued");
    assert_eq!(queued[0].reason.as_deref(), Some(APPROVED), "until it is answered");
    assert_eq!(bench.store.thread(key(1, "t1")).await.expect("read").expect("row").similar_turns, 2);
}
