//! The configuration of a running node: current snapshot, hot reload, writing.

use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Config, ConfigError, ConfigFile, Overrides};
use crate::ports::SharedNotices;
use crate::secrets::SecretStore;

/// What a reload did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// The file was as before.
    Unchanged,
    /// New values are in force.
    Changed,
    /// The file can't be used; the last good values stay.
    Refused,
}

/// Holds the last good configuration of a node.
pub struct ConfigService {
    file: ConfigFile,
    overrides: Overrides,
    notices: SharedNotices,
    at_start: Arc<Config>,
    current: ArcSwap<Config>,
    changed: watch::Sender<Arc<Config>>,
    // Both are only touched by a reload, which does not await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stamp: Option<Stamp>,
    store: Option<SecretStore>,
    missing: Vec<String>,
}

#[derive(Clone, PartialEq, Eq)]
struct Stamp {
    mtime: (i64, i64),
    len: u64,
    inode: u64,
}

/// Degradation while the file can't be used.
const UNREADABLE: &str = "config_unreadable";

impl ConfigService {
    /// Loads the file; every problem is in the error. Blocks.
    pub fn open(
        file: ConfigFile,
        overrides: Overrides,
        notices: SharedNotices,
    ) -> Result<Arc<Self>, ConfigError> {
        let stamp = stamp(&file);
        let document = file.load()?;
        for warning in &document.findings.warnings {
            tracing::warn!(key = warning.path, problem = warning.problem, "config.json");
        }
        let config = Arc::new(Config::new(document, overrides.clone()));
        let (changed, _) = watch::channel(Arc::clone(&config));
        Ok(Arc::new(Self {
            file,
            overrides,
            notices,
            at_start: Arc::clone(&config),
            current: ArcSwap::new(config),
            changed,
            state: Mutex::new(State { stamp, ..State::default() }),
        }))
    }

    /// Fills the secrets from the store, now and at every reload. Blocks.
    ///
    /// A store that does not open raises `vault_undecryptable`, a placeholder without value
    /// `secret_missing:<path>`.
    pub fn attach_secrets(&self, store: SecretStore) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).store = Some(store);
        self.reload_now(true);
    }

    /// The configuration in force.
    pub fn current(&self) -> Arc<Config> {
        self.current.load_full()
    }

    /// Follows the configuration in force.
    pub fn watch(&self) -> watch::Receiver<Arc<Config>> {
        self.changed.subscribe()
    }

    /// The file, for offline parts.
    pub fn file(&self) -> &ConfigFile {
        &self.file
    }

    /// Keys whose new value waits for a restart.
    pub fn restart_needed(&self) -> Vec<String> {
        self.current().restart_keys_changed(&self.at_start)
    }

    /// Changes the file and puts the result in force. Blocks.
    ///
    /// [`ConfigError::NotInForce`] when the file was written and can't be used for another reason.
    pub fn edit<T>(
        &self,
        change: impl FnOnce(&mut Map<String, Value>) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        let result = self.file.edit(change)?;
        self.try_reload(true).map_err(|refused| ConfigError::NotInForce {
            path: self.file.path().to_owned(),
            source: Box::new(refused),
        })?;
        Ok(result)
    }

    /// Reads the file again if it looks changed. Blocks.
    pub fn reload(&self) -> Reload {
        self.reload_now(false)
    }

    /// Looks for changes every `interval` (5 s in the node) until cancelled.
    pub async fn run(self: Arc<Self>, interval: Duration, cancel: CancellationToken) {
        let mut tick = tokio::time::interval(interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = tick.tick() => {}
            }
            let this = Arc::clone(&self);
            if let Err(error) = tokio::task::spawn_blocking(move || this.reload()).await {
                tracing::error!(%error, "the configuration was not looked at");
            }
        }
    }

    fn reload_now(&self, always: bool) -> Reload {
        self.try_reload(always).unwrap_or(Reload::Refused)
    }

    fn try_reload(&self, always: bool) -> Result<Reload, ConfigError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.file);
        if !always && stamp == state.stamp {
            return Ok(Reload::Unchanged);
        }
        state.stamp = stamp;
        let document = match self.file.load() {
            Ok(document) => document,
            Err(error) => {
                self.notices.degrade(UNREADABLE, &format!("{error} (the last good values stay in force)"));
                return Err(error);
            }
        };
        self.notices.resolve(UNREADABLE);
        let mut config = Config::new(document, self.overrides.clone());
        if let Some(store) = &state.store {
            let secrets = store.load();
            match &secrets {
                Ok(_) => self.notices.resolve("vault_undecryptable"),
                Err(error) => self.notices.degrade("vault_undecryptable", &error.to_string()),
            }
            // A store that does not open is not an empty one: what was known stays known.
            let readable = secrets.is_ok();
            let secrets = secrets.unwrap_or_else(|_| self.current.load().secrets.clone());
            let (filled, mut missing) = config.with_secrets(&secrets);
            config = filled;
            missing.retain(|_| readable);
            for path in state.missing.iter().filter(|p| !missing.contains(p)) {
                self.notices.resolve(&format!("secret_missing:{path}"));
            }
            for path in &missing {
                self.notices.degrade(
                    &format!("secret_missing:{path}"),
                    &format!("{path} has no value in the secret store"),
                );
            }
            state.missing = missing;
        }
        if config == **self.current.load() {
            return Ok(Reload::Unchanged);
        }
        let config = Arc::new(config);
        self.current.store(Arc::clone(&config));
        self.changed.send_replace(config);
        Ok(Reload::Changed)
    }
}

