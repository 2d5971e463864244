//! What the events of the runtime change.

use instar_state::time::now_ms;
use serde_json::json;

use super::Actor;
use crate::ending;
use crate::monitor::Episode;
use crate::record::{Activity, SessionKind, Status, Transport};
use crate::shared::lock;
use crate::signals::{self, ErrorCause, Signal as Event};

impl Actor {
    pub(super) async fn event(&mut self, event: Event) {
        let now = now_ms();
        let before = self.shared.update(self.id, |session| {
            session.record.telemetry.event_count += 1;
            session.record.telemetry.last_activity = Some(now);
            session.record.activity
        });
        let Some(before) = before else { return };
        let after = signals::activity_after(before, &event);
        // Work shows readiness as well, should the report of the start have been lost.
        if matches!(event, Event::Ready | Event::Working | Event::TurnEnded { .. } | Event::SeenIdle) {
            self.became_ready().await;
        }
        if after != before {
            self.shared.set_activity(self.id, after);
        }
        match event {
            Event::Identified { session_id, transcript, model } => {
                self.identified(session_id, transcript, model).await;
            }
            Event::InputSeen(ulid) => self.input_seen(ulid).await,
            Event::InputTaken(uuid) => {
                if let Some(ulid) = self.ulid_of(&uuid) {
                    self.input_seen(ulid).await;
                }
            }
            Event::InputFinished(uuid) => {
                if let Some(ulid) = self.ulid_of(&uuid) {
                    self.finished(&[ulid]);
                }
            }
            Event::ToolCalled => {
                self.shared.update(self.id, |session| session.record.telemetry.tools_used += 1);
            }
            Event::TurnEnded { error, cost_usd } => self.turn_ended(error, cost_usd),
            Event::Subagent { started } => {
                self.shared.update(self.id, |session| {
                    if started {
                        session.record.telemetry.subagents_spawned += 1;
                        session.live.subagents += 1;
                    } else {
                        session.live.subagents = session.live.subagents.saturating_sub(1);
                    }
                });
            }
            Event::Remark(text) => {
                self.remarks.push(text);
                let extra = self.remarks.len().saturating_sub(20);
                self.remarks.drain(..extra);
            }
            Event::Limited { resets_at } => {
                let resets_at = resets_at.map(|seconds| seconds.saturating_mul(1000));
                self.shared.update(self.id, |session| session.live.limited_until = resets_at);
                let until = resets_at.map(|at| format!(" until {}", instar_state::time::rfc3339(at)));
                let text = format!("The model provider's limit is reached{}.", until.unwrap_or_default());
                self.shared.notice("quota", text, true);
            }
            Event::SeenIdle if before == Activity::Busy => self.stopped_without_a_word().await,
            Event::Asking => self.refuse_question().await,
            Event::SeenIdle | Event::Ready | Event::Working | Event::Compacting => {}
        }
    }

    pub(super) async fn became_ready(&mut self) {
        let first = self.shared.update(self.id, |session| {
            let first = session.record.ready_at.is_none();
            session.record.ready_at.get_or_insert_with(now_ms);
            session.live.recovering = false;
            first
        });
        if first != Some(true) {
            return;
        }
        self.shared.update(self.id, |session| {
            if session.record.status == Status::Starting {
                session.record.status = Status::Running;
            }
        });
        self.shared.notices().resolve("runtime_missing");
        self.shared.persist(self.id).await;
        self.shared.announce("session-ready", json!({"session": self.id}));
        self.look = true;
    }

    pub(super) async fn identified(
        &mut self,
        session_id: Option<String>,
        transcript: Option<std::path::PathBuf>,
        model: Option<String>,
    ) {
        let changed = self.shared.update(self.id, |session| {
            let record = &mut session.record;
            let before = (record.runtime_session_id.clone(), record.transcript_path.clone());
            record.runtime_session_id = session_id.or(record.runtime_session_id.take());
            record.transcript_path = transcript.or(record.transcript_path.take());
            record.model = record.model.take().or(model);
            before != (record.runtime_session_id.clone(), record.transcript_path.clone())
        });
        if changed == Some(true) {
            self.shared.persist(self.id).await;
            self.shared.save_resume(self.id).await;
        }
    }

