//! One node between a relay and sessions that the test controls.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use instar_mesh::{ApprovalStatus, Decision, Mesh, MeshConfig, MeshDeps, RelaySwitch};
use instar_outbound::{Channel, ChannelId, Pel, PelConfig, SecretScan, SendGateway, StageId};
use instar_state::BoxFuture;
use instar_state::config::{Config, Overrides};
use instar_state::events::EventBus;
use instar_state::notices::NoticeBoard;
use instar_state::paths::{AccountPaths, AgentPaths};
use serde_json::{Value, json};
use threadline::identity::{Identity, LoginNonce, PublicIdentity};
use threadline::service::{Caller, ServiceError, SessionCaller, Threadline, Tool, ToolCall};
use threadline::v1::envelope::{Content, Envelope, Header, clear, seal};
use threadline::v1::frames::{Ack, AckStatus, AuthOk, ClientFrame, ServerFrame};
use threadline::v2::session::Protocol;
use threadline::{Fingerprint, ThreadKey};
use threadline_net::sealed::RelaySetting;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};
use tokio_util::sync::CancellationToken;

use super::sessions::Sessions;

pub const LIMIT: Duration = Duration::from_secs(20);

pub struct Node {
    pub mesh: Arc<Mesh>,
    pub sessions: Arc<Sessions>,
    pub notices: Arc<NoticeBoard>,
    pub dir: tempfile::TempDir,
    listener: TcpListener,
    url: String,
    cancel: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// Writes its position into a file.
struct FileSwitch(PathBuf);

impl RelaySwitch for FileSwitch {
    fn set(&self, enabled: bool, _: Option<String>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { std::fs::write(&self.0, enabled.to_string()).map_err(|e| e.to_string()) })
    }
}

pub fn config(url: &str) -> MeshConfig {
    let document = instar_state::config::parse(b"{}", Path::new("config.json")).expect("empty");
    let mut config = MeshConfig::from_config(&Config::new(document, Overrides::default()));
    config.relay_url = Some(url.to_owned());
    // The scripted relay is one of v1.
    config.relays =
        vec![RelaySetting { url: url.to_owned(), protocol: Protocol::V1, key: None, is_ours: false }];
    config.spawn.cooldown_ms = 0;
    config
}

pub async fn open(dir: &Path, config: MeshConfig, sessions: Arc<Sessions>) -> (Arc<Mesh>, Arc<NoticeBoard>) {
    open_as(dir, &dir.join("home"), "node", 0, config, sessions).await
}

/// A room of the agent `name` in `dir`, of the account with this home, served on `port`.
pub async fn open_as(
    dir: &Path,
    home: &Path,
    name: &str,
    port: u16,
    config: MeshConfig,
    sessions: Arc<Sessions>,
) -> (Arc<Mesh>, Arc<NoticeBoard>) {
    let secrets: Arc<dyn SecretScan> = Arc::new(|_: &str| Vec::new());
    let gateway = SendGateway::new(Arc::new(Pel::new(PelConfig::default(), Arc::clone(&secrets))))
        .with_stage_per_message(StageId::Mesh, ChannelId::THREADLINE);
    gateway.register(Channel::threadline());
    let events = EventBus::default();
    let notices = Arc::new(NoticeBoard::new(events.clone()));
    let deps = MeshDeps {
        paths: AgentPaths::new(dir.join("agent")),
        account: AccountPaths::new(home),
        agent_name: name.to_owned(),
        version: "0".into(),
        port,
        config,
        passphrase: None,
        sessions,
        notices: Arc::clone(&notices) as _,
        events,
        gateway: Arc::new(gateway),
        secrets,
        relay_switch: Arc::new(FileSwitch(dir.join("relay-switch"))),
    };
    (Mesh::open(deps).await.expect("open"), notices)
}

