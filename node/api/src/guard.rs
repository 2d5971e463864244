//! What every request passes before a handler sees it (`agent-core.md` §4.2–4.4, `coherence-safety.md` §16).

use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::extract::{RawPathParams, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use instar_state::time::now_ms;
use subtle::ConstantTimeEq;

use crate::access::{Access, Credential, OwnerRule, SessionAccess};
use crate::error::{ApiError, OwnerWanted};
use crate::idempotency;
use crate::proof::{ProofError, RequestHash};
use crate::rate::Group;
use crate::receipt::confirmed;
use crate::serve::Peer;
use crate::state::ApiState;

/// Largest JSON body of an ordinary route.
pub(crate) const BODY_LIMIT: usize = 1024 * 1024;

/// What the guard of one route knows about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) access: Access,
    pub(crate) group: Group,
    pub(crate) patience: Option<Duration>,
}

const FORWARDING: [&str; 4] = ["forwarded", "x-forwarded-for", "x-real-ip", "cf-connecting-ip"];
const METHODS: &str = "GET, POST, PUT, PATCH, DELETE, OPTIONS";
const HEADERS: &str = "Content-Type, Authorization, X-Instar-AgentId, X-Instar-Request, If-Match";

/// Checks that hold for every request, known route or not.
pub(crate) async fn surface(State(api): State<ApiState>, request: Request, next: Next) -> Response {
    let id = uuid::Uuid::new_v4().to_string();
    let started = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let origin = loopback_origin(request.headers());
    let mut response = match admit(&api, &request) {
        Err(refused) => refused.into_response(),
        Ok(()) if method == Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
        Ok(()) => {
            let answered = std::panic::AssertUnwindSafe(next.run(request)).catch_unwind().await;
            answered.unwrap_or_else(|_| ApiError::internal("a handler panicked").into_response())
        }
    };
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(HEADERS));
    }
    let ms = started.elapsed().as_millis() as u64;
    tracing::debug!(target: "access", request_id = %id, %method, path, status = response.status().as_u16(), ms);
    confirmed(response)
}

fn admit(api: &ApiState, request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    // One hop over the socket has no name to check; over TCP the name defeats DNS rebinding.
    let over_socket = matches!(peer(request), Some(Peer::Socket { .. }));
    if !over_socket && !names_loopback(headers, request.uri()) {
        return Err(ApiError::new(
            StatusCode::MISDIRECTED_REQUEST,
            "host_rejected",
            "the Host header must name this machine's loopback",
        ));
    }
    if FORWARDING.iter().any(|name| headers.contains_key(*name)) {
        // Nothing of this build is served through a tunnel, so a forwarded request finds nothing.
        return Err(ApiError::not_found("route", request.uri().path()));
    }
    if headers.contains_key(header::ORIGIN) && changes_state(request.method()) {
        if loopback_origin(headers).is_none() {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "origin_rejected",
                "requests from this origin are refused",
            ));
        }
        if headers.get("x-instar-request").is_none_or(|v| v != "1") {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "request_header_missing",
                "browser requests that change something need the header X-Instar-Request: 1",
            ));
        }
    }
    if let Some(claimed) = headers.get("x-instar-agentid")
        && claimed.as_bytes() != api.agent_name().as_bytes()
    {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "agent_id_mismatch",
            "this port belongs to another agent",
        )
        .with("expected", api.agent_name().into()));
    }
    let has_body = headers.get(header::CONTENT_LENGTH).is_some_and(|v| v != "0")
        || headers.contains_key(header::TRANSFER_ENCODING);
    let is_json = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(|v| {
        v.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case("application/json"))
    });
    if has_body && changes_state(request.method()) && !is_json {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send JSON with Content-Type: application/json",
        ));
    }
    Ok(())
}

/// Credential, rate limit, owner's proof and time-out of one route.
pub(crate) async fn route(
    State((api, rule)): State<(ApiState, Rule)>,
    parameters: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    match guarded(&api, rule, &parameters, &mut request).await {
        Err(refused) => refused.into_response(),
        Ok(hash) => {
            let patience = rule.patience.unwrap_or(api.request_timeout());
            let answering = idempotency::answer(api.clone(), request, next);
            let Ok(response) = tokio::time::timeout(patience, answering).await else {
                return ApiError::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "timeout",
                    "no answer in time; whether it took effect is unknown",
                )
                .into_response();
            };
            with_challenge(&api, response, hash)
        }
    }
}

