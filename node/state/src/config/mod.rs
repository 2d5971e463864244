//! `config.json`: the table of its keys, a checked snapshot, and the service that reloads and writes it.

mod check;
mod file;
pub mod keys;
mod relays;
mod schema;
mod service;

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::{Map, Value};

pub use check::{
    Findings, Problem, check, check_group, closest_key, is_group, is_loopback, keys_of_group, lookup, spec_of,
};
pub use file::{ConfigError, ConfigFile, Document, parse, set_at, unset_at};
pub use relays::{RelayEntry, RelayProtocol};
pub use schema::{
    Class, FromValue, Key, KeySpec, KeyType, Kind, Preset, SecretValue, is_agent_name, is_placeholder,
};
pub use service::{ConfigService, Reload};

use crate::secret::Secret;
use crate::secrets::{SecretMap, env_name};

/// What the environment and the command line say, read by the binary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Values that go before the file.
    over: BTreeMap<&'static str, Value>,
    /// Values that count where the file is silent.
    under: BTreeMap<&'static str, Value>,
    /// `INSTAR_SECRET_*`.
    secrets: BTreeMap<String, Secret<String>>,
}

impl Overrides {
    /// Takes what concerns the configuration out of an environment: `INSTAR_PORT`, `INSTAR_HOST`, `INSTAR_LOG` go
    /// before the file; `THREADLINE_RELAY_ENABLED`, `THREADLINE_RELAY_URL` and `THREADLINE_REGISTRY` count where the
    /// file is silent, but for `THREADLINE_RELAY_ENABLED=false`, which always wins. `INSTAR_SECRET_*` are kept for
    /// the backend `env`.
    ///
    /// A value that does not fit its key is an error that names the variable.
    pub fn from_env(vars: impl IntoIterator<Item = (String, String)>) -> Result<Self, Problem> {
        let mut this = Self::default();
        for (name, text) in vars {
            match name.as_str() {
                "INSTAR_PORT" => this.put_over(keys::PORT.spec(), &name, &text)?,
                "INSTAR_HOST" => this.put_over(keys::HOST.spec(), &name, &text)?,
                "INSTAR_LOG" => this.put_over(keys::LOG_LEVEL.spec(), &name, &text)?,
                "THREADLINE_RELAY_ENABLED" => {
                    let spec = keys::THREADLINE_RELAY_ENABLED.spec();
                    let value = typed(spec, &name, &text)?;
                    let layer = if value == Value::Bool(false) { &mut this.over } else { &mut this.under };
                    layer.insert(spec.path, value);
                }
                "THREADLINE_RELAY_URL" => this.put_under(keys::THREADLINE_RELAY_URL.spec(), &name, &text)?,
                "THREADLINE_REGISTRY" => {
                    this.put_under(keys::THREADLINE_REGISTRY_ENABLED.spec(), &name, &text)?;
                }
                _ if name.starts_with("INSTAR_SECRET_") => {
                    this.secrets.insert(name, text.into());
                }
                _ => {}
            }
        }
        Ok(this)
    }

    /// A flag of the command line: goes before everything.
    pub fn set<T>(&mut self, key: Key<T>, value: impl Into<Value>) -> Result<(), Problem> {
        let (spec, value) = (key.spec(), value.into());
        fits(spec, spec.path, &value)?;
        self.over.insert(spec.path, value);
        Ok(())
    }

    fn put_over(&mut self, spec: &'static KeySpec, name: &str, text: &str) -> Result<(), Problem> {
        self.over.insert(spec.path, typed(spec, name, text)?);
        Ok(())
    }

    fn put_under(&mut self, spec: &'static KeySpec, name: &str, text: &str) -> Result<(), Problem> {
        self.under.insert(spec.path, typed(spec, name, text)?);
        Ok(())
    }
}

fn typed(spec: &KeySpec, name: &str, text: &str) -> Result<Value, Problem> {
    let value = Value::from_str(text)
        .ok()
        .filter(|v| v.is_boolean() || v.is_number())
        .unwrap_or_else(|| Value::from(text));
    fits(spec, name, &value)?;
    Ok(value)
}

fn fits(spec: &KeySpec, name: &str, value: &Value) -> Result<(), Problem> {
    if spec.accepts(value) {
        return Ok(());
    }
    Err(Problem { path: name.to_owned(), problem: format!("must be {}, not {value}", spec.expected()) })
}

/// A checked configuration: file, overrides, defaults and secrets as one.
#[derive(Clone, PartialEq)]
pub struct Config {
    root: Map<String, Value>,
    overrides: Overrides,
    secrets: BTreeMap<String, Secret<String>>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("keys", &self.root.len()).finish_non_exhaustive()
    }
}

impl Config {
    /// From a file without problems. Secrets in plain text are known at once, the others after
    /// [`Config::with_secrets`].
    pub fn new(document: Document, overrides: Overrides) -> Self {
        let mut this = Self { root: document.root, overrides, secrets: BTreeMap::new() };
        for path in this.secret_paths() {
            if let Some(text) = lookup(&this.root, &path).and_then(Value::as_str) {
                this.secrets.insert(path, text.to_owned().into());
            }
        }
        this
    }

