//! The log of the queue: segments in order, appended to at the end, removed from the front.
//!
//! Segments go strictly oldest first, so the record that settles a message outlives the record of the message.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

use super::medium::Medium;
use super::record::{
    BATCH_HEADER, Record, SEGMENT_HEADER, SegmentHeader, find_batch, mail_length, open_batch, read,
    seal_batch,
};

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Bytes that were once stored are not what they were.
    #[error("{path} is damaged: {detail}")]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where, and how.
        detail: String,
    },
    /// The files cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Segment or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// How the log is kept.
#[derive(Debug, Clone, Copy)]
pub struct JournalRules {
    /// Whether mail is synced before it counts as stored.
    pub sync: bool,
    /// Bytes after which a new segment is begun.
    pub segment: u64,
    /// Which start of the operating system this is.
    pub boot: [u8; 16],
    /// Go on without what is damaged, keeping a copy of it.
    pub accept_data_loss: bool,
}

/// Where a record begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Number of the segment.
    pub segment: u32,
    /// Position in it.
    pub at: u32,
}

impl Place {
    /// As one number below 2^63.
    pub fn pack(self) -> u64 {
        u64::from(self.segment) << 32 | u64::from(self.at)
    }

    /// The other way round.
    pub fn unpack(packed: u64) -> Self {
        Self { segment: (packed >> 32) as u32, at: packed as u32 }
    }
}

/// One segment that is in use.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// Its number.
    pub id: u32,
    /// Its bytes.
    pub len: u64,
    /// Messages in it that are still in custody.
    pub live: u64,
    /// When the first of them expires; never later than that.
    pub expires_ms: i64,
}

impl Segment {
    fn new(id: u32, len: u64) -> Self {
        Self { id, len, live: 0, expires_ms: i64::MAX }
    }
}

/// The log.
pub struct Journal<M> {
    medium: M,
    rules: JournalRules,
    segments: VecDeque<Segment>,
    /// The last write failed and could not be undone: the next one goes to a new segment.
    broken: bool,
}

