//! Limits of the tools' arguments, the same at every door (`threadline-agent.md` §15).

use super::{
    AgentsRequest, DeleteRequest, DiscoverRequest, HistoryRequest, RegistryGetRequest, RegistrySearchRequest,
    RegistryUpdateRequest, RelayRequest, SendRequest, ServiceError, ToolCall, TrustAction, TrustRequest,
};

/// Most bytes of a message; above 64 KiB only for agents that read sealed mail.
pub const MAX_MESSAGE_BYTES: usize = crate::v2::blob::MAX_TEXT;
/// Most characters of the purpose that is kept.
pub const MAX_PURPOSE_CHARS: usize = 1024;
/// Seconds that a send may wait for its reply.
pub const TIMEOUT_SECONDS: std::ops::RangeInclusive<u64> = 1..=300;

/// Checks what the types cannot say. Cuts the purpose of a send to its limit.
pub(super) fn check(call: &mut ToolCall) -> Result<(), ServiceError> {
    match call {
        ToolCall::Discover(request) => discover(request),
        ToolCall::Send(request) => send(request),
        ToolCall::History(request) => history(request),
        ToolCall::Agents(AgentsRequest { .. }) | ToolCall::RegistryStatus => Ok(()),
        ToolCall::Delete(request) => delete(request),
        ToolCall::Trust(request) => trust(request),
        ToolCall::Relay(RelayRequest { visibility, .. }) => check_visibility(visibility.as_deref()),
        ToolCall::RegistrySearch(request) => registry_search(request),
        ToolCall::RegistryUpdate(request) => registry_update(request),
        ToolCall::RegistryGet(request) => registry_get(request),
    }
}

fn discover(request: &DiscoverRequest) -> Result<(), ServiceError> {
    at_most("capability", request.capability.as_deref(), 64)?;
    at_most("query", request.query.as_deref(), 200)?;
    in_range(request.limit, 100)
}

fn send(request: &mut SendRequest) -> Result<(), ServiceError> {
    not_blank("agentId", &request.agent_id)?;
    if request.message.trim().is_empty() {
        return Err(ServiceError::new("empty-message", "the message is empty"));
    }
    if request.message.len() > MAX_MESSAGE_BYTES {
        let bytes = request.message.len();
        return Err(ServiceError::new(
            "message-too-large",
            format!("the message has {bytes} bytes; at most {MAX_MESSAGE_BYTES} are sent"),
        ));
    }
    if request.timeout_seconds.is_some_and(|seconds| !TIMEOUT_SECONDS.contains(&seconds)) {
        return Err(ServiceError::new(
            "timeout-out-of-range",
            format!("timeoutSeconds is {} to {}", TIMEOUT_SECONDS.start(), TIMEOUT_SECONDS.end()),
        ));
    }
    if request.origin_topic_id.is_some_and(|id| id < 1) {
        return Err(invalid("originTopicId is a positive number"));
    }
    at_most("subject", request.subject.as_deref(), 200)?;
    if let Some(purpose) = &mut request.purpose
        && let Some((end, _)) = purpose.char_indices().nth(MAX_PURPOSE_CHARS)
    {
        purpose.truncate(end);
    }
    Ok(())
}

fn history(request: &HistoryRequest) -> Result<(), ServiceError> {
    not_blank("threadId", &request.thread_id)?;
    in_range(request.limit, 100)
}

fn delete(request: &DeleteRequest) -> Result<(), ServiceError> {
    not_blank("threadId", &request.thread_id)?;
    if request.confirm {
        return Ok(());
    }
    Err(ServiceError::new(
        "confirm-required",
        "deleting a thread removes its messages; repeat with confirm: true",
    ))
}

fn trust(request: &TrustRequest) -> Result<(), ServiceError> {
    at_most("reason", request.reason.as_deref(), 500)?;
    if request.action == TrustAction::List {
        return Ok(());
    }
    if request.agent.is_none() && request.fingerprint.is_none() {
        return Err(ServiceError::new("target-required", "say which agent: agent or fingerprint"));
    }
    if request.action == TrustAction::Grant && request.level.is_none() {
        return Err(ServiceError::new("level-required", "say which level to grant"));
    }
    Ok(())
}

