//! What the owner decides: held messages, and who is invited.

use serde_json::{Value, json};
use threadline::invitation::Wish;
use threadline::service::{Caller, ServiceError};
use threadline_net::store::{ApprovalKind, ApprovalStatus};

use super::Mesh;
use crate::approvals::Decision;
use crate::core::internal;
use crate::trust::require_owner;

impl Mesh {
    /// `GET /threadline/approvals`
    pub async fn approvals(
        &self,
        status: Option<ApprovalStatus>,
        kind: Option<ApprovalKind>,
    ) -> Result<Value, ServiceError> {
        let core = self.core()?;
        let approvals = core.store.approvals(status, kind, 500).await.map_err(|e| internal(&e))?;
        let mut rows = Vec::with_capacity(approvals.len());
        for approval in approvals {
            let name = core.name_of(&approval.peer).await;
            let mut row = json!(approval);
            row["peerName"] = json!(name);
            rows.push(row);
        }
        Ok(json!({"count": rows.len(), "approvals": rows}))
    }

    /// `POST /threadline/approvals/:id/approve` and `/reject`: the owner only.
    pub async fn decide(&self, caller: &Caller, id: &str, decision: Decision) -> Result<Value, ServiceError> {
        self.core()?.decide(caller, id, decision).await
    }

    /// `POST /threadline/invitations`: the owner only. `recipient` is any form of an address that a send takes.
    pub async fn issue_invitation(
        &self,
        caller: &Caller,
        mut wish: Wish,
        recipient: Option<&str>,
    ) -> Result<Value, ServiceError> {
        require_owner(caller, "inviting an agent")?;
        let core = self.core()?;
        if let Some(recipient) = recipient {
            wish.recipient = Some(core.resolve_target(recipient).await?.fingerprint);
        }
        core.issue_invitation(caller, wish).await
    }

    /// `GET /threadline/invitations`: ours, and those of others that the owner accepted.
    pub async fn invitations(&self) -> Result<Value, ServiceError> {
        self.core()?.invitations().await
    }

    /// `DELETE /threadline/invitations/:id`: `id` may be the beginning of one.
    pub async fn revoke_invitation(
        &self,
        caller: &Caller,
        id: &str,
        also_trust: bool,
    ) -> Result<Value, ServiceError> {
        self.core()?.revoke_invitation(caller, id, also_trust).await
    }

    /// `POST /threadline/invitations/accept`: the owner only.
    pub async fn accept_invitation(&self, caller: &Caller, token: &str) -> Result<Value, ServiceError> {
        self.core()?.accept_invitation(caller, token).await
    }
}
