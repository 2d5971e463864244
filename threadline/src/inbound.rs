//! The one way in: facts about a received message to a verdict (`threadline-agent.md` §7, steps 1 to 10 and 15 for v1).
//!
//! Three calls, between which the caller loads facts: [`receive`] (steps 1 and 2), [`authenticate`] (3 to 5) and
//! [`admit`] (6 to 10, 15). The verdict says what to commit; nothing is acknowledged or routed before that commit.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::autonomy::{Autonomy, Controls, Gate, Notice};
use crate::identity::{Identity, PublicIdentity};
use crate::limits::{self, Limited, Limits, Overflow, Usage, Window};
use crate::text;
use crate::trust::Operation;
use crate::v1::envelope::{self, Authentication, Content, Envelope, Header, ReceiveError};
use crate::{Fingerprint, ThreadId, TrustLevel};

/// The same text in the same thread under another id within this time is a duplicate, ms.
pub const SAME_BODY_WINDOW_MS: i64 = 60_000;
/// First contacts that may wait for the owner.
pub const MAX_FIRST_CONTACTS: u32 = 20;
/// Approvals of one peer that may wait.
pub const MAX_PENDING_PER_PEER: u32 = 20;
/// Approvals that may wait.
pub const MAX_PENDING: u32 = 100;

/// Why a message is not taken. Nothing is answered to a v1 peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Steps 1 and 5: envelope, signature, time, payload.
    #[error(transparent)]
    Envelope(#[from] ReceiveError),
    /// Step 2: it claims to come from us.
    #[error("the message claims to come from this agent")]
    Loop,
    /// Step 3.
    #[error("the message was received before")]
    Duplicate,
    /// Step 4.
    #[error("the peer is blocked")]
    Blocked,
    /// `threadline.requireE2E` asks for end-to-end encryption.
    #[error("the message is not end-to-end encrypted, which is required for this peer")]
    PlaintextRefused,
    /// Step 6 and 7: too many control-plane messages.
    #[error(transparent)]
    ControlLimited(Limited),
    /// Step 8: a first contact of this stranger waits already.
    #[error("a first contact of this stranger waits for the owner already")]
    HeldAlready,
    /// Step 8: strangers are not wanted, or too many wait.
    #[error("first contacts are closed")]
    FirstContactClosed,
    /// Step 9.
    #[error("the peer may not ask for this operation")]
    NotPermitted(Operation),
    /// Step 10, without room or time to wait.
    #[error(transparent)]
    RateLimited(Limited),
    /// Step 15: too many messages wait for the owner.
    #[error("too many messages wait for the owner")]
    ApprovalQueueFull,
}

impl Refusal {
    /// Kebab-case reason for logs, counters and rows.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Envelope(error) => error.reason(),
            Self::Loop => "loop",
            Self::Duplicate => "duplicate",
            Self::Blocked => "blocked",
            Self::PlaintextRefused => "plaintext-refused",
            Self::ControlLimited(_) => "probe-rate-limited",
            Self::HeldAlready => "held-already",
            Self::FirstContactClosed => "first-contact-closed",
            Self::NotPermitted(_) => "not-permitted",
            Self::RateLimited(_) => "rate-limited",
            Self::ApprovalQueueFull => "approval-queue-full",
        }
    }
}

/// Steps 1 and 2: grammar, and whether it is our own message coming back. The size was checked when the envelope was
/// read ([`Envelope::parse`]).
pub fn receive(envelope: &Envelope, us: &Fingerprint) -> Result<Header, Refusal> {
    let header = envelope.header()?;
    if header.from == *us {
        return Err(Refusal::Loop);
    }
    Ok(header)
}

/// What the store knows about the claimed sender and id.
#[derive(Debug, Clone, Copy, Default)]
pub struct SenderFacts {
    /// Whether (`from`, `messageId`) is in `seen`.
    pub seen: bool,
    /// Whether the owner blocked the sender.
    pub blocked: bool,
    /// The pinned key.
    pub key: Option<PublicIdentity>,
}

/// A message whose sender, time and content are established.
#[derive(Debug, Clone, PartialEq)]
pub struct Incoming {
    /// Its header.
    pub header: Header,
    /// What it says.
    pub content: Content,
    /// How the sender is known.
    pub authentication: Authentication,
    /// SHA-256 of the text.
    pub body_hash: [u8; 32],
}

/// Steps 3 to 5. `received_at` is when the message reached the spool, Unix ms: its age counts to then, so that a node
/// that was stopped refuses nothing that came in time.
pub fn authenticate(
    envelope: &Envelope,
    identity: &Identity,
    sender: &SenderFacts,
    received_at: i64,
) -> Result<Incoming, Refusal> {
    if sender.seen {
        return Err(Refusal::Duplicate);
    }
    if sender.blocked {
        return Err(Refusal::Blocked);
    }
    let authentic =
        envelope::authenticate(envelope, &identity.fingerprint(), sender.key.as_ref(), received_at)?;
    let content = authentic.open(identity)?;
    Ok(Incoming {
        header: authentic.header().clone(),
        body_hash: Sha256::digest(content.text.as_bytes()).into(),
        authentication: authentic.authentication(),
        content,
    })
}

