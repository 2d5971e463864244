//! Which watched peers are there: the word of any relay counts.

use threadline::v2::Key;
use threadline::v2::frames::Presence;

use super::Driver;
use crate::sealed::SealedEvent;

impl Driver {
    /// Asks every relay for presence of those that are watched now.
    pub(super) async fn watch(&mut self) {
        let keys = self.watched.borrow_and_update().clone();
        for session in &mut self.sessions {
            let _ = session.watch(keys.clone(), false);
        }
        self.forget_presence(|key, _| keys.binary_search(key).is_err()).await;
    }

    /// A relay says that somebody came or went. What it says of our own devices is no business of others.
    pub(super) async fn seen(&mut self, relay: usize, presence: &Presence) {
        let key = presence.key;
        if presence.dev.is_some() || self.watched.borrow().binary_search(&key).is_err() {
            return;
        }
        if !presence.on {
            return self.forget_presence(|known, told| *known == key && told == relay).await;
        }
        let relays = self.there.entry(key).or_default();
        let came = relays.is_empty();
        relays.insert(relay);
        if came {
            let _ = self.deps.events.send(SealedEvent::Presence { key, here: true }).await;
        }
    }

    /// Forgets what relays said; who is nowhere any more has left.
    pub(super) async fn forget_presence(&mut self, is_void: impl Fn(&Key, usize) -> bool) {
        let mut left = Vec::new();
        self.there.retain(|key, relays| {
            relays.retain(|relay| !is_void(key, *relay));
            if relays.is_empty() {
                left.push(*key);
            }
            !relays.is_empty()
        });
        for key in left {
            let _ = self.deps.events.send(SealedEvent::Presence { key, here: false }).await;
        }
    }
}
