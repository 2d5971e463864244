//! What a model "says": rules over the conversation, read from a JSON file.
//!
//! ```
//! use instar_tests::script::{Conversation, Script};
//! use serde_json::json;
//!
//! let script = Script::from_json(br#"{"rules": [{
//!     "name": "answer a peer",
//!     "when": {"user": "thread (?<thread>\\S+)"},
//!     "steps": [
//!         {"calls": [{"tool": "mcp__threadline__threadline_history", "input": {"threadId": "{thread}"}}]},
//!         {"text": "done"}
//!     ]
//! }]}"#)?;
//! let conversation = Conversation::from_messages(&json!("be brief"), &json!([
//!     {"role": "user", "content": "a message on thread t-1"}
//! ]));
//! let reply = script.reply(&conversation).expect("the rule matches");
//! assert_eq!(reply.calls[0].input, json!({"threadId": "t-1"}));
//! # Ok::<(), instar_tests::script::ScriptError>(())
//! ```

mod conversation;
mod template;

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

pub(crate) use conversation::text_of;
pub use conversation::{Conversation, Done};
pub use template::Variables;

/// Why a rule file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// Not JSON, or not of this shape.
    #[error("rule file: {0}")]
    Shape(#[from] serde_json::Error),
    /// A pattern that is no regular expression.
    #[error("rule \"{rule}\": {source}")]
    Pattern {
        /// Name of the rule.
        rule: String,
        /// What is wrong with it.
        source: Box<regex::Error>,
    },
}

/// An ordered list of rules; the first that matches answers.
#[derive(Debug, Default)]
pub struct Script {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    name: String,
    user: Option<Regex>,
    system: Option<Regex>,
    result: Option<Regex>,
    plan: Plan,
}

#[derive(Debug)]
enum Plan {
    Steps(Vec<Step>),
    Answer { each: Regex, answer: AnswerFile },
}

/// What the model does at one request.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// A thinking block before the rest.
    pub think: Option<String>,
    /// Text; the turn ends with it when there are no calls.
    pub text: Option<String>,
    /// Tool calls, all in one message.
    pub calls: Vec<Call>,
    /// Input tokens to report; a high number drives compaction.
    pub usage: Option<u64>,
    /// Misbehaviour instead of, or around, the answer.
    pub fault: Option<Fault>,
}

/// A tool call.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Full tool name.
    pub tool: String,
    /// Arguments; text values may hold `{variables}`.
    #[serde(default)]
    pub input: Value,
}

/// Misbehaviour on command.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// An error response.
    Error {
        /// HTTP status.
        status: u16,
        /// Error type, for example `rate_limit_error`.
        #[serde(rename = "type")]
        error: String,
        /// Seconds for the `retry-after` header.
        retry_after: Option<u64>,
        /// How many requests fail before the step is answered; all if absent.
        times: Option<u32>,
    },
    /// Waits before the first byte.
    Sleep {
        /// Milliseconds.
        ms: u64,
    },
    /// Waits between the parts of the answer.
    Slow {
        /// Milliseconds.
        ms: u64,
    },
    /// Starts the answer and never continues.
    Hang,
    /// Cuts the connection in the middle.
    Drop,
}

/// The answer of the rule that matched.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Name of the rule.
    pub rule: String,
    /// Which step of it.
    pub step: usize,
    /// Content, variables filled in.
    pub say: Step,
}

impl std::ops::Deref for Reply {
    type Target = Step;

