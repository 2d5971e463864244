//! The bridge for plain A2A clients, over HTTP on one side and as an ordinary v1 client of this relay on the other.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;
use threadline::Fingerprint;
use threadline::identity::{Identity, LoginNonce};
use threadline::time::iso_ms;
use threadline::v1::envelope::{Envelope, is_auto_ack, read_clear};
use threadline::v1::frames::{Ack, AckStatus, Auth, ClientFrame, Metadata, ServerFrame, Visibility};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::{Shared, http as public};
use crate::a2a::{Caller, End, Fault, Form, Method, PATIENCE_MS, Send, Tasks, error_body, read, token_hash};
use crate::config;
use crate::core::{Event, Source};
use crate::limits::{Rule, Windows};
use crate::registry::search;
use crate::store::registry::a2a::{self as store, Doors};

/// Messages waiting for the link; when full a caller hears that nothing was delivered.
const OUTGOING: usize = 64;
const PIPE: usize = 64 << 10;
const AGAIN: Duration = Duration::from_secs(1);
const TIDY: Duration = Duration::from_secs(5);
const SOURCES: usize = 10_000;
const CAPABILITY: &str = "a2a";
/// From the discard-only prefix: no real connection shares limits with the bridge.
const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1)), 0);

/// What the routes and the link share.
pub(super) struct Bridge {
    identity: Identity,
    outgoing: mpsc::Sender<Question>,
    incoming: Mutex<Option<mpsc::Receiver<Question>>>,
    state: Mutex<Running>,
    rates: Mutex<Rates>,
    pub(super) requests: AtomicU64,
    pub(super) rejected: AtomicU64,
}

/// A message to an agent, and where its answer is awaited.
struct Question {
    agent: Fingerprint,
    thread: String,
    frame: String,
}

#[derive(Default)]
struct Running {
    tasks: Tasks,
    waiters: HashMap<String, oneshot::Sender<()>>,
}

struct Rates {
    minute: Windows<[u8; 8]>,
    hour: Windows<[u8; 8]>,
    open: Windows<[u8; 8]>,
}

impl Bridge {
    pub(super) fn new(identity: Identity, config: &config::A2a) -> Self {
        let (outgoing, incoming) = mpsc::channel(OUTGOING);
        Self {
            identity,
            outgoing,
            incoming: Mutex::new(Some(incoming)),
            state: Mutex::default(),
            rates: Mutex::new(Rates {
                minute: Windows::new(Rule::per_minute(config.per_minute), SOURCES),
                hour: Windows::new(Rule::per_hour(config.per_hour), SOURCES),
                open: Windows::new(Rule::per_minute(config.open_per_minute), SOURCES),
            }),
            requests: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
        }
    }

    pub(super) fn address(&self) -> Fingerprint {
        self.identity.fingerprint()
    }

    fn state(&self) -> MutexGuard<'_, Running> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a task and wakes whoever waits for it.
    fn finish(&self, task: &str, end: End, now_ms: i64) -> bool {
        let mut state = self.state();
        let ended = state.tasks.end(task, end, now_ms);
        state.waiters.remove(task);
        ended
    }

    /// Milliseconds to wait, if the source called too often.
    fn limit(&self, source: &Source, open: bool, now_ms: i64) -> Result<(), i64> {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let net = source.net;
        let Rates { minute, hour, open: anyone } = &mut *rates;
        let over = |error: crate::limits::OverLimit| error.retry_ms;
        minute.check(&net, now_ms).map_err(over)?;
        hour.check(&net, now_ms).map_err(over)?;
        if open {
            anyone.take(&net, now_ms).map_err(over)?;
        }
        minute.add(&net, now_ms);
        hour.add(&net, now_ms);
        Ok(())
    }
}

/// Routes below `/a2a`.
pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route(
            "/{agent}/.well-known/agent-card.json",
            get(card).fallback(|| async { public::not_allowed("GET, HEAD") }),
        )
        .route("/{agent}", post(standard).fallback(|| async { public::not_allowed("POST") }))
        .route("/{agent}/messages", post(send).fallback(|| async { public::not_allowed("POST") }))
        .route(
            "/{agent}/tasks/{task}",
            get(task).post(cancel).fallback(|| async { public::not_allowed("GET, HEAD, POST") }),
        )
        .layer(DefaultBodyLimit::max(64 << 10))
}

