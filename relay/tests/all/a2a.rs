//! A plain A2A client over HTTP, an agent over the v1 wire, the bridge between them.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Client as Http, StatusCode};
use serde_json::{Value, json};
use threadline::v1::frames::Visibility;

use super::client::{Client, address};
use super::process::{Relay, command, command_at_own_address};

const TOKEN: &str = "a token of sixteen or more";

fn start(dir: &Path, settings: &[&str]) -> Relay {
    let mut command = command(dir);
    command.args(["--set", "public_url=https://relay.example.org"]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    Relay::spawn(&mut command)
}

async fn put_me(relay: &Relay, agent: &Client, change: Value) {
    let token = agent.login["registry_token"].as_str().expect("token");
    let url = format!("http://{}/v1/registry/me", relay.at);
    let answer = Http::new().put(url).bearer_auth(token).json(&change).send().await.expect("answers");
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap_or_default());
}

async fn exposed(relay: &Relay, n: u8, change: Value) -> Client {
    let agent = Client::log_in_as(relay.at, n, Visibility::Public).await;
    put_me(relay, &agent, json!({"capabilities": ["a2a", "chess"]})).await;
    put_me(relay, &agent, change).await;
    agent
}

async fn ask(
    relay: &Relay,
    n: u8,
    token: Option<&str>,
    context: Option<&str>,
    text: &str,
) -> (StatusCode, Value) {
    let url = format!("http://{}/a2a/{}/messages", relay.at, address(n));
    let message = json!({"parts": [{"kind": "text", "text": text}]});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "message/send",
        "params": {"message": message, "contextId": context}});
    let mut request = Http::new().post(url).json(&body);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await.expect("answers");
    (answer.status(), answer.json().await.expect("json"))
}

/// What the bridge wrote to an agent: its payload and its envelope.
async fn heard(agent: &mut Client) -> (Value, Value) {
    let envelope = agent.next("message").await["envelope"].clone();
    let payload = STANDARD.decode(envelope["payload"].as_str().expect("text")).expect("base64");
    let id = envelope["messageId"].as_str().expect("id").to_owned();
    agent.ack(&id).await;
    (serde_json::from_slice(&payload).expect("json"), envelope)
}

async fn reply(agent: &mut Client, to: &Value, id: &str, payload: Value) {
    let envelope = json!({"from": address(agent.n), "to": to["from"], "threadId": to["threadId"], "messageId": id,
        "payload": STANDARD.encode(payload.to_string()), "timestamp": "2026-01-15T12:00:00.000Z"});
    agent.say(json!({"type": "message", "envelope": envelope}).to_string()).await;
}

#[tokio::test]
async fn an_a2a_client_gets_the_answer_of_an_agent_and_a_context_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = start(dir.path(), &[]);
    let mut agent = exposed(&relay, 1, json!({"a2aTokens": [TOKEN]})).await;
    let card = format!("http://{}/a2a/{}/.well-known/agent-card.json", relay.at, address(1));
    let card: Value = reqwest::get(card).await.expect("answers").json().await.expect("json");
    assert_eq!(card["url"], format!("https://relay.example.org/a2a/{}", address(1)));
    assert_eq!(card["skills"][0]["id"], "chess");
    assert_eq!(card["extensions"]["threadline"]["directConnect"], "wss://relay.example.org/v1/connect");

    assert_eq!(ask(&relay, 1, None, None, "hello").await.0, 401);
    assert_eq!(ask(&relay, 1, Some("another token of that length"), None, "hello").await.0, 401);
    let ((status, body), (first, second)) =
        tokio::join!(ask(&relay, 1, Some(TOKEN), Some("made up"), "hello"), async {
            let (payload, envelope) = heard(&mut agent).await;
            reply(&mut agent, &envelope, "r1", json!({"text": "Message received.", "type": "status"})).await;
            reply(&mut agent, &envelope, "r2", json!({"text": "hi there", "type": "chat"})).await;
            (payload, envelope)
        });
    assert_eq!((status, &body["result"]["status"]), (StatusCode::OK, &json!("completed")), "{body}");
    assert_eq!(body["result"]["artifacts"][0]["parts"][0]["text"], "hi there", "not the automatic answer");
    assert_eq!(
        (&first["text"], &first["content"], &first["type"]),
        (&json!("hello"), &json!("hello"), &json!("a2a-message"))
    );
    assert_eq!(first["metadata"]["isNewThread"], true);
    let context = body["result"]["contextId"].as_str().expect("a context").to_owned();
    assert_ne!(context, "made up", "only contexts of ours");
    let task = body["result"]["id"].as_str().expect("a task").to_owned();
    let kept = format!("http://{}/a2a/{}/tasks/{task}", relay.at, address(1));
    let kept: Value = reqwest::get(kept).await.expect("answers").json().await.expect("json");
    assert_eq!(kept["status"], "completed");

    reply(&mut agent, &second, "r3", json!({"text": "late"})).await;
    loop {
        let ack = agent.next("ack").await;
        if ack["messageId"] == "r3" {
            assert_eq!(ack["reason"], "No pending A2A task for this thread");
            break;
        }
    }

    drop(agent);
    relay.kill();
    let relay = start(dir.path(), &[]);
    let mut agent = Client::log_in_as(relay.at, 1, Visibility::Public).await;
    let (_, again) = tokio::join!(ask(&relay, 1, Some(TOKEN), Some(&context), "more"), async {
        let (payload, envelope) = heard(&mut agent).await;
        reply(&mut agent, &envelope, "r4", json!({"text": "yes"})).await;
        assert_eq!(payload["metadata"]["isNewThread"], false);
        envelope
    });
    assert_eq!((&again["threadId"], &again["from"]), (&second["threadId"], &second["from"]));
}

