//! Tokens of sessions: minted at the start, kept as a hash, void at the end.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instar_state::ids::SessionId;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Longest life of a token in milliseconds: 7 days.
pub const TOKEN_LIFE_MS: i64 = 7 * 24 * 3600 * 1000;

/// `ist_<id>_<rand>`: what a session proves itself with.
#[derive(Clone)]
pub struct SessionToken(String);

impl SessionToken {
    /// A new token with 32 random bytes.
    pub fn mint(id: SessionId) -> Self {
        let secret: [u8; 32] = rand::random();
        Self(format!("ist_{id}_{}", URL_SAFE_NO_PAD.encode(secret)))
    }

    /// The text; only for the session's environment.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is stored: SHA-256, hex.
    pub fn hash(&self) -> String {
        hash(&self.0)
    }
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionToken([redacted])")
    }
}

/// The session that a token claims to be, if the text has the form of a token.
pub fn claimed_session(token: &str) -> Option<SessionId> {
    let (id, secret) = token.strip_prefix("ist_")?.split_once('_')?;
    if secret.is_empty() {
        return None;
    }
    id.parse().ok()
}

/// Whether the token is the one with this stored hash; takes the same time for any wrong token.
pub fn matches(token: &str, stored_hash: &str) -> bool {
    hash(token).as_bytes().ct_eq(stored_hash.as_bytes()).into()
}

fn hash(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_names_its_session_and_matches_only_itself() {
        let id = SessionId::random();
        let token = SessionToken::mint(id);
        assert_eq!(claimed_session(token.reveal()), Some(id));
        assert!(matches(token.reveal(), &token.hash()));
        assert!(!matches(SessionToken::mint(id).reveal(), &token.hash()));
        assert!(!format!("{token:?}").contains(token.reveal()));
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in ".{0,120}") {
            let _ = claimed_session(&text);
        }
    }
}
