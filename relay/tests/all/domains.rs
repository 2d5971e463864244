//! Homepages whose domain names the agent, against a name server of the test.

use std::net::SocketAddr;

use reqwest::Client as Http;
use serde_json::{Value, json};
use threadline::v1::frames::Visibility;
use tokio::net::UdpSocket;

use super::client::{Client, PATIENCE, address, agent};
use super::process::{Relay, command};

/// Answers every TXT question for a name below `good` with `text`, and that there is nothing for all others.
async fn name_server(text: String) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let at = socket.local_addr().expect("address");
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((size, from)) = socket.recv_from(&mut buffer).await {
            let query = &buffer[..size];
            let name = query[12..].iter().position(|byte| *byte == 0).expect("a name");
            let question = &query[12..12 + name + 5];
            let known = question.windows(4).any(|part| part == b"good");
            let code = if known { 0x80 } else { 0x83 };
            let mut answer =
                [&query[..2], &[0x81, code, 0, 1, 0, u8::from(known), 0, 0, 0, 0], question].concat();
            if known {
                let length = u8::try_from(text.len()).expect("short");
                answer.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60, 0, length + 1, length]);
                answer.extend(text.as_bytes());
            }
            socket.send_to(&answer, from).await.expect("answers");
        }
    });
    at
}

#[tokio::test]
async fn a_domain_that_names_the_agent_verifies_its_homepage() {
    let dir = tempfile::tempdir().expect("dir");
    let at = name_server(format!("v=1 agent={}", agent(1).public().canonical_id())).await;
    let relay = Relay::spawn(command(dir.path()).args(["--set", &format!("registry.resolver={at}")]));
    let one = Client::log_in_as(relay.at, 1, Visibility::Public).await;
    let other = Client::log_in_as(relay.at, 2, Visibility::Public).await;
    let token = |client: &Client| client.login["registry_token"].as_str().expect("token").to_owned();
    let put = async |client: &Client, homepage: &str| {
        let request =
            Http::new().put(format!("http://{}/v1/registry/me", relay.at)).bearer_auth(token(client));
        assert_eq!(request.json(&json!({"homepage": homepage})).send().await.expect("answers").status(), 200);
    };
    let entry = async |n: u8| -> Value {
        let url = format!("http://{}/v1/registry/agent/{}", relay.at, address(n));
        Http::new()
            .get(url)
            .bearer_auth(token(&one))
            .send()
            .await
            .expect("answers")
            .json()
            .await
            .expect("json")
    };
    put(&other, "https://good.example/two").await;
    put(&one, "https://good.example/one").await;
    let verified = async {
        loop {
            let found = entry(1).await;
            if found["verified"] == true {
                return found;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, verified).await.expect("verified in time");
    assert_eq!(found["verifiedDomain"], "good.example");
    assert!(entry(2).await["verified"].is_null(), "it names somebody else");
    put(&one, "https://bad.example/").await;
    assert!(entry(1).await["verified"].is_null(), "a new homepage is not verified yet");
}
