//! What the rest of the node sees of sealed mail.

use instar_outbound::{Cleared, OutboundMessage};
use serde::Serialize;
use threadline::ThreadId;
use threadline::v2::content::{Need, ReceiptStatus};
use threadline::v2::frames::Presence;
use threadline::v2::mail::{Change, Draft, MailError, SubmitError};
use threadline::v2::{Id, Key};
use tokio::sync::{mpsc, oneshot, watch};

use crate::store::StoreError;

/// A relay that speaks v2, with the key it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRelay {
    /// `wss://host[:port]/v2/connect`, or `ws://` where the key was configured.
    pub url: String,
    /// The name that is dialled, as the relay's `hosts` have it.
    pub host: String,
    /// Its key.
    pub key: Key,
}

/// Everything about a message but its text, which comes with the clearance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedDraft {
    /// Payload type.
    pub kind: String,
    /// Thread.
    pub thread: ThreadId,
    /// Message that it answers.
    pub reply_to: Option<Id>,
    /// Subject.
    pub subject: Option<String>,
    /// Whether a reply is wanted.
    pub need: Option<Need>,
    /// Life, ms.
    pub ttl_ms: Option<u64>,
    /// 0 to 3.
    pub priority: u8,
}

/// Something happened. The receiver must keep up: sealed mail waits for room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SealedEvent {
    /// A message of ours moved on.
    Delivery(Change),
    /// A peer came or went.
    Presence(Presence),
    /// A relay gives out the fallback key although it holds one-time keys.
    KeysWithheld,
}

/// One relay session, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SealedStatus {
    /// Address.
    pub relay: String,
    /// `stopped`, `connecting`, `ready`, `backoff` or `wrong-relay`.
    pub state: &'static str,
    /// `quic` or `websocket`, while ready.
    pub carrier: Option<&'static str>,
    /// Unix ms since which it is ready.
    pub since: Option<u64>,
    /// Unix ms of the next attempt.
    pub next_attempt_at: Option<u64>,
    /// The relay's word for the pause.
    pub code: Option<&'static str>,
}

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// Sealed mail is stopped.
    #[error("sealed mail is stopped")]
    Stopped,
    /// See [`SubmitError`].
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// See [`MailError`].
    #[error(transparent)]
    Mail(#[from] MailError),
    /// It could not be stored; nothing was sent.
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(super) enum Command {
    Submit { to: Key, draft: Box<Draft>, answer: oneshot::Sender<Result<Id, SealedError>> },
    Receipt { peer: Key, id: Id, status: ReceiptStatus },
    Watch(Vec<Key>),
}

/// Handle to running sealed mail; cheap to clone.
#[derive(Debug, Clone)]
pub struct SealedHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) status: watch::Receiver<Vec<SealedStatus>>,
}

impl SealedHandle {
    /// Takes a cleared message over. When it returns, the message is on the disk and will be sent until its peer
    /// confirms it or its life ends.
    pub async fn submit(
        &self,
        to: Key,
        cleared: Cleared<OutboundMessage>,
        draft: SealedDraft,
    ) -> Result<Id, SealedError> {
        let (message, _) = cleared.into_parts();
        let draft = Draft {
            kind: draft.kind,
            thread: draft.thread,
            body: threadline::v2::content::Body::Text(message.text),
            reply_to: draft.reply_to,
            subject: draft.subject,
            need: draft.need,
            ttl_ms: draft.ttl_ms,
            priority: draft.priority,
        };
        let (answer, rx) = oneshot::channel();
        let command = Command::Submit { to, draft: Box::new(draft), answer };
        self.commands.send(command).await.map_err(|_| SealedError::Stopped)?;
        rx.await.map_err(|_| SealedError::Stopped)?
    }

    /// Tells a peer more about its message than that it is here.
    pub async fn receipt(&self, peer: Key, id: Id, status: ReceiptStatus) {
        let _ = self.commands.send(Command::Receipt { peer, id, status }).await;
    }

    /// Asks every relay for presence of these keys.
    pub async fn watch(&self, keys: Vec<Key>) {
        let _ = self.commands.send(Command::Watch(keys)).await;
    }

    /// State of every relay session now.
    pub fn status(&self) -> Vec<SealedStatus> {
        self.status.borrow().clone()
    }

    /// State with changes.
    pub fn watch_status(&self) -> watch::Receiver<Vec<SealedStatus>> {
        self.status.clone()
    }
}
