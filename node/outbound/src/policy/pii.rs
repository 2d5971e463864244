//! Personal data by shape, with the check digits where there are any.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

/// What kind of personal data was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PiiKind {
    Email,
    Phone,
    SocialSecurity,
    Iban,
    Card,
}

impl PiiKind {
    pub(super) const fn describe(self) -> &'static str {
        match self {
            Self::Email => "e-mail address",
            Self::Phone => "phone number",
            Self::SocialSecurity => "social security number",
            Self::Iban => "bank account number (IBAN)",
            Self::Card => "payment card number",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) kind: PiiKind,
    pub(super) span: Range<usize>,
}

/// Values that may be said, compared without case and punctuation.
pub(super) struct Allowed(BTreeSet<String>);

impl Allowed {
    pub(super) fn new<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        Self(values.map(canonical).collect())
    }

    pub(super) fn contains(&self, found: &Found, text: &str) -> bool {
        text.get(found.span.clone()).is_some_and(|value| self.0.contains(&canonical(value)))
    }
}

fn canonical(value: &str) -> String {
    let keep = |c: &char| c.is_alphanumeric() || matches!(c, '@' | '.' | '_' | '+') && value.contains('@');
    value.chars().filter(keep).flat_map(char::to_lowercase).collect()
}

static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?-u)[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}")
        .expect("a constant pattern")
});

/// Everything that starts like a number: one pass, the readings are told apart by code.
static NUMBER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?-u)\+?\(?[0-9](?:[ .()-]{0,2}[0-9]){6,22}").expect("a constant pattern"));

static IBAN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?-u)\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
        .expect("a constant pattern")
});

static US_PHONE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?-u)^(?:\+?1[ .-]?)?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}$")
        .expect("a constant pattern")
});

static SOCIAL_SECURITY: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?-u)^[0-9]{3}-[0-9]{2}-[0-9]{4}$").expect("a constant pattern"));

/// All personal data in `text`.
pub(super) fn find(text: &str) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    if text.contains('@') {
        found.extend(EMAIL.find_iter(text).map(|m| Found { kind: PiiKind::Email, span: m.range() }));
    }
    let ibans: Vec<Range<usize>> = IBAN
        .find_iter(text)
        .filter_map(|m| longest_iban(m.as_str()).map(|length| m.start()..m.start() + length))
        .collect();
    for number in NUMBER.find_iter(text) {
        let inside_iban = ibans.iter().any(|iban| iban.start < number.end() && number.start() < iban.end);
        if !inside_iban
            && stands_alone(text, &number.range())
            && let Some(kind) = read_number(number.as_str())
        {
            found.push(Found { kind, span: number.range() });
        }
    }
    found.extend(ibans.into_iter().map(|span| Found { kind: PiiKind::Iban, span }));
    found
}

/// Whether the digits are not the middle of a longer identifier, hexadecimal string, path, version or decimal.
fn stands_alone(text: &str, span: &Range<usize>) -> bool {
    let glued = |c: char| c.is_alphanumeric() || matches!(c, '_' | '/' | '=' | '#' | '$' | '%');
    let before = text[..span.start].chars().next_back();
    let after = text[span.end..].chars().next();
    !before.is_some_and(|c| glued(c) || matches!(c, '-' | '.'))
        && !after.is_some_and(|c| glued(c) || c == '-')
}

fn read_number(number: &str) -> Option<PiiKind> {
    if SOCIAL_SECURITY.is_match(number) {
        return Some(PiiKind::SocialSecurity);
    }
    let digits: Vec<u8> = number.bytes().filter(u8::is_ascii_digit).map(|b| b - b'0').collect();
    if !number.starts_with('+') && is_card(&digits) && only_separated_by(number, b" -") {
        return Some(PiiKind::Card);
    }
    let international = number.starts_with('+')
        && (8..=15).contains(&digits.len())
        && digits.first().is_some_and(|d| *d != 0);
    (international || US_PHONE.is_match(number)).then_some(PiiKind::Phone)
}

fn only_separated_by(number: &str, separators: &[u8]) -> bool {
    number.bytes().all(|b| b.is_ascii_digit() || separators.contains(&b))
}

/// Length and prefix of an issuer, then the Luhn check: thirteen digits alone are more often a time in milliseconds.
fn is_card(digits: &[u8]) -> bool {
    let prefix = |n: usize| digits.iter().take(n).fold(0_u32, |sum, d| sum * 10 + u32::from(*d));
    let (two, three, four) = (prefix(2), prefix(3), prefix(4));
    let issued = match digits.len() {
        13 | 19 => two / 10 == 4,
        14 => matches!(two, 36 | 38) || (300..=305).contains(&three),
        15 => matches!(two, 34 | 37),
        16 => {
            two / 10 == 4
                || (51..=55).contains(&two)
                || (2221..=2720).contains(&four)
                || matches!(two, 35 | 62 | 65)
                || four == 6011
                || (644..=649).contains(&three)
        }
        _ => false,
    };
    issued && luhn(digits)
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(at, digit)| {
            let digit = u32::from(*digit);
            match (at % 2, digit) {
                (0, d) => d,
                (_, d) if d > 4 => d * 2 - 9,
                (_, d) => d * 2,
            }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Bytes of the longest prefix that ends at a group and passes the ISO 7064 check; the pattern is greedy over words.
fn longest_iban(candidate: &str) -> Option<usize> {
    let mut end = candidate.len();
    loop {
        let part = &candidate[..end];
        if is_iban(part) {
            return Some(end);
        }
        end = part.rfind(' ')?;
    }
}

fn is_iban(text: &str) -> bool {
    let characters: Vec<u8> = text.bytes().filter(|b| *b != b' ').collect();
    if !(15..=34).contains(&characters.len()) {
        return false;
    }
    let (head, tail) = characters.split_at(4);
    let remainder = tail.iter().chain(head).fold(0_u32, |rest, b| match b {
        b'0'..=b'9' => (rest * 10 + u32::from(b - b'0')) % 97,
        _ => (rest * 100 + u32::from(b - b'A') + 10) % 97,
    });
    remainder == 1
}
