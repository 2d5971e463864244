//! The command guard: what a shell command would destroy (`hooks-identity-memory.md` §3.1, `coherence-safety.md` §10).
//!
//! A command is parsed, not searched: text in quotes, here-documents and commit messages is data. Only a command that
//! cannot be parsed is judged by its text.

mod commands;
mod paths;
mod scripts;
pub(crate) mod shell;

pub use paths::Places;

use crate::snapshot::{HookConfig, SafetyLevel};

/// Longest command that is checked, in bytes.
const MAX_COMMAND: usize = 1024 * 1024;
/// Most lines of a command.
const MAX_LINES: usize = 10_000;

/// Something that a command would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether it is refused whatever the configuration says.
    pub always: bool,
    /// What it would do, as the end of "this command …".
    pub what: String,
}

/// Answer of the guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing to object to.
    Pass,
    /// Refused.
    Deny(String),
    /// A person must decide.
    Ask(String),
    /// Runs, with a word to the agent.
    Remind(String),
}

/// Judges a shell command.
pub fn judge(command: &str, places: &Places, config: &HookConfig) -> Judgement {
    if command.len() > MAX_COMMAND || command.lines().count() > MAX_LINES {
        return Judgement::Deny(
            "This command is too long to check; split it, or put the data into a file.".to_owned(),
        );
    }
    let lower = command.to_lowercase();
    if let Some(literal) =
        config.always_block.iter().find(|text| !text.is_empty() && lower.contains(&text.to_lowercase()))
    {
        return Judgement::Deny(format!(
            "This command contains {literal:?}, which safety.alwaysBlock forbids."
        ));
    }
    let findings = match inspect(command, places) {
        Ok(findings) => findings,
        Err(unreadable) => {
            return match scripts::always_by_text(command) {
                Some(what) => Judgement::Deny(refusal(what)),
                None => Judgement::Ask(format!(
                    "This command could not be parsed ({}), so it was not checked.",
                    match unreadable {
                        shell::Unreadable::Unterminated => "a quote or bracket does not end",
                        shell::Unreadable::TooDeep => "it is nested too deep",
                        shell::Unreadable::TooMuch => "it holds too many commands",
                    }
                )),
            };
        }
    };
    if let Some(finding) = findings.iter().find(|finding| finding.always) {
        return Judgement::Deny(refusal(&finding.what));
    }
    let Some(finding) = findings.first() else { return Judgement::Pass };
    if is_allowed(command, &config.allow) {
        return Judgement::Pass;
    }
    match config.safety_level {
        SafetyLevel::BlockAndAsk => Judgement::Deny(format!(
            "Not run: this command {}. Tell the user what it would do and ask; the owner can run it, or list it under safety.allow, \
             after which you can run it yourself. Do not work around this.",
            finding.what
        )),
        SafetyLevel::SelfVerify => Judgement::Remind(format!(
            "This command {}. Before you rely on it: was it needed for this task? What cannot be undone? Was it the right project \
             and branch? Would the user agree if they saw it?",
            finding.what
        )),
    }
}

/// What a command would destroy, worst first not guaranteed.
pub(crate) fn inspect(command: &str, places: &Places) -> Result<Vec<Finding>, shell::Unreadable> {
    let mut walk = commands::Walk::new(places);
    if scripts::is_fork_bomb(command) {
        walk.always("is a fork bomb");
    }
    walk.script(command, 0)?;
    Ok(walk.findings)
}

/// Whether the file tools may write this path: the guard covers them as it covers the shell.
pub fn judge_write(path: &str, places: &Places) -> Judgement {
    if places.guards(&shell::Word::literal(path), Some(&places.cwd)) {
        return Judgement::Deny(refusal("changes the agent's own keys, settings or hooks"));
    }
    Judgement::Pass
}

fn refusal(what: &str) -> String {
    format!(
        "Not run: this command {what}. That is never allowed from a session; if it is truly wanted, the owner does it by hand."
    )
}

fn is_allowed(command: &str, allow: &[String]) -> bool {
    let command = command.split_whitespace().collect::<Vec<_>>().join(" ");
    allow.iter().any(|entry| match entry.strip_suffix(" *") {
        // A continuation must not smuggle in a second command.
        Some(start) => command.strip_prefix(start).is_some_and(|rest| {
            (rest.is_empty() || rest.starts_with(' '))
                && !rest.contains([';', '&', '|', '`', '$', '<', '>', '(', '\n'])
        }),
        None => command == *entry,
    })
}

#[cfg(test)]
mod tests;
