//! Variables in the texts of a rule: `{name}`, `{name+1}`, `{result}`, `{result:/json/pointer}`, `{noise}`.

use std::collections::BTreeMap;

use regex::{Captures, Regex};
use serde_json::Value;

use super::Conversation;

/// What a text may refer to.
#[derive(Debug, Clone)]
pub struct Variables<'a> {
    conversation: &'a Conversation,
    captured: BTreeMap<String, String>,
}

impl<'a> Variables<'a> {
    /// Starts with the conversation and no captures.
    pub fn new(conversation: &'a Conversation) -> Self {
        Self { conversation, captured: BTreeMap::new() }
    }

    /// Adds the named groups of a match.
    pub fn capture(&mut self, pattern: &Regex, found: &Captures<'_>) {
        for name in pattern.capture_names().flatten() {
            if let Some(group) = found.name(name) {
                self.captured.insert(name.to_owned(), group.as_str().to_owned());
            }
        }
    }

    /// Fills a text; a variable that is not known stays as it is written.
    pub fn text(&self, text: &str) -> String {
        let mut filled = String::new();
        let mut rest = text;
        while let Some(start) = rest.find('{') {
            filled.push_str(&rest[..start]);
            rest = &rest[start..];
            let end = rest.find('}').map_or(rest.len(), |end| end + 1);
            let (variable, after) = rest.split_at(end);
            match self.lookup(variable) {
                Some(Value::String(value)) => filled.push_str(&value),
                Some(value) => filled.push_str(&value.to_string()),
                None => filled.push_str(variable),
            }
            rest = after;
        }
        filled.push_str(rest);
        filled
    }

    /// Fills every text inside a value; a text that is one variable takes the variable's type.
    pub fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => match text.rfind('{') {
                Some(0) if text.ends_with('}') => {
                    self.lookup(text).unwrap_or_else(|| Value::String(text.clone()))
                }
                _ => Value::String(self.text(text)),
            },
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(fields) => {
                fields.iter().map(|(name, field)| (name.clone(), self.value(field))).collect()
            }
            other => other.clone(),
        }
    }

    fn lookup(&self, braced: &str) -> Option<Value> {
        let name = braced.strip_prefix('{')?.strip_suffix('}')?;
        let last = || self.conversation.done.last().map(|done| done.text.as_str());
        if name == "result" {
            return Some(Value::String(last()?.to_owned()));
        }
        if name == "noise" {
            return Some(Value::String(self.noise()));
        }
        if let Some(pointer) = name.strip_prefix("result:") {
            return serde_json::from_str::<Value>(last()?).ok()?.pointer(pointer).cloned();
        }
        if let Some((name, add)) = name.split_once('+') {
            let sum = self.captured.get(name)?.parse::<i64>().ok()?.checked_add(add.parse().ok()?)?;
            return Some(Value::String(sum.to_string()));
        }
        self.captured.get(name).cloned().map(Value::String)
    }

    /// Words that depend on the captures alone: messages differ, a repeated request gets the same ones. Letters only:
    /// sixteen hexadecimal digits in a row may be the number of a payment card, which an agent does not send.
    fn noise(&self) -> String {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        for (name, value) in &self.captured {
            hash.update(name.as_bytes());
            hash.update([0]);
            hash.update(value.as_bytes());
            hash.update([0]);
        }
        let letter = |nibble: u8| char::from(b'a' + nibble);
        let word = |bytes: &[u8]| {
            bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(letter).collect::<String>()
        };
        let words: Vec<String> = hash.finalize().chunks(4).map(word).collect();
        words.join(" ")
    }
}
