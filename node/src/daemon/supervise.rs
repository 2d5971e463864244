//! Keeps the node's long-running tasks alive (`agent-core.md` §4.1): a task that panics or ends early is started
//! again after 1 s doubling to 60 s; after three panics in five minutes it stays down and the node says so.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use instar_state::ports::SharedNotices;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
const PANIC_WINDOW: Duration = Duration::from_mins(5);
const PANIC_LIMIT: usize = 3;

/// What to do with a task that ended although nobody stopped it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    RestartAfter(Duration),
    StayDown,
}

/// Memory of one task's failures.
#[derive(Debug, Default)]
struct Record {
    panics: Vec<Instant>,
    streak: u32,
    started: Option<Instant>,
}

impl Record {
    fn ended(&mut self, panicked: bool, now: Instant) -> Verdict {
        if self.started.is_some_and(|at| now.duration_since(at) >= LONGEST_PAUSE) {
            self.streak = 0;
        }
        if panicked {
            self.panics.retain(|at| now.duration_since(*at) < PANIC_WINDOW);
            self.panics.push(now);
            if self.panics.len() >= PANIC_LIMIT {
                return Verdict::StayDown;
            }
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.streak.min(6)).min(LONGEST_PAUSE);
        self.streak += 1;
        Verdict::RestartAfter(pause)
    }
}

/// Owner of all supervised tasks.
#[derive(Clone)]
pub(crate) struct Supervisor {
    stop: CancellationToken,
    tracker: TaskTracker,
    notices: SharedNotices,
    // Written by the tasks' runners, read for `/status`; never held across an await.
    states: Arc<Mutex<BTreeMap<&'static str, Value>>>,
}

impl Supervisor {
    pub(crate) fn new(stop: CancellationToken, notices: SharedNotices) -> Self {
        Self { stop, tracker: TaskTracker::new(), notices, states: Arc::default() }
    }

    /// Runs `start()` as task `name` until the node stops. The future is expected to end only after its token is
    /// cancelled.
    pub(crate) fn run<F, Fut>(&self, name: &'static str, start: F)
    where
        F: Fn(CancellationToken) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let this = self.clone();
        self.tracker.spawn(async move { this.keep(name, start).await });
    }

    /// Runs a task that cannot be started a second time, such as a listener. Its end before the stop is a
    /// degradation.
    pub(crate) fn once(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let this = self.clone();
        self.note(name, "running", "");
        self.tracker.spawn(async move {
            let panicked = tokio::spawn(task).await.is_err();
            let (state, detail) = match (this.stop.is_cancelled(), panicked) {
                (true, _) => ("stopped", ""),
                (false, true) => ("failed", "panicked"),
                (false, false) => ("failed", "ended unexpectedly"),
            };
            this.note(name, state, detail);
            if state == "failed" {
                tracing::error!(task = name, detail, "task is down");
                this.notices.degrade(&format!("task_{name}"), &format!("{name} {detail} and stays down"));
            }
        });
    }

    async fn keep<F, Fut>(&self, name: &'static str, start: F)
    where
        F: Fn(CancellationToken) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let mut record = Record::default();
        loop {
            record.started = Some(Instant::now());
            self.note(name, "running", "");
            let outcome = tokio::spawn(start(self.stop.clone())).await;
            if self.stop.is_cancelled() {
                self.note(name, "stopped", "");
                return;
            }
            let panicked = outcome.as_ref().is_err_and(tokio::task::JoinError::is_panic);
            let code = format!("task_{name}");
            match record.ended(panicked, Instant::now()) {
                Verdict::StayDown => {
                    tracing::error!(task = name, "three panics in five minutes, the task stays down");
                    self.notices
                        .degrade(&code, &format!("{name} failed three times in five minutes and stays down"));
                    self.note(name, "failed", "three panics in five minutes");
                    return;
                }
                Verdict::RestartAfter(pause) => {
                    tracing::error!(
                        task = name,
                        panicked,
                        pause_ms = pause.as_millis() as u64,
                        "task ended, restarting"
                    );
                    self.notices.degrade(&code, &format!("{name} ended unexpectedly and is started again"));
                    self.note(name, "restarting", "ended unexpectedly");
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    self.notices.resolve(&code);
                }
            }
        }
    }

    fn note(&self, name: &'static str, state: &str, detail: &str) {
        let since = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let row = json!({"id": name, "state": state, "since": since, "detail": detail});
        self.states.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(name, row);
    }

    /// Every task with its state.
    pub(crate) fn states(&self) -> Vec<Value> {
        let states = self.states.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        states.values().cloned().collect()
    }

    /// Waits until all tasks have ended, for at most `patience`. Returns whether they did.
    pub(crate) async fn finish(&self, patience: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(patience, self.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_a_minute_of_life_forgives() {
        let start = Instant::now();
        let mut record = Record { started: Some(start), ..Record::default() };
        let pauses: Vec<Verdict> = (0..8).map(|_| record.ended(false, start)).collect();
        let seconds = [1, 2, 4, 8, 16, 32, 60, 60].map(|s| Verdict::RestartAfter(Duration::from_secs(s)));
        assert_eq!(pauses, seconds);
        assert_eq!(record.ended(false, start + LONGEST_PAUSE), Verdict::RestartAfter(FIRST_PAUSE));
    }

    #[test]
    fn the_third_panic_in_five_minutes_is_the_last() {
        let start = Instant::now();
        let mut record = Record { started: Some(start), ..Record::default() };
        assert_ne!(record.ended(true, start), Verdict::StayDown);
        assert_ne!(record.ended(true, start + Duration::from_secs(100)), Verdict::StayDown);
        assert_ne!(record.ended(true, start + Duration::from_secs(301)), Verdict::StayDown);
        assert_eq!(record.ended(true, start + Duration::from_secs(302)), Verdict::StayDown);
    }
}
