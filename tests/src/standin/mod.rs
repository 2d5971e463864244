//! A stand-in for the Claude Code CLI in `-p --input-format stream-json` mode: same flags, same lines, same hooks,
//! same transcript, MCP servers over stdio, and a [`Script`] in place of a model.
//!
//! It is for runs where hundreds of turns have to be quick. What the real CLI does and this one does not: a terminal
//! mode, sub-agents, compaction, a project's own `.mcp.json`, and every built-in tool but Bash, Read, Write and
//! ToolSearch. Rules are read from `~/.standin/rules.json`, since a session's environment is an allow list.

mod args;
mod hooks;
mod inputs;
mod mcp;
mod tools;
mod transcript;
mod turn;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc::{self, Receiver};
use uuid::Uuid;

use crate::script::Script;
pub use args::{Args, Command};
use hooks::Hooks;
use inputs::Inputs;
use mcp::McpServers;
use transcript::Transcript;

/// What `--version` prints; the real CLI of this version is the model.
pub const VERSION: &str = "2.1.330 (Claude Code)";

/// Runs the program with these arguments, without the program's name.
pub async fn main(arguments: Vec<String>) -> ExitCode {
    let outcome = match args::parse(arguments) {
        Ok(Command::Version) => {
            println!("{VERSION}");
            return ExitCode::SUCCESS;
        }
        Ok(Command::Help) => {
            println!("{}", args::HELP);
            return ExitCode::SUCCESS;
        }
        Ok(Command::Run(args)) => run(*args).await,
        Err(usage) => Err(anyhow::anyhow!(usage)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let home = PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?);
    let cwd = std::env::current_dir().context("current directory")?;
    refuse_bypass_as_root(&args)?;
    let rules = home.join(".standin/rules.json");
    let text = std::fs::read(&rules).with_context(|| format!("reading {}", rules.display()))?;
    let script = Script::from_json(&text).with_context(|| rules.display().to_string())?;

    let transcript = Transcript::open(&home, &cwd, &args)?;
    let out = Arc::new(Out { session: args.session_id.clone() });
    let hooks = Hooks::load(&home, &cwd, &args, Arc::clone(&out), transcript.path())?;
    let mcp = McpServers::start(&args.mcp_configs, args.strict_mcp).await?;
    let mut session =
        turn::Session { script, cwd, messages: transcript.messages(), transcript, hooks, mcp, out, args };
    session.begin().await;
    let lines = read_stdin();
    session.serve(lines).await;
    session.end().await;
    Ok(())
}

fn refuse_bypass_as_root(args: &Args) -> anyhow::Result<()> {
    let bypass = args.permission_mode == args::BYPASS;
    if bypass && rustix::process::getuid().is_root() && std::env::var_os("IS_SANDBOX").is_none() {
        anyhow::bail!(
            "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons"
        );
    }
    Ok(())
}

/// Lines of the client; the channel closes at end of input.
fn read_stdin() -> Receiver<Value> {
    let (sender, receiver) = mpsc::channel(256);
    // Ends with the input; the process ends with its session.
    tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let Ok(message) = serde_json::from_str(&line) else {
                eprintln!("Error parsing streaming input line: {line}");
                std::process::exit(1);
            };
            if sender.send(message).await.is_err() {
                return;
            }
        }
    });
    receiver
}

impl turn::Session {
    /// Serves the client until its input ends and every queued message is done.
    async fn serve(&mut self, mut lines: Receiver<Value>) {
        let mut inputs = Inputs::new(Arc::clone(&self.out), self.args.replay, self.transcript.inputs());
        let mut open = true;
        loop {
            let Some(input) = inputs.begin() else {
                let Some(line) = (if open { lines.recv().await } else { None }) else { return };
                accept(&self.out, &mut inputs, &line);
                continue;
            };
            let out = Arc::clone(&self.out);
            let mut turn = Box::pin(self.turn(&input));
            let done_well = loop {
                tokio::select! {
                    done_well = &mut turn => break Some(done_well),
                    line = lines.recv(), if open => {
                        let Some(line) = line else { open = false; continue };
                        if accept(&out, &mut inputs, &line) {
                            break None;
                        }
                    }
                }
            };
            drop(turn);
            if done_well.is_none() {
                self.interrupted();
            }
            inputs.end(&input, done_well == Some(true));
        }
    }
}

/// Takes one line of the client; whether it interrupts the running turn.
fn accept(out: &Out, inputs: &mut Inputs, line: &Value) -> bool {
    match line["type"].as_str() {
        Some("user") => {
            inputs.accept(line);
            false
        }
        Some("control_request") => {
            let subtype = line["request"]["subtype"].as_str().unwrap_or_default();
            let response = match subtype {
                "initialize" => json!({
                    "commands": [], "models": [], "account": {"apiKeySource": "ANTHROPIC_API_KEY"},
                    "claude_code_version": "2.1.330", "session_state": "idle", "pid": std::process::id()
                }),
                "interrupt" => json!({"still_queued": []}),
                "set_model" | "set_permission_mode" => Value::Null,
                _ => {
                    out.emit(json!({"type": "control_response", "response": {
                        "subtype": "error", "request_id": line["request_id"],
                        "error": format!("Unsupported control request subtype: {subtype}")
                    }}));
                    return false;
                }
            };
            out.emit(json!({"type": "control_response", "response": {
                "subtype": "success", "request_id": line["request_id"], "response": response
            }}));
            subtype == "interrupt"
        }
        _ => false,
    }
}

/// The stream of lines on stdout.
struct Out {
    session: String,
}

impl Out {
    /// Gives an input back as part of the conversation.
    fn replay(&self, message: &Value, uuid: &str) {
        self.emit(json!({
            "type": "user", "message": message, "parent_tool_use_id": null, "uuid": uuid, "isReplay": true
        }));
    }

    /// Writes one line; events of a session carry its id and an id of their own.
    fn emit(&self, mut line: Value) {
        if line["type"] != "control_response" {
            line["session_id"] = self.session.clone().into();
            if line["uuid"].is_null() {
                line["uuid"] = Uuid::new_v4().to_string().into();
            }
        }
        let mut stdout = std::io::stdout().lock();
        if writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_err() {
            // Nobody reads any more, as with the real CLI on a closed pipe.
            std::process::exit(1);
        }
    }
}

/// `~/.claude`, or where `CLAUDE_CONFIG_DIR` points.
fn config_dir(home: &Path) -> PathBuf {
    std::env::var_os("CLAUDE_CONFIG_DIR").map_or_else(|| home.join(".claude"), PathBuf::from)
}
