//! What an idle session costs.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use threadline::identity::Identity;

use super::client::{Client, PATIENCE};
use super::process::{Relay, command};

const SESSIONS: u32 = 1_000;
/// Budget in bytes: 8 KiB in optimised code, which `tests/bench` measures; the futures of this build are larger.
const BUDGET: u64 = 9 << 10;
/// Bytes of it that stay when it is closed: the tables of the core keep their size, the databases their pages.
const KEPT: u64 = 3 << 10;

#[tokio::test]
async fn an_idle_session_stays_within_its_budget() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = Relay::spawn(command(dir.path()).args(["--set", "durability=process"]));
    let at = relay.at;
    let open = |from: u32, to: u32| async move {
        let logins = futures::stream::iter(from..to).map(|n| {
            let mut seed = [0; 32];
            seed[..4].copy_from_slice(&n.to_le_bytes());
            Client::log_in_with(at, Identity::from_seed(&seed))
        });
        logins.buffer_unordered(32).collect::<Vec<_>>().await
    };
    let first = open(1, 200).await;
    let before = relay.resident();
    let second = open(1_000, 1_000 + SESSIONS).await;
    let each = relay.resident().saturating_sub(before) / u64::from(SESSIONS);
    assert!(each <= BUDGET, "{each} bytes per session");
    println!("{each} bytes per idle session");
    let full = relay.resident();
    drop((first, second));
    // The rest within seconds.
    let (begun, wanted) = (Instant::now(), before + u64::from(SESSIONS) * KEPT);
    while relay.resident() > wanted {
        assert!(begun.elapsed() < PATIENCE, "{} of {full} bytes are kept", relay.resident());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The allocator is built with options of its own; without them it would keep what is free until somebody allocates.
#[test]
fn what_is_free_goes_back_by_a_thread_of_its_own() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = Relay::start(dir.path());
    let tasks = std::fs::read_dir(format!("/proc/{}/task", relay.id())).expect("tasks");
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let names: Vec<String> = names.collect();
    assert!(names.iter().any(|name| name.starts_with("jemalloc_bg")), "{names:?}");
}
