use proptest::prelude::*;
use serde_json::json;

use super::*;

fn script(rules: Value) -> Script {
    Script::from_json(json!({ "rules": rules }).to_string().as_bytes()).expect("a valid script")
}

fn conversation(messages: Value) -> Conversation {
    Conversation::from_messages(&json!([{"type": "text", "text": "sys"}]), &messages)
}

#[test]
fn steps_follow_the_assistant_messages_of_this_turn() {
    let script = script(json!([{
        "name": "walk", "when": {"user": "go (?<what>\\w+)"},
        "steps": [
            {"calls": [{"tool": "Look", "input": {"at": "{what}", "deep": [1, "{what}!"]}}]},
            {"text": "saw {result:/seen/0} at {what}"}
        ]
    }]));
    let first = json!({"role": "user", "content": "go left"});
    let reply = script.reply(&conversation(json!([first]))).expect("matches");
    assert_eq!(reply.calls[0].input, json!({"at": "left", "deep": [1, "left!"]}));

    let reply = script.reply(&conversation(json!([
        {"role": "user", "content": "earlier"}, {"role": "assistant", "content": "yes"}, first,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "Look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "{\"seen\":[7]}"}]}
    ])));
    assert_eq!(reply.expect("matches").text.as_deref(), Some("saw 7 at left"));
}

#[test]
fn answers_every_match_once_and_retries_what_failed() {
    let script = script(json!([{
        "name": "answer", "when": {"user": "ask"},
        "answer": {
            "each": "ask (?<n>\\d+)", "attempts": 2, "then": "all said",
            "call": {"tool": "send", "input": {"message": "answer {n+1}"}}
        }
    }]));
    let mut messages = vec![json!({"role": "user", "content": "ask 1 and ask 2"})];
    let reply = script.reply(&conversation(json!(messages))).expect("matches");
    let sent: Vec<_> = reply.calls.iter().map(|call| call.input["message"].clone()).collect();
    assert_eq!(sent, ["answer 2", "answer 3"]);

    messages.push(json!({"role": "assistant", "content": [
        {"type": "tool_use", "id": "a", "name": "send", "input": {"message": "answer 2"}},
        {"type": "tool_use", "id": "b", "name": "send", "input": {"message": "answer 3"}}]}));
    messages.push(json!({"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "a", "content": "Error: node-unreachable", "is_error": true},
        {"type": "tool_result", "tool_use_id": "b", "content": "Error: message m1 was answered by m2", "is_error": true},
        {"type": "text", "text": "meanwhile: ask 8"}]}));
    let reply = script.reply(&conversation(json!(messages))).expect("matches");
    let sent: Vec<_> = reply.calls.iter().map(|call| call.input["message"].clone()).collect();
    assert_eq!(sent, ["answer 2", "answer 9"], "the failed one again, and the one that came during the turn");
}

#[test]
fn reminders_and_hook_context_are_not_the_input() {
    let seen = conversation(json!([
        {"role": "system", "content": "SessionStart hook additional context: who you are"},
        {"role": "user", "content": [{"type": "text", "text": "<system-reminder>x</system-reminder>hello"}]}
    ]));
    assert_eq!((seen.input.as_str(), seen.step), ("hello", 0));
    assert!(seen.system.contains("who you are"));
}

#[test]
fn a_bad_rule_file_names_what_is_wrong() {
    let unknown = Script::from_json(br#"{"rules":[{"name":"x","stepz":[]}]}"#).expect_err("unknown field");
    assert!(unknown.to_string().contains("stepz"), "{unknown}");
    let pattern = Script::from_json(br#"{"rules":[{"name":"bad one","when":{"user":"("}}]}"#);
    assert!(pattern.expect_err("bad pattern").to_string().contains("bad one"));
}

proptest! {
    #[test]
    fn any_text_can_be_filled(text in "\\PC{0,60}") {
        let conversation = Conversation::default();
        let variables = Variables::new(&conversation);
        variables.text(&text);
        variables.value(&Value::String(text));
    }
}
