//! Sessions in a real tmux.

use instar_hooks::{Event, EventInput, HookReport, ReportFacts};
use instar_sessions::record::{Activity, Status, Transport};
use instar_sessions::{OutputFormat, SessionError};
use instar_state::ports::{InputKind, InputState, SessionInput};
use instar_state::time::now_ms;
use rustix::process::Signal;

use crate::support::{World, conversation, transcript, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_with_everything_in_it_arrives_whole() {
    let world = World::new();
    let node = world.node().await;
    let record = node.sessions.spawn(conversation(Transport::Tmux)).await.expect("spawn");
    let text = "line one\n\"quotes\" $HOME `id` \\n é 漢\n  indented";
    node.sessions.send_input("talk", text, false, None).await.expect("send");
    node.row(record.id, "line one", InputState::Injected).await;
    node.session(record.id, "idle", |r| r.activity == Activity::Idle && r.telemetry.turns == 1).await;
    let said = transcript(&world, &record.id.to_string());
    assert!(said.contains(&serde_json::to_string(text).expect("json")[1..20]), "{said}");
    assert!(said.contains("漢\\n  indented"), "{said}");
    let screen = node.sessions.output("talk", 20, OutputFormat::Text).await.expect("output");
    assert!(screen.contains("answered"), "{screen}");
    let environment = world.tmux(&["show-environment", "-g"]);
    assert!(!environment.contains("DATABASE_URL") && !environment.contains("INSTAR_AUTH"), "{environment}");
    node.sessions.kill("talk", true).await.expect("kill");
    assert!(world.processes().is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swallowed_enter_is_pressed_again_and_the_message_submitted_once() {
    let world = World::new();
    std::fs::write(world.paths.project().join("swallow"), "1").expect("write");
    let node = world.node().await;
    let record = node.sessions.spawn(conversation(Transport::Tmux)).await.expect("spawn");
    node.sessions.send_input("talk", "only once", false, None).await.expect("send");
    node.row(record.id, "only once", InputState::Injected).await;
    assert_eq!(transcript(&world, &record.id.to_string()).matches("only once").count(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_that_swallows_every_enter_is_reported_within_its_time() {
    let world = World::new();
    std::fs::write(world.paths.project().join("swallow"), "1000").expect("write");
    let node = world.node().await;
    let record = node.sessions.spawn(conversation(Transport::Tmux)).await.expect("spawn");
    node.session(record.id, "readiness", |r| r.status == Status::Running).await;
    let sent = std::time::Instant::now();
    node.sessions.send_input("talk", "never", false, None).await.expect("send");
    let degraded = until("the report", || async {
        world.notices.degradations().into_iter().find(|d| d.code == "injection_unverified")
    })
    .await;
    assert!(sent.elapsed().as_secs() <= 33, "{degraded:?} after {:?}", sent.elapsed());
    let row = until("the reason", || async {
        let rows = node.sessions.inbox(record.id, None).await.expect("inbox");
        rows.into_iter().find(|r| r.error.is_some())
    })
    .await;
    assert_eq!(row.state, InputState::Queued);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trust_question_is_answered_and_the_session_gets_ready() {
    let world = World::new();
    std::fs::write(world.paths.project().join("dialog"), "").expect("write");
    let node = world.node().await;
    let record = node.sessions.spawn(conversation(Transport::Tmux)).await.expect("spawn");
    node.session(record.id, "readiness", |r| r.status == Status::Running).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_adopts_the_pane_and_its_end() {
    let world = World::new();
    let node = world.node().await;
    let record = node.sessions.spawn(conversation(Transport::Tmux)).await.expect("spawn");
    node.session(record.id, "readiness", |r| r.status == Status::Running).await;
    node.stop().await;

    let node = world.node().await;
    let adopted = node.sessions.get(record.id).expect("record");
    assert_eq!((adopted.status, adopted.activity), (Status::Running, Activity::Idle));
    node.sessions.send_input("talk", "after the restart", false, None).await.expect("send");
    node.row(record.id, "after the restart", InputState::Injected).await;
    node.sessions.send_input("talk", "sleep:60000", false, None).await.expect("send");
    node.row(record.id, "sleep", InputState::Injected).await;
    assert!(matches!(node.sessions.interrupt("talk").await, Ok(()) | Err(SessionError::NotBusy)));
    let child = node.sessions.get(record.id).and_then(|r| r.child_pid).expect("child");
    instar_sessions::process::signal(child, Signal::KILL);
    let ended = node.session(record.id, "the end", |r| r.status.is_final()).await;
    assert_eq!((ended.status, ended.exit.and_then(|e| e.signal)), (Status::Failed, Some(9)));
    until("another session for the open input", || async {
        node.sessions.list().into_iter().find(|r| r.resume_of == Some(record.id))
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pane_without_a_record_is_listed_and_left_alone() {
    let world = World::new();
    let node = world.node().await;
    let record = node.sessions.spawn(conversation(Transport::Tmux)).await.expect("spawn");
    node.session(record.id, "readiness", |r| r.status == Status::Running).await;
    node.stop().await;
    std::fs::remove_file(world.paths.sessions().join(format!("{}.json", record.id))).expect("remove");

    let node = world.node().await;
    let stranger = node.sessions.find("recovered-1").expect("listed");
    assert_eq!(stranger.tmux_session, record.tmux_session);
    assert_eq!(node.sessions.tmux_sessions().await.expect("list").len(), 1);
    node.sessions.kill("recovered-1", true).await.expect("kill");
    until("no process left", || async { world.processes().is_empty().then_some(()) }).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_may_keep_a_startup_question_to_himself() {
    let world = World::new();
    std::fs::write(world.paths.project().join("dialog"), "").expect("write");
    let own = r#"[{"name": "hands-off", "regex": "Quick safety check"}]"#;
    std::fs::write(world.paths.data().join("startup-dialogs.json"), own).expect("write");
    let node = world.node().await;
    let record = node.sessions.spawn(conversation(Transport::Tmux)).await.expect("spawn");
    node.session(record.id, "the question", |r| r.activity == Activity::WaitingInput).await;
    let asked = world.notices.notices();
    assert!(asked.iter().any(|n| n.notice.text.contains("hands-off")), "{asked:?}");
    node.sessions.key("talk", "Down").await.expect("key");
    until("the cursor to move", || async {
        let screen = node.sessions.output("talk", 20, OutputFormat::Text).await.expect("output");
        screen.contains("❯ Yes").then_some(())
    })
    .await;
    node.sessions.key("talk", "Enter").await.expect("key");
    node.session(record.id, "readiness", |r| r.status == Status::Running).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_comes_again_does_nothing_after_a_restart_too() {
    let world = World::new();
    let node = world.node().await;
    let record = node.sessions.spawn(conversation(Transport::Tmux)).await.expect("spawn");
    node.session(record.id, "readiness", |r| r.status == Status::Running).await;
    let report = |id: &str| {
        let facts = ReportFacts { id: id.into(), ..ReportFacts::default() };
        let at_ms = u64::MAX / 2;
        HookReport {
            at_ms,
            ..HookReport::new(Event::SubagentStart, &EventInput::parse(b"{}").expect("input"), facts)
        }
    };
    for id in ["one", "one", "two"] {
        node.sessions.hook_event(record.id, report(id)).await;
    }
    node.session(record.id, "two subagents", |r| r.telemetry.subagents_spawned == 2).await;
    node.stop().await;

    let node = world.node().await;
    for id in ["two", "three"] {
        node.sessions.hook_event(record.id, report(id)).await;
    }
    let counted = node.session(record.id, "another subagent", |r| r.telemetry.subagents_spawned >= 3).await;
    assert_eq!(counted.telemetry.subagents_spawned, 3);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_a_killed_node_left_in_the_composer_is_submitted_once() {
    let world = World::new();
    let node = world.node().await;
    let record = node.sessions.spawn(conversation(Transport::Tmux)).await.expect("spawn");
    node.session(record.id, "readiness", |r| r.status == Status::Running).await;
    let journal = node.journal.clone();
    node.stop().await;
    // What a node does before it presses Enter.
    let input = SessionInput {
        inbox_key: "local:left".into(),
        conversation: record.conversation.clone(),
        kind: InputKind::User,
        body: "left-behind".into(),
        tag: "dashboard:local".into(),
        steer: false,
    };
    let ulid = journal.enqueue(input, now_ms()).await.expect("row").ulid;
    assert!(journal.begin_attempt(ulid, record.id).await.expect("attempt"));
    let pane = record.tmux_session.as_deref().expect("a pane");
    world.tmux(&["set-buffer", "-b", "left", &format!("[dashboard:local #{ulid}] left-behind")]);
    world.tmux(&["paste-buffer", "-p", "-d", "-r", "-b", "left", "-t", pane]);

    let node = world.node().await;
    node.row(record.id, "left-behind", InputState::Injected).await;
    let said = transcript(&world, &record.id.to_string());
    assert_eq!(said.matches("left-behind").count(), 1, "{said}");
    node.stop().await;
}