/// An agent that can be called over the bridge.
struct Exposed {
    address: Fingerprint,
    name: String,
    description: String,
    capabilities: Vec<String>,
    doors: Doors,
}

/// The bridge and the agent, if there is a bridge and the agent wants to be called over it.
async fn exposed<'a>(shared: &'a Shared, id: &str) -> Result<(&'a Arc<Bridge>, Exposed), Fault> {
    let bridge = shared.bridge.as_ref().ok_or(Fault::NotFound)?;
    let address: Fingerprint = id.parse().map_err(|_| Fault::NotFound)?;
    let (agent_id, now_ms) = (address.to_string(), shared.clock.now_ms());
    let found = shared
        .registry_read(move |c| {
            let entry = search::entry_by_address(c, &agent_id)?;
            let doors = entry.as_ref().map(|entry| store::doors(c, &entry.key)).transpose()?;
            Ok((entry, doors.unwrap_or_default()))
        })
        .await;
    let (entry, mut doors) = found.map_err(|_| Fault::NotFound)?;
    let wants = |entry: &search::Entry| {
        entry.is_visible(now_ms) && entry.capabilities.iter().any(|tag| tag == CAPABILITY)
    };
    if let Some(entry) = entry.filter(wants) {
        let search::Entry { name, bio, capabilities, .. } = entry;
        return Ok((bridge, Exposed { address, name, description: bio, capabilities, doors }));
    }
    if !shared.config.a2a.v1_open {
        return Err(Fault::NotFound);
    }
    let session = shared.driver.inspect(move |core| core.session_info(&address)).await.flatten();
    let metadata = session.filter(|_| address != bridge.address()).ok_or(Fault::NotFound)?.metadata;
    doors.open = true;
    Ok((
        bridge,
        Exposed {
            address,
            name: metadata.name,
            description: metadata.bio.unwrap_or_default(),
            capabilities: metadata.capabilities.unwrap_or_default(),
            doors,
        },
    ))
}

fn refuse(id: &Value, fault: Fault) -> Response {
    let (code, status, text) = fault.describe();
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    (status, axum::Json(error_body(id, code, text))).into_response()
}

async fn card(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let (bridge, agent) = match exposed(&shared, &id).await {
        Ok(found) => found,
        Err(fault) => return refuse(&Value::Null, fault),
    };
    bridge.requests.fetch_add(1, Ordering::Relaxed);
    let base = &shared.config.public_url;
    let direct = base.replacen("http", "ws", 1) + "/v1/connect";
    let tags = agent.capabilities.iter().filter(|tag| *tag != CAPABILITY);
    let mut skills: Vec<Value> =
        tags.map(|tag| json!({"id": tag, "name": tag, "description": tag, "tags": [tag]})).collect();
    if skills.is_empty() {
        let text = "Talks about anything in plain text";
        skills.push(json!({"id": "conversation", "name": "Conversation", "description": text, "tags": ["conversation"]}));
    }
    let mut card = json!({
        "name": agent.name,
        "description": agent.description,
        "url": format!("{base}/a2a/{}", agent.address),
        "version": "1.0",
        "protocolVersion": "0.3.0",
        "preferredTransport": "JSONRPC",
        "capabilities": {"streaming": false, "pushNotifications": false, "stateTransitionHistory": false},
        "defaultInputModes": ["text/plain"],
        "defaultOutputModes": ["text/plain"],
        "skills": skills,
        "extensions": {"threadline": {
            "version": "1", "relayId": shared.relay_id, "directConnect": direct, "transport": "a2a-bridge",
        }},
    });
    if !agent.doors.open {
        card["securitySchemes"] = json!({"bearer": {"type": "http", "scheme": "bearer"}});
        card["security"] = json!([{"bearer": []}]);
    }
    axum::Json(card).into_response()
}

/// The bridge's own route.
async fn send(
    state: State<Arc<Shared>>,
    source: Extension<Source>,
    agent: Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    call(state, source, agent, headers, body, Form::Bridge).await
}

