//! A row of the session inbox and how it is read.

use rusqlite::{Connection, OptionalExtension, Row};
use ulid::Ulid;

use super::Result;
use crate::ids::SessionId;
use crate::ports::{InputKind, InputState, SessionInput};

pub(super) const COLUMNS: &str = "ulid, inbox_key, conversation, kind, tag, body, steer, state, session_id, attempts, \
                       queued_at, injected_at, acked_at, error";

/// One row of the session inbox. Times are Unix milliseconds.
#[derive(Clone, PartialEq, Eq)]
pub struct InboxRow {
    /// Id that travels in the tag of the injected text.
    pub ulid: Ulid,
    /// What was accepted.
    pub input: SessionInput,
    /// Where it stands.
    pub state: InputState,
    /// Session that has it or was last given it.
    pub session: Option<SessionId>,
    /// Deliveries begun.
    pub attempts: u32,
    /// When it was accepted.
    pub queued_at: i64,
    /// When the runtime had it.
    pub injected_at: Option<i64>,
    /// When it was answered.
    pub acked_at: Option<i64>,
    /// Why the last delivery failed.
    pub error: Option<String>,
}

impl std::fmt::Debug for InboxRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InboxRow")
            .field("ulid", &self.ulid)
            .field("inbox_key", &self.input.inbox_key)
            .field("state", &self.state)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

pub(super) fn state_of(c: &Connection, ulid: Ulid) -> Result<Option<InputState>> {
    Ok(c.prepare_cached("SELECT state FROM session_inbox WHERE ulid = ?1")?
        .query_row([ulid.to_string()], |r| state_at(r, 0))
        .optional()?)
}

pub(super) fn row(r: &Row<'_>) -> rusqlite::Result<InboxRow> {
    let kind: String = r.get(3)?;
    let session: Option<String> = r.get(8)?;
    Ok(InboxRow {
        ulid: ulid_at(r, 0)?,
        input: SessionInput {
            inbox_key: r.get(1)?,
            conversation: parsed(r, 2)?,
            kind: kind_from(&kind).ok_or_else(|| unreadable(3, "kind", &kind))?,
            tag: r.get(4)?,
            body: r.get(5)?,
            steer: r.get(6)?,
        },
        state: state_at(r, 7)?,
        session: session.map(|s| s.parse().map_err(|_| unreadable(8, "session id", &s))).transpose()?,
        attempts: r.get(9)?,
        queued_at: r.get(10)?,
        injected_at: r.get(11)?,
        acked_at: r.get(12)?,
        error: r.get(13)?,
    })
}

pub(super) fn parsed<T: std::str::FromStr>(r: &Row<'_>, at: usize) -> rusqlite::Result<T> {
    let text: String = r.get(at)?;
    text.parse().map_err(|_| unreadable(at, "value", &text))
}

pub(super) fn ulid_at(r: &Row<'_>, at: usize) -> rusqlite::Result<Ulid> {
    let text: String = r.get(at)?;
    Ulid::from_string(&text).map_err(|_| unreadable(at, "ULID", &text))
}

pub(super) fn state_at(r: &Row<'_>, at: usize) -> rusqlite::Result<InputState> {
    let text: String = r.get(at)?;
    state_from(&text).ok_or_else(|| unreadable(at, "state", &text))
}

fn unreadable(at: usize, what: &str, text: &str) -> rusqlite::Error {
    let detail = format!("{text:?} is not a {what}");
    rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Text, detail.into())
}

pub(super) fn state_text(state: InputState) -> &'static str {
    match state {
        InputState::Queued => "queued",
        InputState::Injected => "injected",
        InputState::Acked => "acked",
        InputState::Failed => "failed",
        InputState::Expired => "expired",
    }
}

fn state_from(text: &str) -> Option<InputState> {
    Some(match text {
        "queued" => InputState::Queued,
        "injected" => InputState::Injected,
        "acked" => InputState::Acked,
        "failed" => InputState::Failed,
        "expired" => InputState::Expired,
        _ => return None,
    })
}

pub(super) fn kind_text(kind: InputKind) -> &'static str {
    match kind {
        InputKind::User => "user",
        InputKind::System => "system",
        InputKind::Agent => "agent",
    }
}

fn kind_from(text: &str) -> Option<InputKind> {
    Some(match text {
        "user" => InputKind::User,
        "system" => InputKind::System,
        "agent" => InputKind::Agent,
        _ => return None,
    })
}
