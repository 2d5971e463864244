//! Giving one input to a runtime and making sure that it arrived (`agent-core.md` §6.6). Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use instar_state::ids::SessionId;
use sha2::{Digest, Sha256};
use ulid::Ulid;
use uuid::Uuid;

use crate::record::{Activity, Transport};

/// Tag of what a person types into a session from this machine.
pub const LOCAL_TAG: &str = "dashboard:local";
/// Longest text that is given whole, in characters.
pub const INLINE_CHARS: usize = 8_000;
/// Failed rounds after which an input is given up.
const ROUNDS: u32 = 3;

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Empty the composer, then paste the text and press Enter.
    Type {
        /// The input.
        ulid: Ulid,
        /// Tag and body.
        text: String,
        /// Lines of an earlier text that may still stand in the composer.
        clear: usize,
    },
    /// Press these keys, with 150 ms between them.
    Press(&'static [&'static str]),
    /// Write the text as an input line with this uuid.
    Write {
        /// Tag and body.
        text: String,
        /// What comes back.
        uuid: Uuid,
    },
    /// The input did not arrive in this round; it is tried again later.
    Unverified {
        /// The input.
        ulid: Ulid,
    },
    /// The input did not arrive in any round.
    GiveUp {
        /// The input.
        ulid: Ulid,
    },
}

/// Deliveries of one session: at most one is open.
#[derive(Debug)]
pub struct Delivery {
    transport: Transport,
    session: SessionId,
    open: Option<Open>,
    /// Failed rounds of inputs that still wait.
    rounds: BTreeMap<Ulid, u32>,
    /// Set by a failed round: nothing is begun before the session is idle again.
    wait_for_idle: bool,
    /// Lines of texts that were pasted and of which nobody knows whether they were submitted.
    composer: usize,
}

#[derive(Debug)]
struct Open {
    ulid: Ulid,
    text: String,
    uuid: Uuid,
    since: i64,
    step: usize,
}

/// Time of each step after the text was given, in milliseconds, and the keys.
const TMUX_STEPS: [(i64, &[&str]); 3] =
    [(4_000, &["Enter"]), (8_000, &["C-m"]), (15_000, &["Enter", "Enter"])];
const TMUX_END: i64 = 30_000;
const STDIO_RETRY: i64 = 10_000;
const STDIO_END: i64 = 20_000;

impl Delivery {
    /// No delivery open.
    pub fn new(transport: Transport, session: SessionId) -> Self {
        Self { transport, session, open: None, rounds: BTreeMap::new(), wait_for_idle: false, composer: 0 }
    }

    /// Whether an input may be begun now.
    ///
    /// Over stdio the runtime loses history of what it is told during a turn, so input waits for the end of it. In
    /// a terminal the runtime queues by itself, but a text would answer a question that is shown.
    pub fn may_begin(&self, activity: Activity) -> bool {
        if self.open.is_some() || (self.wait_for_idle && activity != Activity::Idle) {
            return false;
        }
        match self.transport {
            Transport::Stdio => matches!(activity, Activity::Idle | Activity::ErrorStalled),
            Transport::Tmux => matches!(activity, Activity::Idle | Activity::Busy | Activity::ErrorStalled),
        }
    }

    /// The input whose arrival is not proven yet.
    pub fn open(&self) -> Option<Ulid> {
        self.open.as_ref().map(|open| open.ulid)
    }

    /// Gives an input.
    pub fn begin(&mut self, now: i64, ulid: Ulid, text: String) -> Effect {
        let uuid = input_uuid(ulid, self.session);
        self.wait_for_idle = false;
        self.open = Some(Open { ulid, text: text.clone(), uuid, since: now, step: 0 });
        match self.transport {
            Transport::Stdio => Effect::Write { text, uuid },
            Transport::Tmux => {
                let clear = self.composer;
                self.left_over(&text);
                Effect::Type { ulid, text, clear }
            }
        }
    }

