//! Carries out the effects of the core: the one task that owns it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use instar_durable::{Database, DatabaseError};
use threadline::v1::frames::ServerFrame;
use tokio::sync::{Notify, mpsc, oneshot};

use super::clock::Clock;
use super::outbox::Outbox;
use super::queue::{Group, QueueHandle};
use crate::cluster::FromEngine;
use crate::core::{
    self, ConnId, Core, Counters, Effect, Event, Inbound, Outgoing, Snapshot, Source, V2Carrier,
};
use crate::maps::NumberMap;
use crate::store::{QueueAnswer, QueueOp, RegistryOp, StoreAnswer, StoreFailed, StoreOp, registry};

/// What waits for the core, each at most one read of a connection; when full, connections wait and stop reading.
const EVENTS: usize = 256;
/// Storage operations waiting; when more, no new events are taken until some are done.
const OPERATIONS: usize = 4096;
/// Events taken at a time.
const COMMANDS: usize = 256;
/// Operations per transaction of the registry.
const GROUP: usize = 256;
const GROWN: usize = 1 << 20;

pub(super) type Answers = Vec<(u64, Result<StoreAnswer, StoreFailed>)>;
type Running = Pin<Box<dyn Future<Output = Answers> + Send>>;

enum Command {
    Open {
        source: Source,
        outbox: Arc<Outbox>,
        v2: Option<V2Carrier>,
        reply: oneshot::Sender<ConnId>,
    },
    /// Boxed, for it is large and every connection has room for a command.
    Event(Box<Event>),
    Received {
        conn: ConnId,
        frames: Vec<Inbound>,
    },
    Snapshot(oneshot::Sender<Snapshot>),
    Outboxes(oneshot::Sender<Vec<Arc<Outbox>>>),
    Inspect(Box<dyn FnOnce(&Core) + Send>),
    Queue(QueueOp, oneshot::Sender<QueueAnswer>),
    Stop,
}

/// How the other parts reach the core.
#[derive(Clone)]
pub(super) struct DriverHandle {
    commands: mpsc::Sender<Command>,
}

impl DriverHandle {
    /// Announces a socket.
    pub(super) async fn open(
        &self,
        source: Source,
        outbox: Arc<Outbox>,
        v2: Option<V2Carrier>,
    ) -> Option<ConnId> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Open { source, outbox, v2, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Hands an event to the core; waits when the core is busy, is silent when it has stopped.
    pub(super) async fn event(&self, event: Event) {
        let _ = self.commands.send(Command::Event(Box::new(event))).await;
    }

    /// Hands what one read brought to the core.
    pub(super) async fn received(&self, conn: ConnId, frames: Vec<Inbound>) {
        let _ = self.commands.send(Command::Received { conn, frames }).await;
    }

    pub(super) async fn snapshot(&self) -> Option<Snapshot> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Snapshot(reply)).await.ok()?;
        answer.await.ok()
    }

    pub(super) async fn outboxes(&self) -> Vec<Arc<Outbox>> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Outboxes(reply)).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// Looks into the core; `look` must be quick, for every message waits.
    pub(super) async fn inspect<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core) -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let look = Box::new(move |core: &Core| drop(reply.send(look(core))));
        self.commands.send(Command::Inspect(look)).await.ok()?;
        answer.await.ok()
    }

    /// Asks the queue, in the order of everything else that is asked of it.
    pub(super) async fn queue(&self, op: QueueOp) -> Option<QueueAnswer> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Queue(op, reply)).await.ok()?;
        answer.await.ok()
    }

    /// Ends the task after the storage operations that were begun.
    pub(super) async fn stop(&self) {
        let _ = self.commands.send(Command::Stop).await;
    }
}

/// Operations that wait for the registry, and the transaction that is under way.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<(u64, RegistryOp)>,
    running: Option<Running>,
}

impl Lane {
    /// Starts the next transaction with everything that came while the last one ran.
    fn advance(&mut self, registry: &Database) {
        if self.running.is_some() || self.waiting.is_empty() {
            return;
        }
        let group = self.waiting.drain(..self.waiting.len().min(GROUP)).collect();
        self.running = Some(Box::pin(write_registry(registry.clone(), group)));
    }

    fn is_idle(&self) -> bool {
        self.running.is_none() && self.waiting.is_empty()
    }

    async fn finished(&mut self) -> Answers {
        let Some(running) = self.running.as_mut() else { return std::future::pending().await };
        let answers = running.await;
        self.running = None;
        answers
    }
}

