//! A recorded session of an existing relay, its side replayed to our client (`threadline-wire.md` §9 b).

use serde_json::Value;
use threadline::identity::Identity;
use threadline::v1::client::{ClientConfig, DeliveryEvent};
use threadline::v1::envelope::Envelope;
use threadline::v1::frames::{Metadata, RegistryWish, Visibility};
use threadline_net::LinkEvent;

use super::node::{Node, now};
use super::relay_script::{Peer, Relay};

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../vectors/threadline-v1.json")).expect("the vectors are JSON")
}

/// The steps of one recorded socket: what was said on it in both directions, and its end.
fn socket<'a>(frames: &'a [Value], name: &str) -> Vec<&'a Value> {
    let concerns = |step: &&Value| step["from"] == name || step["to"] == name || step["close"] == name;
    frames.iter().filter(concerns).collect()
}

fn from_relay(step: &Value) -> bool {
    step["from"] == "relay"
}

/// A link that introduces itself as the recorded `auth` frame does.
async fn start(relay: &Relay, who: &str, auth: &Value) -> Node {
    let seed = vectors()["identities"][who]["ed25519Seed"].as_str().expect("seed").to_owned();
    let seed: [u8; 32] = hex::decode(seed).expect("hex").try_into().expect("32 bytes");
    let metadata: Metadata = serde_json::from_value(auth["metadata"].clone()).expect("metadata");
    let visibility: Option<Visibility> = serde_json::from_value(auth["visibility"].clone()).expect("one");
    let registry: Option<RegistryWish> = serde_json::from_value(auth["registry"].clone()).expect("wish");
    let config = ClientConfig {
        url: relay.url.clone(),
        metadata,
        visibility: visibility.unwrap_or_default(),
        registry,
        watch_presence: true,
    };
    Node::with(Identity::from_seed(&seed), config).await
}

/// Replays challenge, login and its answer; our login must be the recorded one.
async fn log_in(relay: &Relay, steps: &mut std::vec::IntoIter<&Value>) -> Peer {
    let challenge = steps.next().expect("challenge");
    let mut peer = relay.challenge(challenge["frame"]["nonce"].as_str().expect("nonce")).await;
    let recorded = &steps.next().expect("auth")["frame"];
    assert_eq!(peer.next_value().await, *recorded, "the login is the recorded one, member for member");
    peer.send_text(&steps.next().expect("answer")["frame"].to_string()).await;
    peer
}

async fn outcome(node: &mut Node, id: &str) -> DeliveryEvent {
    let about = |e: &LinkEvent| {
        matches!(e, LinkEvent::Delivery { id: of, event, .. }
            if of.as_str() == id && *event != DeliveryEvent::Written)
    };
    match node.event(about).await {
        LinkEvent::Delivery { event, .. } => event,
        other => panic!("{other:?}"),
    }
}

fn recorded_envelope(step: &Value) -> Option<Envelope> {
    Some(Envelope::from_fields(step["frame"]["envelope"].as_object()?.clone()))
}

