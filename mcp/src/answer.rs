//! Results and refusals in the shape that tools answer with.

use rmcp::model::{CallToolResult, ContentBlock};
use serde_json::{Value, json};
use threadline::service::ServiceError;

/// One text block with the JSON of the result, and the same as structured content.
pub(crate) fn result(value: Value) -> CallToolResult {
    let mut result = CallToolResult::success(vec![ContentBlock::text(value.to_string())]);
    result.structured_content = Some(value);
    result
}

/// A failed call: one sentence for the model, the facts beside it.
pub(crate) fn failure(error: &ServiceError) -> CallToolResult {
    let mut facts = json!({
        "code": error.code,
        "message": error.message,
        "retryable": error.retryable,
    });
    if let Some(seconds) = error.retry_after_seconds {
        facts["retryAfterSeconds"] = json!(seconds);
    }
    if let Some(details) = &error.details {
        facts["details"] = Value::clone(details);
    }
    let text = match &error.details {
        Some(details) => format!("Error: {}\n{details}", error.message),
        None => format!("Error: {}", error.message),
    };
    let mut result = CallToolResult::error(vec![ContentBlock::text(text)]);
    result.structured_content = Some(json!({ "error": facts }));
    result
}
