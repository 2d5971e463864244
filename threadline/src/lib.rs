//! The Threadline protocol and its decisions, without I/O.

mod ids;
pub mod service;

pub use ids::{Fingerprint, MessageId, ParseIdError, ThreadId, ThreadKey, TrustLevel};
