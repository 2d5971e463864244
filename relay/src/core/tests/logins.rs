//! From the socket to the session, presence and discovery.

use serde_json::{Value, json};
use threadline::v1::frames::{ClientFrame, Visibility};

use super::bench::{Bench, address, agent};
use crate::store::{RegistryOp, StoreOp};

#[test]
fn a_login_is_answered_with_session_token_and_listing() {
    let mut bench = Bench::new();
    let conn = bench.log_in_as(1, Visibility::Public, None);
    let ok = bench.got(conn).remove(0);
    assert_eq!(ok["type"], "auth_ok");
    assert!(ok["sessionId"].as_str().is_some_and(|id| id.starts_with("relay-") && id.len() == 22));
    assert_eq!(ok["registry_status"], "listed");
    assert_eq!(ok["registry_token_expires"], "2026-01-15T13:00:00.000Z");
    assert!(ok["registry_notice"].as_str().is_some_and(|n| n.contains("2026-01-15T13:00:00.000Z")));
}

#[test]
fn every_refused_login_closes_its_socket() {
    let mut bench = Bench::new();
    let good = |bench: &mut Bench| {
        let conn = bench.open();
        let auth = bench.auth(conn, 1, Visibility::Unlisted, None);
        (conn, auth)
    };
    let (conn, mut auth) = good(&mut bench);
    auth.agent_id = Some(address(2));
    bench.text(conn, &ClientFrame::Auth(Box::new(auth)).to_text());
    assert_eq!(bench.got(conn)[0]["code"], "auth_failed");
    assert_eq!(bench.closes[&conn], 4002);

    let (conn, mut auth) = good(&mut bench);
    auth.signature = "AAAA".into();
    bench.text(conn, &ClientFrame::Auth(Box::new(auth)).to_text());
    assert_eq!(bench.closes[&conn], 4002);

    let (conn, _) = good(&mut bench);
    bench.frame(conn, &json!({"type": "discover"}));
    assert_eq!(
        bench.got(conn),
        [json!({"type": "error", "code": "auth_failed", "message": "Not authenticated"})]
    );
    bench.pass(10_000);
    assert_eq!(bench.got(conn)[0]["code"], "auth_timeout");
    assert_eq!(bench.closes[&conn], 4008);
}

#[test]
fn a_failing_storage_lets_nobody_in() {
    let mut bench = Bench::new();
    bench.broken = true;
    let conn = bench.log_in_as(1, Visibility::Unlisted, None);
    assert_eq!(bench.got(conn)[0]["code"], "internal_error");
    assert_eq!(bench.closes[&conn], 4002);
}

#[test]
fn a_token_only_session_displaces_nobody_and_may_do_nothing() {
    let mut bench = Bench::new();
    let main = bench.log_in_as(1, Visibility::Public, None);
    bench.got(main);
    let second = bench.open();
    let mut auth = bench.auth(second, 1, Visibility::Unlisted, None);
    auth.agent_id = None;
    bench.text(second, &ClientFrame::Auth(Box::new(auth)).to_text());
    let ok = bench.got(second).remove(0);
    assert!(ok["registry_token"].is_string() && ok["registry_status"].is_null());
    assert!(bench.got(main).is_empty() && !bench.closes.contains_key(&main));
    bench.send(second, 1, 2, "m");
    assert_eq!(bench.got(second)[0]["code"], "auth_failed");
    bench.pass(30_000);
    assert_eq!(bench.closes[&second], 1000);
    let entry = bench.log_in_as(1, Visibility::Public, None);
    assert_eq!(bench.got(entry)[0]["registry_status"], "listed", "the entry was left alone");
}

#[test]
fn a_second_session_displaces_the_first_before_it_is_welcome() {
    let mut bench = Bench::generous();
    let watcher = bench.log_in(9);
    bench.frame(watcher, &json!({"type": "subscribe", "agentIds": [address(1)]}));
    let first = bench.log_in(1);
    assert_eq!(bench.got(watcher)[0]["status"], "online");
    let sender = bench.log_in(2);
    bench.send(sender, 2, 1, "m1");
    assert_eq!(bench.message_ids(first), ["m1"]);
    let second = bench.log_in(1);
    assert_eq!(bench.got(first)[0]["type"], "displaced");
    assert_eq!(bench.closes[&first], 4001);
    assert_eq!(bench.message_ids(second), ["m1"], "what was not confirmed comes again");
    bench.pass(10_000);
    assert!(bench.got(watcher).iter().all(|f| f["type"] != "presence_change"), "no flapping");
}

#[test]
fn a_reconnect_within_three_seconds_is_not_seen() {
    let mut bench = Bench::generous();
    let watcher = bench.log_in(9);
    bench.frame(watcher, &json!({"type": "subscribe", "agentIds": [address(1), "nonsense"]}));
    let first = bench.log_in(1);
    bench.handle(crate::core::Event::Closed { conn: first });
    bench.pass(2_900);
    let again = bench.log_in(1);
    bench.pass(5_000);
    let statuses = |frames: Vec<Value>| -> Vec<String> {
        frames.iter().filter(|f| f["type"] == "presence_change").map(|f| f["status"].to_string()).collect()
    };
    assert_eq!(statuses(bench.got(watcher)), ["\"online\""]);
    bench.frame(again, &json!({"type": "presence", "status": "offline", "agentId": address(1)}));
    assert_eq!(bench.closes[&again], 1000);
    bench.pass(3_000);
    assert_eq!(statuses(bench.got(watcher)), ["\"offline\""]);
}

