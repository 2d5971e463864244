//! The one Ed25519 key of an agent: derivations, what it may sign, its files, its recovery (`threadline-wire.md` §1).

mod file;
mod pin;
mod purpose;
mod recovery;
mod rotation;

pub use file::{CanonicalFile, Found, IdentityError, Loaded, load, parse_legacy};
pub use pin::{Pin, PinOutcome, check_pin};
pub use purpose::{AnchorStatement, DiscoveryChallenge, LoginNonce, Purpose, TlsClientProof};
pub use recovery::{Recovery, RecoveryError};
pub use rotation::{RevocationRequest, RevocationStatement, RotationProof, RotationStatement};

use std::fmt;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use rand::CryptoRng;
use sha2::{Digest as _, Sha256, Sha512};
use zeroize::Zeroizing;

use crate::Fingerprint;

/// Why bytes are not a usable public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes; carries the length that was found.
    #[error("a public key has 32 bytes, not {0}")]
    Length(usize),
    /// Not a point of the curve.
    #[error("the bytes are not a point on the curve")]
    NotAPoint,
    /// A small-order point: anyone could sign for it.
    #[error("the key is a small-order point, which proves nothing")]
    Weak,
}

/// The public half of an identity: full key, with everything that is derived from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicIdentity(VerifyingKey);

impl PublicIdentity {
    /// Accepts the 32 bytes of a key that is on the curve and of full order.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let bytes: &[u8; 32] = bytes.try_into().map_err(|_| KeyError::Length(bytes.len()))?;
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NotAPoint)?;
        if key.is_weak() {
            return Err(KeyError::Weak);
        }
        Ok(Self(key))
    }

    /// The 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Address: the first 16 bytes of the key.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.as_bytes()[..16]);
        Fingerprint::from_bytes(bytes)
    }

    /// SHA-256 over `instar-agent-id-v1` and the key, 64 lowercase hex digits.
    pub fn canonical_id(&self) -> String {
        hex::encode(Sha256::new().chain_update("instar-agent-id-v1").chain_update(self.as_bytes()).finalize())
    }

    /// First 16 hex digits of the canonical id: for eyes, never for a lookup.
    pub fn display_fingerprint(&self) -> String {
        let mut text = self.canonical_id();
        text.truncate(16);
        text
    }

    /// Montgomery image of the key, used for key agreement.
    pub fn x25519(&self) -> [u8; 32] {
        self.0.to_montgomery().to_bytes()
    }

    /// Whether `signature` (64 bytes) over `message` was made by this key; strict verification.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature).is_ok_and(|s| self.0.verify_strict(message, &s).is_ok())
    }
}

impl fmt::Debug for PublicIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicIdentity({})", hex::encode(self.as_bytes()))
    }
}

/// An agent's identity key. It signs only the members of [`Purpose`], and its secret bytes leave this crate in the
/// identity file alone.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
    public: PublicIdentity,
}

impl Identity {
    /// Mints a new identity.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *seed);
        Self::from_seed(&seed)
    }

    /// The identity of a 32-byte seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        let public = PublicIdentity(key.verifying_key());
        Self { key, public }
    }

    /// The public half.
    pub fn public(&self) -> &PublicIdentity {
        &self.public
    }

    /// The address.
    pub fn fingerprint(&self) -> Fingerprint {
        self.public.fingerprint()
    }

    /// Signs the bytes of `purpose`.
    pub fn sign(&self, purpose: &Purpose<'_>) -> [u8; 64] {
        self.key.sign(&purpose.signed_bytes()).to_bytes()
    }

    pub(crate) fn seed(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// Clamped first half of SHA-512(seed).
    pub(crate) fn x25519_private(&self) -> Zeroizing<[u8; 32]> {
        let digest: Zeroizing<[u8; 64]> = Zeroizing::new(Sha512::digest(self.seed()).into());
        let mut scalar = Zeroizing::new([0; 32]);
        scalar.copy_from_slice(&digest[..32]);
        *scalar = curve25519_dalek::scalar::clamp_integer(*scalar);
        scalar
    }

    /// X25519 with `theirs`; `None` when the result is all zero.
    pub(crate) fn agree(&self, theirs: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        agree(&self.x25519_private(), theirs)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, [redacted])", self.fingerprint())
    }
}

pub(crate) fn agree(private: &[u8; 32], theirs: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
    let secret = x25519_dalek::StaticSecret::from(*private);
    let shared = secret.diffie_hellman(&x25519_dalek::PublicKey::from(*theirs));
    shared.was_contributory().then(|| Zeroizing::new(shared.to_bytes()))
}
