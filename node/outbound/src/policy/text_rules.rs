//! Paths of this machine, names of environment variables, and credentials that show only by their surroundings.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

static ENV_VAR: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?-u)\$\{?(?:AUTH|(?:[A-Z][A-Z0-9_]*_)?API_KEY|[A-Z0-9_]*(?:SECRET|TOKEN|PASSWORD)[A-Z0-9_]*)\b|\bprocess\.env\.[A-Za-z_]\w*|\bstd::env::var\b|\bos\.environ\b",
    )
    .expect("a constant pattern")
});

static FILE_PATH: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?:^|[^A-Za-z0-9_.])(\.(?:instar|claude|codex)/)|(?:^|[^A-Za-z0-9_./~%-])(/(?:Users|home)/[A-Za-z0-9_.-]+)|(?:^|[^A-Za-z0-9_])([A-Za-z]:\\Users\\)",
    )
    .expect("a constant pattern")
});

/// Spans of `$SECRET`-like names and of code that reads the environment.
pub(super) fn env_vars(text: &str) -> impl Iterator<Item = Range<usize>> {
    ENV_VAR.find_iter(text).map(|found| found.range())
}

/// Spans of home directories and of the folders where agents keep their state.
pub(super) fn file_paths(text: &str) -> impl Iterator<Item = Range<usize>> {
    FILE_PATH
        .captures_iter(text)
        .filter_map(|captures| captures.iter().skip(1).flatten().next().map(|found| found.range()))
}

static BEARER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i-u)\bbearer[ \t]+([a-z0-9_~+/.=-]{20,})").expect("a constant pattern"));

static PASSWORD: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r#"(?i)(?-u:\b)(?:password|passwd|passphrase|pwd)["']?([ \t]*[:=][ \t]*)(?:"([^"\r\n]{8,})"|'([^'\r\n]{8,})'|([^\s"'(){}<>\[\]$;,]{8,}))"#,
    )
    .expect("a constant pattern")
});

/// Spans of tokens after the word bearer, and of values assigned to a password.
pub(super) fn credentials(text: &str) -> impl Iterator<Item = (&'static str, Range<usize>)> {
    let bearers = BEARER.captures_iter(text).filter_map(|captures| captures.get(1)).filter_map(|token| {
        let random = token.as_str().bytes().any(|b| b.is_ascii_digit());
        random.then(|| ("bearer token", token.range()))
    });
    let passwords = PASSWORD.captures_iter(text).filter_map(|captures| {
        let quoted = captures.get(2).or_else(|| captures.get(3));
        let value = quoted.or_else(|| captures.get(4))?;
        if quoted.is_none() && text[value.end()..].starts_with(['(', '<', '[']) {
            return None;
        }
        let tight = captures.get(1).is_some_and(|sign| sign.as_str() == "=");
        is_password(value.as_str(), quoted.is_some() || tight).then(|| ("password", value.range()))
    });
    bearers.chain(passwords)
}

/// Whether the value is one rather than a mask, a placeholder or, where prose and code may stand, words.
fn is_password(value: &str, literal: bool) -> bool {
    let mut characters = value.chars();
    let first = characters.next();
    let masked = characters.all(|c| Some(c) == first);
    let placeholder = ["<", "${", "{{", "$"].iter().any(|mark| value.starts_with(mark));
    !masked
        && !placeholder
        && (literal
            || value.contains(|c: char| !c.is_alphabetic() && !matches!(c, '.' | '_' | ':' | '-' | '/')))
}
