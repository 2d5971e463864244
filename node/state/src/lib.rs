//! Paths, configuration, secrets, ids, events and the message journal of one agent.

use std::future::Future;
use std::pin::Pin;

pub mod answers;
pub mod config;
pub mod events;
pub mod ids;
pub mod journal;
pub mod notices;
pub mod paths;
pub mod ports;
pub mod process;
pub mod registry;
pub mod secret;
pub mod secrets;
pub mod security_log;
pub mod tcp_ports;
pub mod time;

/// A future that can be stored and sent between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
