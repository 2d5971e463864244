//! The tag that stands before every delivered message: `[threadline:<thread> from <fp8> "name" #<ULID>] text`.

/// Longest tag that is looked at, in bytes.
const MAX_TAG: usize = 1024;

/// A tag at the start of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag<'p> {
    /// Part before the first colon, for example `threadline`.
    pub platform: &'p str,
    /// Id of the conversation on that platform: for a thread, the thread id.
    pub id: &'p str,
    /// Sender: for a thread, the first eight hex digits of the peer's fingerprint.
    pub from: Option<&'p str>,
    /// ULID of the inbox row.
    pub ulid: Option<&'p str>,
}

impl<'p> Tag<'p> {
    /// The tag at the start of a prompt, also where the runtime has wrapped a pasted text in `<pasted_content …>`.
    ///
    /// Only the start counts: whatever a peer writes comes after the tag that we put there.
    pub fn of_prompt(prompt: &'p str) -> Option<Self> {
        let text = inside_paste(prompt.trim_start());
        let inner = text.strip_prefix('[')?;
        let inner = &inner[..inner.floor_char_boundary(MAX_TAG)];
        let (inner, _) = inner.split_once(']')?;
        let (platform, rest) = inner.split_once(':')?;
        if platform.is_empty()
            || !platform.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return None;
        }
        let id = rest.split([' ', '\n', '\t']).next().unwrap_or_default();
        let from =
            rest[id.len()..].trim_start().strip_prefix("from ").and_then(|sender| sender.split(' ').next());
        let ulid = inner.rsplit_once('#').map(|(_, ulid)| ulid.trim_end()).filter(|ulid| is_ulid(ulid));
        Some(Self { platform, id, from, ulid })
    }
}

/// The ULID in the tag at the start of a prompt: the proof that a delivered message has arrived (`agent-core.md` §6.6).
pub fn ulid_of_prompt(prompt: &str) -> Option<&str> {
    Tag::of_prompt(prompt)?.ulid
}

/// Whether the text is a ULID: 26 digits of Crockford's base 32, in upper case, at most 128 bits.
pub fn is_ulid(text: &str) -> bool {
    text.len() == 26
        && text.bytes().next().is_some_and(|first| (b'0'..=b'7').contains(&first))
        && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase() && !b"ILOU".contains(&b))
}

fn inside_paste(text: &str) -> &str {
    let Some(rest) = text.strip_prefix("<pasted_content") else { return text };
    match rest.split_once('>') {
        Some((attributes, inner)) if attributes.len() <= 256 && !attributes.contains('<') => {
            inner.trim_start()
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ULID: &str = "01HXAMZ9V4B7Q2K3M5N6P7R8ST";

    #[test]
    fn the_parts_of_a_tag_are_read() {
        let prompt = format!("[threadline:8f1c from 0a1b2c3d \"Bea\" #{ULID}] hello [telegram:1 #x]");
        let tag = Tag::of_prompt(&prompt).expect("a tag");
        assert_eq!(
            (tag.platform, tag.id, tag.from, tag.ulid),
            ("threadline", "8f1c", Some("0a1b2c3d"), Some(ULID))
        );
    }

    #[test]
    fn a_pasted_prompt_keeps_its_ulid() {
        for prompt in [
            format!("<pasted_content id=\"3\">\n[system:note #{ULID}] a\nb</pasted_content>"),
            format!("  <pasted_content id=\"3\" lines=\"9\">[system:note #{ULID}] a</pasted_content>"),
            format!("\n[system:note #{ULID} ] a"),
        ] {
            assert_eq!(ulid_of_prompt(&prompt), Some(ULID), "{prompt}");
        }
    }

    #[test]
    fn a_tag_elsewhere_or_a_broken_one_does_not_count() {
        for prompt in [
            format!("hello [system:note #{ULID}]"),
            format!("[system:note #{}] x", &ULID[1..]),
            format!("[system:note #{}] x", ULID.to_lowercase()),
            format!("[system:note #8{}] x", &ULID[1..]),
            format!("[no colon #{ULID}]"),
            format!("<pasted_content <pasted_content>[system:x #{ULID}]"),
            format!("[system:note #{ULID}"),
            format!("text <pasted_content id=\"1\">[system:x #{ULID}]</pasted_content>"),
        ] {
            assert_eq!(ulid_of_prompt(&prompt), None, "{prompt}");
        }
    }

    proptest! {
        #[test]
        fn any_prompt_is_read(prompt in "(<pasted_content)?[ >\\n]{0,3}\\[?\\PC{0,80}\\]?") {
            let _ = Tag::of_prompt(&prompt);
        }

        #[test]
        fn a_ulid_is_found_before_any_text(text in "(?s).{0,200}", name in "[a-zA-Zé ]{0,20}") {
            let prompt = format!("[threadline:t1 from 0a1b2c3d \"{name}\" #{ULID}] {text}");
            prop_assert_eq!(ulid_of_prompt(&prompt), Some(ULID));
        }
    }
}
