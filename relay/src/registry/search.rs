//! Finding entries (`relay.md` §12.3).

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, params_from_iter};

use super::clean;
use super::cursor::Cursor;
use super::query::sanitise;
use crate::store::registry::Found;

/// Most hits of a text query that are ranked.
pub const RANKED: u32 = 2_000;
/// Highest total that is counted.
const COUNTED: u32 = 10_000;
const COLUMNS: &str =
    "public_key, agent_id, name, bio, interests, capabilities, framework, framework_visible,
    homepage, visibility, registered_at, last_seen, online, stale, visible_at, consent_method";

/// Order of a listing without text query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    /// Last seen first.
    #[default]
    LastSeen,
    /// Newest entry first.
    RegisteredAt,
    /// By name.
    Name,
}

impl Sort {
    /// Parses the query parameter.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "lastSeen" => Some(Self::LastSeen),
            "registeredAt" => Some(Self::RegisteredAt),
            "name" => Some(Self::Name),
            _ => None,
        }
    }

    const fn column(self) -> &'static str {
        match self {
            Self::LastSeen => "last_seen",
            Self::RegisteredAt => "registered_at",
            Self::Name => "name COLLATE NOCASE",
        }
    }
}

/// What to look for.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// Words, all of which must match.
    pub text: String,
    /// Any of these capabilities.
    pub capabilities: Vec<String>,
    /// Any of these interests.
    pub interests: Vec<String>,
    /// A visible framework.
    pub framework: Option<String>,
    /// Only agents that are (not) connected.
    pub online: Option<bool>,
    /// Order when there are no words.
    pub sort: Sort,
    /// Entries per page, 1–100.
    pub limit: u32,
    /// Where the page starts.
    pub after: Option<Cursor>,
}

impl Search {
    /// Everything that selects and sorts, to bind a cursor to.
    pub fn fingerprint(&self) -> String {
        format!(
            "{:?}",
            (&self.text, &self.capabilities, &self.interests, &self.framework, self.online, self.sort)
        )
    }
}

/// A registry entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Full key.
    pub key: [u8; 32],
    /// Address in hex.
    pub agent_id: String,
    /// Display name.
    pub name: String,
    /// About text.
    pub bio: String,
    /// Tags.
    pub interests: Vec<String>,
    /// Tags.
    pub capabilities: Vec<String>,
    /// Framework tag.
    pub framework: String,
    /// Whether others see it.
    pub framework_visible: bool,
    /// https URL or empty.
    pub homepage: String,
    /// `public` or `unlisted`.
    pub visibility: String,
    /// Unix milliseconds.
    pub registered_ms: i64,
    /// Unix milliseconds.
    pub last_seen_ms: i64,
    /// Whether it is connected.
    pub online: bool,
    /// Whether it was not connected for 90 days.
    pub stale: bool,
    /// When it may be shown, in Unix milliseconds.
    pub visible_ms: i64,
    /// How consent was given.
    pub consent: String,
}

/// One page of results.
#[derive(Debug, Clone)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Number of hits, at most 10,000.
    pub total: u32,
    /// Whether more follow.
    pub has_more: bool,
    /// Where the next page starts.
    pub next: Option<Cursor>,
    /// How many hits were ranked, if there were more than that.
    pub ranked: Option<u32>,
}

struct Conditions {
    sql: String,
    values: Vec<Value>,
}

impl Conditions {
    fn visible(now_ms: i64) -> Self {
        let sql = "a.visibility = 'public' AND a.hidden = 0 AND a.visible_at <= ?
            AND NOT EXISTS (SELECT 1 FROM bans b WHERE b.public_key = a.public_key AND b.expires_at > ?)";
        Self { sql: sql.to_owned(), values: vec![now_ms.into(), now_ms.into()] }
    }

    fn and(&mut self, sql: &str, values: impl IntoIterator<Item = Value>) {
        self.sql.push_str(" AND ");
        self.sql.push_str(sql);
        self.values.extend(values);
    }

