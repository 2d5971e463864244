//! What the rest of the node sees of sealed mail.

use std::sync::Arc;
use std::time::Duration;

use instar_outbound::{Cleared, OutboundMessage};
use serde::Serialize;
use threadline::ThreadId;
use threadline::v2::blob;
use threadline::v2::content::{Body, Need, ReceiptStatus};
use threadline::v2::frames::{Found, FoundRow, Keys, MAX_WATCHED, Search};
use threadline::v2::inside_v1::Introduction;
use threadline::v2::login::QuicAddress;
use threadline::v2::mail::{Change, Draft, MailError, SubmitError};
use threadline::v2::opened::{OpenedMessage, members_body, sealed_id};
use threadline::v2::{Bin, Code, Id, Key, MAX_BODY};
use tokio::sync::{mpsc, oneshot, watch};

use crate::control::Control;
use crate::store::{OutboundDraft, Queued, StoreError};

/// Longest wait for a page of a relay's directory.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(10);
/// Entries of a page, and pages that are read at once.
const PAGE: usize = 100;
const MAX_PAGES: usize = 5;

/// A relay that speaks v2, with the key it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRelay {
    /// Its address in the configuration, under which it is remembered.
    pub name: String,
    /// `wss://host[:port]/v2/connect`, or `ws://` where the key was configured; absent where it speaks QUIC alone.
    pub url: Option<String>,
    /// QUIC sockets, in order of preference.
    pub quic: Vec<QuicAddress>,
    /// The name that is dialled, as the relay's `hosts` have it.
    pub host: String,
    /// Its key.
    pub key: Key,
    /// Whether the key, and that it spoke v2, are remembered for this address: not so for the account's own relay.
    pub remember: bool,
}

/// Everything about a message but its text, which comes with the clearance, and what the thread store keeps of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedDraft {
    /// Whether a reply is wanted.
    pub need: Option<Need>,
    /// Life, ms.
    pub ttl_ms: u64,
    /// 0 to 3.
    pub priority: u8,
}

/// Something happened. The receiver must keep up: sealed mail waits for room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SealedEvent {
    /// A message of ours moved on.
    Delivery(Change),
    /// A watched peer came to a first relay, or left the last one that it was at.
    Presence {
        /// Who.
        key: Key,
        /// Whether it is there.
        here: bool,
    },
    /// What was told of presence does not count any more; who is there is told anew.
    PresenceUnknown,
    /// A relay gives out the fallback key although it holds one-time keys.
    KeysWithheld,
    /// A relay's clock and ours differ by more than two minutes.
    ClocksDiffer {
        /// Its address in the configuration.
        relay: String,
        /// How far the relay's is ahead, ms.
        ahead_ms: i64,
    },
    /// Opened messages were handed on.
    Spooled,
    /// Envelopes wait for the link, which carries them inside v1 messages.
    Carry,
    /// A peer wrote in a session that is not there any more, and no relay of v2 gives it the keys for another one.
    Introduce(Key),
    /// This state turned out to be an old copy of another: the machine became a device of its own.
    NewDevice,
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
    /// Ids of sealed mail are UUIDs.
    #[error("the id of the message is no UUID")]
    NoUuid,
    /// See [`MailError`].
    #[error(transparent)]
    Mail(#[from] MailError),
    /// It could not be stored; nothing was sent.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A message with everything that is stored of it.
pub(super) struct Submission {
    pub(super) to: Key,
    pub(super) id: Id,
    pub(super) draft: Draft,
    pub(super) cleared: Cleared<OutboundMessage>,
    pub(super) outbound: OutboundDraft,
    pub(super) answer: oneshot::Sender<Result<Queued, SealedError>>,
}

pub(super) enum Command {
    Submit(Box<Submission>),
    Control { to: Key, draft: Box<Draft>, answer: oneshot::Sender<Result<Id, SealedError>> },
    Receipt { peer: Key, id: Id, status: ReceiptStatus },
    Fetch(Box<OpenedMessage>),
    Search { relay: usize, search: Search, answer: oneshot::Sender<Found> },
    Carried { env: Vec<u8>, answer: oneshot::Sender<Result<(), Code>> },
    CanSeal { peer: Key, answer: oneshot::Sender<bool> },
    Introduce { answer: oneshot::Sender<Introduction> },
    Introduced { peer: Key, keys: Box<Keys> },
}

/// Handle to running sealed mail; cheap to clone.
#[derive(Debug, Clone)]
pub struct SealedHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) status: watch::Receiver<Vec<SealedStatus>>,
    pub(super) watched: Arc<watch::Sender<Vec<Key>>>,
}

impl SealedHandle {
    /// Takes a cleared message over, under the id of `outbound`. When it returns, the message is on the disk and will
    /// be sent until its peer confirms it or its life ends.
    pub async fn submit(
        &self,
        to: Key,
        cleared: Cleared<OutboundMessage>,
        outbound: OutboundDraft,
        sealed: SealedDraft,
    ) -> Result<Queued, SealedError> {
        let text = &cleared.get().text;
        let attachment = (text.len() > MAX_BODY).then(|| blob::seal_text(Bin(rand::random()), text).0);
        let beside = format!("[{} bytes of text come as an attachment]", text.len());
        let draft = Draft {
            kind: outbound.kind.clone(),
            thread: outbound.key.thread.clone(),
            body: Body::Text(if attachment.is_some() { beside } else { text.clone() }),
            attachments: attachment.into_iter().collect(),
            reply_to: outbound.in_reply_to.as_ref().and_then(sealed_id),
            subject: Some(outbound.subject.clone()).filter(|subject| !subject.is_empty()),
            need: sealed.need,
            ttl_ms: Some(sealed.ttl_ms),
            priority: sealed.priority,
        };
        let id = sealed_id(&outbound.id).ok_or(SealedError::NoUuid)?;
        let (answer, rx) = oneshot::channel();
        let submission = Submission { to, id, draft, cleared, outbound, answer };
        let command = Command::Submit(Box::new(submission));
        self.commands.send(command).await.map_err(|_| SealedError::Stopped)?;
        rx.await.map_err(|_| SealedError::Stopped)?
    }

