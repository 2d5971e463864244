//! Waiting input on its way to the runtime.

use std::io;
use std::time::Duration;

use instar_durable::write_atomic;
use instar_state::journal::InboxRow;
use instar_state::ports::{InputKind, InputState};
use instar_state::time::now_ms;
use serde_json::json;
use tokio::time::Instant;
use ulid::Ulid;
use uuid::Uuid;

use super::Actor;
use crate::delivery::{self, Effect, INLINE_CHARS, input_uuid};
use crate::record::{Activity, SessionRecord, Status};
use crate::supervisor::protocol::Request;
use crate::{names, transcript};

/// Deliveries of one input, over all sessions, after which it is given up.
const MAX_ATTEMPTS: u32 = 10;
/// Part of a transcript in which an input is looked for.
const TRANSCRIPT_WINDOW: u64 = 16 * 1024 * 1024;

impl Actor {
    /// Gives waiting input to the runtime, one at a time.
    pub(super) async fn pump(&mut self) {
        self.give_waiting().await;
        let giving = self.delivery.open().is_some();
        let was = self.shared.update(self.id, |session| std::mem::replace(&mut session.live.giving, giving));
        if was == Some(true) && !giving {
            self.shared.touch();
        }
    }

    async fn give_waiting(&mut self) {
        while self.look && !self.done {
            let Some(record) = self.shared.record(self.id) else { return };
            let too_early = self.not_before.is_some_and(|at| Instant::now() < at);
            let usable = record.status == Status::Running && record.owner.fence == self.fence;
            if too_early || !usable || self.link.is_none() || !self.delivery.may_begin(record.activity) {
                return;
            }
            self.not_before = None;
            let row = match self.shared.deps.journal.next_queued(&self.conversation, now_ms()).await {
                Ok(Some(row)) => row,
                Ok(None) => {
                    self.look = false;
                    return;
                }
                Err(error) => {
                    self.trouble(&format!("waiting messages cannot be read: {error}"));
                    return;
                }
            };
            if stalled_for(&record, &row) {
                self.look = false;
                return;
            }
            // From here on nobody moves the session elsewhere before the turn of this input has ended.
            let begun = self.shared.update(self.id, |session| {
                let begun = !session.live.moving && !session.live.replaced;
                session.live.giving |= begun;
                begun
            });
            if begun != Some(true) {
                return;
            }
            self.deliver(row).await;
        }
    }

