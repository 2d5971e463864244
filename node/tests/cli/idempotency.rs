//! A request that is sent again under its `Idempotency-Key`.

use super::node::{Answer, Node};

fn send(node: &Node, path: &str, key: &str, body: &str) -> Answer {
    node.socket_request("POST", path, &[("Idempotency-Key", key)], body)
}

fn is_replay(answer: &Answer) -> bool {
    answer.head.contains("idempotent-replay: true")
}

#[test]
fn the_first_answer_is_given_again_and_survives_a_restart() {
    let mut node = Node::start();
    let path = "/sessions/cleanup-stale";
    let first = send(&node, path, "k1", "{}");
    assert!(first.status == 200 && !is_replay(&first), "{}", first.head);
    let again = send(&node, path, "k1", "{}");
    assert!(again.status == 200 && is_replay(&again), "{}", again.head);
    assert_eq!(again.body, first.body);

    let other_body = send(&node, path, "k1", "{\"x\":1}");
    assert_eq!((other_body.status, &other_body.body["code"]), (409, &"idempotency_key_reused".into()));
    let other_path = send(&node, "/sessions/none/interrupt", "k1", "{}");
    assert_eq!(other_path.status, 409, "{}", other_path.body);
    let bearer = format!("Bearer {}", node.token);
    let other_caller = node.tcp("POST", path, &[("Authorization", &bearer), ("Idempotency-Key", "k1")], "{}");
    assert!(other_caller.status == 200 && !is_replay(&other_caller), "a key belongs to its caller");

    node.restart();
    assert!(is_replay(&send(&node, path, "k1", "{}")));
}

#[test]
fn refusals_that_pass_are_not_kept() {
    let node = Node::start();
    let missing = send(&node, "/sessions/none/interrupt", "k2", "{}");
    assert_eq!(missing.status, 404);
    assert!(
        is_replay(&send(&node, "/sessions/none/interrupt", "k2", "{}")),
        "a decided refusal is an answer"
    );
    let owner = "/threadline/approvals/none/approve";
    for _ in 0..2 {
        let asked = send(&node, owner, "k3", "{}");
        assert!(asked.status == 403 && !is_replay(&asked), "{}", asked.head);
        assert!(asked.body["challengeId"].is_string(), "each try gets a challenge of its own");
    }
    let anonymous = node.tcp("POST", "/sessions/cleanup-stale", &[("Idempotency-Key", "k4")], "{}");
    assert_eq!(anonymous.status, 401);
    assert_eq!(send(&node, "/sessions/cleanup-stale", &"x".repeat(256), "{}").status, 400);
}
