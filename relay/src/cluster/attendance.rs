//! Who is shown as online in the directory: who has a session on a relay that lives. A relay that crashes takes nobody
//! off the list, and one that was cut off may take off too many.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use instar_durable::{Database, DatabaseError};
use rusqlite::Connection;
use threadline::Fingerprint;

use super::engine::{Engine, note, now_ms};

/// How often the list is compared with the claims.
const EVERY: Duration = Duration::from_secs(5);

impl Engine {
    /// Sees to it that the directory shows as online who has a session, and nobody else.
    pub async fn attend(self: Arc<Self>) {
        let mut absent = HashSet::new();
        loop {
            tokio::time::sleep(EVERY).await;
            // Who cannot be heard of may well be there.
            if !self.takes_writes() {
                absent.clear();
                continue;
            }
            if let Err(error) = self.compare_attendance(&self.registry, &mut absent).await {
                note(&error);
            }
        }
    }

    /// `absent` are those who were shown without a session the last time, too: the news of a login and those of its row
    /// come on different ways.
    async fn compare_attendance(
        &self,
        registry: &Database,
        absent: &mut HashSet<[u8; 32]>,
    ) -> Result<(), DatabaseError> {
        let here = self.sessions.listed();
        let shown = registry.read(|c| shown(c).map_err(DatabaseError::from)).await?;
        let alone = shown.iter().filter(|key| {
            let address = key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes));
            address.is_some_and(|address| self.sessions.anywhere(&address) == Some(false))
        });
        let alone: HashSet<[u8; 32]> = alone.copied().collect();
        let gone: Vec<[u8; 32]> = alone.intersection(absent).copied().collect();
        let missed: Vec<[u8; 32]> = here.into_iter().filter(|key| !shown.contains(key)).collect();
        *absent = alone;
        if gone.is_empty() && missed.is_empty() {
            return Ok(());
        }
        let corrected = registry
            .write(move |c| correct(c, &gone, &missed, now_ms()).map_err(DatabaseError::from))
            .await?;
        if corrected > 0 {
            tracing::info!(corrected, "the directory shows again who is there");
        }
        Ok(())
    }
}

fn shown(c: &Connection) -> rusqlite::Result<HashSet<[u8; 32]>> {
    let mut statement = c.prepare_cached("SELECT public_key FROM agents WHERE online = 1")?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// Returns how many entries were wrong.
fn correct(c: &Connection, gone: &[[u8; 32]], missed: &[[u8; 32]], now_ms: i64) -> rusqlite::Result<usize> {
    let mut corrected = 0;
    for key in gone {
        corrected += c
            .prepare_cached("UPDATE agents SET online=0 WHERE public_key=?1 AND online=1")?
            .execute([&key[..]])?;
    }
    for key in missed {
        corrected += c
            .prepare_cached(
                "UPDATE agents SET online=1, last_seen=max(last_seen, ?2) WHERE public_key=?1 AND online=0",
            )?
            .execute((&key[..], now_ms))?;
    }
    Ok(corrected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Profile;
    use crate::store::registry::{MIGRATIONS, Upsert, upsert};

    #[test]
    fn the_list_is_corrected_in_both_directions() {
        let c = Connection::open_in_memory().expect("memory");
        for migration in MIGRATIONS {
            c.execute_batch(migration.sql).expect("schema");
        }
        for (key, online) in [([1; 32], true), ([2; 32], false), ([3; 32], true)] {
            let entry = Upsert {
                key: &key,
                profile: &Profile::default(),
                visibility: "public",
                consent: "auth_handshake",
                relay_id: "r",
                visible_at: 0,
                now_ms: 5,
                online,
            };
            upsert(&c, &entry).expect("inserts");
        }
        assert_eq!(correct(&c, &[[1; 32]], &[[2; 32], [9; 32]], 7).expect("corrects"), 2);
        assert_eq!(shown(&c).expect("reads"), HashSet::from([[2; 32], [3; 32]]));
    }
}
