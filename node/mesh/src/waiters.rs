//! Calls that wait for a peer's reply. They live in memory only: after a restart a reply is an ordinary message.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use threadline::{MessageId, ThreadKey};
use tokio::sync::oneshot;

/// How waiting ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The peer answered.
    Text {
        /// Id of the answer.
        id: MessageId,
        /// Its text, not framed.
        body: String,
    },
    /// Our message will not arrive.
    Undeliverable(String),
}

/// All waiting calls, keyed by thread and peer; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waiters {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    serial: u64,
    waiting: HashMap<ThreadKey, Vec<Waiting>>,
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

impl Waiters {
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

    /// Whether the call of this very message waits.
    pub(crate) fn waits_for(&self, key: &ThreadKey, sent: &str) -> bool {
        self.lock().waiting.get(key).is_some_and(|w| w.iter().any(|w| w.sent.as_str() == sent))
    }

    /// Hands a reply to the call whose message it names, else to the oldest. False when nobody took it.
    pub(crate) fn answer(&self, key: &ThreadKey, in_reply_to: Option<&str>, reply: Reply) -> bool {
        let taken = {
            let mut state = self.lock();
            let Some(waiting) = state.waiting.get_mut(key) else { return false };
            let named = waiting.iter().position(|w| Some(w.sent.as_str()) == in_reply_to);
            let taken = waiting.remove(named.unwrap_or(0));
            if waiting.is_empty() {
                state.waiting.remove(key);
            }
            taken
        };
        taken.answer.send(reply).is_ok()
    }

    /// Ends the call whose message will not arrive.
    pub(crate) fn undeliverable(&self, key: &ThreadKey, sent: &MessageId, reason: &str) {
        if self.waits_for(key, sent.as_str()) {
            self.answer(key, Some(sent.as_str()), Reply::Undeliverable(reason.to_owned()));
        }
    }

    /// Ends every call on a thread.
    pub(crate) fn clear(&self, key: &ThreadKey) {
        self.lock().waiting.remove(key);
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

    fn text(id: &str) -> Reply {
        Reply::Text { id: id.parse().expect("id"), body: "yes".into() }
    }

    #[tokio::test]
    async fn a_reply_goes_to_the_call_it_names_and_to_no_other_peer() {
        let table = Waiters::default();
        let (one, two) = ("m1".parse().expect("id"), "m2".parse().expect("id"));
        let mut first = table.register(&key(1), &one);
        let mut second = table.register(&key(1), &two);
        assert!(!table.answer(&key(2), None, text("r")));
        assert!(table.answer(&key(1), Some("m2"), text("r2")));
        assert_eq!(second.reply().await, Some(text("r2")));
        assert!(table.answer(&key(1), None, text("r1")));
        assert_eq!(first.reply().await, Some(text("r1")));
        assert!(!table.has(&key(1)));
    }

    #[test]
    fn a_call_that_went_away_takes_nothing() {
        let table = Waiters::default();
        drop(table.register(&key(1), &"m1".parse().expect("id")));
        assert!(!table.has(&key(1)) && !table.answer(&key(1), None, text("r")));
    }
}
