//! Changes to the token file: one at a time, whole or not at all.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use instar_durable::{AtomicWriteError, FileLock, LockError, write_atomic};
use rand::Rng;
use threadline::Fingerprint;
use threadline::service::Scope;

use super::{Stored, TokenRecord, hash, scope_name};

/// Why the token file was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The token file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is no token file.
    #[error("{path} is damaged ({source}); repair it, or move it away and make new tokens")]
    Damaged {
        /// The token file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// Another process is changing it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The change was not written.
    #[error(transparent)]
    Write(#[from] AtomicWriteError),
    /// No token has that id.
    #[error("there is no token `{0}`; `instar mcp token list` shows all")]
    NotFound(String),
    /// The name is empty or longer than 64 characters.
    #[error("a token needs a name of 1 to 64 characters")]
    BadName,
    /// A token that allows nothing.
    #[error("a token needs at least one scope")]
    NoScope,
}

/// What a new token is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// 1 to 64 characters.
    pub name: String,
    /// At least one.
    pub scopes: Vec<Scope>,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
    /// Binds it to one peer.
    pub peer: Option<Fingerprint>,
}

/// A new token, at the only moment at which its text is known.
#[derive(Clone)]
pub struct CreatedToken {
    /// As stored.
    pub record: TokenRecord,
    /// 64 hex digits, to be shown once.
    pub token: String,
}

/// The token file of one agent.
#[derive(Debug, Clone)]
pub struct TokenFile {
    path: PathBuf,
}

impl TokenFile {
    /// The file at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Makes a token.
    pub fn create(&self, new: NewToken, now: DateTime<Utc>) -> Result<CreatedToken, TokenError> {
        let name = new.name.trim();
        if name.is_empty() || name.chars().count() > 64 {
            return Err(TokenError::BadName);
        }
        if new.scopes.is_empty() {
            return Err(TokenError::NoScope);
        }
        let mut secret = [0_u8; 32];
        let mut id = [0_u8; 8];
        rand::rng().fill_bytes(&mut secret);
        rand::rng().fill_bytes(&mut id);
        let token = hex::encode(secret);
        let record = TokenRecord {
            id: format!("mcp_{}", hex::encode(id)),
            name: name.to_owned(),
            scopes: new.scopes.into_iter().map(scope_name).collect(),
            hashed_token: hash(&token),
            created_at: now,
            expires_at: new.expires_at,
            revoked: false,
            peer: new.peer,
            last_used_at: None,
        };
        self.change(|stored| {
            stored.tokens.push(record.clone());
            Ok(())
        })?;
        Ok(CreatedToken { record, token })
    }

    /// All tokens in the order in which they were made.
    pub fn list(&self) -> Result<Vec<TokenRecord>, TokenError> {
        Ok(read(&self.path)?.tokens)
    }

    /// Switches a token off; its record stays.
    pub fn revoke(&self, id: &str) -> Result<TokenRecord, TokenError> {
        self.change(|stored| {
            let record = stored
                .tokens
                .iter_mut()
                .find(|record| record.id == id)
                .ok_or_else(|| TokenError::NotFound(id.to_owned()))?;
            record.revoked = true;
            Ok(record.clone())
        })
    }

    /// Removes a token with its record.
    pub fn delete(&self, id: &str) -> Result<TokenRecord, TokenError> {
        self.change(|stored| {
            let at = stored
                .tokens
                .iter()
                .position(|record| record.id == id)
                .ok_or_else(|| TokenError::NotFound(id.to_owned()))?;
            Ok(stored.tokens.remove(at))
        })
    }

    /// Notes when tokens were last used; unknown ids are ignored.
    pub(super) fn note_uses<'a>(
        &self,
        uses: impl Iterator<Item = (&'a str, DateTime<Utc>)>,
    ) -> Result<(), TokenError> {
        self.change(|stored| {
            for (id, at) in uses {
                if let Some(record) = stored.tokens.iter_mut().find(|record| record.id == id) {
                    record.last_used_at = record.last_used_at.max(Some(at));
                }
            }
            Ok(())
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Stored) -> Result<T, TokenError>) -> Result<T, TokenError> {
        let _lock = FileLock::acquire_within(&self.path.with_extension("lock"), Duration::from_secs(5))?;
        let mut stored = read(&self.path)?;
        let result = change(&mut stored)?;
        let mut bytes = serde_json::to_vec_pretty(&stored)
            .map_err(|source| TokenError::Damaged { path: self.path.clone(), source })?;
        bytes.push(b'\n');
        write_atomic(&self.path, &bytes, 0o600)?;
        Ok(result)
    }
}

pub(super) fn read(path: &Path) -> Result<Stored, TokenError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|source| TokenError::Damaged { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Stored::default()),
        Err(source) => Err(TokenError::Read { path: path.to_owned(), source }),
    }
}
