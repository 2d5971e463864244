//! The encrypted secret store `secrets/store.enc` and the hash of the owner's PIN.
//!
//! The store is one header line `{"v":1,"kid":…,"agent":…}`, a 12-byte nonce, and AES-256-GCM over a JSON map from dot
//! path to value; the header line is the associated data. A store that can't be decrypted is reported and never
//! replaced.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use instar_durable::{AtomicWriteError, FileLock, LockError, create_dir_private, write_atomic};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::paths::AgentPaths;
use crate::secret::Secret;

/// Why a secret can't be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The store exists but does not open with this machine's key.
    #[error(
        "vault_undecryptable: {path} does not open: {detail}. It was left as it is; restore the right master key, or \
         move the file away to start anew"
    )]
    Undecryptable {
        /// The store.
        path: PathBuf,
        /// What failed.
        detail: String,
    },
    /// The master key file is not a key.
    #[error("{path} is not a master key (64 hex digits); restore it from a backup")]
    BadMasterKey {
        /// The file.
        path: PathBuf,
    },
    /// A file can't be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process was writing for 10 s.
    #[error("cannot write the secret store: {0}")]
    Locked(#[from] LockError),
    /// A name that can't be one.
    #[error("{0:?} is not a name of a secret: 1 to 128 characters of A-Z a-z 0-9 . _ -")]
    BadName(String),
}

impl From<AtomicWriteError> for SecretsError {
    fn from(error: AtomicWriteError) -> Self {
        Self::Io { path: error.path, source: error.source }
    }
}

/// All secrets of a store by dot path.
pub type SecretMap = BTreeMap<String, Secret<String>>;

/// Where the master key is and whether it fits the store, for `instar secrets key-status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyStatus {
    /// `file`; no keychain is used in this build.
    pub kept_in: &'static str,
    /// The key file.
    pub path: PathBuf,
    /// Whether it is there.
    pub present: bool,
    /// First 16 hex digits of the SHA-256 of the key.
    pub kid: Option<String>,
    /// Key id in the header of the store.
    pub store_kid: Option<String>,
    /// Whether nobody else may read the key file.
    pub private: bool,
}

/// Tells one state of a store from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreStamp {
    changed: (i64, i64),
    len: u64,
    inode: u64,
}

/// The store of one agent. Reads and writes block; it keeps no secret in memory.
#[derive(Debug, Clone)]
pub struct SecretStore {
    agent: String,
    store: PathBuf,
    lock: PathBuf,
    master: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Header {
    v: u32,
    kid: String,
    agent: String,
}

impl SecretStore {
    /// The store of the agent with these paths and this name. Touches nothing.
    pub fn new(paths: &AgentPaths, agent: impl Into<String>) -> Self {
        Self {
            agent: agent.into(),
            store: paths.secrets().join("store.enc"),
            lock: paths.secrets().join("store.lock"),
            master: paths.machine().join("secrets-master.key"),
        }
    }

    /// What changes with every write of the store; `None` when there is no store.
    pub fn stamp(&self) -> Option<StoreStamp> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(&self.store).ok()?;
        Some(StoreStamp { changed: (meta.ctime(), meta.ctime_nsec()), len: meta.len(), inode: meta.ino() })
    }

