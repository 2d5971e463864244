//! Events of the runtime's streaming mode: one JSON object a line (`agent-core.md` §6.3).

use serde_json::Value;

/// What one line of the runtime says, as far as the node cares.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// A turn begins; the runtime names its session.
    Init {
        /// The runtime's session id.
        session_id: String,
        /// Model in use.
        model: Option<String>,
    },
    /// The answer to a control request.
    ControlAnswer {
        /// Id of the request.
        request_id: String,
        /// Whether it was carried out; the reason if not.
        result: Result<(), String>,
    },
    /// The runtime asks us something.
    ControlRequest {
        /// Its kind, for example `can_use_tool`.
        subtype: String,
    },
    /// A step of one input in the runtime's own queue.
    Lifecycle {
        /// The uuid that we gave the input.
        uuid: String,
        /// The step.
        state: LifecycleState,
    },
    /// An input of ours comes back: it is part of the conversation.
    Replayed {
        /// The uuid that we gave the input.
        uuid: String,
    },
    /// The model speaks or calls tools.
    Assistant {
        /// Text parts joined.
        text: String,
        /// Tool names in order.
        tools: Vec<String>,
    },
    /// A turn ended.
    Result(TurnResult),
    /// The provider tells how much is left.
    RateLimit {
        /// `allowed`, `rejected`, …
        status: String,
        /// Unix seconds.
        resets_at: Option<i64>,
    },
    /// A line of the runtime's error output, or a remark of the supervisor.
    Stderr {
        /// The line.
        text: String,
    },
    /// A subagent or background task started or ended.
    Task {
        /// Whether it started.
        started: bool,
    },
    /// Anything else.
    Other {
        /// The type as given.
        kind: String,
    },
}

/// Steps of an input inside the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifecycleState {
    /// Waits for the running turn.
    Queued,
    /// Its turn began.
    Started,
    /// Its turn ended.
    Completed,
    /// Interrupted.
    Cancelled,
}

/// How a turn ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TurnResult {
    /// `success`, `error_max_turns`, `error_during_execution`, …
    pub subtype: String,
    /// Whether it ended by an error. Also set with subtype `success` when the provider refused.
    pub is_error: bool,
    /// The last text, or the errors.
    pub text: String,
    /// HTTP status of the provider's last error.
    pub api_error_status: Option<u16>,
    /// Cost of the session so far in dollars.
    pub total_cost_usd: f64,
    /// Turns of the model.
    pub num_turns: u64,
}

/// Reads one line. `None` for a line that is not a JSON object with a `type`.
pub fn parse(line: &str) -> Option<StreamEvent> {
    let value: Value = serde_json::from_str(line).ok()?;
    let kind = text(&value, "type")?;
    Some(match kind.as_str() {
        "system" => system(&value),
        "control_response" => control_answer(&value),
        "control_request" => StreamEvent::ControlRequest {
            subtype: value.get("request").and_then(|r| text(r, "subtype")).unwrap_or_default(),
        },
        "command_lifecycle" => lifecycle(&value)?,
        "user" => user(&value),
        "assistant" => assistant(&value),
        "result" => StreamEvent::Result(turn_result(&value)),
        "rate_limit_event" => rate_limit(&value),
        "supervisor" => StreamEvent::Stderr { text: text(&value, "stderr").unwrap_or_default() },
        _ => StreamEvent::Other { kind },
    })
}

fn system(value: &Value) -> StreamEvent {
    let subtype = text(value, "subtype").unwrap_or_default();
    match (subtype.as_str(), text(value, "session_id")) {
        ("init", Some(session_id)) => StreamEvent::Init { session_id, model: text(value, "model") },
        ("task_started", _) => StreamEvent::Task { started: true },
        ("task_notification", _) => StreamEvent::Task { started: false },
        _ => StreamEvent::Other { kind: format!("system/{subtype}") },
    }
}

fn control_answer(value: &Value) -> StreamEvent {
    let response = value.get("response").unwrap_or(&Value::Null);
    let result = match text(response, "subtype").as_deref() {
        Some("success") => Ok(()),
        _ => Err(text(response, "error").unwrap_or_else(|| "refused without a reason".into())),
    };
    StreamEvent::ControlAnswer { request_id: text(response, "request_id").unwrap_or_default(), result }
}

