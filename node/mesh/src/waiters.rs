//! Calls that wait for a peer's reply. They live in memory only: after a restart a reply is an ordinary message, and so is
//! one whose way to the caller was not confirmed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use threadline::{MessageId, ThreadKey};
use tokio::sync::{Notify, mpsc, oneshot};

/// Confirmed replies that wait to be noted; what does not fit goes to a session as well.
const CONFIRMED: usize = 64;

/// How waiting ended.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The peer answered.
    Text {
        /// Its text, not framed.
        body: String,
        /// The answer's way to the caller.
        handover: Handover,
    },
    /// Our message will not arrive.
    Undeliverable(String),
}

/// To whom a message may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Addressee<'a> {
    /// The call that sent this message.
    CallOf(&'a str),
    /// The oldest call.
    Anyone,
}

/// All waiting calls, keyed by thread and peer; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Waiters {
    shared: Arc<Mutex<State>>,
    /// Told when a reply came back.
    returned: Arc<Notify>,
    confirmed: mpsc::Sender<Handover>,
}

// Held only to change the table.
#[derive(Debug, Default)]
struct State {
    serial: u64,
    waiting: HashMap<ThreadKey, Vec<Waiting>>,
    /// The reply of a thread that is on its way to a caller.
    given: HashMap<ThreadKey, MessageId>,
}

#[derive(Debug)]
struct Waiting {
    serial: u64,
    sent: MessageId,
    answer: oneshot::Sender<Reply>,
}

/// One waiting call; leaves the table when dropped.
#[derive(Debug)]
pub(crate) struct Waiter {
    table: Waiters,
    key: ThreadKey,
    serial: u64,
    answer: oneshot::Receiver<Reply>,
}

/// A peer's message on its way to the call that waited for it. Until it is confirmed the message stays where it was
/// stored; one that is dropped goes to a session instead.
#[derive(Debug)]
pub struct Handover {
    table: Waiters,
    key: ThreadKey,
    id: MessageId,
}

impl Handover {
    /// The caller has the answer.
    pub fn confirm(self) {
        let confirmed = self.table.confirmed.clone();
        // Where nobody notes it any more, the message goes to a session after the next start.
        if confirmed.try_send(self).is_err() {
            tracing::warn!("a reply that reached its caller is given to a session too");
        }
    }

    pub(crate) fn message(&self) -> (&ThreadKey, &MessageId) {
        (&self.key, &self.id)
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        self.table.lock().given.remove(&self.key);
        self.table.returned.notify_one();
    }
}

impl Waiters {
    /// An empty table, and what was confirmed of it. `returned` is told when a reply found no caller after all.
    pub(crate) fn new(returned: Arc<Notify>) -> (Self, mpsc::Receiver<Handover>) {
        let (confirmed, noted) = mpsc::channel(CONFIRMED);
        (Self { shared: Arc::default(), returned, confirmed }, noted)
    }

    /// Registers before the message is sent.
    pub(crate) fn register(&self, key: &ThreadKey, sent: &MessageId) -> Waiter {
        let (tx, answer) = oneshot::channel();
        let mut state = self.lock();
        state.serial += 1;
        let serial = state.serial;
        let waiting = state.waiting.entry(key.clone()).or_default();
        waiting.push(Waiting { serial, sent: sent.clone(), answer: tx });
        drop(state);
        Waiter { table: self.clone(), key: key.clone(), serial, answer }
    }

    /// Whether a call waits on this thread.
    pub(crate) fn has(&self, key: &ThreadKey) -> bool {
        self.lock().waiting.contains_key(key)
    }

    /// Whether a reply of this thread is on its way to a caller.
    pub(crate) fn is_giving(&self, key: &ThreadKey) -> bool {
        self.lock().given.contains_key(key)
    }

    /// Gives a message to the call that it is for. False when nobody took it.
    pub(crate) fn give(&self, key: &ThreadKey, to: Addressee<'_>, id: &MessageId, body: &str) -> bool {
        let Some(call) = self.take(key, to) else { return false };
        self.lock().given.insert(key.clone(), id.clone());
        let handover = Handover { table: self.clone(), key: key.clone(), id: id.clone() };
        call.answer.send(Reply::Text { body: body.to_owned(), handover }).is_ok()
    }

