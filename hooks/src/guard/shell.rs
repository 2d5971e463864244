//! A reader of shell scripts that finds the commands in them.
//!
//! It knows quoting, expansions, substitutions, here-documents and reserved words, and errs on the side of seeing a
//! command where there may be one. It runs nothing and expands only what the script itself assigns.

use std::collections::HashMap;

/// Deepest nesting of substitutions.
const MAX_DEPTH: usize = 16;
/// Most simple commands of one script.
const MAX_COMMANDS: usize = 50_000;
/// Most here-documents of one script.
const MAX_HEREDOCS: usize = 10;
/// Longest word whose braces are expanded, in bytes: the search for partners is quadratic.
const MAX_BRACE_WORD: usize = 1_024;
/// Most words that braces expand to.
const MAX_BRACE_WORDS: usize = 64;

/// A word after quote removal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Word {
    /// Text; expansions that are not known stand in it as they were written, `$(…)` for a substitution.
    pub text: String,
    /// Whether part of it is an expansion that is not known.
    pub dynamic: bool,
    /// Whether an unquoted `*`, `?` or `[` is in it.
    pub glob: bool,
    /// Where in the text the first quoted part begins.
    pub(super) quoted_from: Option<usize>,
}

impl Word {
    pub(crate) fn literal(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    fn quote(&mut self) {
        self.quoted_from.get_or_insert(self.text.len());
    }
}

/// A file that a command writes, or text that it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Redirect {
    /// `>`, `>>`, `&>`, `<>` …
    Write(Word),
    /// `<<`: index of the body.
    HereDoc(usize),
    /// `<<<`.
    HereString(Word),
}

/// One command with its words, assignments and redirections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Simple {
    pub assignments: Vec<(String, Word)>,
    pub words: Vec<Word>,
    pub redirects: Vec<Redirect>,
    /// Index of the command whose output it reads.
    pub piped_from: Option<usize>,
}

/// All commands of a script, those of substitutions included.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub commands: Vec<Simple>,
    pub heredocs: Vec<String>,
}

/// Why a script could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// A quote, substitution or brace does not end.
    Unterminated,
    /// Nested too deep.
    TooDeep,
    /// Too many commands or here-documents.
    TooMuch,
}

/// Reads a script.
pub(crate) fn read(text: &str) -> Result<Script, Unreadable> {
    let mut reader = Reader::new(text, 0, Script::default(), HashMap::new());
    reader.script(Until::End)?;
    Ok(reader.script)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    End,
    Paren,
}

struct Heredoc {
    index: usize,
    delimiter: String,
    strip_tabs: bool,
    literal: bool,
}

struct Reader {
    chars: Vec<char>,
    at: usize,
    depth: usize,
    script: Script,
    pending: Vec<Heredoc>,
    variables: HashMap<String, String>,
}

impl Reader {
    fn new(text: &str, depth: usize, script: Script, variables: HashMap<String, String>) -> Self {
        Self { chars: text.chars().collect(), at: 0, depth, script, pending: Vec::new(), variables }
    }

    fn peek(&self) -> Option<char> {
        self.ahead(0)
    }

    fn ahead(&self, by: usize) -> Option<char> {
        self.chars.get(self.at + by).copied()
    }

    fn next(&mut self) -> Option<char> {
        let letter = self.peek()?;
        self.at += 1;
        Some(letter)
    }

    fn take(&mut self, text: &str) -> bool {
        let found = text.chars().enumerate().all(|(i, letter)| self.ahead(i) == Some(letter));
        if found {
            self.at += text.chars().count();
        }
        found
    }

