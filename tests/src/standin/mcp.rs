//! MCP servers over stdio, as the CLI starts them from `--mcp-config`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Mutex as AsyncMutex, oneshot};

/// Longest wait for a server's first answer, as the CLI's `MCP_TIMEOUT`.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest tool call; `threadline_send` may wait five minutes for a reply.
const CALL_LIMIT: Duration = Duration::from_mins(10);

/// The servers of a session.
pub(super) struct McpServers {
    servers: Vec<(String, Result<Server, String>)>,
}

struct Server {
    link: Arc<Link>,
    tools: Vec<String>,
    /// Dies with the session.
    _child: Child,
}

struct Link {
    stdin: AsyncMutex<ChildStdin>,
    next: AtomicU64,
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Value>>>>,
}

impl McpServers {
    /// Starts every server of the files; one that fails is reported as such in `init`.
    pub(super) async fn start(files: &[PathBuf], strict: bool) -> anyhow::Result<Self> {
        if files.is_empty() && strict {
            anyhow::bail!("Error: --strict-mcp-config requires --mcp-config");
        }
        let mut wanted = Vec::new();
        for file in files {
            let text = std::fs::read(file).with_context(|| format!("MCP config {}", file.display()))?;
            let config: Value =
                serde_json::from_slice(&text).with_context(|| format!("MCP config {}", file.display()))?;
            let servers =
                config["mcpServers"].as_object().context("mcpServers: Does not adhere to the schema")?;
            wanted.extend(servers.iter().map(|(name, server)| (name.clone(), server.clone())));
        }
        let started = join_all(wanted.iter().map(|(_, config)| Server::start(config))).await;
        let servers = wanted
            .into_iter()
            .zip(started)
            .map(|((name, _), server)| (name, server.map_err(|error| format!("{error:#}"))))
            .collect();
        Ok(Self { servers })
    }

    /// `mcp_servers` of the init event.
    pub(super) fn status(&self) -> Value {
        let states = self.servers.iter().map(|(name, server)| {
            let status = if server.is_ok() { "connected" } else { "failed" };
            json!({"name": name, "status": status, "source": "dynamic"})
        });
        states.collect()
    }

    /// Full names of all tools.
    pub(super) fn tools(&self) -> Vec<String> {
        let running = self.servers.iter().filter_map(|(name, server)| Some((name, server.as_ref().ok()?)));
        running
            .flat_map(|(name, server)| server.tools.iter().map(move |tool| format!("mcp__{name}__{tool}")))
            .collect()
    }

    /// Calls `mcp__<server>__<tool>`; the result's text and whether it failed.
    pub(super) async fn call(&self, full_name: &str, input: &Value) -> (Value, bool) {
        let failed = |text: String| (json!([{"type": "text", "text": text}]), true);
        let found = self.servers.iter().find_map(|(name, server)| {
            let tool = full_name.strip_prefix(&format!("mcp__{name}__"))?;
            Some((server, tool))
        });
        let Some((server, tool)) = found else {
            return failed(format!("No such tool available: {full_name}"));
        };
        let server = match server {
            Ok(server) => server,
            Err(error) => return failed(format!("MCP server is not connected: {error}")),
        };
        let call = server.link.request("tools/call", json!({"name": tool, "arguments": input}));
        match tokio::time::timeout(CALL_LIMIT, call).await {
            Ok(Ok(result)) => (result["content"].clone(), result["isError"].as_bool().unwrap_or(false)),
            Ok(Err(error)) => failed(format!("MCP error: {error:#}")),
            Err(_) => failed("MCP error: Request timed out".to_owned()),
        }
    }
}

impl Server {
    async fn start(config: &Value) -> anyhow::Result<Self> {
        let command = config["command"].as_str().context("the server has no command")?;
        let arguments = config["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let variables = config["env"].as_object().into_iter().flatten();
        let mut child = Command::new(command)
            .args(arguments)
            .envs(variables.filter_map(|(name, value)| Some((name, value.as_str()?))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {command}"))?;
        let stdin = child.stdin.take().context("stdin of the server")?;
        let stdout = child.stdout.take().context("stdout of the server")?;
        let link = Arc::new(Link {
            stdin: AsyncMutex::new(stdin),
            next: AtomicU64::new(0),
            waiting: Mutex::new(Some(HashMap::new())),
        });
        // Ends when the server closes its output.
        tokio::spawn(read(Arc::clone(&link), stdout));
        let tools =
            tokio::time::timeout(START_LIMIT, link.handshake()).await.context("no answer in time")??;
        Ok(Self { link, tools, _child: child })
    }
}

impl Link {
    async fn handshake(&self) -> anyhow::Result<Vec<String>> {
        let client = json!({"name": "claude-code", "version": "2.1.330"});
        // The CLI tries the newest protocol first and falls back.
        let _ = self.request("server/discover", json!({"protocolVersion": "2026-07-28"})).await;
        let parameters = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client});
        self.request("initialize", parameters).await?;
        self.write(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await?;
        let listed = self.request("tools/list", json!({})).await?;
        let tools = listed["tools"].as_array().context("tools/list has no tools")?;
        Ok(tools.iter().filter_map(|tool| tool["name"].as_str().map(str::to_owned)).collect())
    }

    async fn request(&self, method: &str, parameters: Value) -> anyhow::Result<Value> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .context("-32000: Connection closed")?
            .insert(id, sender);
        self.write(json!({"jsonrpc": "2.0", "id": id, "method": method, "params": parameters})).await?;
        let answer = receiver.await.context("-32000: Connection closed")?;
        match answer.get("error") {
            None => Ok(answer["result"].clone()),
            Some(error) => {
                Err(anyhow!("{}: {}", error["code"], error["message"].as_str().unwrap_or_default()))
            }
        }
    }

    async fn write(&self, message: Value) -> anyhow::Result<()> {
        let mut stdin = self.stdin.lock().await;
        stdin.write_all(format!("{message}\n").as_bytes()).await?;
        Ok(stdin.flush().await?)
    }
}

async fn read(link: Arc<Link>, stdout: ChildStdout) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        if message["method"].is_string() {
            if !message["id"].is_null() {
                let _ = link.write(json!({"jsonrpc": "2.0", "id": message["id"], "result": {}})).await;
            }
            continue;
        }
        let Some(id) = message["id"].as_u64() else { continue };
        let waiting = link
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .and_then(|open| open.remove(&id));
        if let Some(waiting) = waiting {
            let _ = waiting.send(message);
        }
    }
    // Whoever waits learns that the server has gone.
    link.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
}
