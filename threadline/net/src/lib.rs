//! Carries Threadline over sockets and keeps its store.

mod control;
mod identity;
mod link;
mod registry;
pub mod store;

pub use control::Control;
pub use identity::{IdentityFileError, Minting, OpenedIdentity, open_identity, read_identity_file};
pub use link::{DiscoverError, LinkDeps, LinkEvent, LinkFuture, LinkHandle, LinkStatus, run_link};
pub use registry::{RegistryAccess, RegistryClient, RegistryError, http_base};
