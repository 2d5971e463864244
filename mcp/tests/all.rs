//! The server driven by real MCP clients, over a service that lives in memory.

#[path = "all/client.rs"]
mod client;
#[path = "all/http.rs"]
mod http;
#[path = "all/memory.rs"]
mod memory;
#[path = "all/peers.rs"]
mod peers;
#[path = "all/schemas.rs"]
mod schemas;
#[path = "all/stdio.rs"]
mod stdio;
#[path = "all/tokens.rs"]
mod tokens;
