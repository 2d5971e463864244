//! An MCP server over a service that knows one agent, `bob`, who repeats what he is told; to try MCP clients against.
//!
//! Without arguments it serves stdio. With `http <token file>` it listens on a free loopback port, prints the URL on
//! stdout and serves until stdin closes.

use std::error::Error;
use std::sync::Arc;

use instar_mcp::tokens::Tokens;
use instar_mcp::{HttpConfig, HttpListener, ServerIdentity, serve_stdio};
use serde_json::{Value, json};
use threadline::service::{BoxFuture, Caller, ServiceError, Threadline, ToolCall};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let served = runtime.block_on(async {
        match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [] => serve_over_stdio().await,
            ["http", file] => serve_over_http(file).await,
            _ => Err("usage: memory_server [http <token file>]".into()),
        }
    });
    runtime.shutdown_background();
    served
}

struct Bob;

impl Threadline for Bob {
    fn call(&self, _caller: Caller, call: ToolCall) -> BoxFuture<'_, Result<Value, ServiceError>> {
        Box::pin(async move {
            match call {
                ToolCall::Send(send) if send.agent_id == "bob" => Ok(
                    json!({"success": true, "outcome": "replied", "reply": format!("you said: {}", send.message)}),
                ),
                ToolCall::Send(send) => Err(ServiceError::new(
                    "agent-not-found",
                    format!("there is no agent `{}`; only bob is here", send.agent_id),
                )),
                other => Ok(json!({"tool": other.tool().name()})),
            }
        })
    }

    fn registry_available(&self) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(true))
    }

    fn registry_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

fn identity() -> ServerIdentity {
    ServerIdentity { agent: "example".into(), version: env!("CARGO_PKG_VERSION").into() }
}

async fn serve_over_stdio() -> Result<(), Box<dyn Error>> {
    Ok(serve_stdio(Arc::new(Bob), Caller::Local, identity(), CancellationToken::new()).await?)
}

async fn serve_over_http(file: &str) -> Result<(), Box<dyn Error>> {
    let config = HttpConfig { port: 0, ..HttpConfig::default() };
    let path = config.path.clone();
    let listener = HttpListener::bind(config).await?;
    println!("http://{}{path}", listener.address());
    let cancel = CancellationToken::new();
    let stdin_closes = async {
        let mut nothing = Vec::new();
        let _ = tokio::io::stdin().read_to_end(&mut nothing).await;
        cancel.cancel();
    };
    let serving = listener.serve(Arc::new(Bob), Tokens::new(file), identity(), cancel.clone());
    let (served, ()) = tokio::join!(serving, stdin_closes);
    Ok(served?)
}
