//! Whether there is room for more mail.

use std::sync::Arc;
use std::time::Duration;

use instar_durable::DatabaseError;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::core::Event;

const EVERY: Duration = Duration::from_secs(2);
/// Room that is kept for confirmations, which free space but must be written first.
const RESERVE: u64 = 16 << 20;

/// Bytes that the queue uses and bytes inside its file that are free again.
struct Pages {
    used: u64,
    spare: u64,
}

/// Tells the core when the disk fills up and when it has room again. Looks again every two seconds and after each
/// mebibyte of new mail.
pub(super) async fn watch(shared: Arc<Shared>, stop: CancellationToken) {
    let mut open = true;
    loop {
        let now = has_room(&shared).await;
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

async fn has_room(shared: &Shared) -> bool {
    let pages = shared
        .queue
        .read(|c| -> Result<Pages, DatabaseError> {
            let pragma = |name| c.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
            let (size, all, free) = (pragma("page_size")?, pragma("page_count")?, pragma("freelist_count")?);
            let bytes = |pages: i64| u64::try_from(pages.saturating_mul(size)).unwrap_or(0);
            Ok(Pages { used: bytes(all - free), spare: bytes(free) })
        })
        .await;
    let (Ok(pages), Ok(disk)) = (pages, rustix::fs::statvfs(&shared.config.data_dir)) else { return true };
    let rules = &shared.config.queue;
    let total = disk.f_blocks.saturating_mul(disk.f_frsize);
    let free = disk.f_bavail.saturating_mul(disk.f_frsize) + pages.spare;
    let most = rules.max_bytes.min(total / 100 * u64::from(rules.disk_percent));
    pages.used < most && free >= RESERVE.min(total / 4)
}
