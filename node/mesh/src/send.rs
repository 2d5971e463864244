//! Sending (`threadline-agent.md` §12): validate, resolve, pass the SendGateway, commit, hand to the link, wait.

mod answer;
mod control;
mod held;
mod targets;

use std::time::Duration;

use instar_outbound::{
    Block, ChannelId, Cleared, Latch, Moment, Origin, OutboundMessage, Recipient, RecipientKind, ReplyTarget,
    SendFlags, SendOutcome, StageId,
};
use serde_json::{Map, json};
use threadline::autonomy::Controls;
use threadline::delivery::Delivery;
use threadline::limits::Window;
use threadline::service::{Caller, ResolvedAgent, SendRequest, SendResult, ServiceError, SessionCaller};
use threadline::threads::{AFFINITY_FIRST_MS, Placement, place_outbound};
use threadline::v1::envelope::{Content, Envelope, Header, clear, seal};
use threadline::v2::inside_v1::INTRODUCTION;
use threadline::v2::{Key, MAX_BODY};
use threadline::{Fingerprint, MessageId, ThreadId, ThreadKey, text};
use threadline_net::store::{Auth, LedgerStatus, OutboundDraft, Queued, StoreError};
use tokio_util::sync::CancellationToken;

use crate::core::{Core, internal};
use crate::dispatch::Pulse;
use crate::stage::MeshStage;
use crate::waiters::Handover;

/// Longest wait for a session's proof of life before its text is held.
const PROOF_WAIT: Duration = Duration::from_secs(6);

/// A send whose target and thread are settled.
struct Prepared {
    key: ThreadKey,
    peer_name: String,
    id: MessageId,
    in_reply_to: Option<MessageId>,
    kind: String,
    subject: String,
    session: Option<String>,
    /// The key to write sealed mail to; other carriers where absent.
    sealed: Option<Key>,
}

/// Why a finished envelope was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealFailed {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the recipient's key is unusable")]
    Key,
}

impl Core {
    /// All sends end here.
    pub(crate) async fn send(
        &self,
        caller: &Caller,
        mut request: SendRequest,
        gone: &CancellationToken,
    ) -> Result<(SendResult, Option<Handover>), ServiceError> {
        request.idempotency_key = request.idempotency_key.map(|key| scoped_key(caller, &key));
        if let Some(key) = &request.idempotency_key
            && let Some(earlier) = self.store.by_idempotency_key(key).await.map_err(|e| internal(&e))?
        {
            if self.resolve_target(&request.agent_id).await?.fingerprint != earlier.key.peer {
                let text = "this idempotencyKey was used for a message to another agent; use a new one";
                return Err(ServiceError::new("idempotency-key-reused", text));
            }
            return Ok((self.result_of(&earlier).await?, None));
        }
        let timeout = timeout_of(&request)?;
        if request.origin_topic_id.is_some_and(|id| id <= 0) {
            return Err(ServiceError::new("invalid-arguments", "originTopicId must be a positive number"));
        }
        let resolved = self.resolve_target(&request.agent_id).await?;
        if resolved.fingerprint == self.us {
            return Err(ServiceError::new("self-target", "this is your own address"));
        }
        let prepared = self.prepare(caller, &request, &resolved).await?;
        let unverified = self.unverified_session(caller).await?;
        let windows = vec![self.config().limits.outbound(&prepared.key.peer, self.level(&prepared.key.peer))];
        let message = outbound_message(caller, &request, &prepared, self.level(&prepared.key.peer));
        let mut outcome = self.review(message.clone(), &windows, false, *caller == Caller::Owner).await?;
        if let (SendOutcome::Cleared(_), Some(reason)) = (&outcome, unverified) {
            outcome = SendOutcome::Held(instar_outbound::Hold {
                by: StageId::Mesh,
                rule: "unverified-session".into(),
                reason,
                findings: Vec::new(),
            });
        }
        let cleared = match outcome {
            SendOutcome::Cleared(cleared) => cleared,
            SendOutcome::Blocked(block) => return Err(blocked(&block)),
            SendOutcome::Duplicate { of } => {
                return Err(ServiceError::new("duplicate", format!("this text was sent already as {of}")));
            }
            SendOutcome::Held(hold) => {
                let held = self.hold(caller, &request, prepared, message.text, &hold, windows).await?;
                return Ok((held, None));
            }
        };
        if request.fail_if_offline && !self.is_reachable(&prepared) {
            let text = "no path to the agent is up, and failIfOffline is set";
            return Err(ServiceError::retry("offline", text, None));
        }
        let waiter = request.wait_for_reply.then(|| self.waiters.register(&prepared.key, &prepared.id));
        let draft = self.draft(&prepared, &request, windows).await?;
        let encryption = if draft.auth == Auth::E2e { "e2e" } else { "transport" };
        match self.commit(cleared, draft, &prepared).await? {
            Queued::New => {}
            Queued::Existing(earlier) => return Ok((self.result_of(&earlier).await?, None)),
        }
        self.after_commit(caller, &prepared).await;
        let result = self.sent(&request, prepared, resolved, encryption);
        match waiter {
            Some(waiter) => self.await_reply(caller, result, waiter, timeout, gone).await,
            None => Ok((result, None)),
        }
    }

