//! What a path in a command means for the guard.

use super::shell::Word;

/// Places of this session, absolute and without `.` or `..`.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Home directory.
    pub home: String,
    /// Project directory.
    pub project: String,
    /// State directory of the agent.
    pub state: String,
    /// Working directory of the command.
    pub cwd: String,
}

/// Directories whose loss breaks the machine.
const SYSTEM: [&str; 24] = [
    "bin",
    "boot",
    "dev",
    "etc",
    "home",
    "lib",
    "lib32",
    "lib64",
    "media",
    "mnt",
    "opt",
    "proc",
    "root",
    "run",
    "sbin",
    "srv",
    "sys",
    "usr",
    "var",
    "Users",
    "System",
    "Library",
    "Applications",
    "Volumes",
];
/// Directories that a build makes anew.
const BUILD: [&str; 16] = [
    "target",
    "node_modules",
    "dist",
    "build",
    ".next",
    ".nuxt",
    ".turbo",
    ".cache",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    "coverage",
    ".tox",
    ".venv",
    "tmp",
];
/// Children of the state directory that only the node writes.
const STATE_PRIVATE: [&str; 8] =
    ["secrets", "machine", "run", "threadline", "identity.json", "config.json", "current", "versions"];

/// How bad it is to remove a path with all that is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    Catastrophic(&'static str),
    Risky,
    Harmless,
}

/// A path as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    /// Components from the root, or from an unknown directory.
    components: Vec<String>,
    absolute: bool,
    dynamic: bool,
}

impl Places {
    pub(super) fn resolve(&self, word: &Word, cwd: Option<&str>) -> Resolved {
        let mut text = word.text.clone();
        for (name, value) in [
            ("$HOME", &self.home),
            ("$PWD", &cwd.unwrap_or_default().to_owned()),
            ("$TMPDIR", &"/tmp".to_owned()),
        ] {
            if let Some(rest) = text.strip_prefix(name)
                && (rest.is_empty() || rest.starts_with('/'))
                && !value.is_empty()
            {
                text = format!("{value}{rest}");
            }
        }
        if text == "~" || text.starts_with("~/") {
            text = format!("{}{}", self.home, &text[1..]);
        } else if text == "~root" || text.starts_with("~root/") {
            text = format!("/root{}", &text[5..]);
        }
        let absolute = text.starts_with('/') || cwd.is_some();
        let full = if text.starts_with('/') { text } else { format!("{}/{text}", cwd.unwrap_or_default()) };
        let mut components: Vec<String> = Vec::new();
        for part in full.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(components.pop()),
                part => components.push(part.to_owned()),
            }
        }
        // The content of a directory is the directory.
        while components.last().is_some_and(|last| word.glob && is_everything(last)) {
            components.pop();
        }
        Resolved { components, absolute, dynamic: word.dynamic || word.text.contains('$') }
    }

    /// What the recursive removal of a path would take away.
    pub(super) fn removal(&self, word: &Word, cwd: Option<&str>) -> Removal {
        if is_drive(&word.text) {
            return Removal::Catastrophic("a drive root");
        }
        if word.text.starts_with('~') && word.text.len() > 1 && !word.text.contains('/') {
            return Removal::Catastrophic("a home directory");
        }
        let path = self.resolve(word, cwd);
        if path.absolute {
            if path.components.is_empty() && !word.text.is_empty() {
                return Removal::Catastrophic("the root directory");
            }
            if path.covers(&self.home) {
                return Removal::Catastrophic("the home directory or what holds it");
            }
            if path.covers(&self.state) || path.covers(&self.project) {
                return Removal::Catastrophic("the project or the agent's state, or what holds it");
            }
            let first = path.components.first().map_or("", String::as_str);
            if path.components.len() == 1
                && (SYSTEM.iter().any(|name| could_match(first, name)) || is_everything(first))
            {
                return Removal::Catastrophic("a system directory");
            }
        }
        if self.is_protected(&path) {
            return Removal::Catastrophic("the agent's own keys, settings or hooks");
        }
        let in_project = if path.absolute {
            path.components_inside(&self.project)
        } else {
            Some(path.components.as_slice())
        };
        let content = word.glob && word.text.ends_with('*');
        let temporary =
            |place| path.components_inside(place).is_some_and(|inner| content || !inner.is_empty());
        // A project under /tmp is still a project.
        if in_project.is_none() && ["/tmp", "/var/tmp", "/private/tmp"].into_iter().any(temporary) {
            return Removal::Harmless;
        }
        let built = |name: &String| BUILD.contains(&name.as_str());
        match in_project {
            Some(inner) if !path.dynamic && inner.iter().any(built) => Removal::Harmless,
            _ => Removal::Risky,
        }
    }

    /// Whether a path is the project or lies in it, as far as it is known.
    pub(super) fn is_in_project(&self, word: &Word, cwd: Option<&str>) -> bool {
        let path = self.resolve(word, cwd);
        !path.dynamic && (!path.absolute || path.components_inside(&self.project).is_some())
    }

    /// The absolute path of a word, if it is known.
    pub(super) fn path(&self, word: &Word, cwd: Option<&str>) -> Option<String> {
        let path = self.resolve(word, cwd);
        (path.absolute && !path.dynamic).then(|| format!("/{}", path.components.join("/")))
    }

    /// Whether a write to this path would change the agent's own keys, settings or hooks.
    pub(super) fn guards(&self, word: &Word, cwd: Option<&str>) -> bool {
        self.is_protected(&self.resolve(word, cwd))
    }

    fn is_protected(&self, path: &Resolved) -> bool {
        let under_state = path.components_inside(&self.state).filter(|_| path.absolute);
        let by_name = path
            .components
            .iter()
            .position(|name| could_match(name, ".instar"))
            .map(|at| &path.components[at + 1..]);
        if under_state.into_iter().chain(by_name).any(is_private) {
            return true;
        }
        if path.components.last().is_some_and(|name| name == "instar-hook") {
            return true;
        }
        match path.components.as_slice() {
            [.., folder, file] => {
                could_match(folder, ".claude")
                    && (could_match(file, "settings.json") || could_match(file, "settings.local.json"))
                    || could_match(folder, ".codex")
                        && (could_match(file, "hooks.json") || could_match(file, "config.toml"))
            }
            _ => false,
        }
    }
}

