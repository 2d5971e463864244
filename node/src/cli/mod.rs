//! The command line: parsing, dispatch, and printing of what commands answer.

mod ages;
mod api;
mod config;
mod context;
mod doctor;
mod hooks;
mod identity;
mod init;
mod invite;
mod logs;
mod mcp;
mod node;
mod nuke;
mod outline;
mod owner;
mod pair;
mod programs;
mod reply;
mod secrets;
mod session;
mod setup;
mod status;
mod threadline;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use serde_json::{Value, json};

use crate::daemon;

pub(crate) use context::{Agent, Ctx, GlobalFlags};
pub(crate) use init::{init_here, refresh_links};
pub(crate) use programs::environment;
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
    /// Make an agent here if there is none, and run its node in this terminal
    Up,
    /// Make an agent here, or repair the one that is here
    Init(init::Args),
    /// Make an agent and start it, without a question
    Setup(setup::Args),
    /// Remove an agent
    Nuke(nuke::Args),
    /// Start, stop and look after the node
    #[command(subcommand)]
    Server(ServerCommand),
    /// The relay on this machine
    #[command(subcommand)]
    Relay(RelayCommand),
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

#[derive(Debug, Subcommand)]
enum ServerCommand {
    /// Start the node in the background
    Start(daemon::StartArgs),
    /// Stop the node; sessions live on
    Stop(daemon::StopArgs),
    /// Stop the node and start it again
    Restart {
        /// Name of the agent, if it is not the one here
        name: Option<String>,
    },
    /// Whether the node runs
    Status {
        /// Name of the agent, if it is not the one here
        name: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum RelayCommand {
    /// Run a relay in the foreground, as threadline-relay does
    Start {
        /// Options of threadline-relay
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<std::ffi::OsString>,
    },
    /// Whether a relay runs, and where
    Status(daemon::DirArgs),
    /// Stop a relay that runs by itself
    Stop(daemon::DirArgs),
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
        Command::Up => daemon::up(ctx),
        Command::Init(args) => init::run(ctx, args),
        Command::Setup(args) => setup::run(ctx, args),
        Command::Nuke(args) => nuke::run(ctx, &args),
        Command::Server(ServerCommand::Start(args)) => daemon::start(ctx, &args),
        Command::Server(ServerCommand::Stop(args)) => daemon::stop(ctx, &args),
        Command::Server(ServerCommand::Restart { name }) => daemon::restart(ctx, name.as_deref()),
        Command::Server(ServerCommand::Status { name }) => daemon::status(ctx, name.as_deref()),
        Command::Relay(RelayCommand::Start { options }) => daemon::relay_start(options),
        Command::Relay(RelayCommand::Status(args)) => Ok(daemon::relay_status(ctx, &args)),
        Command::Relay(RelayCommand::Stop(args)) => daemon::relay_stop(ctx, &args),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command of this build. The list only grows.
    const COMMANDS: &[&str] = &[
        "api",
        "completions",
        "config check",
        "config get",
        "config list",
        "config set",
        "config unset",
        "doctor",
        "hooks install",
        "hooks list",
        "hooks test",
        "hooks verify",
        "identity export-public",
        "identity show",
        "init",
        "logs",
        "mcp serve",
        "mcp threadline",
        "mcp token create",
        "mcp token delete",
        "mcp token list",
        "mcp token revoke",
        "mcp unregister",
        "nuke",
        "relay start",
        "relay status",
        "relay stop",
        "secrets backend",
        "secrets get",
        "secrets import",
        "secrets key-status",
        "secrets list",
        "secrets rm",
        "secrets set",
        "server restart",
        "server start",
        "server status",
        "server stop",
        "session attach",
        "session cleanup",
        "session inbox",
        "session interrupt",
        "session key",
        "session kill",
        "session list",
        "session output",
        "session overdue",
        "session queue",
        "session refresh",
        "session release",
        "session resume",
        "session send",
        "session spawn",
        "setup",
        "status",
        "threadline agents",
        "threadline approvals",
        "threadline approvals approve",
        "threadline approvals reject",
        "threadline discover",
        "threadline inbox",
        "threadline invite create",
        "threadline invite list",
        "threadline invite revoke",
        "threadline join",
        "threadline pair",
        "threadline pairings",
        "threadline pairings confirm",
        "threadline pairings remove",
        "threadline send",
        "threadline status",
        "threadline thread",
        "threadline trust",
        "threadline verify",
        "up",
    ];

    /// Path, definition, and whether it runs by itself.
    fn walk(command: &clap::Command, path: &str, found: &mut Vec<String>) {
        let below: Vec<_> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
        if (below.is_empty() || !command.is_subcommand_required_set())
            && !path.is_empty()
            && !command.is_hide_set()
        {
            found.push(path.to_owned());
        }
        for sub in below {
            let path = if path.is_empty() {
                sub.get_name().to_owned()
            } else {
                format!("{path} {}", sub.get_name())
            };
            walk(sub, &path, found);
        }
    }

    #[test]
    fn the_commands_are_those_of_the_list() {
        let mut command = Cli::command();
        command.build();
        let mut found = Vec::new();
        walk(&command, "", &mut found);
        found.sort();
        assert_eq!(found, COMMANDS);
    }

    #[test]
    fn every_command_says_what_it_is_and_what_its_arguments_are() {
        fn check(command: &clap::Command, globals: &[clap::Id]) {
            assert!(command.get_about().is_some(), "{} has no description", command.get_name());
            for argument in command.get_arguments() {
                let (id, name) = (argument.get_id(), command.get_name());
                assert!(argument.get_help().is_some(), "{name}: {id} has no description");
                assert!(
                    argument.is_global_set() || !globals.contains(id),
                    "{name}: {id} hides the flag of every command"
                );
            }
            command.get_subcommands().for_each(|sub| check(sub, globals));
        }
        let command = Cli::command();
        let globals: Vec<clap::Id> =
            command.get_arguments().filter(|a| a.is_global_set()).map(|a| a.get_id().clone()).collect();
        assert_eq!(globals.len(), 6);
        check(&command, &globals);
    }

    #[test]
    fn the_parser_is_sound() {
        Cli::command().debug_assert();
    }
}
