//! Finds the table's secrets: literals first, then only the rules whose literals occur.

use std::ops::Range;
use std::sync::{LazyLock, OnceLock};

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use regex::Regex;

use crate::Hit;
use crate::table::{RULES, Rule, Validate};

/// Longest private key block that is taken as one span, in bytes.
const PEM_WINDOW: usize = 16 * 1024;
/// How far a secret word may stand from 64 hexadecimal digits, in bytes.
const HEX_WINDOW: usize = 40;

/// All hits of all rules, unordered, possibly overlapping.
pub(crate) fn scan(text: &str) -> Vec<Hit> {
    let mut hits = Vec::new();
    for index in candidates(text) {
        let rule = &RULES[index];
        let Some(regex) = regex_of(index) else { continue };
        let mut ends = PemEnds::default();
        let mut at = 0;
        while let Some((whole, secret)) = next_match(regex, text, at) {
            let span = accept(rule, text, whole.clone(), secret, &mut ends);
            at = span.as_ref().map_or(whole.end, |span| span.end.max(whole.end));
            if let Some(span) = span {
                hits.push(Hit { rule: rule.id, span, severity: rule.severity, action: rule.action });
            }
        }
    }
    hits
}

/// Indices of the rules of which a keyword occurs.
fn candidates(text: &str) -> Vec<usize> {
    static KEYWORDS: LazyLock<(AhoCorasick, Vec<(usize, &'static str)>)> = LazyLock::new(|| {
        let owners: Vec<(usize, &str)> = RULES
            .iter()
            .enumerate()
            .flat_map(|(index, rule)| rule.keywords.iter().map(move |keyword| (index, *keyword)))
            .collect();
        let automaton = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .build(owners.iter().map(|(_, keyword)| keyword))
            .expect("a few dozen short literals fit any automaton");
        (automaton, owners)
    });
    let (automaton, owners) = &*KEYWORDS;
    let mut wanted = vec![false; RULES.len()];
    for found in automaton.find_overlapping_iter(text) {
        let (index, keyword) = owners[found.pattern().as_usize()];
        if RULES[index].ignore_case || text.as_bytes()[found.range()] == *keyword.as_bytes() {
            wanted[index] = true;
        }
    }
    wanted.iter().enumerate().filter_map(|(index, wanted)| wanted.then_some(index)).collect()
}

fn regex_of(index: usize) -> Option<&'static Regex> {
    static COMPILED: [OnceLock<Option<Regex>>; RULES.len()] = [const { OnceLock::new() }; RULES.len()];
    COMPILED[index].get_or_init(|| Regex::new(RULES[index].regex).ok()).as_ref()
}

/// The next match from `at` on: the whole of it, and the part that is the secret.
fn next_match(regex: &Regex, text: &str, at: usize) -> Option<(Range<usize>, Range<usize>)> {
    if regex.captures_len() == 1 {
        let whole = regex.find_at(text, at)?.range();
        return Some((whole.clone(), whole));
    }
    let groups = regex.captures_at(text, at)?;
    let whole = groups.get(0)?.range();
    Some((whole.clone(), groups.get(1)?.range()))
}

fn accept(
    rule: &Rule,
    text: &str,
    whole: Range<usize>,
    secret: Range<usize>,
    ends: &mut PemEnds,
) -> Option<Range<usize>> {
    let value = &text[secret.clone()];
    let plausible = match rule.validate {
        Validate::NotAnthropic => !value.starts_with("sk-ant-"),
        Validate::NotPlaceholder => !is_placeholder(value),
        Validate::HexNearSecretWord => near_secret_word(text, &secret),
        Validate::Jwt => has_jwt_header(value),
        Validate::None | Validate::Pem | Validate::Assignment => true,
    };
    if !plausible {
        return None;
    }
    let span = match rule.validate {
        Validate::Pem => ends.block(text, whole),
        Validate::Assignment => assigned(text, secret)?,
        _ => secret,
    };
    let random_enough = rule.min_entropy.is_none_or(|least| entropy(&text[span.clone()]) >= least);
    random_enough.then_some(span)
}

/// Positions of `-----END`, each stretch of text searched once so that a flood of headers stays linear.
#[derive(Default)]
enum PemEnds {
    #[default]
    Unsearched,
    NextAt(usize),
    NoMore,
}

