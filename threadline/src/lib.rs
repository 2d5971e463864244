//! The Threadline protocol and its decisions, without I/O.

pub mod audit;
pub mod autonomy;
pub mod delivery;
pub mod firewall;
pub mod framing;
pub mod hash_chain;
pub mod identity;
mod ids;
pub mod inbound;
pub mod jcs;
pub mod limits;
pub mod resolve;
pub mod service;
pub mod spawn;
#[cfg(test)]
mod testing;
pub mod text;
pub mod threads;
pub mod time;
pub mod trust;
pub mod v1;
pub mod warrant;

pub use ids::{Fingerprint, MessageId, ParseIdError, ThreadId, ThreadKey, TrustLevel};
