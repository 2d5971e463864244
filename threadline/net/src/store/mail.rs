//! Sealed mail: the records of [`threadline::v2::mail`], stored as that crate encodes them. A commit is a transaction,
//! together with what it says about messages of ours and about the keys of peers.

use instar_outbound::{Cleared, OutboundMessage};
use rusqlite::{Connection, OptionalExtension, params};
use threadline::delivery::DeliveryState;
use threadline::identity::PublicIdentity;
use threadline::v2::mail::{Change, Commit, Records, StoredRow, Write};
use threadline::v2::opened::{OpenedMessage, message_id};
use threadline::v2::session::RelayPin;
use threadline::v2::{Bin, Key};
use threadline::{Fingerprint, ThreadKey};

use super::outbox::{self, OutboundDraft, Queued};
use super::spool::{self, SpoolEntry, Spooled};
use super::types::parsed;
use super::{Store, StoreError};

/// Carrier of opened messages in `spool` and `messages`.
pub const SEALED: &str = "sealed";

/// A peer counts as speaking v2 this long after its last certificate ended, ms.
const LAPSE_MS: i64 = 30 * 86_400_000;

/// Kind, key and value.
type Row = (i64, Vec<u8>, Vec<u8>);

/// Rows that a commit changes.
struct Stored {
    rows: Vec<StoredRow>,
    /// Peers of whom a certified device is known now, and until when they count as speaking v2, Unix ms.
    certified: Vec<(Key, i64)>,
}

impl Stored {
    fn of(commit: &Commit) -> Self {
        let certified = commit.writes.iter().filter_map(|write| match write {
            Write::Peer(key, row) if row.list.is_some() => {
                let ends = row.certs.values().map(|cert| cert.object().not_after).max()?;
                Some((*key, i64::try_from(ends).unwrap_or(i64::MAX).saturating_add(LAPSE_MS)))
            }
            _ => None,
        });
        Self { certified: certified.collect(), rows: commit.writes.iter().map(Write::to_row).collect() }
    }

    fn put(&self, c: &Connection, now: i64) -> Result<(), StoreError> {
        self.rows.iter().try_for_each(|row| put(c, row))?;
        self.certified.iter().try_for_each(|(key, until)| pin_v2(c, key, *until, now))
    }
}

