//! The Threadline protocol and its decisions, without I/O.
//!
//! ```
//! use threadline::identity::Identity;
//! use threadline::v1::envelope::{self, Content, Header};
//!
//! let (alice, bob) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
//! let now_ms = 1_768_478_400_000;
//! let header = Header {
//!     from: alice.fingerprint(),
//!     to: bob.fingerprint(),
//!     thread_id: Some("lunch".parse()?),
//!     message_id: "m-1".parse()?,
//!     timestamp: now_ms,
//! };
//! let content = Content { text: "Soup?".into(), ..Content::default() };
//! let sealed = envelope::seal(&alice, bob.public(), &header, &content, &mut rand::rng())?;
//!
//! let authentic = envelope::authenticate(&sealed, &bob.fingerprint(), Some(alice.public()), now_ms)?;
//! assert_eq!(authentic.open(&bob)?.text, "Soup?");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod audit;
pub mod autonomy;
pub mod delivery;
pub mod firewall;
pub mod framing;
pub mod hash_chain;
pub mod identity;
mod ids;
pub mod inbound;
pub mod invitation;
pub mod jcs;
pub mod limits;
pub mod path;
pub mod resolve;
pub mod service;
pub mod spawn;
#[cfg(test)]
mod testing;
pub mod text;
pub mod threads;
pub mod time;
pub mod trust;
pub mod v1;
pub mod v2;
pub mod warrant;

pub use ids::{Fingerprint, MessageId, ParseIdError, ThreadId, ThreadKey, TrustLevel};
