//! `instar setup --non-interactive`: everything from nothing to a running node in one command.

use instar_state::config::is_agent_name;
use instar_state::paths::AgentPaths;
use serde_json::json;

use super::init::{self, Request};
use super::{Agent, CommandResult, Ctx, Exit, Failure, Reply, programs};
use crate::daemon;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ask nothing; take everything from these options
    #[arg(long)]
    non_interactive: bool,
    /// Name of the agent
    #[arg(long)]
    name: Option<String>,
    /// What the agent calls you
    #[arg(long)]
    user: Option<String>,
    /// What the agent is for, in one sentence
    #[arg(long)]
    role: Option<String>,
    /// In this project, or in a folder of its own
    #[arg(long, default_value = "project", value_parser = ["project", "standalone"])]
    place: String,
    /// How much it does on its own
    #[arg(long, default_value = "guided", value_parser = ["guided", "proactive", "autonomous"])]
    autonomy: String,
    /// Port of its HTTP interface
    #[arg(long, value_parser = clap::value_parser!(u16).range(1024..))]
    port: Option<u16>,
    /// Do not start the node
    #[arg(long)]
    no_start: bool,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> CommandResult {
    if !args.non_interactive {
        return Err(Failure::usage(
            "setup asks no questions in this build; use `instar setup --non-interactive --name NAME --user NAME`, or just `instar up`",
        ));
    }
    let (name, user) = required(&args)?;
    let standalone = args.place == "standalone";
    let dir = match (standalone, ctx.flags.dir.as_deref()) {
        (true, _) => ctx.account.agents().join(&name),
        (false, Some(dir)) => ctx.absolute(dir),
        (false, None) => ctx.cwd.clone(),
    };
    let existing = Agent::new(AgentPaths::new(&dir));
    let exists = existing.paths.config().exists();
    if exists && existing.name() != name {
        return Err(Failure::usage(format!(
            "{} is the home of the agent {}",
            dir.display(),
            existing.name()
        )));
    }
    let here = dir.canonicalize().unwrap_or_else(|_| dir.clone());
    if let Some(other) = ctx.registry().read()?.into_iter().find(|e| e.name == name && e.path != here) {
        return Err(Failure::usage(format!(
            "{name} is the name of the agent in {} already",
            other.path.display()
        )));
    }
    if programs::find(ctx, "claude").is_none() {
        return Err(Failure::new(
            Exit::NoAgent,
            "runtime_missing",
            "Claude Code was not found; install it with `npm install -g @anthropic-ai/claude-code`. Nothing was changed",
        ));
    }
    let report = init::make(
        ctx,
        &Request {
            dir,
            name: Some(name),
            user: Some(user),
            role: args.role,
            autonomy: Some(match args.autonomy.as_str() {
                "proactive" => "collaborative",
                "autonomous" => "autonomous",
                _ => "supervised",
            }),
            standalone,
            port: args.port,
            git: false,
        },
    )?;
    report.say_secrets();
    let Reply { mut value, mut text, .. } = report.reply();
    if !args.no_start {
        let mut here = ctx.clone();
        here.flags.agent = None;
        here.flags.dir = Some(report.project_dir.clone());
        match daemon::start(&here, &daemon::StartArgs { name: None, foreground: false, detached: false }) {
            Ok(started) => {
                value["node"] = started.value;
                text = text + "\n\n" + &started.text;
            }
            Err(failure) if failure.code == "already_running" => value["node"] = json!({"running": true}),
            Err(failure) => return Err(failure),
        }
    }
    Ok(Reply::new(value, text))
}

/// Name and user, or all that is missing or wrong at once.
fn required(args: &Args) -> Result<(String, String), Failure> {
    let mut problems = Vec::new();
    match args.name.as_deref() {
        None => problems.push("--name is missing".to_owned()),
        Some(name) if !is_agent_name(name) => problems.push(format!(
            "--name {name:?} is not a name: a letter or digit, then at most 63 letters, digits, _ or -"
        )),
        Some(_) => {}
    }
    let limits = [("--user", args.user.as_deref(), 80, true), ("--role", args.role.as_deref(), 300, false)];
    for (flag, value, max, needed) in limits {
        match value {
            None if needed => problems.push(format!("{flag} is missing")),
            Some(text) if text.trim().is_empty() => problems.push(format!("{flag} is blank")),
            Some(text) if text.chars().count() > max => {
                problems.push(format!("{flag} has more than {max} characters"));
            }
            _ => {}
        }
    }
    match (&args.name, &args.user) {
        (Some(name), Some(user)) if problems.is_empty() => Ok((name.clone(), user.clone())),
        _ => Err(Failure::usage(problems.join("\n")).with("details", json!(problems))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(name: Option<&str>, user: Option<&str>) -> Args {
        Args {
            non_interactive: true,
            name: name.map(str::to_owned),
            user: user.map(str::to_owned),
            role: Some(" ".into()),
            place: "project".into(),
            autonomy: "guided".into(),
            port: None,
            no_start: true,
        }
    }

    #[test]
    fn everything_that_is_missing_is_said_at_once() {
        let failure = required(&args(None, None)).expect_err("incomplete");
        assert_eq!(failure.message, "--name is missing\n--user is missing\n--role is blank");
        assert_eq!(failure.exit, Exit::Usage);
        let failure = required(&args(Some("-x"), Some("Ann"))).expect_err("bad name");
        assert!(failure.message.contains("is not a name"));
    }
}
