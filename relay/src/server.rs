//! The relay as a process part: databases, core, listener, orderly stop.

mod a2a;
mod admin;
mod backup;
mod clock;
mod connection;
mod disk;
mod domains;
mod doors;
mod driver;
mod engine;
mod health;
mod http;
mod outbox;
mod page;
mod queue;
mod quic;
mod rest;
mod source;
mod tls;
mod webhook;
mod well_known;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use instar_durable::{Database, DatabaseError, Durability, OpenOptions};
use rand::Rng as _;
use threadline::identity::Identity;
use threadline::v2::frames::{Frame, GoAway};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use crate::config::{DurabilityMode, EngineKind, RelayConfig};
use crate::core::{Core, Counters, Lane, Outgoing, Start, Written};
use crate::keys;
use crate::lock::{DataDirError, DataDirLock};
use crate::registry::import::Report;
use crate::store::custody::ImportError;
use crate::store::{
    BodyCipher, Custody, Directory, JournalError, JournalRules, Media, Peers, QueueRules, QueueTotals, peers,
    registry,
};
use clock::Clock;
use driver::{Driver, DriverHandle};
use queue::QueueHandle;

/// Longest time over which the closes of a stop are spread.
const SPREAD: Duration = Duration::from_secs(5);
const SPREAD_EACH: Duration = Duration::from_millis(50);
/// Time in which clients of v2 shall have gone elsewhere, in milliseconds.
const AWAY_MS: u64 = 5_000;
/// WebSocket/2: the relay stops.
const AWAY_V2: u16 = 4_000 + threadline::v2::session::close::DRAINING;

/// Why the relay does not run.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The data directory cannot be used, or another relay uses it.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A key file cannot be used.
    #[error(transparent)]
    Key(#[from] keys::KeyError),
    /// A database is damaged.
    #[error(
        "{path} is damaged ({detail}). It is left as it is; start with --accept-data-loss to set it aside and go on \
         without the messages in it"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the check said.
        detail: String,
    },
    /// A database cannot be used.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The log of the queue cannot be used.
    #[error("the log of the queue: {0}")]
    Log(JournalError),
    /// The engine of the cluster cannot be used.
    #[error(transparent)]
    Engine(#[from] crate::cluster::EngineError),
    /// Mail of an earlier version cannot be taken over.
    #[error("mail of an earlier version cannot be moved into the log: {0}")]
    OldMail(#[from] ImportError),
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}. Free it, or choose another with --port or `port` in relay.toml"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The UDP port for QUIC cannot be used.
    #[error(
        "cannot listen on {address} for QUIC: {source}. Free it, choose another with `quic.port`, or set \
         quic.enabled=false"
    )]
    ListenUdp {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The directory of another relay cannot be brought over.
    #[error("cannot import {path}: {detail}")]
    Import {
        /// The file.
        path: PathBuf,
        /// The reason.
        detail: String,
    },
    /// Certificate and key cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// A part of the relay ended that must not.
    #[error("the relay stopped by itself: {0}")]
    Internal(String),
}

impl From<JournalError> for RelayError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Damaged { path, detail } => Self::Corrupt { path, detail },
            other @ JournalError::Io { .. } => Self::Log(other),
        }
    }
}

impl RelayError {
    /// Exit code of the program: 3 second start, 4 damaged database, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::DataDir(DataDirError::Held { .. }) => 3,
            Self::Corrupt { .. } => 4,
            _ => 1,
        }
    }
}