    /// Fills placeholders from the store, or from the environment when that is the backend. Returns the paths that
    /// stay without a value (`secret_missing:<path>`).
    #[must_use = "missing secrets switch features off"]
    pub fn with_secrets(mut self, store: &SecretMap) -> (Self, Vec<String>) {
        let from_env = self.get(keys::SECRETS_BACKEND) == "env";
        let mut missing = Vec::new();
        for path in self.secret_paths() {
            if self.secrets.contains_key(&path) {
                continue;
            }
            let found =
                if from_env { self.overrides.secrets.get(&env_name(&path)) } else { store.get(&path) };
            match found {
                Some(secret) => {
                    self.secrets.insert(path, secret.clone());
                }
                None => missing.push(path),
            }
        }
        (self, missing)
    }

    /// The value of a key: flag or environment, else file, else default.
    pub fn get<T: FromValue>(&self, key: Key<T>) -> T {
        let value = self.value_of(key.spec(), key.path());
        T::from_value(value.as_ref())
            .or_else(|| T::from_value(key.spec().default_value().as_ref()))
            .expect("a checked file or the table has a value for every key that must have one")
    }

    /// The value of a key with a `*` segment, for one name.
    pub fn get_for<T: FromValue>(&self, key: Key<Option<T>>, name: &str) -> Option<T> {
        let path = key.path().replacen('*', name, 1);
        T::from_value(self.value_of(key.spec(), &path).as_ref())
    }

    /// A secret, if it is set and known.
    pub fn secret(&self, key: Key<SecretValue>) -> Option<&Secret<String>> {
        self.secrets.get(key.path())
    }

    /// A secret of a key with a `*` segment, for one name.
    pub fn secret_for(&self, key: Key<SecretValue>, name: &str) -> Option<&Secret<String>> {
        self.secrets.get(&key.path().replacen('*', name, 1))
    }

    /// The value of every secret that is known, whichever way it is set.
    pub fn secret_values(&self) -> impl Iterator<Item = &Secret<String>> {
        self.secrets.values()
    }

    /// Names below a group, for example the providers in `sessions.credentials`.
    pub fn names_below(&self, path: &str) -> Vec<String> {
        lookup(&self.root, path)
            .and_then(Value::as_object)
            .map_or_else(Vec::new, |o| o.keys().cloned().collect())
    }

    /// The effective value at a dot path; secrets come as `(secret)`.
    pub fn effective(&self, path: &str) -> Option<Value> {
        if let Some(spec) = spec_of(path) {
            let value = self.value_of(spec, path)?;
            return Some(if matches!(spec.kind, Kind::Secret) { "(secret)".into() } else { value });
        }
        if !is_group(path) {
            return lookup(&self.root, path).cloned();
        }
        let below = format!("{path}.");
        let mut group = Map::new();
        for (inner, value) in self.list() {
            if let Some(rest) = inner.strip_prefix(&below) {
                // Two rows of the table never lie below one another.
                let _ = set_at(&mut group, rest, value);
            }
        }
        Some(Value::Object(group))
    }

    /// Every known key with its effective value, in the order of the table; secrets come as `(secret)`.
    pub fn list(&self) -> Vec<(String, Value)> {
        let mut list = Vec::new();
        for spec in keys::table() {
            for path in self.instances(spec) {
                if let Some(value) = self.value_of(spec, &path) {
                    let value =
                        if matches!(spec.kind, Kind::Secret) { Value::from("(secret)") } else { value };
                    list.push((path, value));
                }
            }
        }
        list
    }

    /// Keys that need a restart and differ from `other`.
    pub fn restart_keys_changed(&self, other: &Self) -> Vec<String> {
        keys::table()
            .filter(|spec| spec.restart)
            .filter(|spec| self.value_of(spec, spec.path) != other.value_of(spec, spec.path))
            .map(|spec| spec.path.to_owned())
            .collect()
    }

    /// Name of the agent: `projectName`, else the given directory name made valid.
    pub fn agent_name(&self, dir: &std::path::Path) -> String {
        self.get(keys::PROJECT_NAME).unwrap_or_else(|| name_from_dir(dir))
    }

    fn value_of(&self, spec: &KeySpec, path: &str) -> Option<Value> {
        self.overrides
            .over
            .get(path)
            .or_else(|| lookup(&self.root, path))
            .or_else(|| self.overrides.under.get(path))
            .cloned()
            .or_else(|| spec.default_value())
    }

    fn instances(&self, spec: &KeySpec) -> Vec<String> {
        match spec.path.split_once(".*.") {
            None => vec![spec.path.to_owned()],
            Some((group, leaf)) => {
                self.names_below(group).iter().map(|name| format!("{group}.{name}.{leaf}")).collect()
            }
        }
    }

