//! What one relay knows of the waiting mail of one recipient, and what it decides by it. The engine has the truth.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use threadline::{Fingerprint, MessageId};

use super::letter::Letter;
use crate::config;
use crate::store::{Departed, QueueFull, Standing};

/// Milliseconds a confirmed message is remembered, so that a repeat gets the same answer.
const RECENT_MS: i64 = 5 * 60_000;
/// A purge of everything up to a message replaces this many removals of single ones.
const WORTH_A_PURGE: usize = 4;

type Name = (Fingerprint, MessageId);

/// The index of one recipient.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    /// By position in the stream.
    waiting: BTreeMap<u64, Letter>,
    names: HashMap<Name, u64>,
    recent: HashMap<Name, (u64, i64)>,
    /// When it was last compared with the engine.
    pub(super) compared: Option<Instant>,
    /// When it was last read anew.
    pub(super) read: Option<Instant>,
    /// Confirmed messages whose removal was not reported because others of the same group failed.
    pub(super) unreported: Vec<Departed>,
}

/// What removes confirmed messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Removal {
    /// One message.
    One(u64),
    /// All of a sender up to and including the last of these, of its control mail or of the rest.
    UpTo(Fingerprint, bool, Vec<u64>),
}

impl Mailbox {
    /// Notes a waiting message. Returns whether it is the only one.
    pub(super) fn enter(&mut self, at: u64, letter: Letter) -> bool {
        let first = self.waiting.is_empty();
        self.names.insert((letter.sender, letter.id.clone()), at);
        self.waiting.insert(at, letter);
        first
    }

    /// The message at a position.
    pub(super) fn get(&self, at: u64) -> Option<&Letter> {
        self.waiting.get(&at)
    }

    /// Position of the last known message.
    pub(super) fn last(&self) -> u64 {
        self.waiting.last_key_value().map_or(0, |(at, _)| *at)
    }

    /// A message is gone. Remembered if it was confirmed.
    pub(super) fn remove(&mut self, at: u64, now_ms: i64, confirmed: bool) -> Option<Departed> {
        let letter = self.waiting.remove(&at)?;
        let name = (letter.sender, letter.id.clone());
        if self.names.get(&name) == Some(&at) {
            self.names.remove(&name);
        }
        if confirmed {
            self.recent.insert(name, (letter.content, now_ms));
        }
        Some(Departed {
            sender: letter.sender,
            recipient: letter.recipient,
            id: letter.id,
            stored_ms: letter.stored_ms,
            size: u64::from(letter.size),
            last: self.waiting.is_empty(),
        })
    }

