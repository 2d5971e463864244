//! The bridge for plain A2A clients (`relay.md` §13): requests read, tasks and their ends; no I/O.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use threadline::Fingerprint;
use threadline::time::iso_ms;

/// Longest wait for the agent.
pub const PATIENCE_MS: i64 = 300_000;
/// How long the end of a task can be asked for.
const KEPT_MS: i64 = 600_000;
/// Tasks of one agent at a time.
const PER_AGENT: usize = 3;
/// Tasks that are remembered; when full, nothing new is begun.
const TASKS: usize = 10_000;
const CONTEXT_ID: usize = 128;

/// A failure, as JSON-RPC and HTTP say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The body is not JSON.
    Parse,
    /// An unknown method.
    Method,
    /// Wrong parameters.
    Params(&'static str),
    /// No such agent, task, or one that is not offered.
    NotFound,
    /// The caller may not.
    Unauthorized,
    /// Too many tasks of this agent at a time.
    Busy,
    /// The relay could not hand the message on.
    NotDelivered,
}

impl Fault {
    /// JSON-RPC code, HTTP status and text.
    pub const fn describe(self) -> (i64, u16, &'static str) {
        match self {
            Self::Parse => (-32700, 400, "Parse error"),
            Self::Method => (-32601, 400, "Method not found"),
            Self::Params(text) => (-32602, 400, text),
            Self::NotFound => (-32001, 404, "Not found"),
            Self::Unauthorized => (-32001, 401, "This agent wants a bearer token that it has given out"),
            Self::Busy => (-32002, 429, "Too many tasks of this agent at a time"),
            Self::NotDelivered => (-32003, 502, "The message could not be delivered"),
        }
    }
}

/// A JSON-RPC error body.
pub fn error_body(id: &Value, code: i64, text: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text}})
}

/// The shape of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Of the bridge's own routes (`relay.md` §13): `status` is a word.
    Bridge,
    /// Of A2A 0.3, at the address that the card names: a `Task` object.
    Standard,
}

/// A request of a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Id of the JSON-RPC request.
    pub id: Value,
    /// What is asked.
    pub method: Method,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// `message/send`.
    Send(Send),
    /// `tasks/get`, of the standard form only: the task's id.
    Get(String),
    /// `tasks/cancel`, of the standard form only: the task's id.
    Cancel(String),
}

/// A text for an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// The text of all text parts.
    pub text: String,
    /// Conversation that it belongs to.
    pub context: Option<String>,
    /// Whether the answer waits for the agent's (`configuration.blocking`, true unless said).
    pub waits: bool,
}

/// Reads a request. An error comes with the id of the request, as far as it could be read.
pub fn read(body: &[u8], form: Form) -> Result<Request, (Value, Fault)> {
    let mut request: Map<String, Value> =
        serde_json::from_slice(body).map_err(|_| (Value::Null, Fault::Parse))?;
    let id = request.remove("id").filter(|id| id.is_string() || id.is_number()).unwrap_or(Value::Null);
    let parameters = request.get("params").and_then(Value::as_object);
    let method = match (request.get("method").and_then(Value::as_str), form) {
        (Some("message/send"), _) => {
            parameters.ok_or("params must be an object").and_then(read_send).map(Method::Send)
        }
        (Some("tasks/get"), Form::Standard) => read_task(parameters).map(Method::Get),
        (Some("tasks/cancel"), Form::Standard) => read_task(parameters).map(Method::Cancel),
        _ => return Err((id, Fault::Method)),
    };
    match method {
        Ok(method) => Ok(Request { id, method }),
        Err(text) => Err((id, Fault::Params(text))),
    }
}

fn read_task(parameters: Option<&Map<String, Value>>) -> Result<String, &'static str> {
    let task = parameters.and_then(|parameters| parameters.get("id")).and_then(Value::as_str);
    task.map(str::to_owned).ok_or("params.id must be the id of a task")
}

