//! The reader: separators, pipes, redirections, here-documents, and scripts inside scripts.

use std::collections::HashMap;

use super::place::{Placed, place};
use super::{MAX_COMMANDS, MAX_HEREDOCS, Redirect, Script, Simple, Unreadable, Word};

/// Deepest nesting of substitutions.
const MAX_DEPTH: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    End,
    Paren,
}

struct Heredoc {
    index: usize,
    delimiter: String,
    strip_tabs: bool,
    literal: bool,
}

pub(super) struct Reader {
    pub(super) chars: Vec<char>,
    pub(super) at: usize,
    depth: usize,
    pub(super) script: Script,
    pending: Vec<Heredoc>,
    pub(super) variables: HashMap<String, String>,
}

impl Reader {
    pub(super) fn new(text: &str, depth: usize, script: Script, variables: HashMap<String, String>) -> Self {
        Self { chars: text.chars().collect(), at: 0, depth, script, pending: Vec::new(), variables }
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.ahead(0)
    }

    pub(super) fn ahead(&self, by: usize) -> Option<char> {
        self.chars.get(self.at + by).copied()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let letter = self.peek()?;
        self.at += 1;
        Some(letter)
    }

    pub(super) fn take(&mut self, text: &str) -> bool {
        let found = text.chars().enumerate().all(|(i, letter)| self.ahead(i) == Some(letter));
        if found {
            self.at += text.chars().count();
        }
        found
    }

    pub(super) fn script(&mut self, until: Until) -> Result<(), Unreadable> {
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

    /// A script in `$(…)` up to its closing parenthesis.
    pub(super) fn nested(&mut self) -> Result<(), Unreadable> {
        self.deeper()?;
        let pending = std::mem::take(&mut self.pending);
        let result = self.script(Until::Paren);
        self.pending = pending;
        self.depth -= 1;
        result
    }

    /// Reads another text with this reader's script and variables.
    pub(super) fn inside(
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
