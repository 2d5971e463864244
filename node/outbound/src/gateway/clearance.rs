//! The proof that the gateway looked, and what it noted.

use std::borrow::Cow;
use std::fmt;

use uuid::Uuid;

use crate::{Finding, Moment, StageId};

/// What the gateway noted about a message that it cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Stored with the outbox row.
    pub id: Uuid,
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Findings that did not stop it.
    pub warnings: Vec<(StageId, Finding)>,
    /// Stages that could not look, with the cause.
    pub abstained: Vec<(StageId, Cow<'static, str>)>,
}

impl Verdict {
    pub(super) fn new(moment: &Moment) -> Self {
        Self { id: moment.verdict_id, at_ms: moment.now_ms, warnings: Vec::new(), abstained: Vec::new() }
    }

    pub(super) fn warn(&mut self, by: StageId, findings: Vec<Finding>) {
        self.warnings.extend(findings.into_iter().map(|finding| (by, finding)));
    }

    pub(super) fn abstain(&mut self, by: StageId, cause: Cow<'static, str>) {
        self.abstained.push((by, cause));
    }
}

/// A value that passed the gateway. Only the engine makes one, it cannot be copied, and an outbox takes it by value:
/// one clearance, one row.
#[must_use]
pub struct Cleared<T> {
    value: T,
    verdict: Verdict,
}

impl<T> Cleared<T> {
    pub(super) fn mint(value: T, verdict: Verdict) -> Self {
        Self { value, verdict }
    }

    /// Looks at the value.
    pub fn get(&self) -> &T {
        &self.value
    }

    /// Looks at the verdict.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Spends the clearance, for the transaction that writes the outbox row.
    pub fn into_parts(self) -> (T, Verdict) {
        (self.value, self.verdict)
    }
}

impl<T: fmt::Debug> fmt::Debug for Cleared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cleared").field("value", &self.value).field("verdict", &self.verdict.id).finish()
    }
}