    fn deref(&self) -> &Step {
        &self.say
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptFile {
    rules: Vec<RuleFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    name: String,
    #[serde(default)]
    when: WhenFile,
    #[serde(default)]
    steps: Vec<Step>,
    answer: Option<AnswerFile>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WhenFile {
    /// Pattern on the text of the current input; its named groups become variables.
    user: Option<String>,
    /// Pattern on the system prompt and added context; named groups become variables.
    system: Option<String>,
    /// Pattern on the last tool result of this turn.
    result: Option<String>,
}

/// One call for every match in the input, until each got a result or was answered by somebody else.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerFile {
    each: String,
    call: Call,
    #[serde(default)]
    then: String,
    /// Calls per match, the first included.
    #[serde(default = "one")]
    attempts: usize,
    #[serde(default)]
    retry_delay_ms: u64,
}

fn one() -> usize {
    1
}

impl Script {
    /// Reads a rule file.
    pub fn from_json(text: &[u8]) -> Result<Self, ScriptError> {
        let file: ScriptFile = serde_json::from_slice(text)?;
        let rules = file.rules.into_iter().map(Rule::compile).collect::<Result<_, _>>()?;
        Ok(Self { rules })
    }

    /// Answers the conversation by the first rule that matches; none if no rule does.
    pub fn reply(&self, conversation: &Conversation) -> Option<Reply> {
        self.rules.iter().find_map(|rule| rule.reply(conversation))
    }
}

impl Rule {
    fn compile(file: RuleFile) -> Result<Self, ScriptError> {
        let pattern = |text: &str| {
            Regex::new(text)
                .map_err(|source| ScriptError::Pattern { rule: file.name.clone(), source: Box::new(source) })
        };
        let optional = |text: &Option<String>| text.as_deref().map(pattern).transpose();
        let (user, system) = (optional(&file.when.user)?, optional(&file.when.system)?);
        let result = optional(&file.when.result)?;
        let plan = match file.answer {
            Some(answer) => Plan::Answer { each: pattern(&answer.each)?, answer },
            None => Plan::Steps(file.steps),
        };
        Ok(Self { name: file.name, user, system, result, plan })
    }

    fn reply(&self, conversation: &Conversation) -> Option<Reply> {
        let mut variables = Variables::new(conversation);
        for (pattern, text) in [(&self.user, &conversation.input), (&self.system, &conversation.system)] {
            if let Some(pattern) = pattern {
                variables.capture(pattern, &pattern.captures(text)?);
            }
        }
        if let Some(pattern) = &self.result {
            variables.capture(pattern, &pattern.captures(&conversation.done.last()?.text)?);
        }
        let (step, say) = match &self.plan {
            Plan::Steps(steps) => {
                let step = steps.get(conversation.step).or(steps.last())?;
                (conversation.step, step.filled(&variables))
            }
            Plan::Answer { each, answer } => (conversation.step, answer.next(each, conversation, &variables)),
        };
        Some(Reply { rule: self.name.clone(), step, say })
    }
}

impl Step {
    fn filled(&self, variables: &Variables<'_>) -> Self {
        let text = |text: &Option<String>| text.as_ref().map(|text| variables.text(text));
        Self {
            think: text(&self.think),
            text: text(&self.text),
            calls: self.calls.iter().map(|call| call.filled(variables)).collect(),
            usage: self.usage,
            fault: self.fault.clone(),
        }
    }
}

impl Call {
    fn filled(&self, variables: &Variables<'_>) -> Self {
        Self { tool: self.tool.clone(), input: variables.value(&self.input) }
    }
}

impl AnswerFile {
    fn next(&self, each: &Regex, conversation: &Conversation, variables: &Variables<'_>) -> Step {
        let mut step = Step::default();
        for found in each.captures_iter(&conversation.input) {
            let mut variables = variables.clone();
            variables.capture(each, &found);
            let call = self.call.filled(&variables);
            let tries: Vec<&Done> = conversation.done.iter().filter(|done| done.is(&call)).collect();
            let failed = tries.last().is_some_and(|done| done.retryable());
            if tries.is_empty() || (failed && tries.len() < self.attempts) {
                if failed && self.retry_delay_ms > 0 {
                    step.fault = Some(Fault::Sleep { ms: self.retry_delay_ms });
                }
                if !step.calls.contains(&call) {
                    step.calls.push(call);
                }
            }
        }
        if step.calls.is_empty() {
            step.text = Some(variables.text(&self.then));
        }
        step
    }
}

#[cfg(test)]
mod tests;
