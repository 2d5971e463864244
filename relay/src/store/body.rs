//! Message bodies at rest, bound to the record that they stand in: AES-256-GCM in the log of one relay,
//! XChaCha20-Poly1305 where several relays share a key.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use chacha20::{R20, hchacha};
use rand::Rng as _;
use zeroize::Zeroizing;

/// Bytes of a nonce: 16 that give the key, 8 for the inner cipher.
pub(super) const NONCE: usize = 24;
/// Bytes of an authentication tag.
pub(super) const TAG: usize = 16;

/// Seals and opens bodies with the key of `queue.key`.
#[derive(Clone)]
pub struct BodyCipher {
    key: Zeroizing<[u8; 32]>,
    /// Secret part of the keys of the index.
    pub(super) index: [u8; 32],
    /// Secret seed of what is compared of bodies.
    seed: u64,
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
        let derive = |label: &[u8]| -> [u8; 32] {
            sha2::Sha256::new().chain_update(label).chain_update(key).finalize().into()
        };
        let seed = derive(b"threadline queue content\0");
        Self {
            key: Zeroizing::new(*key),
            index: derive(b"threadline queue index\0"),
            seed: seed.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)),
        }
    }

    /// What is compared to tell a repeat from other bytes under the same id: 63 bits of XXH3, never 0. It need not
    /// withstand a search for collisions: only the sender of a message can repeat it.
    pub(crate) fn content_of(&self, body: &[u8]) -> u64 {
        (twox_hash::XxHash3_64::oneshot_with_seed(self.seed, body) >> 1).max(1)
    }

    /// Appends nonce, ciphertext and tag of `body` by XChaCha20-Poly1305; what stands in `out` from `header` on is
    /// authenticated with it. The nonce is random: relays of a cluster share a key and know nothing of each other's nonces.
    pub(crate) fn seal(&self, header: usize, body: &[u8], out: &mut Vec<u8>) {
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let (first, last) = halves(&nonce);
        append(&self.chacha(first), (*first, *last), header, body, out);
    }

    /// What [`BodyCipher::seal`] wrote, unless it or the header was changed.
    pub(crate) fn open(&self, header: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
        open_with(|first| self.chacha(first), header, stored)
    }

    /// For the log of one relay.
    pub(crate) fn sealer(&self) -> Sealer {
        let mut first = [0; 16];
        rand::rng().fill_bytes(&mut first);
        Sealer { key: self.aes(&first), first, sealed: 0 }
    }

    /// What a [`Sealer`] wrote, unless it or the header was changed.
    pub(crate) fn open_logged(&self, header: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
        open_with(|first| self.aes(first), header, stored)
    }

    /// XChaCha20-Poly1305 is ChaCha20-Poly1305 with a key that HChaCha20 makes of the first 16 bytes of the nonce
    /// (draft-irtf-cfrg-xchacha-03 §2.3); the inner cipher is the assembly that TLS uses.
    fn chacha(&self, first: &[u8; 16]) -> LessSafeKey {
        let derived = Zeroizing::new(<[u8; 32]>::from(hchacha::<R20>(&(*self.key).into(), first.into())));
        LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, derived.as_slice()).expect("32 bytes"))
    }

    /// AES-256-GCM with a key that HKDF-SHA256 makes of the first 16 bytes of the nonce.
    fn aes(&self, first: &[u8; 16]) -> LessSafeKey {
        let secret = Salt::new(HKDF_SHA256, first).extract(self.key.as_slice());
        let derived = secret.expand(&[b"threadline queue aes-256-gcm"], &AES_256_GCM).expect("32 bytes");
        LessSafeKey::new(UnboundKey::from(derived))
    }
}

/// Seals bodies for a log by AES-256-GCM, cheaper than ChaCha20 where the processor has AES. Their nonces begin
/// alike, at random for each start, which gives the key; the end counts, so no nonce comes twice under a key.
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
        append(&self.key, (self.first, last), header, body, out);
    }
}

fn append(key: &LessSafeKey, nonce: ([u8; 16], [u8; 8]), header: usize, body: &[u8], out: &mut Vec<u8>) {
    let end_of_header = out.len();
    out.reserve(NONCE + body.len() + TAG);
    out.extend_from_slice(&nonce.0);
    out.extend_from_slice(&nonce.1);
    out.extend_from_slice(body);
    let (aad, sealed) = out.split_at_mut(end_of_header);
    let tag = key
        .seal_in_place_separate_tag(short(nonce.1), Aad::from(&aad[header..]), &mut sealed[NONCE..])
        .expect("a body is far below the limit of the cipher");
    out.extend_from_slice(tag.as_ref());
}

fn open_with(key: impl FnOnce(&[u8; 16]) -> LessSafeKey, header: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
    let (nonce, rest) = stored.split_first_chunk::<NONCE>()?;
    let (first, last) = halves(nonce);
    let length = rest.len().checked_sub(TAG)?;
    let mut body = rest.to_vec();
    key(first).open_in_place(short(*last), Aad::from(header), &mut body).ok()?;
    body.truncate(length);
    Some(body)
}

/// What gives the key, and the rest.
fn halves(nonce: &[u8; NONCE]) -> (&[u8; 16], &[u8; 8]) {
    let (first, last) = nonce.split_at(16);
    (first.try_into().expect("16 bytes"), last.try_into().expect("8 bytes"))
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
        fn what_is_logged_is_what_another_implementation_opens(
            key: [u8; 32],
            header in proptest::collection::vec(any::<u8>(), 0..80),
            body in proptest::collection::vec(any::<u8>(), 0..4096),
        ) {
            let mut out = header.clone();
            BodyCipher::new(&key).sealer().seal(0, &body, &mut out);
            let (nonce, sealed) = out[header.len()..].split_first_chunk::<NONCE>().expect("a nonce");
            let mut derived = [0; 32];
            hkdf::Hkdf::<sha2::Sha256>::new(Some(&nonce[..16]), &key)
                .expand(b"threadline queue aes-256-gcm", &mut derived)
                .expect("32 bytes");
            let mut short = [0; 12];
            short[4..].copy_from_slice(&nonce[16..]);
            let theirs = aes_gcm::Aes256Gcm::new(&derived.into())
                .decrypt(&short.into(), Payload { msg: sealed, aad: &header });
            prop_assert_eq!(theirs.ok(), Some(body));
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
                prop_assert_eq!(cipher.open_logged(&[], &out), Some(body.clone()));
                prop_assert_eq!(cipher.open(&[], &out), None, "another cipher");
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
            let mut out = b"header".to_vec();
            cipher.sealer().seal(0, &body, &mut out);
            out[changed] ^= 1;
            prop_assert_eq!(cipher.open_logged(&out[..6], &out[6..]), None);
        }
    }
}
