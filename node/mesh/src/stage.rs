//! Stage 4 of the SendGateway for one message to a peer: autonomy, outbound limits, content classes
//! (`coherence-safety.md` §1.1, `threadline-agent.md` §8.1, §9.1, §12.4).

use std::sync::LazyLock;

use instar_outbound::{
    Block, Finding, Hold, Moment, OutboundMessage, SecretScan, Stage, StageId, StageVerdict,
};
use regex::Regex;
use threadline::TrustLevel;
use threadline::autonomy::{Autonomy, Controls, Gate};
use threadline::limits::{Usage, Window, check};

/// Facts about one message, looked up before the gateway runs.
pub(crate) struct MeshStage<'a> {
    pub(crate) autonomy: Autonomy,
    pub(crate) controls: Controls,
    pub(crate) level: TrustLevel,
    pub(crate) usage: &'a [(Window, Usage)],
    pub(crate) secrets: &'a dyn SecretScan,
    /// The owner approved this very text.
    pub(crate) approved: bool,
    /// The owner writes himself, or a session that does not speak for a peer's thread asked him already.
    pub(crate) by_owner: bool,
}

impl Stage for MeshStage<'_> {
    fn id(&self) -> StageId {
        StageId::Mesh
    }

    fn review(&self, message: &OutboundMessage, moment: &Moment) -> StageVerdict {
        let block = |rule: &'static str, text: String| Block::new(StageId::Mesh, rule, text);
        match self.autonomy.gate(self.controls) {
            Gate::Block => {
                return StageVerdict::Block(block("blocked-agent", "this agent is blocked".into()));
            }
            Gate::HoldPaused => {
                let text = "messages to this agent are paused until the owner resumes them";
                return StageVerdict::Block(block("blocked-agent", text.into()));
            }
            Gate::HoldForApproval if !self.approved && !self.by_owner => {
                return hold("autonomy", "the autonomy profile is cautious", Vec::new());
            }
            Gate::HoldForApproval | Gate::Pass(_) => {}
        }
        if let Err(limited) = check(self.usage.iter().map(|(w, u)| (w, *u)), moment.now_ms) {
            let text = format!(
                "the limit of messages to this agent is reached; try again in {} s",
                limited.retry_after_s
            );
            return StageVerdict::Block(block("rate-limited", text).retry_after(limited.retry_after_s));
        }
        let secrets: Vec<Finding> = message
            .texts()
            .flat_map(|text| self.secrets.scan(text))
            .map(|hit| Finding::new("secret", hit.kind))
            .collect();
        if !secrets.is_empty() {
            let kinds: Vec<&str> = secrets.iter().map(|f| f.detail.as_str()).collect();
            let text = format!("the message holds what must not leave: {}", kinds.join(", "));
            return StageVerdict::Block(block("content-blocked", text).with_findings(secrets));
        }
        if self.level < TrustLevel::Autonomous && !self.approved {
            let sensitive: Vec<Finding> =
                message.texts().flat_map(sensitive).map(|what| Finding::new("sensitive", what)).collect();
            if !sensitive.is_empty() {
                return hold("sensitive", "the message looks sensitive", sensitive);
            }
        }
        StageVerdict::Pass
    }
}

fn hold(rule: &'static str, reason: &str, findings: Vec<Finding>) -> StageVerdict {
    StageVerdict::Hold(Hold { by: StageId::Mesh, rule: rule.into(), reason: reason.to_owned(), findings })
}

/// Classes that the owner looks at first.
fn sensitive(text: &str) -> Vec<&'static str> {
    static CLASSES: LazyLock<Vec<(&str, Regex)>> = LazyLock::new(|| {
        let class = |name, pattern: &str| (name, Regex::new(pattern).expect("a constant pattern"));
        vec![
            class("social-security-number", r"\b\d{3}-\d{2}-\d{4}\b"),
            class(
                "e-mail with password",
                r"(?is)[\w.+-]+@[\w-]+\.\w+.{0,80}\b(?:password|passwd|passwort)\b",
            ),
            class(
                "password with e-mail",
                r"(?is)\b(?:password|passwd|passwort)\b.{0,80}[\w.+-]+@[\w-]+\.\w+",
            ),
            class("database query", r"(?is)\bselect\b.{1,200}\bfrom\b.{1,200}\bwhere\b.{0,100}[=<>]"),
            class("internal prompt", r"(?i)\bsystem prompt:|\[INTERNAL\]"),
        ]
    });
    CLASSES.iter().filter(|(_, pattern)| pattern.is_match(text)).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (text, class) in [
            ("my number is 123-45-6789", "social-security-number"),
            ("log in as ann@example.org, the password is below", "e-mail with password"),
            ("SELECT name FROM users WHERE id = 4", "database query"),
            ("here is the System Prompt: you are", "internal prompt"),
        ] {
            assert_eq!(sensitive(text), [class], "{text}");
        }
        for text in ["call 555-1234", "write to ann@example.org", "select the file from the list", "hello"] {
            assert!(sensitive(text).is_empty(), "{text}");
        }
    }
}
