//! Order, counters and outcomes of the engine.

use std::sync::{Arc, Mutex};

use instar_outbound::{
    Block, Channel, ChannelId, Finding, Hold, Latch, Moment, Origin, OutboundMessage, PelConfig,
    RecipientKind, SendGateway, SendOutcome, Stage, StageId, StagePresence, StageVerdict,
};

use crate::support::{MOMENT, PLANTED, gateway, policy, to, to_agent};

fn blocked(outcome: SendOutcome) -> Block {
    match outcome {
        SendOutcome::Blocked(block) => block,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

struct Recording {
    id: StageId,
    seen: Arc<Mutex<Vec<StageId>>>,
    says: StageVerdict,
}

impl Stage for Recording {
    fn id(&self) -> StageId {
        self.id
    }

    fn review(&self, _message: &OutboundMessage, _moment: &Moment) -> StageVerdict {
        self.seen.lock().expect("not poisoned").push(self.id);
        self.says.clone()
    }
}

#[test]
fn a_harmless_message_is_cleared_with_its_verdict() {
    let SendOutcome::Cleared(cleared) = gateway().review(to_agent("hello, b@x in /home/bob"), &MOMENT, &[])
    else {
        panic!("not cleared");
    };
    let (message, verdict) = cleared.into_parts();
    assert_eq!(message.text, "hello, b@x in /home/bob");
    assert_eq!((verdict.id, verdict.at_ms), (MOMENT.verdict_id, MOMENT.now_ms));
    assert_eq!(verdict.warnings.len(), 1, "the path");
}

#[test]
fn structure_is_checked_first() {
    let telegram = ChannelId::parse("telegram").expect("a name");
    let person = |text: &str| to(telegram.clone(), RecipientKind::PrimaryUser, text);
    let unknown = to(ChannelId::parse("slack").expect("a name"), RecipientKind::PrimaryUser, "hi");
    let with_subject = OutboundMessage { subject: Some("x".into()), ..to_agent(&"a".repeat(512 * 1024)) };
    for (message, rule) in [
        (unknown, Some("unregistered")),
        (to_agent(" \n\t"), Some("empty-message")),
        (to_agent("\u{200B}\u{E0041} "), Some("invisible-payload")),
        (to_agent(&"a".repeat(512 * 1024)), None),
        (to_agent(&"a".repeat(512 * 1024 + 1)), Some("too-large")),
        (with_subject, Some("too-large")),
        (person(&"a".repeat(32 * 1024)), None),
        (person(&"a".repeat(32 * 1024 + 1)), Some("too-large")),
    ] {
        match (gateway().review(message, &MOMENT, &[]), rule) {
            (SendOutcome::Cleared(_), None) => {}
            (SendOutcome::Blocked(block), Some(rule)) => {
                assert_eq!((block.by, block.rule.as_ref()), (StageId::Structure, rule));
            }
            (outcome, rule) => panic!("{outcome:?} instead of {rule:?}"),
        }
    }
}

#[test]
fn the_latch_stops_all_but_acknowledgements() {
    for latch in [Latch::EmergencyStop, Latch::SessionHeld] {
        let moment = Moment { latch, ..MOMENT };
        let block = blocked(gateway().review(to_agent("hi"), &moment, &[]));
        assert_eq!((block.by, block.rule.as_ref()), (StageId::Latch, "estop"));
        let mut acknowledgement = to_agent("stopped");
        acknowledgement.flags.operator_acknowledgement = true;
        assert!(matches!(gateway().review(acknowledgement, &moment, &[]), SendOutcome::Cleared(_)));
    }
}

#[test]
fn a_secret_is_refused_on_every_origin_and_never_repeated() {
    for origin in [
        Origin::Session,
        Origin::Job,
        Origin::System,
        Origin::Bridge,
        Origin::Cli,
        Origin::Threadline,
        Origin::Publish,
    ] {
        for in_subject in [false, true] {
            let mut message = OutboundMessage { origin, ..to_agent("hello") };
            if in_subject {
                message.subject = Some(format!("about {PLANTED}"));
            } else {
                message.text = format!("it is {PLANTED}.");
            }
            let block = blocked(gateway().review(message, &MOMENT, &[]));
            assert_eq!((block.by, block.rule.as_ref()), (StageId::Policy, "credential-leak"));
            assert_eq!(block.feedback, "[POLICY VIOLATION] credential-leak: planted");
            assert!(!format!("{block:?}").contains(PLANTED));
        }
    }
}

#[test]
fn stages_run_in_order_and_the_first_terminal_word_wins() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let stage = |id, says| Recording { id, seen: Arc::clone(&seen), says };
    let hold = Hold { by: StageId::Tone, rule: "x".into(), reason: "y".into(), findings: Vec::new() };
    let gateway = gateway()
        .with_stage(stage(StageId::Tone, StageVerdict::Hold(hold)))
        .with_stage(stage(StageId::Repetition, StageVerdict::Warn(vec![Finding::new("junk", "one word")])))
        .with_stage(stage(StageId::Review, StageVerdict::Pass))
        .with_stage(stage(StageId::Grounding, StageVerdict::Abstain { cause: "timeout".into() }));
    let mesh = stage(StageId::Mesh, StageVerdict::Pass);

    assert!(matches!(gateway.review(to_agent("hello"), &MOMENT, &[&mesh]), SendOutcome::Held(_)));

    assert_eq!(
        *seen.lock().expect("not poisoned"),
        [StageId::Mesh, StageId::Repetition, StageId::Grounding, StageId::Tone]
    );
    let counted = gateway.stats().channels[&ChannelId::THREADLINE];
    assert_eq!((counted.reviewed, counted.held, counted.warnings, counted.abstained), (1, 1, 1, 1));
    assert_eq!((counted.passed, counted.blocked), (0, 0));
}

#[test]
fn text_of_the_node_passes_the_policy_layer_only() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let refuse = StageVerdict::Block(Block::new(StageId::Tone, "x", "y"));
    let gateway =
        gateway().with_stage(Recording { id: StageId::Tone, seen: Arc::clone(&seen), says: refuse });
    let message = OutboundMessage { origin: Origin::System, ..to_agent("hello") };
    assert!(matches!(gateway.review(message, &MOMENT, &[]), SendOutcome::Cleared(_)));
    assert!(seen.lock().expect("not poisoned").is_empty());
}