async fn guarded(
    api: &ApiState,
    rule: Rule,
    parameters: &RawPathParams,
    request: &mut Request,
) -> Result<Option<RequestHash>, ApiError> {
    let source = source(request);
    let token = bearer(request.headers()).filter(|_| !rule.access.own_kind).map(str::to_owned);
    let mut credential = credential(api, token.as_deref(), peer(request), &source).await?;
    limit(api, rule.group, &credential, &source)?;

    let mut hash = None;
    if rule.access.owner != OwnerRule::No {
        let bound = hash_request(request).await?;
        hash = Some(bound);
        let headers = request.headers().clone();
        if let Some(proven) = prove_owner(api, &headers, &credential, bound).await? {
            credential = proven;
        }
    }
    let asks = request.headers().get("x-instar-owner").is_some_and(|v| v == "ask");
    if asks && rule.access.owner == OwnerRule::Some && credential == Credential::Local {
        return Err(owner_challenge(api, hash));
    }
    if !rule.access.admits(&credential) {
        return Err(refusal(api, rule.access, &credential, hash));
    }
    if let (SessionAccess::Own(parameter), Credential::Session(id)) = (rule.access.session, &credential)
        && !rule.access.public
    {
        let named = parameters.iter().find(|(name, _)| *name == parameter).map(|(_, value)| value);
        let own = named.is_some_and(|named| api.session_named(named).as_ref() == Some(id));
        if !own {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "not_your_session",
                "a session may do this to itself only",
            ));
        }
    }
    request.extensions_mut().insert(credential);
    Ok(hash)
}

fn refusal(api: &ApiState, access: Access, credential: &Credential, hash: Option<RequestHash>) -> ApiError {
    if *credential == Credential::Anonymous {
        return ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", "this route needs a credential");
    }
    if access.owner == OwnerRule::Only && !matches!(credential, Credential::Session(_)) {
        return owner_challenge(api, hash);
    }
    ApiError::new(
        StatusCode::FORBIDDEN,
        "forbidden",
        format!("a {} credential may not use this route", credential.kind()),
    )
}

fn owner_challenge(api: &ApiState, hash: Option<RequestHash>) -> ApiError {
    let refused = ApiError::owner_wanted("this");
    match hash {
        Some(hash) => refused.with("challengeId", api.proofs().open(hash, now_ms()).into()),
        None => refused,
    }
}

/// Finds out who calls. Wrong tokens are counted per source.
async fn credential(
    api: &ApiState,
    token: Option<&str>,
    peer: Option<Peer>,
    source: &str,
) -> Result<Credential, ApiError> {
    if let Some(session) = token.and_then(|token| api.session_of_token(token)) {
        return Ok(Credential::Session(session));
    }
    let local = match peer {
        Some(Peer::Socket { uid, pid }) if uid == rustix::process::geteuid().as_raw() => {
            let session = match pid {
                Some(pid) => api.session_of_process(pid).await,
                None => None,
            };
            Some(session.map_or(Credential::Local, Credential::Session))
        }
        _ => None,
    };
    let Some(token) = token else {
        return Ok(local.unwrap_or(Credential::Anonymous));
    };
    // A process below a session stays that session, whatever token it found.
    if let Some(Credential::Session(id)) = local {
        return Ok(Credential::Session(id));
    }
    let now = Instant::now();
    api.rates().peek(Group::AuthFailure, source, now).map_err(|wait| {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", "too many failed authentications")
            .retry_after_ms(wait.as_millis() as u64)
    })?;
    if api.is_agent_token(token) {
        return Ok(Credential::Agent);
    }
    if !api.is_ready() && token.starts_with("ist_") {
        return Err(api.booting());
    }
    let _ = api.rates().check(Group::AuthFailure, source, now);
    Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", "this token is not valid here, or no longer"))
}

fn limit(api: &ApiState, group: Group, credential: &Credential, source: &str) -> Result<(), ApiError> {
    // Strangers are meant; agents of this account all ask each other whenever one of them starts.
    let group = match group {
        Group::Challenge if *credential != Credential::Anonymous => Group::Default,
        other => other,
    };
    let key = match credential {
        Credential::Session(id) => id.to_string(),
        Credential::Anonymous => source.to_owned(),
        other => other.kind().to_owned(),
    };
    api.rates().check(group, &key, Instant::now()).map_err(|wait| {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", "too many requests")
            .retry_after_ms(wait.as_millis() as u64)
    })
}

