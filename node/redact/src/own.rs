//! This node's own secrets, found exactly and in the forms in which they are usually carried.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::{Action, Hit, OWN_SECRET, Severity};

/// Values shorter than this many bytes are not searched for: they would hit ordinary text.
pub const SHORTEST_OWN_SECRET: usize = 8;

/// A set of secret values, searched for as they are and as base64, hexadecimal and URL encoding.
#[derive(Default)]
pub struct OwnSecrets {
    forms: Option<AhoCorasick>,
}

impl OwnSecrets {
    /// Prepares the search for these values; those shorter than [`SHORTEST_OWN_SECRET`] are left out.
    pub fn new<'v>(values: impl IntoIterator<Item = &'v str>) -> Self {
        let forms: BTreeSet<String> =
            values.into_iter().filter(|value| value.len() >= SHORTEST_OWN_SECRET).flat_map(forms).collect();
        if forms.is_empty() {
            return Self::default();
        }
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(forms);
        Self { forms: automaton.ok() }
    }

    /// Whether there is nothing to search for.
    pub fn is_empty(&self) -> bool {
        self.forms.is_none()
    }

    /// Places where one of the values occurs.
    pub fn find(&self, text: &str) -> Vec<Hit> {
        let Some(forms) = &self.forms else { return Vec::new() };
        forms
            .find_iter(text)
            .map(|found| Hit {
                rule: OWN_SECRET,
                span: found.range(),
                severity: Severity::Critical,
                action: Action::Block,
            })
            .collect()
    }
}

impl fmt::Debug for OwnSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnSecrets([redacted])")
    }
}

fn forms(value: &str) -> Vec<String> {
    let bytes = value.as_bytes();
    let mut forms = vec![value.to_owned(), hex(bytes, false), hex(bytes, true)];
    for shift in 0..3 {
        forms.push(base64_inside(bytes, shift, false));
        forms.push(base64_inside(bytes, shift, true));
    }
    forms.push(percent(bytes, |b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b), true));
    forms.push(percent(bytes, |b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b), false));
    forms.push(percent(bytes, |b| b.is_ascii_alphanumeric() || b"-_.!~*'()".contains(&b), true));
    forms.push(percent(bytes, |b| b.is_ascii_alphanumeric(), true));
    forms.push(percent(bytes, |_| false, true));
    forms
}

/// The characters of a base64 text that the value alone decides when `shift` other bytes stand before it
/// (modulo three), as in `user:secret`.
fn base64_inside(value: &[u8], shift: usize, url: bool) -> String {
    let mut padded = vec![0; shift];
    padded.extend_from_slice(value);
    let whole = if url { URL_SAFE_NO_PAD.encode(&padded) } else { STANDARD_NO_PAD.encode(&padded) };
    let first = (shift * 8).div_ceil(6);
    let last = padded.len() * 8 / 6;
    whole.get(first..last).unwrap_or_default().to_owned()
}

fn hex(bytes: &[u8], upper: bool) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = if upper { write!(out, "{byte:02X}") } else { write!(out, "{byte:02x}") };
        out
    })
}

fn percent(bytes: &[u8], plain: impl Fn(u8) -> bool, upper: bool) -> String {
    bytes.iter().fold(String::new(), |mut out, &byte| {
        let _ = match (plain(byte), upper) {
            (true, _) => write!(out, "{}", char::from(byte)),
            (false, true) => write!(out, "%{byte:02X}"),
            (false, false) => write!(out, "%{byte:02x}"),
        };
        out
    })
}
