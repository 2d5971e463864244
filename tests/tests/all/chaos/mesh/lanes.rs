//! Messages in motion: who writes to whom, what was taken by the sender, what is in the recipient's store.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use instar_tests::harness::{MessageStore, Stored, request};
use rand::seq::IndexedRandom;
use serde_json::json;
use tokio::sync::watch;

use super::fleet::Fleet;

/// Pause between two looks at the stores.
const LOOK: Duration = Duration::from_millis(200);
/// Longest time in which a node takes no message of a lane.
const TAKE_LIMIT: Duration = Duration::from_secs(90);

/// One direction of a thread.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) thread: String,
}

/// Each node has threads with two others, both sides of which write: `4 * nodes` lanes.
pub(super) fn lanes(nodes: usize) -> Vec<Lane> {
    let pairs = (0..nodes).flat_map(|node| [(node, (node + 1) % nodes), (node, (node + 7) % nodes)]);
    let both = |(number, (one, other)): (usize, (usize, usize))| {
        let lane = |from, to| Lane { from, to, thread: format!("thread-{number}") };
        [lane(one, other), lane(other, one)]
    };
    pairs.enumerate().flat_map(both).collect()
}

/// What is known of one lane.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// Messages that the sender's node has taken.
    taken: usize,
    /// Messages in the recipient's store.
    stored: usize,
}

/// What is known of all lanes.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) lanes: Vec<Lane>,
    progress: Mutex<Vec<Progress>>,
    /// How many messages of each lane may have been sent.
    pub(super) allowed: watch::Sender<usize>,
}

impl Ledger {
    pub(super) fn new(lanes: Vec<Lane>) -> Self {
        let progress = Mutex::new(vec![Progress::default(); lanes.len()]);
        Self { lanes, progress, allowed: watch::Sender::new(0) }
    }

    fn progress(&self) -> MutexGuard<'_, Vec<Progress>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages taken so far, of each lane.
    pub(super) fn taken(&self) -> Vec<usize> {
        self.progress().iter().map(|progress| progress.taken).collect()
    }

    /// Messages stored so far, of all lanes.
    pub(super) fn stored(&self) -> usize {
        self.progress().iter().map(|progress| progress.stored).sum()
    }

    /// Lanes whose recipients do not have this many yet, but those that touch a node of `except`.
    pub(super) fn missing(&self, wanted: &[usize], except: &[usize]) -> Vec<String> {
        let progress = self.progress();
        let lanes = self.lanes.iter().zip(progress.iter()).zip(wanted);
        lanes
            .filter(|((lane, _), _)| !except.contains(&lane.from) && !except.contains(&lane.to))
            .filter(|((_, progress), wanted)| progress.stored < **wanted)
            .map(|((lane, p), wanted)| format!("n{}→n{}: {} of {wanted}", lane.from, lane.to, p.stored))
            .collect()
    }

    /// A message is in its recipient's store: it has to be the next one of its lane.
    fn came(&self, lane: usize, number: usize) -> anyhow::Result<()> {
        let mut progress = self.progress();
        let progress = progress.get_mut(lane).with_context(|| format!("lane {lane} does not exist"))?;
        ensure!(
            number == progress.stored + 1,
            "lane {lane} ({:?}): message {number} came after message {}",
            self.lanes[lane],
            progress.stored
        );
        progress.stored = number;
        Ok(())
    }
}