/// What a message is for the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// For a session.
    Conversation,
    /// An automatic acknowledgement: kept, never answered.
    AutoAck,
    /// `ping` or `health`.
    Probe,
    /// The peer closes the thread.
    ThreadResolved,
    /// The peer redeems an invitation of ours.
    InvitationRedeem,
    /// The issuer of an invitation answers our redemption.
    InvitationResult,
    /// Another control-plane type, which no v1 peer of this build sends.
    Control,
}

const CONTROL_TYPES: [&str; 9] =
    ["pong", "receipt", "lease", "rotation", "typing", "vouch", "vouch-sync", "complaint", "introduction"];

impl Incoming {
    /// What the message is.
    pub fn class(&self) -> Class {
        match self.content.kind.as_deref() {
            Some("ping" | "health") => Class::Probe,
            Some("thread-resolved") => Class::ThreadResolved,
            Some("invitation-redeem") => Class::InvitationRedeem,
            Some("invitation-result") => Class::InvitationResult,
            Some(kind) if CONTROL_TYPES.contains(&kind) => Class::Control,
            _ if envelope::is_auto_ack(&self.content) => Class::AutoAck,
            _ => Class::Conversation,
        }
    }

    /// Payload type to store: types of this protocol as they are, every other as `chat`.
    pub fn kind(&self) -> &'static str {
        match self.content.kind.as_deref() {
            Some("query") => "query",
            Some("response") => "response",
            Some("request_task") => "request_task",
            Some("notification") => "notification",
            Some("system") => "system",
            Some("status") => "status",
            _ => "chat",
        }
    }

    /// Subject as it may be shown.
    pub fn subject(&self) -> String {
        text::subject(self.metadata("subject").unwrap_or_default())
    }

    /// Message of ours that it claims to answer.
    pub fn in_reply_to(&self) -> Option<&str> {
        self.metadata("inReplyTo").filter(|id| id.parse::<crate::MessageId>().is_ok())
    }

    /// Windows to look up before [`admit`].
    pub fn windows(&self, limits: &Limits, standing: &Standing, thread: &ThreadId) -> Vec<Window> {
        let peer = &self.header.from;
        match self.class() {
            Class::Probe => vec![limits.control(peer), limits.probe(peer, standing.level)],
            Class::InvitationRedeem => {
                let mut windows = limits.redemption(peer);
                windows.push(limits.control(peer));
                windows
            }
            Class::ThreadResolved | Class::InvitationResult | Class::Control => vec![limits.control(peer)],
            Class::Conversation | Class::AutoAck => limits.inbound(peer, thread, standing.effective_level()),
        }
    }

    fn metadata(&self, member: &str) -> Option<&str> {
        self.content.metadata.as_ref()?.get(member)?.as_str()
    }
}

/// When plain text is refused (`threadline.requireE2E`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequireE2e {
    /// Never.
    Never,
    /// From peers above verified.
    #[default]
    TrustedAndAbove,
    /// Always.
    Always,
}

/// What happens to strangers (`threadline.firstContactPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirstContact {
    /// Held for the owner.
    #[default]
    Supervised,
    /// Dropped.
    Closed,
}

/// Configuration that [`admit`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Autonomy profile.
    pub autonomy: Autonomy,
    /// When plain text is refused.
    pub require_e2e: RequireE2e,
    /// What happens to strangers.
    pub first_contact: FirstContact,
}

/// What the store knows about the peer, the thread and the queues.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Level of the peer, decay applied.
    pub level: TrustLevel,
    /// Operations that the owner took away.
    pub blocked_operations: Vec<Operation>,
    /// Whether the owner let this thread pass whatever the level.
    pub thread_approved: bool,
    /// Whether the peer, or everything, is paused.
    pub paused: bool,
    /// Whether the same text came in this thread within [`SAME_BODY_WINDOW_MS`] under another id.
    pub same_body_recently: bool,
    /// Whether a first contact of this peer waits.
    pub first_contact_pending: bool,
    /// First contacts that wait.
    pub first_contacts: u32,
    /// Approvals of this peer that wait.
    pub pending_of_peer: u32,
    /// Approvals that wait.
    pub pending: u32,
    /// Messages of this peer that wait for a free window.
    pub queued_of_peer: u32,
}

impl Standing {
    /// The level that conversation in this thread is judged by.
    pub fn effective_level(&self) -> TrustLevel {
        if self.thread_approved { self.level.max(TrustLevel::Verified) } else { self.level }
    }
}

