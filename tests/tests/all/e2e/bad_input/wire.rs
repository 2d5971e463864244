//! Relays and peers that mean no good, seen by a node.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::{SinkExt, StreamExt};
use instar_tests::harness::{Agent, RawPeer, Relay, World, eventually, isolated};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

const LIMIT: Duration = Duration::from_secs(30);

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn a_hostile_challenge_is_not_signed() {
    isolated(a_hostile_challenge_is_not_signed, async {
        let world = World::new()?;
        let (listener, url) = fake_relay().await?;
        let mut agent = linked(&world, &url).await?;
        agent.launch()?;
        let mut socket = accept(&listener).await?;
        socket
            .send(Message::text(r#"{"type":"challenge","nonce":"{\"from\":\"me\",\"to\":\"you\"}"}"#))
            .await?;
        while let Some(Ok(message)) = tokio::time::timeout(LIMIT, socket.next()).await.context("its end")? {
            let text = message.into_text().unwrap_or_default();
            ensure!(!text.contains("signature"), "the node signed a foreign text: {text}");
        }
        agent.ready().await?;
        eventually(LIMIT, "the status names the bad challenge", async || {
            let status = agent.json(&["threadline", "status"]).await?;
            Ok(status.to_string().contains("bad_challenge").then_some(()))
        })
        .await?;
        Ok(())
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn garbage_from_a_relay_leaves_the_node_healthy() {
    isolated(garbage_from_a_relay_leaves_the_node_healthy, async {
        let world = World::new()?;
        let (listener, url) = fake_relay().await?;
        let mut agent = linked(&world, &url).await?;
        agent.launch()?;
        let garbage = [
            "no json".to_owned(),
            "{}".to_owned(),
            json!({"type": "message"}).to_string(),
            json!({"type": "message", "envelope": 7}).to_string(),
            json!({"type": "message", "envelope": {"from": "x", "to": [], "messageId": ""}}).to_string(),
            json!({"type": "discover_result", "agents": [{"agentId": 5}, null, "x"]}).to_string(),
            json!({"type": "ack"}).to_string(),
            json!({"type": "presence_change", "agentId": "\u{0}", "status": "sideways"}).to_string(),
            format!("{{\"type\":\"message\",\"envelope\":{}{}}}", "[".repeat(60), "]".repeat(60)),
            json!({"type": "message", "envelope": {"payload": "A".repeat(400_000)}}).to_string(),
        ];
        let mut socket = log_in(&listener).await?;
        let mut hung_up = Vec::new();
        for frame in garbage {
            let shown: String = frame.chars().take(80).collect();
            socket.send(Message::text(frame)).await?;
            socket.send(Message::text(json!({"type": "ping", "timestamp": "t"}).to_string())).await?;
            // Either the node answers the ping on the same connection, or it hangs up and comes again.
            if !answers(&mut socket).await.with_context(|| shown.clone())? {
                hung_up.push(shown);
                socket = log_in(&listener).await?;
            }
        }
        ensure!(hung_up.len() <= 2, "only frames over a limit end a connection: {hung_up:#?}");
        agent.ready().await?;
        let status = agent.json(&["threadline", "status"]).await?;
        ensure!(status.is_object(), "{status}");
        Ok(())
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn wrongly_signed_and_replayed_messages_are_not_taken_twice() {
    isolated(wrongly_signed_and_replayed_messages_are_not_taken_twice, async {
        let world = World::new()?;
        let relay = Relay::start(&world, "").await?;
        let mut agent = linked(&world, &relay.url()).await?;
        agent.up().await?;
        let identity = agent.json(&["identity", "show"]).await?;
        let address = identity["fingerprint"].as_str().with_context(|| identity.to_string())?.to_owned();
        let mut stranger = RawPeer::login(&relay.url()).await?;

        // It looks sealed, and its signature is of nobody.
        let mut unsigned = stranger.message(&address, "unsigned", "believe me");
        for (field, bytes) in [("nonce", 24), ("ephemeralPubKey", 32), ("salt", 32), ("signature", 64)] {
            use base64::Engine;
            unsigned["envelope"][field] =
                base64::engine::general_purpose::STANDARD.encode(vec![7; bytes]).into();
        }
        stranger.send(&unsigned).await?;

        let good = stranger.message(&address, "once", "is anybody there?");
        stranger.send(&good).await?;
        eventually(LIMIT, "the good message is held", async || Ok((held(&agent).await? == 1).then_some(())))
            .await?;

        // A relay that forgot everything, or lies, hands out the same envelope again.
        agent.kill().await?;
        let (listener, url) = fake_relay().await?;
        agent.configure(json!({"threadline": {"relayUrl": url}}))?;
        agent.launch()?;
        let mut socket = log_in(&listener).await?;
        for _ in 0..3 {
            socket.send(Message::text(good.to_string())).await?;
        }
        socket.send(Message::text(json!({"type": "ping", "timestamp": "t"}).to_string())).await?;
        answers(&mut socket).await.context("after the replays")?;
        agent.ready().await?;
        let after = held(&agent).await?;
        ensure!(after == 1, "{after} rows for one message and three replays");
        Ok(())
    });
}

/// Whether the node answers a ping before it hangs up.
async fn answers(socket: &mut WebSocketStream<TcpStream>) -> anyhow::Result<bool> {
    loop {
        let next = tokio::time::timeout(LIMIT, socket.next()).await.context("neither answer nor end")?;
        match next {
            Some(Ok(Message::Text(text))) if text.contains("pong") => return Ok(true),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(false),
            Some(Ok(_)) => {}
        }
    }
}

/// Messages that wait for the owner.
async fn held(agent: &Agent) -> anyhow::Result<usize> {
    let approvals = agent.json(&["threadline", "approvals"]).await?;
    let listed = ["approvals", "items"].iter().find_map(|list| approvals[list].as_array());
    Ok(listed.with_context(|| approvals.to_string())?.len())
}

async fn linked(world: &World, url: &str) -> anyhow::Result<Agent> {
    let mut account = world.account("ann")?;
    account.configure(json!({"threadline": {"localRelay": "off", "relayEnabled": true, "relayUrl": url}}));
    account.agent("alpha").await
}

async fn fake_relay() -> anyhow::Result<(TcpListener, String)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let url = format!("ws://{}/v1/connect", listener.local_addr()?);
    Ok((listener, url))
}

async fn accept(listener: &TcpListener) -> anyhow::Result<WebSocketStream<TcpStream>> {
    // Plain HTTP questions (health, registry) come to the same port; they are not for this scenario.
    loop {
        let (stream, _) = tokio::time::timeout(LIMIT * 2, listener.accept()).await.context("no client")??;
        if let Ok(socket) = tokio_tungstenite::accept_async(stream).await {
            return Ok(socket);
        }
    }
}

/// Plays the relay up to `auth_ok`.
async fn log_in(listener: &TcpListener) -> anyhow::Result<WebSocketStream<TcpStream>> {
    let mut socket = accept(listener).await?;
    let nonce = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    socket.send(Message::text(json!({"type": "challenge", "nonce": nonce}).to_string())).await?;
    let auth = tokio::time::timeout(LIMIT, socket.next()).await?.context("no auth")??;
    let auth: Value = serde_json::from_str(&auth.into_text()?)?;
    ensure!(auth["type"] == "auth" && auth["metadata"].is_object(), "{auth}");
    let ok = json!({"type": "auth_ok", "sessionId": "relay-0011223344556677", "heartbeatInterval": 60_000});
    socket.send(Message::text(ok.to_string())).await?;
    Ok(socket)
}
