//! The service unit.

use super::{read, seconds};

/// A unit file in its order; a key may repeat.
#[derive(Debug)]
pub(super) struct Unit {
    entries: Vec<(String, String, String)>,
}

impl Unit {
    pub(super) fn read(name: &str) -> Self {
        let mut section = String::new();
        let mut entries = Vec::new();
        for line in read(name).lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('[') {
                name.strip_suffix(']').expect("a section").clone_into(&mut section);
                continue;
            }
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{line} is no KEY=value"));
            let plain = |text: &str| text.trim() == text && !text.ends_with('\\');
            assert!(plain(key) && plain(value) && !section.is_empty(), "{line}");
            entries.push((section.clone(), key.to_owned(), value.to_owned()));
        }
        Self { entries }
    }

    /// All values of a key of `[Service]`.
    pub(super) fn all(&self, key: &str) -> Vec<&str> {
        let service = self.entries.iter().filter(|(section, name, _)| section == "Service" && name == key);
        service.map(|(_, _, value)| value.as_str()).collect()
    }

    /// The value of a key of `[Service]` that stands there once.
    pub(super) fn service(&self, key: &str) -> &str {
        let all = self.all(key);
        assert_eq!(all.len(), 1, "{key}: {all:?}");
        all[0]
    }
}

#[test]
fn the_unit_says_what_was_promised() {
    let unit = Unit::read("systemd/threadline-relay.service");
    let promised = [
        ("Type", "notify"),
        ("DynamicUser", "yes"),
        ("StateDirectory", "threadline-relay"),
        ("NoNewPrivileges", "yes"),
        ("LimitNOFILE", "65536"),
        ("Restart", "on-failure"),
        ("WatchdogSec", "30"),
    ];
    for (key, value) in promised {
        assert_eq!(unit.service(key), value, "{key}");
    }
    let data = format!("RELAY_DATA_DIR=/var/lib/{}", unit.service("StateDirectory"));
    assert_eq!(unit.service("Environment"), data);
    let check = unit.service("ExecStartPre").replace(" check-config", "");
    assert_eq!(check, unit.service("ExecStart"), "what is checked is what is started");
    assert!(seconds(unit.service("TimeoutStartSec")) >= 60);
}
