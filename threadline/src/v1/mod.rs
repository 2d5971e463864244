//! Threadline v1: WebSocket and JSON (`threadline-wire.md` §2).

pub mod client;
pub mod envelope;
pub mod frames;
pub mod http;
pub mod local;

/// Largest envelope, bytes of its JSON.
pub const MAX_ENVELOPE: usize = 262_144;
/// Largest WebSocket message that a relay reads.
pub const MAX_FRAME: usize = MAX_ENVELOPE + 1_024;
/// Deepest nesting of JSON in a frame.
pub const MAX_DEPTH: usize = 32;
/// Largest decoded payload and largest outgoing text, bytes.
pub const MAX_PAYLOAD: usize = 65_536;

/// WebSocket close codes of v1.
pub mod close {
    /// Client or agent leaves.
    pub const NORMAL: u16 = 1000;
    /// The relay stops.
    pub const GOING_AWAY: u16 = 1001;
    /// Frame above [`super::MAX_FRAME`].
    pub const TOO_LARGE: u16 = 1009;
    /// Heartbeat lost.
    pub const HEARTBEAT_LOST: u16 = 4000;
    /// Another connection took the identity.
    pub const DISPLACED: u16 = 4001;
    /// Login refused (ours only; other relays leave the socket open).
    pub const AUTH_REFUSED: u16 = 4002;
    /// Banned.
    pub const BANNED: u16 = 4003;
    /// No login in time.
    pub const AUTH_TIMEOUT: u16 = 4008;
    /// Too many logins.
    pub const AUTH_RATE_LIMITED: u16 = 4029;
}
