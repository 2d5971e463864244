//! Whether there is room for more mail.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::core::Event;

const EVERY: Duration = Duration::from_secs(2);
/// Room that is kept for confirmations, which free space but must be written first.
const RESERVE: u64 = 16 << 20;

/// Tells the core when the disk fills up and when it has room again. Looks again every two seconds and after each
/// mebibyte of new mail.
pub(super) async fn watch(shared: Arc<Shared>, stop: CancellationToken) {
    let mut open = true;
    loop {
        let now = has_room(&shared);
        if now != open {
            open = now;
            tracing::warn!(open, "custody changed: the data disk is at its limit, or has room again");
            shared.driver.event(Event::Custody { open }).await;
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shared.grown.notified() => {}
            () = stop.cancelled() => return,
        }
    }
}

fn has_room(shared: &Shared) -> bool {
    let Ok(disk) = rustix::fs::statvfs(&shared.config.data_dir) else { return true };
    let rules = &shared.config.queue;
    let total = disk.f_blocks.saturating_mul(disk.f_frsize);
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let most = rules.max_bytes.min(total / 100 * u64::from(rules.disk_percent));
    shared.queue_bytes.load(Ordering::Relaxed) < most && free >= RESERVE.min(total / 4)
}
