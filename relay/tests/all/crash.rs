//! SIGKILL at random points, and what an accident may leave of the log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::client::Client;
use super::process::{Relay, command, run};

const ROUNDS: u64 = 12;

fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("queue")).expect("the log");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "log"));
    files.sort();
    files
}

/// Both ends talk while the relay dies again and again; the sender repeats what was not answered.
#[tokio::test]
async fn nothing_accepted_is_lost_or_doubled_whenever_the_relay_dies() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut next, mut open) = (0_u64, Vec::<u64>::new());
    let mut arrived: BTreeMap<u64, u32> = BTreeMap::new();
    let mut acknowledged = std::collections::BTreeSet::new();
    for round in 0..ROUNDS {
        let relay = Relay::start(dir.path());
        let mut recipient = Client::log_in(relay.at, 2).await;
        let mut sender = Client::log_in(relay.at, 1).await;
        for n in open.iter().copied().chain(next..next + 40) {
            sender.send(2, &format!("{n:06}")).await;
        }
        open.extend(next..next + 40);
        next += 40;
        // A different moment each time, from nothing to everything done.
        let moment = tokio::time::sleep(Duration::from_millis((round * 37) % 150));
        tokio::pin!(moment);
        loop {
            tokio::select! {
                () = &mut moment => break,
                frame = sender.frame() => match frame {
                    Ok(frame) if frame["type"] == "ack" => {
                        assert_ne!(frame["status"], "rejected", "{frame}");
                        let n: u64 = frame["messageId"].as_str().expect("id").parse().expect("number");
                        open.retain(|waiting| *waiting != n);
                    }
                    _ => {}
                },
                frame = recipient.frame() => if let Ok(frame) = frame
                    && let Some(id) = frame["envelope"]["messageId"].as_str()
                {
                    let n: u64 = id.parse().expect("number");
                    assert!(!acknowledged.contains(&n) || round > 0, "{n} again within one life");
                    *arrived.entry(n).or_default() += 1;
                    acknowledged.insert(n);
                    recipient.ack(id).await;
                },
            }
        }
        relay.kill();
    }
    let relay = Relay::start(dir.path());
    let mut recipient = Client::log_in(relay.at, 2).await;
    for frame in recipient.rest(Duration::from_secs(3)).await {
        if let Some(id) = frame["envelope"]["messageId"].as_str() {
            *arrived.entry(id.parse().expect("number")).or_default() += 1;
            recipient.ack(id).await;
        }
    }
    let lost: Vec<u64> = (0..next).filter(|n| !open.contains(n) && !arrived.contains_key(n)).collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
    let often = arrived.values().filter(|times| **times > u32::try_from(ROUNDS).expect("few")).count();
    assert_eq!(often, 0, "redelivered more often than the relay died");
    assert!(recipient.rest(Duration::from_millis(500)).await.is_empty(), "confirmed is gone");
}

async fn with_mail(dir: &Path, messages: u32) {
    let relay = Relay::start(dir);
    let mut sender = Client::log_in(relay.at, 1).await;
    for n in 0..messages {
        sender.send(2, &format!("m{n}")).await;
        assert_eq!(sender.next("ack").await["status"], "queued");
    }
    relay.kill();
}

async fn waiting(relay: &Relay) -> Vec<String> {
    let mut recipient = Client::log_in(relay.at, 2).await;
    let frames = recipient.rest(Duration::from_millis(700)).await;
    frames.iter().filter_map(|frame| Some(frame["envelope"]["messageId"].as_str()?.to_owned())).collect()
}

#[tokio::test]
async fn a_write_that_was_cut_off_is_taken_back() {
    let dir = tempfile::tempdir().expect("dir");
    with_mail(dir.path(), 3).await;
    let head = segments(dir.path()).pop().expect("a segment");
    let bytes = std::fs::read(&head).expect("bytes");
    std::fs::write(&head, [&bytes[..], &bytes[36..80]].concat()).expect("half a batch");
    let relay = Relay::start(dir.path());
    assert_eq!(waiting(&relay).await, ["m0", "m1", "m2"]);
}

#[tokio::test]
async fn rot_in_the_log_is_4_and_with_accepted_loss_the_rest_is_served() {
    let dir = tempfile::tempdir().expect("dir");
    with_mail(dir.path(), 3).await;
    let head = segments(dir.path()).pop().expect("a segment");
    let mut bytes = std::fs::read(&head).expect("bytes");
    bytes[100] ^= 1;
    std::fs::write(&head, &bytes).expect("rot");
    let (code, text) = run(&mut command(dir.path()));
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains(".log") && text.contains("--accept-data-loss"), "{text}");
    assert_eq!(std::fs::read(&head).expect("kept"), bytes, "nothing is changed");
    let relay = Relay::spawn(command(dir.path()).arg("--accept-data-loss"));
    assert_eq!(waiting(&relay).await, ["m1", "m2"]);
    let kept = std::fs::read_dir(dir.path().join("queue")).expect("dir").filter_map(Result::ok);
    assert!(kept.into_iter().any(|entry| entry.file_name().to_string_lossy().contains(".corrupt-")));
}
