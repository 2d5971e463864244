//! The engine on a real NATS server on loopback, for tests: the same operations as on the log, one group at a time.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use instar_durable::{Database, Durability, OpenOptions};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::engine::{Engine, EngineError, Options};
use super::lanes::{self, FromEngine};
use super::layout::{self, Rules};
use crate::store::peers::MIGRATIONS;
use crate::store::{
    BodyCipher, Peers, QueueAnswer, QueueOp, QueueRules, QueueTotals, StoreAnswer, StoreFailed, registry,
};

/// One `nats-server` with JetStream; it ends with the value.
pub(crate) struct Server {
    child: Child,
    dir: TempDir,
}

/// A server before 2.10, which `replicated` must refuse: Debian's package.
fn old_program() -> String {
    std::env::var("NATS_SERVER_OLD").unwrap_or_else(|_| "/usr/sbin/nats-server".to_owned())
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::of("nats-server")
    }

    fn of(program: &str) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let child = Command::new(program)
            .args(["--addr", "127.0.0.1", "--port", "-1", "--jetstream", "--ports_file_dir"])
            .arg(dir.path())
            .arg("--store_dir")
            .arg(dir.path().join("js"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server starts; tests/run installs it");
        Self { child, dir }
    }

    pub(crate) fn url(&self) -> String {
        let path = self.dir.path().join(format!("nats-server_{}.ports", self.child.id()));
        let begun = Instant::now();
        loop {
            if let Some(url) = ports(&path) {
                return url;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "nats-server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn ports(path: &Path) -> Option<String> {
    let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    ports["nats"][0].as_str().map(str::to_owned)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An engine with its task.
pub(crate) struct Keeper {
    runtime: Runtime,
    server: Server,
    rules: QueueRules,
    running: Option<Running>,
    next: u64,
}

struct Running {
    engine: Arc<Engine>,
    groups: mpsc::Sender<Vec<(u64, QueueOp)>>,
    answers: mpsc::Receiver<FromEngine>,
    task: tokio::task::JoinHandle<()>,
}

pub(crate) fn options(server: &Server) -> Options {
    Options { servers: vec![server.url()], allow_weak: true, ..Options::default() }
}

pub(crate) async fn connect(
    options: &Options,
    dir: &Path,
    rules: &QueueRules,
    told: mpsc::Sender<FromEngine>,
) -> Result<Arc<Engine>, EngineError> {
    let connection = Connection::open(dir.join("peers.db")).expect("database");
    let _ = connection.execute_batch(MIGRATIONS[0].sql);
    let peers = Peers::load(connection).expect("tables");
    let path = dir.join("registry.db");
    let registry = Database::open(OpenOptions::new(path, registry::MIGRATIONS, Durability::Normal));
    let tables = (peers, registry.expect("registry"));
    let layout = Rules { replicas: 1, per_pair: i64::from(rules.queue.per_pair), stream_bytes: 8 << 20 };
    Engine::connect(options, layout, rules.queue.clone(), BodyCipher::new(&[3; 32]), tables, told).await
}

impl Keeper {
    pub(crate) fn new(rules: QueueRules) -> Self {
        Self::on(Server::start(), rules)
    }

    fn on(server: Server, rules: QueueRules) -> Self {
        let runtime = Runtime::new().expect("runtime");
        let mut keeper = Self { runtime, server, rules, running: None, next: 0 };
        keeper.begin();
        keeper
    }

    fn begin(&mut self) {
        let (told, answers) = mpsc::channel(4096);
        let options = options(&self.server);
        let connected = connect(&options, self.server.dir.path(), &self.rules, told);
        let engine = self.runtime.block_on(connected).expect("connects");
        let (groups, receiver) = mpsc::channel(64);
        let task = self.runtime.spawn(lanes::run(Arc::clone(&engine), receiver));
        self.running = Some(Running { engine, groups, answers, task });
    }

    /// The relay ends and starts again, with other rules.
    pub(crate) fn restart(&mut self, rules: QueueRules) {
        if let Some(Running { groups, answers, task, .. }) = self.running.take() {
            drop((groups, answers));
            self.runtime.block_on(task).expect("ends");
        }
        self.rules = rules;
        self.begin();
    }

    pub(crate) fn apply(&mut self, ops: &[QueueOp]) -> Vec<Result<QueueAnswer, StoreFailed>> {
        let running = self.running.as_mut().expect("running");
        let first = self.next;
        self.next += ops.len() as u64;
        let group = (first..).zip(ops.iter().cloned()).collect();
        let mut done: Vec<Option<Result<QueueAnswer, StoreFailed>>> = vec![None; ops.len()];
        self.runtime.block_on(async {
            running.groups.send(group).await.expect("runs");
            while done.iter().any(Option::is_none) {
                let FromEngine::Answers(answers) = running.answers.recv().await.expect("runs") else {
                    continue;
                };
                for (ticket, answer) in answers {
                    let answer = answer.map(|answer| match answer {
                        StoreAnswer::Queue(answer) => answer,
                        StoreAnswer::Registry(_) => panic!("not of the queue"),
                    });
                    done[(ticket - first) as usize] = Some(answer);
                }
            }
        });
        done.into_iter().flatten().collect()
    }

    pub(crate) fn totals(&self) -> QueueTotals {
        let running = self.running.as_ref().expect("running");
        self.runtime.block_on(running.engine.totals()).expect("answers")
    }

    /// Everything is gone, the server stays.
    pub(crate) fn empty(&mut self) {
        let running = self.running.as_ref().expect("running");
        self.runtime.block_on(async {
            for shard in 0..layout::SHARDS {
                // A purged stream still knows what it has had.
                let stream = layout::mail_stream(shard);
                running.engine.context.delete_stream(stream).await.expect("deletes");
            }
        });
    }
}

#[test]
fn an_engine_that_is_too_weak_is_refused_unless_that_is_allowed() {
    for (server, named) in [(Server::start(), "1 copies"), (Server::of(&old_program()), "NATS 2.9")] {
        let runtime = Runtime::new().expect("runtime");
        let dir = tempfile::tempdir().expect("directory");
        let rules = QueueRules { queue: crate::RelayConfig::default().queue };
        let strict = Options { allow_weak: false, ..options(&server) };
        let (told, _answers) = mpsc::channel(8);
        let refusal = runtime.block_on(connect(&strict, dir.path(), &rules, told.clone()));
        let Err(refusal @ EngineError::Weak { .. }) = refusal else { panic!("{named} is not enough") };
        let text = refusal.to_string();
        assert!(text.contains(named) && text.contains("cluster.allow_weak"), "{text}");
        let weak = runtime.block_on(connect(&options(&server), dir.path(), &rules, told)).expect("allowed");
        assert!(weak.is_weak());
    }
}

/// The text is all that tells a full pair from a full disk; it is pinned against a current and an old server.
#[test]
fn a_full_pair_and_a_full_stream_are_told_apart() {
    told_apart(Server::start());
    told_apart(Server::of(&old_program()));
}

fn told_apart(server: Server) {
    use crate::store::{Accept, Accepted, QueueFull};
    let mut rules = QueueRules { queue: crate::RelayConfig::default().queue };
    (rules.queue.per_pair, rules.queue.stranger_each, rules.queue.strangers_bytes) = (3, 500, u64::MAX);
    rules.queue.unknown_recipient = 500;
    let mut keeper = Keeper::on(server, rules.clone());
    let accept = |n: u32, to: u8, size: usize| {
        QueueOp::Accept(Accept {
            seq: 0,
            sender: threadline::Fingerprint::from_bytes([1; 16]),
            recipient: threadline::Fingerprint::from_bytes([to; 16]),
            id: format!("m{n}").parse().expect("id"),
            body: "x".repeat(size).as_bytes().into(),
            now_ms: 1,
            expires_ms: i64::MAX,
            control: false,
        })
    };
    for n in 0..3 {
        let stored = keeper.apply(&[accept(n, 2, 9)]).remove(0);
        assert!(matches!(stored, Ok(QueueAnswer::Accepted(Accepted::Stored { .. }))), "{stored:?}");
    }
    let before = keeper.apply(&[accept(9, 2, 9)]).remove(0);
    assert!(matches!(before, Ok(QueueAnswer::Accepted(Accepted::Full(QueueFull::Sender)))), "{before:?}");
    // A relay that counts less leaves it to the stream.
    let engine = Arc::clone(&keeper.running.as_ref().expect("running").engine);
    let QueueOp::Accept(message) = accept(9, 2, 9) else { panic!("accept") };
    let letter = super::Letter::of(&message, true);
    let full = keeper.runtime.block_on(engine.publish(&letter, &message.body));
    assert!(matches!(full, Ok(super::engine::Published::PairFull)));
    drop(engine);
    rules.queue.per_pair = 100;
    rules.queue.bytes_per_recipient = u64::MAX >> 1;
    keeper.restart(rules);
    let mut refused = 0;
    for n in 0..60 {
        match keeper.apply(&[accept(n, 16 + (n % 8) as u8, 250_000)]).remove(0) {
            Ok(QueueAnswer::Accepted(Accepted::Stored { .. })) => {}
            Err(StoreFailed) => refused += 1,
            other => panic!("a full stream is no verdict on the sender: {other:?}"),
        }
    }
    assert!(refused > 0, "8 MiB are full after that");
}
