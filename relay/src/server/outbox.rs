//! What is to be written to one client.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes};
use tokio::sync::Notify;

/// Above this nothing more is read from the client until it has taken what is waiting.
const FULL_FRAMES: usize = 512;
const FULL_BYTES: usize = 1 << 20;
/// A client that lets this much pile up is cut off.
const MOST_BYTES: usize = 4 << 20;

/// The write queue of a connection. It is kept small: an idle connection costs no more than this struct.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Utf8Bytes>,
    bytes: usize,
    close: Option<(u16, &'static str)>,
    closed: bool,
}

impl Outbox {
    /// Appends a frame. After a close nothing is taken any more.
    pub(super) fn push(&self, text: String) {
        let mut state = self.state();
        if state.close.is_some() || state.closed {
            return;
        }
        state.bytes += text.len();
        state.frames.push_back(text.into());
        if state.bytes > MOST_BYTES {
            state.frames.clear();
            state.close = Some((threadline::v1::close::HEARTBEAT_LOST, "Too slow"));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Closes after what is waiting has been written.
    pub(super) fn close(&self, code: u16, reason: &'static str) {
        let mut state = self.state();
        state.close.get_or_insert((code, reason));
        drop(state);
        self.changed.notify_one();
    }

    /// The next message, once there is one; `None` after the close frame.
    pub(super) async fn next(&self) -> Option<Message> {
        loop {
            {
                let mut state = self.state();
                if let Some(text) = state.frames.pop_front() {
                    state.bytes -= text.len().min(state.bytes);
                    if state.frames.is_empty() {
                        state.frames = VecDeque::new();
                    }
                    return Some(Message::Text(text));
                }
                if state.closed {
                    return None;
                }
                if let Some((code, reason)) = state.close {
                    state.closed = true;
                    return Some(Message::Close(Some(CloseFrame { code, reason: reason.into() })));
                }
            }
            self.changed.notified().await;
        }
    }

    /// Whether the client should first take what is waiting for it.
    pub(super) fn is_full(&self) -> bool {
        let state = self.state();
        state.frames.len() > FULL_FRAMES || state.bytes > FULL_BYTES
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_sent_before_the_close_is_written_first() {
        let outbox = Outbox::default();
        outbox.push("a".into());
        outbox.close(4001, "r");
        outbox.push("b".into());
        assert_eq!(outbox.next().await, Some(Message::Text("a".into())));
        assert!(matches!(outbox.next().await, Some(Message::Close(Some(frame))) if frame.code == 4001));
        assert_eq!(outbox.next().await, None);
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_cut_off() {
        let outbox = Outbox::default();
        for _ in 0..5 {
            outbox.push("x".repeat(1 << 20));
        }
        assert!(matches!(outbox.next().await, Some(Message::Close(Some(frame))) if frame.code == 4000));
    }
}
