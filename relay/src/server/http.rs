//! The public listener: WebSocket, health and the directory.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Extension, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;

use super::connection::NotWebSocket;
use super::tls::Acceptor;
use super::{Shared, a2a, connection, health, page, rest, well_known};
use crate::core::Source;

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADERS: usize = 16 << 10;
const MAX_BODY: usize = 64 << 10;
const SUBPROTOCOL: &str = "threadline.2.msgpack";

/// Accepts connections until `stop` and serves them with `router`.
pub(super) async fn accept(
    listener: TcpListener,
    router: Router,
    tls: Option<Acceptor>,
    connections: TaskTracker,
    stop: CancellationToken,
) {
    let mut make = router.into_make_service_with_connect_info::<SocketAddr>();
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
        let service = TowerToHyperService::new(service);
        let ended = stop.clone();
        match tls.clone() {
            None => connections.spawn(serve(stream, service, ended)),
            Some(tls) => connections.spawn(async move {
                if let Some(stream) = tls.accept(stream).await {
                    serve(stream, service, ended).await;
                }
            }),
        };
    }
}

/// Serves one connection that is no socket of the listener, as if it came from `peer`.
pub(super) async fn serve_from<I>(
    router: Router,
    peer: SocketAddr,
    stream: I,
    ended: CancellationToken,
) -> impl Future<Output = ()> + Send + use<I>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(service) = router.into_make_service_with_connect_info::<SocketAddr>().call(peer).await;
    serve(stream, TowerToHyperService::new(service), ended)
}

async fn serve<I, S>(stream: I, service: S, ended: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = axum::body::Body>,
    S::Error: Into<axum::BoxError>,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => {}
        () = ended.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// The routes of the public listener.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let only_get = |route: axum::routing::MethodRouter<Arc<Shared>>| route.fallback(not_allowed_get);
    Router::new()
        .route("/v2/connect", only_get(get(connect_v2)))
        .route("/.well-known/threadline", only_get(get(well_known::document)))
        .route("/v1/connect", only_get(get(connect)))
        .route("/health", only_get(get(health::health)))
        .route("/ready", only_get(get(health::ready)))
        .nest("/v1/registry", rest::routes())
        .nest("/a2a", a2a::routes())
        .merge(page::routes())
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
    request: axum::extract::Request,
) -> Response {
    upgrade(&shared, source, request, false)
}

async fn connect_v2(
    State(shared): State<Arc<Shared>>,
    Extension(source): Extension<Source>,
    request: axum::extract::Request,
) -> Response {
    let offered = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let words = offered.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    if !words.map(str::trim).any(|word| word == SUBPROTOCOL) {
        let error =
            json!({"error": format!("This route speaks WebSocket with the subprotocol {SUBPROTOCOL}")});
        return (StatusCode::UPGRADE_REQUIRED, [(header::UPGRADE, "websocket")], axum::Json(error))
            .into_response();
    }
    let mut answer = upgrade(&shared, source, request, true);
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        answer.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    answer
}

fn upgrade(shared: &Arc<Shared>, source: Source, mut request: axum::extract::Request, v2: bool) -> Response {
    if shared.draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({"error": "Draining"}))).into_response();
    }
    let upgrade = request.extensions_mut().remove();
    match connection::handshake(request.method(), request.headers(), upgrade) {
        Ok((upgrade, answer)) => {
            shared.connections.spawn(connection::run(upgrade, source, v2, Arc::clone(shared)));
            answer
        }
        Err(refusal) => {
            let status = match refusal {
                NotWebSocket::Method => StatusCode::METHOD_NOT_ALLOWED,
                NotWebSocket::Headers => StatusCode::UPGRADE_REQUIRED,
            };
            let error = json!({"error": "This route speaks WebSocket"});
            (status, [(header::UPGRADE, "websocket")], axum::Json(error)).into_response()
        }
    }
}
