//! The task that owns the mail of this device and a session with every relay.

mod blobs;
mod clocks;
mod effects;
mod inside_v1;
mod introduction;
mod presence;
mod status;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use threadline::identity::Identity;
use threadline::path::PATIENCE_MS;
use threadline::v2::blob::WORD_TYPE;
use threadline::v2::frames::Found;
use threadline::v2::mail::{Change, Commit, Mail, MailError, Outcome, Unopened};
use threadline::v2::opened::OpenedMessage;
use threadline::v2::session::{ClientSession, ConnectionId, Courier, SessionConfig};
use threadline::v2::{Bin, Key};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::inside_v1::link_changed;
pub use self::introduction::Introduction;
use super::connection::{Connection, Incoming, Reports};
use super::handle::{Command, SealedEvent, SealedHandle, SealedRelay, SealedStatus, Submission};
use super::network::local_addresses;
use crate::link::{LinkHandle, LinkStatus};
use crate::store::{Queued, Spooled, Store, StoreError};

/// Pause after the store failed; then everything is made anew from it.
const RECOVER: Duration = Duration::from_secs(1);
/// Old marks and messages are cleared this often, ms.
const SWEEP_MS: u64 = 60_000;

/// How this node stands to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing of it is taken.
    Blocked,
    /// It shares the allowance of strangers for new sessions.
    Stranger {
        /// Whether it may learn that this node is there.
        may_know: bool,
    },
    /// It has its own allowance.
    Contact,
}

impl Standing {
    const fn may_know(self) -> bool {
        matches!(self, Self::Contact | Self::Stranger { may_know: true })
    }
}

/// What sealed mail needs.
pub struct SealedDeps {
    /// Signs and opens.
    pub identity: Arc<Identity>,
    /// Keeps every commit.
    pub store: Store,
    /// Name of this device, ≤ 32 bytes.
    pub device_name: String,
    /// What is said of the agent at the next login.
    pub introduce: Arc<dyn Fn() -> Introduction + Send + Sync>,
    /// Relays to keep sessions with. With a change of them every session begins anew.
    pub relays: watch::Receiver<Vec<SealedRelay>>,
    /// Whom the node knows.
    pub standing: Arc<dyn Fn(&Key) -> Standing + Send + Sync>,
    /// Where events go; sealed mail waits when it is full.
    pub events: mpsc::Sender<SealedEvent>,
    /// Unix ms.
    pub now: fn() -> i64,
    /// The link, which carries envelopes inside v1 messages where its relay speaks v1 alone.
    pub link: Option<LinkHandle>,
}

/// The work, to be spawned by its owner.
pub type SealedFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Makes sealed mail. The future runs until `stop` is cancelled.
pub fn run_sealed(deps: SealedDeps, stop: CancellationToken) -> (SealedHandle, SealedFuture) {
    let (commands_tx, commands) = mpsc::channel(64);
    let (status_tx, status) = watch::channel(Vec::new());
    let (watched_tx, watched) = watch::channel(Vec::new());
    let handle = SealedHandle { commands: commands_tx, status, watched: Arc::new(watched_tx) };
    (handle, Box::pin(run(deps, commands, status_tx, watched, stop)))
}

async fn run(
    deps: SealedDeps,
    mut commands: mpsc::Receiver<Command>,
    status: watch::Sender<Vec<SealedStatus>>,
    watched: watch::Receiver<Vec<Key>>,
    stop: CancellationToken,
) {
    let mut relays = deps.relays.clone();
    let deps = Arc::new(deps);
    while !stop.is_cancelled() {
        let configured = relays.borrow_and_update().clone();
        let started = Driver::start(Arc::clone(&deps), configured, status.clone(), watched.clone()).await;
        let outcome = match started {
            Ok(mut driver) => driver.run(&mut commands, &mut relays, &stop).await,
            Err(trouble) => Err(trouble),
        };
        match outcome {
            Ok(Ended::Stopped) => return,
            Ok(Ended::OtherRelays) => continue,
            Err(trouble) => tracing::error!(%trouble, "sealed mail begins anew from its store"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RECOVER) => {}
        }
    }
}

/// The machines are ahead of the store.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Mail(#[from] MailError),
    #[error("the spool is full")]
    SpoolFull,
    #[error("a message of ours could not be stored")]
    NotStored,
    #[error("this machine became another device")]
    NewDevice,
}

/// Why a driver ended.
enum Ended {
    Stopped,
    OtherRelays,
}

