//! Commands as a person or a script gives them.

mod agents;
mod config;
mod http;
mod idempotency;
mod init;
mod kill;
mod node;
mod owner;
mod session;
mod surface;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// An account with nothing in it.
struct Home {
    dir: tempfile::TempDir,
}

/// What a command did.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join("home")).expect("home");
        Self { dir }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().canonicalize().expect("real").join("home")
    }

    /// A project folder.
    fn project(&self, name: &str) -> PathBuf {
        let path = self.home().join(name);
        std::fs::create_dir_all(&path).expect("project");
        path
    }

    /// An agent in a project folder.
    fn agent(&self, name: &str) -> PathBuf {
        self.agent_and_pin(name).0
    }

    /// An agent in a project folder, and the PIN that was shown when it was made.
    fn agent_and_pin(&self, name: &str) -> (PathBuf, String) {
        let project = self.project(name);
        let made = self.run(&project, &["init"]).ok();
        (project, made.pin())
    }

    fn command(&self, cwd: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_instar"));
        command.args(arguments).current_dir(cwd).env_clear().envs([
            ("HOME", self.home().as_os_str()),
            ("PATH", "/usr/bin:/bin".as_ref()),
            ("USER", "ann".as_ref()),
            ("LANG", "C.UTF-8".as_ref()),
        ]);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, cwd: &Path, arguments: &[&str]) -> Ran {
        Ran::from(self.command(cwd, arguments).output().expect("instar runs"))
    }

    fn run_with_input(&self, cwd: &Path, arguments: &[&str], input: &str) -> Ran {
        let mut command = self.command(cwd, arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("instar runs");
        child.stdin.take().expect("pipe").write_all(input.as_bytes()).expect("write");
        Ran::from(child.wait_with_output().expect("wait"))
    }

    fn json(&self, cwd: &Path, arguments: &[&str]) -> Value {
        self.run(cwd, &[arguments, &["--json"]].concat()).ok().json()
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}

impl Ran {
    #[track_caller]
    fn ok(self) -> Self {
        self.exit(0)
    }

    #[track_caller]
    fn exit(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    fn says(self, text: &str) -> Self {
        let both = format!("{}{}", self.stdout, self.stderr);
        assert!(both.contains(text), "{text:?} is not in: {both}");
        self
    }

    /// The PIN that `init` shows once.
    #[track_caller]
    fn pin(&self) -> String {
        self.stderr.split_once("Your PIN is ").expect("a PIN").1.chars().take(6).collect()
    }

    /// Stdout as exactly one JSON document.
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {:?}", self.stdout))
    }
}

/// Every file below a folder with its content; links with their target.
fn tree(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("dir").flatten() {
        let path = entry.path();
        if path.is_symlink() {
            let target = std::fs::read_link(&path).expect("link");
            found.insert(path, target.into_os_string().into_encoded_bytes());
        } else if path.is_dir() {
            found.extend(tree(&path));
            found.insert(path, Vec::new());
        } else {
            let bytes = std::fs::read(&path).expect("file");
            found.insert(path, bytes);
        }
    }
    found
}
