//! What is to be written to one client, as bytes ready for the socket.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::core::{Outgoing, Written};
use crate::frames::{self, BINARY, CLOSE, PING, PONG, TEXT};

/// Above this nothing more is read from the client until it has taken what is waiting.
const FULL_BYTES: usize = 768 << 10;
const FULL_FRAMES: usize = 512;
/// A client that lets this much pile up is cut off.
const MOST_BYTES: usize = 1 << 20;
/// What such a client is told.
const TOO_SLOW: &str = "Too slow";
/// Bytes that are written at a time.
const CHUNK: usize = 64 << 10;

/// The write queue of a connection. It is kept small: an idle connection costs no more than this struct.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    kind: Kind,
    state: Mutex<State>,
    changed: Notify,
    /// Rung when something was written.
    drained: Notify,
}

/// What the client speaks, and over what.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Kind {
    #[default]
    V1,
    WebSocket2,
    Quic,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Vec<u8>>,
    /// Frames for a carrier with streams.
    written: VecDeque<Written>,
    /// Frames that begin in the chunks.
    frames: usize,
    /// Bytes in the chunks and in the one that is being written.
    bytes: usize,
    /// Bytes and frames of the chunk that is being written.
    writing: usize,
    admitted: bool,
    close: Option<(u16, &'static str)>,
    closed: bool,
}

impl State {
    /// A client that lets too much pile up is cut off.
    fn cut_off_if_full(&mut self) {
        if self.bytes > MOST_BYTES {
            self.chunks.clear();
            self.written.clear();
            self.bytes = self.writing;
            self.frames = 0;
            self.close = Some((threadline::v1::close::HEARTBEAT_LOST, TOO_SLOW));
        }
    }
}

/// What a connection with streams has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextFrame {
    /// Write this frame.
    Write(Written),
    /// Close with this code.
    Close(u16),
}

/// What the connection has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Write these bytes.
    Write(Vec<u8>),
    /// Write these bytes, then end.
    Last(Vec<u8>),
    /// The end was written.
    Ended,
}

impl Outbox {
    /// For a client that speaks v2.
    pub(super) fn v2() -> Self {
        Self { kind: Kind::WebSocket2, ..Self::default() }
    }

    /// For a client that speaks v2 over QUIC: read with [`Outbox::next_frame`].
    pub(super) fn quic() -> Self {
        Self { kind: Kind::Quic, ..Self::default() }
    }

    /// Whether the client speaks v2.
    pub(super) fn is_v2(&self) -> bool {
        self.kind != Kind::V1
    }

    /// Appends a frame. After a close nothing is taken any more.
    pub(super) fn push(&self, what: &Outgoing) {
        if self.kind == Kind::Quic {
            if let Outgoing::V2(frame) = what {
                self.append_frame(frame.clone());
            }
            return;
        }
        self.append(|chunk| match what {
            Outgoing::V2(frame) => {
                frames::write_header(BINARY, frame.bytes.len(), chunk);
                chunk.extend_from_slice(&frame.bytes);
            }
            Outgoing::Ping => frames::write_header(PING, 0, chunk),
            text => push_text(text, chunk),
        });
    }

    /// Answers a ping of the protocol.
    pub(super) fn pong(&self, payload: &[u8]) {
        self.append(|chunk| {
            frames::write_header(PONG, payload.len(), chunk);
            chunk.extend_from_slice(payload);
        });
    }

    fn append_frame(&self, frame: Written) {
        let mut state = self.state();
        if state.close.is_some() || state.closed {
            return;
        }
        state.bytes += frame.bytes.len();
        state.frames += 1;
        state.written.push_back(frame);
        state.cut_off_if_full();
        drop(state);
        self.changed.notify_one();
    }

    /// The next frame to write, or the code to close with. What was handed out before counts as written.
    pub(super) async fn next_frame(&self) -> NextFrame {
        loop {
            let next = {
                let mut state = self.state();
                let written = std::mem::take(&mut state.writing);
                if written > 0 {
                    state.bytes -= written;
                    state.frames = state.frames.saturating_sub(1);
                    // Several streams of one client may wait.
                    self.drained.notify_waiters();
                }
                if let Some(frame) = state.written.pop_front() {
                    state.writing = frame.bytes.len();
                    Some(NextFrame::Write(frame))
                } else {
                    state.close.map(|(code, _)| NextFrame::Close(code))
                }
            };
            if let Some(next) = next {
                return next;
            }
            self.changed.notified().await;
        }
    }

    fn append(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        if state.close.is_some() || state.closed {
            return;
        }
        if state.chunks.back().is_none_or(|chunk| chunk.len() >= CHUNK) {
            state.chunks.push_back(Vec::new());
        }
        let Some(chunk) = state.chunks.back_mut() else { return };
        let before = chunk.len();
        write(chunk);
        let written = chunk.len() - before;
        state.bytes += written;
        state.frames += 1;
        state.cut_off_if_full();
        drop(state);
        self.changed.notify_one();
    }

