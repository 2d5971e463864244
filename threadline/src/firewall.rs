//! What a session that serves a peer may do with a tool (`threadline-agent.md` §4.5). Everything that is not named here is
//! denied, whatever the message said.

use serde_json::{Map, Value};

use crate::{Fingerprint, ThreadId, TrustLevel};

/// Denied calls after which the session is closed.
pub const MAX_VIOLATIONS: u32 = 3;
/// The tool that answers the peer.
pub const SEND_TOOL: &str = "mcp__threadline__threadline_send";
/// The tool that reads the thread.
pub const HISTORY_TOOL: &str = "mcp__threadline__threadline_history";
/// The runtime's own tool that loads descriptions of tools; each tool that it finds is still decided by itself. Without it a
/// model of a current Claude Code cannot see the two tools above.
pub const FIND_TOOL: &str = "ToolSearch";

/// Names that are never read, in any directory.
const SECRET_NAMES: [&str; 9] =
    [".git", ".claude", ".instar", ".mcp.json", ".ssh", ".gnupg", ".aws", ".netrc", ".npmrc"];
const SECRET_ENDINGS: [&str; 7] = [".pem", ".key", ".p12", ".pfx", ".keystore", ".jks", ".token"];

/// The firewall of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The one peer it may write to.
    pub peer: Fingerprint,
    /// The one thread.
    pub thread: ThreadId,
    /// Level of the peer now.
    pub level: TrustLevel,
    /// Canonical absolute directories that may be read (`threadline.sessions.allowedPaths` below the project).
    pub roots: Vec<String>,
    /// Exact names of further tools that grants add.
    pub granted_tools: Vec<String>,
    /// Tools that even an autonomous peer's session may not use (`threadline.autonomousDeny`).
    pub autonomous_deny: Vec<String>,
}

/// What a call would touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// Absolute path with links resolved.
    pub path: &'a str,
    /// Whether a folder has a name below it that [`is_secret_name`]; `false` for a file.
    pub holds_secrets: bool,
}

/// The decision about one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Let it run.
    Allow,
    /// Stop it; the same tool may be used on less than was asked for, so this is no violation. The reason is for the model.
    Narrow(String),
    /// Stop it; the reason is for the model.
    Deny(String),
}

/// The path that the call would touch, as it was written; the caller makes it absolute and resolves links before
/// [`decide`]. `None` when the tool touches none or names none.
pub fn path_of<'a>(tool: &str, input: &'a Value) -> Option<&'a str> {
    let member = match tool {
        "Read" => "file_path",
        "Glob" | "Grep" => "path",
        _ => return None,
    };
    input.get(member)?.as_str()
}

/// Decides about one call. `target` is the path of [`path_of`]; `None` when it could not be resolved.
pub fn decide(binding: &Binding, tool: &str, input: &Value, target: Option<Target<'_>>) -> Verdict {
    let empty = Map::new();
    let input = input.as_object().unwrap_or(&empty);
    match tool {
        SEND_TOOL => may_send(binding, input),
        HISTORY_TOOL => may_read_thread(binding, input),
        FIND_TOOL => Verdict::Allow,
        _ if binding.autonomous_deny.iter().any(|t| t == tool) => deny("the owner excluded this tool"),
        _ if binding.level == TrustLevel::Autonomous && !is_threadline(tool) => Verdict::Allow,
        "Read" | "Glob" | "Grep" => may_read(binding, tool, input, target),
        _ if binding.granted_tools.iter().any(|t| t == tool) => Verdict::Allow,
        _ => deny(&format!("{} is not available while answering another agent", crate::text::name(tool))),
    }
}

fn is_threadline(tool: &str) -> bool {
    tool.starts_with("mcp__threadline")
}

fn may_send(binding: &Binding, input: &Map<String, Value>) -> Verdict {
    let own_peer = binding.peer.to_string();
    if input.get("agentId").or(input.get("targetAgent")).and_then(Value::as_str) != Some(&own_peer) {
        return deny(&format!(
            "this session may only write to the agent it serves: agentId must be \"{own_peer}\""
        ));
    }
    if input.get("threadId").and_then(Value::as_str) != Some(binding.thread.as_str())
        || is_set(input.get("newThread"))
    {
        let thread = &binding.thread;
        return deny(&format!(
            "this session may only write in its own thread: threadId must be \"{thread}\""
        ));
    }
    Verdict::Allow
}

