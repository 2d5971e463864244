//! Fuzz bodies: one function per parser of foreign bytes, run by cargo-fuzz (`tests/fuzz`) and by plain `cargo test`.
//!
//! A body panics when an invariant breaks; refusing the input is fine. To add one: the function, its line in
//! [`BODIES`], and at least one seed in `tests/fuzz/corpus/<name>/`.

pub mod mail;
pub mod protocol;
pub mod relay;
pub mod v2;

use std::path::Path;

use std::sync::Arc;

use instar_outbound::{
    ChannelId, Origin, OutboundMessage, Pel, PelConfig, Recipient, RecipientKind, ReplyTarget, SendFlags,
};
use instar_sessions::record::Activity;
use instar_sessions::{dialogs, process, signals, stream, tokens, transcript};
use serde_json::Value;
use threadline::identity::{CanonicalFile, Identity, LoginNonce};
use threadline::service::{MAX_MESSAGE_BYTES, TIMEOUT_SECONDS, Tool, ToolCall};
use threadline::v1::envelope::{Authentication, Envelope, authenticate};
use threadline::v1::frames::{ClientFrame, ServerFrame};

use crate::script::{Conversation, Script};

/// A fuzz body.
pub type Body = fn(&[u8]);

/// Every body by its name, which is also the name of its fuzz target and of its corpus folder.
pub const BODIES: &[(&str, Body)] = &[
    ("client_frame", client_frame),
    ("server_frame", server_frame),
    ("envelope", envelope),
    ("identity_file", identity_file),
    ("hook_input", hook_input),
    ("guarded_command", guarded_command),
    ("node_config", node_config),
    ("agent_registry", agent_registry),
    ("outgoing_text", outgoing_text),
    ("tool_arguments", tool_arguments),
    ("rules", rules),
    ("relay_link", protocol::relay_link),
    ("peer_words", protocol::peer_words),
    ("audit_chain", protocol::audit_chain),
    ("invitation", protocol::invitation),
    ("handshake", protocol::handshake),
    ("signed_request", protocol::signed_request),
    ("local_message", protocol::local_message),
    ("runtime_event", runtime_event),
    ("transcript_line", transcript_line),
    ("startup_dialogs", startup_dialogs),
    ("relay_session", relay::relay_session),
    ("relay_v2_session", relay::relay_v2_session),
    ("relay_request", relay::relay_request),
    ("relay_search", relay::relay_search),
    ("relay_a2a", relay::relay_a2a),
    ("v2_frame", v2::v2_frame),
    ("v2_raw_key", v2::v2_raw_key),
    ("v2_envelope", v2::v2_envelope),
    ("v2_object", v2::v2_object),
    ("v2_content", v2::v2_content),
    ("v2_blob", v2::v2_blob),
    ("v2_well_known", v2::v2_well_known),
    ("v2_prekey_bundle", mail::v2_prekey_bundle),
    ("v2_relay_link", mail::v2_relay_link),
    ("relay_log", relay::relay_log),
    ("relay_frames", relay::relay_frames),
];

/// The body of that name.
pub fn body(name: &str) -> Option<Body> {
    BODIES.iter().find(|(known, _)| *known == name).map(|(_, body)| *body)
}

/// What a runtime says in its streaming mode, a line at a time: whatever it is, the session's activity is a known one
/// and only a turn's own end makes it idle or stalled.
pub fn runtime_event(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut activity = Activity::Busy;
    for event in text.lines().filter_map(stream::parse) {
        for signal in signals::of_stream(event) {
            let after = signals::activity_after(activity, &signal);
            let ends = matches!(signal, signals::Signal::TurnEnded { .. });
            assert!(
                activity != Activity::Busy
                    || ends
                    || !matches!(after, Activity::Idle | Activity::ErrorStalled)
            );
            activity = after;
        }
    }
}

/// A line of a runtime's transcript, and the same bytes as a process table entry and as a token.
pub fn transcript_line(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for line in text.lines() {
        let _ = transcript::parse_line(line);
        let _ = process::parse_stat(line);
        if let Some(id) = tokens::claimed_session(line) {
            assert!(line.starts_with("ist_") && line.len() > id.to_string().len());
        }
    }
}