    /// Everything known of waiting mail is read again.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.names.clear();
    }

    /// Forgets messages from `at` on that the engine says are not there.
    pub(super) fn nothing_from(&mut self, at: u64) {
        let gone: Vec<u64> = self.waiting.range(at..).map(|(at, _)| *at).collect();
        for at in gone {
            self.remove(at, 0, false);
        }
    }

    /// Somebody else confirmed a message.
    pub(super) fn remember(&mut self, sender: Fingerprint, id: MessageId, content: u64, now_ms: i64) {
        self.recent.insert((sender, id), (content, now_ms));
    }

    /// What is known of a message; with it its position, if it is thought to wait.
    pub(super) fn standing(
        &self,
        sender: &Fingerprint,
        id: &MessageId,
        content: u64,
    ) -> (Standing, Option<u64>) {
        let name = (*sender, id.clone());
        if let Some((at, letter)) = self.names.get(&name).and_then(|at| Some((*at, self.waiting.get(at)?))) {
            let seq = super::layout::number(at, super::layout::shard(&letter.recipient));
            let same = letter.content == content;
            let queued = Standing::Queued { seq, expires_ms: letter.expires_ms };
            return (if same { queued } else { Standing::OtherBytes }, Some(at));
        }
        let standing = match self.recent.get(&name) {
            None => Standing::Unknown,
            Some((known, _)) if *known == content => Standing::Delivered,
            Some(_) => Standing::OtherBytes,
        };
        (standing, None)
    }

    /// Which limit of custody refuses a message of `size` bytes.
    pub(super) fn overflow(
        &self,
        rules: &config::Queue,
        sender: &Fingerprint,
        size: u64,
        (correspondent, control): (bool, bool),
        recipient_known: bool,
    ) -> Option<QueueFull> {
        let control = correspondent && control;
        let beside = || self.waiting.values().filter(|letter| letter.control == control);
        let n = beside().count() as u64;
        let pair = beside().filter(|letter| letter.sender == *sender).count() as u64;
        if control {
            let each = pair >= u64::from(rules.control_each);
            let all = n >= u64::from(rules.control);
            return each.then_some(QueueFull::Sender).or(all.then_some(QueueFull::Recipient));
        }
        let bytes: u64 = beside().map(|letter| u64::from(letter.size)).sum();
        let most = if recipient_known {
            rules.per_recipient
        } else {
            rules.unknown_recipient.min(rules.per_recipient)
        };
        if pair >= u64::from(rules.per_pair) {
            return Some(QueueFull::Sender);
        }
        if n >= u64::from(most) {
            return Some(QueueFull::Recipient);
        }
        if bytes + size > rules.bytes_per_recipient {
            return Some(QueueFull::Bytes);
        }
        if correspondent {
            return None;
        }
        let strangers = self.waiting.values().filter(|letter| letter.stranger);
        let (count, bytes) =
            strangers.fold((0u64, 0u64), |(n, b), letter| (n + 1, b + u64::from(letter.size)));
        let each = pair >= u64::from(rules.stranger_each);
        let share = count >= u64::from(rules.strangers) || bytes + size > rules.strangers_bytes;
        (each || share).then_some(QueueFull::Recipient)
    }

    /// How to remove these: a purge must not take a message of the same sender that nobody confirmed.
    pub(super) fn removals(&self, confirmed: &[u64]) -> Vec<Removal> {
        let mut by_sender: HashMap<(Fingerprint, bool), Vec<u64>> = HashMap::new();
        let mut confirmed: Vec<u64> = confirmed.to_vec();
        confirmed.sort_unstable();
        confirmed.dedup();
        for at in &confirmed {
            if let Some(letter) = self.waiting.get(at) {
                by_sender.entry((letter.sender, letter.control)).or_default().push(*at);
            }
        }
        let mut removals = Vec::new();
        for ((sender, control), positions) in by_sender {
            let of_sender = self
                .waiting
                .iter()
                .filter(|(_, letter)| letter.sender == sender && letter.control == control)
                .map(|(at, _)| *at);
            let together = of_sender.zip(&positions).take_while(|(waits, taken)| waits == *taken).count();
            let purge = if together >= WORTH_A_PURGE { together } else { 0 };
            let (first, rest) = positions.split_at(purge);
            if !first.is_empty() {
                removals.push(Removal::UpTo(sender, control, first.to_vec()));
            }
            removals.extend(rest.iter().copied().map(Removal::One));
        }
        removals
    }

    /// Messages per sender.
    pub(super) fn counts(&self) -> HashMap<Fingerprint, usize> {
        let mut counts = HashMap::new();
        for letter in self.waiting.values() {
            *counts.entry(letter.sender).or_default() += 1;
        }
        counts
    }

    /// The oldest messages.
    pub(super) fn oldest(&self, most: usize) -> Vec<u64> {
        self.waiting.keys().copied().take(most).collect()
    }

    /// When the oldest message was stored, messages and their bytes.
    pub(super) fn depth(&self) -> (Option<i64>, u64, u64) {
        let oldest = self.waiting.values().map(|letter| letter.stored_ms).min();
        (oldest, self.waiting.len() as u64, self.waiting.values().map(|letter| u64::from(letter.size)).sum())
    }

    /// Messages whose time is over.
    pub(super) fn expired(&self, now_ms: i64) -> Vec<u64> {
        self.waiting.iter().filter(|(_, letter)| letter.expires_ms <= now_ms).map(|(at, _)| *at).collect()
    }

    /// Forgets old memories.
    pub(super) fn forget_recent(&mut self, now_ms: i64) {
        self.recent.retain(|_, (_, at)| *at > now_ms - RECENT_MS);
    }

    /// Whether nothing would be lost without it.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.recent.is_empty() && self.unreported.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(from: u8, id: &str) -> Letter {
        Letter {
            recipient: Fingerprint::from_bytes([9; 16]),
            sender: Fingerprint::from_bytes([from; 16]),
            id: id.parse().expect("id"),
            content: 1,
            size: 2,
            stranger: true,
            control: false,
            stored_ms: 0,
            expires_ms: 10,
        }
    }

    #[test]
    fn a_purge_never_takes_what_nobody_confirmed() {
        let mut mailbox = Mailbox::default();
        for at in 1..=6 {
            mailbox.enter(at, letter(1, &format!("m{at}")));
        }
        mailbox.enter(7, letter(2, "other"));
        let sender = Fingerprint::from_bytes([1; 16]);
        assert_eq!(mailbox.removals(&[1, 2, 3]).len(), 3, "three are removed one by one");
        assert_eq!(mailbox.removals(&[4, 3, 2, 1]), [Removal::UpTo(sender, false, vec![1, 2, 3, 4])]);
        let with_hole = mailbox.removals(&[1, 2, 3, 4, 6, 7]);
        assert!(with_hole.contains(&Removal::UpTo(sender, false, vec![1, 2, 3, 4])), "{with_hole:?}");
        assert!(
            with_hole.contains(&Removal::One(6)) && with_hole.contains(&Removal::One(7)),
            "{with_hole:?}"
        );
        let without_first = mailbox.removals(&[2, 3, 4, 5, 6]);
        assert!(without_first.iter().all(|removal| matches!(removal, Removal::One(_))), "{without_first:?}");
    }
}
