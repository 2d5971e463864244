//! `instar doctor`: looks at everything that must be right, and repairs what is safe to repair.

mod carriers;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use instar_hooks::settings;
use instar_state::config::{Config, keys};
use instar_state::paths::AgentPaths;
use instar_state::tcp_ports;
use serde::Serialize;
use serde_json::json;

use super::init::{blocks, claude, gitignore_block, guide, guide_block, refresh_links};
use super::{Agent, CommandResult, Ctx, Exit, Failure, Reply, node, programs};
use crate::client::{Answer, Call};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Repair what is safe to repair: file modes, missing folders, our hook and MCP entries, links
    #[arg(long)]
    fix: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Warn,
    Fail,
}

#[derive(Debug, Clone, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
    fixed: bool,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, text: impl Into<String>) -> Self {
        Self { name, verdict, text: text.into(), fix: None, fixed: false }
    }

    fn pass(name: &'static str, text: impl Into<String>) -> Self {
        Self::new(name, Verdict::Pass, text)
    }

    fn warn(name: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..Self::new(name, Verdict::Warn, text) }
    }

    fn fail(name: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..Self::new(name, Verdict::Fail, text) }
    }

    fn fixed(self) -> Self {
        Self { verdict: Verdict::Pass, fixed: true, fix: None, ..self }
    }
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> CommandResult {
    let agent = ctx.agent()?;
    let mut checks = Vec::new();
    let config = config(ctx, &agent, &mut checks);
    let running =
        node::block_on(agent.client(ctx).send(Call::get("/health").patience(Duration::from_secs(2))))?.ok();
    node_check(running.as_ref(), &mut checks);
    if running.is_some() {
        let ask = Call::get("/threadline/status").patience(Duration::from_secs(5));
        if let Ok(status) = node::block_on(agent.client(ctx).send(ask))? {
            checks.extend(carriers::checks(&status.json(), carriers::answers));
        }
    }
    runtime(ctx, config.as_ref(), &mut checks);
    port(ctx, &agent, config.as_ref(), running.is_some(), &mut checks)?;
    folders(&agent.paths, args.fix, &mut checks)?;
    modes(&agent.paths, args.fix, &mut checks)?;
    secrets(&agent, config, &mut checks);
    identity(&agent, &mut checks);
    links(&agent.paths, args.fix, &mut checks)?;
    hooks(&agent.paths, args.fix, &mut checks);
    registration(ctx, &agent.paths, args.fix, &mut checks)?;
    generated(&agent, &mut checks);
    databases(&agent.paths, &mut checks);
    disk(&agent.paths, &mut checks);

    let failed = checks.iter().filter(|c| c.verdict == Verdict::Fail).count();
    let warned = checks.iter().filter(|c| c.verdict == Verdict::Warn).count();
    let text = text(&checks, failed, warned);
    let reply = Reply::new(json!({"checks": checks, "failed": failed, "warnings": warned}), text);
    Ok(if failed > 0 { reply.failing(Exit::Failed) } else { reply })
}

fn text(checks: &[Check], failed: usize, warned: usize) -> String {
    let mut lines = Vec::new();
    for check in checks {
        let mark = match (check.verdict, check.fixed) {
            (_, true) => "fixed",
            (Verdict::Pass, _) => "ok",
            (Verdict::Warn, _) => "warn",
            (Verdict::Fail, _) => "FAIL",
        };
        lines.push(format!(
            "{mark:<6}{:<10} {}",
            check.name,
            check.text.replace('\n', "\n                 ")
        ));
        if let Some(fix) = &check.fix {
            lines.push(format!("                 fix: {fix}"));
        }
    }
    lines.push(format!("\n{failed} failed, {warned} warnings"));
    lines.join("\n")
}

fn config(ctx: &Ctx, agent: &Agent, checks: &mut Vec<Check>) -> Option<Config> {
    let document = match agent.config_file().read() {
        Ok(document) => document,
        Err(error) => {
            checks.push(Check::fail("config", error.to_string(), "repair the file by hand"));
            return None;
        }
    };
    for problem in &document.findings.problems {
        let text = format!("{}: {}", problem.path, problem.problem);
        checks.push(Check::fail("config", text, "edit .instar/config.json, or use `instar config set`"));
    }
    for warning in &document.findings.warnings {
        let text = format!("{}: {}", warning.path, warning.problem);
        checks.push(Check::warn("config", text, "correct or remove the key"));
    }
    if !document.findings.problems.is_empty() {
        return None;
    }
    match ctx.overrides() {
        Ok(overrides) => {
            checks.push(Check::pass("config", "every value fits"));
            Some(Config::new(document, overrides))
        }
        Err(failure) => {
            checks.push(Check::fail("config", failure.message, "correct the environment variable"));
            None
        }
    }
}

