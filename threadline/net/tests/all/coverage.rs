//! Every frame, error code and close code of v1 (`threadline-wire.md` §2.2) passes over a real link here. What the
//! tables list and no step sends or provokes makes the test fail, and so does what a step sends that no table lists.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use threadline::delivery::Evidence;
use threadline::v1::client::{ClientConfig, DeliveryEvent};
use threadline::v1::frames::{ErrorCode, Metadata, ServerFrame, Visibility};
use threadline_net::{DiscoverError, LinkEvent};

use super::node::{Node, envelope, now, peer};
use super::relay_script::{Peer, Relay};

const FROM_CLIENT: [&str; 7] = ["auth", "message", "ack", "discover", "subscribe", "presence", "pong"];
const FROM_RELAY: [&str; 11] = [
    "challenge",
    "auth_ok",
    "auth_error",
    "message",
    "ack",
    "discover_result",
    "presence_change",
    "ping",
    "error",
    "displaced",
    "delivery_expired",
];
const ERRORS: [&str; 11] = [
    "auth_failed",
    "auth_timeout",
    "invalid_frame",
    "recipient_offline",
    "recipient_unknown",
    "envelope_too_large",
    "rate_limited",
    "invalid_signature",
    "replay_detected",
    "banned",
    "internal_error",
];
const CLOSES: [u16; 9] = [1000, 1001, 1009, 4000, 4001, 4002, 4003, 4008, 4029];

/// What passed so far.
#[derive(Default)]
struct Seen {
    from_client: BTreeSet<String>,
    from_relay: BTreeSet<String>,
    errors: BTreeSet<String>,
    closes: BTreeSet<u16>,
}

impl Seen {
    async fn say(&mut self, relay: &mut Peer, frame: Value) {
        self.from_relay.insert(kind(&frame));
        if let Some(code) = frame["code"].as_str() {
            self.errors.insert(code.to_owned());
        }
        assert_eq!(ServerFrame::parse(&frame.to_string()).map(|f| kind_of(&f)), Ok(kind(&frame)));
        relay.send_text(&frame.to_string()).await;
    }

    /// Reads until a frame of this type comes; every frame on the way counts.
    async fn hear(&mut self, relay: &mut Peer, wanted: &str) -> Value {
        loop {
            let frame = relay.next_value().await;
            self.from_client.insert(kind(&frame));
            if kind(&frame) == wanted {
                return frame;
            }
        }
    }

    async fn log_in(&mut self, relay: &Relay) -> Peer {
        let mut peer = relay.accept().await;
        self.from_relay.extend(["challenge".to_owned(), "auth_ok".to_owned()]);
        self.from_client.insert("auth".into());
        self.hear(&mut peer, "discover").await;
        peer
    }

    async fn close(&mut self, peer: Peer, code: u16) {
        self.closes.insert(code);
        peer.close(code, "as the test says").await;
    }
}

fn kind(frame: &Value) -> String {
    frame["type"].as_str().expect("a type").to_owned()
}

fn kind_of(frame: &ServerFrame) -> String {
    kind(&serde_json::from_str(&frame.to_text()).expect("JSON"))
}

#[tokio::test]
async fn every_frame_and_code_of_v1_is_sent_or_provoked() {
    let mut seen = Seen::default();
    a_whole_session(&mut seen).await;
    errors_about_a_message(&mut seen).await;
    refused_logins(&mut seen).await;
    bans_and_displacement(&mut seen).await;
    closes(&mut seen).await;
    assert_eq!(seen.from_client, FROM_CLIENT.map(str::to_owned).into());
    assert_eq!(seen.from_relay, FROM_RELAY.map(str::to_owned).into());
    assert_eq!(seen.errors, ERRORS.map(str::to_owned).into());
    assert_eq!(seen.closes, CLOSES.into());
}

