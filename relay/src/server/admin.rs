//! The operator's interface, on a listener of its own (`relay.md` §14.1).

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Extension, Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, delete, get, post};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use threadline::Fingerprint;
use threadline::time::iso_ms;
use tokio_util::sync::CancellationToken;

use super::rest::{self, respond};
use super::{Shared, backup, close_all, health, http as public, well_known};
use crate::admin::{Gate, Refusal};
use crate::core::{Event, SessionInfo};
use crate::keys;
use crate::registry::search;
use crate::store::registry::operator::{self, Ban, Identity};
use crate::store::{Depth, QueueAnswer, QueueOp};

/// Length of a ban that names none.
const BAN_MS: i64 = 3_600_000;
const LONGEST_BAN_MS: i64 = 10 * 365 * 86_400_000;
const PAGE: u32 = 100;
const LONGEST_PAGE: u32 = 1_000;
const REASON: usize = 200;
/// Recipients in a list of the fullest mailboxes.
const LARGEST: u32 = 20;
/// Messages given up at a time.
const DROPPED: u32 = 500;

type Failure = Box<Response>;

/// The admin routes behind the key.
pub(super) fn router(shared: Arc<Shared>, key: &str) -> Router {
    let gate = Arc::new(Mutex::new(Gate::new(key)));
    let routes = Router::new()
        .route("/status", get(status))
        .route("/agents", get(agents))
        .route("/agents/{id}", get(agent))
        .route("/metrics", get(metrics))
        .route("/ban", post(ban))
        .route("/unban", post(unban))
        .route("/bans", get(bans))
        .route("/drain", post(drain))
        .route("/undrain", post(undrain))
        .route("/queue", get(queue))
        .route("/queue/{id}", delete(empty_queue))
        .route("/data/{id}", get(export).delete(erase))
        .route("/backup", post(back_up));
    Router::new()
        .nest("/admin", routes)
        .fallback(any(public::not_found))
        .layer(DefaultBodyLimit::max(64 << 10))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&shared), authorized))
        .layer(Extension(gate))
        .with_state(shared)
}

/// `/metrics` without a key, for a listener that only a scraper can reach.
pub(super) fn metrics_router(shared: Arc<Shared>) -> Router {
    Router::new().route("/metrics", get(plain_metrics)).fallback(any(public::not_found)).with_state(shared)
}

async fn authorized(
    State(shared): State<Arc<Shared>>,
    Extension(gate): Extension<Arc<Mutex<Gate>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let value = request.headers().get(header::AUTHORIZATION);
    let given = value.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let verdict = {
        let mut gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.judge(peer.ip(), given, shared.clock.now_ms())
    };
    match verdict {
        Ok(()) => next.run(request).await,
        Err(Refusal::Unauthorized) => {
            tracing::warn!("a request to the admin interface had no valid key");
            let error = json!({"error": "Unauthorized: send the admin key as a bearer token"});
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], axum::Json(error))
                .into_response()
        }
        Err(Refusal::Locked { retry_ms }) => {
            let seconds = (retry_ms + 999) / 1000;
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            let error = json!({"error": "Too many wrong keys", "retryAfter": seconds});
            (StatusCode::TOO_MANY_REQUESTS, headers, axum::Json(error)).into_response()
        }
    }
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    let Some(mut body) = health::report(&shared).await else { return health::stopping() };
    body["engine"] = "sqlite".into();
    body["draining"] = shared.draining.load(Ordering::Relaxed).into();
    body["version"] = env!("CARGO_PKG_VERSION").into();
    body["relayId"] = shared.relay_id.as_str().into();
    let told = shared.quic.as_ref().and_then(|door| well_known::quic(&shared.config, door.address()));
    body["quic"] = json!({
        "listening": shared.quic.as_ref().map(|door| door.address().to_string()),
        "told": told.map(|address| format!("{}:{}", address.host, address.port)),
    });
    if let Some(snapshot) = shared.driver.snapshot().await {
        body["carriers"] = snapshot.carriers.into_iter().map(|(name, count)| (name, json!(count))).collect();
    }
    axum::Json(body).into_response()
}

#[derive(Deserialize)]
struct Paging {
    limit: Option<u32>,
    cursor: Option<String>,
    online: Option<bool>,
}

