//! The end of a session: how it ended, what goes back into the queue, what is cleaned up.

use std::sync::Arc;
use std::time::Duration;

use instar_state::BoxFuture;
use instar_state::ids::SessionId;
use instar_state::ports::InputKind;
use instar_state::time::now_ms;
use serde_json::json;
use ulid::Ulid;

use crate::delivery::LOCAL_TAG;
use crate::launch::SessionFiles;
use crate::process;
use crate::record::{Exit, ExitRecord, SessionKind, SessionRecord, Status};
use crate::sessions::Sessions;
use crate::shared::Shared;
use crate::spawn::{Resume, Slot, SpawnRequest};

/// Decides what status a session shall end with; the first decision stays.
pub(crate) fn intend(shared: &Shared, id: SessionId, status: Status, reason: &str) {
    shared.update(id, |session| {
        if session.live.ends_as.is_none() {
            session.live.ends_as = Some(status);
            session.record.end_reason = Some(reason.to_owned());
        }
    });
}

/// Notes the end of a session whose runtime is gone, gives its open inputs back and removes its files.
pub(crate) async fn finish(shared: &Arc<Shared>, id: SessionId, remarks: &[String]) {
    let files = shared.files(id);
    let exit = await_exit(&files).await;
    let Some(before) = shared.record(id) else { return };
    end_processes(shared, &before, &files).await;
    let (status, reason) = verdict(shared, &before, exit, remarks);
    shared.update(id, |session| {
        session.record.ended_at = Some(exit.map_or_else(now_ms, |e| e.at));
        session.record.exit = exit.map(|e| e.exit);
        session.record.end_reason = Some(reason.clone());
        session.record.token_hash = None;
        session.mailbox = None;
    });
    // Before anybody can take the session for ended: the next one must not be given what came later first.
    give_back(shared, &before, status, &reason).await;
    if exit.is_none() && before.status == Status::Running && shared.move_to(id, Status::Lost) {
        tracing::warn!(session = %id, "supervisor and runtime vanished without an exit record");
    }
    shared.move_to(id, status);
    shared.wake(&before.conversation);
    shared.save_resume(id).await;
    files.remove_live();
    shared.persist(id).await;
    if let Some(record) = shared.record(id) {
        shared.log_ended(&record);
    }
    shared.announce("session-ended", json!({"session": id, "status": status, "reason": reason}));

    let crashed = status == Status::Failed && exit.is_some_and(|e| e.exit.code.is_some_and(|code| code != 0));
    if crashed && shared.count_crash(&before.conversation, now_ms()) == 4 {
        let text = format!(
            "Sessions of {} crash again and again ({reason}); the next one waits.",
            before.conversation
        );
        shared.notice(format!("crash_loop:{}", before.conversation), text, true);
    }
    if before.ready_at.is_none() {
        after_failed_start(shared, &before, &reason);
    } else if status == Status::Failed {
        after_crash(shared, &before).await;
    }
}

/// Ends what may be left: the supervisor does this too, unless it was killed first or never reached.
async fn end_processes(shared: &Shared, record: &SessionRecord, files: &SessionFiles) {
    let pids = crate::spawn::pids(files);
    let child = record.child_pid.or(pids.map(|p| p.child));
    let start = record.child_start_time.or(pids.map(|p| p.child_start_time));
    let group = child.filter(|pid| process::is_alive(*pid, start)).unwrap_or(0);
    let session = record.id.to_string();
    let _ = tokio::task::spawn_blocking(move || process::kill_remains(group, &session)).await;
    if child.is_none()
        && let (Some(tmux), Some(name)) = (shared.tmux(), &record.tmux_session)
    {
        // A pane that never told its process.
        let _ = tmux.kill(name).await;
    }
}