fn may_read_thread(binding: &Binding, input: &Map<String, Value>) -> Verdict {
    let own_peer = binding.peer.to_string();
    let own_thread = input.get("threadId").and_then(Value::as_str) == Some(binding.thread.as_str());
    let peer = input.get("peer").filter(|p| !p.is_null());
    if own_thread && peer.is_none_or(|p| p.as_str() == Some(&own_peer)) {
        return Verdict::Allow;
    }
    let thread = &binding.thread;
    deny(&format!("this session may only read its own thread: threadId must be \"{thread}\""))
}

fn is_set(value: Option<&Value>) -> bool {
    value.is_some_and(|v| !v.is_null() && v != &Value::Bool(false))
}

fn may_read(
    binding: &Binding,
    tool: &str,
    input: &Map<String, Value>,
    target: Option<Target<'_>>,
) -> Verdict {
    let roots = binding.roots.join(", ");
    let Some(target) = target else {
        return deny(&format!("name a path that exists below {roots}"));
    };
    let mut below = binding.roots.iter().filter_map(|root| below(target.path, root)).peekable();
    if below.peek().is_none() {
        return deny(&format!("only files below {roots} may be read here"));
    }
    // The owner chose the root itself, whatever the folders above it are called.
    if below.all(|rest| rest.split('/').any(is_secret_name)) {
        return deny("this file may hold secrets");
    }
    let patterns = match tool {
        "Glob" => [input.get("pattern"), None],
        "Grep" => [input.get("glob"), None],
        _ => [None, None],
    };
    let escapes = |p: &Value| p.as_str().is_none_or(pattern_escapes);
    if patterns.into_iter().flatten().any(escapes) {
        return deny("the pattern may not leave the directory or name hidden files");
    }
    if tool == "Grep" && target.holds_secrets {
        return Verdict::Narrow(
            "the folder also has files that may hold secrets: search a single file, or a folder below it without such files"
                .to_owned(),
        );
    }
    Verdict::Allow
}

/// The part of `path` below `root`, empty for the root itself. Both are canonical, so no component is `..`.
fn below<'a>(path: &'a str, root: &str) -> Option<&'a str> {
    let root = root.trim_end_matches('/');
    let rest = path.strip_prefix(root)?;
    let is_inside = !root.is_empty()
        && (rest.is_empty() || rest.starts_with('/'))
        && !path.split('/').any(|part| matches!(part, ".." | "."));
    is_inside.then_some(rest)
}

/// Whether a file or folder of this name is never read, wherever it is.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.contains(&name.as_str())
        || SECRET_ENDINGS.iter().any(|ending| name.ends_with(ending))
        || name.starts_with(".env")
        || name.starts_with("id_rsa")
        || name.starts_with("id_ed25519")
}

/// Whether a glob could reach above or beside its directory, or hidden files, also through an alternative in braces or a
/// character class.
fn pattern_escapes(pattern: &str) -> bool {
    if pattern.contains("..") || pattern.contains('\\') || pattern.contains('~') {
        return true;
    }
    let mut start = true;
    for c in pattern.chars() {
        if start && matches!(c, '/' | '.' | '[') && c != '/' {
            return true;
        }
        if c == '/' && start {
            return true;
        }
        start = matches!(c, '/' | '{' | ',' | '!' | '(' | '|');
    }
    pattern.split(['/', '{', '}', ',']).any(is_secret_name)
}

/// Counts denied calls of one session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Violations(u32);

impl Violations {
    /// Counts one; true when the session has to be closed, its thread quarantined and the owner told.
    pub fn record(&mut self) -> bool {
        self.0 = self.0.saturating_add(1);
        self.0 >= MAX_VIOLATIONS
    }
}