async fn prove_owner(
    api: &ApiState,
    headers: &HeaderMap,
    credential: &Credential,
    request: RequestHash,
) -> Result<Option<Credential>, ApiError> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (Some(challenge), Some(pin)) = (text("x-instar-challenge"), text("x-instar-pin")) else {
        return Ok(None);
    };
    if *credential != Credential::Local {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "owner_channel",
            "the PIN is accepted only from a terminal of the owner, never from a session or over TCP",
        ));
    }
    match api.proofs().verify(&challenge, pin, request, now_ms()).await {
        Ok(()) => {
            tracing::info!(target: "security", event = "owner_proof", method = "pin", request = %request);
            Ok(Some(Credential::Owner))
        }
        Err(ProofError::Challenge) => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "challenge_expired",
            "the challenge is unknown, too old, or was made for another request",
        )),
        Err(ProofError::Locked { for_ }) => {
            tracing::warn!(target: "security", event = "owner_proof_locked");
            Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "pin_locked", "too many wrong PINs")
                .retry_after_ms(for_.as_millis() as u64))
        }
        Err(ProofError::Pin { left }) => {
            tracing::warn!(target: "security", event = "owner_proof_wrong", left);
            Err(ApiError::new(StatusCode::FORBIDDEN, "wrong_pin", "wrong PIN")
                .with("attemptsRemaining", left.into()))
        }
        Err(ProofError::NotNoted) => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "storage_failed",
            "the try could not be noted, so the PIN was not checked; see the node's log, and free some space if the disk is full",
        )),
    }
}

/// Reads the body once so that a proof can be bound to it, and puts it back.
pub(crate) async fn hash_request(request: &mut Request) -> Result<RequestHash, ApiError> {
    let body = std::mem::replace(request.body_mut(), Body::empty());
    let bytes = to_bytes(body, BODY_LIMIT).await.map_err(|_| {
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", "the body is over 1 MiB")
    })?;
    let path = request.uri().path_and_query().map_or("", |p| p.as_str());
    let hash = RequestHash::new(request.method().as_str(), path, &bytes);
    *request.body_mut() = Body::from(bytes);
    Ok(hash)
}

/// Gives a response that only lacks the owner its challenge.
fn with_challenge(api: &ApiState, response: Response, hash: Option<RequestHash>) -> Response {
    if hash.is_some() && response.extensions().get::<OwnerWanted>().is_some() {
        return owner_challenge(api, hash).into_response();
    }
    response
}

pub(crate) async fn unknown_route(request: Request) -> ApiError {
    ApiError::not_found("route", request.uri().path())
}

pub(crate) async fn wrong_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route exists for other methods")
}

fn peer(request: &Request) -> Option<Peer> {
    request.extensions().get::<Peer>().copied()
}

fn source(request: &Request) -> String {
    source_of(peer(request))
}

/// Names a caller for limits by source.
pub(crate) fn source_of(peer: Option<Peer>) -> String {
    match peer {
        Some(Peer::Tcp(address)) => address.ip().to_string(),
        Some(Peer::Socket { pid, .. }) => pid.map_or_else(|| "socket".to_owned(), |pid| format!("pid:{pid}")),
        None => "unknown".to_owned(),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

pub(crate) fn changes_state(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

fn names_loopback(headers: &HeaderMap, uri: &axum::http::Uri) -> bool {
    let host = uri.host().or_else(|| headers.get(header::HOST)?.to_str().ok());
    host.is_some_and(is_loopback_host)
}

fn is_loopback_host(host: &str) -> bool {
    let name = if let Some(rest) = host.strip_prefix('[') {
        rest.split(']').next().unwrap_or_default()
    } else {
        host.split(':').next().unwrap_or_default()
    };
    matches!(name, "localhost" | "127.0.0.1" | "::1")
}

fn loopback_origin(headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let host =
        origin.to_str().ok()?.strip_prefix("http://").or(origin.to_str().ok()?.strip_prefix("https://"))?;
    is_loopback_host(host).then(|| origin.clone())
}

/// Compares two digests without telling by time where they differ.
pub(crate) fn same_digest(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

/// Header that carries the request id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_hosts() {
        for good in ["localhost", "localhost:4040", "127.0.0.1:4040", "[::1]:4040", "[::1]"] {
            assert!(is_loopback_host(good), "{good}");
        }
        for bad in ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "", "10.0.0.1:80"] {
            assert!(!is_loopback_host(bad), "{bad}");
        }
    }

    #[test]
    fn origins_are_echoed_for_loopback_only() {
        let origin = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, HeaderValue::from_static(value));
            loopback_origin(&headers)
        };
        assert!(origin("http://localhost:3000").is_some());
        assert!(origin("https://127.0.0.1").is_some());
        assert!(origin("null").is_none());
        assert!(origin("https://localhost.evil.example").is_none());
    }
}
