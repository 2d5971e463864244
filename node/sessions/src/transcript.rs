//! The runtime's own record of a conversation: JSON lines of many types.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;
use ulid::Ulid;

/// What one line of a transcript holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TranscriptLine {
    /// Something that a person, the node or a tool said to the model.
    User {
        /// Text parts joined; empty for tool results.
        text: String,
    },
    /// Something that the model said.
    Assistant {
        /// Text parts joined.
        text: String,
        /// Whether the provider's error stands in for an answer.
        api_error: bool,
    },
}

/// Reads one line; `None` for the many types that do not matter here and for damaged lines.
pub fn parse_line(line: &str) -> Option<TranscriptLine> {
    let value: Value = serde_json::from_str(line).ok()?;
    let content = value.get("message").and_then(|m| m.get("content")).unwrap_or(&Value::Null);
    let text = content_text(content);
    match value.get("type")?.as_str()? {
        "user" => Some(TranscriptLine::User { text }),
        "assistant" => Some(TranscriptLine::Assistant {
            text,
            api_error: value.get("isApiErrorMessage").and_then(Value::as_bool).unwrap_or(false),
        }),
        _ => None,
    }
}

/// Directory that a transcript says it was made in: the first `cwd` in its first lines.
pub fn recorded_cwd(path: &Path) -> io::Result<Option<PathBuf>> {
    let lines = BufReader::new(File::open(path)?).take(1024 * 1024).lines();
    for line in lines.take(50) {
        let cwd = serde_json::from_str::<Value>(&line?)
            .ok()
            .and_then(|v| v.get("cwd").and_then(Value::as_str).map(PathBuf::from));
        if cwd.is_some() {
            return Ok(cwd);
        }
    }
    Ok(None)
}

/// Whether a user line in the last `window` bytes of the transcript carries the ULID.
pub fn holds_input(path: &Path, ulid: Ulid, window: u64) -> io::Result<bool> {
    let mark = format!("#{ulid}");
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(window);
    file.seek(SeekFrom::Start(start))?;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        if text.contains(&mark) {
            match parse_line(&text) {
                Some(TranscriptLine::User { text }) if text.contains(&mark) => return Ok(true),
                _ => {}
            }
        }
        line.clear();
    }
    Ok(false)
}

/// Name of the directory of a project's transcripts: every character but letters and digits becomes `-`.
pub fn project_dir_name(cwd: &Path) -> String {
    cwd.to_string_lossy().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// Finds the transcript of a session below the runtime's configuration directory.
pub fn find(config_dir: &Path, cwd: &Path, runtime_session_id: &str) -> Option<PathBuf> {
    let valid = !runtime_session_id.is_empty()
        && runtime_session_id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !valid {
        return None;
    }
    let projects = config_dir.join("projects");
    let file = format!("{runtime_session_id}.jsonl");
    let usual = projects.join(project_dir_name(cwd)).join(&file);
    if usual.exists() {
        return Some(usual);
    }
    // The directory name of a long path is cut and hashed, so the id decides.
    let dirs = std::fs::read_dir(&projects).ok()?;
    dirs.flatten().map(|dir| dir.path().join(&file)).find(|path| path.exists())
}

fn content_text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks
            .iter()
            .filter(|b| b.get("type").and_then(Value::as_str) == Some("text"))
            .filter_map(|b| b.get("text").and_then(Value::as_str))
            .collect::<Vec<_>>()
            .join("\n"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_input_is_found_only_in_what_was_said_to_the_model() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("t.jsonl");
        let (seen, mentioned) = (Ulid::from_parts(1, 1), Ulid::from_parts(2, 2));
        let lines = format!(
            "{{\"type\":\"queue-operation\",\"content\":\"#{mentioned}\"}}\n{{torn\n\
             {{\"type\":\"user\",\"cwd\":\"/a\",\"message\":{{\"content\":\"[x #{seen}] hi\"}}}}\n\
             {{\"type\":\"assistant\",\"message\":{{\"content\":[{{\"type\":\"text\",\"text\":\"#{mentioned}\"}}]}}}}\n"
        );
        std::fs::write(&path, lines).expect("write");
        assert!(holds_input(&path, seen, 1 << 20).expect("read"));
        assert!(!holds_input(&path, mentioned, 1 << 20).expect("read"));
        assert_eq!(recorded_cwd(&path).expect("read"), Some(PathBuf::from("/a")));
    }

    #[test]
    fn the_directory_of_a_project() {
        assert_eq!(project_dir_name(Path::new("/home/ann/my.agent")), "-home-ann-my-agent");
    }

    proptest! {
        #[test]
        fn no_line_breaks_the_parser(line in prop_oneof![
            ".{0,200}",
            r#"\{"type":"(user|assistant|x)","message":(null|1|\{"content":(null|1|"a"|\[null,1,\{"type":"text"\}\])\})\}"#,
        ]) {
            let _ = parse_line(&line);
        }
    }
}
