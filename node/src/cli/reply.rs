//! What a command answers: one value for programs, one text for people, one exit code for scripts.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

/// Exit codes of every command (`agent-core.md` §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The command ran and did not succeed.
    Failed = 1,
    /// The command line is wrong, or a name is ambiguous.
    Usage = 2,
    /// No agent here, an invalid one, or a missing prerequisite.
    NoAgent = 3,
    /// The node does not run or does not answer.
    NoNode = 4,
    /// A rule forbids it.
    Refused = 5,
    /// The named thing does not exist.
    NotFound = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    /// For `--json`.
    pub(crate) value: Value,
    /// For people; empty prints nothing.
    pub(crate) text: String,
    /// Exit code of an answer that is not a success, for example of a check that found problems.
    pub(crate) exit: Option<Exit>,
}

impl Reply {
    pub(crate) fn new(value: Value, text: impl Into<String>) -> Self {
        Self { value, text: text.into(), exit: None }
    }

    pub(crate) fn failing(self, exit: Exit) -> Self {
        Self { exit: Some(exit), ..self }
    }
}

/// Why a command did not succeed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// Machine-readable.
    pub(crate) code: String,
    /// What failed, on which input, what next.
    pub(crate) message: String,
    pub(crate) facts: Map<String, Value>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, code: &str, message: impl Into<String>) -> Self {
        Self { exit, code: code.to_owned(), message: message.into(), facts: Map::new() }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, "failed", message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", message)
    }

    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(Exit::Refused, "refused", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, "not_found", message)
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(key.to_owned(), value.into());
        self
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut value = json!({"error": self.message, "code": self.code});
        if let Some(object) = value.as_object_mut() {
            object.extend(self.facts.clone());
        }
        value
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<instar_state::config::ConfigError> for Failure {
    fn from(error: instar_state::config::ConfigError) -> Self {
        use instar_state::config::ConfigError as E;
        let (exit, code) = match &error {
            E::Missing { .. } => (Exit::NoAgent, "no_agent"),
            E::Syntax { .. } | E::Invalid { .. } => (Exit::NoAgent, "config_invalid"),
            E::TooNew { .. } => (Exit::NoAgent, "config_too_new"),
            E::Io { .. } | E::Locked { .. } => (Exit::Failed, "config_unwritable"),
            E::NotInForce { .. } => (Exit::Failed, "config_not_in_force"),
            E::Refused { .. } => (Exit::Usage, "usage"),
        };
        let failure = Self::new(exit, code, error.to_string());
        match error {
            E::Invalid { problems, .. } => failure.with("details", json!(problems)),
            _ => failure,
        }
    }
}

impl From<instar_state::secrets::SecretsError> for Failure {
    fn from(error: instar_state::secrets::SecretsError) -> Self {
        use instar_state::secrets::SecretsError as E;
        let (exit, code) = match &error {
            E::Undecryptable { .. } => (Exit::Failed, "vault_undecryptable"),
            E::BadName(_) => (Exit::Usage, "usage"),
            _ => (Exit::Failed, "failed"),
        };
        Self::new(exit, code, error.to_string())
    }
}

impl From<crate::client::ClientError> for Failure {
    fn from(error: crate::client::ClientError) -> Self {
        use crate::client::ClientError as E;
        let code = match error {
            E::NotRunning => "node_not_running",
            E::TimedOut(_) => "timeout",
            E::Socket { .. } | E::Broken(_) => "node_unreachable",
        };
        Self::new(Exit::NoNode, code, error.to_string())
    }
}

impl From<instar_state::registry::RegistryError> for Failure {
    fn from(error: instar_state::registry::RegistryError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<instar_durable::AtomicWriteError> for Failure {
    fn from(error: instar_durable::AtomicWriteError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<instar_durable::LockError> for Failure {
    fn from(error: instar_durable::LockError) -> Self {
        Self::failed(error.to_string())
    }
}

pub(crate) type CommandResult = Result<Reply, Failure>;

/// A table for people; `none` is printed when there are no rows.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]], none: &str) -> String {
    if rows.is_empty() {
        return none.to_owned();
    }
    let mut widths = head.map(|h| h.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head = head.map(str::to_uppercase);
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.pop();
    text
}

/// Text of a stranger on a terminal: control characters become visible.
pub(crate) fn shown(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                '\u{fffd}'
            }
            c => c,
        })
        .collect()
}

/// One line of a stranger's text, cut to `max` characters.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    let flat: String = shown(text).split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.chars().count() <= max {
        return flat;
    }
    flat.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_say_when_they_are_empty() {
        assert_eq!(table(["name"], &[], "no agents"), "no agents");
        let rows = [["ann".to_owned(), "1".to_owned()], ["b".to_owned(), "22".to_owned()]];
        assert_eq!(table(["name", "n"], &rows, ""), "NAME  N\nann   1\nb     22");
    }

    #[test]
    fn a_strangers_text_does_not_drive_the_terminal() {
        assert_eq!(shown("a\u{1b}[2Jb\u{202e}c"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(one_line("two\nlines of text", 8), "two lin…");
    }
}
