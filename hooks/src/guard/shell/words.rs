//! Words: quoting, expansions and what a shell makes of them.

use super::braces::expand_braces;
use super::place::is_assignment;
use super::reader::{Reader, Until};
use super::{Unreadable, Word};

enum Expansion {
    /// Written into the word as it stands.
    Kept,
    /// A known value.
    Value(String),
}

impl Reader {
    /// One word; more than one where an unquoted expansion or braces make it several.
    pub(super) fn words(&mut self) -> Result<Vec<Word>, Unreadable> {
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

    pub(super) fn double_quoted(&mut self, word: &mut Word, closes: bool) -> Result<(), Unreadable> {
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

    /// Passes over `((…))`. What opens so but does not end in `))` is a subshell in a subshell and is left standing.
    pub(super) fn arithmetic(&mut self) -> Result<bool, Unreadable> {
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
}
