//! The one way in (`threadline-agent.md` §7): a row of the spool becomes a stored message, or is refused.

use std::time::Duration;

use threadline::autonomy::Notice;
use threadline::delivery::DEFAULT_TTL_MS;
use threadline::identity::PublicIdentity;
use threadline::inbound::{
    Class, Disposition, Incoming, Refusal, SAME_BODY_WINDOW_MS, SenderFacts, Standing, Verdict, admit,
    authenticate, receive,
};
use threadline::limits::{self, Window};
use threadline::service::ServiceError;
use threadline::threads::{AFFINITY_FIRST_MS, Placement, place_inbound};
use threadline::trust::TrustSource;
use threadline::v1::envelope::{Authentication, Envelope, ReceiveError};
use threadline::v2::Key;
use threadline::v2::content::ReceiptStatus;
use threadline::v2::inside_v1;
use threadline::v2::opened::OpenedMessage;
use threadline::{Fingerprint, MessageId, ThreadId, ThreadKey, TrustLevel};
use threadline_net::Control;
use threadline_net::store::{
    Accepted, ApprovalDraft, ApprovalKind, Auth, HELD_BY_PAUSE, Inbound, KnownPeer, MessageState, SEALED,
    SpoolRow, StoreError, TEXT_ELSEWHERE, UNKNOWN_SENDER,
};

use crate::core::Core;
use crate::send::SealFailed;

/// Carrier of what an agent of this host posted or left in a file.
pub(crate) const LOCAL: &str = "local";
/// Carrier of what a paired server posted.
pub(crate) const HTTP: &str = "http";
/// Rows looked at together.
const BATCH: u32 = 64;
/// The spool is looked at this often even if nobody woke us.
const TICK: Duration = Duration::from_secs(5);
/// Pause before a row that could not be evaluated is tried again, ms.
const RETRY_MS: i64 = 10_000;
/// Tries before such a row is given up.
const MAX_ATTEMPTS: u32 = 3;
/// Longest pause before the key of a sender is looked for again, ms.
const KEY_RETRY_MAX_MS: i64 = 900_000;
/// Longest pause before a text is asked for again, ms.
const TEXT_RETRY_MAX_MS: i64 = 60_000;
/// Least life of a held message, ms.
const HELD_MS: i64 = 86_400_000;
/// Reason of clear messages of senders that seal.
const DOWNGRADE: &str = "downgrade";

/// Why a row is left for later.
pub(crate) enum Unready {
    /// The store failed; nothing was changed.
    Store(StoreError),
    /// The key of the sender is not known yet.
    NoKey,
    /// A record was not written.
    Service(ServiceError),
}

impl From<StoreError> for Unready {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What one look at the spool left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// There may be more that is due.
    More,
    /// Everything that is due was looked at.
    Done,
    /// The store takes nothing: what is due stays due.
    Stuck,
}

/// What became of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    Finished,
    Later,
    /// Left as it is, because nothing can be written.
    Stuck,
}

