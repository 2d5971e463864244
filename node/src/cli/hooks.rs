//! `instar hooks`

use clap::Subcommand;
use instar_hooks::settings::{self, Installed, REGISTRATIONS};
use instar_state::paths::AgentPaths;
use serde_json::{Value, json};

use super::reply::table;
use super::{CommandResult, Ctx, Exit, Failure, Reply, refresh_links};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What is registered with the runtime
    List,
    /// Put our entries into .claude/settings.json
    Install,
    /// Compare the registration with the table
    Verify,
}

pub(crate) fn run(ctx: &Ctx, command: Command) -> CommandResult {
    let paths = ctx.agent()?.paths;
    match command {
        Command::List => Ok(list(&paths)),
        Command::Install => install(&paths),
        Command::Verify => verify(&paths),
    }
}

fn list(paths: &AgentPaths) -> Reply {
    let program = paths.current().join("instar-hook");
    let rows: Vec<[String; 4]> = REGISTRATIONS
        .iter()
        .map(|r| {
            let matcher = r.matcher.unwrap_or("").to_owned();
            [r.event.to_string(), matcher, format!("{} s", r.timeout_seconds), r.command(&program)]
        })
        .collect();
    let values: Vec<Value> = REGISTRATIONS
        .iter()
        .map(|r| {
            json!({"event": r.event.to_string(), "matcher": r.matcher, "timeoutSeconds": r.timeout_seconds,
                "command": r.command(&program)})
        })
        .collect();
    Reply::new(json!({"hooks": values}), table(["event", "matcher", "limit", "command"], &rows, "no hooks"))
}

fn install(paths: &AgentPaths) -> CommandResult {
    refresh_links(paths)?;
    let file = paths.project().join(".claude/settings.json");
    let installed = settings::install(&file, &paths.current().join("instar-hook")).map_err(failure)?;
    let what = match installed {
        Installed::Created => "created",
        Installed::Updated => "updated",
        Installed::Unchanged => "unchanged",
    };
    Ok(Reply::new(json!({"file": file, "result": what}), format!("{} is {what}", file.display())))
}

fn verify(paths: &AgentPaths) -> CommandResult {
    let file = paths.project().join(".claude/settings.json");
    let drift = settings::verify(&file, &paths.current().join("instar-hook")).map_err(failure)?;
    let lines: Vec<String> = drift.iter().map(ToString::to_string).collect();
    let text = if lines.is_empty() { "registered as they should be".to_owned() } else { lines.join("\n") };
    let reply = Reply::new(json!({"file": file, "drift": lines}), text);
    Ok(if drift.is_empty() { reply } else { reply.failing(Exit::Failed) })
}

fn failure(error: settings::SettingsError) -> Failure {
    Failure::failed(error.to_string())
}
