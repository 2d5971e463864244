//! A full house: requests wait, durably, and start in order as slots become free.

use std::sync::Arc;
use std::time::Duration;

use instar_state::ids::SessionId;
use instar_state::time::now_ms;
use serde_json::json;

use crate::error::SessionError;
use crate::queue::{self, CannotWait, MAX_WAITING, Waiting};
use crate::record::{SessionRecord, Status};
use crate::sessions::Sessions;
use crate::shared::{Shared, lock};
use crate::slots::Class;
use crate::spawn::{Slot, SpawnRequest, prompt_input};

/// What became of a request for a session.
#[derive(Debug, Clone)]
pub enum Spawned {
    /// It was started, or lives already.
    Started(Box<SessionRecord>),
    /// It waits for a slot.
    Waiting {
        /// Id that the session will have.
        id: SessionId,
        /// Place in the queue, from 1.
        position: usize,
    },
}

/// How long a request waits after a failure that may pass.
const RETRY_MS: i64 = 60_000;
/// Time between two looks when nothing is heard: waiting raises, and pauses end.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl Sessions {
    /// Starts a session, or lets the request wait where all slots are taken. Those that serve peers do not wait
    /// here: their threads do.
    pub async fn spawn_or_wait(&self, request: SpawnRequest) -> Result<Spawned, SessionError> {
        if request.peer.is_some() {
            return self.spawn(request).await.map(|record| Spawned::Started(Box::new(record)));
        }
        let class = Class::of(request.priority, false);
        let behind = lock(&self.shared.queue).is_ahead(class, request.priority, now_ms());
        if !behind {
            match self.spawn(request.clone()).await {
                Err(SessionError::Limit { .. } | SessionError::Memory { .. }) => {}
                other => return other.map(|record| Spawned::Started(Box::new(record))),
            }
        }
        self.shared.wait_for_slot(request).await
    }

    /// Requests that wait for a slot, in the order in which they will get one.
    pub fn waiting(&self) -> Vec<Waiting> {
        lock(&self.shared.queue).in_order(now_ms())
    }

    /// Takes a request out of the queue.
    pub async fn cancel_waiting(&self, id: SessionId) -> Result<Waiting, SessionError> {
        let cancelled = lock(&self.shared.queue).cancel(id);
        let cancelled = cancelled.ok_or_else(|| SessionError::NotWaiting(id.to_string()))?;
        self.shared.write_queue().await?;
        self.shared.announce("session-unqueued", json!({"session": id, "reason": "cancelled"}));
        Ok(cancelled)
    }
}

impl Shared {
    async fn wait_for_slot(self: &Arc<Self>, request: SpawnRequest) -> Result<Spawned, SessionError> {
        self.plan(&request)?;
        if request.conversation.is_none() {
            let inner = self.inner();
            let taken = |r: &SessionRecord| r.status.is_live() && r.name == request.name;
            if inner.sessions.values().any(|s| taken(&s.record)) {
                return Err(SessionError::NameInUse(request.name));
            }
        }
        let (id, now, name) = (SessionId::random(), now_ms(), request.name.clone());
        let pushed = lock(&self.queue).push(Waiting { id, queued_at: now, request });
        pushed.map_err(|refused| match refused {
            CannotWait::Full => SessionError::QueueFull(MAX_WAITING),
            CannotWait::NameInUse => SessionError::NameInUse(name),
        })?;
        if let Err(error) = self.write_queue().await {
            lock(&self.queue).remove(id);
            return Err(error);
        }
        let position = lock(&self.queue).position(id, now_ms()).unwrap_or(1);
        self.announce("session-queued", json!({"session": id, "position": position}));
        Ok(Spawned::Waiting { id, position })
    }

    /// Starts waiting sessions as slots become free, until the node stops.
    pub(crate) async fn serve_queue(self: Arc<Self>) {
        let mut changed = self.subscribe();
        loop {
            self.drain().await;
            let change = async {
                tokio::select! {
                    changed = changed.changed() => changed.is_ok(),
                    () = tokio::time::sleep(LOOK_EVERY) => true,
                }
            };
            if self.cancel.run_until_cancelled(change).await != Some(true) {
                return;
            }
        }
    }

    async fn drain(self: &Arc<Self>) {
        loop {
            let begun = {
                let inner = self.inner();
                lock(&self.queue).begin(now_ms(), |class| self.admit(&inner, class).is_ok())
            };
            let Some(waiting) = begun else { return };
            self.start_waiting(waiting).await;
        }
    }

    async fn start_waiting(self: &Arc<Self>, waiting: Waiting) {
        let Waiting { id, request, .. } = waiting;
        let (name, prompt) = (request.name.clone(), request.prompt.clone());
        let again = match self.spawn(request, Slot::Waiting(id)).await {
            Ok(record) => self.hand_over_prompt(&record, id, prompt).await,
            Err(SessionError::Limit { .. } | SessionError::Memory { .. }) => Err((String::new(), 1000)),
            Err(SessionError::CrashLoop(_, seconds)) => Err((String::new(), seconds * 1000)),
            Err(error @ SessionError::RuntimeMissing(_)) => {
                self.notices().degrade("runtime_missing", &error.to_string());
                Err((error.to_string(), RETRY_MS))
            }
            Err(error) => {
                let text = format!("Session {name:?} waited for a slot and could not be started: {error}.");
                self.notice(format!("queued_session_failed:{id}"), text, true);
                Ok(())
            }
        };
        if let Err((reason, wait_ms)) = again {
            tracing::info!(session = %id, reason, wait_ms, "queued session is tried again");
            lock(&self.queue).put_back(id, now_ms() + wait_ms);
            return;
        }
        lock(&self.queue).remove(id);
        if let Err(error) = self.write_queue().await {
            tracing::error!(%error, "spawn queue was not written");
        }
        self.announce("session-unqueued", json!({"session": id, "reason": "started"}));
    }

    /// A conversation that got a session meanwhile takes the prompt as an input.
    async fn hand_over_prompt(
        self: &Arc<Self>,
        record: &SessionRecord,
        id: SessionId,
        prompt: Option<String>,
    ) -> Result<(), (String, i64)> {
        let Some(prompt) = prompt.filter(|_| record.id != id) else { return Ok(()) };
        let input = prompt_input(id, &record.conversation, &prompt);
        let enqueued = self.deps.journal.enqueue(input, now_ms()).await;
        enqueued.map_err(|error| (error.to_string(), RETRY_MS))?;
        self.wake(&record.conversation);
        Ok(())
    }

    /// Drops requests whose session was started before the node ended.
    pub(crate) async fn recover_queue(self: &Arc<Self>) -> Result<(), SessionError> {
        let started = |id| {
            let record = self.record(id);
            record.is_some_and(|r| r.status != Status::Failed || r.ready_at.is_some())
        };
        let changed = lock(&self.queue).forget_started(started);
        if changed { self.write_queue().await } else { Ok(()) }
    }

    async fn write_queue(self: &Arc<Self>) -> Result<(), SessionError> {
        let shared = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || {
            let _disk = lock(&shared.queue_disk);
            let (path, waiting) = lock(&shared.queue).file();
            queue::write(&path, &waiting)
        });
        let failed = |e: String| SessionError::Failed(format!("the spawn queue was not written: {e}"));
        written.await.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
    }
}