    /// The client is logged in: it may send larger messages.
    pub(super) fn admit(&self) {
        self.state().admitted = true;
    }

    /// Whether the client is logged in.
    pub(super) fn is_admitted(&self) -> bool {
        self.state().admitted
    }

    /// Closes after what is waiting has been written.
    pub(super) fn close(&self, code: u16, reason: &'static str) {
        let mut state = self.state();
        state.close.get_or_insert((code, reason));
        drop(state);
        self.changed.notify_one();
    }

    /// What to write next, once there is something. What was handed out before counts as written.
    pub(super) async fn next(&self) -> Next {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            self.changed.notified().await;
        }
    }

    /// Returns once the client has taken enough of what is waiting for it.
    pub(super) async fn room(&self) {
        loop {
            // Before the look, so that nothing is missed between it and the wait.
            let drained = self.drained.notified();
            if !self.is_full() {
                return;
            }
            drained.await;
        }
    }

    fn try_next(&self) -> Option<Next> {
        let mut state = self.state();
        if state.writing > 0 {
            state.bytes -= state.writing;
            state.writing = 0;
            self.drained.notify_one();
        }
        if let Some(chunk) = state.chunks.pop_front() {
            state.writing = chunk.len();
            if state.chunks.is_empty() {
                state.chunks = VecDeque::new();
                state.frames = 0;
            }
            return Some(Next::Write(chunk));
        }
        if state.closed {
            return Some(Next::Ended);
        }
        let (code, reason) = state.close?;
        state.closed = true;
        let mut frame = Vec::new();
        frames::write_header(CLOSE, reason.len() + 2, &mut frame);
        frame.extend(code.to_be_bytes());
        frame.extend_from_slice(reason.as_bytes());
        Some(Next::Last(frame))
    }

    fn is_full(&self) -> bool {
        let state = self.state();
        state.bytes > FULL_BYTES || state.frames > FULL_FRAMES
    }

    /// Whether the client was cut off because too much was waiting for it.
    pub(super) fn was_cut_off(&self) -> bool {
        self.state().close.is_some_and(|(_, reason)| reason == TOO_SLOW)
    }

    /// Whether the connection was told to end.
    pub(super) fn is_closing(&self) -> bool {
        let state = self.state();
        state.closed || state.close.is_some()
    }

    // A panic while the lock is held cannot leave the queue half changed in a way that matters.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push_text(what: &Outgoing, chunk: &mut Vec<u8>) {
    if let Some(length) = what.text_length() {
        frames::write_header(TEXT, length, chunk);
        what.write_text(chunk);
    } else {
        let mut text = Vec::with_capacity(128);
        what.write_text(&mut text);
        frames::write_header(TEXT, text.len(), chunk);
        chunk.extend_from_slice(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Outgoing {
        Outgoing::Message(vec![b'x'; length].into())
    }

    #[tokio::test]
    async fn what_was_sent_before_the_close_is_written_first() {
        let outbox = Outbox::default();
        outbox.push(&message(2));
        outbox.push(&message(2));
        outbox.close(4001, "r");
        outbox.push(&message(2));
        let one = 2 + r#"{"type":"message","envelope":xx}"#.len();
        let Next::Write(bytes) = outbox.next().await else { panic!("bytes") };
        assert_eq!(bytes.len(), 2 * one, "both in one piece");
        assert_eq!(outbox.next().await, Next::Last(b"\x88\x03\x0f\xa1r".to_vec()));
        assert_eq!(outbox.next().await, Next::Ended);
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_costs_a_mebibyte_and_is_cut_off() {
        let outbox = Outbox::default();
        for _ in 0..4 {
            outbox.push(&message(255 << 10));
        }
        assert!(outbox.is_full() && !outbox.is_closing() && !outbox.was_cut_off());
        outbox.push(&message(255 << 10));
        assert!(outbox.was_cut_off());
        let Next::Last(frame) = outbox.next().await else { panic!("a close") };
        assert_eq!(frame[2..4], 4000_u16.to_be_bytes());
    }

    #[tokio::test]
    async fn a_node_over_quic_that_reads_nothing_is_cut_off_as_well() {
        let outbox = Outbox::quic();
        let frame = || Outgoing::V2(Written { bytes: vec![0; 255 << 10], lane: crate::core::Lane::Control });
        for _ in 0..4 {
            outbox.push(&frame());
        }
        assert!(outbox.is_full() && !outbox.was_cut_off());
        let NextFrame::Write(_) = outbox.next_frame().await else { panic!("a frame") };
        // What is being written counts until the next one is asked for.
        outbox.push(&frame());
        assert!(outbox.was_cut_off());
        assert_eq!(outbox.next_frame().await, NextFrame::Close(4000));
    }
}