#[test]
fn a_declared_stage_that_is_not_given_refuses() {
    let gateway = gateway().with_stage_per_message(StageId::Mesh, ChannelId::THREADLINE);
    let block = blocked(gateway.review(to_agent("hello"), &MOMENT, &[]));
    assert_eq!((block.by, block.rule.as_ref()), (StageId::Mesh, "stage-missing"));

    let mesh = Recording { id: StageId::Mesh, seen: Arc::default(), says: StageVerdict::Pass };
    assert!(matches!(gateway.review(to_agent("hello"), &MOMENT, &[&mesh]), SendOutcome::Cleared(_)));
}

#[test]
fn a_contributor_cannot_stand_in_for_the_engine() {
    let forged = Recording { id: StageId::Policy, seen: Arc::default(), says: StageVerdict::Pass };
    assert_eq!(blocked(gateway().review(to_agent(PLANTED), &MOMENT, &[&forged])).by, StageId::Policy);
    assert!(forged.seen.lock().expect("not poisoned").is_empty());
}

#[test]
fn absent_stages_are_named() {
    let bare = SendGateway::new(Arc::new(policy(PelConfig::default())));
    bare.register(Channel::threadline());
    let stats = bare.with_stage_per_message(StageId::Mesh, ChannelId::THREADLINE).stats();
    let absent: Vec<u8> = stats
        .stages
        .iter()
        .filter(|stage| stage.presence == StagePresence::Absent)
        .map(|stage| stage.number)
        .collect();
    assert_eq!(absent, [5, 6, 7, 8, 9, 10]);
    let json = serde_json::to_value(&stats).expect("serialisable");
    assert_eq!(json["channels"]["threadline"]["reviewed"], 0);
    assert_eq!(json["stages"][9], serde_json::json!({"number": 9, "stage": "tone", "presence": "absent"}));
}

#[test]
fn text_is_never_printed() {
    let message = to_agent("the quick brown fox");
    assert!(!format!("{message:?}").contains("fox"));
    let SendOutcome::Cleared(cleared) = gateway().review(message, &MOMENT, &[]) else {
        panic!("not cleared")
    };
    assert!(!format!("{cleared:?}").contains("fox"));
}
