//! Carries Threadline over sockets and keeps its store.

mod control;
pub mod store;

pub use control::Control;
