//! Tokens as a running listener sees them: every change of the file counts from the next request on.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use subtle::{Choice, ConstantTimeEq};
use threadline::service::NetworkCaller;

use super::file::{self, TokenFile};
use super::{TokenRecord, hash};

/// A cheap-to-clone view of the token file.
#[derive(Clone)]
pub struct Tokens {
    // Held for a stat, and for reading a few kilobytes when the file changed; never across an await.
    state: Arc<Mutex<State>>,
    file: TokenFile,
}

struct State {
    path: PathBuf,
    version: Option<Version>,
    records: Vec<TokenRecord>,
    uses: BTreeMap<String, DateTime<Utc>>,
}

/// What tells one content of the file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Tokens {
    /// Watches the file at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let state = State { path: path.clone(), version: None, records: Vec::new(), uses: BTreeMap::new() };
        Self { state: Arc::new(Mutex::new(state)), file: TokenFile::new(path) }
    }

    /// The caller that this token stands for at `now`, if it is known and valid.
    ///
    /// Looks at every record whatever matches, and compares hashes in constant time.
    pub fn authenticate(&self, token: &str, now: DateTime<Utc>) -> Option<NetworkCaller> {
        let mut state = self.state();
        state.refresh();
        let presented = hash(token);
        let mut found = None;
        for record in &state.records {
            let same: Choice = record.hashed_token.as_bytes().ct_eq(presented.as_bytes());
            if bool::from(same) {
                found = Some(record);
            }
        }
        let caller = found.filter(|record| record.is_valid_at(now)).map(TokenRecord::caller)?;
        state.uses.insert(caller.token_id.clone(), now);
        Some(caller)
    }

    /// Writes the times of last use into the file. Blocks; called once a minute and at the end.
    pub(crate) fn store_uses(&self) -> Result<(), file::TokenError> {
        let uses = std::mem::take(&mut self.state().uses);
        if uses.is_empty() {
            return Ok(());
        }
        self.file.note_uses(uses.iter().map(|(id, at)| (id.as_str(), *at)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refresh(&mut self) {
        let version = version_of(&self.path);
        if version.is_some() && version == self.version {
            return;
        }
        self.records = match file::read(&self.path) {
            Ok(stored) => stored.tokens,
            Err(error) => {
                tracing::error!(%error, "no MCP token is valid until this is repaired");
                Vec::new()
            }
        };
        self.version = version;
    }
}

fn version_of(path: &Path) -> Option<Version> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(Version {
        inode: metadata.ino(),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}
