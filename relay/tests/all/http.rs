//! Health and the directory over HTTP.

use reqwest::{Client as Http, Method, StatusCode};
use serde_json::{Value, json};
use threadline::v1::frames::Visibility;

use super::client::{Client, address};
use super::process::{Relay, command};

async fn call(
    relay: &Relay,
    method: Method,
    path: &str,
    token: Option<&str>,
    body: Option<Value>,
) -> (StatusCode, Value) {
    let mut request = Http::new().request(method, format!("http://{}{path}", relay.at));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.expect("answers");
    let status = response.status();
    let text = response.text().await.expect("body");
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

async fn get(relay: &Relay, path: &str, token: Option<&str>) -> (StatusCode, Value) {
    call(relay, Method::GET, path, token, None).await
}

#[tokio::test]
async fn paths_methods_and_health() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = Relay::start(dir.path());
    let mut sender = Client::log_in(relay.at, 1).await;
    sender.send(2, "m1").await;
    sender.next("ack").await;
    let (status, health) = get(&relay, "/health", None).await;
    assert_eq!(status, 200);
    assert_eq!((&health["status"], &health["agents"]), (&json!("ok"), &json!(1)));
    assert_eq!(health["offlineQueue"]["recipientCount"], 1);
    assert_eq!(health["throughput"]["messagesRouted"], 1);
    assert_eq!(get(&relay, "/ready", None).await.0, 200);
    for path in ["/", "/admin/status", "/v1/registry/other"] {
        assert_eq!(
            get(&relay, path, None).await,
            (StatusCode::NOT_FOUND, json!({"error": "Not found"})),
            "{path}"
        );
    }
    let (status, _) = call(&relay, Method::POST, "/health", None, None).await;
    assert_eq!(status, 405);
    let (status, _) = call(&relay, Method::OPTIONS, "/v1/registry/search", None, None).await;
    assert_eq!(status, 204);
    let large = json!({"bio": "x".repeat(70_000)});
    let token = sender.login["registry_token"].as_str().expect("token").to_owned();
    let (status, _) = call(&relay, Method::PUT, "/v1/registry/me", Some(&token), Some(large)).await;
    assert_eq!(status, 413);
}

