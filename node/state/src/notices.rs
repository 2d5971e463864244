//! What the owner should know: notices and degradations, kept in memory and published as events.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::json;

use crate::events::EventBus;
use crate::ports::{Notice, Notices};
use crate::time::{now_ms, rfc3339};

/// A notice with its count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NoticeEntry {
    /// The newest wording.
    #[serde(flatten)]
    pub notice: Notice,
    /// How often the cause occurred.
    pub count: u64,
    /// First time, RFC 3339.
    pub first_at: String,
    /// Last time, RFC 3339.
    pub last_at: String,
}

/// A feature that does not work as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Degradation {
    /// Stable name, for example `runtime_missing`.
    pub code: String,
    /// One sentence.
    pub reason: String,
    /// How often it was raised while open.
    pub count: u64,
    /// When it was opened, RFC 3339.
    pub first_at: String,
    /// When it was last raised, RFC 3339.
    pub last_at: String,
}

/// Registry of notices and open degradations of one node.
#[derive(Debug)]
pub struct NoticeBoard {
    events: EventBus,
    // Never held across an await: every method is synchronous.
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    notices: BTreeMap<String, NoticeEntry>,
    degradations: BTreeMap<String, Degradation>,
}

/// Causes that are kept; the one not seen for longest goes first.
const MAX_NOTICES: usize = 500;

impl NoticeBoard {
    /// An empty board that publishes on `events`.
    pub fn new(events: EventBus) -> Self {
        Self { events, entries: Mutex::default() }
    }

    /// All notices, newest first.
    pub fn notices(&self) -> Vec<NoticeEntry> {
        let mut list: Vec<_> = self.lock().notices.values().cloned().collect();
        list.sort_by(|a, b| b.last_at.cmp(&a.last_at));
        list
    }

    /// Open degradations, newest first.
    pub fn degradations(&self) -> Vec<Degradation> {
        let mut list: Vec<_> = self.lock().degradations.values().cloned().collect();
        list.sort_by(|a, b| b.last_at.cmp(&a.last_at));
        list
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notices for NoticeBoard {
    fn notify(&self, notice: Notice) {
        let now = rfc3339(now_ms());
        let mut entries = self.lock();
        let first = !entries.notices.contains_key(&notice.cause);
        if first && entries.notices.len() >= MAX_NOTICES {
            let oldest = entries.notices.values().min_by(|a, b| a.last_at.cmp(&b.last_at));
            if let Some(cause) = oldest.map(|e| e.notice.cause.clone()) {
                entries.notices.remove(&cause);
            }
        }
        let entry = entries.notices.entry(notice.cause.clone()).or_insert_with(|| NoticeEntry {
            notice: notice.clone(),
            count: 0,
            first_at: now.clone(),
            last_at: now.clone(),
        });
        entry.count += 1;
        entry.last_at = now;
        entry.notice = notice.clone();
        drop(entries);
        if first {
            tracing::warn!(cause = notice.cause, urgent = notice.urgent, text = notice.text, "notice");
            self.events.publish("notice", json!(notice));
        }
    }

    fn degrade(&self, code: &str, reason: &str) {
        let now = rfc3339(now_ms());
        let mut entries = self.lock();
        let opened = !entries.degradations.contains_key(code);
        let entry = entries.degradations.entry(code.to_owned()).or_insert_with(|| Degradation {
            code: code.to_owned(),
            reason: String::new(),
            count: 0,
            first_at: now.clone(),
            last_at: now.clone(),
        });
        entry.count += 1;
        entry.last_at = now;
        reason.clone_into(&mut entry.reason);
        drop(entries);
        if opened {
            tracing::warn!(code, reason, "degraded");
            self.events.publish("degradation", json!({"code": code, "reason": reason}));
        }
    }

    fn resolve(&self, code: &str) {
        if self.lock().degradations.remove(code).is_some() {
            tracing::info!(code, "degradation resolved");
            self.events.publish("degradation-resolved", json!({"code": code}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_notice_per_cause_and_one_event() {
        let bus = EventBus::default();
        let board = NoticeBoard::new(bus.clone());
        for _ in 0..3 {
            board.notify(Notice { cause: "disk".into(), text: "The disk is full.".into(), urgent: true });
        }
        assert_eq!(board.notices().len(), 1);
        assert_eq!(board.notices()[0].count, 3);
        assert_eq!(bus.recent(10).len(), 1);
    }

    #[test]
    fn a_degradation_opens_counts_and_closes() {
        let bus = EventBus::default();
        let board = NoticeBoard::new(bus.clone());
        board.degrade("runtime_missing", "claude was not found");
        board.degrade("runtime_missing", "claude was not found in PATH");
        assert_eq!(board.degradations()[0].count, 2);
        assert_eq!(board.degradations()[0].reason, "claude was not found in PATH");
        board.resolve("runtime_missing");
        board.resolve("runtime_missing");
        assert!(board.degradations().is_empty());
        let kinds: Vec<_> = bus.recent(10).iter().map(|e| e.kind.clone()).collect();
        assert_eq!(kinds, ["degradation", "degradation-resolved"]);
    }

    #[test]
    fn causes_are_bounded() {
        let board = NoticeBoard::new(EventBus::default());
        for n in 0..=MAX_NOTICES {
            board.notify(Notice { cause: format!("c{n}"), text: String::new(), urgent: false });
        }
        assert_eq!(board.notices().len(), MAX_NOTICES);
    }
}
