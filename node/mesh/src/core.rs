//! What every part of the room works on, once an identity and a store are there.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use instar_outbound::{SecretScan, SendGateway};
use instar_state::events::EventBus;
use instar_state::ids::ConversationKey;
use instar_state::ports::{Notice, PeerSessions, SharedNotices};
use serde_json::json;
use threadline::firewall::Violations;
use threadline::identity::Identity;
use threadline::service::ServiceError;
use threadline::trust::{Profile, Profiles};
use threadline::v1::client::ClientConfig;
use threadline::v1::frames::{Metadata, RegistryWish};
use threadline::v1::local::{AgentName, RecentTexts};
use threadline::{Fingerprint, ThreadKey, TrustLevel, text};
use threadline_net::store::{ApprovalQueueLimits, Store, StoreError};
use threadline_net::{
    DirectHandle, LinkHandle, MachineLimits, RegistryClient, Routes, ServerClient, SharedFiles,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::audit::AuditLog;
use crate::config::MeshConfig;
use crate::link_log::LinkLog;
use crate::local::LocalScan;
use crate::pairing::Guests;
use crate::records::{Controls, KnownAgents, Nicknames, Pairings, Record, RecordError};
use crate::sealed::SealedRoom;
use crate::waiters::Waiters;

/// Switches the relay in the configuration, for good.
pub trait RelaySwitch: Send + Sync {
    /// Writes `threadline.relayEnabled`, and the visibility where one is given. The new configuration comes back
    /// through [`crate::Mesh::set_config`].
    fn set(
        &self,
        enabled: bool,
        visibility: Option<String>,
    ) -> instar_state::BoxFuture<'_, Result<(), String>>;
}

pub(crate) struct Core {
    pub(crate) identity: Arc<Identity>,
    pub(crate) us: Fingerprint,
    pub(crate) agent_name: String,
    pub(crate) version: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) store: Store,
    /// What all agents of the account take together.
    pub(crate) machine: Option<MachineLimits>,
    pub(crate) link: LinkHandle,
    pub(crate) sealed: SealedRoom,
    pub(crate) direct: DirectHandle,
    pub(crate) routes: Routes,
    pub(crate) servers: ServerClient,
    /// Name that can stand in file names.
    pub(crate) name: Option<AgentName>,
    /// Loopback port of the node.
    pub(crate) port: u16,
    pub(crate) files: SharedFiles,
    /// Held while waiting files are taken in.
    pub(crate) drops: tokio::sync::Mutex<()>,
    /// What other agents of this host show to write to this one.
    pub(crate) own_token: Option<String>,
    pub(crate) registry: RegistryClient,
    pub(crate) config: Arc<ArcSwap<MeshConfig>>,
    pub(crate) profiles: Arc<Record<Profiles>>,
    pub(crate) nicknames: Arc<Record<Nicknames>>,
    pub(crate) controls: Arc<Record<Controls>>,
    pub(crate) pairings: Arc<Record<Pairings>>,
    pub(crate) known_agents: Arc<Record<KnownAgents>>,
    /// Held only to decide.
    pub(crate) guests: Mutex<Guests>,
    /// Held only to compare.
    pub(crate) recent: Mutex<RecentTexts>,
    pub(crate) audit: AuditLog,
    pub(crate) link_log: LinkLog,
    pub(crate) waiters: Waiters,
    pub(crate) local: LocalScan,
    pub(crate) sessions: Arc<dyn PeerSessions>,
    pub(crate) notices: SharedNotices,
    pub(crate) events: EventBus,
    pub(crate) gateway: Arc<SendGateway>,
    pub(crate) secrets: Arc<dyn SecretScan>,
    pub(crate) relay_switch: Arc<dyn RelaySwitch>,
    pub(crate) ingest_wake: Notify,
    pub(crate) dispatch_wake: Arc<Notify>,
    /// Denied tool calls by session. Held only to count.
    pub(crate) violations: Mutex<HashMap<String, Violations>>,
    pub(crate) clock: fn() -> i64,
    pub(crate) stop: CancellationToken,
}

impl Core {
    pub(crate) fn now(&self) -> i64 {
        (self.clock)()
    }

    /// Tells every carrier that the outbox has rows.
    pub(crate) fn flush(&self) {
        self.direct.flush();
        self.link.flush();
    }

    pub(crate) fn config(&self) -> Arc<MeshConfig> {
        self.config.load_full()
    }

