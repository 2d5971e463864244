//! A server that leads a stream and cannot read its own copy hands the lead to another one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use threadline::Fingerprint;

use super::engine::{Engine, failed};
use super::layout;
use crate::store::StoreFailed;

/// What NATS 2.9 says of a block that it was writing when it was killed, at every read, until another server leads.
const UNREADABLE: &str = "partial cache";
/// The lead of a stream is handed on at most this often.
const EVERY: Duration = Duration::from_secs(5);

/// When the lead of a stream was last handed on.
#[derive(Debug, Default)]
pub(super) struct Changes(Mutex<HashMap<u8, Instant>>);

impl Changes {
    /// Whether the lead may be handed on now; then it counts as done.
    fn may_change(&self, shard: u8, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = last.get(&shard).is_none_or(|at| now.duration_since(*at) >= EVERY);
        if free {
            last.insert(shard, now);
        }
        free
    }
}

impl Engine {
    /// Notes that an operation on a recipient's stream failed.
    pub(super) async fn failed_on(&self, recipient: &Fingerprint, error: &str) -> StoreFailed {
        let shard = layout::shard(recipient);
        if error.contains(UNREADABLE) && self.changes.may_change(shard, Instant::now()) {
            let stream = layout::mail_stream(shard);
            let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}");
            let asked = self.client.request(subject, "".into()).await;
            tracing::warn!(
                stream,
                answered = asked.is_ok(),
                "the leader of a stream cannot read it: another one is asked for"
            );
        }
        failed(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lead_changes_at_most_every_five_seconds() {
        let (changes, start) = (Changes::default(), Instant::now());
        assert!(changes.may_change(1, start) && changes.may_change(2, start));
        assert!(!changes.may_change(1, start + EVERY / 2));
        assert!(changes.may_change(1, start + EVERY));
    }
}
