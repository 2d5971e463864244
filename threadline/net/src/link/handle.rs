//! What the rest of the node sees of the link.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use threadline::v1::client::{ClientConfig, DeliveryEvent, KnownAgent, LinkChange};
use threadline::v1::frames::DiscoverFilter;
use threadline::{Fingerprint, MessageId};
use tokio::sync::{mpsc, oneshot, watch};

use crate::registry::RegistryAccess;

/// Longest wait for the relay's answer to a discovery.
const DISCOVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Something that happened on the link. The receiver must keep up: the link waits for room.
#[derive(Debug, Clone)]
pub enum LinkEvent {
    /// Envelopes were committed to the spool.
    Spooled,
    /// Something happened to a message of ours.
    Delivery {
        /// Recipient, when the message went over this very connection.
        to: Option<Fingerprint>,
        /// The message.
        id: MessageId,
        /// What happened.
        event: DeliveryEvent,
    },
    /// [`LinkHandle::agents`] changed.
    AgentsChanged,
    /// The link moved to another state; [`LinkHandle::status`] shows it already.
    StateChanged {
        /// Relay address.
        relay: String,
        /// The transition.
        change: LinkChange,
    },
    /// A peer was not reached without the relay, which may carry its messages now.
    DirectAway(Fingerprint),
    /// The spool cannot take more, or again can.
    SpoolBlocked(bool),
}

/// State of the link for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct LinkStatus {
    /// `stopped`, `connecting`, `authenticating`, `connected`, `backoff`, `banned_until`, `bad_challenge`,
    /// `displaced` or `auth-failed`.
    pub state: &'static str,
    /// Unix ms since which it is so.
    pub since: i64,
    /// Relay address.
    pub relay_url: Option<String>,
    /// Whether it will try again by itself.
    pub self_healing: bool,
    /// Unix ms of the next attempt.
    pub next_attempt_at: Option<i64>,
    /// Latest reason given by the relay or the transport.
    pub last_error: Option<String>,
    /// Connections lost since the link was made.
    pub disconnects: u64,
    /// Messages taken into the spool.
    pub messages_in: u64,
    /// Messages written to the relay.
    pub messages_out: u64,
    /// Unix ms of the latest message in either direction.
    pub last_message_at: Option<i64>,
    /// `listed`, `not_listed` or `updated`, as the relay said at login.
    pub registry_status: Option<String>,
}

impl LinkStatus {
    /// Whether messages flow.
    pub fn is_connected(&self) -> bool {
        self.state == "connected"
    }
}

/// Why a discovery gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiscoverError {
    /// The link is down.
    #[error("the relay link is not connected")]
    NotConnected,
    /// Ten questions a minute were asked, or one about this very name within 30 s.
    #[error("the relay was asked enough for now")]
    Limited,
    /// No answer within 5 s.
    #[error("the relay did not answer within 5 s")]
    TimedOut,
}

pub(super) enum Command {
    Start(Box<ClientConfig>),
    Configure(Box<ClientConfig>),
    Stop,
    Flush,
    Discover(Option<DiscoverFilter>, oneshot::Sender<Result<Vec<KnownAgent>, DiscoverError>>),
}

/// Handle to the running link; cheap to clone.
#[derive(Clone)]
pub struct LinkHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) status: watch::Receiver<LinkStatus>,
    pub(super) agents: watch::Receiver<Arc<Vec<KnownAgent>>>,
    pub(super) registry: watch::Receiver<Option<RegistryAccess>>,
}

impl std::fmt::Debug for LinkHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkHandle").field("state", &self.status.borrow().state).finish_non_exhaustive()
    }
}

impl LinkHandle {
    /// Switches the link on with this introduction, also out of a final state. Another address reconnects.
    pub async fn start(&self, config: ClientConfig) {
        let _ = self.commands.send(Command::Start(Box::new(config))).await;
    }

    /// Uses another introduction from the next login on.
    pub async fn configure(&self, config: ClientConfig) {
        let _ = self.commands.send(Command::Configure(Box::new(config))).await;
    }

    /// Says good-bye and switches the link off.
    pub async fn stop(&self) {
        let _ = self.commands.send(Command::Stop).await;
    }

    /// Tells the link that the outbox has rows. A full queue is fine: a flush is already waiting in it.
    pub fn flush(&self) {
        let _ = self.commands.try_send(Command::Flush);
    }

    /// State now.
    pub fn status(&self) -> LinkStatus {
        self.status.borrow().clone()
    }

    /// State with changes.
    pub fn watch_status(&self) -> watch::Receiver<LinkStatus> {
        self.status.clone()
    }

    /// Everyone the relay told about.
    pub fn agents(&self) -> Arc<Vec<KnownAgent>> {
        Arc::clone(&self.agents.borrow())
    }

    /// Address and token of the registry, while the relay issued one.
    pub fn registry(&self) -> Option<RegistryAccess> {
        self.registry.borrow().clone()
    }

    /// Registry access with changes.
    pub fn watch_registry(&self) -> watch::Receiver<Option<RegistryAccess>> {
        self.registry.clone()
    }

    /// Asks the relay who is there.
    pub async fn discover(&self, filter: Option<DiscoverFilter>) -> Result<Vec<KnownAgent>, DiscoverError> {
        let (tx, rx) = oneshot::channel();
        self.commands.send(Command::Discover(filter, tx)).await.map_err(|_| DiscoverError::NotConnected)?;
        match tokio::time::timeout(DISCOVER_TIMEOUT, rx).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(DiscoverError::NotConnected),
            Err(_) => Err(DiscoverError::TimedOut),
        }
    }
}
