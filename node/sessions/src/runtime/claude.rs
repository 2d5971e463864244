//! Claude Code: launch lines and files (`agent-core.md` §6.3, §6.4).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use instar_durable::{FileLock, write_atomic};
use serde_json::{Map, Value, json};

use super::{Launch, LaunchRefused, LaunchRequest, Runtime};
use crate::config::{Credential, CredentialKind, PermissionMode, SessionsConfig};
use crate::dialogs::{self, Dialog};
use crate::environment::Environment;
use crate::process;
use crate::record::Transport;
use crate::transcript;

/// Claude Code.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClaudeCode;

/// Id of the first request on the control channel; its answer means that the program is ready.
pub const READY_REQUEST: &str = "instar-ready";

const FORBIDDEN: [&str; 8] = [
    "--dangerously",
    "--allow-dangerously",
    "--settings",
    "--resume",
    "--session-id",
    "--permission-mode",
    "--mcp-config",
    "--print",
];

impl Runtime for ClaudeCode {
    fn framework(&self) -> &'static str {
        "claude-code"
    }

    fn program(&self, config: &SessionsConfig, search_path: &str) -> Result<PathBuf, LaunchRefused> {
        let name = config.claude_path.as_ref().map_or("claude".into(), |p| p.to_string_lossy());
        process::find_program(&name, search_path).ok_or_else(|| LaunchRefused::Missing {
            program: format!("Claude Code ({name})"),
            key: "sessions.claudePath",
        })
    }

    fn launch(&self, request: &LaunchRequest<'_>) -> Result<Launch, LaunchRefused> {
        let config = request.config;
        if let Some(bad) = forbidden_argument(&config.extra_args) {
            return Err(LaunchRefused::ForbiddenArgument(bad));
        }
        let mode = permission_mode(request);
        if mode == "bypassPermissions" && request.root && !config.allow_root {
            return Err(LaunchRefused::Root);
        }
        let mut argv = vec![request.program.to_string_lossy().into_owned()];
        let mut flag = |text: String| argv.push(text);
        if request.transport == Transport::Stdio {
            for text in [
                "-p",
                "--input-format=stream-json",
                "--output-format=stream-json",
                "--verbose",
                "--replay-user-messages",
                "--include-hook-events",
            ] {
                flag(text.to_owned());
            }
        }
        flag(format!("--permission-mode={mode}"));
        flag(format!("--settings={}", request.files.settings().display()));
        match request.resume {
            Some(runtime_id) => flag(format!("--resume={runtime_id}")),
            None => flag(format!("--session-id={}", request.id)),
        }
        if let Some(model) = request.model {
            flag(format!("--model={model}"));
        }
        if let Some(effort) = request.effort {
            flag(format!("--effort={effort}"));
        }
        let tools = request.peer.map_or(request.allowed_tools, |peer| &peer.allowed_tools);
        if !tools.is_empty() {
            flag(format!("--allowedTools={}", tools.join(",")));
        }
        if request.transport == Transport::Stdio {
            if let Some(turns) = request.max_turns {
                flag(format!("--max-turns={turns}"));
            }
            if let Some(cost) = request.max_cost_usd {
                flag(format!("--max-budget-usd={cost}"));
            }
        }
        if request.peer.is_some() {
            flag("--strict-mcp-config".to_owned());
        }
        flag(format!("--mcp-config={}", request.files.mcp().display()));
        if request.peer.is_none() {
            argv.extend(config.extra_args.iter().cloned());
        }
        let mut settings = Map::new();
        // Without it the terminal asks about the project's `.mcp.json`, which `init` made, and refuses by default.
        settings.insert("enabledMcpjsonServers".into(), json!(["threadline"]));
        if mode == "bypassPermissions" {
            settings.insert("skipDangerousModePermissionPrompt".into(), json!(true));
        }
        Ok(Launch {
            argv,
            env: environment(config, request.root),
            settings,
            first_lines: match request.transport {
                Transport::Stdio => {
                    vec![control(READY_REQUEST, &json!({"subtype": "initialize", "hooks": null}))]
                }
                Transport::Tmux => Vec::new(),
            },
        })
    }

    fn prepare_home(&self, config: &SessionsConfig, home: &Path) -> Result<(), LaunchRefused> {
        let Some(credential) = config.anthropic.as_ref().filter(|c| c.kind == CredentialKind::ApiKey) else {
            return Ok(());
        };
        let path = home.join(".claude.json");
        record_key(&path, &credential.value)
            .map_err(|error| LaunchRefused::Home { path, reason: error.to_string() })
    }

    fn input_line(&self, session: &str, uuid: &str, text: &str) -> String {
        json!({
            "type": "user",
            "uuid": uuid,
            "message": {"role": "user", "content": [{"type": "text", "text": text}]},
            "parent_tool_use_id": null,
            "session_id": session,
        })
        .to_string()
    }

    fn interrupt_line(&self, request_id: &str) -> String {
        control(request_id, &json!({"subtype": "interrupt"}))
    }

    fn transcript(&self, env: &Environment, cwd: &Path, runtime_session_id: &str) -> Option<PathBuf> {
        let config_dir = match env.get("CLAUDE_CONFIG_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => Path::new(env.get("HOME")?).join(".claude"),
        };
        transcript::find(&config_dir, cwd, runtime_session_id)
    }

    fn dialogs(&self) -> &'static [Dialog] {
        &dialogs::CLAUDE
    }
}

