//! The shim between supervisor and runtime: binds the runtime's life to the supervisor, then becomes it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Arguments of the shim for a runtime's command line.
pub(super) fn arguments(argv: &[String], foreground: bool) -> Vec<OsString> {
    let mode = if foreground { "foreground" } else { "background" };
    let head = ["child-exec".to_owned(), std::process::id().to_string(), mode.to_owned()];
    head.into_iter().chain(argv.iter().cloned()).map(OsString::from).collect()
}

/// Asks the kernel to kill this process when its parent ends, checks that the parent still lives, and becomes
/// the program. With `foreground` it first waits until the terminal is handed to its process group.
pub fn run(arguments: &[OsString]) -> ExitCode {
    let [parent, mode, program, rest @ ..] = arguments else {
        eprintln!("this command is started by a session's supervisor");
        return ExitCode::from(2);
    };
    if let Err(error) = die_with_parent() {
        eprintln!("cannot bind the runtime to its supervisor: {error}");
        return ExitCode::FAILURE;
    }
    let actual = rustix::process::getppid().map(|p| p.as_raw_nonzero().get().to_string());
    if actual.as_deref() != parent.to_str() {
        eprintln!("the supervisor is gone");
        return ExitCode::FAILURE;
    }
    if mode == "foreground" && !wait_for_terminal(Duration::from_secs(5)) {
        eprintln!("the terminal was not handed over");
        return ExitCode::FAILURE;
    }
    let error = Command::new(program).args(rest).exec();
    eprintln!("cannot start {}: {error}", program.display());
    ExitCode::from(127)
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn die_with_parent() -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn die_with_parent() -> std::io::Result<()> {
    Ok(())
}

/// A process in the background that touches the terminal is stopped, so the runtime starts in the foreground.
fn wait_for_terminal(limit: Duration) -> bool {
    let own = rustix::process::getpgrp();
    let step = Duration::from_millis(1);
    for _ in 0..limit.as_millis() {
        if rustix::termios::tcgetpgrp(rustix::stdio::stdin()).is_ok_and(|group| group == own) {
            return true;
        }
        std::thread::sleep(step);
    }
    false
}