impl Core {
    /// Ingests the spool until the room is stopped.
    pub(crate) async fn run_ingest(&self) {
        loop {
            let wait = match self.ingest_due().await {
                Round::More => continue,
                Round::Stuck => Duration::from_millis(RETRY_MS.unsigned_abs()),
                Round::Done => {
                    let now = self.now();
                    let next = self.store.spool_next_due().await.ok().flatten();
                    next.map_or(TICK, |at| {
                        Duration::from_millis(u64::try_from(at - now).unwrap_or(0))
                            .clamp(Duration::from_millis(50), TICK)
                    })
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.ingest_wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Ingests what is due.
    async fn ingest_due(&self) -> Round {
        let rows = match self.store.spool_due(self.now(), BATCH).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(%error, "the spool cannot be read");
                return Round::Stuck;
            }
        };
        let full = rows.len() == BATCH as usize;
        let mut held_back: Vec<Fingerprint> = Vec::new();
        let mut finished = false;
        let mut round = if full { Round::More } else { Round::Done };
        for row in rows {
            // A row left for later holds back what its sender wrote after it.
            if held_back.contains(&row.from) {
                continue;
            }
            match self.ingest(&row).await {
                Row::Finished => finished = true,
                Row::Later => {
                    held_back.push(row.from);
                    round = Round::Done;
                }
                Row::Stuck => {
                    round = Round::Stuck;
                    break;
                }
            }
        }
        if finished {
            self.dispatch_wake.notify_one();
        }
        round
    }

    /// Carries one row through the pipeline.
    async fn ingest(&self, row: &SpoolRow) -> Row {
        let reason = match self.evaluate(row).await {
            Ok(true) => return Row::Finished,
            Ok(false) => return Row::Later,
            Err(Unready::NoKey) => return self.wait_for_key(row).await,
            Err(Unready::Service(error)) => {
                tracing::error!(%error, seq = row.seq, "a spooled message could not be carried out");
                "internal".to_owned()
            }
            Err(Unready::Store(error)) => {
                tracing::error!(%error, seq = row.seq, "a spooled message could not be evaluated");
                if error.is_storage_full() {
                    return Row::Stuck;
                }
                "internal".to_owned()
            }
        };
        let not_before = self.now() + RETRY_MS * i64::from(row.attempts + 1);
        match self.store.spool_failed(row.seq, not_before, &reason).await {
            Ok(attempts) if attempts >= MAX_ATTEMPTS => {
                self.log_refusal(row, &reason);
                let text = format!(
                    "A message from {} was given up after {attempts} tries: {reason}",
                    row.from.short()
                );
                self.notify(format!("inbound-given-up:{}", row.from), text, false);
                if let Err(error) = self.store.spool_refuse(row.seq, &reason).await {
                    tracing::error!(%error, "a spool row was not marked");
                    return Row::Stuck;
                }
                Row::Finished
            }
            Ok(_) => Row::Later,
            Err(error) => {
                tracing::error!(%error, "a spool row was not postponed");
                Row::Stuck
            }
        }
    }

    /// The relay was told that the message is here, so it waits for its sender's key as long as a message lives. It is
    /// looked for less often the longer it is missing; a key that is pinned meanwhile makes the row due.
    async fn wait_for_key(&self, row: &SpoolRow) -> Row {
        let now = self.now();
        let marked = if let Some(pause) = key_pause(now - row.received_at) {
            self.store.spool_postpone(row.seq, now + pause, UNKNOWN_SENDER).await.map(|()| Row::Later)
        } else {
            self.log_refusal(row, UNKNOWN_SENDER);
            let text =
                format!("A sealed message from {} was given up: its key was never found", row.from.short());
            self.notify(format!("inbound-given-up:{}", row.from), text, false);
            self.store.spool_refuse(row.seq, UNKNOWN_SENDER).await.map(|()| Row::Finished)
        };
        marked.unwrap_or_else(|error| {
            tracing::error!(%error, "a spool row was not postponed");
            Row::Stuck
        })
    }

    async fn evaluate(&self, row: &SpoolRow) -> Result<bool, Unready> {
        if row.transport == SEALED {
            return self.evaluate_sealed(row).await;
        }
        let envelope = match Envelope::parse(&row.envelope) {
            Ok(envelope) => envelope,
            Err(error) => return self.refuse(row, &Refusal::Envelope(error)).await,
        };
        if inside_v1::carries(&envelope) {
            return self.evaluate_carried(row, &envelope).await;
        }
        let header = match receive(&envelope, &self.us) {
            Ok(header) => header,
            Err(refusal) => return self.refuse(row, &refusal).await,
        };
        let peer = header.from;
        let facts = SenderFacts {
            seen: self.store.is_seen(peer, header.message_id.clone()).await?,
            blocked: self.controls.get().is_blocked(&peer),
            key: if envelope.is_sealed() { self.key_for(&peer, &envelope).await? } else { None },
        };
        let mut incoming = match authenticate(&envelope, &self.identity, &facts, row.received_at) {
            Ok(incoming) => vouched_for(incoming, &row.transport),
            Err(Refusal::Envelope(ReceiveError::UnknownSender)) => return Err(Unready::NoKey),
            Err(refusal) => return self.refuse(row, &refusal).await,
        };
        if let Some(key) = facts.key {
            // Only a signature that holds pins a key.
            self.pin(&peer, key, "message").await?;
        }
        let downgraded = incoming.authentication == Authentication::Transport
            && (self.store.speaks_v2(peer).await? || self.store.has_sealed(peer).await?);
        if downgraded {
            // Its id is nobody's proof: the message that it belongs to may still come.
            incoming.header.message_id = MessageId::from_uuid(uuid::Uuid::now_v7());
        }
        let introduces = !downgraded
            && incoming
                .content
                .metadata
                .as_ref()
                .is_some_and(|fields| fields.contains_key(inside_v1::INTRODUCTION));
        let introduced = introduces.then(|| incoming.clone());
        let done = self.judge(row, incoming, downgraded).await?;
        if let Some(incoming) = introduced.filter(|_| done) {
            self.learn_introduction(&incoming).await?;
        }
        Ok(done)
    }

    /// An opened message of sealed mail: its sender is proven, and knows that the message is here.
    async fn evaluate_sealed(&self, row: &SpoolRow) -> Result<bool, Unready> {
        let opened = match OpenedMessage::from_bytes(&row.envelope) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(%error, seq = row.seq, "an opened message is not readable");
                self.store.spool_refuse(row.seq, "unreadable").await?;
                return Ok(true);
            }
        };
        let Some(sender) = opened.sender() else {
            self.store.spool_refuse(row.seq, "bad-key").await?;
            return Ok(true);
        };
        let peer = sender.fingerprint();
        if self.pin(&peer, sender, "message").await? != Some(sender) {
            self.log_refusal(row, "fingerprint-conflict");
            self.store.spool_refuse(row.seq, "fingerprint-conflict").await?;
            return Ok(true);
        }
        if !self.sealed.handle.watches(&Key::from(&sender)) {
            self.watch_peers().await;
        }
        if self.store.is_seen(peer, row.message_id.clone()).await? {
            return self.refuse(row, &Refusal::Duplicate).await;
        }
        if self.controls.get().is_blocked(&peer) {
            return self.refuse(row, &Refusal::Blocked).await;
        }
        if !opened.is_supported() {
            self.log_refusal(row, "unsupported-type");
            self.receipt(&peer, &row.message_id, ReceiptStatus::Rejected).await;
            self.store.spool_refuse(row.seq, "unsupported-type").await?;
            return Ok(true);
        }
        if opened.blob.is_some() {
            return self.wait_for_text(row, opened, peer).await;
        }
        self.judge(row, opened.incoming(&sender, self.us), false).await
    }

