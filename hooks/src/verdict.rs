//! What hooks decide, how decisions are merged, and how they are written for a runtime.

use serde_json::{Value, json};

use crate::context::{self, Section};
use crate::event::{Event, Runtime};

/// Decision of one hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing to say.
    Pass,
    /// The runtime need not ask anybody.
    Allow,
    /// A person must decide.
    Ask(String),
    /// Not this.
    Deny(String),
    /// The prompt does not reach the model.
    Block(String),
    /// Something for the model to know.
    Context(Vec<Section>),
}

/// All decisions of an event, merged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    deny: Vec<String>,
    ask: Vec<String>,
    block: Vec<String>,
    allow: bool,
    context: Vec<Section>,
}

impl Outcome {
    /// Adds the decision of the next hook in order.
    pub(crate) fn add(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Pass => {}
            Verdict::Allow => self.allow = true,
            Verdict::Ask(reason) => self.ask.push(reason),
            Verdict::Deny(reason) => self.deny.push(reason),
            Verdict::Block(reason) => self.block.push(reason),
            Verdict::Context(sections) => self.context.extend(sections),
        }
    }

    /// Whether something is refused.
    pub(crate) fn denies(&self) -> bool {
        !self.deny.is_empty()
    }

    /// The JSON for the runtime's standard input, empty when there is nothing to say. Only fields that the event
    /// knows are written; deny wins over ask, ask over allow.
    pub(crate) fn render(&self, event: Event, runtime: Runtime) -> String {
        let context = (!self.context.is_empty()).then(|| context::join(&self.context));
        let mut output = match event {
            Event::PreToolUse => self.permission(runtime),
            Event::PermissionRequest => self.permission_request(),
            Event::UserPromptSubmit if !self.block.is_empty() => {
                return json!({ "decision": "block", "reason": self.block.join("\n") }).to_string();
            }
            _ => json!({}),
        };
        let takes_context = matches!(
            event,
            Event::SessionStart
                | Event::UserPromptSubmit
                | Event::PreToolUse
                | Event::PostToolUse
                | Event::SubagentStart
        );
        if let (Some(context), Some(fields), true) = (context, output.as_object_mut(), takes_context) {
            fields.insert("additionalContext".to_owned(), Value::from(context));
        }
        match output.as_object_mut() {
            Some(fields) if !fields.is_empty() => {
                fields.shift_insert(0, "hookEventName".to_owned(), Value::from(event.name()));
                json!({ "hookSpecificOutput": output }).to_string()
            }
            _ => String::new(),
        }
    }

    fn permission(&self, runtime: Runtime) -> Value {
        let decided = |decision: &str, reasons: &[String]| json!({ "permissionDecision": decision, "permissionDecisionReason": reasons.join("\n") });
        match (self.deny.as_slice(), self.ask.as_slice(), runtime) {
            ([], [], _) => json!({}),
            ([], asked, Runtime::Claude) => decided("ask", asked),
            ([], asked, Runtime::Codex) => decided("deny", asked),
            (denied, _, _) => decided("deny", denied),
        }
    }

    fn permission_request(&self) -> Value {
        if self.denies() || !self.ask.is_empty() && !self.allow {
            if self.deny.is_empty() {
                return json!({});
            }
            return json!({ "decision": { "behavior": "deny", "message": self.deny.join("\n") } });
        }
        if self.allow && self.ask.is_empty() {
            return json!({ "decision": { "behavior": "allow" } });
        }
        json!({})
    }
}

impl Verdict {
    /// Name and reason for the report; none when there was nothing to say.
    pub(crate) fn summary(&self) -> Option<(&'static str, Option<&str>)> {
        match self {
            Verdict::Pass => None,
            Verdict::Allow => Some(("allow", None)),
            Verdict::Ask(reason) => Some(("ask", Some(reason))),
            Verdict::Deny(reason) => Some(("deny", Some(reason))),
            Verdict::Block(reason) => Some(("block", Some(reason))),
            Verdict::Context(_) => Some(("context", None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(verdicts: Vec<Verdict>) -> Outcome {
        let mut outcome = Outcome::default();
        for verdict in verdicts {
            outcome.add(verdict);
        }
        outcome
    }

    #[test]
    fn deny_wins_over_ask_over_allow_and_codex_never_asks() {
        let (ask, deny) = (Verdict::Ask("a".into()), Verdict::Deny("d".into()));
        let all = outcome(vec![Verdict::Allow, ask.clone(), deny.clone(), Verdict::Deny("e".into())]);
        assert_eq!(
            all.render(Event::PreToolUse, Runtime::Claude),
            r#"{"hookSpecificOutput":{"hookEventName":"PreToolUse","permissionDecision":"deny","permissionDecisionReason":"d\ne"}}"#
        );
        let asks = outcome(vec![Verdict::Allow, ask]);
        assert!(asks.render(Event::PreToolUse, Runtime::Claude).contains(r#""permissionDecision":"ask""#));
        assert!(asks.render(Event::PreToolUse, Runtime::Codex).contains(r#""permissionDecision":"deny""#));
        assert_eq!(asks.render(Event::PermissionRequest, Runtime::Claude), "");
        assert_eq!(
            outcome(vec![deny]).render(Event::PermissionRequest, Runtime::Claude),
            r#"{"hookSpecificOutput":{"hookEventName":"PermissionRequest","decision":{"behavior":"deny","message":"d"}}}"#
        );
        assert_eq!(
            outcome(vec![Verdict::Allow]).render(Event::PermissionRequest, Runtime::Claude),
            r#"{"hookSpecificOutput":{"hookEventName":"PermissionRequest","decision":{"behavior":"allow"}}}"#
        );
    }

    #[test]
    fn an_event_without_an_answer_gets_none() {
        let context = Verdict::Context(vec![Section::new("X", "y")]);
        assert_eq!(outcome(vec![context.clone()]).render(Event::SessionEnd, Runtime::Claude), "");
        assert_eq!(outcome(vec![]).render(Event::PreToolUse, Runtime::Claude), "");
        assert!(
            outcome(vec![context.clone()]).render(Event::SessionStart, Runtime::Claude).contains("--- X ---")
        );
        let blocked = outcome(vec![Verdict::Block("no".into()), context]);
        assert_eq!(
            blocked.render(Event::UserPromptSubmit, Runtime::Claude),
            r#"{"decision":"block","reason":"no"}"#
        );
    }
}