    /// This text may stand in the composer: it was pasted, by this node or by one before it.
    pub fn left_over(&mut self, text: &str) {
        self.composer = self.composer.max(text.lines().count()).max(1);
    }

    /// The ULID came back. True if it was the open one.
    pub fn confirmed(&mut self, ulid: Ulid) -> bool {
        self.rounds.remove(&ulid);
        let open = self.open();
        if open.is_none_or(|open| open == ulid) {
            self.composer = 0;
        }
        if open == Some(ulid) {
            self.open = None;
            return true;
        }
        false
    }

    /// Forgets the open delivery without a verdict, because its runtime is gone or could not be reached.
    pub fn abandon(&mut self) {
        self.open = None;
    }

    /// What the passing of time asks for.
    pub fn tick(&mut self, now: i64) -> Option<Effect> {
        let open = self.open.as_mut()?;
        let waited = now - open.since;
        let end = match self.transport {
            Transport::Tmux => TMUX_END,
            Transport::Stdio => STDIO_END,
        };
        if waited >= end {
            let ulid = open.ulid;
            self.open = None;
            self.wait_for_idle = true;
            let rounds = self.rounds.entry(ulid).or_default();
            *rounds += 1;
            if *rounds < ROUNDS {
                return Some(Effect::Unverified { ulid });
            }
            self.rounds.remove(&ulid);
            return Some(Effect::GiveUp { ulid });
        }
        match self.transport {
            Transport::Tmux => {
                let (at, keys) = TMUX_STEPS.get(open.step)?;
                (waited >= *at).then(|| {
                    open.step += 1;
                    Effect::Press(keys)
                })
            }
            Transport::Stdio => (waited >= STDIO_RETRY && open.step == 0).then(|| {
                open.step = 1;
                Effect::Write { text: open.text.clone(), uuid: open.uuid }
            }),
        }
    }

    /// How long nothing can be due.
    pub fn pause(&self) -> Duration {
        Duration::from_millis(if self.open.is_some() { 250 } else { 60_000 })
    }
}

