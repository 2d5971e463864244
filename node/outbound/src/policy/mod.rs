//! Stage 2, the policy enforcement layer: deterministic rules that always run (`coherence-safety.md` §2).

mod internal_url;
mod pii;
mod text_rules;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Block, Finding, OutboundMessage, RecipientKind, StageId, StageVerdict, invisible};

/// The rules of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PelRule {
    /// A credential by its shape.
    CredentialLeak,
    /// One of the node's own secrets, in any common encoding.
    AuthTokenLeak,
    /// Personal data of someone else.
    PiiDetection,
    /// Address of a machine that the reader cannot or should not reach.
    InternalUrlLeak,
    /// Path on this machine.
    FilePathLeak,
    /// Name of an environment variable that holds a secret, or code that reads one.
    EnvVarLeak,
    /// Hidden characters.
    InvisibleText,
}

impl PelRule {
    /// All.
    pub const ALL: [Self; 7] = [
        Self::CredentialLeak,
        Self::AuthTokenLeak,
        Self::PiiDetection,
        Self::InternalUrlLeak,
        Self::FilePathLeak,
        Self::EnvVarLeak,
        Self::InvisibleText,
    ];

    /// Id in verdicts and configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CredentialLeak => "credential-leak",
            Self::AuthTokenLeak => "auth-token-leak",
            Self::PiiDetection => "pii-detection",
            Self::InternalUrlLeak => "internal-url-leak",
            Self::FilePathLeak => "file-path-leak",
            Self::EnvVarLeak => "env-var-leak",
            Self::InvisibleText => "invisible-text",
        }
    }
}

impl fmt::Display for PelRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PelRule {
    type Err = UnknownPelRule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|rule| rule.name() == text).ok_or_else(|| UnknownPelRule(text.to_owned()))
    }
}

/// No rule has this id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no rule of the policy layer")]
pub struct UnknownPelRule(String);

/// Which of the two secret rules a hit belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretClass {
    /// Looks like a credential of some service.
    Credential,
    /// Is one of this node's own secrets.
    OwnSecret,
}

/// A secret found in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretHit {
    /// Which rule it breaks.
    pub class: SecretClass,
    /// What it is, for people: `GitHub token`. Never its value.
    pub kind: String,
    /// Bytes that it covers.
    pub span: Range<usize>,
}

/// Finds credentials and own secrets. The shared secret table implements it; the composition root joins the two.
pub trait SecretScan: Send + Sync {
    /// All hits in `text` that must not leave.
    fn scan(&self, text: &str) -> Vec<SecretHit>;
}

impl<F> SecretScan for F
where
    F: Fn(&str) -> Vec<SecretHit> + Send + Sync,
{
    fn scan(&self, text: &str) -> Vec<SecretHit> {
        self(text)
    }
}

/// What the owner may set. Loosening needs the owner's proof, which whoever builds this has checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PelConfig {
    /// Rules that only warn.
    pub downgraded: BTreeSet<PelRule>,
    /// Contact values that anyone may be told (`responseReview.piiAllow`).
    pub pii_allow: Vec<String>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Goes out, with a note.
    Warn,
    /// Does not go out.
    HardBlock,
}

/// One broken rule. Holds the kind of the value and its place, never the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The rule.
    pub rule: PelRule,
    /// How bad.
    pub severity: Severity,
    /// Rule and kind of value, for the writer of the text.
    pub detail: String,
    /// Bytes of the text it covers.
    pub span: Range<usize>,
}

/// Hidden characters beyond which a text is taken for a smuggling attempt.
const HIDDEN_TOLERATED: usize = 8;

/// The policy enforcement layer.
pub struct Pel {
    config: PelConfig,
    secrets: Arc<dyn SecretScan>,
}

impl Pel {
    /// A layer over the given secret scanner.
    pub fn new(config: PelConfig, secrets: Arc<dyn SecretScan>) -> Self {
        Self { config, secrets }
    }

