use std::sync::Arc;

use instar_outbound::{
    Channel, ChannelId, Cleared, Latch, Moment, Origin, OutboundMessage, Pel, PelConfig, Recipient,
    RecipientKind, ReplyTarget, SendFlags, SendGateway, SendOutcome,
};
use threadline::delivery::{DEFAULT_TTL_MS, Delivery, Evidence};
use threadline::identity::Identity;
use threadline::v1::client::{ClientConfig, DeliveryEvent};
use threadline::v1::envelope::{Content, Envelope, Header, clear};
use threadline::v1::frames::{Ack, AckStatus, ClientFrame, Metadata, ServerFrame, Visibility};
use threadline::{Fingerprint, MessageId, ThreadKey, TrustLevel};
use threadline_net::store::{Auth, OutboundDraft, Store, StoreError};
use threadline_net::{LinkDeps, LinkEvent, LinkHandle, run_link};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::relay_script::{LIMIT, Relay};

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("in range")
}

struct Node {
    identity: Arc<Identity>,
    store: Store,
    link: LinkHandle,
    events: mpsc::Receiver<LinkEvent>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn start(url: &str) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("threadline.sqlite")).expect("store");
        let identity = Arc::new(Identity::from_seed(&[1; 32]));
        let config = ClientConfig {
            url: url.to_owned(),
            metadata: Metadata { name: "a".into(), ..Metadata::default() },
            visibility: Visibility::Unlisted,
            registry: None,
            watch_presence: false,
        };
        let (events_tx, events) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let deps = LinkDeps { identity: Arc::clone(&identity), store: store.clone(), events: events_tx, now };
        let (link, future) = run_link(deps, stop.clone());
        let task = tokio::spawn(future);
        link.start(config).await;
        Self { identity, store, link, events, stop, task, _dir: dir }
    }

    async fn event(&mut self, wanted: impl Fn(&LinkEvent) -> bool) -> LinkEvent {
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the link runs");
                if wanted(&event) {
                    return event;
                }
            }
        };
        tokio::time::timeout(LIMIT, search).await.expect("the event in time")
    }

    async fn enqueue(&self, id: &str, text: &str) {
        let draft = OutboundDraft {
            key: ThreadKey { peer: peer(), thread: "t1".parse().expect("id") },
            peer_name: "b".into(),
            id: id.parse().expect("id"),
            kind: "chat".into(),
            subject: "(no subject)".into(),
            in_reply_to: None,
            auth: Auth::Transport,
            trust: TrustLevel::Verified,
            author_session: None,
            origin_topic_id: None,
            idempotency_key: None,
            windows: Vec::new(),
            delivery: Delivery::new(now(), DEFAULT_TTL_MS, true),
        };
        let from = self.identity.fingerprint();
        let made = |m: &OutboundMessage| -> Result<String, StoreError> {
            let bytes = envelope(from, peer(), id, &m.text).to_bytes();
            Ok(String::from_utf8(bytes).expect("JSON is UTF-8"))
        };
        self.store.enqueue(cleared(text), draft, made, now()).await.expect("enqueue");
        self.link.flush();
    }
}

fn peer() -> Fingerprint {
    Identity::from_seed(&[2; 32]).fingerprint()
}

fn envelope(from: Fingerprint, to: Fingerprint, id: &str, text: &str) -> Envelope {
    let header = Header {
        from,
        to,
        thread_id: "t1".parse().ok(),
        message_id: id.parse().expect("id"),
        timestamp: now(),
    };
    clear(&header, &Content { text: text.into(), ..Content::default() })
}

fn cleared(text: &str) -> Cleared<OutboundMessage> {
    let gateway = SendGateway::new(Arc::new(Pel::new(PelConfig::default(), Arc::new(|_: &str| Vec::new()))));
    gateway.register(Channel::threadline());
    let recipient =
        Recipient { kind: RecipientKind::Agent, id: peer().to_string(), trust: None, own_values: Vec::new() };
    let message = OutboundMessage {
        text: text.into(),
        subject: None,
        target: ReplyTarget { channel: ChannelId::THREADLINE, recipient, conversation: None },
        origin: Origin::Threadline,
        session_id: None,
        flags: SendFlags::default(),
        idempotency_key: None,
    };
    let moment = Moment { now_ms: now(), verdict_id: uuid::Uuid::nil(), latch: Latch::Open };
    match gateway.review(message, &moment, &[]) {
        SendOutcome::Cleared(cleared) => cleared,
        other => panic!("{other:?}"),
    }
}