impl Resolved {
    /// Whether this is the place or one that holds it.
    fn covers(&self, place: &str) -> bool {
        let place: Vec<&str> = parts(place);
        !place.is_empty()
            && self.components.len() <= place.len()
            && self.components.iter().zip(&place).all(|(mine, its)| could_match(mine, its))
    }

    fn components_inside(&self, place: &str) -> Option<&[String]> {
        let place = parts(place);
        if place.is_empty() || self.components.len() < place.len() {
            return None;
        }
        let (head, tail) = self.components.split_at(place.len());
        head.iter().zip(&place).all(|(mine, its)| mine == its).then_some(tail)
    }
}

fn parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect()
}

/// Whether what lies below the state directory belongs to the node alone.
fn is_private(inner: &[String]) -> bool {
    let sqlite = |name: &String| {
        let name = name.to_ascii_lowercase();
        [".sqlite", ".sqlite-wal", ".sqlite-shm", ".sqlite*"].iter().any(|end| name.ends_with(end))
    };
    inner.first().is_some_and(|first| STATE_PRIVATE.iter().any(|private| could_match(first, private)))
        || inner.last().is_some_and(sqlite)
}

fn is_drive(text: &str) -> bool {
    let trimmed = text.trim_end_matches(['*', '/', '\\']);
    let letter = |name: &str| name.len() == 1 && name.bytes().all(|b| b.is_ascii_alphabetic());
    trimmed.strip_suffix(':').is_some_and(letter)
        || trimmed.strip_prefix("/mnt/").is_some_and(letter)
        || trimmed.strip_prefix('/').is_some_and(letter)
}

/// Whether a pattern takes everything in a directory, or everything hidden in it.
fn is_everything(pattern: &str) -> bool {
    !pattern.is_empty()
        && pattern.chars().any(|letter| matches!(letter, '*' | '?' | '['))
        && pattern.chars().all(|letter| matches!(letter, '*' | '?' | '.' | '[' | ']' | '!' | '^' | '-'))
}