/// A session that serves a peer never bypasses permissions, whatever is configured.
fn permission_mode(request: &LaunchRequest<'_>) -> &'static str {
    match (request.peer, request.config.permission_mode) {
        (Some(_), _) => "default",
        (None, PermissionMode::Bypass) => "bypassPermissions",
        (None, PermissionMode::DontAsk) => "dontAsk",
    }
}

fn forbidden_argument(extra: &[String]) -> Option<String> {
    extra.iter().find(|arg| *arg == "-p" || FORBIDDEN.iter().any(|bad| arg.starts_with(bad))).cloned()
}

fn environment(config: &SessionsConfig, root: bool) -> Environment {
    let mut env = BTreeMap::new();
    if let Some(Credential { kind, value, base_url }) = &config.anthropic {
        let name = match kind {
            CredentialKind::OauthToken => "CLAUDE_CODE_OAUTH_TOKEN",
            CredentialKind::ApiKey => "ANTHROPIC_API_KEY",
        };
        env.insert(name.to_owned(), value.clone());
        if let Some(url) = base_url {
            env.insert("ANTHROPIC_BASE_URL".to_owned(), url.clone());
        }
    }
    if root && config.allow_root {
        env.insert("IS_SANDBOX".to_owned(), "1".to_owned());
    }
    env
}

fn control(request_id: &str, request: &Value) -> String {
    json!({"type": "control_request", "request_id": request_id, "request": request}).to_string()
}

/// Tells the program that onboarding is done and that this key, known by its last 20 characters, may be used.
fn record_key(path: &Path, key: &str) -> io::Result<()> {
    let lock_path = path.with_file_name(".claude.json.instar-lock");
    let _lock = FileLock::acquire_within(&lock_path, Duration::from_secs(5)).map_err(io::Error::other)?;
    let old = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
            io::Error::other(format!("it is not valid JSON ({e}); repair it or move it away"))
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => json!({}),
        Err(error) => return Err(error),
    };
    let tail_start = key.char_indices().rev().nth(19).map_or(0, |(at, _)| at);
    let Some(new) = with_key(&old, key.get(tail_start..).unwrap_or_default()) else {
        return Err(io::Error::other("it does not hold a JSON object as expected"));
    };
    if new == old {
        return Ok(());
    }
    let mode = fs::metadata(path)
        .map_or(0o600, |m| std::os::unix::fs::PermissionsExt::mode(&m.permissions()) & 0o777);
    write_atomic(path, &serde_json::to_vec_pretty(&new)?, mode).map_err(|e| e.source)
}

