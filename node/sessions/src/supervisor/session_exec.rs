//! Supervisor of a session in a tmux pane: hands the terminal to the runtime and records how it ended.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use instar_state::ids::SessionId;
use rustix::process::Pid;

use super::{NOT_STARTED, child_exec, exit_of, heartbeat, wait_for_end, write_exit, write_pids};
use crate::launch::{self, SessionFiles};
use crate::process;

/// Runs the runtime of this session in the terminal of this process, until it ends.
pub fn run(state_dir: PathBuf, id: SessionId) -> io::Result<()> {
    let files = SessionFiles::new(&state_dir, id);
    let spec = launch::take(&files)?;
    let mut env = spec.env.clone();
    // The pane knows its terminal better than the node does.
    if let Ok(term) = std::env::var("TERM") {
        env.insert("TERM".into(), term);
    }
    let spawned = Command::new(&spec.program)
        .args(child_exec::arguments(&spec.argv, true))
        .env_clear()
        .envs(&env)
        .current_dir(&spec.cwd)
        .process_group(0)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            write_exit(&files, NOT_STARTED)?;
            return Err(error);
        }
    };
    let pid = Pid::from_child(&child);
    rustix::termios::tcsetpgrp(rustix::stdio::stdin(), pid)?;
    let pids = write_pids(&files, pid.as_raw_nonzero().get())?;
    let _heartbeat = spec.heartbeat.map(|spec| heartbeat::Heartbeat::start(spec, pids.child));

    wait_for_end(&child)?;
    process::kill_remains(pids.child, &id.to_string());
    let status = child.wait()?;
    write_exit(&files, exit_of(status)).map(drop)
}