/// Whether a component with the shell's `*`, `?` and `[…]` could stand for `name`.
pub(super) fn could_match(pattern: &str, name: &str) -> bool {
    if !pattern.contains(['*', '?', '[']) {
        return pattern.eq_ignore_ascii_case(name);
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // Matched lengths of the name after each step of the pattern; a class counts as any character.
    let mut reach = vec![false; name.len() + 1];
    reach[0] = true;
    let mut at = 0;
    while let Some(letter) = pattern.get(at) {
        at += 1;
        let mut next = vec![false; name.len() + 1];
        match letter {
            '*' => {
                let first = reach.iter().position(|reached| *reached).unwrap_or(reach.len());
                next.iter_mut().skip(first).for_each(|slot| *slot = true);
            }
            wild => {
                if *wild == '[' {
                    match pattern[at..].iter().position(|letter| *letter == ']') {
                        Some(end) => at += end + 1,
                        None => at = pattern.len(),
                    }
                }
                for (length, letter) in name.iter().enumerate() {
                    next[length + 1] =
                        reach[length] && (matches!(wild, '?' | '[') || wild.eq_ignore_ascii_case(letter));
                }
            }
        }
        reach = next;
    }
    reach.last().copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        Places {
            home: "/home/ann".into(),
            project: "/home/ann/work/app".into(),
            state: "/home/ann/work/app/.instar".into(),
            cwd: "/home/ann/work/app".into(),
        }
    }

    fn word(text: &str) -> Word {
        Word { glob: text.contains(['*', '?', '[']), ..Word::literal(text) }
    }

    #[test]
    fn removals_are_weighed() {
        let places = places();
        let cwd = Some("/home/ann/work/app");
        for text in [
            "/",
            "//",
            "/*",
            "/.",
            "~",
            "~/",
            "~/*",
            "$HOME",
            "$HOME/",
            ".",
            "./",
            "*",
            "..",
            "../..",
            "../../../..",
            "/home",
            "/home/ann",
            "/usr",
            "/u*",
            "/etc/",
            "C:\\",
            "/mnt/c",
            "/c/",
            "~root",
            ".instar",
            "./.instar/*",
            ".instar/run",
            ".in*/secrets",
            ".claude/settings.json",
            "src/../.",
            "/home/ann/work",
            "target/..",
        ] {
            assert!(matches!(places.removal(&word(text), cwd), Removal::Catastrophic(_)), "{text}");
        }
        for text in [
            "src",
            "/home/ann/other",
            "$X/y",
            "/opt/app",
            "~/old",
            "../sibling",
            ".git",
            "/tmp/../opt/x",
            "/tmp",
        ] {
            assert_eq!(places.removal(&word(text), cwd), Removal::Risky, "{text}");
        }
        for text in [
            "target",
            "./node_modules",
            "web/dist/*",
            "/tmp/x",
            "$TMPDIR/x",
            "/var/tmp/a/b",
            "pkg/__pycache__",
        ] {
            assert_eq!(places.removal(&word(text), cwd), Removal::Harmless, "{text}");
        }
        assert_eq!(
            places.removal(&word("../target"), Some("/home/ann/work/app")),
            Removal::Risky,
            "outside the project"
        );
        assert_eq!(places.removal(&word("target"), None), Removal::Harmless);
        assert_eq!(places.removal(&word("src"), None), Removal::Risky);
    }

    #[test]
    fn a_project_under_tmp_is_no_temporary_file() {
        let places = Places { project: "/tmp/app".into(), state: "/tmp/app/.instar".into(), ..places() };
        assert_eq!(places.removal(&word("src"), Some("/tmp/app")), Removal::Risky);
        assert_eq!(places.removal(&word("../other"), Some("/tmp/app")), Removal::Harmless);
    }

    #[test]
    fn patterns_match_like_the_shell() {
        for (pattern, name, matches) in [
            ("s*", "secrets", true),
            ("*", "x", true),
            ("c?nfig.json", "config.json", true),
            ("[a-d]onfig.json", "config.json", true),
            ("x*", "secrets", false),
            ("secrets", "Secrets", true),
            ("*.json", "config.json", true),
            ("[", "a", true),
            ("a?", "a", false),
        ] {
            assert_eq!(could_match(pattern, name), matches, "{pattern} {name}");
        }
    }
}
