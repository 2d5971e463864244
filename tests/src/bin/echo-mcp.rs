//! A minimal MCP server over stdio with one tool, `echo`, that gives its `text` back.

use std::io::{BufRead, Write};

use serde_json::{Value, json};

fn main() {
    for line in std::io::stdin().lock().lines() {
        let Ok(request) = line.map_err(drop).and_then(|line| serde_json::from_str(&line).map_err(drop))
        else {
            return;
        };
        if let Some(answer) = answer(&request) {
            let mut stdout = std::io::stdout().lock();
            if writeln!(stdout, "{answer}").and_then(|()| stdout.flush()).is_err() {
                return;
            }
        }
    }
}

/// The answer to a request; none to a notification.
fn answer(request: &Value) -> Option<Value> {
    let id = request.get("id")?;
    let result = match request["method"].as_str() {
        Some("initialize") => json!({
            "protocolVersion": request["params"]["protocolVersion"], "capabilities": {"tools": {}},
            "serverInfo": {"name": "echo", "version": "1"}
        }),
        Some("tools/list") => json!({"tools": [{
            "name": "echo", "description": "Gives a text back",
            "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}}
        }]}),
        Some("tools/call") => {
            let text = json!({"echo": request["params"]["arguments"]["text"]}).to_string();
            json!({"content": [{"type": "text", "text": text}]})
        }
        _ => {
            let error = json!({"code": -32601, "message": "Method not found"});
            return Some(json!({"jsonrpc": "2.0", "id": id, "error": error}));
        }
    };
    Some(json!({"jsonrpc": "2.0", "id": id, "result": result}))
}
