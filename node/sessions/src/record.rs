//! What is known of one session, and the moves its state may make (`agent-core.md` §6.1).

use std::path::PathBuf;

use instar_state::ids::{ConversationKey, SessionId};
use instar_state::ports::PeerBinding;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// One session; the file `state/sessions/<id>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionRecord {
    /// The node's id; for new sessions also the runtime's.
    pub id: SessionId,
    /// Name for people.
    pub name: String,
    /// What the session is for.
    pub kind: SessionKind,
    /// Where it is in its life.
    pub status: Status,
    /// What it does while it runs.
    pub activity: Activity,
    /// How the runtime is driven.
    pub transport: Transport,
    /// Runtime, `claude-code`.
    pub framework: String,
    /// Session id that the runtime itself reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_session_id: Option<String>,
    /// Model id passed to the runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Effort passed to the runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effort: Option<String>,
    /// Name of the tmux session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmux_session: Option<String>,
    /// Process id of the supervisor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_pid: Option<i32>,
    /// Process id of the runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child_pid: Option<i32>,
    /// Start time of the runtime in clock ticks since boot; with the pid it names a process for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child_start_time: Option<u64>,
    /// Directory that the runtime works in.
    pub cwd: PathBuf,
    /// Conversation whose input it gets.
    pub conversation: ConversationKey,
    /// Whether the conversation lives on without the session.
    pub bound: bool,
    /// Job that it carries out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_slug: Option<String>,
    /// Who had it started: a user id, `scheduler`, `mesh:<fingerprint>`, `session:<id>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub triggered_by: Option<String>,
    /// Start of the first prompt and the hash of all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PromptDigest>,
    /// Longest life in minutes.
    pub max_duration_minutes: u32,
    /// Unix milliseconds.
    pub started_at: i64,
    /// When the runtime reported that it is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<i64>,
    /// When the runtime ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<i64>,
    /// How the runtime ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Why the session ended, in one word or sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_reason: Option<String>,
    /// Session whose transcript it continues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_of: Option<SessionId>,
    /// Signs that work was going on when it ended.
    #[serde(default)]
    pub work_evidence: Vec<String>,
    /// Place in the order of who gets a slot.
    pub priority: Priority,
    /// Which process may act as this session.
    pub owner: Owner,
    /// SHA-256 of the session's token, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_hash: Option<String>,
    /// The firewall of a session that serves a peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<PeerBinding>,
    /// Whether a person took it over into a terminal: then it is not ended with its turn.
    #[serde(default)]
    pub taken_over: bool,
    /// Whether it read text of a peer.
    #[serde(default)]
    pub tainted: bool,
    /// Transcript that the runtime itself named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transcript_path: Option<PathBuf>,
    /// Offset in the event log up to which events were handled.
    #[serde(default)]
    pub log_offset: u64,
    /// Inputs whose turn came to its end; the newest 50.
    #[serde(default)]
    pub finished_inputs: Vec<Ulid>,
    /// Ids of the newest 100 hook reports.
    #[serde(default)]
    pub recent_reports: Vec<String>,
    /// Counters for people.
    #[serde(default)]
    pub telemetry: Telemetry,
}

/// Counters of one session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Telemetry {
    /// Hook reports and runtime events.
    pub event_count: u64,
    /// Tool calls.
    pub tools_used: u64,
    /// Turns that ended.
    pub turns: u64,
    /// Subagents that were started.
    pub subagents_spawned: u64,
    /// Cost that the runtime reported, in dollars.
    pub cost_usd: f64,
    /// Unix milliseconds of the last event.
    pub last_activity: Option<i64>,
}

/// Start of a prompt and the hash of all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptDigest {
    /// First 2,000 characters.
    pub head: String,
    /// SHA-256 of the whole, hex.
    pub sha256: String,
}

/// Fencing of a session: the number grows with every spawn, resume and adoption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The number; what carries an older one is refused.
    pub fence: u64,
}

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionKind {
    /// Serves a conversation.
    Conversation,
    /// Carries out a job.
    Job,
    /// One task.
    AdHoc,
    /// Looks at another session.
    Triage,
    /// One question of a peer.
    Pipe,
}

