//! Calls to the running node, with the owner's PIN where the node asks for it.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::{Agent, Ctx, Exit, Failure, owner};
use crate::client::{Answer, Call};

/// Runs one piece of asynchronous work to its end.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // A task that still reads a closed connection must not hold the process.
    runtime.shutdown_timeout(Duration::ZERO);
    Ok(result)
}

/// Sends a request to the agent's node and returns the body of a successful answer.
pub(crate) fn call(ctx: &Ctx, agent: &Agent, call: Call) -> Result<Value, Failure> {
    let answer = exchange(ctx, agent, call)?;
    if answer.is_success() {
        return Ok(answer.json());
    }
    Err(refusal(&answer))
}

/// Sends a request and returns whatever the node says. A node that wants the owner gets the PIN, once.
pub(crate) fn exchange(ctx: &Ctx, agent: &Agent, call: Call) -> Result<Answer, Failure> {
    let client = agent.client(ctx);
    let answer = block_on(client.send(call.clone()))??;
    let body = answer.json();
    if answer.status != 403 || body["code"] != "user_verification_required" {
        return Ok(answer);
    }
    let Some(challenge) = body["challengeId"].as_str() else { return Ok(answer) };
    let action = body["error"].as_str().unwrap_or("this");
    owner::must_be_askable(ctx, "this action")?;
    super::say(&super::reply::shown(action));
    let pin = owner::ask_hidden("PIN: ")?;
    let proven = call.header("x-instar-challenge", challenge).header("x-instar-pin", pin.expose().clone());
    Ok(block_on(client.send(proven))??)
}

/// What a refused request means for the command line.
pub(crate) fn refusal(answer: &Answer) -> Failure {
    let body = answer.json();
    let code = body["code"].as_str().unwrap_or("failed").to_owned();
    let mut message = match body["error"].as_str() {
        Some(text) => super::reply::shown(text),
        None => format!("the node answered with status {}", answer.status),
    };
    if let Some(candidates) =
        body.pointer("/details/candidates").or(body.get("candidates")).and_then(Value::as_array)
    {
        for candidate in candidates {
            let line = candidate["address"].as_str().or(candidate["path"].as_str()).or(candidate.as_str());
            message.push_str("\n  ");
            message.push_str(&super::reply::one_line(line.unwrap_or_default(), 200));
        }
    }
    if let Some(details) = body["details"].as_array().filter(|d| d.len() > 1) {
        for problem in details {
            let (path, text) = (problem["path"].as_str(), problem["problem"].as_str());
            let _ = write!(message, "\n  {}: {}", path.unwrap_or_default(), text.unwrap_or_default());
        }
    }
    let exit = match (answer.status, code.as_str()) {
        (409, code) if code.starts_with("ambiguous") => Exit::Usage,
        (401 | 403 | 422, _) => Exit::Refused,
        (404 | 410, _) => Exit::NotFound,
        (_, code) if code.ends_with("-not-found") || code.ends_with("_not_found") => Exit::NotFound,
        (503, "booting" | "draining") => Exit::NoNode,
        _ => Exit::Failed,
    };
    let mut failure = Failure::new(exit, &code, message).with("status", answer.status);
    if let Some(object) = body.as_object() {
        let more = object.iter().filter(|(k, _)| !matches!(k.as_str(), "error" | "code"));
        failure.facts.extend(more.map(|(k, v)| (k.clone(), v.clone())));
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(status: u16, body: Value) -> Answer {
        Answer { status, content_type: "application/json".into(), body: body.to_string().into() }
    }

    #[test]
    fn refusals_have_the_exit_code_of_their_kind() {
        let table = [
            (400, "invalid_request", Exit::Failed),
            (403, "operator_required", Exit::Refused),
            (404, "not_found", Exit::NotFound),
            (409, "ambiguous-agent", Exit::Usage),
            (409, "already-decided", Exit::Failed),
            (422, "content-blocked", Exit::Refused),
            (503, "booting", Exit::NoNode),
            (503, "relay-unavailable", Exit::Failed),
        ];
        for (status, code, exit) in table {
            let failure = refusal(&answer(status, json!({"error": "No.", "code": code})));
            assert_eq!((failure.exit, failure.code.as_str()), (exit, code));
        }
    }

    #[test]
    fn candidates_and_problems_are_listed() {
        let ambiguous = json!({"error": "Two agents are called bob.", "code": "ambiguous-agent",
            "details": {"candidates": [{"name": "bob", "address": "bob:01234567"}, {"address": "bob:89abcdef"}]}});
        assert_eq!(
            refusal(&answer(409, ambiguous)).message,
            "Two agents are called bob.\n  bob:01234567\n  bob:89abcdef"
        );
        let invalid = json!({"error": "name: is missing", "code": "invalid_request",
            "details": [{"path": "name", "problem": "is missing"}, {"path": "prompt", "problem": "is missing"}]});
        assert_eq!(
            refusal(&answer(400, invalid)).message,
            "name: is missing\n  name: is missing\n  prompt: is missing"
        );
    }
}
