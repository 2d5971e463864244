//! The thread that owns the queue: what arrived while the last group was written becomes the next one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::health::Measured;
use crate::cluster::{self, Engine, FromEngine};
use crate::store::{Custody, Medium, QueueOp, StoreAnswer};

/// Operations per group.
const GROUP: usize = 256;
/// Bytes of mail per group.
const GROUP_BYTES: usize = 2 << 20;
/// Hand-overs that may wait; the driver keeps what does not fit.
const WAITING: usize = 1024;
/// How often old segments and notes are looked after.
const TIDY: Duration = Duration::from_millis(500);

pub(super) type Group = Vec<(u64, QueueOp)>;

/// How the driver reaches what keeps mail.
pub(super) struct QueueHandle {
    groups: Option<Groups>,
    pub(super) answers: mpsc::Receiver<FromEngine>,
    worker: Worker,
}

enum Groups {
    Thread(SyncSender<Group>),
    Task(mpsc::Sender<Group>),
}

enum Worker {
    Thread(std::thread::JoinHandle<()>),
    Task(tokio::task::JoinHandle<()>),
}

impl QueueHandle {
    /// Starts the thread. `bytes` always tells the size of the log.
    pub(super) fn start<M: Medium + 'static>(
        custody: Custody<M>,
        bytes: Arc<AtomicU64>,
        measured: Arc<Measured>,
    ) -> std::io::Result<Self> {
        let (groups, receiver) = sync_channel(WAITING);
        // An answer belongs to a hand-over, so there are never more.
        let (sender, answers) = mpsc::channel(2 * WAITING);
        bytes.store(custody.bytes(), Ordering::Relaxed);
        let thread = std::thread::Builder::new()
            .name("queue".into())
            .spawn(move || run(custody, &receiver, &sender, &bytes, &measured))?;
        Ok(Self { groups: Some(Groups::Thread(groups)), answers, worker: Worker::Thread(thread) })
    }

    /// Starts the task over an engine that several relays share; `answers` is where it answers to.
    pub(super) fn on_cluster(engine: Arc<Engine>, answers: mpsc::Receiver<FromEngine>) -> Self {
        let (groups, receiver) = mpsc::channel(WAITING);
        let worker = Worker::Task(tokio::spawn(cluster::run(engine, receiver)));
        Self { groups: Some(Groups::Task(groups)), answers, worker }
    }

    /// A channel for what an engine tells.
    pub(super) fn channel() -> (mpsc::Sender<FromEngine>, mpsc::Receiver<FromEngine>) {
        mpsc::channel(2 * WAITING)
    }

    /// Hands operations over, unless too many are waiting.
    pub(super) fn submit(&self, ops: &mut Group) {
        if ops.is_empty() {
            return;
        }
        let group = std::mem::take(ops);
        *ops = match &self.groups {
            None => group,
            Some(Groups::Thread(groups)) => match groups.try_send(group) {
                Ok(()) => return,
                Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) => back,
            },
            Some(Groups::Task(groups)) => match groups.try_send(group) {
                Ok(()) => return,
                Err(error) => error.into_inner(),
            },
        };
    }

    /// Ends the worker after what was handed over. Blocks.
    pub(super) fn stop(mut self) {
        self.groups = None;
        self.answers.close();
        match self.worker {
            Worker::Thread(thread) => drop(thread.join()),
            Worker::Task(task) => drop(tokio::runtime::Handle::current().block_on(task)),
        }
    }
}

fn run<M: Medium>(
    mut custody: Custody<M>,
    groups: &Receiver<Group>,
    answers: &mpsc::Sender<FromEngine>,
    bytes: &AtomicU64,
    measured: &Measured,
) {
    let mut waiting: VecDeque<(u64, QueueOp)> = VecDeque::new();
    let mut group = Vec::with_capacity(GROUP);
    let (mut tidied, mut untidy) = (Instant::now(), false);
    loop {
        if waiting.is_empty() {
            match groups.recv_timeout(if untidy { Duration::ZERO } else { TIDY }) {
                Ok(ops) => {
                    waiting.extend(ops);
                    // Where another thread waits for this core, it may have more for the same commit.
                    std::thread::yield_now();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        while waiting.len() < GROUP
            && let Ok(more) = groups.try_recv()
        {
            waiting.extend(more);
        }
        let mut weight = 0;
        let light = waiting.iter().take(GROUP).take_while(|(_, op)| {
            weight += op.weight();
            weight <= GROUP_BYTES
        });
        let count = light.count().max(1).min(waiting.len());
        if count > 0 {
            group.extend(waiting.drain(..count));
            let (begun, before) = (Instant::now(), custody.bytes());
            let done = custody.apply(group.iter().map(|(_, op)| op));
            let commit = (custody.bytes() != before).then(|| begun.elapsed());
            let tickets = group.drain(..).map(|(ticket, _)| ticket);
            let done =
                tickets.zip(done).map(|(ticket, done)| (ticket, done.map(StoreAnswer::Queue))).collect();
            if answers.blocking_send(FromEngine::Answers(done)).is_err() {
                break;
            }
            if let Some(took) = commit {
                measured.committed(count, took);
            }
        }
        if untidy || tidied.elapsed() >= TIDY {
            untidy = custody.tidy();
            tidied = Instant::now();
        }
        bytes.store(custody.bytes(), Ordering::Relaxed);
    }
    custody.finish();
}
