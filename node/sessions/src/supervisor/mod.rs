//! The processes between the node and a runtime: they own it, outlive the node and leave a record of its end.
//!
//! They are hidden commands of the program, run on its main thread before anything else starts: the signal that
//! ends a runtime with its supervisor is bound to the thread that started it.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ExitCode, ExitStatus};

use instar_durable::write_atomic;
use instar_state::ids::SessionId;
use rustix::process::{Pid, WaitId, WaitIdOptions};

use crate::launch::{Pids, SessionFiles};
use crate::process;
use crate::record::{Exit, ExitRecord};

pub mod child_exec;
pub mod event_log;
mod heartbeat;
pub mod protocol;
pub mod session_exec;
pub mod session_host;

/// Carries out a hidden command (`session-host`, `session-exec`, `child-exec`) if the arguments, without the
/// program's name, are one; `None` otherwise. Call it first in `main`, before any thread is started.
pub fn dispatch(arguments: &[OsString]) -> Option<ExitCode> {
    let (command, rest) = arguments.split_first()?;
    match command.to_str()? {
        "child-exec" => Some(child_exec::run(rest)),
        "session-host" => Some(supervise(rest, session_host::run)),
        "session-exec" => Some(supervise(rest, session_exec::run)),
        _ => None,
    }
}

/// Arguments of a supervisor command: state directory and session id.
pub(crate) fn arguments(command: &str, state_dir: &std::path::Path, id: SessionId) -> Vec<OsString> {
    vec![command.into(), state_dir.into(), id.to_string().into()]
}

fn supervise(arguments: &[OsString], run: fn(PathBuf, SessionId) -> io::Result<()>) -> ExitCode {
    let [state_dir, id] = arguments else {
        eprintln!("this command is started by the node, with a state directory and a session id");
        return ExitCode::from(2);
    };
    let Some(id) = id.to_str().and_then(|id| id.parse().ok()) else {
        eprintln!("{} is not a session id", id.display());
        return ExitCode::from(2);
    };
    match run(PathBuf::from(state_dir), id) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("session {id}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Waits until the child has ended, without giving its process id free.
fn wait_for_end(child: &Child) -> io::Result<()> {
    let pid = Pid::from_child(child);
    loop {
        match rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(drop).map_err(io::Error::from),
        }
    }
}

fn write_pids(files: &SessionFiles, child: i32) -> io::Result<Pids> {
    let host = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let start = process::stat(child).map(|s| s.start_time);
    let pids = Pids { host, child, child_start_time: start.unwrap_or_default() };
    write_atomic(&files.pids(), &serde_json::to_vec(&pids)?, 0o600).map_err(|e| e.source)?;
    Ok(pids)
}

fn write_exit(files: &SessionFiles, exit: Exit) -> io::Result<ExitRecord> {
    let record = ExitRecord { exit, at: chrono::Utc::now().timestamp_millis() };
    write_atomic(&files.exit(), &serde_json::to_vec(&record)?, 0o600).map_err(|e| e.source)?;
    Ok(record)
}

fn exit_of(status: ExitStatus) -> Exit {
    Exit { code: status.code(), signal: status.signal() }
}

/// What a shell reports for a program that could not be started.
const NOT_STARTED: Exit = Exit { code: Some(127), signal: None };
