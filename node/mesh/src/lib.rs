//! This node's part in the mesh: inbound pipeline, routing to sessions, sending, trust records.

mod approvals;
mod audit;
mod config;
mod core;
mod direct;
mod discovery;
mod dispatch;
mod firewall;
mod ingest;
mod inside_v1;
mod invitations;
mod link_log;
mod local;
mod mesh;
mod pairing;
mod records;
mod relay_tools;
mod sealed;
mod send;
mod service;
mod stage;
mod threads;
mod trust;
mod upkeep;
mod waiters;

pub use approvals::{ApproveOption, Decision};
pub use config::{MeshConfig, PeerSessionConfig};
pub use core::RelaySwitch;
pub use direct::WireAnswer;
pub use firewall::Authorization;
pub use mesh::{Mesh, MeshDeps, MeshError, Refusal};
pub use pairing::SignedRequest;
pub use service::Answered;
pub use threadline_net::store::{ApprovalKind, ApprovalStatus};
pub use waiters::Handover;
