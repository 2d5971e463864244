//! Messages between nodes that no session reads. They hold no free text.

/// A control message of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Answer to a `ping`.
    Pong,
    /// Answer to a `health` question.
    Healthy,
    /// The thread is closed on this side.
    ThreadResolved,
    /// The plain acknowledgement that existing installs know (`threadline-wire.md` §2.5.1).
    Received,
}

impl Control {
    /// Payload type on the wire.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Pong => "pong",
            Self::Healthy => "health",
            Self::ThreadResolved => "thread-resolved",
            Self::Received => "status",
        }
    }

    /// Fixed text for receivers that know only text.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Pong => "pong",
            Self::Healthy => "ok",
            Self::ThreadResolved => "resolved",
            Self::Received => "Message received.",
        }
    }
}