/// Writes the messages of a lane, each again until the node says that it has it.
pub(super) async fn write(
    fleet: Arc<Fleet>,
    ledger: Arc<Ledger>,
    lane: usize,
    count: usize,
) -> anyhow::Result<()> {
    let mut allowed = ledger.allowed.subscribe();
    for number in 1..=count {
        allowed.wait_for(|allowed| *allowed >= number).await?;
        let begun = Instant::now();
        let route = ledger.lanes[lane].clone();
        // The very same request each time: a node that was killed while it answered may have taken it.
        let body = json!({
            "agentId": fleet.fingerprints[route.to], "threadId": route.thread, "waitForReply": false,
            "message": text(lane, number), "idempotencyKey": format!("{lane}-{number}"),
        });
        loop {
            let path = "/threadline/tools/threadline_send";
            let answer = request(&fleet.sockets[route.from], "POST", path, &[], Some(&body)).await;
            match answer {
                Ok(answer) if answer.status == 200 => break,
                other => ensure!(begun.elapsed() < TAKE_LIMIT, "lane {lane}, message {number}: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ledger.progress()[lane].taken = number;
    }
    Ok(())
}

/// Follows the stores of all nodes; ends with what is wrong.
pub(super) async fn follow(fleet: Arc<Fleet>, ledger: Arc<Ledger>) -> anyhow::Result<()> {
    let mut readers: Vec<Reader> =
        fleet.stores.iter().map(|path| Reader::open(path)).collect::<Result<_, _>>()?;
    loop {
        readers = tokio::task::spawn_blocking({
            let ledger = Arc::clone(&ledger);
            move || {
                for reader in &mut readers {
                    reader.read(&ledger)?;
                }
                anyhow::Ok(readers)
            }
        })
        .await??;
        tokio::time::sleep(LOOK).await;
    }
}

struct Reader {
    store: MessageStore,
    /// The last row that was read.
    row: i64,
}

impl Reader {
    fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { store: MessageStore::open(path)?, row: 0 })
    }

    fn read(&mut self, ledger: &Ledger) -> anyhow::Result<()> {
        for message in self.store.after(self.row)? {
            self.row = message.row;
            if !message.sent {
                ensure!(message.transport == "sealed", "a message came by another way: {message:?}");
                let (lane, number) = place(&message.body).with_context(|| format!("{message:?}"))?;
                ledger.came(lane, number)?;
            }
        }
        Ok(())
    }
}

/// Reads every store anew: each side of each lane holds its messages once, in order, under the same ids. Returns how many.
pub(super) fn check(fleet: &Fleet, ledger: &Ledger, count: usize) -> anyhow::Result<usize> {
    let read = |path: &std::path::PathBuf| MessageStore::open(path)?.after(0);
    let stores: Vec<Vec<Stored>> = fleet.stores.iter().map(read).collect::<Result<_, _>>()?;
    for (number, lane) in ledger.lanes.iter().enumerate() {
        let copy = |node: usize, peer: usize, sent: bool| -> Vec<&Stored> {
            let peer = &fleet.fingerprints[peer];
            let belongs = |m: &&Stored| m.sent == sent && m.thread == lane.thread && m.peer == *peer;
            stores[node].iter().filter(belongs).collect()
        };
        let (sent, came) = (copy(lane.from, lane.to, true), copy(lane.to, lane.from, false));
        for (side, copy) in [("sender", &sent), ("recipient", &came)] {
            let places: Vec<_> = copy.iter().map(|message| place(&message.body)).collect();
            let in_place = places.len() == count && (1..).zip(&places).all(|(n, p)| *p == Some((number, n)));
            ensure!(in_place, "the {side} of {lane:?} has {places:?}");
        }
        let other = sent.iter().zip(&came).find(|(sent, came)| sent.id != came.id);
        ensure!(other.is_none(), "the two ends of {lane:?} know a message under other ids: {other:?}");
    }
    Ok(stores.iter().flatten().filter(|message| !message.sent).count())
}

/// What a message says: its place, and words that make it unlike the one before.
fn text(lane: usize, number: usize) -> String {
    const WORDS: [&str; 12] = [
        "harbour", "window", "seven", "maple", "quietly", "train", "copper", "letter", "under", "evening",
        "salt", "north",
    ];
    let mut random = rand::rng();
    let words: Vec<&str> = (0..8).filter_map(|_| WORDS.choose(&mut random).copied()).collect();
    format!("lane {lane} number {number}: what of {}?", words.join(" "))
}

fn place(body: &str) -> Option<(usize, usize)> {
    let rest = body.strip_prefix("lane ")?;
    let (lane, rest) = rest.split_once(" number ")?;
    Some((lane.parse().ok()?, rest.split_once(':')?.0.parse().ok()?))
}
