//! Behavioural hooks as pure decisions, and the executable that a runtime calls.
//!
//! ```
//! let prompt = "[threadline:t-1 from 0a1b2c3d \"Bea\" #01HXAMZ9V4B7Q2K3M5N6P7R8ST] Hello";
//! assert_eq!(instar_hooks::ulid_of_prompt(prompt), Some("01HXAMZ9V4B7Q2K3M5N6P7R8ST"));
//! ```

pub mod binding;
pub mod event;
mod files;
mod report;
pub mod settings;
pub mod snapshot;
pub mod spool;
pub mod tag;

pub use binding::SessionBinding;
pub use event::{Event, EventInput, Runtime};
pub use report::{HookDecision, HookReport, ReportFacts, sha256_hex};
pub use snapshot::HookConfig;
pub use tag::{Tag, ulid_of_prompt};
