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
        self.sealer().seal(header, body, out);
    }

    /// For many bodies.
    pub(crate) fn sealer(&self) -> Sealer {
        let mut first = [0; 16];
        rand::rng().fill_bytes(&mut first);
        Sealer { key: self.derive(&first), first, sealed: 0 }
    }

    /// The body, unless it or the header was changed.
    pub(crate) fn open(&self, header: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
        let (first, rest) = stored.split_first_chunk::<16>()?;
        let (last, rest) = rest.split_first_chunk::<8>()?;
        let length = rest.len().checked_sub(TAG)?;
        let mut body = rest.to_vec();
        self.derive(first).open_in_place(short(*last), Aad::from(header), &mut body).ok()?;
        body.truncate(length);
        Some(body)
    }

    /// XChaCha20-Poly1305 is ChaCha20-Poly1305 with a key that HChaCha20 makes of the first 16 bytes of the nonce
    /// (draft-irtf-cfrg-xchacha-03 §2.3); the inner cipher is the assembly that TLS uses.
    fn derive(&self, first: &[u8; 16]) -> LessSafeKey {
        let derived = Zeroizing::new(<[u8; 32]>::from(hchacha::<R20>(&(*self.key).into(), first.into())));
        LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, derived.as_slice()).expect("32 bytes"))
    }
}

/// Seals bodies whose nonces begin alike, with the one inner key that follows from it: the beginning is random, the end
/// counts.
pub(crate) struct Sealer {
    key: LessSafeKey,
    first: [u8; 16],
    sealed: u64,
}

impl Sealer {
    /// Appends nonce, ciphertext and tag of `body`; what stands in `out` from `header` on is authenticated with it.
    pub(crate) fn seal(&mut self, header: usize, body: &[u8], out: &mut Vec<u8>) {
        let last = self.sealed.to_le_bytes();
        self.sealed += 1;
        let end_of_header = out.len();
        out.reserve(NONCE + body.len() + TAG);
        out.extend_from_slice(&self.first);
        out.extend_from_slice(&last);
        out.extend_from_slice(body);
        let (aad, sealed) = out.split_at_mut(end_of_header);
        let tag = self
            .key
            .seal_in_place_separate_tag(short(last), Aad::from(&aad[header..]), &mut sealed[NONCE..])
            .expect("a body is far below the limit of the cipher");
        out.extend_from_slice(tag.as_ref());
    }
}

/// The nonce of the inner cipher.
fn short(last: [u8; 8]) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&last);
    Nonce::assume_unique_for_key(nonce)
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
        fn no_nonce_comes_twice(bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 2..20)) {
            let cipher = BodyCipher::new(&[7; 32]);
            let mut sealers = [cipher.sealer(), cipher.sealer()];
            let mut nonces = std::collections::HashSet::new();
            for (at, body) in bodies.iter().enumerate() {
                let mut out = Vec::new();
                sealers[at % 2].seal(0, body, &mut out);
                prop_assert!(nonces.insert(out[..NONCE].to_vec()));
                prop_assert_eq!(cipher.open(&[], &out), Some(body.clone()));
            }
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
