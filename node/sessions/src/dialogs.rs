//! Questions that a runtime shows in its terminal before it is ready, and which of them may be answered.
//!
//! They are recognised while a session boots and at no other time. The refusing choice stands first in most of
//! them, so a choice is made by its words: the cursor is moved until it stands on them.

use regex::Regex;

/// A known question.
#[derive(Debug, Clone, Copy)]
pub struct Dialog {
    /// Name for logs.
    pub name: &'static str,
    /// Regular expression that the screen matches.
    pub screen: &'static str,
    /// What to do.
    pub answer: Answer,
}

/// What to do about a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Choose the line that contains these words.
    Choose(&'static str),
    /// Press this key.
    Press(&'static str),
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
        dialog: &'static str,
        /// tmux name of the key.
        key: &'static str,
    },
    /// A question that only the owner may answer.
    Ask {
        /// Which question.
        dialog: &'static str,
    },
}

/// Questions of Claude Code, checked against 2.1.330.
pub static CLAUDE: [Dialog; 6] = [
    Dialog {
        name: "trust",
        screen: r"(?s)(Quick safety check|Do you trust the files).*Yes",
        answer: Answer::Choose("Yes"),
    },
    Dialog {
        name: "bypass",
        screen: r"(?s)Bypass Permissions mode.*Yes, I accept",
        answer: Answer::Choose("Yes, I accept"),
    },
    Dialog { name: "api-key", screen: r"(?s)Detected a custom API key.*Yes", answer: Answer::Ask },
    Dialog { name: "theme", screen: r"Choose the text style", answer: Answer::Press("Enter") },
    Dialog { name: "login", screen: r"Select login method", answer: Answer::Ask },
    Dialog {
        name: "mcp-servers",
        screen: r"New MCP servers? found in (this project|\.mcp\.json)",
        answer: Answer::Ask,
    },
];

/// The next step for what is on the screen.
pub fn step(table: &[Dialog], screen: &str) -> Step {
    let known = table.iter().find(|d| Regex::new(d.screen).is_ok_and(|pattern| pattern.is_match(screen)));
    let Some(dialog) = known else { return Step::Nothing };
    let key = match dialog.answer {
        Answer::Ask => return Step::Ask { dialog: dialog.name },
        Answer::Press(key) => key,
        Answer::Choose(words) => match direction(screen, words) {
            Some(key) => key,
            None => return Step::Ask { dialog: dialog.name },
        },
    };
    Step::Key { dialog: dialog.name, key }
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
    use super::*;

    const TRUST: &str = " Quick safety check: Is this a project you created or one you trust?\n Security guide\n \
                         ❯ No, exit\n   Yes, I trust this folder\n Enter to confirm · Esc to cancel\n";

    #[test]
    fn the_choice_is_made_by_its_words_wherever_the_cursor_stands() {
        assert_eq!(step(&CLAUDE, TRUST), Step::Key { dialog: "trust", key: "Down" });
        let moved = TRUST.replace("❯ No, exit", "  No, exit").replace("  Yes", "❯ Yes");
        assert_eq!(step(&CLAUDE, &moved), Step::Key { dialog: "trust", key: "Enter" });
        let older = "Do you trust the files in this folder?\n ❯ 1. Yes, proceed\n   2. No, exit\n";
        assert_eq!(step(&CLAUDE, older), Step::Key { dialog: "trust", key: "Enter" });
        let older = "Do you trust the files in this folder?\n   1. Yes, proceed\n ❯ 2. No, exit\n";
        assert_eq!(step(&CLAUDE, older), Step::Key { dialog: "trust", key: "Up" });
    }

    #[test]
    fn unknown_screens_get_no_key() {
        assert_eq!(step(&CLAUDE, "Something new\n ❯ No\n   Yes\n"), Step::Nothing);
        assert_eq!(
            step(&CLAUDE, "Select login method:\n ❯ 1. Subscription\n"),
            Step::Ask { dialog: "login" }
        );
        assert_eq!(step(&CLAUDE, "Quick safety check … Yes"), Step::Ask { dialog: "trust" });
    }

    #[test]
    fn every_pattern_is_a_regular_expression() {
        for dialog in &CLAUDE {
            assert!(Regex::new(dialog.screen).is_ok(), "{}", dialog.name);
        }
    }
}
