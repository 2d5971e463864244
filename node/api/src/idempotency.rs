//! `Idempotency-Key`: a request that changes something, sent again under its key, gets the first answer again
//! (`http-api.md` §0, `agent-core.md` §4.4).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use instar_state::answers::{Answer, Answers};
use instar_state::time::now_ms;

use crate::access::Credential;
use crate::error::ApiError;
use crate::guard::{changes_state, hash_request};
use crate::receipt::CallerGone;
use crate::state::ApiState;

/// Header that a caller sets.
const KEY: &str = "idempotency-key";
/// Header of an answer that was given before.
const REPLAY: &str = "idempotent-replay";
/// Longest key, in bytes.
const MAX_KEY: usize = 255;
/// Largest answer that is kept, in bytes.
const MAX_ANSWER: usize = 256 * 1024;

/// Requests under a key that are being answered. Volatile: they end with the node.
#[derive(Clone, Default)]
pub(crate) struct Underway {
    // Held for set operations only.
    keys: Arc<Mutex<HashSet<(String, String)>>>,
}

impl Underway {
    fn enter(&self, caller: &str, key: &str) -> Option<Place> {
        let entry = (caller.to_owned(), key.to_owned());
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(entry.clone()).then(|| Place { underway: self.clone(), entry })
    }
}

/// Leaves the set when it is dropped, whatever became of the request.
struct Place {
    underway: Underway,
    entry: (String, String),
}

impl Drop for Place {
    fn drop(&mut self) {
        self.underway.keys.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.entry);
    }
}

/// Answers a request that has passed the guard. Under a key, work that outlasts the caller's patience goes on and its
/// answer waits for the next try.
pub(crate) async fn answer(api: ApiState, request: Request, next: Next) -> Response {
    let under_key = changes_state(request.method()) && request.headers().contains_key(KEY);
    let Some(rooms) = api.rooms().ok().filter(|_| under_key) else { return next.run(request).await };
    match once(api.underway(), rooms.answers.clone(), request, next).await {
        Ok(response) => response,
        Err(refused) => refused.into_response(),
    }
}

async fn once(
    underway: &Underway,
    answers: Answers,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let key = key_of(&request)?;
    let caller = request.extensions().get().map_or_else(String::new, caller_name);
    let hash = hash_request(&mut request).await?.bytes();
    let Some(place) = underway.enter(&caller, &key) else {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "idempotency_key_in_use",
            "a request under this Idempotency-Key is being answered; ask again in a moment",
        )
        .retry_after_ms(1000));
    };
    if let Some(first) = answers.get(&caller, &key, now_ms()).await.map_err(ApiError::internal)? {
        return replay(first, hash);
    }
    let gone = CallerGone::default();
    request.extensions_mut().insert(gone.clone());
    let _left = gone.0.drop_guard();
    // The request has its own task, so that neither a time-out nor a caller who hangs up leaves its outcome unknown.
    let working = tokio::spawn(async move {
        let response = kept(&answers, &caller, &key, hash, next.run(request).await).await;
        drop(place);
        response
    });
    working.await.map_err(|_| ApiError::internal("a handler panicked"))
}

fn key_of(request: &Request) -> Result<String, ApiError> {
    let value = request.headers().get(KEY).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if value.is_empty() || value.len() > MAX_KEY {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            format!("Idempotency-Key must be 1 to {MAX_KEY} visible ASCII characters"),
        ));
    }
    Ok(value.to_owned())
}

/// Whose key it is: nobody gets an answer that was meant for another caller.
fn caller_name(credential: &Credential) -> String {
    match credential {
        Credential::Session(id) => format!("session:{id}"),
        other => other.kind().to_owned(),
    }
}

fn replay(first: Answer, request: [u8; 32]) -> Result<Response, ApiError> {
    if first.request != request {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "idempotency_key_reused",
            "this Idempotency-Key was used for another request; use a new one",
        ));
    }
    let status = StatusCode::from_u16(first.status).map_err(ApiError::internal)?;
    let mut response = (status, first.body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(REPLAY, HeaderValue::from_static("true"));
    Ok(response)
}

/// Keeps what the handler answered, if the same request later must get the same answer.
async fn kept(answers: &Answers, caller: &str, key: &str, request: [u8; 32], response: Response) -> Response {
    if !is_final(&response) {
        return response;
    }
    let (head, body) = response.into_parts();
    let Ok(body) = to_bytes(body, usize::MAX).await else {
        return ApiError::internal("an answer broke off").into_response();
    };
    if body.len() <= MAX_ANSWER {
        let answer = Answer { request, status: head.status.as_u16(), body: body.to_vec() };
        // What was done is done: an answer that can't be kept is still the answer.
        if let Err(error) = answers.keep(caller, key, answer, now_ms()).await {
            tracing::warn!(%error, "an answer under an idempotency key was not kept");
        }
    }
    Response::from_parts(head, Body::from(body))
}

/// Whether the outcome is decided. Refusals that another try may get past are not: no credential or proof, limits,
/// time-outs, failures of the node.
fn is_final(response: &Response) -> bool {
    let json =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes() == b"application/json");
    let passing = [
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    json && !response.status().is_server_error() && !passing.contains(&response.status())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_free_again_when_its_request_ends() {
        let underway = Underway::default();
        let place = underway.enter("local", "k").expect("free");
        assert!(underway.enter("local", "k").is_none());
        assert!(underway.enter("agent", "k").is_some(), "keys belong to their caller");
        drop(place);
        assert!(underway.enter("local", "k").is_some());
    }

    #[test]
    fn only_decided_outcomes_are_kept() {
        let answer = |status: u16| {
            let status = StatusCode::from_u16(status).expect("status");
            (status, axum::Json(serde_json::json!({}))).into_response()
        };
        let kept: Vec<u16> = [200, 201, 202, 400, 401, 403, 404, 408, 409, 422, 429, 500, 503]
            .into_iter()
            .filter(|status| is_final(&answer(*status)))
            .collect();
        assert_eq!(kept, [200, 201, 202, 400, 404, 409, 422]);
        assert!(!is_final(&"text".into_response()));
    }
}