struct Driver {
    deps: Arc<SealedDeps>,
    relays: Vec<SealedRelay>,
    mail: Mail,
    sessions: Vec<ClientSession>,
    connections: HashMap<(usize, ConnectionId), Connection>,
    tasks: JoinSet<()>,
    reports_tx: Reports,
    reports: mpsc::Receiver<(usize, ConnectionId, Incoming)>,
    solved_tx: mpsc::Sender<(usize, ConnectionId, String, Bin<8>)>,
    solved: mpsc::Receiver<(usize, ConnectionId, String, Bin<8>)>,
    courier: Courier,
    blobs: blobs::Blobs,
    watched: watch::Receiver<Vec<Key>>,
    /// Watched peers that are there, with the relays that say so.
    there: BTreeMap<Key, BTreeSet<usize>>,
    /// Questions to a relay's directory, by its number and theirs.
    searches: HashMap<(usize, u32), oneshot::Sender<Found>>,
    swept_at: u64,
    begun: Instant,
    /// What this machine sent from when that was last looked at.
    network: [Option<IpAddr>; 2],
    withheld: bool,
    /// Since when keys are missing that nobody can be asked for, Unix ms.
    keyless: BTreeMap<Key, u64>,
    /// State of the link; absent where there is none.
    link: Option<watch::Receiver<LinkStatus>>,
    status: watch::Sender<Vec<SealedStatus>>,
}

impl Driver {
    async fn start(
        deps: Arc<SealedDeps>,
        relays: Vec<SealedRelay>,
        status: watch::Sender<Vec<SealedStatus>>,
        watched: watch::Receiver<Vec<Key>>,
    ) -> Result<Self, Trouble> {
        let records = deps.store.mail_load().await?;
        let mut mail = Mail::new(Arc::clone(&deps.identity), records, rand::random());
        let now = unix(deps.now);
        let commit = mail.ensure_device(&deps.device_name, now)?;
        deps.store.mail_commit(&commit, Vec::new(), (deps.now)()).await?;
        let (reports_tx, reports) = mpsc::channel(64);
        let (solved_tx, solved) = mpsc::channel(4);
        let mut driver = Self {
            sessions: Vec::new(),
            mail,
            connections: HashMap::new(),
            tasks: JoinSet::new(),
            reports_tx,
            reports,
            solved_tx,
            solved,
            courier: Courier::default(),
            blobs: blobs::Blobs::default(),
            watched,
            there: BTreeMap::new(),
            searches: HashMap::new(),
            swept_at: now,
            begun: Instant::now(),
            network: local_addresses(),
            withheld: false,
            keyless: BTreeMap::new(),
            link: deps.link.as_ref().map(LinkHandle::watch_status),
            status,
            relays,
            deps,
        };
        let _ = driver.deps.events.send(SealedEvent::PresenceUnknown).await;
        driver.open_sessions(now);
        driver.tell_status();
        Ok(driver)
    }

    fn open_sessions(&mut self, now: u64) {
        let Some(hello) = self.hello() else { return };
        for relay in &self.relays {
            let config = SessionConfig {
                relay: relay.key,
                host: relay.host.clone(),
                quic: !relay.quic.is_empty(),
                websocket: relay.url.is_some(),
                hello: hello.clone(),
            };
            let identity = Arc::clone(&self.deps.identity);
            let mut session = ClientSession::new(config, identity, rand::random());
            session.start(now);
            self.sessions.push(session);
        }
    }