    /// The text of this message is not in it. It is fetched from contacts only: what a stranger writes must fit into its
    /// message.
    async fn wait_for_text(
        &self,
        row: &SpoolRow,
        opened: OpenedMessage,
        peer: Fingerprint,
    ) -> Result<bool, Unready> {
        let now = self.now();
        let waited = now - row.received_at;
        let lost = opened.lost.clone().or_else(|| {
            let is_over = waited >= self.config().sealed_ttl_ms;
            is_over.then(|| "it did not come as long as messages are kept".into())
        });
        if let Some(reason) = lost {
            self.log_refusal(row, "text-lost");
            let text = format!(
                "A long message from {} cannot be read: {reason}. Ask for it again in thread {}",
                self.name_of(&peer).await,
                opened.thread
            );
            self.notify(format!("text-lost:{peer}:{}", row.message_id), text, false);
            self.receipt(&peer, &row.message_id, ReceiptStatus::Failed).await;
            self.store.spool_refuse(row.seq, "text-lost").await?;
            return Ok(true);
        }
        if self.level(&peer) == TrustLevel::Untrusted {
            self.log_refusal(row, "payload-too-large");
            self.receipt(&peer, &row.message_id, ReceiptStatus::Rejected).await;
            self.store.spool_refuse(row.seq, "payload-too-large").await?;
            return Ok(true);
        }
        let pause = waited.clamp(RETRY_MS, TEXT_RETRY_MAX_MS);
        self.store.spool_postpone(row.seq, now + pause, TEXT_ELSEWHERE).await?;
        self.sealed.handle.fetch(opened).await;
        Ok(false)
    }