/// The owner's own answers to startup questions, held against a screen of the same bytes.
pub fn startup_dialogs(data: &[u8]) {
    let split = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    let (table, screen) = data.split_at(split);
    if let Ok(table) = dialogs::parse(table, "claude-code") {
        let screen = String::from_utf8_lossy(screen);
        if let dialogs::Step::Key { key, .. } = dialogs::step(&table, &screen) {
            assert!(instar_sessions::KEYS.contains(&key.as_str()));
        }
    }
}

/// What a client sends to a relay.
pub fn client_frame(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Ok(frame) = ClientFrame::parse(text) else { return };
    let written = frame.to_text();
    let again = ClientFrame::parse(&written).expect("a written frame can be read");
    assert_eq!(again.to_text(), written, "writing is stable");
}

/// What a relay sends to a client.
pub fn server_frame(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Ok(frame) = ServerFrame::parse(text) else { return };
    if let ServerFrame::Challenge(nonce) = &frame
        && let Some(nonce) = LoginNonce::parse(nonce)
    {
        assert_eq!(nonce.as_str().len(), 44, "only a nonce is ever signed");
    }
    let written = frame.to_text();
    let again = ServerFrame::parse(&written).expect("a written frame can be read");
    assert_eq!(again.to_text(), written, "writing is stable");
}

/// An envelope that a stranger made, up to its content.
pub fn envelope(data: &[u8]) {
    let Ok(envelope) = Envelope::parse(data) else { return };
    let bytes = envelope.to_bytes();
    assert_eq!(Envelope::parse(&bytes).expect("a stored envelope can be read").to_bytes(), bytes);
    let Ok(header) = envelope.header() else { return };
    let us = Identity::from_seed(&[7; 32]);
    let sender = Identity::from_seed(&[8; 32]);
    let taken = authenticate(&envelope, &header.to, Some(sender.public()), header.timestamp);
    if let Ok(authentic) = taken {
        if authentic.authentication() == Authentication::E2e {
            assert_eq!(header.from, sender.fingerprint(), "a signature is of the sender's key");
        }
        let _ = authentic.open(&us);
    }
}

/// Identity files, of ours and of older installs.
pub fn identity_file(data: &[u8]) {
    let _ = threadline::identity::parse_legacy(data);
    if let Ok(file) = CanonicalFile::parse(data) {
        assert_eq!(file.public().canonical_id().len(), 64);
    }
}

/// A shell command before the guard: whatever it is, the worst one after it is still refused.
pub fn guarded_command(data: &[u8]) {
    use instar_hooks::guard::{Judgement, Places, judge};

    let command = String::from_utf8_lossy(data);
    let places = Places {
        home: "/home/ann".into(),
        project: "/home/ann/app".into(),
        state: "/home/ann/app/.instar".into(),
        cwd: "/home/ann/app".into(),
    };
    let config = instar_hooks::HookConfig::default();
    if judge(&command, &places, &config) == Judgement::Pass {
        let after = format!("{{ rm -rf /; }}\n{command}");
        assert!(matches!(judge(&after, &places, &config), Judgement::Deny(_)), "{after:?} passed");
    }
}

/// What a runtime hands to a hook, and the hook's own files.
pub fn hook_input(data: &[u8]) {
    let _ = instar_hooks::snapshot::decode(data);
    if let Ok(input) = instar_hooks::EventInput::parse(data)
        && let Some(ulid) = input.text("prompt").and_then(instar_hooks::ulid_of_prompt)
    {
        assert_eq!(ulid.len(), 26);
    }
}

/// `config.json`, as a person left it.
pub fn node_config(data: &[u8]) {
    let _ = instar_state::config::parse(data, Path::new("config.json"));
}

/// The account's list of agents.
pub fn agent_registry(data: &[u8]) {
    let _ = instar_state::registry::parse(data);
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
