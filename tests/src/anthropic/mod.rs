//! A double of the Anthropic Messages API on loopback: streaming, tool use, thinking, errors, and faults on command.
//!
//! What it answers is decided by a [`Script`]; every request is recorded for assertions.

mod request;
mod stream;

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::script::{Conversation, Fault, Reply, Script, Step};

/// One request that the double saw.
#[derive(Debug, Clone, Serialize)]
pub struct Seen {
    /// Milliseconds since the double started.
    pub at_ms: u128,
    /// Method and path with query.
    pub line: String,
    /// `x-claude-code-session-id`, where the client sent one.
    pub session: Option<String>,
    /// HTTP status of the answer.
    pub status: u16,
    /// Why the request was refused, if it was.
    pub refused: Option<String>,
    /// Name of the rule that answered.
    pub rule: Option<String>,
    /// The script's answer.
    pub said: Option<String>,
    /// Names of the tools called by the answer.
    pub calls: Vec<String>,
    /// Request body.
    pub body: Value,
}

/// The running double; it stops when dropped.
#[derive(Debug)]
pub struct MessagesApi {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    log: Option<PathBuf>,
    state: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    script: Script,
    seen: Vec<Seen>,
    faults: HashMap<(String, usize), u32>,
}

impl MessagesApi {
    /// Serves on `listen`; requests are also appended to `log` as JSON lines.
    pub async fn start(listen: SocketAddr, script: Script, log: Option<PathBuf>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let inner = Inner { script, seen: Vec::new(), faults: HashMap::new() };
        let shared = Arc::new(Shared { started: Instant::now(), log, state: Mutex::new(inner) });
        let router = Router::new()
            .route("/v1/messages", post(messages))
            .route("/v1/messages/count_tokens", post(count_tokens))
            .fallback(any(elsewhere))
            .layer(axum::extract::DefaultBodyLimit::max(64 << 20))
            .with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "messages api double ended");
            }
        });
        Ok(Self { address, shared, task })
    }

    /// Value for `ANTHROPIC_BASE_URL`.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request so far, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// Takes other rules from now on.
    pub fn set_script(&self, script: Script) {
        self.shared.lock().script = script;
    }

    /// Serves until the process ends.
    pub async fn wait(mut self) {
        let _ = (&mut self.task).await;
    }
}

impl Drop for MessagesApi {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, mut seen: Seen) {
        seen.at_ms = self.started.elapsed().as_millis();
        if let Some(path) = &self.log {
            let line = serde_json::to_string(&seen).unwrap_or_default();
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
                tracing::error!(%error, path = %path.display(), "request not logged");
            }
        }
        self.lock().seen.push(seen);
    }

    /// The script's answer, with the fault left out once it has fired often enough.
    fn answer(&self, conversation: &Conversation, has_tools: bool) -> Reply {
        let plain = |rule: &str, text: String| Reply {
            rule: rule.to_owned(),
            step: 0,
            say: Step { text: Some(text), ..Step::default() },
        };
        if conversation.input.contains("<summary>") && conversation.input.contains("TEXT ONLY") {
            return plain(
                "compaction",
                "<analysis>none</analysis>\n<summary>All so far.</summary>".to_owned(),
            );
        }
        let mut inner = self.lock();
        let Some(mut reply) = inner.script.reply(conversation) else {
            let shown: String = conversation.input.chars().take(200).collect();
            let text = if has_tools { format!("No rule matches: {shown}") } else { "ok".to_owned() };
            return plain("none", text);
        };
        if let Some(Fault::Error { times: Some(times), .. }) = reply.say.fault {
            let fired = inner.faults.entry((reply.rule.clone(), reply.step)).or_default();
            *fired += 1;
            if *fired > times {
                reply.say.fault = None;
            }
        }
        reply
    }
}

async fn messages(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let parsed: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut seen = seen(&method, &uri, &headers, parsed);
    if let Err(refusal) = request::check(&headers, &seen.body) {
        seen.status = refusal.status.as_u16();
        seen.refused = Some(refusal.message.clone());
        shared.record(seen);
        return error(refusal.status, refusal.error, &refusal.message, None);
    }
    let conversation = Conversation::from_messages(&seen.body["system"], &seen.body["messages"]);
    let has_tools = seen.body["tools"].as_array().is_some_and(|tools| !tools.is_empty());
    let reply = shared.answer(&conversation, has_tools);
    seen.rule = Some(reply.rule.clone());
    seen.said.clone_from(&reply.say.text);
    seen.calls = reply.say.calls.iter().map(|call| call.tool.clone()).collect();

    if let Some(Fault::Error { status, error: kind, retry_after, .. }) = &reply.say.fault {
        let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        seen.status = status.as_u16();
        shared.record(seen);
        return error(status, kind, "asked for by the script", *retry_after);
    }
    let message = stream::Message::new(&seen.body, body.len(), &reply.say);
    let streaming = seen.body["stream"].as_bool().unwrap_or(false);
    // Before the pause: whoever waits for the request wants to know that it is under way.
    shared.record(seen);
    if let Some(Fault::Sleep { ms }) = &reply.say.fault {
        tokio::time::sleep(Duration::from_millis(*ms)).await;
    }
    if streaming { message.into_events(reply.say.fault) } else { message.into_json() }
}

async fn count_tokens(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    shared.record(seen(&method, &uri, &headers, Value::Null));
    axum::Json(json!({ "input_tokens": tokens(body.len()) })).into_response()
}

async fn elsewhere(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let mut seen = seen(&method, &uri, &headers, Value::Null);
    let answer = match (method.as_str(), uri.path()) {
        ("HEAD", _) => StatusCode::OK.into_response(),
        ("GET", "/v1/models") => axum::Json(json!({
            "data": [{
                "type": "model", "id": "claude-double-1", "display_name": "Double",
                "created_at": "2026-01-01T00:00:00Z"
            }],
            "has_more": false
        }))
        .into_response(),
        _ => error(StatusCode::NOT_FOUND, "not_found_error", "the double has no such route", None),
    };
    seen.status = answer.status().as_u16();
    shared.record(seen);
    answer
}

fn seen(method: &Method, uri: &Uri, headers: &HeaderMap, body: Value) -> Seen {
    let session = headers.get("x-claude-code-session-id").and_then(|id| id.to_str().ok());
    Seen {
        at_ms: 0,
        line: format!("{method} {uri}"),
        session: session.map(str::to_owned),
        status: 200,
        refused: None,
        rule: None,
        said: None,
        calls: Vec::new(),
        body,
    }
}

fn error(status: StatusCode, kind: &str, message: &str, retry_after: Option<u64>) -> Response {
    let request = format!("req_{}", uuid::Uuid::new_v4().simple());
    let body = json!({
        "type": "error", "error": { "type": kind, "message": message }, "request_id": request
    });
    let mut response = (status, axum::Json(body)).into_response();
    let mut header = |name: &'static str, value: String| {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    };
    header("request-id", request);
    if let Some(seconds) = retry_after {
        header("retry-after", seconds.to_string());
    }
    response
}

/// Roughly four bytes a token, as the documentation suggests.
fn tokens(bytes: usize) -> u64 {
    (bytes as u64 / 4).max(1)
}
