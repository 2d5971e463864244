//! A running node with what its owner knows, and requests to both its listeners.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Home;

/// The node and its home.
pub(super) struct Node {
    pub(super) home: Home,
    pub(super) project: PathBuf,
    pub(super) child: Child,
    pub(super) port: u16,
    pub(super) pin: String,
    pub(super) token: String,
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Value,
}

impl Node {
    pub(super) fn start() -> Self {
        Self::start_after(|_| {})
    }

    /// Starts after `prepare` changed what `init` made in the project.
    pub(super) fn start_after(prepare: impl FnOnce(&Path)) -> Self {
        let home = Home::new();
        let project = home.project("garden");
        let free =
            TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("address").port();
        let made = home.run(&project, &["init", "--port", &free.to_string()]).ok();
        let pin = made.pin();
        let token =
            home.run_with_input(&project, &["secrets", "get", "authToken"], "").ok().stdout.trim().to_owned();
        prepare(&project);
        let child = launch(&home, &project);
        let node = Self { home, project, child, port: free, pin, token };
        node.wait();
        node
    }

    /// Ends the node by force and starts it again.
    pub(super) fn restart(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("the end");
        self.child = launch(&self.home, &self.project);
        self.wait();
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.try_health().is_none_or(|body| body["status"] == "booting") {
            assert!(Instant::now() < deadline, "the node does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn try_health(&self) -> Option<Value> {
        UnixStream::connect(self.socket()).ok()?;
        Some(self.socket_request("GET", "/health", &[], "").body)
    }

    fn socket(&self) -> PathBuf {
        let plain = self.project.join(".instar/run/agent.sock");
        match std::fs::read_to_string(plain.with_extension("sock.path")) {
            Ok(short) => PathBuf::from(short.trim()),
            Err(_) => plain,
        }
    }

    pub(super) fn tcp(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connect");
        exchange(stream, method, path, headers, body)
    }

    pub(super) fn socket_request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let stream = UnixStream::connect(self.socket()).expect("connect");
        exchange(stream, method, path, headers, body)
    }

    pub(super) fn with_token(&self, method: &str, path: &str, body: &str) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        self.tcp(method, path, &[("Authorization", &bearer)], body)
    }
}

fn launch(home: &Home, project: &Path) -> Child {
    let mut command = home.command(project, &["server", "start", "--foreground"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("node")
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.home.command(&self.project, &["server", "stop"]).output();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let named = headers.iter().any(|(name, _)| *name == "Host");
    let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !named {
        request += "Host: localhost\r\n";
    }
    for (name, value) in headers {
        let _ = write!(request, "{name}: {value}\r\n");
    }
    if !body.is_empty() {
        let typed = headers.iter().any(|(name, _)| *name == "Content-Type");
        request += if typed { "" } else { "Content-Type: application/json\r\n" };
        let _ = write!(request, "Content-Length: {}\r\n", body.len());
    }
    stream.write_all(format!("{request}\r\n").as_bytes()).expect("request");
    // A refused body need not be read to its end.
    let _ = stream.write_all(body.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Answer {
        status: head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0),
        head: head.to_lowercase(),
        body: serde_json::from_str(body).unwrap_or_default(),
    }
}
