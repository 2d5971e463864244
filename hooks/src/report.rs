//! What a hook tells the node about one event.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::event::{Event, EventInput, Runtime};
use crate::tag::ulid_of_prompt;

/// Longest last message that is reported, in bytes.
const MAX_MESSAGE: usize = 2_000;
/// Longest of the other texts, in bytes.
const MAX_TEXT: usize = 1_024;

/// Body of `POST /hooks/events` (`hooks-identity-memory.md` §3.12).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HookReport {
    /// Unique per firing: a report may arrive a second time through the spool.
    pub id: String,
    /// When the hook ran, milliseconds since 1970.
    pub at_ms: u64,
    /// The event.
    pub event: Event,
    /// The program that called the hook.
    pub runtime: Runtime,
    /// The runtime's own session id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The node's session id, from the environment; absent for sessions that the node did not start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instar_session_id: Option<String>,
    /// The runtime's transcript file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcript_path: Option<String>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Tool events: the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_name: Option<String>,
    /// Tool events: id of the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_use_id: Option<String>,
    /// Tool events on a file: its path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_path: Option<String>,
    /// Inside a subagent: its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// Inside a subagent: its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_type: Option<String>,
    /// `SubagentStop`: the subagent's transcript.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_transcript_path: Option<String>,
    /// `SessionStart`: `startup`, `resume`, `clear`, `compact` or `fork`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `SessionEnd`: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `PreCompact`, `PostCompact`: `manual` or `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// `Notification`: its kind, for example `permission_prompt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification_type: Option<String>,
    /// `TaskCompleted`: the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// `TaskCompleted`: its subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// `UserPromptSubmit`: SHA-256 of the prompt, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_sha256: Option<String>,
    /// `UserPromptSubmit`: ULID of the inbox row in the prompt's tag, the proof of delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ulid: Option<String>,
    /// `Stop`, `SubagentStop`: the last message, at most 2 000 bytes, secrets replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_assistant_message: Option<String>,
    /// Time from the start of the process to this report, in milliseconds.
    pub hook_ms: f64,
    /// What the hooks of this event decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<HookDecision>,
}

/// The answer of one hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookDecision {
    /// Name of the hook.
    pub hook: String,
    /// `allow`, `ask`, `deny`, `block` or `context`.
    pub verdict: String,
    /// Why, for a person; secrets replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What the process knows beside the input.
#[derive(Debug, Clone, Default)]
pub struct ReportFacts {
    /// Unique id of this firing.
    pub id: String,
    /// Now, milliseconds since 1970.
    pub at_ms: u64,
    /// The program that called.
    pub runtime: Runtime,
    /// The node's session id.
    pub instar_session_id: Option<String>,
    /// Milliseconds since the process started.
    pub hook_ms: f64,
    /// What was decided.
    pub decisions: Vec<HookDecision>,
}

impl HookReport {
    /// The report of one event. A prompt is reported by its hash and ULID, never by its text.
    pub fn new(event: Event, input: &EventInput, facts: ReportFacts) -> Self {
        let text = |name: &str| input.text(name).map(|text| clip(text, MAX_TEXT).to_owned());
        let prompt = input.text("prompt").filter(|_| event == Event::UserPromptSubmit);
        let last = input.text("last_assistant_message");
        Self {
            id: facts.id,
            at_ms: facts.at_ms,
            event,
            runtime: facts.runtime,
            session_id: text("session_id"),
            instar_session_id: facts.instar_session_id,
            transcript_path: text("transcript_path"),
            cwd: text("cwd"),
            tool_name: text("tool_name"),
            tool_use_id: text("tool_use_id"),
            file_path: ["file_path", "notebook_path", "path"]
                .iter()
                .find_map(|name| input.tool_text(name))
                .map(|path| clip(path, MAX_TEXT).to_owned()),
            agent_id: text("agent_id"),
            agent_type: text("agent_type"),
            agent_transcript_path: text("agent_transcript_path"),
            source: text("source"),
            reason: text("reason"),
            trigger: text("trigger"),
            notification_type: text("notification_type"),
            task_id: text("task_id"),
            subject: text("subject").or_else(|| text("task_subject")),
            prompt_sha256: prompt.map(sha256_hex),
            ulid: prompt.and_then(ulid_of_prompt).map(str::to_owned),
            last_assistant_message: last.map(|text| {
                clip(&instar_redact::redact(clip(text, 8 * MAX_MESSAGE)), MAX_MESSAGE).to_owned()
            }),
            hook_ms: facts.hook_ms,
            decisions: facts.decisions,
        }
    }
}

/// SHA-256 of a text, hex.
pub fn sha256_hex(text: &str) -> String {
    use std::fmt::Write as _;
    Sha256::digest(text.as_bytes()).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The start of a text, at most `max` bytes, cut between characters.
pub(crate) fn clip(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_reported_by_hash_and_ulid_only() {
        let json = br#"{"session_id":"s","prompt":"[system:x #01HXAMZ9V4B7Q2K3M5N6P7R8ST] my secret plan","cwd":"/w"}"#;
        let input = EventInput::parse(json).expect("an object");
        let report = HookReport::new(Event::UserPromptSubmit, &input, ReportFacts::default());
        assert_eq!(report.ulid.as_deref(), Some("01HXAMZ9V4B7Q2K3M5N6P7R8ST"));
        assert_eq!(report.prompt_sha256.as_ref().map(String::len), Some(64));
        let sent = serde_json::to_string(&report).expect("a report is JSON");
        assert!(!sent.contains("secret plan"), "{sent}");
        assert_eq!(serde_json::from_str::<HookReport>(&sent).ok(), Some(report));
    }

    #[test]
    fn last_messages_are_clipped_and_free_of_secrets() {
        let key = format!("ghp_{}", "a1".repeat(20));
        let json = serde_json::json!({ "last_assistant_message": format!("{key} {}", "é".repeat(3_000)) });
        let input = EventInput::parse(json.to_string().as_bytes()).expect("an object");
        let text = HookReport::new(Event::Stop, &input, ReportFacts::default()).last_assistant_message;
        let text = text.expect("a message");
        assert!(text.len() <= MAX_MESSAGE && text.starts_with("[REDACTED:github-token:1]"), "{text}");
    }
}
