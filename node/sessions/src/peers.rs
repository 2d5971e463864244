//! Sessions as the mesh sees them.

use instar_state::BoxFuture;
use instar_state::ids::{ConversationKey, SessionId};
use instar_state::ports::{
    InputState, LiveSession, PeerSessionSpec, PeerSessions, SessionInput, SpawnRefused,
};
use instar_state::time::{now_ms, rfc3339};
use serde_json::json;
use ulid::Ulid;

use crate::error::SessionError;
use crate::record::{Activity, Priority, SessionKind, Status};
use crate::sessions::Sessions;
use crate::shared::{Shared, lock};
use crate::spawn::{Resume, SpawnRequest};

/// Pause of starts for peers while too much of the memory is in use, ms.
const MEMORY_RETRY_MS: i64 = 120_000;

impl PeerSessions for Sessions {
    fn enqueue(&self, input: SessionInput) -> BoxFuture<'_, Result<Ulid, String>> {
        Box::pin(async move {
            Sessions::enqueue(self, input).await.map(|(ulid, _)| ulid).map_err(|e| e.to_string())
        })
    }

    fn live(&self, conversation: &ConversationKey) -> Option<LiveSession> {
        let inner = self.shared.inner();
        let id = Shared::live_of(&inner, conversation)?;
        let record = &inner.sessions.get(&id)?.record;
        Some(LiveSession {
            id,
            idle: record.status == Status::Running && record.activity == Activity::Idle,
            child_pid: record.child_pid,
        })
    }

    fn memory_percent(&self) -> u8 {
        self.shared.deps.memory.used_percent().unwrap_or(0)
    }

    fn start(&self, spec: PeerSessionSpec) -> BoxFuture<'_, Result<SessionId, SpawnRefused>> {
        Box::pin(async move {
            if let Some(until_ms) = lock(&self.shared.provider).paused(now_ms()) {
                let reason = format!(
                    "the model provider refuses; sessions for peers start again at {}",
                    rfc3339(until_ms)
                );
                return Err(SpawnRefused::Paused { until_ms, reason });
            }
            let request = SpawnRequest {
                conversation: Some(spec.conversation),
                model: spec.model,
                priority: Priority::Medium,
                triggered_by: Some(format!("mesh:{}", spec.binding.peer)),
                peer: Some(spec.binding),
                heartbeat: spec.heartbeat,
                resume: Resume::IfPossible,
                ..SpawnRequest::new(spec.name, SessionKind::Conversation)
            };
            self.spawn(request).await.map(|record| record.id).map_err(|error| match error {
                SessionError::Limit { max, .. } => SpawnRefused::SessionLimit { max },
                SessionError::Memory { .. } => {
                    SpawnRefused::Paused { until_ms: now_ms() + MEMORY_RETRY_MS, reason: error.to_string() }
                }
                SessionError::RuntimeMissing(reason) => SpawnRefused::RuntimeMissing(reason),
                other => SpawnRefused::Failed(other.to_string()),
            })
        })
    }

    fn replied(&self, conversation: &ConversationKey, inbox_key: Option<&str>) -> BoxFuture<'_, ()> {
        let (conversation, key) = (conversation.clone(), inbox_key.map(str::to_owned));
        Box::pin(async move {
            match self.shared.deps.journal.acknowledge(&conversation, key.as_deref(), now_ms()).await {
                Ok(closed) if !closed.is_empty() => {
                    let closed: Vec<String> = closed.iter().map(Ulid::to_string).collect();
                    self.shared.announce("input-state", json!({"ulids": closed, "state": InputState::Acked}));
                }
                Ok(_) => {}
                Err(error) => tracing::error!(%conversation, %error, "answered inputs were not closed"),
            }
        })
    }

    fn input_state(&self, inbox_key: &str) -> BoxFuture<'_, Result<Option<InputState>, String>> {
        let key = inbox_key.to_owned();
        Box::pin(async move {
            let row = self.shared.deps.journal.by_key(&key).await.map_err(|e| e.to_string())?;
            Ok(row.map(|row| row.state))
        })
    }

    fn withdraw(&self, inbox_key: &str) -> BoxFuture<'_, ()> {
        let key = inbox_key.to_owned();
        Box::pin(async move {
            match self.shared.deps.journal.withdraw(&key, now_ms()).await {
                Ok(Some(ulid)) => {
                    let state = InputState::Expired;
                    self.shared.announce("input-state", json!({"ulids": [ulid.to_string()], "state": state}));
                }
                Ok(None) => {}
                Err(error) => tracing::error!(key, %error, "an input that was given up stays queued"),
            }
        })
    }

    fn end(&self, id: &SessionId, reason: &str) -> BoxFuture<'_, ()> {
        let (id, reason) = (*id, reason.to_owned());
        Box::pin(async move {
            if self.get(id).is_some_and(|r| r.status.is_live()) {
                Sessions::end(self, id, Status::Killed, &reason).await;
            }
        })
    }

    fn taint(&self, id: &SessionId) -> BoxFuture<'_, ()> {
        let id = *id;
        Box::pin(async move {
            let was = self.shared.update(id, |session| std::mem::replace(&mut session.record.tainted, true));
            if was == Some(false) {
                self.shared.persist(id).await;
            }
        })
    }

    fn retract(&self, conversation: &ConversationKey, reason: &str) -> BoxFuture<'_, ()> {
        let (conversation, reason) = (conversation.clone(), reason.to_owned());
        Box::pin(async move {
            match self.shared.deps.journal.retract(&conversation, &reason, now_ms()).await {
                Ok(gone) if !gone.is_empty() => {
                    let gone: Vec<String> = gone.iter().map(Ulid::to_string).collect();
                    self.shared.announce("input-state", json!({"ulids": gone, "state": InputState::Expired}));
                }
                Ok(_) => {}
                Err(error) => tracing::error!(%conversation, %error, "inputs were not taken back"),
            }
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        // Subscribed now, not at the first poll: what happens in between counts.
        let mut changed = self.shared.subscribe();
        Box::pin(async move {
            let _ = changed.changed().await;
        })
    }
}