async fn agents(State(shared): State<Arc<Shared>>, Query(paging): Query<Paging>) -> Response {
    respond(agents_inner(&shared, paging).await)
}

async fn agents_inner(shared: &Shared, paging: Paging) -> Result<Response, Failure> {
    let limit = paging.limit.unwrap_or(PAGE).clamp(1, LONGEST_PAGE);
    let after = match paging.cursor.as_deref().filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => {
            Some(text.parse::<Fingerprint>().map_err(|_| bad("cursor is the last agentId of a page"))?)
        }
    };
    let mut list = Vec::new();
    let mut last = None;
    if paging.online == Some(true) {
        let live = shared.driver.inspect(move |core| core.sessions_after(after, limit as usize)).await;
        for session in live.unwrap_or_default() {
            last = Some(session.address);
            list.push(live_json(&session));
        }
    } else {
        let known = shared.registry_read(move |c| operator::identities(c, after, limit)).await?;
        let addresses: Vec<Fingerprint> = known.iter().filter_map(address_of).collect();
        last = addresses.last().copied();
        let live = shared
            .driver
            .inspect(move |core| {
                addresses.iter().map(|address| core.session_info(address)).collect::<Vec<_>>()
            })
            .await
            .unwrap_or_default();
        for (identity, session) in known.iter().zip(live) {
            match session {
                Some(_) if paging.online == Some(false) => {}
                Some(session) => list.push(live_json(&session)),
                None => {
                    let key = identity.key;
                    let entry = shared.registry_read(move |c| search::entry(c, &key)).await?;
                    list.push(absent_json(identity, entry.as_ref()));
                }
            }
        }
    }
    let body =
        json!({"count": list.len(), "agents": list, "cursor": last.map(|address| address.to_string())});
    Ok(axum::Json(body).into_response())
}

fn address_of(identity: &Identity) -> Option<Fingerprint> {
    identity.key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes))
}

fn live_json(session: &SessionInfo) -> Value {
    let metadata = &session.metadata;
    json!({
        "agentId": session.address.to_string(),
        "name": metadata.name,
        "framework": metadata.framework,
        "capabilities": metadata.capabilities,
        "visibility": session.visibility,
        "status": "online",
        "connectedSince": iso_ms(session.since_ms),
        "sessionId": format!("conn-{}", session.conn),
        "carrier": session.carrier,
        "device": session.device,
        "source_hash": hex::encode(session.source),
        "unconfirmed": session.in_flight,
    })
}

fn absent_json(identity: &Identity, entry: Option<&search::Entry>) -> Value {
    json!({
        "agentId": crate::registry::clean::agent_id(&identity.key),
        "name": entry.map(|entry| &entry.name),
        "framework": entry.map(|entry| &entry.framework),
        "capabilities": entry.map(|entry| &entry.capabilities),
        "visibility": entry.map(|entry| &entry.visibility),
        "status": "offline",
        "lastSeen": entry.map(|entry| iso_ms(entry.last_seen_ms)),
    })
}

async fn agent(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let look = async {
        let identity = known(&shared, &id).await?;
        let key = identity.key;
        let now_ms = shared.clock.now_ms();
        let address = address_of(&identity).ok_or_else(|| bad("agentId is malformed"))?;
        let session = shared.driver.inspect(move |core| core.session_info(&address)).await.flatten();
        let entry = shared.registry_read(move |c| search::entry(c, &key)).await?;
        let look = shared.driver.queue(QueueOp::Look { most: 0, of: Some(address) }).await;
        let depth = match look {
            Some(QueueAnswer::Look(look)) => look.of,
            _ => None,
        };
        let ban =
            shared.registry_read(move |c| crate::store::registry::banned_until(c, &key, now_ms)).await?;
        let counts = session.as_ref().and_then(|s| s.tier.as_ref()).unwrap_or(&identity.counts);
        let body = json!({
            "agentId": address.to_string(),
            "publicKey": rest::encode_key(&key),
            "firstSeen": iso_ms(identity.first_seen_ms),
            "sessions": session.iter().map(live_json).collect::<Vec<_>>(),
            "registered": entry.is_some(),
            "queue": depth.as_ref().map(depth_json),
            "tier": {
                "hourOfLife": (now_ms - identity.first_seen_ms).div_euclid(3_600_000),
                "limited": shared.config.tiers() && now_ms - identity.first_seen_ms < 86_400_000,
                "messages": counts.messages,
                "newRecipients": counts.recipients.len(),
            },
            "ban": ban.map(|(until_ms, reason)| json!({"expiresAt": iso_ms(until_ms), "reason": reason})),
        });
        Ok(axum::Json(body).into_response())
    };
    respond(look.await)
}

