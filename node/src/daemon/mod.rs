//! The node: what `instar up` and `instar server start` run, and the commands around it.

mod bind;
mod context;
mod facts;
mod holder;
mod hook_log;
mod hook_spool;
mod log;
mod node;
mod own_secrets;
mod relay;
mod server;
mod settings;
mod supervise;
mod tools;

pub(crate) use relay::{DirArgs, relay_start, relay_status, relay_stop};
pub(crate) use server::{StartArgs, StopArgs, restart, start, status, stop, up};
pub(crate) use tools::{mcp_serve, mcp_threadline};