impl Node {
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub async fn with(change: impl FnOnce(&mut MeshConfig)) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir_all(dir.path().join("agent/src")).expect("project");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("ws://{}/v1/connect", listener.local_addr().expect("address"));
        let sessions = Arc::new(Sessions::default());
        let mut config = config(&url);
        change(&mut config);
        let (mesh, notices) = open(dir.path(), config, Arc::clone(&sessions)).await;
        let mut node = Self {
            mesh,
            sessions,
            notices,
            dir,
            listener,
            url,
            cancel: CancellationToken::new(),
            task: None,
        };
        node.run();
        node
    }

    fn run(&mut self) {
        let (mesh, cancel) = (Arc::clone(&self.mesh), self.cancel.clone());
        self.task = Some(tokio::spawn(async move { mesh.run(cancel).await }));
    }

    /// Ends the process without a farewell to anyone, and starts another on the same files.
    pub async fn restart(&mut self) {
        self.stop().await;
        let config = config(&self.url);
        let opened = open(self.dir.path(), config, Arc::clone(&self.sessions)).await;
        (self.mesh, self.notices) = opened;
        self.cancel = CancellationToken::new();
        self.run();
    }

    pub async fn stop(&mut self) {
        self.cancel.cancel();
        if let Some(task) = self.task.take() {
            tokio::time::timeout(LIMIT, task).await.expect("the room stops").expect("no panic");
        }
    }

    /// What the relay switch was last set to.
    pub fn switch(&self) -> PathBuf {
        self.dir.path().join("relay-switch")
    }

    /// A file of this agent's state.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("agent/.instar").join(name)
    }

    /// The store as others may open it.
    pub fn database(&self) -> rusqlite::Connection {
        let database = rusqlite::Connection::open(self.file("state/threadline.sqlite")).expect("database");
        database.busy_timeout(LIMIT).expect("time-out");
        database
    }

    /// The only question that waits for the owner.
    pub async fn question(&self) -> String {
        let waiting = self.mesh.approvals(Some(ApprovalStatus::Pending), None).await.expect("approvals");
        assert_eq!(waiting["count"], 1, "{waiting}");
        waiting["approvals"][0]["id"].as_str().expect("id").to_owned()
    }

    pub async fn decide(&self, id: &str, decision: Decision) -> Result<Value, ServiceError> {
        self.mesh.decide(&Caller::Owner, id, decision).await
    }

    pub fn key(&self) -> PublicIdentity {
        let key = self.mesh.health()["identityPub"].as_str().map(hex::decode);
        PublicIdentity::from_bytes(&key.expect("a key").expect("hex")).expect("a key")
    }

    pub fn us(&self) -> Fingerprint {
        self.mesh.fingerprint().expect("identity")
    }

    /// The relay's side of the link. Connections that a node left behind are passed over.
    pub async fn relay(&self) -> Relay {
        let search = async {
            loop {
                let (stream, _) = self.listener.accept().await.expect("accept");
                if let Some(relay) = Relay::log_in(stream).await {
                    return relay;
                }
            }
        };
        tokio::time::timeout(LIMIT, search).await.expect("a connection")
    }

    pub async fn call(&self, caller: Caller, tool: Tool, arguments: Value) -> Result<Value, ServiceError> {
        let call = ToolCall::parse(tool, arguments)?;
        tokio::time::timeout(LIMIT, self.mesh.call(caller, call)).await.expect("an answer in time")
    }

    pub async fn trust(&self, peer: &Peer, level: &str) {
        let arguments = json!({"action": "grant", "fingerprint": peer.fingerprint(), "level": level});
        let granted = self.call(Caller::Owner, Tool::ThreadlineTrust, arguments).await.expect("grant");
        assert_eq!(granted["status"], "applied");
    }

    /// The session that serves the only thread, as a caller.
    pub fn session(&self, peer: &Peer, thread: &str) -> Caller {
        let conversation = format!("threadline:{}:{thread}", peer.fingerprint()).parse().expect("key");
        let live = instar_state::ports::PeerSessions::live(&*self.sessions, &conversation).expect("live");
        Caller::Session(SessionCaller {
            id: live.id.to_string(),
            bound: Some(ThreadKey { peer: peer.fingerprint(), thread: thread.parse().expect("id") }),
            tainted: true,
        })
    }

    pub async fn inbox(&self) -> Vec<Value> {
        let inbox = self.mesh.inbox(50).await.expect("inbox");
        inbox["messages"].as_array().expect("list").clone()
    }

    /// State and reason of an inbound message.
    pub async fn state_of(&self, id: &str) -> Option<String> {
        let found = self.inbox().await.into_iter().find(|m| m["id"] == id)?;
        let reason = found["reason"].as_str().map(|r| format!(" {r}")).unwrap_or_default();
        Some(format!("{}{reason}", found["state"].as_str().unwrap_or_default()))
    }

    pub async fn until_state(&self, id: &str, wanted: &str) {
        until(&format!("{id} is {wanted}"), || async {
            let state = self.state_of(id).await;
            (state.as_deref() == Some(wanted)).then_some(()).ok_or(format!("{state:?}"))
        })
        .await;
    }
}

