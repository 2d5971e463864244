//! What is about to be said, to whom, and by what.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A way out of the node: `threadline`, `telegram`, `cli`, …
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChannelId(Cow<'static, str>);

impl ChannelId {
    /// Other agents, over the mesh.
    pub const THREADLINE: Self = Self(Cow::Borrowed("threadline"));
    /// The node's own chat door.
    pub const DIRECT: Self = Self(Cow::Borrowed("direct"));
    /// The command line of this machine.
    pub const CLI: Self = Self(Cow::Borrowed("cli"));
    /// Between parts of one node.
    pub const INTERNAL: Self = Self(Cow::Borrowed("internal"));

    /// Accepts 1 to 32 lowercase letters, digits and hyphens, starting with a letter.
    pub fn parse(text: &str) -> Result<Self, InvalidChannelId> {
        let valid = text.len() <= 32
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if valid { Ok(Self(Cow::Owned(text.to_owned()))) } else { Err(InvalidChannelId(text.to_owned())) }
    }

    /// Name as stored and printed.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether text on this channel leaves the owner's own machine and doors.
    pub fn is_external(&self) -> bool {
        !matches!(self.as_str(), "direct" | "cli" | "internal")
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ChannelId {
    type Error = InvalidChannelId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<ChannelId> for String {
    fn from(id: ChannelId) -> Self {
        id.0.into_owned()
    }
}

/// A channel name that breaks the grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no channel name: use 1 to 32 lowercase letters, digits and hyphens, a letter first")]
pub struct InvalidChannelId(String);

/// What made the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A supervised session.
    Session,
    /// A scheduled job.
    Job,
    /// The node itself, from a fixed template.
    System,
    /// A mirror of text that was already cleared elsewhere.
    Bridge,
    /// The command line.
    Cli,
    /// The mesh room, for a call that came through its tools or routes.
    Threadline,
    /// Publishing.
    Publish,
}

/// Who reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecipientKind {
    /// The agent's verified owner.
    PrimaryUser,
    /// Another person the agent knows.
    SecondaryUser,
    /// Another agent.
    Agent,
    /// Anyone else.
    ExternalContact,
}

/// The reader of a message, from structured metadata only, never parsed out of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// Who reads it.
    pub kind: RecipientKind,
    /// Address on the channel: a fingerprint, a platform user id.
    pub id: String,
    /// Trust level by name, where the channel has levels.
    pub trust: Option<String>,
    /// The reader's own contact values, which may be said to the reader.
    pub own_values: Vec<String>,
}

/// Where an answer goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTarget {
    /// Way out.
    pub channel: ChannelId,
    /// Reader.
    pub recipient: Recipient,
    /// Topic or thread on that channel.
    pub conversation: Option<String>,
}

/// What the sender asks the stages to allow or to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendFlags {
    /// Text that looks like a debug payload is meant.
    pub allow_debug_text: bool,
    /// An exact repetition is meant.
    pub allow_duplicate: bool,
    /// Said on behalf of another party.
    pub is_proxy: bool,
    /// A health notice.
    pub health_alert: bool,
    /// Acknowledges a stop word or the emergency stop to the owner.
    pub operator_acknowledgement: bool,
}

/// A message that wants out. Prints without its text.
#[derive(Clone, PartialEq, Eq)]
pub struct OutboundMessage {
    /// What is said.
    pub text: String,
    /// Title that travels with it, checked like the text.
    pub subject: Option<String>,
    /// Where it goes.
    pub target: ReplyTarget,
    /// What made it.
    pub origin: Origin,
    /// Session that wrote it.
    pub session_id: Option<String>,
    /// Wishes of the sender.
    pub flags: SendFlags,
    /// Repeating a send with the same key sends nothing twice.
    pub idempotency_key: Option<String>,
}

impl OutboundMessage {
    /// Every piece of free text that would leave.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.text.as_str()).chain(self.subject.as_deref())
    }
}

impl fmt::Debug for OutboundMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboundMessage")
            .field("text", &format_args!("[redacted, {} bytes]", self.text.len()))
            .field("target", &self.target)
            .field("origin", &self.origin)
            .field("session_id", &self.session_id)
            .finish_non_exhaustive()
    }
}
