//! The one place that says whether a session may be ended by anything but an explicit force. Pure.

use crate::record::{Activity, Status};

/// What is known of a session that something wants to end.
#[derive(Debug, Clone, PartialEq)]
pub struct ReapFacts {
    /// Where it is in its life.
    pub status: Status,
    /// What it does.
    pub activity: Activity,
    /// The owner protects it by name.
    pub protected: bool,
    /// A person looks at its terminal.
    pub attached: bool,
    /// Milliseconds since its start.
    pub age_ms: i64,
    /// It is being started again or adopted.
    pub recovering: bool,
    /// Inputs of people that it has and that are not answered.
    pub open_user_inputs: usize,
    /// Inputs that wait for it.
    pub queued_inputs: usize,
    /// Milliseconds since a person last spoke in its conversation.
    pub since_user_ms: Option<i64>,
    /// Subagents and background tasks that run.
    pub subagents: usize,
    /// Processes below the runtime that do not belong to it by nature; `None` if they cannot be seen.
    pub foreign_children: Option<usize>,
    /// CPU use over the last minute in percent of one core; `None` if unknown.
    pub cpu_percent: Option<f32>,
}

/// Why a session is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Keep {
    /// See [`ReapFacts::protected`].
    #[error("it is protected")]
    Protected,
    /// See [`ReapFacts::attached`].
    #[error("a person is attached to its terminal")]
    Attached,
    /// It started less than 15 s ago or is not ready yet.
    #[error("it is just starting")]
    Booting,
    /// See [`ReapFacts::recovering`].
    #[error("it is being recovered")]
    Recovering,
    /// See [`ReapFacts::open_user_inputs`].
    #[error("a message of a person is not answered yet")]
    OpenInput,
    /// See [`ReapFacts::queued_inputs`].
    #[error("messages wait for it")]
    Queued,
    /// A question is shown.
    #[error("it waits for an answer to a question")]
    Asking,
    /// See [`ReapFacts::since_user_ms`].
    #[error("a person spoke in its conversation less than 30 minutes ago")]
    RecentUser,
    /// See [`ReapFacts::subagents`].
    #[error("a subagent or background task is active")]
    Subagent,
    /// It is in a turn.
    #[error("it is in a turn")]
    Busy,
    /// See [`ReapFacts::foreign_children`].
    #[error("it runs other programs")]
    Children,
    /// See [`ReapFacts::cpu_percent`].
    #[error("it uses the CPU")]
    Cpu,
    /// Something could not be found out.
    #[error("its processes cannot be inspected")]
    Unknown,
}

/// The first reason to keep the session, cheapest first.
pub fn reason_to_keep(facts: &ReapFacts) -> Option<Keep> {
    const BOOT_GRACE_MS: i64 = 15_000;
    const RECENT_USER_MS: i64 = 30 * 60_000;
    let checks = [
        (facts.protected, Keep::Protected),
        (facts.attached, Keep::Attached),
        (facts.age_ms < BOOT_GRACE_MS || facts.status == Status::Starting, Keep::Booting),
        (facts.recovering, Keep::Recovering),
        (facts.open_user_inputs > 0, Keep::OpenInput),
        (facts.queued_inputs > 0, Keep::Queued),
        (facts.activity == Activity::WaitingInput, Keep::Asking),
        (facts.since_user_ms.is_some_and(|ms| ms < RECENT_USER_MS), Keep::RecentUser),
        (facts.subagents > 0, Keep::Subagent),
        (matches!(facts.activity, Activity::Busy | Activity::Compacting), Keep::Busy),
        (facts.foreign_children.is_some_and(|n| n > 0), Keep::Children),
        (facts.cpu_percent.is_some_and(|percent| percent > 2.0), Keep::Cpu),
        (facts.foreign_children.is_none(), Keep::Unknown),
    ];
    checks.into_iter().find(|(holds, _)| *holds).map(|(_, reason)| reason)
}

/// Whether a process below a runtime belongs to it by nature: MCP servers, language servers, sleep inhibitors.
pub fn is_baseline_process(command_line: &str) -> bool {
    let program = command_line.split(' ').next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    name == "caffeinate"
        || name.contains("language-server")
        || name.contains("mcp")
        || command_line.split(' ').skip(1).any(|word| word == "mcp" || word.starts_with("mcp-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle() -> ReapFacts {
        ReapFacts {
            status: Status::Running,
            activity: Activity::Idle,
            protected: false,
            attached: false,
            age_ms: 3_600_000,
            recovering: false,
            open_user_inputs: 0,
            queued_inputs: 0,
            since_user_ms: None,
            subagents: 0,
            foreign_children: Some(0),
            cpu_percent: Some(0.0),
        }
    }

    #[test]
    fn an_idle_session_may_go_and_each_reason_keeps_it() {
        assert_eq!(reason_to_keep(&idle()), None);
        let cases = [
            (ReapFacts { protected: true, attached: true, ..idle() }, Keep::Protected),
            (ReapFacts { attached: true, ..idle() }, Keep::Attached),
            (ReapFacts { age_ms: 14_999, ..idle() }, Keep::Booting),
            (ReapFacts { status: Status::Starting, ..idle() }, Keep::Booting),
            (ReapFacts { open_user_inputs: 1, queued_inputs: 1, ..idle() }, Keep::OpenInput),
            (ReapFacts { queued_inputs: 1, ..idle() }, Keep::Queued),
            (ReapFacts { activity: Activity::WaitingInput, ..idle() }, Keep::Asking),
            (ReapFacts { since_user_ms: Some(60_000), ..idle() }, Keep::RecentUser),
            (ReapFacts { subagents: 1, ..idle() }, Keep::Subagent),
            (ReapFacts { activity: Activity::Busy, ..idle() }, Keep::Busy),
            (ReapFacts { foreign_children: Some(2), ..idle() }, Keep::Children),
            (ReapFacts { cpu_percent: Some(2.5), ..idle() }, Keep::Cpu),
            (ReapFacts { foreign_children: None, ..idle() }, Keep::Unknown),
        ];
        for (facts, expected) in cases {
            assert_eq!(reason_to_keep(&facts), Some(expected));
        }
    }

    #[test]
    fn what_belongs_to_a_runtime() {
        assert!(is_baseline_process("/usr/bin/instar mcp threadline --state-dir /a"));
        assert!(is_baseline_process("node /x/rust-language-server-mcp mcp-server"));
        assert!(!is_baseline_process("/usr/bin/make test"));
    }
}
