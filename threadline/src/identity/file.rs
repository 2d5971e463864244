//! Identity files: the canonical one, and the legacy forms that are imported (`threadline-wire.md` §1.2 and §1.3).
//! Files are given and returned as bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead as _, KeyInit as _};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand::CryptoRng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{Identity, KeyError, PublicIdentity, Recovery, recovery};

const ENCRYPTED: &str = "xchacha20-poly1305+argon2id";
const MAX_FILE: usize = 64 * 1024;

/// Why an identity cannot be used. None of these is a reason to make a new key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The file contradicts itself or cannot be read.
    #[error(
        "identity-corrupt: {file}: {check}. Restore the file from a backup, or run `instar identity restore`; \
         a new key would change the agent's address"
    )]
    Corrupt {
        /// Which file.
        file: &'static str,
        /// The check that failed.
        check: String,
    },
    /// The private key is encrypted and no passphrase was given.
    #[error("the identity is locked: it needs its passphrase")]
    Locked,
    /// The passphrase does not open the private key (or the stored key is damaged, which looks the same).
    #[error("the passphrase does not open the identity")]
    WrongPassphrase,
    /// This machine joined an agent that exists elsewhere; pairing must deliver the key.
    #[error("identity-not-provisioned: this machine joined an existing agent whose key has not arrived yet")]
    NotProvisioned,
    /// The file is gone although the node has lived before.
    #[error(
        "identity-missing: identity.json is gone, but this agent has peers or messages. Restore it with `instar \
         identity restore`, or accept a new address with `instar identity new --i-lose-my-address`"
    )]
    Missing,
}

impl IdentityError {
    /// Kebab-case code for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Corrupt { .. } => "identity-corrupt",
            Self::Locked => "identity-locked",
            Self::WrongPassphrase => "identity-wrong-passphrase",
            Self::NotProvisioned => "identity-not-provisioned",
            Self::Missing => "identity-missing",
        }
    }
}

/// What was found on disk at start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found<'a> {
    /// Content of `identity.json`.
    pub canonical: Option<&'a [u8]>,
    /// Content of `threadline/identity.json`.
    pub legacy: Option<&'a [u8]>,
    /// Whether the machine registry names a machine other than this one.
    pub joined_other_machine: bool,
    /// Whether trust profiles or messages exist, so that a key must have existed.
    pub lived_before: bool,
}

/// What to do at start.
#[derive(Debug)]
pub enum Loaded {
    /// Use this file.
    Canonical(Box<CanonicalFile>),
    /// Write `identity.json` with this key and keep the legacy file.
    Import(Box<Identity>),
    /// Mint a new identity.
    Mint,
}

/// Decides which identity a start uses.
pub fn load(found: &Found<'_>) -> Result<Loaded, IdentityError> {
    if let Some(bytes) = found.canonical {
        return CanonicalFile::parse(bytes).map(|file| Loaded::Canonical(Box::new(file)));
    }
    if let Some(bytes) = found.legacy {
        return parse_legacy(bytes).map(|identity| Loaded::Import(Box::new(identity)));
    }
    if found.joined_other_machine {
        return Err(IdentityError::NotProvisioned);
    }
    if found.lived_before {
        return Err(IdentityError::Missing);
    }
    Ok(Loaded::Mint)
}

/// `identity.json`, parsed and checked as far as its encryption allows. Unknown members survive.
pub struct CanonicalFile {
    public: PublicIdentity,
    fields: Fields,
}

#[derive(Serialize, Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Fields {
    version: u32,
    public_key: String,
    private_key: Zeroizing<String>,
    private_key_encryption: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_salt: Option<String>,
    canonical_id: String,
    display_fingerprint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recovery_commitment: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recovery_salt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recovery_public_key: Option<String>,
    created_at: String,
    #[serde(flatten)]
    other: Map<String, Value>,
}