/// Waits for something to become true; the last reason why not is shown when time is over.
pub async fn until<T, F, Fut>(what: &str, mut check: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        match check().await {
            Ok(value) => return value,
            Err(why) if tokio::time::Instant::now() >= deadline => panic!("never: {what}: {why}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Another agent.
pub struct Peer(pub Identity);

impl Peer {
    pub fn new(seed: u8) -> Self {
        Self(Identity::from_seed(&[seed; 32]))
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint()
    }

    pub fn says(&self, to: Fingerprint, thread: &str, id: &str, text: &str) -> ServerFrame {
        self.writes(to, thread, id, Content { text: text.into(), ..Content::default() })
    }

    /// As [`Self::says`], naming the message that it answers.
    pub fn answers(&self, to: Fingerprint, thread: &str, id: &str, text: &str, asked: &str) -> ServerFrame {
        let metadata = json!({"inReplyTo": asked}).as_object().cloned();
        self.writes(to, thread, id, Content { text: text.into(), metadata, ..Content::default() })
    }

    /// What it says to the owner of `key`, sealed in the form of v1.
    pub fn seals(&self, key: &PublicIdentity, thread: &str, id: &str, text: &str) -> ServerFrame {
        let header = Header {
            from: self.fingerprint(),
            to: key.fingerprint(),
            thread_id: Some(thread.parse().expect("thread")),
            message_id: id.parse().expect("id"),
            timestamp: instar_state::time::now_ms(),
        };
        let content = Content { text: text.into(), ..Content::default() };
        ServerFrame::Message(seal(&self.0, key, &header, &content, &mut rand::rng()).expect("seals"))
    }

    fn writes(&self, to: Fingerprint, thread: &str, id: &str, content: Content) -> ServerFrame {
        let header = Header {
            from: self.fingerprint(),
            to,
            thread_id: thread.parse().ok(),
            message_id: id.parse().expect("id"),
            timestamp: instar_state::time::now_ms(),
        };
        ServerFrame::Message(clear(&header, &content))
    }
}

pub struct Relay(WebSocketStream<TcpStream>);

impl Relay {
    async fn log_in(stream: TcpStream) -> Option<Self> {
        let mut socket = accept_async(stream).await.ok()?;
        let nonce = LoginNonce::from_bytes(&[7; 32]);
        let challenge = ServerFrame::Challenge(nonce.as_str().to_owned());
        socket.send(Message::text(challenge.to_text())).await.ok()?;
        let login = socket.next().await?.ok()?;
        let ClientFrame::Auth(auth) = ClientFrame::parse(login.to_text().ok()?).ok()? else { return None };
        auth.verify(&nonce).expect("a valid login");
        let ok = ServerFrame::AuthOk(AuthOk {
            session_id: "relay-0000000000000000".into(),
            heartbeat_interval: 60_000,
            registry_status: None,
            registry_token: None,
            registry_token_expires: None,
            registry_notice: None,
        });
        socket.send(Message::text(ok.to_text())).await.ok()?;
        Some(Self(socket))
    }

    pub async fn send(&mut self, frame: &ServerFrame) {
        self.0.send(Message::text(frame.to_text())).await.expect("send");
    }

    pub async fn next_frame(&mut self) -> ClientFrame {
        let message = tokio::time::timeout(LIMIT, self.0.next()).await.expect("a frame in time");
        let text = message.expect("an open connection").expect("a message");
        ClientFrame::parse(text.to_text().expect("text")).expect("a frame")
    }

    /// Waits until the node has taken the message.
    pub async fn taken(&mut self, id: &str) {
        loop {
            if let ClientFrame::Ack(ack) = self.next_frame().await {
                assert_eq!((ack.message_id.as_str(), ack.status), (id, AckStatus::Delivered));
                return;
            }
        }
    }

    /// The node's next message, confirmed as queued.
    pub async fn message(&mut self) -> Envelope {
        loop {
            if let ClientFrame::Message(envelope) = self.next_frame().await {
                let id = envelope.text("messageId").expect("id").to_owned();
                self.send(&ServerFrame::Ack(Ack::new(id, AckStatus::Queued))).await;
                return envelope;
            }
        }
    }
}

/// What a clear envelope says.
pub fn payload(envelope: &Envelope) -> Value {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(envelope.text("payload").expect("payload"))
        .expect("base64");
    serde_json::from_slice(&bytes).expect("JSON")
}