    /// How the link introduces this agent, while the relay is switched on.
    pub(crate) fn client_config(&self) -> Option<ClientConfig> {
        let config = self.config();
        let url = config.relay_url.clone().filter(|_| config.enabled)?;
        if !self.sealed.v1_allowed(&url) {
            return None;
        }
        Some(ClientConfig {
            metadata: Metadata {
                name: self.agent_name.clone(),
                framework: Some("instar".into()),
                capabilities: Some(self.capabilities_at(&url)),
                version: Some(self.version.clone()),
                ..Metadata::default()
            },
            url,
            visibility: config.visibility,
            registry: config.registry_listed.then_some(RegistryWish {
                listed: true,
                homepage: None,
                framework_visible: None,
            }),
            watch_presence: true,
        })
    }

    pub(crate) fn profile(&self, peer: &Fingerprint) -> Option<Profile> {
        self.profiles.get().profiles.get(peer).cloned()
    }

    /// The level by which the peer is judged now, inactivity applied.
    pub(crate) fn level(&self, peer: &Fingerprint) -> TrustLevel {
        let profiles = self.profiles.get();
        let Some(profile) = profiles.profiles.get(peer) else { return TrustLevel::Untrusted };
        profile.decayed(self.now()).unwrap_or(profile.level)
    }

    /// Sanitised name of a peer: the owner's nickname, else what the profile or the peer itself says.
    pub(crate) async fn name_of(&self, peer: &Fingerprint) -> String {
        if let Some(nickname) = self.nicknames.get().nicknames.get(peer) {
            return nickname.name.clone();
        }
        if let Some(profile) = self.profile(peer).filter(|p| !p.agent.is_empty()) {
            return text::name(&profile.agent);
        }
        match self.store.known_peer(*peer).await {
            Ok(Some(known)) if !known.name.is_empty() => known.name,
            _ => format!("agent {}", peer.short()),
        }
    }

    pub(crate) fn queue_limits() -> ApprovalQueueLimits {
        ApprovalQueueLimits {
            pending: threadline::inbound::MAX_PENDING,
            pending_per_peer: threadline::inbound::MAX_PENDING_PER_PEER,
            first_contacts: threadline::inbound::MAX_FIRST_CONTACTS,
        }
    }

    /// Tells the owner, once per cause.
    pub(crate) fn notify(&self, cause: impl Into<String>, text: impl Into<String>, urgent: bool) {
        self.notices.notify(Notice { cause: cause.into(), text: text.into(), urgent });
    }

    /// Publishes an event about a thread. Events hold ids and states, never texts.
    pub(crate) fn thread_event(&self, kind: &str, key: &ThreadKey, message_id: &str) {
        let data = json!({"peer": key.peer, "threadId": key.thread, "messageId": message_id});
        self.events.publish(kind, data);
    }
}

/// The conversation that a session serves.
pub(crate) fn conversation_of(key: &ThreadKey) -> ConversationKey {
    format!("threadline:{}:{}", key.peer, key.thread)
        .parse()
        .expect("a fingerprint and a thread id have at most 161 characters without blanks")
}

/// The thread of a conversation of this room.
pub(crate) fn thread_of(conversation: &ConversationKey) -> Option<ThreadKey> {
    let (peer, thread) = conversation.as_str().strip_prefix("threadline:")?.split_once(':')?;
    Some(ThreadKey { peer: peer.parse().ok()?, thread: thread.parse().ok()? })
}

/// The inbox key of a peer's message.
pub(crate) fn inbox_key(peer: &Fingerprint, message_id: &str) -> String {
    format!("threadline:{peer}:{message_id}")
}

/// An internal failure as the caller hears it.
pub(crate) fn internal(error: &StoreError) -> ServiceError {
    tracing::error!(%error, "the threadline store failed");
    if error.is_storage_full() {
        return ServiceError::retry("storage-failed", "the disk is full; free some space", Some(60));
    }
    ServiceError::retry("storage-failed", error.to_string(), None)
}

/// A record that was not written.
pub(crate) fn record_failed(error: &RecordError) -> ServiceError {
    tracing::error!(%error, "a record was not written");
    ServiceError::retry("storage-failed", error.to_string(), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_names_peer_and_thread() {
        let key = ThreadKey {
            peer: Fingerprint::from_bytes([0xab; 16]),
            thread: "thread:with:colons".parse().expect("id"),
        };
        let conversation = conversation_of(&key);
        assert_eq!(conversation.platform(), "threadline");
        assert_eq!(thread_of(&conversation), Some(key));
        assert_eq!(thread_of(&"telegram:42".parse().expect("key")), None);
    }
}