    /// The pipeline behind authentication. `downgraded`: the message came in clear although its sender seals.
    async fn judge(&self, row: &SpoolRow, incoming: Incoming, downgraded: bool) -> Result<bool, Unready> {
        let peer = incoming.header.from;
        let key = ThreadKey { peer, thread: self.place(&incoming).await? };
        self.greet_acquaintance(&incoming).await;
        let standing = self.standing(&incoming, &key, row).await?;
        let config = self.config();
        let windows = incoming.windows(&config.limits, &standing, &key.thread);
        let mut usage = self.store.usage(windows, self.now()).await?;
        if let (Class::Conversation | Class::AutoAck, Some(machine)) = (incoming.class(), &self.machine) {
            let window = config.limits.machine();
            let used = machine.usage(&window, self.now()).await.map_err(StoreError::from)?;
            usage.push((window, used));
        }
        match admit(&incoming, &standing, &config.policy, &usage, row.received_at, self.now()) {
            Verdict::Refuse(refusal) => self.refuse(row, &refusal).await,
            Verdict::Later { not_before, limited } => {
                tracing::info!(peer = %peer.short(), limit = limited.limit, "message waits for its limit");
                self.store.spool_postpone(row.seq, not_before, "rate-limited").await?;
                Ok(false)
            }
            Verdict::Finish { .. } if downgraded => {
                self.log_refusal(row, DOWNGRADE);
                self.store.spool_refuse(row.seq, DOWNGRADE).await?;
                Ok(true)
            }
            Verdict::Finish { class, record } => self.finish(row, &incoming, &key, class, record).await,
            Verdict::Store { disposition, record } => {
                let disposition = match disposition {
                    Disposition::Route(_) | Disposition::Note if downgraded => {
                        let text = format!(
                            "A message in clear claims to come from {}, which seals its messages. It waits for you: see \
                             `instar threadline approvals`",
                            self.name_of(&peer).await
                        );
                        self.notify(format!("downgrade:{peer}"), text, true);
                        Disposition::HoldForApproval
                    }
                    other => other,
                };
                self.keep(row, &incoming, &key, &standing, disposition, record).await
            }
        }
    }

    /// The key to check a sealed envelope with: the pinned one, else the one that the envelope names.
    async fn key_for(
        &self,
        peer: &Fingerprint,
        envelope: &Envelope,
    ) -> Result<Option<PublicIdentity>, StoreError> {
        match (self.store.pinned_key(*peer).await?, envelope.sender_key()) {
            (Some(pin), _) => Ok(Some(pin.key)),
            (None, Some(key)) => Ok(Some(key)),
            (None, None) => self.key_of(peer).await,
        }
    }

    /// The pinned key of a sender; learnt from the relay or from this machine where none is pinned.
    pub(crate) async fn key_of(&self, peer: &Fingerprint) -> Result<Option<PublicIdentity>, StoreError> {
        if let Some(pin) = self.store.pinned_key(*peer).await? {
            return Ok(Some(pin.key));
        }
        if let Some(key) = self.link.agents().iter().find(|a| a.fingerprint == *peer).and_then(|a| a.key) {
            return self.pin(peer, key, "relay").await;
        }
        if let Some(key) = self.sealed.found_key(peer) {
            return self.pin(peer, key, "relay").await;
        }
        if self.local.is_stale() {
            self.scan_local().await;
            if let Some(pin) = self.store.pinned_key(*peer).await? {
                return Ok(Some(pin.key));
            }
        }
        match self.key_from_registry(peer).await {
            Some(key) => self.pin(peer, key, "registry").await,
            None => Ok(None),
        }
    }

    pub(crate) async fn pin(
        &self,
        peer: &Fingerprint,
        key: PublicIdentity,
        source: &'static str,
    ) -> Result<Option<PublicIdentity>, StoreError> {
        use threadline::identity::PinOutcome;
        match self.store.pin_key(*peer, key, source, self.now()).await? {
            PinOutcome::New => {
                self.watch_peers().await;
                Ok(Some(key))
            }
            PinOutcome::Same => Ok(Some(key)),
            PinOutcome::Conflict => {
                let text = format!(
                    "Someone presents another key for the address of {}. The first key stays; nothing was accepted",
                    self.name_of(peer).await
                );
                self.notify(format!("fingerprint-conflict:{peer}"), text, true);
                Ok(self.store.pinned_key(*peer).await?.map(|pin| pin.key))
            }
            PinOutcome::WrongAddress => Ok(None),
        }
    }

    async fn place(&self, incoming: &Incoming) -> Result<ThreadId, StoreError> {
        let header = &incoming.header;
        let now = self.now();
        let recent = match &header.thread_id {
            Some(_) => Vec::new(),
            None => self.store.recent_threads(header.from, now - AFFINITY_FIRST_MS).await?,
        };
        let placed = place_inbound(header.thread_id.as_ref(), incoming.authentication, &recent, now);
        Ok(match placed {
            Placement::Thread(thread) => thread,
            Placement::New => ThreadId::from_uuid(uuid::Uuid::now_v7()),
            Placement::SenderDefault => match self.store.default_thread(header.from).await? {
                Some(thread) => thread,
                None => format!("auto-{}", uuid::Uuid::new_v4())
                    .parse()
                    .expect("a prefix and a UUID are a thread id"),
            },
        })
    }

