//! Stage 0: is there anything to say, and does it fit.

use crate::invisible::without_invisible;
use crate::{Block, ChannelId, OutboundMessage, StageId};

/// A registered way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Its name.
    pub id: ChannelId,
    /// Most bytes of UTF-8 in one message.
    pub max_bytes: usize,
}

impl Channel {
    /// Most bytes of a message that a person reads.
    pub const PERSON_MAX_BYTES: usize = 32 * 1024;
    /// Most bytes of a message to another agent, the limit of `threadline_send`; what carriers take is theirs to say.
    pub const AGENT_MAX_BYTES: usize = 512 * 1024;

    /// The mesh.
    pub const fn threadline() -> Self {
        Self { id: ChannelId::THREADLINE, max_bytes: Self::AGENT_MAX_BYTES }
    }

    /// A channel that people read.
    pub const fn person(id: ChannelId) -> Self {
        Self { id, max_bytes: Self::PERSON_MAX_BYTES }
    }
}

pub(super) fn check(message: &OutboundMessage, channel: &Channel) -> Result<(), Block> {
    if message.text.trim().is_empty() {
        return Err(Block::new(StageId::Structure, "empty-message", "the message is empty"));
    }
    let bytes: usize = message.texts().map(str::len).sum();
    if bytes > channel.max_bytes {
        return Err(Block::new(
            StageId::Structure,
            "too-large",
            format!(
                "the message has {bytes} bytes; channel `{}` takes at most {}",
                channel.id, channel.max_bytes
            ),
        ));
    }
    if without_invisible(&message.text).all(char::is_whitespace) {
        return Err(Block::new(
            StageId::Structure,
            "invisible-payload",
            "the message holds nothing but invisible characters",
        ));
    }
    Ok(())
}
