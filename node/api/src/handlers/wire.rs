//! Routes that other servers call: handshake, signed requests, messages within the host (`threadline-wire.md` §3), and
//! the owner's routes about pairings.

use axum::Extension;
use axum::Json;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use instar_mesh::{SignedRequest, WireAnswer};
use serde::Deserialize;
use serde_json::Value;
use threadline::v1::http::CONTENT_TYPE;
use threadline::v1::http::signed::SignedHeaders;

use crate::access::Access;
use crate::caller::MeshCaller;
use crate::error::ApiError;
use crate::extract::{Body, Query};
use crate::guard::source_of;
use crate::routes::Route;
use crate::serve::Peer;
use crate::state::Rooms;

type Answer = Result<Json<Value>, ApiError>;

/// A handshake asks another server twice.
const PAIR_PATIENCE_S: u64 = 40;

pub(crate) fn routes() -> Vec<Route> {
    let own = Access::OWN_KIND;
    vec![
        Route::new(
            Method::POST,
            "/threadline/handshake/hello",
            Access::PUBLIC,
            "Another server begins to pair",
            post(hello),
        ),
        Route::new(
            Method::POST,
            "/threadline/handshake/confirm",
            Access::PUBLIC,
            "Another server finishes to pair",
            post(confirm),
        ),
        Route::new(
            Method::POST,
            "/threadline/messages/receive",
            own,
            "A paired server brings a message",
            post(receive),
        ),
        Route::new(
            Method::GET,
            "/threadline/messages/thread/{id}",
            own,
            "A paired server reads its own messages of a thread",
            get(thread),
        )
        .query(&["limit", "before"]),
        Route::new(
            Method::POST,
            "/messages/relay-agent",
            own,
            "An agent of this host brings a message",
            post(relay_agent),
        ),
        Route::new(
            Method::GET,
            "/threadline/pairings",
            Access::LOCAL_AGENT,
            "Paired servers and the words to compare",
            get(pairings),
        ),
        Route::new(
            Method::POST,
            "/threadline/pairings",
            Access::OWNER,
            "Pairs with another server",
            post(pair),
        )
        .patience(PAIR_PATIENCE_S)
        .body::<PairBody>(),
        Route::new(
            Method::POST,
            "/threadline/pairings/{name}/confirm",
            Access::OWNER,
            "The words are the same: the other agent becomes verified",
            post(confirm_words),
        ),
        Route::new(
            Method::DELETE,
            "/threadline/pairings/{name}",
            Access::LOCAL_AGENT,
            "Forgets a pairing; the level stays",
            delete(remove),
        ),
    ]
}

/// An answer in the wire's shape.
fn on_the_wire(answer: WireAnswer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, Json(answer.body)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    response
}

fn headers_of(headers: &HeaderMap) -> Result<SignedHeaders, threadline::v1::http::TlError> {
    SignedHeaders::read(|name| headers.get(name).and_then(|value| value.to_str().ok()))
}

async fn hello(rooms: Rooms, peer: Option<Extension<Peer>>, body: Bytes) -> Response {
    let source = source_of(peer.map(|Extension(peer)| peer));
    on_the_wire(rooms.mesh.handshake_hello(&source, &body).await)
}

async fn confirm(rooms: Rooms, body: Bytes) -> Response {
    on_the_wire(rooms.mesh.handshake_confirm(&body).await)
}

async fn receive(rooms: Rooms, headers: HeaderMap, uri: Uri, body: Bytes) -> Response {
    let request = SignedRequest { method: "POST", path: uri.path(), body: &body };
    on_the_wire(rooms.mesh.receive_signed(headers_of(&headers), request).await)
}

#[derive(Deserialize)]
struct PageQuery {
    limit: Option<u32>,
    before: Option<i64>,
}

async fn thread(
    rooms: Rooms,
    headers: HeaderMap,
    uri: Uri,
    Path(id): Path<String>,
    Query(page): Query<PageQuery>,
) -> Response {
    let request = SignedRequest { method: "GET", path: uri.path(), body: &[] };
    let found = rooms.mesh.thread_signed(headers_of(&headers), request, &id, page.limit, page.before);
    on_the_wire(found.await)
}

async fn relay_agent(rooms: Rooms, headers: HeaderMap, body: Bytes) -> Response {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer "));
    let answer = rooms.mesh.relay_agent(token, &body).await;
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(answer.body)).into_response()
}

async fn pairings(rooms: Rooms) -> Answer {
    Ok(Json(rooms.mesh.pairings()?))
}

/// Body of `POST /threadline/pairings`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct PairBody {
    /// `http(s)://host[:port]` of the other server.
    url: String,
}

async fn pair(rooms: Rooms, MeshCaller(caller): MeshCaller, Body(body): Body<PairBody>) -> Answer {
    Ok(Json(rooms.mesh.pair(&caller, &body.url).await?))
}

async fn confirm_words(rooms: Rooms, MeshCaller(caller): MeshCaller, Path(name): Path<String>) -> Answer {
    Ok(Json(rooms.mesh.confirm_pairing(&caller, &name).await?))
}

async fn remove(rooms: Rooms, Path(name): Path<String>) -> Answer {
    Ok(Json(rooms.mesh.remove_pairing(&name).await?))
}