fn registry_search(request: &RegistrySearchRequest) -> Result<(), ServiceError> {
    let terms = [&request.query, &request.capability, &request.interest];
    if terms.iter().all(|term| term.as_deref().is_none_or(|text| text.trim().is_empty())) {
        return Err(ServiceError::new("query-required", "give a query, a capability or an interest"));
    }
    at_most("query", request.query.as_deref(), 200)?;
    in_range(request.limit, 50)
}

fn registry_update(request: &RegistryUpdateRequest) -> Result<(), ServiceError> {
    let RegistryUpdateRequest { listed, visibility, homepage, framework_visible, bio, interests, confirm } =
        request;
    let nothing = listed.is_none()
        && visibility.is_none()
        && homepage.is_none()
        && framework_visible.is_none()
        && bio.is_none()
        && interests.is_none();
    if nothing {
        return Err(ServiceError::new("nothing-to-update", "name at least one thing to change"));
    }
    if *listed == Some(false) && !confirm {
        return Err(ServiceError::new(
            "confirm-required",
            "listed: false removes the registry entry; repeat with confirm: true",
        ));
    }
    check_visibility(visibility.as_deref())?;
    at_most("homepage", homepage.as_deref(), 200)?;
    if homepage.as_deref().is_some_and(|url| !url.is_empty() && !url.starts_with("https://")) {
        return Err(invalid("homepage is an https URL"));
    }
    at_most("bio", bio.as_deref(), 500)?;
    if interests.as_ref().is_some_and(|list| list.len() > 20) {
        return Err(invalid("interests are at most 20"));
    }
    interests.iter().flatten().try_for_each(|interest| at_most("an interest", Some(interest), 40))
}

fn registry_get(request: &RegistryGetRequest) -> Result<(), ServiceError> {
    let id = &request.agent_id;
    if (8..=32).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(invalid("agentId is 32 hex digits or a prefix of at least 8"))
}

fn check_visibility(visibility: Option<&str>) -> Result<(), ServiceError> {
    match visibility {
        None | Some("public" | "unlisted") => Ok(()),
        Some(_) => Err(invalid("visibility is public or unlisted")),
    }
}

fn in_range(limit: Option<u32>, most: u32) -> Result<(), ServiceError> {
    match limit {
        Some(limit) if !(1..=most).contains(&limit) => {
            Err(ServiceError::new("limit-out-of-range", format!("limit is 1 to {most}")))
        }
        _ => Ok(()),
    }
}

fn at_most(name: &str, text: Option<&str>, characters: usize) -> Result<(), ServiceError> {
    match text {
        Some(text) if text.chars().count() > characters => {
            Err(invalid(format!("{name} has at most {characters} characters")))
        }
        _ => Ok(()),
    }
}

fn not_blank(name: &str, text: &str) -> Result<(), ServiceError> {
    if text.trim().is_empty() { Err(invalid(format!("{name} is empty"))) } else { Ok(()) }
}

