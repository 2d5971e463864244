//! Entries of another relay's `registry.db`, brought over once (`relay.md` §12.3).
//!
//! Other relays keep keys as base64 and times as text. What does not hold together is left out and counted.

use std::collections::HashSet;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use threadline::time::parse_iso;

use super::clean;
use crate::keys;
use crate::store::Profile;
use crate::store::registry::{Upsert, upsert};

/// What became of the entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Brought over.
    pub imported: u64,
    /// Known here already, left as they are.
    pub known: u64,
    /// Deleted there.
    pub deleted: u64,
    /// Key no 32 bytes, or not the one of the address.
    pub mismatched: u64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { imported, known, deleted, mismatched } = self;
        write!(
            f,
            "{imported} entries imported, {known} known already, {deleted} deleted there, {mismatched} left out \
             because key and address do not fit"
        )
    }
}

/// Copies entries from `source` into the registry `target`. Who is imported has been seen before: not new here.
pub fn import(
    target: &Connection,
    source: &Connection,
    relay_id: &str,
    now_ms: i64,
) -> rusqlite::Result<Report> {
    let columns: HashSet<String> = source
        .prepare("SELECT name FROM pragma_table_info('agents')")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut report = Report::default();
    let mut read = source.prepare("SELECT * FROM agents")?;
    let mut rows = read.query([])?;
    while let Some(row) = rows.next()? {
        let text = |name: &str| if columns.contains(name) { text(row, name) } else { None };
        if columns.contains("deleted") && number(row, "deleted").unwrap_or(0) != 0 {
            report.deleted += 1;
            continue;
        }
        let key = text("public_key").and_then(|key| keys::decode_public(&key));
        let Some(key) = key.filter(|key| text("agent_id").is_none_or(|id| id == clean::agent_id(key))) else {
            report.mismatched += 1;
            continue;
        };
        let known = target
            .prepare_cached("SELECT 1 FROM first_seen WHERE address=?1 OR public_key=?2")?
            .query_row(params![&key[..16], key], |_| Ok(()))
            .optional()?
            .is_some();
        if known {
            report.known += 1;
            continue;
        }
        let time = |name: &str| {
            let known = columns.contains(name);
            known
                .then(|| text(name).and_then(|text| parse_iso(&text)).or_else(|| number(row, name)))
                .flatten()
        };
        let registered_ms = time("registered_at").unwrap_or(now_ms).min(now_ms);
        let seen_ms = time("last_seen").unwrap_or(registered_ms).clamp(registered_ms, now_ms);
        bring(target, &key, &profile(&text, &columns, row), &text, relay_id, (registered_ms, seen_ms))?;
        report.imported += 1;
    }
    Ok(report)
}

fn bring(
    c: &Connection,
    key: &[u8; 32],
    profile: &Profile,
    text: &dyn Fn(&str) -> Option<String>,
    relay_id: &str,
    (registered_ms, seen_ms): (i64, i64),
) -> rusqlite::Result<()> {
    c.prepare_cached(
        "INSERT INTO first_seen(public_key, address, at, source) VALUES (?1, ?2, ?3, zeroblob(16))",
    )?
    .execute(params![key, &key[..16], registered_ms])?;
    let public = text("visibility").is_none_or(|visibility| visibility == "public");
    let entry = Upsert {
        key,
        profile,
        visibility: if public { "public" } else { "unlisted" },
        consent: "auth_handshake",
        relay_id,
        visible_at: registered_ms,
        now_ms: seen_ms,
        online: false,
    };
    upsert(c, &entry)?;
    c.prepare_cached("UPDATE agents SET registered_at=?2, stale=?3, hidden=?4 WHERE public_key=?1")?
        .execute(params![key, registered_ms, false, false])
        .map(drop)
}

fn profile(text: &dyn Fn(&str) -> Option<String>, columns: &HashSet<String>, row: &Row<'_>) -> Profile {
    let tags = |name: &str| {
        let tags: Vec<String> =
            text(name).and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
        clean::tags(&tags)
    };
    let visible = columns.contains("framework_visible").then(|| number(row, "framework_visible")).flatten();
    Profile {
        name: text("name").map(|name| clean::name(&name)),
        bio: text("bio").map(|bio| clean::bio(&bio)),
        interests: Some(tags("interests")),
        capabilities: Some(tags("capabilities")),
        framework: text("framework").map(|framework| clean::framework(&framework)),
        framework_visible: visible.map(|visible| visible != 0),
        homepage: text("homepage").map(|homepage| clean::homepage(&homepage)),
    }
}

fn text(row: &Row<'_>, name: &str) -> Option<String> {
    match row.get_ref(name).ok()? {
        ValueRef::Text(bytes) => String::from_utf8(bytes.to_vec()).ok(),
        _ => None,
    }
}

fn number(row: &Row<'_>, name: &str) -> Option<i64> {
    match row.get_ref(name).ok()? {
        ValueRef::Integer(number) => Some(number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::search;
    use crate::store::registry::MIGRATIONS;

    #[test]
    fn entries_come_over_once_and_what_does_not_fit_stays_behind() {
        use base64::Engine as _;
        let b64 = |key: [u8; 32]| base64::engine::general_purpose::STANDARD.encode(key);
        let source = Connection::open_in_memory().expect("memory");
        source
            .execute_batch(
                "CREATE TABLE agents(public_key TEXT, agent_id TEXT, name TEXT, bio TEXT, interests TEXT,
                    capabilities TEXT, framework TEXT, framework_visible INTEGER, homepage TEXT, visibility TEXT,
                    registered_at TEXT, last_seen TEXT, deleted INTEGER)",
            )
            .expect("schema");
        let add = |key: &str, id: &str, deleted: i64| {
            source
                .execute(
                    "INSERT INTO agents VALUES (?1, ?2, 'Old\u{202E} one', 'b', '[\"Music!\"]', 'broken', 'X', 1,
                        'http://no.example', 'public', '2025-01-01T00:00:00.000Z', '2025-06-01T00:00:00.000Z', ?3)",
                    params![key, id, deleted],
                )
                .expect("insert");
        };
        add(&b64([1; 32]), &clean::agent_id(&[1; 32]), 0);
        add(&b64([2; 32]), &clean::agent_id(&[2; 32]), 1);
        add(&b64([3; 32]), &clean::agent_id(&[4; 32]), 0);
        add("not base64", "x", 0);
        let target = Connection::open_in_memory().expect("memory");
        for migration in MIGRATIONS {
            target.execute_batch(migration.sql).expect("schema");
        }
        let now_ms = 1_768_478_400_000;
        let report = import(&target, &source, "relay", now_ms).expect("import");
        assert_eq!(report, Report { imported: 1, known: 0, deleted: 1, mismatched: 2 });
        let entry = search::entry(&target, &[1; 32]).expect("sql").expect("there");
        assert_eq!((entry.name.as_str(), entry.homepage.as_str()), ("Old one", ""));
        assert_eq!((entry.interests, entry.capabilities.len()), (vec!["music".to_owned()], 0));
        assert_eq!(entry.registered_ms, 1_735_689_600_000);
        let again = import(&target, &source, "relay", now_ms).expect("import");
        assert_eq!((again.imported, again.known), (0, 1));
    }
}
