//! Error codes of frames and contents.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why something was refused (`threadline-wire.md` §4.10).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $($(#[$doc])* $name,)*
            /// A code that this build does not know.
            Unknown,
        }

        impl Code {
            /// Every code of the protocol.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word on the wire.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Unknown => "unknown",
                }
            }

            /// Reads the word.
            pub fn parse(text: &str) -> Self {
                match text {
                    $($text => Self::$name,)*
                    _ => Self::Unknown,
                }
            }
        }
    };
}

codes! {
    /// Malformed, or its parts contradict each other.
    BadRequest = "bad_request",
    /// A signature or a header that does not fit.
    BadSignature = "bad_signature",
    /// Past its life.
    Expired = "expired",
    /// A time too far ahead.
    ClockSkew = "clock_skew",
    /// Seen before.
    Duplicate = "duplicate",
    /// Above a size limit.
    TooLarge = "too_large",
    /// No session opens the leg.
    NoSession = "no_session",
    /// A content type that is not spoken here.
    UnsupportedType = "unsupported_type",
    /// A frame or version that is not spoken here.
    UnsupportedVersion = "unsupported_version",
    /// Policy forbids sending it clear.
    E2eRequired = "e2e_required",
    /// Nobody has that key or address.
    UnknownRecipient = "unknown_recipient",
    /// The recipient's queue is full.
    RecipientFull = "recipient_full",
    /// The sender's share of the queue is full.
    SenderFull = "sender_full",
    /// The recipient's bytes are used up.
    BytesFull = "bytes_full",
    /// Too much in a window.
    RateLimited = "rate_limited",
    /// Above what a new agent may send.
    NewAgentLimit = "new_agent_limit",
    /// Excluded for a time.
    Banned = "banned",
    /// The recipient takes no first contact this way.
    FirstContactRefused = "first_contact_refused",
    /// A puzzle is due first.
    SlowLane = "slow_lane",
    /// The recipient blocks the sender.
    Blocked = "blocked",
    /// The sender's level is too low.
    TrustInsufficient = "trust_insufficient",
    /// Not now.
    Busy = "busy",
    /// The recipient could not process it.
    ProcessingFailed = "processing_failed",
    /// Nobody approved it in time.
    ApprovalTimeout = "approval_timeout",
    /// Too many failures in a row.
    CircuitOpen = "circuit_open",
    /// The session exists, its key for this message is gone.
    LostKey = "lost_key",
    /// Certificate, list, keys and session do not belong together.
    BadDevice = "bad_device",
    /// The device list is too old for a new session.
    StaleDevices = "stale_devices",
    /// A newer lease epoch exists.
    StaleEpoch = "stale_epoch",
    /// Storage does not take it.
    StorageUnavailable = "storage_unavailable",
    /// The relay is about to stop.
    Draining = "draining",
    /// Work has to be proven first.
    PowRequired = "pow_required",
    /// A defect of the other side.
    Internal = "internal",
}

impl Code {
    /// Whether a repetition of the same bytes at the same place can help.
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::RecipientFull
                | Self::SenderFull
                | Self::BytesFull
                | Self::RateLimited
                | Self::NewAgentLimit
                | Self::Banned
                | Self::SlowLane
                | Self::Busy
                | Self::CircuitOpen
                | Self::StorageUnavailable
                | Self::Draining
                | Self::StaleEpoch
                | Self::PowRequired
                | Self::ClockSkew
                | Self::Internal
        )
    }

    /// Whether a relay forgets a delivery that a node refuses with it.
    pub const fn drops_delivery(self) -> bool {
        matches!(self, Self::BadSignature | Self::Duplicate | Self::Expired | Self::Blocked)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::parse(&std::borrow::Cow::<'de, str>::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back() {
        for code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), *code);
        }
        assert_eq!(Code::parse("else"), Code::Unknown);
        assert_eq!(Code::ALL.len(), 33);
    }
}