fn invalid(message: impl Into<String>) -> ServiceError {
    ServiceError::new("invalid-arguments", message)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::service::Tool;

    fn code(tool: &str, arguments: Value) -> Option<String> {
        let tool = Tool::from_name(&format!("threadline_{tool}")).expect("a tool");
        ToolCall::parse(tool, arguments).err().map(|error| error.code)
    }

    #[test]
    fn limits_are_exact_and_have_their_codes() {
        let message = |n: usize| json!({"agentId": "bob", "message": "a".repeat(n)});
        let with = |key: &str, value: Value| {
            let mut arguments = json!({"agentId": "bob", "message": "hi"});
            arguments[key] = value;
            arguments
        };
        let cases: &[(&str, Value, Option<&str>)] = &[
            ("discover", json!({}), None),
            ("discover", json!({"limit": 100, "query": "ü".repeat(200), "capability": "c".repeat(64)}), None),
            ("discover", json!({"limit": 0}), Some("limit-out-of-range")),
            ("discover", json!({"limit": 101}), Some("limit-out-of-range")),
            ("discover", json!({"query": "q".repeat(201)}), Some("invalid-arguments")),
            ("discover", json!({"capability": "c".repeat(65)}), Some("invalid-arguments")),
            ("discover", json!({"scope": "galaxy"}), Some("invalid-arguments")),
            ("send", message(512 * 1024), None),
            ("send", message(512 * 1024 + 1), Some("message-too-large")),
            ("send", with("message", json!(" \n")), Some("empty-message")),
            ("send", with("agentId", json!("")), Some("invalid-arguments")),
            ("send", with("timeoutSeconds", json!(1)), None),
            ("send", with("timeoutSeconds", json!(300)), None),
            ("send", with("timeoutSeconds", json!(0)), Some("timeout-out-of-range")),
            ("send", with("timeoutSeconds", json!(301)), Some("timeout-out-of-range")),
            ("send", with("originTopicId", json!(0)), Some("invalid-arguments")),
            ("send", with("originTopicId", json!(1.5)), Some("invalid-arguments")),
            ("send", with("subject", json!("s".repeat(201))), Some("invalid-arguments")),
            ("send", with("colour", json!("red")), Some("invalid-arguments")),
            ("history", json!({}), Some("invalid-arguments")),
            ("history", json!({"threadId": "t", "limit": 100}), None),
            ("history", json!({"threadId": "t", "limit": 101}), Some("limit-out-of-range")),
            ("delete", json!({"threadId": "t"}), Some("confirm-required")),
            ("delete", json!({"threadId": "t", "confirm": true}), None),
            ("trust", json!({"action": "list"}), None),
            ("trust", json!({"action": "get"}), Some("target-required")),
            ("trust", json!({"action": "grant", "agent": "bob"}), Some("level-required")),
            ("trust", json!({"action": "grant", "agent": "bob", "level": "trusted"}), None),
            ("trust", json!({"action": "list", "reason": "r".repeat(501)}), Some("invalid-arguments")),
            ("relay", json!({"action": "status", "visibility": "secret"}), Some("invalid-arguments")),
            ("registry_search", json!({"query": " "}), Some("query-required")),
            ("registry_search", json!({"query": "x", "limit": 50}), None),
            ("registry_search", json!({"query": "x", "limit": 51}), Some("limit-out-of-range")),
            ("registry_update", json!({}), Some("nothing-to-update")),
            ("registry_update", json!({"confirm": true}), Some("nothing-to-update")),
            ("registry_update", json!({"listed": false}), Some("confirm-required")),
            ("registry_update", json!({"listed": false, "confirm": true}), None),
            ("registry_update", json!({"homepage": "http://x"}), Some("invalid-arguments")),
            ("registry_update", json!({"bio": "b".repeat(501)}), Some("invalid-arguments")),
            ("registry_update", json!({"interests": vec!["i"; 21]}), Some("invalid-arguments")),
            ("registry_update", json!({"interests": ["i".repeat(41)]}), Some("invalid-arguments")),
            ("registry_status", json!({"x": 1}), Some("invalid-arguments")),
            ("registry_get", json!({"agentId": "0123456"}), Some("invalid-arguments")),
            ("registry_get", json!({"agentId": "01234567"}), None),
            ("registry_get", json!({"agentId": "0123456x"}), Some("invalid-arguments")),
        ];
        for (tool, arguments, expected) in cases {
            assert_eq!(code(tool, arguments.clone()).as_deref(), *expected, "{tool} {arguments:.100}");
        }
    }

    #[test]
    fn a_long_purpose_is_cut() {
        let arguments = json!({"agentId": "bob", "message": "hi", "purpose": "é".repeat(2000)});
        let Ok(ToolCall::Send(request)) = ToolCall::parse(Tool::ThreadlineSend, arguments) else {
            panic!("not parsed")
        };
        assert_eq!(request.purpose.map(|purpose| purpose.chars().count()), Some(MAX_PURPOSE_CHARS));
    }
}
