//! Braces: `a{b,c}d`.

use super::{Unreadable, Word};

/// Longest word whose braces are expanded, in bytes: the search for partners is quadratic.
const MAX_BRACE_WORD: usize = 1_024;
/// Most words that braces expand to.
const MAX_BRACE_WORDS: usize = 64;

/// The words of `a{b,c}d`. A word with quotes is left alone.
pub(super) fn expand_braces(word: Word) -> Result<Vec<Word>, Unreadable> {
    if word.quoted_from.is_some() || !(word.text.contains('{') && word.text.contains(',')) {
        return Ok(vec![word]);
    }
    if word.text.len() > MAX_BRACE_WORD {
        return Err(Unreadable::TooMuch);
    }
    let mut ready = Vec::new();
    let mut open = vec![word];
    while let Some(word) = open.pop() {
        let Some((before, choices, after)) = first_brace(&word.text) else {
            ready.push(word);
            continue;
        };
        if ready.len() + open.len() + choices.len() > MAX_BRACE_WORDS {
            return Err(Unreadable::TooMuch);
        }
        // Last first, so that the words come out in the order of the choices.
        open.extend(
            choices
                .iter()
                .rev()
                .map(|choice| Word { text: format!("{before}{choice}{after}"), ..word.clone() }),
        );
    }
    ready.retain(|word| !word.text.is_empty());
    Ok(ready)
}

fn first_brace(text: &str) -> Option<(&str, Vec<&str>, &str)> {
    for (start, _) in text.match_indices('{') {
        if text[..start].ends_with('$') {
            continue;
        }
        let (mut depth, mut from, mut choices) = (0usize, start + 1, Vec::new());
        for (at, letter) in text[start..].char_indices().map(|(at, letter)| (start + at, letter)) {
            match letter {
                '{' => depth += 1,
                ',' if depth == 1 => {
                    choices.push(&text[from..at]);
                    from = at + 1;
                }
                '}' => {
                    depth -= 1;
                    if depth == 0 {
                        if choices.is_empty() {
                            break;
                        }
                        choices.push(&text[from..at]);
                        return Some((&text[..start], choices, &text[at + 1..]));
                    }
                }
                _ => {}
            }
        }
    }
    None
}
