//! Starting, stopping and asking after the node of an agent.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::holder::{self, Stopped};
use super::node;
use crate::cli::{Agent, CommandResult, Ctx, Exit, Failure, Reply};
use crate::client::Call;

/// How long a started node may take until it answers.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// Options of `instar server start`.
#[derive(Debug, Clone, Args)]
pub(crate) struct StartArgs {
    /// Name of the agent, if it is not the one here
    pub(crate) name: Option<String>,
    /// Stay in the foreground until Ctrl-C
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Leave the caller's session; used by `server start` for its own child
    #[arg(long, hide = true, requires = "foreground")]
    pub(crate) detached: bool,
}

/// Options of `instar server stop`.
#[derive(Debug, Clone, Args)]
pub(crate) struct StopArgs {
    /// Name of the agent, if it is not the one here
    pub(crate) name: Option<String>,
    /// Seconds until the node is ended by force
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) timeout: u64,
    /// Also end the agent's sessions, but for protected ones
    #[arg(long)]
    pub(crate) sessions: bool,
}

/// `instar up`: makes an agent if there is none here, then runs its node in the foreground.
pub(crate) fn up(ctx: &Ctx) -> CommandResult {
    let agent = match ctx.agent_here()? {
        Some(agent) => agent,
        None => crate::cli::init_here(ctx)?,
    };
    refuse_inside_session(ctx, &agent)?;
    node::run(ctx, &agent, node::Style::Up)?;
    Ok(Reply::new(json!({"stopped": true}), ""))
}

/// `instar server start`.
pub(crate) fn start(ctx: &Ctx, args: &StartArgs) -> CommandResult {
    let agent = ctx.agent_or_named(args.name.as_deref())?;
    if args.foreground {
        if args.detached {
            // Ctrl-C and hang-ups of the terminal that started us are not ours any more.
            rustix::process::setsid().context("cannot leave the terminal's session")?;
        }
        node::run(ctx, &agent, node::Style::Server)?;
        return Ok(Reply::new(json!({"stopped": true}), ""));
    }
    if let Some(held) = holder::running(&agent.paths.node_lock())? {
        return Err(node::already_running(&agent, Some(&held)));
    }
    // What would stop the child is said here, where a person reads it.
    agent.config(ctx)?;
    let pid = spawn_detached(ctx, &agent)?;
    let health = wait_for_health(ctx, &agent, pid)?;
    let url = url_of(ctx, &agent)?;
    let text =
        format!("{} runs (pid {pid}) at {url}\nlog: {}", agent.name(), agent.paths.node_log().display());
    Ok(Reply::new(json!({"pid": pid, "url": url, "health": health}), text))
}

fn spawn_detached(ctx: &Ctx, agent: &Agent) -> Result<u32, Failure> {
    std::fs::create_dir_all(agent.paths.logs())?;
    let log = agent.paths.logs().join("node.err");
    let output = OpenOptions::new().append(true).create(true).mode(0o600).open(&log)?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let child = Command::new(program)
        .args(["server", "start", "--foreground", "--detached", "-d"])
        .arg(agent.paths.project())
        .env_clear()
        .envs(&ctx.env)
        .current_dir(agent.paths.project())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("cannot start the node")?;
    Ok(child.id())
}

