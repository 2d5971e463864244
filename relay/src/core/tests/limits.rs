//! Rates, tiers and sources at N−1, N, N+1.

use serde_json::Value;
use threadline::v1::frames::Visibility;

use super::bench::{Bench, envelope};
use crate::core::Event;

fn is_queued(ack: &Value) -> bool {
    ack["status"] == "queued"
}

#[test]
fn sixty_messages_a_minute_and_repeats_do_not_count() {
    let mut bench = Bench::generous_with(|config| config.limits.messages_per_minute = 60);
    let sender = bench.log_in(1);
    for n in 0..60 {
        assert!(is_queued(&bench.send_and_hear(sender, 1, 2, &format!("m{n}"))), "{n}");
    }
    assert_eq!(bench.send_and_hear(sender, 1, 2, "m60")["reason"], "Rate limited (per_agent_minute)");
    assert!(is_queued(&bench.send_and_hear(sender, 1, 2, "m0")), "a repeat comes before the limit");
    bench.pass(59_999);
    assert_eq!(bench.send_and_hear(sender, 1, 2, "m60")["status"], "rejected");
    bench.pass(1);
    assert!(is_queued(&bench.send_and_hear(sender, 1, 2, "m60")));
}

#[test]
fn a_restart_clears_windows_but_not_the_first_hour() {
    let mut bench = Bench::with(|config| config.limits.messages_per_minute = 5);
    let sender = bench.log_in(1);
    for n in 0..5 {
        assert!(is_queued(&bench.send_and_hear(sender, 1, 2, &format!("m{n}"))));
    }
    assert_eq!(bench.send_and_hear(sender, 1, 2, "m5")["reason"], "Rate limited (per_agent_minute)");
    bench.crash();
    let sender = bench.log_in(1);
    for n in 5..10 {
        assert!(is_queued(&bench.send_and_hear(sender, 1, 2, &format!("m{n}"))), "{n}");
    }
    bench.crash();
    let sender = bench.log_in(1);
    let refusal = bench.send_and_hear(sender, 1, 2, "m10");
    assert_eq!(refusal["reason"], "New agent rate limit: 10 messages in first hour");
}

#[test]
fn a_young_agent_grows_up() {
    let mut bench = Bench::with(|config| {
        config.limits.per_source = false;
        config.queue.stranger_each = 500;
        config.queue.unknown_recipient = 500;
    });
    let hour = 3_600_000;
    let fill = |bench: &mut Bench, from: u32, count: u32| -> u32 {
        let sender = bench.log_in(1);
        (from..from + count)
            .filter(|n| {
                bench.pass(1_100);
                is_queued(&bench.send_and_hear(sender, 1, 2, &format!("m{n}")))
            })
            .count() as u32
    };
    assert_eq!(fill(&mut bench, 0, 12), 10);
    bench.pass(hour);
    assert_eq!(fill(&mut bench, 100, 32), 30);
    bench.pass(hour);
    assert_eq!(fill(&mut bench, 200, 40), 40);
}

#[test]
fn new_recipients_are_limited_and_replies_are_none() {
    let mut bench = Bench::with(|config| config.limits.per_source = false);
    let sender = bench.log_in(1);
    let friend = bench.log_in(9);
    bench.send(friend, 9, 1, "hello");
    for to in 2..7 {
        assert!(is_queued(&bench.send_and_hear(sender, 1, to, "m")), "{to}");
    }
    let refusal = bench.send_and_hear(sender, 1, 7, "m");
    assert_eq!(refusal["reason"], "New agent rate limit: 5 new recipients in first hour");
    assert!(is_queued(&bench.send_and_hear(sender, 1, 2, "again")), "no new recipient");
    bench.got(friend);
    bench.send(sender, 1, 9, "answer");
    assert_eq!(bench.message_ids(friend), ["answer"], "a reply");
}

