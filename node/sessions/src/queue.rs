//! Sessions that wait for a slot: the order of who goes first, and the file that keeps them
//! (`agent-core.md` §6.13).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use instar_durable::{AtomicWriteError, write_atomic};
use instar_state::ids::SessionId;
use serde::{Deserialize, Serialize};

use crate::record::Priority;
use crate::slots::Class;
use crate::spawn::SpawnRequest;

/// Requests that may wait at once.
pub const MAX_WAITING: usize = 100;
/// Bytes that their prompts may have together.
pub const MAX_WAITING_BYTES: usize = 8 * 1024 * 1024;
/// Waiting time that raises a request by one level.
const LEVEL_MS: i64 = 30 * 60_000;

/// A session that waits for a slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// Id that the session will have.
    pub id: SessionId,
    /// When it was asked for, Unix milliseconds.
    pub queued_at: i64,
    /// What was asked for.
    pub request: SpawnRequest,
}

impl Waiting {
    /// Level in the order after having waited until `now`.
    pub fn level(&self, now: i64) -> Priority {
        let raised = (now - self.queued_at).max(0) / LEVEL_MS;
        (0..raised.min(4)).fold(self.request.priority, |level, _| level.raised())
    }

    /// Who the slot will be counted for.
    pub fn class(&self) -> Class {
        Class::of(self.request.priority, self.request.peer.is_some())
    }
}

/// Why a request cannot wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CannotWait {
    /// Too many wait already.
    Full,
    /// One with the same name waits.
    NameInUse,
}

/// The waiting sessions; the file `state/spawn-queue.json`.
#[derive(Debug)]
pub(crate) struct SpawnQueue {
    path: PathBuf,
    waiting: Vec<Waiting>,
    /// The one that is being started.
    starting: Option<SessionId>,
    /// Those that failed for a passing reason, with the Unix millisecond of the next try.
    not_before: HashMap<SessionId, i64>,
}

impl SpawnQueue {
    /// Reads the file. An unreadable one is set aside; its new name is the second value.
    pub(crate) fn open(path: &Path, now: i64) -> io::Result<(Self, Option<PathBuf>)> {
        let (waiting, aside) = match fs::read(path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(waiting) => (waiting, None),
                Err(error) => {
                    tracing::warn!(%error, "spawn queue was unreadable");
                    (Vec::new(), Some(instar_durable::set_aside(path, now)?))
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), None),
            Err(error) => return Err(error),
        };
        let queue = Self { path: path.to_owned(), waiting, starting: None, not_before: HashMap::new() };
        Ok((queue, aside))
    }

    /// What has to be written, and where.
    pub(crate) fn file(&self) -> (PathBuf, Vec<Waiting>) {
        (self.path.clone(), self.waiting.clone())
    }

    /// Adds a request; nothing is on disk yet.
    pub(crate) fn push(&mut self, waiting: Waiting) -> Result<(), CannotWait> {
        let size = |w: &Waiting| w.request.prompt.as_ref().map_or(0, String::len);
        let bytes: usize = self.waiting.iter().map(size).sum();
        if self.waiting.len() >= MAX_WAITING || bytes + size(&waiting) > MAX_WAITING_BYTES {
            return Err(CannotWait::Full);
        }
        let unbound = |w: &Waiting| w.request.conversation.is_none();
        let same = |w: &Waiting| unbound(w) && w.request.name == waiting.request.name;
        if unbound(&waiting) && self.waiting.iter().any(same) {
            return Err(CannotWait::NameInUse);
        }
        self.waiting.push(waiting);
        Ok(())
    }

    /// All that wait, in order.
    pub(crate) fn in_order(&self, now: i64) -> Vec<Waiting> {
        let mut waiting: Vec<Waiting> =
            self.waiting.iter().filter(|w| self.starting != Some(w.id)).cloned().collect();
        waiting.sort_by_key(|w| (std::cmp::Reverse(w.level(now)), w.queued_at, w.id));
        waiting
    }

    /// Place of a request, from 1.
    pub(crate) fn position(&self, id: SessionId, now: i64) -> Option<usize> {
        self.in_order(now).iter().position(|w| w.id == id).map(|place| place + 1)
    }

    /// Whether someone of the same class waits who must not be overtaken by a new request of this priority.
    pub(crate) fn is_ahead(&self, class: Class, priority: Priority, now: i64) -> bool {
        self.waiting.iter().any(|w| w.class() == class && w.level(now) >= priority && self.is_due(w, now))
    }

    /// Takes the first that may start now; it stays stored until [`SpawnQueue::remove`].
    pub(crate) fn begin(&mut self, now: i64, may: impl Fn(Class) -> bool) -> Option<Waiting> {
        let due = self.in_order(now).into_iter().find(|w| self.is_due(w, now) && may(w.class()))?;
        self.starting = Some(due.id);
        Some(due)
    }

    /// Puts the one that was begun back, until `not_before`.
    pub(crate) fn put_back(&mut self, id: SessionId, not_before: i64) {
        self.starting = None;
        self.not_before.insert(id, not_before);
    }

    /// Removes a request that was started, or one that is not wanted any more.
    pub(crate) fn remove(&mut self, id: SessionId) {
        self.starting = self.starting.filter(|starting| *starting != id);
        self.not_before.remove(&id);
        self.waiting.retain(|w| w.id != id);
    }

    /// Removes a waiting request, unless it is being started.
    pub(crate) fn cancel(&mut self, id: SessionId) -> Option<Waiting> {
        let cancelled = self.in_order(0).into_iter().find(|w| w.id == id)?;
        self.remove(id);
        Some(cancelled)
    }

    /// Removes those that were started before the node ended.
    pub(crate) fn forget_started(&mut self, started: impl Fn(SessionId) -> bool) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|w| !started(w.id));
        self.waiting.len() != before
    }

    fn is_due(&self, waiting: &Waiting, now: i64) -> bool {
        self.not_before.get(&waiting.id).is_none_or(|at| *at <= now)
    }
}