    /// Ends the call whose message will not arrive.
    pub(crate) fn undeliverable(&self, key: &ThreadKey, sent: &MessageId, reason: &str) {
        if let Some(call) = self.take(key, Addressee::CallOf(sent.as_str())) {
            // A call that is gone needs no reason.
            let _ = call.answer.send(Reply::Undeliverable(reason.to_owned()));
        }
    }

    /// Ends every call on a thread.
    pub(crate) fn clear(&self, key: &ThreadKey) {
        self.lock().waiting.remove(key);
    }

    fn take(&self, key: &ThreadKey, to: Addressee<'_>) -> Option<Waiting> {
        let mut state = self.lock();
        let waiting = state.waiting.get_mut(key)?;
        let index = match to {
            Addressee::CallOf(sent) => waiting.iter().position(|call| call.sent.as_str() == sent)?,
            Addressee::Anyone => 0,
        };
        let call = waiting.remove(index);
        if waiting.is_empty() {
            state.waiting.remove(key);
        }
        Some(call)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// The reply; `None` when the thread was deleted meanwhile.
    pub(crate) async fn reply(&mut self) -> Option<Reply> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut state = self.table.lock();
        if let Some(waiting) = state.waiting.get_mut(&self.key) {
            waiting.retain(|w| w.serial != self.serial);
            if waiting.is_empty() {
                state.waiting.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use threadline::Fingerprint;

    fn key(peer: u8) -> ThreadKey {
        ThreadKey { peer: Fingerprint::from_bytes([peer; 16]), thread: "t".parse().expect("id") }
    }

    fn id(text: &str) -> MessageId {
        text.parse().expect("id")
    }

    async fn text(waiter: &mut Waiter) -> (String, Handover) {
        match waiter.reply().await {
            Some(Reply::Text { body, handover }) => (body, handover),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_reply_goes_to_the_call_it_names_and_to_no_other() {
        let (table, _noted) = Waiters::new(Arc::default());
        let mut first = table.register(&key(1), &id("m1"));
        let mut second = table.register(&key(1), &id("m2"));
        assert!(!table.give(&key(2), Addressee::Anyone, &id("r"), "no"), "another peer");
        assert!(!table.give(&key(1), Addressee::CallOf("m0"), &id("r"), "no"), "a call that ended");
        assert!(table.give(&key(1), Addressee::CallOf("m2"), &id("r2"), "two"));
        assert_eq!(text(&mut second).await.0, "two");
        assert!(table.give(&key(1), Addressee::Anyone, &id("r1"), "one"));
        assert_eq!(text(&mut first).await.0, "one");
        assert!(!table.has(&key(1)));
    }

    #[tokio::test]
    async fn a_reply_is_on_its_way_until_it_is_confirmed_or_comes_back() {
        let (returned, one) = (Arc::new(Notify::new()), id("m1"));
        let (table, mut noted) = Waiters::new(Arc::clone(&returned));
        let mut waiter = table.register(&key(1), &one);
        assert!(table.give(&key(1), Addressee::Anyone, &id("r1"), "one"));
        let (_, handover) = text(&mut waiter).await;
        assert!(table.is_giving(&key(1)));
        handover.confirm();
        let handover = noted.recv().await.expect("confirmed");
        assert!(table.is_giving(&key(1)), "until that is noted");
        assert_eq!(handover.message(), (&key(1), &id("r1")));
        drop(handover);
        assert!(!table.is_giving(&key(1)));
        returned.notified().await;

        let waiter = table.register(&key(1), &one);
        assert!(table.give(&key(1), Addressee::Anyone, &id("r2"), "two"));
        drop(waiter);
        assert!(!table.is_giving(&key(1)), "the caller left with the reply unread");
        returned.notified().await;
        assert!(noted.try_recv().is_err());
    }

    #[test]
    fn a_call_that_went_away_takes_nothing() {
        let (table, _noted) = Waiters::new(Arc::default());
        drop(table.register(&key(1), &id("m1")));
        assert!(!table.has(&key(1)) && !table.give(&key(1), Addressee::Anyone, &id("r"), "x"));
    }
}
