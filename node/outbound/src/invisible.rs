//! Characters that a reader cannot see and a machine can.

/// Whether `c` takes no place on the screen: zero-width, bidirectional controls, Unicode tags and other carriers of
/// hidden text.
pub(crate) const fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{00AD}'
            | '\u{034F}'
            | '\u{061C}'
            | '\u{115F}'..='\u{1160}'
            | '\u{180E}'
            | '\u{200B}'..='\u{200F}'
            | '\u{202A}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}'
            | '\u{3164}'
            | '\u{FEFF}'
            | '\u{FFA0}'
            | '\u{E0000}'..='\u{E007F}'
    )
}

/// The characters that remain when the invisible ones are taken out.
pub(crate) fn without_invisible(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(|c| !is_invisible(*c))
}

/// Byte offsets of the invisible characters that no script or emoji needs.
///
/// A single joiner between two non-ASCII characters is spelling (Persian, Hindi, family emoji), and so is the tag
/// sequence of the three flags that have one.
pub(crate) fn hidden(text: &str) -> impl Iterator<Item = usize> {
    let mut flag_end = 0;
    let mut previous: Option<char> = None;
    text.char_indices().filter_map(move |(at, c)| {
        let before = previous.replace(c);
        if c == '\u{1F3F4}' {
            flag_end = at + c.len_utf8() + flag_tags(&text[at + c.len_utf8()..]);
        }
        if !is_invisible(c) || at < flag_end {
            return None;
        }
        let joins = matches!(c, '\u{200C}' | '\u{200D}')
            && before.is_some_and(is_joinable)
            && text[at + c.len_utf8()..].chars().next().is_some_and(is_joinable);
        (!joins).then_some(at)
    })
}

fn is_joinable(c: char) -> bool {
    !c.is_ascii() && !c.is_whitespace() && !is_invisible(c)
}

/// Length in bytes of the tag sequence at the start of `rest`, if it makes one of the flags in general use.
fn flag_tags(rest: &str) -> usize {
    const FLAGS: [&str; 3] = ["gbeng", "gbsct", "gbwls"];
    let tags: String = rest.chars().take(6).filter_map(tag_to_ascii).collect();
    match tags.strip_suffix('\u{7F}') {
        Some(name) if FLAGS.contains(&name) => 6 * '\u{E0001}'.len_utf8(),
        _ => 0,
    }
}

fn tag_to_ascii(c: char) -> Option<char> {
    let code = u32::from(c).checked_sub(0xE0000)?;
    char::from_u32(code).filter(char::is_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joiners_and_flags_are_spelling() {
        for text in [
            "👩\u{200D}👩\u{200D}👧",
            "می\u{200C}خواهم",
            "क\u{200D}ष",
            "🏴\u{E0067}\u{E0062}\u{E0065}\u{E006E}\u{E0067}\u{E007F}",
        ] {
            assert_eq!(hidden(text).count(), 0, "{text}");
        }
    }

    #[test]
    fn carriers_are_found() {
        for (text, count) in [
            ("a\u{200B}b", 1),
            ("a\u{200D}b", 1),
            ("👩\u{200D}\u{200D}👧", 2),
            ("\u{202E}exe.txt", 1),
            ("🏴\u{E0061}\u{E0062}\u{E007F}", 3),
        ] {
            assert_eq!(hidden(text).count(), count, "{text:?}");
        }
    }
}