    /// Checks what the caller may say to whom, and settles the thread.
    async fn prepare(
        &self,
        caller: &Caller,
        request: &SendRequest,
        resolved: &ResolvedAgent,
    ) -> Result<Prepared, ServiceError> {
        let peer = resolved.fingerprint;
        let invalid = |e: threadline::ParseIdError| ServiceError::new("invalid-arguments", e.to_string());
        let named: Option<ThreadId> =
            request.thread_id.as_deref().map(str::parse).transpose().map_err(invalid)?;
        let in_reply_to: Option<MessageId> =
            request.in_reply_to.as_deref().map(str::parse).transpose().map_err(invalid)?;
        let forbidden = |text: &str| Err(ServiceError::new("forbidden", text));
        let mut thread = named;
        match caller {
            Caller::Session(SessionCaller { bound: Some(bound), .. }) => {
                if bound.peer != peer {
                    return forbidden("this session may only write to the agent it serves");
                }
                if request.new_thread || thread.as_ref().is_some_and(|t| *t != bound.thread) {
                    return forbidden("this session may only write in the thread it serves");
                }
                thread = Some(bound.thread.clone());
            }
            Caller::Network(network) if network.peer.is_some_and(|p| p != peer) => {
                return forbidden("this token may only write to the agent it is bound to");
            }
            _ => {}
        }
        let now = self.now();
        let recent =
            self.store.recent_threads(peer, now - AFFINITY_FIRST_MS).await.map_err(|e| internal(&e))?;
        let thread = match place_outbound(thread.as_ref(), request.new_thread, &recent, now) {
            Placement::Thread(thread) => thread,
            Placement::New | Placement::SenderDefault => ThreadId::from_uuid(uuid::Uuid::now_v7()),
        };
        let key = ThreadKey { peer, thread };
        let known = self.store.thread(key.clone()).await.map_err(|e| internal(&e))?;
        let topic = known.as_ref().and_then(|t| t.origin_topic_id);
        if let (Some(topic), Some(wanted)) = (topic, request.origin_topic_id)
            && topic != wanted
        {
            return Err(ServiceError::new("topic-linked", format!("the thread belongs to topic {topic}")));
        }
        let sealed = self.sealed_key(&key, request.message.len()).await.map_err(|e| internal(&e))?;
        check_length(&request.message, sealed.is_some())?;
        Ok(Prepared {
            subject: request
                .subject
                .as_deref()
                .map(text::subject)
                .or(known.map(|t| t.subject))
                .unwrap_or_else(|| text::subject("")),
            sealed,
            key,
            peer_name: resolved.name.clone(),
            id: MessageId::from_uuid(uuid::Uuid::now_v7()),
            in_reply_to,
            kind: request.kind.as_deref().map_or_else(|| "chat".into(), |k| text::cut(k, 32, "")),
            session: match caller {
                Caller::Session(session) => Some(session.id.clone()),
                _ => None,
            },
        })
    }