fn read_send(parameters: &Map<String, Value>) -> Result<Send, &'static str> {
    let message =
        parameters.get("message").and_then(Value::as_object).ok_or("params.message must be an object")?;
    let parts =
        message.get("parts").and_then(Value::as_array).ok_or("params.message.parts must be a list")?;
    let is_text = |part: &&Value| {
        ["type", "kind"].iter().any(|name| part.get(*name).and_then(Value::as_str) == Some("text"))
    };
    let texts: Vec<&str> =
        parts.iter().filter(is_text).filter_map(|part| part.get("text").and_then(Value::as_str)).collect();
    let text = texts.join("\n");
    if text.trim().is_empty() {
        return Err("params.message.parts has no text");
    }
    let context = [parameters.get("contextId"), message.get("contextId")].into_iter().flatten().next();
    let context = match context {
        None | Some(Value::Null) => None,
        Some(Value::String(context)) if context.len() <= CONTEXT_ID => Some(context.clone()),
        Some(_) => return Err("contextId must be a short text"),
    };
    let blocking = parameters.get("configuration").and_then(|configuration| configuration.get("blocking"));
    Ok(Send { text, context, waits: blocking.and_then(Value::as_bool) != Some(false) })
}

/// Who calls: a bearer token or a source, never in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller([u8; 32]);

impl Caller {
    /// The holder of a token.
    pub fn token(token: &str) -> Self {
        Self(Sha256::new().chain_update(b"token\0").chain_update(token).finalize().into())
    }

    /// Somebody without a token.
    pub fn anonymous(source: &[u8; 8]) -> Self {
        Self(Sha256::new().chain_update(b"source\0").chain_update(source).finalize().into())
    }

    /// As it is stored.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Hash under which the token of an agent is stored.
pub fn token_hash(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

/// The end of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The agent answered.
    Completed(String),
    /// The message was refused on its way.
    Refused,
    /// Nobody answered in time.
    TimedOut,
    /// The caller gave up.
    Canceled,
}

/// Where a task is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Running,
    Ended { end: End, at_ms: i64 },
}

#[derive(Debug, Clone)]
struct Task {
    agent: Fingerprint,
    thread: String,
    context: String,
    begun_ms: i64,
    state: State,
}

/// All tasks of the bridge.
#[derive(Debug, Default)]
pub struct Tasks {
    known: HashMap<String, Task>,
    /// Task that waits in each conversation.
    waiting: HashMap<(Fingerprint, String), String>,
    /// Conversations in which nobody waits any more.
    ended: Vec<(Fingerprint, String)>,
}

impl Tasks {
    /// Begins a task; the message id is the task id.
    pub fn begin(
        &mut self,
        task: &str,
        agent: Fingerprint,
        thread: &str,
        context: &str,
        now_ms: i64,
    ) -> Result<(), Fault> {
        let busy = self.waiting.keys().filter(|(of, _)| *of == agent).count() >= PER_AGENT;
        let place = (agent, thread.to_owned());
        if busy || self.waiting.contains_key(&place) || self.known.len() >= TASKS {
            return Err(Fault::Busy);
        }
        self.waiting.insert(place, task.to_owned());
        let (thread, context) = (thread.to_owned(), context.to_owned());
        let begun = Task { agent, thread, context, begun_ms: now_ms, state: State::Running };
        self.known.insert(task.to_owned(), begun);
        Ok(())
    }

    /// A message of an agent in a conversation: the task that it completes.
    pub fn answered(
        &mut self,
        agent: Fingerprint,
        thread: &str,
        text: String,
        now_ms: i64,
    ) -> Option<String> {
        let task = self.waiting.get(&(agent, thread.to_owned()))?.clone();
        self.end(&task, End::Completed(text), now_ms).then_some(task)
    }

    /// Whether the agent may write to the bridge in this conversation.
    pub fn is_awaited(&self, agent: Fingerprint, thread: &str) -> bool {
        self.waiting.contains_key(&(agent, thread.to_owned()))
    }

    /// Ends a running task. Whether it was running.
    pub fn end(&mut self, task: &str, end: End, now_ms: i64) -> bool {
        let Some(found) = self.known.get_mut(task).filter(|found| found.state == State::Running) else {
            return false;
        };
        found.state = State::Ended { end, at_ms: now_ms };
        let place = (found.agent, found.thread.clone());
        self.waiting.remove(&place);
        self.ended.push(place);
        true
    }