/// How the runtime is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// The interactive program in a detached pane.
    Tmux,
    /// The streaming mode over pipes.
    Stdio,
}

/// Order of who gets a slot first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Last.
    Low,
    /// Usual.
    #[default]
    Medium,
    /// Before the usual.
    High,
    /// A person waits.
    Human,
    /// First.
    Critical,
}

impl Priority {
    /// The next higher level.
    #[must_use]
    pub fn raised(self) -> Self {
        match self {
            Self::Low => Self::Medium,
            Self::Medium => Self::High,
            Self::High => Self::Human,
            Self::Human | Self::Critical => Self::Critical,
        }
    }
}

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Launched, not ready yet.
    Starting,
    /// Ready.
    Running,
    /// Asked to end.
    Ending,
    /// Its owner vanished without an exit record.
    Lost,
    /// Ended in order.
    Completed,
    /// Ended by an error.
    Failed,
    /// Ended by us.
    Killed,
}

impl Status {
    /// Whether no further move is possible.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Killed)
    }

    /// Whether a runtime runs or is about to.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Ending)
    }

    /// Whether the state may change to `next`.
    pub fn allows(self, next: Self) -> bool {
        use Status::{Completed, Ending, Failed, Killed, Lost, Running, Starting};
        matches!(
            (self, next),
            (Starting, Running | Ending | Failed)
                | (Running, Ending | Lost)
                | (Ending, Completed | Failed | Killed)
                | (Lost, Completed | Failed)
        )
    }

    /// The shortest allowed way from here to `next`, without this state itself; empty if there is none.
    pub fn way_to(self, next: Self) -> Vec<Self> {
        use Status::{Ending, Failed};
        if self.allows(next) {
            return vec![next];
        }
        match (self, next) {
            (Self::Starting | Self::Running, n)
                if Ending.allows(n) && (self, n) != (Self::Starting, Failed) =>
            {
                vec![Ending, n]
            }
            _ => Vec::new(),
        }
    }
}

/// What a running session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// The runtime starts.
    Booting,
    /// Waits for input.
    Idle,
    /// In a turn.
    Busy,
    /// Shows a question.
    WaitingInput,
    /// Shortens its context.
    Compacting,
    /// Its last turn ended with an error.
    ErrorStalled,
    /// Adopted; nothing heard yet.
    Unknown,
}

impl Activity {
    /// Whether no turn runs and none is about to.
    pub fn is_at_rest(self) -> bool {
        matches!(self, Self::Idle | Self::ErrorStalled)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Number of the signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

impl Exit {
    /// Whether the process ended by itself without an error.
    pub fn is_success(self) -> bool {
        self.code == Some(0)
    }
}

/// The file `state/sessions/<id>.exit.json` that the supervisor leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// How.
    #[serde(flatten)]
    pub exit: Exit,
    /// When, Unix milliseconds.
    pub at: i64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Status; 7] = [
        Status::Starting,
        Status::Running,
        Status::Ending,
        Status::Lost,
        Status::Completed,
        Status::Failed,
        Status::Killed,
    ];

    fn any_status() -> impl Strategy<Value = Status> {
        prop::sample::select(ALL.to_vec())
    }

    proptest! {
        #[test]
        fn every_step_of_a_way_is_allowed_and_final_states_stay(from in any_status(), to in any_status()) {
            let mut at = from;
            for step in from.way_to(to) {
                prop_assert!(at.allows(step), "{at:?} -> {step:?}");
                at = step;
            }
            prop_assert!(at == to || at == from);
            if from.is_final() {
                prop_assert!(from.way_to(to).is_empty());
            }
        }
    }

    #[test]
    fn every_live_session_can_end_in_each_way() {
        for from in [Status::Starting, Status::Running, Status::Ending] {
            for to in [Status::Completed, Status::Failed, Status::Killed] {
                assert_eq!(from.way_to(to).last(), Some(&to), "{from:?} -> {to:?}");
            }
        }
    }
}
