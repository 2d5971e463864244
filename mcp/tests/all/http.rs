//! Clients over HTTP, each with its own token.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use instar_mcp::tokens::{CreatedToken, NewToken, TokenFile, Tokens};
use instar_mcp::{HttpConfig, HttpError, HttpListener};
use reqwest::{Method, RequestBuilder, StatusCode};
use rmcp::model::ProtocolVersion;
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, ClientServiceExt, RoleClient, RunningService, ServiceExt,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::{Value, json};
use tempfile::TempDir;
use threadline::service::{Caller, Scope};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::{Listener, call, code, request, within};
use crate::memory::Memory;
use crate::stdio::identity;

struct Running {
    address: SocketAddr,
    tokens: PathBuf,
    service: Arc<Memory>,
    cancel: CancellationToken,
    serving: JoinHandle<Result<(), HttpError>>,
    _dir: TempDir,
}

impl Running {
    async fn start() -> Self {
        Self::start_with(HttpConfig::default()).await
    }

    async fn start_with(config: HttpConfig) -> Self {
        let dir = TempDir::new().expect("a directory");
        let tokens = dir.path().join("mcp-tokens.json");
        let listener = HttpListener::bind(HttpConfig { port: 0, ..config }).await.expect("bound");
        let (address, service, cancel) = (listener.address(), Memory::new(false), CancellationToken::new());
        let serving = tokio::spawn(listener.serve(
            Arc::clone(&service) as Arc<_>,
            Tokens::new(&tokens),
            identity(),
            cancel.clone(),
        ));
        Self { address, tokens, service, cancel, serving, _dir: dir }
    }

    fn token(&self, scopes: &[Scope]) -> CreatedToken {
        let new = NewToken { name: "test".into(), scopes: scopes.to_vec(), expires_at: None, peer: None };
        TokenFile::new(&self.tokens).create(new, chrono::Utc::now()).expect("created")
    }

    fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    fn transport(&self, token: &str) -> StreamableHttpClientTransport<reqwest::Client> {
        let config = StreamableHttpClientTransportConfig::with_uri(self.url()).auth_header(token);
        StreamableHttpClientTransport::with_client(http_client(), config)
    }

    async fn connect(
        &self,
        token: &str,
    ) -> Result<RunningService<RoleClient, Listener>, ClientInitializeError> {
        within(Listener::new().serve(self.transport(token))).await
    }

    /// A bare request, with what every MCP client sends.
    fn request(&self, method: Method, token: &str) -> RequestBuilder {
        http_client()
            .request(method, self.url())
            .bearer_auth(token)
            .header("accept", "application/json, text/event-stream")
    }

    fn initialize(&self, token: &str) -> RequestBuilder {
        self.request(Method::POST, token).json(&json!({
            "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
                "protocolVersion": "2025-11-25", "capabilities": {},
                "clientInfo": {"name": "raw", "version": "1"},
            },
        }))
    }
}

fn http_client() -> reqwest::Client {
    // Whichever test comes first installs it; the others find it there.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::new()
}

async fn status(request: RequestBuilder) -> StatusCode {
    within(request.send()).await.expect("an answer").status()
}

#[tokio::test]
async fn a_client_with_a_token_calls_as_that_token() {
    let running = Running::start().await;
    let created = running.token(&[Scope::Discover, Scope::Read]);
    let client = running.connect(&created.token).await.expect("a session");
    assert_eq!(within(client.peer().list_all_tools()).await.expect("tools").len(), 7);

    let result = call(client.peer(), "threadline_agents", json!({})).await;
    assert_eq!(
        result.structured_content.expect("a result")["caller"],
        format!("token {}", created.record.id)
    );
    let result = call(client.peer(), "threadline_send", json!({"agentId": "bob", "message": "hi"})).await;
    assert_eq!(code(&result), "insufficient-scope");
    let result = call(client.peer(), "threadline_delete", json!({"threadId": "t", "confirm": true})).await;
    assert_eq!(code(&result), "insufficient-scope");
    assert_eq!(running.service.calls().len(), 1, "refused calls do not reach the service");
}

