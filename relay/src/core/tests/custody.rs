//! What happens to a message between two agents.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use serde_json::{Value, json};

use super::bench::{Bench, On, envelope};
use crate::core::{ConnId, Event};

fn status(ack: &Value) -> &str {
    ack["status"].as_str().unwrap_or("none")
}

fn an_absent_recipient_gets_it_later_and_the_sender_hears_of_both(on: On) {
    let mut bench = Bench::generous_on(on, |_| {});
    let sender = bench.log_in(1);
    let ack = bench.send_and_hear(sender, 1, 2, "m1");
    assert_eq!(ack, json!({"type": "ack", "messageId": "m1", "status": "queued", "ttl": 86400}));
    let recipient = bench.log_in(2);
    let got = bench.got_only(recipient, "message");
    assert_eq!(got[0]["envelope"], envelope(1, 2, "m1"), "unchanged");
    bench.ack(recipient, "m1");
    assert_eq!(status(&bench.got_only(sender, "ack")[0]), "delivered");
    assert_eq!(bench.totals().messages, 0);
}

fn the_first_answer_is_delivered_only_within_two_seconds(on: On) {
    let mut bench = Bench::generous_on(on, |_| {});
    let (sender, recipient) = (bench.log_in(1), bench.log_in(2));
    assert_eq!(bench.send_and_hear(sender, 1, 2, "fast"), Value::Null, "not before it is confirmed");
    bench.ack(recipient, "fast");
    assert_eq!(status(&bench.got_only(sender, "ack")[0]), "delivered");
    bench.send(sender, 1, 2, "slow");
    bench.pass(1_999);
    assert!(bench.got_only(sender, "ack").is_empty());
    bench.pass(1);
    assert_eq!(status(&bench.got_only(sender, "ack")[0]), "queued");
    bench.ack(recipient, "slow");
    assert_eq!(status(&bench.got_only(sender, "ack")[0]), "delivered");
}

fn a_pong_without_timestamp_confirms_what_was_written_before_its_ping(on: On) {
    let mut bench = Bench::generous_on(on, |_| {});
    let (sender, recipient) = (bench.log_in(1), bench.log_in(2));
    bench.send(sender, 1, 2, "before");
    bench.pass(200);
    assert_eq!(bench.got_only(recipient, "ping").len(), 1, "one ping within 200 ms");
    bench.send(sender, 1, 2, "after");
    bench.frame(recipient, &json!({"type": "pong"}));
    let acks = bench.got_only(sender, "ack");
    assert_eq!(acks.len(), 1);
    assert_eq!(acks[0]["messageId"], "before");
    assert_eq!(bench.totals().messages, 1);
    bench.frame(recipient, &json!({"type": "pong"}));
    assert_eq!(bench.totals().messages, 1, "an unasked pong proves nothing");
}

fn without_a_pong_for_twenty_seconds_it_is_sent_again(on: On) {
    let mut bench = Bench::generous_on(on, |_| {});
    let (sender, recipient) = (bench.log_in(1), bench.log_in(2));
    bench.send(sender, 1, 2, "m1");
    assert_eq!(bench.message_ids(recipient), ["m1"]);
    bench.pass(19_900);
    assert!(bench.message_ids(recipient).is_empty());
    bench.pass(300);
    assert_eq!(bench.message_ids(recipient), ["m1"]);
    bench.frame(recipient, &json!({"type": "pong"}));
    assert_eq!(bench.totals().messages, 0, "the late pong confirms the first copy");
}

fn a_repeat_gets_its_answer_again_and_other_bytes_are_refused(on: On) {
    let mut bench = Bench::generous_on(on, |_| {});
    let sender = bench.log_in(1);
    bench.send_and_hear(sender, 1, 2, "m1");
    assert_eq!(status(&bench.send_and_hear(sender, 1, 2, "m1")), "queued");
    assert_eq!(bench.totals().messages, 1);
    let mut other = envelope(1, 2, "m1");
    other["payload"] = json!("e30=");
    bench.frame(sender, &json!({"type": "message", "envelope": other}));
    let refusal = bench.got_only(sender, "ack").remove(0);
    assert_eq!(refusal["reason"], "Duplicate message ID (replay detected)");
    let recipient = bench.log_in(2);
    bench.ack(recipient, "m1");
    bench.got(sender);
    assert_eq!(status(&bench.send_and_hear(sender, 1, 2, "m1")), "delivered");
    assert!(bench.message_ids(recipient).len() == 1, "delivered once");
}

fn at_most_thirty_two_are_on_their_way(on: On) {
    let mut bench = Bench::generous_on(on, |_| {});
    let sender = bench.log_in(1);
    for n in 0..100 {
        bench.send(sender, 1, 2, &format!("m{n:03}"));
    }
    let recipient = bench.log_in(2);
    let mut order = bench.message_ids(recipient);
    assert_eq!(order.len(), 32);
    while order.len() < 100 {
        bench.frame(recipient, &json!({"type": "pong"}));
        order.extend(bench.message_ids(recipient));
        bench.pass(60);
    }
    let expected: Vec<String> = (0..100).map(|n| format!("m{n:03}")).collect();
    assert_eq!(order, expected, "in the order of acceptance");
}

