//! What a service manager and a container engine see of the program.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::process::{Relay, command};

/// Longest wait for a notification.
const LIMIT: Duration = Duration::from_secs(20);

fn next(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer).expect("a notification in time");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

fn wait_for(socket: &UnixDatagram, wanted: &str) {
    while !next(socket).lines().any(|line| line == wanted) {}
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("the process is there");
}

#[test]
fn the_manager_hears_start_life_and_stop() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("socket");
    socket.set_read_timeout(Some(LIMIT)).expect("timeout");
    let mut child = command(&dir.path().join("data"))
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "600000")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    assert!(next(&socket).starts_with("READY=1\nSTATUS=listening on 127.0.0.1:"));
    wait_for(&socket, "WATCHDOG=1");
    wait_for(&socket, "WATCHDOG=1");
    signal(&child, rustix::process::Signal::TERM);
    wait_for(&socket, "STOPPING=1");
    assert!(child.wait().expect("ends").success());
}

#[test]
fn health_is_the_answer_of_the_running_relay() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = Relay::start(dir.path());
    let ask = |port: u16| {
        let mut ask = Command::new(env!("CARGO_BIN_EXE_threadline-relay"));
        ask.args(["health", "--host", "0.0.0.0", "--port", &port.to_string(), "--data-dir"]).arg(dir.path());
        ask.output().expect("runs")
    };
    let answer = ask(relay.at.port());
    assert!(answer.status.success(), "{answer:?}");
    let body: serde_json::Value = serde_json::from_slice(&answer.stdout).expect("JSON");
    assert_eq!(body["status"], "ok");
    let port = relay.at.port();
    relay.kill();
    let answer = ask(port);
    assert_eq!(answer.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&answer.stderr).contains("no relay answers on 127.0.0.1:"), "{answer:?}");
}
