//! One turn: the hooks, the script's answer, its tool calls, until the text that ends it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use super::hooks::Hooks;
use super::inputs::Input;
use super::mcp::McpServers;
use super::tools::{self, BUILT_IN};
use super::transcript::Transcript;
use super::{Args, Out};
use crate::script::{Call, Conversation, Fault, Reply, Script, Step};

/// Requests in one turn before the stand-in gives up on its script.
const MAX_STEPS: usize = 200;

/// A running session.
pub(super) struct Session {
    pub(super) script: Script,
    pub(super) args: Args,
    pub(super) cwd: PathBuf,
    pub(super) messages: Vec<Value>,
    pub(super) transcript: Transcript,
    pub(super) hooks: Hooks,
    pub(super) mcp: McpServers,
    pub(super) out: Arc<Out>,
}

/// How a turn ended.
struct End {
    text: String,
    steps: usize,
    denials: Vec<Value>,
    api_error: Option<u16>,
}

impl Session {
    /// Runs the SessionStart hooks.
    pub(super) async fn begin(&mut self) {
        let source = if self.args.resume { "resume" } else { "startup" };
        let extra = json!({"source": source, "model": self.args.model});
        let outcome = self.hooks.run("SessionStart", source, extra).await;
        self.add_context("SessionStart", outcome.contexts);
    }

    /// Runs the SessionEnd hooks.
    pub(super) async fn end(&mut self) {
        self.hooks.run("SessionEnd", "other", json!({"reason": "other"})).await;
    }

    /// Reports a turn that the client stopped.
    pub(super) fn interrupted(&mut self) {
        let said =
            json!({"role": "user", "content": [{"type": "text", "text": "[Request interrupted by user]"}]});
        self.push(said.clone());
        self.out.emit(json!({"type": "user", "message": said, "parent_tool_use_id": null}));
        let end = End { text: String::new(), steps: 1, denials: Vec::new(), api_error: None };
        self.result(&end, "error_during_execution", true, Instant::now());
    }

    /// Serves one user message; whether its turn ended well.
    pub(super) async fn turn(&mut self, input: &Input) -> bool {
        let started = Instant::now();
        let outcome = self.hooks.run("UserPromptSubmit", "", json!({"prompt": input.text})).await;
        self.out.emit(self.init());
        if let Some(reason) = outcome.blocked {
            let text = format!("UserPromptSubmit operation blocked by hook:\n{reason}");
            let end = End { text, steps: 0, denials: Vec::new(), api_error: None };
            self.result(&end, "success", false, started);
            return true;
        }
        let message = json!({"role": "user", "content": [{"type": "text", "text": input.text}]});
        self.transcript.push_as(&message, input.uuid.clone());
        self.messages.push(message.clone());
        if self.args.replay {
            self.out.replay(&message, &input.uuid);
        }
        self.add_context("UserPromptSubmit", outcome.contexts);

        let mut end = self.answer().await;
        if end.api_error.is_none() {
            let extra = json!({"stop_hook_active": false, "last_assistant_message": end.text.trim(),
                "background_tasks": [], "session_crons": []});
            if let Some(reason) = self.hooks.run("Stop", "", extra).await.blocked {
                let feedback = format!("Stop hook feedback:\n{reason}");
                self.push(json!({"role": "user", "content": [{"type": "text", "text": feedback}]}));
                end = self.answer().await;
            }
        }
        self.result(&end, "success", end.api_error.is_some(), started);
        end.api_error.is_none()
    }

    /// Asks the script again and again until it says something without calling a tool.
    async fn answer(&mut self) -> End {
        let mut end = End { text: String::new(), steps: 0, denials: Vec::new(), api_error: None };
        while end.steps < MAX_STEPS {
            end.steps += 1;
            let conversation = Conversation::from_messages(&Value::Null, &json!(self.messages));
            let reply = self.script.reply(&conversation).unwrap_or_else(|| no_rule(&conversation));
            match &reply.say.fault {
                Some(Fault::Sleep { ms } | Fault::Slow { ms }) => {
                    tokio::time::sleep(Duration::from_millis(*ms)).await;
                }
                Some(Fault::Hang) => std::future::pending::<()>().await,
                // What a crash of the CLI looks like from outside.
                Some(Fault::Drop) => std::process::abort(),
                // The CLI tries again by itself, and such an error passes.
                Some(Fault::Error { times: Some(_), retry_after, .. }) => {
                    tokio::time::sleep(Duration::from_secs(retry_after.unwrap_or(1))).await;
                }
                Some(Fault::Error { status, error, times: None, .. }) => {
                    end.text = format!("API Error: {status} {error}");
                    end.api_error = Some(*status);
                    self.say(&Step { text: Some(end.text.clone()), ..Step::default() });
                    return end;
                }
                None => {}
            }
            let calls = self.say(&reply.say);
            if let Some(text) = &reply.say.text {
                end.text.clone_from(text);
            }
            if calls.is_empty() {
                return end;
            }
            for (id, call) in calls {
                let (content, failed) = self.call(&id, &call, &mut end.denials).await;
                let mut result = json!({"type": "tool_result", "tool_use_id": id, "content": content});
                if failed {
                    result["is_error"] = true.into();
                }
                let message = json!({"role": "user", "content": [result]});
                let uuid = self.push(message.clone());
                self.out.emit(
                    json!({"type": "user", "message": message, "parent_tool_use_id": null, "uuid": uuid}),
                );
            }
        }
        end
    }

