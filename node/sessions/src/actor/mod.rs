//! The task of one living session: connects to its runtime, delivers input, follows its events, notes its end.

mod boot;
mod events;
mod input;
mod keyboard;
mod stop;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use instar_state::ids::{ConversationKey, SessionId};
use instar_state::journal::InboxFilter;
use instar_state::ports::InputState;
use instar_state::time::now_ms;
use tokio::time::Instant;
use ulid::Ulid;
use uuid::Uuid;

use crate::delivery::{Delivery, input_uuid};
use crate::dialogs::Dialog;
use crate::launch::{Pids, SessionFiles};
use crate::link::{Link, LinkEvent, ProcessWatch};
use crate::mailbox::{Call, Command, Letters};
use crate::record::{SessionRecord, Status, Transport};
use crate::shared::Shared;
use crate::signals;
use crate::supervisor::event_log;
use crate::supervisor::protocol::Report;
use crate::{ending, process, spawn, stream};

/// How long a fresh and a resumed runtime may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(90 + 15);
const RESUME_LIMIT: Duration = Duration::from_secs(120 + 15);
/// How long a supervisor may take to appear.
const APPEAR_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of the event log that are handled at once.
const LOG_CHUNK: usize = 4 * 1024 * 1024;

pub(crate) struct Actor {
    shared: Arc<Shared>,
    id: SessionId,
    fence: u64,
    transport: Transport,
    conversation: ConversationKey,
    files: SessionFiles,
    letters: Letters,
    delivery: Delivery,
    /// Inputs given to this session, by the uuid that the runtime knows them by.
    given: HashMap<Uuid, Ulid>,
    link: Option<Link>,
    /// Whether rows may wait.
    look: bool,
    /// Nothing is tried before this instant, after a failed attempt.
    not_before: Option<Instant>,
    /// Attempts in a row that this host kept from the runtime.
    troubles: u32,
    boot_deadline: Instant,
    boot_told: bool,
    /// The owner's own answers to questions at the start, once they are needed.
    own_dialogs: Option<Arc<[Dialog]>>,
    /// A turn ended and what follows from it is not drawn yet: whether it failed.
    turn_over: Option<bool>,
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
    pub(crate) fn new(shared: Arc<Shared>, record: &SessionRecord, letters: Letters) -> Self {
        let resumed = record.runtime_session_id.is_some();
        let files = shared.files(record.id);
        Self {
            id: record.id,
            fence: record.owner.fence,
            transport: record.transport,
            conversation: record.conversation.clone(),
            files,
            letters,
            delivery: Delivery::new(record.transport, record.id),
            given: HashMap::new(),
            link: None,
            look: true,
            not_before: None,
            troubles: 0,
            boot_deadline: Instant::now() + if resumed { RESUME_LIMIT } else { READY_LIMIT },
            boot_told: false,
            own_dialogs: None,
            turn_over: None,
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
                call = self.letters.next() => match call {
                    Some(Call::End) => self.end().await,
                    Some(Call::Look) => {
                        self.look = true;
                        self.steer().await;
                    }
                    Some(Call::Command(command)) => self.command(command).await,
                    None => break,
                },
                event = link.next() => self.link_event(event).await,
                () = tokio::time::sleep(pause) => {}
            }
            self.settle_turn().await;
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
                    self.settle_turn().await;
                    self.pump().await;
                    return;
                }
                Err(_) if self.files.exit().exists() || self.is_deserted() => break,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        self.read_log().await;
        self.settle_turn().await;
    }

    /// Whether the process that the node would reach has died: its supervisor, or in a terminal the runtime itself. A
    /// runtime whose supervisor was killed may live on for a moment, but nobody can give it anything.
    fn is_deserted(&self) -> bool {
        let known = spawn::pids(&self.files);
        match self.transport {
            Transport::Stdio => {
                let started = || self.shared.record(self.id).and_then(|record| record.host_pid);
                let host = known.map(|pids| pids.host).or_else(started);
                host.is_some_and(|pid| !process::is_alive(pid, None))
            }
            Transport::Tmux => {
                known.is_some_and(|pids| !process::is_alive(pids.child, Some(pids.child_start_time)))
            }
        }
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
        let at_rest = self.shared.record(self.id).is_none_or(|r| r.activity.is_at_rest());
        let filter = InboxFilter { session: Some(self.id), limit: 1000, ..InboxFilter::default() };
        for row in self.shared.deps.journal.list(filter).await.unwrap_or_default() {
            self.given.insert(input_uuid(row.ulid, self.id), row.ulid);
            match row.state {
                InputState::Queued => self.delivery.left_over(&row.input.body),
                InputState::Injected if !at_rest => self.begun(row.ulid),
                _ => {}
            }
        }
    }

    /// The turn of this input has begun and, as far as is known, not ended.
    pub(super) fn begun(&self, ulid: Ulid) {
        self.shared.update(self.id, |session| {
            let known =
                session.live.in_turn.contains(&ulid) || session.record.finished_inputs.contains(&ulid);
            if !known {
                session.live.in_turn.push(ulid);
            }
        });
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
            Command::Hook(report) => {
                if !self.is_first(&report.id) {
                    return;
                }
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

    /// Whether this report comes for the first time: one whose answer was lost comes again through the spool.
    fn is_first(&self, report: &str) -> bool {
        const KEPT: usize = 100;
        if report.is_empty() {
            return true;
        }
        let first = self.shared.update(self.id, |session| {
            let seen = &mut session.record.recent_reports;
            if seen.iter().any(|id| id == report) {
                return false;
            }
            seen.push(report.chars().take(64).collect());
            let extra = seen.len().saturating_sub(KEPT);
            seen.drain(..extra);
            true
        });
        first != Some(false)
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
            self.look = true;
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
            if lines.is_empty() {
                return;
            }
            for (end, line) in lines {
                for event in stream::parse(&line).into_iter().flat_map(signals::of_stream) {
                    self.event(event).await;
                }
                self.shared.update(self.id, |session| session.record.log_offset = end);
            }
        }
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
}