async fn metrics(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let json = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("json"));
    if !json {
        return plain_metrics(State(shared)).await;
    }
    let Some(text) = health::metrics(&shared).await else { return health::stopping() };
    let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let body: serde_json::Map<String, Value> = samples
        .map(|(name, value)| (name.to_owned(), value.parse::<f64>().map_or(Value::Null, Value::from)))
        .collect();
    axum::Json(body).into_response()
}

async fn plain_metrics(State(shared): State<Arc<Shared>>) -> Response {
    let Some(text) = health::metrics(&shared).await else { return health::stopping() };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BanRequest {
    agent_id: Option<String>,
    reason: Option<String>,
    duration_ms: Option<i64>,
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| bad(&format!("the body cannot be read: {error}")))
}

async fn ban(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let ban = async {
        let request: BanRequest = read(&body)?;
        let id = request.agent_id.ok_or_else(|| bad("agentId is missing"))?;
        let duration_ms = request.duration_ms.unwrap_or(BAN_MS);
        if !(1..=LONGEST_BAN_MS).contains(&duration_ms) {
            return Err(bad("durationMs must be positive and at most ten years"));
        }
        let key = key_of(&shared, &id).await?;
        let text = request.reason.as_deref().unwrap_or("banned by the operator");
        let reason = crate::registry::clean::text(text, REASON);
        let now_ms = shared.clock.now_ms();
        let ban = shared
            .registry_write(move |c| operator::ban(c, &key, &reason, now_ms, now_ms + duration_ms))
            .await?;
        if let Some(address) = key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes)) {
            shared.driver.event(Event::Banned { address, until_ms: ban.expires_ms }).await;
        }
        tracing::warn!(pattern = operator::BY_HAND, "identity banned");
        Ok(axum::Json(json!({"ban": ban_json(&ban)})).into_response())
    };
    respond(ban.await)
}

async fn unban(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let unban = async {
        let request: BanRequest = read(&body)?;
        let id = request.agent_id.ok_or_else(|| bad("agentId is missing"))?;
        let key = key_of(&shared, &id).await?;
        let now_ms = shared.clock.now_ms();
        let lifted = shared.registry_write(move |c| operator::unban(c, &key, now_ms)).await?;
        let agent_id = crate::registry::clean::agent_id(&key);
        Ok(axum::Json(json!({"unbanned": lifted, "agentId": agent_id})).into_response())
    };
    respond(unban.await)
}

async fn bans(State(shared): State<Arc<Shared>>) -> Response {
    let list = async {
        let now_ms = shared.clock.now_ms();
        let bans = shared.registry_read(move |c| operator::bans(c, now_ms)).await?;
        let list: Vec<Value> = bans.iter().map(ban_json).collect();
        Ok(axum::Json(json!({"count": list.len(), "bans": list})).into_response())
    };
    respond(list.await)
}

/// A ban for people and programs.
pub(super) fn ban_json(ban: &Ban) -> Value {
    json!({
        "agentId": crate::registry::clean::agent_id(&ban.key),
        "reason": ban.reason,
        "pattern": ban.pattern,
        "bannedAt": iso_ms(ban.banned_ms),
        "expiresAt": iso_ms(ban.expires_ms),
    })
}

async fn drain(State(shared): State<Arc<Shared>>) -> Response {
    if !shared.draining.swap(true, Ordering::Relaxed) {
        tracing::info!("draining: sessions are closed, new ones refused");
        let all = Arc::clone(&shared);
        shared.connections.spawn(async move { close_all(&all, &CancellationToken::new()).await });
    }
    axum::Json(json!({"draining": true})).into_response()
}

async fn undrain(State(shared): State<Arc<Shared>>) -> Response {
    shared.draining.store(false, Ordering::Relaxed);
    axum::Json(json!({"draining": false})).into_response()
}

