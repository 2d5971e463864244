//! Two rooms on one host without any relay: posted messages, files, pairing. A small server stands for the routes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path as Segment, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use instar_mesh::{Mesh, SignedRequest, WireAnswer};
use instar_state::notices::NoticeBoard;
use instar_state::time::now_ms;
use serde_json::{Value, json};
use threadline::Fingerprint;
use threadline::identity::Identity;
use threadline::service::{Caller, Threadline, Tool, ToolCall};
use threadline::v1::http::signed::SignedHeaders;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::bench::{self, until};
use super::sessions::Sessions;

/// One agent of the host, served on a port.
struct Server {
    mesh: Arc<Mesh>,
    notices: Arc<NoticeBoard>,
    port: u16,
    name: &'static str,
    home: PathBuf,
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

fn answer(answer: WireAnswer) -> impl IntoResponse {
    (StatusCode::from_u16(answer.status).expect("a status"), Json(answer.body))
}

fn signed(headers: &HeaderMap) -> Result<SignedHeaders, threadline::v1::http::TlError> {
    SignedHeaders::read(|name| headers.get(name).and_then(|v| v.to_str().ok()))
}

fn router(mesh: Arc<Mesh>) -> Router {
    Router::new()
        .route("/threadline/health", get(|State(m): State<Arc<Mesh>>| async move { Json(m.health()) }))
        .route(
            "/messages/relay-agent",
            post(|State(m): State<Arc<Mesh>>, headers: HeaderMap, body: Bytes| async move {
                let token = headers.get("authorization").and_then(|v| v.to_str().ok());
                answer(m.relay_agent(token.and_then(|t| t.strip_prefix("Bearer ")), &body).await)
            }),
        )
        .route(
            "/threadline/handshake/hello",
            post(|State(m): State<Arc<Mesh>>, body: Bytes| async move {
                answer(m.handshake_hello("127.0.0.1", &body).await)
            }),
        )
        .route(
            "/threadline/handshake/confirm",
            post(|State(m): State<Arc<Mesh>>, body: Bytes| async move {
                answer(m.handshake_confirm(&body).await)
            }),
        )
        .route(
            "/threadline/messages/receive",
            post(|State(m): State<Arc<Mesh>>, headers: HeaderMap, uri: Uri, body: Bytes| async move {
                let request = SignedRequest { method: "POST", path: uri.path(), body: &body };
                answer(m.receive_signed(signed(&headers), request).await)
            }),
        )
        .route(
            "/threadline/messages/thread/{id}",
            get(
                |State(m): State<Arc<Mesh>>, headers: HeaderMap, uri: Uri, Segment(id): Segment<String>| async move {
                    let request = SignedRequest { method: "GET", path: uri.path(), body: &[] };
                    answer(m.thread_signed(signed(&headers), request, &id, None, None).await)
                },
            ),
        )
        .with_state(mesh)
}

impl Server {
    /// `account` holds the folders that agents of one account share.
    async fn start(account: &Path, name: &'static str, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let mut config = bench::config("ws://127.0.0.1:1/");
        config.relay_url = None;
        let dir = account.join(name);
        std::fs::create_dir_all(dir.join("agent/src")).expect("project");
        let sessions = Arc::new(Sessions::default());
        let (mesh, notices) = bench::open_as(&dir, &account.join("home"), name, port, config, sessions).await;
        let stop = CancellationToken::new();
        let (room, cancel) = (Arc::clone(&mesh), stop.clone());
        let served = axum::serve(listener, router(Arc::clone(&mesh))).with_graceful_shutdown({
            let stop = stop.clone();
            async move { stop.cancelled().await }
        });
        let tasks = vec![
            tokio::spawn(async move { room.run(cancel).await }),
            tokio::spawn(async move { served.await.expect("serve") }),
        ];
        Self { mesh, notices, port, name, home: account.join("home"), stop, tasks }
    }

    async fn stop(self) -> u16 {
        self.stop.cancel();
        for task in self.tasks {
            tokio::time::timeout(bench::LIMIT, task).await.expect("it stops").expect("no panic");
        }
        self.port
    }

    fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    async fn call(&self, tool: Tool, arguments: Value) -> Value {
        let call = ToolCall::parse(tool, arguments).expect("arguments");
        self.mesh.call(Caller::Owner, call).await.expect("done")
    }

