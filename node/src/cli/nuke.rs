//! `instar nuke`: removes an agent, and what it put into files of others.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use instar_hooks::settings;
use instar_sessions::process;
use instar_state::config::{Kind, is_placeholder, lookup, set_at};
use instar_state::paths::AgentPaths;
use instar_state::registry::RegistryError;
use instar_state::time::{now_ms, rfc3339};
use rustix::process::Signal;
use serde_json::{Value, json};
use threadline::v1::local::AgentName;
use threadline_net::SharedFiles;

use super::init::{blocks, claude, gitignore_block, guide, guide_block};
use super::{Agent, CommandResult, Ctx, Failure, Reply, owner, programs};
use crate::daemon;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["name", "here"]))]
pub(crate) struct Args {
    /// Name of the agent
    name: Option<String>,
    /// The agent here
    #[arg(long)]
    here: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Keep no last backup
    #[arg(long)]
    no_backup: bool,
}

/// How long a last backup is kept.
const KEEP: Duration = Duration::from_hours(30 * 24);

pub(crate) fn run(ctx: &Ctx, args: &Args) -> CommandResult {
    if ctx.in_session() {
        return Err(Failure::refused("a session may not remove an agent; ask the owner"));
    }
    let agent = ctx.agent_or_named(args.name.as_deref())?;
    let name = agent.name();
    if !args.yes {
        confirm(ctx, &agent, &name)?;
    }
    stop(ctx, &agent)?;
    let backup = if args.no_backup { None } else { Some(back_up(ctx, &agent, &name)?) };
    let standalone = agent.paths.project().parent().is_some_and(|p| p == real(&ctx.account.agents()));
    let mut removed = Vec::new();
    if !standalone {
        user_files(&agent, &name, &mut removed)?;
    }
    if claude::unregister(&ctx.account, &agent.paths)? {
        removed.push("MCP entries".to_owned());
    }
    let namesake = ctx.registry().edit(now_ms(), |entries| {
        entries.remove(agent.paths.project());
        Ok::<_, RegistryError>(entries.all().iter().any(|entry| entry.name == name))
    })?;
    if !namesake && forget_shared(ctx, &name)? {
        removed.push("its token and messages that waited for it".to_owned());
    }
    let gone = if standalone { agent.paths.project() } else { agent.paths.state() };
    remove_dir(gone)?;
    let _ = std::fs::remove_file(agent.paths.socket());
    removed.push(gone.display().to_string());
    prune(&ctx.account.trash());

    let mut lines = vec![format!("{name} is removed:")];
    lines.extend(removed.iter().map(|r| format!("  {r}")));
    if let Some(path) = &backup {
        lines.push(format!("A backup without keys and secrets is kept for 30 days: {}", path.display()));
    }
    lines.push(
        "Its address is gone with its key; only the recovery phrase can prove that it was yours.".into(),
    );
    Ok(Reply::new(json!({"agent": name, "removed": removed, "backup": backup}), lines.join("\n")))
}

/// Removes what other agents of the account use to reach this one.
fn forget_shared(ctx: &Ctx, name: &str) -> io::Result<bool> {
    let files = SharedFiles::new(ctx.account.agent_tokens(), ctx.account.drops());
    AgentName::parse(name).map_or(Ok(false), |name| files.forget(&name))
}

fn confirm(ctx: &Ctx, agent: &Agent, name: &str) -> Result<(), Failure> {
    if !ctx.can_ask() {
        return Err(Failure::usage(
            "removing an agent has to be confirmed; run it on a terminal, or add --yes",
        ));
    }
    super::say(&format!(
        "This removes the agent {name} with its key, its memory and its messages: {}",
        agent.paths.state().display()
    ));
    if owner::ask("Type its name to go on: ")? == name {
        return Ok(());
    }
    Err(Failure::refused("that is not its name; nothing was changed"))
}

