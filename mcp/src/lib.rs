//! The MCP server with the eleven Threadline tools.
//!
//! It carries calls to a [`Threadline`](threadline::service::Threadline) and knows nothing of how they are carried
//! out. One client over stdio is [`serve_stdio`]; many clients with tokens over HTTP are [`HttpListener`].

mod answer;
mod http;
mod server;
mod stdio;
pub mod tokens;
mod tools;

pub use http::{HttpConfig, HttpError, HttpListener};
pub use server::ServerIdentity;
pub use stdio::{StdioError, serve_stdio, serve_streams};
