//! Our text in files that belong to the user: one fenced block that knows its own hash, so that a change by hand is
//! seen and never overwritten (`agent-core.md` §1.5).

use sha2::{Digest, Sha256};

/// How a file writes comments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fence {
    Html,
    Hash,
}

/// A block as it should be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) id: &'static str,
    pub(crate) version: u32,
    pub(crate) fence: Fence,
    /// Content without the fence; ends with a newline.
    pub(crate) body: &'a str,
}

/// What putting a block into a text gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Put {
    /// It is there as it should be.
    Unchanged,
    /// The new text.
    Changed(String),
    /// Someone changed the block; the text that would have been written.
    Edited(String),
}

/// State of a block in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Missing,
    Current,
    /// An older one of ours.
    Outdated,
    /// Changed by hand, or without an end.
    Edited,
}

struct Found<'a> {
    before: &'a str,
    body: &'a str,
    after: &'a str,
    recorded: &'a str,
    closed: bool,
}

impl Block<'_> {
    /// Puts the block into `text`: in place of an untouched older one, else at the end.
    pub(crate) fn put(&self, text: &str) -> Put {
        let Some(found) = self.find(text) else {
            let gap = match text {
                "" => "",
                t if t.ends_with("\n\n") => "",
                t if t.ends_with('\n') => "\n",
                _ => "\n\n",
            };
            return Put::Changed(format!("{text}{gap}{}", self.rendered()));
        };
        let replaced = format!("{}{}{}", found.before, self.rendered(), found.after);
        match self.state_of(&found) {
            State::Current => Put::Unchanged,
            State::Edited => Put::Edited(replaced),
            State::Missing | State::Outdated => Put::Changed(replaced),
        }
    }

    /// Where the block stands in `text`.
    pub(crate) fn state(&self, text: &str) -> State {
        self.find(text).map_or(State::Missing, |found| self.state_of(&found))
    }

    /// `text` without the block, if it is there.
    pub(crate) fn remove(&self, text: &str) -> Option<String> {
        let found = self.find(text).filter(|f| f.closed)?;
        let before = found.before.strip_suffix('\n').filter(|b| b.ends_with('\n')).unwrap_or(found.before);
        Some(format!("{before}{}", found.after))
    }

    fn state_of(&self, found: &Found<'_>) -> State {
        if !found.closed || hash(found.body) != found.recorded {
            State::Edited
        } else if found.body == self.body {
            State::Current
        } else {
            State::Outdated
        }
    }

    fn rendered(&self) -> String {
        let (open, close) = self.fence.marks();
        let Self { id, version, body, .. } = self;
        format!(
            "{open}instar:begin {id} v{version} sha256={}{close}\n{body}{open}instar:end {id}{close}\n",
            hash(body)
        )
    }

    fn find<'t>(&self, text: &'t str) -> Option<Found<'t>> {
        let (open, close) = self.fence.marks();
        let begin = format!("{open}instar:begin {} v", self.id);
        let end = format!("{open}instar:end {}{close}", self.id);
        let start = line_starting(text, 0, |line| line.starts_with(&begin))?;
        let (head, rest) = text[start..].split_once('\n').unwrap_or((&text[start..], ""));
        let recorded =
            head.split_once("sha256=").map_or("", |(_, h)| h.trim_end().trim_end_matches(close).trim_end());
        let body_at = text.len() - rest.len();
        let Some(end_at) = line_starting(text, body_at, |line| line.trim_end() == end) else {
            return Some(Found { before: &text[..start], body: rest, after: "", recorded, closed: false });
        };
        let after = text[end_at..].split_once('\n').map_or("", |(_, after)| after);
        Some(Found { before: &text[..start], body: &text[body_at..end_at], after, recorded, closed: true })
    }
}

impl Fence {
    const fn marks(self) -> (&'static str, &'static str) {
        match self {
            Self::Html => ("<!-- ", " -->"),
            Self::Hash => ("# ", ""),
        }
    }
}

fn line_starting(text: &str, from: usize, wanted: impl Fn(&str) -> bool) -> Option<usize> {
    let mut at = from;
    for line in text[from..].split_inclusive('\n') {
        if wanted(line.trim_end_matches('\n')) {
            return Some(at);
        }
        at += line.len();
    }
    None
}

fn hash(body: &str) -> String {
    hex::encode(Sha256::digest(body.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(body: &str, fence: Fence) -> Block<'_> {
        Block { id: "guide", version: 1, fence, body }
    }

    fn changed(put: Put) -> String {
        match put {
            Put::Changed(text) => text,
            other => panic!("not changed: {other:?}"),
        }
    }

    #[test]
    fn a_block_is_added_refreshed_and_left_alone_when_edited() {
        let old = block("old\n", Fence::Html);
        let text = changed(old.put("# Mine\n"));
        assert!(text.starts_with("# Mine\n\n<!-- instar:begin guide v1 sha256="), "{text}");
        assert_eq!(old.put(&text), Put::Unchanged);

        let new = block("new\n", Fence::Html);
        assert_eq!(new.state(&text), State::Outdated);
        let refreshed = changed(new.put(&format!("{text}tail\n")));
        assert!(refreshed.contains("new\n") && !refreshed.contains("old\n") && refreshed.ends_with("tail\n"));

        let edited = text.replace("old\n", "old and mine\n");
        assert_eq!(new.state(&edited), State::Edited);
        assert!(matches!(new.put(&edited), Put::Edited(_)));
        assert_eq!(new.remove(&text).as_deref(), Some("# Mine\n"));
    }

    #[test]
    fn a_block_without_an_end_is_never_touched() {
        let block = block("body\n", Fence::Hash);
        let torn = "# instar:begin guide v1 sha256=00\nbody\nrest of the user's file\n";
        assert!(matches!(block.put(torn), Put::Edited(_)));
        assert_eq!(block.remove(torn), None);
    }

    proptest! {
        #[test]
        fn the_users_text_survives_putting_and_removing(
            before in "([a-z #<>!-]{0,12}\n){0,4}", after in "([a-z #<>!-]{0,12}\n){0,4}", body in "([a-z]{1,9}\n){1,3}",
            html in any::<bool>()
        ) {
            let block = block(&body, if html { Fence::Html } else { Fence::Hash });
            let text = changed(block.put(&before)) + &after;
            prop_assert!(text.starts_with(&before) && text.ends_with(&after));
            prop_assert_eq!(block.state(&text), State::Current);
            let removed = block.remove(&text).expect("there");
            prop_assert_eq!(removed.trim_start_matches('\n').split('\n').filter(|l| !l.is_empty()).collect::<Vec<_>>(),
                before.split('\n').chain(after.split('\n')).filter(|l| !l.is_empty()).collect::<Vec<_>>());
        }

        #[test]
        fn no_text_makes_the_search_fail(text in "(# instar:(begin|end) guide v1 sha256=|[a-z \n]{0,5}){0,8}") {
            let block = block("x\n", Fence::Hash);
            let _ = (block.put(&text), block.state(&text), block.remove(&text));
        }
    }
}
