//! What waits for the owner, and what happens once it is decided.

use serde::Deserialize;
use serde_json::{Value, json};
use threadline::audit::Action;
use threadline::service::{Caller, ServiceError};
use threadline::trust::TrustSource;
use threadline::v2::content::ReceiptStatus;
use threadline::{ThreadKey, TrustLevel};
use threadline_net::store::{Approval, ApprovalKind, ApprovalStatus, Decided, Direction, MessageState};

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
        let approval = self.store.approval(id).await.map_err(|e| internal(&e))?;
        let approval = approval.ok_or_else(|| unknown(id))?;
        if approval.status != ApprovalStatus::Pending {
            return Err(already(id, approval.status));
        }
        if approval.expires_at <= self.now() {
            return Err(already(id, ApprovalStatus::Expired));
        }
        // The effect comes first, or with the same commit: a question that is decided is carried out. All of them may
        // be repeated.
        let decided = match (approval.kind, decision) {
            (ApprovalKind::Message | ApprovalKind::FirstContact, _) => {
                self.decide_inbound(&approval, decision, status).await?
            }
            (_, Decision::Approve(_)) => {
                self.carry_out(&approval).await?;
                self.store.decide(id, status, "owner", self.now()).await.map_err(|e| internal(&e))?
            }
            (_, Decision::Reject) => {
                self.drop_outbound(&approval).await?;
                self.store.decide(id, status, "owner", self.now()).await.map_err(|e| internal(&e))?
            }
        };
        let approval = match decided {
            Decided::Now(approval) => approval,
            Decided::Before(approval) => return Err(already(id, approval.status)),
            Decided::Unknown => return Err(unknown(id)),
        };
        if status == ApprovalStatus::Rejected {
            self.tell_sender_of(&approval, ReceiptStatus::Rejected).await;
        }
        let details = json!({"id": approval.id, "kind": approval.kind, "decision": status});
        self.audit.record(Action::ApprovalDecided, &approval.peer.to_string(), "user", details).await;
        self.events.publish("approval-decided", json!({"id": approval.id, "status": approval.status}));
        self.dispatch_wake.notify_one();
        Ok(json!(approval))
    }

    async fn carry_out(&self, approval: &Approval) -> Result<(), ServiceError> {
        match approval.kind {
            ApprovalKind::Message | ApprovalKind::FirstContact => Ok(()),
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

    /// The held message continues with the trust that is valid now, or ends.
    async fn decide_inbound(
        &self,
        approval: &Approval,
        decision: Decision,
        status: ApprovalStatus,
    ) -> Result<Decided, ServiceError> {
        if decision == Decision::Approve(ApproveOption::Agent) {
            let peer = approval.peer;
            let name = self.name_of(&peer).await;
            let level = self.level(&peer).max(TrustLevel::Verified);
            self.apply_level(peer, &name, level, TrustSource::UserGranted, "user", None).await?;
        }
        let whole_thread = decision == Decision::Approve(ApproveOption::Thread);
        let decided =
            self.store.decide_inbound(&approval.id, status, whole_thread, "owner", self.now()).await;
        decided.map_err(|e| internal(&e))
    }

    async fn drop_outbound(&self, approval: &Approval) -> Result<(), ServiceError> {
        let (ApprovalKind::Outbound, Some(id), Some(thread)) =
            (approval.kind, approval.message_id.clone(), approval.thread_id.clone())
        else {
            return Ok(());
        };
        let key = ThreadKey { peer: approval.peer, thread };
        if self.store.fail_held_outbound(key.peer, id.clone(), "owner").await.map_err(|e| internal(&e))? {
            self.waiters.undeliverable(&key, &id, "the owner did not approve it");
            return Ok(());
        }
        let message = self.store.message(key.peer, id, Direction::Out).await.map_err(|e| internal(&e))?;
        if message.is_none_or(|m| m.state == MessageState::Rejected) {
            return Ok(());
        }
        // It was released before its approval was marked.
        let approved = ApprovalStatus::Approved;
        self.store.decide(&approval.id, approved, "owner", self.now()).await.map_err(|e| internal(&e))?;
        Err(already(&approval.id, approved))
    }

    /// Expires what nobody decided in time.
    pub(crate) async fn expire_approvals(&self) {
        match self.store.expire_approvals(self.now()).await {
            Ok(expired) => {
                for approval in expired {
                    self.tell_sender_of(&approval, ReceiptStatus::Expired).await;
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

fn unknown(id: &str) -> ServiceError {
    ServiceError::new("approval-not-found", format!("there is no approval {id}"))
}

fn already(id: &str, status: ApprovalStatus) -> ServiceError {
    ServiceError::new("already-decided", format!("approval {id} is {status} already"))
}
