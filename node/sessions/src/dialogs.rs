//! Questions that a runtime shows in its terminal before it is ready, and which of them may be answered.
//!
//! They are recognised while a session boots and at no other time. The refusing choice stands first in most of
//! them, so a choice is made by its words: the cursor is moved until it stands on them.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde::Deserialize;

/// A known question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialog {
    /// Name for logs.
    pub name: Cow<'static, str>,
    /// Regular expression that the screen matches.
    pub screen: Cow<'static, str>,
    /// What to do.
    pub answer: Answer,
}

/// What to do about a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Choose the line that contains these words.
    Choose(Cow<'static, str>),
    /// Press this key.
    Press(Cow<'static, str>),
    /// Leave it to the owner.
    Ask,
}

/// Keys to send now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing known is on the screen.
    Nothing,
    /// Send this key and look again.
    Key {
        /// Which question.
        dialog: String,
        /// tmux name of the key.
        key: String,
    },
    /// A question that only the owner may answer.
    Ask {
        /// Which question.
        dialog: String,
    },
}

const fn known(name: &'static str, screen: &'static str, answer: Answer) -> Dialog {
    Dialog { name: Cow::Borrowed(name), screen: Cow::Borrowed(screen), answer }
}

/// Questions of Claude Code, checked against 2.1.330.
pub static CLAUDE: [Dialog; 6] = [
    known(
        "trust",
        r"(?s)(Quick safety check|Do you trust the files).*Yes",
        Answer::Choose(Cow::Borrowed("Yes")),
    ),
    known(
        "bypass",
        r"(?s)Bypass Permissions mode.*Yes, I accept",
        Answer::Choose(Cow::Borrowed("Yes, I accept")),
    ),
    known("api-key", r"(?s)Detected a custom API key.*Yes", Answer::Ask),
    known("theme", r"Choose the text style", Answer::Press(Cow::Borrowed("Enter"))),
    known("login", r"Select login method", Answer::Ask),
    known("mcp-servers", r"New MCP servers? found in (this project|\.mcp\.json)", Answer::Ask),
];

/// An entry of `state/startup-dialogs.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    name: String,
    runtime: Option<String>,
    regex: String,
    choose: Option<String>,
    key: Option<String>,
}

/// Longest file of the owner's own answers, in bytes.
const MAX_FILE: u64 = 64 * 1024;
/// Most of them.
const MAX_ENTRIES: usize = 100;
/// Largest compiled pattern, in bytes.
const MAX_PATTERN: usize = 256 * 1024;

/// Reads the owner's own answers for a runtime: a list of `{name, regex, runtime?, choose? | key?}`, where an entry
/// with neither leaves the question to the owner. The error says what is wrong.
pub fn parse(bytes: &[u8], framework: &str) -> Result<Vec<Dialog>, String> {
    let entries: Vec<Entry> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if entries.len() > MAX_ENTRIES {
        return Err(format!("more than {MAX_ENTRIES} entries"));
    }
    let mut dialogs = Vec::new();
    for Entry { name, runtime, regex, choose, key } in entries {
        if RegexBuilder::new(&regex).size_limit(MAX_PATTERN).build().is_err() {
            return Err(format!("{name:?}: regex is not a regular expression, or too large a one"));
        }
        let answer = match (choose, key) {
            (Some(words), None) if !words.trim().is_empty() => Answer::Choose(words.into()),
            (None, Some(key)) if crate::sessions::KEYS.contains(&key.as_str()) => Answer::Press(key.into()),
            (None, None) => Answer::Ask,
            (None, Some(key)) => return Err(format!("{name:?}: {key:?} is not a key")),
            _ => return Err(format!("{name:?}: give either the words to choose, or a key")),
        };
        if runtime.is_none_or(|runtime| runtime == framework) {
            dialogs.push(Dialog { name: name.into(), screen: regex.into(), answer });
        }
    }
    Ok(dialogs)
}

/// The owner's own answers in this file; none if there is no file.
pub(crate) fn read(path: &Path, framework: &str) -> Result<Vec<Dialog>, String> {
    match fs::metadata(path).and_then(|facts| Ok((facts.len(), fs::read(path)?))) {
        Ok((length, _)) if length > MAX_FILE => Err(format!("longer than {MAX_FILE} bytes")),
        Ok((_, bytes)) => parse(&bytes, framework),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.to_string()),
    }
}