fn wait_for_health(ctx: &Ctx, agent: &Agent, pid: u32) -> Result<serde_json::Value, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = agent.client(ctx);
    let deadline = Instant::now() + START_PATIENCE;
    let process = instar_state::process::ProcessRef::of(pid as i32);
    while Instant::now() < deadline {
        let answer = runtime.block_on(client.send(Call::get("/health").patience(Duration::from_secs(2))));
        if let Ok(answer) = answer
            && answer.is_success()
            && answer.json()["status"] != "booting"
        {
            return Ok(answer.json());
        }
        if process.is_none_or(|p| !p.is_alive()) {
            return Err(Failure::failed(format!("the node ended at once\n{}", last_words(agent))));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(Failure::failed(format!(
        "the node does not answer after {} s; `instar doctor` looks for the cause\n{}",
        START_PATIENCE.as_secs(),
        last_words(agent)
    )))
}

/// The end of what the node said.
fn last_words(agent: &Agent) -> String {
    let tail = |name: &str| {
        let text = std::fs::read_to_string(agent.paths.logs().join(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    };
    [tail("node.err"), tail("node.log")].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("\n")
}

/// `instar server stop`.
pub(crate) fn stop(ctx: &Ctx, args: &StopArgs) -> CommandResult {
    let agent = ctx.agent_or_named(args.name.as_deref())?;
    refuse_inside_session(ctx, &agent)?;
    let Some(held) = holder::running(&agent.paths.node_lock())? else {
        return Err(Failure::new(Exit::NoNode, "not_running", "node is not running (instar server start)"));
    };
    let mut ended = 0;
    if args.sessions {
        ended = end_sessions(ctx, &agent)?;
    }
    let how = holder::stop(&agent.paths.node_lock(), &held, Duration::from_secs(args.timeout))?;
    let text = match how {
        Stopped::Gracefully => format!("{} stopped", agent.name()),
        Stopped::ByForce => format!("{} did not stop within {} s and was killed", agent.name(), args.timeout),
    };
    Ok(Reply::new(
        json!({"stopped": true, "pid": held.pid, "forced": how == Stopped::ByForce, "sessionsEnded": ended}),
        text,
    ))
}

fn end_sessions(ctx: &Ctx, agent: &Agent) -> Result<u64, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = agent.client(ctx);
    runtime.block_on(async {
        let answer = client.send(Call::get("/sessions?status=running")).await?;
        let mut ended = 0;
        for session in answer.json()["sessions"].as_array().into_iter().flatten() {
            let Some(id) = session["id"].as_str() else { continue };
            let path = format!("/sessions/{}", crate::client::encode(id));
            let answer = client.send(Call::new(http::Method::DELETE, path)).await?;
            ended += u64::from(answer.is_success());
        }
        Ok(ended)
    })
}

/// `instar server restart`.
pub(crate) fn restart(ctx: &Ctx, name: Option<&str>) -> CommandResult {
    let agent = ctx.agent_or_named(name)?;
    refuse_inside_session(ctx, &agent)?;
    if let Some(held) = holder::running(&agent.paths.node_lock())? {
        holder::stop(&agent.paths.node_lock(), &held, START_PATIENCE)?;
    }
    start(ctx, &StartArgs { name: name.map(str::to_owned), foreground: false, detached: false })
}

/// `instar server status`.
pub(crate) fn status(ctx: &Ctx, name: Option<&str>) -> CommandResult {
    let agent = ctx.agent_or_named(name)?;
    let Some(held) = holder::running(&agent.paths.node_lock())? else {
        let value = json!({"agent": agent.name(), "running": false});
        return Ok(Reply::new(value, format!("{}: not running", agent.name())).failing(Exit::NoNode));
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer =
        runtime.block_on(agent.client(ctx).send(Call::get("/health").patience(Duration::from_secs(5))))?;
    let health = answer.json();
    let url = url_of(ctx, &agent)?;
    let text = format!(
        "{}: {} (pid {}, up {} s) at {url}",
        agent.name(),
        health["status"].as_str().unwrap_or("not answering"),
        held.pid,
        health["uptime"]
    );
    Ok(Reply::new(
        json!({"agent": agent.name(), "running": true, "pid": held.pid, "startedAt": held.started_at, "url": url, "health": health}),
        text,
    ))
}

/// Address of the node's HTTP interface.
pub(super) fn url_of(ctx: &Ctx, agent: &Agent) -> Result<String, Failure> {
    use instar_state::config::keys;
    let config = agent.config(ctx)?;
    let port = config.get(keys::PORT).unwrap_or_default();
    Ok(format!("http://{}:{port}", config.get(keys::HOST)))
}

/// A session may not stop or restart the node that manages it.
fn refuse_inside_session(ctx: &Ctx, agent: &Agent) -> Result<(), Failure> {
    let own =
        ctx.env.get("INSTAR_STATE_DIR").is_some_and(|dir| std::path::Path::new(dir) == agent.paths.state());
    if ctx.in_session() && own {
        return Err(Failure::refused("a session may not start, stop or restart the node that manages it"));
    }
    Ok(())
}

/// A token that is cancelled by SIGTERM or SIGINT.
pub(super) fn stop_on_signals() -> Result<CancellationToken, Failure> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = stop.clone();
    // Ends with the process: it has nothing to clean up.
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    });
    Ok(stop)
}

/// Prints a line for the person who started the node.
pub(super) fn announce(text: &str) {
    // A closed terminal must not stop a node.
    let _ = writeln!(std::io::stderr(), "{text}");
}
