//! The operator's side: admin interface, metrics, drain, TLS, the page for people.

use std::path::Path;
use std::process::Command;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use threadline::v1::frames::Visibility;

use super::client::{Client, address};
use super::process::{Relay, command};

/// The admin interface of a relay.
pub(crate) struct Admin {
    base: String,
    key: String,
}

impl Admin {
    /// The admin interface of a relay that was started on `dir`.
    pub(crate) fn of(relay: &mut Relay, dir: &Path) -> Self {
        let key = std::fs::read_to_string(dir.join("admin-key")).expect("a key was made");
        Self { base: format!("http://{}", relay.admin()), key }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request =
            reqwest::Client::new().request(method, format!("{}{path}", self.base)).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("answers");
        let status = response.status();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    /// A body that is no JSON.
    pub(crate) async fn text(&self, path: &str) -> String {
        let request = reqwest::Client::new().get(format!("{}{path}", self.base)).bearer_auth(&self.key);
        request.send().await.expect("answers").text().await.expect("a text")
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::POST, path, Some(body)).await
    }
}

#[tokio::test]
async fn an_operator_sees_bans_and_drains() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("dir");
    let mut relay = Relay::start(dir.path());
    let admin = Admin::of(&mut relay, dir.path());
    let mode = std::fs::metadata(dir.path().join("admin-key")).expect("key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut agent = Client::log_in_as(relay.at, 1, Visibility::Public).await;
    agent.send(2, "m1").await;
    agent.next("ack").await;

    let status = admin.get("/admin/status").await;
    assert_eq!(status["carriers"], json!({"ws1": 1, "ws2": 0, "quic": 0}));
    assert_eq!(status["quic"]["listening"], status["quic"]["told"], "on loopback");
    assert_eq!(
        (&status["status"], &status["engine"], &status["draining"]),
        (&json!("ok"), &json!("sqlite"), &json!(false))
    );
    let list = admin.get("/admin/agents?online=true").await;
    assert_eq!((&list["count"], &list["agents"][0]["agentId"]), (&json!(1), &json!(address(1))));
    assert_eq!(admin.get(&format!("/admin/agents?cursor={}", address(1))).await["count"], 0);
    let one = admin.get(&format!("/admin/agents/{}", address(1))).await;
    assert_eq!((&one["registered"], &one["sessions"][0]["status"]), (&json!(true), &json!("online")));
    assert_eq!(admin.call(Method::GET, &format!("/admin/agents/{}", address(9)), None).await.0, 404);
    assert_eq!(admin.get("/admin/queue").await["totalMessages"], 1);

    assert_eq!(admin.post("/admin/ban", json!({})).await.0, 400);
    let (status, body) = admin.post("/admin/ban", json!({"agentId": address(1), "durationMs": 60_000})).await;
    assert_eq!((status, &body["ban"]["pattern"]), (StatusCode::OK, &json!("manual")));
    assert_eq!(agent.next("error").await["code"], "banned");
    assert_eq!(agent.closed().await, 4003);
    let token = agent.login["registry_token"].as_str().expect("token").to_owned();
    let me = reqwest::Client::new().get(format!("http://{}/v1/registry/me", relay.at)).bearer_auth(&token);
    assert_eq!(me.send().await.expect("answers").status(), 401, "its tokens die at once");
    let found =
        reqwest::get(format!("http://{}/v1/registry/agent/{}", relay.at, address(1))).await.expect("answers");
    assert_eq!(found.status(), 404, "and it is not shown");
    assert_eq!(admin.get("/admin/bans").await["count"], 1);
    let (_, body) = admin.post("/admin/unban", json!({"agentId": address(1)})).await;
    assert_eq!(body["unbanned"], true);
    let mut agent = Client::log_in(relay.at, 1).await;

    let ready = format!("http://{}/ready", relay.at);
    admin.post("/admin/drain", json!({})).await;
    assert_eq!(reqwest::get(&ready).await.expect("answers").status(), 503);
    assert_eq!(agent.closed().await, 1001);
    admin.post("/admin/undrain", json!({})).await;
    assert_eq!(reqwest::get(&ready).await.expect("answers").status(), 200);
    Client::log_in(relay.at, 1).await;

    let (status, body) = admin.post("/admin/backup", json!({})).await;
    assert_eq!(status, 200, "{body}");
    let folder = Path::new(body["backup"].as_str().expect("a folder")).to_owned();
    assert!(folder.join("registry.db").exists() && folder.join("relay-signing-key.json").exists());
}

