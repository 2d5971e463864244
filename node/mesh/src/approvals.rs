//! What waits for the owner, and what happens once it is decided.

use serde::Deserialize;
use serde_json::{Value, json};
use threadline::audit::Action;
use threadline::service::{Caller, ServiceError};
use threadline::trust::TrustSource;
use threadline::{ThreadKey, TrustLevel};
use threadline_net::store::{
    Approval, ApprovalKind, ApprovalStatus, Decided, Direction, MessageState, StoredMessage,
};

use crate::core::{Core, internal};
use crate::trust::require_owner;

/// How far an approval reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApproveOption {
    /// This message alone.
    #[default]
    Message,
    /// This thread from now on.
    Thread,
    /// This agent: it becomes verified.
    Agent,
}

/// The owner's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Yes, this far.
    Approve(ApproveOption),
    /// No.
    Reject,
}

impl Core {
    pub(crate) async fn decide(
        &self,
        caller: &Caller,
        id: &str,
        decision: Decision,
    ) -> Result<Value, ServiceError> {
        require_owner(caller, "deciding an approval")?;
        let status = match decision {
            Decision::Approve(_) => ApprovalStatus::Approved,
            Decision::Reject => ApprovalStatus::Rejected,
        };
        let decided = self.store.decide(id, status, "owner", self.now()).await.map_err(|e| internal(&e))?;
        let approval = match decided {
            Decided::Now(approval) => approval,
            Decided::Before(approval) => {
                return Err(ServiceError::new(
                    "already-decided",
                    format!("approval {id} is {} already", approval.status),
                ));
            }
            Decided::Unknown => {
                return Err(ServiceError::new("approval-not-found", format!("there is no approval {id}")));
            }
        };
        let details = json!({"id": approval.id, "kind": approval.kind, "decision": status});
        self.audit.record(Action::ApprovalDecided, &approval.peer.to_string(), "user", details).await;
        match decision {
            Decision::Approve(option) => self.approved(&approval, option).await?,
            Decision::Reject => self.rejected(&approval).await?,
        }
        self.events.publish("approval-decided", json!({"id": approval.id, "status": approval.status}));
        self.dispatch_wake.notify_one();
        Ok(json!(approval))
    }

    async fn approved(&self, approval: &Approval, option: ApproveOption) -> Result<(), ServiceError> {
        match approval.kind {
            ApprovalKind::Message | ApprovalKind::FirstContact => self.let_in(approval, option).await,
            ApprovalKind::Outbound => self.release_outbound(approval).await,
            ApprovalKind::TrustElevation => {
                let level = approval.details.get("level").and_then(Value::as_str);
                let level: TrustLevel = level
                    .and_then(|l| l.parse().ok())
                    .ok_or_else(|| ServiceError::new("invalid-approval", "the approval names no level"))?;
                let name = self.name_of(&approval.peer).await;
                self.apply_level(approval.peer, &name, level, TrustSource::UserGranted, "user", None).await
            }
            ApprovalKind::Relay => {
                let visibility = approval.details.get("visibility").and_then(Value::as_str);
                let switched = self.relay_switch.set(true, visibility.map(str::to_owned)).await;
                switched.map_err(|e| ServiceError::retry("config-not-written", e, None))
            }
        }
    }

    /// The held message continues with the trust that is valid now.
    async fn let_in(&self, approval: &Approval, option: ApproveOption) -> Result<(), ServiceError> {
        let Some((key, message)) = self.held_message(approval).await? else { return Ok(()) };
        match option {
            ApproveOption::Message => {}
            ApproveOption::Thread => {
                self.store.approve_thread(key.clone()).await.map_err(|e| internal(&e))?;
            }
            ApproveOption::Agent => {
                let name = self.name_of(&key.peer).await;
                let level = self.level(&key.peer).max(TrustLevel::Verified);
                self.apply_level(key.peer, &name, level, TrustSource::UserGranted, "user", None).await?;
            }
        }
        let released = self.store.set_inbound_state(
            key,
            message.id,
            MessageState::Stored,
            Some("approved".into()),
            Some(threadline::threads::ThreadEvent::Released),
        );
        released.await.map_err(|e| internal(&e))?;
        Ok(())
    }

    async fn rejected(&self, approval: &Approval) -> Result<(), ServiceError> {
        let Some(id) = approval.message_id.clone() else { return Ok(()) };
        let Some(thread) = approval.thread_id.clone() else { return Ok(()) };
        let key = ThreadKey { peer: approval.peer, thread };
        let reason = Some("owner".to_owned());
        if approval.kind == ApprovalKind::Outbound {
            self.waiters.undeliverable(&key, &id, "the owner did not approve it");
            self.store.fail_held_outbound(key.peer, id, "owner").await.map_err(|e| internal(&e))?;
            return Ok(());
        }
        let state = MessageState::Rejected;
        self.store.set_inbound_state(key, id, state, reason, None).await.map_err(|e| internal(&e))?;
        Ok(())
    }

    async fn held_message(
        &self,
        approval: &Approval,
    ) -> Result<Option<(ThreadKey, StoredMessage)>, ServiceError> {
        let Some(id) = approval.message_id.clone() else { return Ok(None) };
        let message = self.store.message(approval.peer, id, Direction::In).await.map_err(|e| internal(&e))?;
        Ok(message.filter(|m| m.state == MessageState::Held).map(|m| (m.key.clone(), m)))
    }

    /// Expires what nobody decided in time.
    pub(crate) async fn expire_approvals(&self) {
        match self.store.expire_approvals(self.now()).await {
            Ok(expired) => {
                for approval in expired {
                    if let (Some(thread), Some(id)) = (approval.thread_id, approval.message_id) {
                        let key = ThreadKey { peer: approval.peer, thread };
                        self.waiters.undeliverable(&key, &id, "nobody approved it in time");
                    }
                }
            }
            Err(error) => tracing::error!(%error, "approvals cannot be expired"),
        }
    }
}