fn five_hundred_queued_are_all_offered_within_three_seconds(on: On) {
    let mut bench = Bench::generous_on(on, |_| {});
    let sender = bench.log_in(1);
    for n in 0..500 {
        bench.send(sender, 1, 2, &format!("m{n}"));
    }
    let recipient = bench.log_in(2);
    let (start, mut seen) = (bench.now, 0);
    while bench.now - start <= 3_000 && seen < 500 {
        let ids = bench.message_ids(recipient);
        seen += ids.len();
        for id in ids {
            bench.ack(recipient, &id);
        }
        bench.pass(10);
    }
    assert_eq!(seen, 500);
    assert!(bench.now - start > 1_900, "at most 200 a second");
}

fn storage_that_fails_accepts_nothing_and_counts_nothing(on: On) {
    let mut bench = Bench::on(on, |config| {
        config.sybil.tiers = false;
        config.limits.messages_per_minute = 1;
    });
    let sender = bench.log_in(1);
    bench.broken = true;
    let refusal = bench.send_and_hear(sender, 1, 2, "m1");
    assert_eq!(refusal["reason"], "Relay storage unavailable");
    bench.broken = false;
    assert_eq!(status(&bench.send_and_hear(sender, 1, 2, "m1")), "queued", "the limit of one is not used up");
    bench.handle(Event::Custody { open: false });
    bench.pass(60_000);
    assert_eq!(bench.send_and_hear(sender, 1, 2, "m2")["reason"], "Relay storage unavailable");
}

fn a_confirmation_that_cannot_be_stored_is_tried_again(on: On) {
    let mut bench = Bench::generous_on(on, |_| {});
    let (sender, recipient) = (bench.log_in(1), bench.log_in(2));
    bench.send(sender, 1, 2, "m1");
    bench.broken = true;
    bench.ack(recipient, "m1");
    assert!(bench.got_only(sender, "ack").is_empty());
    bench.broken = false;
    bench.pass(1_000);
    assert_eq!(status(&bench.got_only(sender, "ack")[0]), "delivered");
}

fn what_expires_is_told_to_its_sender(on: On) {
    let mut bench = Bench::generous_on(on, |_| {});
    let sender = bench.log_in(1);
    bench.send(sender, 1, 2, "m1");
    bench.got(sender);
    for _ in 0..(86_400 / 60) {
        bench.pass(60_000);
        bench.frame(sender, &json!({"type": "pong"}));
    }
    bench.pass(30_000);
    let notice = bench.got_only(sender, "delivery_expired").remove(0);
    assert_eq!(notice["messageId"], "m1");
    assert_eq!(notice["queuedAt"], "2026-01-15T12:00:00.000Z");
    assert_eq!(bench.totals().messages, 0);
}

fn flat_frames_of_other_clients_become_envelopes(on: On) {
    let mut bench = Bench::generous_on(on, |_| {});
    let (sender, recipient) = (bench.log_in(1), bench.log_in(2));
    let to = super::bench::address(2);
    bench.frame(sender, &json!({"type": "message", "to": to, "text": "hi"}));
    let got = bench.got_only(recipient, "message").remove(0);
    assert_eq!(got["envelope"]["from"], super::bench::address(1));
    assert!(got["envelope"]["messageId"].as_str().is_some_and(|id| id.len() == 36));
}

