//! A child of this very test binary writes configuration, registry and journal until it is killed.

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use instar_state::config::{ConfigError, ConfigFile, set_at};
use instar_state::events::EventBus;
use instar_state::journal::Journal;
use instar_state::notices::NoticeBoard;
use instar_state::paths::{AccountPaths, AgentPaths};
use instar_state::ports::{InputKind, SessionInput};
use instar_state::process::ProcessRef;
use instar_state::registry::{AgentEntry, AgentStatus, Registry, RegistryError, parse};
use instar_state::secrets::SecretStore;
use instar_state::time::{now_ms, rfc3339};
use serde_json::json;

const DIR: &str = "INSTAR_KILL_TEST_DIR";
/// How many kills a run makes; more with `INSTAR_KILLS=1000`.
const KILLS: u32 = 40;

#[test]
fn nothing_is_torn_and_nothing_confirmed_is_lost() {
    let dir = tempfile::tempdir().expect("dir");
    let paths = AgentPaths::new(dir.path());
    std::fs::create_dir_all(paths.data()).expect("dir");
    std::fs::write(paths.config(), r#"{"version": 2, "mine": {"kept": true}}"#).expect("config");
    let kills = std::env::var("INSTAR_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let mut confirmed: Vec<String> = Vec::new();
    for round in 0..kills {
        confirmed.extend(one_life(dir.path(), round));
        check(&paths, &AccountPaths::new(dir.path()), &confirmed);
    }
    assert!(confirmed.len() >= kills as usize, "every life confirms at least once");
}

/// Lets the child write, kills it at a random moment, and returns what it had confirmed.
fn one_life(dir: &Path, round: u32) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().expect("test binary"))
        .args([
            "--exact",
            "kill::child_that_writes_until_it_is_killed",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIR, dir)
        .env("INSTAR_KILL_TEST_ROUND", round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("child");
    let mut lines = BufReader::new(child.stdout.take().expect("pipe")).lines();
    let confirmed = |line: String| line.strip_prefix("confirmed ").map(str::to_owned);
    let mut done: Vec<String> =
        lines.by_ref().map_while(Result::ok).find_map(confirmed).into_iter().collect();
    assert!(!done.is_empty(), "the child ended by itself");
    // The moment of death is what this test varies, so it is a pause and not a wait for an event.
    std::thread::sleep(Duration::from_micros(rand::random_range(0..60_000)));
    child.kill().expect("kill");
    done.extend(lines.map_while(Result::ok).filter_map(confirmed));
    child.wait().expect("wait");
    done
}

fn check(paths: &AgentPaths, account: &AccountPaths, confirmed: &[String]) {
    let config = ConfigFile::new(paths.config()).load().expect("config.json is whole");
    assert_eq!(config.root["mine"], json!({"kept": true}));
    let registry = std::fs::read(account.registry()).expect("registry");
    assert_eq!(parse(&registry).expect("registry.json is whole").len(), 1);
    SecretStore::new(paths, "ann").load().expect("the secret store opens");

    let board = NoticeBoard::new(EventBus::default());
    let journal = Journal::open(&paths.messaging_db(), &board, now_ms()).expect("journal");
    assert!(board.notices().is_empty(), "{:?}", board.notices());
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    runtime.block_on(async {
        for key in confirmed.iter().rev().take(50) {
            assert!(journal.by_key(key).await.expect("read").is_some(), "{key} was confirmed and is gone");
        }
        let counts = journal.counts(None).await.expect("counts");
        assert!(counts.queued >= confirmed.len() as u64);
    });
    journal.close();
    let leftovers = |dir: PathBuf| {
        std::fs::read_dir(dir)
            .expect("dir")
            .flatten()
            .any(|e| e.file_name().to_string_lossy().contains("corrupt"))
    };
    assert!(!leftovers(paths.data()) && !leftovers(account.root()));
}

#[test]
#[ignore = "started by nothing_is_torn_and_nothing_confirmed_is_lost"]
fn child_that_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let round = std::env::var("INSTAR_KILL_TEST_ROUND").expect("round");
    let paths = AgentPaths::new(&dir);
    let registry = Registry::new(AccountPaths::new(&dir));
    let secrets = SecretStore::new(&paths, "ann");
    let config = ConfigFile::new(paths.config());
    let board = NoticeBoard::new(EventBus::default());
    let journal = Journal::open(&paths.messaging_db(), &board, now_ms()).expect("journal");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    for n in 0_u64.. {
        config
            .edit(|root| set_at(root, "logging.keep", json!(n % 1000)).map(drop))
            .or_else(|e| if matches!(e, ConfigError::Locked { .. }) { Ok(()) } else { Err(e) })
            .expect("config");
        registry
            .edit(now_ms(), |entries| {
                entries.put(entry(&paths));
                entries.heartbeat(paths.project(), ProcessRef::current(), &n.to_string(), now_ms());
                Ok::<_, RegistryError>(())
            })
            .expect("registry");
        secrets.set([("counter".to_owned(), n.to_string().into())]).expect("secrets");
        let key = format!("test:{round}-{n}");
        let input = SessionInput {
            inbox_key: key.clone(),
            conversation: "local:test".parse().expect("key"),
            kind: InputKind::System,
            body: "x".repeat(500),
            tag: "system:test".into(),
            steer: false,
        };
        runtime.block_on(journal.enqueue(input, now_ms())).expect("enqueue");
        let mut out = std::io::stdout().lock();
        writeln!(out, "confirmed {key}").and_then(|()| out.flush()).expect("stdout");
    }
}

fn entry(paths: &AgentPaths) -> AgentEntry {
    AgentEntry {
        name: "ann".into(),
        kind: "project-bound".into(),
        path: paths.project().to_owned(),
        port: 4040,
        pid: None,
        pid_start_time: None,
        status: AgentStatus::Stopped,
        created_at: rfc3339(0),
        last_heartbeat: None,
        instar_version: None,
        socket: paths.socket(),
        other: serde_json::Map::new(),
    }
}