pub(super) struct Driver {
    core: Core,
    clock: Clock,
    commands: mpsc::Receiver<Command>,
    outboxes: NumberMap<ConnId, Arc<Outbox>>,
    next_conn: ConnId,
    queue: QueueHandle,
    /// Operations for the queue that are not handed over yet.
    queue_ops: Group,
    /// Operations of the queue without an answer.
    queue_open: usize,
    /// Questions of an operator, by their tickets, which the core never gives out.
    asked: NumberMap<u64, oneshot::Sender<QueueAnswer>>,
    next_asked: u64,
    registry: Database,
    registry_lane: Lane,
    /// Bytes of mail since `grown` was rung.
    fresh_bytes: usize,
    grown: Arc<Notify>,
}

impl Driver {
    pub(super) fn new(
        core: Core,
        clock: Clock,
        (queue, registry): (QueueHandle, Database),
        grown: Arc<Notify>,
    ) -> (Self, DriverHandle) {
        let (sender, commands) = mpsc::channel(EVENTS);
        let driver = Self {
            core,
            clock,
            commands,
            outboxes: NumberMap::default(),
            next_conn: 0,
            queue,
            queue_ops: Vec::new(),
            queue_open: 0,
            asked: NumberMap::default(),
            next_asked: u64::MAX,
            registry,
            registry_lane: Lane::default(),
            fresh_bytes: 0,
            grown,
        };
        (driver, DriverHandle { commands: sender })
    }

    /// Runs until [`DriverHandle::stop`].
    pub(super) async fn run(mut self) -> Counters {
        let mut stopping = false;
        let mut commands = Vec::with_capacity(COMMANDS);
        self.carry_out();
        self.advance();
        while !(stopping && self.queue_open == 0 && self.registry_lane.is_idle()) {
            let due = self.core.next_deadline().unwrap_or(i64::MAX).saturating_sub(self.clock.now_ms());
            let pause = Duration::from_millis(u64::try_from(due).unwrap_or(0).min(60_000));
            let room = self.queue_open + self.registry_lane.waiting.len() < OPERATIONS;
            tokio::select! {
                answers = self.queue.answers.recv() => {
                    let Some(answers) = answers else {
                        tracing::error!("the thread of the queue ended: no message can be stored any more");
                        break;
                    };
                    match answers {
                        FromEngine::Answers(answers) => {
                            self.queue_open -= answers.len();
                            self.report(answers);
                        }
                        FromEngine::Event(event) => self.handle(event),
                    }
                }
                answers = self.registry_lane.finished() => self.report(answers),
                _ = self.commands.recv_many(&mut commands, COMMANDS), if room && !stopping => {
                    // Without a handle left nobody can say stop.
                    stopping = commands.is_empty();
                    self.gather(&mut commands).await;
                    for command in commands.drain(..) {
                        stopping |= matches!(command, Command::Stop);
                        self.command(command);
                    }
                }
                () = tokio::time::sleep(pause) => self.handle(Event::Tick),
            }
            self.advance();
        }
        let counters = self.core.counters();
        let _ = tokio::task::spawn_blocking(move || self.queue.stop()).await;
        counters
    }

    /// Lets the connections that have something to say go first: what they bring is one hand-over to storage.
    async fn gather(&mut self, commands: &mut Vec<Command>) {
        tokio::task::yield_now().await;
        while commands.len() < COMMANDS
            && let Ok(command) = self.commands.try_recv()
        {
            commands.push(command);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Open { source, outbox, v2, reply } => {
                self.next_conn += 1;
                let conn = self.next_conn;
                self.outboxes.insert(conn, outbox);
                let _ = reply.send(conn);
                self.handle(match v2 {
                    None => Event::Opened { conn, source },
                    Some(carrier) => Event::OpenedV2 { conn, source, carrier },
                });
            }
            Command::Event(event) => {
                let closed = match &*event {
                    Event::Closed { conn } => Some(*conn),
                    _ => None,
                };
                self.handle(*event);
                if let Some(conn) = closed {
                    self.outboxes.remove(&conn);
                }
            }
            Command::Inspect(look) => look(&self.core),
            Command::Queue(op, reply) => {
                self.next_asked -= 1;
                self.asked.insert(self.next_asked, reply);
                self.queue_open += 1;
                self.queue_ops.push((self.next_asked, op));
            }
            Command::Received { conn, frames } => {
                let now_ms = self.clock.now_ms();
                for inbound in frames {
                    self.core.handle(Event::Received { conn, inbound }, now_ms);
                }
                self.carry_out();
            }
            Command::Snapshot(reply) => {
                let now_ms = self.clock.now_ms();
                let _ = reply.send(self.core.snapshot(now_ms));
            }
            Command::Outboxes(reply) => {
                let _ = reply.send(self.outboxes.values().cloned().collect());
            }
            Command::Stop => {}
        }
    }

