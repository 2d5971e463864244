//! Events of the runtimes and their input, read once at the edge.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Largest hook input that is read, in bytes.
pub const MAX_INPUT: usize = 8 * 1024 * 1024;

macro_rules! events {
    ($($name:ident: $about:literal),+ $(,)?) => {
        /// An event that we register for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Event {
            $(#[doc = $about] $name,)+
        }

        impl Event {
            /// Every event, in the order of the registration table.
            pub const ALL: &'static [Event] = &[$(Event::$name),+];

            /// The runtime's name of it.
            pub fn name(self) -> &'static str {
                match self { $(Event::$name => stringify!($name),)+ }
            }
        }
    };
}

events! {
    SessionStart: "A session starts, resumes, or goes on after `/clear` or a compaction.",
    UserPromptSubmit: "A prompt is about to reach the model.",
    PreToolUse: "A tool is about to run.",
    PermissionRequest: "The runtime would ask a person about a tool.",
    PostToolUse: "A tool has run.",
    Stop: "A turn ends.",
    SubagentStart: "A subagent starts.",
    SubagentStop: "A subagent ends.",
    WorktreeCreate: "A worktree is made.",
    WorktreeRemove: "A worktree is removed.",
    TaskCompleted: "A task of the runtime's list is done.",
    SessionEnd: "A session ends.",
    PreCompact: "The context is about to be compacted.",
    PostCompact: "The context was compacted.",
    Notification: "The runtime tells the person something.",
    InstructionsLoaded: "The runtime has read its instruction files.",
}

impl Event {
    /// Whether our answer can stop something, so that a failure of ours must stop it too.
    pub fn is_safety(self) -> bool {
        matches!(self, Event::PreToolUse | Event::PermissionRequest)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Event {
    type Err = UnknownEvent;

    fn from_str(text: &str) -> Result<Self, UnknownEvent> {
        Event::ALL
            .iter()
            .copied()
            .find(|event| event.name() == text)
            .ok_or_else(|| UnknownEvent(text.chars().take(64).collect()))
    }
}

/// A name that is none of our events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownEvent(String);

impl fmt::Display for UnknownEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not an event that instar-hook knows", self.0)
    }
}

impl std::error::Error for UnknownEvent {}

/// The program that calls the hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// Claude Code.
    #[default]
    Claude,
    /// Codex CLI, which refuses unknown fields and knows no `ask`.
    Codex,
}

impl FromStr for Runtime {
    type Err = UnknownEvent;

    fn from_str(text: &str) -> Result<Self, UnknownEvent> {
        match text {
            "claude" | "claude-code" => Ok(Runtime::Claude),
            "codex" | "codex-cli" => Ok(Runtime::Codex),
            other => Err(UnknownEvent(other.chars().take(64).collect())),
        }
    }
}

/// The JSON object that a runtime writes to a hook's standard input.
#[derive(Debug, Clone, Default)]
pub struct EventInput {
    fields: Map<String, Value>,
}

/// Why a hook's input could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadInput {
    /// Longer than [`MAX_INPUT`].
    TooLong,
    /// Not one JSON object in UTF-8.
    NotAnObject,
    /// Not complete in time.
    TimedOut,
    /// Reading failed.
    Unreadable,
}

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadInput::TooLong => "the hook's input is longer than 8 MiB",
            BadInput::NotAnObject => "the hook's input is not a JSON object",
            BadInput::TimedOut => "the hook's input did not arrive within a second",
            BadInput::Unreadable => "the hook's input could not be read",
        })
    }
}

impl std::error::Error for BadInput {}

impl EventInput {
    /// Parses the bytes of standard input.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadInput> {
        if bytes.len() > MAX_INPUT {
            return Err(BadInput::TooLong);
        }
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(fields)) => Ok(Self { fields }),
            _ => Err(BadInput::NotAnObject),
        }
    }

    /// A field that is a non-empty text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// A field of any type.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name)
    }

    /// The runtime's own session id.
    pub fn session_id(&self) -> Option<&str> {
        self.text("session_id")
    }

    /// Name of the tool.
    pub fn tool_name(&self) -> Option<&str> {
        self.text("tool_name")
    }

    /// A text inside `tool_input`.
    pub fn tool_text(&self, name: &str) -> Option<&str> {
        self.fields.get("tool_input")?.get(name)?.as_str().filter(|text| !text.is_empty())
    }

    /// The shell command of a shell tool of either runtime: `command` or `cmd`, a text or a list of arguments.
    pub fn shell_command(&self) -> Option<String> {
        let input = self.fields.get("tool_input")?;
        let command = input.get("command").or_else(|| input.get("cmd"))?;
        match command {
            Value::String(text) => Some(text.clone()),
            Value::Array(words) => {
                let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
                match words.as_slice() {
                    [shell, flag, script]
                        if shell.ends_with("sh") && flag.starts_with('-') && flag.ends_with('c') =>
                    {
                        Some((*script).to_owned())
                    }
                    words => Some(words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")),
                }
            }
            _ => None,
        }
    }

    /// The runtime by the shape of the input: only Codex sends `turn_id`.
    pub fn looks_like(&self) -> Runtime {
        if self.fields.contains_key("turn_id") { Runtime::Codex } else { Runtime::Claude }
    }
}

/// The word in single quotes, for a shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_parse_back() {
        for event in Event::ALL {
            assert_eq!(event.name().parse::<Event>().as_ref(), Ok(event));
            assert_eq!(serde_json::to_value(event).ok(), Some(Value::from(event.name())));
        }
        assert!("PreTooluse".parse::<Event>().is_err());
    }

    #[test]
    fn input_must_be_one_object_of_bounded_size() {
        assert_eq!(EventInput::parse(b"[]").err(), Some(BadInput::NotAnObject));
        assert_eq!(EventInput::parse(b"").err(), Some(BadInput::NotAnObject));
        assert_eq!(EventInput::parse(b"{} {}").err(), Some(BadInput::NotAnObject));
        assert_eq!(EventInput::parse(&[0xff, 0xfe]).err(), Some(BadInput::NotAnObject));
        assert_eq!(EventInput::parse(&vec![b' '; MAX_INPUT + 1]).err(), Some(BadInput::TooLong));
    }

    #[test]
    fn commands_of_both_runtimes_are_found() {
        let command =
            |json: &str| EventInput::parse(json.as_bytes()).ok().and_then(|input| input.shell_command());
        assert_eq!(command(r#"{"tool_input":{"command":"ls -l"}}"#).as_deref(), Some("ls -l"));
        assert_eq!(
            command(r#"{"tool_input":{"cmd":["bash","-lc","rm -rf /"]}}"#).as_deref(),
            Some("rm -rf /")
        );
        assert_eq!(command(r#"{"tool_input":{"cmd":["rm","a b"]}}"#).as_deref(), Some("'rm' 'a b'"));
        assert_eq!(command(r#"{"tool_input":{"file_path":"x"}}"#), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = EventInput::parse(&bytes).map(|input| input.shell_command());
        }

        #[test]
        fn any_object_is_taken(name in "[a-z_]{1,12}", text in "\\PC{0,40}") {
            let json = serde_json::json!({ name.clone(): text, "tool_input": { "command": [1, text] } });
            let input = EventInput::parse(json.to_string().as_bytes());
            prop_assert!(input.is_ok());
        }
    }
}