/// The address in the card, for clients of A2A 0.3.
async fn standard(
    state: State<Arc<Shared>>,
    source: Extension<Source>,
    agent: Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    call(state, source, agent, headers, body, Form::Standard).await
}

async fn call(
    State(shared): State<Arc<Shared>>,
    Extension(source): Extension<Source>,
    Path(agent): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
    form: Form,
) -> Response {
    let Ok(body) = body else {
        return (
            StatusCode::PAYLOAD_TOO_LARGE,
            axum::Json(error_body(&Value::Null, -32602, "The body is above 64 KiB")),
        )
            .into_response();
    };
    if let Some(bridge) = &shared.bridge {
        bridge.requests.fetch_add(1, Ordering::Relaxed);
    }
    answer(&shared, source, &agent, &headers, &body, form).await.unwrap_or_else(|response| {
        if let Some(bridge) = &shared.bridge {
            bridge.rejected.fetch_add(1, Ordering::Relaxed);
        }
        *response
    })
}

async fn answer(
    shared: &Arc<Shared>,
    source: Source,
    id: &str,
    headers: &HeaderMap,
    body: &[u8],
    form: Form,
) -> Result<Response, Box<Response>> {
    let now_ms = shared.clock.now_ms();
    let (bridge, agent) = exposed(shared, id).await.map_err(|fault| Box::new(refuse(&Value::Null, fault)))?;
    if shared.config.limits.per_source {
        bridge.limit(&source, agent.doors.open, now_ms).map_err(|retry_ms| Box::new(too_often(retry_ms)))?;
    }
    let request = read(body, form).map_err(|(id, fault)| Box::new(refuse(&id, fault)))?;
    let fail = |fault| Box::new(refuse(&request.id, fault));
    let task = match &request.method {
        Method::Send(send) => {
            let caller = caller(&agent.doors, &source, headers).map_err(fail)?;
            pass_on(shared, bridge, &agent, &caller, send).await.map_err(fail)?
        }
        Method::Get(task) => task.clone(),
        Method::Cancel(task) => {
            let known = bridge.state().tasks.describe(task, &agent.address, form).is_some();
            if known {
                bridge.finish(task, End::Canceled, now_ms);
            }
            task.clone()
        }
    };
    let result = bridge.state().tasks.describe(&task, &agent.address, form);
    let result = result.ok_or_else(|| fail(Fault::NotFound))?;
    Ok(axum::Json(json!({"jsonrpc": "2.0", "id": request.id, "result": result})).into_response())
}

/// Hands a text to the agent, and waits for its answer where the caller does. Returns the task.
async fn pass_on(
    shared: &Arc<Shared>,
    bridge: &Arc<Bridge>,
    agent: &Exposed,
    caller: &Caller,
    send: &Send,
) -> Result<String, Fault> {
    let now_ms = shared.clock.now_ms();
    let (context, thread, is_new) = conversation(shared, agent, caller, send, now_ms).await?;
    let task = uuid::Uuid::new_v4().to_string();
    let frame = envelope(bridge, agent, send, &task, &context, &thread, is_new, now_ms)?;
    let waiter = {
        let mut state = bridge.state();
        state.tasks.begin(&task, agent.address, &thread, &context, now_ms)?;
        let (wake, waiter) = oneshot::channel();
        state.waiters.insert(task.clone(), wake);
        waiter
    };
    if bridge.outgoing.try_send(Question { agent: agent.address, thread, frame }).is_err() {
        bridge.finish(&task, End::Refused, now_ms);
        return Err(Fault::NotDelivered);
    }
    if !send.waits {
        return Ok(task);
    }
    let patience = Duration::from_millis(u64::try_from(PATIENCE_MS).unwrap_or_default());
    let _ = tokio::time::timeout(patience, waiter).await;
    bridge.finish(&task, End::TimedOut, shared.clock.now_ms());
    if bridge.state().tasks.end_of(&task) == Some(&End::Refused) {
        return Err(Fault::NotDelivered);
    }
    Ok(task)
}

fn too_often(retry_ms: i64) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(header::RETRY_AFTER, HeaderValue::from((retry_ms + 999) / 1000));
    let body = error_body(&Value::Null, -32000, "Too many requests");
    (StatusCode::TOO_MANY_REQUESTS, headers, axum::Json(body)).into_response()
}

