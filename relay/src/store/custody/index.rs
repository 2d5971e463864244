//! What memory holds of the queue.

mod table;

use std::collections::VecDeque;
use std::sync::Arc;

use threadline::Fingerprint;

use crate::maps::AddressMap;
use crate::store::journal::Place;
use crate::store::queue::{Depth, QueueTotals};
use crate::store::record::{Mail, Recent};
use table::Table;

/// Newest messages whose heads are kept, so that a quick confirmation need not read them again.
const FRESH: usize = 4_096;
const SETTLED: u64 = 1 << 63;

/// What is known of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// In custody.
    Waiting(Place),
    /// Confirmed a short while ago; first bits of its hash.
    Settled(u64),
}

#[derive(Default)]
struct Mailbox {
    /// Numbers and packed places, ascending by number.
    waiting: VecDeque<(u64, u64)>,
    /// Something was entered out of order.
    disordered: bool,
    bytes: u64,
    strangers: u32,
    strangers_bytes: u64,
    control: u32,
    control_bytes: u64,
}

/// In place of a segment: a memory stands in the log of memories.
pub(super) const CARRIED: u32 = 0;

/// A settled message that is remembered.
#[derive(Clone, Copy)]
struct Memory {
    at_s: u32,
    /// Where it is written down, or [`CARRIED`].
    segment: u32,
    key: u64,
}

#[derive(Default)]
pub(super) struct Index {
    /// Place of a waiting message, or bits of the hash of a settled one.
    messages: Table,
    mailboxes: AddressMap<Fingerprint, Mailbox>,
    pairs: AddressMap<(Fingerprint, Fingerprint), u32>,
    /// The same of control mail.
    control_pairs: AddressMap<(Fingerprint, Fingerprint), u32>,
    /// Ascending by segment: what is carried comes first, and the log goes from its oldest end.
    recent: VecDeque<Memory>,
    /// Numbers, keys and heads of the newest messages, ascending by number.
    fresh: VecDeque<(u64, u64, Arc<Mail>)>,
    messages_waiting: u64,
    bytes: u64,
}

impl Index {
    pub(super) fn get(&self, key: u64) -> Option<Seen> {
        let packed = self.messages.get(key)?;
        Some(match packed & SETTLED {
            0 => Seen::Waiting(Place::unpack(packed)),
            _ => Seen::Settled(packed & !SETTLED),
        })
    }

    /// Returns whether the message is the only one of its recipient.
    pub(super) fn enter(&mut self, key: u64, mail: &Mail, place: Place) -> bool {
        self.messages.insert(key, place.pack());
        let mailbox = self.mailboxes.entry(mail.recipient).or_default();
        mailbox.disordered |= mailbox.waiting.back().is_some_and(|(last, _)| *last > mail.seq);
        mailbox.waiting.push_back((mail.seq, place.pack()));
        let size = u64::from(mail.size);
        mailbox.bytes += size;
        if mail.stranger {
            mailbox.strangers += 1;
            mailbox.strangers_bytes += size;
        }
        if mail.control {
            mailbox.control += 1;
            mailbox.control_bytes += size;
        }
        let pairs = if mail.control { &mut self.control_pairs } else { &mut self.pairs };
        *pairs.entry((mail.sender, mail.recipient)).or_default() += 1;
        self.messages_waiting += 1;
        self.bytes += size;
        mailbox.waiting.len() == 1
    }

    /// Sorts the mailboxes into which something was entered out of order.
    pub(super) fn order(&mut self) {
        for mailbox in self.mailboxes.values_mut().filter(|mailbox| mailbox.disordered) {
            mailbox.waiting.make_contiguous().sort_unstable();
            mailbox.disordered = false;
        }
    }