    /// Why text of this session must wait for the owner: the node has no proof that the session is the one it started.
    async fn unverified_session(&self, caller: &Caller) -> Result<Option<String>, ServiceError> {
        let Caller::Session(SessionCaller { id, bound: Some(_), .. }) = caller else { return Ok(None) };
        let deadline = tokio::time::Instant::now() + PROOF_WAIT;
        loop {
            let row = self.store.spawn_of_session(id).await.map_err(|e| internal(&e))?;
            let alive = match row {
                None => false,
                Some(row) => match row.status {
                    LedgerStatus::Verified => true,
                    LedgerStatus::Spawning => {
                        self.check_heartbeat(&row).await.map_err(|e| internal(&e))? == Pulse::Alive
                    }
                    LedgerStatus::Completed | LedgerStatus::Failed => {
                        return Ok(Some("the session ended in the spawn ledger".into()));
                    }
                },
            };
            if alive {
                return Ok(None);
            }
            if tokio::time::Instant::now() >= deadline {
                return Ok(Some("the session gave no proof of life".into()));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn review(
        &self,
        message: OutboundMessage,
        windows: &[Window],
        approved: bool,
        by_owner: bool,
    ) -> Result<SendOutcome, ServiceError> {
        let now = self.now();
        let peer: Fingerprint =
            message.target.recipient.id.parse().map_err(|e: threadline::ParseIdError| {
                ServiceError::new("invalid-arguments", e.to_string())
            })?;
        let usage = self.store.usage(windows.to_vec(), now).await.map_err(|e| internal(&e))?;
        let controls = self.controls.get();
        let stage = MeshStage {
            autonomy: self.config().policy.autonomy,
            controls: Controls { blocked: controls.is_blocked(&peer), paused: controls.is_paused(&peer) },
            level: self.level(&peer),
            usage: &usage,
            secrets: &*self.secrets,
            approved,
            by_owner,
        };
        let moment = Moment { now_ms: now, verdict_id: uuid::Uuid::now_v7(), latch: Latch::Open };
        Ok(self.gateway.review(message, &moment, &[&stage]))
    }

    async fn draft(
        &self,
        prepared: &Prepared,
        request: &SendRequest,
        windows: Vec<Window>,
    ) -> Result<OutboundDraft, ServiceError> {
        let peer = prepared.key.peer;
        let level = self.level(&peer);
        let sealed_to = self.seals_to(&peer).await.map_err(|e| internal(&e))?;
        let is_sealed = prepared.sealed.is_some() || sealed_to.is_some();
        let pinned = self.store.speaks_v2(peer).await.map_err(|e| internal(&e))?;
        if !is_sealed && (pinned || self.config().must_seal(level)) {
            return Err(ServiceError::new(
                "e2e-required",
                "messages to this agent must be sealed end to end, and its key is not known",
            ));
        }
        let peer_dedups = self.speaks(&peer, "tl-e2e").await.map_err(|e| internal(&e))?;
        Ok(OutboundDraft {
            key: prepared.key.clone(),
            peer_name: prepared.peer_name.clone(),
            id: prepared.id.clone(),
            kind: prepared.kind.clone(),
            subject: prepared.subject.clone(),
            in_reply_to: prepared.in_reply_to.clone(),
            auth: if is_sealed { Auth::E2e } else { Auth::Transport },
            trust: level,
            author_session: prepared.session.clone(),
            origin_topic_id: request.origin_topic_id,
            idempotency_key: request.idempotency_key.clone(),
            windows,
            delivery: match prepared.sealed {
                Some(_) => Delivery::new(self.now(), self.config().sealed_ttl_ms, true),
                None => Delivery::new(self.now(), self.config().delivery_ttl_ms, peer_dedups),
            },
        })
    }

    async fn commit(
        &self,
        cleared: Cleared<OutboundMessage>,
        draft: OutboundDraft,
        prepared: &Prepared,
    ) -> Result<Queued, ServiceError> {
        if let Some(to) = prepared.sealed {
            return self.commit_sealed(to, cleared, draft).await;
        }
        let now = self.now();
        let sealed_to = self.seals_to(&prepared.key.peer).await.map_err(|e| internal(&e))?;
        let sealed_to = sealed_to.filter(|_| draft.auth == Auth::E2e);
        let header = self.header(&prepared.key, &prepared.id, now);
        let mut metadata = Map::new();
        if let Some(answered) = &prepared.in_reply_to {
            metadata.insert("inReplyTo".into(), json!(answered));
        }
        metadata.insert("subject".into(), json!(prepared.subject));
        let bytes = cleared.get().text.len();
        let introduction =
            self.introduction_for(&prepared.key.peer, bytes).await.map_err(|e| internal(&e))?;
        if let Some(introduction) = introduction {
            metadata.insert(INTRODUCTION.into(), introduction);
        }
        let kind = prepared.kind.clone();
        let identity = std::sync::Arc::clone(&self.identity);
        let make = move |message: &OutboundMessage| -> Result<String, SealFailed> {
            let content = Content { text: message.text.clone(), kind: Some(kind), metadata: Some(metadata) };
            let envelope = match &sealed_to {
                Some(key) => {
                    seal(&identity, key, &header, &content, &mut rand::rng()).map_err(|_| SealFailed::Key)?
                }
                None => clear(&header, &content),
            };
            Ok(envelope_text(&envelope))
        };
        self.store.enqueue(cleared, draft, make, now).await.map_err(|error| match error {
            SealFailed::Store(StoreError::AlreadyAnswered { in_reply_to, by }) => {
                ServiceError::new("already-answered", format!("message {in_reply_to} was answered by {by}"))
            }
            SealFailed::Store(error) => internal(&error),
            SealFailed::Key => ServiceError::new("bad-key", SealFailed::Key.to_string()),
        })
    }

    fn header(&self, key: &ThreadKey, id: &MessageId, now: i64) -> Header {
        Header {
            from: self.us,
            to: key.peer,
            thread_id: Some(key.thread.clone()),
            message_id: id.clone(),
            timestamp: now,
        }
    }

    /// Whether a carrier that the message goes with is up.
    fn is_reachable(&self, prepared: &Prepared) -> bool {
        if prepared.sealed.is_some() && !self.nobody_speaks_v2() {
            return self.sealed.is_connected();
        }
        self.routes.leads(&prepared.key.peer) || self.link.status().is_connected()
    }

    async fn after_commit(&self, caller: &Caller, prepared: &Prepared) {
        self.flush();
        self.thread_event("message-sent", &prepared.key, prepared.id.as_str());
        let at = threadline::time::iso_ms(self.now());
        self.profiles.touch(|profiles| {
            if let Some(profile) = profiles.profiles.get_mut(&prepared.key.peer) {
                profile.history.messages_responded += u64::from(prepared.in_reply_to.is_some());
                profile.history.last_interaction = Some(at.clone());
            }
        });
        if let Caller::Session(SessionCaller { bound: Some(bound), .. }) = caller {
            self.answered(bound, prepared.in_reply_to.as_ref()).await;
        }
    }

    /// A session that got a peer's text is tainted from now on.
    pub(crate) async fn taint(&self, caller: &Caller) {
        if let Caller::Session(session) = caller
            && let Ok(id) = session.id.parse()
        {
            self.sessions.taint(&id).await;
        }
    }
}

/// The key as it is stored: callers cannot meet each other's.
fn scoped_key(caller: &Caller, key: &str) -> String {
    match caller {
        Caller::Session(SessionCaller { bound: Some(bound), .. }) => {
            format!("thread:{}:{}:{key}", bound.peer, bound.thread)
        }
        Caller::Session(session) => format!("session:{}:{key}", session.id),
        Caller::Network(network) => format!("token:{}:{key}", network.token_id),
        Caller::Owner | Caller::Local => key.to_owned(),
    }
}

fn timeout_of(request: &SendRequest) -> Result<Duration, ServiceError> {
    let seconds = request.timeout_seconds.unwrap_or(120);
    if (1..=300).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    Err(ServiceError::new("timeout-out-of-range", format!("timeoutSeconds must be 1 to 300, not {seconds}")))
}

/// Only sealed mail takes a text that does not fit into an envelope.
fn check_length(text: &str, is_sealed: bool) -> Result<(), ServiceError> {
    let bytes = text.len();
    if is_sealed || bytes <= MAX_BODY {
        return Ok(());
    }
    Err(ServiceError::new(
        "message-too-large",
        format!(
            "the message has {bytes} bytes; an agent that is not written to sealed over a relay of v2 takes at most {MAX_BODY}. \
             Send it in parts"
        ),
    ))
}

fn outbound_message(
    caller: &Caller,
    request: &SendRequest,
    prepared: &Prepared,
    level: threadline::TrustLevel,
) -> OutboundMessage {
    OutboundMessage {
        text: request.message.clone(),
        subject: request.subject.clone(),
        target: ReplyTarget {
            channel: ChannelId::THREADLINE,
            recipient: Recipient {
                kind: RecipientKind::Agent,
                id: prepared.key.peer.to_string(),
                trust: Some(level.to_string()),
                own_values: Vec::new(),
            },
            conversation: Some(prepared.key.thread.to_string()),
        },
        origin: match caller {
            Caller::Session(_) => Origin::Session,
            Caller::Owner | Caller::Local => Origin::Cli,
            Caller::Network(_) => Origin::Threadline,
        },
        session_id: prepared.session.clone(),
        flags: SendFlags::default(),
        idempotency_key: request.idempotency_key.clone(),
    }
}

/// A refusal of the gateway as the caller hears it.
fn blocked(block: &Block) -> ServiceError {
    let code = match (block.by, &*block.rule) {
        (StageId::Structure, "empty-message" | "invisible-payload") => "empty-message",
        (StageId::Structure, "too-large") => "message-too-large",
        (StageId::Policy, _) => "content-blocked",
        (_, rule) => rule,
    };
    match block.retry_after_seconds {
        Some(seconds) => ServiceError::retry(code, block.feedback.clone(), Some(seconds)),
        None => ServiceError::new(code, block.feedback.clone()),
    }
    .with_details(json!({"stage": block.by, "rule": block.rule}))
}

fn envelope_text(envelope: &Envelope) -> String {
    String::from_utf8(envelope.to_bytes()).expect("JSON is UTF-8")
}
