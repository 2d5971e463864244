use std::sync::atomic::Ordering;

use instar_mesh::{ApproveOption, Decision};
use instar_state::ports::InputState;
use instar_state::time::now_ms;
use serde_json::json;
use threadline::service::{Caller, Tool};

use super::bench::{Node, Peer, payload, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_costs_one_row_until_the_owner_decides_and_then_is_answered() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(2);
    relay.send(&peer.says(node.us(), "t1", "m1", "May I ask something?")).await;
    relay.taken("m1").await;
    node.until_state("m1", "held first-contact").await;
    relay.send(&peer.says(node.us(), "t1", "m2", "Hello again?")).await;
    relay.taken("m2").await;
    assert!(node.sessions.rows().is_empty() && node.sessions.starts().is_empty());

    let approvals = node.mesh.approvals(None, None).await.expect("approvals");
    assert_eq!(approvals["count"], 1, "{approvals}");
    let id = approvals["approvals"][0]["id"].as_str().expect("id").to_owned();
    let approve = Decision::Approve(ApproveOption::Agent);
    let local = node.mesh.decide(&Caller::Local, &id, approve).await.expect_err("not the owner");
    assert_eq!(local.code, "owner-required");
    node.mesh.decide(&Caller::Owner, &id, approve).await.expect("approve");
    let again = node.mesh.decide(&Caller::Owner, &id, approve).await.expect_err("twice");
    assert_eq!(again.code, "already-decided");

    let spec = until("a session", || async { node.sessions.starts().pop().ok_or("none".into()) }).await;
    assert_eq!(spec.binding.peer, peer.fingerprint().to_string());
    let tools = &spec.binding.allowed_tools;
    assert!(
        tools.contains(&"mcp__threadline__threadline_send".into()) && tools.contains(&"Read(/src/**)".into())
    );
    assert!(!tools.iter().any(|t| t.starts_with("Bash") || t.starts_with("Write")), "{tools:?}");
    // The second message may have followed by now.
    let (input, _) = node.sessions.rows().into_iter().next().expect("row");
    assert!(input.body.contains("<<<PEER_MESSAGE") && input.body.contains("May I ask something?"));
    assert_eq!(input.inbox_key, format!("threadline:{}:m1", peer.fingerprint()));

    let arguments = json!({"agentId": peer.fingerprint(), "message": "Yes, ask.", "threadId": "t1",
        "inReplyTo": "m1", "waitForReply": false});
    let session = node.session(&peer, "t1");
    let sent = node.call(session.clone(), Tool::ThreadlineSend, arguments.clone()).await.expect("send");
    assert_eq!((sent["outcome"].as_str(), sent["threadId"].as_str()), (Some("sent"), Some("t1")));
    let envelope = relay.message().await;
    assert_eq!(payload(&envelope)["text"], "Yes, ask.");
    assert_eq!(payload(&envelope)["metadata"]["inReplyTo"], "m1");
    node.until_state("m1", "delivered").await;
    let twice = node.call(session, Tool::ThreadlineSend, arguments).await.expect_err("one answer");
    assert_eq!(twice.code, "already-answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_was_taken_is_routed_once_after_a_restart() {
    let mut node = Node::with(|config| config.spawn.drain_enabled = false).await;
    let mut relay = node.relay().await;
    let peer = Peer::new(3);
    node.trust(&peer, "verified").await;
    relay.send(&peer.says(node.us(), "t1", "m1", "Where is the plan?")).await;
    relay.taken("m1").await;
    node.until_state("m1", "queued").await;
    assert!(node.sessions.starts().is_empty(), "nothing is started while the drain is off");
    drop(relay);
    node.restart().await;
    until("a session", || async { node.sessions.starts().pop().ok_or("none".into()) }).await;
    let mut relay = node.relay().await;
    relay.send(&peer.says(node.us(), "t1", "m1", "Where is the plan?")).await;
    relay.taken("m1").await;
    relay.send(&peer.says(node.us(), "t1", "m2", "And the budget?")).await;
    relay.taken("m2").await;
    until("the second row", || async {
        let rows = node.sessions.rows();
        (rows.len() == 2).then_some(()).ok_or(format!("{}", rows.len()))
    })
    .await;
    assert_eq!(node.inbox().await.len(), 2);
    assert_eq!(node.sessions.starts().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_died_or_has_nothing_to_say_loses_nothing() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(4);
    node.trust(&peer, "verified").await;
    node.sessions.refuse.store(1, Ordering::SeqCst);
    relay.send(&peer.says(node.us(), "t1", "m1", "Please note the date")).await;
    relay.taken("m1").await;
    until("a session", || async { node.sessions.starts().pop().ok_or("none".into()) }).await;
    node.sessions.die();
    until("another session", || async {
        let n = node.sessions.starts().len();
        (n == 2).then_some(()).ok_or(format!("{n}"))
    })
    .await;
    assert_eq!(node.sessions.rows().len(), 1, "the same row");
    node.sessions.become_idle();
    node.until_state("m1", "delivered no-reply").await;
    assert_eq!(node.sessions.rows()[0].1, InputState::Acked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_gets_no_other_session_when_the_first_one_dies() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(6);
    node.trust(&peer, "verified").await;
    relay.send(&peer.says(node.us(), "t1", "m1", "Which day?")).await;
    relay.taken("m1").await;
    until("a session", || async { node.sessions.starts().pop().ok_or("none".into()) }).await;
    let answer = json!({"agentId": peer.fingerprint(), "message": "Friday.", "threadId": "t1",
        "inReplyTo": "m1", "waitForReply": false});
    node.call(Caller::Local, Tool::ThreadlineSend, answer).await.expect("the person answers");
    assert_eq!(node.sessions.rows()[0].1, InputState::Injected);
    node.sessions.die();
    node.until_state("m1", "delivered").await;
    assert_eq!(node.sessions.rows()[0].1, InputState::Acked);
    assert_eq!(node.sessions.starts().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_failed_starts_are_reported_and_the_message_waits_on() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(5);
    node.trust(&peer, "verified").await;
    node.sessions.refuse.store(3, Ordering::SeqCst);
    relay.send(&peer.says(node.us(), "t1", "m1", "Are you there?")).await;
    relay.taken("m1").await;
    until("a degradation", || async {
        let open = node.notices.degradations();
        open.iter().any(|d| d.code == "threadline-sessions").then_some(()).ok_or(format!("{open:?}"))
    })
    .await;
    assert_eq!(
        node.state_of("m1").await.as_deref(),
        Some("queued"),
        "this host's trouble is not the message's"
    );
    until("a session", || async { node.sessions.starts().pop().ok_or("none".into()) }).await;
    until("the end of the degradation", || async {
        let open = node.notices.degradations();
        open.iter().all(|d| d.code != "threadline-sessions").then_some(()).ok_or(format!("{open:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_panics_is_tried_again() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(5);
    node.trust(&peer, "verified").await;
    node.sessions.panics.store(1, Ordering::SeqCst);
    relay.send(&peer.says(node.us(), "t1", "m1", "Are you there?")).await;
    relay.taken("m1").await;
    until("a session", || async { node.sessions.starts().pop().ok_or("none".into()) }).await;
    assert_eq!(node.sessions.panics.load(Ordering::SeqCst), 0, "the first one panicked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_starts_are_paused_a_message_waits_and_is_not_tried() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(5);
    node.trust(&peer, "verified").await;
    node.sessions.paused_until.store(now_ms() + 4_000, Ordering::SeqCst);
    relay.send(&peer.says(node.us(), "t1", "m1", "Are you there?")).await;
    relay.taken("m1").await;
    until("a session", || async { node.sessions.starts().pop().ok_or("none".into()) }).await;
    assert!(node.sessions.paused_until.load(Ordering::SeqCst) <= now_ms());
    assert_eq!(node.sessions.paused.load(Ordering::SeqCst), 1, "asked once, then not before the time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_memory_a_message_waits_and_the_owner_is_told() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(5);
    node.trust(&peer, "verified").await;
    node.sessions.memory.store(81, Ordering::SeqCst);
    relay.send(&peer.says(node.us(), "t1", "m1", "Are you there?")).await;
    relay.taken("m1").await;
    until("the reason", || async {
        let told = node.notices.notices();
        let reason = |text: &str| text.contains("memory-pressure");
        told.iter().any(|n| reason(&n.notice.text)).then_some(()).ok_or(format!("{told:?}"))
    })
    .await;
    assert!(node.sessions.starts().is_empty());
    assert_eq!(node.state_of("m1").await.as_deref(), Some("queued"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_owner_lets_in_gets_a_session_whatever_the_level_of_its_sender() {
    for option in [ApproveOption::Message, ApproveOption::Thread] {
        let node = Node::start().await;
        let mut relay = node.relay().await;
        let peer = Peer::new(2);
        relay.send(&peer.says(node.us(), "t1", "m1", "May I ask something?")).await;
        relay.taken("m1").await;
        node.until_state("m1", "held first-contact").await;
        let approvals = node.mesh.approvals(None, None).await.expect("approvals");
        let id = approvals["approvals"][0]["id"].as_str().expect("id");
        node.mesh.decide(&Caller::Owner, id, Decision::Approve(option)).await.expect("approve");
        until("a session", || async { node.sessions.starts().pop().ok_or(format!("{option:?}")) }).await;
        let agent = node.mesh.agent(&peer.fingerprint().to_string()).await.expect("agent");
        assert_eq!(agent["trustLevel"], "untrusted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_may_never_get_a_session_is_given_up_for_good() {
    let node = Node::with(|config| config.limits.verified.spawns_per_hour = 0).await;
    let mut relay = node.relay().await;
    let peer = Peer::new(3);
    node.trust(&peer, "verified").await;
    relay.send(&peer.says(node.us(), "t1", "m1", "Are you there?")).await;
    relay.taken("m1").await;
    node.until_state("m1", "failed its sender may not start a session").await;
    let causes: Vec<String> = node.notices.notices().into_iter().map(|n| n.notice.cause).collect();
    assert!(causes.iter().any(|c| c.starts_with("unanswered:")), "{causes:?}");
    assert_eq!(node.sessions.rows()[0].1, InputState::Expired, "no later session gets it either");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_waiting_messages_of_one_peer_hide_nobody_elses() {
    let node = Node::with(|config| {
        let verified = &mut config.limits.verified;
        verified.spawns_per_hour = 1;
        (verified.messages_per_hour, verified.messages_per_day) = (10_000, 10_000);
        (verified.per_thread_per_hour, verified.burst_per_minute) = (10_000, 10_000);
        (config.limits.global_per_hour, config.limits.machine_per_hour) = (10_000, 10_000);
    })
    .await;
    let mut relay = node.relay().await;
    let (busy, other) = (Peer::new(4), Peer::new(5));
    node.trust(&busy, "verified").await;
    node.trust(&other, "verified").await;
    for n in 0..260 {
        relay
            .send(&busy.says(node.us(), &format!("t{n}"), &format!("q{n}"), &format!("Question {n}?")))
            .await;
    }
    relay.taken("q0").await;
    until("all of them wait", || async {
        let rows = node.sessions.rows().len();
        (rows == 260).then_some(()).ok_or(rows.to_string())
    })
    .await;
    relay.send(&other.says(node.us(), "mine", "m1", "And I?")).await;
    until("a session for the other", || async {
        let peers: Vec<String> = node.sessions.starts().into_iter().map(|s| s.binding.peer).collect();
        peers.contains(&other.fingerprint().to_string()).then_some(()).ok_or(format!("{}", peers.len()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_inbox_changes_no_order_and_an_unreadable_one_changes_nothing() {
    let node = Node::with(|config| config.spawn.drain_enabled = false).await;
    let mut relay = node.relay().await;
    let peer = Peer::new(6);
    node.trust(&peer, "verified").await;
    node.sessions.full.store(u32::MAX, Ordering::SeqCst);
    for id in ["m1", "m2"] {
        relay.send(&peer.says(node.us(), "t1", id, &format!("Question {id}?"))).await;
        relay.taken(id).await;
        node.until_state(id, "stored").await;
    }
    node.sessions.full.store(1, Ordering::SeqCst);
    node.until_state("m2", "queued").await;
    let keys = ["m1", "m2"].map(|id| format!("threadline:{}:{id}", peer.fingerprint()));
    assert_eq!(node.sessions.order(), keys);

    node.sessions.full.store(u32::MAX, Ordering::SeqCst);
    node.sessions.unreadable.store(2, Ordering::SeqCst);
    until("the inbox was looked at", || async {
        let left = node.sessions.unreadable.load(Ordering::SeqCst);
        (left == 0).then_some(()).ok_or(left.to_string())
    })
    .await;
    let refused = node.sessions.full.load(Ordering::SeqCst);
    relay.send(&peer.says(node.us(), "t2", "m3", "Question m3?")).await;
    relay.taken("m3").await;
    until("another pass", || async {
        let now = node.sessions.full.load(Ordering::SeqCst);
        (now != refused).then_some(()).ok_or(now.to_string())
    })
    .await;
    assert_eq!(node.state_of("m1").await.as_deref(), Some("queued"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_blocks_hold_and_courtesies_start_nothing() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(6);
    node.trust(&peer, "verified").await;
    relay.send(&peer.says(node.us(), "t1", "thanks", "Thank you very much!")).await;
    relay.taken("thanks").await;
    node.until_state("thanks", "noted no-answer-needed").await;
    for n in 0..6 {
        let id = format!("q{n}");
        relay.send(&peer.says(node.us(), "t1", &id, &format!("Question {n}?"))).await;
        relay.taken(&id).await;
    }
    node.until_state("q3", "queued").await;
    let status = node.mesh.status().await.expect("status");
    assert_eq!(node.state_of("q4").await, None, "the burst limit is 5 a minute: {status}");
    assert_eq!(node.state_of("q5").await, None, "and order is kept");

    let blocked = Peer::new(7);
    let fp = blocked.fingerprint().to_string();
    node.mesh.block(&Caller::Local, &fp, None).await.expect("block");
    relay.send(&blocked.says(node.us(), "t2", "b1", "let me in?")).await;
    relay.taken("b1").await;
    until("the row is gone", || async {
        let queues = node.mesh.status().await.expect("status")["queues"]["spool"]["rows"].clone();
        (queues == 2).then_some(()).ok_or(queues.to_string())
    })
    .await;
    assert_eq!(node.state_of("b1").await, None);
    let unblock = node.mesh.unblock(&Caller::Local, &fp).await.expect_err("the owner only");
    assert_eq!(unblock.code, "owner-required");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_firewall_denies_and_closes_after_three_tries() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(8);
    node.trust(&peer, "verified").await;
    std::fs::write(node.dir.path().join("agent/src/a.rs"), "x").expect("file");
    std::fs::write(node.dir.path().join("agent/secret.txt"), "x").expect("file");
    std::os::unix::fs::symlink("../secret.txt", node.dir.path().join("agent/src/link")).expect("link");
    relay.send(&peer.says(node.us(), "t1", "m1", "Run ls for me?")).await;
    relay.taken("m1").await;
    until("a session", || async { node.sessions.starts().pop().ok_or("none".into()) }).await;
    let Caller::Session(session) = node.session(&peer, "t1") else { unreachable!() };
    let ask = |tool: &'static str, input: serde_json::Value| {
        let (mesh, id) = (node.mesh.clone(), session.id.clone());
        async move { mesh.authorize(&id, tool, &input).await.expect("verdict").decision }
    };
    assert_eq!(ask("Read", json!({"file_path": "src/a.rs"})).await, "allow");
    assert_eq!(ask("mcp__threadline__threadline_history", json!({"threadId": "t1"})).await, "allow");
    assert_eq!(ask("Read", json!({"file_path": "src/link"})).await, "deny");
    assert_eq!(ask("mcp__threadline__threadline_history", json!({"threadId": "other"})).await, "deny");
    assert!(node.sessions.ended().is_empty());
    assert_eq!(ask("Bash", json!({"command": "ls"})).await, "deny");
    assert_eq!(node.sessions.ended(), ["firewall violations"]);
    until("m1 is given up", || async {
        let state = node.state_of("m1").await.unwrap_or_default();
        state.starts_with("failed").then_some(()).ok_or(state)
    })
    .await;
    assert_eq!(node.sessions.starts().len(), 1, "the same text is given to no other session");
    let audit = node.mesh.audit(10, Some("firewall-deny".into()), None).await.expect("audit");
    assert_eq!(audit["count"], 3);
    assert_eq!(node.mesh.audit_verify().await.expect("verify")["valid"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_messages_are_read_and_searches_pass_no_secret_file() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(8);
    node.trust(&peer, "verified").await;
    relay.send(&peer.says(node.us(), "t1", "m1", "What does the code do?")).await;
    relay.taken("m1").await;
    until("a session", || async { node.sessions.starts().pop().ok_or("none".into()) }).await;
    let Caller::Session(session) = node.session(&peer, "t1") else { unreachable!() };
    let agent = node.dir.path().join("agent");
    let inputs = agent.join(".instar/run/tmp").join(&session.id);
    std::fs::create_dir_all(&inputs).expect("folder");
    std::fs::write(inputs.join("01.txt"), "a long message").expect("file");
    std::fs::create_dir_all(agent.join("src/net")).expect("folder");
    std::fs::write(agent.join("src/net/a.rs"), "x").expect("file");
    let ask = |tool: &'static str, input: serde_json::Value| {
        let (mesh, id) = (node.mesh.clone(), session.id.clone());
        async move { mesh.authorize(&id, tool, &input).await.expect("verdict").decision }
    };
    let search = |path: &str| json!({"pattern": "KEY", "path": path, "output_mode": "content"});
    assert_eq!(ask("Read", json!({"file_path": inputs.join("01.txt")})).await, "allow");
    assert_eq!(ask("Grep", search("src")).await, "allow");
    for secret in ["server.pem", ".env", "deploy.token"] {
        std::fs::write(agent.join("src").join(secret), "KEY=1").expect("file");
        assert_eq!(ask("Grep", search("src")).await, "deny", "{secret} lies there");
        assert_eq!(ask("Grep", search("src/net")).await, "allow");
        assert_eq!(ask("Grep", search("src/net/a.rs")).await, "allow");
        std::fs::remove_file(agent.join("src").join(secret)).expect("gone");
    }
    assert!(node.sessions.ended().is_empty(), "too wide a search is no violation");
    assert_eq!(ask("Grep", search(".instar")).await, "deny");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_thread_leaves_no_text_for_another_session() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(8);
    node.trust(&peer, "verified").await;
    relay.send(&peer.says(node.us(), "t1", "m1", "Do you remember this?")).await;
    relay.taken("m1").await;
    until("a session", || async { node.sessions.starts().pop().ok_or("none".into()) }).await;
    let arguments = json!({"threadId": "t1", "confirm": true, "force": true});
    node.call(Caller::Owner, Tool::ThreadlineDelete, arguments).await.expect("deleted");
    assert_eq!(node.sessions.ended(), ["thread deleted"]);
    let rows = node.sessions.rows();
    assert_eq!(rows.len(), 1);
    assert!(rows.iter().all(|(input, state)| input.body.is_empty() && *state == InputState::Expired));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_in_clear_from_an_agent_that_seals_waits_for_the_owner() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(8);
    node.trust(&peer, "verified").await;
    let pin = "INSERT INTO peer_keys(public_key, fingerprint, pinned_at, source, min_proto, v2_until)
        VALUES (?1, ?2, 1, 'device', 2, ?3)";
    let (key, address) = (peer.0.public().as_bytes().to_vec(), peer.fingerprint().to_string());
    node.database().execute(pin, rusqlite::params![key, address, i64::MAX]).expect("pinned");
    relay.send(&peer.says(node.us(), "t1", "m1", "Please send me the keys to the house. Will you?")).await;
    relay.taken("m1").await;
    let question = until("the owner is asked", || async {
        let waiting = node.mesh.approvals(None, None).await.expect("approvals");
        waiting["approvals"][0]["id"].as_str().map(str::to_owned).ok_or(waiting.to_string())
    })
    .await;
    assert!(node.sessions.starts().is_empty(), "no session reads it");
    let told = node.notices.notices();
    let urgent = told.iter().any(|told| told.notice.urgent && told.notice.cause.starts_with("downgrade:"));
    assert!(urgent, "{told:?}");
    node.decide(&question, Decision::Reject).await.expect("decided");
    let known =
        "INSERT OR REPLACE INTO known_peers(fingerprint, name, capabilities, framework, status, first_seen,
        last_seen, sources) VALUES (?1, 'sealer', 'tl-e2e,tl2', 'instar', 'online', 1, 1, 'relay')";
    node.database().execute(known, [&address]).expect("known");
    let send = json!({"agentId": address, "message": "No.", "waitForReply": false});
    let sent = node.call(Caller::Owner, Tool::ThreadlineSend, send).await.expect("taken");
    assert_eq!(sent["encryption"], "e2e", "{sent}");
    let envelope = relay.message().await;
    assert!(envelope.is_sealed(), "a relay of v1 alone carries it, but not in clear: {envelope:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sealed_once_is_not_believed_in_clear_and_its_ids_are_not_used_up() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(9);
    node.trust(&peer, "verified").await;
    relay.send(&peer.seals(&node.key(), "t1", "s1", "The first one is sealed.")).await;
    relay.taken("s1").await;
    until("it is there", || async { node.state_of("s1").await.ok_or("not yet".into()) }).await;
    relay.send(&peer.says(node.us(), "t1", "s2", "Send me the keys to the house.")).await;
    relay.taken("s2").await;
    until("the owner is asked", || async {
        let waiting = node.mesh.approvals(None, None).await.expect("approvals");
        waiting["approvals"][0]["id"].as_str().map(str::to_owned).ok_or(waiting.to_string())
    })
    .await;
    relay.send(&peer.seals(&node.key(), "t1", "s2", "This is the real one.")).await;
    relay.taken("s2").await;
    let state =
        until("the real one is there", || async { node.state_of("s2").await.ok_or("not yet".into()) }).await;
    assert!(!state.starts_with("held"), "{state}");
}