    fn any_tag(&mut self, column: &str, tags: &[String]) {
        if tags.is_empty() {
            return;
        }
        let marks = vec!["?"; tags.len()].join(",");
        let sql = format!("EXISTS (SELECT 1 FROM json_each(a.{column}) j WHERE j.value IN ({marks}))");
        self.and(&sql, tags.iter().cloned().map(Value::from));
    }

    fn of(search: &Search, now_ms: i64) -> Self {
        let mut conditions = Self::visible(now_ms);
        conditions.any_tag("capabilities", &search.capabilities);
        conditions.any_tag("interests", &search.interests);
        if let Some(framework) = &search.framework {
            conditions.and("a.framework = ? AND a.framework_visible = 1", [framework.clone().into()]);
        }
        if let Some(online) = search.online {
            conditions.and("a.online = ?", [Value::from(i64::from(online))]);
        }
        conditions
    }
}

/// Runs a search; with words the result is ranked, without it is sorted.
pub fn search(c: &Connection, search: &Search, now_ms: i64) -> rusqlite::Result<Page> {
    let words = sanitise(&search.text);
    if words.is_empty() { listing(c, search, now_ms) } else { ranked(c, search, &words, now_ms) }
}

fn listing(c: &Connection, search: &Search, now_ms: i64) -> rusqlite::Result<Page> {
    let mut conditions = Conditions::of(search, now_ms);
    let total = count(c, &conditions)?;
    let column = search.sort.column();
    let (order, compare) = if search.sort == Sort::Name { ("ASC", ">") } else { ("DESC", "<") };
    if let Some(after) = &search.after {
        let value = match search.sort {
            Sort::Name => Value::from(after.value.clone()),
            _ => Value::from(after.value.parse::<i64>().unwrap_or(i64::MAX)),
        };
        let sql = format!("(a.{column} {compare} ? OR (a.{column} = ? AND a.public_key > ?))");
        conditions.and(&sql, [value.clone(), value, after.key.to_vec().into()]);
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM agents a WHERE {} ORDER BY a.{column} {order}, a.public_key LIMIT ?",
        conditions.sql
    );
    conditions.values.push(i64::from(search.limit + 1).into());
    let mut entries: Vec<Entry> = c
        .prepare_cached(&sql)?
        .query_map(params_from_iter(conditions.values), read_entry)?
        .collect::<Result<_, _>>()?;
    let has_more = entries.len() > search.limit as usize;
    entries.truncate(search.limit as usize);
    let next = entries.last().filter(|_| has_more).map(|last| Cursor {
        value: match search.sort {
            Sort::LastSeen => last.last_seen_ms.to_string(),
            Sort::RegisteredAt => last.registered_ms.to_string(),
            Sort::Name => last.name.clone(),
        },
        key: last.key,
        issued_ms: now_ms,
    });
    Ok(Page { entries, total, has_more, next, ranked: None })
}