/// The exit record is written after the process is gone, so it may take a moment.
async fn await_exit(files: &SessionFiles) -> Option<ExitRecord> {
    for _ in 0..50 {
        if let Some(record) = read_exit(files) {
            return Some(record);
        }
        let supervisor_lives =
            crate::spawn::pids(files).is_some_and(|pids| process::is_alive(pids.host, None));
        if !supervisor_lives {
            break;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    read_exit(files)
}

/// The exit record of a session, if its supervisor left one.
pub(crate) fn read_exit(files: &SessionFiles) -> Option<ExitRecord> {
    serde_json::from_slice(&std::fs::read(files.exit()).ok()?).ok()
}

fn verdict(
    shared: &Shared,
    record: &SessionRecord,
    exit: Option<ExitRecord>,
    remarks: &[String],
) -> (Status, String) {
    let intended = shared.update(record.id, |session| session.live.ends_as).flatten();
    if let Some(status) = intended {
        return (status, record.end_reason.clone().unwrap_or_else(|| "ended".into()));
    }
    let last_words = remarks.last().map(|text| format!(": {text}")).unwrap_or_default();
    match exit.map(|e| e.exit) {
        Some(exit) if exit.is_success() && record.ready_at.is_some() => (Status::Completed, "exited".into()),
        Some(Exit { code: Some(127), .. }) => {
            (Status::Failed, format!("the runtime could not be started{last_words}"))
        }
        Some(Exit { code: Some(code), .. }) => {
            (Status::Failed, format!("the runtime ended with exit code {code}{last_words}"))
        }
        Some(Exit { signal: Some(signal), .. }) => {
            (Status::Failed, format!("the runtime was killed by signal {signal}"))
        }
        _ => (Status::Failed, "supervisor and runtime vanished".into()),
    }
}

/// Open inputs wait for the next session. Inputs of agents and of the node whose turn came to its end are settled
/// when the session ended in order: not everything needs an answer. A person's input from elsewhere stays open until
/// answered.
async fn give_back(shared: &Arc<Shared>, record: &SessionRecord, status: Status, reason: &str) {
    let journal = &shared.deps.journal;
    let finished = shared.record(record.id).map(|r| r.finished_inputs).unwrap_or_default();
    if status != Status::Failed {
        for ulid in &finished {
            let Ok(Some(row)) = journal.get(*ulid).await else { continue };
            // What a person typed into this session was answered by what it printed.
            let settled = row.input.kind != InputKind::User || row.input.tag == LOCAL_TAG;
            if settled && let Err(error) = journal.settle(*ulid, record.id, now_ms()).await {
                tracing::error!(session = %record.id, %error, "settled input was not closed");
            }
        }
    }
    let (nudge, excused) =
        shared.update(record.id, |s| (s.live.nudge.take(), s.live.excused)).unwrap_or_default();
    if let Some(nudge) = nudge {
        close_nudge(shared, record.id, nudge).await;
    }
    if excused && let Err(error) = journal.excuse(record.id).await {
        tracing::error!(session = %record.id, %error, "attempts that the provider refused are counted");
    }
    match journal.requeue_session(record.id, reason).await {
        Ok(back) if !back.is_empty() => {
            tracing::info!(session = %record.id, inputs = back.len(), "open inputs wait again");
            shared.announce("injection-dropped", json!({"session": record.id, "inputs": back.len()}));
        }
        Ok(_) => {}
        Err(error) => tracing::error!(session = %record.id, %error, "open inputs were not given back"),
    }
}

/// What asked this session to go on means nothing to the next one.
async fn close_nudge(shared: &Shared, id: SessionId, nudge: Ulid) {
    let (journal, now) = (&shared.deps.journal, now_ms());
    let closed = match journal.settle(nudge, id, now).await {
        Ok(false) => journal.expire_one(nudge, now).await,
        other => other,
    };
    if let Err(error) = closed {
        tracing::error!(session = %id, %error, "a nudge waits for the next session");
    }
}

/// A person who waits for an answer gets the next session at once; the mesh sees to those of peers.
async fn after_crash(shared: &Arc<Shared>, record: &SessionRecord) {
    if record.kind != SessionKind::Conversation || record.peer.is_some() || shared.cancel.is_cancelled() {
        return;
    }
    let next = shared.deps.journal.next_queued(&record.conversation, now_ms()).await;
    let is_awaited = matches!(next, Ok(Some(row)) if row.input.kind == InputKind::User);
    let sessions = Sessions { shared: Arc::clone(shared) };
    let Some(request) = sessions.next_of(record).ok().filter(|_| is_awaited) else { return };
    shared.tracker.spawn(go_on(sessions, record.name.clone(), request));
}

/// Boxed, because starting a session leads to its end, and from there to here.
fn go_on(sessions: Sessions, name: String, request: SpawnRequest) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if let Err(error) = sessions.spawn_or_wait(request).await {
            let text = format!("Session {name:?} ended and was not started again: {error}.");
            sessions.shared.notice("session_start_failed", text, true);
        }
    })
}

/// A resumed runtime that did not get ready is replaced once by a fresh one. Sessions that serve peers are only ever
/// started by the mesh, which does it when it sees the input waiting; its entry to resume is dropped here.
fn after_failed_start(shared: &Arc<Shared>, record: &SessionRecord, reason: &str) {
    let request = shared.update(record.id, |session| session.live.request.take()).flatten();
    let intended = shared.update(record.id, |session| session.live.ends_as).flatten();
    let resumed = record.runtime_session_id.is_some();
    if resumed {
        shared.drop_resume(&record.conversation);
    }
    let Some(mut request) = request.filter(|r| {
        resumed && r.peer.is_none() && r.resume != Resume::Never && intended != Some(Status::Killed)
    }) else {
        if intended.is_none() {
            let text = format!("Session {:?} did not start: {reason}.", record.name);
            shared.notice("session_start_failed", text, true);
        }
        return;
    };
    request.resume = Resume::Never;
    request.prompt = None;
    request.conversation = Some(record.conversation.clone());
    shared.tracker.spawn(start_afresh(Arc::clone(shared), record.name.clone(), request));
}

/// Boxed, because starting a session leads to its end, and from there to here.
fn start_afresh(shared: Arc<Shared>, name: String, request: SpawnRequest) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if let Err(error) = shared.spawn(request, Slot::Free).await {
            let text = format!("Session {name:?} could neither be resumed nor started afresh: {error}.");
            shared.notice("session_start_failed", text, true);
        }
    })
}
