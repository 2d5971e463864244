//! `.instar/current/`: links to the running programs, through which everything that is written down names them.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use instar_state::paths::AgentPaths;

use crate::cli::Failure;

/// Points `current/instar` and `current/instar-hook` at the running programs; returns whether anything changed.
///
/// Without a sibling `instar-hook` the link names `instar`, which behaves as the hook program under that name. A
/// `current` that is itself a link belongs to an updater and is left alone.
pub(crate) fn refresh_links(paths: &AgentPaths) -> Result<bool, Failure> {
    let program = std::env::current_exe()
        .and_then(|p| p.canonicalize())
        .map_err(|e| Failure::failed(format!("cannot tell where this program is: {e}")))?;
    refresh(&paths.current(), &program)
        .map_err(|e| Failure::failed(format!("cannot write {}: {e}", paths.current().display())))
}

fn refresh(current: &Path, program: &Path) -> io::Result<bool> {
    if current.is_symlink() {
        return Ok(false);
    }
    instar_durable::create_dir_private(current)?;
    let hook = program.with_file_name("instar-hook");
    let hook = if hook.is_file() { hook } else { program.to_owned() };
    let mut changed = false;
    for (name, target) in [("instar", program.to_owned()), ("instar-hook", hook)] {
        changed |= link(&current.join(name), &target)?;
    }
    Ok(changed)
}

fn link(at: &Path, target: &PathBuf) -> io::Result<bool> {
    if std::fs::read_link(at).is_ok_and(|t| &t == target) {
        return Ok(false);
    }
    let new = at.with_extension(format!("new-{}", std::process::id()));
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, &new)?;
    std::fs::rename(&new, at)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_follow_the_program_and_fall_back_for_the_hook() {
        let dir = tempfile::tempdir().expect("dir");
        let (current, bin) = (dir.path().join("current"), dir.path().join("bin"));
        std::fs::create_dir(&bin).expect("dir");
        std::fs::write(bin.join("instar"), "").expect("write");
        assert!(refresh(&current, &bin.join("instar")).expect("links"));
        assert_eq!(std::fs::read_link(current.join("instar-hook")).expect("link"), bin.join("instar"));
        assert!(!refresh(&current, &bin.join("instar")).expect("links"));
        std::fs::write(bin.join("instar-hook"), "").expect("write");
        assert!(refresh(&current, &bin.join("instar")).expect("links"));
        assert_eq!(std::fs::read_link(current.join("instar-hook")).expect("link"), bin.join("instar-hook"));
        assert_eq!(std::fs::read_dir(&current).expect("dir").count(), 2);
    }
}
