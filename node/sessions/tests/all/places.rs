//! A full house, and sessions that go on over the other transport.

use instar_sessions::record::{Activity, Priority, SessionKind, Status, Transport};
use instar_sessions::{OverdueDecision, SessionError, SessionsConfig, SpawnRequest, Spawned};
use instar_state::ids::SessionId;
use instar_state::ports::{InputKind, InputState, SessionInput};
use instar_state::time::now_ms;

use crate::support::{Node, World, conversation, transcript, until};

fn task(name: &str, prompt: &str, priority: Priority) -> SpawnRequest {
    SpawnRequest { prompt: Some(prompt.into()), priority, ..SpawnRequest::new(name, SessionKind::AdHoc) }
}

/// One slot for everything that no person asked for.
fn one_slot(world: &World) -> SessionsConfig {
    SessionsConfig { max_sessions: 1, reserve_for_human: 0, human_factor: 2, ..world.config() }
}

async fn waits(node: &Node, request: SpawnRequest) -> (SessionId, usize) {
    match node.sessions.spawn_or_wait(request).await.expect("asked") {
        Spawned::Waiting { id, position } => (id, position),
        Spawned::Started(record) => panic!("{} did not wait", record.name),
    }
}

async fn starts(node: &Node, request: SpawnRequest) -> SessionId {
    match node.sessions.spawn_or_wait(request).await.expect("asked") {
        Spawned::Started(record) => record.id,
        Spawned::Waiting { position, .. } => panic!("waits at {position}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_house_lets_wait_and_starts_in_order_of_priority() {
    let world = World::new();
    let node = world.node_with(one_slot(&world)).await;
    let first = starts(&node, task("first", "sleep:60000", Priority::Medium)).await;
    let refused = node.sessions.spawn(task("no", "x", Priority::Medium)).await;
    assert!(matches!(refused, Err(SessionError::Limit { max: 1, .. })), "{refused:?}");

    let (low, at) = waits(&node, task("low", "from-low", Priority::Low)).await;
    assert_eq!(at, 1);
    let (high, at) = waits(&node, task("high", "sleep:60000", Priority::High)).await;
    assert_eq!(at, 1, "goes before the low one");
    let twice = node.sessions.spawn_or_wait(task("low", "again", Priority::Low)).await;
    assert!(matches!(twice, Err(SessionError::NameInUse(_))), "{twice:?}");
    let (unwanted, _) = waits(&node, task("unwanted", "never", Priority::Low)).await;
    assert_eq!(node.sessions.cancel_waiting(unwanted).await.expect("waits").request.name, "unwanted");
    assert!(matches!(node.sessions.cancel_waiting(unwanted).await, Err(SessionError::NotWaiting(_))));
    // A person's session has room of its own.
    starts(&node, task("ann", "sleep:60000", Priority::Human)).await;
    assert_eq!(node.sessions.capacity().waiting, 2);

    node.sessions.kill(&first.to_string(), true).await.expect("kill");
    until("the high one to start", || async { node.sessions.get(high) }).await;
    assert!(node.sessions.get(low).is_none());
    node.sessions.kill(&high.to_string(), true).await.expect("kill");
    let ended =
        until("the low one to end", || async { node.sessions.get(low).filter(|r| r.status.is_final()) })
            .await;
    assert_eq!(ended.status, Status::Completed);
    assert!(transcript(&world, &low.to_string()).contains("from-low"));
    assert!(node.sessions.waiting().is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_started_once_by_the_next_node() {
    let world = World::new();
    let node = world.node_with(one_slot(&world)).await;
    starts(&node, task("first", "sleep:60000", Priority::Medium)).await;
    let (id, _) = waits(&node, task("later", "from-later", Priority::Medium)).await;
    node.stop().await;

    let node = world.node_with(one_slot(&world)).await;
    assert_eq!(node.sessions.waiting().iter().map(|w| w.id).collect::<Vec<_>>(), [id]);
    node.sessions.kill("first", true).await.expect("kill");
    until("the end", || async { node.sessions.get(id).filter(|r| r.status.is_final()) }).await;
    until("an empty queue", || async { node.sessions.waiting().is_empty().then_some(()) }).await;
    node.stop().await;
    let node = world.node_with(one_slot(&world)).await;
    assert!(node.sessions.waiting().is_empty());
    assert_eq!(transcript(&world, &id.to_string()).matches("from-later").count(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_goes_on_in_a_terminal_and_back_and_keeps_its_slot() {
    let world = World::new();
    let node = world.node_with(one_slot(&world)).await;
    let piped = node.sessions.spawn(conversation(Transport::Stdio)).await.expect("spawn");
    node.sessions.send_input("talk", "first sleep:700", false, None).await.expect("send");
    node.session(piped.id, "a turn", |r| r.activity == Activity::Busy).await;
    let (waiting, _) = waits(&node, task("hungry", "x", Priority::High)).await;

    let shown = node.sessions.switch_transport("talk", Transport::Tmux).await.expect("switch");
    assert_eq!((shown.transport, shown.resume_of), (Transport::Tmux, Some(piped.id)));
    assert_eq!(shown.conversation, piped.conversation);
    assert_eq!(shown.runtime_session_id, Some(piped.id.to_string()));
    let before = node.sessions.get(piped.id).expect("record");
    assert_eq!((before.status, before.telemetry.turns), (Status::Completed, 1), "the turn came to its end");
    node.sessions.send_input("talk", "second", false, None).await.expect("send");
    node.row(shown.id, "second", InputState::Injected).await;
    node.session(shown.id, "idle", |r| r.activity == Activity::Idle && r.telemetry.turns == 1).await;

    let same = node.sessions.switch_transport("talk", Transport::Tmux).await.expect("nothing to do");
    assert_eq!(same.id, shown.id);
    let back = node.sessions.switch_transport("talk", Transport::Stdio).await.expect("switch");
    node.sessions.send_input("talk", "third", false, None).await.expect("send");
    node.row(back.id, "third", InputState::Injected).await;
    let said = transcript(&world, &piped.id.to_string());
    for text in ["first", "second", "third"] {
        assert_eq!(said.matches(text).count(), 1, "{said}");
    }
    assert!(node.sessions.get(waiting).is_none(), "the slot was kept");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_said_nothing_yet_moves_as_well() {
    let world = World::new();
    let node = world.node().await;
    let piped = node.sessions.spawn(conversation(Transport::Stdio)).await.expect("spawn");
    assert!(matches!(node.sessions.may_refresh("talk"), Err(SessionError::NoTranscript)));
    let shown = node.sessions.switch_transport("talk", Transport::Tmux).await.expect("switch");
    assert_ne!(shown.id, piped.id);
    node.session(shown.id, "readiness", |r| r.status == Status::Running).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waited_for_six_hours_waits_for_a_word_of_the_owner() {
    let world = World::new();
    let config = SessionsConfig {
        transport: [(SessionKind::Conversation, Transport::Stdio)].into(),
        ..world.config()
    };
    let node = world.node_with(config.clone()).await;
    let long_ago = now_ms() - 7 * 3_600_000;
    let mut ulids = Vec::new();
    for text in ["old-wanted", "old-unwanted"] {
        let input = SessionInput {
            inbox_key: format!("local:{text}"),
            conversation: "local:talk".parse().expect("key"),
            kind: InputKind::User,
            body: text.into(),
            tag: "dashboard:local".into(),
            steer: false,
        };
        ulids.push(node.journal.enqueue(input, long_ago).await.expect("row").ulid.to_string());
    }
    node.stop().await;

    let node = world.node_with(config).await;
    let asked = world.notices.notices();
    assert!(asked.iter().any(|n| n.notice.text.starts_with("2 messages waited")), "{asked:?}");
    let first = node.sessions.spawn(conversation(Transport::Stdio)).await.expect("spawn");
    node.sessions.send_input("talk", "young", false, None).await.expect("send");
    node.row(first.id, "young", InputState::Injected).await;
    node.session(first.id, "idle", |r| r.activity == Activity::Idle && r.telemetry.turns == 1).await;
    assert!(!transcript(&world, &first.id.to_string()).contains("old-"));

    node.sessions.decide_overdue(&ulids[1], OverdueDecision::Drop).await.expect("dropped");
    let again = node.sessions.decide_overdue(&ulids[1], OverdueDecision::Run).await;
    assert!(matches!(again, Err(SessionError::NotOverdue(_))), "{again:?}");
    // Without a living session, the wanted one gets the next.
    node.sessions.kill("talk", true).await.expect("kill");
    node.sessions.decide_overdue(&ulids[0], OverdueDecision::Run).await.expect("released");
    let next = until("the next session", || async {
        node.sessions.list().into_iter().find(|r| r.resume_of == Some(first.id))
    })
    .await;
    node.row(next.id, "old-wanted", InputState::Injected).await;
    let said = transcript(&world, &first.id.to_string());
    assert_eq!((said.matches("young").count(), said.matches("old-wanted").count()), (1, 1), "{said}");
    assert!(!said.contains("old-unwanted"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_a_person_takes_over_is_not_done_before_it_is_released() {
    let world = World::new();
    let node = world.node().await;
    let piped = starts(&node, task("mover", "first-of-two sleep:1500", Priority::Medium)).await;
    node.session(piped, "a turn", |r| r.activity == Activity::Busy).await;
    node.sessions.send_input("mover", "second-of-two", false, None).await.expect("send");
    let shown = node.sessions.switch_transport("mover", Transport::Tmux).await.expect("switch");
    assert_eq!(shown.resume_of, Some(piped));
    node.session(shown.id, "the turn", |r| r.activity == Activity::Idle && r.telemetry.turns == 1).await;
    let back = node.sessions.switch_transport("mover", Transport::Stdio).await.expect("nobody ended it");
    node.sessions.send_input("mover", "third-of-three", false, None).await.expect("send");
    let ended = node.session(back.id, "the end", |r| r.status.is_final()).await;
    assert_eq!((ended.status, ended.end_reason.as_deref()), (Status::Completed, Some("done")));
    let said = transcript(&world, &piped.to_string());
    for text in ["first-of-two", "second-of-two", "third-of-three"] {
        assert_eq!(said.matches(text).count(), 1, "{said}");
    }
    until("every input to be settled", || async {
        let inbox = node.sessions.inbox(back.id, None).await.expect("inbox");
        inbox.iter().all(|row| row.state == InputState::Acked && row.attempts == 1).then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_is_brought_to_its_end_without_whoever_asked_for_it() {
    let world = World::new();
    let node = world.node().await;
    let piped = node.sessions.spawn(conversation(Transport::Stdio)).await.expect("spawn");
    node.session(piped.id, "readiness", |r| r.activity == Activity::Idle).await;
    let impatient = {
        let sessions = node.sessions.clone();
        tokio::spawn(async move { sessions.switch_transport("talk", Transport::Tmux).await })
    };
    node.session(piped.id, "the end to begin", |r| r.status != Status::Running).await;
    impatient.abort();
    let shown = until("the successor", || async {
        node.sessions.list().into_iter().find(|r| r.transport == Transport::Tmux)
    })
    .await;
    node.session(shown.id, "readiness", |r| r.status == Status::Running).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_memory_a_task_waits_and_a_person_does_not() {
    let world = World::new();
    let memory = |available: u32| {
        let text = format!("MemTotal: 1000 kB\nMemAvailable: {available} kB\n");
        std::fs::write(world.dir.path().join("meminfo"), text).expect("write");
    };
    memory(150);
    let node = world.node().await;
    let (waiting, _) = waits(&node, task("hungry", "hello", Priority::High)).await;
    let refused = node.sessions.spawn(task("strict", "x", Priority::Medium)).await.expect_err("no memory");
    assert_eq!(refused.code(), "memory_pressure");
    starts(&node, task("personal", "hello", Priority::Human)).await;
    assert!(node.sessions.get(waiting).is_none());
    memory(160);
    node.session(waiting, "its start", |r| r.status.is_final()).await;
    node.stop().await;
}