impl CanonicalFile {
    /// A new file with the private key in clear; `created_at` is Unix ms.
    pub fn new(identity: &Identity, recovery: Option<&Recovery>, created_at: i64) -> Self {
        let public = *identity.public();
        let fields = Fields {
            version: 1,
            public_key: STANDARD.encode(public.as_bytes()),
            private_key: Zeroizing::new(STANDARD.encode(identity.seed())),
            private_key_encryption: "none".into(),
            key_salt: None,
            canonical_id: public.canonical_id(),
            display_fingerprint: public.display_fingerprint(),
            recovery_commitment: recovery.map(|r| STANDARD.encode(r.commitment)),
            recovery_salt: recovery.map(|r| STANDARD.encode(r.salt)),
            recovery_public_key: recovery.map(|r| STANDARD.encode(r.public.as_bytes())),
            created_at: crate::time::iso_ms(created_at),
            other: Map::new(),
        };
        Self { public, fields }
    }

    /// Parses and checks the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdentityError> {
        let fields: Fields = parse_json(CANONICAL, bytes)?;
        if fields.version != 1 {
            return Err(corrupt(CANONICAL, format!("version is {}, this build reads 1", fields.version)));
        }
        let public = public_key(CANONICAL, &fields.public_key, decode_b64)?;
        if fields.canonical_id != public.canonical_id() {
            return Err(corrupt(CANONICAL, "canonicalId does not belong to publicKey"));
        }
        if fields.display_fingerprint != public.display_fingerprint() {
            return Err(corrupt(CANONICAL, "displayFingerprint does not belong to publicKey"));
        }
        let file = Self { public, fields };
        match file.fields.private_key_encryption.as_str() {
            "none" => file.check_pair(&decode_b64(&file.fields.private_key).unwrap_or_default()).map(drop)?,
            ENCRYPTED => file.sealed().map(drop)?,
            other => {
                return Err(corrupt(CANONICAL, format!("privateKeyEncryption {other:?} is not known")));
            }
        }
        if file.fields.recovery_public_key.is_some() && file.recovery().is_none() {
            return Err(corrupt(CANONICAL, "recoveryCommitment does not belong to recoveryPublicKey"));
        }
        Ok(file)
    }

    /// The public half, readable without a passphrase.
    pub fn public(&self) -> &PublicIdentity {
        &self.public
    }

    /// Whether [`CanonicalFile::open`] needs a passphrase.
    pub fn is_encrypted(&self) -> bool {
        self.fields.private_key_encryption == ENCRYPTED
    }

    /// When the identity was made, ISO 8601.
    pub fn created_at(&self) -> &str {
        &self.fields.created_at
    }

    /// The recovery key, when the file names it and its commitment verifies.
    pub fn recovery(&self) -> Option<Recovery> {
        let array = |text: &Option<String>| decode_b64(text.as_deref()?).ok();
        let recovery = Recovery {
            salt: array(&self.fields.recovery_salt)?.as_slice().try_into().ok()?,
            public: PublicIdentity::from_bytes(&array(&self.fields.recovery_public_key)?).ok()?,
            commitment: array(&self.fields.recovery_commitment)?.as_slice().try_into().ok()?,
        };
        recovery.verifies(&self.public).then_some(recovery)
    }

    /// The identity. An encrypted key needs the passphrase; deriving its key takes about 0.1 s.
    pub fn open(&self, passphrase: Option<&str>) -> Result<Identity, IdentityError> {
        if !self.is_encrypted() {
            let seed = decode_b64(&self.fields.private_key).unwrap_or_default();
            return self.check_pair(&seed);
        }
        let passphrase = passphrase.ok_or(IdentityError::Locked)?;
        let (salt, sealed) = self.sealed()?;
        let (nonce, sealed) = sealed.split_at(24);
        let key = recovery::argon2id(passphrase.as_bytes(), &salt);
        let nonce = XNonce::try_from(nonce).expect("split at 24 bytes");
        let seed = XChaCha20Poly1305::new((&*key).into())
            .decrypt(&nonce, sealed)
            .map_err(|_| IdentityError::WrongPassphrase)?;
        self.check_pair(&Zeroizing::new(seed))
    }

    /// The same file with the private key under `passphrase`.
    #[must_use]
    pub fn encrypted(&self, identity: &Identity, passphrase: &str, rng: &mut impl CryptoRng) -> Self {
        let (mut salt, mut nonce) = ([0; 32], [0; 24]);
        rng.fill_bytes(&mut salt);
        rng.fill_bytes(&mut nonce);
        self.encrypted_with(identity, passphrase, &salt, &nonce)
    }

    fn encrypted_with(
        &self,
        identity: &Identity,
        passphrase: &str,
        salt: &[u8; 32],
        nonce: &[u8; 24],
    ) -> Self {
        let key = recovery::argon2id(passphrase.as_bytes(), salt);
        let sealed = XChaCha20Poly1305::new((&*key).into())
            .encrypt(&XNonce::from(*nonce), identity.seed().as_slice())
            .expect("32 bytes are below the cipher's limit");
        let mut fields = self.fields.clone();
        fields.private_key = Zeroizing::new(STANDARD.encode([nonce.as_slice(), &sealed].concat()));
        fields.private_key_encryption = ENCRYPTED.into();
        fields.key_salt = Some(STANDARD.encode(salt));
        Self { public: self.public, fields }
    }

    /// The same file with the private key in clear.
    #[must_use]
    pub fn decrypted(&self, identity: &Identity) -> Self {
        let mut fields = self.fields.clone();
        fields.private_key = Zeroizing::new(STANDARD.encode(identity.seed()));
        fields.private_key_encryption = "none".into();
        fields.key_salt = None;
        Self { public: self.public, fields }
    }

    /// The bytes to write, mode 0600.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(&self.fields).expect("strings and maps serialise");
        bytes.push(b'\n');
        Zeroizing::new(bytes)
    }

    fn check_pair(&self, seed: &[u8]) -> Result<Identity, IdentityError> {
        pair(CANONICAL, seed, &self.public)
    }

    fn sealed(&self) -> Result<([u8; 32], Zeroizing<Vec<u8>>), IdentityError> {
        let salt = self.fields.key_salt.as_deref().and_then(|s| decode_b64(s).ok());
        let salt = salt.and_then(|s| s.as_slice().try_into().ok());
        let sealed = decode_b64(&self.fields.private_key).ok().filter(|s| s.len() == 24 + 32 + 16);
        salt.zip(sealed)
            .ok_or_else(|| corrupt(CANONICAL, "keySalt or the encrypted privateKey has a wrong length"))
    }
}

