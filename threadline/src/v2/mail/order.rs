//! In which order opened messages are handed on (`threadline-wire.md` §4.4): they wait here durably, never in memory
//! alone.

use std::collections::BTreeMap;

use super::{Commit, InThread, InThreadKey, InboxRow, Mail, Write};

/// A message that came too early is handed on after this, ms. It is measured while the process runs: a clock that is set
/// and a restart end no wait.
pub const HOLD_MS: u64 = 30_000;
/// So many messages of a thread wait for a missing one.
pub const HOLD_MESSAGES: usize = 64;

/// How a message stands to its predecessors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// Right behind the one before.
    InOrder,
    /// Messages before it are missing.
    AfterGap {
        /// How many.
        missing: u64,
    },
    /// It fills a gap that was already shown.
    Late,
}

/// A message to hand on, under the key (peer, id): handing it on twice must do nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatched {
    /// The message.
    pub row: InboxRow,
    /// Its place.
    pub marker: Marker,
    /// Whether the sender's chain contradicted itself in this thread.
    pub diverged: bool,
}

impl Mail {
    /// Messages to hand on now. The commit is stored after they were handed on. `uptime_ms` is a clock that only goes
    /// forward and nobody sets, from any beginning.
    pub fn dispatch(&mut self, uptime_ms: u64) -> (Commit, Vec<Dispatched>) {
        for message in self.records.inbox.keys() {
            self.waiting_since.entry(*message).or_insert(uptime_ms);
        }
        let mut threads: BTreeMap<InThreadKey, BTreeMap<(u64, crate::v2::Id), InboxRow>> = BTreeMap::new();
        for row in self.records.inbox.values() {
            let key = (row.peer, row.device, row.content.thread.clone());
            threads.entry(key).or_default().insert((row.content.seq, row.id), row.clone());
        }
        let (mut commit, mut dispatched) = (Commit::default(), Vec::new());
        for (key, rows) in threads {
            let before = self.records.in_threads.get(&key).copied().unwrap_or_default();
            let mut place = before;
            let mut waiting = rows.len();
            let since = rows.values().filter_map(|row| self.waiting_since.get(&(row.peer, row.id)));
            let patience_over = since.min().is_some_and(|since| since.saturating_add(HOLD_MS) <= uptime_ms);
            for row in rows.into_values() {
                let early = row.content.seq > place.seq.saturating_add(1);
                if early && !patience_over && waiting <= HOLD_MESSAGES {
                    break;
                }
                waiting -= 1;
                let marker = advance(&mut place, &row);
                self.put(&mut commit, Write::Dispatched(row.peer, row.id));
                dispatched.push(Dispatched { row, marker, diverged: place.diverged });
            }
            if place != before {
                self.put(&mut commit, Write::InThread(key, place));
            }
        }
        let inbox = &self.records.inbox;
        self.waiting_since.retain(|message, _| inbox.contains_key(message));
        (commit, dispatched)
    }

    /// When a message that waits is handed on at the latest, by the clock of [`Mail::dispatch`].
    pub fn next_dispatch(&self) -> Option<u64> {
        self.waiting_since.values().min().map(|since| since.saturating_add(HOLD_MS))
    }
}

fn advance(place: &mut InThread, row: &InboxRow) -> Marker {
    let (seq, next) = (row.content.seq, place.seq.saturating_add(1));
    if seq < next {
        place.diverged |= seq == place.seq && place.last != Some(row.hash);
        return Marker::Late;
    }
    if seq == next && seq > 1 && place.last.is_some() && place.last != row.content.previous {
        place.diverged = true;
    }
    *place = InThread { seq, last: Some(row.hash), diverged: place.diverged };
    if seq == next { Marker::InOrder } else { Marker::AfterGap { missing: seq - next } }
}
