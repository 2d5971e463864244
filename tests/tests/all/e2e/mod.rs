//! Scenarios with real binaries and real peers, each in a namespace with loopback only.

mod bad_input;
pub(crate) mod direct;
mod doubles;
mod hostile;
mod hostile_v1;
mod inside_v1;
pub(crate) mod sealed;
mod sessions;
mod take_over;
