//! The shared secret table and the redactor.
//!
//! ```
//! let key = format!("key {}{}", "AKIA", "IOSFODNN7EXAMPL3");
//! assert_eq!(instar_redact::find(&key)[0].rule, "aws-access-key-id");
//! assert_eq!(instar_redact::redact(&key), "key [REDACTED:aws-access-key-id:1]");
//! ```

mod own;
mod scan;
mod table;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

pub use own::{OwnSecrets, SHORTEST_OWN_SECRET};
pub use table::{Action, Rule, Severity, rules};

/// Id of the hits that are one of our own secrets, which no rule of the table has.
pub const OWN_SECRET: &str = "own-secret";

/// One place of a text that holds a secret. The value itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// Id of the rule, or [`OWN_SECRET`].
    pub rule: &'static str,
    /// Byte range of the secret.
    pub span: Range<usize>,
    /// How bad it is if it leaves.
    pub severity: Severity,
    /// What a gate does about it.
    pub action: Action,
}

/// Secrets in `text` by the table, in order, not overlapping. Linear in the length of the text.
pub fn find(text: &str) -> Vec<Hit> {
    merge(scan::scan(text))
}

/// The text with every secret of the table replaced by `[REDACTED:<rule>:<n>]`; equal values get equal numbers.
pub fn redact(text: &str) -> Cow<'_, str> {
    replace(text, &find(text))
}

/// First four and last four characters with `****` between, or only stars when shorter than twelve.
pub fn mask(value: &str) -> String {
    let letters: Vec<char> = value.chars().collect();
    if letters.len() < 12 {
        return "*".repeat(letters.len());
    }
    let (head, tail) = (&letters[..4], &letters[letters.len() - 4..]);
    head.iter().collect::<String>() + "****" + &tail.iter().collect::<String>()
}

/// The table together with this node's own secrets: what log lines and outgoing texts pass through.
#[derive(Debug, Default)]
pub struct Redactor {
    own: OwnSecrets,
}

impl Redactor {
    /// A redactor that also knows these values.
    pub fn new(own: OwnSecrets) -> Self {
        Self { own }
    }

    /// Secrets in `text`, our own first where both apply.
    pub fn find(&self, text: &str) -> Vec<Hit> {
        let mut hits = self.own.find(text);
        hits.extend(scan::scan(text));
        merge(hits)
    }

    /// The text with every secret replaced; borrowed when there was none, so it suits a log layer.
    pub fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        replace(text, &self.find(text))
    }
}

/// Joins overlapping hits into one that covers them all and bears the gravest rule.
fn merge(mut hits: Vec<Hit>) -> Vec<Hit> {
    hits.sort_by_key(|hit| (hit.span.start, hit.severity));
    let mut merged: Vec<Hit> = Vec::with_capacity(hits.len());
    for hit in hits {
        match merged.last_mut() {
            Some(last) if hit.span.start < last.span.end => {
                let span = last.span.start..last.span.end.max(hit.span.end);
                if hit.severity < last.severity {
                    *last = hit;
                }
                last.span = span;
            }
            _ => merged.push(hit),
        }
    }
    merged
}

fn replace<'t>(text: &'t str, hits: &[Hit]) -> Cow<'t, str> {
    if hits.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for hit in hits {
        let value = &text[hit.span.clone()];
        let next = numbers.len() + 1;
        let number = *numbers.entry(value).or_insert(next);
        out.push_str(&text[done..hit.span.start]);
        out.push_str("[REDACTED:");
        out.push_str(hit.rule);
        out.push(':');
        out.push_str(&number.to_string());
        out.push(']');
        done = hit.span.end;
    }
    out.push_str(&text[done..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests;