fn node_check(running: Option<&Answer>, checks: &mut Vec<Check>) {
    checks.push(match running {
        None => Check::pass("node", "not running"),
        Some(answer) if answer.is_success() => {
            let status = answer.json()["status"].as_str().unwrap_or("answers").to_owned();
            if status == "degraded" {
                Check::warn("node", "runs, degraded", "`instar status` says what does not work")
            } else {
                Check::pass("node", format!("runs ({status})"))
            }
        }
        Some(answer) => {
            Check::warn("node", format!("answers with status {}", answer.status), "look into `instar logs`")
        }
    });
}

fn runtime(ctx: &Ctx, config: Option<&Config>, checks: &mut Vec<Check>) {
    let configured = |key| config.and_then(|c| c.get(key));
    let claude = configured(keys::SESSIONS_CLAUDE_PATH).or_else(|| programs::find(ctx, "claude"));
    checks.push(program(
        "claude",
        claude,
        "--version",
        (2, 0),
        Verdict::Fail,
        "npm install -g @anthropic-ai/claude-code",
    ));
    let uses_tmux = config.is_none_or(|c| {
        [keys::SESSIONS_TRANSPORT_CONVERSATION, keys::SESSIONS_TRANSPORT_AD_HOC]
            .iter()
            .any(|k| c.get(*k) == "tmux")
    });
    if uses_tmux {
        let tmux = configured(keys::SESSIONS_TMUX_PATH).or_else(|| programs::find(ctx, "tmux"));
        checks.push(program(
            "tmux",
            tmux,
            "-V",
            (3, 2),
            Verdict::Warn,
            "apt install tmux, or set sessions.transport.conversation to stdio",
        ));
    }
    let allowed = config.is_some_and(|c| c.get(keys::SESSIONS_ALLOW_ROOT));
    if rustix::process::geteuid().is_root() && !allowed {
        checks.push(Check::warn(
            "root",
            "this is root, and Claude Code refuses to skip its questions for root",
            "use another user, or put \"sessions\": {\"allowRoot\": true} into .instar/config.json",
        ));
    }
}

fn program(
    name: &'static str,
    path: Option<PathBuf>,
    flag: &str,
    least: (u32, u32),
    missing: Verdict,
    fix: &str,
) -> Check {
    let bad = |text: String| Check { fix: Some(fix.to_owned()), ..Check::new(name, missing, text) };
    let Some(path) = path else { return bad("not found".into()) };
    if !programs::is_executable(&path) {
        return bad(format!("{} can't be run", path.display()));
    }
    let Some(line) = programs::version(&path, flag) else {
        return bad(format!("{} does not tell its version", path.display()));
    };
    match programs::numbers(&line) {
        Some(found) if found >= least => Check::pass(name, format!("{line} at {}", path.display())),
        _ => bad(format!("{line} at {} is older than {}.{}", path.display(), least.0, least.1)),
    }
}

fn port(
    ctx: &Ctx,
    agent: &Agent,
    config: Option<&Config>,
    running: bool,
    checks: &mut Vec<Check>,
) -> Result<(), Failure> {
    let entries = ctx.registry().read()?;
    let project = agent.paths.project();
    let entry = entries.iter().find(|e| e.path == project);
    let Some(port) = config.and_then(|c| c.get(keys::PORT)) else {
        checks.push(Check::fail("port", "no port is set", "run `instar init`"));
        return Ok(());
    };
    if let Some(other) = entries.iter().find(|e| e.port == port && e.path != project) {
        let text = format!("port {port} belongs to {} ({}) too", other.name, other.path.display());
        checks.push(Check::fail("port", text, "give one of them another port in its config.json"));
    } else if !running && !tcp_ports::can_bind(port) {
        let text = format!("port {port} is taken by another program");
        checks.push(Check::fail("port", text, "end that program, or change the port in config.json"));
    } else {
        checks.push(Check::pass("port", port.to_string()));
    }
    checks.push(match entry {
        Some(e) if e.port == port => Check::pass("registry", "this agent is registered"),
        Some(e) => Check::warn("registry", format!("registered with port {}", e.port), "run `instar init`"),
        None => Check::warn("registry", "this agent is not registered", "run `instar init`"),
    });
    Ok(())
}

