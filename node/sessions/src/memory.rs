//! How much of the memory is in use: of the machine, or of the container where that is closer to its limit
//! (`resilience.md` §4.11).

use std::fs;
use std::path::{Path, PathBuf};

/// Files in which the kernel tells of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryFiles {
    /// Of the machine.
    pub meminfo: PathBuf,
    /// Directory of the container's control group.
    pub cgroup: PathBuf,
}

impl Default for MemoryFiles {
    fn default() -> Self {
        Self { meminfo: "/proc/meminfo".into(), cgroup: "/sys/fs/cgroup".into() }
    }
}

impl MemoryFiles {
    /// Percent in use, 0–100; `None` where the system does not tell.
    pub fn used_percent(&self) -> Option<u8> {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let group = |name: &str| read(&self.cgroup.join(name));
        let machine = of_machine(&read(&self.meminfo));
        machine.max(of_group(&group("memory.max"), &group("memory.current"), &group("memory.stat")))
    }
}

/// What can be had without swapping counts as free.
fn of_machine(meminfo: &str) -> Option<u8> {
    let (total, available) = (field(meminfo, "MemTotal:")?, field(meminfo, "MemAvailable:")?);
    percent(total.saturating_sub(available), total)
}

/// Cached files can be dropped, so they do not count as used.
fn of_group(max: &str, current: &str, stat: &str) -> Option<u8> {
    let max = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    percent(current.saturating_sub(field(stat, "inactive_file").unwrap_or(0)), max)
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok()).flatten()
    })
}

fn percent(used: u64, of: u64) -> Option<u8> {
    let percent = (u128::from(used) * 100).checked_div(u128::from(of))?;
    Some(u8::try_from(percent.min(100)).unwrap_or(100))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_closer_limit_counts() {
        let dir = tempfile::tempdir().expect("dir");
        let files = MemoryFiles { meminfo: dir.path().join("meminfo"), cgroup: dir.path().to_owned() };
        assert_eq!(files.used_percent(), None);
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("write");
        write("meminfo", "MemTotal:       1000 kB\nMemFree:         10 kB\nMemAvailable:    400 kB\n");
        assert_eq!(files.used_percent(), Some(60));
        write("memory.max", "max\n");
        write("memory.current", "900\n");
        assert_eq!(files.used_percent(), Some(60), "a group without a limit");
        write("memory.max", "1000\n");
        assert_eq!(files.used_percent(), Some(90));
        write("memory.stat", "anon 5\ninactive_file 200\n");
        assert_eq!(files.used_percent(), Some(70));
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(texts in prop::array::uniform4("[a-zA-Z_: 0-9\\n]{0,60}")) {
            let [meminfo, max, current, stat] = texts;
            for percent in [of_machine(&meminfo), of_group(&max, &current, &stat)] {
                prop_assert!(percent.is_none_or(|percent| percent <= 100));
            }
        }

        #[test]
        fn a_percentage_is_one(used in any::<u64>(), of in any::<u64>()) {
            prop_assert_eq!(percent(used, of).is_none(), of == 0);
            prop_assert!(percent(used, of).is_none_or(|percent| percent <= 100));
        }
    }
}
