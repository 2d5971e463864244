//! From what somebody typed to one agent (`threadline-agent.md` §12.2). Never by part of a name.

use crate::Fingerprint;
use crate::text::canonical;

/// Shortest bare prefix of a fingerprint.
const MIN_BARE_PREFIX: usize = 8;
const MIN_NAMED_PREFIX: usize = 4;
const CLOSEST: usize = 3;

/// An agent that is known here or was found by discovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Address.
    pub fingerprint: Fingerprint,
    /// Its own name for itself.
    pub name: String,
    /// Name that the owner gave or imported; a suggested one never resolves a send and is not given here.
    pub nickname: Option<String>,
    /// Whether it is connected, where that is known.
    pub online: Option<bool>,
    /// Whether this node knows it (store), or only a discovery names it.
    pub known: bool,
    /// Whether the owner or this agent had to do with it: it is trusted, or was written to. Names are free, so no other
    /// agent is found by the name of one of these, whatever a directory says of who is called so and who is there.
    pub contact: bool,
}

impl Candidate {
    /// `name:prefix8`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.name, self.fingerprint.short())
    }
}

/// Result of resolving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// One agent.
    Found {
        /// Its address.
        fingerprint: Fingerprint,
        /// Its name, empty when nobody knows it.
        name: String,
    },
    /// Several: the caller must say which.
    Ambiguous(Vec<Candidate>),
    /// Nobody by this name here; a discovery by name may find it.
    Discover(String),
    /// Nobody at all; the closest names.
    NotFound(Vec<String>),
}

/// Resolves `target` among `candidates`. `discovered` says whether a discovery by this name already took part; without
/// it an unknown name, or one whose only match is away, asks for one.
pub fn resolve(target: &str, candidates: &[Candidate], discovered: bool) -> Resolution {
    let target = target.trim();
    if let Ok(fingerprint) = target.to_ascii_lowercase().parse::<Fingerprint>() {
        let name = candidates.iter().find(|c| c.fingerprint == fingerprint).map_or("", |c| &c.name);
        return Resolution::Found { fingerprint, name: name.to_owned() };
    }
    if let Some((name, prefix)) = split_address(target) {
        return by_address(&canonical(name), &prefix, target, candidates);
    }
    let wanted = canonical(target);
    let nicknamed =
        select(candidates, |c| c.known && c.nickname.as_deref().is_some_and(|n| canonical(n) == wanted));
    if !nicknamed.is_empty() {
        return one_of(nicknamed);
    }
    if target.len() >= MIN_BARE_PREFIX && is_hex(target) {
        let prefix = target.to_ascii_lowercase();
        let by_prefix = select(candidates, |c| c.known && c.fingerprint.to_string().starts_with(&prefix));
        if let [only] = by_prefix[..] {
            return found(only);
        }
    }
    let nearness = |c: &Candidate| (c.contact, c.known);
    for near in [(true, true), (false, true), (false, false)] {
        let named = select(candidates, |c| nearness(c) == near && canonical(&c.name) == wanted);
        match &named[..] {
            [] => {}
            [only] if only.contact => return found(only),
            [only] if only.online == Some(false) && !discovered => {
                return Resolution::Discover(target.to_owned());
            }
            _ => return one_of(named),
        }
    }
    if discovered || wanted.is_empty() {
        Resolution::NotFound(closest(&wanted, candidates))
    } else {
        Resolution::Discover(target.to_owned())
    }
}

/// Whether an agent that is nobody's contact is called as one of the contacts is (`threadline-agent.md` §6): names are free.
pub fn takes_a_name(agent: &Candidate, candidates: &[Candidate]) -> bool {
    let name = canonical(&agent.name);
    let is_called_so = |contact: &Candidate| {
        canonical(&contact.name) == name
            || contact.nickname.as_deref().is_some_and(|nick| canonical(nick) == name)
    };
    !agent.contact
        && candidates.iter().any(|c| c.contact && c.fingerprint != agent.fingerprint && is_called_so(c))
}