/// How to start; the default takes the lock and binds by itself.
#[derive(Debug, Default)]
pub struct Launch {
    /// The lock of the data directory, if the caller has it already.
    pub lock: Option<DataDirLock>,
    /// A bound listener, if the caller has one already.
    pub listener: Option<std::net::TcpListener>,
    /// Hears the address once connections are accepted.
    pub ready: Option<oneshot::Sender<SocketAddr>>,
    /// Hears the address of the admin interface, if there is one.
    pub admin_ready: Option<oneshot::Sender<SocketAddr>>,
    /// Hears where QUIC is spoken, if it is.
    pub quic_ready: Option<oneshot::Sender<SocketAddr>>,
    /// When rung, certificate and key are read again.
    pub reload: Arc<tokio::sync::Notify>,
    /// When cancelled, a stop closes all connections at once.
    pub hurry: CancellationToken,
    /// Who wants to hear that the relay still works.
    pub heartbeat: Option<Heartbeat>,
}

/// A sign of life at intervals, each after the core has answered a question.
#[derive(Debug)]
pub struct Heartbeat {
    /// Time between two beats.
    pub every: Duration,
    /// Hears them; a beat that finds it full is left out.
    pub beat: mpsc::Sender<()>,
}

/// Runs a relay until `shutdown` is cancelled and it has drained.
pub async fn serve(
    config: RelayConfig,
    launch: Launch,
    shutdown: CancellationToken,
) -> Result<Counters, RelayError> {
    let lock = match launch.lock {
        Some(lock) => lock,
        None => DataDirLock::try_take(&config.data_dir)?,
    };
    let config = Arc::new(config);
    let clock = Clock::new();
    let mut prepared = {
        let (config, now_ms) = (Arc::clone(&config), clock.now_ms());
        tokio::task::spawn_blocking(move || Prepared::open(&config, now_ms))
            .await
            .map_err(|e| RelayError::Internal(e.to_string()))??
    };
    let doors = doors::Doors::open(&config)?;
    let listener = bind(&config, launch.listener)?;
    let address = listener.local_addr().map_err(|source| listen_error(&config, source))?;
    let listener =
        tokio::net::TcpListener::from_std(listener).map_err(|source| listen_error(&config, source))?;

    let (helpers, stop_helpers) = (TaskTracker::new(), CancellationToken::new());
    let queue_bytes = Arc::new(AtomicU64::new(0));
    let (mut weak, mut replicated) = (false, false);
    let mut measured = Arc::new(health::Measured::new(Arc::default()));
    let queue = match prepared.queue.take() {
        Some(Keeper::Log(custody)) => {
            QueueHandle::start(*custody, Arc::clone(&queue_bytes), Arc::clone(&measured))
                .map_err(|e| RelayError::Internal(e.to_string()))?
        }
        Some(Keeper::Cluster(peers, cipher)) => {
            let (told, answers) = QueueHandle::channel();
            let engine = engine::join(&config, (*peers, prepared.registry.clone()), cipher, told).await?;
            measured = Arc::new(health::Measured::new(engine.publishing()));
            weak = engine.is_weak();
            replicated = !weak;
            if let Ok(totals) = engine.totals().await {
                prepared.totals = totals;
            }
            engine.start(&helpers, &stop_helpers);
            let stop = stop_helpers.clone();
            let kept = futures::future::join(Arc::clone(&engine).replicate(), Arc::clone(&engine).attend());
            helpers.spawn(async move {
                let _ = stop.run_until_cancelled(kept).await;
            });
            QueueHandle::on_cluster(engine, answers)
        }
        None => return Err(RelayError::Internal("nothing keeps mail".into())),
    };
    let door = quic::Door::open(&config, &prepared.signer)?.map(Arc::new);
    let quic_address = door.as_ref().map(|door| door.address());
    let hosts = well_known::hosts(&config, address);
    let mut core = prepared.core(Arc::clone(&config), hosts.clone(), &clock);
    let bridge = prepared
        .bridge
        .map(|key| Arc::new(a2a::Bridge::new(Identity::from_seed(&key.to_bytes()), &config.a2a)));
    if let Some(bridge) = &bridge {
        core.set_bridge(bridge.address());
    }
    if replicated {
        core.set_replicated();
    }
    let registry_db = prepared.registry.clone();
    let grown = Arc::new(tokio::sync::Notify::new());
    let databases = (queue, prepared.registry.clone());
    let (driver, handle) = Driver::new(core, clock.clone(), databases, Arc::clone(&grown));
    let driver = tokio::spawn(driver.run());
    let state = Arc::new(Shared {
        config: Arc::clone(&config),
        clock,
        driver: handle.clone(),
        registry: prepared.registry,
        queue_bytes,
        grown,
        relay_id: prepared.relay_id,
        verifier: prepared.signer.verifying_key(),
        signer: prepared.signer,
        hosts,
        quic: door.clone(),
        cursor_secret: prepared.cursor_secret,
        sources: source::Sources::new(&prepared.source_key, config.trusted_proxies.clone()),
        limits: rest::RestLimits::new(&config),
        health: health::Cache::default(),
        measured,
        bridge: bridge.clone(),
        weak,
        homepage_changed: tokio::sync::Notify::new(),
        draining: AtomicBool::new(false),
        connections: TaskTracker::new(),
    });
    if config.engine == EngineKind::Embedded {
        helpers.spawn(disk::watch(Arc::clone(&state), stop_helpers.clone()));
    }
    if config.verify_homepages {
        helpers.spawn(domains::verify(Arc::clone(&state), stop_helpers.clone()));
    }
    if !config.abuse.webhook.is_empty() {
        helpers.spawn(webhook::tell(Arc::clone(&state), stop_helpers.clone()));
    }
    helpers.spawn(rest::keep_counting(Arc::clone(&state), stop_helpers.clone()));
    helpers.spawn(rest::age_daily(Arc::clone(&state), stop_helpers.clone()));
    if let Some(heartbeat) = launch.heartbeat {
        helpers.spawn(beat(handle.clone(), heartbeat, stop_helpers.clone()));
    }
    let stop_accepting = CancellationToken::new();
    let router = http::router(Arc::clone(&state));
    let connections = state.connections.clone();
    if let Some(bridge) = bridge {
        helpers.spawn(a2a::run(Arc::clone(&state), bridge, router.clone(), stop_accepting.clone()));
    }
    let tls = doors.tls.clone();
    if let Some(door) = door.clone() {
        let connections = connections.clone();
        helpers.spawn(quic::accept(door, Arc::clone(&state), connections, stop_accepting.clone()));
    }
    let accepting = tokio::spawn(http::accept(listener, router, tls, connections, stop_accepting.clone()));
    let side = TaskTracker::new();
    if let Some(tls) = doors.tls.clone() {
        helpers.spawn(tls::reload_on(tls, launch.reload, stop_helpers.clone()));
    }
    if let Some((listener, tls)) = doors.admin {
        let router = admin::router(Arc::clone(&state), &doors.admin_key);
        helpers.spawn(http::accept(listener, router, tls, side.clone(), stop_helpers.clone()));
    }
    if let Some(listener) = doors.metrics {
        let router = admin::metrics_router(Arc::clone(&state));
        helpers.spawn(http::accept(listener, router, None, side.clone(), stop_helpers.clone()));
    }
    if let Some(told) = launch.admin_ready.filter(|_| doors.admin_address.is_some()) {
        // The caller may have lost interest.
        let _ = doors.admin_address.map(|address| told.send(address));
    }
    if let Some((told, address)) = launch.quic_ready.zip(quic_address) {
        // The caller may have lost interest.
        let _ = told.send(address);
    }
    tracing::info!(%address, quic = ?quic_address, data_dir = %config.data_dir.display(), "relay is listening");
    if let Some(ready) = launch.ready {
        // The caller may have lost interest.
        let _ = ready.send(address);
    }

    shutdown.cancelled().await;
    state.draining.store(true, Ordering::Relaxed);
    stop_accepting.cancel();
    let _ = accepting.await;
    let grace = Duration::from_secs(u64::from(config.drain_grace_s));
    let drained = tokio::time::timeout(grace, drain(&state, &launch.hurry)).await;
    if drained.is_err() {
        tracing::warn!("connections were still open after the grace time; their mail stays in storage");
    }
    if let Some(door) = door {
        door.close().await;
    }
    stop_helpers.cancel();
    helpers.close();
    helpers.wait().await;
    side.close();
    side.wait().await;
    handle.stop().await;
    let counters = driver.await.map_err(|e| RelayError::Internal(e.to_string()))?;
    tokio::task::spawn_blocking(move || registry_db.close())
        .await
        .map_err(|e| RelayError::Internal(e.to_string()))?;
    drop(lock);
    tracing::info!(?counters, "relay stopped");
    Ok(counters)
}

