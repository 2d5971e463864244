//! What is remembered of confirmed messages once the segments that say so are gone: a log of its own, in which each
//! memory stands once, and whose segments go when everything in them is old.

use std::collections::VecDeque;
use std::io;

use crate::store::journal::{Journal, JournalError, JournalRules};
use crate::store::medium::Medium;
use crate::store::record::{BATCH_HEADER, Recent, Record, write_recent};

/// A memory is small beside a message, and so are its segments.
const PART_OF_SEGMENT: u64 = 16;

pub(super) struct Memories<M> {
    journal: Journal<M>,
    /// Numbers of segments that hold memories, ascending, and the Unix second of the newest in each.
    newest: VecDeque<(u32, u32)>,
    batch: Vec<u8>,
}

impl<M: Medium> Memories<M> {
    /// Hands every memory to `replay`. `rules` are those of the mail.
    pub(super) fn open(
        medium: M,
        rules: JournalRules,
        now_ms: i64,
        mut replay: impl FnMut(Recent),
    ) -> Result<Self, JournalError> {
        let rules = JournalRules { segment: rules.segment / PART_OF_SEGMENT, ..rules };
        let mut newest = VecDeque::new();
        let journal = Journal::open(medium, rules, now_ms, |_, place, record| {
            let Record::Recent(entries) = record else { return };
            note(&mut newest, place.segment, &entries);
            entries.into_iter().for_each(&mut replay);
        })?;
        Ok(Self { journal, newest, batch: Vec::new() })
    }

    /// Writes memories down. They are stored when this returns.
    pub(super) fn keep(&mut self, entries: &[Recent]) -> io::Result<()> {
        let place = self.journal.prepare()?;
        self.batch.clear();
        self.batch.resize(BATCH_HEADER, 0);
        write_recent(entries, &mut self.batch);
        self.journal.append(&mut self.batch, true)?;
        note(&mut self.newest, place.segment, entries);
        Ok(())
    }

    /// Frees what holds nothing but memories from before this Unix second.
    pub(super) fn forget(&mut self, before_s: u32) -> io::Result<()> {
        while let [Some(oldest), Some(_)] = [0, 1].map(|n| self.journal.segments().get(n).copied()) {
            let first = self.newest.front().copied().filter(|(id, _)| *id == oldest.id);
            if first.is_some_and(|(_, at_s)| at_s > before_s) {
                break;
            }
            self.journal.remove_oldest()?;
            if first.is_some() {
                self.newest.pop_front();
            }
        }
        Ok(())
    }

    /// Bytes of the log.
    pub(super) fn bytes(&self) -> u64 {
        self.journal.bytes()
    }

    /// Gives the segments back.
    pub(super) fn into_medium(self) -> M {
        self.journal.into_medium()
    }
}

fn note(newest: &mut VecDeque<(u32, u32)>, segment: u32, entries: &[Recent]) {
    let at_s = entries.iter().map(|entry| entry.at_s).max().unwrap_or_default();
    match newest.back_mut() {
        Some((id, newest)) if *id == segment => *newest = at_s.max(*newest),
        _ => newest.push_back((segment, at_s)),
    }
}
