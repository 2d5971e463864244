//! What a client says: frames over the streams that it opens.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use quinn::{Connection, RecvStream, SendStream};
use threadline::v2::frames::{FrameBuffer, FrameError, FramePhase};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::CODE_BASE;
use crate::core::{ConnId, Inbound, InboundFrame, V2Frame};
use crate::server::Shared;
use crate::server::outbox::Outbox;

/// Bytes read at a time.
const PIECE: usize = 64 << 10;
/// Bytes of unfinished frames of one session.
const UNFINISHED: usize = 8 << 20;
/// A frame that is not whole after this time ends its stream.
const FRAME_WITHIN: Duration = Duration::from_secs(30);

/// What became of a stream that the client opened.
pub(super) enum StreamNews {
    /// It is open; this is the end to answer on.
    Opened(u64, SendStream),
    /// Nothing more comes on it.
    Ended(u64),
}

/// The reading half of a connection.
pub(super) struct Reading<'a> {
    connection: &'a Connection,
    outbox: &'a Outbox,
    news: mpsc::Sender<StreamNews>,
    /// Bytes of frames that are not whole, over all streams.
    unfinished: AtomicUsize,
}

impl<'a> Reading<'a> {
    pub(super) fn new(
        connection: &'a Connection,
        outbox: &'a Outbox,
        news: mpsc::Sender<StreamNews>,
    ) -> Self {
        Self { connection, outbox, news, unfinished: AtomicUsize::new(0) }
    }

    /// Hands everything to the core until the connection ends.
    pub(super) async fn pass_on(&self, id: ConnId, shared: &Shared) {
        let mut streams = FuturesUnordered::new();
        loop {
            tokio::select! {
                opened = self.connection.accept_bi() => {
                    let Ok((send, receive)) = opened else { return };
                    let number = receive.id().index();
                    if self.news.send(StreamNews::Opened(number, send)).await.is_err() {
                        return;
                    }
                    streams.push(async move {
                        self.pass_on_stream(receive, number, id, shared).await;
                        number
                    });
                }
                Some(number) = streams.next(), if !streams.is_empty() => {
                    if number == 0 {
                        // Without its control stream a session is over.
                        self.outbox.close(CODE_BASE, "");
                    } else if self.news.send(StreamNews::Ended(number)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Hands the frames of one stream to the core, until it ends or is of no use any more.
    async fn pass_on_stream(&self, mut stream: RecvStream, number: u64, id: ConnId, shared: &Shared) {
        let mut buffer = FrameBuffer::default();
        let mut part = Part::new(&self.unfinished);
        let mut uncounted = 0;
        loop {
            let reading = stream.read_chunk(PIECE, true);
            let chunk = match part.since {
                None => reading.await,
                Some(since) => match tokio::time::timeout_at(since + FRAME_WITHIN, reading).await {
                    Ok(chunk) => chunk,
                    Err(_) => return,
                },
            };
            let Ok(Some(chunk)) = chunk else { return };
            buffer.extend(&chunk.bytes);
            uncounted += chunk.bytes.len();
            let now_ms = shared.clock.now_ms();
            let Cut { mut frames, over } = cut(&mut buffer, number, now_ms, || self.outbox.is_admitted());
            let whole = !frames.is_empty();
            if let Some(first) = frames.first_mut() {
                first.bytes = std::mem::take(&mut uncounted);
                shared.driver.received(id, frames).await;
            }
            if over {
                // The core ends the session, and says why.
                return std::future::pending().await;
            }
            if !part.holds(buffer.pending(), whole) {
                return;
            }
            if buffer.pending() == 0 {
                // An idle stream keeps no memory.
                buffer = FrameBuffer::default();
            }
            self.outbox.room().await;
        }
    }
}

/// The unfinished frame of one stream.
struct Part<'a> {
    all: &'a AtomicUsize,
    bytes: usize,
    /// When it began.
    since: Option<Instant>,
}

impl<'a> Part<'a> {
    fn new(all: &'a AtomicUsize) -> Self {
        Self { all, bytes: 0, since: None }
    }

    /// Notes what is unfinished now; `fresh` when it is of another frame than before. Whether the session may hold so
    /// much.
    fn holds(&mut self, bytes: usize, fresh: bool) -> bool {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
        let others = self.all.fetch_add(bytes, Ordering::Relaxed);
        self.bytes = bytes;
        if bytes == 0 {
            self.since = None;
        } else if fresh || self.since.is_none() {
            self.since = Some(Instant::now());
        }
        others + bytes <= UNFINISHED
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What the bytes of a stream hold.
#[derive(Default)]
struct Cut {
    frames: Vec<Inbound>,
    /// Nothing behind it can be read.
    over: bool,
}

/// Cuts what is whole out of a buffer into frames.
fn cut(buffer: &mut FrameBuffer, number: u64, now_ms: i64, admitted: impl Fn() -> bool) -> Cut {
    let mut cut = Cut::default();
    while !cut.over {
        let phase = if admitted() { FramePhase::Open } else { FramePhase::Early };
        let frame = match buffer.next(phase) {
            Ok(None) => break,
            Ok(Some(frame)) => Ok(frame),
            Err(error) => Err(error),
        };
        cut.over = frame.as_ref().is_err_and(FrameError::is_fatal);
        let frame = V2Frame::of(frame, now_ms).on_stream(number);
        let content = Ok(InboundFrame::V2(Box::new(frame)));
        cut.frames.push(Inbound { bytes: 0, content });
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use threadline::v2::frames::{Frame, Ping};

    fn pings(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|t| Frame::from(Ping { t: *t, tok: false }).encode()).collect()
    }

    #[test]
    fn what_all_streams_hold_is_limited_and_given_back() {
        let all = AtomicUsize::new(0);
        let (mut one, mut other) = (Part::new(&all), Part::new(&all));
        assert!(one.holds(UNFINISHED, false));
        let began = one.since;
        assert!(one.holds(UNFINISHED - 1, false) && one.since == began, "the same frame goes on");
        assert!(!other.holds(2, true));
        drop(one);
        assert!(other.holds(2, true));
        assert!(other.holds(0, true) && other.since.is_none());
        drop(other);
        assert_eq!(all.into_inner(), 0);
    }

    proptest! {
        #[test]
        fn frames_are_the_same_however_they_arrive(
            numbers in proptest::collection::vec(any::<u64>(), 1..20),
            piece in 1_usize..40,
            junk in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let bytes = [pings(&numbers), junk].concat();
            let mut whole = FrameBuffer::default();
            whole.extend(&bytes);
            let at_once = cut(&mut whole, 1, 0, || true);
            let mut buffer = FrameBuffer::default();
            let (mut frames, mut over) = (0, false);
            for part in bytes.chunks(piece) {
                if over {
                    break;
                }
                buffer.extend(part);
                let some = cut(&mut buffer, 1, 0, || true);
                frames += some.frames.len();
                over = some.over;
            }
            prop_assert_eq!((frames, over), (at_once.frames.len(), at_once.over));
            prop_assert!(frames >= numbers.len());
        }
    }
}