    /// Conversations in which a task ended since the last call and nobody waits now.
    pub fn take_ended(&mut self) -> Vec<(Fingerprint, String)> {
        let ended = std::mem::take(&mut self.ended);
        ended.into_iter().filter(|place| !self.waiting.contains_key(place)).collect()
    }

    /// The end of a task, once it has one.
    pub fn end_of(&self, task: &str) -> Option<&End> {
        self.known.get(task)?.state.end()
    }

    /// A task of that agent as its callers see it; `None` when there is none.
    pub fn describe(&self, task: &str, agent: &Fingerprint, form: Form) -> Option<Value> {
        let found = self.known.get(task).filter(|found| found.agent == *agent)?;
        Some(match form {
            Form::Bridge => found.as_bridge(task),
            Form::Standard => found.as_standard(task),
        })
    }

    /// Ends tasks that waited too long, forgets old ends; returns the former.
    pub fn tidy(&mut self, now_ms: i64) -> Vec<String> {
        let late: Vec<String> = self
            .known
            .iter()
            .filter(|(_, task)| task.state == State::Running && now_ms - task.begun_ms >= PATIENCE_MS)
            .map(|(id, _)| id.clone())
            .collect();
        for task in &late {
            self.end(task, End::TimedOut, now_ms);
        }
        self.known.retain(|_, task| match task.state {
            State::Running => true,
            State::Ended { at_ms, .. } => now_ms - at_ms < KEPT_MS,
        });
        late
    }
}

/// What a caller reads of a task that nobody answered.
const TIMED_OUT: &str = "The agent did not answer in time";

impl Task {
    fn as_bridge(&self, id: &str) -> Value {
        let mut said = json!({"id": id, "status": self.state.word(), "contextId": self.context});
        match self.state.end() {
            Some(End::Completed(text)) => {
                said["artifacts"] = json!([{"parts": [{"type": "text", "kind": "text", "text": text}]}]);
            }
            Some(End::TimedOut) => said["error"] = json!({"code": -32004, "message": TIMED_OUT}),
            _ => {}
        }
        said
    }

    /// A `Task` of A2A 0.3.
    fn as_standard(&self, id: &str) -> Value {
        let at_ms = match self.state {
            State::Running => self.begun_ms,
            State::Ended { at_ms, .. } => at_ms,
        };
        let part = |text: &str| json!([{"kind": "text", "text": text}]);
        let mut said = json!({
            "kind": "task", "id": id, "contextId": self.context,
            "status": {"state": self.state.word(), "timestamp": iso_ms(at_ms)},
        });
        match self.state.end() {
            Some(End::Completed(text)) => {
                said["artifacts"] = json!([{"artifactId": format!("{id}-1"), "parts": part(text)}]);
            }
            Some(End::TimedOut) => {
                said["status"]["message"] = json!({
                    "kind": "message", "role": "agent", "messageId": format!("{id}-end"), "taskId": id,
                    "contextId": self.context, "parts": part(TIMED_OUT),
                });
            }
            _ => {}
        }
        said
    }
}

impl State {
    fn end(&self) -> Option<&End> {
        match self {
            Self::Running => None,
            Self::Ended { end, .. } => Some(end),
        }
    }

