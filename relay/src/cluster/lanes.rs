//! The task that takes operations on the queue: those on the mail of one recipient run in order, others beside them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use threadline::Fingerprint;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::engine::{Engine, GIVE_UP};
use super::mailbox::Mailbox;
use crate::core::Event;
use crate::store::{
    BlobNote, Departed, Depth, QueueAnswer, QueueLook, QueueOp, RelayName, StoreAnswer, StoreFailed,
};

/// What the core hears from a queue.
#[derive(Debug)]
pub enum FromEngine {
    /// Answers to operations, by ticket.
    Answers(Vec<(u64, Result<StoreAnswer, StoreFailed>)>),
    /// Something that nobody asked for.
    Event(Event),
}

/// The mail of one recipient and what is to be done with it.
#[derive(Default)]
struct Lane {
    /// Not here while an operation runs.
    mailbox: Option<Mailbox>,
    /// Since when, under which ticket, and what.
    waiting: VecDeque<(Instant, u64, QueueOp)>,
}

enum Done {
    Lane(Fingerprint, Mailbox),
    /// Not on the mail of anybody.
    Beside,
    Sweep(u64, Vec<(Fingerprint, Mailbox)>, Vec<Departed>),
    Blobs,
}

struct Lanes {
    engine: Arc<Engine>,
    by_recipient: HashMap<Fingerprint, Lane>,
    /// What is to be said of blobs, in order, and whether some of it is being said.
    blobs: (VecDeque<(u64, RelayName, BlobNote)>, bool),
    running: JoinSet<Done>,
}

/// Takes groups of operations until nobody is left to send any; then ends what was begun and gives up all sessions.
pub async fn run(engine: Arc<Engine>, mut groups: mpsc::Receiver<Vec<(u64, QueueOp)>>) {
    let mut lanes =
        Lanes { engine, by_recipient: HashMap::new(), blobs: Default::default(), running: JoinSet::new() };
    let mut open = true;
    while open || !lanes.running.is_empty() {
        tokio::select! {
            group = groups.recv(), if open => match group {
                Some(group) => group.into_iter().for_each(|(ticket, op)| lanes.take(ticket, op)),
                None => open = false,
            },
            Some(done) = lanes.running.join_next(), if !lanes.running.is_empty() => match done {
                Ok(Done::Lane(recipient, mailbox)) => lanes.give_back(recipient, mailbox),
                Ok(Done::Beside) => {}
                Ok(Done::Blobs) => {
                    lanes.blobs.1 = false;
                    lanes.say_of_blobs();
                }
                Ok(Done::Sweep(ticket, mailboxes, gone)) => {
                    for (recipient, mailbox) in mailboxes {
                        lanes.give_back(recipient, mailbox);
                    }
                    // Whoever sweeps again at once finds all mailboxes.
                    lanes.engine.answer(ticket, Ok(QueueAnswer::Expired(gone))).await;
                }
                Err(error) => tracing::error!(%error, "an operation on the engine ended by itself"),
            },
        }
    }
    lanes.engine.leave().await;
}

impl Lanes {
    fn take(&mut self, ticket: u64, op: QueueOp) {
        if let QueueOp::Expire { now_ms, limit } = op {
            return self.sweep(ticket, now_ms, limit as usize);
        }
        let recipient = match op {
            QueueOp::Look { most: 0, of: Some(recipient) } => Some(recipient),
            QueueOp::Look { most, of } => {
                let answer = Ok(QueueAnswer::Look(self.look(most as usize, of)));
                let engine = Arc::clone(&self.engine);
                self.running.spawn(async move {
                    engine.answer(ticket, answer).await;
                    Done::Beside
                });
                return;
            }
            QueueOp::Blob(relay, note) => {
                self.blobs.0.push_back((ticket, relay, note));
                return self.say_of_blobs();
            }
            QueueOp::Devices(op) => {
                let engine = Arc::clone(&self.engine);
                self.running.spawn(async move {
                    let answer = engine.devices(&op).await.map(QueueAnswer::Devices);
                    engine.answer(ticket, answer).await;
                    Done::Beside
                });
                return;
            }
            ref op => op.mailbox(),
        };
        let Some(recipient) = recipient else { return };
        let lane = self
            .by_recipient
            .entry(recipient)
            .or_insert_with(|| Lane { mailbox: Some(Mailbox::default()), waiting: VecDeque::new() });
        lane.waiting.push_back((Instant::now(), ticket, op));
        self.start(recipient);
    }

    fn say_of_blobs(&mut self) {
        if self.blobs.0.is_empty() || self.blobs.1 {
            return;
        }
        self.blobs.1 = true;
        let (notes, engine) = (std::mem::take(&mut self.blobs.0), Arc::clone(&self.engine));
        self.running.spawn(async move {
            for (ticket, relay, note) in notes {
                engine.publish_blob(relay, &note).await;
                engine.answer(ticket, Ok(QueueAnswer::Done)).await;
            }
            Done::Blobs
        });
    }