#[tokio::test]
async fn the_sender_of_the_recording() {
    let vectors = vectors();
    let frames = vectors["relayTranscript"]["frames"].as_array().expect("frames");
    let all = socket(frames, "alice");
    let relay = Relay::bind().await;
    let auth = all.iter().find(|s| s["frame"]["type"] == "auth").expect("auth");
    let mut node = start(&relay, "alice", &auth["frame"]).await;
    let mut steps = all.into_iter();
    let mut session = log_in(&relay, &mut steps).await;
    node.until("connected").await;

    let mut reported = Vec::new();
    let mut asked = Vec::new();
    for step in steps {
        let frame = &step["frame"];
        if from_relay(step) {
            session.send_text(&frame.to_string()).await;
            match frame["type"].as_str() {
                Some("displaced") => break,
                Some("presence_change") => {
                    while !node.link.agents().iter().any(|a| a.name == "bob" && a.online) {
                        node.event(|e| matches!(e, LinkEvent::AgentsChanged)).await;
                    }
                }
                _ => {}
            }
            if let Some(id) = frame["messageId"].as_str() {
                reported.push((id.to_owned(), outcome(&mut node, id).await));
            }
        } else if let Some(envelope) = recorded_envelope(step) {
            let id = envelope.text("messageId").expect("id").to_owned();
            // A repetition and a forgery are nothing that our outbox does; the relay's answers are replayed.
            let ours = envelope.text("from") == Some(&node.identity.fingerprint().to_string());
            if ours && !reported.iter().any(|(known, _)| *known == id) {
                confirm_all(&node).await;
                node.enqueue_envelope(&envelope, &id).await;
                let sent = loop {
                    let frame = session.next_value().await;
                    if frame["type"] == "message" {
                        break frame;
                    }
                    asked.push(frame["type"].as_str().expect("type").to_owned());
                };
                assert_eq!(sent, *frame, "the message is the recorded one, member for member");
            }
        }
    }
    let queued = DeliveryEvent::Queued { ttl: Some(86_400) };
    let rejected = DeliveryEvent::Rejected { code: None, reason: "Sender fingerprint mismatch".into() };
    let fates: Vec<_> = reported.into_iter().map(|(_, event)| event).collect();
    let (delivered, replay) = (DeliveryEvent::Delivered, DeliveryEvent::Replay);
    assert_eq!(fates, [queued, delivered.clone(), delivered, replay, rejected]);
    assert_eq!(asked, ["subscribe", "discover"]);
    let displaced = node.until("displaced").await;
    assert_eq!(displaced.last_error.as_deref(), Some("Another device connected with the same identity key"));
    assert!(displaced.next_attempt_at.expect("one retry") > now() + 20_000);
}

/// Nothing of a thread leaves behind an unconfirmed message: notes what the relay confirmed.
async fn confirm_all(node: &Node) {
    for mut row in node.store.open_deliveries(10).await.expect("deliveries") {
        row.delivery.learn(threadline::delivery::Evidence::RelayDelivered { ours: false }, now());
        node.store.set_delivery(row, None, true).await.expect("store");
    }
}

#[tokio::test]
async fn the_recipient_of_the_recording() {
    let vectors = vectors();
    let frames = vectors["relayTranscript"]["frames"].as_array().expect("frames");
    let all = socket(frames, "bob");
    let relay = Relay::bind().await;
    let auth = all.iter().find(|s| s["frame"]["type"] == "auth").expect("auth");
    let node = start(&relay, "bob", &auth["frame"]).await;
    let mut steps = all.into_iter();
    let mut session = log_in(&relay, &mut steps).await;
    let mut taken = 0;
    for step in steps {
        let frame = &step["frame"];
        if from_relay(step) && frame["type"] == "message" {
            session.send_text(&frame.to_string()).await;
            let ack = loop {
                let answer = session.next_value().await;
                if answer["type"] == "ack" {
                    break answer;
                }
            };
            assert_eq!(ack["messageId"], frame["envelope"]["messageId"]);
            assert_eq!(ack["status"], "delivered");
            taken += 1;
            assert_eq!(node.store.spool_depth().await.expect("depth").rows, taken, "stored before the ack");
        } else if step["frame"]["type"] == "presence" {
            node.link.stop().await;
            assert_eq!(session.next_value().await, *frame);
        } else if step["close"] == "bob" {
            assert_eq!(step["code"], 1000);
        }
    }
    assert_eq!(taken, 2, "the queued and the sealed message");
    session.ended().await;
    assert_eq!(node.link.status().state, "stopped");
}

#[tokio::test]
async fn a_refused_login_of_the_recording() {
    let vectors = vectors();
    let frames = vectors["relayTranscript"]["frames"].as_array().expect("frames");
    for name in ["carol", "carol2", "carol3"] {
        let all = socket(frames, name);
        let relay = Relay::bind().await;
        let auth = all.iter().find(|s| s["frame"]["type"] == "auth").expect("auth");
        let node = start(&relay, "carol", &auth["frame"]).await;
        let mut session = relay.challenge(all[0]["frame"]["nonce"].as_str().expect("nonce")).await;
        session.login().await;
        let refusal = all.iter().find(|s| s["frame"]["type"] == "auth_error").expect("refusal");
        session.send_text(&refusal["frame"].to_string()).await;
        session.ended().await;
        let status = node.until("backoff").await;
        assert!(status.next_attempt_at.expect("later") > now() + 20_000, "{name}");
    }
}