#[test]
fn presence_is_shown_to_whom_it_may_be() {
    let mut bench = Bench::generous();
    let everyone = bench.log_in(8);
    bench.frame(everyone, &json!({"type": "subscribe"}));
    let named = bench.log_in(9);
    let ids: Vec<String> = (1..=4).map(address).collect();
    bench.frame(named, &json!({"type": "subscribe", "agentIds": ids}));
    bench.log_in_as(1, Visibility::Public, None);
    bench.log_in_as(2, Visibility::Unlisted, None);
    bench.log_in_as(3, Visibility::Private, None);
    bench.log_in_as(4, Visibility::Unlisted, Some(true));
    let who = |frames: Vec<Value>| -> Vec<String> {
        frames.iter().map(|f| f["agentId"].as_str().expect("id").to_owned()).collect()
    };
    assert_eq!(who(bench.got(everyone)), [address(1), address(4)], "public and listed");
    assert_eq!(who(bench.got(named)), [address(1), address(2), address(4)]);
}

#[test]
fn discover_finds_listed_agents_ten_times_a_minute() {
    let mut bench = Bench::generous();
    bench.log_in_as(1, Visibility::Public, None);
    let gone = bench.log_in_as(2, Visibility::Public, None);
    bench.log_in_as(3, Visibility::Unlisted, None);
    let asker = bench.log_in(4);
    bench.handle(crate::core::Event::Closed { conn: gone });
    bench.pass(3_000);
    bench.got(asker);
    bench.frame(asker, &json!({"type": "discover"}));
    let agents = bench.got(asker).remove(0)["agents"].clone();
    let seen: Vec<(Value, Value)> = agents
        .as_array()
        .expect("list")
        .iter()
        .map(|a| (a["agentId"].clone(), a["status"].clone()))
        .collect();
    assert_eq!(seen, [(json!(address(1)), json!("online")), (json!(address(2)), json!("offline"))]);
    assert!(agents[0]["identityKey"].is_string() && agents[0]["publicKey"].is_null());
    bench.frame(asker, &json!({"type": "discover", "filter": {"name": "AGENT 2"}}));
    assert_eq!(bench.got(asker)[0]["agents"].as_array().map(Vec::len), Some(1));
    for _ in 0..8 {
        bench.frame(asker, &json!({"type": "discover"}));
    }
    assert!(bench.got(asker).iter().all(|f| f["type"] == "discover_result"));
    bench.frame(asker, &json!({"type": "discover"}));
    assert_eq!(bench.got(asker)[0]["code"], "rate_limited");
}

#[test]
fn a_banned_key_is_told_until_when() {
    let mut bench = Bench::generous();
    let key = *agent(1).public().as_bytes();
    let op = RegistryOp::Ban { key, pattern: crate::abuse::Pattern::Junk, now_ms: bench.now };
    bench.store.apply(&StoreOp::Registry(op)).expect("ban");
    bench.crash();
    let conn = bench.log_in_as(1, Visibility::Unlisted, None);
    let refusal = bench.got(conn).remove(0);
    assert_eq!(refusal["code"], "banned");
    assert!(refusal["message"].as_str().is_some_and(|m| m.contains("until 2026-01-15T12:10:00.000Z")));
    assert_eq!(bench.closes[&conn], 4003);
    bench.pass(600_000);
    bench.log_in(1);
}

#[test]
fn junk_is_answered_and_too_much_of_it_banned() {
    let mut bench = Bench::generous();
    let conn = bench.log_in(1);
    for text in ["not json", "[]", "{\"type\":\"message\"}", "{\"type\":\"message\",\"envelope\":[]}"] {
        bench.text(conn, text);
        assert_eq!(bench.got(conn)[0]["code"], "invalid_frame", "{text}");
    }
    for _ in 0..16 {
        bench.text(conn, "junk");
    }
    assert!(!bench.closes.contains_key(&conn));
    bench.text(conn, "junk");
    assert_eq!(bench.closes[&conn], 4003);
    let again = bench.log_in_as(1, Visibility::Unlisted, None);
    assert_eq!(bench.got(again)[0]["code"], "banned");
}

#[test]
fn a_silent_client_is_closed_after_three_pings() {
    let mut bench = Bench::generous();
    let conn = bench.log_in(1);
    while bench.got_only(conn, "ping").is_empty() {
        bench.pass(1_000);
    }
    bench.frame(conn, &json!({"type": "pong"}));
    let (start, mut pings) = (bench.now, 0);
    while !bench.closes.contains_key(&conn) {
        bench.pass(1_000);
        pings += bench.got_only(conn, "ping").len();
    }
    assert_eq!((pings, bench.closes[&conn]), (3, 4000));
    assert!((180_000..=305_000).contains(&(bench.now - start)), "{}", bench.now - start);
}