    /// What a session that serves a peer would have to ask for is not permitted, and nobody is there to say so.
    pub(super) async fn refuse_question(&mut self) {
        let serves_peer = self.shared.record(self.id).is_some_and(|r| r.peer.is_some());
        if serves_peer && self.transport == Transport::Tmux && self.press("Escape").await.is_ok() {
            tracing::warn!(session = %self.id, "a permission question of a session for a peer was refused");
            self.shared.set_activity(self.id, Activity::Idle);
            self.look = true;
        }
    }

    /// A turn in a terminal that failed or was interrupted is only seen by its silence; the screen tells which.
    pub(super) async fn stopped_without_a_word(&mut self) {
        let screen = match self.tmux() {
            Ok(tmux) => tmux.capture(&self.tmux_name(), 0, false).await.unwrap_or_default(),
            Err(_) => String::new(),
        };
        let error = signals::error_on_screen(&screen)
            .unwrap_or_else(|| signals::TurnError { text: String::new(), cause: ErrorCause::Interrupted });
        let interrupted = error.cause == ErrorCause::Interrupted;
        let activity = if interrupted { Activity::Idle } else { Activity::ErrorStalled };
        self.shared.set_activity(self.id, activity);
        self.turn_ended(Some(error), None);
    }

    pub(super) fn turn_ended(&mut self, error: Option<signals::TurnError>, cost_usd: Option<f64>) {
        if error.is_none() {
            lock(&self.shared.provider).answered();
        }
        let done_well = error.is_none();
        let error = error.filter(|e| e.cause != ErrorCause::Interrupted);
        let failed = error.is_some();
        let in_turn = self.shared.update(self.id, |session| {
            session.record.telemetry.turns += 1;
            session.record.telemetry.cost_usd = cost_usd.unwrap_or(session.record.telemetry.cost_usd);
            session.live.excused = error.as_ref().is_some_and(|e| e.cause != ErrorCause::Request);
            if let Some(error) = &error {
                let quota = error.cause == ErrorCause::Quota;
                session.live.episode = Some(Episode::after(session.live.episode, quota));
            } else {
                session.live.episode = None;
                session.live.limited_until = None;
                session.live.overdue_told = false;
            }
            std::mem::take(&mut session.live.in_turn)
        });
        if done_well {
            self.finished(&in_turn.unwrap_or_default());
        }
        if let Some(error) = error {
            let quota = error.cause == ErrorCause::Quota;
            let text = format!("A turn of session {} ended with an error: {}", self.id, error.text);
            self.shared.notice(if quota { "quota" } else { "turn_failed" }, text, quota);
        }
        self.look = true;
        self.steered = None;
        self.turn_over = Some(failed);
        self.shared.announce("session-turn-ended", json!({"session": self.id, "failed": failed}));
    }

    /// Draws what follows from the end of a turn, once all is heard that the runtime said so far: after a restart
    /// the turns before it may be read once more, and the next one may have begun.
    pub(super) async fn settle_turn(&mut self) {
        let Some(failed) = self.turn_over.take() else { return };
        self.shared.persist(self.id).await;
        self.shared.save_resume(self.id).await;
        self.complete_task(failed).await;
    }

    /// A task session is done when its turn ended and nothing is left to do.
    pub(super) async fn complete_task(&mut self, failed: bool) {
        let Some(record) = self.shared.record(self.id) else { return };
        let is_task = matches!(
            record.kind,
            SessionKind::Job | SessionKind::AdHoc | SessionKind::Triage | SessionKind::Pipe
        );
        let needed = self.shared.update(self.id, |s| s.live.subagents > 0 || s.live.moving).unwrap_or(false);
        if !is_task
            || record.taken_over
            || !record.activity.is_at_rest()
            || needed
            || record.status != Status::Running
            || self.is_watched().await
        {
            return;
        }
        if !matches!(self.shared.deps.journal.next_queued(&self.conversation, now_ms()).await, Ok(None)) {
            return;
        }
        let (status, reason) =
            if failed { (Status::Failed, "the last turn failed") } else { (Status::Completed, "done") };
        ending::intend(&self.shared, self.id, status, reason);
        self.end().await;
    }

    /// Whether a person looks at the terminal: it is not closed in front of them.
    pub(super) async fn is_watched(&self) -> bool {
        match self.tmux() {
            Ok(tmux) if self.transport == Transport::Tmux => {
                tmux.attached(&self.tmux_name()).await.unwrap_or(true)
            }
            _ => false,
        }
    }
}
