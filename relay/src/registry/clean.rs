//! Cleaning of what agents say about themselves, on every path into the directory (`relay.md` §12.2).

use http::Uri;
use threadline::v1::frames::{Metadata, RegistryWish};
use unicode_normalization::UnicodeNormalization as _;

use crate::store::Profile;

const NAME: usize = 64;
const BIO: usize = 500;
const TAGS: usize = 20;
const TAG: usize = 32;
const HOMEPAGE: usize = 256;

/// Hex of the first 16 bytes of a key: the address.
pub fn agent_id(key: &[u8; 32]) -> String {
    hex::encode(&key[..16])
}

/// Text for people: NFC, without invisible direction and control characters, trimmed, cut to `most` characters.
pub fn text(raw: &str, most: usize) -> String {
    let visible: String = raw.nfc().filter(|c| !is_hidden(*c)).collect();
    let cut: String = visible.trim().chars().take(most).collect();
    cut.trim_end().to_owned()
}

fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200B}'..='\u{200D}' | '\u{FEFF}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Display name.
pub fn name(raw: &str) -> String {
    text(raw, NAME)
}

/// About text.
pub fn bio(raw: &str) -> String {
    text(raw, BIO)
}

/// One tag of `a-z 0-9 -`, or nothing.
pub fn tag(raw: &str) -> Option<String> {
    let lower = raw.to_lowercase();
    let kept = lower.chars().filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-');
    let tag: String = kept.take(TAG).collect();
    (!tag.is_empty()).then_some(tag)
}

/// At most 20 different tags.
pub fn tags<S: AsRef<str>>(raw: &[S]) -> Vec<String> {
    let mut tags: Vec<String> = Vec::new();
    for tag in raw.iter().filter_map(|raw| tag(raw.as_ref())) {
        if tags.len() < TAGS && !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
}

/// Kind of facet: a capability.
pub const CAPABILITY: &str = "ck";
/// Kind of facet: an interest.
pub const INTEREST: &str = "in";
/// Kind of facet: a framework that others may see.
pub const FRAMEWORK: &str = "fw";

/// A tag as one word of the full-text index, where `-` would split it. No tag contains the letter.
pub fn facet(kind: &str, tag: &str) -> String {
    format!("{kind}þ{}", tag.replace('-', "þ"))
}

/// All facets of an entry.
pub fn facets(capabilities: &[String], interests: &[String], framework: Option<&str>) -> String {
    let capabilities = capabilities.iter().map(|tag| facet(CAPABILITY, tag));
    let interests = interests.iter().map(|tag| facet(INTEREST, tag));
    let framework = framework.map(|tag| facet(FRAMEWORK, tag));
    capabilities.chain(interests).chain(framework).collect::<Vec<_>>().join(" ")
}

/// Framework tag, or `unknown`.
pub fn framework(raw: &str) -> String {
    tag(raw).unwrap_or_else(|| "unknown".into())
}

/// An https URL without user info, or nothing.
pub fn homepage(raw: &str) -> String {
    let raw = raw.trim();
    let fits = raw.len() <= HOMEPAGE && raw.chars().all(|c| c.is_ascii_graphic());
    let parsed = raw.parse::<Uri>().ok().filter(|_| fits);
    let good = parsed.is_some_and(|uri| {
        uri.scheme_str() == Some("https")
            && uri.authority().is_some_and(|a| !a.host().is_empty() && !a.as_str().contains('@'))
    });
    if good { raw.to_owned() } else { String::new() }
}

/// Cleaned profile of a login.
pub fn profile(metadata: &Metadata, wish: Option<&RegistryWish>) -> Profile {
    Profile {
        name: Some(name(&metadata.name)),
        bio: metadata.bio.as_deref().map(bio),
        interests: metadata.interests.as_deref().map(tags),
        capabilities: metadata.capabilities.as_deref().map(tags),
        framework: metadata.framework.as_deref().map(framework),
        framework_visible: wish.and_then(|wish| wish.framework_visible),
        homepage: wish.and_then(|wish| wish.homepage.as_deref()).map(homepage),
    }
}

/// Cleaned metadata as it is shown to others in presence.
pub fn metadata(raw: &Metadata, profile: &Profile, framework_visible: bool) -> Metadata {
    Metadata {
        name: profile.name.clone().unwrap_or_default(),
        framework: profile.framework.clone().filter(|_| framework_visible),
        capabilities: profile.capabilities.clone(),
        bio: profile.bio.clone(),
        interests: profile.interests.clone(),
        version: raw.version.as_deref().map(|version| text(version, TAG)),
        agent_card_url: raw.agent_card_url.as_deref().map(homepage).filter(|url| !url.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_lose_what_cannot_be_seen() {
        assert_eq!(name(" a\u{202E}b\u{0}c\u{200B} "), "abc");
        assert_eq!(name("e\u{301}"), "é");
        assert_eq!(name(&"ü".repeat(70)).chars().count(), 64);
    }

    #[test]
    fn tags_are_plain_words() {
        assert_eq!(
            tags(&["Code Review", "code-review", "codereview", "!!", "Ünï"]),
            ["codereview", "code-review", "n"]
        );
        let many: Vec<String> = (0..30).map(|n| n.to_string()).collect();
        assert_eq!(tags(&many).len(), 20);
        assert_eq!(framework("??"), "unknown");
    }

    #[test]
    fn only_plain_https_homepages_stay() {
        assert_eq!(homepage("https://example.org/a?b"), "https://example.org/a?b");
        for bad in
            ["http://example.org", "https://u:p@example.org", "javascript:x", "https://", "https://ex ample"]
        {
            assert_eq!(homepage(bad), "", "{bad}");
        }
    }

    proptest! {
        #[test]
        fn cleaning_twice_changes_nothing(raw in "\\PC{0,600}") {
            let once = bio(&raw);
            prop_assert_eq!(bio(&once), once.clone());
            prop_assert!(once.chars().count() <= 500);
            let _ = (homepage(&raw), tag(&raw));
        }
    }
}
