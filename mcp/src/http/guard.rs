//! Who may pass to the endpoint, and as whom.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use serde_json::json;
use threadline::service::Caller;
use tokio::time::Instant;

use super::rate::Rate;
use crate::tokens::Tokens;

const SESSION: &str = "mcp-session-id";

/// Checks every request by itself; of earlier ones it knows only how many there were and who opened which session.
pub(super) struct Guard {
    tokens: Tokens,
    sessions: Arc<LocalSessionManager>,
    // Short maps, never locked across an await.
    rate: Mutex<Rate>,
    owners: Mutex<BTreeMap<String, String>>,
}

impl Guard {
    pub(super) fn new(tokens: Tokens, sessions: Arc<LocalSessionManager>) -> Self {
        Self { tokens, sessions, rate: Mutex::default(), owners: Mutex::default() }
    }

    /// Whether the session was opened with another token.
    fn is_foreign(&self, session: &str, token_id: &str) -> bool {
        let owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.get(session).is_some_and(|owner| owner != token_id)
    }

    /// Notes who opened a session, and forgets the sessions that ended.
    async fn note_owner(&self, session: &str, token_id: &str) {
        let live: Vec<String> = self.sessions.sessions.read().await.keys().map(ToString::to_string).collect();
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|known, _| live.contains(known));
        owners.insert(session.to_owned(), token_id.to_owned());
    }
}

/// Admits a request with a valid token, as the caller that the token stands for.
pub(super) async fn admit(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let Some(token) = bearer(request.headers()) else {
        return unauthorized("Bearer", "send the token as Authorization: Bearer <token>");
    };
    let Some(caller) = guard.tokens.authenticate(token, Utc::now()) else {
        return unauthorized(
            "Bearer error=\"invalid_token\"",
            "the token is unknown, expired or revoked; `instar mcp token create` makes a new one",
        );
    };
    let taken =
        guard.rate.lock().unwrap_or_else(PoisonError::into_inner).take(&caller.token_id, Instant::now());
    if let Err(wait) = taken {
        return too_many(wait);
    }
    let token_id = caller.token_id.clone();
    let presented = session_of(request.headers()).map(str::to_owned);
    if presented.as_deref().is_some_and(|session| guard.is_foreign(session, &token_id)) {
        return refuse(StatusCode::NOT_FOUND, "session-not-found", "there is no such session for this token");
    }
    request.extensions_mut().insert(Caller::Network(caller));
    let response = next.run(request).await;
    if presented.is_none()
        && let Some(opened) = session_of(response.headers())
    {
        guard.note_owner(opened, &token_id).await;
    }
    response
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

fn session_of(headers: &HeaderMap) -> Option<&str> {
    headers.get(SESSION)?.to_str().ok()
}

fn unauthorized(challenge: &'static str, sentence: &str) -> Response {
    let mut response = refuse(StatusCode::UNAUTHORIZED, "unauthorized", sentence);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

fn too_many(wait: Duration) -> Response {
    let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let body = json!({
        "error": "too many requests with this token",
        "code": "rate-limited",
        "retryAfterMs": milliseconds,
    });
    let mut response = (StatusCode::TOO_MANY_REQUESTS, Json(body)).into_response();
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(milliseconds.div_ceil(1000).max(1)));
    response
}

fn refuse(status: StatusCode, code: &str, sentence: &str) -> Response {
    (status, Json(json!({ "error": sentence, "code": code }))).into_response()
}
