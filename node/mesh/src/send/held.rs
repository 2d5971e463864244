//! Texts that wait for the owner.

use instar_outbound::SendOutcome;
use serde_json::json;
use threadline::limits::Window;
use threadline::service::{Caller, ResolvedAgent, SendRequest, SendResult, ServiceError, SessionCaller};
use threadline_net::store::{
    Approval, ApprovalDraft, ApprovalKind, Auth, Direction, MessageState, StoreError,
};

use super::{Prepared, blocked, check_length, outbound_message};
use crate::core::{Core, internal};
use crate::trust::{actor_of, approval_error};

const DAY_MS: i64 = 86_400_000;

impl Core {
    /// Keeps the text for the owner.
    pub(super) async fn hold(
        &self,
        caller: &Caller,
        request: &SendRequest,
        prepared: Prepared,
        message: String,
        hold: &instar_outbound::Hold,
        windows: Vec<Window>,
    ) -> Result<SendResult, ServiceError> {
        let now = self.now();
        let approval_id = uuid::Uuid::now_v7().to_string();
        let findings: Vec<&str> = hold.findings.iter().map(|f| f.detail.as_str()).collect();
        let approval = ApprovalDraft {
            id: approval_id.clone(),
            kind: ApprovalKind::Outbound,
            peer: prepared.key.peer,
            message_id: Some(prepared.id.clone()),
            thread_id: Some(prepared.key.thread.clone()),
            subject: prepared.subject.clone(),
            preview: message.clone(),
            details: json!({"rule": hold.rule, "reason": hold.reason, "findings": findings,
                "author": actor_of(caller)}),
            expires_at: now + DAY_MS,
        };
        let draft = self.draft(&prepared, request, windows).await?;
        let encryption = if draft.auth == Auth::E2e { "e2e" } else { "transport" };
        self.store.hold_outbound(message, draft, approval, Self::queue_limits(), now).await.map_err(|e| {
            match e {
                StoreError::AlreadyAnswered { in_reply_to, by } => ServiceError::new(
                    "already-answered",
                    format!("message {in_reply_to} was answered by {by}"),
                ),
                other => approval_error(&other),
            }
        })?;
        self.notify(
            "threadline-approvals",
            "Messages wait for your decision: see `instar threadline approvals`",
            false,
        );
        self.thread_event("message-held", &prepared.key, prepared.id.as_str());
        if let Caller::Session(SessionCaller { bound: Some(bound), .. }) = caller {
            self.answered(bound, prepared.in_reply_to.as_ref()).await;
        }
        Ok(SendResult {
            success: true,
            accepted: false,
            delivered: false,
            outcome: "held".into(),
            resolved_agent: ResolvedAgent { name: prepared.peer_name, fingerprint: prepared.key.peer },
            message_id: prepared.id,
            thread_id: prepared.key.thread,
            delivery_path: "queued".into(),
            encryption: encryption.into(),
            reply: None,
            reply_message_id: None,
            topic_linkage_stamped: false,
            note: Some(format!("Held for the owner's approval ({approval_id}): {}", hold.reason)),
        })
    }

    /// The owner approved a held text: it passes the gateway again, now with that approval.
    pub(crate) async fn release_outbound(&self, approval: &Approval) -> Result<(), ServiceError> {
        let gone = || ServiceError::new("message-not-found", "the held message is gone");
        let id = approval.message_id.clone().ok_or_else(gone)?;
        let held = self.store.message(approval.peer, id, Direction::Out).await.map_err(|e| internal(&e))?;
        let held = held.ok_or_else(gone)?;
        if held.state != MessageState::Held {
            // It was released before its approval was marked.
            return Ok(());
        }
        let text = held.body.clone().ok_or_else(gone)?;
        let request = SendRequest {
            agent_id: held.key.peer.to_string(),
            message: text,
            subject: Some(held.subject.clone()),
            ..SendRequest::default()
        };
        let sealed = self.sealed_key(&held.key, request.message.len()).await.map_err(|e| internal(&e))?;
        check_length(&request.message, sealed.is_some())?;
        let prepared = Prepared {
            sealed,
            peer_name: self.name_of(&held.key.peer).await,
            key: held.key,
            id: held.id,
            in_reply_to: held.in_reply_to.and_then(|id| id.parse().ok()),
            kind: held.kind,
            subject: held.subject,
            session: held.author_session,
        };
        let windows = vec![self.config().limits.outbound(&prepared.key.peer, self.level(&prepared.key.peer))];
        let message = outbound_message(&Caller::Owner, &request, &prepared, self.level(&prepared.key.peer));
        match self.review(message, &windows, true, true).await? {
            SendOutcome::Cleared(cleared) => {
                let draft = self.draft(&prepared, &request, windows).await?;
                self.commit(cleared, draft, &prepared).await?;
                self.after_commit(&Caller::Owner, &prepared).await;
                Ok(())
            }
            SendOutcome::Blocked(block) => Err(blocked(&block)),
            SendOutcome::Held(hold) => Err(ServiceError::new("held", hold.reason)),
            SendOutcome::Duplicate { of } => Err(ServiceError::new("duplicate", of)),
        }
    }
}
