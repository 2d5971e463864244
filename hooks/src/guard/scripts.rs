//! Bodies in other languages, SQL, and the rules on plain text for what cannot be parsed.

/// Whether the text defines a function that calls itself twice and runs it.
pub(super) fn is_fork_bomb(text: &str) -> bool {
    let dense: String = text.chars().filter(|letter| !letter.is_whitespace()).collect();
    dense.match_indices("(){").any(|(at, _)| {
        let before = &dense[..at];
        let name: String = before
            .chars()
            .rev()
            .take_while(|letter| !matches!(letter, ';' | '&' | '|' | '}' | '"' | '\''))
            .take(64)
            .collect();
        let name: String = name.chars().rev().collect();
        let body = &dense[at + 3..];
        !name.is_empty() && body.starts_with(&format!("{name}|{name}&"))
    })
}

/// What the worst rules find in a text that is not a readable script.
pub(super) fn always_by_text(text: &str) -> Option<&'static str> {
    let text = text.to_lowercase();
    let words: Vec<&str> = text
        .split(|letter: char| letter.is_whitespace() || "\"'`;&|(){}".contains(letter))
        .filter(|word| !word.is_empty())
        .collect();
    let has = |name: &str| words.iter().any(|word| *word == name || word.ends_with(&format!("/{name}")));
    let flag = |letters: &[char]| {
        words.iter().any(|word| word.starts_with('-') && !word.starts_with("--") && word.contains(letters))
    };
    let target = |names: &[&str]| words.iter().any(|word| names.contains(&word.trim_end_matches(['/', '*'])));
    if has("rm")
        && (flag(&['r']) || text.contains("--recursive"))
        && (target(&["", "~", "$home", "${home}", ".", ".."]) || text.contains(".instar"))
    {
        return Some("seems to remove a whole tree that must stay");
    }
    if words.iter().any(|word| word.starts_with("mkfs")) {
        return Some("makes a file system");
    }
    if text.contains("of=/dev/")
        || text.contains("> /dev/sd")
        || text.contains(">/dev/sd")
        || text.contains("/dev/nvme")
    {
        return Some("writes to a device");
    }
    if text.contains("--accept-data-loss") || text.contains("migrate reset") {
        return Some("destroys a database schema");
    }
    if is_fork_bomb(&text) {
        return Some("is a fork bomb");
    }
    if (has("chmod") || has("chown")) && flag(&['r']) && target(&[""]) {
        return Some("changes the rights of the whole system");
    }
    let writes = ["rm", "mv", "cp", "tee", "sed", "truncate", "dd", "ln"].iter().any(|name| has(name))
        || text.contains('>');
    let own = [
        ".instar/secrets",
        ".instar/machine",
        ".instar/run",
        ".instar/threadline",
        ".instar/config.json",
        ".claude/settings",
    ];
    (writes && own.iter().any(|place| text.contains(place)))
        .then_some("changes the agent's own keys, settings or hooks")
}

/// What an SQL text would destroy. Comments and quoted texts are no statements.
pub(super) fn sql(text: &str) -> Option<&'static str> {
    for statement in statements(text) {
        let words: Vec<&str> = statement.split_whitespace().collect();
        match words.as_slice() {
            ["drop", "table" | "database" | "schema", ..] => return Some("drops a table or database"),
            ["truncate", ..] => return Some("empties a table"),
            ["delete", "from", ..] if !words.contains(&"where") => {
                return Some("deletes all rows of a table");
            }
            _ => {}
        }
    }
    None
}

