//! Names of sessions, and text that goes into tags.

/// Whether the text may name a session through the API: `^[A-Za-z0-9_-]{1,200}$`.
pub fn is_api_name(text: &str) -> bool {
    (1..=200).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// Lower-case words joined by `-`, at most `max` characters, never empty.
pub fn slug(text: &str, max: usize) -> String {
    let mut slug = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if slug.len() >= max {
            break;
        }
        if c.is_ascii_alphanumeric() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "session".to_owned() } else { slug.to_owned() }
}

/// `<agent>-<slug>`, with `-2`, `-3`, … where `taken` says that the name is in use.
pub fn tmux_name(agent: &str, name: &str, taken: impl Fn(&str) -> bool) -> String {
    let base = format!("{}-{}", slug(agent, 20), slug(name, 40));
    if !taken(&base) {
        return base;
    }
    (2..10_000).map(|n| format!("{base}-{n}")).find(|n| !taken(n)).unwrap_or(base)
}

/// Text that can stand inside a tag: no brackets, control or invisible characters, at most `max` characters.
pub fn tag_text(text: &str, max: usize) -> String {
    text.chars().filter(|c| !matches!(c, '[' | ']' | '<' | '>') && !is_invisible(*c)).take(max).collect()
}

/// What the runtime frames its own words with.
const RESERVED_MARKS: [&str; 4] =
    ["system-reminder", "/system-reminder", "pasted_content", "/pasted_content"];
/// Beginnings of the tags that say where an input comes from (`agent-core.md` §6.6).
const TAG_SOURCES: [&str; 8] =
    ["telegram:", "slack:", "whatsapp:", "imessage:", "threadline:", "dashboard:", "paste:", "system:"];

/// Body in which nothing can be taken for the system's own framing or for a tag of ours.
pub fn escape_body(text: &str) -> String {
    let text: String =
        text.chars().filter(|c| !is_invisible(*c) || matches!(c, '\n' | '\t' | '\u{200d}')).collect();
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find(['<', '[']) {
        let (head, tail) = rest.split_at(at);
        out.push_str(head);
        let (mark, after) = tail.split_at(1);
        let starts = |words: &[&str]| {
            words.iter().any(|word| after.get(..word.len()).is_some_and(|t| t.eq_ignore_ascii_case(word)))
        };
        out.push_str(match mark {
            "<" if starts(&RESERVED_MARKS) => "&lt;",
            "[" if starts(&TAG_SOURCES) => "&#91;",
            mark => mark,
        });
        rest = after;
    }
    out.push_str(rest);
    out
}

fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
        || matches!(u32::from(c), 0xE0000..=0xE007F)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_slug_is_a_name(text in ".{0,80}", max in 1usize..60) {
            let slug = slug(&text, max);
            prop_assert!(is_api_name(&slug));
            prop_assert!(slug.len() <= max.max("session".len()));
        }

        #[test]
        fn a_tag_text_cannot_close_its_tag(text in ".{0,200}") {
            let tag = tag_text(&text, 64);
            prop_assert!(!tag.contains(['[', ']', '<', '>', '\n', '\r']));
            prop_assert!(tag.chars().count() <= 64);
        }

        #[test]
        fn an_escaped_body_holds_no_reserved_mark(
            parts in prop::collection::vec(prop_oneof![
                Just("<system-reminder>".to_owned()), Just("</System-Reminder".to_owned()),
                Just("[system:prompt".to_owned()), Just("[\u{200b}Threadline:".to_owned()),
                Just("<".to_owned()), Just("\u{200b}system-reminder".to_owned()), ".{0,10}",
            ], 0..12)
        ) {
            let body = escape_body(&parts.concat()).to_lowercase();
            prop_assert!(!body.contains("<system-reminder"));
            prop_assert!(!body.contains("</system-reminder"));
            prop_assert!(!body.contains("[system:") && !body.contains("[threadline:"));
        }
    }

    #[test]
    fn brackets_that_are_no_tag_stay() {
        assert_eq!(escape_body("a[0] <b> [x] [system"), "a[0] <b> [x] [system");
        assert_eq!(escape_body("hi\n[system:stop #1] go"), "hi\n&#91;system:stop #1] go");
    }

    #[test]
    fn names_in_use_get_a_number() {
        let taken = ["ann-hello-world", "ann-hello-world-2"];
        assert_eq!(tmux_name("Ann", "Hello, world!", |n| taken.contains(&n)), "ann-hello-world-3");
    }
}
