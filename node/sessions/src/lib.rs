//! Real runtime processes as sessions: transports, life cycle, delivery of input.
//!
//! [`Sessions`] is the whole of it for other rooms; the mesh sees it as [`instar_state::ports::PeerSessions`]. The
//! processes between node and runtime are [`supervisor`]; `main` asks [`supervisor::dispatch`] first.
//!
//! ```
//! use instar_sessions::delivery::framed;
//! let ulid = ulid::Ulid::from_parts(0, 1);
//! assert_eq!(framed("system:test", ulid, "hi"), "[system:test #00000000000000000000000001] hi");
//! ```

mod actor;
pub mod config;
mod continuing;
pub mod delivery;
pub mod dialogs;
mod ending;
pub mod environment;
mod error;
pub mod launch;
mod link;
mod mailbox;
pub mod memory;
pub mod models;
pub mod monitor;
pub mod names;
mod overdue;
mod peers;
pub mod process;
pub mod provider;
pub mod queue;
pub mod reap;
pub mod record;
mod recovery;
mod render;
pub mod resume;
pub mod runtime;
mod sessions;
mod shared;
pub mod signals;
pub mod slots;
mod spawn;
pub mod stream;
pub mod supervisor;
mod tmux;
pub mod tokens;
pub mod transcript;
mod waiting;
mod watch;

pub use config::SessionsConfig;
pub use error::SessionError;
pub use overdue::OverdueDecision;
pub use recovery::Recovered;
pub use sessions::{Capacity, KEYS, MAX_INPUT, OutputFormat, SentInput, SessionCaller, Sessions};
pub use shared::SessionsDeps;
pub use spawn::{MAX_PROMPT, Resume, SpawnRequest};
pub use waiting::Spawned;