/// What to do with the message. Commit first, then acknowledge and route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Mark the spool row refused; keep nothing else.
    Refuse(Refusal),
    /// Leave the spool row and come back.
    Later {
        /// Earliest next try, Unix ms.
        not_before: i64,
        /// The full window.
        limited: Limited,
    },
    /// Handled without a row in the thread: record the windows and mark the spool row.
    Finish {
        /// What it was.
        class: Class,
        /// Windows to record.
        record: Vec<Window>,
    },
    /// One transaction: `messages`, `seen`, the windows, the approval, the spool row.
    Store {
        /// What follows.
        disposition: Disposition,
        /// Windows to record; none for what is held.
        record: Vec<Window>,
    },
}

/// What follows after the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// To the reply warrant and to routing; the owner hears of it so.
    Route(Notice),
    /// Kept for the history only.
    Note,
    /// Held: a stranger's first message; one approval of kind `first-contact`.
    HoldFirstContact,
    /// Held: one approval of kind `message`.
    HoldForApproval,
    /// Held until the peer, or everything, is resumed.
    HoldPaused,
}

/// Steps 6 to 10 and 15. `windows` are those of [`Incoming::windows`] with their usage; `received_at` is when the message
/// reached the spool.
pub fn admit(
    incoming: &Incoming,
    standing: &Standing,
    policy: &Policy,
    windows: &[(Window, Usage)],
    received_at: i64,
    now_ms: i64,
) -> Verdict {
    if standing.same_body_recently {
        return Verdict::Refuse(Refusal::Duplicate);
    }
    if is_plaintext_refused(incoming, standing.level, policy.require_e2e) {
        return Verdict::Refuse(Refusal::PlaintextRefused);
    }
    let class = incoming.class();
    let limited = limits::check(windows.iter().map(|(window, usage)| (window, *usage)), now_ms).err();
    let record = windows.iter().map(|(window, _)| window.clone()).collect();
    if !matches!(class, Class::Conversation | Class::AutoAck) {
        return match limited {
            Some(limited) => Verdict::Refuse(Refusal::ControlLimited(limited)),
            None if class == Class::ThreadResolved && standing.effective_level() < TrustLevel::Verified => {
                Verdict::Refuse(Refusal::NotPermitted(Operation::Message))
            }
            None => Verdict::Finish { class, record },
        };
    }
    if standing.effective_level() == TrustLevel::Untrusted {
        return first_contact(standing, policy.first_contact);
    }
    let operation = Operation::of_kind(incoming.content.kind.as_deref());
    if standing.effective_level() < operation.needs() || standing.blocked_operations.contains(&operation) {
        return Verdict::Refuse(Refusal::NotPermitted(operation));
    }
    if let Some(limited) = limited {
        let level = standing.effective_level();
        return match limits::overflow(level, &limited, standing.queued_of_peer, received_at, now_ms) {
            Overflow::Queue { not_before } => Verdict::Later { not_before, limited },
            Overflow::Reject => Verdict::Refuse(Refusal::RateLimited(limited)),
        };
    }
    if class == Class::AutoAck {
        return Verdict::Store { disposition: Disposition::Note, record };
    }
    match policy.autonomy.gate(Controls { blocked: false, paused: standing.paused }) {
        Gate::Block => Verdict::Refuse(Refusal::Blocked),
        Gate::HoldPaused => Verdict::Store { disposition: Disposition::HoldPaused, record },
        Gate::HoldForApproval if is_queue_full(standing) => Verdict::Refuse(Refusal::ApprovalQueueFull),
        Gate::HoldForApproval => Verdict::Store { disposition: Disposition::HoldForApproval, record },
        Gate::Pass(notice) => Verdict::Store { disposition: Disposition::Route(notice), record },
    }
}

fn is_plaintext_refused(incoming: &Incoming, level: TrustLevel, require: RequireE2e) -> bool {
    incoming.authentication == Authentication::Transport
        && match require {
            RequireE2e::Never => false,
            RequireE2e::TrustedAndAbove => level > TrustLevel::Verified,
            RequireE2e::Always => true,
        }
}

fn first_contact(standing: &Standing, policy: FirstContact) -> Verdict {
    if policy == FirstContact::Closed {
        return Verdict::Refuse(Refusal::FirstContactClosed);
    }
    if standing.first_contact_pending {
        return Verdict::Refuse(Refusal::HeldAlready);
    }
    if standing.first_contacts >= MAX_FIRST_CONTACTS || is_queue_full(standing) {
        return Verdict::Refuse(Refusal::FirstContactClosed);
    }
    Verdict::Store { disposition: Disposition::HoldFirstContact, record: Vec::new() }
}

const fn is_queue_full(standing: &Standing) -> bool {
    standing.pending_of_peer >= MAX_PENDING_PER_PEER || standing.pending >= MAX_PENDING
}

#[cfg(test)]
mod tests;