#[derive(Debug, Clone)]
enum Step {
    Send { from: u8, to: u8 },
    Ack { who: u8 },
    Pong { who: u8 },
    Leave { who: u8 },
    Come { who: u8 },
    Pass { ms: i64 },
    Crash,
    Break { broken: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let who = 1u8..4;
    prop_oneof![
        6 => (who.clone(), who.clone()).prop_map(|(from, to)| Step::Send { from, to }),
        3 => who.clone().prop_map(|who| Step::Ack { who }),
        3 => who.clone().prop_map(|who| Step::Pong { who }),
        1 => who.clone().prop_map(|who| Step::Leave { who }),
        3 => who.prop_map(|who| Step::Come { who }),
        3 => (0i64..30_000).prop_map(|ms| Step::Pass { ms }),
        1 => Just(Step::Crash),
        1 => any::<bool>().prop_map(|broken| Step::Break { broken }),
    ]
}

/// Three agents, what they were promised and what they saw.
struct World {
    bench: Bench,
    online: BTreeMap<u8, ConnId>,
    promised: BTreeMap<(u8, u8), Vec<String>>,
    seen: BTreeMap<u8, Vec<(String, String)>>,
    sent: u32,
}

impl World {
    fn collect(&mut self) {
        for (who, conn) in self.online.clone() {
            for frame in self.bench.got(conn) {
                let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                if frame["type"] == "message" {
                    let envelope = &frame["envelope"];
                    let entry = (text(&envelope["from"]), text(&envelope["messageId"]));
                    self.seen.entry(who).or_default().push(entry);
                } else if frame["type"] == "ack" && frame["status"] != "rejected" {
                    let id = text(&frame["messageId"]);
                    let to: u8 = id.split('-').nth(1).and_then(|n| n.parse().ok()).expect("own id");
                    let list = self.promised.entry((who, to)).or_default();
                    if !list.contains(&id) {
                        list.push(id);
                    }
                }
            }
        }
        let closed: Vec<u8> =
            self.online.iter().filter(|(_, c)| self.bench.closes.contains_key(c)).map(|(w, _)| *w).collect();
        self.online.retain(|who, _| !closed.contains(who));
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Send { from, to } => {
                let Some(conn) = self.online.get(&from).copied() else { return };
                self.sent += 1;
                self.bench.send(conn, from, to, &format!("{from}-{to}-{}", self.sent));
            }
            Step::Ack { who } => {
                let last = self.seen.get(&who).and_then(|seen| seen.last().cloned());
                let (Some(conn), Some((_, id))) = (self.online.get(&who).copied(), last) else { return };
                self.bench.ack(conn, &id);
            }
            Step::Pong { who } => {
                if let Some(conn) = self.online.get(&who).copied() {
                    self.bench.frame(conn, &json!({"type": "pong"}));
                }
            }
            Step::Leave { who } => {
                self.collect();
                if let Some(conn) = self.online.remove(&who) {
                    self.bench.handle(Event::Closed { conn });
                }
            }
            Step::Come { who } => {
                if !self.online.contains_key(&who) && !self.bench.broken {
                    let conn = self.bench.log_in(who);
                    self.online.insert(who, conn);
                }
            }
            Step::Pass { ms } => self.bench.pass(ms),
            Step::Crash => {
                self.collect();
                self.online.clear();
                self.bench.crash();
            }
            Step::Break { broken } => self.bench.broken = broken,
        }
        self.collect();
    }
}

/// Whatever happens: what a sender was promised reaches the recipient's socket, first copies in order.
fn check_promises(bench: Bench, steps: Vec<Step>) -> Bench {
    let mut world =
        World { bench, online: BTreeMap::new(), promised: BTreeMap::new(), seen: BTreeMap::new(), sent: 0 };
    for step in steps {
        world.run(step);
    }
    world.run(Step::Break { broken: false });
    for who in 1..4 {
        world.run(Step::Leave { who });
        world.run(Step::Come { who });
    }
    for _ in 0..40 {
        for who in 1..4 {
            world.run(Step::Pong { who });
        }
        world.run(Step::Pass { ms: 1_000 });
    }
    for ((from, to), ids) in &world.promised {
        let sender = super::bench::address(*from);
        let mut seen: Vec<&String> = Vec::new();
        for (s, id) in world.seen.get(to).into_iter().flatten().filter(|(s, _)| *s == sender) {
            let _ = s;
            if !seen.contains(&id) {
                seen.push(id);
            }
        }
        for id in ids {
            assert!(seen.contains(&id), "{id} was promised and lost");
        }
        let numbers: Vec<u32> = seen.iter().filter_map(|id| id.rsplit('-').next()?.parse().ok()).collect();
        assert!(numbers.is_sorted(), "first copies out of order: {numbers:?}");
    }
    assert_eq!(world.bench.totals().messages, 0, "nothing is left behind");
    let now = world.bench.now;
    assert_eq!(world.bench.core.snapshot(now).queue, world.bench.totals());
    world.bench
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_promise_is_kept(steps in proptest::collection::vec(step(), 1..120)) {
        check_promises(Bench::generous(), steps);
    }
}

#[test]
fn every_promise_is_kept_on_nats() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut bench = Bench::generous_on(On::Nats, |_| {});
    for _ in 0..8 {
        let steps = proptest::collection::vec(step(), 1..120).new_tree(&mut runner).expect("steps").current();
        bench = check_promises(bench, steps).renew();
    }
}

macro_rules! on_every_engine {
    ($($test:ident),* $(,)?) => {
        mod log {
            $(#[test]
            fn $test() {
                super::$test(super::On::Log);
            })*
        }
        mod nats {
            $(#[test]
            fn $test() {
                super::$test(super::On::Nats);
            })*
        }
    };
}

on_every_engine!(
    an_absent_recipient_gets_it_later_and_the_sender_hears_of_both,
    the_first_answer_is_delivered_only_within_two_seconds,
    a_pong_without_timestamp_confirms_what_was_written_before_its_ping,
    without_a_pong_for_twenty_seconds_it_is_sent_again,
    a_repeat_gets_its_answer_again_and_other_bytes_are_refused,
    at_most_thirty_two_are_on_their_way,
    five_hundred_queued_are_all_offered_within_three_seconds,
    storage_that_fails_accepts_nothing_and_counts_nothing,
    a_confirmation_that_cannot_be_stored_is_tried_again,
    what_expires_is_told_to_its_sender,
    flat_frames_of_other_clients_become_envelopes,
);
