//! A person's search words as an FTS5 query.

/// What separates words besides white space.
pub(super) const SEPARATORS: &[char] = &['*', '"', '^', '(', ')', ':', '{', '}', '[', ']', '-'];
const OPERATORS: &[&str] = &["AND", "OR", "NOT", "NEAR"];

/// The query that finds entries with all words; empty when no word is left.
pub fn sanitise(raw: &str) -> String {
    let plain = raw.replace(SEPARATORS, " ").replace('\0', " ");
    let words =
        plain.split_whitespace().filter(|word| !OPERATORS.iter().any(|op| op.eq_ignore_ascii_case(word)));
    words.map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rusqlite::Connection;

    proptest! {
        #[test]
        fn whatever_is_asked_is_a_valid_query(raw in "\\PC{0,80}|[\"*^(){}:\\-ANDORNTE ]{0,40}") {
            let query = sanitise(&raw);
            prop_assume!(!query.is_empty());
            let c = Connection::open_in_memory().expect("memory");
            c.execute_batch("CREATE VIRTUAL TABLE f USING fts5(x)").expect("fts");
            let found: i64 = c
                .query_row("SELECT count(*) FROM f WHERE f MATCH ?1", [&query], |row| row.get(0))
                .expect("valid");
            prop_assert_eq!(found, 0);
        }
    }
}
