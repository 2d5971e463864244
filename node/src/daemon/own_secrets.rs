//! What must not leave this node: the shared secret table and the node's own secrets as they are now.

use std::sync::{Arc, Mutex, PoisonError};

use instar_outbound::{SecretClass, SecretHit, SecretScan};
use instar_redact::{Action, OWN_SECRET, OwnSecrets, Redactor};
use instar_state::config::{Config, ConfigService};
use instar_state::secrets::{SecretMap, SecretStore, SecretsError, StoreStamp};

/// The scan of the SendGateway. It looks at the store before every text, so that a secret which was set a moment ago is
/// known; a store that does not open is not an empty one, what was known stays known.
pub(super) struct OwnSecretScan {
    store: SecretStore,
    config: Arc<ConfigService>,
    // Held while a changed store is read; the text is searched outside.
    known: Mutex<Known>,
}

struct Known {
    stamp: Option<StoreStamp>,
    stored: SecretMap,
    config: Arc<Config>,
    redactor: Arc<Redactor>,
}

impl OwnSecretScan {
    /// Knows the secrets of the store and of the configuration. Blocks.
    pub(super) fn new(store: SecretStore, config: Arc<ConfigService>) -> Result<Self, SecretsError> {
        let stamp = store.stamp();
        let stored = store.load()?;
        let current = config.current();
        let redactor = redactor(&stored, &current);
        Ok(Self { store, config, known: Mutex::new(Known { stamp, stored, config: current, redactor }) })
    }

    fn redactor(&self) -> Arc<Redactor> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (stamp, config) = (self.store.stamp(), self.config.current());
        let is_new_store = stamp != known.stamp;
        if is_new_store {
            match self.store.load() {
                Ok(stored) => (known.stored, known.stamp) = (stored, stamp),
                Err(error) => tracing::error!(%error, "changed secrets are not known to the outgoing check"),
            }
        }
        if is_new_store || !Arc::ptr_eq(&config, &known.config) {
            known.redactor = redactor(&known.stored, &config);
            known.config = config;
        }
        Arc::clone(&known.redactor)
    }
}

impl SecretScan for OwnSecretScan {
    fn scan(&self, text: &str) -> Vec<SecretHit> {
        let blocking = self.redactor().find(text).into_iter().filter(|hit| hit.action == Action::Block);
        blocking
            .map(|hit| SecretHit {
                class: if hit.rule == OWN_SECRET { SecretClass::OwnSecret } else { SecretClass::Credential },
                kind: hit.rule.to_owned(),
                span: hit.span,
            })
            .collect()
    }
}

fn redactor(stored: &SecretMap, config: &Config) -> Arc<Redactor> {
    let values = stored.values().chain(config.secret_values());
    Arc::new(Redactor::new(OwnSecrets::new(values.map(|s| s.expose().as_str()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use instar_state::config::{ConfigFile, Overrides, set_at};
    use instar_state::events::EventBus;
    use instar_state::notices::NoticeBoard;
    use instar_state::paths::AgentPaths;
    use serde_json::json;

    #[test]
    fn secrets_count_from_the_moment_they_are_set() {
        let dir = tempfile::tempdir().expect("dir");
        let paths = AgentPaths::new(dir.path());
        std::fs::create_dir_all(paths.state()).expect("folder");
        let file = r#"{"authToken": "plain-token-in-the-file"}"#;
        std::fs::write(paths.config(), file).expect("write");
        let notices = Arc::new(NoticeBoard::new(EventBus::default()));
        let config = ConfigService::open(ConfigFile::new(paths.config()), Overrides::default(), notices);
        let config = config.expect("open");
        let store = SecretStore::new(&paths, "ann");
        let scan = OwnSecretScan::new(store.clone(), Arc::clone(&config)).expect("scan");
        let finds = |text: &str| scan.scan(text).iter().any(|hit| hit.class == SecretClass::OwnSecret);
        assert!(finds("it is plain-token-in-the-file"));
        for value in ["a-later-secret", "a-rotated-secret"] {
            assert!(!finds(value));
            store.set([("sessions.credentials.x.value".to_owned(), value.to_owned().into())]).expect("set");
            assert!(finds(&format!("it is {value}")));
        }
        config.edit(|root| set_at(root, "authToken", json!("another-token-in-the-file"))).expect("edit");
        assert!(finds("it is another-token-in-the-file"));
        std::fs::write(paths.secrets().join("store.enc"), "damaged").expect("write");
        assert!(finds("it is a-rotated-secret"), "what was known stays known");
    }
}