fn folders(paths: &AgentPaths, fix: bool, checks: &mut Vec<Check>) -> Result<(), Failure> {
    let missing: Vec<PathBuf> = [
        paths.data(),
        paths.sessions(),
        paths.logs(),
        paths.run(),
        paths.secrets(),
        paths.machine(),
        paths.threadline(),
    ]
    .into_iter()
    .filter(|dir| !dir.is_dir())
    .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = missing.iter().map(|d| d.display().to_string()).collect();
    let check = Check::fail("folders", format!("missing: {}", names.join(", ")), "instar doctor --fix");
    if !fix {
        checks.push(check);
        return Ok(());
    }
    for dir in &missing {
        instar_durable::create_dir_private(dir)?;
    }
    checks.push(check.fixed());
    Ok(())
}

fn modes(paths: &AgentPaths, fix: bool, checks: &mut Vec<Check>) -> Result<(), Failure> {
    let mut open = Vec::new();
    for (dir, depth) in [
        (paths.state().to_owned(), 1),
        (paths.secrets(), 1),
        (paths.machine(), 1),
        (paths.data(), 2),
        (paths.threadline(), 1),
        (paths.run(), 1),
    ] {
        others_can_use(&dir, depth, &mut open);
    }
    open.sort();
    open.dedup();
    if open.is_empty() {
        checks.push(Check::pass("modes", "only you can read the agent's files"));
        return Ok(());
    }
    let names: Vec<String> = open.iter().take(5).map(|p| p.display().to_string()).collect();
    let more = if open.len() > 5 { format!(" and {} more", open.len() - 5) } else { String::new() };
    let check =
        Check::fail("modes", format!("others can use {}{more}", names.join(", ")), "instar doctor --fix");
    if !fix {
        checks.push(check);
        return Ok(());
    }
    for path in &open {
        let mode = if path.is_dir() { 0o700 } else { 0o600 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    checks.push(check.fixed());
    Ok(())
}

/// The directory and its files that someone else may read or write. Links and sockets are not looked at.
fn others_can_use(dir: &Path, depth: u32, open: &mut Vec<PathBuf>) {
    let is_open = |path: &Path| {
        std::fs::symlink_metadata(path).is_ok_and(|m| (m.is_file() || m.is_dir()) && m.mode() & 0o077 != 0)
    };
    if is_open(dir) {
        open.push(dir.to_owned());
    }
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        if is_dir && depth > 1 {
            others_can_use(&path, depth - 1, open);
        } else if !is_dir && is_open(&path) {
            open.push(path);
        }
    }
}

fn secrets(agent: &Agent, config: Option<Config>, checks: &mut Vec<Check>) {
    let stored = match agent.secrets().load() {
        Ok(stored) => stored,
        Err(error) => {
            checks.push(Check::fail("secrets", error.to_string(), "bring back machine/secrets-master.key"));
            return;
        }
    };
    let Some(config) = config else { return };
    let (config, missing) = config.with_secrets(&stored);
    for name in &missing {
        checks.push(Check::fail(
            "secrets",
            format!("{name} has no value"),
            format!("instar secrets set {name}"),
        ));
    }
    for key in [keys::AUTH_TOKEN, keys::DASHBOARD_PIN] {
        if config.secret(key).is_none() && !missing.iter().any(|m| m == key.path()) {
            checks.push(Check::fail("secrets", format!("{} is not set", key.path()), "run `instar init`"));
        }
    }
    if missing.is_empty() {
        checks.push(Check::pass("secrets", "the store opens"));
    }
}

fn identity(agent: &Agent, checks: &mut Vec<Check>) {
    checks.push(match super::identity::read(agent) {
        Ok(file) => Check::pass("identity", file.public().fingerprint().to_string()),
        Err(failure) => {
            Check::fail("identity", failure.message, "bring the file back; a new key would be a new address")
        }
    });
}

fn links(paths: &AgentPaths, fix: bool, checks: &mut Vec<Check>) -> Result<(), Failure> {
    let hook = paths.current().join("instar-hook");
    let works = [paths.current().join("instar"), hook.clone()].iter().all(|p| programs::is_executable(p));
    if !works {
        let check = Check::fail(
            "links",
            format!("{} does not lead to the programs", paths.current().display()),
            "instar doctor --fix",
        );
        if !fix {
            checks.push(check);
            return Ok(());
        }
        refresh_links(paths)?;
        checks.push(check.fixed());
    }
    let is_own = hook.canonicalize().is_ok_and(|p| p.file_name().is_some_and(|n| n == "instar-hook"));
    checks.push(if is_own {
        Check::pass("links", "programs are linked")
    } else {
        Check::warn(
            "links",
            "slow hook: instar-hook is instar itself, which takes longer to start",
            "build the small program: cargo build --release -p instar-hooks",
        )
    });
    Ok(())
}

fn hooks(paths: &AgentPaths, fix: bool, checks: &mut Vec<Check>) {
    let file = paths.project().join(".claude/settings.json");
    let program = paths.current().join("instar-hook");
    let drift = match settings::verify(&file, &program) {
        Ok(drift) => drift,
        Err(error) => {
            checks.push(Check::fail(
                "hooks",
                error.to_string(),
                "repair the file, then `instar hooks install`",
            ));
            return;
        }
    };
    if drift.is_empty() {
        checks.push(Check::pass("hooks", "registered as they should be"));
        return self_test(paths, checks);
    }
    let lines: Vec<String> = drift.iter().map(ToString::to_string).collect();
    let check = Check::fail("hooks", lines.join("\n"), "instar hooks install");
    if !fix {
        checks.push(check);
        return;
    }
    match settings::install(&file, &program) {
        Ok(_) => checks.push(check.fixed()),
        Err(error) => checks.push(Check::fail("hooks", error.to_string(), "repair the file by hand")),
    }
}

fn self_test(paths: &AgentPaths, checks: &mut Vec<Check>) {
    let fix = "build the programs again, then `instar doctor --fix`";
    checks.push(match super::hooks::try_all(paths) {
        Ok(trial) if trial.problems.is_empty() => Check::pass(
            "hooks",
            format!("every one answers, the slowest in {} ms", trial.slowest.as_millis()),
        ),
        Ok(trial) => Check::fail("hooks", trial.problems.join("\n"), fix),
        Err(failure) => Check::fail("hooks", failure.message, fix),
    });
}

fn registration(ctx: &Ctx, paths: &AgentPaths, fix: bool, checks: &mut Vec<Check>) -> Result<(), Failure> {
    if fix && !(claude::is_registered(&ctx.account, paths) && claude::is_trusted(&ctx.account, paths)) {
        claude::register_project(paths)?;
        claude::register_account(&ctx.account, paths)?;
    }
    checks.push(if claude::is_registered(&ctx.account, paths) {
        Check::pass("mcp", "the tools are registered")
    } else {
        Check::fail("mcp", ".mcp.json or ~/.claude.json lacks our server", "instar doctor --fix")
    });
    checks.push(if claude::is_trusted(&ctx.account, paths) {
        Check::pass("trust", "Claude Code trusts this folder")
    } else {
        Check::warn("trust", "Claude Code will ask whether it may work here", "instar doctor --fix")
    });
    Ok(())
}

fn generated(agent: &Agent, checks: &mut Vec<Check>) {
    let guide = guide(&agent.name());
    for (file, block) in [("CLAUDE.md", guide_block(&guide)), (".gitignore", gitignore_block())] {
        let text = std::fs::read_to_string(agent.paths.project().join(file)).unwrap_or_default();
        checks.push(match block.state(&text) {
            blocks::State::Current => Check::pass("texts", format!("our block in {file} is current")),
            blocks::State::Missing => Check::pass("texts", format!("{file} has no block of ours")),
            blocks::State::Outdated => {
                Check::warn("texts", format!("our block in {file} is old"), "run `instar init`")
            }
            blocks::State::Edited => Check::warn(
                "texts",
                format!("drift: our block in {file} was changed by hand"),
                "keep it, or remove the block and run `instar init`",
            ),
        });
    }
}

fn databases(paths: &AgentPaths, checks: &mut Vec<Check>) {
    for path in [paths.messaging_db(), paths.threadline_db()].iter().filter(|p| p.exists()) {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        checks.push(match instar_durable::quick_check(path) {
            Ok(()) => Check::pass("database", format!("{name} is whole")),
            Err(error) => Check::fail(
                "database",
                error.to_string(),
                "stop the node and restore the file, or move it away",
            ),
        });
    }
}

fn disk(paths: &AgentPaths, checks: &mut Vec<Check>) {
    const LEAST: u64 = 1 << 30;
    let Ok(stat) = rustix::fs::statvfs(paths.state()) else { return };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    checks.push(if free < LEAST {
        Check::warn(
            "disk",
            format!("{} MiB are free", free >> 20),
            "make room; messages can't be stored on a full disk",
        )
    } else {
        Check::pass("disk", format!("{} GiB are free", free >> 30))
    });
}