#[tokio::test]
async fn an_operator_sees_the_fullest_mailboxes_and_empties_one() {
    let dir = tempfile::tempdir().expect("dir");
    let mut relay = Relay::start_with(dir.path(), &["queue.unknown_recipient=100", "sybil.tiers=false"]);
    let admin = Admin::of(&mut relay, dir.path());
    let mut sender = Client::log_in(relay.at, 1).await;
    // Agent 2 has most messages, agent 3 most bytes; 22 others have one each.
    for n in 0..4 {
        sender.send(2, &format!("small-{n}")).await;
    }
    sender.send_payload(3, "large", &"x".repeat(20_000)).await;
    for n in 4..26 {
        sender.send(n, "one").await;
    }
    for _ in 0..27 {
        assert_eq!(sender.next("ack").await["status"], "queued");
    }
    let queue = admin.get("/admin/queue").await;
    assert_eq!((&queue["recipientCount"], &queue["totalMessages"]), (&json!(24), &json!(27)));
    assert!(queue["totalBytes"].as_u64() > Some(20_000) && queue["oldest"].is_string(), "{queue}");
    let (by_messages, by_bytes) = (&queue["largest"]["byMessages"], &queue["largest"]["byBytes"]);
    assert_eq!(by_messages.as_array().map(Vec::len), Some(20), "the twenty largest");
    assert_eq!(by_bytes.as_array().map(Vec::len), Some(20));
    assert_eq!((&by_messages[0]["agentId"], &by_messages[0]["messages"]), (&json!(address(2)), &json!(4)));
    assert_eq!((&by_bytes[0]["agentId"], &by_bytes[0]["messages"]), (&json!(address(3)), &json!(1)));
    assert!(!queue.to_string().contains("small-0"), "no message is shown");

    let path = |id: &str| format!("/admin/queue/{id}");
    let (status, body) = admin.call(Method::DELETE, &path(&address(2)), None).await;
    assert_eq!((status.as_u16(), &body["dropped"]), (200, &json!(4)));
    for n in 0..4 {
        let notice = sender.next("delivery_expired").await;
        assert_eq!(notice["messageId"], format!("small-{n}"), "its sender hears of it");
    }
    assert_eq!(admin.call(Method::DELETE, &path(&address(2)), None).await.1["dropped"], 0, "once");
    assert_eq!(admin.call(Method::DELETE, &path("nobody"), None).await.0, 400);
    let queue = admin.get("/admin/queue").await;
    assert_eq!((&queue["recipientCount"], &queue["totalMessages"]), (&json!(23), &json!(23)));
    assert_eq!(queue["largest"]["byMessages"][0]["messages"], 1);
    // What was given up stays away, also after a crash; the rest is there.
    relay.kill();
    let relay = Relay::start(dir.path());
    let mut emptied = Client::log_in(relay.at, 2).await;
    assert!(emptied.rest(std::time::Duration::from_millis(300)).await.is_empty());
    assert_eq!(Client::log_in(relay.at, 3).await.message_id().await, "large");
}

#[tokio::test]
async fn without_the_key_nothing_is_answered_and_guessing_locks() {
    let dir = tempfile::tempdir().expect("dir");
    let mut relay = Relay::start(dir.path());
    let admin = Admin::of(&mut relay, dir.path());
    let wrong = Admin { key: "wrong".into(), ..Admin::of(&mut relay, dir.path()) };
    for path in ["/admin/status", "/admin/metrics", "/admin/nothing", "/"] {
        assert_eq!(wrong.call(Method::GET, path, None).await.0, 401, "{path}");
    }
    for _ in 4..10 {
        wrong.call(Method::GET, "/admin/status", None).await;
    }
    assert_eq!(admin.call(Method::GET, "/admin/status", None).await.0, 429);
    let public = reqwest::get(format!("http://{}/admin/status", relay.at)).await.expect("answers");
    assert_eq!(public.status(), 404, "not on the public listener");
}

#[tokio::test]
async fn what_is_known_can_be_exported_and_erased() {
    let dir = tempfile::tempdir().expect("dir");
    let mut relay = Relay::start(dir.path());
    let admin = Admin::of(&mut relay, dir.path());
    let agent = Client::log_in_as(relay.at, 1, Visibility::Public).await;
    let token = agent.login["registry_token"].as_str().expect("token").to_owned();
    let http = reqwest::Client::new();
    let me = format!("http://{}/v1/registry/me", relay.at);
    let export = http.get(format!("{me}?export=true")).bearer_auth(&token).send().await.expect("answers");
    let export: Value = export.json().await.expect("json");
    assert_eq!((&export["agentId"], &export["registry"]["registered"]), (&json!(address(1)), &json!(true)));
    assert!(export["firstSeen"]["at"].is_string() && export["session"]["since"].is_string());
    let gone = http.delete(format!("{me}?all=true")).bearer_auth(&token).send().await.expect("answers");
    let gone: Value = gone.json().await.expect("json");
    let job = gone["job"].as_str().expect("a job");
    let job = reqwest::get(format!("http://{}/v1/registry/erasure/{job}", relay.at)).await.expect("answers");
    assert_eq!(job.json::<Value>().await.expect("json")["done"], true);
    assert_eq!(http.get(&me).bearer_auth(&token).send().await.expect("answers").status(), 401);
    assert_eq!(admin.call(Method::GET, &format!("/admin/data/{}", address(1)), None).await.0, 404);
}

