//! Pinned keys and known peers.

use std::collections::HashSet;

use rusqlite::{OptionalExtension, Row, params};
use serde::Serialize;
use threadline::Fingerprint;
use threadline::identity::{Pin, PinOutcome, PublicIdentity, check_pin};

use super::spool::UNKNOWN_SENDER;
use super::types::parsed;
use super::{Store, StoreError};

/// Most rows of `known_peers`.
const MAX_KNOWN: u32 = 5_000;

/// What is known about an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownPeer {
    /// Address.
    pub fingerprint: Fingerprint,
    /// Sanitised name.
    pub name: String,
    /// Capability slugs.
    pub capabilities: Vec<String>,
    /// Framework slug, `unknown` if not told.
    pub framework: String,
    /// `online` or `offline`, as last heard.
    pub status: String,
    /// Unix ms.
    pub first_seen: i64,
    /// Unix ms.
    pub last_seen: i64,
    /// Host, for agents of this account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Who told us: `local`, `relay`, `message`.
    pub sources: Vec<String>,
}

impl Store {
    /// Pins a key learnt for `claimed`. The first key of an address stays. What waited in the spool for this key is
    /// due at once.
    pub async fn pin_key(
        &self,
        claimed: Fingerprint,
        key: PublicIdentity,
        source: &'static str,
        now: i64,
    ) -> Result<PinOutcome, StoreError> {
        self.db
            .write(move |c| {
                let outcome = check_pin(find_pin(c, &claimed)?.as_ref(), &claimed, &key);
                if outcome == PinOutcome::New {
                    c.execute(
                        "INSERT INTO peer_keys(public_key, fingerprint, pinned_at, source) VALUES (?1, ?2, ?3, ?4)",
                        params![key.as_bytes(), claimed.to_string(), now, source],
                    )?;
                    c.execute(
                        "UPDATE spool SET not_before = ?2 WHERE from_fp = ?1 AND state = 'new' AND reason = ?3
                         AND not_before > ?2",
                        params![claimed.to_string(), now, UNKNOWN_SENDER],
                    )?;
                }
                Ok(outcome)
            })
            .await
    }

    /// The pinned key of an address.
    pub async fn pinned_key(&self, peer: Fingerprint) -> Result<Option<Pin>, StoreError> {
        self.db.read(move |c| find_pin(c, &peer)).await
    }

