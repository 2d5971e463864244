//! Two clients of v1 at each relay, and what the relay promises them: what it said to have is delivered, at least once, in
//! order, under the same id; a message that was not answered for may be sent again and gets one answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use instar_tests::harness::{RawPeer, Received};
use rand::RngExt;
use serde_json::json;
use threadline::identity::Identity;

/// A relay that says nothing for this long is dialled again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest time in which a message is not answered for.
const ANSWER_LIMIT: Duration = Duration::from_mins(2);

/// What a pair of clients saw.
#[derive(Debug, Default)]
pub(super) struct Pair {
    /// Messages that the relay answered for.
    accepted: Mutex<usize>,
    /// The last new message that came, and how many came again.
    came: Mutex<(usize, usize)>,
    stop: AtomicBool,
}

impl Pair {
    /// Both clients, to be run together; end after [`Pair::stop`] when everything that was accepted came.
    pub(super) async fn run(self: Arc<Self>, url: String) -> anyhow::Result<()> {
        let recipient = Identity::generate(&mut rand::rng());
        let to = recipient.fingerprint().to_string();
        tokio::try_join!(self.write(&url, &to), self.read(&url, recipient))?;
        Ok(())
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Messages that came, and how many of them once more.
    pub(super) fn figures(&self) -> (usize, usize) {
        *self.came.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accepted(&self) -> usize {
        *self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    async fn write(&self, url: &str, to: &str) -> anyhow::Result<()> {
        let identity = Identity::generate(&mut rand::rng());
        let mut number = 0;
        let mut frame = None;
        let mut waiting = Instant::now();
        loop {
            ensure!(waiting.elapsed() < ANSWER_LIMIT, "no answer for message {number} at {url}");
            let Some(mut peer) = dial(url, &identity).await else { continue };
            while !self.is_stopped() || frame.is_some() {
                let sent = frame.get_or_insert_with(|| {
                    number += 1;
                    waiting = Instant::now();
                    peer.message(to, &format!("v1-{number}"), &format!("number {number}"))
                });
                let answered = tokio::time::timeout(PATIENCE, answer(&mut peer, sent)).await;
                match answered {
                    Ok(Ok(true)) => {
                        frame = None;
                        *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = number;
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    // Refused for now, a full disk perhaps: the same bytes again.
                    Ok(Ok(false)) => tokio::time::sleep(Duration::from_millis(300)).await,
                    Ok(Err(_)) | Err(_) => break,
                }
                ensure!(waiting.elapsed() < ANSWER_LIMIT, "no answer for message {number} at {url}");
            }
            if self.is_stopped() && frame.is_none() {
                return Ok(());
            }
        }
    }

    async fn read(&self, url: &str, identity: Identity) -> anyhow::Result<()> {
        let mut moved = Instant::now();
        loop {
            let Some(mut peer) = dial(url, &identity).await else { continue };
            loop {
                let (last, _) = self.figures();
                if self.is_stopped() && last >= self.accepted() {
                    return Ok(());
                }
                ensure!(
                    !self.is_stopped() || moved.elapsed() < ANSWER_LIMIT,
                    "{} messages were accepted at {url}, {last} came",
                    self.accepted()
                );
                let Ok(Ok(Received::Frame(frame))) = tokio::time::timeout(PATIENCE, peer.next()).await else {
                    break;
                };
                if frame["type"] != "message" {
                    continue;
                }
                moved = Instant::now();
                let id =
                    frame["envelope"]["messageId"].as_str().with_context(|| frame.to_string())?.to_owned();
                self.note(&id)?;
                // Now and then it dies with the message in hand.
                if rand::rng().random_bool(0.02) {
                    break;
                }
                let ack = json!({"type": "ack", "messageId": id, "status": "delivered"});
                if peer.send(&ack).await.is_err() {
                    break;
                }
            }
        }
    }

    fn note(&self, id: &str) -> anyhow::Result<()> {
        let number: usize =
            id.strip_prefix("v1-").and_then(|n| n.parse().ok()).with_context(|| id.to_owned())?;
        let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(number <= came.0 + 1, "v1 message {number} was offered before {}", came.0 + 1);
        if number > came.0 {
            came.0 = number;
        } else {
            came.1 += 1;
        }
        Ok(())
    }
}

async fn dial(url: &str, identity: &Identity) -> Option<RawPeer> {
    let dialled = tokio::time::timeout(PATIENCE, async {
        let mut peer = RawPeer::connect_as(url, identity.clone()).await?;
        peer.log_in().await?;
        anyhow::Ok(peer)
    });
    if let Ok(Ok(peer)) = dialled.await {
        return Some(peer);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    None
}

/// Sends a message and waits for the word about it: whether the relay has it.
async fn answer(peer: &mut RawPeer, message: &serde_json::Value) -> anyhow::Result<bool> {
    peer.send(message).await?;
    let id = &message["envelope"]["messageId"];
    loop {
        let Received::Frame(frame) = peer.next().await? else { anyhow::bail!("the connection ended") };
        match frame["type"].as_str() {
            Some("ack") if frame["messageId"] == *id => {
                return Ok(frame["status"] == "delivered" || frame["status"] == "queued");
            }
            Some("error") => return Ok(false),
            _ => {}
        }
    }
}
