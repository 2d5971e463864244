//! The Threadline protocol and its decisions, without I/O.

pub mod autonomy;
pub mod delivery;
pub mod hash_chain;
pub mod identity;
mod ids;
pub mod inbound;
pub mod jcs;
pub mod limits;
pub mod service;
#[cfg(test)]
mod testing;
pub mod text;
pub mod threads;
pub mod time;
pub mod trust;
pub mod v1;

pub use ids::{Fingerprint, MessageId, ParseIdError, ThreadId, ThreadKey, TrustLevel};
