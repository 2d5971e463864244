//! The part of a Messages API conversation that rules look at.

use serde_json::Value;

use super::Call;

/// A conversation as the rules see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// System prompt and context that hooks added.
    pub system: String,
    /// Text of the current input: the last user message with text of its own, and what was said since.
    pub input: String,
    /// Assistant messages since that input.
    pub step: usize,
    /// Tool calls since that input that have a result, oldest first.
    pub done: Vec<Done>,
}

/// A tool call and its result.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// The call.
    pub call: Call,
    /// Text of the result.
    pub text: String,
    /// Whether the tool failed.
    pub failed: bool,
}

impl Done {
    /// Whether this is the result of that call.
    pub fn is(&self, call: &Call) -> bool {
        self.call == *call
    }

    /// Whether the tool failed and the work is not done all the same.
    pub fn retryable(&self) -> bool {
        self.failed && !self.text.contains(" was answered by ")
    }
}

impl Conversation {
    /// Reads `system` and `messages` of a Messages API request; what it does not know it skips.
    pub fn from_messages(system: &Value, messages: &Value) -> Self {
        let mut conversation = Self { system: text_of(system), ..Self::default() };
        let mut open: Vec<(String, Call)> = Vec::new();
        for message in messages.as_array().into_iter().flatten() {
            let content = &message["content"];
            match message["role"].as_str() {
                Some("system") => push_line(&mut conversation.system, &text_of(content)),
                Some("assistant") => {
                    conversation.step += 1;
                    open.extend(calls_of(content));
                }
                Some("user") => {
                    let results = results_of(content);
                    let said = without_reminders(&text_of(content));
                    if results.is_empty() && !said.is_empty() {
                        if conversation.step > 0 {
                            conversation.input.clear();
                        }
                        conversation.step = 0;
                        conversation.done.clear();
                        open.clear();
                    }
                    push_line(&mut conversation.input, &said);
                    for (id, text, failed) in results {
                        if let Some(at) = open.iter().position(|(known, _)| *known == id) {
                            let (_, call) = open.swap_remove(at);
                            conversation.done.push(Done { call, text, failed });
                        }
                    }
                }
                _ => {}
            }
        }
        conversation
    }
}

/// Text blocks of a content value, one a line.
pub(crate) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts: Vec<&str> = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

fn calls_of(content: &Value) -> Vec<(String, Call)> {
    let blocks = content.as_array().into_iter().flatten();
    blocks
        .filter(|block| block["type"] == "tool_use")
        .filter_map(|block| {
            let call = Call { tool: block["name"].as_str()?.to_owned(), input: block["input"].clone() };
            Some((block["id"].as_str()?.to_owned(), call))
        })
        .collect()
}

fn results_of(content: &Value) -> Vec<(String, String, bool)> {
    let blocks = content.as_array().into_iter().flatten();
    blocks
        .filter(|block| block["type"] == "tool_result")
        .filter_map(|block| {
            let failed = block["is_error"].as_bool().unwrap_or(false);
            Some((block["tool_use_id"].as_str()?.to_owned(), text_of(&block["content"]), failed))
        })
        .collect()
}

fn without_reminders(text: &str) -> String {
    const OPEN: &str = "<system-reminder>";
    const CLOSE: &str = "</system-reminder>";
    let mut kept = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(OPEN) {
        kept.push_str(&rest[..start]);
        let Some(end) = rest[start..].find(CLOSE) else { return kept.trim().to_owned() };
        rest = &rest[start + end + CLOSE.len()..];
    }
    kept.push_str(rest);
    kept.trim().to_owned()
}

fn push_line(text: &mut String, line: &str) {
    if line.is_empty() {
        return;
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(line);
}