    /// Before a stranger is held: is it an agent of this account, or may its key alone open the door?
    async fn greet_acquaintance(&self, incoming: &Incoming) {
        let peer = incoming.header.from;
        if self.level(&peer) > TrustLevel::Untrusted {
            return;
        }
        if self.local.is_stale() {
            self.scan_local().await;
        } else if let Some(agent) = self.local.known().into_iter().find(|a| a.key.fingerprint() == peer) {
            self.trust_local(&agent.key, &agent.name).await;
        }
        let lowered = self.profile(&peer).is_some_and(|p| p.lowered_by_owner());
        if self.config().first_contact_auto
            && incoming.authentication == Authentication::E2e
            && !lowered
            && self.level(&peer) == TrustLevel::Untrusted
        {
            let name = self.name_of(&peer).await;
            let source = TrustSource::FirstContactAuto;
            let raised = self.apply_level(peer, &name, TrustLevel::Verified, source, "system", None).await;
            if let Err(error) = raised {
                tracing::error!(%error, "a first contact was not raised");
            }
        }
    }

    async fn standing(
        &self,
        incoming: &Incoming,
        key: &ThreadKey,
        row: &SpoolRow,
    ) -> Result<Standing, StoreError> {
        let peer = key.peer;
        let now = self.now();
        let pending = self.store.pending_approvals().await?;
        let count = |kind| pending.iter().filter(|(k, _)| *k == kind).map(|(_, n)| n).sum();
        let of_peer = |kind| self.store.pending_of(peer, kind);
        let first_contacts_of_peer = of_peer(ApprovalKind::FirstContact).await?;
        let messages_of_peer = of_peer(ApprovalKind::Message).await?;
        // Ids of sealed messages are ours to trust; a clear one may be a resend of another client under a new id.
        let same_body_recently = incoming.authentication == Authentication::Transport
            && self
                .store
                .same_text_since(key.clone(), &incoming.content.text, now - SAME_BODY_WINDOW_MS)
                .await?;
        let waiting = self.store.spool_others_of(peer, row.seq).await?;
        Ok(Standing {
            level: self.level(&peer),
            blocked_operations: self.profile(&peer).map(|p| p.blocked_operations).unwrap_or_default(),
            thread_approved: self.store.thread(key.clone()).await?.is_some_and(|t| t.approved),
            paused: self.controls.get().is_paused(&peer),
            same_body_recently,
            first_contact_pending: first_contacts_of_peer > 0,
            first_contacts: count(ApprovalKind::FirstContact),
            pending_of_peer: first_contacts_of_peer + messages_of_peer,
            pending: pending.iter().map(|(_, n)| n).sum(),
            queued_of_peer: waiting,
        })
    }

    async fn refuse(&self, row: &SpoolRow, refusal: &Refusal) -> Result<bool, Unready> {
        self.log_refusal(row, refusal.reason());
        if row.transport == SEALED && !matches!(refusal, Refusal::Duplicate | Refusal::Blocked) {
            self.receipt(&row.from, &row.message_id, ReceiptStatus::Rejected).await;
        }
        match refusal {
            Refusal::Duplicate => self.store.spool_done(row.seq).await?,
            // A blocked peer costs no row; what is refused for now may be tried again by its sender.
            Refusal::Blocked
            | Refusal::RateLimited(_)
            | Refusal::ControlLimited(_)
            | Refusal::HeldAlready
            | Refusal::FirstContactClosed
            | Refusal::ApprovalQueueFull => self.store.spool_forget(row.seq).await?,
            _ => self.store.spool_refuse(row.seq, refusal.reason()).await?,
        }
        if matches!(refusal, Refusal::RateLimited(_)) {
            let name = self.name_of(&row.from).await;
            let text = format!("Messages of {name} were refused: its limit is reached");
            self.notify(format!("rate-limited:{}", row.from), text, false);
        }
        Ok(true)
    }

