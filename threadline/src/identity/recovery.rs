//! The recovery key: made from 24 words that are shown once (`threadline-wire.md` §1.4).

use bip39::Mnemonic;
use rand::CryptoRng;
use zeroize::{Zeroize as _, Zeroizing};

use super::{Identity, PublicIdentity, Purpose, purpose};

/// Why a recovery phrase is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// Wrong words or checksum.
    #[error("the recovery phrase is not 24 English BIP-39 words with a valid checksum")]
    Phrase,
    /// The words are valid but lead to another key.
    #[error("the recovery phrase is valid but belongs to another agent")]
    OtherKey,
}

/// What the identity file keeps about recovery. The phrase itself is never stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Salt of the key derivation.
    pub salt: [u8; 32],
    /// Public half of the recovery key.
    pub public: PublicIdentity,
    /// Signature of the identity key over the public half.
    pub commitment: [u8; 64],
}

impl Recovery {
    /// Makes a recovery key for `identity`. The second value is the phrase, to be shown once. Takes about 0.1 s.
    pub fn mint(identity: &Identity, rng: &mut impl CryptoRng) -> (Self, Zeroizing<String>) {
        let mut entropy = Zeroizing::new([0; 32]);
        let mut salt = [0; 32];
        rng.fill_bytes(&mut *entropy);
        rng.fill_bytes(&mut salt);
        let mut words = Mnemonic::from_entropy(&*entropy).expect("32 bytes are a valid entropy length");
        let phrase = Zeroizing::new(words.to_string());
        words.zeroize();
        let public = *key(&phrase, &salt).public();
        let commitment = identity.sign(&Purpose::RecoveryCommitment(&public));
        (Self { salt, public, commitment }, phrase)
    }

    /// Whether the commitment was signed by `identity`.
    pub fn verifies(&self, identity: &PublicIdentity) -> bool {
        identity.verifies(&purpose::recovery_commitment_bytes(&self.public), &self.commitment)
    }

    /// The recovery key of `phrase`, checked against the stored public half.
    pub fn unlock(&self, phrase: &str) -> Result<Identity, RecoveryError> {
        let mut words =
            Mnemonic::parse_in(bip39::Language::English, phrase).map_err(|_| RecoveryError::Phrase)?;
        let text = Zeroizing::new(words.to_string());
        let count = words.word_count();
        words.zeroize();
        if count != 24 {
            return Err(RecoveryError::Phrase);
        }
        let key = key(&text, &self.salt);
        if *key.public() != self.public {
            return Err(RecoveryError::OtherKey);
        }
        Ok(key)
    }
}

fn key(phrase: &str, salt: &[u8; 32]) -> Identity {
    Identity::from_seed(&argon2id(phrase.as_bytes(), salt))
}

/// Argon2id with t = 3, m = 64 MiB, p = 4, version 0x13, 32 bytes.
pub(super) fn argon2id(secret: &[u8], salt: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let params = argon2::Params::new(65_536, 3, 4, Some(32)).expect("constant parameters are in range");
    let mut out = Zeroizing::new([0; 32]);
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(secret, salt, &mut *out)
        .expect("a 32-byte salt and output are in range, and secrets are shorter than 4 GiB");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phrase_opens_its_own_recovery_only() {
        let identity = Identity::from_seed(&[9; 32]);
        let (recovery, phrase) = Recovery::mint(&identity, &mut rand::rng());
        assert_eq!(phrase.split(' ').count(), 24);
        assert!(recovery.verifies(identity.public()));
        assert!(!recovery.verifies(Identity::from_seed(&[8; 32]).public()));
        assert_eq!(recovery.unlock(&phrase).expect("own phrase").public(), &recovery.public);
        assert_eq!(recovery.unlock("abandon abandon").expect_err("refused"), RecoveryError::Phrase);
        let other = "abandon amount liar amount expire adjust cage candy arch gather drum bullet absurd math era \
                     live bid rhythm alien crouch range attend journey unaware";
        assert_eq!(recovery.unlock(other).expect_err("refused"), RecoveryError::OtherKey);
    }
}
