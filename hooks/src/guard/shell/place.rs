//! Where a word belongs in its command: reserved word, assignment, or word.

use super::{Simple, Word};

pub(super) enum Placed {
    CaseStarts,
    CaseEnds,
    Assigned(String, String),
    Other,
}

/// Puts a word into a command: reserved words go, assignments before the command are kept apart.
pub(super) fn place(current: &mut Simple, word: Word) -> Placed {
    const RESERVED: [&str; 15] = [
        "if", "then", "elif", "else", "fi", "do", "done", "while", "until", "!", "{", "}", "coproc", "esac",
        "function",
    ];
    if !current.words.is_empty() {
        current.words.push(word);
        return Placed::Other;
    }
    let bare = word.quoted_from.is_none() && !word.dynamic;
    if bare && RESERVED.contains(&word.text.as_str()) {
        return if word.text == "esac" { Placed::CaseEnds } else { Placed::Other };
    }
    if is_assignment(&word) {
        let (name, value) = word.text.split_once('=').unwrap_or_default();
        let (name, value) = (name.trim_end_matches('+').to_owned(), value.to_owned());
        let known = (!word.dynamic).then(|| value.clone());
        current.assignments.push((name.clone(), Word { text: value, ..word }));
        return known.map_or(Placed::Other, |value| Placed::Assigned(name, value));
    }
    let starts_case = bare && word.text == "case";
    current.words.push(word);
    if starts_case { Placed::CaseStarts } else { Placed::Other }
}

pub(super) fn is_assignment(word: &Word) -> bool {
    let Some((name, _)) = word.text.split_once('=') else { return false };
    let equals = name.len();
    let name = name.trim_end_matches('+');
    word.quoted_from.is_none_or(|quoted| quoted > equals)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
