//! Schemas say exactly what calls are checked for.

use serde_json::{Value, json};
use threadline::service::Tool;

use crate::client::code;
use crate::memory::Memory;
use crate::stdio::connect;

#[tokio::test]
async fn every_tool_has_a_closed_valid_schema_and_words_to_be_found_by() {
    let client = connect(Memory::new(true)).await;
    let tools = client.peer().list_all_tools().await.expect("tools");
    let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_ref()).collect();
    assert_eq!(names, Tool::ALL.map(Tool::name));
    for tool in &tools {
        let schema = tool.schema_as_json_value();
        jsonschema::meta::validate(&schema).expect("a valid schema");
        assert_eq!(schema["additionalProperties"], false, "{}", tool.name);
        let description = tool.description.as_deref().unwrap_or_default();
        assert!((40..=700).contains(&description.len()), "{}", tool.name);
        assert!(tool.title.is_some() && tool.annotations.is_some(), "{}", tool.name);
    }
    let hint =
        |name: &str| tools.iter().find(|tool| tool.name == name).and_then(|tool| tool.annotations.clone());
    assert_eq!(hint("threadline_delete").and_then(|hints| hints.destructive_hint), Some(true));
    assert_eq!(hint("threadline_history").and_then(|hints| hints.read_only_hint), Some(true));
    assert_eq!(hint("threadline_send").and_then(|hints| hints.open_world_hint), Some(true));
}

/// Arguments, whether the schema takes them, and the code if the call is refused.
fn cases() -> Vec<(&'static str, Value, bool, Option<&'static str>)> {
    let send = |key: &str, value: Value| {
        let mut arguments = json!({"agentId": "bob", "message": "hi"});
        arguments[key] = value;
        arguments
    };
    vec![
        ("threadline_discover", json!({}), true, None),
        ("threadline_discover", json!({"scope": "network", "limit": 100}), true, None),
        ("threadline_discover", json!({"limit": 101}), false, Some("limit-out-of-range")),
        ("threadline_discover", json!({"query": "q".repeat(201)}), false, Some("invalid-arguments")),
        ("threadline_discover", json!({"colour": "red"}), false, Some("invalid-arguments")),
        ("threadline_send", json!({"agentId": "bob", "message": "hi"}), true, None),
        ("threadline_send", json!({"message": "hi"}), false, Some("invalid-arguments")),
        ("threadline_send", send("message", json!("")), false, Some("empty-message")),
        ("threadline_send", send("message", json!(" \n\t")), false, Some("empty-message")),
        ("threadline_send", send("message", json!("a".repeat(512 * 1024))), true, None),
        (
            "threadline_send",
            send("message", json!("a".repeat(512 * 1024 + 1))),
            false,
            Some("message-too-large"),
        ),
        ("threadline_send", send("message", json!("é".repeat(400_000))), true, Some("message-too-large")),
        ("threadline_send", send("timeoutSeconds", json!(300)), true, None),
        ("threadline_send", send("timeoutSeconds", json!(301)), false, Some("timeout-out-of-range")),
        ("threadline_send", send("timeoutSeconds", json!(0)), false, Some("timeout-out-of-range")),
        ("threadline_send", send("originTopicId", json!(0)), false, Some("invalid-arguments")),
        ("threadline_send", send("waitForReply", json!("yes")), false, Some("invalid-arguments")),
        ("threadline_send", send("targetAgent", json!("eve")), false, Some("invalid-arguments")),
        ("threadline_send", send("priority", json!("high")), false, Some("invalid-arguments")),
        ("threadline_history", json!({"threadId": "t", "limit": 100}), true, None),
        ("threadline_history", json!({"threadId": "t", "limit": 0}), false, Some("limit-out-of-range")),
        ("threadline_history", json!({}), false, Some("invalid-arguments")),
        ("threadline_agents", json!({"includeOffline": true}), true, None),
        ("threadline_delete", json!({"threadId": "t", "confirm": true}), true, None),
        ("threadline_delete", json!({"threadId": "t", "confirm": false}), true, Some("confirm-required")),
        ("threadline_trust", json!({"action": "list"}), true, None),
        ("threadline_trust", json!({"action": "grant", "agent": "bob"}), true, Some("level-required")),
        ("threadline_trust", json!({"action": "adore"}), false, Some("invalid-arguments")),
        ("threadline_relay", json!({"action": "enable", "visibility": "unlisted"}), true, None),
        ("threadline_registry_search", json!({"query": "rust", "limit": 50}), true, None),
        (
            "threadline_registry_search",
            json!({"query": "rust", "limit": 51}),
            false,
            Some("limit-out-of-range"),
        ),
        ("threadline_registry_search", json!({}), true, Some("query-required")),
        ("threadline_registry_update", json!({"homepage": "https://example.com"}), true, None),
        (
            "threadline_registry_update",
            json!({"homepage": "http://example.com"}),
            false,
            Some("invalid-arguments"),
        ),
        ("threadline_registry_update", json!({}), true, Some("nothing-to-update")),
        ("threadline_registry_status", json!({}), true, None),
        ("threadline_registry_status", json!({"x": 1}), false, Some("invalid-arguments")),
        ("threadline_registry_get", json!({"agentId": "0123456"}), false, Some("invalid-arguments")),
        ("threadline_registry_get", json!({"agentId": "01234567"}), true, None),
    ]
}

#[tokio::test]
async fn calls_are_refused_where_their_schema_or_their_limits_say_so() {
    let client = connect(Memory::new(true)).await;
    let tools = client.peer().list_all_tools().await.expect("tools");
    for (name, arguments, fits, refused) in cases() {
        let tool = tools.iter().find(|tool| tool.name == name).expect("the tool");
        let validator = jsonschema::validator_for(&tool.schema_as_json_value()).expect("a schema");
        assert_eq!(validator.is_valid(&arguments), fits, "schema of {name} on {arguments:.120}");
        let result = crate::client::call(client.peer(), name, arguments.clone()).await;
        match refused {
            Some(expected) => assert_eq!(code(&result), expected, "{name} {arguments:.120}"),
            None => assert_eq!(result.is_error, Some(false), "{name} {arguments:.120}: {result:?}"),
        }
        assert!(fits || refused.is_some(), "what the schema refuses, the call refuses");
    }
}