async fn queue(State(shared): State<Arc<Shared>>) -> Response {
    let Some(snapshot) = shared.driver.snapshot().await else { return health::stopping() };
    let queue = snapshot.queue;
    let look = shared.driver.queue(QueueOp::Look { most: LARGEST, of: None }).await;
    let Some(QueueAnswer::Look(look)) = look else { return health::stopping() };
    let body = json!({
        "recipientCount": queue.recipients,
        "totalMessages": queue.messages,
        "totalBytes": queue.bytes,
        "oldest": look.oldest_ms.map(iso_ms),
        "largest": {
            "byMessages": look.by_messages.iter().map(depth_json).collect::<Vec<_>>(),
            "byBytes": look.by_bytes.iter().map(depth_json).collect::<Vec<_>>(),
        },
    });
    axum::Json(body).into_response()
}

fn depth_json(depth: &Depth) -> Value {
    json!({"agentId": depth.recipient.to_string(), "messages": depth.messages, "bytes": depth.bytes})
}

/// `DELETE /admin/queue/{id}`: gives up the mail of one agent; its senders hear of it.
async fn empty_queue(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let address = match keys::decode_public(&id) {
        Some(key) => key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes)),
        None => id.parse().ok(),
    };
    let Some(recipient) = address else {
        return *bad("the agent is an address of 32 hex digits or a base64 key");
    };
    let mut dropped = 0;
    loop {
        let op = QueueOp::Drop { recipient, now_ms: shared.clock.now_ms(), limit: DROPPED };
        let Some(QueueAnswer::Dropped(gone)) = shared.driver.queue(op).await else {
            return health::stopping();
        };
        dropped += gone.len();
        if gone.len() < DROPPED as usize {
            break;
        }
    }
    tracing::info!(dropped, "an operator emptied a mailbox");
    axum::Json(json!({"agentId": recipient.to_string(), "dropped": dropped})).into_response()
}

async fn export(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let export = async {
        let key = key_of(&shared, &id).await?;
        Ok(axum::Json(rest::everything(&shared, &key).await?).into_response())
    };
    respond(export.await)
}

async fn erase(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let erase = async {
        let key = key_of(&shared, &id).await?;
        Ok(axum::Json(rest::erase(&shared, &key).await?).into_response())
    };
    respond(erase.await)
}

async fn back_up(State(shared): State<Arc<Shared>>) -> Response {
    // A backup takes as long as it takes; a client that gives up does not end it.
    let done = tokio::time::timeout(Duration::from_mins(10), backup::run(Arc::clone(&shared))).await;
    match done {
        Ok(Ok(path)) => axum::Json(json!({"backup": path})).into_response(),
        Ok(Err(detail)) => {
            tracing::error!(detail, "the backup failed");
            let error = json!({"error": format!("the backup failed: {detail}")});
            (StatusCode::INTERNAL_SERVER_ERROR, axum::Json(error)).into_response()
        }
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, axum::Json(json!({"error": "the backup takes too long"})))
            .into_response(),
    }
}

#[expect(clippy::unnecessary_box_returns, reason = "failures are boxed everywhere: a response is large")]
fn bad(text: &str) -> Failure {
    Box::new((StatusCode::BAD_REQUEST, axum::Json(json!({"error": text}))).into_response())
}

/// The identity that an address or a key names, if it was ever here.
async fn known(shared: &Shared, id: &str) -> Result<Identity, Failure> {
    let address = match keys::decode_public(id) {
        Some(key) => key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes)),
        None => id.parse::<Fingerprint>().ok(),
    };
    let address = address.ok_or_else(|| bad("agentId is 32 hex digits or the base64 of a key"))?;
    let found = shared.registry_read(move |c| operator::identity(c, &address)).await?;
    found.ok_or_else(|| {
        let error = json!({"error": "no such agent was ever here"});
        Box::new((StatusCode::NOT_FOUND, axum::Json(error)).into_response())
    })
}

/// The key that an address or a key names; an address only of an agent that was here.
async fn key_of(shared: &Shared, id: &str) -> Result<[u8; 32], Failure> {
    match keys::decode_public(id) {
        Some(key) => Ok(key),
        None => Ok(known(shared, id).await?.key),
    }
}
