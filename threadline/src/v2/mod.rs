//! v2: MessagePack frames, envelopes that are sealed for certified devices, and the machines that exchange them
//! (`threadline-wire.md` §4 and §5).

pub mod blob;
pub mod content;
pub mod envelope;
mod error;
pub mod frames;
pub mod inside_v1;
pub mod login;
pub mod mail;
pub mod objects;
pub mod olm;
pub mod opened;
pub mod raw_key;
pub mod safety;
pub mod session;
pub mod strict;
pub mod vouch;

pub use error::Code;
pub use strict::{Bin, Blob, DecodeError};

/// Largest envelope, bytes.
pub const MAX_ENVELOPE: usize = 262_144;
/// Largest text or data of a message, bytes.
pub const MAX_BODY: usize = 65_536;
/// Longest life of a message: `x - ts`, ms.
pub const MAX_LIFE_MS: u64 = 30 * 24 * 3_600_000;
/// A peer's clock may be this far ahead, ms.
pub const MAX_AHEAD_MS: u64 = 120_000;

/// An identity key as it travels.
pub type Key = Bin<32>;
/// A device of an identity.
pub type DeviceId = Bin<16>;
/// A message id: UUIDv7.
pub type Id = Bin<16>;
/// Carries order without telling the thread.
pub type ThreadTag = Bin<8>;

impl From<&crate::identity::PublicIdentity> for Key {
    fn from(key: &crate::identity::PublicIdentity) -> Self {
        Self(*key.as_bytes())
    }
}

/// SHA-256 over the parts.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}