    async fn send(&self, to: Fingerprint, text: &str) -> Value {
        self.call(Tool::ThreadlineSend, json!({"agentId": to, "message": text, "waitForReply": false})).await
    }

    async fn trust(&self, other: &Self) {
        let arguments = json!({"action": "grant", "fingerprint": other.fingerprint(), "level": "verified"});
        self.call(Tool::ThreadlineTrust, arguments).await;
    }

    /// Texts that came, newest first.
    async fn inbox(&self) -> Vec<Value> {
        self.mesh.inbox(50).await.expect("inbox")["messages"].as_array().expect("list").clone()
    }

    async fn until_inbox(&self, count: usize) -> Vec<Value> {
        until(&format!("{count} messages of {}", self.name), || async {
            let inbox = self.inbox().await;
            if inbox.len() >= count { Ok(inbox) } else { Err(format!("{inbox:?}")) }
        })
        .await
    }

    async fn outbox_state(&self, id: &Value) -> String {
        let outbox = self.mesh.outbox(50).await.expect("outbox");
        let found = outbox["messages"].as_array().expect("list").iter().find(|m| m["id"] == *id).cloned();
        found.expect("the message")["state"].as_str().expect("state").to_owned()
    }

    /// A message of an existing install, which is known by its port alone.
    async fn hears(&self, other: &Self, id: &str, text: &str) -> WireAnswer {
        self.post_local(self.says(other, id, text)).await
    }

    fn says(&self, other: &Self, id: &str, text: &str) -> Value {
        json!({"schemaVersion": 1, "message": {
            "id": id, "from": {"agent": other.name, "session": "threadline", "machine": "local"},
            "to": {"agent": self.name, "session": "best", "machine": "local"}, "type": "query",
            "priority": "medium", "subject": "hi", "body": text, "threadId": "t1",
            "createdAt": threadline::time::iso_ms(now_ms()), "ttlMinutes": 60},
            "transport": {"relayChain": [], "originServer": other.base().replace("127.0.0.1", "localhost"),
                "nonce": "n:t", "timestamp": threadline::time::iso_ms(now_ms())},
            "delivery": {"phase": "sent", "transitions": [], "attempts": 1}})
    }

    async fn post_local(&self, body: Value) -> WireAnswer {
        self.mesh.relay_agent(Some(&self.token()), body.to_string().as_bytes()).await
    }

    fn token(&self) -> String {
        let file = self.home.join(format!(".instar/agent-tokens/{}.token", self.name));
        std::fs::read_to_string(file).expect("token file")
    }

    /// The key on disk, to sign what the agent itself would not.
    fn identity(&self, account: &Path) -> Identity {
        use base64::Engine as _;
        let file = account.join(self.name).join("agent/.instar/identity.json");
        let file: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("file")).expect("JSON");
        let seed =
            base64::engine::general_purpose::STANDARD.decode(file["privateKey"].as_str().expect("key"));
        Identity::from_seed(&seed.expect("base64").try_into().expect("32 bytes"))
    }

    fn fingerprint(&self) -> Fingerprint {
        self.mesh.fingerprint().expect("identity")
    }
}