    /// Takes a control message over, which holds no free text.
    pub async fn control(&self, to: Key, thread: ThreadId, control: &Control) -> Result<Id, SealedError> {
        let members = control.metadata().unwrap_or_default();
        let draft = Draft {
            kind: control.kind().into(),
            body: members_body(&members),
            priority: 3,
            ..Draft::text(thread, "")
        };
        let (answer, rx) = oneshot::channel();
        let command = Command::Control { to, draft: Box::new(draft), answer };
        self.commands.send(command).await.map_err(|_| SealedError::Stopped)?;
        rx.await.map_err(|_| SealedError::Stopped)?
    }

    /// Asks the sender of an opened message for its text, unless that is on its way. Once it is here, or known to be
    /// lost, the row of the message in the spool says so, and [`SealedEvent::Spooled`] follows.
    pub async fn fetch(&self, message: OpenedMessage) {
        let _ = self.commands.send(Command::Fetch(Box::new(message))).await;
    }

    /// Takes an envelope that a v1 message carried into sealed mail. When it returns, the envelope is on the disk, known,
    /// or refused with a code; `None` when sealed mail is stopped, or could not store it.
    pub async fn carried(&self, env: Vec<u8>) -> Option<Result<(), Code>> {
        let (answer, rx) = oneshot::channel();
        self.commands.send(Command::Carried { env, answer }).await.ok()?;
        rx.await.ok()
    }

    /// Whether there is a session with a device of this peer: sealing for it needs no relay of v2.
    pub async fn can_seal(&self, peer: Key) -> bool {
        let (answer, rx) = oneshot::channel();
        self.commands.send(Command::CanSeal { peer, answer }).await.is_ok() && rx.await.unwrap_or(false)
    }

    /// What this device says of itself to one peer that no relay of v2 tells of it.
    pub async fn introduce(&self) -> Option<Introduction> {
        let (answer, rx) = oneshot::channel();
        self.commands.send(Command::Introduce { answer }).await.ok()?;
        rx.await.ok()
    }

    /// Learns the device of a peer that introduced itself, and begins a session with it if there is none.
    pub async fn introduced(&self, introduction: &Introduction) {
        let (peer, keys) = (introduction.key, Box::new(introduction.keys()));
        let _ = self.commands.send(Command::Introduced { peer, keys }).await;
    }

    /// Tells a peer more about its message than that it is here.
    pub async fn receipt(&self, peer: Key, id: Id, status: ReceiptStatus) {
        let _ = self.commands.send(Command::Receipt { peer, id, status }).await;
    }

    /// Asks every relay for presence of the first 512 of these keys, and of no others.
    pub fn watch(&self, mut keys: Vec<Key>) {
        keys.truncate(MAX_WATCHED);
        keys.sort_unstable();
        keys.dedup();
        self.watched.send_if_modified(|known| {
            let changed = *known != keys;
            *known = keys;
            changed
        });
    }

    /// Whether presence of this key was asked for.
    pub fn watches(&self, key: &Key) -> bool {
        self.watched.borrow().binary_search(key).is_ok()
    }

    /// Reads the directories of the relays whose session is open, but for `except`: at most `limit` agents of each,
    /// with this capability. `None` when no relay answered.
    pub async fn search(
        &self,
        except: Option<&str>,
        capability: Option<&str>,
        limit: usize,
    ) -> Option<Vec<FoundRow>> {
        let open = |status: &SealedStatus| status.state == "ready" && except != Some(status.relay.as_str());
        let sessions = self.status();
        let relays = sessions.iter().enumerate().filter(|(_, status)| open(status)).map(|(relay, _)| relay);
        let reading = relays.map(|relay| self.read_directory(relay, capability, limit));
        let answers = futures::future::join_all(reading).await;
        answers.into_iter().flatten().reduce(|mut all, more| {
            all.extend(more);
            all
        })
    }

    /// The first `limit` entries of one relay's directory; fewer when it stops answering.
    async fn read_directory(
        &self,
        relay: usize,
        capability: Option<&str>,
        limit: usize,
    ) -> Option<Vec<FoundRow>> {
        let mut rows: Vec<FoundRow> = Vec::new();
        let mut cur = None;
        for page in 0..MAX_PAGES {
            let left = limit.saturating_sub(rows.len()).min(PAGE);
            let search = Search {
                rid: 0,
                q: None,
                cap: capability.map(str::to_owned),
                int: None,
                fw: None,
                on: None,
                cur: cur.take(),
                lim: Some(u16::try_from(left).unwrap_or(u16::MAX)),
            };
            let (answer, rx) = oneshot::channel();
            self.commands.send(Command::Search { relay, search, answer }).await.ok()?;
            let Ok(Ok(found)) = tokio::time::timeout(DIRECTORY_TIMEOUT, rx).await else {
                return (page > 0).then_some(rows);
            };
            rows.extend(found.rows.into_iter().take(left));
            cur = found.cur;
            if cur.is_none() || rows.len() >= limit {
                break;
            }
        }
        Some(rows)
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
