//! What an operator, or an agent about itself, may ask of the registry: bans, everything known, erasure.

use hmac::{Hmac, KeyInit as _, Mac as _};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::{Value, json};
use sha2::Sha256;
use threadline::Fingerprint;
use threadline::time::iso_ms;

use super::{TierCounts, hide_until};

/// Pattern of a ban by a person.
pub const BY_HAND: &str = "manual";

/// An identity that was here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its key.
    pub key: [u8; 32],
    /// When it came for the first time, in Unix milliseconds.
    pub first_seen_ms: i64,
    /// Its counters.
    pub counts: TierCounts,
}

/// A ban that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// Whose.
    pub key: [u8; 32],
    /// For people.
    pub reason: String,
    /// Rule that found it, or [`BY_HAND`].
    pub pattern: String,
    /// Unix milliseconds.
    pub banned_ms: i64,
    /// Unix milliseconds.
    pub expires_ms: i64,
}

/// The identity with that address.
pub fn identity(c: &Connection, address: &Fingerprint) -> rusqlite::Result<Option<Identity>> {
    c.prepare_cached("SELECT public_key, at, tier_counts FROM first_seen WHERE address=?1")?
        .query_row([address.as_bytes()], read_identity)
        .optional()
}

/// Identities in the order of their addresses, from behind `after` on.
pub fn identities(c: &Connection, after: Option<Fingerprint>, most: u32) -> rusqlite::Result<Vec<Identity>> {
    let after = after.map(|address| address.as_bytes().to_vec()).unwrap_or_default();
    c.prepare_cached(
        "SELECT public_key, at, tier_counts FROM first_seen WHERE address > ?1 ORDER BY address LIMIT ?2",
    )?
    .query_map(params![after, most], read_identity)?
    .collect()
}

fn read_identity(row: &rusqlite::Row<'_>) -> rusqlite::Result<Identity> {
    let counts = row.get::<_, String>(2)?;
    Ok(Identity {
        key: row.get(0)?,
        first_seen_ms: row.get(1)?,
        counts: serde_json::from_str(&counts).unwrap_or_default(),
    })
}

/// Bans a key until then; an earlier ban is replaced.
pub fn ban(
    c: &Connection,
    key: &[u8; 32],
    reason: &str,
    now_ms: i64,
    until_ms: i64,
) -> rusqlite::Result<Ban> {
    c.prepare_cached(
        "INSERT INTO bans(public_key, reason, pattern, banned_at, expires_at, strikes) VALUES (?1,?2,?3,?4,?5,1)
         ON CONFLICT(public_key) DO UPDATE SET reason=?2, pattern=?3, banned_at=?4, expires_at=?5",
    )?
    .execute(params![key, reason, BY_HAND, now_ms, until_ms])?;
    hide_until(c, key, until_ms)?;
    Ok(Ban {
        key: *key,
        reason: reason.to_owned(),
        pattern: BY_HAND.to_owned(),
        banned_ms: now_ms,
        expires_ms: until_ms,
    })
}

/// Lifts a ban. Whether there was one.
pub fn unban(c: &Connection, key: &[u8; 32], now_ms: i64) -> rusqlite::Result<bool> {
    let lifted = c
        .prepare_cached("UPDATE bans SET expires_at=?2 WHERE public_key=?1 AND expires_at>?2")?
        .execute(params![key, now_ms])?;
    hide_until(c, key, 0)?;
    Ok(lifted > 0)
}

/// Bans that have not ended, newest first.
pub fn bans(c: &Connection, now_ms: i64) -> rusqlite::Result<Vec<Ban>> {
    bans_since(c, i64::MIN, now_ms)
}

/// Bans that were spoken after `since_ms` and have not ended, newest first.
pub fn bans_since(c: &Connection, since_ms: i64, now_ms: i64) -> rusqlite::Result<Vec<Ban>> {
    c.prepare_cached(
        "SELECT public_key, reason, pattern, banned_at, expires_at FROM bans WHERE banned_at>?1 AND expires_at>?2
         ORDER BY banned_at DESC LIMIT 10000",
    )?
    .query_map([since_ms, now_ms], |row| {
        Ok(Ban {
            key: row.get(0)?,
            reason: row.get(1)?,
            pattern: row.get(2)?,
            banned_ms: row.get(3)?,
            expires_ms: row.get(4)?,
        })
    })?
    .collect()
}

