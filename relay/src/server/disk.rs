//! Whether there is room for more mail.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::config::RelayConfig;
use crate::core::Event;

const EVERY: Duration = Duration::from_secs(2);
/// Room that is kept for confirmations, which free space but must be written first.
const RESERVE: u64 = 8 << 20;

/// Tells the core when the disk fills up and when it has room again.
pub(super) async fn watch(shared: Arc<Shared>, stop: CancellationToken) {
    let mut open = true;
    loop {
        let config = Arc::clone(&shared.config);
        let now = tokio::task::spawn_blocking(move || has_room(&config)).await.unwrap_or(true);
        if now != open {
            open = now;
            tracing::warn!(open, "custody changed: the data disk is at its limit, or has room again");
            shared.driver.event(Event::Custody { open }).await;
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn has_room(config: &RelayConfig) -> bool {
    let used: u64 = ["queue.db", "queue.db-wal"].iter().map(|name| size(&config.data_dir.join(name))).sum();
    let Ok(disk) = rustix::fs::statvfs(&config.data_dir) else { return true };
    let total = disk.f_blocks.saturating_mul(disk.f_frsize);
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let most = config.queue.max_bytes.min(total / 100 * u64::from(config.queue.disk_percent));
    used < most && free >= RESERVE.min(total / 10)
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}