impl std::fmt::Debug for CanonicalFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CanonicalFile({}, [redacted])", self.public.fingerprint())
    }
}

const CANONICAL: &str = "identity.json";
const LEGACY: &str = "threadline/identity.json";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LegacyFields {
    public_key: String,
    private_key: Zeroizing<String>,
    #[serde(alias = "agentId")]
    fingerprint: Option<String>,
}

/// Parses a legacy file. Two encodings occur at one path, so the values decide: 64 hex digits, or 44 characters of base64.
pub fn parse_legacy(bytes: &[u8]) -> Result<Identity, IdentityError> {
    let fields: LegacyFields = parse_json(LEGACY, bytes)?;
    let public = public_key(LEGACY, &fields.public_key, decode_by_value)?;
    if fields.fingerprint.is_some_and(|f| f != public.fingerprint().to_string()) {
        return Err(corrupt(LEGACY, "fingerprint does not belong to publicKey"));
    }
    let seed = decode_by_value(&fields.private_key)
        .map_err(|()| corrupt(LEGACY, "privateKey is neither 64 hex digits nor 44 characters of base64"))?;
    pair(LEGACY, &seed, &public)
}

fn parse_json<T: serde::de::DeserializeOwned>(file: &'static str, bytes: &[u8]) -> Result<T, IdentityError> {
    if bytes.len() > MAX_FILE {
        return Err(corrupt(file, "it is larger than 64 KiB"));
    }
    // The error of a wrong type would quote the value, which may be the private key.
    serde_json::from_slice(bytes).map_err(|e| {
        let what = if e.is_data() { "a member is missing or has a wrong type" } else { "it is not JSON" };
        corrupt(file, format!("{what} (line {}, column {})", e.line(), e.column()))
    })
}