async fn a_whole_session(seen: &mut Seen) {
    let relay = Relay::bind().await;
    let config = ClientConfig {
        url: relay.url.clone(),
        metadata: Metadata { name: "a".into(), ..Metadata::default() },
        visibility: Visibility::Public,
        registry: None,
        watch_presence: true,
    };
    let mut node = Node::with(threadline::identity::Identity::from_seed(&[1; 32]), config).await;
    let mut session = seen.log_in(&relay).await;
    let us = node.identity.fingerprint();

    let found = json!({"type": "discover_result", "agents": [
        {"agentId": peer(), "name": "b", "status": "offline", "capabilities": ["chat"]},
        {"agentId": 7, "name": {}, "status": "online"}]});
    seen.say(&mut session, found).await;
    let change = json!({"type": "presence_change", "agentId": peer(), "status": "online"});
    seen.say(&mut session, change).await;
    let known = async {
        loop {
            node.event(|e| matches!(e, LinkEvent::AgentsChanged)).await;
            let agents = node.link.agents();
            if agents.iter().any(|a| a.online) {
                return agents;
            }
        }
    };
    let agents = known.await;
    assert_eq!((agents.len(), agents[0].name.as_str()), (1, "b"), "merged, the unreadable entry left out");

    let asked = node.link.clone();
    let by_name = Some(threadline::v1::frames::DiscoverFilter {
        name: Some("bob".into()),
        ..threadline::v1::frames::DiscoverFilter::default()
    });
    let question = tokio::spawn({
        let by_name = by_name.clone();
        async move { asked.discover(by_name).await }
    });
    assert_eq!(seen.hear(&mut session, "discover").await["filter"], json!({"name": "bob"}));
    seen.say(&mut session, json!({"type": "discover_result", "agents": []})).await;
    assert_eq!(question.await.expect("no panic").map(|a| a.len()), Ok(1), "what was known stays");
    assert_eq!(node.link.discover(by_name).await, Err(DiscoverError::Limited), "once per name in 30 s");

    let incoming = envelope(peer(), us, "m1", "hello");
    seen.say(&mut session, json!({"type": "message", "envelope": incoming.fields()})).await;
    assert_eq!(seen.hear(&mut session, "ack").await["status"], "delivered");
    seen.say(&mut session, json!({"type": "ping", "timestamp": 12})).await;
    assert_eq!(seen.hear(&mut session, "pong").await["timestamp"], 12);

    node.enqueue("o1", "one").await;
    let sent = seen.hear(&mut session, "message").await;
    assert_eq!(sent["envelope"]["messageId"], "o1");
    for (status, event) in [
        ("queued", DeliveryEvent::Queued { ttl: Some(60) }),
        ("delivered", DeliveryEvent::Delivered),
        ("rejected", DeliveryEvent::Rejected { code: None, reason: "no".into() }),
    ] {
        let ack = json!({"type": "ack", "messageId": "o1", "status": status, "reason": "no", "ttl": 60});
        seen.say(&mut session, ack).await;
        node.event(|e| matches!(e, LinkEvent::Delivery { event: e, .. } if *e == event)).await;
    }
    let expired =
        json!({"type": "delivery_expired", "messageId": "o1", "recipientId": peer(), "queuedAt": "then"});
    seen.say(&mut session, expired).await;
    node.event(|e| matches!(e, LinkEvent::Delivery { to: Some(to), event: DeliveryEvent::Expired, .. } if *to == peer()))
        .await;

    node.stop.cancel();
    assert_eq!(seen.hear(&mut session, "presence").await["status"], "offline");
    session.ended().await;
}

async fn errors_about_a_message(seen: &mut Seen) {
    let relay = Relay::bind().await;
    let mut node = Node::start(&relay.url).await;
    let mut session = seen.log_in(&relay).await;
    for code in ERRORS.into_iter().filter(|code| *code != "banned") {
        let id = format!("to-{code}");
        let complaint = json!({"type": "error", "code": code, "message": "x", "relatedMessageId": id});
        seen.say(&mut session, complaint).await;
        let event = node.event(|e| matches!(e, LinkEvent::Delivery { .. })).await;
        let LinkEvent::Delivery { id: of, event, .. } = event else { panic!("{event:?}") };
        assert_eq!(of.as_str(), id);
        let for_good = ["envelope_too_large", "invalid_signature", "invalid_frame"].contains(&code);
        let evidence = match code {
            "replay_detected" => Evidence::RelayReplay,
            _ if for_good => Evidence::RelayRefusedForGood,
            _ => Evidence::RelayRejected,
        };
        assert_eq!(Evidence::of(&event, false), evidence, "{code}");
    }
    let unknown = json!({"type": "error", "code": "made_up", "message": "?", "relatedMessageId": "x"});
    session.send_text(&unknown.to_string()).await;
    let other = Some(ErrorCode::Other("made_up".into()));
    node.event(|e| matches!(e, LinkEvent::Delivery { event: DeliveryEvent::Rejected { code, .. }, .. } if *code == other))
        .await;
    seen.say(&mut session, json!({"type": "error", "code": "internal_error", "message": "sorry"})).await;
    seen.say(&mut session, json!({"type": "ping"})).await;
    seen.hear(&mut session, "pong").await;
    assert_eq!(node.until("connected").await.last_error.as_deref(), Some("sorry"));
}

