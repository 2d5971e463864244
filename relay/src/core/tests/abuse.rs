//! Patterns of abuse through the core, and bans that outlive a restart.

use serde_json::{Value, json};
use threadline::v1::frames::Visibility;

use super::bench::{Bench, envelope};
use crate::core::{ConnId, Event};

const HOUR: i64 = 3_600_000;

fn error(bench: &mut Bench, conn: ConnId) -> Option<String> {
    bench.got_only(conn, "error").pop().and_then(|e| e["message"].as_str().map(str::to_owned))
}

#[test]
fn the_third_oversized_message_in_an_hour_ends_the_session_and_the_ban_outlives_a_restart() {
    let mut bench = Bench::generous();
    let mut large = envelope(1, 2, "m");
    large["payload"] = Value::from("x".repeat(262_200));
    let frame = json!({"type": "message", "envelope": large});
    let conn = bench.log_in(1);
    bench.frame(conn, &frame);
    bench.frame(conn, &frame);
    assert_eq!(bench.closes.get(&conn), None);
    bench.pass(HOUR + 60_000);
    let conn = bench.log_in(1);
    bench.frame(conn, &frame);
    bench.frame(conn, &frame);
    assert_eq!(bench.closes.get(&conn), None, "the first two are too old");
    bench.frame(conn, &frame);
    assert_eq!(bench.closes.get(&conn), Some(&4003));
    assert!(error(&mut bench, conn).is_some_and(|text| text.starts_with("Banned until 2026-")));
    bench.crash();
    let conn = bench.log_in_as(1, Visibility::Unlisted, None);
    assert_eq!(bench.closes.get(&conn), Some(&4003));
    bench.pass(HOUR);
    let conn = bench.log_in_as(1, Visibility::Unlisted, None);
    assert_eq!(bench.closes.get(&conn), None, "over");
}

#[test]
fn fifty_recipients_in_a_minute_are_a_ban_and_answers_are_none() {
    let mut bench = Bench::generous_with(|config| config.abuse.unknown_addresses = 1_000);
    let spammer = bench.log_in(1);
    for to in 2..51 {
        bench.send(spammer, 1, to, "m");
    }
    assert_eq!(bench.closes.get(&spammer), None);
    bench.send(spammer, 1, 51, "m");
    assert_eq!(bench.closes.get(&spammer), Some(&4003));

    let mut bench = Bench::generous();
    let popular = bench.log_in(1);
    for from in 2..60 {
        let fan = bench.log_in(from);
        bench.send(fan, from, 1, "hello");
        bench.send(popular, 1, from, "answer");
    }
    assert_eq!(bench.closes.get(&popular), None, "answers do not count");
}

#[test]
fn thirty_unknown_addresses_in_ten_minutes_are_a_ban() {
    let mut bench = Bench::generous();
    let probe = bench.log_in(1);
    for to in 100..129 {
        bench.send(probe, 1, to, "m");
        bench.pass(2_000);
    }
    let key = *super::bench::agent(1).public().as_bytes();
    assert_eq!(bench.closes.get(&probe), None);
    bench.handle(Event::UnknownLookup { key });
    assert_eq!(bench.closes.get(&probe), Some(&4003), "lookups count as well");

    let mut bench = Bench::generous();
    let sender = bench.log_in(1);
    for to in 100..140 {
        bench.log_in(to);
        bench.send(sender, 1, to, "m");
        bench.pass(2_000);
    }
    assert_eq!(bench.closes.get(&sender), None, "these are known");
}

#[test]
fn a_hundred_logins_in_an_hour_are_churn() {
    let mut bench = Bench::generous();
    for n in 0..99 {
        let conn = bench.log_in(1);
        assert_eq!(bench.closes.get(&conn), None, "{n}");
        bench.pass(30_000);
    }
    let conn = bench.log_in_as(1, Visibility::Unlisted, None);
    assert_eq!(bench.closes.get(&conn), Some(&4003));
}

#[test]
fn attempts_that_are_refused_are_still_flooding() {
    let mut bench = Bench::with(|config| {
        config.limits.per_source = false;
        config.limits.messages_per_minute = 1;
        config.abuse.flooding_messages = 200;
    });
    let conn = bench.log_in(1);
    for n in 0..199 {
        bench.send(conn, 1, 2, &format!("m{n}"));
    }
    assert_eq!(bench.closes.get(&conn), None);
    bench.send(conn, 1, 2, "last");
    assert_eq!(bench.closes.get(&conn), Some(&4003));
}

#[test]
fn a_person_can_ban_and_the_session_ends() {
    let mut bench = Bench::generous();
    let conn = bench.log_in(1);
    let until_ms = bench.now + HOUR;
    bench.handle(Event::Banned { address: super::bench::agent(1).fingerprint(), until_ms });
    assert_eq!(bench.closes.get(&conn), Some(&4003));
}