#[tokio::test]
async fn an_entry_lives_from_login_to_deletion() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = Relay::start(dir.path());
    let agent = Client::log_in_as(relay.at, 1, Visibility::Public).await;
    let token = agent.login["registry_token"].as_str().expect("token").to_owned();
    let token = Some(token.as_str());
    assert_eq!(get(&relay, "/v1/registry/me", None).await.0, 401);
    assert_eq!(get(&relay, "/v1/registry/me", Some("a.b.c")).await.0, 401);
    let (_, me) = get(&relay, "/v1/registry/me", token).await;
    assert_eq!((&me["registered"], &me["consentMethod"]), (&json!(true), &json!("auth_handshake")));

    let change = json!({"bio": "Reviews Rust code", "capabilities": ["code-review"], "homepage": "https://example.org/"});
    let (status, me) = call(&relay, Method::PUT, "/v1/registry/me", token, Some(change)).await;
    assert_eq!((status, &me["entry"]["bio"]), (StatusCode::OK, &json!("Reviews Rust code")));
    let (status, body) = call(&relay, Method::PUT, "/v1/registry/me", token, Some(json!({"name": 1}))).await;
    assert_eq!((status, &body["code"]), (StatusCode::BAD_REQUEST, &json!("INVALID_FIELD")));

    let (status, body) = get(&relay, "/v1/registry/search", None).await;
    assert_eq!((status, &body["code"]), (StatusCode::BAD_REQUEST, &json!("FILTER_REQUIRED")));
    let (_, found) = get(&relay, "/v1/registry/search?q=rust&capability=code-review", None).await;
    assert_eq!(found["agents"][0]["agentId"], address(1));
    assert!(found["agents"][0]["publicKey"].is_null(), "reduced without a token");
    let (_, found) = get(&relay, "/v1/registry/search?q=rust", token).await;
    assert_eq!(found["agents"][0]["online"], true);
    let (_, stats) = get(&relay, "/v1/registry/stats", None).await;
    assert_eq!((&stats["totalAgents"], &stats["onlineAgents"]), (&json!(1), &json!(1)));
    let (_, card) = get(&relay, &format!("/v1/registry/agent/{}/a2a-card", address(1)), None).await;
    assert_eq!(card["skills"][0]["id"], "code-review");
    assert!(card["x-threadline"]["publicKey"].is_string());

    let (status, gone) = call(&relay, Method::DELETE, "/v1/registry/me", token, None).await;
    assert_eq!((status, &gone["deleted"]), (StatusCode::OK, &json!(true)));
    let (_, found) = get(&relay, "/v1/registry/search?q=rust", None).await;
    assert_eq!(found["count"], 0);
    assert_eq!(get(&relay, &format!("/v1/registry/agent/{}", address(1)), None).await.0, 404);
    drop(agent);
    let again = Client::log_in_as(relay.at, 1, Visibility::Public).await;
    assert_eq!(again.login["registry_status"], "not_listed", "deletion lasts");
    let (status, _) =
        call(&relay, Method::PUT, "/v1/registry/me", token, Some(json!({"listed": true}))).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn pages_follow_each_other_and_cursors_fit_only_their_query() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = Relay::start(dir.path());
    let mut agents = Vec::new();
    for n in 1..=7 {
        agents.push(Client::log_in_as(relay.at, n, Visibility::Public).await);
    }
    for query in ["sort=name", "sort=registeredAt", "q=agent"] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/v1/registry/search?{query}&limit=3&cursor={cursor}");
            let (status, page) = get(&relay, &path, None).await;
            assert_eq!((status, &page["total"]), (StatusCode::OK, &json!(7)), "{page}");
            let ids = page["agents"].as_array().expect("list").iter().map(|a| a["agentId"].to_string());
            seen.extend(ids);
            let Some(next) = page["pagination"]["cursor"].as_str() else { break };
            cursor = next.to_owned();
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 7, "{query}");
    }
    let (_, page) = get(&relay, "/v1/registry/search?sort=name&limit=3", None).await;
    let cursor = page["pagination"]["cursor"].as_str().expect("cursor");
    let (status, body) =
        get(&relay, &format!("/v1/registry/search?q=agent&limit=3&cursor={cursor}"), None).await;
    assert_eq!((status, &body["code"]), (StatusCode::BAD_REQUEST, &json!("CURSOR_INVALID")));
}

async fn search_from(relay: &Relay, forwarded: &str) -> reqwest::Response {
    let url = format!("http://{}/v1/registry/search?limit=1", relay.at);
    Http::new().get(url).header("x-forwarded-for", forwarded).send().await.expect("answers")
}

#[tokio::test]
async fn a_source_has_its_thirty_searches_a_minute_and_cannot_pretend_to_be_another() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = Relay::spawn(command(dir.path()).args(["--set", "limits.per_source=true"]));
    for n in 0..30 {
        assert_eq!(search_from(&relay, &format!("192.0.2.{n}")).await.status(), 200, "{n}");
    }
    let refused = search_from(&relay, "192.0.2.99").await;
    assert_eq!(refused.status(), 429);
    let header = |name: &str| refused.headers()[name].to_str().expect("text").to_owned();
    assert_eq!((header("x-ratelimit-limit"), header("x-ratelimit-remaining")), ("30".into(), "0".into()));
    assert!((1..=60).contains(&header("retry-after").parse::<u32>().expect("seconds")));
    assert!(header("x-ratelimit-reset").parse::<u64>().is_ok());
}

#[tokio::test]
async fn behind_a_trusted_proxy_every_client_is_a_source_of_its_own() {
    let dir = tempfile::tempdir().expect("dir");
    let mut command = command(dir.path());
    command.args(["--set", "limits.per_source=true", "--set", "trusted_proxies=127.0.0.0/8"]);
    let relay = Relay::spawn(&mut command);
    for _ in 0..30 {
        assert_eq!(search_from(&relay, "198.51.100.1, 192.0.2.1").await.status(), 200);
    }
    assert_eq!(
        search_from(&relay, "203.0.113.5, 192.0.2.1").await.status(),
        429,
        "the right-most hop counts"
    );
    assert_eq!(search_from(&relay, "192.0.2.2").await.status(), 200);
}
