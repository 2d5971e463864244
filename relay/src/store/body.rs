//! Message bodies at rest: XChaCha20-Poly1305, bound to the record that they stand in.

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::aead::{AeadInOut as _, KeyInit as _};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use rand::Rng as _;

/// Bytes of a nonce.
pub(super) const NONCE: usize = 24;
/// Bytes of an authentication tag.
pub(super) const TAG: usize = 16;

/// Seals and opens bodies with the key of `queue.key`.
#[derive(Clone)]
pub struct BodyCipher {
    cipher: XChaCha20Poly1305,
    /// Secret part of the keys of the index.
    pub(super) index: [u8; 32],
}

impl std::fmt::Debug for BodyCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BodyCipher([redacted])")
    }
}

impl BodyCipher {
    /// With a 32-byte key.
    pub fn new(key: &[u8; 32]) -> Self {
        use sha2::Digest as _;
        let index =
            sha2::Sha256::new().chain_update(b"threadline queue index\0").chain_update(key).finalize();
        Self { cipher: XChaCha20Poly1305::new(key.into()), index: index.into() }
    }

    /// Appends nonce, ciphertext and tag of `body`; what stands in `out` from `header` on is authenticated with it.
    pub(super) fn seal(&self, header: usize, body: &[u8], out: &mut Vec<u8>) {
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let end_of_header = out.len();
        out.extend(nonce);
        out.extend_from_slice(body);
        let (aad, sealed) = out.split_at_mut(end_of_header);
        let tag = self
            .cipher
            .encrypt_inout_detached(
                &XNonce::from(nonce),
                &aad[header..],
                InOutBuf::from(&mut sealed[NONCE..]),
            )
            .expect("a body is far below the limit of the cipher");
        out.extend_from_slice(&tag);
    }

    /// The body, unless it or the header was changed.
    pub(super) fn open(&self, header: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = stored.split_first_chunk::<NONCE>()?;
        let (sealed, tag) = rest.split_last_chunk::<TAG>()?;
        let mut body = sealed.to_vec();
        self.cipher
            .decrypt_inout_detached(
                &XNonce::from(*nonce),
                header,
                InOutBuf::from(body.as_mut_slice()),
                &Tag::from(*tag),
            )
            .ok()?;
        Some(body)
    }
}