    pub(crate) fn log_refusal(&self, row: &SpoolRow, reason: &str) {
        let peer: String = row.from.to_string().chars().take(12).collect();
        let (trust, transport) = (self.level(&row.from), row.transport.as_str());
        tracing::info!(event = "inbound-refused", peer, reason, %trust, transport);
        self.events.publish("inbound-refused", serde_json::json!({"peer": peer, "reason": reason}));
    }

    async fn finish(
        &self,
        row: &SpoolRow,
        incoming: &Incoming,
        key: &ThreadKey,
        class: Class,
        record: Vec<Window>,
    ) -> Result<bool, Unready> {
        self.store.record_events(record, self.now()).await?;
        match class {
            Class::Probe => {
                if let Err(error) = self.send_control(key, Control::Pong).await {
                    tracing::warn!(%error, "a probe was not answered");
                }
            }
            Class::ThreadResolved => {
                self.store.resolve_thread(key.clone(), self.now()).await?;
                self.thread_event("thread-resolved", key, "");
            }
            Class::InvitationRedeem => self.redeemed(incoming, key).await?,
            Class::InvitationResult => self.redemption_answered(incoming).await?,
            Class::Control | Class::AutoAck | Class::Conversation => {}
        }
        self.store.spool_done(row.seq).await?;
        Ok(true)
    }