fn lifecycle(value: &Value) -> Option<StreamEvent> {
    let state = match text(value, "state")?.as_str() {
        "queued" => LifecycleState::Queued,
        "started" => LifecycleState::Started,
        "completed" => LifecycleState::Completed,
        "cancelled" => LifecycleState::Cancelled,
        _ => return Some(StreamEvent::Other { kind: "command_lifecycle".into() }),
    };
    Some(StreamEvent::Lifecycle { uuid: text(value, "command_uuid")?, state })
}

fn user(value: &Value) -> StreamEvent {
    let replay = value.get("isReplay").and_then(Value::as_bool).unwrap_or(false);
    match text(value, "uuid") {
        Some(uuid) if replay => StreamEvent::Replayed { uuid },
        _ => StreamEvent::Other { kind: "user".into() },
    }
}

fn assistant(value: &Value) -> StreamEvent {
    let blocks = value.get("message").and_then(|m| m.get("content")).and_then(Value::as_array);
    let blocks = blocks.map(Vec::as_slice).unwrap_or_default();
    let of_type = |kind: &'static str| {
        blocks.iter().filter(move |b| b.get("type").and_then(Value::as_str) == Some(kind))
    };
    StreamEvent::Assistant {
        text: of_type("text").filter_map(|b| text(b, "text")).collect::<Vec<_>>().join("\n"),
        tools: of_type("tool_use").filter_map(|b| text(b, "name")).collect(),
    }
}

fn turn_result(value: &Value) -> TurnResult {
    let errors = value
        .get("errors")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; "));
    TurnResult {
        subtype: text(value, "subtype").unwrap_or_default(),
        is_error: value.get("is_error").and_then(Value::as_bool).unwrap_or(false),
        text: text(value, "result").or(errors).unwrap_or_default(),
        api_error_status: value
            .get("api_error_status")
            .and_then(Value::as_u64)
            .and_then(|status| u16::try_from(status).ok()),
        total_cost_usd: value.get("total_cost_usd").and_then(Value::as_f64).unwrap_or(0.0),
        num_turns: value.get("num_turns").and_then(Value::as_u64).unwrap_or(0),
    }
}

fn rate_limit(value: &Value) -> StreamEvent {
    let info = value.get("rate_limit_info").unwrap_or(value);
    StreamEvent::RateLimit {
        status: text(info, "status").unwrap_or_default(),
        resets_at: info.get("resetsAt").and_then(Value::as_i64),
    }
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key)?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_turn_of_the_real_program() {
        let lines = [
            r#"{"type":"control_response","response":{"subtype":"success","request_id":"r1","response":{}}}"#,
            r#"{"type":"command_lifecycle","command_uuid":"u1","state":"started","uuid":"x","session_id":"s"}"#,
            r#"{"type":"system","subtype":"init","session_id":"s","model":"m","tools":[]}"#,
            r#"{"type":"user","message":{"role":"user","content":[]},"uuid":"u1","isReplay":true}"#,
            r#"{"type":"assistant","message":{"content":[{"type":"tool_use","name":"Bash"},{"type":"text","text":"a"}]}}"#,
            r#"{"duration_ms":1,"type":"result","subtype":"success","is_error":true,"api_error_status":401,"result":"no"}"#,
        ];
        let events: Vec<_> = lines.iter().map(|line| parse(line)).collect();
        assert_eq!(
            events,
            [
                Some(StreamEvent::ControlAnswer { request_id: "r1".into(), result: Ok(()) }),
                Some(StreamEvent::Lifecycle { uuid: "u1".into(), state: LifecycleState::Started }),
                Some(StreamEvent::Init { session_id: "s".into(), model: Some("m".into()) }),
                Some(StreamEvent::Replayed { uuid: "u1".into() }),
                Some(StreamEvent::Assistant { text: "a".into(), tools: vec!["Bash".into()] }),
                Some(StreamEvent::Result(TurnResult {
                    subtype: "success".into(),
                    is_error: true,
                    text: "no".into(),
                    api_error_status: Some(401),
                    ..TurnResult::default()
                })),
            ]
        );
        assert_eq!(parse("Warning: not JSON"), None);
        assert_eq!(parse("[1]"), None);
    }

    proptest! {
        #[test]
        fn no_line_breaks_the_parser(line in prop_oneof![
            ".{0,200}",
            r#"\{"type":"(system|user|assistant|result|control_response|command_lifecycle|rate_limit_event)",("(message|response|uuid|isReplay|content|state|errors)":(null|true|-1|"x"|\[\]|\{\})){1}\}"#,
        ]) {
            let _ = parse(&line);
        }
    }
}
