//! One link between a scripted relay and a store of its own.

use std::sync::Arc;

use instar_outbound::{
    Channel, ChannelId, Cleared, Latch, Moment, Origin, OutboundMessage, Pel, PelConfig, Recipient,
    RecipientKind, ReplyTarget, SendFlags, SendGateway, SendOutcome,
};
use threadline::delivery::{DEFAULT_TTL_MS, Delivery};
use threadline::identity::Identity;
use threadline::v1::client::ClientConfig;
use threadline::v1::envelope::{Content, Envelope, Header, clear};
use threadline::v1::frames::{Metadata, Visibility};
use threadline::{Fingerprint, ThreadKey, TrustLevel};
use threadline_net::store::{Auth, OutboundDraft, Store, StoreError};
use threadline_net::{LinkDeps, LinkEvent, LinkHandle, LinkStatus, Routes, run_link};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::relay_script::LIMIT;

pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("in range")
}

pub struct Node {
    pub identity: Arc<Identity>,
    pub store: Store,
    pub link: LinkHandle,
    pub events: mpsc::Receiver<LinkEvent>,
    pub stop: CancellationToken,
    pub task: JoinHandle<()>,
    clock: fn() -> i64,
    _dir: tempfile::TempDir,
}

impl Node {
    pub async fn start(url: &str) -> Self {
        Self::with_clock(url, now).await
    }

    pub async fn with_clock(url: &str, clock: fn() -> i64) -> Self {
        let config = ClientConfig {
            url: url.to_owned(),
            metadata: Metadata { name: "a".into(), ..Metadata::default() },
            visibility: Visibility::Unlisted,
            registry: None,
            watch_presence: false,
        };
        Self::made_of(Identity::from_seed(&[1; 32]), config, clock).await
    }

    pub async fn with(identity: Identity, config: ClientConfig) -> Self {
        Self::made_of(identity, config, now).await
    }

    async fn made_of(identity: Identity, config: ClientConfig, clock: fn() -> i64) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("threadline.sqlite")).expect("store");
        let identity = Arc::new(identity);
        let (events_tx, events) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let deps = LinkDeps {
            identity: Arc::clone(&identity),
            store: store.clone(),
            routes: Routes::default(),
            events: events_tx,
            now: clock,
        };
        let (link, future) = run_link(deps, stop.clone());
        let task = tokio::spawn(future);
        link.start(config).await;
        Self { identity, store, link, events, stop, task, clock, _dir: dir }
    }

    pub async fn event(&mut self, wanted: impl Fn(&LinkEvent) -> bool) -> LinkEvent {
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

    /// Waits for a state of the link.
    pub async fn until(&self, state: &str) -> LinkStatus {
        let mut status = self.link.watch_status();
        let reached = status.wait_for(|s| s.state == state);
        tokio::time::timeout(LIMIT, reached).await.expect(state).expect("the link runs").clone()
    }

    pub async fn enqueue(&self, id: &str, text: &str) {
        let envelope = envelope(self.identity.fingerprint(), peer(), id, text);
        self.enqueue_envelope(&envelope, text).await;
    }

    /// Puts a finished envelope into the outbox.
    pub async fn enqueue_envelope(&self, envelope: &Envelope, text: &str) {
        let header = envelope.header().expect("header");
        let draft = OutboundDraft {
            key: ThreadKey { peer: header.to, thread: header.thread_id.expect("thread") },
            peer_name: "b".into(),
            id: header.message_id,
            kind: "chat".into(),
            subject: "(no subject)".into(),
            in_reply_to: None,
            auth: Auth::Transport,
            trust: TrustLevel::Verified,
            author_session: None,
            origin_topic_id: None,
            idempotency_key: None,
            windows: Vec::new(),
            delivery: Delivery::new((self.clock)(), DEFAULT_TTL_MS, true),
        };
        let finished = String::from_utf8(envelope.to_bytes()).expect("JSON is UTF-8");
        let made = move |_: &OutboundMessage| -> Result<String, StoreError> { Ok(finished) };
        self.store.enqueue(cleared(text), draft, made, (self.clock)()).await.expect("enqueue");
        self.link.flush();
    }
}

pub fn peer() -> Fingerprint {
    Identity::from_seed(&[2; 32]).fingerprint()
}

pub fn envelope(from: Fingerprint, to: Fingerprint, id: &str, text: &str) -> Envelope {
    let header = Header {
        from,
        to,
        thread_id: "t1".parse().ok(),
        message_id: id.parse().expect("id"),
        timestamp: now(),
    };
    clear(&header, &Content { text: text.into(), ..Content::default() })
}

pub fn cleared(text: &str) -> Cleared<OutboundMessage> {
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
