//! Olm accounts and sessions of this device, and how they lie in the store. Everything cryptographic is vodozemac's.

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use rand::CryptoRng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;
use vodozemac::Curve25519PublicKey;
use vodozemac::olm::{
    Account, DecryptionError, OlmMessage, PreKeyMessage, Session, SessionConfig, SessionCreationError,
};
use zeroize::Zeroizing;

use super::envelope::Leg;
use super::{Bin, Blob, DeviceId};
use crate::identity::Identity;

/// Opens what the store keeps of ratchets.
#[derive(Clone)]
pub struct StoreKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A pickle that does not open: another identity's, or damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stored key material does not open with this identity")]
pub struct PickleError;

impl StoreKey {
    /// The key of an identity.
    ///
    /// # Panics
    /// Never: HKDF gives 32 bytes.
    pub fn of(identity: &Identity) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(None, identity.seed())
            .expand(b"threadline/2 store", &mut *key)
            .expect("32 bytes are few");
        Self(key)
    }

    /// vodozemac derives the nonce of its own pickles from the key, so equal keys would repeat it: ours is random.
    fn seal<T: Serialize>(&self, value: &T, rng: &mut impl CryptoRng) -> Vec<u8> {
        let plain = Zeroizing::new(serde_json::to_vec(value).expect("pickles serialise"));
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let sealed = XChaCha20Poly1305::new((&*self.0).into())
            .encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: b"threadline/2 pickle" })
            .expect("far below the cipher's limit");
        [&nonce[..], &sealed].concat()
    }

    fn open<T: DeserializeOwned>(&self, sealed: &[u8]) -> Result<T, PickleError> {
        let (nonce, sealed) = sealed.split_first_chunk::<24>().ok_or(PickleError)?;
        let plain = XChaCha20Poly1305::new((&*self.0).into())
            .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: b"threadline/2 pickle" })
            .map(Zeroizing::new)
            .map_err(|_| PickleError)?;
        serde_json::from_slice(&plain).map_err(|_| PickleError)
    }
}

/// The account of this device.
pub(crate) struct DeviceAccount(Account);

impl DeviceAccount {
    pub(crate) fn new() -> Self {
        Self(Account::new())
    }

    pub(crate) fn open(pickle: &Blob, key: &StoreKey) -> Result<Self, PickleError> {
        key.open(&pickle.0).map(|pickle| Self(Account::from_pickle(pickle)))
    }

    pub(crate) fn pickle(&self, key: &StoreKey, rng: &mut impl CryptoRng) -> Blob {
        Blob(key.seal(&self.0.pickle(), rng))
    }

    pub(crate) fn curve(&self) -> Bin<32> {
        Bin(self.0.curve25519_key().to_bytes())
    }

    /// Makes one-time keys; the caller signs and numbers them.
    pub(crate) fn generate_one_time(&mut self, count: usize) -> Vec<Bin<32>> {
        self.0.generate_one_time_keys(count).created.into_iter().map(|key| Bin(key.to_bytes())).collect()
    }

    /// Replaces the fallback key; the one before the last is gone.
    pub(crate) fn generate_fallback(&mut self) -> Option<Bin<32>> {
        self.0.generate_fallback_key();
        self.0.fallback_key().into_values().next().map(|key| Bin(key.to_bytes()))
    }

    pub(crate) fn forget_previous_fallback(&mut self) -> bool {
        self.0.forget_fallback_key()
    }

    pub(crate) fn mark_published(&mut self) {
        self.0.mark_keys_as_published();
    }

    pub(crate) fn start(&self, curve: &Bin<32>, prekey: &Bin<32>) -> Option<Ratchet> {
        let (identity, one_time) =
            (Curve25519PublicKey::from_bytes(curve.0), Curve25519PublicKey::from_bytes(prekey.0));
        let session = self.0.create_outbound_session(SessionConfig::version_1(), identity, one_time);
        session.ok().map(Ratchet)
    }

    /// Answers a message that starts a session; uses up the one-time key it names.
    pub(crate) fn answer(&mut self, message: &PreKeyMessage) -> Result<(Ratchet, Vec<u8>), LegError> {
        let config = SessionConfig::version_1();
        match self.0.create_inbound_session(config, message.identity_key(), message) {
            Ok(made) => Ok((Ratchet(made.session), made.plaintext)),
            Err(SessionCreationError::MissingOneTimeKey(_)) => Err(LegError::NoSession),
            Err(_) => Err(LegError::Broken),
        }
    }
}

/// Why a leg does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LegError {
    /// No session and no key for it.
    NoSession,
    /// The session exists, the key is gone.
    LostKey,
    /// Not an Olm message, or a forged one.
    Broken,
}

/// One session with one device of a peer.
pub(crate) struct Ratchet(Session);

impl Ratchet {
    pub(crate) fn open(pickle: &Blob, key: &StoreKey) -> Result<Self, PickleError> {
        key.open(&pickle.0).map(|pickle| Self(Session::from_pickle(pickle)))
    }

    pub(crate) fn pickle(&self, key: &StoreKey, rng: &mut impl CryptoRng) -> Blob {
        Blob(key.seal(&self.0.pickle(), rng))
    }

    pub(crate) fn id(&self) -> String {
        self.0.session_id()
    }

    pub(crate) fn encrypt(&mut self, device: DeviceId, plaintext: &[u8]) -> Option<Leg> {
        let message = self.0.encrypt(plaintext).ok()?;
        let (kind, bytes) = message.to_parts();
        Some(Leg { device, starts_session: kind == 0, olm: Blob(bytes) })
    }

    pub(crate) fn decrypt(&mut self, message: &OlmMessage) -> Result<Vec<u8>, LegError> {
        self.0.decrypt(message).map_err(|error| match error {
            DecryptionError::MissingMessageKey(_) | DecryptionError::TooBigMessageGap(..) => {
                LegError::LostKey
            }
            _ => LegError::Broken,
        })
    }
}

/// Reads the Olm message of a leg.
pub(crate) fn olm_message(leg: &Leg) -> Option<OlmMessage> {
    OlmMessage::from_parts(usize::from(!leg.starts_session), &leg.olm.0).ok()
}

/// Names the chain of its ratchet that a leg was sealed in. The peer keeps keys of the newest five alone: what comes after
/// five later ones can't be opened any more.
pub(crate) fn chain_of(leg: &Leg) -> Option<Bin<32>> {
    let key = match olm_message(leg)? {
        OlmMessage::Normal(message) => message.ratchet_key(),
        OlmMessage::PreKey(first) => first.message().ratchet_key(),
    };
    Some(Bin(key.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    #[test]
    fn pickles_open_with_their_identity_alone_and_never_repeat() {
        let mut rng = StdRng::seed_from_u64(1);
        let (alice, bob) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
        let account = DeviceAccount::new();
        let key = StoreKey::of(&alice);
        let pickle = account.pickle(&key, &mut rng);
        assert_ne!(pickle, account.pickle(&key, &mut rng));
        let again = DeviceAccount::open(&pickle, &key).expect("the same identity");
        assert_eq!(again.curve(), account.curve());
        assert!(DeviceAccount::open(&pickle, &StoreKey::of(&bob)).is_err());
        assert!(DeviceAccount::open(&Blob(pickle.0[..40].to_vec()), &key).is_err());
    }
}