    fn script(&mut self, until: Until) -> Result<(), Unreadable> {
        let mut current = Simple::default();
        let mut previous: Option<usize> = None;
        let (mut parens, mut cases) = (0usize, 0usize);
        loop {
            match self.peek() {
                None if until == Until::End => {
                    self.finish(&mut current, &mut previous)?;
                    return Ok(());
                }
                None => return Err(Unreadable::Unterminated),
                Some(' ' | '\t' | '\r') => self.at += 1,
                Some('\\') if self.ahead(1) == Some('\n') => self.at += 2,
                Some('\n') => {
                    self.at += 1;
                    self.finish(&mut current, &mut previous)?;
                    self.heredoc_bodies()?;
                    previous = None;
                }
                Some('#') => {
                    while self.peek().is_some_and(|letter| letter != '\n') {
                        self.at += 1;
                    }
                }
                Some('(') if current.words.is_empty() && self.arithmetic()? => {}
                Some('(') => {
                    self.at += 1;
                    parens += 1;
                    self.finish(&mut current, &mut previous)?;
                    previous = None;
                }
                Some(')') => {
                    self.at += 1;
                    self.finish(&mut current, &mut previous)?;
                    match until {
                        Until::Paren if parens == 0 && cases == 0 => return Ok(()),
                        _ => parens = parens.saturating_sub(1),
                    }
                }
                Some('|') => {
                    self.at += 1;
                    let piped = self.peek() != Some('|');
                    if !piped || self.peek() == Some('&') {
                        self.at += 1;
                    }
                    self.finish(&mut current, &mut previous)?;
                    current.piped_from = previous.filter(|_| piped);
                }
                Some('&') if self.ahead(1) == Some('>') => {
                    self.at += 2;
                    let _ = self.take(">");
                    self.write_target(&mut current)?;
                }
                Some('&' | ';') => {
                    self.at += 1;
                    let _ = self.take("&") || self.take(";");
                    self.finish(&mut current, &mut previous)?;
                    previous = None;
                }
                Some('<' | '>') => self.redirect(&mut current)?,
                Some(digit) if digit.is_ascii_digit() && self.is_descriptor() => {
                    while self.peek().is_some_and(|letter| letter.is_ascii_digit()) {
                        self.at += 1;
                    }
                    self.redirect(&mut current)?;
                }
                Some(_) => {
                    let words = self.words()?;
                    for word in words {
                        match place(&mut current, word) {
                            Placed::CaseStarts => cases += 1,
                            Placed::CaseEnds => cases = cases.saturating_sub(1),
                            Placed::Assigned(name, value) => drop(self.variables.insert(name, value)),
                            Placed::Other => {}
                        }
                    }
                }
            }
        }
    }

    fn finish(&mut self, current: &mut Simple, previous: &mut Option<usize>) -> Result<(), Unreadable> {
        let done = std::mem::take(current);
        if done.words.is_empty() && done.redirects.is_empty() && done.assignments.is_empty() {
            return Ok(());
        }
        if self.script.commands.len() >= MAX_COMMANDS {
            return Err(Unreadable::TooMuch);
        }
        *previous = Some(self.script.commands.len());
        self.script.commands.push(done);
        Ok(())
    }

    /// Whether digits followed by `<` or `>` stand here: a descriptor, not a word.
    fn is_descriptor(&self) -> bool {
        let digits =
            (0..4).take_while(|i| self.ahead(*i).is_some_and(|letter| letter.is_ascii_digit())).count();
        matches!(self.ahead(digits), Some('<' | '>'))
    }

    fn redirect(&mut self, current: &mut Simple) -> Result<(), Unreadable> {
        if self.ahead(1) == Some('(') {
            // Process substitution: a word of the command whose script runs beside it.
            let words = self.words()?;
            current.words.extend(words);
            return Ok(());
        }
        if self.take("<<<") {
            if let Some(word) = self.target()? {
                current.redirects.push(Redirect::HereString(word));
            }
            return Ok(());
        }
        if self.take("<<") {
            let strip_tabs = self.take("-");
            let Some(word) = self.target()? else { return Ok(()) };
            let index = self.script.heredocs.len();
            if index >= MAX_HEREDOCS {
                return Err(Unreadable::TooMuch);
            }
            self.script.heredocs.push(String::new());
            let literal = word.quoted_from.is_some();
            self.pending.push(Heredoc { index, delimiter: word.text, strip_tabs, literal });
            current.redirects.push(Redirect::HereDoc(index));
            return Ok(());
        }
        if self.take("<&") || (self.peek() == Some('<') && self.ahead(1) != Some('>')) {
            let _ = self.take("<");
            self.target()?;
            return Ok(());
        }
        let _ = self.take("<>") || self.take(">>") || self.take(">|") || self.take(">&") || self.take(">");
        self.write_target(current)
    }

    fn write_target(&mut self, current: &mut Simple) -> Result<(), Unreadable> {
        if let Some(word) = self.target()? {
            current.redirects.push(Redirect::Write(word));
        }
        Ok(())
    }