/// Everything the registry holds about a key.
pub fn export(c: &Connection, key: &[u8; 32]) -> rusqlite::Result<Value> {
    let first_seen = c
        .prepare_cached("SELECT at, tier_counts FROM first_seen WHERE public_key=?1")?
        .query_row([key], |row| {
            let counts: TierCounts = serde_json::from_str(&row.get::<_, String>(1)?).unwrap_or_default();
            Ok(json!({
                "at": iso_ms(row.get(0)?),
                "hourOfLife": counts.hour,
                "messagesInThatHour": counts.messages,
                "recipientsInThatHour": counts.recipients.iter().map(ToString::to_string).collect::<Vec<_>>(),
            }))
        })
        .optional()?;
    let ban = c
        .prepare_cached(
            "SELECT reason, pattern, banned_at, expires_at, strikes FROM bans WHERE public_key=?1",
        )?
        .query_row([key], |row| {
            Ok(json!({
                "reason": row.get::<_, String>(0)?,
                "pattern": row.get::<_, String>(1)?,
                "bannedAt": iso_ms(row.get(2)?),
                "expiresAt": iso_ms(row.get(3)?),
                "strikes": row.get::<_, i64>(4)?,
            }))
        })
        .optional()?;
    let consents: Vec<Value> = c
        .prepare_cached("SELECT at, method, listed FROM consent_log WHERE public_key=?1 ORDER BY at")?
        .query_map([key], |row| {
            Ok(json!({
                "at": iso_ms(row.get(0)?),
                "method": row.get::<_, String>(1)?,
                "listed": row.get::<_, bool>(2)?,
            }))
        })?
        .collect::<Result<_, _>>()?;
    let suppressed: Option<i64> = c
        .prepare_cached("SELECT until FROM suppress WHERE public_key=?1")?
        .query_row([key], |row| row.get(0))
        .optional()?;
    Ok(json!({
        "firstSeen": first_seen,
        "ban": ban,
        "consents": consents,
        "notListedByLoginUntil": suppressed.map(iso_ms),
    }))
}

/// Removes everything about a key but a salted hash of it, under which its first login and its ban are kept: an
/// erased identity is not new again.
pub fn erase(c: &Connection, key: &[u8; 32], now_ms: i64) -> rusqlite::Result<()> {
    let hash = salted(c, key)?;
    c.execute("DELETE FROM agents WHERE public_key=?1", [key])?;
    c.execute("DELETE FROM consent_log WHERE public_key=?1", [key])?;
    c.execute("DELETE FROM suppress WHERE public_key=?1", [key])?;
    super::devices::erase(c, key)?;
    c.execute(
        "UPDATE OR REPLACE first_seen SET public_key=?2, address=?3, source=zeroblob(16) WHERE public_key=?1",
        params![key, hash, &hash[..16]],
    )?;
    c.execute("UPDATE OR REPLACE bans SET public_key=?2 WHERE public_key=?1", params![key, hash])?;
    c.execute(
        "INSERT OR REPLACE INTO void_tokens(public_key, before_s) VALUES (?1, ?2)",
        params![key, now_ms.div_euclid(1000)],
    )?;
    Ok(())
}

/// Gives an identity that was erased and comes back its first login and its ban again.
/// Whether there was one.
pub(super) fn recognise(c: &Connection, key: &[u8; 32]) -> rusqlite::Result<bool> {
    let hash = salted(c, key)?;
    let known = c
        .prepare_cached("UPDATE first_seen SET public_key=?1, address=?2 WHERE public_key=?3")?
        .execute(params![key, &key[..16], hash])?;
    if known > 0 {
        c.execute("UPDATE OR REPLACE bans SET public_key=?1 WHERE public_key=?2", params![key, hash])?;
    }
    Ok(known > 0)
}

/// Whether a token of this key that was issued then is still good.
pub fn is_token_good(c: &Connection, key: &[u8; 32], issued_s: i64) -> rusqlite::Result<bool> {
    let void = c
        .prepare_cached("SELECT 1 FROM void_tokens WHERE public_key=?1 AND before_s>=?2")?
        .exists(params![key, issued_s])?;
    Ok(!void)
}

fn salted(c: &Connection, key: &[u8; 32]) -> rusqlite::Result<[u8; 32]> {
    let salt: Vec<u8> =
        c.prepare_cached("SELECT value FROM salt LIMIT 1")?.query_row([], |row| row.get(0))?;
    let mut mac = Hmac::<Sha256>::new_from_slice(&salt).expect("HMAC takes keys of any length");
    mac.update(key);
    Ok(mac.finalize().into_bytes().into())
}
