//! Facts about processes of this machine, read from `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal};

/// What `/proc/<pid>/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcStat {
    /// Process id.
    pub pid: i32,
    /// Parent's process id.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// `R`, `S`, `Z`, …
    pub state: char,
    /// CPU time of the process in clock ticks.
    pub cpu_ticks: u64,
    /// Start in clock ticks since boot.
    pub start_time: u64,
}

/// Reads one `stat` line. The name in parentheses may hold anything, parentheses too.
pub fn parse_stat(text: &str) -> Option<ProcStat> {
    let (head, tail) = text.rsplit_once(')')?;
    let pid = head.split_once('(')?.0.trim().parse().ok()?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok());
    Some(ProcStat {
        pid,
        state: fields.first()?.chars().next()?,
        ppid: fields.get(1)?.parse().ok()?,
        pgrp: fields.get(2)?.parse().ok()?,
        cpu_ticks: number(11)? + number(12)?,
        start_time: number(19)?,
    })
}

/// The facts of one process; `None` if there is none.
pub fn stat(pid: i32) -> Option<ProcStat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Whether the very process that had this start time still runs. A zombie does not.
pub fn is_alive(pid: i32, start_time: Option<u64>) -> bool {
    stat(pid).is_some_and(|s| !matches!(s.state, 'Z' | 'X') && start_time.is_none_or(|t| t == s.start_time))
}

/// All processes by id.
pub fn snapshot() -> BTreeMap<i32, ProcStat> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(stat)
        .map(|s| (s.pid, s))
        .collect()
}

/// The process and its ancestors, nearest first.
pub fn ancestry(pid: i32) -> Vec<ProcStat> {
    let mut chain = Vec::new();
    let mut at = pid;
    while at > 1 && chain.len() < 64 {
        let Some(facts) = stat(at) else { break };
        at = facts.ppid;
        chain.push(facts);
    }
    chain
}

/// All processes below `root`, without it.
pub fn descendants(processes: &BTreeMap<i32, ProcStat>, root: i32) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        for process in processes.values().filter(|p| p.ppid == parent) {
            if found.insert(process.pid) {
                open.push(process.pid);
            }
        }
    }
    found
}

/// Value of a variable in the environment that the process was started with.
pub fn environment_value(pid: i32, name: &str) -> Option<String> {
    let block = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{name}=");
    block
        .split(|b| *b == 0)
        .find_map(|entry| entry.strip_prefix(prefix.as_bytes()))
        .map(|value| String::from_utf8_lossy(value).into_owned())
}

/// Command line with spaces between the arguments.
pub fn command_line(pid: i32) -> String {
    let block = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = block.split(|b| *b == 0).filter(|w| !w.is_empty());
    words.map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ")
}

/// Keeps every file that is open now, but standard input, output and error, from programs that are started later.
///
/// Whoever started this process may have left files of its own open in it; a session or a node in the background
/// would hold them for as long as it lives.
pub fn close_files_on_exec() {
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
}

/// Sends a signal to one process; nothing happens if it is gone.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid).filter(|p| p.as_raw_nonzero().get() > 1) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Sends a signal to a process group; nothing happens if it is gone.
pub fn signal_group(group: i32, signal: Signal) {
    if let Some(group) = Pid::from_raw(group).filter(|p| p.as_raw_nonzero().get() > 1) {
        let _ = rustix::process::kill_process_group(group, signal);
    }
}

/// Ends everything that a session left behind: its process group and every process that carries its id.
///
/// A process that left the group and its parents still has the environment it was started with.
pub fn kill_remains(group: i32, session_id: &str) {
    signal_group(group, Signal::KILL);
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    for pid in snapshot().into_keys().filter(|pid| *pid != own) {
        if environment_value(pid, "INSTAR_SESSION_ID").as_deref() == Some(session_id) {
            signal(pid, Signal::KILL);
        }
    }
}

/// The program's file: as given if it holds a `/`, else the first executable in the search path.
pub fn find_program(name: &str, search_path: &str) -> Option<std::path::PathBuf> {
    if name.contains('/') {
        return is_executable(Path::new(name)).then(|| name.into());
    }
    search_path
        .split(':')
        .filter(|dir| !dir.is_empty())
        .map(|dir| Path::new(dir).join(name))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_with_parentheses() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194304 1 0 0 0 11 22 0 0 20 0 1 0 9876 0 0";
        let expected = ProcStat { pid: 42, ppid: 7, pgrp: 42, state: 'S', cpu_ticks: 33, start_time: 9876 };
        assert_eq!(parse_stat(line), Some(expected));
    }

    #[test]
    fn this_process_lives_and_no_other_start_time_does() {
        let own = i32::try_from(std::process::id()).expect("pid");
        let facts = stat(own).expect("stat");
        assert!(is_alive(own, Some(facts.start_time)));
        assert!(!is_alive(own, Some(facts.start_time + 1)));
        assert_eq!(ancestry(own).first().map(|p| p.pid), Some(own));
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in ".{0,120}") {
            let _ = parse_stat(&text);
        }
    }
}