    /// At most `limit` pinned keys, those of agents heard of last first.
    pub async fn watchable_keys(&self, limit: u32) -> Result<Vec<PublicIdentity>, StoreError> {
        self.db
            .read(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT p.public_key FROM peer_keys p LEFT JOIN known_peers k USING (fingerprint)
                     ORDER BY k.last_seen DESC, p.pinned_at DESC LIMIT ?1",
                )?;
                let keys = statement.query_map([limit], |row| row.get::<_, Vec<u8>>(0))?;
                let keys = keys.collect::<rusqlite::Result<Vec<_>>>()?;
                Ok(keys.iter().filter_map(|key| PublicIdentity::from_bytes(key).ok()).collect())
            })
            .await
    }

    /// Merges what was heard about agents; nothing is ever replaced by less, and no relay gives another name to whom
    /// this agent wrote to.
    pub async fn merge_known(&self, peers: Vec<KnownPeer>) -> Result<(), StoreError> {
        self.db
            .write(move |c| {
                for peer in &peers {
                    merge(c, peer)?;
                }
                c.execute(
                    "DELETE FROM known_peers WHERE fingerprint IN (
                        SELECT fingerprint FROM known_peers k WHERE NOT EXISTS (
                            SELECT 1 FROM conversations v WHERE v.peer_fp = k.fingerprint)
                        ORDER BY last_seen DESC LIMIT -1 OFFSET ?1)",
                    [MAX_KNOWN],
                )?;
                Ok(())
            })
            .await
    }

    /// Notes that an agent came or went; unknown agents are ignored.
    pub async fn set_presence(&self, peer: Fingerprint, online: bool, now: i64) -> Result<(), StoreError> {
        self.db
            .write(move |c| {
                let status = if online { "online" } else { "offline" };
                c.execute(
                    "UPDATE known_peers SET status = ?2, last_seen = CASE WHEN ?3 THEN ?4 ELSE last_seen END
                     WHERE fingerprint = ?1",
                    params![peer.to_string(), status, online, now],
                )?;
                Ok(())
            })
            .await
    }

    /// Marks everyone heard only through the relay as offline: the link is down.
    pub async fn presence_unknown(&self) -> Result<(), StoreError> {
        self.db
            .write(|c| {
                c.execute("UPDATE known_peers SET status = 'offline' WHERE status = 'online'", [])?;
                Ok(())
            })
            .await
    }

    /// All known agents, most recently seen first.
    pub async fn known_peers(&self) -> Result<Vec<KnownPeer>, StoreError> {
        self.db
            .read(|c| {
                let mut statement =
                    c.prepare_cached("SELECT * FROM known_peers ORDER BY last_seen DESC, fingerprint")?;
                let rows = statement.query_map([], read_known)?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Everyone who was ever written to.
    pub async fn written_to(&self) -> Result<HashSet<Fingerprint>, StoreError> {
        self.db
            .read(|c| {
                let mut statement =
                    c.prepare_cached("SELECT DISTINCT peer_fp FROM messages WHERE direction = 'out'")?;
                let rows = statement.query_map([], |row| parsed(row, "peer_fp"))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Whether this agent ever wrote sealed, by which it showed that it can.
    pub async fn has_sealed(&self, peer: Fingerprint) -> Result<bool, StoreError> {
        self.db
            .read(move |c| {
                Ok(c.prepare_cached(
                    "SELECT 1 FROM messages WHERE peer_fp = ?1 AND direction = 'in' AND auth = 'e2e' LIMIT 1",
                )?
                .exists([peer.to_string()])?)
            })
            .await
    }

    /// One known agent.
    pub async fn known_peer(&self, peer: Fingerprint) -> Result<Option<KnownPeer>, StoreError> {
        self.db
            .read(move |c| {
                Ok(c.prepare_cached("SELECT * FROM known_peers WHERE fingerprint = ?1")?
                    .query_row([peer.to_string()], read_known)
                    .optional()?)
            })
            .await
    }
}

fn find_pin(c: &rusqlite::Connection, peer: &Fingerprint) -> Result<Option<Pin>, StoreError> {
    let row: Option<(Vec<u8>, i64)> = c
        .prepare_cached("SELECT public_key, pinned_at FROM peer_keys WHERE fingerprint = ?1")?
        .query_row([peer.to_string()], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    row.map(|(bytes, pinned_at)| match PublicIdentity::from_bytes(&bytes) {
        Ok(key) => Ok(Pin { key, pinned_at }),
        Err(e) => {
            Err(StoreError::BadRow { table: "peer_keys", key: peer.to_string(), detail: e.to_string() })
        }
    })
    .transpose()
}

fn merge(c: &rusqlite::Connection, peer: &KnownPeer) -> Result<(), StoreError> {
    let known = c
        .prepare_cached("SELECT * FROM known_peers WHERE fingerprint = ?1")?
        .query_row([peer.fingerprint.to_string()], read_known)
        .optional()?;
    let mut merged = peer.clone();
    if let Some(known) = known {
        merged.first_seen = known.first_seen;
        merged.last_seen = merged.last_seen.max(known.last_seen);
        let is_hearsay = peer.sources.iter().all(|source| source == "relay");
        let keeps_name = is_hearsay && !known.name.is_empty() && was_written_to(c, &peer.fingerprint)?;
        if merged.name.is_empty() || keeps_name {
            merged.name = known.name;
        }
        if merged.capabilities.is_empty() {
            merged.capabilities = known.capabilities;
        }
        if merged.framework.is_empty() || merged.framework == "unknown" {
            merged.framework = known.framework;
        }
        if merged.status.is_empty() {
            merged.status = known.status;
        }
        merged.machine = merged.machine.or(known.machine);
        let told = known.sources.into_iter().filter(|s| !peer.sources.contains(s));
        merged.sources.extend(told);
    }
    c.prepare_cached(
        "INSERT INTO known_peers(fingerprint, name, capabilities, framework, status, first_seen, last_seen,
            machine, sources) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT DO UPDATE SET name = ?2, capabilities = ?3, framework = ?4, status = ?5, last_seen = ?7,
            machine = ?8, sources = ?9",
    )?
    .execute(params![
        merged.fingerprint.to_string(),
        merged.name,
        merged.capabilities.join(","),
        merged.framework,
        merged.status,
        merged.first_seen,
        merged.last_seen,
        merged.machine,
        merged.sources.join(",")
    ])?;
    Ok(())
}

fn was_written_to(c: &rusqlite::Connection, peer: &Fingerprint) -> rusqlite::Result<bool> {
    c.prepare_cached("SELECT 1 FROM messages WHERE peer_fp = ?1 AND direction = 'out' LIMIT 1")?
        .exists([peer.to_string()])
}

fn read_known(row: &Row<'_>) -> rusqlite::Result<KnownPeer> {
    let list = |text: String| text.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect();
    Ok(KnownPeer {
        fingerprint: parsed(row, "fingerprint")?,
        name: row.get("name")?,
        capabilities: list(row.get("capabilities")?),
        framework: row.get("framework")?,
        status: row.get("status")?,
        first_seen: row.get("first_seen")?,
        last_seen: row.get("last_seen")?,
        machine: row.get("machine")?,
        sources: list(row.get("sources")?),
    })
}