    /// What this relay knows of waiting mail.
    fn look(&self, most: usize, of: Option<Fingerprint>) -> QueueLook {
        let mut oldest_ms: Option<i64> = None;
        let mut depths = Vec::new();
        for (recipient, lane) in &self.by_recipient {
            let Some((Some(oldest), messages, bytes)) = lane.mailbox.as_ref().map(Mailbox::depth) else {
                continue;
            };
            oldest_ms = Some(oldest_ms.map_or(oldest, |known| known.min(oldest)));
            depths.push(Depth { recipient: *recipient, messages, bytes });
        }
        let of = of.map(|recipient| {
            let known = depths.iter().find(|depth| depth.recipient == recipient).copied();
            known.unwrap_or(Depth { recipient, messages: 0, bytes: 0 })
        });
        depths.sort_by_key(|depth| std::cmp::Reverse((depth.bytes, depth.recipient)));
        let by_bytes = depths.iter().copied().take(most).collect();
        depths.sort_by_key(|depth| std::cmp::Reverse((depth.messages, depth.recipient)));
        depths.truncate(most);
        QueueLook { oldest_ms, by_messages: depths, by_bytes, of }
    }

    fn start(&mut self, recipient: Fingerprint) {
        let Some(lane) = self.by_recipient.get_mut(&recipient) else { return };
        if lane.waiting.is_empty() {
            return;
        }
        let Some(mut mailbox) = lane.mailbox.take() else { return };
        let ops = std::mem::take(&mut lane.waiting);
        let engine = Arc::clone(&self.engine);
        self.running.spawn(async move {
            for (since, ticket, op) in ops {
                // Where each takes seconds, the sender of the last would wait for minutes to hear no.
                let late = matches!(op, QueueOp::Accept(_)) && since.elapsed() > GIVE_UP;
                let answer = if late { Err(StoreFailed) } else { engine.apply(&mut mailbox, &op).await };
                engine.answer(ticket, answer).await;
            }
            Done::Lane(recipient, mailbox)
        });
    }

    fn give_back(&mut self, recipient: Fingerprint, mailbox: Mailbox) {
        let Some(lane) = self.by_recipient.get_mut(&recipient) else { return };
        lane.mailbox = Some(mailbox);
        self.start(recipient);
    }

    /// Removes what expired from the mailboxes that are known here and not busy.
    fn sweep(&mut self, ticket: u64, now_ms: i64, limit: usize) {
        self.by_recipient.retain(|_, lane| {
            let Some(mailbox) = &mut lane.mailbox else { return true };
            mailbox.forget_recent(now_ms);
            !mailbox.is_empty() || !lane.waiting.is_empty()
        });
        let mut due = Vec::new();
        let mut room = limit;
        for (recipient, lane) in &mut self.by_recipient {
            let expired = lane.mailbox.as_ref().map(|mailbox| mailbox.expired(now_ms)).unwrap_or_default();
            if room == 0 || expired.is_empty() {
                continue;
            }
            let taken: Vec<u64> = expired.into_iter().take(room).collect();
            room -= taken.len();
            if let Some(mailbox) = lane.mailbox.take() {
                due.push((*recipient, mailbox, taken));
            }
        }
        let engine = Arc::clone(&self.engine);
        self.running.spawn(async move {
            let (mut gone, mut mailboxes): (Vec<Departed>, Vec<_>) = (Vec::new(), Vec::new());
            for (recipient, mut mailbox, taken) in due {
                // What fails is tried again by the next sweep.
                if let Ok(expired) = engine.settle(&mut mailbox, &recipient, &taken, now_ms, false).await {
                    gone.extend(expired);
                }
                mailboxes.push((recipient, mailbox));
            }
            engine.tidy_peers(now_ms).await;
            Done::Sweep(ticket, mailboxes, gone)
        });
    }
}

impl Engine {
    async fn answer(&self, ticket: u64, answer: Result<QueueAnswer, StoreFailed>) {
        let answers = vec![(ticket, answer.map(StoreAnswer::Queue))];
        // Nobody listens any more when the relay stops.
        let _ = self.told.send(FromEngine::Answers(answers)).await;
    }

    pub(super) async fn tell(&self, event: crate::core::ClusterEvent) {
        let _ = self.told.send(FromEngine::Event(Event::Cluster(event))).await;
    }

    /// Writes what was noted of peers, a little at a time.
    pub(super) async fn tidy_peers(self: &Arc<Self>, now_ms: i64) {
        let engine = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || -> rusqlite::Result<()> {
            let mut peers = engine.peers();
            peers.forget(now_ms)?;
            while !peers.is_clean() {
                peers.write_some()?;
            }
            Ok(())
        });
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, "queue.db cannot be written");
        }
    }
}
