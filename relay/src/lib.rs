//! The Threadline relay: agents connect outward to it, it keeps their messages until they are confirmed, knows who is
//! there and lists who wants to be found.

pub mod a2a;
pub mod abuse;
pub mod admin;
pub mod cluster;
pub mod config;
pub mod core;
pub mod embedded;
pub mod frames;
pub mod keys;
pub mod limits;
mod lock;
mod maps;
pub mod metrics;
pub mod program;
pub mod registry;
mod server;
pub mod store;
pub mod sybil;
pub mod token;

pub use config::{ConfigError, RelayConfig};
pub use core::Counters;
pub use lock::{DataDirError, DataDirLock};
pub use server::{Heartbeat, Launch, RelayError, serve};