    async fn keep(
        &self,
        row: &SpoolRow,
        incoming: &Incoming,
        key: &ThreadKey,
        standing: &Standing,
        disposition: Disposition,
        record: Vec<Window>,
    ) -> Result<bool, Unready> {
        let now = self.now();
        let shared = self.config().limits.machine();
        let (machine, record): (Vec<Window>, Vec<Window>) =
            record.into_iter().partition(|window| window.limit == shared.limit);
        let peer_name = self.name_of(&key.peer).await;
        let (state, reason, kind) = match disposition {
            Disposition::Route(_) => (MessageState::Stored, None, None),
            Disposition::Note => (MessageState::Noted, Some("auto-ack"), None),
            Disposition::HoldFirstContact => {
                (MessageState::Held, Some("first-contact"), Some(ApprovalKind::FirstContact))
            }
            Disposition::HoldForApproval => {
                (MessageState::Held, Some("approval"), Some(ApprovalKind::Message))
            }
            Disposition::HoldPaused => (MessageState::Held, Some(HELD_BY_PAUSE), None),
        };
        let approval = kind.map(|kind| approval_for(kind, incoming, key, now));
        let message = Inbound {
            spool_seq: Some(row.seq),
            key: key.clone(),
            peer_name: peer_name.clone(),
            id: incoming.header.message_id.clone(),
            kind: incoming.kind().to_owned(),
            body: incoming.content.text.clone(),
            subject: incoming.subject(),
            in_reply_to: incoming.in_reply_to().map(str::to_owned),
            created_at: incoming.header.timestamp,
            transport: row.transport.clone(),
            auth: match incoming.authentication {
                Authentication::E2e => Auth::E2e,
                Authentication::Transport => Auth::Transport,
                Authentication::LocalToken => Auth::LocalToken,
                Authentication::Signed => Auth::Signed,
            },
            trust: standing.level,
            state,
            reason: reason.map(str::to_owned),
            approval,
            windows: record,
        };
        match self.store.accept(message, Self::queue_limits(), now).await {
            Ok(Accepted::New { collision, .. }) => {
                // Another database: a crash in between leaves one message uncounted.
                for (window, limits) in machine.iter().zip(&self.machine) {
                    if let Err(error) = limits.record(window, now).await {
                        tracing::error!(%error, "a message was not counted for the account");
                    }
                }
                if state == MessageState::Held && row.transport == SEALED {
                    self.receipt(&key.peer, &incoming.header.message_id, ReceiptStatus::Held).await;
                }
                self.accepted(key, &incoming.header.message_id, &peer_name, disposition, collision).await;
            }
            Ok(Accepted::Duplicate) => {}
            Err(StoreError::ApprovalQueueFull { .. }) => {
                return self.refuse(row, &Refusal::ApprovalQueueFull).await;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    async fn accepted(
        &self,
        key: &ThreadKey,
        id: &MessageId,
        peer_name: &str,
        disposition: Disposition,
        collision: bool,
    ) {
        let now = self.now();
        let at = threadline::time::iso_ms(now);
        self.profiles.touch(|profiles| {
            if let Some(profile) = profiles.profiles.get_mut(&key.peer) {
                profile.history.messages_received += 1;
                profile.history.last_interaction = Some(at.clone());
            }
        });
        let heard = KnownPeer {
            fingerprint: key.peer,
            name: String::new(),
            capabilities: Vec::new(),
            framework: "unknown".into(),
            status: String::new(),
            first_seen: now,
            last_seen: now,
            machine: None,
            sources: vec!["message".into()],
        };
        if let Err(error) = self.store.merge_known(vec![heard]).await {
            tracing::warn!(%error, "a peer was not noted");
        }
        if collision {
            tracing::warn!(thread = %key.thread, peer = %key.peer.short(), "thread-id-collision");
        }
        match disposition {
            Disposition::Route(notice) => {
                self.thread_event("message-received", key, id.as_str());
                self.acknowledge_plainly(key).await;
                if notice == Notice::PerThread {
                    let text = format!("{peer_name} wrote in thread {}", key.thread);
                    self.notify(format!("thread:{}:{}", key.peer, key.thread), text, false);
                }
            }
            Disposition::HoldFirstContact => {
                self.thread_event("message-held", key, id.as_str());
                let text = "New agents want to talk: see `instar threadline approvals`";
                self.notify("threadline-first-contact", text, false);
            }
            Disposition::HoldForApproval => {
                self.thread_event("message-held", key, id.as_str());
                let text = "Messages wait for your decision: see `instar threadline approvals`";
                self.notify("threadline-approvals", text, false);
            }
            Disposition::HoldPaused => self.thread_event("message-held", key, id.as_str()),
            Disposition::Note => {}
        }
    }
}

impl Core {
    /// Tells a v1 peer in plain words that its message is here, where the owner wants that. Peers that read sealed
    /// messages know receipts of other kinds.
    async fn acknowledge_plainly(&self, key: &ThreadKey) {
        let config = self.config();
        if !config.auto_ack_v1 {
            return;
        }
        let acknowledged = async {
            if self.speaks(&key.peer, "tl-e2e").await? {
                return Ok(());
            }
            let windows = config.limits.acknowledgement(&key.peer, &key.thread);
            let usage = self.store.usage(windows.clone(), self.now()).await?;
            if limits::check(usage.iter().map(|(window, used)| (window, *used)), self.now()).is_ok() {
                self.store.record_events(windows, self.now()).await?;
                self.queue_control(key, Control::Received).await?;
            }
            Ok::<(), SealFailed>(())
        };
        if let Err(error) = acknowledged.await {
            tracing::warn!(%error, "a message was not acknowledged");
        }
    }
}

/// Pause before the key of a sender is looked for again, ms; `None` when the message waited long enough.
fn key_pause(waited_ms: i64) -> Option<i64> {
    (waited_ms < DEFAULT_TTL_MS).then(|| waited_ms.clamp(RETRY_MS, KEY_RETRY_MAX_MS))
}

/// What the carrier of a clear message proves about its sender.
fn vouched_for(mut incoming: Incoming, transport: &str) -> Incoming {
    incoming.authentication = match (incoming.authentication, transport) {
        (Authentication::Transport, LOCAL) => Authentication::LocalToken,
        (Authentication::Transport, HTTP) => Authentication::Signed,
        (sealed_or_relayed, _) => sealed_or_relayed,
    };
    incoming
}

fn approval_for(kind: ApprovalKind, incoming: &Incoming, key: &ThreadKey, now: i64) -> ApprovalDraft {
    ApprovalDraft {
        id: uuid::Uuid::now_v7().to_string(),
        kind,
        peer: key.peer,
        message_id: Some(incoming.header.message_id.clone()),
        thread_id: Some(key.thread.clone()),
        subject: incoming.subject(),
        preview: incoming.content.text.clone(),
        details: serde_json::json!({"authentication": incoming.authentication}),
        expires_at: now + HELD_MS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_message_waits_for_its_key_as_long_as_a_message_lives() {
        assert_eq!(key_pause(0), Some(10_000));
        assert_eq!(key_pause(-5_000), Some(10_000), "the clock was set back");
        assert_eq!(key_pause(30_000), Some(30_000), "longer than three tries");
        assert_eq!(key_pause(DEFAULT_TTL_MS - 1), Some(KEY_RETRY_MAX_MS));
        assert_eq!(key_pause(DEFAULT_TTL_MS), None);
    }
}
