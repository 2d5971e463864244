//! Going on with a session's transcript in a new process: after its end, afresh, or over the other transport.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use instar_state::ids::SessionId;
use instar_state::time::now_ms;

use crate::error::SessionError;
use crate::record::{Activity, SessionRecord, Status, Transport};
use crate::sessions::Sessions;
use crate::shared::Shared;
use crate::slots::Class;
use crate::spawn::{Resume, Slot, SpawnRequest};
use crate::waiting::Spawned;

/// How long a switch of the transport waits for the end of the turn.
const TURN_LIMIT: Duration = Duration::from_mins(2);

impl Sessions {
    /// Starts a session that continues the transcript of an ended one, or lets it wait for a slot.
    pub async fn resume(&self, id: SessionId, prompt: Option<String>) -> Result<Spawned, SessionError> {
        let record = self.get(id).ok_or_else(|| SessionError::NotFound(id.to_string()))?;
        if record.status.is_live() {
            return Err(SessionError::NameInUse(record.name));
        }
        self.spawn_or_wait(self.continuation(&record, prompt)?).await
    }

    /// Ends a session and continues its transcript in a new one; at most 5 times in 10 minutes.
    pub async fn refresh(
        &self,
        id_or_name: &str,
        prompt: Option<String>,
    ) -> Result<SessionRecord, SessionError> {
        let record = self.live(id_or_name)?;
        let (request, refreshes) = self.refreshed(&record, prompt)?;
        let fresh = self.replace(&record, request, "refresh").await?;
        self.shared.update(fresh.id, |session| session.live.refreshes = refreshes);
        Ok(fresh)
    }

    /// Whether a session may be refreshed now.
    pub fn may_refresh(&self, id_or_name: &str) -> Result<(), SessionError> {
        self.refreshed(&self.live(id_or_name)?, None).map(drop)
    }

    /// The successor of a session, and the times of its refreshes with this one.
    fn refreshed(
        &self,
        record: &SessionRecord,
        prompt: Option<String>,
    ) -> Result<(SpawnRequest, VecDeque<i64>), SessionError> {
        const WINDOW_MS: i64 = 10 * 60_000;
        let now = now_ms();
        let facts = self.shared.update(record.id, |s| (s.live.refreshes.clone(), s.live.replaced));
        let (mut refreshes, replaced) = facts.unwrap_or_default();
        if replaced {
            return Err(SessionError::InProgress);
        }
        refreshes.retain(|at| now - at < WINDOW_MS);
        if refreshes.len() >= 5 {
            return Err(SessionError::RefreshLimit);
        }
        refreshes.push_back(now);
        Ok((self.continuation(record, prompt)?, refreshes))
    }

    /// Continues a session over the other transport, once its turn has ended. One that has it already stays as it
    /// is.
    pub async fn switch_transport(
        &self,
        id_or_name: &str,
        transport: Transport,
    ) -> Result<SessionRecord, SessionError> {
        let record = self.live(id_or_name)?;
        if record.transport == transport {
            return Ok(record);
        }
        let request = self.switched(&record, transport)?;
        self.shared.plan(&request)?;
        let _moving = Moving::start(&self.shared, record.id)?;
        self.turn_end(record.id).await?;
        // What the turn brought to light belongs to the conversation.
        let record = self.live(&record.id.to_string())?;
        let request = self.switched(&record, transport)?;
        self.replace(&record, request, "transport").await
    }

    /// A session that has not said anything yet has nothing to continue and starts anew.
    fn switched(&self, record: &SessionRecord, transport: Transport) -> Result<SpawnRequest, SessionError> {
        let request = match self.continuation(record, None) {
            Err(SessionError::NoTranscript) if record.telemetry.turns == 0 => {
                Self::successor(record, None, Resume::Never)
            }
            other => other?,
        };
        let taken_over = transport == Transport::Tmux;
        Ok(SpawnRequest { transport: Some(transport), taken_over, ..request })
    }

    async fn turn_end(&self, id: SessionId) -> Result<(), SessionError> {
        let mut changed = self.shared.subscribe();
        let ended = async {
            loop {
                let record = self.live(&id.to_string())?;
                let giving = self.shared.update(id, |session| session.live.giving) == Some(true);
                match record.activity {
                    _ if giving => {}
                    Activity::Idle | Activity::ErrorStalled if record.status == Status::Running => {
                        return Ok(());
                    }
                    Activity::WaitingInput => return Err(SessionError::WaitingInput),
                    _ => {}
                }
                if changed.changed().await.is_err() {
                    return Err(SessionError::Busy);
                }
            }
        };
        tokio::time::timeout(TURN_LIMIT, ended).await.unwrap_or(Err(SessionError::Busy))
    }

