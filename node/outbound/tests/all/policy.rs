//! The rules of the policy layer on strings that must and must not be found.

use std::path::Path;
use std::time::{Duration, Instant};

use instar_outbound::{ChannelId, PelConfig, PelRule, RecipientKind, Severity};
use proptest::prelude::*;
use serde::Deserialize;

use crate::support::{PLANTED, policy, to, to_agent};

#[derive(Deserialize)]
struct Fixture {
    positive: Vec<String>,
    negative: Vec<String>,
}

fn broken(text: &str, kind: RecipientKind) -> Vec<(PelRule, Severity)> {
    let message = to(ChannelId::THREADLINE, kind, text);
    policy(PelConfig::default())
        .enforce(text, &message)
        .into_iter()
        .map(|violation| (violation.rule, violation.severity))
        .collect()
}

#[test]
fn each_rule_finds_its_positives_and_only_those() {
    let mut wrong = Vec::new();
    for rule in PelRule::ALL {
        if rule == PelRule::AuthTokenLeak {
            continue;
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/pel/{rule}.json"));
        let fixture: Fixture =
            serde_json::from_slice(&std::fs::read(path).expect("a fixture per rule")).expect("a fixture");
        assert!(fixture.positive.len() >= 5 && fixture.negative.len() >= 5, "{rule}");
        let finds = |text: &str| broken(text, RecipientKind::Agent).iter().any(|(found, _)| *found == rule);
        wrong.extend(
            fixture.positive.iter().filter(|text| !finds(text)).map(|t| format!("{rule} misses {t:?}")),
        );
        wrong.extend(
            fixture.negative.iter().filter(|text| finds(text)).map(|t| format!("{rule} finds {t:?}")),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn personal_data_depends_on_the_reader() {
    let text = "Bob's address is bob@example.com";
    for (kind, expected) in [
        (RecipientKind::PrimaryUser, None),
        (RecipientKind::SecondaryUser, Some(Severity::Warn)),
        (RecipientKind::Agent, Some(Severity::HardBlock)),
        (RecipientKind::ExternalContact, Some(Severity::HardBlock)),
    ] {
        let severity = broken(text, kind).first().map(|(_, severity)| *severity);
        assert_eq!(severity, expected, "{kind:?}");
    }
}

#[test]
fn a_reader_may_be_told_its_own_values_and_allowed_ones() {
    let mut message = to_agent("yours: Bob@Example.com, ours: +1 (415) 555-2671");
    message.target.recipient.own_values = vec!["bob@example.com".into()];
    let config = PelConfig { pii_allow: vec!["+14155552671".into()], ..PelConfig::default() };
    assert_eq!(policy(config).enforce(&message.text, &message), []);
}

#[test]
fn inner_doors_are_checked_for_secrets_only() {
    let text = format!("{PLANTED} http://localhost/ /home/bob a@b.example \u{200B}");
    let message = to(ChannelId::CLI, RecipientKind::PrimaryUser, &text);
    let rules: Vec<PelRule> =
        policy(PelConfig::default()).enforce(&text, &message).iter().map(|v| v.rule).collect();
    assert_eq!(rules, [PelRule::CredentialLeak]);
}

#[test]
fn the_owner_is_warned_of_internal_addresses_and_others_do_not_get_them() {
    let rule = |kind| broken("http://localhost:1/", kind);
    assert_eq!(rule(RecipientKind::PrimaryUser), [(PelRule::InternalUrlLeak, Severity::Warn)]);
    assert_eq!(rule(RecipientKind::SecondaryUser), [(PelRule::InternalUrlLeak, Severity::HardBlock)]);
}

#[test]
fn many_hidden_characters_block() {
    let few = broken(&"a\u{200B}".repeat(8), RecipientKind::Agent);
    let many = broken(&"a\u{200B}".repeat(9), RecipientKind::Agent);
    assert_eq!(few, [(PelRule::InvisibleText, Severity::Warn)]);
    assert_eq!(many, [(PelRule::InvisibleText, Severity::HardBlock)]);
}

#[test]
fn a_downgraded_rule_only_warns() {
    let message = to_agent("http://localhost:1/");
    let config =
        PelConfig { downgraded: [PelRule::InternalUrlLeak].into_iter().collect(), ..PelConfig::default() };
    let violations = policy(config).enforce(&message.text, &message);
    assert!(violations.iter().all(|violation| violation.severity == Severity::Warn));
    assert_eq!(violations.len(), 1);
}

#[test]
fn large_hostile_text_takes_linear_time() {
    let texts = [
        "a".repeat(400_000),
        "1 ".repeat(200_000),
        "a@b.".repeat(100_000),
        "AB12 ".repeat(80_000),
        "http://x@".repeat(44_000),
        "$_".repeat(200_000),
        "password: ".repeat(40_000),
        "bearer a1".repeat(44_000),
        "\u{200D}é".repeat(80_000),
    ];
    for text in texts {
        let time = |text: &str| {
            let message = to_agent("");
            let started = Instant::now();
            let found = policy(PelConfig::default()).enforce(text, &message).len();
            (started.elapsed(), found)
        };
        let half = text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at);
        let (small, _) = time(&text[..half]);
        let (large, _) = time(&text);
        assert!(
            large < small * 8 + Duration::from_millis(500),
            "{small:?} for half, {large:?} for all of {:?}…",
            &text[..12]
        );
    }
}

proptest! {
    #[test]
    fn any_text_is_judged_and_spans_lie_inside(text in "(?s).{0,400}") {
        let message = to_agent("");
        for violation in policy(PelConfig::default()).enforce(&text, &message) {
            prop_assert!(text.get(violation.span.clone()).is_some());
        }
    }

    #[test]
    fn a_planted_card_is_found_wherever_it_stands(before in "[a-z ,]{0,40}", after in "[a-z ,]{0,40}") {
        let text = format!("{before} 4111-1111-1111-1111 {after}");
        prop_assert!(broken(&text, RecipientKind::Agent).iter().any(|(rule, _)| *rule == PelRule::PiiDetection));
    }
}