impl<M: Medium> Journal<M> {
    /// Opens the log and hands every record to `replay`, oldest first. A batch that was cut off at the end is
    /// removed: nobody was told that it is stored.
    pub fn open(
        medium: M,
        rules: JournalRules,
        now_ms: i64,
        mut replay: impl FnMut(&mut VecDeque<Segment>, Place, Record<'_>),
    ) -> Result<Self, JournalError> {
        let mut journal = Self { medium, rules, segments: VecDeque::new(), broken: false };
        let found = journal.medium.list().map_err(|source| journal.failed(0, source))?;
        let last = found.last().map(|(id, _)| *id);
        let mut lossy = false;
        for (id, len) in found {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            let read = journal.medium.read(id, 0, &mut bytes).map_err(|source| journal.failed(id, source))?;
            bytes.truncate(read);
            if !lossy {
                journal.check_gap(id)?;
            }
            let good = journal.check(id, &mut bytes, Some(id) == last, now_ms)?;
            // Behind what was written without sync, before another start of the machine, names may be missing, too.
            let header = SegmentHeader::read(&bytes);
            lossy = header.is_some_and(|header| !header.synced && header.boot != rules.boot);
            if good < SEGMENT_HEADER {
                journal.medium.remove(id).map_err(|source| journal.failed(id, source))?;
                continue;
            }
            journal.segments.push_back(Segment::new(id, good as u64));
            journal.replay(id, &bytes[..good], &mut replay);
        }
        // Appending continues in a segment of its own, so that its header tells how it was written.
        // On a full disk that has to wait; what is stored can be handed out all the same.
        journal.broken = journal.rotate().is_err();
        Ok(journal)
    }

    fn check_gap(&self, id: u32) -> Result<(), JournalError> {
        match self.segments.back() {
            Some(last) if last.id + 1 != id && !self.rules.accept_data_loss => Err(JournalError::Damaged {
                path: self.medium.name(last.id + 1),
                detail: "the segment is missing".into(),
            }),
            _ => Ok(()),
        }
    }

    /// Bytes of the segment that are good. What is damaged in the middle ends the start, unless its loss is
    /// accepted: then `bytes` become the good batches and are written in its place.
    fn check(
        &mut self,
        id: u32,
        bytes: &mut Vec<u8>,
        last: bool,
        now_ms: i64,
    ) -> Result<usize, JournalError> {
        let Some(header) = SegmentHeader::read(bytes).filter(|header| header.id == id) else {
            if last && find_batch(bytes).is_none() {
                return Ok(0);
            }
            return self.damaged(id, bytes, "its header cannot be read", now_ms);
        };
        let mut at = SEGMENT_HEADER;
        while let Some(records) = open_batch(&bytes[at..]) {
            at += BATCH_HEADER + records.len();
        }
        if at == bytes.len() {
            return Ok(at);
        }
        let more = find_batch(&bytes[at..]).is_some();
        let unsynced = !header.synced && header.boot != self.rules.boot;
        if last && !more {
            tracing::info!(segment = id, bytes = bytes.len() - at, "a write that was cut off is taken back");
            self.medium.truncate(id, at as u64).map_err(|source| self.failed(id, source))?;
            return Ok(at);
        }
        if unsynced {
            tracing::warn!(segment = id, "mail was lost with the power: durability is `process`");
            return self.salvage(id, bytes, now_ms);
        }
        self.damaged(id, bytes, &format!("the batch at byte {at} does not match its checksum"), now_ms)
    }

    fn damaged(
        &mut self,
        id: u32,
        bytes: &mut Vec<u8>,
        detail: &str,
        now_ms: i64,
    ) -> Result<usize, JournalError> {
        let path = self.medium.name(id);
        if !self.rules.accept_data_loss {
            return Err(JournalError::Damaged { path, detail: detail.to_owned() });
        }
        tracing::error!(segment = %path.display(), detail, "damaged segment: a copy is kept, its good batches are used");
        self.salvage(id, bytes, now_ms)
    }

    fn salvage(&mut self, id: u32, bytes: &mut Vec<u8>, now_ms: i64) -> Result<usize, JournalError> {
        let mut good = self.header(id).to_bytes().to_vec();
        let mut at = 0;
        while let Some(next) = find_batch(&bytes[at..]) {
            let start = at + next;
            let length = BATCH_HEADER + open_batch(&bytes[start..]).map_or(0, <[u8]>::len);
            good.extend_from_slice(&bytes[start..start + length]);
            at = start + length;
        }
        *bytes = good;
        let medium = &mut self.medium;
        let rewritten = medium
            .keep_copy(id, now_ms)
            .and_then(|()| medium.write(id, 0, bytes))
            .and_then(|()| medium.truncate(id, bytes.len() as u64))
            .and_then(|()| medium.sync(id));
        rewritten.map_err(|source| self.failed(id, source))?;
        Ok(bytes.len())
    }

    fn replay(
        &mut self,
        id: u32,
        bytes: &[u8],
        replay: &mut impl FnMut(&mut VecDeque<Segment>, Place, Record<'_>),
    ) {
        for_each(bytes, |at, record| {
            replay(&mut self.segments, Place { segment: id, at: at as u32 }, record);
        });
    }

    fn header(&self, id: u32) -> SegmentHeader {
        SegmentHeader { id, synced: self.rules.sync, boot: self.rules.boot }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let id = self.segments.back().map_or(1, |last| last.id + 1);
        self.medium.create(id, self.rules.sync)?;
        let header = self.header(id).to_bytes();
        if let Err(error) = self.medium.write(id, 0, &header) {
            self.medium.remove(id)?;
            return Err(error);
        }
        self.segments.push_back(Segment::new(id, header.len() as u64));
        self.broken = false;
        Ok(())
    }

    /// Where the first record of the next batch will stand.
    pub fn prepare(&mut self) -> io::Result<Place> {
        let full = self.segments.back().is_none_or(|head| head.len >= self.rules.segment);
        if full || self.broken {
            self.rotate()?;
        }
        let head = self.segments.back().ok_or(io::ErrorKind::NotFound)?;
        Ok(Place { segment: head.id, at: head.len as u32 + BATCH_HEADER as u32 })
    }

    /// Appends a batch, whose first [`BATCH_HEADER`] bytes are left for its header, at the place that
    /// [`Journal::prepare`] named. `sync` asks for it to survive a power cut where that is promised at all. After an
    /// error nothing of it is stored.
    pub fn append(&mut self, batch: &mut [u8], sync: bool) -> io::Result<()> {
        seal_batch(batch);
        let Some(head) = self.segments.back_mut() else { return Err(io::ErrorKind::NotFound.into()) };
        let (id, at) = (head.id, head.len);
        let mut written = self.medium.write(id, at, batch);
        if written.is_ok() && sync && self.rules.sync {
            written = self.medium.sync(id);
            // What a failed sync left on the disk is unknown, so nothing more is written behind it.
            self.broken = written.is_err();
        }
        match written {
            Ok(()) => head.len += batch.len() as u64,
            Err(_) => self.broken |= self.medium.truncate(id, at).is_err(),
        }
        written
    }

    /// The bytes of a mail record.
    pub fn mail(&mut self, place: Place, buffer: &mut Vec<u8>) -> io::Result<()> {
        const FIRST: usize = 4 << 10;
        buffer.resize(FIRST, 0);
        let at = u64::from(place.at);
        let read = self.medium.read(place.segment, at, buffer)?;
        buffer.truncate(read);
        let length = mail_length(buffer).ok_or(io::ErrorKind::InvalidData)?;
        if length > read {
            buffer.resize(length, 0);
            let more = self.medium.read(place.segment, at + read as u64, &mut buffer[read..])?;
            buffer.truncate(read + more);
        }
        buffer.truncate(length);
        if buffer.len() < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// The whole segment, for [`for_each`].
    pub fn segment(&mut self, id: u32) -> io::Result<Vec<u8>> {
        let len = self.find(id).map_or(0, |segment| segment.len);
        let mut bytes = vec![0; len as usize];
        let read = self.medium.read(id, 0, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// The segments, oldest first.
    pub fn segments(&self) -> &VecDeque<Segment> {
        &self.segments
    }

    /// The segments, for whoever counts what is live in them.
    pub fn segments_mut(&mut self) -> &mut VecDeque<Segment> {
        &mut self.segments
    }

    /// A segment by its number.
    pub fn find(&mut self, id: u32) -> Option<&mut Segment> {
        find(&mut self.segments, id)
    }

    /// Removes the oldest segment, unless it is the one that is written to.
    pub fn remove_oldest(&mut self) -> io::Result<()> {
        if self.segments.len() < 2 {
            return Ok(());
        }
        if let Some(oldest) = self.segments.front() {
            self.medium.remove(oldest.id)?;
        }
        self.segments.pop_front();
        Ok(())
    }

    /// Bytes after which a new segment is begun.
    pub fn segment_bytes(&self) -> u64 {
        self.rules.segment
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    /// Where the segments lie.
    pub fn medium(&mut self) -> &mut M {
        &mut self.medium
    }

    /// Gives the segments back.
    pub fn into_medium(self) -> M {
        self.medium
    }

    fn failed(&self, id: u32, source: io::Error) -> JournalError {
        JournalError::Io { path: self.medium.name(id), source }
    }
}

/// A segment by its number; numbers are consecutive but for segments whose loss was accepted.
pub fn find(segments: &mut VecDeque<Segment>, id: u32) -> Option<&mut Segment> {
    let first = segments.front()?.id;
    let guess = id.checked_sub(first)? as usize;
    if segments.get(guess).is_some_and(|segment| segment.id == id) {
        return segments.get_mut(guess);
    }
    segments.iter_mut().find(|segment| segment.id == id)
}

/// Every record of a segment and where it stands.
pub fn for_each(segment: &[u8], mut each: impl FnMut(usize, Record<'_>)) {
    let mut at = SEGMENT_HEADER;
    while let Some(records) = segment.get(at..).and_then(open_batch) {
        let mut inner = 0;
        while let Some((record, length)) = read(&records[inner..]) {
            each(at + BATCH_HEADER + inner, record);
            inner += length;
        }
        at += BATCH_HEADER + records.len();
    }
}