#[tokio::test]
async fn agents_of_one_host_talk_without_a_relay_and_through_files_while_one_is_down() {
    let dir = tempfile::tempdir().expect("dir");
    let (ann, bob) = (Server::start(dir.path(), "ann", 0).await, Server::start(dir.path(), "bob", 0).await);
    assert_eq!(bob.hears(&ann, "m1", "Hello, may I ask?").await.status, 200);
    assert_eq!(ann.hears(&bob, "m1", "Hello yourself, go on?").await.status, 200);
    assert_eq!(bob.until_inbox(1).await[0]["state"], "held", "a stranger until the owner decides");
    ann.trust(&bob).await;
    bob.trust(&ann).await;

    let sent = ann.send(bob.fingerprint(), "Which day is it?").await;
    assert_eq!((&sent["deliveryPath"], &sent["encryption"]), (&json!("local"), &json!("local")), "{sent}");
    let inbox = bob.until_inbox(2).await;
    assert_eq!((&inbox[0]["preview"], &inbox[0]["id"]), (&json!("Which day is it?"), &sent["messageId"]));
    until("ann knows that bob holds it", || async {
        let state = ann.outbox_state(&sent["messageId"]).await;
        (state == "accepted").then_some(()).ok_or(state)
    })
    .await;

    let address = bob.fingerprint();
    let port = bob.stop().await;
    let waiting = ann.send(address, "And which month?").await;
    let drops = dir.path().join("home/.instar/messages/drop/bob");
    let file = drops.join(format!("{}.json", waiting["messageId"].as_str().expect("id")));
    until("a file waits for bob", || async { file.exists().then_some(()).ok_or("none".into()) }).await;
    std::fs::write(
        drops.join("forged.json"),
        std::fs::read_to_string(&file).expect("file").replace("month", "year"),
    )
    .expect("write");
    let bob = Server::start(dir.path(), "bob", port).await;
    let inbox = bob.until_inbox(3).await;
    assert_eq!(inbox[0]["preview"], "And which month?");
    until("the file is gone", || async { (!file.exists()).then_some(()).ok_or("there".into()) }).await;
    until("the forgery is put aside", || async {
        drops.join("rejected/forged.json").exists().then_some(()).ok_or("not yet".into())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bob.inbox().await.len(), 3, "nothing twice, nothing forged");
    ann.stop().await;
}

#[tokio::test]
async fn what_is_to_go_over_the_relay_alone_waits_for_it() {
    let dir = tempfile::tempdir().expect("dir");
    let (ann, bob) = (Server::start(dir.path(), "ann", 0).await, Server::start(dir.path(), "bob", 0).await);
    assert_eq!(bob.hears(&ann, "m1", "Hello, may I ask?").await.status, 200);
    assert_eq!(ann.hears(&bob, "m1", "Hello yourself, go on?").await.status, 200);
    ann.trust(&bob).await;
    bob.trust(&ann).await;
    let mut config = bench::config("ws://127.0.0.1:1/");
    config.direct_enabled = false;
    ann.mesh.set_config(config.clone()).await;
    let sent = ann.send(bob.fingerprint(), "Which day is it?").await;
    assert_eq!(sent["deliveryPath"], "queued", "{sent}");
    assert_eq!(ann.mesh.status().await.expect("status")["direct"]["enabled"], false);
    assert_eq!(bob.hears(&ann, "m2", "And you?").await.status, 200, "what others bring is taken");
    assert_eq!(bob.until_inbox(2).await[0]["preview"], "And you?", "nothing of ann's went around the relay");

    config.direct_enabled = true;
    ann.mesh.set_config(config).await;
    assert_eq!(bob.until_inbox(3).await[0]["preview"], "Which day is it?");
    ann.stop().await;
    bob.stop().await;
}

#[tokio::test]
async fn a_file_that_was_taken_when_the_node_died_is_not_taken_again() {
    let dir = tempfile::tempdir().expect("dir");
    let (ann, bob) = (Server::start(dir.path(), "ann", 0).await, Server::start(dir.path(), "bob", 0).await);
    assert_eq!(bob.hears(&ann, "m1", "Hello, may I ask?").await.status, 200);
    assert_eq!(ann.hears(&bob, "m1", "Hello yourself, go on?").await.status, 200);
    ann.trust(&bob).await;
    bob.trust(&ann).await;
    let address = bob.fingerprint();
    let port = bob.stop().await;
    let sent = ann.send(address, "And which month?").await;
    let name = format!("{}.json", sent["messageId"].as_str().expect("id"));
    let file = dir.path().join("home/.instar/messages/drop/bob").join(name);
    until("a file waits for bob", || async { file.exists().then_some(()).ok_or("none".into()) }).await;
    let left = std::fs::read(&file).expect("file");

    // The sender dies after it wrote the file and before it noted that: it writes again.
    ann.stop().await;
    let database = dir.path().join("ann/agent/.instar/state/threadline.sqlite");
    let database = rusqlite::Connection::open(database).expect("database");
    let forgotten = database
        .execute("UPDATE deliveries SET state = 'pending', acked_at = NULL, next_retry_at = 0", [])
        .expect("forgotten");
    assert_eq!(forgotten, 1);
    let ann = Server::start(dir.path(), "ann", 0).await;
    until("ann noted it", || async {
        let sql = "SELECT state FROM deliveries";
        let state: String = database.query_row(sql, [], |row| row.get(0)).expect("state");
        (state != "pending").then_some(()).ok_or(state)
    })
    .await;

    let bob = Server::start(dir.path(), "bob", port).await;
    assert_eq!(bob.until_inbox(2).await[0]["preview"], "And which month?");
    until("the file is gone", || async { (!file.exists()).then_some(()).ok_or("there".into()) }).await;
    // The receiver dies after it stored the message and before it deleted the file.
    bob.stop().await;
    std::fs::write(&file, left).expect("write");
    let bob = Server::start(dir.path(), "bob", port).await;
    until("the file is gone", || async { (!file.exists()).then_some(()).ok_or("there".into()) }).await;
    assert_eq!(bob.inbox().await.len(), 2, "nothing twice");
    ann.stop().await;
    bob.stop().await;
}

#[tokio::test]
async fn what_is_posted_is_checked_and_taken_once() {
    let dir = tempfile::tempdir().expect("dir");
    let (ann, bob) = (Server::start(dir.path(), "ann", 0).await, Server::start(dir.path(), "bob", 0).await);
    let body = bob.says(&ann, "m1", "Hello?").to_string();
    for wrong in [None, Some("00"), Some("")] {
        assert_eq!(bob.mesh.relay_agent(wrong, body.as_bytes()).await.status, 401);
    }
    for (path, value, status) in [
        ("/message/to/agent", json!("carol"), 400),
        ("/message/from/agent", json!("nobody"), 400),
        ("/message/createdAt", json!("now"), 400),
        ("/transport/relayChain", json!(["bob"]), 409),
        ("/schemaVersion", json!(2), 400),
    ] {
        let mut bad = bob.says(&ann, "m1", "Hello?");
        *bad.pointer_mut(path).expect(path) = value;
        assert_eq!(bob.post_local(bad).await.status, status, "{path}");
    }
    let good = bob.hears(&ann, "m1", "Hello?").await;
    assert_eq!((good.status, &good.body["ok"], &good.body["threadId"]), (200, &json!(true), &json!("t1")));
    let repeated = bob.hears(&ann, "m2", " Hello? ").await;
    assert_eq!((repeated.status, &repeated.body["deduped"]), (200, &json!(true)), "the sender timed out");
    assert_eq!(bob.hears(&ann, "m1", "Hello again?").await.status, 409, "the same id");
    let inbox = bob.until_inbox(1).await;
    assert_eq!(inbox.len(), 1);
    ann.stop().await;
    bob.stop().await;
}

#[tokio::test]
async fn paired_servers_write_to_each_other_and_read_their_own_threads() {
    let (here, there) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let ann = Server::start(here.path(), "ann", 0).await;
    let bob = Server::start(there.path(), "bob", 0).await;
    let refused = ann.mesh.pair(&Caller::Local, &bob.base()).await.expect_err("not the owner");
    assert_eq!(refused.code, "owner-required");
    let paired = ann.mesh.pair(&Caller::Owner, &bob.base()).await.expect("paired");
    assert_eq!(paired["agent"], "bob");
    let theirs = bob.mesh.pairings().expect("list");
    assert_eq!(theirs["pairings"][0]["words"], paired["words"], "both owners see the same words");
    assert_eq!(bob.mesh.health()["pairedAgents"], 1);
    for (server, other) in [(&ann, "bob"), (&bob, "ann")] {
        let confirmed = server.mesh.confirm_pairing(&Caller::Owner, other).await.expect("confirmed");
        assert_eq!(confirmed["level"], "verified");
    }
    let sent = ann.send(bob.fingerprint(), "Which day is it?").await;
    let thread = sent["threadId"].as_str().expect("thread").to_owned();
    let inbox = bob.until_inbox(1).await;
    assert_eq!(inbox[0]["preview"], "Which day is it?");

    let file = std::fs::read_to_string(here.path().join("ann/agent/.instar/threadline/relay-tokens.json"));
    let tokens: Value = serde_json::from_str(&file.expect("file")).expect("JSON");
    let token: [u8; 32] = hex::decode(tokens["bob"]["token"].as_str().expect("token"))
        .expect("hex")
        .try_into()
        .expect("32 bytes");
    let identity = ann.identity(here.path());
    let path = format!("/threadline/messages/thread/{thread}");
    let ask = async |nonce: uuid::Uuid, now: i64| {
        let headers = SignedHeaders::sign(&identity, &token, "ann", ("GET", &path, b""), nonce, now);
        let read =
            SignedHeaders::read(|name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str()));
        let request = SignedRequest { method: "GET", path: &path, body: &[] };
        bob.mesh.thread_signed(read, request, &thread, None, None).await
    };
    let nonce = uuid::Uuid::new_v4();
    let own = ask(nonce, now_ms()).await;
    assert_eq!((own.status, &own.body["messageCount"]), (200, &json!(1)), "{own:?}");
    for (answer, status, code) in [
        (ask(nonce, now_ms()).await, 401, "TL_REPLAY_DETECTED"),
        (ask(uuid::Uuid::new_v4(), now_ms() - 31_000).await, 401, "TL_TIMESTAMP_EXPIRED"),
        (bob.mesh.handshake_hello("x", b"{").await, 400, "TL_INVALID_PAYLOAD"),
        (bob.mesh.handshake_confirm(br#"{"agent":"ann"}"#).await, 400, "TL_INVALID_PAYLOAD"),
    ] {
        assert_eq!((answer.status, answer.body["error"]["code"].as_str()), (status, Some(code)));
    }
    // Its nonce was used up, and bob died before the message was stored: the sender signs anew, and that counts once.
    let port = bob.stop().await;
    let bob = Server::start(there.path(), "bob", port).await;
    let (path, body) = ("/threadline/messages/receive", bob.says(&ann, "s1", "And which month?").to_string());
    let spent = uuid::Uuid::new_v4();
    let database = there.path().join("bob/agent/.instar/state/threadline.sqlite");
    let noted = rusqlite::Connection::open(database).expect("database").execute(
        "INSERT INTO nonces(nonce, expires_at) VALUES (?1, ?2)",
        rusqlite::params![spent.to_string(), now_ms() + 60_000],
    );
    assert_eq!(noted.expect("noted"), 1);
    let post = async |bob: &Server, nonce: uuid::Uuid| {
        let parts = ("POST", path, body.as_bytes());
        let headers = SignedHeaders::sign(&identity, &token, "ann", parts, nonce, now_ms());
        let read =
            SignedHeaders::read(|name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str()));
        bob.mesh.receive_signed(read, SignedRequest { method: "POST", path, body: body.as_bytes() }).await
    };
    assert_eq!(post(&bob, spent).await.status, 401, "a replay");
    let first = uuid::Uuid::new_v4();
    assert_eq!(post(&bob, first).await.status, 200);
    bob.until_inbox(2).await;
    let port = bob.stop().await;
    let bob = Server::start(there.path(), "bob", port).await;
    assert_eq!(post(&bob, first).await.status, 401, "a replay after the restart");
    let again = post(&bob, uuid::Uuid::new_v4()).await;
    assert_eq!((again.status, &again.body["duplicate"]), (200, &json!(true)), "its answer was lost");
    assert_eq!(bob.inbox().await.len(), 2, "nothing twice");
    let ask = async |nonce: uuid::Uuid, now: i64| {
        let path = format!("/threadline/messages/thread/{thread}");
        let headers = SignedHeaders::sign(&identity, &token, "ann", ("GET", &path, b""), nonce, now);
        let read =
            SignedHeaders::read(|name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str()));
        let request = SignedRequest { method: "GET", path: &path, body: &[] };
        bob.mesh.thread_signed(read, request, &thread, None, None).await
    };
    let impostor = Server::start(tempfile::tempdir().expect("dir").path(), "ann", 0).await;
    let stolen =
        impostor.mesh.pair(&Caller::Owner, &bob.base()).await.expect_err("another key under a paired name");
    assert_eq!(stolen.code, "pairing-refused");
    let causes: Vec<String> = bob.notices.notices().into_iter().map(|n| n.notice.cause).collect();
    assert!(causes.iter().any(|c| c.starts_with("pairing-conflict:")), "{causes:?}");
    bob.mesh.remove_pairing("ann").await.expect("removed");
    assert_eq!(ask(uuid::Uuid::new_v4(), now_ms()).await.status, 403);
    for server in [ann, bob, impostor] {
        server.stop().await;
    }
}
