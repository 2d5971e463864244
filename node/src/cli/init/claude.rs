//! What Claude Code reads about us: the MCP entry in `.mcp.json`, entry and trust in `~/.claude.json`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use instar_durable::{FileLock, write_atomic};
use instar_state::paths::{AccountPaths, AgentPaths};
use serde_json::{Map, Value, json};

use crate::cli::Failure;

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merged {
    Created,
    Updated,
    Unchanged,
    /// The file is not a JSON object and was left alone.
    Malformed,
}

const SERVER: &str = "threadline";

/// Our entry of `mcpServers`.
pub(crate) fn mcp_entry(paths: &AgentPaths) -> Value {
    json!({
        "type": "stdio",
        "command": paths.current().join("instar"),
        "args": ["mcp", "threadline", "--state-dir", paths.state()],
        "env": {},
    })
}

/// Puts our server into the project's `.mcp.json`.
pub(crate) fn register_project(paths: &AgentPaths) -> Result<Merged, Failure> {
    edit_json(&paths.project().join(".mcp.json"), 0o644, |root| {
        let Some(servers) = object_at(root, "mcpServers") else { return false };
        servers.insert(SERVER.into(), mcp_entry(paths));
        true
    })
}

/// Puts server and trust for the project into `~/.claude.json`.
pub(crate) fn register_account(account: &AccountPaths, paths: &AgentPaths) -> Result<Merged, Failure> {
    edit_account(account, |root| {
        let Some(project) =
            object_at(root, "projects").and_then(|p| object_at(p, &paths.project().to_string_lossy()))
        else {
            return false;
        };
        project.insert("hasTrustDialogAccepted".into(), true.into());
        let Some(servers) = object_at(project, "mcpServers") else { return false };
        servers.insert(SERVER.into(), mcp_entry(paths));
        true
    })
}

/// Whether both files hold our entry.
pub(crate) fn is_registered(account: &AccountPaths, paths: &AgentPaths) -> bool {
    let entry = mcp_entry(paths);
    let project = read_object(&paths.project().join(".mcp.json"));
    let account = read_object(&account.claude_json());
    let own = project.as_ref().and_then(|root| root.get("mcpServers")?.get(SERVER));
    let shared = account.as_ref().and_then(|root| {
        root.get("projects")?.get(paths.project().to_string_lossy().as_ref())?.get("mcpServers")?.get(SERVER)
    });
    own == Some(&entry) && shared == Some(&entry)
}

/// Whether `~/.claude.json` says that the project is trusted.
pub(crate) fn is_trusted(account: &AccountPaths, paths: &AgentPaths) -> bool {
    read_object(&account.claude_json()).is_some_and(|root| {
        let project = root.get("projects").and_then(|p| p.get(paths.project().to_string_lossy().as_ref()));
        project.and_then(|p| p.get("hasTrustDialogAccepted")) == Some(&Value::Bool(true))
    })
}

/// Removes exactly our entries.
pub(crate) fn unregister(account: &AccountPaths, paths: &AgentPaths) -> Result<bool, Failure> {
    let entry = mcp_entry(paths);
    let remove = |root: &mut Map<String, Value>| {
        let Some(servers) = root.get_mut("mcpServers").and_then(Value::as_object_mut) else { return };
        if servers.get(SERVER) == Some(&entry) {
            servers.shift_remove(SERVER);
        }
        if servers.is_empty() {
            root.shift_remove("mcpServers");
        }
    };
    let file = paths.project().join(".mcp.json");
    let project = edit_existing(&file, |root| {
        remove(root);
        true
    })?;
    if project == Merged::Updated && read_object(&file).is_some_and(|root| root.is_empty()) {
        std::fs::remove_file(&file)?;
    }
    let shared = if account.claude_json().exists() {
        edit_account(account, |root| {
            let key = paths.project().to_string_lossy();
            if let Some(own) =
                root.get_mut("projects").and_then(|p| p.get_mut(key.as_ref())).and_then(Value::as_object_mut)
            {
                remove(own);
            }
            true
        })?
    } else {
        Merged::Unchanged
    };
    Ok(project == Merged::Updated || shared == Merged::Updated)
}