    fn secret_paths(&self) -> Vec<String> {
        keys::table()
            .filter(|spec| matches!(spec.kind, Kind::Secret))
            .flat_map(|spec| self.instances(spec))
            .filter(|path| lookup(&self.root, path).is_some())
            .collect()
    }
}

/// A valid agent name made from the last part of a directory.
pub fn name_from_dir(dir: &std::path::Path) -> String {
    let raw = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mapped: String = raw
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '-' })
        .collect();
    let name: String = mapped.trim_start_matches(['-', '_']).chars().take(64).collect();
    let name = name.trim_end_matches('-');
    if name.is_empty() { "agent".into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::path::Path;

    fn config(value: Value, env: &[(&str, &str)]) -> Config {
        let document = parse(value.to_string().as_bytes(), Path::new("config.json")).expect("parse");
        assert_eq!(document.findings.problems, []);
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::new(document, Overrides::from_env(env).expect("environment"))
    }

    #[test]
    fn environment_goes_before_file_and_file_before_default() {
        let plain = config(json!({"port": 4050}), &[]);
        assert_eq!(plain.get(keys::PORT), Some(4050));
        assert_eq!(plain.get(keys::HOST), "127.0.0.1");
        assert_eq!(plain.get(keys::LIMIT_MESSAGES_PER_HOUR[1]), 10);
        let with_env = config(json!({"port": 4050}), &[("INSTAR_PORT", "4060"), ("INSTAR_LOG", "debug")]);
        assert_eq!(with_env.get(keys::PORT), Some(4060));
        assert_eq!(with_env.get(keys::LOG_LEVEL), "debug");
        assert_eq!(with_env.restart_keys_changed(&plain), ["port"]);
        assert_eq!(with_env.effective("port"), Some(json!(4060)));
    }

    #[test]
    fn the_file_beats_threadline_variables_but_for_the_kill_switch() {
        let file = json!({"threadline": {"relayEnabled": true, "relayUrl": "wss://a.example/v1/connect"}});
        let url = ("THREADLINE_RELAY_URL", "wss://b.example/v1/connect");
        let beaten = config(file.clone(), &[url, ("THREADLINE_RELAY_ENABLED", "true")]);
        assert_eq!(beaten.get(keys::THREADLINE_RELAY_URL).as_deref(), Some("wss://a.example/v1/connect"));
        let off = config(file, &[("THREADLINE_RELAY_ENABLED", "false")]);
        assert!(!off.get(keys::THREADLINE_RELAY_ENABLED));
        let filled = config(json!({}), &[url]);
        assert_eq!(filled.get(keys::THREADLINE_RELAY_URL).as_deref(), Some("wss://b.example/v1/connect"));
    }

    #[test]
    fn a_bad_variable_is_named() {
        let bad = Overrides::from_env([("INSTAR_PORT".to_owned(), "80".to_owned())]).expect_err("bad");
        assert_eq!(bad.path, "INSTAR_PORT");
    }

    #[test]
    fn placeholders_are_filled_and_never_listed() {
        let file = json!({
            "authToken": {"secret": true}, "dashboardPin": {"secret": true},
            "sessions": {"credentials": {"anthropic": {"kind": "api-key", "value": "sk-plain"}}},
        });
        let store = SecretMap::from([("authToken".to_owned(), "t".to_owned().into())]);
        let (config, missing) = config(file, &[]).with_secrets(&store);
        assert_eq!(config.secret(keys::AUTH_TOKEN).map(|s| s.expose().as_str()), Some("t"));
        assert_eq!(missing, ["dashboardPin"]);
        let credential = config.secret_for(keys::CREDENTIAL_VALUE, "anthropic").expect("plain");
        assert_eq!(credential.expose(), "sk-plain");
        assert_eq!(config.get_for(keys::CREDENTIAL_KIND, "anthropic").as_deref(), Some("api-key"));
        let listed = serde_json::to_string(&config.list()).expect("json");
        assert!(!listed.contains("sk-plain"));
        assert_eq!(config.effective("sessions.credentials.anthropic.value"), Some(json!("(secret)")));
        assert_eq!(
            config.effective("sessions.credentials"),
            Some(json!({"anthropic": {"kind": "api-key", "value": "(secret)"}}))
        );
    }

    #[test]
    fn the_environment_can_be_the_backend() {
        let file = json!({"secrets": {"backend": "env"}, "authToken": {"secret": true}});
        let (config, missing) =
            config(file, &[("INSTAR_SECRET_AUTH_TOKEN", "from-env")]).with_secrets(&SecretMap::new());
        assert!(missing.is_empty());
        assert_eq!(config.secret(keys::AUTH_TOKEN).map(|s| s.expose().as_str()), Some("from-env"));
    }

    proptest! {
        #[test]
        fn any_directory_gives_a_valid_name(dir in "\\PC{0,80}") {
            prop_assert!(is_agent_name(&name_from_dir(Path::new(&dir))));
        }
    }
}
