//! `instar init`: makes an agent, or repairs one. Nothing that exists is overwritten.

pub(crate) mod blocks;
pub(crate) mod claude;
mod links;
mod report;
mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use instar_hooks::settings;
use instar_state::config::{is_agent_name, lookup};
use instar_state::paths::AgentPaths;
use instar_state::process::ProcessRef;
use instar_state::registry::{AgentEntry, AgentStatus};
use instar_state::tcp_ports;
use instar_state::time::{now_ms, rfc3339};

use super::{Agent, CommandResult, Ctx, Failure};
use blocks::Put;
pub(crate) use instar_identity::templates::guide;
pub(crate) use links::refresh_links;
pub(crate) use report::Report;
pub(crate) use tree::{gitignore_block, guide_block};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of a new agent: makes a folder of that name
    name: Option<String>,
    /// Make it under ~/.instar/agents instead of here
    #[arg(long, requires = "name")]
    standalone: bool,
    /// Port of its HTTP interface; a free one between 4040 and 4099 without it
    #[arg(long, value_parser = clap::value_parser!(u16).range(1024..))]
    port: Option<u16>,
    /// What the agent calls you; your login name without it
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

/// What is to be made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// Project directory; made if it is not there.
    pub(crate) dir: PathBuf,
    pub(crate) name: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) role: Option<String>,
    pub(crate) autonomy: Option<&'static str>,
    pub(crate) standalone: bool,
    pub(crate) port: Option<u16>,
    /// Put the new directory under git.
    pub(crate) git: bool,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> CommandResult {
    let base = ctx.flags.dir.as_deref().map_or_else(|| ctx.cwd.clone(), |dir| ctx.absolute(dir));
    if let Some(name) = args.name.as_deref().filter(|n| !is_agent_name(n)) {
        return Err(Failure::usage(format!(
            "{name:?} is not a name: a letter or digit, then at most 63 letters, digits, _ or -"
        )));
    }
    let dir = match &args.name {
        Some(name) if args.standalone => ctx.account.agents().join(name),
        Some(name) => base.join(name),
        None => base,
    };
    if args.name.is_some() && !AgentPaths::new(&dir).config().exists() && !is_empty_or_absent(&dir) {
        return Err(Failure::usage(format!(
            "{} exists and is not empty; run `instar init` inside it to make an agent of it",
            dir.display()
        )));
    }
    let report = make(
        ctx,
        &Request {
            git: args.name.is_some(),
            dir,
            name: args.name,
            user: args.user,
            standalone: args.standalone,
            port: args.port,
            ..Request::default()
        },
    )?;
    report.say_secrets();
    Ok(report.reply())
}

/// Makes an agent in the current directory, for `instar up`.
pub(crate) fn init_here(ctx: &Ctx) -> Result<Agent, Failure> {
    let dir = ctx.flags.dir.as_deref().map_or_else(|| ctx.cwd.clone(), |dir| ctx.absolute(dir));
    let report = make(ctx, &Request { dir, ..Request::default() })?;
    report.say_made();
    report.say_secrets();
    Ok(Agent::new(AgentPaths::new(report.project_dir)))
}

/// Makes or repairs an agent.
pub(crate) fn make(ctx: &Ctx, request: &Request) -> Result<Report, Failure> {
    let was_there = request.dir.exists();
    std::fs::create_dir_all(&request.dir)
        .map_err(|e| Failure::failed(format!("cannot make {}: {e}", request.dir.display())))?;
    let project = request
        .dir
        .canonicalize()
        .map_err(|e| Failure::failed(format!("cannot use {}: {e}", request.dir.display())))?;
    let paths = AgentPaths::new(&project);
    let mut report = Report::new(&project);
    if request.git && !was_there {
        git_init(&project, &mut report);
    }
    clear_leftovers(&project);
    let now = now_ms();
    ctx.registry().edit(now, |entries| {
        if let Some(file) = &entries.rebuilt_from {
            report.warn(format!("the agent registry was damaged and is now {}", file.display()));
        }
        report.port = choose_port(entries, &paths, request)?;
        state_dir(ctx, &paths, request, now, &mut report)?;
        let entry = AgentEntry {
            name: report.agent_name.clone(),
            port: report.port,
            socket: paths.socket(),
            ..entries.get(&project).cloned().unwrap_or_else(|| new_entry(&project, request, now))
        };
        if entries.all().iter().any(|e| e.name == entry.name && e.path != entry.path) {
            report.warn(format!(
                "another agent is called {} too; name this one by its folder (-d {})",
                entry.name,
                project.display()
            ));
        }
        entries.put(entry);
        Ok::<_, Failure>(())
    })?;
    user_files(ctx, &paths, &mut report)?;
    prerequisites(ctx, &paths, &mut report);
    Ok(report)
}

fn new_entry(project: &Path, request: &Request, now: i64) -> AgentEntry {
    AgentEntry {
        name: String::new(),
        kind: if request.standalone { "standalone" } else { "project-bound" }.into(),
        path: project.to_owned(),
        port: 0,
        pid: None,
        pid_start_time: None,
        status: AgentStatus::Stopped,
        created_at: rfc3339(now),
        last_heartbeat: None,
        instar_version: None,
        socket: PathBuf::new(),
        other: serde_json::Map::new(),
    }
}

