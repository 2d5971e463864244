//! What the composition root tells the routes about the node as a whole.

use std::sync::Arc;

use instar_api::{ApiError, BootContext, NodeFacts, TurnContext};
use instar_hooks::HookReport;
use instar_state::BoxFuture;
use instar_state::config::{ConfigService, keys};
use instar_state::notices::NoticeBoard;
use instar_state::paths::AgentPaths;
use instar_state::registry::Registry;
use instar_state::time::now_ms;
use serde_json::{Map, Value, json};

use super::context::Contexts;
use super::hook_log::HookLog;
use super::supervise::Supervisor;
use crate::hook_status;

pub(crate) struct Facts {
    pub(crate) board: Arc<NoticeBoard>,
    pub(crate) supervisor: Supervisor,
    pub(crate) config: Arc<ConfigService>,
    pub(crate) registry: Registry,
    pub(crate) contexts: Contexts,
    pub(crate) hook_log: HookLog,
    pub(crate) paths: AgentPaths,
}

impl NodeFacts for Facts {
    fn degradations(&self) -> Vec<Value> {
        self.board.degradations().iter().map(|d| json!(d)).collect()
    }

    fn notices(&self) -> Vec<Value> {
        self.board.notices().iter().map(|n| json!(n)).collect()
    }

    fn subsystems(&self) -> Vec<Value> {
        self.supervisor.states()
    }

    fn restart_needed(&self) -> Vec<String> {
        self.config.restart_needed()
    }

    fn agents(&self) -> Vec<Value> {
        self.registry.read().unwrap_or_default().iter().map(|entry| json!(entry)).collect()
    }

    fn config(&self) -> Value {
        let all: Map<String, Value> = self.config.current().list().into_iter().collect();
        Value::Object(all)
    }

    fn record_hook(&self, report: &HookReport) {
        self.hook_log.record(report);
    }

    fn hook_status(&self) -> BoxFuture<'_, Vec<Value>> {
        let paths = self.paths.clone();
        let disabled = self.config.current().get(keys::HOOKS_DISABLED);
        Box::pin(async move {
            let read = move || hook_status::read(&paths, &disabled, now_ms());
            let hooks = tokio::task::spawn_blocking(read).await.unwrap_or_default();
            hooks.iter().map(|hook| json!(hook)).collect()
        })
    }

    fn boot_context(&self, request: BootContext) -> BoxFuture<'_, Result<Value, ApiError>> {
        Box::pin(self.contexts.boot(request))
    }

    fn turn_context(&self, request: TurnContext) -> Value {
        self.contexts.turn(&request)
    }
}
