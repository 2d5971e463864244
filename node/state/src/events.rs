//! What happens in the node, for the event stream and the activity log.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use instar_durable::{JsonlError, JsonlFile};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::broadcast;

use crate::time::{now_ms, rfc3339};

/// One event. Holds ids and states, never texts of people or peers.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEvent {
    /// Grows by one with every event of this boot.
    pub id: u64,
    /// RFC 3339 time.
    pub at: String,
    /// Kebab-case name, for example `session-started`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Facts.
    pub data: Value,
}

/// Events kept for readers that come back.
const KEPT: usize = 1000;

/// Hands every event to all readers; cheap to clone.
///
/// A reader that falls more than 1,000 events behind is told how many it missed
/// ([`broadcast::error::RecvError::Lagged`]); publishers never wait.
#[derive(Debug, Clone)]
pub struct EventBus {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    sender: broadcast::Sender<Arc<NodeEvent>>,
    // Never held across an await: publishing is synchronous.
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    last_id: u64,
    events: VecDeque<Arc<NodeEvent>>,
}

impl Default for EventBus {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                sender: broadcast::Sender::new(KEPT),
                recent: Mutex::new(Recent::default()),
            }),
        }
    }
}

impl EventBus {
    /// Publishes an event and returns its id.
    pub fn publish(&self, kind: impl Into<String>, data: Value) -> u64 {
        let mut recent = self.shared.recent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        recent.last_id += 1;
        let event =
            Arc::new(NodeEvent { id: recent.last_id, at: rfc3339(now_ms()), kind: kind.into(), data });
        if recent.events.len() == KEPT {
            recent.events.pop_front();
        }
        recent.events.push_back(Arc::clone(&event));
        // Sent under the lock, so that readers see ids in order. Nobody listening is fine.
        let _ = self.shared.sender.send(event);
        recent.last_id
    }

    /// All events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<NodeEvent>> {
        self.shared.sender.subscribe()
    }

    /// Kept events with an id above `after`, oldest first, and all events that follow them.
    pub fn subscribe_after(&self, after: u64) -> (Vec<Arc<NodeEvent>>, broadcast::Receiver<Arc<NodeEvent>>) {
        let recent = self.shared.recent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let events = recent.events.iter().filter(|e| e.id > after).cloned().collect();
        (events, self.shared.sender.subscribe())
    }

    /// The newest kept events, oldest first.
    pub fn recent(&self, limit: usize) -> Vec<Arc<NodeEvent>> {
        let recent = self.shared.recent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        recent.events.iter().skip(recent.events.len().saturating_sub(limit)).cloned().collect()
    }
}

/// Writes events to `logs/activity-YYYY-MM-DD.jsonl`, one file a day.
#[derive(Debug)]
pub struct ActivityLog {
    dir: PathBuf,
    day: String,
    file: JsonlFile,
}

impl ActivityLog {
    /// Opens the file of today.
    pub fn open(dir: &Path) -> Result<Self, JsonlError> {
        let day = today();
        let file = JsonlFile::open(&dir.join(format!("activity-{day}.jsonl")))?;
        Ok(Self { dir: dir.to_owned(), day, file })
    }

    /// Appends one event, to a new file when the day has changed.
    pub fn append(&mut self, event: &NodeEvent) -> Result<(), JsonlError> {
        let day = today();
        if day != self.day {
            self.file = JsonlFile::open(&self.dir.join(format!("activity-{day}.jsonl")))?;
            self.day = day;
        }
        self.file.append(event)
    }
}

fn today() -> String {
    rfc3339(now_ms()).chars().take(10).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_that_comes_back_misses_nothing_that_is_kept() {
        let bus = EventBus::default();
        for n in 0..(KEPT + 10) {
            bus.publish("tick", n.into());
        }
        let (missed, mut live) = bus.subscribe_after((KEPT + 7) as u64);
        assert_eq!(missed.iter().map(|e| e.id).collect::<Vec<_>>(), [1008, 1009, 1010]);
        bus.publish("tick", Value::Null);
        assert_eq!(live.recv().await.expect("event").id, 1011);
        assert_eq!(bus.recent(2).iter().map(|e| e.id).collect::<Vec<_>>(), [1010, 1011]);
    }
}
