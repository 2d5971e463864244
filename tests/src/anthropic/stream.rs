//! An assistant message, whole or as server-sent events.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use crate::script::{Fault, Step};

/// An assistant message.
pub(super) struct Message {
    head: Value,
    content: Vec<Value>,
    stop_reason: &'static str,
    output_tokens: u64,
}

impl Message {
    /// Builds the message that a step stands for.
    pub(super) fn new(request: &Value, request_bytes: usize, step: &Step) -> Self {
        let mut content = Vec::new();
        if let Some(thought) = &step.think {
            content.push(json!({"type": "thinking", "thinking": thought, "signature": "ZG91Ymxl"}));
        }
        if let Some(text) = step.text.as_ref().filter(|text| !text.is_empty()) {
            content.push(json!({"type": "text", "text": text}));
        }
        for call in &step.calls {
            let id = format!("toolu_{}", short_id());
            content.push(json!({"type": "tool_use", "id": id, "name": call.tool, "input": call.input}));
        }
        let stop_reason = if step.calls.is_empty() { "end_turn" } else { "tool_use" };
        let size: usize = content.iter().map(|block| block.to_string().len()).sum();
        let head = json!({
            "id": format!("msg_{}", short_id()), "type": "message", "role": "assistant",
            "model": request["model"], "content": [], "stop_reason": null, "stop_sequence": null,
            "usage": {
                "input_tokens": step.usage.unwrap_or_else(|| super::tokens(request_bytes)),
                "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                "output_tokens": 1, "service_tier": "standard"
            }
        });
        Self { head, content, stop_reason, output_tokens: super::tokens(size) }
    }

    /// The answer to a request without `stream`.
    pub(super) fn into_json(mut self) -> Response {
        self.head["content"] = Value::Array(self.content);
        self.head["stop_reason"] = self.stop_reason.into();
        self.head["usage"]["output_tokens"] = self.output_tokens.into();
        axum::Json(self.head).into_response()
    }

    /// The answer as an event stream.
    pub(super) fn into_events(self, fault: Option<Fault>) -> Response {
        let (out, parts) = mpsc::channel(16);
        // Ends with its receiver: a client that goes away closes the channel.
        tokio::spawn(async move { self.write(Events { out, fault }).await });
        let headers = [
            ("content-type", "text/event-stream; charset=utf-8".to_owned()),
            ("cache-control", "no-cache".to_owned()),
            ("request-id", format!("req_{}", short_id())),
        ];
        (headers, Body::from_stream(ReceiverStream::new(parts))).into_response()
    }

    async fn write(self, events: Events) -> Option<()> {
        events.send(json!({"type": "message_start", "message": self.head})).await?;
        if events.fault == Some(Fault::Hang) {
            events.out.closed().await;
            return None;
        }
        events.send(json!({"type": "ping"})).await?;
        for (index, block) in self.content.iter().enumerate() {
            let (empty, deltas) = parts_of(block);
            events
                .send(json!({"type": "content_block_start", "index": index, "content_block": empty}))
                .await?;
            for delta in deltas {
                events.send(json!({"type": "content_block_delta", "index": index, "delta": delta})).await?;
                match events.fault {
                    Some(Fault::Slow { ms }) => tokio::time::sleep(Duration::from_millis(ms)).await,
                    Some(Fault::Drop) => {
                        let cut = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
                        let _ = events.out.send(Err(cut)).await;
                        return None;
                    }
                    _ => {}
                }
            }
            events.send(json!({"type": "content_block_stop", "index": index})).await?;
        }
        events
            .send(json!({
                "type": "message_delta",
                "delta": {"stop_reason": self.stop_reason, "stop_sequence": null},
                "usage": {"output_tokens": self.output_tokens}
            }))
            .await?;
        events.send(json!({"type": "message_stop"})).await
    }
}

struct Events {
    out: Sender<std::io::Result<Bytes>>,
    fault: Option<Fault>,
}

impl Events {
    /// Sends one event; none when the client has gone.
    async fn send(&self, event: Value) -> Option<()> {
        let name = event["type"].as_str().unwrap_or_default();
        let text = format!("event: {name}\ndata: {event}\n\n");
        self.out.send(Ok(Bytes::from(text))).await.ok()
    }
}

/// The empty block of `content_block_start` and the deltas that fill it.
fn parts_of(block: &Value) -> (Value, Vec<Value>) {
    let text = |field: &str| block[field].as_str().unwrap_or_default().to_owned();
    match block["type"].as_str() {
        Some("thinking") => (
            json!({"type": "thinking", "thinking": "", "signature": ""}),
            vec![
                json!({"type": "thinking_delta", "thinking": text("thinking")}),
                json!({"type": "signature_delta", "signature": text("signature")}),
            ],
        ),
        Some("tool_use") => {
            let input = block["input"].to_string();
            let deltas =
                pieces(&input, 2).map(|part| json!({"type": "input_json_delta", "partial_json": part}));
            let empty = json!({"type": "tool_use", "id": block["id"], "name": block["name"], "input": {}});
            (empty, deltas.collect())
        }
        _ => {
            let whole = text("text");
            let deltas = pieces(&whole, 4).map(|part| json!({"type": "text_delta", "text": part}));
            (json!({"type": "text", "text": ""}), deltas.collect())
        }
    }
}

/// The text in at most `count` pieces, cut between characters.
fn pieces(text: &str, count: usize) -> impl Iterator<Item = String> {
    let characters: Vec<char> = text.chars().collect();
    let size = characters.len().div_ceil(count).max(1);
    let pieces: Vec<String> = characters.chunks(size).map(|piece| piece.iter().collect()).collect();
    pieces.into_iter()
}

fn short_id() -> String {
    Uuid::new_v4().simple().to_string().chars().take(24).collect()
}