#[tokio::test]
async fn the_page_for_people_is_static_and_strict() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = Relay::start(dir.path());
    let page = reqwest::get(format!("http://{}/registry", relay.at)).await.expect("answers");
    let policy = page.headers()["content-security-policy"].to_str().expect("text").to_owned();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"),
        "{policy}"
    );
    let html = page.text().await.expect("html");
    for inline in ["onclick", "onload", "style=", "<script>", "<style"] {
        assert!(!html.contains(inline), "{inline}");
    }
    for file in ["/registry/page.js", "/registry/page.css"] {
        assert!(html.contains(file));
        let got = reqwest::get(format!("http://{}{file}", relay.at)).await.expect("answers");
        assert_eq!(got.status(), 200);
        assert!(!got.text().await.expect("text").contains("innerHTML"));
    }
}

#[test]
fn it_may_open_as_many_files_as_the_system_allows() {
    let dir = tempfile::tempdir().expect("dir");
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -Sn 200; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_threadline-relay")]);
    super::process::arguments(&mut shell, dir.path());
    let relay = Relay::spawn(&mut shell);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.id())).expect("limits");
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a line");
    let [soft, hard] = [0, 1].map(|column| files.split_whitespace().nth(column).expect("a column"));
    assert_eq!(soft, hard);
}

fn certificate(dir: &Path, name: &str) -> String {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).expect("write");
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).expect("write");
    made.cert.pem()
}

fn with_root(pem: &str) -> reqwest::Client {
    let root = reqwest::Certificate::from_pem(pem.as_bytes()).expect("a root");
    reqwest::Client::builder().tls_certs_only([root]).build().expect("a client")
}

#[tokio::test]
async fn tls_files_can_be_replaced_while_it_runs() {
    let dir = tempfile::tempdir().expect("dir");
    let files = tempfile::tempdir().expect("dir");
    let first = certificate(files.path(), "localhost");
    let at = |name: &str| files.path().join(name).display().to_string();
    let settings = [format!("tls.cert={}", at("cert.pem")), format!("tls.key={}", at("key.pem"))];
    let relay = Relay::spawn(command(dir.path()).args(["--set", &settings[0], "--set", &settings[1]]));
    let url = format!("https://localhost:{}/health", relay.at.port());
    let answer = with_root(&first).get(&url).send().await.expect("answers over TLS");
    assert_eq!(answer.status(), 200);
    assert!(reqwest::get(format!("http://{}/health", relay.at)).await.is_err(), "nothing but TLS");
    let mut probe = Command::new(env!("CARGO_BIN_EXE_threadline-relay"));
    probe.args(["health", "--host", "127.0.0.1", "--port", &relay.at.port().to_string()]);
    probe.args(["--set", &settings[0], "--set", &settings[1], "--data-dir"]).arg(dir.path());
    let healthy = tokio::task::spawn_blocking(move || probe.status()).await.expect("ends").expect("runs");
    assert!(healthy.success(), "the probe speaks TLS as well");

    let second = certificate(files.path(), "localhost");
    relay.signal(rustix::process::Signal::HUP);
    let renewed = async {
        while with_root(&second).get(&url).send().await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(super::client::PATIENCE, renewed).await.expect("the new certificate is used");
    std::fs::write(files.path().join("key.pem"), "no key").expect("damage");
    relay.signal(rustix::process::Signal::HUP);
    assert_eq!(
        with_root(&second).get(&url).send().await.expect("answers").status(),
        200,
        "the old one stays"
    );
    assert_eq!(relay.stop(), Some(0));
    let output = Command::new(env!("CARGO_BIN_EXE_threadline-relay"))
        .args(["--data-dir"])
        .arg(dir.path())
        .args(["--port", "0", "--set", &settings[0], "--set", &settings[1]])
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("key.pem"), "the file is named");
}

#[tokio::test]
async fn a_webhook_hears_of_each_ban() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let at = listener.local_addr().expect("address");
    let (told, mut heard) = tokio::sync::mpsc::channel(10);
    let hook = axum::routing::post(async move |axum::Json(ban): axum::Json<Value>| {
        told.send(ban).await.expect("the test listens");
    });
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/hook", hook)).await });
    let dir = tempfile::tempdir().expect("dir");
    let webhook = format!("abuse.webhook=http://{at}/hook");
    let relay = Relay::spawn(command(dir.path()).args(["--set", &webhook]));
    for n in 1..=2 {
        let mut agent = Client::log_in(relay.at, n).await;
        for _ in 0..21 {
            agent.say("junk").await;
        }
        assert_eq!(agent.closed().await, 4003);
    }
    for n in 1..=2 {
        let ban = tokio::time::timeout(super::client::PATIENCE, heard.recv())
            .await
            .expect("in time")
            .expect("a ban");
        assert_eq!((&ban["agentId"], &ban["pattern"]), (&json!(address(n)), &json!("junk")));
        assert!(ban["expiresAt"].is_string() && ban.get("key").is_none());
    }
}
