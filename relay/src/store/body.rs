//! Message bodies at rest: XChaCha20-Poly1305, bound to the record that they stand in.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use chacha20::{R20, hchacha};
use rand::Rng as _;
use zeroize::Zeroizing;

/// Bytes of a nonce.
pub(super) const NONCE: usize = 24;
/// Bytes of an authentication tag.
pub(super) const TAG: usize = 16;

/// Seals and opens bodies with the key of `queue.key`.
#[derive(Clone)]
pub struct BodyCipher {
    key: Zeroizing<[u8; 32]>,
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
        Self { key: Zeroizing::new(*key), index: index.into() }
    }

    /// Appends nonce, ciphertext and tag of `body`; what stands in `out` from `header` on is authenticated with it.
    pub(crate) fn seal(&self, header: usize, body: &[u8], out: &mut Vec<u8>) {
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let end_of_header = out.len();
        out.extend(nonce);
        out.extend_from_slice(body);
        let (aad, sealed) = out.split_at_mut(end_of_header);
        let (key, short) = self.for_nonce(&nonce);
        let tag = key
            .seal_in_place_separate_tag(short, Aad::from(&aad[header..]), &mut sealed[NONCE..])
            .expect("a body is far below the limit of the cipher");
        out.extend_from_slice(tag.as_ref());
    }

    /// The body, unless it or the header was changed.
    pub(crate) fn open(&self, header: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = stored.split_first_chunk::<NONCE>()?;
        let length = rest.len().checked_sub(TAG)?;
        let mut body = rest.to_vec();
        let (key, short) = self.for_nonce(nonce);
        key.open_in_place(short, Aad::from(header), &mut body).ok()?;
        body.truncate(length);
        Some(body)
    }

    /// XChaCha20-Poly1305 is ChaCha20-Poly1305 with a key and the end of the nonce from HChaCha20
    /// (draft-irtf-cfrg-xchacha-03 §2.3); the inner cipher is the assembly that TLS uses.
    fn for_nonce(&self, nonce: &[u8; NONCE]) -> (LessSafeKey, Nonce) {
        let (first, last) = nonce.split_first_chunk::<16>().expect("24 bytes");
        let derived = Zeroizing::new(<[u8; 32]>::from(hchacha::<R20>(&(*self.key).into(), first.into())));
        let key = UnboundKey::new(&CHACHA20_POLY1305, derived.as_slice()).expect("32 bytes");
        let mut short = [0; 12];
        short[4..].copy_from_slice(last);
        (LessSafeKey::new(key), Nonce::assume_unique_for_key(short))
    }
}

#[cfg(test)]
mod tests {
    use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
    use chacha20poly1305::{XChaCha20Poly1305, XNonce};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_sealed_is_what_another_implementation_opens(
            key: [u8; 32],
            header in proptest::collection::vec(any::<u8>(), 0..80),
            body in proptest::collection::vec(any::<u8>(), 0..4096),
        ) {
            let cipher = BodyCipher::new(&key);
            let mut out = header.clone();
            cipher.seal(0, &body, &mut out);
            let (nonce, sealed) = out[header.len()..].split_first_chunk::<NONCE>().expect("a nonce");
            let theirs = XChaCha20Poly1305::new(&key.into())
                .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &header });
            prop_assert_eq!(theirs.ok(), Some(body.clone()));
            prop_assert_eq!(cipher.open(&header, &out[header.len()..]), Some(body));
        }

        #[test]
        fn a_changed_byte_opens_nothing(body in proptest::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index) {
            let cipher = BodyCipher::new(&[7; 32]);
            let mut out = b"header".to_vec();
            cipher.seal(0, &body, &mut out);
            let changed = at.index(out.len());
            out[changed] ^= 1;
            prop_assert_eq!(cipher.open(&out[..6], &out[6..]), None);
        }
    }
}