    fn target(&mut self) -> Result<Option<Word>, Unreadable> {
        while matches!(self.peek(), Some(' ' | '\t')) {
            self.at += 1;
        }
        if self.peek().is_none_or(|letter| matches!(letter, '\n' | ';' | '|' | ')')) {
            return Ok(None);
        }
        Ok(self.words()?.into_iter().next())
    }

    /// One word; more than one where an unquoted expansion or braces make it several.
    fn words(&mut self) -> Result<Vec<Word>, Unreadable> {
        let start = self.at;
        let mut done: Vec<Word> = Vec::new();
        let mut word = Word::default();
        let mut started = false;
        while let Some(letter) = self.peek() {
            match letter {
                '<' | '>' if self.ahead(1) == Some('(') => {
                    self.at += 2;
                    self.nested()?;
                    word.dynamic = true;
                    word.text.push_str("$(…)");
                }
                '(' if is_assignment(&word) && word.text.ends_with('=') => {
                    self.at += 1;
                    self.balanced(1, '(', ')')?;
                    word.dynamic = true;
                }
                '(' if word.text.ends_with(['?', '*', '+', '@', '!']) && word.text.len() > 1
                    || letter == '(' && word.text == "@" =>
                {
                    self.at += 1;
                    self.balanced(1, '(', ')')?;
                    word.glob = true;
                }
                ' ' | '\t' | '\r' | '\n' | ';' | '&' | '|' | '<' | '>' | '(' | ')' => break,
                '\\' => {
                    self.at += 1;
                    match self.next() {
                        Some('\n') => {}
                        Some(escaped) => {
                            word.quote();
                            word.text.push(escaped);
                        }
                        None => word.text.push('\\'),
                    }
                }
                '\'' => {
                    self.at += 1;
                    word.quote();
                    loop {
                        match self.next() {
                            Some('\'') => break,
                            Some(inner) => word.text.push(inner),
                            None => return Err(Unreadable::Unterminated),
                        }
                    }
                }
                '"' => {
                    self.at += 1;
                    word.quote();
                    self.double_quoted(&mut word, true)?;
                }
                '`' => {
                    self.at += 1;
                    self.backquoted(&mut word)?;
                }
                '$' => {
                    self.at += 1;
                    if self.take("'") {
                        word.quote();
                        self.ansi_quoted(&mut word)?;
                    } else if self.take("\"") {
                        word.quote();
                        self.double_quoted(&mut word, true)?;
                    } else {
                        match self.dollar(&mut word)? {
                            Expansion::Kept => {}
                            Expansion::Value(value) => {
                                // An unquoted value is split into words and its patterns are live.
                                for letter in value.chars() {
                                    if letter.is_whitespace() {
                                        if started || !word.text.is_empty() {
                                            done.push(std::mem::take(&mut word));
                                            started = false;
                                        }
                                    } else {
                                        word.glob |= matches!(letter, '*' | '?' | '[');
                                        word.text.push(letter);
                                    }
                                }
                            }
                        }
                    }
                }
                '*' | '?' | '[' => {
                    self.at += 1;
                    word.glob = true;
                    word.text.push(letter);
                }
                other => {
                    self.at += 1;
                    word.text.push(other);
                }
            }
            started = started || word.quoted_from.is_some() || !word.text.is_empty();
        }
        if self.at == start {
            // Whatever stands here starts no word; passing over it keeps the reader moving.
            self.at += 1;
            return Ok(Vec::new());
        }
        if started {
            done.push(word);
        }
        let mut words = Vec::with_capacity(done.len());
        for word in done {
            words.extend(expand_braces(word)?);
        }
        Ok(words)
    }

    fn double_quoted(&mut self, word: &mut Word, closes: bool) -> Result<(), Unreadable> {
        loop {
            match self.next() {
                Some('"') if closes => return Ok(()),
                Some('\\') => match self.next() {
                    Some('\n') => {}
                    Some(escaped @ ('"' | '\\' | '$' | '`')) => word.text.push(escaped),
                    Some(other) => {
                        word.text.push('\\');
                        word.text.push(other);
                    }
                    None => break,
                },
                Some('`') => self.backquoted(word)?,
                Some('$') => {
                    if let Expansion::Value(value) = self.dollar(word)? {
                        word.text.push_str(&value);
                    }
                }
                Some(other) => word.text.push(other),
                None => break,
            }
        }
        if closes { Err(Unreadable::Unterminated) } else { Ok(()) }
    }

