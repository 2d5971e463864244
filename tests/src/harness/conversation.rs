//! Messages and threads as the command line shows them.

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Agent;

/// One message of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Message id.
    pub id: String,
    /// Whether this agent sent it.
    pub sent: bool,
    /// Text, perhaps framed.
    pub body: String,
    /// Delivery state.
    pub state: String,
}

impl Agent {
    /// `threadline send … --no-wait`, in a new thread if none is named; the command's answer.
    pub async fn send(&self, to: &str, text: &str, thread: Option<&str>) -> anyhow::Result<Value> {
        let mut arguments = vec!["threadline", "send", to, text, "--no-wait"];
        match thread {
            Some(thread) => arguments.extend(["--thread", thread]),
            None => arguments.push("--new-thread"),
        }
        self.json(&arguments).await
    }

    /// The messages of a thread, oldest first; none if the agent does not know the thread yet.
    pub async fn thread(&self, id: &str) -> anyhow::Result<Vec<Message>> {
        let output = self.cli(&["threadline", "thread", id, "--limit", "100", "--json"]).await?;
        if output.code == Some(6) {
            return Ok(Vec::new());
        }
        let answer = output.json()?;
        ensure!(answer["hasMore"] != true, "a thread of more than 100 messages: {id}");
        let messages = answer["messages"].as_array().with_context(|| answer.to_string())?;
        messages.iter().map(|message| Message::read(message).with_context(|| message.to_string())).collect()
    }
}

impl Message {
    fn read(message: &Value) -> Option<Self> {
        let text = |field: &str| message[field].as_str().map(str::to_owned);
        let sent = match message["direction"].as_str()? {
            "out" | "outbound" | "sent" => true,
            "in" | "inbound" | "received" => false,
            _ => return None,
        };
        Some(Self { id: text("id")?, sent, body: text("body")?, state: text("state").unwrap_or_default() })
    }
}