#[tokio::test]
async fn the_protocol_without_sessions_carries_the_caller_too() {
    let running = Running::start().await;
    let created = running.token(&[Scope::Discover]);
    let lifecycle = ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] };
    let client = within(Listener::new().serve_with_lifecycle(running.transport(&created.token), lifecycle))
        .await
        .expect("a session");
    let result = call(client.peer(), "threadline_agents", json!({})).await;
    assert_eq!(
        result.structured_content.expect("a result")["caller"],
        format!("token {}", created.record.id)
    );
}

#[tokio::test]
async fn concurrent_clients_never_see_each_others_scopes() {
    let running = Running::start().await;
    let reader = running.token(&[Scope::Discover]);
    let writer = running.token(&[Scope::Send]);
    let (read, write) = tokio::join!(running.connect(&reader.token), running.connect(&writer.token));
    let (read, write) = (read.expect("a session"), write.expect("a session"));
    for _ in 0..20 {
        let agents = || call(read.peer(), "threadline_agents", json!({}));
        let send = || call(write.peer(), "threadline_send", json!({"agentId": "bob", "message": "hi"}));
        let foreign_send =
            || call(read.peer(), "threadline_send", json!({"agentId": "bob", "message": "hi"}));
        let foreign_agents = || call(write.peer(), "threadline_agents", json!({}));
        let (a, b) = tokio::join!(agents(), send());
        assert_eq!((a.is_error, b.is_error), (Some(false), Some(false)));
        let (c, d) = tokio::join!(foreign_send(), foreign_agents());
        assert_eq!((code(&c), code(&d)), ("insufficient-scope".into(), "insufficient-scope".into()));
    }
    for (caller, call) in running.service.calls() {
        let Caller::Network(caller) = caller else { panic!("{caller:?}") };
        let expected = if call.tool().name() == "threadline_send" { &writer } else { &reader };
        assert_eq!(caller.token_id, expected.record.id);
    }
}