fn public_key(
    file: &'static str,
    text: &str,
    decode: fn(&str) -> Result<Zeroizing<Vec<u8>>, ()>,
) -> Result<PublicIdentity, IdentityError> {
    let bytes = decode(text).map_err(|()| corrupt(file, "publicKey is not encoded as expected"))?;
    PublicIdentity::from_bytes(&bytes).map_err(|e: KeyError| corrupt(file, format!("publicKey: {e}")))
}

fn pair(file: &'static str, seed: &[u8], public: &PublicIdentity) -> Result<Identity, IdentityError> {
    let seed: Zeroizing<[u8; 32]> = seed
        .try_into()
        .map(Zeroizing::new)
        .map_err(|_| corrupt(file, format!("privateKey has {} bytes instead of 32", seed.len())))?;
    let identity = Identity::from_seed(&seed);
    if identity.public() != public {
        return Err(corrupt(file, "publicKey does not belong to privateKey"));
    }
    Ok(identity)
}

fn decode_b64(text: &str) -> Result<Zeroizing<Vec<u8>>, ()> {
    STANDARD.decode(text).map(Zeroizing::new).map_err(|_| ())
}

fn decode_by_value(text: &str) -> Result<Zeroizing<Vec<u8>>, ()> {
    match text.len() {
        64 => hex::decode(text).map(Zeroizing::new).map_err(|_| ()),
        44 if text.ends_with('=') => decode_b64(text),
        _ => Err(()),
    }
}

