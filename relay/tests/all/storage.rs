//! A disk that is full, and what lies on the disk.

use std::process::Command;
use std::time::Duration;

use super::client::{Client, PATIENCE};
use super::process::{Relay, arguments};

/// The program on a small file system of its own, in a mount namespace that ends with it.
fn on_small_disk(dir: &std::path::Path) -> Relay {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
    command.arg(r#"mount -t tmpfs -o size=32m none "$0" && exec "$@""#).arg(dir);
    command.arg(env!("CARGO_BIN_EXE_threadline-relay"));
    arguments(&mut command, &dir.join("data"));
    Relay::spawn(&mut command)
}

#[tokio::test]
async fn a_full_disk_refuses_new_mail_keeps_delivering_and_recovers() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = on_small_disk(dir.path());
    let mut sender = Client::log_in(relay.at, 1).await;
    let large = "x".repeat(200_000);
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for n in 0..200 {
        let id = format!("m{n:03}");
        sender.send_payload(2, &id, &large).await;
        let ack = sender.next("ack").await;
        if ack["status"] == "queued" {
            accepted.push(id);
        } else {
            assert_eq!(ack["reason"], "Relay storage unavailable");
            refused += 1;
            if refused > 5 {
                break;
            }
        }
    }
    assert!(accepted.len() > 20 && refused > 0, "{} accepted, {refused} refused", accepted.len());
    let health = format!("http://{}/health", relay.at);
    wait_for(&health, "degraded").await;

    let mut recipient = Client::log_in(relay.at, 2).await;
    for expected in &accepted {
        assert_eq!(&recipient.message_id().await, expected);
        recipient.ack(expected).await;
    }
    wait_for(&health, "ok").await;
    sender.send(2, "after").await;
    assert_eq!(recipient.message_id().await, "after");
}

async fn wait_for(url: &str, status: &str) {
    let seen = async {
        loop {
            let body: serde_json::Value =
                reqwest::get(url).await.expect("health").json().await.expect("json");
            if body["status"] == status {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("never {status}"));
}

#[tokio::test]
async fn bodies_on_disk_are_not_readable() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = Relay::start(dir.path());
    let mut sender = Client::log_in(relay.at, 1).await;
    sender.send_payload(2, "m1", "UNMISTAKABLE").await;
    sender.next("ack").await;
    relay.kill();
    let segments =
        std::fs::read_dir(dir.path().join("queue")).expect("the log").map(|e| e.expect("entry").path());
    let files: Vec<_> =
        segments.chain([dir.path().join("queue.db"), dir.path().join("queue.db-wal")]).collect();
    assert!(files.len() > 2, "there is a log");
    for file in files {
        let bytes = std::fs::read(&file).unwrap_or_default();
        assert!(!bytes.windows(12).any(|w| w == b"UNMISTAKABLE"), "{}", file.display());
    }
}
