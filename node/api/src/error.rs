//! The one error shape of every route (`agent-core.md` §4.4).

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use threadline::service::ServiceError;

/// A refusal or failure on its way to the caller.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    code: String,
    message: String,
    facts: Map<String, Value>,
    retry_after_ms: Option<u64>,
}

/// Marks a response that the same caller gets past with the owner's proof; the guard adds the challenge.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnerWanted;

impl ApiError {
    /// An error with `status`, a snake_case `code` and one sentence.
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
            facts: Map::new(),
            retry_after_ms: None,
        }
    }

    /// 400 with every problem found.
    pub fn invalid(problems: Vec<Problem>) -> Self {
        let message = problems.first().map_or_else(
            || "the request is not valid".to_owned(),
            |first| format!("{}: {}", first.path, first.problem),
        );
        let details = problems.iter().map(|p| json!({"path": p.path, "problem": p.problem})).collect();
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message).with("details", Value::Array(details))
    }

    /// 404 for a thing of kind `what`.
    pub fn not_found(what: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("no {what} {name:?}"))
    }

    /// 403 that the owner's proof would lift.
    pub fn owner_wanted(action: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "user_verification_required",
            format!("{action} needs the owner: repeat it on a terminal and enter the PIN"),
        )
    }

    /// 500 without internals; the cause goes to the log under the request id.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the node failed to answer; see its log")
    }

    /// Adds a fact beside `error` and `code`.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.facts.insert(key.to_owned(), value);
        self
    }

    /// Adds `retryAfterMs` and `Retry-After`.
    #[must_use]
    pub fn retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// Status code.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

/// One invalid part of a request.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Dotted path, empty for the whole body.
    pub path: String,
    /// What is wrong and what is expected.
    pub problem: String,
}

impl Problem {
    /// A problem at `path`.
    pub fn new(path: &str, problem: impl Into<String>) -> Self {
        Self { path: path.to_owned(), problem: problem.into() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = Map::new();
        body.insert("error".into(), self.message.into());
        body.insert("code".into(), self.code.clone().into());
        body.extend(self.facts);
        if let Some(ms) = self.retry_after_ms {
            body.insert("retryAfterMs".into(), ms.into());
        }
        let mut response = (self.status, Json(Value::Object(body))).into_response();
        if let Some(ms) = self.retry_after_ms {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
        }
        if self.code == "user_verification_required" {
            response.extensions_mut().insert(OwnerWanted);
        }
        response
    }
}

/// Errors of the mesh keep their kebab-case code; the status follows from it.
impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let status = match error.code.as_str() {
            "owner-required" => return Self::owner_wanted(&error.message),
            "agent-not-found"
            | "thread-not-found"
            | "invitation-not-found"
            | "pairing-not-found"
            | "not-found" => StatusCode::NOT_FOUND,
            "ambiguous-agent"
            | "ambiguous-thread"
            | "already-decided"
            | "already-answered"
            | "thread-busy"
            | "fingerprint-conflict" => StatusCode::CONFLICT,
            "content-blocked" => StatusCode::UNPROCESSABLE_ENTITY,
            "message-too-large" | "payload-too-large" => StatusCode::PAYLOAD_TOO_LARGE,
            "rate-limited" => StatusCode::TOO_MANY_REQUESTS,
            "forbidden"
            | "blocked-agent"
            | "not-allowed-from-this-session"
            | "insufficient-scope"
            | "stale-fence" => StatusCode::FORBIDDEN,
            "node-unreachable"
            | "relay-unavailable"
            | "registry-unavailable"
            | "threadline-unavailable"
            | "no-path" => StatusCode::SERVICE_UNAVAILABLE,
            "internal" | "storage-failed" => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        };
        let mut api = Self::new(status, &error.code, error.message);
        api.facts.insert("retryable".into(), error.retryable.into());
        if let Some(seconds) = error.retry_after_seconds {
            api.facts.insert("retryAfterSeconds".into(), seconds.into());
            api.retry_after_ms = Some(seconds * 1000);
        }
        if let Some(details) = error.details {
            api.facts.insert("details".into(), *details);
        }
        api
    }
}