    /// Every secret; empty when there is no store yet.
    pub fn load(&self) -> Result<SecretMap, SecretsError> {
        let bytes = match std::fs::read(&self.store) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(SecretMap::new()),
            Err(source) => return Err(SecretsError::Io { path: self.store.clone(), source }),
        };
        let master = self.master()?.ok_or_else(|| {
            self.undecryptable(format!("the master key {} is missing", self.master.display()))
        })?;
        open(&bytes, &master).map_err(|detail| self.undecryptable(detail))
    }

    /// One secret.
    pub fn get(&self, name: &str) -> Result<Option<Secret<String>>, SecretsError> {
        Ok(self.load()?.remove(name))
    }

    /// Stores secrets, replacing those with the same names, in one write.
    pub fn set(
        &self,
        secrets: impl IntoIterator<Item = (String, Secret<String>)>,
    ) -> Result<(), SecretsError> {
        let secrets: Vec<_> = secrets.into_iter().collect();
        if let Some((bad, _)) = secrets.iter().find(|(name, _)| !is_name(name)) {
            return Err(SecretsError::BadName(bad.clone()));
        }
        self.edit(|map| {
            map.extend(secrets);
            true
        })
        .map(drop)
    }

    /// Removes a secret; returns whether it was there.
    pub fn remove(&self, name: &str) -> Result<bool, SecretsError> {
        self.edit(|map| map.remove(name).is_some())
    }

    /// Where the key is and whether it fits.
    pub fn key_status(&self) -> Result<KeyStatus, SecretsError> {
        use std::os::unix::fs::MetadataExt;
        let private = std::fs::metadata(&self.master).is_ok_and(|m| m.mode().trailing_zeros() >= 6);
        let store_kid = std::fs::read(&self.store).ok().and_then(|b| header_of(&b).ok().map(|(h, _)| h.kid));
        let kid = self.master()?.map(|key| kid(&key));
        Ok(KeyStatus {
            kept_in: "file",
            path: self.master.clone(),
            present: kid.is_some(),
            kid,
            store_kid,
            private,
        })
    }

    /// Hashes a PIN with argon2id, peppered with this machine's master key, which is made if there is none.
    pub fn hash_pin(&self, pin: &Secret<String>) -> Result<Secret<String>, SecretsError> {
        let pepper = pepper(&*self.master_or_new()?);
        let hash = hasher(&pepper).hash_password(pin.expose().as_bytes());
        Ok(hash.expect("the parameters are constant and the pin is short").to_string().into())
    }

    /// Whether `pin` is the one that was hashed. Takes some 20 ms on purpose.
    pub fn verify_pin(&self, pin: &Secret<String>, hash: &Secret<String>) -> Result<bool, SecretsError> {
        let Some(master) = self.master()? else { return Ok(false) };
        let Ok(parsed) = PasswordHash::new(hash.expose()) else { return Ok(false) };
        Ok(hasher(&pepper(&master)).verify_password(pin.expose().as_bytes(), &parsed).is_ok())
    }

    fn edit(&self, change: impl FnOnce(&mut SecretMap) -> bool) -> Result<bool, SecretsError> {
        for file in [&self.store, &self.master] {
            let dir = file.parent().unwrap_or(Path::new("."));
            create_dir_private(dir).map_err(|source| SecretsError::Io { path: dir.to_owned(), source })?;
        }
        let _lock = FileLock::acquire_within(&self.lock, Duration::from_secs(10))?;
        let mut map = self.load()?;
        if !change(&mut map) {
            return Ok(false);
        }
        let master = self.master_or_new()?;
        write_atomic(&self.store, &seal(&map, &master, &self.agent), 0o600)?;
        Ok(true)
    }

    fn master_or_new(&self) -> Result<Zeroizing<[u8; 32]>, SecretsError> {
        if let Some(key) = self.master()? {
            return Ok(key);
        }
        // A key must never be made beside a store that needs another one.
        if self.store.exists() {
            return Err(self.undecryptable(format!("the master key {} is missing", self.master.display())));
        }
        let dir = self.master.parent().unwrap_or(Path::new("."));
        create_dir_private(dir).map_err(|source| SecretsError::Io { path: dir.to_owned(), source })?;
        let key = Zeroizing::new(rand::random::<[u8; 32]>());
        let text = Zeroizing::new(hex::encode(*key));
        write_atomic(&self.master, text.as_bytes(), 0o600)?;
        Ok(key)
    }

    fn master(&self) -> Result<Option<Zeroizing<[u8; 32]>>, SecretsError> {
        let text = match std::fs::read_to_string(&self.master) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(SecretsError::BadMasterKey { path: self.master.clone() });
            }
            Err(source) => return Err(SecretsError::Io { path: self.master.clone(), source }),
        };
        let mut key = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim(), &mut *key)
            .map_err(|_| SecretsError::BadMasterKey { path: self.master.clone() })?;
        Ok(Some(key))
    }

    fn undecryptable(&self, detail: String) -> SecretsError {
        SecretsError::Undecryptable { path: self.store.clone(), detail }
    }
}

