//! Every figure of operation (`relay.md` §14.2) is there and moves, and none names an agent.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use threadline::v1::frames::Visibility;

use super::client::{Client, PATIENCE, address, envelope};
use super::operator::Admin;
use super::process::{Relay, command};

#[tokio::test]
async fn metrics_are_text_without_any_agent_on_both_listeners() {
    let dir = tempfile::tempdir().expect("dir");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("port").port();
    let listen = format!("metrics.listen=127.0.0.1:{port}");
    let mut relay = Relay::spawn(command(dir.path()).args(["--set", &listen]));
    let admin = Admin::of(&mut relay, dir.path());
    let mut agent = Client::log_in_as(relay.at, 1, Visibility::Public).await;
    agent.send(2, "m1").await;
    agent.next("ack").await;
    agent.say("junk").await;
    agent.next("error").await;
    let text = reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await.expect("answers");
    let text = text.text().await.expect("text");
    for line in [
        "threadline_messages_routed_total 1",
        "threadline_messages_queued_total 1",
        "threadline_connections_active 1",
        "threadline_sessions{carrier=\"ws1\"} 1",
        "threadline_new_identities_total 1",
        "threadline_rejects_total{reason=\"rate_limited\"} 0",
        "threadline_bans_total{pattern=\"spam\"} 0",
        "threadline_accept_seconds_count 1",
        "threadline_registry_entries{visibility=\"public\"} 1",
        "threadline_engine_up 1",
        "threadline_drain 0",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
    }
    assert!(!text.contains(&address(1)[..8]), "no label holds an agent");
    let json = admin.url("/admin/metrics");
    let json = reqwest::Client::new().get(json).bearer_auth(admin.key()).header("accept", "application/json");
    let json: Value = json.send().await.expect("answers").json().await.expect("json");
    assert_eq!(json["threadline_messages_routed_total"], 1.0);
}

/// Values by name and labels.
fn samples(text: &str) -> HashMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
        .collect()
}

/// What the course of the test below moves. What it cannot: puzzles (`v2::`), the engine of a cluster (`cluster::`), two
/// keys with one address (`core::`), a full write queue (`server::outbox`).
const MOVED: [&str; 31] = [
    "threadline_messages_routed_total",
    "threadline_messages_accepted_total",
    "threadline_messages_delivered_total",
    "threadline_messages_queued_total",
    "threadline_messages_rejected_total",
    "threadline_messages_expired_total",
    "threadline_connections_total",
    "threadline_connections_active",
    "threadline_auth_failures_total",
    "threadline_abuse_bans_total",
    "threadline_discovery_queries_total",
    "threadline_messages_per_minute",
    "threadline_a2a_requests_total",
    "threadline_a2a_requests_rejected_total",
    "threadline_uptime_seconds",
    "threadline_sessions{carrier=\"ws1\"}",
    "threadline_rejects_total{reason=\"sender_mismatch\"}",
    "threadline_bans_total{pattern=\"junk\"}",
    "threadline_queue_messages",
    "threadline_queue_bytes",
    "threadline_queue_oldest_seconds",
    "threadline_accept_seconds_count",
    "threadline_deliver_seconds_count",
    "threadline_commit_batch_count",
    "threadline_commit_batch_sum",
    "threadline_commit_seconds_count",
    "threadline_redeliveries_total",
    "threadline_unconfirmed",
    "threadline_new_identities_total",
    "threadline_registry_search_seconds_count",
    "threadline_drain",
];

const THERE: [&str; 11] = [
    // Moved in `v2::`.
    "threadline_blob_bytes_total",
    // Counted once a minute: the test above sees them.
    "threadline_registry_entries{visibility=\"public\"}",
    "threadline_registry_entries{visibility=\"unlisted\"}",
    "threadline_sessions{carrier=\"ws2\"}",
    "threadline_sessions{carrier=\"quic\"}",
    "threadline_pow_total{result=\"solved\"}",
    "threadline_fingerprint_conflicts_total",
    "threadline_write_queue_full_total",
    "threadline_engine_up",
    "threadline_engine_publish_seconds_count",
    "threadline_engine_retries_total",
];

