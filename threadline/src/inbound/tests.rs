use super::*;
use crate::v1::envelope::{MAX_AGE_MS, clear, seal};
use proptest::prelude::*;
use serde_json::json;

const T0: i64 = 1_768_478_400_000;

fn us() -> Identity {
    Identity::from_seed(&[1; 32])
}

fn peer() -> Identity {
    Identity::from_seed(&[2; 32])
}

fn header() -> Header {
    Header {
        from: peer().fingerprint(),
        to: us().fingerprint(),
        thread_id: Some("t".parse().expect("id")),
        message_id: "m".parse().expect("id"),
        timestamp: T0,
    }
}

fn content(kind: Option<&str>, text: &str) -> Content {
    Content { text: text.into(), kind: kind.map(str::to_owned), metadata: None }
}

fn incoming(kind: Option<&str>, text: &str) -> Incoming {
    let envelope =
        seal(&peer(), us().public(), &header(), &content(kind, text), &mut rand::rng()).expect("seals");
    let facts = SenderFacts { key: Some(*peer().public()), ..SenderFacts::default() };
    receive(&envelope, &us().fingerprint()).expect("well-formed");
    authenticate(&envelope, &us(), &facts, T0).expect("authentic")
}

fn standing(level: TrustLevel) -> Standing {
    Standing { level, ..Standing::default() }
}

fn judge(incoming: &Incoming, standing: &Standing, policy: Policy, used: u32) -> Verdict {
    let windows: Vec<_> = incoming
        .windows(&Limits::default(), standing, &"t".parse().expect("id"))
        .into_iter()
        .map(|window| (window, Usage { used, oldest: Some(T0 - 1_000) }))
        .collect();
    admit(incoming, standing, &policy, &windows, T0, T0)
}