/// `name:prefix` with 4 to 32 hex digits.
fn split_address(target: &str) -> Option<(&str, String)> {
    let (name, prefix) = target.rsplit_once(':')?;
    let fits = (MIN_NAMED_PREFIX..=32).contains(&prefix.len()) && is_hex(prefix) && !name.trim().is_empty();
    fits.then(|| (name, prefix.to_ascii_lowercase()))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The prefix decides; a nickname that points elsewhere does not overrule it.
fn by_address(name: &str, prefix: &str, target: &str, candidates: &[Candidate]) -> Resolution {
    let with_prefix = select(candidates, |c| c.fingerprint.to_string().starts_with(prefix));
    let named: Vec<_> = with_prefix
        .iter()
        .copied()
        .filter(|c| canonical(&c.name) == name || c.nickname.as_deref().is_some_and(|n| canonical(n) == name))
        .collect();
    if !named.is_empty() {
        return one_of(named);
    }
    match &with_prefix[..] {
        [only] if only.known && prefix.len() >= MIN_BARE_PREFIX => found(only),
        _ => Resolution::NotFound(closest(&canonical(target), candidates)),
    }
}

fn select(candidates: &[Candidate], keep: impl Fn(&Candidate) -> bool) -> Vec<&Candidate> {
    let mut kept: Vec<&Candidate> = Vec::new();
    for candidate in candidates.iter().filter(|c| keep(c)) {
        if kept.iter().all(|k| k.fingerprint != candidate.fingerprint) {
            kept.push(candidate);
        }
    }
    kept
}

fn found(candidate: &Candidate) -> Resolution {
    Resolution::Found { fingerprint: candidate.fingerprint, name: candidate.name.clone() }
}

/// Being connected breaks a tie only when exactly one is.
fn one_of(matches: Vec<&Candidate>) -> Resolution {
    let online: Vec<_> = matches.iter().filter(|c| c.online == Some(true)).collect();
    match (&matches[..], &online[..]) {
        ([only], _) => found(only),
        (_, [only]) => found(only),
        _ => Resolution::Ambiguous(matches.into_iter().cloned().collect()),
    }
}

/// The three names nearest by edit distance.
fn closest(wanted: &str, candidates: &[Candidate]) -> Vec<String> {
    let names = candidates.iter().flat_map(|c| [Some(&c.name), c.nickname.as_ref()]).flatten();
    let mut ranked: Vec<(usize, String)> =
        names.map(|name| (distance(wanted, &canonical(name)), name.clone())).collect();
    ranked.sort();
    ranked.dedup_by(|a, b| a.1 == b.1);
    ranked
        .into_iter()
        .filter(|(d, name)| *d <= name.chars().count().max(3))
        .map(|(_, n)| n)
        .take(CLOSEST)
        .collect()
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(crate::text::MAX_NAME).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(crate::text::MAX_NAME).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = *cell;
            left = substituted.min(left + 1).min(*cell + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn agent(first: u8, name: &str, nickname: Option<&str>, online: Option<bool>) -> Candidate {
        let mut bytes = [0xaa; 16];
        bytes[0] = first;
        Candidate {
            fingerprint: Fingerprint::from_bytes(bytes),
            name: name.into(),
            nickname: nickname.map(str::to_owned),
            online,
            known: true,
            contact: false,
        }
    }

    fn hit(target: &str, candidates: &[Candidate]) -> Option<u8> {
        match resolve(target, candidates, true) {
            Resolution::Found { fingerprint, .. } => Some(fingerprint.as_bytes()[0]),
            _ => None,
        }
    }

    #[test]
    fn the_order_of_the_table() {
        let all = [
            agent(1, "Bob", None, Some(true)),
            agent(2, "alice", Some("bob"), None),
            agent(3, "Élan  Vital", None, None),
            agent(4, "x", Some("03aaaaaa"), None),
        ];
        assert_eq!(hit(&"ff".repeat(16), &all), Some(0xff), "an unknown fingerprint is an address");
        assert_eq!(hit("bob", &all), Some(2), "a nickname wins over a name");
        assert_eq!(hit("Bob:01aa", &all), Some(1), "a prefix wins over a nickname");
        assert_eq!(hit("bob:02AA", &all), Some(2));
        assert_eq!(hit("bob:04aaaaaa", &all), Some(4), "the given prefix contradicts the nickname and wins");
        assert_eq!(hit("bob:04aa", &all), None, "but a short prefix under another name is no address");
        assert_eq!(hit("e\u{301}lan vital", &all), Some(3));
        assert_eq!(hit("01aaaaaa", &all), Some(1));
        assert_eq!(hit("03aaaaaa", &all), Some(4), "a nickname comes before a bare prefix");
        assert_eq!(hit("01aaaaa", &all), None, "seven digits are no prefix");
        assert_eq!(hit("ali", &all), None, "never part of a name");
    }

    #[test]
    fn ties_are_broken_by_exactly_one_connection() {
        let tie = |a, b| resolve("bob", &[agent(1, "bob", None, a), agent(2, "Bob ", None, b)], true);
        assert!(
            matches!(tie(Some(true), Some(false)), Resolution::Found { fingerprint, .. } if fingerprint.as_bytes()[0] == 1)
        );
        for (a, b) in [(Some(true), Some(true)), (None, None), (Some(false), None)] {
            match tie(a, b) {
                Resolution::Ambiguous(candidates) => {
                    assert_eq!(candidates[0].address(), "bob:01aaaaaa");
                    assert_eq!(candidates.len(), 2);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn nobody_takes_the_name_of_a_contact() {
        let contact = |first, online| Candidate { contact: true, ..agent(first, "bob", None, online) };
        let impostor = agent(2, " BOB", None, Some(true));
        for online in [Some(false), None] {
            let all = [impostor.clone(), contact(1, online)];
            assert_eq!(hit("bob", &all), Some(1), "who is there is a claim");
            assert!(
                matches!(resolve("bob", &all, false), Resolution::Found { .. }),
                "nobody else is asked for"
            );
        }
        assert!(takes_a_name(&impostor, &[impostor.clone(), contact(1, None)]));
        assert!(!takes_a_name(&contact(1, None), &[impostor.clone(), contact(1, None)]));
        assert!(
            !takes_a_name(&impostor, &[impostor.clone(), agent(1, "bob", None, None)]),
            "nobody is known"
        );
        let two = [impostor, contact(1, None), contact(3, None)];
        assert!(matches!(resolve("bob", &two, true), Resolution::Ambiguous(found) if found.len() == 2));
    }

    #[test]
    fn unknown_and_absent_names_ask_once() {
        let away = [agent(1, "bob", None, Some(false))];
        assert_eq!(resolve("bob", &away, false), Resolution::Discover("bob".into()));
        assert!(matches!(resolve("bob", &away, true), Resolution::Found { .. }));
        assert_eq!(resolve("carol", &away, false), Resolution::Discover("carol".into()));
        assert_eq!(resolve("bop", &away, true), Resolution::NotFound(vec!["bob".into()]));
        let found = [Candidate { known: false, ..agent(2, "carol", None, Some(true)) }];
        assert_eq!(hit("carol", &found), Some(2));
        assert_eq!(
            resolve("02aaaaaa", &found, true),
            Resolution::NotFound(vec![]),
            "prefixes are for known peers"
        );
        assert_eq!(resolve("  ", &away, false), Resolution::NotFound(vec!["bob".into()]));
    }

    proptest! {
        #[test]
        fn no_target_panics(target in ".{0,80}", names in proptest::collection::vec(".{0,70}", 0..6)) {
            let all: Vec<_> = names.iter().enumerate().map(|(i, n)| agent(i as u8, n, None, None)).collect();
            resolve(&target, &all, false);
            resolve(&target, &all, true);
        }

        #[test]
        fn distances_are_symmetric(a in "[a-c]{0,8}", b in "[a-c]{0,8}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
        }
    }
}
