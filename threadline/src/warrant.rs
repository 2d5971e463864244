//! Does a message need an answer (`threadline-agent.md` §11.8)? By rules alone: what they leave open is answered.

use std::collections::BTreeSet;

/// Turns in a row that may repeat each other before a thread rests.
pub const MAX_SIMILAR_TURNS: u32 = 6;
/// From this similarity on a turn repeats the one before.
pub const SIMILAR: f64 = 0.85;

/// Facts about the message and its thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts<'a> {
    /// The message.
    pub body: &'a str,
    /// The peer's message before it in this thread.
    pub previous_inbound: Option<&'a str>,
    /// Whether a person takes part in the thread.
    pub human: bool,
    /// Whether the sender says that it waits for an answer.
    pub expects_reply: bool,
    /// Autonomous turns in a row, up to the message before, that repeated the one before them.
    pub similar_turns: u32,
}

/// The verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warrant {
    /// Hand it to a session. `similar_turns` is the count to keep with the thread.
    Answer {
        /// Repeating turns so far.
        similar_turns: u32,
    },
    /// Store it; nobody needs to act.
    NoAnswer,
    /// Two agents repeat each other: the thread goes idle, with one note to the owner.
    Loop,
}

/// Judges one message.
pub fn judge(facts: &Facts<'_>) -> Warrant {
    let repeats = facts.previous_inbound.is_some_and(|p| similarity(p, facts.body) >= SIMILAR);
    let similar_turns = if repeats { facts.similar_turns.saturating_add(1) } else { 0 };
    if facts.human {
        return Warrant::Answer { similar_turns: 0 };
    }
    if similar_turns > MAX_SIMILAR_TURNS {
        return Warrant::Loop;
    }
    let answer = Warrant::Answer { similar_turns };
    if facts.expects_reply || facts.body.contains(['?', '？']) {
        return answer;
    }
    if facts.body.trim().is_empty() || is_acknowledgement(facts.body) {
        return Warrant::NoAnswer;
    }
    answer
}

/// Words that decide something: a lone `yes` answers a question and moves work on, so it is no mere acknowledgement.
const DECISIVE: [&str; 14] = [
    "yes",
    "no",
    "go",
    "stop",
    "approve",
    "approved",
    "reject",
    "rejected",
    "cancel",
    "proceed",
    "confirm",
    "confirmed",
    "abort",
    "deny",
];

const ACKNOWLEDGING: [&str; 52] = [
    "ok",
    "okay",
    "k",
    "thanks",
    "thank",
    "thx",
    "ty",
    "you",
    "u",
    "very",
    "much",
    "so",
    "again",
    "a",
    "lot",
    "got",
    "it",
    "that",
    "this",
    "all",
    "good",
    "great",
    "perfect",
    "nice",
    "cool",
    "awesome",
    "excellent",
    "understood",
    "noted",
    "ack",
    "acknowledged",
    "received",
    "message",
    "roger",
    "copy",
    "sure",
    "thing",
    "will",
    "do",
    "done",
    "welcome",
    "youre",
    "cheers",
    "bye",
    "goodbye",
    "sounds",
    "the",
    "appreciate",
    "appreciated",
    "for",
    "fine",
    "and",
];

/// Whether the message consists of acknowledgement words alone.
fn is_acknowledgement(body: &str) -> bool {
    let words = words(body);
    if words.len() > 12 || words.iter().any(|w| DECISIVE.contains(&w.as_str())) {
        return false;
    }
    words.iter().all(|w| ACKNOWLEDGING.contains(&w.as_str()))
}

/// Token-set Jaccard similarity, 0 to 1.
pub fn similarity(a: &str, b: &str) -> f64 {
    let a: BTreeSet<String> = words(a).into_iter().collect();
    let b: BTreeSet<String> = words(b).into_iter().collect();
    let union = a.union(&b).count();
    if union == 0 {
        return 1.0;
    }
    a.intersection(&b).count() as f64 / union as f64
}

fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .replace(['\'', '’'], "")
        .split(|c: char| !c.is_alphanumeric())
        .filter(|w| !w.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts(body: &str) -> Facts<'_> {
        Facts { body, previous_inbound: None, human: false, expects_reply: false, similar_turns: 0 }
    }

    #[test]
    fn thanks_need_no_answer_and_everything_else_does() {
        for body in ["Thanks!", "ok, got it", "Thank you very much 🙏", "You're welcome", "", " \n", "👍"]
        {
            assert_eq!(judge(&facts(body)), Warrant::NoAnswer, "{body}");
        }
        for body in [
            "yes",
            "Stop",
            "ok, approved",
            "thanks?",
            "Please send the report",
            "Thanks, the build is broken",
            "no",
        ] {
            assert_eq!(judge(&facts(body)), Warrant::Answer { similar_turns: 0 }, "{body}");
        }
        assert!(matches!(judge(&Facts { expects_reply: true, ..facts("ok") }), Warrant::Answer { .. }));
        assert!(matches!(judge(&Facts { human: true, ..facts("ok") }), Warrant::Answer { .. }));
    }

    #[test]
    fn two_agents_that_repeat_each_other_come_to_rest() {
        let body = "Let us begin with the plan now";
        let mut similar_turns = 0;
        for turn in 1..=MAX_SIMILAR_TURNS {
            let facts = Facts { previous_inbound: Some(body), similar_turns, ..facts(body) };
            assert_eq!(judge(&facts), Warrant::Answer { similar_turns: turn });
            similar_turns = turn;
        }
        let last = Facts { previous_inbound: Some(body), similar_turns, ..facts(body) };
        assert_eq!(judge(&last), Warrant::Loop);
        assert_eq!(judge(&Facts { human: true, ..last }), Warrant::Answer { similar_turns: 0 });
        let news = Facts { previous_inbound: Some("something else"), similar_turns, ..facts(body) };
        assert_eq!(judge(&news), Warrant::Answer { similar_turns: 0 });
    }

    #[test]
    fn similarity_is_jaccard_over_words() {
        assert!((similarity("a b c d", "A, b; c e") - 0.6).abs() < 1e-9);
        assert!((similarity("", "") - 1.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn no_text_panics(a in any::<String>(), b in any::<String>(), n in any::<u32>()) {
            judge(&Facts { previous_inbound: Some(&a), similar_turns: n, ..facts(&b) });
        }
    }
}
