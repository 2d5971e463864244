//! `instar hooks`

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output, Stdio};
use std::time::{Duration, Instant};

use clap::Subcommand;
use instar_hooks::settings::{self, Installed, REGISTRATIONS};
use instar_hooks::{Event, HOOKS};
use instar_state::config::keys;
use instar_state::paths::AgentPaths;
use instar_state::time::now_ms;
use serde_json::{Value, json};

use super::reply::table;
use super::{Agent, CommandResult, Ctx, Exit, Failure, Reply, refresh_links};
use crate::hook_status::{self, HookStatus};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The hooks, whether they are on, and what they did today and yesterday
    List,
    /// Put our entries into .claude/settings.json
    Install,
    /// Compare the registration with the table and try every hook
    Verify,
    /// Give an event to a hook and show what it says
    Test {
        /// Name of a hook, or of an event for all its hooks
        name: String,
        /// File with the event as JSON
        #[arg(long, value_name = "FILE")]
        event: PathBuf,
    },
}

pub(crate) fn run(ctx: &Ctx, command: Command) -> CommandResult {
    let agent = ctx.agent()?;
    match command {
        Command::List => list(ctx, &agent),
        Command::Install => install(&agent.paths),
        Command::Verify => verify(&agent.paths),
        Command::Test { name, event } => test(&agent.paths, &name, &ctx.cwd.join(event)),
    }
}

fn list(ctx: &Ctx, agent: &Agent) -> CommandResult {
    let disabled = agent.config(ctx)?.get(keys::HOOKS_DISABLED);
    let hooks = hook_status::read(&agent.paths, &disabled, now_ms());
    let rows: Vec<[String; 8]> = hooks.iter().map(row).collect();
    let program = agent.paths.current().join("instar-hook");
    let registered: Vec<Value> = REGISTRATIONS
        .iter()
        .map(|r| {
            json!({"event": r.event.to_string(), "matcher": r.matcher, "timeoutSeconds": r.timeout_seconds,
                "command": r.command(&program)})
        })
        .collect();
    Ok(Reply::new(
        json!({"hooks": hooks, "registrations": registered}),
        table(
            ["hook", "class", "", "runs on", "matcher", "last fired", "p50/p99 ms", "blocks"],
            &rows,
            "no hooks",
        ),
    ))
}

fn row(hook: &HookStatus) -> [String; 8] {
    let events =
        if hook.events.len() > 4 { format!("{} events", hook.events.len()) } else { hook.events.join(", ") };
    let state = match (hook.installed, hook.enabled) {
        (false, _) => "not installed",
        (true, true) => "on",
        (true, false) => "off",
    };
    let times = match (hook.p50, hook.p99) {
        (Some(p50), Some(p99)) => format!("{p50:.1}/{p99:.1}"),
        _ => String::new(),
    };
    [
        hook.name.to_owned(),
        hook.class.to_owned(),
        state.to_owned(),
        events,
        hook.matchers.join(", "),
        hook.last_fired.clone().unwrap_or_default(),
        times,
        hook.blocks.to_string(),
    ]
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
    let mut problems: Vec<String> = drift.iter().map(ToString::to_string).collect();
    let trial = try_all(paths)?;
    problems.extend(trial.problems);
    let text = if problems.is_empty() {
        format!(
            "registered as they should be; the slowest of {} took {} ms",
            trial.events,
            trial.slowest.as_millis()
        )
    } else {
        problems.join("\n")
    };
    let value = json!({"file": file, "problems": problems, "events": trial.events,
        "slowestMs": trial.slowest.as_millis() as u64});
    let reply = Reply::new(value, text);
    Ok(if problems.is_empty() { reply } else { reply.failing(Exit::Failed) })
}

fn test(paths: &AgentPaths, name: &str, event: &Path) -> CommandResult {
    if HOOKS.iter().all(|hook| hook.name != name) && name.parse::<Event>().is_err() {
        return Err(Failure::not_found(format!(
            "no hook and no event is called {name:?}; `instar hooks list` shows them"
        )));
    }
    if !event.is_file() {
        return Err(Failure::not_found(format!("{} does not exist", event.display())));
    }
    let (output, took) = run_hook(paths, name, event)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let answer: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| stdout.clone().into());
    let said = if stdout.trim().is_empty() { "(nothing: the action goes ahead)" } else { stdout.trim_end() };
    let code = output.status.code();
    let text = format!(
        "{said}\n{stderr}exit {}, {} ms",
        code.map_or("by signal".into(), |c| c.to_string()),
        took.as_millis()
    );
    Ok(Reply::new(
        json!({"answer": answer, "stderr": stderr, "exit": code, "ms": took.as_millis() as u64}),
        text,
    ))
}

/// What trying every hook gave.
#[derive(Debug)]
pub(crate) struct Trial {
    pub(crate) events: usize,
    pub(crate) problems: Vec<String>,
    pub(crate) slowest: Duration,
}

/// Gives every registered event to the hook program, and one command that must be denied.
pub(crate) fn try_all(paths: &AgentPaths) -> Result<Trial, Failure> {
    let mut events: Vec<Event> = REGISTRATIONS.iter().map(|r| r.event).collect();
    events.dedup();
    let mut trial = Trial { events: events.len(), problems: Vec::new(), slowest: Duration::ZERO };
    for event in events {
        let (output, took) = try_one(paths, event, "true")?;
        trial.slowest = trial.slowest.max(took);
        if !output.status.success() {
            trial.problems.push(format!(
                "{event}: the hook failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ));
        }
    }
    let (output, _) = try_one(paths, Event::PreToolUse, "rm -rf /")?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if answer.pointer("/hookSpecificOutput/permissionDecision") != Some(&json!("deny")) {
        trial.problems.push("PreToolUse: `rm -rf /` was not denied".into());
    }
    Ok(trial)
}

fn try_one(paths: &AgentPaths, event: Event, command: &str) -> Result<(Output, Duration), Failure> {
    let input = json!({
        "session_id": "00000000-0000-4000-8000-000000000000", "transcript_path": "", "cwd": paths.project(),
        "hook_event_name": event.to_string(), "permission_mode": "default", "tool_name": "Bash",
        "tool_input": {"command": command}, "prompt": "test", "source": "startup",
    });
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(input.to_string().as_bytes())?;
    run_hook(paths, &event.to_string(), file.path())
}

/// A trial run: nothing is reported to the node.
fn run_hook(paths: &AgentPaths, name: &str, event: &Path) -> Result<(Output, Duration), Failure> {
    let program = paths.current().join("instar-hook");
    let started = Instant::now();
    let output = Process::new(&program)
        .args(["test", name, "--event"])
        .arg(event)
        .env("INSTAR_STATE_DIR", paths.state())
        .current_dir(paths.project())
        .stdin(Stdio::null())
        .output()
        .map_err(|e| {
            Failure::failed(format!("{} can't be run: {e}; try `instar doctor --fix`", program.display()))
        })?;
    Ok((output, started.elapsed()))
}

fn failure(error: settings::SettingsError) -> Failure {
    Failure::failed(error.to_string())
}
