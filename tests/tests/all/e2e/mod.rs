//! Scenarios with real binaries and real peers, each in a namespace with loopback only.

mod direct;
mod doubles;
mod sessions;
