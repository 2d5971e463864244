//! Sealed mail over v2 relays: carries out what [`threadline::v2::mail`] and [`threadline::v2::session`] decide.

mod connection;
mod driver;
mod handle;
mod well_known;

pub use driver::{HandOn, HandOnFailed, SealedDeps, SealedFuture, run_sealed};
pub use handle::{SealedDraft, SealedError, SealedEvent, SealedHandle, SealedRelay, SealedStatus};
pub use well_known::ask_relay;
