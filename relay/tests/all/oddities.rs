//! Frames that once ended or confused a relay, over a real socket: each gets its answer, the session goes on, and
//! nobody else notices.

use serde_json::{Value, json};

use super::client::{Client, address, envelope};
use super::stores::{House, On, on_every_store};

/// Sends one frame and returns the type and code, or status and reason, of its answer.
async fn answer(client: &mut Client, text: &str) -> Option<(String, String)> {
    client.say(text).await;
    // A question with a known answer behind it: what comes before is the answer to the frame.
    client.say(r#"{"type":"bogus-end"}"#).await;
    let mut first = None;
    loop {
        let frame = client.frame().await.expect("the session goes on");
        if frame["message"].as_str().is_some_and(|message| message.contains("bogus-end")) {
            return first;
        }
        let text = |name: &str| frame[name].as_str().map(str::to_owned);
        let what = text("code").or_else(|| text("status")).or_else(|| text("type")).unwrap_or_default();
        first.get_or_insert((frame["type"].as_str().unwrap_or_default().to_owned(), what));
    }
}

fn with(member: &str, value: Value) -> String {
    let mut message = envelope(1, 2, "odd", "e30=");
    message[member] = value;
    json!({"type": "message", "envelope": message}).to_string()
}

async fn odd_frames_are_answered_and_end_nothing(on: On) {
    let house = House::on(on);
    let relay = house.relay_with(&["limits.junk_per_minute=1000", "limits.discover_per_minute=1000"]);
    let mut client = Client::log_in(relay.at, 1).await;
    let invalid = Some(("error".to_owned(), "invalid_frame".to_owned()));
    let refused = [
        "null".to_owned(),
        "[]".to_owned(),
        "17".to_owned(),
        r#""text""#.to_owned(),
        String::new(),
        r#"{"type":null}"#.to_owned(),
        r#"{"type":{"a":1}}"#.to_owned(),
        r#"{"type":"__proto__"}"#.to_owned(),
        r#"{"__proto__":{"type":"message"}}"#.to_owned(),
        r#"{"type":"message","envelope":null}"#.to_owned(),
        r#"{"type":"message","envelope":[]}"#.to_owned(),
        r#"{"type":"message","envelope":"x"}"#.to_owned(),
        r#"{"type":"message","envelope":{"__proto__":{"to":"x"}}}"#.to_owned(),
        r#"{"type":"subscribe","agentIds":7}"#.to_owned(),
        r#"{"type":"subscribe","agentIds":[7]}"#.to_owned(),
        r#"{"type":"ack","messageId":7,"status":"delivered"}"#.to_owned(),
        r#"{"type":"ack"}"#.to_owned(),
        with("to", json!({"id": address(2)})),
        with("to", json!("__proto__")),
        with("to", json!([address(2)])),
        with("to", Value::Null),
        with("from", json!({"__proto__": 1})),
        with("messageId", json!(7)),
        with("timestamp", json!(7)),
        with("threadId", json!({"a": 1})),
        format!(r#"{{"type":"message","envelope":{}{}}}"#, "[".repeat(40), "]".repeat(40)),
    ];
    for text in &refused {
        assert_eq!(answer(&mut client, text).await, invalid, "{text}");
    }
    // A numeric name is no filter at all, for an optional member never fails a frame.
    for filter in [json!({"name": 7}), json!({"name": {"__proto__": 1}}), json!({"capability": [1]})] {
        let text = json!({"type": "discover", "filter": filter}).to_string();
        let got = answer(&mut client, &text).await;
        assert_eq!(got, Some(("discover_result".into(), "discover_result".into())), "{text}");
    }
    for silent in [r#"{"type":"subscribe"}"#, r#"{"type":"pong","timestamp":{"a":[1]}}"#] {
        assert_eq!(answer(&mut client, silent).await, None, "{silent}");
    }
    let extra = with("__proto__", json!({"to": address(3)}));
    assert_eq!(answer(&mut client, &extra).await, Some(("ack".into(), "queued".into())), "carried as it is");
    let mut recipient = Client::log_in(relay.at, 2).await;
    assert_eq!(recipient.message_id().await, "odd");
}

async fn odd_frames_before_the_login_are_refused(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    for text in ["null", r#"{"type":"auth"}"#, r#"{"type":"auth","publicKey":7,"signature":{}}"#, "{}"] {
        let mut client = Client::connect(relay.at, 1).await;
        client.next("challenge").await;
        client.say(text).await;
        assert_eq!(client.next("error").await["code"], "invalid_frame", "{text}");
    }
    let mut client = Client::connect(relay.at, 1).await;
    client.next("challenge").await;
    client.say("x".repeat(5_000)).await;
    assert_eq!(client.closed().await, 1009, "4 KiB before the login");
}

async fn an_id_twice_in_an_envelope_counts_as_its_last(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let mut client = Client::log_in(relay.at, 1).await;
    let twice = with("payload", json!("e30=")).replacen(
        r#""threadId""#,
        &format!(r#""from":"{}","threadId""#, address(9)),
        1,
    );
    client.say(twice).await;
    let ack = client.next("ack").await;
    assert_eq!(
        ack["reason"], "Sender fingerprint mismatch",
        "what the recipient would read is what is checked"
    );
}

on_every_store!(
    odd_frames_are_answered_and_end_nothing,
    odd_frames_before_the_login_are_refused,
    an_id_twice_in_an_envelope_counts_as_its_last,
);
