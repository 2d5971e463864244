//! Finding and ending the processes of a scenario. Only for use inside its own namespace, where nothing else runs.

use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

/// A running process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Command line.
    pub command: Vec<String>,
}

impl Process {
    /// Whether one argument equals `word`.
    pub fn has(&self, word: &str) -> bool {
        self.command.iter().any(|argument| argument == word)
    }

    /// Value of an environment variable of the process.
    pub fn variable(&self, name: &str) -> Option<String> {
        let text = std::fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        text.split('\0').find_map(|pair| Some(pair.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
    }

    /// Process id of its parent.
    fn parent(&self) -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        // The program's name stands in parentheses and may hold anything; then come its state and its parent.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    }

    /// Sends a signal; gives back whether the process was still there.
    pub fn signal(&self, signal: Signal) -> bool {
        Pid::from_raw(self.pid).is_some_and(|pid| kill_process(pid, signal).is_ok())
    }
}

/// All processes but zombies and ourselves.
pub fn all() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ours = std::process::id() as i32;
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != ours && *pid != 1)
        .filter_map(|pid| {
            let raw = std::fs::read(PathBuf::from(format!("/proc/{pid}/cmdline"))).ok()?;
            let text = String::from_utf8_lossy(&raw).into_owned();
            let command: Vec<String> = text.split_terminator('\0').map(str::to_owned).collect();
            (!command.is_empty()).then_some(Process { pid, command })
        })
        .collect()
}

/// Processes that hold `word` as one of their arguments.
pub fn with(word: &str) -> Vec<Process> {
    all().into_iter().filter(|process| process.has(word)).collect()
}

/// Running runtimes of sessions, real or stand-in: programs that are called `claude` and serve a session.
pub fn runtimes() -> Vec<Process> {
    let serves = |process: &Process| {
        let flags = ["--session-id", "--resume"];
        process.command[0].ends_with("claude")
            && process.command.iter().any(|argument| flags.iter().any(|flag| argument.starts_with(flag)))
    };
    without_copies(all().into_iter().filter(serves).collect())
}

/// Supervisors of sessions.
pub fn session_hosts() -> Vec<Process> {
    let supervises = |process: &Process| process.has("session-host") || process.has("session-exec");
    without_copies(all().into_iter().filter(supervises).collect())
}

/// A child that has not yet become its own program still shows the command line of its parent: it is about to be a hook or
/// a tool server, not another one of these.
fn without_copies(found: Vec<Process>) -> Vec<Process> {
    let pids: Vec<i32> = found.iter().map(|process| process.pid).collect();
    let is_copy = |process: &Process| process.parent().is_some_and(|parent| pids.contains(&parent));
    found.into_iter().filter(|process| !is_copy(process)).collect()
}