#[tokio::test]
async fn every_metric_of_the_specification_is_there_and_moves() {
    let dir = tempfile::tempdir().expect("dir");
    let mut relay = Relay::start_with(dir.path(), &["public_url=https://relay.example.org"]);
    let admin = Admin::of(&mut relay, dir.path());
    let before = samples(&admin.text("/admin/metrics").await);

    let mut stranger = Client::connect(relay.at, 7).await;
    stranger.next("challenge").await;
    let junk = json!({"type": "auth", "agentId": address(7), "publicKey": "AAAA", "signature": "AAAA"});
    stranger.say(junk.to_string()).await;
    stranger.next("auth_error").await;
    let mut vandal = Client::log_in(relay.at, 8).await;
    for _ in 0..21 {
        vandal.say("junk").await;
    }
    assert_eq!(vandal.closed().await, 4003);
    let mut alice = Client::log_in_as(relay.at, 1, Visibility::Public).await;
    alice.say(json!({"type": "message", "envelope": envelope(9, 2, "forged", "e30=")}).to_string()).await;
    assert_eq!(alice.next("ack").await["status"], "rejected");
    alice.say(json!({"type": "discover", "filter": {}}).to_string()).await;
    alice.next("discover_result").await;
    for id in ["m1", "m2"] {
        alice.send(2, id).await;
        assert_eq!(alice.next("ack").await["status"], "queued");
    }
    alice.send(3, "unwanted").await;
    alice.next("ack").await;
    let dropped = admin.call(reqwest::Method::DELETE, &format!("/admin/queue/{}", address(3)), None).await;
    assert_eq!(dropped.1["dropped"], 1);
    let mut bob = Client::log_in(relay.at, 2).await;
    bob.answers_pings = false;
    assert_eq!((bob.message_id().await, bob.message_id().await), ("m1".to_owned(), "m2".to_owned()));
    drop(bob);
    let mut bob = Client::log_in(relay.at, 2).await;
    bob.answers_pings = false;
    assert_eq!((bob.message_id().await, bob.message_id().await), ("m1".to_owned(), "m2".to_owned()));
    bob.ack("m1").await;
    assert_eq!(alice.next("ack").await["status"], "delivered");
    let search = format!("http://{}/v1/registry/search?q=agent", relay.at);
    assert_eq!(reqwest::get(search).await.expect("answers").status(), 200);
    let nobody = format!("http://{}/a2a/{}/messages", relay.at, address(9));
    let asked = reqwest::Client::new().post(nobody).json(&json!({"jsonrpc": "2.0", "id": 1, "method": "x"}));
    assert!(!asked.send().await.expect("answers").status().is_success());
    let open = samples(&admin.text("/admin/metrics").await);
    let gauges =
        ["threadline_connections_active", "threadline_sessions{carrier=\"ws1\"}", "threadline_unconfirmed"];
    for name in gauges {
        assert!(open[name] > before[name], "{name} stands at {}", open[name]);
    }
    admin.post("/admin/drain", json!({})).await;

    let begun = Instant::now();
    // Closing is spread, and a message is a second old after a second.
    let after = loop {
        let after = samples(&admin.text("/admin/metrics").await);
        if after["threadline_queue_oldest_seconds"] > 0.0 && after["threadline_uptime_seconds"] > 0.0 {
            break after;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing grows older");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    for name in MOVED.iter().chain(&THERE) {
        assert!(before.contains_key(*name) && after.contains_key(*name), "{name} is missing");
    }
    // Sessions end with the drain.
    for name in MOVED.iter().filter(|name| !gauges.contains(name)) {
        assert!(after[*name] > before[*name], "{name} stands at {}", after[*name]);
    }
    assert!(after["threadline_commit_batch_sum"] >= after["threadline_commit_batch_count"]);
}