/// Ends node and sessions.
fn stop(ctx: &Ctx, agent: &Agent) -> Result<(), Failure> {
    let mut here = ctx.clone();
    here.flags.agent = None;
    here.flags.dir = Some(agent.paths.project().to_owned());
    match daemon::stop(&here, &daemon::StopArgs { name: None, timeout: 15, sessions: true }) {
        Err(failure) if failure.code != "not_running" => return Err(failure),
        _ => {}
    }
    if let Some(tmux) = programs::find(ctx, "tmux") {
        // No server of ours means that there is nothing to end.
        let _ = Command::new(tmux)
            .args(["-L", &agent.paths.tmux_server(), "kill-server"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
    let hosts = session_hosts(&agent.paths);
    for pid in &hosts {
        process::signal(*pid, Signal::TERM);
    }
    let deadline = Instant::now() + Duration::from_secs(12);
    while hosts.iter().any(|pid| process::is_alive(*pid, None)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    for pid in &hosts {
        process::signal(*pid, Signal::KILL);
    }
    Ok(())
}

/// Supervisors of this agent's sessions that still run, recognised by the session id on their command line.
fn session_hosts(paths: &AgentPaths) -> Vec<i32> {
    let Ok(records) = std::fs::read_dir(paths.sessions()) else { return Vec::new() };
    let pid_of = |record: Value| {
        let pid = i32::try_from(record["hostPid"].as_i64()?).ok()?;
        let id = record["id"].as_str()?;
        process::command_line(pid).contains(id).then_some(pid)
    };
    records
        .flatten()
        .filter_map(|entry| serde_json::from_slice(&std::fs::read(entry.path()).ok()?).ok())
        .filter_map(pid_of)
        .collect()
}

/// Takes our parts out of the user's files. A file that held nothing else is removed.
fn user_files(agent: &Agent, name: &str, removed: &mut Vec<String>) -> Result<(), Failure> {
    let guide = guide(name);
    for (file, block) in [("CLAUDE.md", guide_block(&guide)), (".gitignore", gitignore_block())] {
        if take_out(&agent.paths.project().join(file), &block)? {
            removed.push(format!("our block in {file}"));
        }
    }
    match settings::uninstall(&agent.paths.project().join(".claude/settings.json")) {
        Ok(true) => removed.push("hook entries".to_owned()),
        Ok(false) => {}
        Err(error) => super::say(&format!("warning: {error}")),
    }
    Ok(())
}

fn take_out(path: &Path, block: &blocks::Block<'_>) -> Result<bool, Failure> {
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(false) };
    let Some(rest) = block.remove(&text) else { return Ok(false) };
    if rest.trim().is_empty() {
        std::fs::remove_file(path)?;
    } else {
        instar_durable::write_atomic(&real(path), rest.as_bytes(), 0o644)?;
    }
    Ok(true)
}

/// Writes the last backup: everything but keys, secrets, sockets, the message queue and logs.
fn back_up(ctx: &Ctx, agent: &Agent, name: &str) -> Result<PathBuf, Failure> {
    let trash = ctx.account.trash();
    instar_durable::create_dir_private(&trash)?;
    let stamp: String = rfc3339(now_ms()).chars().filter(char::is_ascii_alphanumeric).collect();
    let path = trash.join(format!("{name}-{stamp}.tar.gz"));
    let written = archive(agent, &path);
    if let Err(error) = written {
        // Half a backup is none.
        let _ = std::fs::remove_file(&path);
        return Err(Failure::failed(format!(
            "the last backup could not be written ({error}), and nothing was removed; --no-backup goes on without it"
        )));
    }
    Ok(path)
}

fn archive(agent: &Agent, path: &Path) -> io::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut tar = tar::Builder::new(GzEncoder::new(BufWriter::new(file), Compression::default()));
    tar.follow_symlinks(false);
    add_dir(&mut tar, agent.paths.state(), Path::new(""))?;
    if let Ok(document) = agent.config_file().read() {
        let text = redacted(document.root).to_string();
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        tar.append_data(&mut header, ".instar/config.json", text.as_bytes())?;
    }
    let mut file = tar.into_inner()?.finish()?;
    file.flush()?;
    file.get_ref().sync_all()
}

fn add_dir(tar: &mut tar::Builder<impl Write>, from: &Path, below: &Path) -> io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(from.join(below))?.collect::<io::Result<_>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let inner = below.join(entry.file_name());
        let kind = entry.file_type()?;
        if is_left_out(&inner) {
            continue;
        }
        if kind.is_dir() {
            add_dir(tar, from, &inner)?;
        } else if kind.is_file() {
            tar.append_file(Path::new(".instar").join(&inner), &mut File::open(entry.path())?)?;
        }
    }
    Ok(())
}

