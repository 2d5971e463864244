//! peer-firewall: in a session that serves a peer nothing runs without the node's consent.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::binding::BindingState;
use crate::client::{Answer, NodeClient, NodeError};
use crate::verdict::Verdict;

/// Time that the node has for its answer.
const DEADLINE: Duration = Duration::from_millis(200);

/// Whether the session serves a peer: the stricter of what the environment and the node's file say.
pub(crate) fn is_active(environment_says_so: bool, binding: &BindingState) -> bool {
    environment_says_so
        || match binding {
            BindingState::Absent => false,
            BindingState::Unreadable => true,
            BindingState::Bound(binding) => binding.serves_peer,
        }
}

/// Asks the node about one tool call. Only a clear `allow` lets it through, and even then the runtime's own rules apply.
pub(crate) fn authorize(node: &NodeClient, session: &str, tool: &str, input: Option<&Value>) -> Verdict {
    let body = json!({ "sessionId": session, "tool": tool, "input": input });
    let answer = node.call("POST", "/threadline/authorize", Some(body.to_string().as_bytes()), DEADLINE);
    verdict(tool, answer)
}

#[derive(Deserialize)]
struct Decision {
    decision: String,
    reason: Option<String>,
}

fn verdict(tool: &str, answer: Result<Answer, NodeError>) -> Verdict {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            return Verdict::Deny(format!("{tool} is not allowed: this session serves a peer, and {error}."));
        }
    };
    let decision = serde_json::from_slice::<Decision>(&answer.body).ok().filter(|_| answer.status == 200);
    match decision {
        Some(decision) if decision.decision == "allow" => Verdict::Pass,
        Some(decision) => Verdict::Deny(format!(
            "{tool} is not allowed in this session, which serves a peer: {}.",
            decision.reason.as_deref().unwrap_or("no grant covers it").trim_end_matches('.')
        )),
        None => Verdict::Deny(format!(
            "{tool} is not allowed: this session serves a peer, and the node's answer (status {}) is no decision.",
            answer.status
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binding::SessionBinding;

    #[test]
    fn neither_source_alone_can_switch_it_off() {
        let bound = |serves_peer| {
            BindingState::Bound(SessionBinding { session: "s".into(), conversation: None, serves_peer })
        };
        assert!(!is_active(false, &BindingState::Absent));
        assert!(!is_active(false, &bound(false)));
        assert!(is_active(true, &bound(false)));
        assert!(is_active(false, &bound(true)));
        assert!(is_active(true, &BindingState::Absent));
        assert!(is_active(false, &BindingState::Unreadable));
    }

    #[test]
    fn only_a_clear_yes_lets_a_call_through() {
        let answer = |status, body: &str| Ok(Answer { status, body: body.as_bytes().to_vec() });
        assert_eq!(verdict("Read", answer(200, r#"{"decision":"allow"}"#)), Verdict::Pass);
        for refused in [
            answer(200, r#"{"decision":"deny","reason":"no-grant"}"#),
            answer(200, r#"{"decision":"ask"}"#),
            answer(200, r#"{"decision":"ALLOW"}"#),
            answer(200, "allow"),
            answer(404, r#"{"decision":"allow"}"#),
            answer(500, ""),
            Err(NodeError::NotRunning),
            Err(NodeError::TimedOut),
            Err(NodeError::Malformed),
        ] {
            assert!(matches!(verdict("Read", refused.clone()), Verdict::Deny(_)), "{refused:?}");
        }
    }
}