fn corrupt(file: &'static str, check: impl Into<String>) -> IdentityError {
    IdentityError::Corrupt { file, check: check.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hex32, vectors};
    use proptest::prelude::*;
    use serde_json::json;

    fn alice() -> Identity {
        Identity::from_seed(&hex32(&vectors()["identities"]["alice"]["ed25519Seed"]))
    }

    fn file(name: &str) -> Vec<u8> {
        serde_json::to_vec(&vectors()["identityFiles"][name]["json"]).expect("json")
    }

    #[test]
    fn recorded_files_open_to_the_same_key() {
        let plain = CanonicalFile::parse(&file("canonicalPlain")).expect("plain");
        assert_eq!(plain.open(None).expect("open").public(), alice().public());
        for name in ["legacyBase64", "legacyHex", "standaloneMcp"] {
            assert_eq!(parse_legacy(&file(name)).expect(name).public(), alice().public(), "{name}");
        }
    }

    #[test]
    fn the_encrypted_file_is_reproduced_byte_for_byte() {
        let vector = &vectors()["identityFiles"]["canonicalEncrypted"];
        let recorded = CanonicalFile::parse(&file("canonicalEncrypted")).expect("encrypted");
        assert_eq!(recorded.open(None).expect_err("refused"), IdentityError::Locked);
        assert_eq!(recorded.open(Some("wrong")).expect_err("refused"), IdentityError::WrongPassphrase);
        let passphrase = vector["passphrase"].as_str().expect("text");
        let identity = recorded.open(Some(passphrase)).expect("opens");

        let salt = decode_b64(vector["json"]["keySalt"].as_str().expect("text")).expect("base64");
        let nonce = hex::decode(vector["nonce"].as_str().expect("text")).expect("hex");
        let ours = CanonicalFile::new(&identity, None, 1_768_478_400_000).encrypted_with(
            &identity,
            passphrase,
            salt.as_slice().try_into().expect("32"),
            nonce.as_slice().try_into().expect("24"),
        );
        assert_eq!(
            ours.to_bytes().as_slice(),
            [&serde_json::to_vec_pretty(&vector["json"]).expect("json"), b"\n".as_slice()].concat()
        );
        assert_eq!(
            ours.decrypted(&identity).to_bytes(),
            CanonicalFile::new(&identity, None, 1_768_478_400_000).to_bytes()
        );
    }

    #[test]
    fn the_plain_file_is_reproduced_byte_for_byte() {
        let vector = &vectors()["identityFiles"]["canonicalPlain"]["json"];
        let parsed = CanonicalFile::parse(&file("canonicalPlain")).expect("plain");
        assert_eq!(serde_json::from_slice::<Value>(&parsed.to_bytes()).expect("json"), *vector);
    }

    #[test]
    fn unknown_members_survive() {
        let mut json = vectors()["identityFiles"]["canonicalPlain"]["json"].clone();
        json["migrationComplete"] = json!(true);
        let parsed = CanonicalFile::parse(json.to_string().as_bytes()).expect("plain");
        assert_eq!(serde_json::from_slice::<Value>(&parsed.to_bytes()).expect("json"), json);
    }

    #[test]
    fn a_damaged_file_is_named_with_the_failed_check_and_never_replaced() {
        let good = vectors()["identityFiles"]["canonicalPlain"]["json"].clone();
        let bob = vectors()["identities"]["bob"].clone();
        let cases = [
            ("publicKey", bob["ed25519PublicB64"].clone(), "canonicalId"),
            ("privateKey", bob["ed25519SeedB64"].clone(), "publicKey does not belong"),
            ("privateKey", json!("AAAA"), "3 bytes"),
            ("canonicalId", bob["canonicalId"].clone(), "canonicalId"),
            ("displayFingerprint", json!("0"), "displayFingerprint"),
            ("privateKeyEncryption", json!("rot13"), "rot13"),
            ("version", json!(2), "version"),
            ("publicKey", json!(STANDARD.encode([0u8; 32])), "publicKey"),
        ];
        for (member, value, says) in cases {
            let mut bad = good.clone();
            bad[member] = value;
            let bytes = bad.to_string().into_bytes();
            let error = load(&Found {
                canonical: Some(&bytes),
                legacy: Some(&file("legacyHex")),
                ..Found::default()
            })
            .expect_err(member);
            assert_eq!(error.code(), "identity-corrupt");
            assert!(error.to_string().contains(says), "{member}: {error}");
        }
        let torn = &good.to_string().into_bytes()[..40];
        assert!(matches!(CanonicalFile::parse(torn), Err(IdentityError::Corrupt { .. })));
        let wrong_type = json!({"publicKey": 1, "privateKey": ["secret"]}).to_string();
        assert!(
            !CanonicalFile::parse(wrong_type.as_bytes()).expect_err("refused").to_string().contains("secret")
        );
    }

    #[test]
    fn base64_read_as_hex_is_refused() {
        let json = json!({"publicKey": "A6EHv", "privateKey": "00"}).to_string();
        assert!(matches!(parse_legacy(json.as_bytes()), Err(IdentityError::Corrupt { .. })));
    }

    #[test]
    fn start_decides_by_what_is_there() {
        let canonical = file("canonicalPlain");
        let legacy = file("legacyHex");
        let found = Found { canonical: Some(&canonical), ..Found::default() };
        assert!(matches!(load(&found), Ok(Loaded::Canonical(_))));
        assert!(matches!(load(&Found { legacy: Some(&legacy), ..Found::default() }), Ok(Loaded::Import(_))));
        assert!(matches!(load(&Found::default()), Ok(Loaded::Mint)));
        let joined = Found { joined_other_machine: true, ..Found::default() };
        assert_eq!(load(&joined).expect_err("refused"), IdentityError::NotProvisioned);
        assert_eq!(
            load(&Found { lived_before: true, ..Found::default() }).expect_err("refused"),
            IdentityError::Missing
        );
    }

    #[test]
    fn recovery_members_are_checked() {
        let identity = alice();
        let (recovery, _) = Recovery::mint(&identity, &mut rand::rng());
        let file = CanonicalFile::new(&identity, Some(&recovery), 0);
        assert_eq!(CanonicalFile::parse(&file.to_bytes()).expect("ours").recovery(), Some(recovery.clone()));
        let forged = Recovery { public: *Identity::from_seed(&[5; 32]).public(), ..recovery };
        let forged = CanonicalFile::new(&identity, Some(&forged), 0);
        assert!(CanonicalFile::parse(&forged.to_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = CanonicalFile::parse(&bytes);
            let _ = parse_legacy(&bytes);
        }
    }
}
