//! The bridge's memory: who may call an agent, and which conversations go on.

use rusqlite::{Connection, OptionalExtension as _, params};
use threadline::Fingerprint;

const KEPT_MS: i64 = 7 * 86_400_000;
const CONTEXTS: u32 = 10_000;

/// How an agent wants to be called over the bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doors {
    /// Hex SHA-256 of the tokens that open.
    pub token_hashes: Vec<String>,
    /// Whether anyone may call.
    pub open: bool,
}

/// How the agent with that key wants to be called.
pub fn doors(c: &Connection, key: &[u8; 32]) -> rusqlite::Result<Doors> {
    let found = c
        .prepare_cached("SELECT a2a_tokens, a2a_open FROM agents WHERE public_key=?1")?
        .query_row([key], |row| {
            let hashes: String = row.get(0)?;
            Ok(Doors { token_hashes: serde_json::from_str(&hashes).unwrap_or_default(), open: row.get(1)? })
        })
        .optional()?;
    Ok(found.unwrap_or_default())
}

/// Changes how an agent wants to be called; `None` leaves what is stored.
pub fn set_doors(
    c: &Connection,
    key: &[u8; 32],
    token_hashes: Option<&[String]>,
    open: Option<bool>,
) -> rusqlite::Result<()> {
    let hashes = token_hashes.map(|hashes| serde_json::to_string(hashes).unwrap_or_else(|_| "[]".into()));
    c.prepare_cached(
        "UPDATE agents SET a2a_tokens=coalesce(?2, a2a_tokens), a2a_open=coalesce(?3, a2a_open) WHERE public_key=?1",
    )?
    .execute(params![key, hashes, open])
    .map(drop)
}

/// The conversation of a context that was given to this caller for this agent.
pub fn thread(
    c: &Connection,
    context: &str,
    agent: &Fingerprint,
    caller: &[u8; 32],
    now_ms: i64,
) -> rusqlite::Result<Option<String>> {
    let thread: Option<String> = c
        .prepare_cached(
            "SELECT thread_id FROM a2a_ctx WHERE context_id=?1 AND agent=?2 AND caller=?3 AND last_at>?4",
        )?
        .query_row(params![context, agent.as_bytes(), caller, now_ms - KEPT_MS], |row| row.get(0))
        .optional()?;
    Ok(thread)
}

/// Remembers a context, or that it was used; the oldest above 10,000 are forgotten.
pub fn remember(
    c: &Connection,
    context: &str,
    agent: &Fingerprint,
    caller: &[u8; 32],
    thread: &str,
    now_ms: i64,
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "INSERT INTO a2a_ctx(context_id, agent, caller, thread_id, last_at) VALUES (?1,?2,?3,?4,?5)
         ON CONFLICT(context_id) DO UPDATE SET last_at=?5",
    )?
    .execute(params![context, agent.as_bytes(), caller, thread, now_ms])?;
    c.prepare_cached("DELETE FROM a2a_ctx WHERE last_at<=?1")?.execute([now_ms - KEPT_MS])?;
    c.prepare_cached(
        "DELETE FROM a2a_ctx WHERE context_id IN
            (SELECT context_id FROM a2a_ctx ORDER BY last_at DESC LIMIT -1 OFFSET ?1)",
    )?
    .execute([CONTEXTS])
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_belongs_to_its_caller_and_agent_for_seven_days() {
        let c = Connection::open_in_memory().expect("memory");
        for migration in super::super::MIGRATIONS {
            c.execute_batch(migration.sql).expect("schema");
        }
        let (agent, other) = (Fingerprint::from_bytes([1; 16]), Fingerprint::from_bytes([2; 16]));
        remember(&c, "ctx", &agent, &[7; 32], "a2a-1", 1_000).expect("remember");
        let look = |agent, caller: u8, now_ms| thread(&c, "ctx", agent, &[caller; 32], now_ms).expect("sql");
        assert_eq!(look(&agent, 7, 2_000).as_deref(), Some("a2a-1"));
        assert_eq!(look(&agent, 8, 2_000), None, "another caller");
        assert_eq!(look(&other, 7, 2_000), None, "another agent");
        assert!(look(&agent, 7, 999 + KEPT_MS).is_some());
        assert_eq!(look(&agent, 7, 1_000 + KEPT_MS), None);
    }
}
