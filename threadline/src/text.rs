//! Cleaning of words that came from peers (`threadline-agent.md` §7.1 and §11.7).

use unicode_normalization::UnicodeNormalization as _;

/// Longest subject, characters.
pub const MAX_SUBJECT: usize = 200;
/// Longest name, characters.
pub const MAX_NAME: usize = 64;
/// Longest description, characters.
pub const MAX_DESCRIPTION: usize = 200;

/// A subject: control characters removed, trimmed, cut; never empty.
pub fn subject(text: &str) -> String {
    let clean: String = text.chars().filter(|c| !is_control(*c)).collect();
    let cut: String = clean.trim().chars().take(MAX_SUBJECT).collect();
    if cut.is_empty() { "(no subject)".into() } else { cut }
}

/// A name: one line of printable characters.
pub fn name(text: &str) -> String {
    label(text, MAX_NAME)
}

/// A description or capability text.
pub fn description(text: &str) -> String {
    label(text, MAX_DESCRIPTION)
}

/// Letters, digits and ordinary punctuation; whitespace and control characters collapse to one space.
fn label(text: &str, max: usize) -> String {
    let mut out = String::new();
    let mut count = 0;
    for c in text.chars() {
        let c = if c.is_whitespace() || is_control(c) { ' ' } else { c };
        if c == ' ' && (out.is_empty() || out.ends_with(' ')) || !(c == ' ' || is_ordinary(c)) {
            continue;
        }
        if count == max {
            break;
        }
        out.push(c);
        count += 1;
    }
    out.truncate(out.trim_end().len());
    out
}

/// Form in which names are compared: NFC, trimmed, whitespace collapsed, lowercase.
pub fn canonical(name: &str) -> String {
    let collapsed: Vec<&str> = name.split_whitespace().collect();
    collapsed.join(" ").to_lowercase().nfc().collect()
}

/// Cuts at a character boundary so that the text and `mark` stay within `max` bytes; unchanged when it fits.
pub fn cut(text: &str, max: usize, mark: &str) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max.saturating_sub(mark.len()));
    format!("{}{mark}", &text[..end])
}

fn is_ordinary(c: char) -> bool {
    c.is_alphanumeric()
        || matches!(
            c,
            '.' | ','
                | ':'
                | ';'
                | '!'
                | '?'
                | '\''
                | '"'
                | '('
                | ')'
                | '-'
                | '_'
                | '/'
                | '&'
                | '+'
                | '@'
                | '#'
                | '%'
        )
}

/// Control and invisible formatting characters (bidirectional overrides, zero-width marks, tags).
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_are_one_clean_line() {
        assert_eq!(name("  Bob\t\u{202e}the\n\nBuilder <script>`x` "), "Bob the Builder scriptx");
        assert_eq!(name("Ünï 東京"), "Ünï 東京");
        assert_eq!(name(&"x".repeat(100)).len(), MAX_NAME);
        assert_eq!(subject("\u{1b}[31m \n"), "[31m");
        assert_eq!(subject(" \n\t"), "(no subject)");
    }

    #[test]
    fn names_compare_canonically() {
        assert_eq!(canonical("  E\u{301}lan   Vital "), canonical("élan vital"));
        assert_ne!(canonical("bob"), canonical("bobby"));
    }

    #[test]
    fn cutting_respects_characters() {
        assert_eq!(cut("héllo", 10, "…"), "héllo");
        assert_eq!(cut("ééééé", 7, "[cut]"), "é[cut]");
    }

    proptest! {
        #[test]
        fn cleaning_is_idempotent_and_bounded(text in any::<String>()) {
            let once = description(&text);
            prop_assert_eq!(description(&once), once.clone());
            prop_assert!(once.chars().count() <= MAX_DESCRIPTION && !once.chars().any(is_control));
            prop_assert!(subject(&text).chars().count() <= MAX_SUBJECT);
        }

        #[test]
        fn cuts_stay_within_the_budget(text in any::<String>(), max in 5usize..60) {
            prop_assert!(cut(&text, max, "[cut]").len() <= max);
        }
    }
}
