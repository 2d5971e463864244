//! Paths of this machine and names of environment variables.

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
