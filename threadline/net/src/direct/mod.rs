//! The carrier that needs no relay: messages of the outbox for agents of this host and for paired servers. What it cannot
//! bring it leaves to the relay, or in a file where there is none.

mod files;
mod post;
mod routes;

pub use files::SharedFiles;
pub use post::{ServerClient, ServerClientError};
pub use routes::{Route, Routes};

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use threadline::identity::Identity;
use threadline::v1::client::DeliveryEvent;
use threadline::v1::envelope::Envelope;
use threadline::v1::local::{AgentName, LocalMessage};
use threadline::{Fingerprint, MessageId};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::post::{Client, Unavailable};
use crate::link::{LinkEvent, LinkFuture, LinkStatus};
use crate::store::{OutboxRow, Store};

/// Rows of the outbox looked at together.
const ROWS: usize = 64;
/// A message that was brought is not brought again before this time, whatever the outbox says meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
/// An agent of this host that answered this recently is not asked for a sign of life.
const FRESH: Duration = Duration::from_secs(10);
/// Longest and, with rows that are due, usual time between two looks at the outbox.
const IDLE: Duration = Duration::from_mins(1);
const BUSY: Duration = Duration::from_secs(5);

/// What the carrier needs.
#[derive(Debug)]
pub struct DirectDeps {
    /// Signs requests to paired servers.
    pub identity: Arc<Identity>,
    /// Name of this agent; without one that can name a file nothing is sent within the host.
    pub name: Option<AgentName>,
    /// Loopback port of this node, told to others so that they find back.
    pub port: u16,
    /// The outbox.
    pub store: Store,
    /// Who can be reached.
    pub routes: Routes,
    /// Shared folders of the account.
    pub files: SharedFiles,
    /// Where events go.
    pub events: mpsc::Sender<LinkEvent>,
    /// State of the relay link: while it is down, messages for agents that are down too wait in files.
    pub relay: watch::Receiver<LinkStatus>,
    /// Unix ms.
    pub now: fn() -> i64,
}

/// Handle to the running carrier; cheap to clone.
#[derive(Debug, Clone)]
pub struct DirectHandle(Arc<Notify>);

impl DirectHandle {
    /// Tells the carrier that the outbox has rows, or that a route changed.
    pub fn flush(&self) {
        self.0.notify_one();
    }
}

/// Makes the carrier. The future runs until `stop` is cancelled. Fails only when no HTTP client can be made.
pub fn run_direct(
    deps: DirectDeps,
    stop: CancellationToken,
) -> Result<(DirectHandle, LinkFuture), ServerClientError> {
    let wake = Arc::new(Notify::new());
    let carrier = Carrier {
        client: Client::new()?,
        deps,
        alive: HashMap::new(),
        brought: HashMap::new(),
        wake: Arc::clone(&wake),
    };
    Ok((DirectHandle(wake), Box::pin(carrier.run(stop))))
}

struct Carrier {
    client: Client,
    deps: DirectDeps,
    /// When an agent of this host last proved that it listens.
    alive: HashMap<Fingerprint, Instant>,
    brought: HashMap<MessageId, Instant>,
    wake: Arc<Notify>,
}

/// What became of one row.
enum Fate {
    Brought(OutboxRow),
    Dropped(OutboxRow),
}

impl Carrier {
    async fn run(mut self, stop: CancellationToken) {
        // Pauses between tries were meant for the time before the start: whoever was away may be there now.
        if let Err(error) = self.deps.store.outbox_retry_all((self.deps.now)()).await {
            tracing::error!(%error, "the outbox was not made due");
        }
        loop {
            let wait = self.flush().await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Brings what is due. Returns when to look again.
    async fn flush(&mut self) -> Duration {
        self.brought.retain(|_, at| at.elapsed() < PATIENCE);
        let now = (self.deps.now)();
        let rows = match self.deps.store.outbox_due(now, ROWS).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(%error, "the outbox cannot be read");
                return BUSY;
            }
        };
        let mut by_peer: BTreeMap<Fingerprint, (Route, Vec<OutboxRow>)> = BTreeMap::new();
        for row in rows {
            if self.brought.contains_key(&row.id) {
                continue;
            }
            if let Some(route) = self.deps.routes.get(&row.peer)
                && !row.is_for_relay()
            {
                by_peer.entry(row.peer).or_insert_with(|| (route, Vec::new())).1.push(row);
            }
        }
        let jobs = by_peer.into_iter().map(|(peer, (route, rows))| self.bring_all(peer, route, rows));
        let done = join_all(jobs).await;
        for (peer, alive, fates) in done {
            match alive {
                Ok(()) => {
                    self.alive.insert(peer, Instant::now());
                }
                Err(reason) => {
                    tracing::info!(peer = %peer.short(), %reason, "not reached without the relay");
                    self.alive.remove(&peer);
                    self.deps.routes.is_away(&peer);
                    let _ = self.deps.events.send(LinkEvent::DirectAway(peer)).await;
                }
            }
            for fate in fates {
                self.report(fate).await;
            }
        }
        match self.deps.store.outbox_next_due().await {
            Ok(Some(due)) if due > now => Duration::from_millis((due - now).unsigned_abs()).min(IDLE),
            Ok(Some(_)) => BUSY,
            Ok(None) | Err(_) => IDLE,
        }
    }