    /// Writes the assistant message of a step; gives back its tool calls with their ids.
    fn say(&mut self, step: &Step) -> Vec<(String, Call)> {
        let mut content = Vec::new();
        if let Some(thought) = &step.think {
            content.push(json!({"type": "thinking", "thinking": thought, "signature": "ZG91Ymxl"}));
        }
        if let Some(text) = &step.text {
            content.push(json!({"type": "text", "text": text}));
        }
        let mut calls = Vec::new();
        for call in &step.calls {
            let id = format!("toolu_{}", Uuid::new_v4().simple());
            content.push(json!({"type": "tool_use", "id": id, "name": call.tool, "input": call.input}));
            calls.push((id, call.clone()));
        }
        let message = json!({
            "id": format!("msg_{}", Uuid::new_v4().simple()), "type": "message", "role": "assistant",
            "model": self.args.model, "content": content, "stop_sequence": null,
            "stop_reason": if calls.is_empty() { "end_turn" } else { "tool_use" },
            "usage": {"input_tokens": step.usage.unwrap_or(1), "output_tokens": 1}
        });
        let uuid = self.push(message.clone());
        self.out
            .emit(json!({"type": "assistant", "message": message, "parent_tool_use_id": null, "uuid": uuid}));
        calls
    }

    /// Asks the hooks and the permission rules, then runs the tool.
    async fn call(&mut self, id: &str, call: &Call, denials: &mut Vec<Value>) -> (Value, bool) {
        let about = json!({"tool_name": call.tool, "tool_input": call.input, "tool_use_id": id});
        let denial = json!({"tool_name": call.tool, "tool_use_id": id, "tool_input": call.input});
        let before = self.hooks.run("PreToolUse", &call.tool, about.clone()).await;
        self.add_context("PreToolUse", before.contexts);
        if let Some(reason) = before.blocked {
            denials.push(denial);
            return (format!("PreToolUse:{} hook error: {reason}", call.tool).into(), true);
        }
        if !before.allowed && !tools::permitted(&self.args, &call.tool) {
            let asked = self.hooks.run("PermissionRequest", &call.tool, about.clone()).await;
            if asked.blocked.is_some() || !asked.allowed {
                denials.push(denial);
                let text = asked.blocked.unwrap_or_else(|| {
                    format!(
                        "Claude requested permissions to use {}, but you haven't granted it yet.",
                        call.tool
                    )
                });
                return (text.into(), true);
            }
        }
        let started = Instant::now();
        let (content, failed) = if call.tool.starts_with("mcp__") {
            self.mcp.call(&call.tool, &call.input).await
        } else {
            tools::run(&call.tool, &call.input, &self.cwd).await
        };
        let mut after = about;
        after["tool_response"] = content.clone();
        after["duration_ms"] = (started.elapsed().as_millis() as u64).into();
        let event = if failed { "PostToolUseFailure" } else { "PostToolUse" };
        let outcome = self.hooks.run(event, &call.tool, after).await;
        self.add_context(event, outcome.contexts);
        (content, failed)
    }

    fn init(&self) -> Value {
        let mut names: Vec<String> = BUILT_IN.iter().map(|&name| name.to_owned()).collect();
        names.extend(self.mcp.tools());
        json!({
            "type": "system", "subtype": "init", "cwd": self.cwd, "tools": names,
            "mcp_servers": self.mcp.status(), "model": self.args.model,
            "permissionMode": self.args.permission_mode, "apiKeySource": "ANTHROPIC_API_KEY",
            "claude_code_version": "2.1.330", "output_style": "default", "slash_commands": [], "agents": []
        })
    }

    fn result(&self, end: &End, subtype: &str, failed: bool, started: Instant) {
        let spent = started.elapsed().as_millis() as u64;
        self.out.emit(json!({
            "type": "result", "subtype": subtype, "is_error": failed, "api_error_status": end.api_error,
            "terminal_reason": if end.api_error.is_some() { "api_error" } else { "completed" },
            "result": end.text, "num_turns": end.steps, "permission_denials": end.denials,
            "duration_ms": spent, "duration_api_ms": spent, "stop_reason": "end_turn", "total_cost_usd": 0.0,
            "usage": {"input_tokens": end.steps, "output_tokens": end.steps, "cache_read_input_tokens": 0,
                "cache_creation_input_tokens": 0}
        }));
    }

    fn add_context(&mut self, event: &str, contexts: Vec<String>) {
        for context in contexts {
            let text = format!("{event} hook additional context: {context}");
            self.messages.push(json!({"role": "system", "content": [{"type": "text", "text": text}]}));
        }
    }

    /// Adds a message to the conversation and its transcript.
    fn push(&mut self, message: Value) -> String {
        let uuid = self.transcript.push(&message);
        self.messages.push(message);
        uuid
    }
}

fn no_rule(conversation: &Conversation) -> Reply {
    let shown: String = conversation.input.chars().take(200).collect();
    let say = Step { text: Some(format!("No rule matches: {shown}")), ..Step::default() };
    Reply { rule: "none".to_owned(), step: 0, say }
}
