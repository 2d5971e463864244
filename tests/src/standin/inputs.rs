//! What the client gives to the session, as the real CLI queues it: every input has a uuid, each step of it is told, and
//! one that comes again is not taken again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::Out;

/// One message of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Input {
    pub(super) uuid: String,
    pub(super) text: String,
}

/// Where an input stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// In the transcript of a process before this one.
    Earlier,
    /// Waits, or is in its turn.
    Taken,
    Ended,
}

/// The queue of a session.
pub(super) struct Inputs {
    out: Arc<Out>,
    replay: bool,
    known: HashMap<String, Step>,
    waiting: VecDeque<Input>,
}

impl Inputs {
    /// A queue of a session that knows the inputs of its transcript.
    pub(super) fn new(out: Arc<Out>, replay: bool, earlier: impl IntoIterator<Item = String>) -> Self {
        let known = earlier.into_iter().map(|uuid| (uuid, Step::Earlier)).collect();
        Self { out, replay, known, waiting: VecDeque::new() }
    }

    /// Queues a `user` line. One that is known comes back instead, unless it still waits.
    pub(super) fn accept(&mut self, line: &Value) {
        let uuid = line["uuid"].as_str().map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
        match self.known.get(&uuid) {
            None => {
                self.known.insert(uuid.clone(), Step::Taken);
                self.tell(&uuid, "queued");
                let text = crate::script::text_of(&line["message"]["content"]);
                self.waiting.push_back(Input { uuid, text });
            }
            Some(Step::Taken) => {}
            Some(step) => {
                if self.replay {
                    self.out.replay(&line["message"], &uuid);
                }
                if *step == Step::Earlier {
                    self.tell(&uuid, "completed");
                }
            }
        }
    }

    /// The next input, whose turn begins.
    pub(super) fn begin(&mut self) -> Option<Input> {
        let input = self.waiting.pop_front()?;
        self.tell(&input.uuid, "started");
        Some(input)
    }

    /// The turn of this input is over.
    pub(super) fn end(&mut self, input: &Input, done_well: bool) {
        self.known.insert(input.uuid.clone(), Step::Ended);
        self.tell(&input.uuid, if done_well { "completed" } else { "cancelled" });
    }

    fn tell(&self, uuid: &str, state: &str) {
        self.out.emit(json!({"type": "command_lifecycle", "command_uuid": uuid, "state": state}));
    }
}
