//! What the hooks need to know of the configuration, in one small checked file that the node writes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files;

/// First bytes of the file; the digit is the version of the layout.
const MAGIC: &[u8; 8] = b"INSTARH1";
/// Magic, payload length and CRC-32 of the payload.
const HEADER: usize = 16;
/// Largest file that is read, in bytes.
const MAX_FILE: usize = 1024 * 1024;

/// Configuration as the hooks see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HookConfig {
    /// The agent's name.
    pub agent_name: String,
    /// How strictly the command guard treats risky commands.
    pub safety_level: SafetyLevel,
    /// Literal texts that the command guard always refuses.
    pub always_block: Vec<String>,
    /// Risky commands that are let through; an entry that ends in ` *` allows any continuation.
    pub allow: Vec<String>,
    /// How sessions treat permission prompts.
    pub permission_mode: PermissionMode,
    /// Names of hooks that are switched off; safety and enforcement hooks cannot be.
    pub disabled: Vec<String>,
}

impl Default for HookConfig {
    /// The safe answers: level 1, nothing allowed, no permission granted by itself.
    fn default() -> Self {
        Self {
            agent_name: String::new(),
            safety_level: SafetyLevel::BlockAndAsk,
            always_block: Vec::new(),
            allow: Vec::new(),
            permission_mode: PermissionMode::Ask,
            disabled: Vec::new(),
        }
    }
}

/// `safety.level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SafetyLevel {
    /// 1: a risky command is refused and the owner asked.
    BlockAndAsk,
    /// 2: a risky command runs after the agent has checked itself.
    SelfVerify,
}

/// `sessions.permissionMode` as far as a hook cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PermissionMode {
    /// `bypass`: permission prompts are answered with yes.
    Bypass,
    /// Anything else: the runtime's own rules decide.
    Ask,
}

/// Where a [`HookConfig`] came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigSource {
    /// `run/hook-snapshot.bin`.
    Snapshot,
    /// `config.json`, because the snapshot is missing, damaged or of another version.
    ConfigFile,
    /// Built-in, because neither could be read.
    Defaults,
}

impl HookConfig {
    /// The part of a parsed `config.json` that hooks care about. What is missing or of a wrong type is the default.
    pub fn from_config(config: &Value) -> Self {
        let texts = |pointer: &str| -> Vec<String> {
            let list = config.pointer(pointer).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let defaults = Self::default();
        Self {
            agent_name: config
                .get("agentName")
                .or_else(|| config.get("projectName"))
                .and_then(Value::as_str)
                .map_or(defaults.agent_name, str::to_owned),
            safety_level: match config.pointer("/safety/level").and_then(Value::as_u64) {
                Some(2) => SafetyLevel::SelfVerify,
                _ => SafetyLevel::BlockAndAsk,
            },
            always_block: texts("/safety/alwaysBlock"),
            allow: texts("/safety/allow"),
            permission_mode: match config.pointer("/sessions/permissionMode") {
                None => PermissionMode::Bypass,
                Some(Value::String(mode)) if mode == "bypass" => PermissionMode::Bypass,
                Some(_) => PermissionMode::Ask,
            },
            disabled: texts("/hooks/disabled"),
        }
    }

    /// Reads the snapshot of a state directory, else `config.json`, else takes the built-in safe defaults.
    pub fn load(state_dir: &Path) -> (Self, ConfigSource) {
        if let Some(config) = fs::read(path(state_dir)).ok().and_then(|bytes| decode(&bytes)) {
            return (config, ConfigSource::Snapshot);
        }
        let config = fs::read(state_dir.join("config.json")).ok().filter(|bytes| bytes.len() <= MAX_FILE);
        match config.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) {
            Some(config @ Value::Object(_)) => (Self::from_config(&config), ConfigSource::ConfigFile),
            _ => (Self::default(), ConfigSource::Defaults),
        }
    }

    /// Writes the snapshot of a state directory. The node does so at boot and whenever the configuration changes.
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        files::replace(&path(state_dir), &encode(self), 0o600)
    }
}

/// Place of the snapshot in a state directory.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("run/hook-snapshot.bin")
}

/// The bytes of a snapshot: magic with version, length, CRC-32, payload.
pub fn encode(config: &HookConfig) -> Vec<u8> {
    let payload = serde_json::to_vec(config).unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    bytes.extend_from_slice(&payload);
    bytes
}

/// The configuration in the bytes of a snapshot, if they are whole, of this version and intact.
pub fn decode(bytes: &[u8]) -> Option<HookConfig> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (checksum, payload) = rest.split_first_chunk::<4>()?;
    let intact = magic == MAGIC
        && bytes.len() <= MAX_FILE
        && usize::try_from(u32::from_le_bytes(*length)) == Ok(payload.len())
        && u32::from_le_bytes(*checksum) == crc32fast::hash(payload);
    intact.then(|| serde_json::from_slice(payload).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> HookConfig {
        HookConfig {
            agent_name: "ann".into(),
            safety_level: SafetyLevel::SelfVerify,
            always_block: vec!["drop everything".into()],
            allow: vec!["git push --force *".into()],
            permission_mode: PermissionMode::Bypass,
            disabled: vec![],
        }
    }

    #[test]
    fn a_snapshot_is_read_back() {
        let directory = tempfile::tempdir().expect("a directory");
        sample().write(directory.path()).expect("writes");
        assert_eq!(HookConfig::load(directory.path()), (sample(), ConfigSource::Snapshot));
    }

    #[test]
    fn a_damaged_snapshot_gives_way_to_the_config_and_that_to_defaults() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(HookConfig::load(directory.path()), (HookConfig::default(), ConfigSource::Defaults));
        fs::write(
            directory.path().join("config.json"),
            r#"{"projectName":"ann","safety":{"level":2,"allow":["x",1]}}"#,
        )
        .expect("writes");
        let mut bytes = encode(&HookConfig::default());
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::create_dir_all(directory.path().join("run")).expect("makes");
        fs::write(path(directory.path()), bytes).expect("writes");
        let (config, source) = HookConfig::load(directory.path());
        assert_eq!((config.safety_level, source), (SafetyLevel::SelfVerify, ConfigSource::ConfigFile));
        assert_eq!((config.allow.as_slice(), config.agent_name.as_str()), (&["x".to_owned()][..], "ann"));
        fs::write(directory.path().join("config.json"), "{").expect("writes");
        assert_eq!(HookConfig::load(directory.path()).1, ConfigSource::Defaults);
    }

    #[test]
    fn nonsense_in_the_config_is_the_strict_answer() {
        let config: Value =
            serde_json::json!({ "safety": { "level": "2" }, "sessions": { "permissionMode": 1 } });
        let config = HookConfig::from_config(&config);
        assert_eq!(
            (config.safety_level, config.permission_mode),
            (SafetyLevel::BlockAndAsk, PermissionMode::Ask)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn one_changed_byte_is_noticed(at in 0usize..400, change in 1u8..) {
            let mut bytes = encode(&sample());
            let at = at % bytes.len();
            bytes[at] ^= change;
            prop_assert_eq!(decode(&bytes), None);
        }

        #[test]
        fn a_cut_or_longer_file_is_noticed(cut in 0usize..400, more in proptest::collection::vec(any::<u8>(), 1..4)) {
            let bytes = encode(&sample());
            prop_assert_eq!(decode(&bytes[..cut % bytes.len()]), None);
            prop_assert_eq!(decode(&[bytes, more].concat()), None);
        }
    }
}
