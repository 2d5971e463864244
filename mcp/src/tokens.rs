//! Tokens of network clients: `mcp-tokens.json` (`threadline-agent.md` §16).
//!
//! [`TokenFile`] changes the file (command line), [`Tokens`] reads it (listener). Only hashes are stored.

mod file;
mod live;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use threadline::Fingerprint;
use threadline::service::{NetworkCaller, Scope};

pub use file::{CreatedToken, NewToken, TokenError, TokenFile};
pub use live::Tokens;

/// One token as stored; the token itself is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    /// `mcp_` and 16 hex digits.
    pub id: String,
    /// What the owner calls it.
    pub name: String,
    /// What it allows. A scope of a later version is kept and allows nothing here.
    pub scopes: Vec<String>,
    /// SHA-256 of the token, hex.
    pub hashed_token: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
    /// Switched off for good.
    pub revoked: bool,
    /// The one peer whose threads it may read and write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Fingerprint>,
    /// About when it was last used, to the minute.
    #[serde(default)]
    pub last_used_at: Option<DateTime<Utc>>,
}

impl TokenRecord {
    /// Whether it opens the door at `now`.
    pub fn is_valid_at(&self, now: DateTime<Utc>) -> bool {
        !self.revoked && self.expires_at.is_none_or(|expires| now < expires)
    }

    fn caller(&self) -> NetworkCaller {
        let scopes = self.scopes.iter().filter_map(|scope| parse_scope(scope)).collect();
        NetworkCaller { token_id: self.id.clone(), scopes, peer: self.peer }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    tokens: Vec<TokenRecord>,
}

/// Scope by its name.
pub fn parse_scope(text: &str) -> Option<Scope> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).ok()
}

fn scope_name(scope: Scope) -> String {
    match serde_json::to_value(scope) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

fn hash(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}