/// A new state directory appears as a whole; an existing one is completed file by file.
fn state_dir(
    ctx: &Ctx,
    paths: &AgentPaths,
    request: &Request,
    now: i64,
    report: &mut Report,
) -> Result<(), Failure> {
    if paths.state().exists() {
        return tree::fill(ctx, paths, paths, request, now, report);
    }
    let draft = paths.project().join(format!(".instar.tmp-{}", std::process::id()));
    instar_durable::create_dir_private(&draft)?;
    let made =
        tree::fill(ctx, &AgentPaths::of_state_dir(&draft), paths, request, now, report).and_then(|()| {
            instar_durable::sync_dir(&draft)?;
            std::fs::rename(&draft, paths.state())?;
            Ok(instar_durable::sync_dir(paths.project())?)
        });
    if made.is_err() {
        // Nothing half-made stays; the error that matters is the one above.
        let _ = std::fs::remove_dir_all(&draft);
    }
    made
}

fn choose_port(
    entries: &instar_state::registry::Entries,
    paths: &AgentPaths,
    request: &Request,
) -> Result<u16, Failure> {
    let configured = if paths.config().exists() {
        let document = instar_state::config::ConfigFile::new(paths.config()).read()?;
        lookup(&document.root, "port").and_then(|p| p.as_u64()?.try_into().ok())
    } else {
        None
    };
    if let Some(port) = configured {
        return Ok(port);
    }
    let Some(port) = request.port else {
        return Ok(entries.port_for(paths.project(), tcp_ports::can_bind)?);
    };
    match entries.all().iter().find(|e| e.port == port && e.path != paths.project()) {
        Some(other) => {
            Err(Failure::usage(format!("port {port} belongs to {} ({})", other.name, other.path.display())))
        }
        None => Ok(port),
    }
}

/// Our parts of files that belong to the user.
fn user_files(ctx: &Ctx, paths: &AgentPaths, report: &mut Report) -> Result<(), Failure> {
    let project = paths.project();
    let guide = guide(&report.agent_name);
    put_block(&project.join("CLAUDE.md"), &guide_block(&guide), report)?;
    put_block(&project.join(".gitignore"), &gitignore_block(), report)?;

    if refresh_links(paths)? {
        report.updated(".instar/current/");
    }
    let file = project.join(".claude/settings.json");
    match settings::install(&file, &paths.current().join("instar-hook")) {
        Ok(settings::Installed::Created) => report.created(".claude/settings.json"),
        Ok(settings::Installed::Updated) => report.updated(".claude/settings.json"),
        Ok(settings::Installed::Unchanged) => report.kept(".claude/settings.json"),
        Err(error) => report.warn(error.to_string()),
    }
    let merged = [
        (".mcp.json", claude::register_project(paths)?),
        ("~/.claude.json", claude::register_account(&ctx.account, paths)?),
    ];
    for (name, merged) in merged {
        match merged {
            claude::Merged::Created => report.created(name),
            claude::Merged::Updated => report.updated(name),
            claude::Merged::Unchanged => report.kept(name),
            claude::Merged::Malformed => report.warn(format!(
                "{name} is not what Claude Code writes and was left alone; repair it and run `instar init` again"
            )),
        }
    }
    Ok(())
}

fn put_block(path: &Path, block: &blocks::Block<'_>, report: &mut Report) -> Result<(), Failure> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let before = match std::fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            report.warn(format!("{name} can't be read and was left alone: {error}"));
            return Ok(());
        }
    };
    let write = |path: &Path, text: &str| instar_durable::write_atomic(path, text.as_bytes(), 0o644);
    match block.put(before.as_deref().unwrap_or_default()) {
        Put::Unchanged => report.kept(&name),
        Put::Changed(text) => {
            write(&path, &text)?;
            if before.is_some() { report.updated(&name) } else { report.created(&name) }
        }
        Put::Edited(text) => {
            let beside = path.with_file_name(format!("{name}.instar-new"));
            write(&beside, &text)?;
            report.warn(format!(
                "our block in {name} was changed by hand and stays; the new text is in {}",
                beside.display()
            ));
        }
    }
    Ok(())
}

fn prerequisites(ctx: &Ctx, paths: &AgentPaths, report: &mut Report) {
    if super::programs::find(ctx, "claude").is_none() {
        report.warn("Claude Code was not found; sessions need it. Install it with `npm install -g @anthropic-ai/claude-code`");
    }
    let config = Agent::new(paths.clone()).config(ctx);
    let allowed = config.is_ok_and(|c| c.get(instar_state::config::keys::SESSIONS_ALLOW_ROOT));
    if rustix::process::geteuid().is_root() && !allowed {
        report.warn("you are root: sessions start only after you set \"sessions\": {\"allowRoot\": true} in .instar/config.json");
    }
}

fn git_init(project: &Path, report: &mut Report) {
    let ran = Command::new("git")
        .args(["init", "--quiet"])
        .current_dir(project)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match ran {
        Ok(status) if status.success() => report.created(".git/"),
        _ => report.warn("the folder is not under git: `git init` did not work here"),
    }
}

/// Drafts of runs that were killed.
fn clear_leftovers(project: &Path) {
    let Ok(entries) = std::fs::read_dir(project) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(".instar.tmp-")).and_then(|p| p.parse().ok());
        if pid.is_some_and(|pid| ProcessRef::of(pid).is_none()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn is_empty_or_absent(dir: &Path) -> bool {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}
