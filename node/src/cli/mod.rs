//! The command line: parsing, dispatch, and printing of what commands answer.

mod ages;
mod api;
mod config;
mod context;
mod doctor;
mod hooks;
mod identity;
mod init;
mod logs;
mod mcp;
mod node;
mod outline;
mod owner;
mod programs;
mod reply;
mod secrets;
mod session;
mod status;
mod threadline;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use serde_json::{Value, json};

pub(crate) use context::{Agent, Ctx, GlobalFlags};
pub(crate) use init::{init_here, refresh_links};
pub(crate) use reply::{CommandResult, Exit, Failure, Reply};

/// A personal agent on this machine that finds and talks to other agents.
#[derive(Debug, Parser)]
#[command(name = "instar", version, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = "Begin with `instar up` in the folder of your project.")]
struct Cli {
    #[command(flatten)]
    flags: GlobalFlags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an agent here, or repair the one that is here
    Init(init::Args),
    /// Read and change config.json
    #[command(subcommand)]
    Config(config::Command),
    /// Keep tokens and keys in the encrypted store
    #[command(subcommand)]
    Secrets(secrets::Command),
    /// The agent's key and addresses
    #[command(subcommand)]
    Identity(identity::Command),
    /// Show the node's log
    Logs(logs::Args),
    /// The agent, its node, sessions and mesh at a glance
    Status(status::Args),
    /// Check everything that must be right
    Doctor(doctor::Args),
    /// The hooks in Claude Code's settings
    #[command(subcommand)]
    Hooks(hooks::Command),
    /// The tools for other programs
    #[command(subcommand)]
    Mcp(mcp::Command),
    /// Claude Code sessions of the node
    #[command(subcommand)]
    Session(session::Command),
    /// Other agents: find them, write to them, trust them
    #[command(subcommand)]
    Threadline(threadline::Command),
    /// Call a route of the running node
    Api(api::Args),
    /// Print a completion script
    Completions {
        /// Shell to complete in
        shell: clap_complete::Shell,
    },
}

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let json = cli.flags.json;
    let result = Ctx::from_process(cli.flags).and_then(|ctx| run(&ctx, cli.command));
    finish(json, result)
}

fn run(ctx: &Ctx, command: Command) -> CommandResult {
    match command {
        Command::Init(args) => init::run(ctx, args),
        Command::Config(command) => config::run(ctx, command),
        Command::Secrets(command) => secrets::run(ctx, command),
        Command::Identity(command) => identity::run(ctx, command),
        Command::Logs(args) => logs::run(ctx, &args),
        Command::Status(args) => status::run(ctx, &args),
        Command::Doctor(args) => doctor::run(ctx, &args),
        Command::Hooks(command) => hooks::run(ctx, command),
        Command::Mcp(command) => mcp::run(ctx, command),
        Command::Session(command) => session::run(ctx, command),
        Command::Threadline(command) => threadline::run(ctx, command),
        Command::Api(args) => api::run(ctx, &args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "instar", &mut script);
            let script = String::from_utf8_lossy(&script).trim_end().to_owned();
            Ok(Reply::new(json!({"shell": shell.to_string(), "script": script}), script))
        }
    }
}

/// Prints the answer. A closed pipe ends the program quietly.
fn finish(json: bool, result: CommandResult) -> ExitCode {
    let (stdout, stderr, exit) = match result {
        Ok(reply) if json => (document(&reply.value), String::new(), reply.exit),
        Ok(reply) => (reply.text, String::new(), reply.exit),
        Err(failure) => {
            let stdout = if json { document(&failure.to_json()) } else { String::new() };
            (stdout, format!("instar: {}", failure.message), Some(failure.exit))
        }
    };
    let printed = print(&mut std::io::stderr(), &stderr).and(print(&mut std::io::stdout(), &stdout));
    match (exit, printed) {
        (Some(exit), _) => exit.into(),
        (None, Err(error)) if error.kind() != std::io::ErrorKind::BrokenPipe => Exit::Failed.into(),
        (None, _) => ExitCode::SUCCESS,
    }
}

/// Text that a person must see, whatever the flags: a closed stderr is their choice.
pub(crate) fn say(text: &str) {
    let _ = print(&mut std::io::stderr(), text);
}

fn print(out: &mut impl Write, text: &str) -> std::io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    writeln!(out, "{}", text.trim_end_matches('\n'))?;
    out.flush()
}

fn document(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string())
}

/// Help and version go to stdout with 0; everything else is a wrong command line.
fn usage(error: &clap::Error) -> ExitCode {
    let is_answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if !is_answer && std::env::args_os().any(|a| a == "--json") {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let _ = print(&mut std::io::stdout(), &document(&json!({"error": first, "code": "usage"})));
    }
    let _ = error.print();
    if is_answer { ExitCode::SUCCESS } else { Exit::Usage.into() }
}
