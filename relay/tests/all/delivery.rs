//! Messages between clients of the real program.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;

use super::client::{Client, PATIENCE, envelope};
use super::stores::{House, On, on_every_store};

const QUIET: Duration = Duration::from_millis(700);

async fn accepted_messages_survive_kill_9_exactly_once_and_in_order(on: On) {
    let house = House::on(on);
    let mut relay = house.relay();
    let (mut accepted, mut next) = (Vec::new(), 0);
    for round in 0..4 {
        let mut sender = Client::log_in(relay.at, 1).await;
        for n in next..next + 40 {
            sender.send(2, &format!("m{n:03}")).await;
        }
        next += 40;
        // Killed while the last messages are somewhere between socket and disk.
        for _ in 0..(10 + round * 5) {
            let ack = sender.next("ack").await;
            assert_eq!(ack["status"], "queued");
            accepted.push(ack["messageId"].as_str().expect("id").to_owned());
        }
        relay.kill();
        relay = house.relay();
    }
    let mut recipient = Client::log_in(relay.at, 2).await;
    let mut got = Vec::new();
    while accepted.iter().any(|id| !got.contains(id)) {
        let id = recipient.message_id().await;
        recipient.ack(&id).await;
        got.push(id);
    }
    got.extend(
        recipient.rest(QUIET).await.iter().filter_map(|f| Some(f["envelope"]["messageId"].as_str()?.into())),
    );
    assert_eq!(got.iter().collect::<HashSet<_>>().len(), got.len(), "each once");
    assert!(got.is_sorted(), "in order");
}

async fn a_delivery_that_was_not_confirmed_comes_again_after_kill_9(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let mut recipient = Client::log_in(relay.at, 2).await;
    recipient.answers_pings = false;
    let mut sender = Client::log_in(relay.at, 1).await;
    sender.send(2, "m1").await;
    assert_eq!(recipient.message_id().await, "m1");
    assert_eq!(sender.next("ack").await["status"], "queued", "after two seconds without confirmation");
    relay.kill();
    let relay = house.relay();
    let mut recipient = Client::log_in(relay.at, 2).await;
    assert_eq!(recipient.message_id().await, "m1");
    recipient.ack("m1").await;
    let mut sender = Client::log_in(relay.at, 1).await;
    sender.send(2, "m1").await;
    assert_eq!(sender.next("ack").await["status"], "delivered", "the same id gets its answer again");
    assert!(recipient.rest(QUIET).await.is_empty());
}

async fn an_old_client_that_never_acknowledges_is_served_by_its_pongs(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let mut recipient = Client::log_in(relay.at, 2).await;
    let mut sender = Client::log_in(relay.at, 1).await;
    let reading = tokio::spawn(async move {
        let id = recipient.message_id().await;
        (id, recipient.rest(QUIET).await, recipient)
    });
    sender.send(2, "m1").await;
    assert_eq!(sender.next("ack").await["status"], "delivered", "within two seconds");
    let (id, rest, recipient) = reading.await.expect("reads");
    assert_eq!((id.as_str(), rest.len()), ("m1", 0));
    drop(recipient);
    let mut again = Client::log_in(relay.at, 2).await;
    assert!(again.rest(QUIET).await.is_empty(), "not again");
}

async fn the_newer_session_displaces_the_older(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let mut first = Client::log_in(relay.at, 1).await;
    let _second = Client::log_in(relay.at, 1).await;
    assert_eq!(first.next("displaced").await["type"], "displaced");
    assert_eq!(first.closed().await, 4001);
}

async fn a_reader_that_stands_still_delays_nobody(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let _stuck = Client::log_in(relay.at, 2).await;
    let mut fine = Client::log_in(relay.at, 3).await;
    let mut sender = Client::log_in(relay.at, 1).await;
    let large = "x".repeat(200_000);
    for n in 0..40 {
        sender.send_payload(2, &format!("l{n}"), &large).await;
    }
    sender.send(3, "quick").await;
    let id = tokio::time::timeout(PATIENCE, fine.message_id()).await.expect("in time");
    assert_eq!(id, "quick");
}

async fn bad_frames_are_named_and_large_ones_close(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let mut client = Client::log_in(relay.at, 1).await;
    for bad in ["not json", "{}", r#"{"type":"message"}"#, r#"{"type":"bogus"}"#] {
        client.say(bad).await;
        assert_eq!(client.next("error").await["code"], "invalid_frame", "{bad}");
    }
    let forged = json!({"type": "message", "envelope": envelope(9, 2, "f", "e30=")});
    client.say(forged.to_string()).await;
    assert_eq!(client.next("ack").await["reason"], "Sender fingerprint mismatch");
    client.say("x".repeat(300_000)).await;
    let code = client.closed().await;
    assert!([1009, 1006].contains(&code), "{code}");
    Client::log_in(relay.at, 1).await;
}

async fn sigterm_drains_and_keeps_the_mail(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let mut sender = Client::log_in(relay.at, 1).await;
    sender.send(2, "m1").await;
    assert_eq!(sender.next("ack").await["status"], "queued");
    let stopping = tokio::task::spawn_blocking(move || relay.stop());
    assert_eq!(sender.closed().await, 1001);
    drop(sender);
    assert_eq!(stopping.await.expect("stops"), Some(0));
    let relay = house.relay();
    let mut recipient = Client::log_in(relay.at, 2).await;
    assert_eq!(recipient.message_id().await, "m1");
}

on_every_store!(
    accepted_messages_survive_kill_9_exactly_once_and_in_order,
    a_delivery_that_was_not_confirmed_comes_again_after_kill_9,
    an_old_client_that_never_acknowledges_is_served_by_its_pongs,
    the_newer_session_displaces_the_older,
    a_reader_that_stands_still_delays_nobody,
    bad_frames_are_named_and_large_ones_close,
    sigterm_drains_and_keeps_the_mail,
);