/// The statements in lower case, without comments and with quoted texts as `?`.
fn statements(text: &str) -> Vec<String> {
    let mut statements = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let Some(current) = statements.last_mut() else { break };
        match letter {
            '\'' | '"' => {
                while letters.next().is_some_and(|inner| inner != letter) {}
                current.push('?');
            }
            '-' if letters.peek() == Some(&'-') => while letters.next().is_some_and(|inner| inner != '\n') {},
            '/' if letters.peek() == Some(&'*') => {
                let mut last = ' ';
                for inner in letters.by_ref() {
                    if last == '*' && inner == '/' {
                        break;
                    }
                    last = inner;
                }
                current.push(' ');
            }
            ';' => statements.push(String::new()),
            other => current.extend(other.to_lowercase()),
        }
    }
    statements
}

/// What a body of another language holds that concerns the guard.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Body {
    /// Texts that it may hand to a shell.
    pub scripts: Vec<String>,
    /// Paths that it removes with all that is in them.
    pub removed: Vec<String>,
    /// Paths that it writes or removes.
    pub written: Vec<String>,
}

/// Reads the string literals of a body and what is done with them, by the names that occur.
pub(super) fn body(text: &str) -> Body {
    const RUNS: [&str; 12] = [
        "system",
        "popen",
        "subprocess",
        "exec",
        "spawn",
        "check_call",
        "check_output",
        "run(",
        "shell",
        "`",
        "%x",
        "Command",
    ];
    const REMOVES: [&str; 10] = [
        "rmtree",
        "rmSync",
        "rimraf",
        "remove_tree",
        "rm_rf",
        "rm_r",
        "rmdirSync",
        "rm(",
        "removeSync",
        "remove_dir_all",
    ];
    const WRITES: [&str; 16] = [
        "open(", "write", "unlink", "remove", "rename", "replace", "truncate", "copy", "move", "chmod",
        "File.", "symlink", "rmtree", "rm(", "rmSync", "fs.",
    ];
    let literals = literals(text);
    let holds = |names: &[&str]| names.iter().any(|name| text.contains(name));
    let mut body = Body::default();
    if holds(&RUNS) {
        body.scripts.clone_from(&literals);
        // `["rm", "-rf", "/"]`: a command as a list.
        body.scripts.push(literals.join(" "));
        for start in 0..literals.len().min(8) {
            body.scripts.push(literals[start..].join(" "));
        }
    }
    if holds(&REMOVES) {
        body.removed.clone_from(&literals);
    }
    if holds(&WRITES) {
        body.written = literals;
    }
    body
}

fn literals(text: &str) -> Vec<String> {
    const MOST: usize = 200;
    let mut found = Vec::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if !matches!(letter, '\'' | '"' | '`') {
            continue;
        }
        let mut literal = String::new();
        while let Some(inner) = letters.next() {
            match inner {
                '\\' => literal.extend(letters.next()),
                inner if inner == letter => break,
                inner => literal.push(inner),
            }
        }
        if !literal.is_empty() && found.len() < MOST {
            found.push(literal);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destroying_statements_are_found_and_others_left() {
        for text in [
            "DROP TABLE x",
            "select 1; drop  database y;",
            "TRUNCATE t",
            "delete from t;",
            "/* a */ DELETE FROM t -- where",
        ] {
            assert!(sql(text).is_some(), "{text}");
        }
        for text in [
            "select 'drop table x'",
            "-- drop table x\nselect 1",
            "delete from t where id=1",
            "create table t(a)",
            "drop index i",
        ] {
            assert_eq!(sql(text), None, "{text}");
        }
    }

    #[test]
    fn fork_bombs_are_recognised() {
        assert!(is_fork_bomb(":(){ :|:& };:"));
        assert!(is_fork_bomb("x; bomb() { bomb | bomb & }; bomb"));
        assert!(!is_fork_bomb("f() { a | b & }; f"));
    }

    #[test]
    fn bodies_give_their_literals() {
        let body = body("import os; os.system('rm -rf /')");
        assert!(body.scripts.contains(&"rm -rf /".to_owned()));
        assert!(super::body("shutil.rmtree(\"/x\")").removed.contains(&"/x".to_owned()));
        assert_eq!(super::body("print('rm -rf /')"), Body::default());
    }
}
