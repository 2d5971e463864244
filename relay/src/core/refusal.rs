//! Why a message is refused, in the words of both protocols (`relay.md` §6).

use threadline::v1::MAX_ENVELOPE;
use threadline::v2::Code;

use crate::metrics::Reject;
use crate::store::QueueFull;

/// Why a message is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A frame of v2 contradicts its envelope, or breaks a rule.
    Frame(Code),
    /// The sender is not who it says.
    Mismatch,
    /// Above the size limit, in bytes.
    TooLarge(usize),
    /// A bad signature.
    Signature,
    /// Nobody waits for it at the bridge.
    Unasked,
    /// The id is taken.
    Duplicate,
    /// A rate, by its name, and when it admits one more, in milliseconds from now.
    Rate(&'static str, i64),
    /// A limit of young identities.
    Young(String),
    /// A limit of custody.
    Full(QueueFull),
    /// Nothing can be stored now.
    Storage,
    /// The sender's lease is over.
    StaleLease,
}

impl Refusal {
    /// What v1 says; people read it.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Frame(code) => code.as_str().to_owned(),
            Self::Mismatch => "Sender fingerprint mismatch".into(),
            Self::TooLarge(size) => format!("Envelope too large ({size} > {MAX_ENVELOPE})"),
            Self::Signature => "invalid_signature".into(),
            Self::Unasked => "No pending A2A task for this thread".into(),
            Self::Duplicate => "Duplicate message ID (replay detected)".into(),
            Self::Rate(which, _) => format!("Rate limited ({which})"),
            Self::Young(text) => text.clone(),
            Self::Full(full) => {
                let which = match full {
                    QueueFull::Sender => "queue_full_sender",
                    QueueFull::Recipient => "queue_full_recipient",
                    QueueFull::Bytes => "queue_full_bytes",
                };
                format!("Offline queue full ({which})")
            }
            Self::Storage => "Relay storage unavailable".into(),
            Self::StaleLease => "stale_epoch".into(),
        }
    }

    /// What v2 says.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Frame(code) => *code,
            Self::Mismatch | Self::Signature => Code::BadSignature,
            Self::TooLarge(_) => Code::TooLarge,
            Self::Unasked => Code::UnknownRecipient,
            Self::Duplicate => Code::Duplicate,
            Self::Rate(..) => Code::RateLimited,
            Self::Young(_) => Code::NewAgentLimit,
            Self::Full(QueueFull::Sender) => Code::SenderFull,
            Self::Full(QueueFull::Recipient) => Code::RecipientFull,
            Self::Full(QueueFull::Bytes) => Code::BytesFull,
            Self::Storage => Code::StorageUnavailable,
            Self::StaleLease => Code::StaleEpoch,
        }
    }

    /// When a repetition can help, in milliseconds.
    pub(super) fn retry_ms(&self) -> Option<u64> {
        match self {
            Self::Rate(_, retry_ms) => Some(u64::try_from(*retry_ms).unwrap_or(1)),
            other => retry_ms(other.code()),
        }
    }

    /// The label in metrics.
    pub(super) fn label(&self) -> Reject {
        match self {
            Self::Mismatch => Reject::Mismatch,
            Self::TooLarge(_) => Reject::TooLarge,
            Self::Signature | Self::Frame(Code::BadSignature) => Reject::Signature,
            Self::Duplicate => Reject::Duplicate,
            Self::Rate(..) => Reject::Rate,
            Self::Young(_) => Reject::Young,
            Self::Full(_) => Reject::Full,
            Self::Storage => Reject::Storage,
            Self::Frame(_) | Self::Unasked | Self::StaleLease => Reject::Other,
        }
    }
}

/// When a repetition after this code can help, in milliseconds; `None` where it cannot.
pub(super) fn retry_ms(code: Code) -> Option<u64> {
    let pause = match code {
        Code::NewAgentLimit => 600_000,
        Code::Banned => 3_600_000,
        Code::RateLimited | Code::RecipientFull | Code::SenderFull | Code::BytesFull => 60_000,
        _ => 5_000,
    };
    code.is_retryable().then_some(pause)
}