/// The next step for what is on the screen. The first question that matches counts.
pub fn step<'a>(table: impl IntoIterator<Item = &'a Dialog>, screen: &str) -> Step {
    let matches = |dialog: &&Dialog| Regex::new(&dialog.screen).is_ok_and(|pattern| pattern.is_match(screen));
    let Some(Dialog { name, answer, .. }) = table.into_iter().find(matches) else { return Step::Nothing };
    let key = match answer {
        Answer::Ask => None,
        Answer::Press(key) => Some(key.as_ref()),
        Answer::Choose(words) => direction(screen, words),
    };
    let dialog = name.to_string();
    match key {
        Some(key) => Step::Key { dialog, key: key.to_owned() },
        None => Step::Ask { dialog },
    }
}

/// `Enter` when the cursor stands on the wanted line, else the way to it.
fn direction(screen: &str, words: &str) -> Option<&'static str> {
    let lines: Vec<&str> = screen.lines().collect();
    let cursor = lines.iter().rposition(|line| line.trim_start().starts_with('❯'))?;
    let wanted = lines.iter().rposition(|line| {
        let option = line.trim_start().trim_start_matches('❯').trim_start();
        let option = option.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').trim_start();
        option.starts_with(words)
    })?;
    Some(match wanted.cmp(&cursor) {
        std::cmp::Ordering::Equal => "Enter",
        std::cmp::Ordering::Greater => "Down",
        std::cmp::Ordering::Less => "Up",
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(dialog: &str, key: &str) -> Step {
        Step::Key { dialog: dialog.into(), key: key.into() }
    }

    const TRUST: &str = " Quick safety check: Is this a project you created or one you trust?\n Security guide\n \
                         ❯ No, exit\n   Yes, I trust this folder\n Enter to confirm · Esc to cancel\n";

    #[test]
    fn the_choice_is_made_by_its_words_wherever_the_cursor_stands() {
        assert_eq!(step(&CLAUDE, TRUST), key("trust", "Down"));
        let moved = TRUST.replace("❯ No, exit", "  No, exit").replace("  Yes", "❯ Yes");
        assert_eq!(step(&CLAUDE, &moved), key("trust", "Enter"));
        let older = "Do you trust the files in this folder?\n ❯ 1. Yes, proceed\n   2. No, exit\n";
        assert_eq!(step(&CLAUDE, older), key("trust", "Enter"));
        let older = "Do you trust the files in this folder?\n   1. Yes, proceed\n ❯ 2. No, exit\n";
        assert_eq!(step(&CLAUDE, older), key("trust", "Up"));
    }

    #[test]
    fn unknown_screens_get_no_key() {
        assert_eq!(step(&CLAUDE, "Something new\n ❯ No\n   Yes\n"), Step::Nothing);
        assert_eq!(
            step(&CLAUDE, "Select login method:\n ❯ 1. Subscription\n"),
            Step::Ask { dialog: "login".into() }
        );
        assert_eq!(step(&CLAUDE, "Quick safety check … Yes"), Step::Ask { dialog: "trust".into() });
    }

    #[test]
    fn every_pattern_is_a_regular_expression() {
        for dialog in &CLAUDE {
            assert!(Regex::new(&dialog.screen).is_ok(), "{}", dialog.name);
        }
    }

    #[test]
    fn the_owners_answers_go_before_ours() {
        let own = br#"[
            {"name": "other", "runtime": "codex-cli", "regex": "safety"},
            {"name": "mine", "runtime": "claude-code", "regex": "safety", "key": "y"},
            {"name": "leave", "regex": "Choose the text style"}
        ]"#;
        let own = parse(own, "claude-code").expect("a table");
        let all = || own.iter().chain(&CLAUDE);
        assert_eq!(step(all(), TRUST), key("mine", "y"));
        assert_eq!(step(all(), "Choose the text style"), Step::Ask { dialog: "leave".into() });
    }

    #[test]
    fn a_wrong_table_is_refused_by_name() {
        for (text, word) in [
            (r#"[{"name": "a", "regex": "("}]"#, "\"a\": regex"),
            (r#"[{"name": "a", "regex": "x", "key": "rm"}]"#, "is not a key"),
            (r#"[{"name": "a", "regex": "x", "key": "y", "choose": "Yes"}]"#, "either"),
            (r#"[{"name": "a", "regex": "x", "keys": ["y"]}]"#, "unknown field"),
            (r#"[{"name": "a", "regex": "(a{1000}){1000}"}]"#, "too large"),
        ] {
            let said = parse(text.as_bytes(), "claude-code").expect_err(text);
            assert!(said.contains(word), "{said}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..200), screen in ".{0,80}") {
            if let Ok(table) = parse(&bytes, "claude-code") {
                let _ = step(&table, &screen);
            }
        }
    }
}