/// Whether a text can name a secret.
pub fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Variable that holds a secret when the backend is the environment: `sessions.credentials.anthropic.value` is
/// `INSTAR_SECRET_SESSIONS_CREDENTIALS_ANTHROPIC_VALUE`, `authToken` is `INSTAR_SECRET_AUTH_TOKEN`.
pub fn env_name(name: &str) -> String {
    let mut out = String::from("INSTAR_SECRET_");
    let mut before = '_';
    for c in name.chars() {
        if c.is_ascii_uppercase() && before.is_ascii_lowercase() {
            out.push('_');
        }
        out.push(if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
        before = c;
    }
    out
}

fn hasher(pepper: &[u8; 32]) -> Argon2<'_> {
    Argon2::new_with_secret(pepper, Algorithm::Argon2id, Version::V0x13, Params::default())
        .expect("a pepper of 32 bytes is short enough")
}

fn pepper(master: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let digest = Sha256::new().chain_update(b"instar-pin-pepper-v1").chain_update(master).finalize();
    Zeroizing::new(digest.into())
}

fn kid(master: &[u8; 32]) -> String {
    hex::encode(Sha256::digest(master)).chars().take(16).collect()
}

fn seal(map: &SecretMap, master: &[u8; 32], agent: &str) -> Vec<u8> {
    let header = Header { v: 1, kid: kid(master), agent: agent.to_owned() };
    let mut out = serde_json::to_vec(&header).expect("a header of texts is JSON");
    let plain: BTreeMap<&str, &str> = map.iter().map(|(k, v)| (k.as_str(), v.expose().as_str())).collect();
    let plain = Zeroizing::new(serde_json::to_vec(&plain).expect("a map of texts is JSON"));
    let nonce: [u8; 12] = rand::random();
    let sealed = Aes256Gcm::new(&(*master).into())
        .encrypt(&Nonce::from(nonce), Payload { msg: &plain, aad: &out })
        .expect("a store is far below the limit of AES-GCM");
    out.push(b'\n');
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&sealed);
    out
}

fn header_of(bytes: &[u8]) -> Result<(Header, usize), String> {
    let end = bytes.iter().position(|b| *b == b'\n').ok_or("it has no header")?;
    let header: Header = serde_json::from_slice(&bytes[..end]).map_err(|_| "its header is not readable")?;
    if header.v != 1 {
        return Err(format!("it has version {}, this build knows 1", header.v));
    }
    Ok((header, end))
}