/// Brings over the directory of another relay; neither may run.
pub(crate) fn import(config: &RelayConfig, from: &Path) -> Result<Report, RelayError> {
    let path = from.join("registry.db");
    let source = rusqlite::Connection::open_with_flags(&path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|e| RelayError::Import { path: path.clone(), detail: e.to_string() })?;
    let lock = DataDirLock::try_take(&config.data_dir)?;
    let prepared = Prepared::open(config, Clock::new().now_ms())?;
    let (relay_id, now_ms) = (prepared.relay_id.clone(), Clock::new().now_ms());
    let imported = prepared.registry.write_blocking(move |c| {
        crate::registry::import::import(c, &source, &relay_id, now_ms).map_err(DatabaseError::from)
    });
    prepared.registry.close();
    drop(lock);
    imported.map_err(|e| RelayError::Import { path, detail: e.to_string() })
}

async fn drain(state: &Shared, hurry: &CancellationToken) {
    close_all(state, hurry).await;
    state.connections.close();
    state.connections.wait().await;
}

/// Closes all sessions with 1001, spread over time.
async fn close_all(state: &Shared, hurry: &CancellationToken) {
    let outboxes = state.driver.outboxes().await;
    let away = GoAway { code: "draining".into(), after_ms: AWAY_MS, alt: Vec::new() };
    let away = Outgoing::V2(Written { bytes: Frame::from(away).encode(), lane: Lane::Control });
    outboxes.iter().filter(|outbox| outbox.is_v2()).for_each(|outbox| outbox.push(&away));
    let pause = SPREAD_EACH.min(SPREAD / u32::try_from(outboxes.len()).unwrap_or(u32::MAX).max(1));
    for outbox in outboxes {
        let code = if outbox.is_v2() { AWAY_V2 } else { threadline::v1::close::GOING_AWAY };
        outbox.close(code, "Relay is stopping");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = hurry.cancelled() => {}
        }
    }
}

