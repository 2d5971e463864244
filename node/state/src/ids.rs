//! Identifiers shared by the rooms of the node.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A session of this node: a UUID, for new sessions also the runtime's own session id (`agent-core.md` §6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(Uuid);

impl SessionId {
    /// A new random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SessionId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Uuid::try_parse(text).map(Self).map_err(|_| InvalidId { what: "session id", text: text.to_owned() })
    }
}

/// `platform:id`: what messages belong to, whatever session serves it (`agent-core.md`, words).
///
/// The mesh uses `threadline:<peer fingerprint>:<thread id>`: a thread id alone does not name a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConversationKey(String);

impl ConversationKey {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Part before the first colon.
    pub fn platform(&self) -> &str {
        self.0.split_once(':').map_or("", |(platform, _)| platform)
    }

    /// Part after the first colon.
    pub fn id(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, id)| id)
    }
}

impl fmt::Display for ConversationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ConversationKey {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let valid = text.len() <= 256
            && !text.chars().any(|c| c.is_control() || c.is_whitespace())
            && text.split_once(':').is_some_and(|(platform, id)| {
                !id.is_empty()
                    && !platform.is_empty()
                    && platform.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            });
        if valid {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidId { what: "conversation key (platform:id)", text: text.chars().take(64).collect() })
    }
}

impl TryFrom<String> for ConversationKey {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<ConversationKey> for String {
    fn from(key: ConversationKey) -> Self {
        key.0
    }
}

/// A text that is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}")]
pub struct InvalidId {
    /// What was expected.
    pub what: &'static str,
    /// What was given.
    pub text: String,
}
