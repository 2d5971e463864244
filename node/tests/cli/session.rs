//! Sessions as the command line and the routes show them, without a runtime.

use serde_json::json;

use super::node::Node;

#[test]
fn the_output_of_an_ended_session_is_followed_to_its_end() {
    const ID: &str = "00000000-0000-4000-8000-00000000000a";
    let node = Node::start_after(|project| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("clock").as_millis();
        let record = json!({
            "id": ID, "name": "done", "kind": "ad-hoc", "status": "completed", "activity": "idle",
            "transport": "stdio", "framework": "claude-code", "cwd": project, "conversation": format!("session:{ID}"),
            "bound": false, "maxDurationMinutes": 5, "startedAt": now, "endedAt": now, "priority": "medium",
            "owner": {"fence": 1},
        });
        let said = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"the last words"}]}}"#;
        let state = project.join(".instar");
        std::fs::create_dir_all(state.join("logs/sessions")).expect("directory");
        std::fs::write(state.join(format!("logs/sessions/{ID}.ndjson")), format!("{said}\n")).expect("log");
        std::fs::write(state.join(format!("state/sessions/{ID}.json")), record.to_string()).expect("record");
    });
    let followed = node.home.run(&node.project, &["session", "output", "done", "-f"]).ok();
    assert!(followed.stdout.contains("the last words"), "{}", followed.stdout);
}

#[test]
fn waiting_sessions_and_overdue_messages_have_routes() {
    let node = Node::start();
    assert_eq!(node.with_token("GET", "/sessions/queue", "").body["queue"], json!([]));
    assert_eq!(node.with_token("DELETE", "/sessions/queue/none", "").status, 404);
    assert_eq!(node.with_token("GET", "/sessions/overdue", "").body["count"], 0);
    assert_eq!(node.with_token("POST", "/sessions/overdue/none", r#"{"decision":"run"}"#).status, 404);
    assert_eq!(node.with_token("POST", "/sessions/overdue/none", r#"{"decision":"no"}"#).status, 400);
    let sideways = r#"{"transport":"sideways"}"#;
    assert_eq!(node.with_token("POST", "/sessions/none/transport", sideways).status, 400);
    assert_eq!(node.with_token("POST", "/sessions/none/transport", r#"{"transport":"tmux"}"#).status, 404);
    let grand = r#"{"name":"x","prompt":"x","priority":"critical"}"#;
    assert_eq!(node.with_token("POST", "/sessions/spawn", grand).status, 400);
    let listed = node.home.run(&node.project, &["session", "queue"]).ok();
    assert!(listed.stdout.contains("no session waits"), "{}", listed.stdout);
}
