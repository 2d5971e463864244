//! Behavioural hooks as pure decisions, and the executable that a runtime calls.
//!
//! ```
//! let prompt = "[threadline:t-1 from 0a1b2c3d \"Bea\" #01HXAMZ9V4B7Q2K3M5N6P7R8ST] Hello";
//! assert_eq!(instar_hooks::ulid_of_prompt(prompt), Some("01HXAMZ9V4B7Q2K3M5N6P7R8ST"));
//! ```

pub mod binding;
mod client;
pub mod context;
mod dispatch;
pub mod event;
mod files;
mod firewall;
pub mod guard;
mod process;
mod report;
pub mod settings;
pub mod snapshot;
pub mod spool;
pub mod tag;
mod verdict;

pub use binding::SessionBinding;
pub use dispatch::{HOOKS, HookClass, HookInfo};
pub use event::{Event, EventInput, Runtime};
pub use process::main_from_args;
pub use report::{HookDecision, HookReport, ReportFacts, sha256_hex};
pub use snapshot::HookConfig;
pub use tag::{Tag, ulid_of_prompt};
