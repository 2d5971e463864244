//! What runtime events and hook reports mean for a session. Pure.

use std::path::PathBuf;

use instar_hooks::{Event, HookReport};
use ulid::Ulid;

use crate::record::{Activity, Transport};
use crate::runtime::claude::READY_REQUEST;
use crate::stream::{LifecycleState, StreamEvent, TurnResult};

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
    /// It waits for input since a while; a turn that failed or was interrupted ends without another word.
    SeenIdle,
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
    /// Whose doing it was.
    pub cause: ErrorCause,
}

/// Whose doing the bad end of a turn was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCause {
    /// Ours: it was interrupted.
    Interrupted,
    /// The provider's limits.
    Quota,
    /// The provider's, whatever it was asked.
    Provider,
    /// What the provider was asked, or how long the answer took.
    Request,
}

impl ErrorCause {
    fn of_result(result: &TurnResult) -> Self {
        match result.api_error_status {
            Some(429) => Self::Quota,
            Some(401 | 403 | 408) => Self::Provider,
            Some(400..=499) => Self::Request,
            None if result.subtype == "error_during_execution" => Self::Interrupted,
            None if result.subtype.starts_with("error_") => Self::Request,
            Some(_) | None => Self::Provider,
        }
    }
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
            // Its turn follows: nothing else may be given, and nobody may take the session for idle.
            LifecycleState::Queued | LifecycleState::Started => {
                vec![Signal::InputTaken(uuid), Signal::Working]
            }
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
                cause: ErrorCause::of_result(&result),
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
/// does not say. A report that a newer one has overtaken, by way of the spool, confirms input but does not say what
/// goes on now; `newest` is the time of the newest one, Unix milliseconds.
pub fn of_hook(report: &HookReport, transport: Transport, newest: i64) -> Vec<Signal> {
    let ulid = report.ulid.as_deref().and_then(|text| Ulid::from_string(text).ok());
    let mut signals: Vec<Signal> = ulid.map(Signal::InputSeen).into_iter().collect();
    // A subagent has a transcript of its own.
    if report.agent_id.is_none() && (report.session_id.is_some() || report.transcript_path.is_some()) {
        signals.push(Signal::Identified {
            session_id: report.session_id.clone(),
            transcript: report.transcript_path.as_ref().map(PathBuf::from),
            model: None,
        });
    }
    let late = report_time(report) < newest;
    match report.event {
        // Readiness is a fact that stays one.
        Event::SessionStart if transport == Transport::Tmux => signals.push(Signal::Ready),
        _ if late => {}
        Event::PreCompact => signals.push(Signal::Compacting),
        Event::PostCompact => signals.push(Signal::Working),
        event if transport == Transport::Tmux => signals.extend(of_terminal(event, report)),
        _ => {}
    }
    signals
}

/// When the hook ran, Unix milliseconds.
pub fn report_time(report: &HookReport) -> i64 {
    i64::try_from(report.at_ms).unwrap_or(i64::MAX)
}

fn of_terminal(event: Event, report: &HookReport) -> Vec<Signal> {
    match event {
        Event::UserPromptSubmit => vec![Signal::Working],
        Event::PreToolUse => vec![Signal::Working, Signal::ToolCalled],
        Event::Stop => vec![Signal::TurnEnded { error: None, cost_usd: None }],
        Event::SubagentStart => vec![Signal::Subagent { started: true }],
        Event::SubagentStop => vec![Signal::Subagent { started: false }],
        Event::Notification => match report.notification_type.as_deref() {
            Some("permission_prompt" | "elicitation_dialog" | "agent_needs_input") => vec![Signal::Asking],
            Some("idle_prompt") => vec![Signal::SeenIdle],
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// What a session does after a signal.
pub fn activity_after(activity: Activity, signal: &Signal) -> Activity {
    match signal {
        Signal::Ready | Signal::SeenIdle
            if matches!(activity, Activity::Booting | Activity::Unknown | Activity::WaitingInput) =>
        {
            Activity::Idle
        }
        Signal::Working | Signal::ToolCalled => Activity::Busy,
        Signal::TurnEnded { error: Some(error), .. } if error.cause != ErrorCause::Interrupted => {
            Activity::ErrorStalled
        }
        Signal::TurnEnded { .. } => Activity::Idle,
        Signal::Asking => Activity::WaitingInput,
        Signal::Compacting => Activity::Compacting,
        _ => activity,
    }
}

/// The provider's error in the last lines of a terminal whose turn ended without a report.
pub fn error_on_screen(screen: &str) -> Option<TurnError> {
    const MARKS: [&str; 9] = [
        "API Error",
        "overloaded_error",
        "rate_limit_error",
        "invalid_request_error",
        "Request timed out",
        "Internal server error",
        "ECONNREFUSED",
        "ETIMEDOUT",
        "fetch failed",
    ];
    let lines: Vec<&str> = screen.lines().filter(|line| !line.trim().is_empty()).collect();
    let line = lines.iter().rev().take(15).find(|line| MARKS.iter().any(|mark| line.contains(mark)))?;
    Some(TurnError {
        text: line.trim().chars().take(300).collect(),
        cause: if line.contains("rate_limit_error") {
            ErrorCause::Quota
        } else if line.contains("invalid_request_error") {
            ErrorCause::Request
        } else {
            ErrorCause::Provider
        },
    })
}

#[cfg(test)]
mod tests {
    use instar_hooks::{EventInput, ReportFacts};

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
    fn whose_doing_an_error_was() {
        let of = |status, subtype: &str| {
            let result =
                TurnResult { api_error_status: status, subtype: subtype.into(), ..TurnResult::default() };
            ErrorCause::of_result(&result)
        };
        assert_eq!(of(Some(429), "success"), ErrorCause::Quota);
        for status in [401, 403, 500, 529] {
            assert_eq!(of(Some(status), "success"), ErrorCause::Provider, "{status}");
        }
        assert_eq!(of(None, "success"), ErrorCause::Provider, "it was not reached");
        assert_eq!(of(Some(400), "success"), ErrorCause::Request);
        assert_eq!(of(None, "error_max_turns"), ErrorCause::Request);
        assert_eq!(of(None, "error_during_execution"), ErrorCause::Interrupted);
    }

    #[test]
    fn hooks_drive_the_terminal_and_only_confirm_over_stdio() {
        let ulid = Ulid::from_parts(1, 1);
        let submit = HookReport { ulid: Some(ulid.to_string()), ..report(Event::UserPromptSubmit) };
        assert_eq!(of_hook(&submit, Transport::Tmux, 0), [Signal::InputSeen(ulid), Signal::Working]);
        assert_eq!(of_hook(&submit, Transport::Stdio, 0), [Signal::InputSeen(ulid)]);
        assert!(of_hook(&report(Event::Stop), Transport::Stdio, 0).is_empty());
        let question =
            HookReport { notification_type: Some("permission_prompt".into()), ..report(Event::Notification) };
        assert_eq!(of_hook(&question, Transport::Tmux, 0), [Signal::Asking]);
        let idle = HookReport { notification_type: Some("idle_prompt".into()), ..question };
        assert_eq!(of_hook(&idle, Transport::Tmux, 0), [Signal::SeenIdle]);
    }

    #[test]
    fn an_overtaken_report_confirms_but_does_not_tell_what_goes_on() {
        let ulid = Ulid::from_parts(1, 1);
        let submit = HookReport { ulid: Some(ulid.to_string()), ..report(Event::UserPromptSubmit) };
        assert_eq!(of_hook(&submit, Transport::Tmux, 60_000), [Signal::InputSeen(ulid)]);
        assert!(of_hook(&report(Event::Stop), Transport::Tmux, 60_000).is_empty());
        assert_eq!(of_hook(&report(Event::SessionStart), Transport::Tmux, 60_000), [Signal::Ready]);
    }

    fn report(event: Event) -> HookReport {
        HookReport::new(event, &EventInput::parse(b"{}").expect("an object"), ReportFacts::default())
    }
}