    async fn run(
        &mut self,
        commands: &mut mpsc::Receiver<Command>,
        relays: &mut watch::Receiver<Vec<SealedRelay>>,
        stop: &CancellationToken,
    ) -> Result<Ended, Trouble> {
        let (mut relays_may_change, mut watched_may_change) = (true, true);
        let ended = loop {
            self.work().await?;
            let wake = self.next_wake();
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ended::Stopped,
                changed = relays.changed(), if relays_may_change => {
                    relays_may_change = changed.is_ok();
                    if *relays.borrow() != self.relays {
                        break Ended::OtherRelays;
                    }
                }
                changed = self.watched.changed(), if watched_may_change => {
                    watched_may_change = changed.is_ok();
                    self.watch().await;
                }
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await?,
                    None => break Ended::Stopped,
                },
                () = link_changed(&mut self.link) => {}
                Some((relay, connection, incoming)) = self.reports.recv() => {
                    self.incoming(relay, connection, incoming);
                }
                Some((relay, connection, epoch, nonce)) = self.solved.recv() => {
                    if let Some(session) = self.sessions.get_mut(relay) {
                        session.solved(connection, &epoch, nonce);
                    }
                }
                () = tokio::time::sleep_until(wake) => self.tick(),
            }
        };
        let now = self.now();
        for session in &mut self.sessions {
            session.stop(now);
        }
        self.connections.clear();
        self.tasks.shutdown().await;
        self.tell_status();
        Ok(ended)
    }

    fn now(&self) -> u64 {
        unix(self.deps.now)
    }

    /// Milliseconds since the start, whatever happens to the clock.
    fn uptime(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn keep(&self, commit: Commit) -> Result<(), Trouble> {
        self.keep_with(commit, Vec::new()).await
    }

    /// Stores a commit together with what it says about messages of ours; then everyone may hear of that.
    async fn keep_with(&self, commit: Commit, changes: Vec<Change>) -> Result<(), Trouble> {
        if commit.is_empty() && changes.is_empty() {
            return Ok(());
        }
        self.deps.store.mail_commit(&commit, changes.clone(), (self.deps.now)()).await?;
        for change in changes {
            let _ = self.deps.events.send(SealedEvent::Delivery(change)).await;
        }
        Ok(())
    }

    fn incoming(&mut self, relay: usize, connection: ConnectionId, incoming: Incoming) {
        let now = self.now();
        let Some(session) = self.sessions.get_mut(relay) else { return };
        match incoming {
            Incoming::Opened => session.handle_connected(connection, now),
            Incoming::Frame(frame) => session.handle_frame(connection, *frame, now),
            Incoming::Closed(code) => {
                self.connections.remove(&(relay, connection));
                session.handle_closed(connection, code, now);
            }
        }
    }

    fn tick(&mut self) {
        let now = self.now();
        for session in &mut self.sessions {
            if session.poll_timeout().is_some_and(|at| at <= now) {
                session.handle_timeout(now);
            }
        }
        while self.tasks.try_join_next().is_some() {}
    }

    fn next_wake(&self) -> Instant {
        let now = self.now();
        let timeouts = self.sessions.iter().filter_map(ClientSession::poll_timeout);
        let patience = self.courier.waits().then(|| now.saturating_add(1_000));
        let own = [
            self.mail.next_due().map(|at| at.max(now.saturating_add(200))),
            self.mail.next_dispatch().map(|at| now.saturating_add(at.saturating_sub(self.uptime()))),
            self.mail.next_claim().map(|at| at.max(now.saturating_add(200))),
            patience,
            Some(self.swept_at.saturating_add(SWEEP_MS)),
        ];
        let at = timeouts.chain(own.into_iter().flatten()).min().unwrap_or(now);
        Instant::now() + Duration::from_millis(at.saturating_sub(now).clamp(1, SWEEP_MS))
    }

    async fn command(&mut self, command: Command) -> Result<(), Trouble> {
        let now = self.now();
        match command {
            Command::Submit(submission) => self.submit(*submission, now).await?,
            Command::Control { to, draft, answer } => match self.mail.submit(to, *draft, now) {
                Ok((id, commit)) => {
                    self.keep(commit).await?;
                    let _ = answer.send(Ok(id));
                }
                Err(error) => drop(answer.send(Err(error.into()))),
            },
            Command::Receipt { peer, id, status } => {
                let commit = self.mail.set_receipt(&peer, &id, status, now);
                self.keep(commit).await?;
            }
            Command::Fetch(message) => self.fetch(*message, now).await?,
            Command::Search { relay, search, answer } => {
                let asked = self.sessions.get_mut(relay).map(|session| session.search(search));
                if let Some(Ok(request)) = asked {
                    self.searches.retain(|_, waiting| !waiting.is_closed());
                    self.searches.insert((relay, request), answer);
                }
            }
            Command::Carried { env, answer } => {
                let received = self.carried(&env, now).await?;
                let _ = answer.send(received);
            }
            Command::CanSeal { peer, answer } => drop(answer.send(self.mail.can_seal(&peer))),
            Command::Introduce { answer } => {
                let (commit, introduction) = self.mail.introduce(now)?;
                self.keep(commit).await?;
                let _ = answer.send(introduction);
            }
            Command::Introduced { peer, keys } => self.introduced(&peer, &keys, now).await?,
        }
        Ok(())
    }

    async fn submit(&mut self, submission: Submission, now: u64) -> Result<(), Trouble> {
        let Submission { to, id, draft, cleared, outbound, answer } = submission;
        let commit = match self.mail.submit_as(to, id, &draft, now) {
            Ok(commit) => commit,
            Err(error) => {
                let _ = answer.send(Err(error.into()));
                return Ok(());
            }
        };
        let at = (self.deps.now)();
        match self.deps.store.enqueue_sealed(cleared, outbound, &commit, at).await {
            Ok(queued) => {
                if queued != Queued::New {
                    self.mail.withdraw(&to, &id);
                }
                let _ = answer.send(Ok(queued));
                Ok(())
            }
            Err(error @ StoreError::AlreadyAnswered { .. }) => {
                self.mail.withdraw(&to, &id);
                let _ = answer.send(Err(error.into()));
                Ok(())
            }
            Err(error) => {
                let _ = answer.send(Err(error.into()));
                Err(Trouble::NotStored)
            }
        }
    }

    /// Does everything there is to do now.
    async fn work(&mut self) -> Result<(), Trouble> {
        let now = self.now();
        self.effects(now).await?;
        self.open(now).await?;
        self.dispatch(now).await?;
        self.seal(now).await?;
        let inside_v1 = self.link_carries();
        self.courier.set_inside_v1(&mut self.mail, inside_v1, now);
        self.courier.send(&mut self.mail, &mut self.sessions, now);
        self.carry(now).await?;
        self.sweep(now).await?;
        self.effects(now).await
    }

    async fn open(&mut self, now: u64) -> Result<(), Trouble> {
        let standing = Arc::clone(&self.deps.standing);
        let is_contact = move |key: &Key| standing(key) == Standing::Contact;
        let mut introduce = Vec::new();
        while let Some(opened) = self.mail.open_next(&is_contact, now)? {
            let evidence = !opened.evidence.is_empty();
            self.keep_with(opened.commit, opened.evidence).await?;
            if evidence {
                self.courier.tidy(&self.mail);
            }
            if let Some(answer) = opened.answer {
                let no_session = opened.outcome == Outcome::Unopened(Unopened::NoSession);
                self.courier.carry(answer);
                if no_session && self.link_carries() && !self.sessions.iter().any(ClientSession::is_ready) {
                    introduce.push(opened.from);
                }
            }
            if opened.keys_failed {
                self.courier.keys_failed(opened.from);
            }
            if opened.outcome == Outcome::Unopened(Unopened::UnknownDevice) {
                self.courier.look_up(&mut self.sessions, opened.from, now);
            }
        }
        for peer in introduce {
            let _ = self.deps.events.send(SealedEvent::Introduce(peer)).await;
        }
        if self.mail.relay_withholds_keys() && !std::mem::replace(&mut self.withheld, true) {
            let _ = self.deps.events.send(SealedEvent::KeysWithheld).await;
        }
        Ok(())
    }

    async fn dispatch(&mut self, now: u64) -> Result<(), Trouble> {
        let (commit, dispatched) = self.mail.dispatch(self.uptime());
        let some = !dispatched.is_empty();
        for message in dispatched {
            if message.row.content.kind == WORD_TYPE {
                self.blob_word(&message.row, now).await?;
                continue;
            }
            let Some(opened) = OpenedMessage::of(&message) else { continue };
            if opened.missing > 0 {
                let waited_ms = now.saturating_sub(message.row.opened_at);
                tracing::info!(
                    missing = opened.missing,
                    waited_ms,
                    "a message goes on without its predecessors"
                );
            }
            if self.deps.store.spool_opened(&opened, (self.deps.now)()).await? == Spooled::Full {
                return Err(Trouble::SpoolFull);
            }
        }
        self.keep(commit).await?;
        if some {
            let _ = self.deps.events.send(SealedEvent::Spooled).await;
        }
        Ok(())
    }

    async fn seal(&mut self, now: u64) -> Result<(), Trouble> {
        self.courier.expire(now);
        let standing = Arc::clone(&self.deps.standing);
        let commit = self.mail.flush_receipts(&move |key| standing(key).may_know(), now)?;
        self.keep(commit).await?;
        if self.sessions.iter().any(ClientSession::is_ready) || self.link_carries() {
            let commit = self.mail.drop_stale(PATIENCE_MS, now);
            self.keep(commit).await?;
        }
        for peer in self.mail.peers_to_seal() {
            let sealing = self.mail.seal(&peer, now)?;
            self.keep(sealing.commit).await?;
            if sealing.needs_keys {
                self.courier.claim_keys(&mut self.sessions, peer, now);
                self.go_on_without_keys(&peer, now).await?;
            }
        }
        Ok(())
    }

    async fn sweep(&mut self, now: u64) -> Result<(), Trouble> {
        // A clock that was set back does not hold it up.
        if (self.swept_at..self.swept_at.saturating_add(SWEEP_MS)).contains(&now) {
            return Ok(());
        }
        self.swept_at = now;
        let network = local_addresses();
        if std::mem::replace(&mut self.network, network) != network {
            self.sessions.iter_mut().for_each(|session| session.network_changed(now));
        }
        if !self.clock_is_disputed() {
            let (commit, changes) = self.mail.expire(now);
            self.keep_with(commit, changes).await?;
        }
        let commit = self.mail.forget_seen(now);
        self.keep(commit).await?;
        let commit = self.mail.ensure_device(&self.deps.device_name, now)?;
        self.keep(commit).await?;
        if let Some(hello) = self.hello() {
            self.sessions.iter_mut().for_each(|session| session.set_hello(hello.clone()));
        }
        self.courier.tidy(&self.mail);
        Ok(())
    }

    fn relay_url(&self, relay: usize) -> &str {
        self.relays.get(relay).map_or("", |relay| relay.name.as_str())
    }
}

fn unix(now: fn() -> i64) -> u64 {
    u64::try_from(now()).unwrap_or(0)
}