fn ranked(c: &Connection, search: &Search, words: &str, now_ms: i64) -> rusqlite::Result<Page> {
    let mut conditions = Conditions::of(search, now_ms);
    conditions
        .and("a.id IN (SELECT rowid FROM agents_fts WHERE agents_fts MATCH ?)", [words.to_owned().into()]);
    let total = count(c, &conditions)?;
    let sql = format!(
        "WITH hits AS MATERIALIZED (SELECT a.id FROM agents a WHERE {} ORDER BY a.last_seen DESC LIMIT {RANKED})
         SELECT a.public_key FROM agents_fts f JOIN hits h ON h.id = f.rowid JOIN agents a ON a.id = h.id
         WHERE agents_fts MATCH ?
         ORDER BY bm25(agents_fts, 10.0, 2.0, 4.0, 4.0), a.online DESC, a.last_seen DESC, a.public_key",
        conditions.sql
    );
    conditions.values.push(words.to_owned().into());
    let keys: Vec<[u8; 32]> = c
        .prepare_cached(&sql)?
        .query_map(params_from_iter(conditions.values), |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let start = search.after.as_ref().map_or(0, |after| {
        let known = keys.iter().position(|key| *key == after.key);
        known.map_or_else(|| after.value.parse().unwrap_or(0), |at| at + 1)
    });
    let page: Vec<[u8; 32]> = keys.iter().skip(start).take(search.limit as usize).copied().collect();
    let end = start + page.len();
    let has_more = end < keys.len();
    let next = page.last().filter(|_| has_more).map(|key| Cursor {
        value: end.to_string(),
        key: *key,
        issued_ms: now_ms,
    });
    let entries =
        page.iter().filter_map(|key| entry(c, key).transpose()).collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(Page { entries, total, has_more, next, ranked: (total > RANKED).then_some(RANKED) })
}

fn count(c: &Connection, conditions: &Conditions) -> rusqlite::Result<u32> {
    let sql =
        format!("SELECT count(*) FROM (SELECT 1 FROM agents a WHERE {} LIMIT {COUNTED})", conditions.sql);
    c.prepare_cached(&sql)?.query_row(params_from_iter(conditions.values.clone()), |row| row.get(0))
}

/// The entry of a key, listed or not.
pub fn entry(c: &Connection, key: &[u8; 32]) -> rusqlite::Result<Option<Entry>> {
    c.prepare_cached(&format!("SELECT {COLUMNS} FROM agents a WHERE public_key = ?1"))?
        .query_row([key], read_entry)
        .optional()
}

/// The entry of an address, listed or not.
pub fn entry_by_address(c: &Connection, agent_id: &str) -> rusqlite::Result<Option<Entry>> {
    c.prepare_cached(&format!("SELECT {COLUMNS} FROM agents a WHERE agent_id = ?1"))?
        .query_row([agent_id], read_entry)
        .optional()
}

/// Whether everybody may see the entry.
pub fn is_visible(c: &Connection, key: &[u8; 32], now_ms: i64) -> rusqlite::Result<bool> {
    let mut conditions = Conditions::visible(now_ms);
    conditions.and("a.public_key = ?", [key.to_vec().into()]);
    Ok(count(c, &conditions)? > 0)
}

/// Entries for `discover`: listed ones that match, live ones first, then last seen first.
pub fn discover(
    c: &Connection,
    name: Option<&str>,
    capability: Option<&str>,
    framework: Option<&str>,
    now_ms: i64,
    limit: u32,
) -> rusqlite::Result<Vec<Found>> {
    let wanted = |raw: &str| clean::tag(raw).unwrap_or_default();
    let search = Search {
        capabilities: capability.map(wanted).into_iter().collect(),
        framework: framework.map(wanted),
        ..Search::default()
    };
    let mut conditions = Conditions::of(&search, now_ms);
    let words = sanitise(name.unwrap_or_default());
    if !words.is_empty() {
        conditions.and("a.id IN (SELECT rowid FROM agents_fts WHERE agents_fts MATCH ?)", [words.into()]);
    }
    conditions.values.push(i64::from(limit).into());
    let sql = format!(
        "SELECT {COLUMNS} FROM agents a WHERE {} ORDER BY a.online DESC, a.last_seen DESC LIMIT ?",
        conditions.sql
    );
    c.prepare_cached(&sql)?
        .query_map(params_from_iter(conditions.values), |row| {
            let entry = read_entry(row)?;
            let framework = Some(entry.framework).filter(|f| entry.framework_visible && f != "unknown");
            Ok(Found {
                key: entry.key,
                name: entry.name,
                framework,
                capabilities: entry.capabilities,
                last_seen_ms: entry.last_seen_ms,
            })
        })?
        .collect()
}

fn read_entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let tags =
        |index| row.get::<_, String>(index).map(|json| serde_json::from_str(&json).unwrap_or_default());
    Ok(Entry {
        key: row.get(0)?,
        agent_id: row.get(1)?,
        name: row.get(2)?,
        bio: row.get(3)?,
        interests: tags(4)?,
        capabilities: tags(5)?,
        framework: row.get(6)?,
        framework_visible: row.get(7)?,
        homepage: row.get(8)?,
        visibility: row.get(9)?,
        registered_ms: row.get(10)?,
        last_seen_ms: row.get(11)?,
        online: row.get(12)?,
        stale: row.get(13)?,
        visible_ms: row.get(14)?,
        consent: row.get(15)?,
    })
}