impl PemEnds {
    fn block(&mut self, text: &str, header: Range<usize>) -> Range<usize> {
        let stale = match self {
            PemEnds::Unsearched => true,
            PemEnds::NextAt(at) => *at < header.end,
            PemEnds::NoMore => false,
        };
        if stale {
            let found = text[header.end..].find("-----END ");
            *self = found.map_or(PemEnds::NoMore, |at| PemEnds::NextAt(header.end + at));
        }
        let end = match *self {
            PemEnds::NextAt(at) if at - header.end <= PEM_WINDOW => {
                let label = at + "-----END ".len();
                let closing = text.as_bytes()[label..].iter().take(64).take_while(|b| **b != b'\n').count();
                label + closing
            }
            _ => {
                let body = text.as_bytes()[header.end..].iter().take(PEM_WINDOW);
                header.end
                    + body.take_while(|b| b.is_ascii_alphanumeric() || b"+/=\\\r\n ".contains(b)).count()
            }
        };
        header.start..text.floor_char_boundary(end)
    }
}

/// The assigned value without trailing punctuation, unless it is a placeholder, a call or a path.
fn assigned(text: &str, secret: Range<usize>) -> Option<Range<usize>> {
    let value = text[secret.clone()].trim_end_matches([',', ';', '}', ']']);
    let called = text[secret.end..].starts_with('(');
    if called || value.len() < 16 || is_placeholder(value) || is_path_or_expression(value) {
        return None;
    }
    Some(secret.start..secret.start + value.len())
}

fn is_placeholder(value: &str) -> bool {
    const STARTS: [&str; 9] = ["xxx", "changeme", "${", "$(", "{{", "<", "[redacted", "***", "%s"];
    const WORDS: [&str; 8] = ["password", "pass", "passwd", "secret", "token", "pwd", "user", "$password"];
    let lower = value.to_ascii_lowercase();
    let value = lower.trim_start_matches('\\');
    STARTS.iter().any(|start| value.starts_with(start))
        || value.contains("example")
        || value.contains("placeholder")
        || value.starts_with("your-")
        || value.starts_with("your_")
        || WORDS.contains(&value)
}

fn is_path_or_expression(value: &str) -> bool {
    if ["/", "./", "../", "~/", "$", "&", "*"].iter().any(|start| value.starts_with(start)) {
        return true;
    }
    if value.contains("::") || value.contains("->") || value.contains("://") {
        return true;
    }
    // `settings.auth.token`: names joined by dots, at least one dot, no digits.
    value.contains('.')
        && value.split('.').all(|name| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_' || b == b'[' || b == b']')
        })
}

fn near_secret_word(text: &str, span: &Range<usize>) -> bool {
    const WORDS: [&str; 8] =
        ["password", "passwd", "secret", "token", "api_key", "api-key", "apikey", "private"];
    const DIGESTS: [&str; 6] = ["sha256", "sha-256", "digest", "integrity", "commit", "checksum"];
    let before = window(text, span.start.saturating_sub(HEX_WINDOW)..span.start);
    let after = window(text, span.end..span.end.saturating_add(HEX_WINDOW));
    !DIGESTS.iter().any(|word| before.contains(word))
        && WORDS.iter().any(|word| before.contains(word) || after.contains(word))
}

fn window(text: &str, range: Range<usize>) -> String {
    let range = text.floor_char_boundary(range.start)..text.floor_char_boundary(range.end);
    text[range].to_ascii_lowercase()
}

fn has_jwt_header(token: &str) -> bool {
    let Some((header, _)) = token.split_once('.') else { return false };
    let Ok(bytes) = URL_SAFE_NO_PAD.decode(header) else { return false };
    bytes.starts_with(b"{") && bytes.ends_with(b"}") && bytes.windows(5).any(|part| part == b"\"alg\"")
}

/// Shannon entropy in bits per byte.
fn entropy(value: &str) -> f64 {
    let mut counts = [0u32; 256];
    for byte in value.bytes() {
        counts[usize::from(byte)] += 1;
    }
    let total = value.len() as f64;
    counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| {
            let share = f64::from(*count) / total;
            -share * share.log2()
        })
        .sum()
}
