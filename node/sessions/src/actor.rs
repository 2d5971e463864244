//! The task of one living session: connects to its runtime, delivers input, follows its events, notes its end.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use instar_durable::write_atomic;
use instar_state::ids::{ConversationKey, SessionId};
use instar_state::journal::{InboxFilter, InboxRow};
use instar_state::ports::{InputKind, InputState};
use instar_state::time::now_ms;
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use ulid::Ulid;
use uuid::Uuid;

use crate::delivery::{self, Delivery, Effect, INLINE_CHARS, input_uuid};
use crate::dialogs::{self, Step};
use crate::ending;
use crate::error::SessionError;
use crate::launch::{Pids, SessionFiles};
use crate::link::{Link, LinkEvent, ProcessWatch};
use crate::names;
use crate::process;
use crate::record::{Activity, SessionKind, SessionRecord, Status, Transport};
use crate::shared::{Command, Shared};
use crate::signals::{self, Signal as Event};
use crate::spawn;
use crate::stream;
use crate::supervisor::event_log;
use crate::supervisor::protocol::{Report, Request};
use crate::tmux::Tmux;
use crate::transcript;

/// Deliveries of one input, over all sessions, after which it is given up.
const MAX_ATTEMPTS: u32 = 10;
/// How long a fresh and a resumed runtime may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(90 + 15);
const RESUME_LIMIT: Duration = Duration::from_secs(120 + 15);
/// How long a supervisor may take to appear.
const APPEAR_LIMIT: Duration = Duration::from_secs(10);
/// Between the steps of an end in a terminal.
const GRACE_MS: i64 = 5_000;
/// Bytes of the event log that are handled at once.
const LOG_CHUNK: usize = 4 * 1024 * 1024;
/// Part of a transcript in which an input is looked for.
const TRANSCRIPT_WINDOW: u64 = 16 * 1024 * 1024;

pub(crate) struct Actor {
    shared: Arc<Shared>,
    id: SessionId,
    fence: u64,
    transport: Transport,
    conversation: ConversationKey,
    files: SessionFiles,
    commands: mpsc::Receiver<Command>,
    delivery: Delivery,
    /// Inputs given to this session, by the uuid that the runtime knows them by.
    given: HashMap<Uuid, Ulid>,
    link: Option<Link>,
    /// Whether rows may wait.
    look: bool,
    /// Nothing is tried before this instant, after a failed attempt.
    not_before: Option<Instant>,
    boot_deadline: Instant,
    boot_told: bool,
    /// Input whose steering already interrupted a turn.
    steered: Option<Ulid>,
    ending_since: Option<i64>,
    ending_step: u8,
    /// Last remarks of the runtime, for the message about a failed start.
    remarks: Vec<String>,
    interrupts: u64,
    /// Time of the newest hook report, Unix milliseconds.
    newest_report: i64,
    done: bool,
}

