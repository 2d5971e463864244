//! What the relay says: answers on the stream that the question came on, deliveries on streams of their own, the rest
//! on the stream of the session.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, SendStream, VarInt};
use threadline::v2::session::close;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::deliveries::{Deliveries, Place, Thread};
use super::reading::StreamNews;
use super::{CODE_BASE, CONNECTION_WINDOW, FAREWELL, HANDSHAKE, STREAMS};
use crate::core::{Lane, Written};
use crate::server::outbox::{NextFrame, Outbox};

/// A client that takes nothing for this long is cut off.
const WRITE_WITHIN: Duration = Duration::from_secs(30);
/// The stream of the session.
const CONTROL: u64 = 0;

/// The connection is of no use any more.
struct Lost;

/// The writing half of a connection.
///
/// One frame is written at a time. It can wait only for a client that does not read what it was given: deliveries that
/// are not confirmed are fewer bytes than a stream takes, and threads are kept apart below.
pub(super) struct Writing<'a> {
    connection: &'a Connection,
    outbox: &'a Outbox,
    news: mpsc::Receiver<StreamNews>,
    /// Streams that the client opened.
    streams: HashMap<u64, SendStream>,
    deliveries: Deliveries<SendStream>,
    welcome: bool,
}

impl<'a> Writing<'a> {
    pub(super) fn new(
        connection: &'a Connection,
        outbox: &'a Outbox,
        news: mpsc::Receiver<StreamNews>,
    ) -> Self {
        let (streams, deliveries) = (HashMap::new(), Deliveries::default());
        Self { connection, outbox, news, streams, deliveries, welcome: false }
    }

    /// Writes until the core closes or the client takes nothing any more. Returns the code to close with.
    pub(super) async fn run(&mut self) -> u16 {
        loop {
            let idle_at = self.deliveries.idle_at();
            let idle = async {
                match idle_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(news) = self.news.recv() => self.note(news),
                () = idle => {
                    for mut stream in self.deliveries.take_idle(Instant::now()) {
                        let _ = stream.finish();
                    }
                }
                next = self.outbox.next_frame() => match next {
                    NextFrame::Write(frame) => {
                        let written = tokio::time::timeout(WRITE_WITHIN, self.write(frame)).await;
                        if !matches!(written, Ok(Ok(()))) {
                            return close::NORMAL;
                        }
                    }
                    NextFrame::Close(code) => {
                        let _ = tokio::time::timeout(FAREWELL, self.finish()).await;
                        return code.saturating_sub(CODE_BASE);
                    }
                },
            }
        }
    }

    fn note(&mut self, news: StreamNews) {
        match news {
            StreamNews::Opened(number, stream) => drop(self.streams.insert(number, stream)),
            StreamNews::Ended(number) => {
                if let Some(mut stream) = self.streams.remove(&number) {
                    let _ = stream.finish();
                }
            }
        }
    }

    async fn write(&mut self, frame: Written) -> Result<(), Lost> {
        // What a frame answers came on a stream that was announced before.
        while let Ok(news) = self.news.try_recv() {
            self.note(news);
        }
        let Written { bytes, lane } = frame;
        match lane {
            Lane::Delivery(sender, tag) => self.deliver((sender, tag), bytes).await,
            Lane::Stream(number) => self.answer(number, bytes).await,
            Lane::Control => self.answer(CONTROL, bytes).await,
            Lane::Welcome => {
                self.answer(CONTROL, bytes).await?;
                if !std::mem::replace(&mut self.welcome, true) {
                    self.connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW));
                    self.connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS));
                }
                Ok(())
            }
        }
    }

    async fn answer(&mut self, number: u64, bytes: Vec<u8>) -> Result<(), Lost> {
        let bytes = Bytes::from(bytes);
        if number != CONTROL
            && let Some(stream) = self.streams.get_mut(&number)
            && stream.write_chunk(bytes.clone()).await.is_ok()
        {
            return Ok(());
        }
        // What belongs to a stream that is gone is said on the one of the session.
        if !self.streams.contains_key(&CONTROL) {
            self.control_opens().await?;
        }
        let control = self.streams.get_mut(&CONTROL).ok_or(Lost)?;
        control.write_chunk(bytes).await.map_err(|_| Lost)
    }

    /// Waits for the first stream of a client that has said nothing yet.
    async fn control_opens(&mut self) -> Result<(), Lost> {
        let first = tokio::time::timeout(HANDSHAKE, self.news.recv()).await;
        self.note(first.ok().flatten().ok_or(Lost)?);
        Ok(())
    }

    async fn deliver(&mut self, thread: Thread, bytes: Vec<u8>) -> Result<(), Lost> {
        let place = self.deliveries.place(thread);
        if self.deliveries.stream(place, Instant::now()).is_none() {
            let stream = self.connection.open_uni().await.map_err(|_| Lost)?;
            self.deliveries.opened(place, stream, Instant::now());
        }
        let stream = self.deliveries.stream(place, Instant::now()).ok_or(Lost)?;
        if stream.write_chunk(Bytes::from(bytes)).await.is_err() {
            self.reset(place)?;
        }
        Ok(())
    }

    /// A stream that was reset affects only itself: what was on it is offered again in the next session.
    fn reset(&mut self, place: Place) -> Result<(), Lost> {
        self.deliveries.lost(place);
        if self.connection.close_reason().is_some() { Err(Lost) } else { Ok(()) }
    }

    /// Ends all streams and waits until the client has what was said last: a close overtakes what it has not.
    async fn finish(&mut self) {
        let streams = self.streams.drain().map(|(_, stream)| stream);
        let all: Vec<SendStream> = streams.chain(self.deliveries.take_all()).collect();
        let said = all.into_iter().map(|mut stream| {
            let _ = stream.finish();
            stream.stopped()
        });
        futures::future::join_all(said.collect::<Vec<_>>()).await;
    }
}
