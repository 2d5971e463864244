//! The regular look at all sessions, and the sweep for processes and records that nobody needs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use instar_state::ids::SessionId;
use instar_state::journal::{InboxFilter, InboxRow};
use instar_state::ports::{InputKind, InputState, SessionInput};
use instar_state::time::now_ms;
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::delivery::LOCAL_TAG;
use crate::ending;
use crate::launch::SessionFiles;
use crate::monitor::{self, Action, Episode, SessionFacts};
use crate::process::{self, ProcStat};
use crate::reap::{ReapFacts, is_baseline_process};
use crate::record::{Activity, SessionKind, SessionRecord, Status, Transport};
use crate::shared::{Live, Shared, lock};
use crate::supervisor::event_log;

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Looks between two sweeps.
const SWEEP_EVERY: u32 = 12;
const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
/// Finished records that are kept.
const KEEP_FINISHED: usize = 50;

impl Shared {
    /// Looks at the sessions every 5 s until the node stops.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut looks = 0u32;
        loop {
            if self.cancel.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                return;
            }
            let live = self.live_ids();
            if !live.is_empty() {
                self.look(live).await;
            }
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(SWEEP_EVERY) {
                self.sweep().await;
            }
        }
    }

    fn live_ids(&self) -> Vec<SessionId> {
        let inner = self.inner();
        inner.sessions.values().filter(|s| s.record.status.is_live()).map(|s| s.record.id).collect()
    }

    async fn look(self: &Arc<Self>, live: Vec<SessionId>) {
        let processes = tokio::task::spawn_blocking(process::snapshot).await.unwrap_or_default();
        let processes = Arc::new(processes);
        let mut looks = JoinSet::new();
        for id in live {
            let (shared, processes) = (Arc::clone(self), Arc::clone(&processes));
            looks.spawn(async move { shared.look_at(id, &processes).await });
        }
        while looks.join_next().await.is_some() {}
    }

    async fn look_at(self: &Arc<Self>, id: SessionId, processes: &BTreeMap<i32, ProcStat>) {
        let Some(facts) = self.facts(id, processes).await else { return };
        match monitor::decide(&facts) {
            None => {}
            Some(Action::Overdue) => {
                let told = self.update(id, |s| std::mem::replace(&mut s.live.overdue_told, true));
                if told == Some(false) {
                    tracing::info!(session = %id, "session is over its time and still in a turn");
                }
            }
            Some(Action::Nudge) => self.nudge(id).await,
            Some(Action::AssumeIdle) => {
                self.set_activity(id, Activity::Idle);
                if let Some(record) = self.record(id) {
                    self.wake(&record.conversation);
                }
            }
            Some(Action::Abandon) => self.abandon(id),
            Some(Action::Stalled) => {
                let text =
                    format!("Session {id} made no progress for 10 minutes and is started anew when needed.");
                self.notice(format!("session_stalled:{id}"), text, false);
                ending::intend(self, id, Status::Failed, "no progress for 10 minutes");
                self.ask_to_end(id);
            }
            Some(Action::Reap(reason)) => {
                tracing::info!(session = %id, reason = reason.as_str(), "session reaped");
                ending::intend(self, id, Status::Completed, reason.as_str());
                self.ask_to_end(id);
            }
        }
    }

    /// Tells a session's task to end its runtime.
    pub(crate) fn ask_to_end(&self, id: SessionId) {
        let mailbox = self.update(id, |session| session.mailbox.clone()).flatten();
        if let Some(mailbox) = mailbox {
            mailbox.end();
        }
    }

    async fn nudge(self: &Arc<Self>, id: SessionId) {
        let Some(record) = self.record(id) else { return };
        let input = SessionInput {
            inbox_key: format!("system:nudge:{id}:{}", record.telemetry.turns),
            conversation: record.conversation.clone(),
            kind: InputKind::System,
            body: "Your last turn ended with an error of the model provider. Go on where you were, or find a way \
                   around it."
                .into(),
            tag: "system:error".into(),
            // Before what the peer said meanwhile; a person's words go first and do as well.
            steer: record.peer.is_some(),
        };
        match self.deps.journal.enqueue(input, now_ms()).await {
            Ok(nudge) => {
                self.update(id, |session| {
                    session.live.episode = Some(Episode::Nudged);
                    session.live.nudge = Some(nudge.ulid);
                });
                self.wake(&record.conversation);
            }
            Err(error) => tracing::error!(session = %id, %error, "nudge was not stored"),
        }
    }

    /// Ends a session that serves a peer and gets no answer from the provider. No other starts before one may.
    fn abandon(&self, id: SessionId) {
        let limited_until = self.update(id, |session| session.live.limited_until).flatten();
        let excused = self.update(id, |session| session.live.excused).unwrap_or(false);
        if excused {
            let until = lock(&self.provider).refused(now_ms(), limited_until);
            tracing::warn!(session = %id, until, "the model provider refuses a session for a peer");
        }
        ending::intend(self, id, Status::Failed, "the model provider refused its turn");
        self.ask_to_end(id);
    }

    /// What is known of a session, for the monitor and the reap guard.
    pub(crate) async fn facts(
        self: &Arc<Self>,
        id: SessionId,
        processes: &BTreeMap<i32, ProcStat>,
    ) -> Option<SessionFacts> {
        let config = self.config();
        let record = self.record(id)?;
        let now = now_ms();
        let filter = |state| InboxFilter {
            conversation: Some(record.conversation.clone()),
            state: Some(state),
            limit: 100,
            ..InboxFilter::default()
        };
        let journal = &self.deps.journal;
        let queued = journal.list(filter(InputState::Queued)).await.unwrap_or_default();
        let injected = journal.list(filter(InputState::Injected)).await.unwrap_or_default();
        let attached = match (&record.tmux_session, self.tmux()) {
            (Some(name), Some(tmux)) => tmux.attached(name).await.unwrap_or(true),
            _ => false,
        };
        let (foreign_children, ticks) = children(&record, processes);
        let (live, cpu_percent) = self.update(id, |session| {
            let cpu = &mut session.live.cpu;
            cpu.push_back((now, ticks));
            while cpu.front().is_some_and(|(at, _)| now - at > MINUTE_MS) && cpu.len() > 2 {
                cpu.pop_front();
            }
            let percent = cpu.front().filter(|(at, _)| *at < now).map(|(at, first)| {
                // A tick is 10 ms, so ticks per second are percent of a core.
                ticks.saturating_sub(*first) as f32 * 1000.0 / (now - at) as f32
            });
            (session.live.clone(), percent)
        })?;
        let minutes = if record.bound { config.idle_minutes_bound } else { config.idle_minutes };
        Some(SessionFacts {
            reap: ReapFacts {
                status: record.status,
                activity: record.activity,
                protected: config.protected.contains(&record.name),
                attached,
                age_ms: now - record.started_at,
                recovering: live.recovering,
                open_user_inputs: injected.iter().filter(|row| is_open(row, &live)).count(),
                queued_inputs: queued.len(),
                since_user_ms: live.last_user_at.filter(|_| record.bound).map(|at| now - at),
                subagents: live.subagents,
                foreign_children,
                cpu_percent,
            },
            bound: record.bound,
            idle_ms: live.idle_since.map(|at| now - at),
            idle_limit_ms: i64::from(minutes) * MINUTE_MS,
            max_duration_minutes: record.max_duration_minutes,
            episode: live.episode,
            serves_peer: record.peer.is_some(),
            silent_ms: now - record.telemetry.last_activity.max(live.adopted_at).unwrap_or(record.started_at),
        })
    }

    async fn sweep(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        let _ = tokio::task::spawn_blocking(move || {
            shared.end_orphans();
            shared.forget_old();
        })
        .await;
        for id in self.live_ids() {
            self.save_resume(id).await;
        }
        self.ask_about_overdue().await;
        if let Err(error) = self.deps.journal.purge(now_ms()).await {
            tracing::warn!(%error, "message journal was not purged");
        }
    }

    /// Ends processes that carry the id of a session of ours that is at its end, an hour after it.
    fn end_orphans(&self) {
        let state_dir = self.deps.paths.state().display().to_string();
        for pid in process::snapshot().into_keys() {
            let Some(id) = process::environment_value(pid, "INSTAR_SESSION_ID") else { continue };
            let Ok(id) = id.parse::<SessionId>() else { continue };
            if process::environment_value(pid, "INSTAR_STATE_DIR").as_deref() != Some(&state_dir) {
                continue;
            }
            let ended = self.record(id).and_then(|r| r.ended_at.filter(|_| r.status.is_final()));
            if ended.is_some_and(|at| now_ms() - at > HOUR_MS) {
                tracing::warn!(pid, session = %id, "orphan of an ended session terminated");
                process::signal(pid, Signal::TERM);
            }
        }
    }

    /// Drops records, and their logs, whose time is over. Returns the sessions.
    pub(crate) fn forget_old(&self) -> Vec<SessionId> {
        let now = now_ms();
        let mut finished: Vec<SessionRecord> = {
            let inner = self.inner();
            inner.sessions.values().map(|s| &s.record).filter(|r| r.status.is_final()).cloned().collect()
        };
        finished.sort_by_key(|r| std::cmp::Reverse(r.ended_at));
        let old = finished.iter().enumerate().filter(|(n, record)| {
            let hours = match (record.kind, record.status) {
                (SessionKind::Job, _) | (_, Status::Killed) => 1,
                _ => 24,
            };
            *n >= KEEP_FINISHED || record.ended_at.is_some_and(|at| now - at > hours * HOUR_MS)
        });
        let old: Vec<SessionId> = old.map(|(_, record)| record.id).collect();
        for id in &old {
            self.inner().sessions.remove(id);
            remove_files(&self.files(*id));
        }
        old
    }
}

