//! One v2 session, both ends: who proves what before the first message, and what may be said then
//! (`threadline-wire.md` §5). The bytes travel elsewhere.

mod backoff;
mod client;
mod courier;
mod relay;
mod resolve;
#[cfg(test)]
mod tests;

pub use client::*;
pub use courier::Courier;
pub use relay::*;
pub use resolve::{Endpoints, Protocol, RelayPin, ResolveOutcome, Resolved, resolve};

/// What carries a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Carrier {
    /// QUIC: TLS proves both keys.
    Quic,
    /// WebSocket/2: frames prove both keys.
    WebSocket,
}

/// Application close codes.
pub mod close {
    /// Good-bye.
    pub const NORMAL: u16 = 0;
    /// A rule of the protocol was broken.
    pub const PROTOCOL: u16 = 1;
    /// No session.
    pub const REFUSED: u16 = 2;
    /// Excluded for a time.
    pub const BANNED: u16 = 3;
    /// The relay stops.
    pub const DRAINING: u16 = 4;
    /// A newer session of the device took over.
    pub const REPLACED: u16 = 5;
}
