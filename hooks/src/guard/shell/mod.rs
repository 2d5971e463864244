//! A reader of shell scripts that finds the commands in them.
//!
//! It knows quoting, expansions, substitutions, here-documents and reserved words, and errs on the side of seeing a
//! command where there may be one. It runs nothing and expands only what the script itself assigns.

mod braces;
mod place;
mod reader;
mod words;

use std::collections::HashMap;

use reader::{Reader, Until};

/// Most simple commands of one script.
const MAX_COMMANDS: usize = 50_000;
/// Most here-documents of one script.
const MAX_HEREDOCS: usize = 10;

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
