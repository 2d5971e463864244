//! How well an entry fits the words of a query.

use std::borrow::Cow;
use std::collections::VecDeque;

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

const K1: f64 = 1.2;
const B: f64 = 0.75;

/// The words of a query, each as the index sees it: one or more tokens in a row.
#[derive(Debug)]
pub struct Words {
    phrases: Vec<Vec<String>>,
}

/// Occurrences of the words in one entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// Weighted occurrences of each word.
    occurrences: Vec<f64>,
    /// Tokens of the whole entry.
    length: f64,
}

impl Words {
    /// Splits what a person typed.
    pub fn new(raw: &str) -> Self {
        let phrases = raw.split_whitespace().map(|word| tokens(word).map(Cow::into_owned).collect());
        Self { phrases: phrases.filter(|phrase: &Vec<String>| !phrase.is_empty()).collect() }
    }

    /// Counts the words in the columns of an entry, each with its weight.
    pub fn fit(&self, columns: &[(&str, f64)]) -> Fit {
        let mut fit = Fit { occurrences: vec![0.0; self.phrases.len()], length: 0.0 };
        // The last tokens of the column, as many as the longest phrase has.
        let longest = self.phrases.iter().map(Vec::len).max().unwrap_or(1);
        let mut recent: VecDeque<Cow<'_, str>> = VecDeque::with_capacity(longest);
        for (text, weight) in columns {
            if longest == 1 && text.is_ascii() {
                self.count_ascii(text, *weight, &mut fit);
                continue;
            }
            recent.clear();
            for token in tokens(text) {
                fit.length += 1.0;
                if recent.len() == longest {
                    recent.pop_front();
                }
                recent.push_back(token);
                for (phrase, sum) in self.phrases.iter().zip(&mut fit.occurrences) {
                    if phrase.len() <= recent.len()
                        && phrase.iter().rev().zip(recent.iter().rev()).all(|(wanted, token)| wanted == token)
                    {
                        *sum += weight;
                    }
                }
            }
        }
        fit
    }

    /// The usual case, thousands of times in a search: single words in plain text, without any copy.
    fn count_ascii(&self, text: &str, weight: f64, fit: &mut Fit) {
        let tokens = text.as_bytes().split(|byte| !byte.is_ascii_alphanumeric());
        for token in tokens.filter(|token| !token.is_empty()) {
            fit.length += 1.0;
            for (phrase, sum) in self.phrases.iter().zip(&mut fit.occurrences) {
                if phrase.iter().any(|wanted| wanted.as_bytes().eq_ignore_ascii_case(token)) {
                    *sum += weight;
                }
            }
        }
    }
}

/// BM25 without the rarity of words: every hit has all of them. `average` is the mean length of the entries.
pub fn score(fit: &Fit, average: f64) -> f64 {
    let norm = K1 * (1.0 - B + B * fit.length / average.max(1.0));
    fit.occurrences.iter().map(|count| count * (K1 + 1.0) / (count + norm)).sum()
}

/// Mean length of entries.
pub fn average<'a>(fits: impl ExactSizeIterator<Item = &'a Fit>) -> f64 {
    let count = fits.len().max(1) as f64;
    fits.map(|fit| fit.length).sum::<f64>() / count
}

/// Words as the tokenizer `unicode61 remove_diacritics 2` sees them.
fn tokens(text: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let ascii = text.is_ascii();
    let is_part = move |c: char| {
        if ascii { c.is_ascii_alphanumeric() } else { c.is_alphanumeric() || is_combining_mark(c) }
    };
    text.split(move |c| !is_part(c)).filter(|word| !word.is_empty()).map(move |word| {
        if word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            return Cow::Borrowed(word);
        }
        if ascii {
            return Cow::Owned(word.to_ascii_lowercase());
        }
        Cow::Owned(word.to_lowercase().nfd().filter(|c| !is_combining_mark(*c)).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_weighs_more_than_a_long_text() {
        let words = Words::new("Rust");
        let named = words.fit(&[("rust agent", 10.0), ("writes code", 2.0)]);
        let told = words.fit(&[("agent", 10.0), ("writes rust and more rust", 2.0)]);
        let average = average([named.clone(), told.clone()].iter());
        assert!(score(&named, average) > score(&told, average));
    }

    #[test]
    fn words_are_found_as_the_index_finds_them() {
        let words = Words::new("ÜNÏ don't");
        let fit = words.fit(&[("üni, Don't; DONT", 1.0)]);
        assert_eq!(fit.occurrences, [1.0, 1.0]);
        assert!((fit.length - 4.0).abs() < 1e-9);
    }

    proptest! {
        /// Whether a text is plain decides the way it is counted, never the count.
        #[test]
        fn plain_text_counts_like_any_other(text in "[a-cA-C1 ,.-]{0,60}") {
            let words = Words::new("a b1");
            let plain = words.fit(&[(&text, 2.0)]);
            let other = words.fit(&[(&format!("{text} é"), 2.0)]);
            prop_assert_eq!(plain.occurrences, other.occurrences);
            prop_assert!((plain.length + 1.0 - other.length).abs() < 1e-9);
        }

        #[test]
        fn no_text_makes_it_panic(query in "\\PC{0,60}", text in "\\PC{0,200}") {
            let fit = Words::new(&query).fit(&[(&text, 1.0)]);
            prop_assert!(score(&fit, fit.length).is_finite());
        }
    }
}
