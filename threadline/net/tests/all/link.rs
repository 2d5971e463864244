use std::sync::atomic::{AtomicI64, Ordering};

use threadline::MessageId;
use threadline::delivery::Evidence;
use threadline::v1::client::DeliveryEvent;
use threadline::v1::frames::{Ack, AckStatus, ClientFrame, ServerFrame};
use threadline_net::LinkEvent;

use super::node::{Node, envelope, now, peer};
use super::relay_script::{LIMIT, Relay};

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

static SLEPT: AtomicI64 = AtomicI64::new(0);

/// The wall clock of a machine that slept: it is ahead of what the monotonic clock counted.
fn after_sleep() -> i64 {
    now() + SLEPT.load(Ordering::SeqCst)
}

#[tokio::test]
async fn the_link_follows_the_wall_clock_of_a_machine_that_slept() {
    const HOURS: i64 = 3 * 3_600_000;
    let relay = Relay::bind().await;
    let node = Node::with_clock(&relay.url, after_sleep).await;
    let mut session = relay.accept().await;
    SLEPT.store(HOURS, Ordering::SeqCst);
    let before = after_sleep();
    session.send(&ServerFrame::Message(envelope(peer(), node.identity.fingerprint(), "m1", "hello"))).await;
    let ClientFrame::Ack(_) = session.next_of_interest().await else { panic!("no ack") };
    let rows = node.store.spool_due(after_sleep(), 10).await.expect("spool");
    assert!(rows[0].received_at >= before, "{} ms behind", before - rows[0].received_at);
    node.enqueue("o1", "one").await;
    assert_eq!(text_of(&session.next_of_interest().await), "o1", "due by the wall clock");
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
