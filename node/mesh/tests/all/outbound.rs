use std::sync::Arc;
use std::sync::atomic::Ordering;

use instar_mesh::{Answered, ApproveOption, Decision};
use serde_json::{Value, json};
use threadline::autonomy::Autonomy;
use threadline::service::{Caller, NetworkCaller, Scope, SessionCaller, Tool, ToolCall};
use threadline::v1::envelope::Envelope;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::bench::{Node, Peer, payload, until};

fn send_to(peer: &Peer, text: &str) -> Value {
    json!({"agentId": peer.fingerprint(), "message": text, "waitForReply": false})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_call_gets_the_reply_of_its_thread_and_peer_only() {
    let node = Arc::new(Node::start().await);
    let mut relay = node.relay().await;
    let (peer, other) = (Peer::new(2), Peer::new(3));
    node.trust(&peer, "verified").await;
    let asker = Arc::clone(&node);
    let id = instar_state::ids::SessionId::random();
    let session = Caller::Session(SessionCaller { id: id.to_string(), bound: None, tainted: false });
    let arguments = json!({"agentId": peer.fingerprint(), "message": "How late is it?"});
    let call = tokio::spawn(async move { asker.call(session, Tool::ThreadlineSend, arguments).await });
    let asked = relay.message().await;
    let thread = asked.text("threadId").expect("thread").to_owned();
    relay.send(&other.says(node.us(), &thread, "x", "Not for you to ask?")).await;
    relay.taken("x").await;
    relay.send(&peer.says(node.us(), &thread, "r1", "Noon.")).await;
    relay.taken("r1").await;
    let result = call.await.expect("no panic").expect("result");
    assert_eq!((result["outcome"].as_str(), result["delivered"].as_bool()), (Some("replied"), Some(true)));
    assert!(result["reply"].as_str().expect("reply").contains("Noon."));
    assert!(result["reply"].as_str().expect("reply").starts_with("<<<PEER_MESSAGE"));
    assert_eq!(result["replyMessageId"], "r1");
    assert!(node.sessions.tainted(&id));
    node.until_state("r1", "delivered waiter").await;
    assert!(node.sessions.rows().is_empty());

    let history = node
        .call(Caller::Local, Tool::ThreadlineHistory, json!({"threadId": thread, "peer": peer.fingerprint()}))
        .await
        .expect("history");
    assert_eq!((&history["totalCount"], &history["chainValid"]), (&json!(2), &json!(true)));
    let directions: Vec<_> =
        history["messages"].as_array().expect("list").iter().map(|m| m["direction"].clone()).collect();
    assert_eq!(directions, ["out", "in"]);
    let ambiguous = node.call(Caller::Local, Tool::ThreadlineHistory, json!({"threadId": thread})).await;
    assert_eq!(ambiguous.expect_err("two peers").code, "ambiguous-thread");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_survives_an_absent_relay_and_a_restart_and_is_sent_once_per_key() {
    let mut node = Node::start().await;
    let peer = Peer::new(4);
    let mut arguments = send_to(&peer, "later");
    arguments["idempotencyKey"] = json!("k1");
    let offline = node.call(Caller::Local, Tool::ThreadlineSend, arguments.clone()).await.expect("queued");
    assert_eq!(
        (offline["outcome"].as_str(), offline["deliveryPath"].as_str()),
        (Some("queued"), Some("queued"))
    );
    node.restart().await;
    let again = node.call(Caller::Local, Tool::ThreadlineSend, arguments).await.expect("the same");
    assert_eq!(again["messageId"], offline["messageId"]);
    let mut relay = node.relay().await;
    let envelope = relay.message().await;
    assert_eq!(envelope.text("messageId"), offline["messageId"].as_str());
    until("the relay's word is noted", || async {
        let health = node.mesh.outbox(5).await.expect("outbox");
        (health["messages"][0]["state"] == "sent").then_some(()).ok_or(health.to_string())
    })
    .await;
    assert_eq!(node.mesh.outbox(5).await.expect("outbox")["count"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_stay_within_their_binding() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let (peer, other) = (Peer::new(5), Peer::new(6));
    node.trust(&peer, "verified").await;
    relay.send(&peer.says(node.us(), "t1", "m1", "Shall we start?")).await;
    relay.taken("m1").await;
    until("a session", || async { node.sessions.starts().pop().ok_or("none".into()) }).await;
    let session = node.session(&peer, "t1");
    let code = async |caller: &Caller, tool, arguments| {
        node.call(caller.clone(), tool, arguments).await.expect_err("refused").code
    };
    assert_eq!(code(&session, Tool::ThreadlineSend, send_to(&other, "hi")).await, "forbidden");
    let mut elsewhere = send_to(&peer, "hi");
    elsewhere["threadId"] = json!("t2");
    assert_eq!(code(&session, Tool::ThreadlineSend, elsewhere).await, "forbidden");
    assert_eq!(code(&session, Tool::ThreadlineHistory, json!({"threadId": "t2"})).await, "forbidden");
    let token = Caller::Network(NetworkCaller {
        token_id: "mcp_0".into(),
        scopes: vec![Scope::Send, Scope::Read],
        peer: Some(other.fingerprint()),
    });
    assert_eq!(code(&token, Tool::ThreadlineSend, send_to(&peer, "hi")).await, "forbidden");
    assert_eq!(code(&token, Tool::ThreadlineHistory, json!({"threadId": "t1"})).await, "forbidden");
    let raise = json!({"action": "grant", "fingerprint": peer.fingerprint(), "level": "autonomous"});
    let asked = node.call(session, Tool::ThreadlineTrust, raise).await.expect("asked");
    assert_eq!((&asked["status"], &asked["level"]), (&json!("pending_confirmation"), &json!("verified")));
    let us = json!({"agentId": node.us(), "message": "hi", "waitForReply": false});
    assert_eq!(code(&Caller::Local, Tool::ThreadlineSend, us).await, "self-target");
    let nobody = json!({"agentId": "nobody here", "message": "hi", "waitForReply": false});
    relay.send(&threadline::v1::frames::ServerFrame::DiscoverResult(Vec::new())).await;
    assert_eq!(code(&Caller::Local, Tool::ThreadlineSend, nobody).await, "agent-not-found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_without_proof_of_life_speaks_only_through_the_owner() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(7);
    node.trust(&peer, "verified").await;
    node.sessions.silent.store(true, Ordering::SeqCst);
    relay.send(&peer.says(node.us(), "t1", "m1", "Who are you?")).await;
    relay.taken("m1").await;
    until("a session", || async { node.sessions.starts().pop().ok_or("none".into()) }).await;
    let mut arguments = send_to(&peer, "a ghost");
    arguments["threadId"] = json!("t1");
    let held = node.call(node.session(&peer, "t1"), Tool::ThreadlineSend, arguments).await.expect("held");
    assert_eq!((&held["outcome"], &held["accepted"]), (&json!("held"), &json!(false)));
    let approvals = node.mesh.approvals(None, None).await.expect("approvals");
    let id = approvals["approvals"][0]["id"].as_str().expect("id");
    node.mesh.decide(&Caller::Owner, id, Decision::Approve(ApproveOption::Message)).await.expect("send it");
    assert_eq!(payload(&relay.message().await)["text"], "a ghost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cautious_node_asks_about_each_message() {
    let node = Node::with(|config| config.policy.autonomy = Autonomy::Cautious).await;
    let mut relay = node.relay().await;
    let peer = Peer::new(8);
    node.trust(&peer, "verified").await;
    relay.send(&peer.says(node.us(), "t1", "m1", "Hello?")).await;
    relay.taken("m1").await;
    node.until_state("m1", "held approval").await;
    let held = node.call(Caller::Local, Tool::ThreadlineSend, send_to(&peer, "hello")).await.expect("held");
    assert_eq!(held["outcome"], "held");
    let approvals = node.mesh.approvals(None, None).await.expect("approvals");
    assert_eq!(approvals["count"], 2);
    for approval in approvals["approvals"].as_array().expect("list") {
        let id = approval["id"].as_str().expect("id");
        let decision = if approval["kind"] == "outbound" {
            Decision::Reject
        } else {
            Decision::Approve(ApproveOption::Message)
        };
        node.mesh.decide(&Caller::Owner, id, decision).await.expect("decide");
    }
    until("a session", || async { node.sessions.starts().pop().ok_or("none".into()) }).await;
    assert_eq!(node.mesh.outbox(1).await.expect("outbox")["messages"][0]["state"], "rejected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approved_text_that_may_not_leave_now_is_still_asked_about() {
    let node = Node::with(|config| config.policy.autonomy = Autonomy::Cautious).await;
    let mut relay = node.relay().await;
    let peer = Peer::new(9);
    node.trust(&peer, "verified").await;
    let held = node.call(Caller::Local, Tool::ThreadlineSend, send_to(&peer, "hello")).await.expect("held");
    let approvals = node.mesh.approvals(None, None).await.expect("approvals");
    let id = approvals["approvals"][0]["id"].as_str().expect("id");
    let fp = peer.fingerprint().to_string();
    node.mesh.block(&Caller::Owner, &fp, None).await.expect("block");
    let approve = Decision::Approve(ApproveOption::Message);
    let refused = node.mesh.decide(&Caller::Owner, id, approve).await.expect_err("not to a blocked agent");
    assert_ne!(refused.code, "already-decided");
    let pending = node.mesh.approvals(None, None).await.expect("approvals");
    assert_eq!(pending["approvals"][0]["status"], "pending", "{pending}");
    node.mesh.unblock(&Caller::Owner, &fp).await.expect("unblock");
    node.mesh.decide(&Caller::Owner, id, approve).await.expect("send it");
    assert_eq!(relay.message().await.text("messageId"), held["messageId"].as_str());
    let again = node.mesh.decide(&Caller::Owner, id, Decision::Reject).await.expect_err("decided");
    assert_eq!(again.code, "already-decided");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_answer_is_not_given_to_the_call_that_asked_something_else() {
    let node = Arc::new(Node::start().await);
    let mut relay = node.relay().await;
    let peer = Peer::new(10);
    node.trust(&peer, "verified").await;
    let first =
        node.call(Caller::Local, Tool::ThreadlineSend, send_to(&peer, "Which day?")).await.expect("sent");
    let thread = first["threadId"].as_str().expect("thread").to_owned();
    let first = relay.message().await.text("messageId").expect("id").to_owned();
    let asker = Arc::clone(&node);
    let arguments = json!({"agentId": peer.fingerprint(), "message": "Which hour?", "threadId": thread});
    let call = tokio::spawn(async move { asker.call(Caller::Local, Tool::ThreadlineSend, arguments).await });
    let second = relay.message().await.text("messageId").expect("id").to_owned();
    relay.send(&peer.answers(node.us(), &thread, "r1", "Monday, I think.", &first)).await;
    relay.taken("r1").await;
    node.until_state("r1", "queued").await;
    relay.send(&peer.answers(node.us(), &thread, "r2", "Noon, I think.", &second)).await;
    let result = call.await.expect("no panic").expect("result");
    assert_eq!(result["replyMessageId"], "r2", "{result}");
}

/// A call that waits for its reply, and what the peer was asked.
async fn asked(
    node: &Arc<Node>,
    relay: &mut super::bench::Relay,
    peer: &Peer,
    gone: &CancellationToken,
) -> (JoinHandle<Answered>, Envelope) {
    let (asker, gone) = (Arc::clone(node), gone.clone());
    let arguments = json!({"agentId": peer.fingerprint(), "message": "Which hour is it?"});
    let call = ToolCall::parse(Tool::ThreadlineSend, arguments).expect("arguments");
    let waiting =
        tokio::spawn(async move { asker.mesh.attend(Caller::Local, call, &gone).await.expect("an answer") });
    (waiting, relay.message().await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_whose_way_to_the_caller_is_not_confirmed_goes_to_a_session() {
    let mut node = Arc::new(Node::with(|config| config.spawn.drain_enabled = false).await);
    let mut relay = node.relay().await;
    let peer = Peer::new(13);
    node.trust(&peer, "verified").await;
    let (call, question) = asked(&node, &mut relay, &peer, &CancellationToken::new()).await;
    let thread = question.text("threadId").expect("thread").to_owned();
    relay.send(&peer.says(node.us(), &thread, "r1", "Noon, I think. And there?")).await;
    relay.taken("r1").await;
    let answered = call.await.expect("no panic");
    assert_eq!(answered.result["replyMessageId"], "r1");
    relay.send(&peer.says(node.us(), &thread, "r2", "Or is it later?")).await;
    relay.taken("r2").await;
    node.until_state("r2", "stored").await;
    assert_eq!(node.state_of("r1").await.as_deref(), Some("stored"), "its caller may not have it yet");
    assert!(node.sessions.rows().is_empty(), "and the next one keeps its place behind it");

    // The node dies with the answer in its hands.
    drop(relay);
    Arc::get_mut(&mut node).expect("nobody else holds it").restart().await;
    drop(answered);
    node.until_state("r2", "queued").await;
    assert_eq!(
        node.sessions.order(),
        ["r1", "r2"].map(|id| format!("threadline:{}:{id}", peer.fingerprint()))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_left_swallows_no_message() {
    let node = Arc::new(Node::with(|config| config.spawn.drain_enabled = false).await);
    let mut relay = node.relay().await;
    let peer = Peer::new(14);
    node.trust(&peer, "verified").await;
    let gone = CancellationToken::new();
    let (call, question) = asked(&node, &mut relay, &peer, &gone).await;
    gone.cancel();
    let answered = call.await.expect("no panic");
    assert_eq!((&answered.result["outcome"], &answered.result["reply"]), (&json!("sent"), &Value::Null));
    let thread = question.text("threadId").expect("thread").to_owned();
    relay.send(&peer.says(node.us(), &thread, "r1", "Noon, I think. And there?")).await;
    relay.taken("r1").await;
    node.until_state("r1", "queued").await;

    let (call, question) = asked(&node, &mut relay, &peer, &CancellationToken::new()).await;
    let thread = question.text("threadId").expect("thread").to_owned();
    relay.send(&peer.says(node.us(), &thread, "r2", "Noon still. And with you?")).await;
    relay.taken("r2").await;
    let answered = call.await.expect("no panic");
    assert_eq!(answered.result["replyMessageId"], "r2");
    drop(answered);
    node.until_state("r2", "queued").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_is_its_callers_own_and_names_one_message() {
    let node = Node::start().await;
    let (peer, other) = (Peer::new(11), Peer::new(12));
    let session = || {
        let id = instar_state::ids::SessionId::random();
        Caller::Session(SessionCaller { id: id.to_string(), bound: None, tainted: false })
    };
    let (one, two) = (session(), session());
    let mut arguments = send_to(&peer, "first");
    arguments["idempotencyKey"] = json!("k1");
    let sent = node.call(one.clone(), Tool::ThreadlineSend, arguments.clone()).await.expect("sent");
    let again = node.call(one.clone(), Tool::ThreadlineSend, arguments).await.expect("the same");
    assert_eq!(again["messageId"], sent["messageId"]);
    let mut elsewhere = send_to(&other, "second");
    elsewhere["idempotencyKey"] = json!("k1");
    let reused = node.call(one, Tool::ThreadlineSend, elsewhere.clone()).await.expect_err("another agent");
    assert_eq!(reused.code, "idempotency-key-reused");
    let mine = node.call(two, Tool::ThreadlineSend, elsewhere).await.expect("another caller's key");
    assert_ne!(mine["messageId"], sent["messageId"]);
    assert_eq!(mine["note"], Value::Null);
}