async fn beat(driver: DriverHandle, heartbeat: Heartbeat, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(heartbeat.every) => {}
            () = stop.cancelled() => return,
        }
        if driver.snapshot().await.is_some() {
            let _ = heartbeat.beat.try_send(());
        }
    }
}

/// What every part of the edge shares.
struct Shared {
    config: Arc<RelayConfig>,
    clock: Clock,
    driver: DriverHandle,
    registry: Database,
    /// Bytes of the log of the queue.
    queue_bytes: Arc<AtomicU64>,
    /// Rung after each mebibyte of new mail.
    grown: Arc<tokio::sync::Notify>,
    relay_id: String,
    verifier: ed25519_dalek::VerifyingKey,
    signer: ed25519_dalek::SigningKey,
    /// Names that this relay answers for.
    hosts: Vec<String>,
    /// The listener of QUIC, where it is spoken.
    quic: Option<Arc<quic::Door>>,
    cursor_secret: [u8; 32],
    sources: source::Sources,
    limits: rest::RestLimits,
    health: health::Cache,
    measured: Arc<health::Measured>,
    bridge: Option<Arc<a2a::Bridge>>,
    /// Whether acceptance means less than it should in a cluster.
    weak: bool,
    /// Rung when a homepage is new.
    homepage_changed: tokio::sync::Notify,
    draining: AtomicBool,
    connections: TaskTracker,
}

