//! What the relay tells about other agents. Names are claims; an entry never replaces a key that was learnt before.

use std::collections::BTreeMap;

use crate::Fingerprint;
use crate::identity::PublicIdentity;
use crate::v1::frames::{DiscoveredAgent, Presence, PresenceChange};

/// More than this many agents of one relay are not remembered.
const MAX_KNOWN: usize = 10_000;
const MAX_NAME: usize = 64;

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownAgent {
    /// Address.
    pub fingerprint: Fingerprint,
    /// Label, ≤ 64 characters.
    pub name: String,
    /// Framework.
    pub framework: Option<String>,
    /// Slugs.
    pub capabilities: Vec<String>,
    /// Whether the relay says that it is connected.
    pub online: bool,
    /// Full key, checked against the address.
    pub key: Option<PublicIdentity>,
    /// ISO 8601.
    pub last_seen: Option<String>,
}

/// All agents that one relay told about.
#[derive(Debug, Clone, Default)]
pub struct KnownAgents(BTreeMap<Fingerprint, KnownAgent>);

impl KnownAgents {
    /// In order of address.
    pub fn iter(&self) -> impl Iterator<Item = &KnownAgent> {
        self.0.values()
    }

    /// One agent.
    pub fn get(&self, fingerprint: &Fingerprint) -> Option<&KnownAgent> {
        self.0.get(fingerprint)
    }

    /// Adds what a discovery found; what it did not name stays.
    pub fn merge(&mut self, found: Vec<DiscoveredAgent>) {
        for agent in found {
            let key = agent.key();
            let Some(known) = self.entry(agent.agent_id) else { continue };
            known.online = agent.status == Presence::Online;
            known.key = known.key.or(key);
            if !agent.name.is_empty() {
                known.name = agent.name.chars().take(MAX_NAME).collect();
            }
            known.framework = agent.framework.or(known.framework.take());
            known.last_seen = agent.last_seen.or(known.last_seen.take());
            if let Some(capabilities) = agent.capabilities {
                known.capabilities = capabilities;
            }
        }
    }

    /// Takes over a presence change.
    pub fn presence(&mut self, change: PresenceChange) {
        let Some(known) = self.entry(change.agent_id) else { return };
        known.online = change.status == Presence::Online;
        let Some(metadata) = change.metadata else { return };
        if !metadata.name.is_empty() {
            known.name = metadata.name.chars().take(MAX_NAME).collect();
        }
        known.framework = metadata.framework.or(known.framework.take());
        if let Some(capabilities) = metadata.capabilities {
            known.capabilities = capabilities;
        }
    }

    /// Without a link nobody is known to be connected.
    pub fn all_offline(&mut self) {
        for known in self.0.values_mut() {
            known.online = false;
        }
    }

    fn entry(&mut self, fingerprint: Fingerprint) -> Option<&mut KnownAgent> {
        if self.0.len() >= MAX_KNOWN && !self.0.contains_key(&fingerprint) {
            return None;
        }
        Some(self.0.entry(fingerprint).or_insert_with(|| KnownAgent {
            fingerprint,
            name: String::new(),
            framework: None,
            capabilities: Vec::new(),
            online: false,
            key: None,
            last_seen: None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use base64::Engine as _;

    #[test]
    fn a_discovery_merges_and_never_drops_a_key() {
        let key = *Identity::from_seed(&[1; 32]).public();
        let b64 = base64::engine::general_purpose::STANDARD.encode(key.as_bytes());
        let agent = |name: &str, identity_key: Option<String>| DiscoveredAgent {
            agent_id: key.fingerprint(),
            name: name.into(),
            framework: None,
            capabilities: Some(vec!["tl-e2e".into()]),
            status: Presence::Online,
            connected_since: None,
            last_seen: None,
            identity_key,
        };
        let mut agents = KnownAgents::default();
        agents.merge(vec![agent("a", Some(b64))]);
        agents.merge(vec![agent("b", None)]);
        agents.merge(vec![]);
        let known = agents.get(&key.fingerprint()).expect("known");
        assert_eq!((known.name.as_str(), known.key, known.online), ("b", Some(key), true));
        agents.presence(PresenceChange {
            agent_id: key.fingerprint(),
            status: Presence::Offline,
            metadata: None,
        });
        assert!(!agents.get(&key.fingerprint()).expect("known").online);
        assert_eq!(agents.iter().count(), 1);
    }
}
