//! A node without a network: the session room, its journal, and a socket that takes hook reports.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use instar_hooks::HookReport;
use instar_sessions::memory::MemoryFiles;
use instar_sessions::record::{SessionKind, SessionRecord, Transport};
use instar_sessions::{Sessions, SessionsConfig, SessionsDeps};
use instar_state::events::EventBus;
use instar_state::ids::SessionId;
use instar_state::journal::{InboxFilter, InboxRow, Journal};
use instar_state::notices::NoticeBoard;
use instar_state::paths::AgentPaths;
use instar_state::ports::InputState;
use instar_state::time::now_ms;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) paths: AgentPaths,
    pub(crate) notices: Arc<NoticeBoard>,
    /// Ends what is left of the world, however the test ends.
    guard: Child,
}

pub(crate) struct Node {
    pub(crate) sessions: Sessions,
    pub(crate) journal: Journal,
    cancel: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ins").tempdir().expect("dir");
        let project = dir.path().join("p");
        std::fs::create_dir_all(project.join(".instar/state")).expect("project");
        std::fs::create_dir_all(project.join(".instar/logs")).expect("logs");
        let paths = AgentPaths::new(project.canonicalize().expect("path"));
        paths.prepare_run().expect("run");
        let claude = dir.path().join("claude");
        std::fs::write(&claude, format!("#!/bin/sh\nexec {} \"$@\"\n", puppet().display())).expect("write");
        std::fs::set_permissions(&claude, std::fs::Permissions::from_mode(0o755)).expect("mode");
        let guard = std::process::Command::new(puppet())
            .arg("guard")
            .arg(paths.state())
            .arg(paths.tmux_server())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("guard");
        Self { dir, paths, notices: Arc::new(NoticeBoard::new(EventBus::default())), guard }
    }

    pub(crate) fn config(&self) -> SessionsConfig {
        SessionsConfig {
            claude_path: Some(self.dir.path().join("claude")),
            allow_root: true,
            ..SessionsConfig::default()
        }
    }

    pub(crate) async fn node(&self) -> Node {
        self.node_with(self.config()).await
    }

    pub(crate) async fn node_with(&self, config: SessionsConfig) -> Node {
        let journal = Journal::open(&self.paths.messaging_db(), &*self.notices, now_ms()).expect("journal");
        let environment = [
            ("PATH", std::env::var("PATH").expect("PATH")),
            ("HOME", self.dir.path().display().to_string()),
            ("TERM", "xterm-256color".to_owned()),
            ("DATABASE_URL", "postgres://secret".to_owned()),
        ];
        let sessions = Sessions::open(SessionsDeps {
            paths: self.paths.clone(),
            home: self.dir.path().to_owned(),
            agent_name: "tester".into(),
            agent_id: "0".repeat(32),
            program: puppet(),
            server_url: "http://127.0.0.1:1".into(),
            environment: environment.map(|(k, v)| (k.to_owned(), v)).into(),
            hook_program: "/nowhere/instar-hook".into(),
            config,
            journal: journal.clone(),
            notices: Arc::clone(&self.notices) as _,
            events: EventBus::default(),
            memory: MemoryFiles { meminfo: self.dir.path().join("meminfo"), cgroup: self.dir.path().into() },
        })
        .expect("open");
        sessions.recover().await.expect("recover");
        let cancel = CancellationToken::new();
        let running = tokio::spawn({
            let (sessions, cancel) = (sessions.clone(), cancel.clone());
            async move { sessions.run(cancel).await }
        });
        let hooks = tokio::spawn(take_reports(self.paths.socket(), sessions.clone()));
        Node { sessions, journal, cancel, tasks: vec![running, hooks] }
    }

    /// Processes that were started for this world and still run.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let state = self.paths.state().display().to_string();
        let ours = |pid: &i32| {
            instar_sessions::process::environment_value(*pid, "INSTAR_STATE_DIR").as_deref() == Some(&state)
        };
        let alive = |pid: &i32| instar_sessions::process::is_alive(*pid, None);
        instar_sessions::process::snapshot().into_keys().filter(ours).filter(alive).collect()
    }

    /// Sessions, their supervisors and the tmux server.
    pub(crate) fn with_supervisors(&self) -> Vec<i32> {
        let state = self.paths.state().display().to_string();
        let guard = i32::try_from(self.guard.id()).expect("pid");
        let others = instar_sessions::process::snapshot()
            .into_keys()
            .filter(|pid| *pid != guard && instar_sessions::process::command_line(*pid).contains(&state));
        others.chain(self.processes()).collect()
    }

    pub(crate) fn tmux(&self, args: &[&str]) -> String {
        let output = std::process::Command::new("tmux")
            .args(["-L", &self.paths.tmux_server()])
            .args(args)
            .output()
            .expect("tmux");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

impl Drop for Node {
    /// A test that failed must not go on starting sessions.
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(hooks) = self.tasks.get(1) {
            hooks.abort();
        }
    }
}

