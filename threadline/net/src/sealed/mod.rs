//! Sealed mail over v2 relays: carries out what [`threadline::v2::mail`] and [`threadline::v2::session`] decide.

mod connection;
mod driver;
mod handle;
mod network;
mod relays;
mod well_known;

pub use driver::{Introduction, SealedDeps, SealedFuture, Standing, run_sealed};
pub use handle::{SealedDraft, SealedError, SealedEvent, SealedHandle, SealedRelay, SealedStatus};
pub use relays::{RelayNews, RelaySetting, RelayTrouble, follow_relays};
pub use well_known::ask_relay;