impl Store {
    /// Everything that was committed.
    pub async fn mail_load(&self) -> Result<Records, StoreError> {
        let rows = self
            .db
            .read(|c| -> Result<Vec<Row>, StoreError> {
                let mut statement = c.prepare("SELECT kind, key, value FROM mail")?;
                let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await?;
        let mut records = Records::default();
        for (kind, key, value) in rows {
            records.restore(kind, &key, &value).map_err(|error| StoreError::BadRow {
                table: "mail",
                key: hex::encode(&key),
                detail: error.to_string(),
            })?;
        }
        Ok(records)
    }

    /// Stores a commit and what it says about messages of ours, all of it or nothing. Only then may anything happen
    /// that it stands for.
    pub async fn mail_commit(
        &self,
        commit: &Commit,
        changes: Vec<Change>,
        now: i64,
    ) -> Result<(), StoreError> {
        let stored = Stored::of(commit);
        self.db
            .write(move |c| -> Result<(), StoreError> {
                stored.put(c, now)?;
                changes.iter().try_for_each(|change| note(c, change, now))
            })
            .await
    }

    /// Takes one cleared text into sealed mail: message, delivery, windows and the rows of sealed mail in one
    /// transaction. Its sibling for other carriers is [`Store::enqueue`].
    pub async fn enqueue_sealed(
        &self,
        cleared: Cleared<OutboundMessage>,
        draft: OutboundDraft,
        commit: &Commit,
        now: i64,
    ) -> Result<Queued, StoreError> {
        let (message, _) = cleared.into_parts();
        let stored = Stored::of(commit);
        self.db
            .write(move |c| -> Result<Queued, StoreError> {
                let queued = outbox::enqueue_message(c, &message.text, &draft, true, now)?;
                if queued == Queued::New {
                    stored.put(c, now)?;
                }
                Ok(queued)
            })
            .await
    }

    /// Hands an opened message to the inbound pipeline. The second time it does nothing.
    pub async fn spool_opened(&self, message: &OpenedMessage, now: i64) -> Result<Spooled, StoreError> {
        let Some(sender) = message.sender() else { return Ok(Spooled::Known) };
        let entry = SpoolEntry {
            relay: String::new(),
            from: sender.fingerprint(),
            message_id: message.id.clone(),
            thread_id: Some(message.thread.clone()),
            transport: SEALED,
            envelope: message.to_bytes(),
        };
        self.db.write(move |c| spool::put(c, &entry, now)).await
    }

    /// Puts an opened message in the place of the row that waits for its text, and has it looked at now. Whether there
    /// was one.
    pub async fn spool_replace(&self, message: &OpenedMessage) -> Result<bool, StoreError> {
        let Some(sender) = message.sender() else { return Ok(false) };
        let (from, id, envelope) = (sender.fingerprint(), message.id.clone(), message.to_bytes());
        self.db
            .write(move |c| {
                let changed = c.execute(
                    "UPDATE spool SET envelope = ?3, not_before = 0, reason = NULL
                     WHERE from_fp = ?1 AND message_id = ?2 AND transport = ?4 AND state = 'new'",
                    params![from.to_string(), id.as_str(), envelope, SEALED],
                )?;
                Ok(changed > 0)
            })
            .await
    }

    /// Whether a certified device of this peer is known: it is never written to in clear again.
    pub async fn speaks_v2(&self, peer: Fingerprint) -> Result<bool, StoreError> {
        self.db
            .read(move |c| {
                Ok(c.prepare_cached("SELECT 1 FROM peer_keys WHERE fingerprint = ?1 AND min_proto >= 2")?
                    .exists([peer.to_string()])?)
            })
            .await
    }

    /// Peers whose last certificate ended 30 days ago do not count as speaking v2 any more; returns them.
    pub async fn lapse_v2(&self, now: i64) -> Result<Vec<Fingerprint>, StoreError> {
        self.db
            .write(move |c| {
                let mut lapse = c.prepare_cached(
                    "UPDATE peer_keys SET min_proto = 1, v2_until = NULL WHERE min_proto >= 2 AND v2_until <= ?1
                     RETURNING fingerprint",
                )?;
                let lapsed = lapse.query_map([now], |row| parsed(row, "fingerprint"))?;
                Ok(lapsed.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Which way the newest message of the thread that its peer has not confirmed goes: sealed mail or not.
    pub async fn open_carrier(&self, key: ThreadKey) -> Result<Option<bool>, StoreError> {
        self.db
            .read(move |c| {
                Ok(c.prepare_cached(
                    "SELECT sealed FROM deliveries WHERE peer_fp = ?1 AND thread_id = ?2 AND acked_at IS NULL
                     AND state IN ('pending', 'sent', 'accepted') ORDER BY created_at DESC LIMIT 1",
                )?
                .query_row(params![key.peer.to_string(), key.thread.as_str()], |r| r.get(0))
                .optional()?)
            })
            .await
    }

    /// Notes that the owner compared the safety number with this very key, or takes that back.
    pub async fn set_verified(&self, key: &PublicIdentity, at: Option<i64>) -> Result<bool, StoreError> {
        let key = *key.as_bytes();
        self.db
            .write(move |c| {
                Ok(c.execute(
                    "UPDATE peer_keys SET verified_at = ?2 WHERE public_key = ?1",
                    params![key, at],
                )? > 0)
            })
            .await
    }

    /// When the owner compared the safety number with this peer, Unix ms.
    pub async fn verified_at(&self, peer: Fingerprint) -> Result<Option<i64>, StoreError> {
        self.db
            .read(move |c| {
                let at = c
                    .prepare_cached("SELECT verified_at FROM peer_keys WHERE fingerprint = ?1")?
                    .query_row([peer.to_string()], |r| r.get(0))
                    .optional()?;
                Ok(at.flatten())
            })
            .await
    }

    /// What is remembered of the relay at `url`.
    pub async fn relay_pin(&self, url: &str) -> Result<RelayPin, StoreError> {
        let url = url.to_owned();
        self.db
            .read(move |c| {
                let pin = c
                    .prepare_cached("SELECT relay_key, next_key, spoke_v2 FROM relay_pins WHERE url = ?1")?
                    .query_row([url], |r| {
                        let key = |column| r.get::<_, Option<[u8; 32]>>(column).map(|key| key.map(Bin));
                        Ok(RelayPin { key: key(0)?, next: key(1)?, spoke_v2: r.get(2)? })
                    })
                    .optional()?;
                Ok(pin.unwrap_or_default())
            })
            .await
    }

    /// Remembers a relay.
    pub async fn set_relay_pin(&self, url: &str, pin: &RelayPin) -> Result<(), StoreError> {
        let (url, pin) = (url.to_owned(), pin.clone());
        self.db
            .write(move |c| {
                c.execute(
                    "INSERT INTO relay_pins(url, relay_key, next_key, spoke_v2) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT(url) DO UPDATE SET relay_key = ?2, next_key = ?3, spoke_v2 = ?4",
                    params![url, pin.key.map(|k| k.0), pin.next.map(|k| k.0), pin.spoke_v2],
                )?;
                Ok(())
            })
            .await
    }
}

/// A certificate of its device was verified: the key is pinned, unless its address belongs to another one.
fn pin_v2(c: &Connection, key: &Key, until: i64, now: i64) -> Result<(), StoreError> {
    let Ok(identity) = PublicIdentity::from_bytes(&key.0) else { return Ok(()) };
    c.prepare_cached(
        "INSERT OR IGNORE INTO peer_keys(public_key, fingerprint, pinned_at, source) VALUES (?1, ?2, ?3, 'device')",
    )?
    .execute(params![key.0, identity.fingerprint().to_string(), now])?;
    c.prepare_cached(
        "UPDATE peer_keys SET min_proto = 2, v2_until = MAX(COALESCE(v2_until, 0), ?2)
         WHERE public_key = ?1 AND ?2 > ?3 AND (min_proto < 2 OR v2_until IS NULL OR v2_until < ?2)",
    )?
    .execute(params![key.0, until, now])?;
    Ok(())
}

/// A message of ours moved on.
fn note(c: &Connection, change: &Change, now: i64) -> Result<(), StoreError> {
    let Ok(peer) = PublicIdentity::from_bytes(&change.peer.0) else { return Ok(()) };
    let Some(mut row) = outbox::find_delivery(c, &peer.fingerprint(), &message_id(&change.id))? else {
        return Ok(());
    };
    if row.delivery.state.is_final() {
        return Ok(());
    }
    row.delivery.state = change.state;
    if change.state != DeliveryState::Pending {
        row.delivery.attempts = row.delivery.attempts.max(1);
        row.delivery.last_attempt_at.get_or_insert(now);
    }
    if change.confirmed || change.state == DeliveryState::Delivered {
        row.delivery.acked_at = Some(now);
    }
    let reason = matches!(change.state, DeliveryState::Rejected | DeliveryState::Failed)
        .then_some("the peer or every relay refused it");
    outbox::set_delivery(c, &row, reason, false)
}

fn put(c: &Connection, row: &StoredRow) -> Result<(), rusqlite::Error> {
    let (kind, key) = (row.kind as i64, &row.key);
    match &row.value {
        Some(value) => c
            .prepare_cached("INSERT OR REPLACE INTO mail(kind, key, value) VALUES (?1, ?2, ?3)")?
            .execute(params![kind, key, value])?,
        None => {
            c.prepare_cached("DELETE FROM mail WHERE kind = ?1 AND key = ?2")?.execute(params![kind, key])?
        }
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    #[tokio::test]
    async fn a_peer_without_certificates_lapses_and_comes_back() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("threadline.sqlite")).expect("store");
        let identity = threadline::identity::Identity::from_seed(&[7; 32]);
        let peer = identity.fingerprint();
        let pin = |until: i64, now: i64| {
            let key = Key::from(identity.public());
            store.db.write(move |c| pin_v2(c, &key, until, now))
        };
        pin(100 * DAY, 0).await.expect("pinned");
        pin(60 * DAY, DAY).await.expect("an older certificate shortens nothing");
        assert!(store.lapse_v2(100 * DAY - 1).await.expect("looked").is_empty());
        assert!(store.speaks_v2(peer).await.expect("read"));
        assert_eq!(store.lapse_v2(100 * DAY).await.expect("lapsed"), [peer]);
        assert!(!store.speaks_v2(peer).await.expect("read"));
        pin(100 * DAY, 101 * DAY).await.expect("nothing");
        assert!(!store.speaks_v2(peer).await.expect("read"), "what ended does not count again");
        assert!(store.lapse_v2(200 * DAY).await.expect("looked").is_empty(), "the owner is told once");
        pin(150 * DAY, 102 * DAY).await.expect("pinned");
        assert!(store.speaks_v2(peer).await.expect("read"));
    }
}