/// What will keep mail.
enum Keeper {
    Log(Box<Custody<Directory>>),
    /// The engine of a cluster: it needs who was seen here, and how bodies are sealed.
    Cluster(Box<Peers>, BodyCipher),
}

/// Everything that is read from disk before the first connection.
struct Prepared {
    /// Taken once.
    queue: Option<Keeper>,
    registry: Database,
    signer: ed25519_dalek::SigningKey,
    bridge: Option<ed25519_dalek::SigningKey>,
    relay_id: String,
    source_key: Zeroizing<[u8; 32]>,
    cursor_secret: [u8; 32],
    last_seq: u64,
    totals: QueueTotals,
}

impl Prepared {
    fn open(config: &RelayConfig, now_ms: i64) -> Result<Self, RelayError> {
        let dir = &config.data_dir;
        let shared = engine::secret(config);
        let signer = keys::load_signing_key(dir, shared.as_ref().map_or_else(fresh, engine::signing_seed))?;
        let bridge = config.has_bridge().then(|| keys::load_bridge_key(dir, fresh())).transpose()?;
        let queue_key = keys::load_secret(&dir.join("queue.key"), fresh())?;
        let source_key = keys::load_secret(&dir.join("source.key"), fresh())?;
        let durability = match config.durability {
            DurabilityMode::Power => Durability::Full,
            DurabilityMode::Process => Durability::Normal,
        };
        let open = |name, migrations| {
            let path = dir.join(name);
            // Searches take milliseconds; messages must not wait for them where there is one core.
            let options = || OpenOptions::new(&path, migrations, durability).readers_step_back();
            match open_checked(options()) {
                Err(DatabaseError::Corrupt { .. }) if config.accept_data_loss => {
                    set_aside(&path, now_ms)?;
                    open_checked(options()).map_err(RelayError::from)
                }
                Err(DatabaseError::Corrupt { path, detail }) => Err(RelayError::Corrupt { path, detail }),
                other => other.map_err(RelayError::from),
            }
        };
        // Checked and migrated like the other; the thread of the queue then has it to itself.
        open("queue.db", peers::MIGRATIONS)?.close();
        let registry = open("registry.db", registry::MIGRATIONS)?;
        registry.write_blocking(registry::reset_online)?;
        let relay_id = config
            .relay_id
            .clone()
            .unwrap_or_else(|| format!("relay-{}", &hex::encode(signer.verifying_key().as_bytes())[..12]));
        let (queue, last_seq, totals) = if let Some(secret) = &shared {
            let peers = Box::new(open_peers(dir, durability)?);
            (Keeper::Cluster(peers, engine::cipher(secret)), 0, QueueTotals::default())
        } else {
            let queue = open_queue(config, BodyCipher::new(&queue_key), durability, now_ms)?;
            let (last_seq, totals) = (queue.last_seq(), queue.totals());
            (Keeper::Log(Box::new(queue)), last_seq, totals)
        };
        let queue = Some(queue);
        // Cursors live for minutes; a restart may end them.
        let cursor_secret = *fresh();
        Ok(Self { queue, registry, signer, bridge, relay_id, source_key, cursor_secret, last_seq, totals })
    }

    fn core(&self, config: Arc<RelayConfig>, hosts: Vec<String>, clock: &Clock) -> Core {
        let start = Start {
            last_seq: self.last_seq,
            totals: self.totals,
            relay_id: self.relay_id.clone(),
            signer: self.signer.clone(),
            hosts,
            seed: *fresh(),
        };
        Core::new(config, start, clock.now_ms())
    }
}

fn open_peers(dir: &Path, durability: Durability) -> Result<Peers, RelayError> {
    let connection = rusqlite::Connection::open(dir.join("queue.db")).map_err(DatabaseError::from)?;
    let synchronous = if durability == Durability::Full { "FULL" } else { "NORMAL" };
    connection.pragma_update(None, "journal_mode", "WAL").map_err(DatabaseError::from)?;
    connection.pragma_update(None, "synchronous", synchronous).map_err(DatabaseError::from)?;
    Ok(Peers::load(connection).map_err(DatabaseError::from)?)
}

