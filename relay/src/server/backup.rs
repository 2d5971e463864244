//! Online copies of the directory and the keys.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use instar_durable::DatabaseError;
use rusqlite::Connection;
use rusqlite::backup::Backup;

use super::Shared;

/// Copies that are kept.
const KEPT: usize = 7;
/// Without these a copy of the directory is of no use. The queue is not copied: what is in it is sent again.
const KEYS: [&str; 4] = ["queue.key", "relay-signing-key.json", "source.key", "bridge-key.json"];

/// Copies to `<data>/backup/<time>/` and removes the oldest copies. Returns the folder.
pub(super) async fn run(shared: Arc<Shared>) -> Result<PathBuf, String> {
    let stamp = threadline::time::iso_ms(shared.clock.now_ms()).replace(':', "-");
    let root = shared.config.data_dir.join("backup");
    let folder = root.join(stamp);
    instar_durable::create_dir_private(&root).map_err(|e| e.to_string())?;
    instar_durable::create_dir_private(&folder).map_err(|e| e.to_string())?;
    let target = folder.join("registry.db");
    let copied = shared.registry.read(move |c| Ok::<_, DatabaseError>(copy(c, &target))).await;
    copied.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    let (data_dir, done) = (shared.config.data_dir.clone(), folder.clone());
    let files = tokio::task::spawn_blocking(move || {
        copy_keys(&data_dir, &done)?;
        remove_old(&root)
    });
    files.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    Ok(folder)
}

fn copy(source: &Connection, target: &Path) -> rusqlite::Result<()> {
    let mut copy = Connection::open(target)?;
    // Small steps with pauses: searches go on.
    Backup::new(source, &mut copy)?.run_to_completion(256, Duration::from_millis(5), None)
}

fn copy_keys(data_dir: &Path, folder: &Path) -> std::io::Result<()> {
    for name in KEYS {
        match std::fs::read(data_dir.join(name)) {
            Ok(bytes) => instar_durable::write_atomic(&folder.join(name), &bytes, 0o600)
                .map_err(|e| std::io::Error::other(e.to_string()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn remove_old(root: &Path) -> std::io::Result<()> {
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(root)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    for old in folders.iter().take(folders.len().saturating_sub(KEPT)) {
        std::fs::remove_dir_all(old)?;
    }
    Ok(())
}