/// Claude Code writes this file too; the lock keeps our own processes apart.
fn edit_account(
    account: &AccountPaths,
    change: impl FnOnce(&mut Map<String, Value>) -> bool,
) -> Result<Merged, Failure> {
    let lock = account.home().join(".claude.json.instar-lock");
    let _lock = FileLock::acquire_within(&lock, Duration::from_secs(5))?;
    edit_json(&account.claude_json(), 0o600, change)
}

fn edit_existing(
    path: &Path,
    change: impl FnOnce(&mut Map<String, Value>) -> bool,
) -> Result<Merged, Failure> {
    if path.exists() { edit_json(path, 0o644, change) } else { Ok(Merged::Unchanged) }
}

/// Changes a JSON file, other keys and their order kept. `change` says whether the file had the expected shape.
fn edit_json(
    path: &Path,
    mode: u32,
    change: impl FnOnce(&mut Map<String, Value>) -> bool,
) -> Result<Merged, Failure> {
    // A link stays a link: the file that it names is replaced.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let before = match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Failure::failed(format!("cannot read {}: {error}", path.display()))),
    };
    let old = match &before {
        Some(bytes) => match serde_json::from_slice::<Value>(bytes) {
            Ok(Value::Object(root)) => root,
            _ => return Ok(Merged::Malformed),
        },
        None => Map::new(),
    };
    let mut new = old.clone();
    if !change(&mut new) {
        return Ok(Merged::Malformed);
    }
    if before.is_some() && new == old {
        return Ok(Merged::Unchanged);
    }
    let mut bytes = serde_json::to_vec_pretty(&new).map_err(anyhow::Error::from)?;
    bytes.push(b'\n');
    write_atomic(&path, &bytes, current_mode(&path).unwrap_or(mode))?;
    Ok(if before.is_some() { Merged::Updated } else { Merged::Created })
}

fn current_mode(path: &PathBuf) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    Some(std::fs::metadata(path).ok()?.permissions().mode() & 0o777)
}

fn object_at<'a>(root: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    root.entry(key).or_insert_with(|| Value::Object(Map::new())).as_object_mut()
}

fn read_object(path: &Path) -> Option<Map<String, Value>> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_keys_and_their_order_survive_and_removal_takes_only_ours() {
        let dir = tempfile::tempdir().expect("dir");
        let account = AccountPaths::new(dir.path());
        let paths = AgentPaths::new(dir.path().join("p"));
        std::fs::create_dir(paths.project()).expect("dir");
        let theirs = r#"{"zed":1,"projects":{"/other":{"x":1}},"alpha":{"mcpServers":{}}}"#;
        std::fs::write(account.claude_json(), theirs).expect("write");
        let mcp = paths.project().join(".mcp.json");
        std::fs::write(&mcp, r#"{"mcpServers":{"mine":{"command":"x"}}}"#).expect("write");

        assert_eq!(register_account(&account, &paths).ok(), Some(Merged::Updated));
        assert_eq!(register_project(&paths).ok(), Some(Merged::Updated));
        assert_eq!(register_account(&account, &paths).ok(), Some(Merged::Unchanged));
        assert!(is_registered(&account, &paths) && is_trusted(&account, &paths));
        let root = read_object(&account.claude_json()).expect("object");
        assert_eq!(root.keys().collect::<Vec<_>>(), ["zed", "projects", "alpha"]);

        assert_eq!(unregister(&account, &paths).ok(), Some(true));
        assert!(!is_registered(&account, &paths));
        assert_eq!(read_object(&mcp).expect("object")["mcpServers"], json!({"mine": {"command": "x"}}));
    }

    #[test]
    fn a_file_that_is_not_json_is_left_alone() {
        let dir = tempfile::tempdir().expect("dir");
        let account = AccountPaths::new(dir.path());
        let paths = AgentPaths::new(dir.path());
        for text in ["{ nonsense", "[]", r#"{"projects": 5}"#] {
            std::fs::write(account.claude_json(), text).expect("write");
            assert_eq!(register_account(&account, &paths).ok(), Some(Merged::Malformed));
            assert_eq!(std::fs::read_to_string(account.claude_json()).expect("read"), text);
        }
    }
}
