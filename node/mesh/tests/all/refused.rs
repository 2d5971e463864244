use std::sync::Arc;

use serde_json::{Value, json};
use threadline::service::{Caller, Threadline, Tool, ToolCall};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::bench::{LIMIT, Node, Peer, config, open, until};
use super::sessions::Sessions;

#[tokio::test]
async fn a_damaged_or_missing_identity_refuses_threadline_and_leaves_the_node_alive() {
    for (file, content, code) in [
        ("identity.json", "{", "identity-corrupt"),
        ("threadline/trust-profiles.json", "{\"profiles\":{}}", "identity-missing"),
    ] {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("agent/.instar").join(file);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        std::fs::write(&path, content).expect("write");
        let (mesh, notices) =
            open(dir.path(), config("ws://127.0.0.1:1"), Arc::new(Sessions::default())).await;
        assert_eq!(mesh.refusal().map(|r| r.code), Some(code));
        assert_eq!(mesh.health()["status"], "error");
        assert_eq!(mesh.status().await.expect("status")["state"], code);
        assert_eq!(notices.degradations().len(), 1);
        let call = ToolCall::parse(Tool::ThreadlineAgents, Value::Null).expect("call");
        assert_eq!(mesh.call(Caller::Owner, call).await.expect_err("refused").code, "threadline-unavailable");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), content, "nothing was touched");
    }
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_left_alone() {
    let dir = tempfile::tempdir().expect("dir");
    let data = dir.path().join("agent/.instar/state");
    std::fs::create_dir_all(&data).expect("directory");
    let first = open(dir.path(), config("ws://127.0.0.1:1"), Arc::new(Sessions::default())).await;
    drop(first);
    let file = rusqlite::Connection::open(data.join("threadline.sqlite")).expect("open");
    file.pragma_update(None, "user_version", 999).expect("version");
    drop(file);
    let (mesh, _) = open(dir.path(), config("ws://127.0.0.1:1"), Arc::new(Sessions::default())).await;
    let refusal = mesh.refusal().expect("refused");
    assert_eq!(refusal.code, "state-too-new");
    assert!(refusal.message.contains("999"), "{}", refusal.message);
}

/// Another agent of this account: answers on its socket as a node does.
async fn serve(listener: UnixListener, node: Arc<instar_mesh::Mesh>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        let body = loop {
            let n = stream.read(&mut chunk).await.expect("read");
            bytes.extend_from_slice(&chunk[..n]);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && (head.starts_with("GET") || body.ends_with('}'))
            {
                break if head.starts_with("GET") {
                    node.health()
                } else {
                    let asked: Value = serde_json::from_str(body).expect("JSON");
                    node.challenge(asked["nonce"].as_str().expect("nonce")).expect("answer")
                };
            }
        };
        let body = body.to_string();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_this_account_becomes_verified_by_its_socket_and_is_written_to_sealed() {
    let node = Node::start().await;
    let dir = tempfile::tempdir().expect("dir");
    let (other, _) = open(dir.path(), config("ws://127.0.0.1:1"), Arc::new(Sessions::default())).await;
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    let server = tokio::spawn(serve(listener, Arc::clone(&other)));
    let home = node.dir.path().join("home/.instar");
    std::fs::create_dir_all(&home).expect("home");
    let start = std::fs::read_to_string("/proc/self/stat").expect("stat");
    let start: u64 = start
        .rsplit(')')
        .next()
        .expect("tail")
        .split_whitespace()
        .nth(19)
        .expect("start")
        .parse()
        .expect("number");
    let registry = json!({"version": 1, "entries": [{
        "name": "other", "type": "standalone", "path": dir.path().join("agent"), "port": 1,
        "pid": std::process::id(), "pidStartTime": start, "status": "running",
        "createdAt": "2026-01-01T00:00:00.000Z", "lastHeartbeat": "2026-01-01T00:00:00.000Z",
        "instarVersion": "0", "socket": socket}]});
    std::fs::write(home.join("registry.json"), registry.to_string()).expect("registry");
    let fp = other.fingerprint().expect("identity");
    let found = node.call(Caller::Local, Tool::ThreadlineDiscover, json!({})).await.expect("discover");
    assert_eq!(found["count"], 1, "{found}");
    assert_eq!(found["agents"][0]["trustLevel"], "verified");
    assert_eq!(found["agents"][0]["trustSource"], "os-verified");
    let sent = json!({"agentId": "node", "message": "hi", "waitForReply": false});
    let sent = node.call(Caller::Local, Tool::ThreadlineSend, sent).await.expect("send by name");
    assert_eq!((&sent["encryption"], &sent["resolvedAgent"]["fingerprint"]), (&json!("e2e"), &json!(fp)));
    let mut relay = node.relay().await;
    assert!(relay.message().await.is_sealed());

    node.mesh
        .set_trust(&Caller::Owner, &fp.to_string(), "untrusted".parse().expect("level"), None)
        .await
        .expect("lower");
    node.call(Caller::Local, Tool::ThreadlineDiscover, json!({})).await.expect("discover");
    let agent = node.mesh.agent(&fp.to_string()).await.expect("agent");
    assert_eq!(agent["trustLevel"], "untrusted", "what the owner lowered stays low");
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_room_stops_in_order() {
    let mut node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(9);
    relay.send(&peer.says(node.us(), "t", "m", "hello?")).await;
    relay.taken("m").await;
    until("the link is up", || async {
        let state = node.mesh.health()["relay"]["state"].clone();
        (state == "connected").then_some(()).ok_or(state.to_string())
    })
    .await;
    tokio::time::timeout(LIMIT, node.stop()).await.expect("in time");
}
