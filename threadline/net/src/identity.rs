//! The identity files of an agent on disk (`threadline-wire.md` §1.2 and §1.3).

use std::io;
use std::path::{Path, PathBuf};

use instar_durable::{AtomicWriteError, create_dir_private, write_atomic};
use threadline::identity::{CanonicalFile, Found, Identity, IdentityError, Loaded, Recovery, load};
use zeroize::Zeroizing;

use crate::store::{Store, StoreError};

/// Why an identity could not be opened. Nothing was generated or changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFileError {
    /// The files do not give a usable identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The new file cannot be written.
    #[error(transparent)]
    Write(#[from] AtomicWriteError),
    /// The message store cannot be looked at.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether a new identity gets a recovery key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Minting {
    /// A person is there to write down the phrase, which is returned once and stored nowhere.
    WithRecoveryPhrase,
    /// Nobody would see a phrase.
    WithoutRecovery,
}

/// An opened identity.
#[derive(Debug)]
pub struct OpenedIdentity {
    /// The key.
    pub identity: Identity,
    /// Its file.
    pub file: CanonicalFile,
    /// The recovery phrase of an identity that was made just now.
    pub phrase: Option<Zeroizing<String>>,
    /// Whether it was made just now.
    pub minted: bool,
}

/// Opens the identity of a state directory; imports a legacy file; makes a new identity where none ever was.
/// Blocks, up to 0.2 s for an encrypted or a new key.
///
/// A damaged file, or a missing one beside trust profiles or messages, is an error and stays as it is.
pub fn open_identity(
    state_dir: &Path,
    passphrase: Option<&str>,
    minting: Minting,
    now_ms: i64,
) -> Result<OpenedIdentity, IdentityFileError> {
    let path = state_dir.join("identity.json");
    let canonical = read_optional(&path)?;
    let legacy = read_optional(&state_dir.join("threadline/identity.json"))?;
    let found = Found {
        canonical: canonical.as_deref().map(Vec::as_slice),
        legacy: legacy.as_deref().map(Vec::as_slice),
        joined_other_machine: false,
        lived_before: canonical.is_none() && legacy.is_none() && lived_before(state_dir)?,
    };
    let (identity, phrase, minted) = match load(&found)? {
        Loaded::Canonical(file) => {
            let identity = file.open(passphrase)?;
            return Ok(OpenedIdentity { identity, file: *file, phrase: None, minted: false });
        }
        Loaded::Import(identity) => (*identity, None, false),
        Loaded::Mint => {
            let identity = Identity::generate(&mut rand::rng());
            let recovery =
                (minting == Minting::WithRecoveryPhrase).then(|| Recovery::mint(&identity, &mut rand::rng()));
            (identity, recovery, true)
        }
    };
    let (recovery, phrase) = phrase.unzip();
    let file = CanonicalFile::new(&identity, recovery.as_ref(), now_ms);
    create_dir_private(state_dir)
        .map_err(|source| AtomicWriteError { path: state_dir.to_owned(), source })?;
    write_atomic(&path, &file.to_bytes(), 0o600)?;
    Ok(OpenedIdentity { identity, file, phrase, minted })
}

/// Reads the identity file without opening its key.
pub fn read_identity_file(state_dir: &Path) -> Result<Option<CanonicalFile>, IdentityFileError> {
    let bytes = read_optional(&state_dir.join("identity.json"))?;
    Ok(bytes.map(|bytes| CanonicalFile::parse(&bytes)).transpose()?)
}

/// Trust profiles or messages exist, so a key must have existed.
fn lived_before(state_dir: &Path) -> Result<bool, IdentityFileError> {
    if state_dir.join("threadline/trust-profiles.json").exists() {
        return Ok(true);
    }
    let database = state_dir.join("state/threadline.sqlite");
    if !database.exists() {
        return Ok(false);
    }
    Ok(Store::open(&database)?.has_history_blocking()?)
}

fn read_optional(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityFileError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityFileError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().expect("dir");
        let made = open_identity(dir.path(), None, Minting::WithRecoveryPhrase, 0).expect("mint");
        assert!(made.minted && made.phrase.is_some());
        let again = open_identity(dir.path(), None, Minting::WithRecoveryPhrase, 0).expect("open");
        assert!(!again.minted && again.phrase.is_none());
        assert_eq!(made.identity.fingerprint(), again.identity.fingerprint());
    }

    #[test]
    fn a_damaged_or_lost_file_is_never_replaced() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("identity.json");
        std::fs::write(&path, "{").expect("write");
        let error = open_identity(dir.path(), None, Minting::WithoutRecovery, 0).expect_err("corrupt");
        assert!(matches!(error, IdentityFileError::Identity(IdentityError::Corrupt { .. })), "{error}");
        assert_eq!(std::fs::read(&path).expect("read"), b"{");

        std::fs::remove_file(&path).expect("remove");
        std::fs::create_dir(dir.path().join("threadline")).expect("dir");
        std::fs::write(dir.path().join("threadline/trust-profiles.json"), "{}").expect("write");
        let error = open_identity(dir.path(), None, Minting::WithoutRecovery, 0).expect_err("missing");
        assert!(matches!(error, IdentityFileError::Identity(IdentityError::Missing)), "{error}");
        assert!(!path.exists());
    }
}
