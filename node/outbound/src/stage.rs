//! The fixed order of checks, and what one check may say.

use std::borrow::Cow;
use std::ops::Range;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::OutboundMessage;

/// The stages in the order in which they run (`coherence-safety.md` §1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum StageId {
    /// Channel registered, text structurally valid.
    Structure = 0,
    /// Emergency stop, session held by a stop word.
    Latch = 1,
    /// Policy enforcement layer.
    Policy = 2,
    /// Text of the node itself and of bridges is cleared here.
    SystemDelivery = 3,
    /// Autonomy, limits and content classes of the mesh.
    Mesh = 4,
    /// Conversation, group privacy, purpose.
    Place = 5,
    /// Duplicate and junk signals.
    Repetition = 6,
    /// Convergence heuristics.
    Convergence = 7,
    /// Grounding validator.
    Grounding = 8,
    /// Tone gate.
    Tone = 9,
    /// Response review.
    Review = 10,
    /// The clearance itself.
    Clearance = 11,
}

impl StageId {
    /// All, in order.
    pub const ALL: [Self; 12] = [
        Self::Structure,
        Self::Latch,
        Self::Policy,
        Self::SystemDelivery,
        Self::Mesh,
        Self::Place,
        Self::Repetition,
        Self::Convergence,
        Self::Grounding,
        Self::Tone,
        Self::Review,
        Self::Clearance,
    ];

    /// Name in statistics and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Structure => "structure",
            Self::Latch => "latch",
            Self::Policy => "policy",
            Self::SystemDelivery => "system-delivery",
            Self::Mesh => "mesh",
            Self::Place => "place",
            Self::Repetition => "repetition",
            Self::Convergence => "convergence",
            Self::Grounding => "grounding",
            Self::Tone => "tone",
            Self::Review => "review",
            Self::Clearance => "clearance",
        }
    }

    /// Position, 0 to 11.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl Serialize for StageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What stops everything, as the caller knows it at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Latch {
    /// Nothing is stopped.
    #[default]
    Open,
    /// The emergency stop is set.
    EmergencyStop,
    /// The writing session is held by a stop word.
    SessionHeld,
}

/// What the engine is told about the moment: it has no clock, no randomness and no state of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Now, milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// Fresh id for the verdict.
    pub verdict_id: Uuid,
    /// State of the stop latches.
    pub latch: Latch,
}

/// One finding. Never holds the text that matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Rule id from the stage's closed list.
    pub rule: Cow<'static, str>,
    /// What kind of thing was found, for the writer of the text.
    pub detail: String,
    /// Bytes of the text it covers, where it covers any.
    #[serde(skip)]
    pub span: Option<Range<usize>>,
}

impl Finding {
    /// A finding without a place.
    pub fn new(rule: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self { rule: rule.into(), detail: detail.into(), span: None }
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// Stage that refused.
    pub by: StageId,
    /// Rule that decided.
    pub rule: Cow<'static, str>,
    /// What the writer should know and do; never contains the text that matched.
    pub feedback: String,
    /// Everything found by that stage.
    pub findings: Vec<Finding>,
    /// Earliest useful repetition, for limits.
    pub retry_after_seconds: Option<u64>,
}

impl Block {
    /// A refusal with one rule.
    pub fn new(by: StageId, rule: impl Into<Cow<'static, str>>, feedback: impl Into<String>) -> Self {
        Self {
            by,
            rule: rule.into(),
            feedback: feedback.into(),
            findings: Vec::new(),
            retry_after_seconds: None,
        }
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// Adds what was found.
    #[must_use]
    pub fn with_findings(mut self, findings: Vec<Finding>) -> Self {
        self.findings = findings;
        self
    }
}

/// A decision that a person must take first. The stage's owner stores it; nothing is sent meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// Stage that holds.
    pub by: StageId,
    /// Rule that decided.
    pub rule: Cow<'static, str>,
    /// Why, for the person who decides.
    pub reason: String,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// What one stage says about one message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StageVerdict {
    /// Nothing to say.
    #[default]
    Pass,
    /// Goes on, with findings for the record and the later stages' authorities.
    Warn(Vec<Finding>),
    /// Could not look; counted, never taken for a pass.
    Abstain {
        /// `provider-error`, `timeout`, `budget`, …
        cause: Cow<'static, str>,
    },
    /// Not sent.
    Block(Block),
    /// Not sent until someone decides.
    Hold(Hold),
    /// Already sent.
    Duplicate {
        /// The earlier message.
        of: String,
    },
}

/// One check. Pure: whatever it needs of the world it was given before.
pub trait Stage: Send + Sync {
    /// Where it stands in the order.
    fn id(&self) -> StageId;

    /// Whether this message concerns it at all.
    fn applies_to(&self, _message: &OutboundMessage) -> bool {
        true
    }

    /// Looks at one message.
    fn review(&self, message: &OutboundMessage, moment: &Moment) -> StageVerdict;
}
