//! End-to-end harness: accounts, agents and their processes in a namespace of their own.
//!
//! ```no_run
//! use instar_tests::harness::{World, isolated};
//!
//! fn one_node_answers() {
//!     isolated(one_node_answers, async {
//!         let world = World::new()?;
//!         let account = world.account("ann")?;
//!         let mut agent = account.agent("alpha").await?;
//!         agent.up().await?;
//!         assert_eq!(agent.get("/health").await?.status, 200);
//!         Ok(())
//!     });
//! }
//! ```

mod account;
mod agent;
mod conversation;
pub mod hostile;
mod http;
mod isolation;
pub mod processes;
mod proxy;
mod raw_peer;
mod relay;
mod store;
mod tmpfs;
mod udp_path;
mod wait;
mod world;

pub use account::{API_KEY, Account};
pub use agent::{Agent, CliOutput};
pub use conversation::Message;
pub use http::{Answer, request};
pub use isolation::isolated;
pub use proxy::Proxy;
pub use raw_peer::{RawPeer, Received};
pub use relay::{RAISED_LIMITS, Relay, free_port};
pub use store::{MessageStore, Stored};
pub use tmpfs::Tmpfs;
pub use udp_path::UdpPath;
pub use wait::eventually;
pub use world::World;
