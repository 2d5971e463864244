//! Clients that others wrote: the Python reference client and the MCP inspector.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use instar_mcp::tokens::{NewToken, TokenFile};
use serde_json::Value;
use tempfile::TempDir;
use threadline::service::Scope;

use crate::stdio::example;

fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}

/// Where the clients are, installed on the first run.
fn installed() -> PathBuf {
    let output = Command::new(peers().join("install")).output().expect("bash");
    PathBuf::from(succeeded(output).trim())
}

fn succeeded(output: Output) -> String {
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{complained}", output.status);
    said
}

fn python(arguments: &[&str]) {
    let mut command = Command::new(installed().join("venv/bin/python"));
    succeeded(command.arg(peers().join("client.py")).args(arguments).output().expect("python"));
}

/// Listens with the example until dropped.
struct Listening {
    child: std::process::Child,
    url: String,
    token: String,
    _dir: TempDir,
}

impl Listening {
    fn start() -> Self {
        let dir = TempDir::new().expect("a directory");
        let file = dir.path().join("mcp-tokens.json");
        let new = NewToken { name: "peer".into(), scopes: vec![Scope::Admin], expires_at: None, peer: None };
        let token = TokenFile::new(&file).create(new, chrono::Utc::now()).expect("created").token;
        let mut child = Command::new(example("memory_server"))
            .arg("http")
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut url = String::new();
        let stdout = child.stdout.take().expect("piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut url).expect("a line");
        Self { child, url: url.trim().to_owned(), token, _dir: dir }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let status = self.child.wait().expect("waited");
        assert!(status.success() || std::thread::panicking(), "{status}");
    }
}

#[test]
fn the_python_client_talks_over_stdio() {
    python(&["stdio", example("memory_server").to_str().expect("a path")]);
}

#[test]
fn the_python_client_talks_over_http() {
    let listening = Listening::start();
    python(&["http", &listening.url, &listening.token]);
}

/// The inspector sends no `Authorization` header, so it is a peer over stdio only.
fn inspector(request: &[&str]) -> Value {
    let cli = installed().join("inspector/node_modules/@modelcontextprotocol/inspector/cli/build/index.js");
    let mut command = Command::new("node");
    let output = command.arg(cli).arg(example("memory_server")).args(request).output().expect("node");
    serde_json::from_str(&succeeded(output)).expect("JSON")
}

#[test]
fn the_inspector_talks_over_stdio() {
    let listed = inspector(&["--method", "tools/list"]);
    assert_eq!(listed["tools"].as_array().map(Vec::len), Some(11));
    let call = ["--method", "tools/call", "--tool-name", "threadline_send", "--tool-arg"];
    let said = inspector(&[&call[..], &["agentId=bob", "message=hi", "timeoutSeconds=5"]].concat());
    assert_eq!(said["structuredContent"]["reply"], "you said: hi");
}
