//! What the API refuses before a model sees it.

use std::collections::BTreeSet;

use axum::http::{HeaderMap, StatusCode};
use serde_json::Value;

/// A refusal in the API's terms.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) error: &'static str,
    pub(super) message: String,
}

/// Checks credentials, version and shape of a request.
pub(super) fn check(headers: &HeaderMap, body: &Value) -> Result<(), Refusal> {
    if !headers.contains_key("x-api-key") && !headers.contains_key("authorization") {
        return Err(Refusal {
            status: StatusCode::UNAUTHORIZED,
            error: "authentication_error",
            message: "x-api-key header is required".to_owned(),
        });
    }
    if !headers.contains_key("anthropic-version") {
        return Err(invalid("anthropic-version: header is required"));
    }
    if !body.is_object() {
        return Err(invalid("the request body is not a JSON object"));
    }
    for field in ["model", "max_tokens", "messages"] {
        if body[field].is_null() {
            return Err(invalid(&format!("{field}: Field required")));
        }
    }
    pairing(body["messages"].as_array().map_or(&[], Vec::as_slice))
}

/// Every `tool_use` is answered in the next user message, and nothing else is.
fn pairing(messages: &[Value]) -> Result<(), Refusal> {
    if messages.is_empty() {
        return Err(invalid("messages: at least one message is required"));
    }
    let mut open = BTreeSet::new();
    for (index, message) in messages.iter().enumerate() {
        match message["role"].as_str() {
            Some("assistant") => {
                unanswered(&open)?;
                open = ids(&message["content"], "tool_use", "id");
            }
            Some("user") => {
                for id in ids(&message["content"], "tool_result", "tool_use_id") {
                    if !open.remove(&id) {
                        return Err(invalid(&format!(
                            "messages.{index}: unexpected `tool_use_id` found in `tool_result` blocks: {id}"
                        )));
                    }
                }
            }
            // Context that clients add in the middle of a conversation.
            Some("system") => {}
            role => return Err(invalid(&format!("messages.{index}.role: unexpected {role:?}"))),
        }
    }
    unanswered(&open)
}

fn unanswered(open: &BTreeSet<String>) -> Result<(), Refusal> {
    match open.first() {
        None => Ok(()),
        Some(id) => Err(invalid(&format!("`tool_use` ids were found without `tool_result` blocks: {id}"))),
    }
}

fn ids(content: &Value, kind: &str, field: &str) -> BTreeSet<String> {
    let blocks = content.as_array().into_iter().flatten();
    blocks
        .filter(|block| block["type"] == kind)
        .filter_map(|block| block[field].as_str().map(str::to_owned))
        .collect()
}

fn invalid(message: &str) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, error: "invalid_request_error", message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn headers() -> HeaderMap {
        let mut headers = HeaderMap::new();
        for name in ["x-api-key", "anthropic-version"] {
            headers.insert(name, axum::http::HeaderValue::from_static("x"));
        }
        headers
    }

    fn request(messages: Value) -> Value {
        json!({"model": "m", "max_tokens": 5, "messages": messages})
    }

    #[test]
    fn refuses_what_the_api_refuses() {
        let call = json!({"role": "assistant", "content": [{"type": "tool_use", "id": "t"}]});
        let result = json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]});
        let hello = json!({"role": "user", "content": "hi"});
        let cases = [
            (json!({"model": "m"}), "max_tokens"),
            (request(json!([])), "at least one"),
            (request(json!([hello, call])), "without `tool_result`"),
            (request(json!([hello, result])), "unexpected `tool_use_id`"),
            (request(json!([{"role": "tool", "content": ""}])), "role"),
        ];
        for (body, expected) in cases {
            let refusal = check(&headers(), &body).expect_err(expected);
            assert!(refusal.message.contains(expected), "{}", refusal.message);
        }
        assert!(check(&headers(), &request(json!([hello, call, result]))).is_ok());
        assert_eq!(check(&HeaderMap::new(), &json!({})).expect_err("no key").status, 401);
    }
}
