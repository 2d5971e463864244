//! The public listener: WebSocket, health and the directory.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Extension, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use super::{Shared, connection, rest};
use crate::core::Source;

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADERS: usize = 16 << 10;
const MAX_BODY: usize = 64 << 10;
/// A message that arrives in one piece needs no larger buffer; bigger ones grow it for their time.
const READ_BUFFER: usize = 1 << 10;
const HEALTH_FRESH_MS: i64 = 1_000;

/// Accepts connections until `stop`.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let mut make = router(Arc::clone(&shared)).into_make_service_with_connect_info::<SocketAddr>();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: others may be closed in the meantime.
                    tracing::error!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = stop.cancelled() => return,
        };
        let _ = stream.set_nodelay(true);
        let Ok(service) = make.call(peer).await;
        let ended = stop.clone();
        shared.connections.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEADERS)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => {}
                () = ended.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
        });
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let only_get = |route: axum::routing::MethodRouter<Arc<Shared>>| route.fallback(not_allowed_get);
    Router::new()
        .route("/v1/connect", only_get(get(connect)))
        .route("/health", only_get(get(health)))
        .route("/ready", only_get(get(ready)))
        .nest("/v1/registry", rest::routes())
        .fallback(any(not_found))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&shared), with_source))
        .with_state(shared)
}

/// Finds out once where a request comes from.
async fn with_source(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let ip: IpAddr = peer.ip();
    let source = shared.sources.of(ip, request.headers(), shared.clock.now_ms());
    request.extensions_mut().insert(source);
    next.run(request).await
}

/// The answer for paths that do not exist.
pub(super) async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, axum::Json(json!({"error": "Not found"}))).into_response()
}

async fn not_allowed_get() -> Response {
    not_allowed("GET, HEAD")
}

/// The answer for a known path with another method.
pub(super) fn not_allowed(allow: &'static str) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    (StatusCode::METHOD_NOT_ALLOWED, headers, axum::Json(json!({"error": "Method not allowed"})))
        .into_response()
}

async fn connect(
    State(shared): State<Arc<Shared>>,
    Extension(source): Extension<Source>,
    method: Method,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    if shared.draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({"error": "Draining"}))).into_response();
    }
    let Ok(upgrade) = upgrade else {
        let status =
            if method == Method::GET { StatusCode::UPGRADE_REQUIRED } else { StatusCode::METHOD_NOT_ALLOWED };
        let error = json!({"error": "This route speaks WebSocket"});
        return (status, [(header::UPGRADE, "websocket")], axum::Json(error)).into_response();
    };
    let tracker = shared.connections.clone();
    upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * threadline::v1::MAX_FRAME)
        // Twice what is taken: a text in between is read and refused with 1009, above it the connection is cut.
        .max_message_size(2 * threadline::v1::MAX_FRAME)
        .max_frame_size(2 * threadline::v1::MAX_FRAME)
        .on_upgrade(move |socket| tracker.track_future(connection::run(socket, source, shared)))
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let open = shared.driver.snapshot().await.is_some_and(|snapshot| snapshot.custody_open);
    let ready = open && !shared.draining.load(Ordering::Relaxed);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(json!({"ready": ready}))).into_response()
}

/// The last `/health` answer and when it was made.
#[derive(Default)]
pub(super) struct HealthCache {
    last: Mutex<Option<(i64, Value)>>,
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let now_ms = shared.clock.now_ms();
    let mut last = shared.health.last.lock().await;
    if let Some((_, body)) = last.as_ref().filter(|(at, _)| now_ms - at < HEALTH_FRESH_MS) {
        return axum::Json(body.clone()).into_response();
    }
    let Some(snapshot) = shared.driver.snapshot().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({"status": "stopping"}))).into_response();
    };
    let registry = rest::health(&shared, now_ms).await;
    let ok = snapshot.custody_open && registry.healthy;
    let body = json!({
        "status": if ok { "ok" } else { "degraded" },
        "agents": snapshot.agents,
        "connections": snapshot.connections,
        "offlineQueue": {
            "recipientCount": snapshot.queue.recipients,
            "totalMessages": snapshot.queue.messages,
            "totalBytes": snapshot.queue.bytes,
        },
        "abuse": {
            "activeBans": registry.active_bans,
            "trackedAgents": snapshot.tracked_agents,
            "newAgents": snapshot.new_agents,
        },
        "throughput": {
            "messagesRouted": snapshot.counters.routed,
            "messagesPerMinute": snapshot.messages_per_minute,
        },
        "registry": registry.body,
        "uptime": shared.clock.uptime_s(),
    });
    *last = Some((now_ms, body.clone()));
    axum::Json(body).into_response()
}
