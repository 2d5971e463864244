//! Identifiers that parse from text, print as text and never mix.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: {expected}")]
pub struct ParseIdError {
    /// Kind of identifier.
    pub what: &'static str,
    /// What was given, cut to 64 characters.
    pub text: String,
    /// The grammar.
    pub expected: &'static str,
}

impl ParseIdError {
    fn new(what: &'static str, text: &str, expected: &'static str) -> Self {
        Self { what, text: text.chars().take(64).collect(), expected }
    }
}

/// Routing fingerprint: the first 16 bytes of an Ed25519 public key, the address of an agent on the mesh
/// (`threadline-wire.md` §1.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// From raw bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// First 8 hex digits, for people and for `name:prefix` addresses.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let fail = || ParseIdError::new("fingerprint", text, "32 lowercase hex digits");
        if text.len() != 32 || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(fail());
        }
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| fail())?;
        Ok(Self(bytes))
    }
}

const ID_GRAMMAR: &str = "1 to 128 characters of A-Z a-z 0-9 . _ : -";

fn is_wire_id(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'))
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                if is_wire_id(text) {
                    return Ok(Self(text.into()));
                }
                Err(ParseIdError::new($what, text, ID_GRAMMAR))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

text_id! {
    /// Conversation id as it travels; only together with a peer does it name a thread
    /// (`threadline-wire.md` §6).
    ThreadId, "thread id"
}

text_id! {
    /// Message id as it travels; unique per sender.
    MessageId, "message id"
}

impl ThreadId {
    /// A new id for a thread that we open: the given UUIDv7.
    pub fn from_uuid(id: uuid::Uuid) -> Self {
        Self(id.to_string().into())
    }
}

impl MessageId {
    /// A new id for a message of ours.
    pub fn from_uuid(id: uuid::Uuid) -> Self {
        Self(id.to_string().into())
    }
}

macro_rules! serde_as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

serde_as_text!(Fingerprint, ThreadId, MessageId);

/// One conversation: a thread id is only meaningful together with the peer that uses it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ThreadKey {
    /// The other agent.
    pub peer: Fingerprint,
    /// Its thread.
    pub thread: ThreadId,
}

/// How much the owner relies on a peer's key (`threadline-agent.md` §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrustLevel {
    /// Everyone at first: held for the owner, never read by a session.
    #[default]
    Untrusted,
    /// May converse and start a session with the read-only tool set.
    Verified,
    /// As verified, plus what grants add.
    Trusted,
    /// The session's normal tools, under all hooks.
    Autonomous,
}

impl fmt::Display for TrustLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untrusted => "untrusted",
            Self::Verified => "verified",
            Self::Trusted => "trusted",
            Self::Autonomous => "autonomous",
        })
    }
}

impl FromStr for TrustLevel {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        Ok(match text {
            "untrusted" => Self::Untrusted,
            "verified" => Self::Verified,
            "trusted" => Self::Trusted,
            "autonomous" => Self::Autonomous,
            _ => {
                return Err(ParseIdError::new(
                    "trust level",
                    text,
                    "untrusted, verified, trusted or autonomous",
                ));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fingerprints_are_32_lowercase_hex_digits() {
        let text = "03a107bff3ce10be1d70dd18e74bc099";
        assert_eq!(text.parse::<Fingerprint>().expect("valid").to_string(), text);
        for bad in ["", "03A107BFF3CE10BE1D70DD18E74BC099", "03a1", &"g".repeat(32), &"0".repeat(33)] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn wire_ids_print_what_they_parsed(text in "[A-Za-z0-9._:-]{1,128}") {
            prop_assert_eq!(text.parse::<ThreadId>().expect("valid").to_string(), text);
        }

        #[test]
        fn nothing_else_is_a_wire_id(text in ".*") {
            let valid = !text.is_empty() && text.len() <= 128
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "._:-".contains(c));
            prop_assert_eq!(text.parse::<MessageId>().is_ok(), valid);
        }
    }
}
