//! Carries Threadline over sockets and keeps its store.
//!
//! Text enters the outbox only with the clearance of the SendGateway:
//!
//! ```
//! use instar_outbound::{Cleared, OutboundMessage};
//! use threadline_net::store::{OutboundDraft, Store, StoreError};
//!
//! async fn send(store: Store, message: Cleared<OutboundMessage>, draft: OutboundDraft) {
//!     let seal = |message: &OutboundMessage| Ok::<_, StoreError>(message.text.clone());
//!     let _ = store.enqueue(message, draft, seal, 0).await;
//! }
//! ```
//!
//! The same without the clearance does not compile:
//!
//! ```compile_fail,E0308
//! use instar_outbound::{Cleared, OutboundMessage};
//! use threadline_net::store::{OutboundDraft, Store, StoreError};
//!
//! async fn send(store: Store, message: OutboundMessage, draft: OutboundDraft) {
//!     let seal = |message: &OutboundMessage| Ok::<_, StoreError>(message.text.clone());
//!     let _ = store.enqueue(message, draft, seal, 0).await;
//! }
//! ```
//!
//! and a control message has no place for text:
//!
//! ```compile_fail,E0618
//! let text = String::from("hello");
//! let control = threadline_net::Control::Pong(text);
//! ```

mod control;
mod direct;
mod identity;
mod link;
mod machine;
pub mod quic;
mod registry;
pub mod sealed;
pub mod store;

pub use control::Control;
pub use direct::{
    DirectDeps, DirectHandle, Route, Routes, ServerClient, ServerClientError, SharedFiles, run_direct,
};
pub use identity::{IdentityFileError, Minting, OpenedIdentity, open_identity, read_identity_file};
pub use link::{DiscoverError, LinkDeps, LinkEvent, LinkFuture, LinkHandle, LinkStatus, run_link};
pub use machine::MachineLimits;
pub use registry::{RegistryAccess, RegistryClient, RegistryError, http_base};
