use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Strings {
    positive: Vec<String>,
    negative: Vec<String>,
}

/// The fixtures are cut by `¦` so that they do not themselves look like secrets to a scanner.
fn fixtures() -> BTreeMap<String, Strings> {
    let text = include_str!("../fixtures/rules.json").replace('¦', "");
    serde_json::from_str(&text).expect("the fixtures are JSON")
}

#[test]
fn every_rule_finds_its_positives_and_leaves_its_negatives() {
    let fixtures = fixtures();
    for rule in rules() {
        let strings = fixtures.get(rule.id).unwrap_or_else(|| panic!("no fixtures for {}", rule.id));
        assert!(strings.positive.len() >= 5 && strings.negative.len() >= 5, "{}: too few strings", rule.id);
        let found = |text: &str| scan::scan(text).iter().any(|hit| hit.rule == rule.id);
        for text in &strings.positive {
            assert!(found(text), "{} does not find {text:?}", rule.id);
        }
        for text in &strings.negative {
            assert!(!found(text), "{} finds {text:?}", rule.id);
        }
    }
    assert_eq!(fixtures.len(), rules().len(), "a fixture has no rule");
}

#[test]
fn every_regex_compiles_and_has_a_keyword() {
    for rule in rules() {
        assert!(regex::Regex::new(rule.regex).is_ok(), "{}", rule.id);
        assert!(
            !rule.keywords.is_empty() && rule.keywords.iter().all(|keyword| keyword.is_ascii()),
            "{}",
            rule.id
        );
        assert!(!rule.description.is_empty());
    }
}

#[test]
fn overlapping_hits_become_one_of_the_gravest_rule() {
    let text = format!("api_key = \"sk_live_{}\"", "a1B2".repeat(8));
    let hits = find(&text);
    assert_eq!(hits.len(), 1, "{hits:?}");
    assert_eq!(
        (hits[0].rule, hits[0].severity, hits[0].action),
        ("stripe-secret", Severity::Critical, Action::Block)
    );
}

#[test]
fn equal_values_get_equal_numbers() {
    let (a, b) = (format!("ghp_{}", "a1".repeat(18)), format!("ghp_{}", "b2".repeat(18)));
    let text = redact(&format!("{a} {b} {a}")).into_owned();
    assert_eq!(text, "[REDACTED:github-token:1] [REDACTED:github-token:2] [REDACTED:github-token:1]");
}

#[test]
fn a_key_block_goes_as_a_whole() {
    let text = format!(
        "before\n{}KEY-----\nMIIabc\ndef==\n{}KEY-----\nafter",
        "-----BEGIN PRIVATE ", "-----END PRIVATE "
    );
    assert_eq!(redact(&text), "before\n[REDACTED:private-key-block:1]\nafter");
    let cut_off = format!("x {}KEY-----\\nMIIabcdef, then", "-----BEGIN PRIVATE ");
    assert_eq!(redact(&cut_off), "x [REDACTED:private-key-block:1], then");
}

#[test]
fn a_header_keeps_its_name() {
    let text = format!("Authorization: Bearer {}", "aB3".repeat(10));
    assert_eq!(redact(&text), "Authorization: Bearer [REDACTED:bearer-header:1]");
}

#[test]
fn own_secrets_are_found_in_every_form() {
    let secret = "p/w+7 ü&Yz9$k2=q";
    let redactor = Redactor::new(OwnSecrets::new([secret, "short"]));
    let each = |form: fn(u8) -> String| secret.bytes().map(form).collect::<Vec<_>>().concat();
    let hex = each(|b| format!("{b:02x}"));
    let mut carried = vec![
        secret.to_owned(),
        STANDARD.encode(secret),
        URL_SAFE_NO_PAD.encode(secret),
        hex.clone(),
        hex.to_uppercase(),
        "p%2Fw%2B7%20%C3%BC%26Yz9%24k2%3Dq".to_owned(),
        each(|b| format!("%{b:02X}")),
    ];
    carried.extend(["u:", "us:", "use:"].map(|user| STANDARD.encode(format!("{user}{secret}!"))));
    for form in carried {
        let text = format!("see {form} there");
        assert!(redactor.find(&text).iter().any(|hit| hit.rule == OWN_SECRET), "{form}");
        assert!(!redactor.redact(&text).contains(&form), "{form}");
    }
    assert!(redactor.find("this is short").is_empty(), "values under eight bytes are not searched for");
    assert!(!format!("{redactor:?}").contains("Yz9"));
}

#[test]
fn masks_keep_at_most_eight_characters() {
    assert_eq!(mask("sk_live_abcdefgh"), "sk_l****efgh");
    assert_eq!(mask("elevenchars"), "***********");
    assert_eq!(mask("äöüßäöüßäöüß"), "äöüß****äöüß");
}

#[test]
fn ten_megabytes_take_linear_time() {
    let size = 10 << 20;
    let mut state = 7u32;
    let random: String = (0..size)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b' ' + u8::try_from((state >> 24) % 95).unwrap_or(0))
        })
        .collect();
    let flood = |piece: &str| piece.repeat(size / 10 / piece.len());
    let texts = [
        random,
        "a".repeat(size),
        flood("-----BEGIN PRIVATE KEY----- ?"),
        flood("token="),
        flood("password: "),
        flood("sk-"),
        flood("eyJ."),
        flood("secret0123456789abcdef"),
    ];
    for text in &texts {
        let start = Instant::now();
        let _ = find(text);
        let took = start.elapsed();
        // Unoptimised code on a busy machine needs seconds; a quadratic rule would need hours.
        assert!(took < Duration::from_mins(1), "{:?}… took {took:?}", &text[..12]);
    }
}

proptest! {
    #[test]
    fn redacting_never_fails_and_leaves_nothing_to_redact(
        parts in proptest::collection::vec(prop_oneof![
            any::<String>(),
            proptest::sample::select(fixtures().into_values().flat_map(|s| s.positive).collect::<Vec<_>>()),
        ], 0..6)
    ) {
        let text = parts.join(" ");
        let once = redact(&text).into_owned();
        prop_assert!(find(&once).iter().all(|hit| hit.severity == Severity::Medium), "{once:?}");
    }

    #[test]
    fn hits_are_ordered_apart_and_on_boundaries(text in "\\PC{0,40}(token=|sk-|-----BEGIN PRIVATE KEY-----|AKIA)[ -~é]{0,60}") {
        let mut done = 0;
        for hit in find(&text) {
            prop_assert!(hit.span.start >= done && hit.span.end > hit.span.start);
            prop_assert!(text.get(hit.span.clone()).is_some());
            done = hit.span.end;
        }
    }

    #[test]
    fn an_own_secret_never_survives(secret in "[ -~]{8,40}", before in "\\PC{0,20}", after in "\\PC{0,20}") {
        let redactor = Redactor::new(OwnSecrets::new([secret.as_str()]));
        let text = format!("{before}{secret}{after}");
        prop_assert!(!redactor.find(&text).is_empty());
    }
}
