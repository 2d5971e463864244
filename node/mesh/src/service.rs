//! The eleven tools, in process.

use serde_json::{Value, json};
use threadline::Fingerprint;
use threadline::TrustLevel;
use threadline::service::{BoxFuture, Caller, ServiceError, Threadline, ToolCall, TrustAction, TrustRequest};
use tokio_util::sync::CancellationToken;

use crate::Mesh;
use crate::core::Core;
use crate::records::ControlStatus;
use crate::waiters::Handover;

/// Audit entries in the answer of one tool call.
const AUDIT_ENTRIES: usize = 50;

/// What a tool call gives, and with it a peer's message that is the caller's once the answer has reached it.
#[derive(Debug)]
pub struct Answered {
    /// The result of the tool.
    pub result: Value,
    /// To be confirmed when the result has left for the caller.
    pub handover: Option<Handover>,
}

impl Mesh {
    /// One tool call for a caller that may hang up (`gone`): then nothing is waited for any more, and what was to be its
    /// reply goes to a session.
    pub async fn attend(
        &self,
        caller: Caller,
        call: ToolCall,
        gone: &CancellationToken,
    ) -> Result<Answered, ServiceError> {
        let ToolCall::Send(request) = call else {
            return Ok(Answered { result: self.call(caller, call).await?, handover: None });
        };
        let (result, handover) = self.core()?.send(&caller, request, gone).await?;
        let result =
            serde_json::to_value(result).map_err(|e| ServiceError::new("internal", e.to_string()))?;
        Ok(Answered { result, handover })
    }
}

impl Threadline for Mesh {
    fn call(&self, caller: Caller, call: ToolCall) -> BoxFuture<'_, Result<Value, ServiceError>> {
        Box::pin(async move {
            let core = self.core()?;
            match call {
                ToolCall::Discover(request) => core.discover(&caller, request).await,
                ToolCall::Send(_) => {
                    let answered = self.attend(caller, call, &CancellationToken::new()).await?;
                    if let Some(handover) = answered.handover {
                        handover.confirm();
                    }
                    Ok(answered.result)
                }
                ToolCall::History(request) => core.history(&caller, request).await,
                ToolCall::Agents(request) => core.agents(&caller, &request).await,
                ToolCall::Delete(request) => core.delete(&caller, request).await,
                ToolCall::Trust(request) => core.trust_tool(&caller, request).await,
                ToolCall::Relay(request) => core.relay(&caller, request).await,
                ToolCall::RegistrySearch(request) => core.registry_search(request).await,
                ToolCall::RegistryUpdate(request) => core.registry_update(&caller, request).await,
                ToolCall::RegistryStatus => core.registry_status().await,
                ToolCall::RegistryGet(request) => core.registry_get(request).await,
            }
        })
    }

    fn registry_available(&self) -> BoxFuture<'_, bool> {
        Box::pin(async move { self.core().is_ok_and(|core| core.registry_open()) })
    }

    fn registry_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Ok(core) = self.core() else { return std::future::pending().await };
            let mut registry = core.link.watch_registry();
            registry.mark_unchanged();
            if registry.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

impl Core {
    /// `threadline_trust`
    async fn trust_tool(&self, caller: &Caller, request: TrustRequest) -> Result<Value, ServiceError> {
        if request.action == TrustAction::List {
            return self.trust_list().await;
        }
        let peer = self.trust_target(&request).await?;
        let name = self.name_of(&peer).await;
        match request.action {
            TrustAction::Grant | TrustAction::Revoke => {
                let level = match request.action {
                    TrustAction::Revoke => request.level.unwrap_or(TrustLevel::Untrusted),
                    _ => request
                        .level
                        .ok_or_else(|| ServiceError::new("level-required", "grant needs a level"))?,
                };
                let change = self.set_level(caller, peer, level, request.reason.as_deref()).await?;
                let action = if request.action == TrustAction::Grant { "grant" } else { "revoke" };
                Ok(json!({
                    "action": action,
                    "agent": name,
                    "fingerprint": peer,
                    "previousLevel": change.previous,
                    "level": change.level,
                    "status": if change.approval.is_some() { "pending_confirmation" } else { "applied" },
                    "approvalId": change.approval,
                    "source": change.source,
                    "reason": request.reason,
                }))
            }
            TrustAction::Get => Ok(self.trust_entry(&peer, &name)),
            TrustAction::Audit => {
                let subject = Some(peer.to_string());
                let entries = self.audit.entries(AUDIT_ENTRIES, None, subject).await;
                let entries = entries.map_err(|e| ServiceError::new("audit-unreadable", e.to_string()))?;
                let mut entry = self.trust_entry(&peer, &name);
                entry["entries"] = json!(entries);
                Ok(entry)
            }
            TrustAction::Block => {
                self.block(caller, peer, request.reason).await?;
                Ok(json!({"action": "block", "agent": name, "fingerprint": peer, "status": "applied"}))
            }
            TrustAction::Unblock => {
                self.release_control(caller, peer, ControlStatus::Blocked).await?;
                Ok(json!({"action": "unblock", "agent": name, "fingerprint": peer, "status": "applied"}))
            }
            TrustAction::List => self.trust_list().await,
        }
    }

    async fn trust_target(&self, request: &TrustRequest) -> Result<Fingerprint, ServiceError> {
        if let Some(text) = &request.fingerprint {
            return text.parse().map_err(|e: threadline::ParseIdError| {
                ServiceError::new("invalid-arguments", e.to_string())
            });
        }
        match &request.agent {
            Some(agent) => Ok(self.resolve_target(agent).await?.fingerprint),
            None => Err(ServiceError::new("target-required", "name an agent or give its fingerprint")),
        }
    }

    async fn trust_list(&self) -> Result<Value, ServiceError> {
        let profiles = self.profiles.get();
        let controls = self.controls.get();
        let mut rows = Vec::with_capacity(profiles.profiles.len());
        for (peer, profile) in &profiles.profiles {
            rows.push(json!({
                "name": self.name_of(peer).await,
                "fingerprint": peer,
                "level": self.level(peer),
                "source": profile.source,
                "lastInteraction": profile.history.last_interaction,
                "messageCount": profile.history.messages_received + profile.history.messages_responded,
                "blocked": controls.is_blocked(peer),
            }));
        }
        Ok(json!({"count": rows.len(), "profiles": rows}))
    }

    fn trust_entry(&self, peer: &Fingerprint, name: &str) -> Value {
        match self.profile(peer) {
            Some(profile) => json!({
                "found": true,
                "name": name,
                "fingerprint": peer,
                "level": self.level(peer),
                "source": profile.source,
                "levelSince": profile.level_since,
                "history": profile.history,
                "blockedOperations": profile.blocked_operations,
                "blocked": self.controls.get().is_blocked(peer),
            }),
            None => json!({
                "found": false,
                "name": name,
                "fingerprint": peer,
                "level": TrustLevel::Untrusted,
                "blocked": self.controls.get().is_blocked(peer),
            }),
        }
    }
}