async fn refused_logins(seen: &mut Seen) {
    // Seconds until the next attempt: a refusal waits like the sixth failure, 32 s ± 25 %.
    for (code, message, state) in [
        ("auth_failed", "no", "backoff"),
        ("auth_timeout", "too slow", "backoff"),
        ("rate_limited", "Too many attempts", "backoff"),
        ("banned", "banned until 2100-01-01T00:00:00.000Z.", "banned_until"),
    ] {
        let relay = Relay::bind().await;
        let node = Node::start(&relay.url).await;
        let mut session = relay.challenge(&nonce()).await;
        session.login().await;
        seen.say(&mut session, json!({"type": "auth_error", "code": code, "message": message})).await;
        session.ended().await;
        let status = node.until(state).await;
        let pause = status.next_attempt_at.expect("another attempt") - now();
        let enough = if state == "backoff" { 20_000..41_000 } else { 1_000_000_000_000..i64::MAX };
        assert!(enough.contains(&pause), "{code}: {pause}");
        assert!(status.self_healing, "{code}");
    }
}

async fn bans_and_displacement(seen: &mut Seen) {
    let relay = Relay::bind().await;
    let node = Node::start(&relay.url).await;
    let mut session = seen.log_in(&relay).await;
    seen.say(&mut session, json!({"type": "error", "code": "banned", "message": "for abuse"})).await;
    session.ended().await;
    let banned = node.until("banned_until").await;
    assert!((3_590_000..=3_600_100).contains(&(banned.next_attempt_at.expect("an hour") - now())));

    let relay = Relay::bind().await;
    let node = Node::start(&relay.url).await;
    let mut session = seen.log_in(&relay).await;
    seen.say(&mut session, json!({"type": "displaced", "reason": "Another device"})).await;
    session.ended().await;
    let displaced = node.until("displaced").await;
    assert_eq!(displaced.last_error.as_deref(), Some("Another device"));
    assert!(displaced.next_attempt_at.expect("one retry") - now() > 20_000, "never at once");
}

async fn closes(seen: &mut Seen) {
    for (code, state, pause) in [
        (1000, "backoff", 100..1_300),
        (1001, "backoff", 0..5_100),
        (1009, "backoff", 100..1_300),
        (4000, "backoff", 100..1_300),
        (4001, "displaced", 20_000..31_000),
        (4002, "backoff", 100..1_300),
        (4003, "banned_until", 3_500_000..3_600_001),
        (4008, "backoff", 100..1_300),
        (4029, "backoff", 20_000..41_000),
    ] {
        let relay = Relay::bind().await;
        let mut node = Node::start(&relay.url).await;
        let session = seen.log_in(&relay).await;
        seen.close(session, code).await;
        let text = code.to_string();
        let event = node
            .event(|e| {
                matches!(e, LinkEvent::StateChanged { change, .. }
                    if change.state.name() == state
                        && (change.code.as_deref() == Some(&text) || state == "displaced"))
            })
            .await;
        let LinkEvent::StateChanged { change, .. } = event else { panic!("{event:?}") };
        let threadline::v1::client::LinkState::Waiting { until, .. } = change.state else {
            panic!("{change:?}")
        };
        assert!(pause.contains(&(until - change.at)), "{code}: {}", until - change.at);
    }
}

fn nonce() -> String {
    threadline::identity::LoginNonce::from_bytes(&[7; 32]).as_str().to_owned()
}