    /// What follows a `$`.
    fn dollar(&mut self, word: &mut Word) -> Result<Expansion, Unreadable> {
        match self.peek() {
            Some('(') if self.arithmetic()? => {
                word.text.push_str("$((…))");
                word.dynamic = true;
                Ok(Expansion::Kept)
            }
            Some('(') => {
                self.at += 1;
                self.nested()?;
                word.text.push_str("$(…)");
                word.dynamic = true;
                Ok(Expansion::Kept)
            }
            Some('{') => {
                self.at += 1;
                let from = self.at;
                self.balanced(1, '{', '}')?;
                let inner: String = self.chars[from..self.at - 1].iter().collect();
                Ok(self.variable(word, &inner))
            }
            Some(letter) if letter.is_ascii_alphabetic() || letter == '_' => {
                let from = self.at;
                while self.peek().is_some_and(|letter| letter.is_ascii_alphanumeric() || letter == '_') {
                    self.at += 1;
                }
                let name: String = self.chars[from..self.at].iter().collect();
                Ok(self.variable(word, &name))
            }
            Some(special @ ('@' | '*' | '#' | '?' | '$' | '!' | '-' | '0'..='9')) => {
                self.at += 1;
                word.text.push('$');
                word.text.push(special);
                word.dynamic = true;
                Ok(Expansion::Kept)
            }
            _ => {
                word.text.push('$');
                Ok(Expansion::Kept)
            }
        }
    }

    fn variable(&self, word: &mut Word, name: &str) -> Expansion {
        if name == "IFS" {
            return Expansion::Value(" ".to_owned());
        }
        if let Some(value) = self.variables.get(name) {
            return Expansion::Value(value.clone());
        }
        word.text.push('$');
        word.text.push_str(name);
        // These the guard can resolve itself.
        word.dynamic |= !matches!(name, "HOME" | "PWD" | "TMPDIR");
        Expansion::Kept
    }

    fn ansi_quoted(&mut self, word: &mut Word) -> Result<(), Unreadable> {
        loop {
            match self.next().ok_or(Unreadable::Unterminated)? {
                '\'' => return Ok(()),
                '\\' => match self.next().ok_or(Unreadable::Unterminated)? {
                    'n' => word.text.push('\n'),
                    't' => word.text.push('\t'),
                    'r' => word.text.push('\r'),
                    'x' => self.code_point(word, 16, 2),
                    'u' => self.code_point(word, 16, 4),
                    'U' => self.code_point(word, 16, 8),
                    '0'..='7' => {
                        self.at -= 1;
                        self.code_point(word, 8, 3);
                    }
                    other => word.text.push(other),
                },
                other => word.text.push(other),
            }
        }
    }

    fn code_point(&mut self, word: &mut Word, radix: u32, most: usize) {
        let mut value = 0u32;
        for _ in 0..most {
            let Some(digit) = self.peek().and_then(|letter| letter.to_digit(radix)) else { break };
            value = value.saturating_mul(radix).saturating_add(digit);
            self.at += 1;
        }
        word.text.extend(char::from_u32(value));
    }

    /// A script in `$(…)` up to its closing parenthesis.
    fn nested(&mut self) -> Result<(), Unreadable> {
        self.deeper()?;
        let pending = std::mem::take(&mut self.pending);
        let result = self.script(Until::Paren);
        self.pending = pending;
        self.depth -= 1;
        result
    }

    fn backquoted(&mut self, word: &mut Word) -> Result<(), Unreadable> {
        let mut inner = String::new();
        loop {
            match self.next().ok_or(Unreadable::Unterminated)? {
                '`' => break,
                '\\' => match self.next().ok_or(Unreadable::Unterminated)? {
                    escaped @ ('`' | '\\' | '$') => inner.push(escaped),
                    other => inner.extend(['\\', other]),
                },
                other => inner.push(other),
            }
        }
        word.text.push_str("$(…)");
        word.dynamic = true;
        self.inside(&inner, |reader| reader.script(Until::End))
    }

