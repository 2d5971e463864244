//! What runtime events and hook reports mean for a session. Pure.

use std::path::PathBuf;

use ulid::Ulid;

use crate::record::{Activity, Transport};
use crate::runtime::claude::READY_REQUEST;
use crate::stream::{LifecycleState, StreamEvent};

/// Something that happened in a runtime.
#[derive(Debug, Clone, PartialEq)]
pub enum Signal {
    /// It waits for its first input, or goes on after it was resumed.
    Ready,
    /// It named its own session id, transcript or model.
    Identified {
        /// The runtime's session id.
        session_id: Option<String>,
        /// File of the transcript.
        transcript: Option<PathBuf>,
        /// Model in use.
        model: Option<String>,
    },
    /// A turn began or goes on.
    Working,
    /// A tool was called.
    ToolCalled,
    /// An input with this ULID is part of the conversation.
    InputSeen(Ulid),
    /// An input with this uuid was taken.
    InputTaken(String),
    /// The turn of the input with this uuid ended well.
    InputFinished(String),
    /// A turn ended; with the error that ended it.
    TurnEnded {
        /// What went wrong.
        error: Option<TurnError>,
        /// Cost of the session so far in dollars, where known.
        cost_usd: Option<f64>,
    },
    /// A question is shown.
    Asking,
    /// Its context is being shortened.
    Compacting,
    /// A subagent or background task started or ended.
    Subagent {
        /// Whether it started.
        started: bool,
    },
    /// A line for the last words of a runtime that does not start.
    Remark(String),
    /// The provider refuses because of a limit, until this Unix second.
    Limited {
        /// When it goes on.
        resets_at: Option<i64>,
    },
}

/// Why a turn ended badly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnError {
    /// The runtime's words, shortened.
    pub text: String,
    /// Whether the provider's limits are the reason.
    pub quota: bool,
    /// Whether we interrupted it.
    pub interrupted: bool,
}

/// Facts of a hook report that matter here (`hooks-identity-memory.md` §3.12).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HookFacts {
    /// Event name.
    pub event: String,
    /// The runtime's session id.
    pub session_id: Option<String>,
    /// File of the transcript.
    pub transcript_path: Option<PathBuf>,
    /// `startup`, `resume`, `compact`, …
    pub source: Option<String>,
    /// Kind of a notification.
    pub notification: Option<String>,
    /// ULIDs in the prompt.
    pub ulids: Vec<Ulid>,
}

/// Signals of one line of the streaming mode.
pub fn of_stream(event: StreamEvent) -> Vec<Signal> {
    match event {
        StreamEvent::ControlAnswer { request_id, result } if request_id == READY_REQUEST => match result {
            Ok(()) => vec![Signal::Ready],
            Err(reason) => vec![Signal::Remark(reason)],
        },
        StreamEvent::Init { session_id, model } => vec![
            Signal::Ready,
            Signal::Identified { session_id: Some(session_id), transcript: None, model },
            Signal::Working,
        ],
        StreamEvent::Lifecycle { uuid, state } => match state {
            LifecycleState::Queued => vec![Signal::InputTaken(uuid)],
            LifecycleState::Started => vec![Signal::InputTaken(uuid), Signal::Working],
            LifecycleState::Completed => vec![Signal::InputFinished(uuid)],
            LifecycleState::Cancelled => Vec::new(),
        },
        StreamEvent::Replayed { uuid } => vec![Signal::InputTaken(uuid)],
        StreamEvent::Assistant { tools, .. } => {
            let mut signals = vec![Signal::Working];
            signals.extend(tools.iter().map(|_| Signal::ToolCalled));
            signals
        }
        StreamEvent::Result(result) => {
            let error = result.is_error.then(|| TurnError {
                quota: result.api_error_status == Some(429),
                interrupted: result.subtype == "error_during_execution" && result.api_error_status.is_none(),
                text: result.text.chars().take(300).collect(),
            });
            vec![Signal::TurnEnded { error, cost_usd: Some(result.total_cost_usd) }]
        }
        StreamEvent::Task { started } => vec![Signal::Subagent { started }],
        StreamEvent::ControlRequest { .. } => vec![Signal::Asking],
        StreamEvent::RateLimit { status, resets_at } if status == "rejected" => {
            vec![Signal::Limited { resets_at }]
        }
        StreamEvent::Stderr { text } => vec![Signal::Remark(text)],
        _ => Vec::new(),
    }
}