impl Actor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        record: &SessionRecord,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let resumed = record.runtime_session_id.is_some();
        let files = shared.files(record.id);
        Self {
            id: record.id,
            fence: record.owner.fence,
            transport: record.transport,
            conversation: record.conversation.clone(),
            files,
            commands,
            delivery: Delivery::new(record.transport, record.id),
            given: HashMap::new(),
            link: None,
            look: true,
            not_before: None,
            boot_deadline: Instant::now() + if resumed { RESUME_LIMIT } else { READY_LIMIT },
            boot_told: false,
            steered: None,
            ending_since: None,
            ending_step: 0,
            remarks: Vec::new(),
            interrupts: 0,
            newest_report: 0,
            done: false,
            shared,
        }
    }

    /// Goes on with an end that was begun before the node was restarted.
    pub(crate) fn resume_ending(&mut self) {
        self.ending_since = Some(now_ms());
    }

    /// Runs until the runtime has ended or the node stops; the runtime lives on when only the node stops.
    pub(crate) async fn run(mut self) {
        let cancel = self.shared.cancel.clone();
        if cancel.run_until_cancelled(self.connect()).await.is_none() {
            return;
        }
        while !self.done {
            let pause = self.pause();
            let Some(link) = self.link.as_mut() else { break };
            tokio::select! {
                () = cancel.cancelled() => {
                    self.shared.persist(self.id).await;
                    return;
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => break,
                },
                event = link.next() => self.link_event(event).await,
                () = tokio::time::sleep(pause) => {}
            }
            self.tick().await;
            self.pump().await;
        }
        ending::finish(&self.shared, self.id, &self.remarks).await;
    }

    /// Reaches the supervisor, or finds that there is none any more.
    async fn connect(&mut self) {
        let deadline = Instant::now() + APPEAR_LIMIT;
        self.recall_given().await;
        while Instant::now() < deadline {
            match self.try_connect().await {
                Ok((link, pids)) => {
                    self.shared.update(self.id, |session| {
                        session.record.host_pid = Some(pids.host);
                        session.record.child_pid = Some(pids.child);
                        session.record.child_start_time = Some(pids.child_start_time);
                    });
                    self.link = Some(link);
                    self.read_log().await;
                    self.shared.persist(self.id).await;
                    self.pump().await;
                    return;
                }
                Err(_) if self.files.exit().exists() => break,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        self.read_log().await;
    }

    async fn try_connect(&self) -> io::Result<(Link, Pids)> {
        if self.transport == Transport::Stdio {
            return Link::to_host(&self.files.socket()).await;
        }
        let pids = spawn::pids(&self.files).ok_or(io::ErrorKind::NotFound)?;
        let watch = ProcessWatch::new(pids.child, Some(pids.child_start_time));
        if !watch.is_alive() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let tmux = self.tmux().map_err(io::Error::other)?;
        let pane = tmux.pane(&self.tmux_name()).await.map_err(io::Error::other)?;
        Ok((Link::Pane { pane, watch }, pids))
    }

    /// Inputs that were given before this node knew the session.
    async fn recall_given(&mut self) {
        let filter = InboxFilter { session: Some(self.id), limit: 1000, ..InboxFilter::default() };
        for row in self.shared.deps.journal.list(filter).await.unwrap_or_default() {
            self.given.insert(input_uuid(row.ulid, self.id), row.ulid);
        }
    }

    fn pause(&self) -> Duration {
        let record = self.shared.record(self.id);
        let starting = record.is_some_and(|r| r.status == Status::Starting);
        let due = self.not_before.map(|at| at.saturating_duration_since(Instant::now()));
        let mut pause = self.delivery.pause();
        if self.ending_since.is_some() {
            pause = pause.min(Duration::from_millis(200));
        }
        if starting {
            pause =
                pause.min(Duration::from_millis(if self.transport == Transport::Tmux { 400 } else { 5_000 }));
        }
        due.map_or(pause, |due| pause.min(due))
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Wake => {
                self.look = true;
                self.steer().await;
            }
            Command::Hook(report) => {
                let events = signals::of_hook(&report, self.transport, self.newest_report);
                self.newest_report = self.newest_report.max(signals::report_time(&report));
                for event in events {
                    self.event(event).await;
                }
            }
            Command::Key(key, answer) => {
                let _ = answer.send(self.press(&key).await);
            }
            Command::Interrupt(answer) => {
                let _ = answer.send(self.interrupt().await);
            }
            Command::End => self.end().await,
        }
    }

    async fn link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Report(Report::Log { .. }) => self.read_log().await,
            LinkEvent::Report(Report::Refused { reason }) => {
                tracing::warn!(session = %self.id, reason, "the supervisor refused");
                if let Some(ulid) = self.delivery.open() {
                    self.postpone(ulid, &reason).await;
                }
            }
            LinkEvent::Report(Report::Exit { .. }) => {
                self.read_log().await;
                self.done = true;
            }
            LinkEvent::Report(Report::Hello { .. }) => {}
            LinkEvent::Closed => self.lost_link().await,
        }
    }

    /// The socket closed or the process in the pane ended. Only a dead runtime means an ended session.
    async fn lost_link(&mut self) {
        self.link = None;
        let record = self.shared.record(self.id);
        let alive = record
            .and_then(|r| r.child_pid.map(|pid| (pid, r.child_start_time)))
            .is_some_and(|(pid, start)| process::is_alive(pid, start));
        if alive && !self.files.exit().exists() {
            self.delivery.abandon();
            self.connect().await;
        }
        if self.link.is_none() {
            self.read_log().await;
            self.done = true;
        }
    }

    async fn read_log(&mut self) {
        if self.transport != Transport::Stdio {
            return;
        }
        loop {
            let offset = self.shared.record(self.id).map_or(0, |r| r.log_offset);
            let path = self.files.log();
            let read =
                tokio::task::spawn_blocking(move || event_log::read_from(&path, offset, LOG_CHUNK)).await;
            let lines = match read {
                Ok(Ok(lines)) => lines,
                Ok(Err(error)) => return tracing::warn!(session = %self.id, %error, "event log was not read"),
                Err(_) => return,
            };
            let Some((end, _)) = lines.last() else { return };
            let end = *end;
            for (_, line) in &lines {
                let Some(event) = stream::parse(line) else { continue };
                for event in signals::of_stream(event) {
                    self.event(event).await;
                }
            }
            self.shared.update(self.id, |session| session.record.log_offset = end);
        }
    }

    async fn event(&mut self, event: Event) {
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
            Event::TurnEnded { error, cost_usd } => self.turn_ended(error, cost_usd).await,
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
                let until = resets_at.map(|s| format!(" until {}", instar_state::time::rfc3339(s * 1000)));
                let text = format!("The model provider's limit is reached{}.", until.unwrap_or_default());
                self.shared.notice("quota", text, true);
            }
            Event::SeenIdle if before == Activity::Busy => self.stopped_without_a_word().await,
            Event::Asking => self.refuse_question().await,
            Event::SeenIdle | Event::Ready | Event::Working | Event::Compacting => {}
        }
    }

    async fn became_ready(&mut self) {
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

    async fn identified(
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
    async fn refuse_question(&mut self) {
        let serves_peer = self.shared.record(self.id).is_some_and(|r| r.peer.is_some());
        if serves_peer && self.transport == Transport::Tmux && self.press("Escape").await.is_ok() {
            tracing::warn!(session = %self.id, "a permission question of a session for a peer was refused");
            self.shared.set_activity(self.id, Activity::Idle);
            self.look = true;
        }
    }

    /// A turn in a terminal that failed or was interrupted is only seen by its silence; the screen tells which.
    async fn stopped_without_a_word(&mut self) {
        let screen = match self.tmux() {
            Ok(tmux) => tmux.capture(&self.tmux_name(), 0, false).await.unwrap_or_default(),
            Err(_) => String::new(),
        };
        let error = signals::error_on_screen(&screen).unwrap_or_else(|| signals::TurnError {
            text: String::new(),
            quota: false,
            interrupted: true,
        });
        let activity = if error.interrupted { Activity::Idle } else { Activity::ErrorStalled };
        self.shared.set_activity(self.id, activity);
        self.turn_ended(Some(error), None).await;
    }

    async fn turn_ended(&mut self, error: Option<signals::TurnError>, cost_usd: Option<f64>) {
        let failed = error.as_ref().is_some_and(|e| !e.interrupted);
        let in_turn = self.shared.update(self.id, |session| {
            session.record.telemetry.turns += 1;
            session.record.telemetry.cost_usd = cost_usd.unwrap_or(session.record.telemetry.cost_usd);
            if failed {
                session.live.error_episode = error.as_ref().is_some_and(|e| !e.quota);
            } else {
                session.live.error_episode = false;
                session.live.nudged = false;
                session.live.overdue_told = false;
            }
            std::mem::take(&mut session.live.in_turn)
        });
        if error.is_none() {
            self.finished(&in_turn.unwrap_or_default());
        }
        if let Some(error) = error.filter(|e| !e.interrupted) {
            let cause = if error.quota { "quota" } else { "turn_failed" };
            let text = format!("A turn of session {} ended with an error: {}", self.id, error.text);
            self.shared.notice(cause, text, error.quota);
        }
        self.look = true;
        self.steered = None;
        self.shared.persist(self.id).await;
        self.shared.save_resume(self.id).await;
        self.shared.announce("session-turn-ended", json!({"session": self.id, "failed": failed}));
        self.complete_task(failed).await;
    }

    /// A task session is done when its turn ended and nothing is left to do.
    async fn complete_task(&mut self, failed: bool) {
        let Some(record) = self.shared.record(self.id) else { return };
        let is_task = matches!(
            record.kind,
            SessionKind::Job | SessionKind::AdHoc | SessionKind::Triage | SessionKind::Pipe
        );
        let subagents = self.shared.update(self.id, |session| session.live.subagents).unwrap_or(0);
        if !is_task || subagents > 0 || record.status != Status::Running {
            return;
        }
        if !matches!(self.shared.deps.journal.next_queued(&self.conversation).await, Ok(None)) {
            return;
        }
        let (status, reason) =
            if failed { (Status::Failed, "the last turn failed") } else { (Status::Completed, "done") };
        ending::intend(&self.shared, self.id, status, reason);
        self.end().await;
    }

    fn ulid_of(&self, uuid: &str) -> Option<Ulid> {
        Uuid::try_parse(uuid).ok().and_then(|uuid| self.given.get(&uuid).copied())
    }

    /// The runtime has the input: proven by its id coming back.
    async fn input_seen(&mut self, ulid: Ulid) {
        let journal = &self.shared.deps.journal;
        let open = self.delivery.open() == Some(ulid);
        let row = journal.get(ulid).await.ok().flatten();
        let Some(row) = row.filter(|row| row.input.conversation == self.conversation) else { return };
        if row.state == InputState::Injected && !open {
            return;
        }
        match journal.mark_injected(ulid, self.id, now_ms()).await {
            Ok(state) => {
                self.delivery.confirmed(ulid);
                self.look = true;
                self.shared.update(self.id, |session| {
                    if !session.live.in_turn.contains(&ulid) {
                        session.live.in_turn.push(ulid);
                    }
                    if row.input.kind == InputKind::User {
                        session.live.last_user_at = Some(now_ms());
                    }
                });
                self.shared.notices().resolve("injection_unverified");
                self.shared.announce(
                    "input-state",
                    json!({"ulid": ulid.to_string(), "state": state, "session": self.id}),
                );
            }
            Err(error) => tracing::error!(session = %self.id, %error, "confirmed input was not marked"),
        }
    }

    fn finished(&self, ulids: &[Ulid]) {
        const KEPT: usize = 50;
        self.shared.update(self.id, |session| {
            let list = &mut session.record.finished_inputs;
            list.extend(ulids.iter().filter(|u| !list.contains(u)).copied().collect::<Vec<_>>());
            let extra = list.len().saturating_sub(KEPT);
            list.drain(..extra);
        });
    }

    async fn tick(&mut self) {
        self.boot_tick().await;
        if self.ending_since.is_some() {
            self.ending_tick().await;
        }
        if let Some(effect) = self.delivery.tick(now_ms()) {
            if let Some(ulid) = self.delivery.open()
                && self.transcript_holds(ulid).await
            {
                return self.input_seen(ulid).await;
            }
            self.perform(effect).await;
        }
    }

    /// Gives waiting input to the runtime, one at a time.
    async fn pump(&mut self) {
        while self.look && !self.done {
            let Some(record) = self.shared.record(self.id) else { return };
            let too_early = self.not_before.is_some_and(|at| Instant::now() < at);
            let usable = record.status == Status::Running && record.owner.fence == self.fence;
            if too_early || !usable || self.link.is_none() || !self.delivery.may_begin(record.activity) {
                return;
            }
            self.not_before = None;
            let row = match self.shared.deps.journal.next_queued(&self.conversation).await {
                Ok(Some(row)) => row,
                Ok(None) => {
                    self.look = false;
                    return;
                }
                Err(error) => {
                    tracing::error!(session = %self.id, %error, "waiting input was not read");
                    self.not_before = Some(Instant::now() + Duration::from_secs(5));
                    return;
                }
            };
            self.deliver(row).await;
        }
    }

    async fn deliver(&mut self, row: InboxRow) {
        let ulid = row.ulid;
        if row.session == Some(self.id) && self.transcript_holds(ulid).await {
            return self.input_seen(ulid).await;
        }
        if row.attempts >= MAX_ATTEMPTS {
            return self.give_up(ulid, "it was given to sessions ten times and never answered").await;
        }
        match self.shared.deps.journal.begin_attempt(ulid, self.id).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return self.postpone(ulid, &error.to_string()).await,
        }
        let text = match self.frame(&row).await {
            Ok(text) => text,
            Err(error) => return self.postpone(ulid, &error.to_string()).await,
        };
        self.given.insert(input_uuid(ulid, self.id), ulid);
        let effect = self.delivery.begin(now_ms(), ulid, text);
        self.perform(effect).await;
    }

    async fn frame(&self, row: &InboxRow) -> io::Result<String> {
        let tag: String = row.input.tag.chars().filter(|c| !matches!(c, '[' | ']' | '\n' | '\r')).collect();
        let body = match row.input.kind {
            InputKind::System => row.input.body.clone(),
            InputKind::User | InputKind::Agent => names::escape_body(&row.input.body),
        };
        if body.chars().count() <= INLINE_CHARS {
            return Ok(delivery::framed(&tag, row.ulid, &body));
        }
        let dir = self.files.inputs();
        let path = dir.join(format!("{}.txt", row.ulid));
        let text = delivery::framed_file(&tag, row.ulid, &body, &path);
        tokio::task::spawn_blocking(move || {
            instar_durable::create_dir_private(&dir)?;
            write_atomic(&path, body.as_bytes(), 0o600).map_err(|e| e.source)
        })
        .await
        .map_err(io::Error::other)??;
        Ok(text)
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Write { text, uuid } => {
                let session = self.shared.record(self.id).and_then(|r| r.runtime_session_id);
                let session = session.unwrap_or_else(|| self.id.to_string());
                let line = self.shared.runtime.input_line(&session, &uuid.to_string(), &text);
                let Some(link) = self.link.as_mut() else { return self.delivery.abandon() };
                if let (Err(error), Some(ulid)) =
                    (link.request(&Request::Write { line }).await, self.delivery.open())
                {
                    self.postpone(ulid, &error.to_string()).await;
                }
            }
            Effect::Type { ulid, text, clear } => {
                if let Err(error) = self.type_text(ulid, &text, clear).await {
                    self.postpone(ulid, &error.to_string()).await;
                }
            }
            Effect::Press(keys) => {
                for key in keys {
                    if let Err(error) = self.press(key).await {
                        tracing::debug!(session = %self.id, %error, "key was not pressed");
                    }
                    tokio::time::sleep(Duration::from_millis(150)).await;
                }
            }
            Effect::Unverified { ulid } => {
                let reason = "the runtime did not confirm the message within its time";
                self.shared
                    .notices()
                    .degrade("injection_unverified", &format!("Session {}: {reason}.", self.id));
                let _ = self.shared.deps.journal.note_error(ulid, reason).await;
                self.look = true;
                self.shared.touch();
            }
            Effect::GiveUp { ulid } => {
                self.give_up(ulid, "the runtime did not confirm the message in three rounds").await;
            }
        }
    }

    async fn type_text(&mut self, ulid: Ulid, text: &str, clear: bool) -> Result<(), SessionError> {
        let failed = |error: crate::tmux::TmuxError| SessionError::Failed(error.to_string());
        let tmux = self.tmux()?;
        let Some(Link::Pane { pane, .. }) = &self.link else {
            return Err(SessionError::Failed("no pane".into()));
        };
        if clear {
            for _ in 0..text.lines().count().clamp(1, 40) * 2 {
                tmux.key(pane, "C-u").await.map_err(failed)?;
            }
        }
        tmux.paste(pane, &ulid.to_string(), text).await.map_err(failed)?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        tmux.key(pane, "Enter").await.map_err(failed)
    }

    /// The attempt did not reach the runtime; it is made again in a moment.
    async fn postpone(&mut self, ulid: Ulid, reason: &str) {
        tracing::warn!(session = %self.id, %ulid, reason, "input was not given");
        self.delivery.abandon();
        self.look = true;
        self.not_before = Some(Instant::now() + Duration::from_secs(2));
        let _ = self.shared.deps.journal.note_error(ulid, reason).await;
    }

    async fn give_up(&mut self, ulid: Ulid, reason: &str) {
        self.look = true;
        if let Err(error) = self.shared.deps.journal.mark_failed(ulid, reason, now_ms()).await {
            tracing::error!(session = %self.id, %ulid, %error, "failed input was not marked");
            self.not_before = Some(Instant::now() + Duration::from_secs(5));
            return;
        }
        let text = format!("Message {ulid} could not be given to session {}: {reason}.", self.id);
        self.shared.notice(format!("input_failed:{ulid}"), text, true);
        self.shared.announce("input-state", json!({"ulid": ulid.to_string(), "state": InputState::Failed}));
    }

    /// A waiting input that may not wait interrupts the running turn, once.
    async fn steer(&mut self) {
        let busy = self.shared.record(self.id).is_some_and(|r| r.activity == Activity::Busy);
        if !busy {
            return;
        }
        let Ok(Some(row)) = self.shared.deps.journal.next_queued(&self.conversation).await else { return };
        if row.input.steer && self.steered != Some(row.ulid) {
            self.steered = Some(row.ulid);
            if let Err(error) = self.interrupt().await {
                tracing::debug!(session = %self.id, %error, "turn was not interrupted");
            }
        }
    }

    async fn interrupt(&mut self) -> Result<(), SessionError> {
        let busy = self.shared.record(self.id).is_some_and(|r| r.activity == Activity::Busy);
        if !busy {
            return Err(SessionError::NotBusy);
        }
        if self.transport == Transport::Tmux {
            self.press("Escape").await?;
            // An interrupted turn ends without a report.
            self.shared.set_activity(self.id, Activity::Idle);
            self.look = true;
            return Ok(());
        }
        self.interrupts += 1;
        let line = self.shared.runtime.interrupt_line(&format!("instar-interrupt-{}", self.interrupts));
        let link = self.link.as_mut().ok_or(SessionError::NotBusy)?;
        link.request(&Request::Write { line }).await.map_err(|e| SessionError::Failed(e.to_string()))
    }

    async fn press(&mut self, key: &str) -> Result<(), SessionError> {
        let tmux = self.tmux()?;
        let Some(Link::Pane { pane, .. }) = &self.link else {
            return Err(SessionError::Unsupported("a session over stdio has no keyboard".into()));
        };
        tmux.key(pane, key).await.map_err(|e| SessionError::Failed(e.to_string()))
    }

    fn tmux(&self) -> Result<Tmux, SessionError> {
        self.shared
            .tmux()
            .ok_or_else(|| SessionError::RuntimeMissing(crate::tmux::TmuxError::Missing.to_string()))
    }

    fn tmux_name(&self) -> String {
        self.shared.record(self.id).and_then(|r| r.tmux_session).unwrap_or_default()
    }

    async fn transcript_holds(&self, ulid: Ulid) -> bool {
        let Some(record) = self.shared.record(self.id) else { return false };
        let found = || {
            let runtime_id = record.runtime_session_id.clone()?;
            self.shared.runtime.transcript(&self.shared.deps.environment, &record.cwd, &runtime_id)
        };
        let Some(path) = record.transcript_path.clone().or_else(found) else { return false };
        let read =
            tokio::task::spawn_blocking(move || transcript::holds_input(&path, ulid, TRANSCRIPT_WINDOW));
        matches!(read.await, Ok(Ok(true)))
    }

    /// Answers known questions while the runtime boots, and says so when it does not get ready.
    async fn boot_tick(&mut self) {
        let starting = self.shared.record(self.id).is_some_and(|r| r.status == Status::Starting);
        if !starting || self.ending_since.is_some() {
            return;
        }
        let late = Instant::now() >= self.boot_deadline;
        let mut screen = String::new();
        if self.transport == Transport::Tmux {
            let Ok(tmux) = self.tmux() else { return };
            screen = tmux.capture(&self.tmux_name(), 0, false).await.unwrap_or_default();
            match dialogs::step(self.shared.runtime.dialogs(), &screen) {
                Step::Nothing => {}
                Step::Key { dialog, key } => {
                    tracing::info!(session = %self.id, dialog, key, "startup question answered");
                    let _ = self.press(key).await;
                }
                Step::Ask { dialog } => {
                    let text = format!(
                        "Session {} asks a question at its start ({dialog}) that only you may answer: \
                         instar session attach {}",
                        self.id,
                        self.tmux_name()
                    );
                    self.shared.notice(format!("startup_question:{}", self.id), text, true);
                    self.shared.set_activity(self.id, Activity::WaitingInput);
                }
            }
        }
        if late && !self.boot_told {
            self.boot_told = true;
            self.not_ready(&screen).await;
        }
    }

    async fn not_ready(&mut self, screen: &str) {
        let seen = if screen.is_empty() { self.remarks.join("\n") } else { screen.to_owned() };
        let path = self.files.startup_screen();
        let redacted = instar_redact::redact(&seen).into_owned();
        let _ = write_atomic(&path, redacted.as_bytes(), 0o600);
        let text = format!(
            "Session {} did not get ready in time. What it showed is in {}.",
            self.id,
            path.display()
        );
        self.shared.notice("session_not_ready", text, true);
        ending::intend(&self.shared, self.id, Status::Failed, "the runtime did not get ready");
        self.end().await;
    }

    /// Asks the runtime to end; [`Actor::ending_tick`] does it if it does not.
    async fn end(&mut self) {
        if self.ending_since.is_some() {
            return;
        }
        self.ending_since = Some(now_ms());
        self.shared.save_resume(self.id).await;
        let idle = self.shared.record(self.id).is_some_and(|r| r.activity == Activity::Idle);
        self.shared.move_to(self.id, Status::Ending);
        self.shared.persist(self.id).await;
        match self.link.as_mut() {
            Some(link @ Link::Host { .. }) => {
                if link.request(&Request::End).await.is_err() {
                    self.signal_group(Signal::KILL);
                }
            }
            Some(Link::Pane { .. }) if idle => {
                let _ = self.type_text(Ulid::nil(), "/exit", false).await;
            }
            _ => {
                self.ending_step = 1;
                self.signal_group(Signal::TERM);
            }
        }
    }

    async fn ending_tick(&mut self) {
        let Some(since) = self.ending_since else { return };
        let waited = now_ms() - since;
        // Over stdio the supervisor takes these steps itself; this is for one that hangs.
        let head_start = if self.transport == Transport::Stdio { 2 * GRACE_MS } else { 0 };
        let due = i64::from(self.ending_step + 1) * GRACE_MS + head_start;
        if waited < due {
            return;
        }
        self.ending_step += 1;
        match self.ending_step {
            1 => self.signal_group(Signal::TERM),
            2 => self.signal_group(Signal::KILL),
            3 if self.transport == Transport::Tmux => {
                if let Ok(tmux) = self.tmux() {
                    let _ = tmux.kill(&self.tmux_name()).await;
                }
            }
            _ => {}
        }
    }

    fn signal_group(&self, signal: Signal) {
        let Some(record) = self.shared.record(self.id) else { return };
        let Some(pid) = record.child_pid else { return };
        if process::is_alive(pid, record.child_start_time) {
            process::signal_group(pid, signal);
        }
    }
}
