//! Where the next page starts: opaque, signed, bound to its query, valid for 15 minutes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

const VERSION: u8 = 1;
const TAG: usize = 8;
const LIFETIME_MS: i64 = 15 * 60_000;

/// The last entry of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Its sort value: time in Unix milliseconds, name, or rank.
    pub value: String,
    /// Its key.
    pub key: [u8; 32],
    /// When the page was made, in Unix milliseconds.
    pub issued_ms: i64,
}

impl Cursor {
    /// The text; `query` is everything that selects and sorts.
    pub fn encode(&self, secret: &[u8; 32], query: &str) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend(self.issued_ms.to_be_bytes());
        bytes.extend(self.key);
        bytes.extend(self.value.as_bytes());
        let tag = tag(secret, query, &bytes);
        bytes.extend(tag);
        B64.encode(bytes)
    }

    /// Reads a text that this relay made for the same `query`, unless it is too old.
    pub fn decode(text: &str, secret: &[u8; 32], query: &str, now_ms: i64) -> Option<Self> {
        if text.len() > 1024 {
            return None;
        }
        let bytes = B64.decode(text).ok()?;
        let (bytes, given) = bytes.split_last_chunk::<TAG>()?;
        if !bool::from(tag(secret, query, bytes).ct_eq(given)) {
            return None;
        }
        let (version, rest) = bytes.split_first()?;
        let (issued, rest) = rest.split_first_chunk::<8>()?;
        let (key, value) = rest.split_first_chunk::<32>()?;
        let issued_ms = i64::from_be_bytes(*issued);
        let fresh = (0..=LIFETIME_MS).contains(&(now_ms - issued_ms));
        let value = String::from_utf8(value.to_vec()).ok()?;
        (*version == VERSION && fresh).then_some(Self { value, key: *key, issued_ms })
    }
}

fn tag(secret: &[u8; 32], query: &str, bytes: &[u8]) -> [u8; TAG] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(&Sha256::digest(query.as_bytes()));
    mac.update(bytes);
    let full: [u8; 32] = mac.finalize().into_bytes().into();
    let mut tag = [0; TAG];
    tag.copy_from_slice(&full[..TAG]);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cursor_comes_back_only_for_its_own_query_and_time(value in "\\PC{0,40}", key in any::<[u8; 32]>()) {
            let cursor = Cursor { value, key, issued_ms: 1000 };
            let text = cursor.encode(&[1; 32], "q");
            prop_assert_eq!(Cursor::decode(&text, &[1; 32], "q", 1000 + LIFETIME_MS), Some(cursor));
            prop_assert_eq!(Cursor::decode(&text, &[1; 32], "q", 1001 + LIFETIME_MS), None);
            prop_assert_eq!(Cursor::decode(&text, &[1; 32], "other", 1000), None);
            prop_assert_eq!(Cursor::decode(&text, &[2; 32], "q", 1000), None);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,100}|[A-Za-z0-9_-]{0,100}") {
            prop_assert_eq!(Cursor::decode(&text, &[1; 32], "q", 0), None);
        }
    }
}