fn caller(doors: &Doors, source: &Source, headers: &HeaderMap) -> Result<Caller, Fault> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = value.and_then(|value| value.strip_prefix("Bearer "));
    let known = token.filter(|token| {
        let hash = token_hash(token);
        doors.token_hashes.iter().any(|known| known.as_bytes().ct_eq(hash.as_bytes()).into())
    });
    match known {
        Some(token) => Ok(Caller::token(token)),
        None if doors.open => Ok(Caller::anonymous(&source.net)),
        None => Err(Fault::Unauthorized),
    }
}

/// Context and conversation of a request, and whether they are new.
async fn conversation(
    shared: &Shared,
    agent: &Exposed,
    caller: &Caller,
    send: &Send,
    now_ms: i64,
) -> Result<(String, String, bool), Fault> {
    let (address, caller, asked) = (agent.address, *caller, send.context.clone());
    let fresh = (uuid::Uuid::new_v4().to_string(), format!("a2a-{}", uuid::Uuid::new_v4()));
    let stored = shared
        .registry_write(move |c| {
            let known = match &asked {
                Some(context) => store::thread(c, context, &address, caller.as_bytes(), now_ms)?,
                None => None,
            };
            let is_new = known.is_none();
            let (context, thread) = match (asked, known) {
                (Some(context), Some(thread)) => (context, thread),
                _ => fresh,
            };
            store::remember(c, &context, &address, caller.as_bytes(), &thread, now_ms)?;
            Ok((context, thread, is_new))
        })
        .await;
    stored.map_err(|_| Fault::NotDelivered)
}

#[allow(clippy::too_many_arguments, reason = "the members of one message")]
fn envelope(
    bridge: &Bridge,
    agent: &Exposed,
    send: &Send,
    task: &str,
    context: &str,
    thread: &str,
    is_new: bool,
    now_ms: i64,
) -> Result<String, Fault> {
    // Existing receivers read only `text`.
    let payload = json!({
        "text": send.text,
        "content": send.text,
        "type": "a2a-message",
        "metadata": {
            "transport": "a2a-bridge", "a2aTaskId": task, "contextId": context, "isNewThread": is_new,
        },
    });
    let payload = payload.to_string();
    if payload.len() > threadline::v1::MAX_PAYLOAD {
        return Err(Fault::Params("the text is too long"));
    }
    let envelope = json!({
        "from": bridge.address().to_string(),
        "to": agent.address.to_string(),
        "threadId": thread,
        "messageId": format!("a2a-{task}"),
        "timestamp": iso_ms(now_ms),
        "payload": STANDARD.encode(payload),
    });
    Ok(json!({"type": "message", "envelope": envelope}).to_string())
}

async fn task(State(shared): State<Arc<Shared>>, Path((id, task)): Path<(String, String)>) -> Response {
    let address: Option<Fingerprint> = id.parse().ok();
    let found = shared.bridge.as_ref().zip(address).and_then(|(bridge, address)| {
        bridge.requests.fetch_add(1, Ordering::Relaxed);
        bridge.state().tasks.describe(&task, &address, Form::Bridge)
    });
    match found {
        Some(body) => axum::Json(body).into_response(),
        None => refuse(&Value::Null, Fault::NotFound),
    }
}

/// `POST …/tasks/{task}:cancel`.
async fn cancel(State(shared): State<Arc<Shared>>, Path((id, task)): Path<(String, String)>) -> Response {
    let Some(task) = task.strip_suffix(":cancel") else { return public::not_allowed("GET, HEAD") };
    let address: Option<Fingerprint> = id.parse().ok();
    let found = shared.bridge.as_ref().zip(address);
    let Some((bridge, address)) =
        found.filter(|(b, a)| b.state().tasks.describe(task, a, Form::Bridge).is_some())
    else {
        return refuse(&Value::Null, Fault::NotFound);
    };
    bridge.finish(task, End::Canceled, shared.clock.now_ms());
    let body = bridge.state().tasks.describe(task, &address, Form::Bridge);
    axum::Json(body.unwrap_or(Value::Null)).into_response()
}