    /// `TaskState` of A2A.
    fn word(&self) -> &'static str {
        match self.end() {
            None => "working",
            Some(End::Completed(_)) => "completed",
            Some(End::Refused | End::TimedOut) => "failed",
            Some(End::Canceled) => "canceled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_768_478_400_000;

    fn agent(n: u8) -> Fingerprint {
        Fingerprint::from_bytes([n; 16])
    }

    fn fault(body: &Value) -> i64 {
        read(body.to_string().as_bytes(), Form::Bridge).expect_err("refused").1.describe().0
    }

    #[test]
    fn requests_are_read_or_refused_with_their_code() {
        let good = json!({"jsonrpc": "2.0", "id": 7, "method": "message/send", "params": {
            "contextId": "c", "message": {"parts": [{"type": "text", "text": "a"}, {"kind": "text", "text": "b"},
            {"kind": "file"}]}}});
        for form in [Form::Bridge, Form::Standard] {
            let request = read(good.to_string().as_bytes(), form).expect("read");
            let send = Send { text: "a\nb".into(), context: Some("c".into()), waits: true };
            assert_eq!(request, Request { id: json!(7), method: Method::Send(send) });
            assert_eq!(read(b"{", form).expect_err("refused"), (Value::Null, Fault::Parse));
        }
        let asked = |params: Value| json!({"id": 1, "method": "tasks/get", "params": params}).to_string();
        let get = read(asked(json!({"id": "t"})).as_bytes(), Form::Standard).expect("read");
        assert_eq!(get.method, Method::Get("t".into()));
        let nameless = read(asked(json!({})).as_bytes(), Form::Standard).expect_err("refused");
        assert_eq!(nameless.1.describe().0, -32602);
        assert_eq!(fault(&json!({"method": "tasks/get", "params": {"id": "t"}})), -32601);
        assert_eq!(fault(&json!([])), -32700);
        assert_eq!(fault(&json!({"method": "message/stream"})), -32601);
        for parameters in [
            json!(null),
            json!({"message": 1}),
            json!({"message": {"parts": "x"}}),
            json!({"message": {"parts": [{"kind": "text", "text": " "}]}}),
            json!({"contextId": 1, "message": {"parts": [{"kind": "text", "text": "x"}]}}),
        ] {
            assert_eq!(
                fault(&json!({"method": "message/send", "params": parameters})),
                -32602,
                "{parameters}"
            );
        }
    }

    #[test]
    fn three_tasks_of_an_agent_at_a_time_and_one_per_conversation() {
        let mut tasks = Tasks::default();
        for n in 0..3 {
            assert_eq!(tasks.begin(&format!("t{n}"), agent(1), &format!("a2a-{n}"), "c", NOW), Ok(()));
        }
        assert_eq!(tasks.begin("t3", agent(1), "a2a-3", "c", NOW), Err(Fault::Busy));
        assert_eq!(tasks.begin("u0", agent(2), "a2a-0", "c", NOW), Ok(()), "another agent");
        assert_eq!(tasks.begin("u1", agent(2), "a2a-0", "c", NOW), Err(Fault::Busy));
        assert!(tasks.is_awaited(agent(1), "a2a-0") && !tasks.is_awaited(agent(3), "a2a-0"));
        assert_eq!(tasks.answered(agent(1), "a2a-0", "hi".into(), NOW).as_deref(), Some("t0"));
        assert_eq!(tasks.answered(agent(1), "a2a-0", "again".into(), NOW), None);
        assert_eq!(tasks.take_ended(), [(agent(1), "a2a-0".to_owned())]);
        assert_eq!(tasks.begin("t3", agent(1), "a2a-0", "c", NOW), Ok(()));
        for (form, state) in [(Form::Bridge, "/status"), (Form::Standard, "/status/state")] {
            let done = tasks.describe("t0", &agent(1), form).expect("known");
            assert_eq!(done["artifacts"][0]["parts"][0]["text"], "hi");
            assert_eq!(done.pointer(state), Some(&json!("completed")), "{done}");
            assert_eq!(tasks.describe("t0", &agent(2), form), None, "only under its agent");
        }
    }

    #[test]
    fn tasks_time_out_after_five_minutes_and_ends_are_kept_for_ten() {
        let mut tasks = Tasks::default();
        tasks.begin("t", agent(1), "a2a-0", "c", NOW).expect("begun");
        assert!(tasks.tidy(NOW + PATIENCE_MS - 1).is_empty());
        assert_eq!(tasks.tidy(NOW + PATIENCE_MS), ["t"]);
        assert_eq!(tasks.end_of("t"), Some(&End::TimedOut));
        assert!(!tasks.end("t", End::Canceled, NOW), "it has ended");
        tasks.tidy(NOW + PATIENCE_MS + KEPT_MS - 1);
        assert!(tasks.describe("t", &agent(1), Form::Bridge).is_some());
        tasks.tidy(NOW + PATIENCE_MS + KEPT_MS);
        assert!(tasks.describe("t", &agent(1), Form::Bridge).is_none());
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&body, Form::Standard);
        }
    }
}