fn is_left_out(path: &Path) -> bool {
    let text = path.to_string_lossy();
    matches!(
        text.as_ref(),
        "secrets"
            | "machine"
            | "identity.json"
            | "run"
            | "current"
            | "logs"
            | "config.json"
            | "config.json.lock"
    ) || text.starts_with("state/messaging.sqlite")
}

/// The configuration with every secret replaced by a placeholder.
fn redacted(mut root: serde_json::Map<String, Value>) -> Value {
    for path in super::secrets::config_secrets(&root) {
        if lookup(&root, &path).is_some_and(|v| !is_placeholder(v)) {
            // The path exists, so every object on the way does.
            let _ = set_at(&mut root, &path, json!({"secret": true}));
        }
    }
    // Keys that this build does not know may hold secrets too.
    root.retain(|key, _| {
        instar_state::config::is_group(key)
            || instar_state::config::spec_of(key).is_some_and(|s| !matches!(s.kind, Kind::Secret))
    });
    Value::Object(root)
}

/// Out of sight at once, then gone.
fn remove_dir(dir: &Path) -> Result<(), Failure> {
    let aside = dir.with_file_name(format!(".instar.tmp-{}", std::process::id()));
    std::fs::rename(dir, &aside)?;
    std::fs::remove_dir_all(&aside)
        .map_err(|e| Failure::failed(format!("{} was not removed completely: {e}", aside.display())))
}

fn prune(trash: &Path) {
    let Ok(entries) = std::fs::read_dir(trash) else { return };
    for entry in entries.flatten() {
        let age = entry
            .metadata()
            .and_then(|m| m.modified())
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        if age.is_some_and(|age| age > KEEP) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_holds_no_key_and_no_secret() {
        let dir = tempfile::tempdir().expect("dir");
        let agent = Agent::new(AgentPaths::new(dir.path()));
        let write = |name: &str, text: &str| {
            let path = agent.paths.state().join(name);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
            std::fs::write(path, text).expect("write");
        };
        for name in [
            "identity.json",
            "secrets/store.enc",
            "machine/secrets-master.key",
            "state/messaging.sqlite-wal",
            "run/x",
        ] {
            write(name, "LEAK");
        }
        write("AGENT.md", "kept");
        write("state/sessions/a.json", "kept");
        write(
            "config.json",
            r#"{"port": 4040, "authToken": "LEAK", "other": {"token": "LEAK"},
            "sessions": {"maxSessions": 3, "credentials": {"anthropic": {"kind": "api-key", "value": "LEAK"}}}}"#,
        );
        let path = dir.path().join("backup.tar.gz");
        archive(&agent, &path).expect("archive");

        let mut names = Vec::new();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).expect("open")));
        for entry in tar.entries().expect("entries") {
            let mut entry = entry.expect("entry");
            let mut text = String::new();
            io::Read::read_to_string(&mut entry, &mut text).expect("text");
            assert!(!text.contains("LEAK"), "{text}");
            names.push(entry.path().expect("path").display().to_string());
        }
        assert_eq!(names, [".instar/AGENT.md", ".instar/state/sessions/a.json", ".instar/config.json"]);
    }
}