fn open(bytes: &[u8], master: &[u8; 32]) -> Result<SecretMap, String> {
    let (header, end) = header_of(bytes)?;
    if header.kid != kid(master) {
        return Err(format!("it was made with key {}, this machine has {}", header.kid, kid(master)));
    }
    let (aad, rest) = bytes.split_at(end);
    let (nonce, sealed) = rest.get(1..).and_then(|r| r.split_first_chunk::<12>()).ok_or("it is too short")?;
    let plain = Aes256Gcm::new(&(*master).into())
        .decrypt(&Nonce::from(*nonce), Payload { msg: sealed, aad })
        .map_err(|_| "it was changed or damaged")?;
    let plain = Zeroizing::new(plain);
    let map: BTreeMap<String, String> =
        serde_json::from_slice(&plain).map_err(|_| "its content is not a map of texts")?;
    Ok(map.into_iter().map(|(k, v)| (k, v.into())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn store(dir: &Path) -> SecretStore {
        SecretStore::new(&AgentPaths::new(dir), "ann")
    }

    fn secret(name: &str, value: &str) -> (String, Secret<String>) {
        (name.to_owned(), value.to_owned().into())
    }

    #[test]
    fn secrets_come_back_and_the_file_does_not_show_them() {
        let dir = tempfile::tempdir().expect("dir");
        let store = store(dir.path());
        assert!(store.load().expect("empty").is_empty());
        store.set([secret("authToken", "tok-abc"), secret("dashboardPin", "hash")]).expect("set");
        assert_eq!(store.get("authToken").expect("get").expect("there").expose(), "tok-abc");
        let bytes = std::fs::read(dir.path().join(".instar/secrets/store.enc")).expect("read");
        assert!(!bytes.windows(7).any(|w| w == b"tok-abc"));
        assert!(store.remove("authToken").expect("remove"));
        assert!(!store.remove("authToken").expect("remove"));
        assert_eq!(store.load().expect("load").len(), 1);
        let status = store.key_status().expect("status");
        assert!(status.present && status.private && status.kid == status.store_kid);
    }

    #[test]
    fn a_store_that_does_not_open_is_reported_and_never_replaced() {
        let dir = tempfile::tempdir().expect("dir");
        let store = store(dir.path());
        store.set([secret("a", "1")]).expect("set");
        let path = dir.path().join(".instar/secrets/store.enc");
        let key = dir.path().join(".instar/machine/secrets-master.key");
        let (good, good_key) = (std::fs::read(&path).expect("read"), std::fs::read(&key).expect("read"));

        let mut damaged = good.clone();
        *damaged.last_mut().expect("byte") ^= 1;
        std::fs::write(&path, &damaged).expect("write");
        for result in [store.load().map(drop), store.set([secret("b", "2")]), store.remove("a").map(drop)] {
            assert!(matches!(result, Err(SecretsError::Undecryptable { .. })));
        }
        assert_eq!(std::fs::read(&path).expect("read"), damaged);

        std::fs::write(&path, &good).expect("write");
        std::fs::write(&key, "11".repeat(32)).expect("write");
        assert!(matches!(store.set([secret("b", "2")]), Err(SecretsError::Undecryptable { .. })));
        std::fs::remove_file(&key).expect("remove");
        assert!(matches!(store.set([secret("b", "2")]), Err(SecretsError::Undecryptable { .. })));
        assert!(store.hash_pin(&"1".to_owned().into()).is_err());
        assert!(!key.exists());

        std::fs::write(&key, &good_key).expect("write");
        assert_eq!(store.load().expect("load").len(), 1);
    }

    #[test]
    fn a_pin_is_verified_only_with_the_same_machine_key() {
        let dir = tempfile::tempdir().expect("dir");
        let store_a = store(dir.path());
        let hash = store_a.hash_pin(&"123456".to_owned().into()).expect("hash");
        assert!(hash.expose().starts_with("$argon2id$"));
        assert!(store_a.verify_pin(&"123456".to_owned().into(), &hash).expect("verify"));
        assert!(!store_a.verify_pin(&"123457".to_owned().into(), &hash).expect("verify"));
        let other = tempfile::tempdir().expect("dir");
        let store_b = store(other.path());
        store_b.set([secret("x", "y")]).expect("key");
        assert!(!store_b.verify_pin(&"123456".to_owned().into(), &hash).expect("verify"));
    }

    #[test]
    fn names_of_the_environment() {
        assert_eq!(env_name("authToken"), "INSTAR_SECRET_AUTH_TOKEN");
        assert_eq!(
            env_name("sessions.credentials.anthropic.value"),
            "INSTAR_SECRET_SESSIONS_CREDENTIALS_ANTHROPIC_VALUE"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(open(&bytes, &[7; 32]).is_err());
        }

        #[test]
        fn what_was_sealed_opens_and_any_changed_byte_is_noticed(
            entries in prop::collection::btree_map("[a-z.]{1,8}", ".{0,16}", 0..5), at in any::<prop::sample::Index>()
        ) {
            let map: SecretMap = entries.into_iter().map(|(k, v)| (k, v.into())).collect();
            let mut bytes = seal(&map, &[7; 32], "ann");
            prop_assert!(open(&bytes, &[7; 32]).is_ok_and(|m| m == map));
            let at = at.index(bytes.len());
            bytes[at] ^= 1;
            prop_assert!(open(&bytes, &[7; 32]).is_err());
        }
    }
}