    /// Reads another text with this reader's script and variables.
    fn inside(
        &mut self,
        text: &str,
        read: impl FnOnce(&mut Reader) -> Result<(), Unreadable>,
    ) -> Result<(), Unreadable> {
        self.deeper()?;
        let (script, variables) = (std::mem::take(&mut self.script), std::mem::take(&mut self.variables));
        let mut reader = Reader::new(text, self.depth, script, variables);
        let result = read(&mut reader);
        self.script = reader.script;
        self.variables = reader.variables;
        self.depth -= 1;
        result
    }

    fn deeper(&mut self) -> Result<(), Unreadable> {
        if self.depth >= MAX_DEPTH {
            return Err(Unreadable::TooDeep);
        }
        self.depth += 1;
        Ok(())
    }

    /// Passes over `((…))`. What opens so but does not end in `))` is a subshell in a subshell and is left standing.
    fn arithmetic(&mut self) -> Result<bool, Unreadable> {
        let start = self.at;
        if !self.take("((") {
            return Ok(false);
        }
        self.balanced(2, '(', ')')?;
        let closed = self.chars.get(self.at - 2) == Some(&')');
        if !closed {
            self.at = start;
        }
        Ok(closed)
    }

    /// Passes over text up to the closing marks, the substitutions inside it read.
    fn balanced(&mut self, mut open: usize, left: char, right: char) -> Result<(), Unreadable> {
        let mut ignored = Word::default();
        while open > 0 {
            match self.next().ok_or(Unreadable::Unterminated)? {
                '\\' => self.at += 1,
                '\'' if left != '{' || self.ahead(0).is_some() && self.closes_single_quote() => {
                    while self.next().ok_or(Unreadable::Unterminated)? != '\'' {}
                }
                '"' => self.double_quoted(&mut ignored, true)?,
                '`' => self.backquoted(&mut ignored)?,
                '$' if self.peek() == Some('(') && self.ahead(1) != Some('(') => {
                    self.at += 1;
                    self.nested()?;
                }
                letter if letter == left => open += 1,
                letter if letter == right => open -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a single quote just passed has a partner before the end of the line.
    fn closes_single_quote(&self) -> bool {
        self.chars[self.at..]
            .iter()
            .take(4_096)
            .take_while(|letter| **letter != '\n')
            .any(|letter| *letter == '\'')
    }

    fn heredoc_bodies(&mut self) -> Result<(), Unreadable> {
        for heredoc in std::mem::take(&mut self.pending) {
            let mut body = String::new();
            while self.at < self.chars.len() {
                let end = self.chars[self.at..].iter().position(|letter| *letter == '\n');
                let end = end.map_or(self.chars.len(), |length| self.at + length);
                let line: String = self.chars[self.at..end].iter().collect();
                self.at = (end + 1).min(self.chars.len());
                let line = if heredoc.strip_tabs { line.trim_start_matches('\t') } else { &line };
                if line == heredoc.delimiter {
                    break;
                }
                body.push_str(line);
                body.push('\n');
            }
            if !heredoc.literal {
                self.inside(&body, |reader| reader.double_quoted(&mut Word::default(), false))?;
            }
            if let Some(slot) = self.script.heredocs.get_mut(heredoc.index) {
                *slot = body;
            }
        }
        Ok(())
    }
}

enum Expansion {
    /// Written into the word as it stands.
    Kept,
    /// A known value.
    Value(String),
}

enum Placed {
    CaseStarts,
    CaseEnds,
    Assigned(String, String),
    Other,
}

/// Puts a word into a command: reserved words go, assignments before the command are kept apart.
fn place(current: &mut Simple, word: Word) -> Placed {
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

fn is_assignment(word: &Word) -> bool {
    let Some((name, _)) = word.text.split_once('=') else { return false };
    let equals = name.len();
    let name = name.trim_end_matches('+');
    word.quoted_from.is_none_or(|quoted| quoted > equals)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The words of `a{b,c}d`. A word with quotes is left alone.
fn expand_braces(word: Word) -> Result<Vec<Word>, Unreadable> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn commands(text: &str) -> Vec<String> {
        let script = read(text).expect("readable");
        let words =
            |simple: &Simple| simple.words.iter().map(|word| word.text.clone()).collect::<Vec<_>>().join("|");
        script.commands.iter().map(words).collect()
    }

    #[test]
    fn commands_are_found_wherever_they_stand() {
        assert_eq!(commands("a b; c 'd e' && f \"g $(h i)\" | j"), ["a|b", "c|d e", "h|i", "f|g $(…)", "j"]);
        assert_eq!(commands("if a; then b; else c; fi"), ["a", "b", "c"]);
        assert_eq!(commands("case $x in a) b ;; *) c;; esac; d"), ["case|$x|in|a", "b", "*", "c", "d"]);
        assert_eq!(commands("echo $(case x in a) b;; esac) c"), ["case|x|in|a", "b", "echo|$(…)|c"]);
        assert_eq!(commands("f() { a; }; (b) # c\n d"), ["f", "a", "b", "d"]);
        assert_eq!(commands("a `b \\`c\\`` \\\n e"), ["c", "b|$(…)", "a|$(…)|e"]);
        assert_eq!(commands("((a); b); echo $((c); d); ((e))"), ["a", "b", "c", "d", "echo|$(…)"]);
        assert_eq!(commands("diff <(a) >(b)"), ["a", "b", "diff|$(…)|$(…)"]);
    }

    #[test]
    fn words_are_what_the_shell_would_make_of_them() {
        assert_eq!(commands(r#"r'm' -"r"f \/ $'\x2f\057'"#), ["rm|-rf|/|//"]);
        assert_eq!(commands("{rm,-rf,/} a{b,c{d,e}} {} \"{x,y}\""), ["rm|-rf|/|ab|acd|ace|{}|{x,y}"]);
        assert_eq!(commands("rm${IFS}-rf$IFS/"), ["rm|-rf|/"]);
        assert_eq!(commands("C='rm -rf'; D=/; $C \"$D\""), ["", "", "rm|-rf|/"]);
        assert_eq!(commands("a=(1 2) b; x $((1<<2)) ${y:-'}'}"), ["b", "x|$((…))|$y:-'}'"]);
    }

    #[test]
    fn redirections_and_here_documents_are_kept_apart() {
        let script = read("cat <<'E' >out 2>&1\nrm -rf / $(x)\nE\nb <<< \"$(c)\" <in").expect("readable");
        assert_eq!(script.heredocs, ["rm -rf / $(x)\n"]);
        let first = &script.commands[0];
        assert_eq!(first.redirects[0], Redirect::HereDoc(0));
        assert!(matches!(&first.redirects[1], Redirect::Write(word) if word.text == "out"));
        assert_eq!(commands("cat <<E\n$(rm x) `y`\nE\nb"), ["cat", "rm|x", "y", "b"]);
        assert_eq!(commands("cat <<-E\n\ta\n\tE\nb"), ["cat", "b"]);
    }

    #[test]
    fn pipes_know_where_they_come_from() {
        let script = read("echo a | sh; b || c").expect("readable");
        let from: Vec<_> = script.commands.iter().map(|command| command.piped_from).collect();
        assert_eq!(from, [None, Some(0), None, None]);
    }

    #[test]
    fn what_does_not_end_is_refused() {
        for text in ["'a", "\"a", "$(a", "`a", "${a", "a \"$(b\""] {
            assert_eq!(read(text).err(), Some(Unreadable::Unterminated), "{text}");
        }
        assert_eq!(read(&"$(".repeat(50_000)).err(), Some(Unreadable::TooDeep));
        assert!(read(&"( ".repeat(100_000)).is_ok());
        assert!(read(&"{ ".repeat(100_000)).is_ok());
        assert_eq!(read(&"a;".repeat(MAX_COMMANDS + 1)).err(), Some(Unreadable::TooMuch));
        assert_eq!(read(&"a <<E\nE\n".repeat(MAX_HEREDOCS + 1)).err(), Some(Unreadable::TooMuch));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z$(){}'\"`\\\\<>|&;# \n=*!/-]{0,60}|\\PC{0,40}") {
            let _ = read(&text);
        }

        #[test]
        fn a_quoted_word_is_one_word(word in "[^'\u{0}]{1,30}") {
            prop_assert_eq!(commands(&format!("a '{word}'")), vec![format!("a|{word}")]);
        }
    }
}
