//! Command hooks of the settings files, run as the real CLI runs them.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::future::join_all;
use regex::Regex;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use uuid::Uuid;

use super::{Args, Out, config_dir};

/// The registered hooks of a session.
pub(super) struct Hooks {
    by_event: HashMap<String, Vec<Hook>>,
    common: Value,
    permission_mode: String,
    project: String,
    show: bool,
    out: Arc<Out>,
}

#[derive(Debug, Clone)]
struct Hook {
    matcher: Option<Regex>,
    command: String,
    timeout: Duration,
}

/// What the hooks of one event decided together.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Reason of a denial or block; it wins over everything else.
    pub(super) blocked: Option<String>,
    /// Whether a hook allowed the call.
    pub(super) allowed: bool,
    /// Text for the conversation.
    pub(super) contexts: Vec<String>,
}

impl Hooks {
    /// Reads user, project and `--settings` files; a missing file is no error.
    pub(super) fn load(
        home: &Path,
        cwd: &Path,
        args: &Args,
        out: Arc<Out>,
        transcript: &Path,
    ) -> anyhow::Result<Self> {
        let mut files = vec![
            config_dir(home).join("settings.json"),
            cwd.join(".claude/settings.json"),
            cwd.join(".claude/settings.local.json"),
        ];
        files.extend(args.settings.clone());
        let mut by_event: HashMap<String, Vec<Hook>> = HashMap::new();
        for file in files {
            let Ok(text) = std::fs::read(&file) else { continue };
            let settings: Value =
                serde_json::from_slice(&text).with_context(|| format!("settings {}", file.display()))?;
            for (event, groups) in settings["hooks"].as_object().into_iter().flatten() {
                let hooks = groups.as_array().into_iter().flatten().flat_map(Hook::of_group);
                by_event.entry(event.clone()).or_default().extend(hooks);
            }
        }
        let common = json!({
            "session_id": args.session_id, "transcript_path": transcript, "cwd": cwd
        });
        let permission_mode = args.permission_mode.clone();
        let project = cwd.to_string_lossy().into_owned();
        Ok(Self { by_event, common, permission_mode, project, show: args.hook_events, out })
    }

    /// Runs the hooks of `event` whose matcher takes `subject`, all at once.
    pub(super) async fn run(&self, event: &str, subject: &str, extra: Value) -> Outcome {
        let mut input = self.common.clone();
        input["hook_event_name"] = event.into();
        if !matches!(event, "SessionStart" | "SessionEnd") {
            input["permission_mode"] = self.permission_mode.clone().into();
        }
        for (field, value) in extra.as_object().into_iter().flatten() {
            input[field] = value.clone();
        }
        let mut known = BTreeSet::new();
        let chosen: Vec<&Hook> = self
            .by_event
            .get(event)
            .into_iter()
            .flatten()
            .filter(|hook| hook.matcher.as_ref().is_none_or(|matcher| matcher.is_match(subject)))
            .filter(|hook| known.insert(hook.command.clone()))
            .collect();
        let name = if subject.is_empty() { event.to_owned() } else { format!("{event}:{subject}") };
        let results = join_all(chosen.iter().map(|hook| self.run_one(hook, &name, event, &input))).await;
        let mut outcome = Outcome::default();
        for (hook, result) in chosen.iter().zip(results) {
            outcome.add(event, &hook.command, result);
        }
        outcome
    }

    async fn run_one(&self, hook: &Hook, name: &str, event: &str, input: &Value) -> Finished {
        let id = Uuid::new_v4().to_string();
        let shown = json!({"type": "system", "hook_id": id, "hook_name": name, "hook_event": event});
        let show = |subtype: &str, more: Value| {
            if self.show {
                let mut line = shown.clone();
                line["subtype"] = subtype.into();
                for (field, value) in more.as_object().into_iter().flatten() {
                    line[field] = value.clone();
                }
                self.out.emit(line);
            }
        };
        show("hook_started", json!({}));
        let finished = self.execute(hook, input).await.unwrap_or_else(|error| Finished {
            code: None,
            stdout: String::new(),
            stderr: error.to_string(),
        });
        show(
            "hook_response",
            json!({
                "output": format!("{}{}", finished.stdout, finished.stderr), "stdout": finished.stdout,
                "stderr": finished.stderr, "exit_code": finished.code,
                "outcome": if finished.code == Some(0) { "success" } else { "error" }
            }),
        );
        finished
    }

    async fn execute(&self, hook: &Hook, input: &Value) -> anyhow::Result<Finished> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", &hook.command])
            .env("CLAUDE_PROJECT_DIR", &self.project)
            .env("CLAUDE_CODE_SESSION_ID", self.common["session_id"].as_str().unwrap_or_default())
            .env("CLAUDE_PID", std::process::id().to_string())
            .env("CLAUDECODE", "1")
            .env("CLAUDE_CODE_ENTRYPOINT", "sdk-cli")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().context("stdin of the hook")?;
        let text = input.to_string();
        let done = async {
            // A hook that does not read its input is no error.
            let _ = stdin.write_all(text.as_bytes()).await;
            drop(stdin);
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(hook.timeout, done).await.context("the hook timed out")??;
        Ok(Finished {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

impl Hook {
    fn of_group(group: &Value) -> Vec<Self> {
        // The real CLI warns about a bad matcher and leaves the group out.
        let matcher = match group["matcher"].as_str() {
            None | Some("" | "*") => None,
            Some(text) => match Regex::new(&format!("^(?:{text})$")) {
                Ok(matcher) => Some(matcher),
                Err(_) => return Vec::new(),
            },
        };
        let hooks = group["hooks"].as_array().into_iter().flatten();
        hooks
            .filter(|hook| hook["type"] == "command")
            .filter_map(|hook| {
                Some(Self {
                    matcher: matcher.clone(),
                    command: hook["command"].as_str()?.to_owned(),
                    timeout: Duration::from_secs(hook["timeout"].as_u64().unwrap_or(600)),
                })
            })
            .collect()
    }
}

struct Finished {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Outcome {
    fn add(&mut self, event: &str, command: &str, finished: Finished) {
        if finished.code == Some(2) {
            let reason = format!("[{command}]: {}", finished.stderr);
            self.blocked.get_or_insert(reason);
            return;
        }
        if finished.code != Some(0) {
            return;
        }
        let Ok(answer @ Value::Object(_)) = serde_json::from_str::<Value>(&finished.stdout) else {
            let plain = matches!(event, "SessionStart" | "UserPromptSubmit");
            if plain && !finished.stdout.trim().is_empty() {
                self.contexts.push(finished.stdout);
            }
            return;
        };
        let specific = &answer["hookSpecificOutput"];
        let reason = |field: &Value| field.as_str().unwrap_or("denied by a hook").to_owned();
        if specific["permissionDecision"] == "deny" {
            self.blocked.get_or_insert(reason(&specific["permissionDecisionReason"]));
        }
        if specific["decision"]["behavior"] == "deny" {
            self.blocked.get_or_insert(reason(&specific["decision"]["message"]));
        }
        if answer["decision"] == "block" {
            self.blocked.get_or_insert(reason(&answer["reason"]));
        }
        self.allowed |=
            specific["permissionDecision"] == "allow" || specific["decision"]["behavior"] == "allow";
        if let Some(context) = specific["additionalContext"].as_str() {
            self.contexts.push(context.to_owned());
        }
    }
}