fn deny(reason: &str) -> Verdict {
    Verdict::Deny(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn binding(level: TrustLevel) -> Binding {
        Binding {
            peer: Fingerprint::from_bytes([0xab; 16]),
            thread: "t-1".parse().expect("id"),
            level,
            roots: vec!["/p/src".into(), "/p/docs/".into()],
            granted_tools: vec!["WebSearch".into()],
            autonomous_deny: vec!["Bash".into()],
        }
    }

    fn allowed(tool: &str, input: &Value, canonical: Option<&str>) -> bool {
        let target = canonical.map(|path| Target { path, holds_secrets: false });
        decide(&binding(TrustLevel::Verified), tool, input, target) == Verdict::Allow
    }

    #[test]
    fn tools_may_be_looked_up() {
        assert!(allowed(FIND_TOOL, &json!({"query": "select:mcp__threadline__threadline_send"}), None));
    }

    #[test]
    fn only_the_bound_peer_and_thread_are_written_to() {
        let peer = "ab".repeat(16);
        let send = |input: Value| allowed(SEND_TOOL, &input, None);
        assert!(send(json!({"agentId": peer, "threadId": "t-1", "message": "hi"})));
        assert!(send(json!({"agentId": peer, "threadId": "t-1", "newThread": false})));
        for bad in [
            json!({"agentId": "cd".repeat(16), "threadId": "t-1"}),
            json!({"agentId": "bob", "threadId": "t-1"}),
            json!({"agentId": peer, "threadId": "t-2"}),
            json!({"agentId": peer}),
            json!({"agentId": peer, "threadId": "t-1", "newThread": true}),
            json!({"agentId": peer, "threadId": "t-1", "newThread": "yes"}),
            json!({"agentId": [peer], "threadId": "t-1"}),
            json!({"threadId": "t-1"}),
            json!("text"),
        ] {
            assert!(!send(bad.clone()), "{bad}");
        }
        let read = |input: Value| allowed(HISTORY_TOOL, &input, None);
        assert!(read(json!({"threadId": "t-1"})) && read(json!({"threadId": "t-1", "peer": peer})));
        assert!(
            !read(json!({"threadId": "t-2"}))
                && !read(json!({"threadId": "t-1", "peer": "cd"}))
                && !read(json!({}))
        );
    }

    #[test]
    fn reading_stays_inside_the_roots() {
        let read = |path: &str| allowed("Read", &json!({"file_path": path}), Some(path));
        assert!(read("/p/src/a.rs") && read("/p/docs/x/y.md") && read("/p/src"));
        for bad in [
            "/p",
            "/p/srcs/a.rs",
            "/p/src/../secret",
            "/etc/passwd",
            "src/a.rs",
            "",
            "/",
            "/p/src/.env",
            "/p/src/.env.local",
            "/p/src/.git/config",
            "/p/docs/server.PEM",
            "/p/src/id_rsa",
            "/p/src/.instar/identity.json",
            "/p/src/./x",
        ] {
            assert!(!read(bad), "{bad}");
        }
        assert!(!allowed("Read", &json!({"file_path": "/p/src/missing"}), None));
        assert!(
            !allowed("Grep", &json!({"pattern": "x"}), None),
            "a search without path would read everything"
        );
    }

    #[test]
    fn folders_above_a_root_may_have_any_name() {
        let mut binding = binding(TrustLevel::Verified);
        binding.roots = vec!["/home/ann/.claude/p".into(), "/home/ann/.claude/p/.instar/run/tmp/s1".into()];
        let read = |path: &str| {
            let target = Target { path, holds_secrets: false };
            decide(&binding, "Read", &json!({"file_path": path}), Some(target)) == Verdict::Allow
        };
        assert!(read("/home/ann/.claude/p/a.rs"));
        assert!(read("/home/ann/.claude/p/.instar/run/tmp/s1/01.txt"), "a long message lies there");
        for bad in [
            "/home/ann/.claude/p/.instar/config.json",
            "/home/ann/.claude/p/.instar/run/tmp/s2/01.txt",
            "/home/ann/.claude/p/.instar/run/tmp/s1/x.pem",
        ] {
            assert!(!read(bad), "{bad}");
        }
    }

    #[test]
    fn a_search_is_narrowed_to_what_holds_no_secrets() {
        let grep = |holds_secrets: bool| {
            let target = Target { path: "/p/src", holds_secrets };
            let input = json!({"pattern": "PRIVATE KEY", "path": "/p/src", "output_mode": "content"});
            decide(&binding(TrustLevel::Verified), "Grep", &input, Some(target))
        };
        assert_eq!(grep(false), Verdict::Allow);
        assert!(matches!(grep(true), Verdict::Narrow(_)));
        let names = Target { path: "/p/src", holds_secrets: true };
        let glob = json!({"pattern": "*", "path": "/p/src"});
        assert_eq!(decide(&binding(TrustLevel::Verified), "Glob", &glob, Some(names)), Verdict::Allow);
    }

    #[test]
    fn patterns_cannot_escape() {
        let glob =
            |pattern: &str| allowed("Glob", &json!({"pattern": pattern, "path": "/p/src"}), Some("/p/src"));
        for good in ["**/*.rs", "*", "a/b/*.{ts,tsx}", "x?.md", "a[bc].rs"] {
            assert!(glob(good), "{good}");
        }
        for bad in [
            "../*",
            "a/../../b",
            "/etc/*",
            "{/etc/passwd,x}",
            "{a,/etc/*}",
            "~/x",
            ".env",
            "**/.env",
            "{x,.git}/**",
            "[.]env",
            "*/[.]git/*",
            "a\\.b",
            "**/*.pem",
        ] {
            assert!(!glob(bad), "{bad}");
        }
        let grep = |glob: &str| {
            allowed("Grep", &json!({"pattern": "../..", "glob": glob, "path": "/p/src"}), Some("/p/src"))
        };
        assert!(grep("*.rs") && !grep(".env") && !grep("!/x"));
    }

    #[test]
    fn everything_else_is_denied_below_autonomous() {
        for tool in [
            "Bash",
            "Write",
            "Edit",
            "WebFetch",
            "Task",
            "threadline_send",
            "mcp__threadline__threadline_trust",
            "mcp__other__x",
            "read",
            "",
        ] {
            assert!(!allowed(tool, &json!({}), None), "{tool}");
        }
        assert!(allowed("WebSearch", &json!({}), None), "a grant adds exactly its tool");
        let autonomous = |tool: &str| decide(&binding(TrustLevel::Autonomous), tool, &json!({}), None);
        assert_eq!(autonomous("Edit"), Verdict::Allow);
        assert!(matches!(autonomous("Bash"), Verdict::Deny(_)));
        assert!(matches!(autonomous("mcp__threadline__threadline_trust"), Verdict::Deny(_)));
        assert!(matches!(autonomous(SEND_TOOL), Verdict::Deny(_)), "the thread stays bound");
    }

    #[test]
    fn the_third_violation_closes_the_session() {
        let mut violations = Violations::default();
        assert_eq!([violations.record(), violations.record(), violations.record()], [false, false, true]);
    }

    #[test]
    fn paths_are_found_where_the_tools_keep_them() {
        assert_eq!(path_of("Read", &json!({"file_path": "a"})), Some("a"));
        assert_eq!(path_of("Grep", &json!({"path": "b", "file_path": "a"})), Some("b"));
        assert_eq!(path_of("Bash", &json!({"path": "b"})), None);
        assert_eq!(path_of("Read", &json!([])), None);
    }

    proptest! {
        #[test]
        fn nothing_outside_is_ever_read(path in "[a-z./]{0,30}", tool in "Read|Glob|Grep", pattern in "[a-z./*{},~\\[\\]]{0,12}") {
            let input = json!({"file_path": path, "path": path, "pattern": pattern, "glob": pattern});
            if allowed(&tool, &input, Some(&path)) {
                prop_assert!(path.starts_with("/p/src") || path.starts_with("/p/docs"));
                prop_assert!(!path.contains("/../"));
                prop_assert!(tool == "Read" || !pattern.contains("..") && !pattern.starts_with('/'));
            }
        }
    }
}