/// Signals of a hook report. Over stdio the stream tells of turns exactly, so there the hooks only add what it
/// does not say.
pub fn of_hook(facts: &HookFacts, transport: Transport) -> Vec<Signal> {
    let mut signals: Vec<Signal> = facts.ulids.iter().copied().map(Signal::InputSeen).collect();
    if facts.session_id.is_some() || facts.transcript_path.is_some() {
        signals.push(Signal::Identified {
            session_id: facts.session_id.clone(),
            transcript: facts.transcript_path.clone(),
            model: None,
        });
    }
    let of_screen = match facts.event.as_str() {
        "SessionStart" => Some(Signal::Ready),
        "UserPromptSubmit" | "PreToolUse" => Some(Signal::Working),
        "Stop" => Some(Signal::TurnEnded { error: None, cost_usd: None }),
        "StopFailure" => Some(Signal::TurnEnded {
            error: Some(TurnError {
                text: "the turn ended with an error of the provider".into(),
                quota: false,
                interrupted: false,
            }),
            cost_usd: None,
        }),
        "SubagentStart" => Some(Signal::Subagent { started: true }),
        "SubagentStop" => Some(Signal::Subagent { started: false }),
        "Notification" => {
            let asks = ["permission_prompt", "elicitation_dialog", "agent_needs_input"];
            facts.notification.as_deref().filter(|kind| asks.contains(kind)).map(|_| Signal::Asking)
        }
        _ => None,
    };
    match facts.event.as_str() {
        "PreCompact" => signals.push(Signal::Compacting),
        "PostCompact" => signals.push(Signal::Working),
        _ if transport == Transport::Tmux => signals.extend(of_screen),
        _ => {}
    }
    if transport == Transport::Tmux && facts.event == "PreToolUse" {
        signals.push(Signal::ToolCalled);
    }
    signals
}

/// What a session does after a signal.
pub fn activity_after(activity: Activity, signal: &Signal) -> Activity {
    match signal {
        Signal::Ready if matches!(activity, Activity::Booting | Activity::Unknown) => Activity::Idle,
        Signal::Working | Signal::ToolCalled => Activity::Busy,
        Signal::TurnEnded { error: Some(error), .. } if !error.interrupted => Activity::ErrorStalled,
        Signal::TurnEnded { .. } => Activity::Idle,
        Signal::Asking => Activity::WaitingInput,
        Signal::Compacting => Activity::Compacting,
        _ => activity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream;

    fn after(lines: &[&str]) -> Activity {
        let signals = lines.iter().filter_map(|line| stream::parse(line)).flat_map(of_stream);
        signals.fold(Activity::Booting, |activity, signal| activity_after(activity, &signal))
    }

    const READY: &str =
        r#"{"type":"control_response","response":{"subtype":"success","request_id":"instar-ready"}}"#;
    const INIT: &str = r#"{"type":"system","subtype":"init","session_id":"s"}"#;

    #[test]
    fn a_turn_over_stdio() {
        assert_eq!(after(&[READY]), Activity::Idle);
        assert_eq!(after(&[READY, INIT]), Activity::Busy);
        assert_eq!(after(&[READY, INIT, r#"{"type":"result","is_error":false}"#]), Activity::Idle);
        let failed = r#"{"type":"result","subtype":"success","is_error":true,"api_error_status":401}"#;
        assert_eq!(after(&[READY, INIT, failed]), Activity::ErrorStalled);
        let interrupted = r#"{"type":"result","subtype":"error_during_execution","is_error":true}"#;
        assert_eq!(after(&[READY, INIT, interrupted]), Activity::Idle);
    }

    #[test]
    fn hooks_drive_the_terminal_and_only_confirm_over_stdio() {
        let ulid = Ulid::from_parts(1, 1);
        let facts = HookFacts { event: "UserPromptSubmit".into(), ulids: vec![ulid], ..HookFacts::default() };
        assert_eq!(of_hook(&facts, Transport::Tmux), [Signal::InputSeen(ulid), Signal::Working]);
        assert_eq!(of_hook(&facts, Transport::Stdio), [Signal::InputSeen(ulid)]);
        let stop = HookFacts { event: "Stop".into(), ..HookFacts::default() };
        assert!(of_hook(&stop, Transport::Stdio).is_empty());
        let question = HookFacts {
            event: "Notification".into(),
            notification: Some("permission_prompt".into()),
            ..HookFacts::default()
        };
        assert_eq!(of_hook(&question, Transport::Tmux), [Signal::Asking]);
        let idle = HookFacts { notification: Some("idle_prompt".into()), ..question };
        assert!(of_hook(&idle, Transport::Tmux).is_empty());
    }
}
