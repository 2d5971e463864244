//! `config.json` on disk: reading with every problem named, and the one way of writing it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use instar_durable::{FileLock, LockError, write_atomic};
use serde_json::{Map, Value};

use super::check::{Findings, Problem, check};
use super::keys;

/// Why `config.json` can't be used or written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no file.
    #[error("no agent here: {path} does not exist; run `instar init`")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file can't be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is not JSON.
    #[error("{path}, line {line}, column {column}: {detail}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the parser said.
        detail: String,
    },
    /// The file was written by a newer build.
    #[error("{path} has version {found}; this build knows {known}. Update instar, or use the newer one")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: i64,
        /// Newest version this build reads.
        known: i64,
    },
    /// Keys have values that do not fit.
    #[error("{path} has {}:{}", plural(problems.len(), "problem"), lines(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All of them.
        problems: Vec<Problem>,
    },
    /// Another process was writing for 10 s.
    #[error("cannot write {path}: {source}")]
    Locked {
        /// The file.
        path: PathBuf,
        /// The lock.
        source: LockError,
    },
    /// The change is in the file, which can't be used for another reason.
    #[error("the change was written to {path}, but it is not in force until the rest is repaired: {source}")]
    NotInForce {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<ConfigError>,
    },
    /// A given path or value was refused before anything was written.
    #[error("{path}: {problem}")]
    Refused {
        /// Dot path.
        path: String,
        /// Why.
        problem: String,
    },
}

fn plural(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().fold(String::new(), |text, p| text + "\n  " + &p.path + ": " + &p.problem)
}

/// The configuration file of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    path: PathBuf,
}

/// A file as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its content, unknown keys included, in order.
    pub root: Map<String, Value>,
    /// What the check found.
    pub findings: Findings,
}

impl ConfigFile {
    /// The file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads and checks the file; values that do not fit are in the findings.
    pub fn read(&self) -> Result<Document, ConfigError> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ConfigError::Missing { path: self.path.clone() });
            }
            Err(source) => return Err(ConfigError::Io { path: self.path.clone(), source }),
        };
        parse(&bytes, &self.path)
    }

    /// Reads the file; anything that does not fit is an error that names all problems.
    pub fn load(&self) -> Result<Document, ConfigError> {
        let document = self.read()?;
        if document.findings.problems.is_empty() {
            return Ok(document);
        }
        Err(ConfigError::Invalid { path: self.path.clone(), problems: document.findings.problems })
    }

    /// Changes the file: under its lock it is read, changed, checked and replaced as a whole (mode 0600).
    ///
    /// A change that would add a problem is refused; problems that were there before do not stand in the way of
    /// repairing them one by one. Nothing is written when nothing changed. Blocks for at most 10 s for the lock.
    pub fn edit<T>(
        &self,
        change: impl FnOnce(&mut Map<String, Value>) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        let _lock = FileLock::acquire_within(&self.lock_path(), Duration::from_secs(10))
            .map_err(|source| ConfigError::Locked { path: self.path.clone(), source })?;
        let before = self.read()?;
        let mut root = before.root.clone();
        let result = change(&mut root)?;
        if root == before.root {
            return Ok(result);
        }
        let mut problems = check(&root).problems;
        problems.retain(|p| !before.findings.problems.contains(p));
        if !problems.is_empty() {
            return Err(ConfigError::Invalid { path: self.path.clone(), problems });
        }
        self.write(&root)?;
        Ok(result)
    }

    /// Writes a whole new file, for an agent that is being made.
    pub fn create(&self, root: &Map<String, Value>) -> Result<(), ConfigError> {
        let problems = check(root).problems;
        if !problems.is_empty() {
            return Err(ConfigError::Invalid { path: self.path.clone(), problems });
        }
        self.write(root)
    }

    fn write(&self, root: &Map<String, Value>) -> Result<(), ConfigError> {
        let io = |source| ConfigError::Io { path: self.path.clone(), source };
        let mut bytes = serde_json::to_vec_pretty(root).map_err(|e| io(e.into()))?;
        bytes.push(b'\n');
        write_atomic(&self.path, &bytes, 0o600).map_err(|e| io(e.source))
    }

    fn lock_path(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".lock");
        name.into()
    }
}

/// Parses and checks the bytes of a configuration file; `path` is for messages.
pub fn parse(bytes: &[u8], path: &Path) -> Result<Document, ConfigError> {
    let syntax =
        |line, column, detail: String| ConfigError::Syntax { path: path.to_owned(), line, column, detail };
    let value: Value = serde_json::from_slice(bytes).map_err(|e| {
        let text = e.to_string();
        let detail = text.rsplit_once(" at line ").map_or(text.as_str(), |(detail, _)| detail);
        syntax(e.line(), e.column(), detail.to_owned())
    })?;
    let Value::Object(root) = value else {
        return Err(syntax(1, 1, "the file must hold one JSON object".into()));
    };
    if let Some(found) = root.get("version").and_then(Value::as_i64).filter(|v| *v > keys::VERSION) {
        return Err(ConfigError::TooNew { path: path.to_owned(), found, known: keys::VERSION });
    }
    let findings = check(&root);
    Ok(Document { root, findings })
}

