//! The Threadline protocol and its decisions, without I/O.

pub mod delivery;
pub mod identity;
mod ids;
pub mod jcs;
pub mod limits;
pub mod service;
#[cfg(test)]
mod testing;
pub mod time;
pub mod trust;
pub mod v1;

pub use ids::{Fingerprint, MessageId, ParseIdError, ThreadId, ThreadKey, TrustLevel};
