//! Real runtime processes as sessions: transports, life cycle, delivery of input.

pub mod config;
pub mod launch;
pub mod models;
pub mod names;
pub mod process;
pub mod record;
pub mod stream;
pub mod supervisor;
pub mod tokens;
pub mod transcript;
