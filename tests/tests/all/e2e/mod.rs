//! Scenarios with real binaries and real peers, each in a namespace with loopback only.

mod bad_input;
pub(crate) mod direct;
mod doubles;
mod hostile;
pub(crate) mod sealed;
mod sessions;
mod take_over;
