//! Unix time that never goes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Time for the core: runs on when the system clock is set back, follows when it is set forward or the machine slept.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    started: Instant,
    /// Unix milliseconds at `started`.
    base_ms: Arc<AtomicI64>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), base_ms: Arc::new(AtomicI64::new(system_ms())) }
    }

    pub(super) fn now_ms(&self) -> i64 {
        let elapsed = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        let base = system_ms().saturating_sub(elapsed);
        self.base_ms.fetch_max(base, Ordering::Relaxed).max(base).saturating_add(elapsed)
    }

    /// Whole seconds since the start.
    pub(super) fn uptime_s(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

fn system_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
