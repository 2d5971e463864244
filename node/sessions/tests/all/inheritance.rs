//! What sessions get from the process that starts the node, and what a test leaves behind.

use std::io::PipeReader;

use instar_sessions::record::{Status, Transport};
use instar_sessions::{SpawnRequest, process};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::support::{World, conversation};

/// Whether a process holds the pipe.
fn holds(pid: i32, pipe: &PipeReader) -> bool {
    let wanted = format!("pipe:[{}]", rustix::fs::fstat(pipe).expect("stat").st_ino);
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("open files of a process");
    open.flatten()
        .filter_map(|file| std::fs::read_link(file.path()).ok())
        .any(|link| link.to_string_lossy() == wanted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_holds_files_of_whoever_started_the_node() {
    let (foreign, end) = std::io::pipe().expect("pipe");
    for inherited in [fcntl_setfd(&foreign, FdFlags::empty()), fcntl_setfd(&end, FdFlags::empty())] {
        inherited.expect("flags");
    }
    let world = World::new();
    let node = world.node().await;
    let piped = node.sessions.spawn(conversation(Transport::Stdio)).await.expect("spawn");
    let shown = SpawnRequest {
        conversation: Some("local:terminal".parse().expect("key")),
        ..conversation(Transport::Tmux)
    };
    let shown = node.sessions.spawn(shown).await.expect("spawn");
    for id in [piped.id, shown.id] {
        node.session(id, "readiness", |r| r.status == Status::Running).await;
    }
    let started = world.with_supervisors();
    assert!(started.len() >= 5, "two runtimes, two supervisors, a tmux server: {started:?}");
    for pid in started {
        assert!(!holds(pid, &foreign), "{} holds a foreign pipe", process::command_line(pid));
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_outlives_a_test() {
    let world = World::new();
    let node = world.node().await;
    let mut started = Vec::new();
    for (key, transport) in [("local:one", Transport::Stdio), ("local:two", Transport::Tmux)] {
        let request =
            SpawnRequest { conversation: Some(key.parse().expect("key")), ..conversation(transport) };
        started.push(node.sessions.spawn(request).await.expect("spawn").id);
    }
    for id in started {
        node.session(id, "readiness", |r| r.status == Status::Running).await;
    }
    let processes = world.with_supervisors();
    drop((node, world));
    for pid in processes {
        assert!(!process::is_alive(pid, None), "{}", process::command_line(pid));
    }
}
