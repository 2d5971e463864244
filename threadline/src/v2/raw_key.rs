//! Keys as TLS shows them over QUIC: raw and without certificates (RFC 7250, `threadline-wire.md` §5.3).

use super::{Bin, Key};
use crate::identity::PublicIdentity;

/// Application protocol.
pub const ALPN: &[u8] = b"threadline/2";
/// What precedes the 32 bytes of an Ed25519 key in its `SubjectPublicKeyInfo` (RFC 8410).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The `SubjectPublicKeyInfo` of an Ed25519 key, DER.
pub fn spki(key: &[u8; 32]) -> Vec<u8> {
    [SPKI_HEAD.as_slice(), key].concat()
}

/// The key in a `SubjectPublicKeyInfo`, unless it is none of Ed25519 or one that nobody can own alone.
pub fn key_of(spki: &[u8]) -> Option<Key> {
    let key: [u8; 32] = spki.strip_prefix(&SPKI_HEAD)?.try_into().ok()?;
    PublicIdentity::from_bytes(&key).is_ok().then_some(Bin(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::identity;
    use proptest::prelude::*;

    #[test]
    fn only_sound_ed25519_keys_count() {
        let key: Key = identity("alice").public().into();
        let written = spki(&key.0);
        assert_eq!((written.len(), key_of(&written)), (44, Some(key)));
        assert_eq!(key_of(&spki(&[0; 32])), None, "a weak one");
        assert_eq!(key_of(&[written.as_slice(), &[0]].concat()), None, "something behind it");
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_again(head in any::<bool>(), tail in proptest::collection::vec(any::<u8>(), 0..60)) {
            let bytes = if head { [SPKI_HEAD.as_slice(), &tail].concat() } else { tail };
            if let Some(key) = key_of(&bytes) {
                prop_assert_eq!(spki(&key.0), bytes);
            }
        }
    }
}
