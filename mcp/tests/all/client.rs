//! A real MCP client that remembers what it was notified of.

use std::sync::Arc;
use std::time::Duration;

use rmcp::handler::client::ClientHandler;
use rmcp::model::{CallToolRequestParams, CallToolResult, ProgressNotificationParam};
use rmcp::service::{NotificationContext, Peer, RoleClient};
use serde_json::Value;
use tokio::sync::watch;

/// Notifications as they came.
#[derive(Clone)]
pub(crate) struct Listener {
    pub(crate) list_changes: Arc<watch::Sender<usize>>,
    pub(crate) progress: Arc<watch::Sender<Vec<ProgressNotificationParam>>>,
}

impl Listener {
    pub(crate) fn new() -> Self {
        Self {
            list_changes: Arc::new(watch::Sender::new(0)),
            progress: Arc::new(watch::Sender::new(Vec::new())),
        }
    }

    pub(crate) async fn list_changed(&self, times: usize) {
        let mut changes = self.list_changes.subscribe();
        within(changes.wait_for(|n| *n >= times)).await.expect("the sender lives");
    }
}

impl ClientHandler for Listener {
    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.list_changes.send_modify(|n| *n += 1);
    }

    async fn on_progress(
        &self,
        progress: ProgressNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        self.progress.send_modify(|all| all.push(progress));
    }
}

/// Calls a tool with arguments given as JSON.
pub(crate) async fn call(peer: &Peer<RoleClient>, tool: &'static str, arguments: Value) -> CallToolResult {
    within(peer.call_tool(request(tool, arguments))).await.expect("an answer")
}

pub(crate) fn request(tool: &'static str, arguments: Value) -> CallToolRequestParams {
    let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
    CallToolRequestParams::new(tool).with_arguments(arguments)
}

/// The code of a failed call.
pub(crate) fn code(result: &CallToolResult) -> String {
    assert_eq!(result.is_error, Some(true), "{result:?}");
    let facts = result.structured_content.as_ref().expect("facts");
    facts["error"]["code"].as_str().expect("a code").to_owned()
}

/// The one text block.
pub(crate) fn text(result: &CallToolResult) -> &str {
    let [block] = result.content.as_slice() else { panic!("one block: {result:?}") };
    &block.as_text().expect("text").text
}

/// Awaits with a deadline.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}