fn text_of(frame: &ClientFrame) -> String {
    match frame {
        ClientFrame::Message(envelope) => envelope.text("messageId").expect("id").to_owned(),
        other => panic!("no message but {other:?}"),
    }
}

#[tokio::test]
async fn an_envelope_is_committed_before_it_is_acknowledged() {
    let relay = Relay::bind().await;
    let node = Node::start(&relay.url).await;
    let mut session = relay.accept().await;
    let us = node.identity.fingerprint();
    session.send(&ServerFrame::Message(envelope(us, peer(), "not-ours", "x"))).await;
    for id in ["m1", "m2"] {
        session.send(&ServerFrame::Message(envelope(peer(), us, id, "hello"))).await;
    }
    session.send(&ServerFrame::Ping(None)).await;
    for id in ["m1", "m2"] {
        let ClientFrame::Ack(ack) = session.next_of_interest().await else { panic!("no ack") };
        assert_eq!((ack.message_id.as_str(), ack.status), (id, AckStatus::Delivered));
        let spooled = node.store.spool_due(now(), 10).await.expect("spool");
        assert!(spooled.iter().any(|row| row.message_id.as_str() == id), "{id} is not in the spool");
    }
    assert!(matches!(session.next_of_interest().await, ClientFrame::Pong(_)));
    assert_eq!(node.store.spool_depth().await.expect("depth").rows, 2);
}

#[tokio::test]
async fn what_the_relay_did_not_acknowledge_is_sent_again_in_order() {
    let relay = Relay::bind().await;
    let mut node = Node::start(&relay.url).await;
    let mut session = relay.accept().await;
    node.enqueue("o1", "one").await;
    node.enqueue("o2", "two").await;
    assert_eq!(text_of(&session.next_of_interest().await), "o1");
    drop(session);

    let mut session = relay.accept().await;
    assert_eq!(text_of(&session.next_of_interest().await), "o1", "the first again, before the second");
    session.send(&ServerFrame::Ack(Ack::new("o1", AckStatus::Queued))).await;
    let event =
        node.event(|e| matches!(e, LinkEvent::Delivery { event: DeliveryEvent::Queued { .. }, .. })).await;
    let LinkEvent::Delivery { to: Some(to), id, .. } = event else { panic!("{event:?}") };
    assert_eq!((to, id.as_str()), (peer(), "o1"));
    let o1: MessageId = "o1".parse().expect("id");
    let mut row = node.store.delivery(peer(), o1).await.expect("read").expect("row");
    row.delivery.attempted(now());
    row.delivery.learn(Evidence::RelayQueued { ours: false }, now());
    node.store.set_delivery(row, None, true).await.expect("store");
    node.link.flush();
    assert_eq!(text_of(&session.next_of_interest().await), "o2");
}

#[tokio::test]
async fn the_registry_token_goes_with_the_session() {
    let relay = Relay::bind().await;
    let node = Node::start(&relay.url).await;
    let session = relay.accept().await;
    let mut registry = node.link.watch_registry();
    let base = relay.url.replace("ws://", "http://").replace("/v1/connect", "");
    let given = registry.wait_for(Option::is_some);
    let access = tokio::time::timeout(LIMIT, given).await.expect("in time").expect("open").clone();
    assert_eq!(access.map(|a| (a.base, a.token)), Some((base, "token".to_owned())));
    drop(session);
    let gone = registry.wait_for(Option::is_none);
    tokio::time::timeout(LIMIT, gone).await.expect("in time").expect("open");
}

#[tokio::test]
async fn stopping_ends_the_task() {
    let relay = Relay::bind().await;
    let node = Node::start(&relay.url).await;
    let _session = relay.accept().await;
    node.stop.cancel();
    tokio::time::timeout(LIMIT, node.task).await.expect("in time").expect("no panic");
}