#[tokio::test]
async fn the_official_client_is_served() {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
    let installed = succeeded(tokio::process::Command::new(peers.join("install")).output().await);
    let dir = tempfile::tempdir().expect("dir");
    let (mut command, at) = command_at_own_address(dir.path());
    command.args(["--set", &format!("public_url=http://{at}")]);
    let relay = Relay::spawn(&mut command);
    let mut agent = exposed(&relay, 1, json!({"a2aTokens": [TOKEN]})).await;
    let talk = async {
        for n in 0.. {
            let (payload, envelope) = heard(&mut agent).await;
            let text = payload["text"].as_str().expect("text");
            if text != "say nothing" {
                let answer = json!({"text": format!("you said: {text}")});
                reply(&mut agent, &envelope, &format!("r{n}"), answer).await;
            }
        }
    };
    let mut client = tokio::process::Command::new(Path::new(installed.trim()).join("venv/bin/python"));
    client.arg(peers.join("client.py")).arg(format!("http://{}/a2a/{}", relay.at, address(1))).arg(TOKEN);
    tokio::select! {
        output = client.kill_on_drop(true).output() => assert_eq!(succeeded(output).trim(), "served"),
        () = talk => {}
        () = tokio::time::sleep(Duration::from_mins(1)) => panic!("the client did not end"),
    }
}

/// What a program printed; it ended well.
fn succeeded(output: std::io::Result<std::process::Output>) -> String {
    let output = output.expect("started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn only_who_wants_to_be_called_is_and_limits_hold() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = start(dir.path(), &["limits.per_source=true", "sybil.connections_per_minute=100"]);
    let _plain = Client::log_in_as(relay.at, 2, Visibility::Public).await;
    let (status, body) = ask(&relay, 2, None, None, "hello").await;
    assert_eq!((status, &body["error"]["code"]), (StatusCode::NOT_FOUND, &json!(-32001)));
    let mut agent = exposed(&relay, 1, json!({"a2aMode": "open"})).await;
    let url = format!("http://{}/a2a/{}/messages", relay.at, address(1));
    let wrong = Http::new().post(&url).body("{").send().await.expect("answers");
    assert_eq!(wrong.json::<Value>().await.expect("json")["error"]["code"], -32700);
    let task = async {
        let (_, envelope) = heard(&mut agent).await;
        let id =
            envelope["messageId"].as_str().and_then(|id| id.strip_prefix("a2a-")).expect("id").to_owned();
        let cancel = format!("http://{}/a2a/{}/tasks/{id}:cancel", relay.at, address(1));
        let canceled: Value =
            Http::new().post(cancel).send().await.expect("answers").json().await.expect("json");
        assert_eq!(canceled["status"], "canceled");
    };
    let (answer, ()) = tokio::join!(ask(&relay, 1, None, None, "hello"), task);
    assert_eq!(answer.1["result"]["status"], "canceled");
    // Two of the five a minute are used.
    for _ in 0..3 {
        let _ = tokio::time::timeout(Duration::from_millis(300), ask(&relay, 1, None, None, "x")).await;
    }
    let (status, body) = ask(&relay, 1, None, None, "x").await;
    assert_eq!((status, &body["error"]["code"]), (StatusCode::TOO_MANY_REQUESTS, &json!(-32000)));
}

#[tokio::test]
async fn without_a_public_url_there_is_no_bridge() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = Relay::start(dir.path());
    let card = format!("http://{}/a2a/{}/.well-known/agent-card.json", relay.at, address(1));
    assert_eq!(reqwest::get(card).await.expect("answers").status(), 404);
    assert!(!dir.path().join("bridge-key.json").exists());
}
