//! The one relay connection of this identity: carries out what the client state machine decides.

pub(crate) mod driver;
mod handle;
mod socket;

pub use driver::{LinkDeps, LinkFuture, run_link};
pub use handle::{DiscoverError, LinkEvent, LinkHandle, LinkStatus};
