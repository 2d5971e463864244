//! Message bodies at rest: XChaCha20-Poly1305, bound to their row.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand::Rng as _;

const NONCE: usize = 24;

/// Seals and opens bodies with the key of `queue.key`; the row number is authenticated with them.
#[derive(Clone)]
pub struct BodyCipher {
    cipher: XChaCha20Poly1305,
}

impl std::fmt::Debug for BodyCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BodyCipher([redacted])")
    }
}

impl BodyCipher {
    /// With a 32-byte key.
    pub fn new(key: &[u8; 32]) -> Self {
        Self { cipher: XChaCha20Poly1305::new(key.into()) }
    }

    /// Nonce and ciphertext for row `seq`.
    pub fn seal(&self, seq: u64, body: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let aad = seq.to_be_bytes();
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: body, aad: &aad })
            .expect("a body is far below the limit of the cipher");
        [nonce.as_slice(), &sealed].concat()
    }

    /// The body of row `seq`, unless the bytes or the row were changed.
    pub fn open(&self, seq: u64, stored: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = stored.split_first_chunk::<NONCE>()?;
        let aad = seq.to_be_bytes();
        self.cipher.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &aad }).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_opens_only_in_its_own_row() {
        let cipher = BodyCipher::new(&[1; 32]);
        let stored = cipher.seal(7, b"hello");
        assert!(!stored.windows(5).any(|w| w == b"hello"));
        assert_eq!(cipher.open(7, &stored).as_deref(), Some(b"hello".as_slice()));
        assert_eq!(cipher.open(8, &stored), None);
        assert_eq!(cipher.open(7, &stored[..20]), None);
    }
}