/// Whether a person still waits. What was typed into the session itself is answered when its turn ends.
fn is_open(row: &InboxRow, live: &Live) -> bool {
    let typed_here = row.input.tag == LOCAL_TAG;
    row.input.kind == InputKind::User && (!typed_here || live.in_turn.contains(&row.ulid))
}

fn remove_files(files: &SessionFiles) {
    files.remove_live();
    event_log::remove(&files.log());
    for path in [files.exit(), files.startup_screen(), files.record()] {
        let _ = std::fs::remove_file(path);
    }
}

/// Processes below the runtime that are not part of it by nature, and CPU ticks of all of them together.
fn children(record: &SessionRecord, processes: &BTreeMap<i32, ProcStat>) -> (Option<usize>, u64) {
    let Some(child) = record.child_pid else { return (None, 0) };
    let Some(own) = processes.get(&child) else { return (None, 0) };
    let below = process::descendants(processes, child);
    let ticks = below.iter().filter_map(|pid| processes.get(pid)).map(|p| p.cpu_ticks).sum::<u64>();
    let foreign = below
        .iter()
        .filter(|pid| processes.get(pid).is_some_and(|p| p.state != 'Z'))
        .filter(|pid| !has_baseline_ancestor(**pid, child, processes))
        .count();
    let foreign =
        if record.transport == Transport::Tmux || record.host_pid.is_some() { Some(foreign) } else { None };
    (foreign, ticks + own.cpu_ticks)
}

/// What an MCP server starts belongs to it.
fn has_baseline_ancestor(pid: i32, root: i32, processes: &BTreeMap<i32, ProcStat>) -> bool {
    let mut at = pid;
    while at != root && at > 1 {
        if is_baseline_process(&process::command_line(at)) {
            return true;
        }
        let Some(facts) = processes.get(&at) else { return false };
        at = facts.ppid;
    }
    false
}