fn stamp(file: &ConfigFile) -> Option<Stamp> {
    let meta = std::fs::metadata(file.path()).ok()?;
    Some(Stamp { mtime: (meta.mtime(), meta.mtime_nsec()), len: meta.len(), inode: meta.ino() })
}

#[cfg(test)]
mod tests {
    use super::super::{keys, set_at};
    use super::*;
    use crate::events::EventBus;
    use crate::notices::NoticeBoard;
    use crate::paths::AgentPaths;
    use serde_json::json;

    struct Fixture {
        dir: tempfile::TempDir,
        board: Arc<NoticeBoard>,
        service: Arc<ConfigService>,
    }

    fn fixture(text: &str) -> Fixture {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).expect("write");
        let board = Arc::new(NoticeBoard::new(EventBus::default()));
        let notices: SharedNotices = board.clone();
        let service =
            ConfigService::open(ConfigFile::new(path), Overrides::default(), notices).expect("open");
        Fixture { dir, board, service }
    }

    #[test]
    fn a_bad_file_keeps_the_last_good_values_until_it_is_repaired() {
        let f = fixture(r#"{"sessions": {"maxSessions": 4}}"#);
        let write = |text: &str| std::fs::write(f.dir.path().join("config.json"), text).expect("write");
        write("{ nonsense");
        assert_eq!(f.service.reload(), Reload::Refused);
        assert_eq!(f.service.current().get(keys::SESSIONS_MAX), 4);
        assert_eq!(f.board.degradations()[0].code, "config_unreadable");
        write(r#"{"sessions": {"maxSessions": 500}, "logging": {"level": "x"}}"#);
        assert_eq!(f.service.reload(), Reload::Refused);
        write(r#"{"sessions": {"maxSessions": 6}}"#);
        assert_eq!(f.service.reload(), Reload::Changed);
        assert_eq!(f.service.current().get(keys::SESSIONS_MAX), 6);
        assert!(f.board.degradations().is_empty());
        assert_eq!(f.service.reload(), Reload::Unchanged);
    }

    #[test]
    fn a_write_that_does_not_come_into_force_is_an_error() {
        let f = fixture(r#"{"port": 4040}"#);
        let path = f.dir.path().join("config.json");
        std::fs::write(&path, r#"{"port": 4040, "logging": {"level": "loud"}}"#).expect("write");
        let refused = f.service.edit(|root| set_at(root, "sessions.maxSessions", json!(4)));
        assert!(matches!(refused, Err(ConfigError::NotInForce { .. })), "{refused:?}");
        assert_ne!(f.service.current().get(keys::SESSIONS_MAX), 4);
        f.service.edit(|root| set_at(root, "logging.level", json!("debug"))).expect("repaired");
        assert_eq!(f.service.current().get(keys::SESSIONS_MAX), 4);
    }

    #[tokio::test]
    async fn watchers_see_a_write_and_restart_keys_are_named() {
        let f = fixture(r#"{"port": 4040}"#);
        let mut watch = f.service.watch();
        f.service.edit(|root| set_at(root, "port", json!(4041))).expect("edit");
        watch.changed().await.expect("change");
        assert_eq!(watch.borrow().get(keys::PORT), Some(4041));
        assert_eq!(f.service.restart_needed(), ["port"]);
    }

    #[tokio::test]
    async fn the_poll_finds_a_change_by_hand() {
        let f = fixture(r#"{"port": 4040}"#);
        let mut watch = f.service.watch();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(Arc::clone(&f.service).run(Duration::from_millis(5), cancel.clone()));
        std::fs::write(f.dir.path().join("config.json"), r#"{"port": 4042}"#).expect("write");
        let seen = tokio::time::timeout(Duration::from_secs(10), watch.changed()).await;
        seen.expect("in time").expect("change");
        cancel.cancel();
        task.await.expect("task");
    }

    #[test]
    fn secrets_are_filled_and_missing_ones_are_degradations() {
        let f = fixture(r#"{"authToken": {"secret": true}, "dashboardPin": {"secret": true}}"#);
        let store = SecretStore::new(&AgentPaths::new(f.dir.path()), "ann");
        store.set([("authToken".to_owned(), "t".to_owned().into())]).expect("set");
        f.service.attach_secrets(store.clone());
        assert!(f.service.current().secret(keys::AUTH_TOKEN).is_some());
        assert_eq!(f.board.degradations()[0].code, "secret_missing:dashboardPin");
        store.set([("dashboardPin".to_owned(), "h".to_owned().into())]).expect("set");
        f.service.edit(|_| Ok(())).expect("reload");
        assert!(f.board.degradations().is_empty());
        std::fs::write(f.dir.path().join(".instar/machine/secrets-master.key"), "22".repeat(32))
            .expect("write");
        f.service.edit(|_| Ok(())).expect("reload");
        let open: Vec<_> = f.board.degradations().into_iter().map(|d| d.code).collect();
        assert_eq!(open, ["vault_undecryptable"]);
        assert!(f.service.current().secret(keys::AUTH_TOKEN).is_some());
    }
}
