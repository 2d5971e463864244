//! Which stream a delivery goes over: what one sender says in one thread keeps to one stream, so that threads do not
//! wait for each other and each stays in order.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// A stream without messages ends after this.
const IDLE: Duration = Duration::from_mins(1);
/// Threads that have a stream of their own; the client lets 64 streams in.
const OWN: usize = 60;

/// A sender and a tag of a thread.
pub(super) type Thread = ([u8; 16], [u8; 8]);

/// Streams of deliveries that are open, and which of them a thread keeps to.
pub(super) struct Deliveries<S> {
    own: HashMap<Thread, (S, Instant)>,
    /// Shared by the threads that came when there was no stream left. While it is open every new thread takes it:
    /// none of them may change over while something of it is still under way.
    shared: Option<(S, Instant)>,
}

/// Where a delivery goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The stream of its thread.
    Own(Thread),
    /// The one for all others.
    Shared,
}

impl<S> Default for Deliveries<S> {
    fn default() -> Self {
        Self { own: HashMap::new(), shared: None }
    }
}

impl<S> Deliveries<S> {
    /// Where a delivery of this thread goes.
    pub(super) fn place(&self, thread: Thread) -> Place {
        let owns = self.own.contains_key(&thread);
        if owns || (self.shared.is_none() && self.own.len() < OWN) {
            Place::Own(thread)
        } else {
            Place::Shared
        }
    }

    /// The open stream of a place, which is used now.
    pub(super) fn stream(&mut self, place: Place, now: Instant) -> Option<&mut S> {
        let (stream, used) = match place {
            Place::Own(thread) => self.own.get_mut(&thread)?,
            Place::Shared => self.shared.as_mut()?,
        };
        *used = now;
        Some(stream)
    }

    /// A stream was opened for a place.
    pub(super) fn opened(&mut self, place: Place, stream: S, now: Instant) {
        match place {
            Place::Own(thread) => drop(self.own.insert(thread, (stream, now))),
            Place::Shared => self.shared = Some((stream, now)),
        }
    }

    /// Forgets the stream of a place.
    pub(super) fn lost(&mut self, place: Place) {
        match place {
            Place::Own(thread) => drop(self.own.remove(&thread)),
            Place::Shared => self.shared = None,
        }
    }

    /// When the next one has been idle for long enough.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        let used = self.own.values().chain(&self.shared).map(|(_, used)| *used).min();
        used.map(|used| used + IDLE)
    }

    /// Takes out what is idle.
    pub(super) fn take_idle(&mut self, now: Instant) -> Vec<S> {
        let is_idle = |used: Instant| now.saturating_duration_since(used) >= IDLE;
        let own = self.own.extract_if(|_, (_, used)| is_idle(*used)).map(|(_, (stream, _))| stream);
        let mut idle: Vec<S> = own.collect();
        idle.extend(self.shared.take_if(|(_, used)| is_idle(*used)).map(|(stream, _)| stream));
        idle
    }

    /// Takes out all streams.
    pub(super) fn take_all(&mut self) -> Vec<S> {
        let own = self.own.drain().map(|(_, (stream, _))| stream);
        own.chain(self.shared.take().map(|(stream, _)| stream)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn thread(n: u8) -> Thread {
        ([n; 16], [n; 8])
    }

    fn deliver(deliveries: &mut Deliveries<u32>, thread: Thread, next: &mut u32, now: Instant) -> u32 {
        let place = deliveries.place(thread);
        if let Some(stream) = deliveries.stream(place, now) {
            return *stream;
        }
        *next += 1;
        deliveries.opened(place, *next, now);
        *next
    }

    #[test]
    fn threads_have_their_own_stream_until_there_is_none_left() {
        let (mut deliveries, mut next, start) = (Deliveries::default(), 0, Instant::now());
        for n in 0..OWN as u8 {
            assert_eq!(deliver(&mut deliveries, thread(n), &mut next, start), u32::from(n) + 1);
        }
        let late = start + IDLE / 2;
        let shared = deliver(&mut deliveries, thread(100), &mut next, late);
        assert_eq!(deliver(&mut deliveries, thread(101), &mut next, late), shared);
        assert_eq!(deliver(&mut deliveries, thread(3), &mut next, late), 4, "others keep theirs");
        assert_eq!(deliveries.idle_at(), Some(start + IDLE));
        assert_eq!(deliveries.take_idle(start + IDLE).len(), OWN - 1);
        assert_eq!(deliver(&mut deliveries, thread(102), &mut next, start + IDLE), shared);
        assert_eq!(deliveries.take_idle(start + 3 * IDLE).len(), 2);
        assert!(deliver(&mut deliveries, thread(101), &mut next, start + 3 * IDLE) > shared);
        assert_eq!(deliveries.take_all().len(), 1);
    }

    proptest! {
        /// A thread changes its stream only when the one before was idle.
        #[test]
        fn a_thread_stays_in_order(steps in proptest::collection::vec((0_u8..90, 0_u64..5), 1..400)) {
            let (mut deliveries, mut next, mut now) = (Deliveries::default(), 0, Instant::now());
            let mut last: HashMap<Thread, (u32, Instant)> = HashMap::new();
            for (n, seconds) in steps {
                now += Duration::from_secs(seconds);
                deliveries.take_idle(now);
                let stream = deliver(&mut deliveries, thread(n), &mut next, now);
                if let Some((before, at)) = last.insert(thread(n), (stream, now)) {
                    prop_assert!(before == stream || now - at >= IDLE);
                }
            }
        }
    }
}