    pub(super) async fn deliver(&mut self, row: InboxRow) {
        let ulid = row.ulid;
        if row.session == Some(self.id) && self.transcript_holds(ulid).await {
            return self.input_seen(ulid).await;
        }
        if row.attempts >= MAX_ATTEMPTS {
            return self.give_up(ulid, "it was given to sessions ten times and never answered").await;
        }
        // What can fail on this host comes before the attempt is counted.
        let text = match self.frame(&row).await {
            Ok(text) => text,
            Err(error) => {
                return self.trouble(&format!("the file of message {ulid} was not written: {error}"));
            }
        };
        match self.shared.deps.journal.begin_attempt(ulid, self.id).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return self.trouble(&format!("message {ulid} was not marked: {error}")),
        }
        self.given.insert(input_uuid(ulid, self.id), ulid);
        let effect = self.delivery.begin(now_ms(), ulid, text);
        self.perform(effect).await;
    }

    pub(super) async fn frame(&self, row: &InboxRow) -> io::Result<String> {
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

    pub(super) async fn perform(&mut self, effect: Effect) {
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

    /// The attempt did not reach the runtime, so it does not count; it is made again after a pause.
    pub(super) async fn postpone(&mut self, ulid: Ulid, reason: &str) {
        self.delivery.abandon();
        if let Err(error) = self.shared.deps.journal.cancel_attempt(ulid, self.id, reason).await {
            tracing::error!(session = %self.id, %ulid, %error, "an attempt that was not made is counted");
        }
        self.trouble(reason);
    }

    /// Something on this host keeps input from the runtime. That is no fault of the input: it is tried again for as
    /// long as it takes, ever less often, and the owner is told.
    fn trouble(&mut self, reason: &str) {
        let pause = trouble_pause(self.troubles);
        tracing::warn!(session = %self.id, reason, ?pause, "input was not given");
        self.troubles = self.troubles.saturating_add(1);
        self.look = true;
        self.not_before = Some(Instant::now() + pause);
        let text = format!("Session {} cannot be given its messages, which wait: {reason}.", self.id);
        self.shared.notices().degrade("injection_blocked", &text);
    }

    pub(super) async fn give_up(&mut self, ulid: Ulid, reason: &str) {
        self.look = true;
        if let Err(error) = self.shared.deps.journal.mark_failed(ulid, reason, now_ms()).await {
            tracing::error!(session = %self.id, %ulid, %error, "failed input was not marked");
            self.not_before = Some(Instant::now() + trouble_pause(1));
            return;
        }
        let text = format!("Message {ulid} could not be given to session {}: {reason}.", self.id);
        self.shared.notice(format!("input_failed:{ulid}"), text, true);
        self.shared.announce("input-state", json!({"ulid": ulid.to_string(), "state": InputState::Failed}));
    }

    pub(super) fn ulid_of(&self, uuid: &str) -> Option<Ulid> {
        Uuid::try_parse(uuid).ok().and_then(|uuid| self.given.get(&uuid).copied())
    }

    /// The runtime has the input: proven by its id coming back.
    pub(super) async fn input_seen(&mut self, ulid: Ulid) {
        let journal = &self.shared.deps.journal;
        let open = self.delivery.open() == Some(ulid);
        let row = journal.get(ulid).await.ok().flatten();
        let Some(row) = row.filter(|row| row.input.conversation == self.conversation) else { return };
        if row.state == InputState::Injected && !open {
            return self.begun(ulid);
        }
        match journal.mark_injected(ulid, self.id, now_ms()).await {
            Ok(state) => {
                self.delivery.confirmed(ulid);
                self.look = true;
                self.troubles = 0;
                self.begun(ulid);
                self.shared.update(self.id, |session| {
                    if row.input.kind == InputKind::User {
                        session.live.last_user_at = Some(now_ms());
                    }
                });
                self.shared.notices().resolve("injection_unverified");
                self.shared.notices().resolve("injection_blocked");
                self.shared.announce(
                    "input-state",
                    json!({"ulid": ulid.to_string(), "state": state, "session": self.id}),
                );
            }
            Err(error) => tracing::error!(session = %self.id, %error, "confirmed input was not marked"),
        }
    }

    pub(super) fn finished(&self, ulids: &[Ulid]) {
        const KEPT: usize = 50;
        self.shared.update(self.id, |session| {
            let list = &mut session.record.finished_inputs;
            list.extend(ulids.iter().filter(|u| !list.contains(u)).copied().collect::<Vec<_>>());
            let extra = list.len().saturating_sub(KEPT);
            list.drain(..extra);
        });
    }

    pub(super) async fn transcript_holds(&self, ulid: Ulid) -> bool {
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

    /// A waiting input that may not wait interrupts the running turn, once.
    pub(super) async fn steer(&mut self) {
        let busy = self.shared.record(self.id).is_some_and(|r| r.activity == Activity::Busy);
        if !busy {
            return;
        }
        let Ok(Some(row)) = self.shared.deps.journal.next_queued(&self.conversation, now_ms()).await else {
            return;
        };
        if row.input.steer && self.steered != Some(row.ulid) {
            self.steered = Some(row.ulid);
            if let Err(error) = self.interrupt().await {
                tracing::debug!(session = %self.id, %error, "turn was not interrupted");
            }
        }
    }
}

/// Whether an input must not overtake one whose turn just failed: what a peer says next would be answered before it.
fn stalled_for(record: &SessionRecord, row: &InboxRow) -> bool {
    let stalled = record.peer.is_some() && record.activity == Activity::ErrorStalled;
    stalled && row.input.kind == InputKind::Agent
}

/// Pause before an input is tried again that this host kept from the runtime `troubles` times before.
fn trouble_pause(troubles: u32) -> Duration {
    Duration::from_secs(2 << troubles.min(5)).min(Duration::from_mins(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_tried_again_ever_less_often() {
        assert_eq!([0, 1, 4, 5, u32::MAX].map(|n| trouble_pause(n).as_secs()), [2, 4, 32, 60, 60]);
    }
}