    /// A message leaves its mailbox. Where it stood, if it was there; [`Index::forget`] or [`Index::remember`] follows.
    pub(super) fn leave(&mut self, mail: &Mail) -> Option<Place> {
        let mailbox = self.mailboxes.get_mut(&mail.recipient)?;
        if mailbox.disordered {
            mailbox.waiting.make_contiguous().sort_unstable();
            mailbox.disordered = false;
        }
        let at = mailbox.waiting.binary_search_by_key(&mail.seq, |(seq, _)| *seq).ok()?;
        let (_, place) = mailbox.waiting.remove(at)?;
        let size = u64::from(mail.size);
        mailbox.bytes = mailbox.bytes.saturating_sub(size);
        if mail.stranger {
            mailbox.strangers = mailbox.strangers.saturating_sub(1);
            mailbox.strangers_bytes = mailbox.strangers_bytes.saturating_sub(size);
        }
        if mail.control {
            mailbox.control = mailbox.control.saturating_sub(1);
            mailbox.control_bytes = mailbox.control_bytes.saturating_sub(size);
        }
        if mailbox.waiting.is_empty() {
            self.mailboxes.remove(&mail.recipient);
        } else if mailbox.waiting.capacity() > 64 && mailbox.waiting.len() < mailbox.waiting.capacity() / 4 {
            mailbox.waiting.shrink_to(mailbox.waiting.len() * 2);
        }
        let pairs = if mail.control { &mut self.control_pairs } else { &mut self.pairs };
        if let Some(n) = pairs.get_mut(&(mail.sender, mail.recipient)) {
            *n -= 1;
            if *n == 0 {
                pairs.remove(&(mail.sender, mail.recipient));
            }
        }
        self.messages_waiting -= 1;
        self.bytes = self.bytes.saturating_sub(size);
        Some(Place::unpack(place))
    }

    /// Nothing is known under this key any more.
    pub(super) fn forget(&mut self, key: u64) {
        self.messages.remove(key);
    }

    /// A message stands in another place now.
    pub(super) fn relocate(&mut self, key: u64, mail: &Mail, place: Place) {
        let Some(mailbox) = self.mailboxes.get_mut(&mail.recipient) else { return };
        let Ok(at) = mailbox.waiting.binary_search_by_key(&mail.seq, |(seq, _)| *seq) else { return };
        if let Some(entry) = mailbox.waiting.get_mut(at) {
            entry.1 = place.pack();
            self.messages.insert(key, place.pack());
        }
    }

    pub(super) fn find(&self, recipient: &Fingerprint, seq: u64) -> Option<Place> {
        let waiting = &self.mailboxes.get(recipient)?.waiting;
        let at = waiting.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        waiting.get(at).map(|(_, place)| Place::unpack(*place))
    }

    /// The first message of a recipient with a higher number.
    pub(super) fn next(&self, recipient: &Fingerprint, after: u64) -> Option<(u64, Place)> {
        let waiting = &self.mailboxes.get(recipient)?.waiting;
        let at = waiting.partition_point(|(seq, _)| *seq <= after);
        waiting.get(at).map(|(seq, place)| (*seq, Place::unpack(*place)))
    }

    /// Messages of one sender that wait for one recipient.
    pub(super) fn pair(&self, sender: &Fingerprint, recipient: &Fingerprint) -> u32 {
        self.pairs.get(&(*sender, *recipient)).copied().unwrap_or_default()
    }

    /// Control mail of one sender for one recipient, and of all for it with its bytes.
    pub(super) fn control(&self, sender: &Fingerprint, recipient: &Fingerprint) -> (u32, u64, u64) {
        if self.control_pairs.is_empty() {
            return (0, 0, 0);
        }
        let pair = self.control_pairs.get(&(*sender, *recipient)).copied().unwrap_or_default();
        let mailbox = self.mailboxes.get(recipient);
        let (all, bytes) =
            mailbox.map_or((0, 0), |mailbox| (u64::from(mailbox.control), mailbox.control_bytes));
        (pair, all, bytes)
    }

    /// Messages and bytes of a recipient, and those of strangers among them.
    pub(super) fn mailbox(&self, recipient: &Fingerprint) -> (u64, u64, u64, u64) {
        self.mailboxes.get(recipient).map_or((0, 0, 0, 0), |mailbox| {
            let waiting = mailbox.waiting.len() as u64;
            (waiting, mailbox.bytes, u64::from(mailbox.strangers), mailbox.strangers_bytes)
        })
    }

    /// The first messages of a recipient.
    pub(super) fn waiting(&self, recipient: &Fingerprint, most: usize) -> Vec<u64> {
        let waiting = self.mailboxes.get(recipient).map(|mailbox| &mailbox.waiting);
        waiting.into_iter().flatten().take(most).map(|(seq, _)| *seq).collect()
    }

    /// What waits for a recipient.
    pub(super) fn depth(&self, recipient: &Fingerprint) -> Depth {
        let (messages, bytes, ..) = self.mailbox(recipient);
        Depth { recipient: *recipient, messages, bytes }
    }

