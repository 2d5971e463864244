//! The relay's own secrets: signing key, queue key, source key.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as B64;
pub use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] instar_durable::AtomicWriteError),
    /// The file is there but holds no such key; it is never replaced.
    #[error("{path} does not hold {what}; restore it from a backup, or remove it to get a new key")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyFile {
    public_key: String,
    private_key: String,
}

/// Reads `<data>/relay-signing-key.json`, or makes it from `seed` when it is not there.
pub fn load_signing_key(data: &Path, seed: Zeroizing<[u8; 32]>) -> Result<SigningKey, KeyError> {
    load_key_pair(data.join("relay-signing-key.json"), seed)
}

/// Reads `<data>/bridge-key.json`, the identity of the A2A bridge, or makes it from `seed` when it is not there.
pub fn load_bridge_key(data: &Path, seed: Zeroizing<[u8; 32]>) -> Result<SigningKey, KeyError> {
    load_key_pair(data.join("bridge-key.json"), seed)
}

fn load_key_pair(path: PathBuf, seed: Zeroizing<[u8; 32]>) -> Result<SigningKey, KeyError> {
    let Some(text) = read_optional(&path)? else {
        let key = SigningKey::from_bytes(&seed);
        let file = KeyFile {
            public_key: B64.encode(key.verifying_key().as_bytes()),
            private_key: B64.encode(seed.as_slice()),
        };
        let json = Zeroizing::new(serde_json::to_vec_pretty(&file).unwrap_or_default());
        instar_durable::write_atomic(&path, &json, 0o600)?;
        return Ok(key);
    };
    let what = "a matching pair of base64 keys";
    let parsed = serde_json::from_slice::<KeyFile>(&text).ok().and_then(|file| {
        let seed: [u8; 32] = B64.decode(&file.private_key).ok()?.try_into().ok()?;
        let key = SigningKey::from_bytes(&seed);
        (Some(*key.verifying_key().as_bytes()) == decode_public(&file.public_key)).then_some(key)
    });
    parsed.ok_or(KeyError::Damaged { path, what })
}

/// Reads a 32-byte secret file (`queue.key`, `source.key`), or makes it from `fresh`.
pub fn load_secret(path: &Path, fresh: Zeroizing<[u8; 32]>) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let Some(bytes) = read_optional(path)? else {
        instar_durable::write_atomic(path, fresh.as_slice(), 0o600)?;
        return Ok(fresh);
    };
    let what = "32 bytes";
    <[u8; 32]>::try_from(bytes.as_slice())
        .map(Zeroizing::new)
        .map_err(|_| KeyError::Damaged { path: path.to_owned(), what })
}

/// A public key from standard base64, if it is exactly 32 bytes.
pub fn decode_public(text: &str) -> Option<[u8; 32]> {
    B64.decode(text).ok()?.try_into().ok()
}

fn read_optional(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(KeyError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_a_damaged_file_is_never_replaced() {
        let dir = tempfile::tempdir().expect("dir");
        let first = load_signing_key(dir.path(), Zeroizing::new([1; 32])).expect("made");
        let again = load_signing_key(dir.path(), Zeroizing::new([2; 32])).expect("read");
        assert_eq!(first.to_bytes(), again.to_bytes());
        let path = dir.path().join("relay-signing-key.json");
        std::fs::write(&path, "{}").expect("damage");
        assert!(matches!(
            load_signing_key(dir.path(), Zeroizing::new([2; 32])),
            Err(KeyError::Damaged { .. })
        ));
        assert_eq!(std::fs::read(&path).expect("kept"), b"{}");
    }
}
