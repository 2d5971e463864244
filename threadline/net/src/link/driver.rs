//! The link's task: one socket, one state machine, the spool and the outbox.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use threadline::identity::Identity;
use threadline::v1::client::{
    Client, ClientConfig, ConnectionId, DeliveryEvent, Effect, KnownAgent, LinkChange, LinkState,
    SendRefused, Ticket,
};
use threadline::v1::envelope::Envelope;
use threadline::v1::frames::{DiscoverFilter, ErrorCode, Metadata, Visibility};
use threadline::{Fingerprint, MessageId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::handle::{Command, DiscoverError, LinkEvent, LinkHandle, LinkStatus};
use super::socket::{Incoming, Socket};
use crate::direct::Routes;
use crate::registry::{RegistryAccess, http_base};
use crate::store::{SpoolEntry, Spooled, Store};

/// Messages read from the socket before they are committed together.
const BATCH: usize = 64;
/// Envelopes that may wait for the spool; beyond it nothing is read.
const MAX_UNSTORED: usize = 256;
/// Pause before the spool is tried again.
const STORE_RETRY: Duration = Duration::from_secs(1);
/// Rows of the outbox looked at together.
const OUTBOX_ROWS: usize = 64;
/// A message that was written and not acknowledged may be written again after this time.
const ACK_PATIENCE_MS: i64 = 30_000;
/// Shortest time between two publications of the agents' list.
const AGENTS_EVERY: Duration = Duration::from_millis(250);

/// What the link needs.
#[derive(Debug)]
pub struct LinkDeps {
    /// Signs logins.
    pub identity: Arc<Identity>,
    /// Spool and outbox.
    pub store: Store,
    /// Peers that are reached without the relay: their messages are not the link's business.
    pub routes: Routes,
    /// Where events go; the link waits when it is full.
    pub events: mpsc::Sender<LinkEvent>,
    /// Unix ms.
    pub now: fn() -> i64,
}

/// The link's work, to be spawned by its owner.
pub type LinkFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Makes the link, switched off until [`LinkHandle::start`]. The future runs until `stop` is cancelled or every handle
/// is gone.
pub fn run_link(deps: LinkDeps, stop: CancellationToken) -> (LinkHandle, LinkFuture) {
    let (commands_tx, commands) = mpsc::channel(64);
    let (status_tx, status) =
        watch::channel(LinkStatus { state: LinkState::Stopped.name(), ..LinkStatus::default() });
    let (agents_tx, agents) = watch::channel(Arc::new(Vec::new()));
    let (registry_tx, registry) = watch::channel(None);
    let clock = Clock::start(deps.now);
    let seed = rand::random();
    let driver = Driver {
        client: Client::new(nowhere(), Arc::clone(&deps.identity), seed),
        us: deps.identity.fingerprint(),
        url: String::new(),
        store: deps.store,
        routes: deps.routes,
        events: deps.events,
        clock,
        status: status_tx,
        agents: agents_tx,
        agents_dirty: None,
        registry: registry_tx,
        opening: None,
        socket: None,
        unstored: Vec::new(),
        store_retry: None,
        spool_blocked: false,
        written: HashMap::new(),
        outbox_due: None,
        questions: Vec::new(),
    };
    let handle = LinkHandle { commands: commands_tx, status, agents, registry };
    (handle, Box::pin(driver.run(commands, stop)))
}

/// The introduction of a link that was never switched on.
fn nowhere() -> ClientConfig {
    ClientConfig {
        url: String::new(),
        metadata: Metadata::default(),
        visibility: Visibility::Private,
        registry: None,
        watch_presence: false,
    }
}

/// Unix time that never runs backwards while the process lives, and follows the system when that was set forward or
/// the machine slept.
#[derive(Debug)]
struct Clock {
    system: fn() -> i64,
    started: Instant,
    /// Unix ms at `started`.
    base: AtomicI64,
}

impl Clock {
    fn start(system: fn() -> i64) -> Self {
        Self { system, started: Instant::now(), base: AtomicI64::new(system()) }
    }

    fn now(&self) -> i64 {
        let elapsed = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        let base = self.system().saturating_sub(elapsed);
        self.base.fetch_max(base, Ordering::Relaxed).max(base).saturating_add(elapsed)
    }

    /// What everything outside the link calls now.
    fn system(&self) -> i64 {
        (self.system)()
    }

    fn instant_of(&self, unix: i64) -> Instant {
        let wait = unix.saturating_sub(self.now());
        Instant::now() + Duration::from_millis(u64::try_from(wait).unwrap_or(0))
    }
}

type Opening = Pin<Box<dyn Future<Output = Result<Socket, String>> + Send>>;
type Question = oneshot::Sender<Result<Vec<KnownAgent>, DiscoverError>>;

struct Driver {
    client: Client,
    us: Fingerprint,
    url: String,
    store: Store,
    routes: Routes,
    events: mpsc::Sender<LinkEvent>,
    clock: Clock,
    status: watch::Sender<LinkStatus>,
    agents: watch::Sender<Arc<Vec<KnownAgent>>>,
    agents_dirty: Option<Instant>,
    registry: watch::Sender<Option<RegistryAccess>>,
    opening: Option<(ConnectionId, Opening)>,
    socket: Option<(ConnectionId, Socket)>,
    unstored: Vec<(Ticket, Envelope)>,
    store_retry: Option<Instant>,
    spool_blocked: bool,
    /// Messages written on this connection, not to be written again before their patience is over.
    written: HashMap<MessageId, i64>,
    outbox_due: Option<Instant>,
    questions: Vec<Question>,
}

impl Driver {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, stop: CancellationToken) {
        loop {
            self.carry_out().await;
            let wake = self.next_wake();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => break,
                },
                (connection, opened) = opened(&mut self.opening) => self.opened(connection, opened),
                (connection, incoming) = incoming(&mut self.socket, self.unstored.len() < MAX_UNSTORED) => {
                    self.received(connection, incoming);
                }
                () = tokio::time::sleep_until(wake) => self.tick().await,
            }
        }
        self.client.stop(self.clock.now());
        self.carry_out().await;
    }

    /// Carries out every effect, in order, and everything they cause.
    async fn carry_out(&mut self) {
        loop {
            while let Some(effect) = self.client.poll_effect() {
                self.effect(effect).await;
            }
            if self.store_retry.is_none() && !self.unstored.is_empty() {
                self.store_envelopes().await;
            } else {
                return;
            }
        }
    }

    async fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Connect { connection, url } => {
                self.socket = None;
                self.opening = Some((connection, Box::pin(Socket::open(url))));
            }
            Effect::Send { connection, text, message } => self.write(connection, text, message).await,
            Effect::Close { connection, code } => {
                self.opening.take_if(|(c, _)| *c == connection);
                if let Some((_, socket)) = self.socket.take_if(|(c, _)| *c == connection) {
                    socket.close(code).await;
                }
            }
            Effect::Store { ticket, envelope } => self.unstored.push((ticket, envelope)),
            Effect::Delivery { to, message_id, event } => self.delivery(to, message_id, event).await,
            Effect::Link(change) => self.link_changed(change).await,
            Effect::AgentsChanged => {
                if self.questions.is_empty() {
                    self.agents_dirty.get_or_insert(Instant::now() + AGENTS_EVERY);
                } else {
                    self.publish_agents().await;
                }
            }
            Effect::RegistryToken { token, expires: _, status } => {
                self.registry.send_replace(http_base(&self.url).map(|base| RegistryAccess { base, token }));
                self.status.send_modify(|s| s.registry_status = status);
            }
            Effect::RelayError(error) => {
                tracing::warn!(code = ?error.code, "the relay complains");
                self.status.send_modify(|s| s.last_error = Some(error.message.chars().take(300).collect()));
            }
        }
    }

    async fn write(&mut self, connection: ConnectionId, text: String, message: Option<MessageId>) {
        let Some((_, socket)) = self.socket.as_mut().filter(|(c, _)| *c == connection) else { return };
        match socket.send(text).await {
            Ok(()) => {
                if let Some(id) = message {
                    self.client.handle_written(connection, &id);
                    let now = self.clock.now();
                    self.status.send_modify(|s| {
                        s.messages_out += 1;
                        s.last_message_at = Some(now);
                    });
                }
            }
            Err(reason) => {
                self.socket = None;
                self.client.handle_closed(connection, None, &reason, self.clock.now());
            }
        }
    }

    async fn delivery(&mut self, to: Option<Fingerprint>, id: MessageId, event: DeliveryEvent) {
        // The row stays in `written`: whoever hears the event stores what it means, then flushes.
        if event != DeliveryEvent::Written {
            self.outbox_due = Some(Instant::now());
        }
        let _ = self.events.send(LinkEvent::Delivery { to, id, event }).await;
    }

    async fn link_changed(&mut self, change: LinkChange) {
        let connected = matches!(change.state, LinkState::Ready { .. });
        let next_attempt_at = match change.state {
            LinkState::Waiting { until, .. } => Some(until),
            _ => None,
        };
        tracing::info!(state = change.state.name(), code = change.code, reason = change.reason, "link");
        let event = LinkEvent::StateChanged { relay: self.url.clone(), change: change.clone() };
        let was_connected = self.status.borrow().is_connected();
        self.status.send_modify(|s| {
            s.disconnects += u64::from(was_connected && !connected);
            s.state = change.state.name();
            s.since = change.at;
            s.relay_url = Some(self.url.clone());
            s.self_healing = !change.state.is_final();
            s.next_attempt_at = next_attempt_at;
            if connected {
                s.last_error = None;
            } else if let Some(reason) = change.reason {
                s.last_error = Some(reason);
            }
        });
        self.written.clear();
        if connected {
            self.outbox_due = Some(Instant::now());
        } else {
            self.unstored.clear();
            self.registry.send_replace(None);
            for question in self.questions.drain(..) {
                let _ = question.send(Err(DiscoverError::NotConnected));
            }
        }
        let _ = self.events.send(event).await;
    }

    /// Commits what was received; only then does the state machine acknowledge it.
    async fn store_envelopes(&mut self) {
        let mut waiting = Vec::with_capacity(self.unstored.len());
        let mut entries = Vec::with_capacity(self.unstored.len());
        for (ticket, envelope) in std::mem::take(&mut self.unstored) {
            match spool_entry(&self.url, self.us, &envelope) {
                Some(entry) => {
                    waiting.push((ticket, envelope));
                    entries.push(entry);
                }
                None => self.client.refused(&ticket),
            }
        }
        let count = entries.len();
        let outcomes = match self.store.spool_put(entries, self.clock.system()).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                tracing::error!(%error, "the spool takes nothing; the relay keeps the rest");
                self.unstored = waiting;
                return self.block_spool().await;
            }
        };
        let mut full = Vec::new();
        for (entry, outcome) in waiting.into_iter().zip(outcomes) {
            match outcome {
                Spooled::New(_) | Spooled::Known => self.client.spooled(&entry.0),
                Spooled::Full => full.push(entry),
            }
        }
        let stored = count - full.len();
        let now = self.clock.now();
        self.status.send_modify(|s| {
            s.messages_in += stored as u64;
            s.last_message_at = Some(now);
        });
        if stored > 0 {
            let _ = self.events.send(LinkEvent::Spooled).await;
        }
        if full.is_empty() {
            if std::mem::take(&mut self.spool_blocked) {
                let _ = self.events.send(LinkEvent::SpoolBlocked(false)).await;
            }
        } else {
            self.unstored = full;
            self.block_spool().await;
        }
    }

    async fn block_spool(&mut self) {
        self.store_retry = Some(Instant::now() + STORE_RETRY);
        if !std::mem::replace(&mut self.spool_blocked, true) {
            let _ = self.events.send(LinkEvent::SpoolBlocked(true)).await;
        }
    }

    fn opened(&mut self, connection: ConnectionId, result: Result<Socket, String>) {
        self.opening = None;
        match result {
            Ok(socket) => {
                self.socket = Some((connection, socket));
                self.client.handle_connected(connection, self.clock.now());
            }
            Err(reason) => self.client.handle_closed(connection, None, &reason, self.clock.now()),
        }
    }

    /// Takes a message and whatever else is already there, so that one commit covers a burst.
    fn received(&mut self, connection: ConnectionId, first: Incoming) {
        let mut incoming = Some(first);
        let mut budget = BATCH;
        while let Some(message) = incoming.take() {
            let now = self.clock.now();
            match message {
                Incoming::Text(text) => self.client.handle_text(connection, &text, now),
                Incoming::Other => {}
                Incoming::Closed(code, reason) => {
                    self.socket = None;
                    return self.client.handle_closed(connection, code, &reason, now);
                }
            }
            budget -= 1;
            if budget > 0
                && let Some((_, socket)) = &mut self.socket
            {
                incoming = socket.next().now_or_never();
            }
        }
    }

    async fn command(&mut self, command: Command) {
        let now = self.clock.now();
        match command {
            Command::Start(config) => {
                let moved = config.url != self.url;
                self.url.clone_from(&config.url);
                self.client.set_config(*config);
                if moved {
                    self.client.stop(now);
                }
                self.client.start(now);
            }
            Command::Configure(config) => self.client.set_config(*config),
            Command::Stop if self.client.state() == LinkState::Stopped => {}
            Command::Stop => self.client.stop(now),
            Command::Flush => self.flush().await,
            Command::Discover(filter, answer) => {
                if !self.client.is_ready() {
                    let _ = answer.send(Err(DiscoverError::NotConnected));
                } else if self.ask(filter, now) {
                    self.questions.push(answer);
                } else {
                    let _ = answer.send(Err(DiscoverError::Limited));
                }
            }
        }
    }

    /// Asks the relay, for one name at most once in 30 s. Whether it asked.
    fn ask(&mut self, filter: Option<DiscoverFilter>, now: i64) -> bool {
        match filter {
            Some(DiscoverFilter { name: Some(name), capability: None, framework: None }) => {
                self.client.rediscover(&name, now)
            }
            filter => self.client.discover(filter, now),
        }
    }

    async fn tick(&mut self) {
        let now = Instant::now();
        if self.client.poll_timeout().is_some_and(|at| at <= self.clock.now()) {
            self.client.handle_timeout(self.clock.now());
        }
        if self.store_retry.is_some_and(|at| at <= now) {
            self.store_retry = None;
        }
        if self.agents_dirty.is_some_and(|at| at <= now) {
            self.publish_agents().await;
        }
        if self.outbox_due.is_some_and(|at| at <= now) {
            self.flush().await;
        }
    }

    /// Hands due rows of the outbox to the state machine.
    async fn flush(&mut self) {
        self.outbox_due = None;
        if self.client.free_places() == 0 {
            return;
        }
        let now = self.clock.now();
        self.written.retain(|_, at| *at + ACK_PATIENCE_MS > now);
        let rows = match self.store.outbox_due(now, OUTBOX_ROWS).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(%error, "the outbox cannot be read");
                self.outbox_due = Some(Instant::now() + STORE_RETRY);
                return;
            }
        };
        for row in rows {
            let is_led = self.routes.leads(&row.peer) && !row.is_for_relay();
            if is_led || self.written.contains_key(&row.id) {
                continue;
            }
            let sent = Envelope::parse(row.envelope.as_bytes())
                .map_err(|_| SendRefused::Unsendable)
                .and_then(|envelope| self.client.send(&envelope, now));
            match sent {
                Ok(()) => {
                    self.written.insert(row.id.clone(), now);
                    if row.delivery.is_none()
                        && let Err(error) = self.store.control_done(row.id).await
                    {
                        tracing::warn!(%error, "a control message stays in the outbox");
                    }
                }
                Err(SendRefused::Unsendable) => {
                    let event = DeliveryEvent::Rejected {
                        code: Some(ErrorCode::InvalidFrame),
                        reason: "the envelope is not sendable".into(),
                    };
                    self.delivery(Some(row.peer), row.id, event).await;
                }
                Err(SendRefused::Busy | SendRefused::NotReady) => break,
            }
        }
        match self.store.outbox_next_due().await {
            Ok(Some(due)) => {
                let wait = if due <= now { now + 5_000 } else { due };
                let at = self.clock.instant_of(wait);
                self.outbox_due = Some(self.outbox_due.map_or(at, |earlier| earlier.min(at)));
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the outbox cannot be read"),
        }
    }

    async fn publish_agents(&mut self) {
        self.agents_dirty = None;
        let agents: Vec<KnownAgent> = self.client.agents().iter().cloned().collect();
        for question in self.questions.drain(..) {
            let _ = question.send(Ok(agents.clone()));
        }
        self.agents.send_replace(Arc::new(agents));
        let _ = self.events.send(LinkEvent::AgentsChanged).await;
    }

    fn next_wake(&self) -> Instant {
        let timeout = self.client.poll_timeout().map(|at| self.clock.instant_of(at));
        let outbox = self.outbox_due.filter(|_| self.client.free_places() > 0);
        [timeout, outbox, self.store_retry, self.agents_dirty]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| Instant::now() + Duration::from_hours(1))
    }
}

/// The spool row of an envelope, if its header is well formed and it is for us. The signature is checked when it is
/// ingested, where the sender's key can be looked up.
pub(crate) fn spool_entry(relay: &str, us: Fingerprint, envelope: &Envelope) -> Option<SpoolEntry> {
    let header = envelope.header().ok().filter(|header| header.to == us)?;
    Some(SpoolEntry {
        relay: relay.to_owned(),
        from: header.from,
        message_id: header.message_id,
        thread_id: header.thread_id,
        transport: "relay",
        envelope: envelope.to_bytes(),
    })
}

async fn opened(opening: &mut Option<(ConnectionId, Opening)>) -> (ConnectionId, Result<Socket, String>) {
    match opening {
        Some((connection, future)) => (*connection, future.await),
        None => std::future::pending().await,
    }
}

async fn incoming(socket: &mut Option<(ConnectionId, Socket)>, read: bool) -> (ConnectionId, Incoming) {
    match socket {
        Some((connection, socket)) if read => (*connection, socket.next().await),
        _ => std::future::pending().await,
    }
}