/// Uuid of an input in one session. Repeated to the same process, the runtime itself drops the second one; given
/// to another session it is another one, or a runtime that saw it but never answered would drop it.
pub fn input_uuid(ulid: Ulid, session: SessionId) -> Uuid {
    let digest = Sha256::digest(format!("{ulid}/{session}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// What the runtime reads: the tag with the ULID, then the text.
pub fn framed(tag: &str, ulid: Ulid, body: &str) -> String {
    format!("[{tag} #{ulid}] {body}")
}

/// What the runtime reads instead of a text that is too long: its start and where the whole is.
pub fn framed_file(tag: &str, ulid: Ulid, body: &str, file: &std::path::Path) -> String {
    let head: String = body.chars().take(500).collect();
    let chars = body.chars().count();
    format!(
        "[{tag} #{ulid}] {head}\n…\nThis is the start of a message of {chars} characters. Read the whole of it \
         first, from the file {}",
        file.display()
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ulid(n: u128) -> Ulid {
        Ulid::from_parts(1, n)
    }

    #[test]
    fn a_swallowed_enter_is_pressed_again_and_the_last_word_is_said_within_30_s() {
        let mut delivery = Delivery::new(Transport::Tmux, SessionId::random());
        let first = delivery.begin(0, ulid(1), "x".into());
        assert_eq!(first, Effect::Type { ulid: ulid(1), text: "x".into(), clear: 0 });
        let mut seen = Vec::new();
        for now in (0..=31_000).step_by(250) {
            seen.extend(delivery.tick(now).map(|effect| (now, effect)));
        }
        assert_eq!(
            seen,
            [
                (4_000, Effect::Press(&["Enter"])),
                (8_000, Effect::Press(&["C-m"])),
                (15_000, Effect::Press(&["Enter", "Enter"])),
                (30_000, Effect::Unverified { ulid: ulid(1) }),
            ]
        );
        assert!(!delivery.may_begin(Activity::Busy));
        assert!(delivery.may_begin(Activity::Idle));
    }

    #[test]
    fn an_input_is_given_up_after_three_rounds() {
        let mut delivery = Delivery::new(Transport::Stdio, SessionId::random());
        let mut last = None;
        for round in 0..3 {
            let start = round * 100_000;
            delivery.begin(start, ulid(1), "x".into());
            assert!(matches!(delivery.tick(start + 10_000), Some(Effect::Write { .. })));
            last = delivery.tick(start + 20_000);
        }
        assert_eq!(last, Some(Effect::GiveUp { ulid: ulid(1) }));
    }

    #[test]
    fn what_may_stand_in_the_composer_is_cleared_before_the_next_text() {
        let mut delivery = Delivery::new(Transport::Tmux, SessionId::random());
        let typed = |effect| match effect {
            Effect::Type { clear, .. } => clear,
            other => panic!("{other:?}"),
        };
        assert_eq!(typed(delivery.begin(0, ulid(1), "a\nb".into())), 0);
        delivery.abandon();
        assert_eq!(typed(delivery.begin(0, ulid(1), "a\nb".into())), 2, "its Enter may have failed");
        delivery.abandon();
        assert_eq!(typed(delivery.begin(0, ulid(2), "c".into())), 2, "another text comes first");
        delivery.confirmed(ulid(1));
        delivery.confirmed(ulid(2));
        assert_eq!(typed(delivery.begin(0, ulid(3), "d".into())), 0);
        let mut adopted = Delivery::new(Transport::Tmux, SessionId::random());
        adopted.left_over("a");
        assert_eq!(typed(adopted.begin(0, ulid(1), "a".into())), 1);
    }

    #[test]
    fn nothing_is_typed_into_a_question_and_nothing_written_into_a_turn() {
        let tmux = Delivery::new(Transport::Tmux, SessionId::random());
        assert!(tmux.may_begin(Activity::Busy));
        for activity in [Activity::WaitingInput, Activity::Booting, Activity::Compacting, Activity::Unknown] {
            assert!(!tmux.may_begin(activity), "{activity:?}");
        }
        let stdio = Delivery::new(Transport::Stdio, SessionId::random());
        assert!(!stdio.may_begin(Activity::Busy));
    }

    #[derive(Debug, Clone)]
    enum Event {
        Begin(u128),
        Confirm(u128),
        Tick(i64),
    }

    proptest! {
        #[test]
        fn at_most_one_is_open_and_a_confirmed_one_is_never_tried_again(
            events in prop::collection::vec(prop_oneof![
                (0u128..4).prop_map(Event::Begin),
                (0u128..4).prop_map(Event::Confirm),
                (0i64..40_000).prop_map(Event::Tick),
            ], 0..60),
            stdio in any::<bool>(),
        ) {
            let transport = if stdio { Transport::Stdio } else { Transport::Tmux };
            let mut delivery = Delivery::new(transport, SessionId::random());
            let mut now = 0;
            for event in events {
                match event {
                    Event::Begin(n) if delivery.may_begin(Activity::Idle) => {
                        delivery.begin(now, ulid(n), String::new());
                        prop_assert_eq!(delivery.open(), Some(ulid(n)));
                    }
                    Event::Begin(_) => prop_assert!(delivery.open().is_some()),
                    Event::Confirm(n) => {
                        delivery.confirmed(ulid(n));
                        prop_assert_ne!(delivery.open(), Some(ulid(n)));
                    }
                    Event::Tick(ms) => {
                        now += ms;
                        let open = delivery.open();
                        if let Some(Effect::Unverified { ulid } | Effect::GiveUp { ulid }) = delivery.tick(now) {
                            prop_assert_eq!(open, Some(ulid));
                            prop_assert_eq!(delivery.open(), None);
                        }
                    }
                }
            }
        }
    }
}