    fn handle(&mut self, event: Event) {
        self.core.handle(event, self.clock.now_ms());
        self.carry_out();
    }

    fn report(&mut self, answers: Answers) {
        let now_ms = self.clock.now_ms();
        for (ticket, answer) in answers {
            if let Some(reply) = self.asked.remove(&ticket) {
                let Ok(StoreAnswer::Queue(answer)) = answer else { continue };
                if let QueueAnswer::Dropped(gone) = &answer {
                    self.core.handle(Event::Dropped { gone: gone.clone() }, now_ms);
                }
                // Whoever asked may have gone.
                let _ = reply.send(answer);
                continue;
            }
            self.core.handle(Event::Stored { ticket, answer }, now_ms);
        }
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Send { conn, what } => {
                    if let Some(outbox) = self.outboxes.get(&conn) {
                        let admits = match &what {
                            Outgoing::Frame(frame) => matches!(**frame, ServerFrame::AuthOk(_)),
                            Outgoing::V2(frame) => frame.lane == core::Lane::Welcome,
                            Outgoing::Message(_) | Outgoing::Fate(..) | Outgoing::Ping => false,
                        };
                        if admits {
                            outbox.admit();
                        }
                        outbox.push(&what);
                    }
                }
                Effect::Close { conn, code, reason } => {
                    if let Some(outbox) = self.outboxes.get(&conn) {
                        outbox.close(code, reason);
                    }
                }
                Effect::Store { ticket, op: StoreOp::Queue(op) } => {
                    self.fresh_bytes += op.weight();
                    if self.fresh_bytes >= GROWN {
                        self.fresh_bytes = 0;
                        self.grown.notify_one();
                    }
                    self.queue_open += 1;
                    self.queue_ops.push((ticket, op));
                }
                Effect::Store { ticket, op: StoreOp::Registry(op) } => {
                    self.registry_lane.waiting.push_back((ticket, op));
                }
            }
        }
    }

    fn advance(&mut self) {
        self.queue.submit(&mut self.queue_ops);
        self.registry_lane.advance(&self.registry);
    }
}

async fn write_registry(database: Database, group: Vec<(u64, RegistryOp)>) -> Answers {
    let apply = |c: &rusqlite::Connection, op: &RegistryOp| registry::apply(c, op).map(StoreAnswer::Registry);
    write(&database, Arc::new(apply), group).await
}

/// Runs a group in one transaction. When that fails each operation gets its own, so that what frees space still
/// works on a full disk.
async fn write<O, F>(database: &Database, apply: Arc<F>, group: Vec<(u64, O)>) -> Answers
where
    O: Send + Sync + 'static,
    F: Fn(&rusqlite::Connection, &O) -> rusqlite::Result<StoreAnswer> + Send + Sync + 'static,
{
    let group = Arc::new(group);
    let (all, run) = (Arc::clone(&group), Arc::clone(&apply));
    let together = database
        .write(move |c| {
            let answers: rusqlite::Result<Vec<StoreAnswer>> = all.iter().map(|(_, op)| run(c, op)).collect();
            answers.map_err(DatabaseError::from)
        })
        .await;
    let failed = match together {
        Ok(answers) => {
            return group.iter().map(|(ticket, _)| *ticket).zip(answers.into_iter().map(Ok)).collect();
        }
        Err(error) => error,
    };
    if group.len() == 1 {
        return group.iter().map(|(ticket, _)| (*ticket, refuse(&failed))).collect();
    }
    let mut answers = Vec::with_capacity(group.len());
    for index in 0..group.len() {
        let (all, run) = (Arc::clone(&group), Arc::clone(&apply));
        let answer = database
            .write(move |c| match all.get(index) {
                Some((_, op)) => run(c, op).map_err(DatabaseError::from),
                None => Err(DatabaseError::Closed),
            })
            .await;
        let Some((ticket, _)) = group.get(index) else { continue };
        answers.push((*ticket, settle(answer)));
    }
    answers
}

fn settle(answer: Result<StoreAnswer, DatabaseError>) -> Result<StoreAnswer, StoreFailed> {
    answer.or_else(|error| refuse(&error))
}

fn refuse(error: &DatabaseError) -> Result<StoreAnswer, StoreFailed> {
    tracing::error!(%error, "storage operation failed");
    Err(StoreFailed)
}