fn with_key(old: &Value, tail: &str) -> Option<Value> {
    let mut new = old.clone();
    let root = new.as_object_mut()?;
    root.insert("hasCompletedOnboarding".into(), json!(true));
    let responses = root.entry("customApiKeyResponses").or_insert_with(|| json!({})).as_object_mut()?;
    let approved = responses.entry("approved").or_insert_with(|| json!([])).as_array_mut()?;
    if !approved.iter().any(|known| known == tail) {
        approved.push(json!(tail));
    }
    let rejected = responses.entry("rejected").or_insert_with(|| json!([])).as_array_mut()?;
    rejected.retain(|known| known != tail);
    Some(new)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use instar_state::ids::SessionId;
    use instar_state::ports::PeerBinding;

    use super::*;
    use crate::launch::SessionFiles;

    fn request<'a>(config: &'a SessionsConfig, files: &'a SessionFiles, id: SessionId) -> LaunchRequest<'a> {
        LaunchRequest {
            config,
            program: Path::new("/bin/claude"),
            id,
            files,
            transport: Transport::Stdio,
            resume: None,
            model: None,
            effort: None,
            peer: None,
            allowed_tools: &[],
            max_turns: None,
            max_cost_usd: None,
            root: false,
        }
    }

    #[test]
    fn a_session_for_a_peer_is_strict_and_never_bypasses() {
        let id = SessionId::random();
        let files = SessionFiles::new(Path::new("/a/.instar"), id);
        let config = SessionsConfig { extra_args: vec!["--add-dir=/".into()], ..SessionsConfig::default() };
        let peer = PeerBinding {
            peer: "0".repeat(32),
            thread: "t".into(),
            allowed_tools: vec!["Read(src/**)".into(), "mcp__threadline__threadline_send".into()],
        };
        for transport in [Transport::Stdio, Transport::Tmux] {
            let request =
                LaunchRequest { peer: Some(&peer), transport, root: true, ..request(&config, &files, id) };
            let launch = ClaudeCode.launch(&request).expect("launch");
            let line = launch.argv.join(" ");
            assert!(line.contains("--permission-mode=default"), "{line}");
            assert!(line.contains("--strict-mcp-config"), "{line}");
            assert!(line.contains("--allowedTools=Read(src/**),mcp__threadline__threadline_send"), "{line}");
            assert!(!line.contains("bypass") && !line.contains("--add-dir"), "{line}");
            let settings: Vec<_> = launch.settings.keys().map(String::as_str).collect();
            assert_eq!(settings, ["enabledMcpjsonServers"], "nothing that loosens permissions");
        }
    }

    #[test]
    fn root_is_refused_unless_allowed() {
        let id = SessionId::random();
        let files = SessionFiles::new(Path::new("/a/.instar"), id);
        let config = SessionsConfig::default();
        let refused = ClaudeCode.launch(&LaunchRequest { root: true, ..request(&config, &files, id) });
        assert_eq!(refused, Err(LaunchRefused::Root));
        let config = SessionsConfig { allow_root: true, ..config };
        let launch =
            ClaudeCode.launch(&LaunchRequest { root: true, ..request(&config, &files, id) }).expect("launch");
        assert_eq!(launch.env.get("IS_SANDBOX").map(String::as_str), Some("1"));
    }

    #[test]
    fn nothing_secret_is_in_the_launch_line() {
        let id = SessionId::random();
        let files = SessionFiles::new(Path::new("/a/.instar"), id);
        let credential = Credential {
            kind: CredentialKind::ApiKey,
            value: "sk-secret".into(),
            base_url: Some("http://x".into()),
        };
        let config = SessionsConfig { anthropic: Some(credential), ..SessionsConfig::default() };
        let launch = ClaudeCode.launch(&request(&config, &files, id)).expect("launch");
        assert!(!launch.argv.join(" ").contains("sk-secret"));
        assert_eq!(launch.env.get("ANTHROPIC_API_KEY").map(String::as_str), Some("sk-secret"));
        assert!(!launch.env.contains_key("CLAUDE_CODE_OAUTH_TOKEN"));
    }

    #[test]
    fn extra_arguments_cannot_undo_the_line() {
        for bad in
            ["-p", "--dangerously-skip-permissions", "--settings=/x", "--permission-mode", "--mcp-config=x"]
        {
            assert!(forbidden_argument(&[bad.to_owned()]).is_some(), "{bad}");
        }
        assert!(forbidden_argument(&["--debug".to_owned()]).is_none());
    }

    #[test]
    fn the_key_is_recorded_by_its_tail_and_other_keys_stay() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join(".claude.json");
        fs::write(&path, r#"{"z":1,"customApiKeyResponses":{"rejected":["bcdefghijklmnopqrstu"]},"a":2}"#)
            .expect("write");
        record_key(&path, "sk-abcdefghijklmnopqrstu").expect("record");
        record_key(&path, "sk-abcdefghijklmnopqrstu").expect("again");
        let text = fs::read_to_string(&path).expect("read");
        let value: Value = serde_json::from_str(&text).expect("json");
        assert_eq!(value["customApiKeyResponses"]["approved"], json!(["bcdefghijklmnopqrstu"]));
        assert_eq!(value["customApiKeyResponses"]["rejected"], json!([]));
        assert!(text.find("\"z\"") < text.find("\"a\""), "{text}");
        fs::write(&path, "{broken").expect("write");
        assert!(record_key(&path, "sk-abcdefghijklmnopqrstu").is_err());
        assert_eq!(fs::read_to_string(&path).expect("read"), "{broken");
    }
}
