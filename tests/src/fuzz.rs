//! Fuzz bodies: one function per parser of foreign bytes, run by cargo-fuzz (`tests/fuzz`) and by plain `cargo test`.
//!
//! A body panics when an invariant breaks; refusing the input is fine. To add one: the function, its line in
//! [`BODIES`], a line in `tests/fuzz/Cargo.toml`, and at least one seed in `tests/fuzz/corpus/<name>/`.

use std::sync::Arc;

use instar_outbound::{
    ChannelId, Origin, OutboundMessage, Pel, PelConfig, Recipient, RecipientKind, ReplyTarget, SendFlags,
};
use serde_json::Value;
use threadline::service::{MAX_MESSAGE_BYTES, TIMEOUT_SECONDS, Tool, ToolCall};

use crate::script::{Conversation, Script};

/// A fuzz body.
pub type Body = fn(&[u8]);

/// Every body by its name, which is also the name of its fuzz target and of its corpus folder.
pub const BODIES: &[(&str, Body)] =
    &[("rules", rules), ("outgoing_text", outgoing_text), ("tool_arguments", tool_arguments)];

/// Runs the body of that name.
///
/// # Panics
/// If no body has that name, or the body found a defect.
pub fn run(name: &str, data: &[u8]) {
    let (_, body) = BODIES
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("no fuzz body is called {name}; see tests/src/fuzz.rs"));
    body(data);
}

/// Rule files of the doubles and the conversations they are matched against.
pub fn rules(data: &[u8]) {
    let Ok(case) = serde_json::from_slice::<Value>(data) else { return };
    let Ok(script) = Script::from_json(case["script"].to_string().as_bytes()) else { return };
    script.reply(&Conversation::from_messages(&case["system"], &case["messages"]));
}

/// The policy layer's detectors over any text that a session may write.
pub fn outgoing_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let message = OutboundMessage {
        text: text.to_owned(),
        subject: None,
        target: ReplyTarget {
            channel: ChannelId::THREADLINE,
            recipient: Recipient {
                kind: RecipientKind::ExternalContact,
                id: String::new(),
                trust: None,
                own_values: Vec::new(),
            },
            conversation: None,
        },
        origin: Origin::Session,
        session_id: None,
        flags: SendFlags::default(),
        idempotency_key: None,
    };
    let policy = Pel::new(PelConfig::default(), Arc::new(|_: &str| Vec::new()));
    for violation in policy.enforce(text, &message) {
        assert!(text.get(violation.span.clone()).is_some(), "{violation:?} lies outside the text");
    }
}

/// Arguments of a tool call as a client or a session sends them: the first byte chooses the tool.
pub fn tool_arguments(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let tool = Tool::ALL[usize::from(*first) % Tool::ALL.len()];
    let Ok(arguments) = serde_json::from_slice::<Value>(rest) else { return };
    let Ok(call) = ToolCall::parse(tool, arguments) else { return };
    assert_eq!(call.tool(), tool);
    if let ToolCall::Send(send) = call {
        assert!(!send.message.trim().is_empty() && send.message.len() <= MAX_MESSAGE_BYTES);
        assert!(send.timeout_seconds.is_none_or(|seconds| TIMEOUT_SECONDS.contains(&seconds)));
    }
}
