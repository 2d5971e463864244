//! HTTP routes of the node, credentials and OpenAPI.
//!
//! The outer layer: a handler parses, calls one room and answers. Who may call what stands in the route table
//! ([`routes::table`]), from which the router, the OpenAPI document and `/capabilities` are made.

mod access;
mod caller;
mod error;
mod extract;
mod guard;
mod handlers;
mod idempotency;
mod proof;
mod rate;
mod receipt;
mod routes;
mod serve;
mod state;

pub use access::{Access, Credential, OwnerRule, SessionAccess};
pub use error::{ApiError, Problem};
pub use guard::REQUEST_ID;
pub use proof::PinCheck;
pub use rate::{Group, Limits};
pub use routes::{Feature, Route, openapi, router, table};
pub use serve::{Peer, serve_tcp, serve_unix};
pub use state::{ApiSettings, ApiState, BootContext, NodeFacts, Rooms, TurnContext};
