//! Verdicts about sessions, figures, the audit and what limits hold.

use serde_json::{Value, json};
use threadline::service::{Caller, RelayAction, RelayRequest, ServiceError};

use super::{Mesh, fingerprint};
use crate::core::internal;
use crate::firewall::Authorization;
use crate::trust::require_owner;

impl Mesh {
    /// `POST /threadline/authorize`: one tool call of a session that serves a peer.
    pub async fn authorize(
        &self,
        session: &str,
        tool: &str,
        input: &Value,
    ) -> Result<Authorization, ServiceError> {
        self.core()?.authorize(session, tool, input).await
    }

    /// `GET /threadline/peers/health`, of one peer where given.
    pub async fn peers_health(&self, peer: Option<&str>) -> Result<Value, ServiceError> {
        let core = self.core()?;
        let health = core.store.delivery_health(core.now()).await.map_err(|e| internal(&e))?;
        let Some(peer) = peer else { return Ok(json!({"count": health.len(), "peers": health})) };
        let peer = fingerprint(peer)?;
        let found = health.into_iter().find(|h| h.fingerprint == peer);
        found.map(|h| json!(h)).ok_or_else(|| {
            ServiceError::new("agent-not-found", format!("no messages were exchanged with {peer}"))
        })
    }

    /// `GET /threadline/audit`: newest first, at most 500.
    pub async fn audit(
        &self,
        limit: usize,
        action: Option<String>,
        subject: Option<String>,
    ) -> Result<Value, ServiceError> {
        let entries = self.core()?.audit.entries(limit.clamp(1, 500), action, subject).await;
        let entries = entries.map_err(|e| ServiceError::new("audit-unreadable", e.to_string()))?;
        Ok(json!({"count": entries.len(), "entries": entries}))
    }

    /// `GET /threadline/audit/verify`
    pub async fn audit_verify(&self) -> Result<Value, ServiceError> {
        let report = self.core()?.audit.verify().await;
        let report = report.map_err(|e| ServiceError::new("audit-unreadable", e.to_string()))?;
        Ok(json!({
            "valid": report.is_valid(),
            "entries": report.head.count,
            "brokenAt": report.broken.as_ref().map(|b| b.broken_at),
            "error": report.broken.as_ref().map(|b| b.error.clone()),
            "anchorsChecked": report.anchors_checked,
        }))
    }

    /// `GET /threadline/limits`
    pub fn limits(&self) -> Result<Value, ServiceError> {
        Ok(json!(self.core()?.config().limits))
    }

    /// `POST /threadline/limits/reset`: of one peer, or of all; the owner only.
    pub async fn reset_limits(&self, caller: &Caller, peer: Option<&str>) -> Result<Value, ServiceError> {
        require_owner(caller, "resetting limits")?;
        let core = self.core()?;
        let key = peer.map(fingerprint).transpose()?.map(|p| p.to_string());
        let forgotten = core.store.reset_events(key).await.map_err(|e| internal(&e))?;
        core.ingest_wake.notify_one();
        Ok(json!({"forgotten": forgotten}))
    }

    /// `POST /threadline/relay/enable` and `/disable`
    pub async fn switch_relay(
        &self,
        caller: &Caller,
        enabled: bool,
        visibility: Option<String>,
    ) -> Result<Value, ServiceError> {
        let action = if enabled { RelayAction::Enable } else { RelayAction::Disable };
        self.core()?.relay(caller, RelayRequest { action, visibility }).await
    }
}