fn open_queue(
    config: &RelayConfig,
    cipher: BodyCipher,
    durability: Durability,
    now_ms: i64,
) -> Result<Custody<Directory>, RelayError> {
    let dir = &config.data_dir;
    let peers = open_peers(dir, durability)?;
    let log_dir = dir.join("queue");
    let log = JournalRules {
        sync: durability == Durability::Full,
        segment: segment_bytes(dir),
        boot: boot_id(),
        accept_data_loss: config.accept_data_loss,
    };
    let media = Media::in_directory(&log_dir).map_err(|source| JournalError::Io { path: log_dir, source })?;
    let rules = QueueRules { queue: config.queue.clone() };
    let mut custody = Custody::open(media, log, peers, rules, cipher, now_ms)?;
    let imported = custody.import()?;
    if imported > 0 {
        tracing::info!(imported, "mail of an earlier version was moved into the log");
    }
    Ok(custody)
}

/// A segment is small beside the disk, since freeing space begins with a whole one.
fn segment_bytes(dir: &Path) -> u64 {
    const LEAST: u64 = 512 << 10;
    const MOST: u64 = 16 << 20;
    let disk = rustix::fs::statvfs(dir).map_or(u64::MAX, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
    (disk / 64).clamp(LEAST, MOST)
}

/// Which start of the operating system this is; zeros where that is not told.
fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().parse::<uuid::Uuid>().unwrap_or_default().into_bytes()
}

fn open_checked(options: OpenOptions) -> Result<Database, DatabaseError> {
    const FULL_CHECK_BELOW: u64 = 1 << 30;
    let database = Database::open(options)?;
    let size = std::fs::metadata(database.path()).map_or(0, |meta| meta.len());
    if database.unclean_stop().0 && size < FULL_CHECK_BELOW {
        let verdict: String =
            database.read_blocking(|c| c.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)))?;
        if verdict != "ok" {
            let path = database.path().to_owned();
            database.close();
            return Err(DatabaseError::Corrupt { path, detail: verdict });
        }
    }
    Ok(database)
}

/// Moves a damaged database out of the way together with its log, which belongs to no other file.
fn set_aside(path: &Path, now_ms: i64) -> Result<(), RelayError> {
    let failed = |e: std::io::Error| RelayError::Corrupt { path: path.to_owned(), detail: e.to_string() };
    let kept = instar_durable::set_aside(path, now_ms).map_err(failed)?;
    for suffix in ["-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let name = PathBuf::from(name);
        if name.exists() {
            instar_durable::set_aside(&name, now_ms).map_err(failed)?;
        }
    }
    tracing::error!(file = %path.display(), kept = %kept.display(), "damaged database set aside, starting empty");
    Ok(())
}

fn fresh() -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 32]);
    rand::rng().fill_bytes(&mut *bytes);
    bytes
}

fn bind(
    config: &RelayConfig,
    given: Option<std::net::TcpListener>,
) -> Result<std::net::TcpListener, RelayError> {
    let listener = match given {
        Some(listener) => Ok(listener),
        None => listen((config.host, config.port).into()),
    };
    let listener = listener.map_err(|source| listen_error(config, source))?;
    listener.set_nonblocking(true).map_err(|source| listen_error(config, source))?;
    Ok(listener)
}

/// Binds with a long queue of waiting connections; a relay that restarts meets all its clients at once.
pub(crate) fn listen(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
    const WAITING: i32 = 1024;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, WAITING)?;
    Ok(socket.into())
}

fn listen_error(config: &RelayConfig, source: std::io::Error) -> RelayError {
    RelayError::Listen { address: (config.host, config.port).into(), source }
}