impl Node {
    /// Stops the node's tasks as a killed node would: nothing is told to the sessions.
    pub(crate) async fn stop(mut self) {
        self.cancel.cancel();
        self.tasks[1].abort();
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
    }

    pub(crate) async fn session(
        &self,
        id: SessionId,
        what: &str,
        holds: impl Fn(&SessionRecord) -> bool,
    ) -> SessionRecord {
        until(what, || async { self.sessions.get(id).filter(&holds) }).await
    }

    pub(crate) async fn row(&self, id: SessionId, body: &str, state: InputState) -> InboxRow {
        until(&format!("{body} to be {state:?}"), || async {
            let filter = InboxFilter { limit: 100, ..InboxFilter::default() };
            let rows = self.journal.list(filter).await.expect("list");
            rows.into_iter().find(|r| {
                r.input.body.contains(body)
                    && r.state == state
                    && (r.session == Some(id) || state == InputState::Queued)
            })
        })
        .await
    }
}

/// Waits for something with a deadline of 60 s.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited 60 s for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn conversation(transport: Transport) -> instar_sessions::SpawnRequest {
    instar_sessions::SpawnRequest {
        conversation: Some("local:talk".parse().expect("key")),
        transport: Some(transport),
        ..instar_sessions::SpawnRequest::new("talk", SessionKind::Conversation)
    }
}

/// The transcript of a session of a stand-in runtime.
pub(crate) fn transcript(world: &World, runtime_session_id: &str) -> String {
    let dir = instar_sessions::transcript::project_dir_name(world.paths.project());
    let path =
        world.dir.path().join(".claude/projects").join(dir).join(format!("{runtime_session_id}.jsonl"));
    std::fs::read_to_string(path).unwrap_or_default()
}

fn puppet() -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    let target = test.ancestors().nth(2).expect("target directory");
    let path = target.join("examples/puppet");
    assert!(
        path.exists(),
        "{} is missing: build with `cargo build -p instar-sessions --examples`",
        path.display()
    );
    path
}

async fn take_reports(socket: PathBuf, sessions: Sessions) {
    let _ = std::fs::remove_file(&socket);
    let listener = tokio::net::UnixListener::bind(Path::new(&socket)).expect("bind");
    while let Ok((mut stream, _)) = listener.accept().await {
        let sessions = sessions.clone();
        tokio::spawn(async move {
            let mut text = Vec::new();
            let body = loop {
                let mut chunk = [0; 4096];
                let Ok(n @ 1..) = stream.read(&mut chunk).await else { return };
                text.extend_from_slice(&chunk[..n]);
                if let Some(body) = body(&text) {
                    break body;
                }
            };
            let report: HookReport = serde_json::from_slice(&body).expect("a report");
            let id = report.instar_session_id.as_deref().and_then(|id| id.parse().ok());
            if let Some(id) = id {
                sessions.hook_event(id, report).await;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        });
    }
}

fn body(text: &[u8]) -> Option<Vec<u8>> {
    let head = text.windows(4).position(|w| w == b"\r\n\r\n")?;
    let length = String::from_utf8_lossy(&text[..head]).lines().find_map(|l| {
        l.to_ascii_lowercase().strip_prefix("content-length:").and_then(|n| n.trim().parse::<usize>().ok())
    })?;
    text.get(head + 4..head + 4 + length).map(<[u8]>::to_vec)
}