    async fn report(&mut self, fate: Fate) {
        let (row, event) = match fate {
            Fate::Brought(row) => (row, DeliveryEvent::TakenByPeer),
            Fate::Dropped(row) => (row, DeliveryEvent::Dropped),
        };
        self.brought.insert(row.id.clone(), Instant::now());
        if row.delivery.is_none() {
            if let Err(error) = self.deps.store.control_done(row.id).await {
                tracing::warn!(%error, "a control message stays in the outbox");
            }
            return;
        }
        for event in [DeliveryEvent::Written, event] {
            let event = LinkEvent::Delivery { to: Some(row.peer), id: row.id.clone(), event };
            let _ = self.deps.events.send(event).await;
        }
    }

    /// Brings the rows of one peer in order, until one is not taken.
    async fn bring_all(
        &self,
        peer: Fingerprint,
        route: Route,
        rows: Vec<OutboxRow>,
    ) -> (Fingerprint, Result<(), Unavailable>, Vec<Fate>) {
        let mut fates = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(message) = self.message(&row, &route) else { continue };
            match self.bring(&peer, &route, &message).await {
                Ok(()) => fates.push(Fate::Brought(row)),
                Err(reason) => {
                    if matches!(reason, Unavailable::Down(_)) && self.drop_file(&route, &message).await {
                        fates.push(Fate::Dropped(row));
                    }
                    return (peer, Err(reason), fates);
                }
            }
        }
        (peer, Ok(()), fates)
    }

    fn message(&self, row: &OutboxRow, route: &Route) -> Option<LocalMessage> {
        let envelope = Envelope::parse(row.envelope.as_bytes()).ok()?;
        let to = match route {
            Route::SameHost { name, .. } => name.as_str().to_owned(),
            Route::Paired { .. } => row.peer.to_string(),
        };
        let from = self.deps.name.as_ref()?;
        let origin = format!("http://localhost:{}", self.deps.port);
        let nonce = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
        LocalMessage::of_envelope(&envelope, from, &to, &origin, nonce, (self.deps.now)()).ok()
    }

    async fn bring(
        &self,
        peer: &Fingerprint,
        route: &Route,
        message: &LocalMessage,
    ) -> Result<(), Unavailable> {
        match route {
            Route::SameHost { name, port } => {
                if self.alive.get(peer).is_none_or(|at| at.elapsed() > FRESH) {
                    self.client.is_behind(*port, peer).await?;
                }
                let token = self.token(name).await?;
                self.client.local(*port, &token, message).await
            }
            Route::Paired { base, token } => {
                let name = self.deps.name.as_ref().map(AgentName::as_str).unwrap_or_default();
                let now = (self.deps.now)();
                self.client.paired(&self.deps.identity, base, token, name, message, now).await
            }
        }
    }

    async fn token(&self, name: &AgentName) -> Result<String, Unavailable> {
        let (files, name) = (self.deps.files.clone(), name.clone());
        let read = tokio::task::spawn_blocking(move || files.token(&name)).await;
        match read {
            Ok(Ok(Some(token))) => Ok(token),
            Ok(Ok(None)) => Err(Unavailable::Refused("it has no token file".into())),
            Ok(Err(error)) => Err(Unavailable::Refused(error.to_string())),
            Err(_) => Err(Unavailable::Refused("its token was not read".into())),
        }
    }

    /// Leaves the message in a file for an agent that is down, where no relay could keep it.
    async fn drop_file(&self, route: &Route, message: &LocalMessage) -> bool {
        let (Route::SameHost { name, .. }, Some(us)) = (route, &self.deps.name) else { return false };
        if self.deps.relay.borrow().is_connected() {
            return false;
        }
        let (files, target, us, message) =
            (self.deps.files.clone(), name.clone(), us.clone(), message.clone());
        let written = tokio::task::spawn_blocking(move || {
            let token = files.own_token(&us)?;
            files.put_drop(&target, &message.id, &message.to_drop(&us, &token))
        });
        match written.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a message was not left in a file");
                false
            }
            Err(_) => false,
        }
    }
}
