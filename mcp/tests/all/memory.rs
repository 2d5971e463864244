//! A Threadline service that lives in memory and answers by the name of the agent that is written to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use threadline::service::{BoxFuture, Caller, ServiceError, Threadline, ToolCall};
use tokio::sync::watch;

/// Whom it knows: `bob` answers, `slow` never does, `nobody` does not exist, `busy` is over its limit, `twins` are two.
pub(crate) struct Memory {
    registry: watch::Sender<bool>,
    calls: Mutex<Vec<(Caller, ToolCall)>>,
    waiting: watch::Sender<usize>,
    dropped: Arc<AtomicUsize>,
}

impl Memory {
    /// A service with or without a registry.
    pub(crate) fn new(registry: bool) -> Arc<Self> {
        Arc::new(Self {
            registry: watch::Sender::new(registry),
            calls: Mutex::default(),
            waiting: watch::Sender::new(0),
            dropped: Arc::default(),
        })
    }

    /// Lets the registry appear or vanish.
    pub(crate) fn set_registry(&self, available: bool) {
        self.registry.send_replace(available);
    }

    /// What was called so far, by whom.
    pub(crate) fn calls(&self) -> Vec<(Caller, ToolCall)> {
        self.calls.lock().expect("not poisoned").clone()
    }

    /// Resolves once `n` calls wait.
    pub(crate) async fn waiting(&self, n: usize) {
        let mut waiting = self.waiting.subscribe();
        waiting.wait_for(|now| *now == n).await.expect("the sender lives");
    }

    /// How many waiting calls were dropped.
    pub(crate) fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }

    async fn wait_forever(&self) -> Result<Value, ServiceError> {
        let _waiting = Waiting::enter(&self.waiting, &self.dropped);
        std::future::pending().await
    }
}

struct Waiting<'a> {
    waiting: &'a watch::Sender<usize>,
    dropped: &'a AtomicUsize,
}

impl<'a> Waiting<'a> {
    fn enter(waiting: &'a watch::Sender<usize>, dropped: &'a AtomicUsize) -> Self {
        waiting.send_modify(|n| *n += 1);
        Self { waiting, dropped }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
        self.waiting.send_modify(|n| *n -= 1);
    }
}

impl Threadline for Memory {
    fn call(&self, caller: Caller, call: ToolCall) -> BoxFuture<'_, Result<Value, ServiceError>> {
        self.calls.lock().expect("not poisoned").push((caller.clone(), call.clone()));
        Box::pin(async move {
            let ToolCall::Send(send) = &call else {
                return Ok(json!({"tool": call.tool().name(), "caller": describe(&caller)}));
            };
            match send.agent_id.as_str() {
                "slow" => self.wait_forever().await,
                "nobody" => Err(ServiceError::new("agent-not-found", "there is no agent `nobody`")),
                "busy" => Err(ServiceError::retry("rate-limited", "too many messages", Some(42))),
                "twins" => Err(ServiceError::new("ambiguous-agent", "two agents are called `twins`")
                    .with_details(json!({"candidates": [{"name": "twins", "address": "twins:01234567"}]}))),
                _ => Ok(json!({"success": true, "reply": format!("you said: {}", send.message)})),
            }
        })
    }

    fn registry_available(&self) -> BoxFuture<'_, bool> {
        let available = *self.registry.borrow();
        Box::pin(std::future::ready(available))
    }

    fn registry_changed(&self) -> BoxFuture<'_, ()> {
        let mut changes = self.registry.subscribe();
        Box::pin(async move {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

fn describe(caller: &Caller) -> String {
    match caller {
        Caller::Owner => "owner".into(),
        Caller::Local => "local".into(),
        Caller::Session(session) => format!("session {}", session.id),
        Caller::Network(network) => format!("token {}", network.token_id),
    }
}
