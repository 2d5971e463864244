//! Blobs (`threadline-wire.md` §4.7): what is too long for an envelope travels beside it. [`seal`] and [`open`] make and
//! read the ciphertext, [`BlobDesk`] passes it from one node to the other through a relay that keeps nothing of it.

mod desk;

pub use desk::{BlobDesk, BlobStep, MAX_AT_ONCE, PIECE, STALL_MS, WINDOW};

use aead_stream::{DecryptorBE32, EncryptorBE32, Nonce, StreamBE32};
use chacha20poly1305::XChaCha20Poly1305;

use super::content::Attachment;
use super::{Bin, Key, sha256};

/// Bytes of plaintext that are sealed together.
const CHUNK: usize = 65_536;
/// What each chunk grows by.
const TAG: usize = 16;
/// Largest blob that a relay passes on, bytes.
pub const MAX_RELAYED: u64 = 32 << 20;
/// Longest text that travels as a blob, bytes.
pub const MAX_TEXT: usize = 512 << 10;
/// Type of the one attachment that is the text of its message.
pub const TEXT_TYPE: &str = "text/plain; part=body";

/// Why a blob is not what its reference says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// Not the bytes that its sender hashed.
    #[error("the blob is damaged")]
    Hash,
    /// The key of the reference does not open it.
    #[error("the key of the reference does not open the blob")]
    Key,
    /// It was to be a text.
    #[error("the blob is no text")]
    NoText,
}

/// Bytes of the ciphertext of `plain` bytes.
pub const fn sealed_size(plain: usize) -> usize {
    let chunks = if plain == 0 { 1 } else { plain.div_ceil(CHUNK) };
    plain + chunks * TAG
}

/// Seals bytes under a key that is used for nothing else. Returns the id and the ciphertext.
///
/// # Panics
/// Never: 2³² chunks do not fit into memory.
pub fn seal(key: &Bin<32>, plain: &[u8]) -> (Bin<32>, Vec<u8>) {
    let mut cipher = EncryptorBE32::<XChaCha20Poly1305>::new(&key.0.into(), &nonce());
    let (whole, last) = split_last(plain, CHUNK);
    let mut sealed = Vec::with_capacity(sealed_size(plain.len()));
    for chunk in whole.chunks(CHUNK) {
        sealed.extend(cipher.encrypt_next(chunk).expect("fewer chunks than the counter has numbers"));
    }
    sealed.extend(cipher.encrypt_last(last).expect("fewer chunks than the counter has numbers"));
    (Bin(sha256(&[&sealed])), sealed)
}

/// Opens the bytes of a blob.
pub fn open(reference: &Attachment, sealed: &[u8]) -> Result<Vec<u8>, BlobError> {
    if sealed.len() as u64 != reference.size || sha256(&[sealed]) != reference.id.0 {
        return Err(BlobError::Hash);
    }
    let mut cipher = DecryptorBE32::<XChaCha20Poly1305>::new(&reference.key.0.into(), &nonce());
    let (whole, last) = split_last(sealed, CHUNK + TAG);
    let mut plain = Vec::with_capacity(sealed.len());
    for chunk in whole.chunks(CHUNK + TAG) {
        plain.extend(cipher.decrypt_next(chunk).map_err(|_| BlobError::Key)?);
    }
    plain.extend(cipher.decrypt_last(last).map_err(|_| BlobError::Key)?);
    Ok(plain)
}

/// [`open`] for a text.
pub fn open_text(reference: &Attachment, sealed: &[u8]) -> Result<String, BlobError> {
    String::from_utf8(open(reference, sealed)?).map_err(|_| BlobError::NoText)
}

/// Seals a text that goes beside its message.
pub fn seal_text(key: Bin<32>, text: &str) -> (Attachment, Vec<u8>) {
    let (id, sealed) = seal(&key, text.as_bytes());
    let (size, name, mime) = (sealed.len() as u64, "message.txt".into(), TEXT_TYPE.into());
    (Attachment { id, size, key, name, mime }, sealed)
}

/// Every blob has a key of its own, so the nonce need not differ.
fn nonce() -> Nonce<XChaCha20Poly1305, StreamBE32<XChaCha20Poly1305>> {
    Nonce::<XChaCha20Poly1305, StreamBE32<XChaCha20Poly1305>>::default()
}

/// Whole chunks, and the last one: at most `chunk` bytes, and only empty if there is nothing.
fn split_last(bytes: &[u8], chunk: usize) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.len().saturating_sub(1) / chunk * chunk)
}