fn refusal(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Refuse(refusal) => refusal.reason(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn early_steps_refuse_in_order() {
    let ours = Header { from: us().fingerprint(), ..header() };
    let envelope = clear(&ours, &content(None, "hi"));
    assert_eq!(receive(&envelope, &us().fingerprint()), Err(Refusal::Loop));

    let envelope = clear(&header(), &content(None, "hi"));
    let facts = |seen, blocked| SenderFacts { seen, blocked, key: None };
    let check = |facts| authenticate(&envelope, &us(), &facts, T0).map(|i| i.authentication);
    assert_eq!(check(facts(true, true)), Err(Refusal::Duplicate));
    assert_eq!(check(facts(false, true)), Err(Refusal::Blocked));
    assert_eq!(check(facts(false, false)), Ok(Authentication::Transport));
    assert_eq!(
        authenticate(&envelope, &peer(), &facts(false, false), T0).expect_err("other addressee").reason(),
        "not-for-us"
    );
    let late = authenticate(&envelope, &us(), &facts(false, false), T0 + MAX_AGE_MS + 1);
    assert_eq!(late.expect_err("old").reason(), "stale");
}

#[test]
fn a_stranger_is_one_held_row_and_nothing_else() {
    let policy = Policy::default();
    let message = incoming(None, "hello?");
    let stranger = standing(TrustLevel::Untrusted);
    let held = Verdict::Store { disposition: Disposition::HoldFirstContact, record: Vec::new() };
    assert_eq!(judge(&message, &stranger, policy, 0), held);
    let again = Standing { first_contact_pending: true, ..stranger.clone() };
    assert_eq!(refusal(judge(&message, &again, policy, 0)), "held-already");
    let crowd = Standing { first_contacts: MAX_FIRST_CONTACTS, ..stranger.clone() };
    assert_eq!(refusal(judge(&message, &crowd, policy, 0)), "first-contact-closed");
    let nearly = Standing { first_contacts: MAX_FIRST_CONTACTS - 1, ..stranger.clone() };
    assert_eq!(judge(&message, &nearly, policy, 0), held);
    let closed = Policy { first_contact: FirstContact::Closed, ..policy };
    assert_eq!(refusal(judge(&message, &stranger, closed, 0)), "first-contact-closed");
    let approved = Standing { thread_approved: true, ..stranger };
    assert!(matches!(
        judge(&message, &approved, policy, 0),
        Verdict::Store { disposition: Disposition::Route(_), .. }
    ));
}

#[test]
fn operations_need_their_level() {
    let policy = Policy::default();
    let task = incoming(Some("request_task"), "do it");
    assert_eq!(refusal(judge(&task, &standing(TrustLevel::Verified), policy, 0)), "not-permitted");
    assert!(matches!(judge(&task, &standing(TrustLevel::Trusted), policy, 0), Verdict::Store { .. }));
    let muted = Standing { blocked_operations: vec![Operation::Message], ..standing(TrustLevel::Autonomous) };
    assert_eq!(refusal(judge(&incoming(None, "hi"), &muted, policy, 0)), "not-permitted");
}

#[test]
fn a_full_window_delays_and_then_refuses() {
    let message = incoming(None, "hi");
    let policy = Policy::default();
    let verified = standing(TrustLevel::Verified);
    assert!(
        matches!(judge(&message, &verified, policy, 4), Verdict::Store { record, .. } if record.len() == 5)
    );
    let hour_is_too_long = judge(&message, &verified, policy, 10);
    assert_eq!(refusal(hour_is_too_long), "rate-limited");
    match judge(&message, &verified, policy, 5) {
        Verdict::Later { not_before, limited } => {
            assert_eq!((not_before, limited.limit), (T0 + 59_000, "burst"));
        }
        other => panic!("{other:?}"),
    }
    let full = Standing { queued_of_peer: limits::QUEUE_PER_PEER, ..verified };
    assert_eq!(refusal(judge(&message, &full, policy, 5)), "rate-limited");
}

#[test]
fn control_plane_never_reaches_a_thread() {
    let policy = Policy::default();
    for kind in ["ping", "health", "receipt", "typing", "vouch"] {
        let verdict = judge(&incoming(Some(kind), "x"), &standing(TrustLevel::Untrusted), policy, 0);
        assert!(matches!(verdict, Verdict::Finish { .. }), "{kind}");
    }
    let ping = incoming(Some("ping"), "x");
    assert_eq!(refusal(judge(&ping, &standing(TrustLevel::Untrusted), policy, 5)), "probe-rate-limited");
    assert!(matches!(judge(&ping, &standing(TrustLevel::Untrusted), policy, 4), Verdict::Finish { .. }));
    let resolved = incoming(Some("thread-resolved"), "x");
    assert_eq!(refusal(judge(&resolved, &standing(TrustLevel::Untrusted), policy, 0)), "not-permitted");
    assert!(matches!(
        judge(&resolved, &standing(TrustLevel::Verified), policy, 0),
        Verdict::Finish { class: Class::ThreadResolved, .. }
    ));
}

#[test]
fn auto_acks_are_kept_and_never_answered() {
    let ack = incoming(Some("status"), "Message received.");
    let verdict = judge(&ack, &standing(TrustLevel::Verified), Policy::default(), 0);
    assert!(matches!(verdict, Verdict::Store { disposition: Disposition::Note, .. }));
}

#[test]
fn plain_text_is_refused_where_encryption_is_required() {
    let envelope = clear(&header(), &content(None, "hi"));
    let message = authenticate(&envelope, &us(), &SenderFacts::default(), T0).expect("accepted");
    let cases = [
        (RequireE2e::TrustedAndAbove, TrustLevel::Verified, false),
        (RequireE2e::TrustedAndAbove, TrustLevel::Trusted, true),
        (RequireE2e::Never, TrustLevel::Autonomous, false),
        (RequireE2e::Always, TrustLevel::Untrusted, true),
    ];
    for (require_e2e, level, refused) in cases {
        let policy = Policy { require_e2e, ..Policy::default() };
        let verdict = judge(&message, &standing(level), policy, 0);
        assert_eq!(matches!(verdict, Verdict::Refuse(Refusal::PlaintextRefused)), refused, "{level}");
    }
}

#[test]
fn the_gate_comes_last() {
    let message = incoming(None, "hi");
    let cautious = Policy { autonomy: Autonomy::Cautious, ..Policy::default() };
    let verified = standing(TrustLevel::Verified);
    assert!(matches!(
        judge(&message, &verified, cautious, 0),
        Verdict::Store { disposition: Disposition::HoldForApproval, .. }
    ));
    for full in [
        Standing { pending_of_peer: MAX_PENDING_PER_PEER, ..verified.clone() },
        Standing { pending: MAX_PENDING, ..verified.clone() },
    ] {
        assert_eq!(refusal(judge(&message, &full, cautious, 0)), "approval-queue-full");
    }
    let paused = Standing { paused: true, ..verified.clone() };
    assert!(matches!(
        judge(&message, &paused, Policy::default(), 0),
        Verdict::Store { disposition: Disposition::HoldPaused, .. }
    ));
    let repeated = Standing { same_body_recently: true, ..verified };
    assert_eq!(refusal(judge(&message, &repeated, Policy::default(), 0)), "duplicate");
}

#[test]
fn claims_of_the_sender_are_cleaned() {
    let mut message = incoming(Some("a2a-message"), "hi");
    message.content.metadata =
        json!({"subject": " a\u{7}b\n", "inReplyTo": "not an id!"}).as_object().cloned();
    assert_eq!((message.subject().as_str(), message.in_reply_to(), message.kind()), ("ab", None, "chat"));
    message.content.metadata = json!({"inReplyTo": "m-1"}).as_object().cloned();
    assert_eq!((message.subject().as_str(), message.in_reply_to()), ("(no subject)", Some("m-1")));
}

proptest! {
    #[test]
    fn untrusted_never_reaches_a_session(
        kind in proptest::option::of("[a-z_-]{1,20}"), text in ".{0,40}", used in 0u32..400,
        pending in 0u32..30, autonomy in 0u8..4,
    ) {
        let autonomy = [Autonomy::Cautious, Autonomy::Supervised, Autonomy::Collaborative, Autonomy::Autonomous]
            [usize::from(autonomy)];
        let standing = Standing { pending, first_contacts: pending, ..standing(TrustLevel::Untrusted) };
        let policy = Policy { autonomy, ..Policy::default() };
        let verdict = judge(&incoming(kind.as_deref(), &text), &standing, policy, used);
        let routed = matches!(verdict, Verdict::Store { disposition: Disposition::Route(_), .. });
        prop_assert!(!routed);
    }
}