#[tokio::test]
async fn a_session_belongs_to_the_token_that_opened_it() {
    let running = Running::start().await;
    let (one, two) = (running.token(&[Scope::Discover]), running.token(&[Scope::Admin]));
    let opened = within(running.initialize(&one.token).send()).await.expect("an answer");
    let session = opened.headers()["mcp-session-id"].to_str().expect("an id").to_owned();
    let list = |token: &str| {
        running
            .request(Method::POST, token)
            .header("mcp-session-id", &session)
            .json(&json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}))
    };
    assert_eq!(status(list(&two.token)).await, StatusCode::NOT_FOUND);
    let stream = running.request(Method::GET, &two.token).header("mcp-session-id", &session);
    assert_eq!(status(stream).await, StatusCode::NOT_FOUND);
    let end = |token: &str| running.request(Method::DELETE, token).header("mcp-session-id", &session);
    assert_eq!(status(end(&two.token)).await, StatusCode::NOT_FOUND);
    assert_eq!(status(list(&one.token)).await, StatusCode::OK);
    assert!(status(end(&one.token)).await.is_success());
    assert_eq!(status(list(&one.token)).await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn every_request_needs_a_valid_token() {
    let running = Running::start().await;
    let bare = within(http_client().post(running.url()).json(&json!({})).send()).await.expect("an answer");
    assert_eq!(bare.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(bare.headers()["www-authenticate"], "Bearer");
    let body: Value = bare.json().await.expect("JSON");
    assert_eq!(body["code"], "unauthorized");

    let unknown = within(running.initialize(&"0".repeat(64)).send()).await.expect("an answer");
    assert_eq!(unknown.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(unknown.headers()["www-authenticate"], "Bearer error=\"invalid_token\"");
    for method in [Method::GET, Method::DELETE, Method::PUT, Method::OPTIONS] {
        assert_eq!(status(http_client().request(method, running.url())).await, StatusCode::UNAUTHORIZED);
    }

    let created = running.token(&[Scope::Discover]);
    let client = running.connect(&created.token).await.expect("a session");
    TokenFile::new(&running.tokens).revoke(&created.record.id).expect("revoked");
    let refused = within(client.peer().call_tool(request("threadline_agents", json!({})))).await;
    assert!(refused.is_err(), "revoked between two requests of one session");
}

#[tokio::test]
async fn other_hosts_and_origins_are_turned_away() {
    let running = Running::start().await;
    let token = running.token(&[Scope::Discover]).token;
    assert_eq!(
        status(running.initialize(&token).header("host", "evil.example")).await,
        StatusCode::FORBIDDEN
    );
    for origin in ["https://evil.example", "null", "http://localhost:1"] {
        assert_eq!(status(running.initialize(&token).header("origin", origin)).await, StatusCode::FORBIDDEN);
    }
    assert_eq!(status(running.initialize(&token).header("host", "localhost:5")).await, StatusCode::OK);

    let config = HttpConfig {
        allowed_hosts: vec!["agent.example".into()],
        allowed_origins: vec!["https://app.example:443".into()],
        ..HttpConfig::default()
    };
    let open = Running::start_with(config).await;
    let token = open.token(&[Scope::Discover]).token;
    let allowed =
        open.initialize(&token).header("host", "agent.example").header("origin", "https://app.example");
    assert_eq!(status(allowed).await, StatusCode::OK);
}

#[tokio::test]
async fn large_bodies_and_floods_are_refused() {
    let running = Running::start().await;
    let token = running.token(&[Scope::Send]).token;
    let body = |bytes: usize| {
        running
            .request(Method::POST, &token)
            .header("content-type", "application/json")
            .body(" ".repeat(bytes))
    };
    assert_eq!(status(body(1024 * 1024 + 1)).await, StatusCode::PAYLOAD_TOO_LARGE);

    let mut answered = 1;
    let refused = loop {
        let response = within(running.request(Method::POST, &token).send()).await.expect("an answer");
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            break response;
        }
        answered += 1;
    };
    assert_eq!(answered, 60);
    let seconds: u64 = refused.headers()["retry-after"].to_str().expect("text").parse().expect("a number");
    assert!((1..=60).contains(&seconds));
    let other = running.token(&[Scope::Send]).token;
    assert_eq!(status(running.initialize(&other)).await, StatusCode::OK, "another token is not affected");
}

#[tokio::test]
async fn only_loopback_is_bound_without_a_proxy() {
    let anywhere = HttpConfig { host: [0, 0, 0, 0].into(), port: 0, ..HttpConfig::default() };
    assert!(matches!(HttpListener::bind(anywhere.clone()).await, Err(HttpError::NotLoopback(_))));
    assert!(HttpListener::bind(HttpConfig { behind_proxy: true, ..anywhere }).await.is_ok());
    for path in ["mcp", "/m?cp", "/{x}", "/*rest"] {
        let config = HttpConfig { path: path.into(), port: 0, ..HttpConfig::default() };
        assert!(matches!(HttpListener::bind(config).await, Err(HttpError::BadPath(_))), "{path}");
    }
    let running = Running::start().await;
    let taken = HttpConfig { port: running.address.port(), ..HttpConfig::default() };
    assert!(matches!(HttpListener::bind(taken).await, Err(HttpError::Bind { .. })));
}

#[tokio::test]
async fn registry_changes_reach_open_sessions() {
    let running = Running::start().await;
    let client = running.connect(&running.token(&[Scope::Discover]).token).await.expect("a session");
    assert_eq!(within(client.peer().list_all_tools()).await.expect("tools").len(), 7);
    running.service.set_registry(true);
    client.service().list_changed(1).await;
    assert_eq!(within(client.peer().list_all_tools()).await.expect("tools").len(), 11);
}

#[tokio::test]
async fn a_stop_ends_open_sessions_and_notes_the_last_use() {
    let running = Running::start().await;
    let created = running.token(&[Scope::Send]);
    let client = running.connect(&created.token).await.expect("a session");
    let peer = client.peer().clone();
    let waiting = tokio::spawn(async move {
        peer.call_tool(request("threadline_send", json!({"agentId": "slow", "message": "hi"}))).await
    });
    within(running.service.waiting(1)).await;
    running.cancel.cancel();
    within(running.serving).await.expect("no panic").expect("a clean end");
    within(running.service.waiting(0)).await;
    waiting.abort();
    let records = TokenFile::new(&running.tokens).list().expect("readable");
    assert!(records[0].last_used_at.is_some());
}