impl Attachment {
    /// Whether it is the text of its message, of a size that is taken.
    pub fn is_text(&self) -> bool {
        self.mime == TEXT_TYPE && self.size <= sealed_size(MAX_TEXT) as u64
    }
}

/// What two nodes say to each other about a blob, as the content of type `blob`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobWord {
    /// The recipient of a message is there and wants the blob.
    Want(Bin<32>),
    /// The sender does not have it any more.
    Gone(Bin<32>),
}

/// Type of the content that holds a [`BlobWord`].
pub const WORD_TYPE: &str = "blob";

impl BlobWord {
    /// As the body of a content.
    pub fn to_body(self) -> super::content::Body {
        super::content::Body::Other(super::strict::encode_map(&self))
    }

    /// From the body of a content; `None` for anything else.
    pub fn of(body: &super::content::Body) -> Option<Self> {
        match body {
            super::content::Body::Other(raw) => super::strict::decode_map(raw).ok(),
            _ => None,
        }
    }
}

/// Key under which a relay orders the pieces of a blob like messages of a thread.
pub fn lane_of(id: &Bin<32>) -> super::ThreadTag {
    Bin(*id.0.first_chunk().unwrap_or(&[0; 8]))
}

/// Who gets a blob from whom: the peer, and which blob.
pub type BlobPeer = (Key, Bin<32>);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: Bin<32> = Bin([7; 32]);

    #[test]
    fn a_text_comes_back_and_says_its_size() {
        let text = "ä".repeat(MAX_TEXT / 2);
        let (reference, sealed) = seal_text(KEY, &text);
        assert!(reference.is_text() && sealed.len() == sealed_size(text.len()));
        assert_eq!(open_text(&reference, &sealed), Ok(text));
        let larger = Attachment { size: reference.size + 1, ..reference.clone() };
        assert!(!larger.is_text());
        let (odd, sealed) = seal(&KEY, &[0xff; 40]);
        let reference = Attachment { id: odd, size: sealed.len() as u64, ..reference };
        assert_eq!(open_text(&reference, &sealed), Err(BlobError::NoText));
    }

    #[test]
    fn words_come_back_and_others_are_none() {
        for word in [BlobWord::Want(KEY), BlobWord::Gone(KEY)] {
            assert_eq!(BlobWord::of(&word.to_body()), Some(word));
        }
        assert_eq!(BlobWord::of(&super::super::content::Body::Text("want".into())), None);
        assert_eq!(BlobWord::of(&super::super::content::Body::Other(vec![0x80])), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn what_was_sealed_opens_and_nothing_else(
            length in prop_oneof![0_usize..40, CHUNK - 2..CHUNK + 3, 2 * CHUNK - 2..2 * CHUNK + 3],
            position in any::<prop::sample::Index>(),
        ) {
            let plain: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let (id, sealed) = seal(&KEY, &plain);
            let size = sealed.len() as u64;
            let reference = Attachment { id, size, key: KEY, name: String::new(), mime: String::new() };
            prop_assert_eq!(sealed.len(), sealed_size(length));
            prop_assert_eq!(open(&reference, &sealed), Ok(plain));
            let other = Attachment { key: Bin([8; 32]), ..reference.clone() };
            prop_assert_eq!(open(&other, &sealed), Err(BlobError::Key));
            let mut bad = sealed.clone();
            bad[position.index(sealed.len())] ^= 1;
            prop_assert_eq!(open(&reference, &bad), Err(BlobError::Hash));
            // A sender who hashes damaged bytes, or leaves chunks out, is found out by the cipher.
            let hashed = Attachment { id: Bin(sha256(&[&bad])), ..reference.clone() };
            prop_assert_eq!(open(&hashed, &bad), Err(BlobError::Key));
            let cut = &sealed[..position.index(sealed.len())];
            let short = Attachment { id: Bin(sha256(&[cut])), size: cut.len() as u64, ..reference };
            prop_assert_eq!(open(&short, cut), Err(BlobError::Key));
        }

        #[test]
        fn no_bytes_panic(sealed in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (id, size) = (Bin(sha256(&[&sealed])), sealed.len() as u64);
            let reference = Attachment { id, size, key: KEY, name: String::new(), mime: String::new() };
            prop_assert_eq!(open(&reference, &sealed), Err(BlobError::Key));
        }
    }
}