/// Keeps the bridge logged in until `stop`, and looks after its tasks.
pub(super) async fn run(shared: Arc<Shared>, bridge: Arc<Bridge>, router: Router, stop: CancellationToken) {
    let incoming = bridge.incoming.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(mut incoming) = incoming else { return };
    let mut tidy = tokio::time::interval(TIDY);
    loop {
        if let Some(mut socket) = log_in(&shared, &bridge, router.clone(), &stop).await {
            loop {
                tokio::select! {
                    frame = socket.next() => {
                        let Some(Ok(message)) = frame else { break };
                        let Message::Text(text) = message else { continue };
                        let answer = hear(&shared, &bridge, text.as_str());
                        if let Some(answer) = answer && socket.send(Message::text(answer)).await.is_err() {
                            break;
                        }
                    }
                    Some(Question { agent, thread, frame }) = incoming.recv() => {
                        shared.driver.event(Event::BridgeAwaits { agent, thread, waits: true }).await;
                        if socket.send(Message::text(frame)).await.is_err() {
                            break;
                        }
                    }
                    _ = tidy.tick() => {
                        let now_ms = shared.clock.now_ms();
                        let mut state = bridge.state();
                        for task in state.tasks.tidy(now_ms) {
                            state.waiters.remove(&task);
                        }
                    }
                    () = stop.cancelled() => return,
                }
                // Whoever hangs up leaves a task that goes on: only its end closes the conversation.
                let ended = bridge.state().tasks.take_ended();
                for (agent, thread) in ended {
                    shared.driver.event(Event::BridgeAwaits { agent, thread, waits: false }).await;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = stop.cancelled() => return,
        }
    }
}

type Socket = WebSocketStream<tokio::io::DuplexStream>;

/// A session over a pipe in memory: whatever holds for clients holds for the bridge.
async fn log_in(
    shared: &Shared,
    bridge: &Bridge,
    router: Router,
    stop: &CancellationToken,
) -> Option<Socket> {
    let (near, far) = tokio::io::duplex(PIPE);
    let served = public::serve_from(router, PEER, far, stop.clone()).await;
    shared.connections.spawn(served);
    let (mut socket, _) =
        tokio_tungstenite::client_async("ws://relay.invalid/v1/connect", near).await.ok()?;
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        match ServerFrame::parse(text.as_str()).ok()? {
            ServerFrame::Challenge(nonce) => {
                let nonce = LoginNonce::parse(&nonce)?;
                let metadata = Metadata { name: "A2A bridge".into(), ..Metadata::default() };
                let auth = Auth::new(&bridge.identity, &nonce, metadata, Visibility::Private);
                socket.send(Message::text(ClientFrame::Auth(Box::new(auth)).to_text())).await.ok()?;
            }
            ServerFrame::AuthOk(_) => return Some(socket),
            ServerFrame::AuthError(error) => {
                tracing::error!(error = error.message, "the A2A bridge cannot log in");
                return None;
            }
            _ => {}
        }
    }
    None
}

/// Takes a frame of the relay; returns what to say to it.
fn hear(shared: &Shared, bridge: &Bridge, text: &str) -> Option<String> {
    let now_ms = shared.clock.now_ms();
    match ServerFrame::parse(text).ok()? {
        ServerFrame::Ping(timestamp) => Some(ClientFrame::Pong(timestamp).to_text()),
        ServerFrame::Message(envelope) => {
            let id = envelope.text("messageId").unwrap_or_default().to_owned();
            take(bridge, &envelope, now_ms);
            Some(ClientFrame::Ack(Ack::new(&id, AckStatus::Delivered)).to_text())
        }
        ServerFrame::Ack(ack) if ack.status == AckStatus::Rejected => {
            if let Some(task) = ack.message_id.strip_prefix("a2a-") {
                bridge.finish(task, End::Refused, now_ms);
            }
            None
        }
        _ => None,
    }
}

fn take(bridge: &Bridge, envelope: &Envelope, now_ms: i64) {
    let (Ok(header), Ok(content)) = (envelope.header(), read_clear(envelope)) else { return };
    if is_auto_ack(&content) {
        return;
    }
    let Some(thread) = header.thread_id else { return };
    let mut state = bridge.state();
    if let Some(task) = state.tasks.answered(header.from, thread.as_str(), content.text, now_ms) {
        state.waiters.remove(&task);
    }
}
