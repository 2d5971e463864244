//! After a restart: which sessions still live, which ended meanwhile, what nobody owns any more
//! (`agent-core.md` §6.10).

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use instar_state::ids::SessionId;
use instar_state::time::now_ms;
use serde_json::json;
use tokio::task::JoinSet;

use crate::actor::Actor;
use crate::ending;
use crate::error::SessionError;
use crate::mailbox::mailbox;
use crate::monitor::Episode;
use crate::process;
use crate::record::{Activity, Owner, Priority, SessionKind, SessionRecord, Status, Telemetry, Transport};
use crate::shared::{Live, Session, Shared};
use crate::spawn;

/// What recovery found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Sessions that still live and are followed again.
    pub adopted: usize,
    /// Sessions that ended while no node ran.
    pub ended: usize,
    /// Terminal sessions of ours without a record.
    pub strangers: usize,
}

impl Shared {
    /// Reads all records and settles every session that was not at its end.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<Recovered, SessionError> {
        let dir = self.deps.paths.sessions();
        let records = tokio::task::spawn_blocking(move || read_records(&dir))
            .await
            .map_err(|e| SessionError::Failed(e.to_string()))?
            .map_err(|e| SessionError::Failed(format!("cannot read session records: {e}")))?;
        let open: Vec<SessionId> = records.iter().filter(|r| !r.status.is_final()).map(|r| r.id).collect();
        {
            let mut inner = self.inner();
            for record in records {
                let live = Live { recovering: !record.status.is_final(), ..Live::default() };
                inner.sessions.insert(record.id, Session { record, mailbox: None, live });
            }
        }
        let mut found = Recovered::default();
        let mut checks = JoinSet::new();
        for id in open {
            let shared = Arc::clone(self);
            checks.spawn(async move { shared.recover_one(id).await });
        }
        while let Some(alive) = checks.join_next().await {
            match alive {
                Ok(true) => found.adopted += 1,
                _ => found.ended += 1,
            }
        }
        found.strangers = self.adopt_strangers().await;
        let launch = self.deps.paths.run().join("launch");
        let _ = tokio::task::spawn_blocking(move || remove_old_launches(&launch)).await;
        self.announce(
            "sessions-recovered",
            json!({"adopted": found.adopted, "ended": found.ended, "strangers": found.strangers}),
        );
        Ok(found)
    }

    /// Follows the session again if its runtime lives; else notes its end. Returns whether it lives.
    async fn recover_one(self: &Arc<Self>, id: SessionId) -> bool {
        let Some(record) = self.record(id) else { return false };
        let files = self.files(id);
        let pids = spawn::pids(&files);
        let child = record.child_pid.or(pids.map(|p| p.child));
        let start = record.child_start_time.or(pids.map(|p| p.child_start_time));
        self.update(id, |session| {
            session.record.child_pid = child;
            session.record.child_start_time = start;
        });
        let child_lives = child.is_some_and(|pid| process::is_alive(pid, start));
        // Between the start of a supervisor and its first sign of life only its process id is known.
        let appearing = child.is_none() && record.host_pid.is_some_and(|pid| process::is_alive(pid, None));
        let pane_lives =
            record.transport == Transport::Tmux && child.is_none() && self.pane_lives(&record).await;
        if ending::read_exit(&files).is_none() && (child_lives || appearing || pane_lives) {
            self.adopt(id).await;
            return true;
        }
        ending::finish(self, id, &[]).await;
        false
    }

    async fn pane_lives(&self, record: &SessionRecord) -> bool {
        match (self.tmux(), record.tmux_session.as_deref()) {
            (Some(tmux), Some(name)) => tmux.exists(name).await == Some(true),
            _ => false,
        }
    }

    async fn adopt(self: &Arc<Self>, id: SessionId) {
        let (mailbox, letters) = mailbox();
        let record = {
            let mut inner = self.inner();
            let fence = Self::next_fence(&mut inner);
            let Some(session) = inner.sessions.get_mut(&id) else { return };
            session.record.owner = Owner { fence };
            if session.record.status == Status::Running {
                session.record.activity = match session.record.activity {
                    // What was idle stays so until an event says otherwise: the log and the hooks tell of all turns.
                    Activity::Idle | Activity::WaitingInput => session.record.activity,
                    _ if session.record.transport == Transport::Stdio => session.record.activity,
                    _ => Activity::Unknown,
                };
            }
            if session.record.activity == Activity::Idle {
                session.live.idle_since = Some(now_ms());
            }
            if session.record.activity == Activity::ErrorStalled {
                session.live.episode = Some(Episode::Fresh);
            }
            session.live.recovering = false;
            session.live.adopted_at = Some(now_ms());
            session.mailbox = Some(mailbox);
            session.record.clone()
        };
        self.persist(id).await;
        tracing::info!(session = %id, "session adopted");
        let mut actor = Actor::new(Arc::clone(self), &record, letters);
        if record.status == Status::Ending {
            actor.resume_ending();
        }
        self.tracker.spawn(actor.run());
    }

    /// Terminal sessions on our own server that no record knows: followed by name, reported, not ended.
    async fn adopt_strangers(self: &Arc<Self>) -> usize {
        let Some(tmux) = self.tmux() else { return 0 };
        if !self.deps.paths.state().join("tmux.conf").exists() {
            return 0;
        }
        let Ok(names) = tmux.sessions().await else { return 0 };
        let mut strangers = 0;
        for name in names {
            let known = self
                .inner()
                .sessions
                .values()
                .any(|s| s.record.status.is_live() && s.record.tmux_session.as_deref() == Some(&name));
            if known {
                continue;
            }
            strangers += 1;
            let record = self.stranger(&name, strangers);
            let id = record.id;
            self.inner().sessions.insert(id, Session { record, mailbox: None, live: Live::default() });
            self.persist(id).await;
            let text = format!(
                "The terminal session {name} has no record; it is listed as recovered-{strangers} and left alone."
            );
            self.notice(format!("stranger:{name}"), text, false);
        }
        strangers
    }

    fn stranger(&self, tmux_session: &str, n: usize) -> SessionRecord {
        let id = SessionId::random();
        SessionRecord {
            id,
            name: format!("recovered-{n}"),
            kind: SessionKind::AdHoc,
            status: Status::Running,
            activity: Activity::Unknown,
            transport: Transport::Tmux,
            framework: self.runtime.framework().to_owned(),
            runtime_session_id: None,
            model: None,
            effort: None,
            tmux_session: Some(tmux_session.to_owned()),
            host_pid: None,
            child_pid: None,
            child_start_time: None,
            cwd: self.deps.paths.project().to_owned(),
            conversation: spawn::own_conversation(id),
            bound: false,
            job_slug: None,
            triggered_by: None,
            prompt: None,
            max_duration_minutes: self.config().max_duration_minutes,
            started_at: now_ms(),
            ready_at: None,
            ended_at: None,
            exit: None,
            end_reason: None,
            resume_of: None,
            work_evidence: Vec::new(),
            priority: Priority::Medium,
            owner: Owner { fence: 0 },
            token_hash: None,
            peer: None,
            taken_over: false,
            tainted: false,
            transcript_path: None,
            log_offset: 0,
            finished_inputs: Vec::new(),
            recent_reports: Vec::new(),
            telemetry: Telemetry::default(),
        }
    }
}

/// All records; an unreadable one is set aside.
fn read_records(dir: &Path) -> std::io::Result<Vec<SessionRecord>> {
    instar_durable::create_dir_private(dir)?;
    let mut records = Vec::new();
    for entry in fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let Some(stem) = name.to_str().and_then(|n| n.strip_suffix(".json")) else { continue };
        if stem.parse::<SessionId>().is_err() {
            continue;
        }
        match serde_json::from_slice(&fs::read(&path)?) {
            Ok(record) => records.push(record),
            Err(error) => {
                let aside = instar_durable::set_aside(&path, now_ms())?;
                tracing::warn!(%error, aside = %aside.display(), "session record was unreadable");
            }
        }
    }
    Ok(records)
}

fn remove_old_launches(dir: &Path) {
    const OLD: Duration = Duration::from_mins(5);
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let modified = entry.metadata().and_then(|m| m.modified());
        let old = modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > OLD));
        if old {
            let _ = fs::remove_file(entry.path());
        }
    }
}