    /// Everything that `text` breaks when it is said to the reader of `message`. Used alone for text that is checked
    /// outside the gateway, such as a released hold's edit.
    pub fn enforce(&self, text: &str, message: &OutboundMessage) -> Vec<Violation> {
        let reader = message.target.recipient.kind;
        let mut violations = Vec::new();
        let mut add = |rule: PelRule, severity: Severity, kind: &str, span: Range<usize>| {
            let severity = if self.config.downgraded.contains(&rule) { Severity::Warn } else { severity };
            violations.push(Violation { rule, severity, detail: format!("{rule}: {kind}"), span });
        };
        for hit in self.secrets.scan(text) {
            let rule = match hit.class {
                SecretClass::Credential => PelRule::CredentialLeak,
                SecretClass::OwnSecret => PelRule::AuthTokenLeak,
            };
            add(rule, Severity::HardBlock, &hit.kind, hit.span);
        }
        for (kind, span) in text_rules::credentials(text) {
            add(PelRule::CredentialLeak, Severity::HardBlock, kind, span);
        }
        for span in text_rules::env_vars(text) {
            add(PelRule::EnvVarLeak, Severity::Warn, "environment variable of a secret", span);
        }
        if !message.target.channel.is_external() {
            return violations;
        }
        if let Some(severity) = pii_severity(reader) {
            let allowed = pii::Allowed::new(
                message.target.recipient.own_values.iter().chain(&self.config.pii_allow).map(String::as_str),
            );
            for found in pii::find(text) {
                if !allowed.contains(&found, text) {
                    add(PelRule::PiiDetection, severity, found.kind.describe(), found.span);
                }
            }
        }
        let url_severity =
            if reader == RecipientKind::PrimaryUser { Severity::Warn } else { Severity::HardBlock };
        for span in internal_url::find(text) {
            add(PelRule::InternalUrlLeak, url_severity, "address inside this machine or network", span);
        }
        for span in text_rules::file_paths(text) {
            add(PelRule::FilePathLeak, Severity::Warn, "path on this machine", span);
        }
        let hidden: Vec<usize> = invisible::hidden(text).collect();
        if let (Some(&first), Some(&last)) = (hidden.first(), hidden.last()) {
            let severity = if hidden.len() > HIDDEN_TOLERATED { Severity::HardBlock } else { Severity::Warn };
            add(
                PelRule::InvisibleText,
                severity,
                "invisible characters",
                first..text.ceil_char_boundary(last + 1),
            );
        }
        violations
    }

    /// The layer's word on a whole message.
    pub(crate) fn review(&self, message: &OutboundMessage) -> StageVerdict {
        let violations: Vec<Violation> =
            message.texts().flat_map(|text| self.enforce(text, message)).collect();
        let blocking: Vec<&Violation> =
            violations.iter().filter(|violation| violation.severity == Severity::HardBlock).collect();
        let Some(first) = blocking.first() else {
            return if violations.is_empty() {
                StageVerdict::Pass
            } else {
                StageVerdict::Warn(violations.into_iter().map(Finding::from).collect())
            };
        };
        let mut lines: Vec<String> =
            blocking.iter().map(|violation| format!("[POLICY VIOLATION] {}", violation.detail)).collect();
        lines.dedup();
        let block = Block::new(StageId::Policy, first.rule.name(), lines.join("\n"));
        StageVerdict::Block(block.with_findings(violations.into_iter().map(Finding::from).collect()))
    }
}

impl From<Violation> for Finding {
    fn from(violation: Violation) -> Self {
        Self { rule: violation.rule.name().into(), detail: violation.detail, span: Some(violation.span) }
    }
}

const fn pii_severity(reader: RecipientKind) -> Option<Severity> {
    match reader {
        RecipientKind::PrimaryUser => None,
        RecipientKind::SecondaryUser => Some(Severity::Warn),
        RecipientKind::Agent | RecipientKind::ExternalContact => Some(Severity::HardBlock),
    }
}
