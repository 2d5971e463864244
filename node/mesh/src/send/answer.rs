//! What a send comes to: its state, the reply that is waited for, and what it confirms.

use std::time::Duration;

use instar_state::ports::InputState;
use threadline::delivery::DeliveryState;
use threadline::service::{Caller, ResolvedAgent, SendRequest, SendResult, ServiceError};
use threadline::{MessageId, ThreadKey, framing};
use threadline_net::store::{Auth, StoredMessage};
use tokio_util::sync::CancellationToken;

use super::Prepared;
use crate::core::{Core, conversation_of, inbox_key};
use crate::waiters::{Handover, Reply, Waiter};

impl Core {
    /// Closes what a session answered: what it names, else the oldest message that it has. One answer closes one
    /// message; what the session leaves alone is settled when it is idle.
    pub(super) async fn answered(&self, bound: &ThreadKey, named: Option<&MessageId>) {
        let named = named.map(|id| inbox_key(&bound.peer, id.as_str()));
        let key = match named {
            Some(key) => Some(key),
            None => self.oldest_injected(bound).await,
        };
        if let Some(key) = key {
            self.sessions.replied(&conversation_of(bound), Some(&key)).await;
        }
        self.dispatch_wake.notify_one();
    }

    async fn oldest_injected(&self, bound: &ThreadKey) -> Option<String> {
        for message in self.store.queued_of(bound.clone()).await.ok()? {
            let key = inbox_key(&bound.peer, message.id.as_str());
            if self.sessions.input_state(&key).await == Ok(Some(InputState::Injected)) {
                return Some(key);
            }
        }
        None
    }

    /// What is true of a message that was just handed to the carriers.
    pub(super) fn sent(
        &self,
        request: &SendRequest,
        prepared: Prepared,
        resolved_agent: ResolvedAgent,
        encryption: &str,
    ) -> SendResult {
        let direct = prepared.sealed.is_none() && self.routes.leads(&prepared.key.peer);
        let connected = self.is_reachable(&prepared);
        let path = if direct { "local" } else { "relay" };
        let encryption = if direct && encryption == "transport" { "local" } else { encryption };
        SendResult {
            success: true,
            accepted: false,
            delivered: false,
            outcome: if connected { "sent" } else { "queued" }.into(),
            message_id: prepared.id,
            thread_id: prepared.key.thread,
            resolved_agent,
            delivery_path: if connected { path } else { "queued" }.into(),
            encryption: encryption.into(),
            reply: None,
            reply_message_id: None,
            topic_linkage_stamped: request.origin_topic_id.is_some(),
            note: None,
        }
    }

    /// Waits until the peer answers, the time is over or the caller is gone.
    pub(super) async fn await_reply(
        &self,
        caller: &Caller,
        mut result: SendResult,
        mut waiter: Waiter,
        timeout: Duration,
        gone: &CancellationToken,
    ) -> Result<(SendResult, Option<Handover>), ServiceError> {
        let mut given = None;
        let replied = tokio::select! {
            biased;
            () = gone.cancelled() => {
                result.note = Some("The caller left before a reply; it will arrive in this thread".into());
                return Ok((result, None));
            }
            replied = tokio::time::timeout(timeout, waiter.reply()) => replied,
        };
        match replied {
            Ok(Some(Reply::Text { body, handover })) => {
                result.accepted = true;
                result.delivered = true;
                result.outcome = "replied".into();
                if result.delivery_path == "queued" {
                    result.delivery_path = "relay".into();
                }
                result.reply = Some(framing::enclose(&body, &hex::encode(rand::random::<[u8; 8]>())));
                result.reply_message_id = Some(handover.message().1.clone());
                self.taint(caller).await;
                given = Some(handover);
            }
            Ok(Some(Reply::Undeliverable(reason))) => {
                result.success = false;
                result.outcome = "failed".into();
                result.note = Some(reason);
            }
            Ok(None) => result.note = Some("The thread was deleted meanwhile".into()),
            Err(_) => {
                result.note =
                    Some(format!("No reply within {} s; it will arrive in this thread", timeout.as_secs()));
            }
        }
        self.add_evidence(&mut result).await;
        Ok((result, given))
    }

    /// What is known about the delivery by now.
    async fn add_evidence(&self, result: &mut SendResult) {
        let peer = result.resolved_agent.fingerprint;
        let Ok(Some(row)) = self.store.delivery(peer, result.message_id.clone()).await else { return };
        let confirmed = row.delivery.acked_at.is_some();
        result.accepted |= confirmed || row.delivery.state == DeliveryState::Accepted;
        result.delivered |= row.delivery.state == DeliveryState::Delivered;
        if confirmed && result.outcome == "queued" {
            result.outcome = "sent".into();
            result.delivery_path = "relay".into();
        }
    }

    /// The result of an earlier send.
    pub(super) async fn result_of(&self, message: &StoredMessage) -> Result<SendResult, ServiceError> {
        let name = self.name_of(&message.key.peer).await;
        let mut result = SendResult {
            success: true,
            accepted: false,
            delivered: false,
            outcome: message.state.as_str().to_owned(),
            message_id: message.id.clone(),
            thread_id: message.key.thread.clone(),
            resolved_agent: ResolvedAgent { name, fingerprint: message.key.peer },
            delivery_path: "relay".into(),
            encryption: if message.auth == Auth::E2e { "e2e" } else { "transport" }.into(),
            reply: None,
            reply_message_id: None,
            topic_linkage_stamped: false,
            note: Some("This message was sent before".into()),
        };
        self.add_evidence(&mut result).await;
        Ok(result)
    }
}
