//! What was promised: every accepted message once, in order, and never without a durable place.

use std::collections::BTreeMap;
use std::fmt;

use threadline::{MessageId, ThreadId};

/// One direction of one conversation.
pub(super) type Stream = (usize, usize, ThreadId);

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A message is in its thread twice.
    Twice(String),
    /// A message is in its thread before one that was sent earlier, or that one is missing.
    OutOfOrder(String),
    /// A message that was accepted is in no durable place.
    Lost(String),
    /// A message was refused, given up or failed.
    Refused(String),
    /// The mesh came to rest, or ran out of time, without having delivered everything.
    Undelivered(String),
    /// A node could not read what the relay said.
    BadFrame(String),
}

impl Violation {
    /// Whether it is about a message that is there twice.
    pub const fn is_twice(&self) -> bool {
        matches!(self, Self::Twice(_))
    }

    /// Whether it is about a message that is gone.
    pub const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::OutOfOrder(_) | Self::Undelivered(_))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, detail) = match self {
            Self::Twice(detail) => ("a message twice in its thread", detail),
            Self::OutOfOrder(detail) => ("a message out of order", detail),
            Self::Lost(detail) => ("a message in no durable place", detail),
            Self::Refused(detail) => ("a message refused", detail),
            Self::Undelivered(detail) => ("not everything delivered", detail),
            Self::BadFrame(detail) => ("an unreadable frame", detail),
        };
        write!(f, "{what}: {detail}")
    }
}

#[derive(Debug, Default)]
struct Progress {
    sent: Vec<MessageId>,
    delivered: usize,
}

/// Every accepted message and how far each stream is.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    streams: BTreeMap<Stream, Progress>,
    place: BTreeMap<(usize, MessageId), (Stream, usize)>,
    open: usize,
}

impl Ledger {
    /// A node accepted a message for sending. Returns its number in the stream.
    pub(super) fn accepted(&mut self, stream: Stream, id: MessageId) {
        let progress = self.streams.entry(stream.clone()).or_default();
        self.place.insert((stream.0, id.clone()), (stream, progress.sent.len()));
        progress.sent.push(id);
        self.open += 1;
    }

    /// A message was appended to the recipient's thread.
    pub(super) fn appended(&mut self, stream: &Stream, id: &MessageId) -> Result<(), Violation> {
        let progress = self.streams.entry(stream.clone()).or_default();
        let number = progress.sent.iter().position(|sent| sent == id);
        let what = || format!("{id} (number {number:?}) of {stream:?}, {} delivered", progress.delivered);
        match number {
            Some(number) if number == progress.delivered => {
                progress.delivered += 1;
                self.open -= 1;
                Ok(())
            }
            Some(number) if number < progress.delivered => Err(Violation::Twice(what())),
            _ => Err(Violation::OutOfOrder(what())),
        }
    }

    /// Whether a message of `sender` is in its thread.
    pub(super) fn is_delivered(&self, sender: usize, id: &MessageId) -> bool {
        let Some((stream, number)) = self.place.get(&(sender, id.clone())) else { return true };
        self.streams.get(stream).is_some_and(|progress| *number < progress.delivered)
    }

    /// Recipient of a message.
    pub(super) fn recipient(&self, sender: usize, id: &MessageId) -> Option<usize> {
        self.place.get(&(sender, id.clone())).map(|(stream, _)| stream.1)
    }

    /// Messages that are accepted and not delivered.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Some of them, for a report.
    pub(super) fn some_open(&self) -> String {
        let open = self.streams.iter().filter(|(_, p)| p.delivered < p.sent.len());
        let shown: Vec<_> =
            open.take(4).map(|(s, p)| format!("{s:?}: {} of {}", p.delivered, p.sent.len())).collect();
        format!("{} open; {}", self.open, shown.join("; "))
    }

    /// Messages accepted so far.
    pub(super) fn accepted_count(&self) -> u64 {
        self.place.len() as u64
    }
}