/// Puts a value at a dot path, making the objects on the way.
pub fn set_at(root: &mut Map<String, Value>, path: &str, value: Value) -> Result<Option<Value>, ConfigError> {
    let refused = |problem: &str| ConfigError::Refused { path: path.to_owned(), problem: problem.to_owned() };
    let mut segments: Vec<&str> = path.split('.').collect();
    let last = segments.pop().filter(|s| !s.is_empty()).ok_or_else(|| refused("is not a key"))?;
    let mut object = root;
    for segment in segments {
        if segment.is_empty() {
            return Err(refused("is not a key"));
        }
        let next = object.entry(segment).or_insert_with(|| Value::Object(Map::new()));
        object = next.as_object_mut().ok_or_else(|| refused("lies below a key that is not an object"))?;
    }
    Ok(object.insert(last.to_owned(), value))
}

/// Removes the value at a dot path, and objects that it leaves empty.
pub fn unset_at(root: &mut Map<String, Value>, path: &str) -> Option<Value> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let Some(rest) = rest else { return root.shift_remove(first) };
    let inner = root.get_mut(first)?.as_object_mut()?;
    let removed = unset_at(inner, rest)?;
    if inner.is_empty() {
        root.shift_remove(first);
    }
    Some(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn file(dir: &Path, text: &str) -> ConfigFile {
        let path = dir.join("config.json");
        std::fs::write(&path, text).expect("write");
        ConfigFile::new(path)
    }

    #[test]
    fn broken_json_is_named_with_line_and_column() {
        let dir = tempfile::tempdir().expect("dir");
        let error = file(dir.path(), "{\n  \"port\": 4040,\n  \"host\" 1\n}").load().expect_err("broken");
        assert!(error.to_string().ends_with("line 3, column 10: expected `:`"), "{error}");
        let error = file(dir.path(), "[]").load().expect_err("not an object");
        assert!(error.to_string().ends_with("the file must hold one JSON object"), "{error}");
    }

    #[test]
    fn a_missing_or_newer_file_is_refused_with_the_next_step() {
        let dir = tempfile::tempdir().expect("dir");
        let error = ConfigFile::new(dir.path().join("config.json")).load().expect_err("missing");
        assert!(error.to_string().contains("run `instar init`"));
        let error = file(dir.path(), r#"{"version": 3}"#).load().expect_err("newer");
        assert!(matches!(error, ConfigError::TooNew { found: 3, known: 2, .. }));
    }

    #[test]
    fn an_edit_keeps_unknown_keys_and_their_order() {
        let dir = tempfile::tempdir().expect("dir");
        let file = file(dir.path(), r#"{"zeta": {"deep": [1]}, "port": 4040, "alpha": null}"#);
        file.edit(|root| set_at(root, "logging.level", json!("debug"))).expect("edit");
        let root = file.load().expect("load").root;
        assert_eq!(root.keys().collect::<Vec<_>>(), ["zeta", "port", "alpha", "logging"]);
        assert_eq!(root["zeta"], json!({"deep": [1]}));
        file.edit(|root| Ok(unset_at(root, "logging.level"))).expect("edit");
        assert!(!file.load().expect("load").root.contains_key("logging"));
    }

    #[test]
    fn a_bad_change_is_refused_and_an_old_problem_can_be_repaired() {
        let dir = tempfile::tempdir().expect("dir");
        let text = r#"{"port": 1, "sessions": {"maxSessions": 0}}"#;
        let file = file(dir.path(), text);
        let bad = file.edit(|root| set_at(root, "logging.level", json!("loud")));
        assert!(matches!(bad, Err(ConfigError::Invalid { problems, .. }) if problems.len() == 1));
        assert_eq!(std::fs::read_to_string(file.path()).expect("read"), text);
        file.edit(|root| set_at(root, "port", json!(4040))).expect("repair");
        assert!(file.load().is_err());
    }

    #[test]
    fn the_file_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("dir");
        let file = file(dir.path(), "{}");
        file.edit(|root| set_at(root, "port", json!(4040))).expect("edit");
        let mode = std::fs::metadata(file.path()).expect("meta").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, Path::new("config.json"));
        }

        #[test]
        fn what_was_set_is_found_and_what_was_unset_is_gone(
            path in "[a-c]{1,2}(\\.[a-c]{1,2}){0,3}", other in "[a-c]{1,2}(\\.[a-c]{1,2}){0,3}", n in any::<i64>()
        ) {
            let mut root = Map::new();
            set_at(&mut root, &other, json!(1)).expect("empty root");
            let before = root.clone();
            if set_at(&mut root, &path, json!(n)).is_ok() {
                prop_assert_eq!(super::super::check::lookup(&root, &path), Some(&json!(n)));
                unset_at(&mut root, &path);
                prop_assert_eq!(super::super::check::lookup(&root, &path), None);
                if !other.starts_with(path.as_str()) {
                    prop_assert_eq!(root, before);
                }
            }
        }
    }
}