    /// The fullest mailboxes by messages and by bytes.
    pub(super) fn largest(&self, most: usize) -> (Vec<Depth>, Vec<Depth>) {
        if most == 0 {
            return (Vec::new(), Vec::new());
        }
        let top = |size: fn(&Depth) -> u64| {
            let mut all: Vec<Depth> = self.mailboxes.keys().map(|recipient| self.depth(recipient)).collect();
            if all.len() > most {
                all.select_nth_unstable_by_key(most - 1, |depth| std::cmp::Reverse(size(depth)));
            }
            all.truncate(most);
            all.sort_unstable_by_key(|depth| std::cmp::Reverse(size(depth)));
            all
        };
        (top(|depth| depth.messages), top(|depth| depth.bytes))
    }

    /// Where the message with the lowest number stands.
    pub(super) fn oldest(&self) -> Option<Place> {
        let first = self.mailboxes.values().filter_map(|mailbox| mailbox.waiting.front());
        first.min_by_key(|(seq, _)| *seq).map(|(_, place)| Place::unpack(*place))
    }

    pub(super) fn totals(&self) -> QueueTotals {
        QueueTotals {
            recipients: self.mailboxes.len() as u64,
            messages: self.messages_waiting,
            bytes: self.bytes,
        }
    }

    /// Keeps the head of a message that was just accepted.
    pub(super) fn keep_fresh(&mut self, key: u64, mail: &Arc<Mail>) {
        if self.fresh.len() >= FRESH {
            self.fresh.pop_front();
        }
        self.fresh.push_back((mail.seq, key, Arc::clone(mail)));
    }

    /// Key and head of a message, if it is still kept.
    pub(super) fn fresh(&self, seq: u64) -> Option<(u64, Arc<Mail>)> {
        // Nearly every number was given to a message that was taken.
        let first = self.fresh.front()?.0;
        let guess = usize::try_from(seq.checked_sub(first)?).ok()?;
        let (_, key, mail) = match self.fresh.get(guess) {
            Some(kept) if kept.0 == seq => kept,
            _ => self.fresh.get(self.fresh.binary_search_by_key(&seq, |(seq, ..)| *seq).ok()?)?,
        };
        Some((*key, Arc::clone(mail)))
    }

    /// Remembers a settled message.
    pub(super) fn remember(&mut self, key: u64, content: u64, at_s: u32, segment: u32) {
        self.messages.insert(key, content | SETTLED);
        self.recent.push_back(Memory { at_s, segment, key });
    }

    /// Takes the last memory back.
    pub(super) fn unremember(&mut self) {
        if let Some(memory) = self.recent.pop_back() {
            self.messages.remove(memory.key);
        }
    }

    pub(super) fn remembered(&self) -> usize {
        self.recent.len()
    }

    /// Forgets memories from before this Unix second.
    pub(super) fn forget_recent(&mut self, before_s: u32) {
        while let Some(memory) = self.recent.front().copied()
            && memory.at_s <= before_s
        {
            self.recent.pop_front();
            if matches!(self.get(memory.key), Some(Seen::Settled(_))) {
                self.messages.remove(memory.key);
            }
        }
        self.messages.shrink();
        if self.recent.capacity() > 64 && self.recent.len() < self.recent.capacity() / 4 {
            self.recent.shrink_to(self.recent.len() * 2);
        }
    }

    /// The first of the memories that are written down in this segment, the oldest of the log: what of them still
    /// holds, and how many there are to be [`carried`](Self::carried).
    pub(super) fn recent_in(&self, segment: u32, most: usize) -> (usize, Vec<Recent>) {
        let here = self.recent.range(self.first_not_carried()..);
        let here: Vec<&Memory> = here.take_while(|memory| memory.segment <= segment).take(most).collect();
        let hold = here.iter().filter_map(|memory| match self.get(memory.key)? {
            Seen::Settled(content) => Some(Recent { at_s: memory.at_s, key: memory.key, content }),
            Seen::Waiting(_) => None,
        });
        (here.len(), hold.collect())
    }

    /// The first memories that were not carried are, now.
    pub(super) fn carried(&mut self, count: usize) {
        let first = self.first_not_carried();
        self.recent.iter_mut().skip(first).take(count).for_each(|memory| memory.segment = CARRIED);
    }

    fn first_not_carried(&self) -> usize {
        self.recent.partition_point(|memory| memory.segment == CARRIED)
    }
}
