//! Which process is meant: a process id alone is reused by the system.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A process id together with the time at which that process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessRef {
    /// Process id.
    pub pid: i32,
    /// Start time in ticks since boot (Linux); 0 where the system does not tell.
    pub start: u64,
}

impl ProcessRef {
    /// The calling process.
    pub fn current() -> Self {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Self { pid, start: start_time(pid).unwrap_or(0) }
    }

    /// The living process with this id.
    pub fn of(pid: i32) -> Option<Self> {
        start_time(pid).map(|start| Self { pid, start })
    }

    /// Whether exactly this process still runs. A zombie does not run.
    pub fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.start)
    }
}

impl fmt::Display for ProcessRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)
    }
}

#[cfg(target_os = "linux")]
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&stat)
}

#[cfg(not(target_os = "linux"))]
fn start_time(pid: i32) -> Option<u64> {
    let pid = rustix::process::Pid::from_raw(pid)?;
    rustix::process::test_kill_process(pid).is_ok().then_some(0)
}

/// Start time out of `/proc/<pid>/stat` (proc(5), field 22); the name in field 2 may hold anything.
#[cfg(any(target_os = "linux", test))]
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_stands_after_a_name_with_brackets() {
        let stat = "12 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(parse_stat(stat), Some(4242));
        assert_eq!(parse_stat("12 (a) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"), None);
        assert_eq!(parse_stat("garbage"), None);
    }

    #[test]
    fn we_are_alive_and_an_ended_child_is_not() {
        assert!(ProcessRef::current().is_alive());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let child_ref = ProcessRef::of(i32::try_from(child.id()).expect("pid")).expect("alive");
        assert!(child_ref.is_alive());
        assert!(!ProcessRef { start: child_ref.start + 1, ..child_ref }.is_alive());
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(!child_ref.is_alive());
    }
}
