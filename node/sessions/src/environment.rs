//! The environment of sessions: built from an allow list, never inherited (`agent-core.md` §6.4).

use std::collections::BTreeMap;

/// Variables by name.
pub type Environment = BTreeMap<String, String>;

const ALLOWED: [&str; 17] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "TERM",
    "TMPDIR",
    "TZ",
    "SSH_AUTH_SOCK",
    "COLORTERM",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Names that no setting lets through: they would make the runtime act as, or spend for, someone else.
const NEVER: [&str; 4] = ["CLAUDECODE", "CLAUDE_SESSION_ID", "CLAUDE_CODE_SESSION_ID", "INSTAR_AUTH_TOKEN"];

/// The part of the node's environment that sessions and supervisors may see.
pub fn allowed(source: &Environment, extra: &[String]) -> Environment {
    source
        .iter()
        .filter(|(name, _)| is_allowed(name, extra))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn is_allowed(name: &str, extra: &[String]) -> bool {
    if NEVER.contains(&name) {
        return false;
    }
    ALLOWED.contains(&name)
        || name.starts_with("LC_")
        || name.starts_with("XDG_")
        || extra.iter().any(|allowed| allowed == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_the_parent_stay_behind() {
        let source: Environment = [
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("XDG_RUNTIME_DIR", "/run"),
            ("DATABASE_URL", "postgres://secret"),
            ("ANTHROPIC_API_KEY", "secret"),
            ("OPENAI_API_KEY", "secret"),
            ("CLAUDECODE", "1"),
            ("MY_FLAG", "1"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        let extra = ["MY_FLAG".to_owned(), "CLAUDECODE".to_owned()];
        let seen = allowed(&source, &extra);
        let names: Vec<&str> = seen.keys().map(String::as_str).collect();
        assert_eq!(names, ["LC_ALL", "MY_FLAG", "PATH", "XDG_RUNTIME_DIR"]);
    }
}
