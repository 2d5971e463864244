//! The eleven tools for clients outside the node: each call travels over the node's socket, so the node derives the
//! caller itself and a restarted node is found again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use instar_mcp::tokens::Tokens;
use instar_mcp::{HttpConfig, HttpListener, ServerIdentity, serve_stdio};
use instar_state::config::keys;
use instar_state::paths::AgentPaths;
use serde_json::{Value, json};
use threadline::service::{BoxFuture, Caller, NetworkCaller, ServiceError, Threadline, ToolCall};

use crate::cli::{Agent, CommandResult, Ctx, Failure, Reply};
use crate::client::{Answer, Call, ClientError, NodeClient};

/// Time beyond a tool's own waiting that the node gets for its answer.
const PATIENCE: Duration = Duration::from_secs(35);
/// How often the node is asked whether a registry is reachable.
const REGISTRY_POLL: Duration = Duration::from_secs(5);

/// The service as seen through the node's socket.
struct RemoteThreadline {
    client: NodeClient,
}

impl Threadline for RemoteThreadline {
    fn call(&self, caller: Caller, call: ToolCall) -> BoxFuture<'_, Result<Value, ServiceError>> {
        Box::pin(async move {
            let patience = PATIENCE + waiting_time(&call);
            let path = format!("/threadline/tools/{}", call.tool().name());
            let body = call.into_arguments();
            let mut request = Call::post(path, body).patience(patience);
            if let Caller::Network(network) = &caller {
                request = request.header("x-instar-network-caller", network_header(network));
            }
            let answer = self.client.send(request).await.map_err(unreachable)?;
            if answer.is_success() {
                return Ok(answer.json());
            }
            Err(refusal(&answer))
        })
    }

    fn registry_available(&self) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let answer = self.client.send(Call::get("/threadline/status")).await;
            answer.is_ok_and(|a| a.is_success() && a.json()["registry"]["available"] == json!(true))
        })
    }

    fn registry_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let before = self.registry_available().await;
            loop {
                tokio::time::sleep(REGISTRY_POLL).await;
                if self.registry_available().await != before {
                    return;
                }
            }
        })
    }
}

fn waiting_time(call: &ToolCall) -> Duration {
    match call {
        ToolCall::Send(send) if send.wait_for_reply => {
            Duration::from_secs(send.timeout_seconds.unwrap_or(120))
        }
        _ => Duration::ZERO,
    }
}

fn network_header(caller: &NetworkCaller) -> String {
    json!({"tokenId": caller.token_id, "scopes": caller.scopes, "peer": caller.peer}).to_string()
}

fn unreachable(error: ClientError) -> ServiceError {
    ServiceError::retry("node-unreachable", error.to_string(), Some(5))
}

fn refusal(answer: &Answer) -> ServiceError {
    let body = answer.json();
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let mut error = ServiceError::new(&text("code"), text("error"));
    error.retryable = body["retryable"].as_bool().unwrap_or(answer.status >= 500 || answer.status == 429);
    error.retry_after_seconds = body["retryAfterSeconds"].as_u64();
    match body.get("details") {
        Some(details) => error.with_details(details.clone()),
        None => error,
    }
}

/// `instar mcp threadline`: serves one client over stdin and stdout.
pub(crate) fn mcp_threadline(ctx: &Ctx, state_dir: &std::path::Path) -> CommandResult {
    let agent = Agent::new(AgentPaths::of_state_dir(ctx.absolute(state_dir)));
    let identity = ServerIdentity { agent: agent.name(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let service = Arc::new(RemoteThreadline { client: agent.client(ctx) });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let stop = super::server::stop_on_signals()?;
        serve_stdio(service, Caller::Local, identity, stop).await.map_err(|e| Failure::failed(e.to_string()))
    });
    // A read of stdin that never ends must not keep the process.
    runtime.shutdown_background();
    served?;
    Ok(Reply::new(Value::Null, ""))
}

/// `instar mcp serve`: the tools over streamable HTTP, for clients with tokens.
pub(crate) fn mcp_serve(ctx: &Ctx) -> CommandResult {
    let agent = ctx.agent()?;
    let config = agent.config(ctx)?;
    let identity = ServerIdentity { agent: agent.name(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let service = Arc::new(RemoteThreadline { client: agent.client(ctx) });
    let tokens = Tokens::new(agent.paths.threadline().join("mcp-tokens.json"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let stop = super::server::stop_on_signals()?;
        let listener =
            HttpListener::bind(http_config(&config)?).await.map_err(|e| Failure::failed(e.to_string()))?;
        ctx.note(&format!("MCP at http://{}{}", listener.address(), config.get(keys::MCP_PATH)));
        listener.serve(service, tokens, identity, stop).await.map_err(|e| Failure::failed(e.to_string()))
    })?;
    Ok(Reply::new(Value::Null, ""))
}

/// Listener settings out of the configuration.
pub(crate) fn http_config(config: &instar_state::config::Config) -> Result<HttpConfig, Failure> {
    let host = config.get(keys::MCP_HOST);
    Ok(HttpConfig {
        host: host.parse().with_context(|| format!("threadline.mcp.host {host:?} is no IP address"))?,
        port: config.get(keys::MCP_PORT),
        path: config.get(keys::MCP_PATH),
        allowed_hosts: Vec::new(),
        allowed_origins: config.get(keys::MCP_ALLOWED_ORIGINS),
        behind_proxy: config.get(keys::MCP_BEHIND_PROXY),
    })
}