    /// Ends a session and starts its successor in its slot, even if whoever asked for it goes away meanwhile.
    async fn replace(
        &self,
        record: &SessionRecord,
        request: SpawnRequest,
        reason: &'static str,
    ) -> Result<SessionRecord, SessionError> {
        let replaced = self.shared.update(record.id, |s| std::mem::replace(&mut s.live.replaced, true));
        if replaced == Some(true) {
            return Err(SessionError::InProgress);
        }
        let held = HeldSlot::new(&self.shared, Class::of(record.priority, record.peer.is_some()));
        let (sessions, id) = (self.clone(), record.id);
        let replacing = self.shared.tracker.spawn(async move {
            let _held = held;
            let end = sessions.end(id, Status::Completed, reason);
            if sessions.shared.cancel.run_until_cancelled(end).await.is_none() {
                return Err(SessionError::Failed("the node stops".into()));
            }
            sessions.shared.spawn(request, Slot::Held).await
        });
        replacing.await.map_err(|e| SessionError::Failed(e.to_string()))?
    }

    fn continuation(
        &self,
        record: &SessionRecord,
        prompt: Option<String>,
    ) -> Result<SpawnRequest, SessionError> {
        if record.peer.is_some() {
            let reason =
                "a session that serves a peer is started by the mesh, with the next message of its thread";
            return Err(SessionError::Unsupported(reason.into()));
        }
        let runtime_session_id = record.runtime_session_id.clone().ok_or(SessionError::NoTranscript)?;
        let env = &self.shared.deps.environment;
        let known = record.transcript_path.as_ref().is_some_and(|path| path.exists())
            || self.shared.runtime.transcript(env, &record.cwd, &runtime_session_id).is_some();
        if !known {
            return Err(SessionError::NoTranscript);
        }
        Ok(Self::successor(record, prompt, Resume::Session { of: record.id, runtime_session_id }))
    }

    /// A session that serves the same conversation as this ended one, with its transcript where there is one.
    pub(crate) fn next_of(&self, record: &SessionRecord) -> Result<SpawnRequest, SessionError> {
        match self.continuation(record, None) {
            Err(SessionError::NoTranscript) => Ok(Self::successor(record, None, Resume::Never)),
            other => other,
        }
    }

    fn successor(record: &SessionRecord, prompt: Option<String>, resume: Resume) -> SpawnRequest {
        SpawnRequest {
            prompt,
            conversation: Some(record.conversation.clone()),
            transport: Some(record.transport),
            model: record.model.clone(),
            effort: record.effort.clone(),
            cwd: Some(record.cwd.clone()),
            max_duration_minutes: Some(record.max_duration_minutes),
            priority: record.priority,
            triggered_by: record.triggered_by.clone(),
            job_slug: record.job_slug.clone(),
            peer: record.peer.clone(),
            taken_over: record.taken_over,
            resume,
            ..SpawnRequest::new(record.name.clone(), record.kind)
        }
    }
}

/// Keeps a task from being completed at the end of its turn, because it goes on elsewhere.
struct Moving {
    shared: Arc<Shared>,
    id: SessionId,
}

impl Moving {
    fn start(shared: &Arc<Shared>, id: SessionId) -> Result<Self, SessionError> {
        let moving = shared.update(id, |session| std::mem::replace(&mut session.live.moving, true));
        match moving {
            Some(false) => Ok(Self { shared: Arc::clone(shared), id }),
            Some(true) => Err(SessionError::InProgress),
            None => Err(SessionError::NotFound(id.to_string())),
        }
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        let mailbox = self.shared.update(self.id, |session| {
            session.live.moving = false;
            session.mailbox.clone()
        });
        // Inputs waited meanwhile.
        if let Some(mailbox) = mailbox.flatten() {
            mailbox.look();
        }
    }
}

/// Keeps the slot of a session that ends from those that wait for one.
struct HeldSlot {
    shared: Arc<Shared>,
    class: Class,
}

impl HeldSlot {
    fn new(shared: &Arc<Shared>, class: Class) -> Self {
        shared.inner().held.push(class);
        Self { shared: Arc::clone(shared), class }
    }
}

impl Drop for HeldSlot {
    fn drop(&mut self) {
        let mut inner = self.shared.inner();
        if let Some(at) = inner.held.iter().position(|class| *class == self.class) {
            inner.held.swap_remove(at);
        }
        drop(inner);
        self.shared.touch();
    }
}