/// Writes the queue's file.
pub(crate) fn write(path: &Path, waiting: &[Waiting]) -> Result<(), AtomicWriteError> {
    write_atomic(path, &serde_json::to_vec_pretty(waiting).unwrap_or_default(), 0o600)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::SessionKind;

    fn queue() -> SpawnQueue {
        let dir = tempfile::tempdir().expect("dir");
        SpawnQueue::open(&dir.path().join("spawn-queue.json"), 0).expect("open").0
    }

    fn waiting(name: &str, priority: Priority, queued_at: i64) -> Waiting {
        let request = SpawnRequest { priority, ..SpawnRequest::new(name, SessionKind::AdHoc) };
        Waiting { id: SessionId::random(), queued_at, request }
    }

    fn names(queue: &SpawnQueue, now: i64) -> Vec<String> {
        queue.in_order(now).into_iter().map(|w| w.request.name).collect()
    }

    #[test]
    fn priority_goes_first_then_age_and_waiting_raises() {
        let mut queue = queue();
        for (name, priority, at) in [
            ("old-low", Priority::Low, 0),
            ("medium", Priority::Medium, 1_000),
            ("later-medium", Priority::Medium, 2_000),
            ("human", Priority::Human, 3_000),
        ] {
            queue.push(waiting(name, priority, at)).expect("room");
        }
        assert_eq!(names(&queue, 3_000), ["human", "medium", "later-medium", "old-low"]);
        assert_eq!(names(&queue, LEVEL_MS), ["human", "old-low", "medium", "later-medium"]);
        assert_eq!(names(&queue, 10 * LEVEL_MS), ["old-low", "medium", "later-medium", "human"]);
    }

    #[test]
    fn a_full_class_does_not_hold_up_the_other() {
        let mut queue = queue();
        queue.push(waiting("robot", Priority::High, 0)).expect("room");
        queue.push(waiting("ann", Priority::Human, 1)).expect("room");
        let first = queue.begin(2, |class| class == Class::Autonomous).expect("one");
        assert_eq!(first.request.name, "robot");
        assert_eq!(names(&queue, 2), ["ann"]);
        assert!(queue.cancel(first.id).is_none(), "it is being started");
        queue.put_back(first.id, 100);
        assert!(queue.begin(99, |class| class == Class::Autonomous).is_none());
        assert!(!queue.is_ahead(Class::Autonomous, Priority::Low, 99));
        assert!(queue.is_ahead(Class::Autonomous, Priority::High, 100));
        assert!(queue.cancel(first.id).is_some());
    }

    #[test]
    fn a_name_waits_once_and_room_is_limited() {
        let mut queue = queue();
        queue.push(waiting("a", Priority::Low, 0)).expect("room");
        assert_eq!(queue.push(waiting("a", Priority::Low, 0)), Err(CannotWait::NameInUse));
        let mut large = waiting("large", Priority::Low, 0);
        large.request.prompt = Some("x".repeat(MAX_WAITING_BYTES + 1));
        assert_eq!(queue.push(large), Err(CannotWait::Full));
        for n in 1..MAX_WAITING {
            queue.push(waiting(&format!("n{n}"), Priority::Low, 0)).expect("room");
        }
        assert_eq!(queue.push(waiting("last", Priority::Low, 0)), Err(CannotWait::Full));
    }

    #[test]
    fn what_was_written_is_read_and_rubbish_is_set_aside() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("spawn-queue.json");
        let one = waiting("one", Priority::Human, 5);
        write(&path, std::slice::from_ref(&one)).expect("written");
        assert_eq!(SpawnQueue::open(&path, 9).expect("open").0.in_order(9), [one]);
        fs::write(&path, "{").expect("write");
        let (queue, aside) = SpawnQueue::open(&path, 9).expect("open");
        assert!(queue.in_order(9).is_empty() && aside.is_some_and(|path| path.exists()));
    }

    proptest! {
        #[test]
        fn everyone_gets_to_the_front(priorities in prop::collection::vec(0u8..5, 1..30)) {
            let mut queue = queue();
            for (n, priority) in priorities.iter().enumerate() {
                let priority = (0..*priority).fold(Priority::Low, |level, _| level.raised());
                queue.push(waiting(&n.to_string(), priority, i64::try_from(n).expect("small"))).expect("room");
            }
            // After two hours all have the highest level, so that age alone decides.
            let order: Vec<usize> =
                names(&queue, 4 * LEVEL_MS + 30).iter().map(|n| n.parse().expect("number")).collect();
            prop_assert!(order.is_sorted());
        }
    }
}
