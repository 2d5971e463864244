//! Finding programs that we need, and asking them for their version.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Ctx;

/// Where installers put programs that are not in everyone's PATH.
const PLACES: [&str; 7] = [
    "~/.local/bin",
    "~/.claude/local",
    "~/.codex/bin",
    "/opt/homebrew/bin",
    "/usr/local/bin",
    "/usr/bin",
    "~/.npm-global/bin",
];

/// The program in PATH, else in a known place.
pub(crate) fn find(ctx: &Ctx, name: &str) -> Option<PathBuf> {
    search_path(ctx).map(|dir| dir.join(name)).find(|p| is_executable(p))
}

/// The environment of this process, its PATH extended by the known places.
pub(crate) fn environment(ctx: &Ctx) -> BTreeMap<String, String> {
    let mut environment = ctx.env.clone();
    let path = std::env::join_paths(search_path(ctx)).ok().and_then(|p| p.into_string().ok());
    if let Some(path) = path {
        environment.insert("PATH".into(), path);
    }
    environment
}

fn search_path(ctx: &Ctx) -> impl Iterator<Item = PathBuf> {
    let path = ctx.env.get("PATH").map(String::as_str).unwrap_or_default();
    let known = PLACES.iter().map(|place| match place.strip_prefix("~/") {
        Some(rest) => ctx.account.home().join(rest),
        None => PathBuf::from(place),
    });
    let nvm = ctx.env.get("NVM_BIN").map(PathBuf::from);
    let mut seen = BTreeSet::new();
    std::env::split_paths(path).chain(known).chain(nvm).filter(move |dir| seen.insert(dir.clone()))
}

/// Whether the file can be run.
pub(crate) fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// First line that the program prints when asked with `flag`; none after 5 s or on failure.
pub(crate) fn version(program: &Path, flag: &str) -> Option<String> {
    let mut child = Command::new(program)
        .arg(flag)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let deadline = Instant::now() + Duration::from_secs(5);
    // A version fits into the pipe, so the program never waits for us to read.
    while child.try_wait().ok()?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().ok().filter(|o| o.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

/// The first number with dots in a line, as major and minor.
pub(crate) fn numbers(line: &str) -> Option<(u32, u32)> {
    let start = line.find(|c: char| c.is_ascii_digit())?;
    let mut parts = line[start..].split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next().and_then(|p| p.parse().ok()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_programs_print() {
        assert_eq!(numbers("tmux 3.3a"), Some((3, 3)));
        assert_eq!(numbers("2.1.330 (Claude Code)"), Some((2, 1)));
        assert_eq!(numbers("no version"), None);
    }

    #[test]
    fn a_program_is_asked_and_a_missing_one_is_not_there() {
        assert!(version(Path::new("/bin/ls"), "--version").is_some());
        assert_eq!(version(Path::new("/does/not/exist"), "--version"), None);
    }
}