#[test]
fn checks_come_in_their_order() {
    let mut bench = Bench::generous_with(|config| config.limits.messages_per_minute = 1);
    let sender = bench.log_in(1);
    assert!(is_queued(&bench.send_and_hear(sender, 1, 2, "m1")));
    // The limit is used up, yet earlier checks still speak first.
    let reason = |bench: &mut Bench, envelope: Value| {
        bench.got(sender);
        bench.frame(sender, &serde_json::json!({"type": "message", "envelope": envelope}));
        let got = bench.got(sender).remove(0);
        got["reason"].as_str().or(got["code"].as_str()).expect("reason").to_owned()
    };
    let mut large = envelope(3, 2, "m2");
    large["payload"] = "x".repeat(262_144).into();
    assert_eq!(reason(&mut bench, large.clone()), "Sender fingerprint mismatch");
    large["from"] = envelope(1, 2, "m")["from"].clone();
    assert!(reason(&mut bench, large).starts_with("Envelope too large (26"));
    let mut replay = envelope(1, 2, "m1");
    replay["payload"] = "e30=".into();
    assert_eq!(reason(&mut bench, replay), "Duplicate message ID (replay detected)");
    assert_eq!(reason(&mut bench, envelope(1, 2, "m3")), "Rate limited (per_agent_minute)");
    let mut broken = envelope(1, 2, "m4");
    broken["to"] = "nobody".into();
    assert_eq!(reason(&mut bench, broken), "invalid_frame");
}

#[test]
fn an_envelope_may_have_exactly_262144_bytes() {
    let mut bench = Bench::generous();
    let sender = bench.log_in(1);
    for (size, queued) in [(262_143, true), (262_144, true), (262_145, false)] {
        let mut message = envelope(1, 2, &format!("m{size}"));
        message["payload"] = "".into();
        let rest = message.to_string().len();
        message["payload"] = "x".repeat(size - rest).into();
        bench.frame(sender, &serde_json::json!({"type": "message", "envelope": message}));
        let ack = bench.got_only(sender, "ack").remove(0);
        assert_eq!(is_queued(&ack), queued, "{size}: {ack}");
    }
}

#[test]
fn a_source_is_limited_and_a_loopback_relay_is_not() {
    let mut bench = Bench::new();
    for n in 0..10 {
        let conn = bench.open();
        assert!(!bench.closes.contains_key(&conn), "{n}");
    }
    let conn = bench.open();
    assert_eq!(bench.got(conn)[0]["code"], "rate_limited");
    assert_eq!(bench.closes[&conn], 4029);
    let other = bench.open_from(2);
    assert!(!bench.closes.contains_key(&other));

    let mut bench = Bench::generous();
    for _ in 0..60 {
        let conn = bench.open();
        assert!(!bench.closes.contains_key(&conn));
    }
}

#[test]
fn a_source_gets_five_new_identities_an_hour() {
    let mut bench = Bench::new();
    for n in 1..=5 {
        bench.log_in(n);
    }
    bench.pass(61_000);
    let sixth = bench.log_in_as(6, Visibility::Unlisted, None);
    assert_eq!(bench.got(sixth)[0]["code"], "rate_limited");
    assert_eq!(bench.closes[&sixth], 4029);
    bench.log_in(1);
}

#[test]
fn failed_logins_shut_a_source_out_for_longer_each_time() {
    let mut bench = Bench::with(|config| config.sybil.connections_per_minute = 1_000);
    let fail = |bench: &mut Bench| {
        let conn = bench.open();
        let mut auth = bench.auth(conn, 1, Visibility::Unlisted, None);
        auth.signature = String::new();
        let auth = threadline::v1::frames::ClientFrame::Auth(Box::new(auth));
        bench.text(conn, &auth.to_text());
        bench.handle(Event::Closed { conn });
    };
    for _ in 0..11 {
        fail(&mut bench);
    }
    let refused = bench.open();
    assert_eq!(bench.closes[&refused], 4029);
    bench.pass(60_000);
    let open = bench.open();
    assert!(!bench.closes.contains_key(&open));
}
