//! Why something could not be done with a session.

use instar_durable::DatabaseError;

use crate::models::InvalidModel;
use crate::reap::Keep;
use crate::runtime::LaunchRefused;

/// A refused or failed operation on sessions.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No session has this id or name.
    #[error("there is no session {0:?}; `instar session list` shows them")]
    NotFound(String),
    /// The session has ended.
    #[error("session {0} has ended; `instar session resume` continues it")]
    Ended(String),
    /// Something in the request is not acceptable.
    #[error("{0}")]
    Invalid(String),
    /// Another live session has the name.
    #[error("a session named {0:?} is running; choose another name")]
    NameInUse(String),
    /// All slots are taken.
    #[error("all {max} session slots are in use; end one, or raise {key}")]
    Limit {
        /// The limit.
        max: usize,
        /// The key that sets it.
        key: &'static str,
    },
    /// Too much of the memory is in use.
    #[error(
        "{percent} % of the memory is in use; until it is less, only sessions that people ask for are started"
    )]
    Memory {
        /// How much.
        percent: u8,
    },
    /// Too many requests wait for a slot.
    #[error("all session slots are in use and {0} requests wait already; `instar session queue` shows them")]
    QueueFull(usize),
    /// No request with this id waits.
    #[error("no session with id {0} waits for a slot; `instar session queue` shows those that do")]
    NotWaiting(String),
    /// No overdue input has this id.
    #[error("no message {0} waits for a decision; `instar session overdue` shows those that do")]
    NotOverdue(String),
    /// The runtime or tmux cannot be started here.
    #[error("{0}")]
    RuntimeMissing(String),
    /// A question is shown in the terminal; a text would answer it.
    #[error("the session shows a question in its terminal; answer it there, or with `instar session key`")]
    WaitingInput,
    /// It is being continued in another process already.
    #[error("the session is being continued in another process already")]
    InProgress,
    /// Its turn did not end in time.
    #[error("the session is still in a turn after two minutes; try again, or interrupt it")]
    Busy,
    /// The session is not in a turn.
    #[error("the session is not in a turn")]
    NotBusy,
    /// The reap guard keeps it.
    #[error("the session was kept: {0}. Use --force to end it all the same")]
    Kept(Keep),
    /// The owner protects it by name.
    #[error("the session is protected by sessions.protectedSessions. Use --force to end it all the same")]
    Protected,
    /// There is nothing to continue.
    #[error("the session has no transcript to continue")]
    NoTranscript,
    /// Too many refreshes, or one is going on.
    #[error("the session was refreshed too often: at most 5 times in 10 minutes")]
    RefreshLimit,
    /// The transport has no such thing.
    #[error("{0}")]
    Unsupported(String),
    /// The conversation's sessions crashed too often.
    #[error("sessions of this conversation crashed {0} times in 10 minutes; the next one starts in {1} s")]
    CrashLoop(usize, i64),
    /// The message journal refused.
    #[error("the message was not stored: {0}")]
    Journal(#[from] DatabaseError),
    /// Anything else on this machine.
    #[error("{0}")]
    Failed(String),
}

impl SessionError {
    /// Stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Ended(_) => "ended",
            Self::Invalid(_) => "invalid",
            Self::NameInUse(_) => "name_in_use",
            Self::Limit { .. } => "session_limit",
            Self::Memory { .. } => "memory_pressure",
            Self::QueueFull(_) => "session_queue_full",
            Self::NotFound(_) | Self::NotWaiting(_) | Self::NotOverdue(_) => "not_found",
            Self::RuntimeMissing(_) => "runtime_missing",
            Self::WaitingInput => "waiting_input",
            Self::InProgress => "in_progress",
            Self::Busy => "busy",
            Self::NotBusy => "not_busy",
            Self::Kept(_) => "kept",
            Self::Protected => "protected",
            Self::NoTranscript => "no_transcript",
            Self::RefreshLimit => "refresh_limit",
            Self::Unsupported(_) => "unsupported",
            Self::CrashLoop(..) => "crash_loop",
            Self::Journal(_) => "journal",
            Self::Failed(_) => "failed",
        }
    }
}

impl From<LaunchRefused> for SessionError {
    fn from(refused: LaunchRefused) -> Self {
        match refused {
            LaunchRefused::Missing { .. } | LaunchRefused::Root => Self::RuntimeMissing(refused.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<InvalidModel> for SessionError {
    fn from(invalid: InvalidModel) -> Self {
        Self::Invalid(invalid.to_string())
    }
}
