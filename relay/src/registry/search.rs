//! Finding entries (`relay.md` §12.3).

use std::cmp::{Ordering, Reverse};

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};

use super::clean;
use super::cursor::Cursor;
use super::query::{SEPARATORS, sanitise};
use super::score::{self, Fit, Words};
use crate::store::registry::Found;

/// Most hits of a text query that are ranked.
pub const RANKED: u32 = 2_000;
/// Highest total that is counted.
const COUNTED: u32 = 10_000;
const COLUMNS: &str =
    "public_key, agent_id, name, bio, interests, capabilities, framework, framework_visible,
    homepage, visibility, registered_at, last_seen, online, stale, visible_at, consent_method, hidden, shown_at,
    verified_domain";

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
            Self::Name => "name",
        }
    }

    const fn index(self) -> &'static str {
        match self {
            Self::LastSeen => "agents_seen",
            Self::RegisteredAt => "agents_new",
            Self::Name => "agents_name",
        }
    }

    fn cursor(self, last: &Entry, now_ms: i64) -> Cursor {
        let value = match self {
            Self::LastSeen => last.last_seen_ms.to_string(),
            Self::RegisteredAt => last.registered_ms.to_string(),
            Self::Name => last.name.clone(),
        };
        Cursor { value, key: last.key, issued_ms: now_ms }
    }

    fn compare(self, one: &Entry, other: &Entry) -> Ordering {
        match self {
            Self::LastSeen => (other.last_seen_ms, other.key).cmp(&(one.last_seen_ms, one.key)),
            Self::RegisteredAt => (other.registered_ms, other.key).cmp(&(one.registered_ms, one.key)),
            Self::Name => folded(&one.name).cmp(folded(&other.name)).then(one.key.cmp(&other.key)),
        }
    }

    fn is_behind(self, entry: &Entry, after: &Cursor) -> bool {
        let time = || after.value.parse().unwrap_or(i64::MAX);
        match self {
            Self::LastSeen => (entry.last_seen_ms, entry.key) < (time(), after.key),
            Self::RegisteredAt => (entry.registered_ms, entry.key) < (time(), after.key),
            Self::Name => {
                folded(&entry.name).cmp(folded(&after.value)).then(entry.key.cmp(&after.key)).is_gt()
            }
        }
    }
}

/// As SQLite's NOCASE compares.
fn folded(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().map(|byte| byte.to_ascii_lowercase())
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
    /// Whether it was not connected for 180 days.
    pub hidden: bool,
    /// When it may be shown, bans considered, in Unix milliseconds.
    pub shown_ms: i64,
    /// Domain that names the agent in its DNS, or empty.
    pub verified_domain: String,
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

/// Weights of name, bio, interests and capabilities.
const WEIGHTS: [f64; 4] = [10.0, 2.0, 4.0, 4.0];
/// Rows of a listing that are looked at for one page; a page that ends there is continued by its cursor.
const SCANNED: u32 = 3_000;
const SHOWN: &str = "a.visibility = 'public' AND a.hidden = 0";

impl Search {
    /// The tags as a full-text query.
    fn facets(&self) -> Vec<String> {
        let any = |kind: &str, tags: &[String]| {
            let words: Vec<String> =
                tags.iter().map(|tag| format!("\"{}\"", clean::facet(kind, tag))).collect();
            (!words.is_empty()).then(|| format!("{{facets}} : ({})", words.join(" OR ")))
        };
        let framework = self.framework.as_ref().map(std::slice::from_ref).unwrap_or_default();
        [
            any(clean::CAPABILITY, &self.capabilities),
            any(clean::INTEREST, &self.interests),
            any(clean::FRAMEWORK, framework),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Everything that the full-text index decides, or `None` for all entries.
    fn matching(&self) -> Option<String> {
        let words = sanitise(&self.text).replace("\" \"", "\" AND \"");
        let text = (!words.is_empty()).then(|| format!("{{name bio interests capabilities}} : ({words})"));
        let parts: Vec<String> =
            text.into_iter().chain(self.facets()).map(|part| format!("({part})")).collect();
        (!parts.is_empty()).then(|| parts.join(" AND "))
    }

    fn admits(&self, entry: &Entry, now_ms: i64) -> bool {
        let any = |wanted: &[String], has: &[String]| {
            wanted.is_empty() || wanted.iter().any(|tag| has.contains(tag))
        };
        entry.is_visible(now_ms)
            && self.online.is_none_or(|online| entry.online == online)
            && any(&self.capabilities, &entry.capabilities)
            && any(&self.interests, &entry.interests)
            && self.framework.as_ref().is_none_or(|f| entry.framework_visible && entry.framework == *f)
    }
}

impl Entry {
    fn fit(&self, words: &Words) -> Fit {
        let (interests, capabilities) = (self.interests.join(" "), self.capabilities.join(" "));
        let columns = [self.name.as_str(), &self.bio, &interests, &capabilities];
        let mut weighted = [("", 0.0); 4];
        for ((column, text), weight) in weighted.iter_mut().zip(columns).zip(WEIGHTS) {
            *column = (text, weight);
        }
        words.fit(&weighted)
    }

    /// Whether everybody may see the entry.
    pub fn is_visible(&self, now_ms: i64) -> bool {
        self.visibility == "public" && !self.hidden && self.shown_ms <= now_ms
    }
}

/// Runs a search; with words the result is ranked, without it is sorted.
///
/// Whatever is asked, at most 10,000 numbers of hits are read, 2,000 hits looked at and 3,000 rows walked.
pub fn search(c: &Connection, search: &Search, now_ms: i64) -> rusqlite::Result<Page> {
    let Some(query) = search.matching() else {
        let total = count(c, search.online, now_ms)?;
        return walk(c, search, total, now_ms);
    };
    let ids = hits(c, &query, COUNTED)?;
    let many = ids.len() > RANKED as usize;
    if !sanitise(&search.text).is_empty() {
        return ranked(c, search, &ids, now_ms);
    }
    if many {
        return walk(c, search, ids.len() as u32, now_ms);
    }
    gathered(c, search, &ids, now_ms)
}

/// Numbers of the entries that match, last seen first.
fn hits(c: &Connection, query: &str, most: u32) -> rusqlite::Result<Vec<i64>> {
    c.prepare_cached("SELECT rowid FROM agents_fts WHERE agents_fts MATCH ?1 ORDER BY rowid DESC LIMIT ?2")?
        .query_map(params![query, most], |row| row.get(0))?
        .collect()
}

fn rows(c: &Connection, ids: &[i64]) -> rusqlite::Result<Vec<Entry>> {
    let mut read = c.prepare_cached(&format!("SELECT {COLUMNS} FROM agents a WHERE id = ?1"))?;
    ids.iter().filter_map(|id| read.query_row([id], read_entry).optional().transpose()).collect()
}

/// A listing of few entries: all are read and sorted.
fn gathered(c: &Connection, search: &Search, ids: &[i64], now_ms: i64) -> rusqlite::Result<Page> {
    let mut entries = rows(c, ids)?;
    entries.retain(|entry| search.admits(entry, now_ms));
    entries.sort_by(|one, other| search.sort.compare(one, other));
    let total = entries.len() as u32;
    if let Some(after) = &search.after {
        entries.retain(|entry| search.sort.is_behind(entry, after));
    }
    let has_more = entries.len() > search.limit as usize;
    entries.truncate(search.limit as usize);
    let next = entries.last().filter(|_| has_more).map(|last| search.sort.cursor(last, now_ms));
    Ok(Page { entries, total, has_more, next, ranked: None })
}

/// A listing of many entries: the index of the order is walked from the cursor on.
fn walk(c: &Connection, search: &Search, total: u32, now_ms: i64) -> rusqlite::Result<Page> {
    let mut values: Vec<Value> = Vec::new();
    let mut conditions = SHOWN.to_owned();
    let mut index = search.sort.index();
    if let Some(online) = search.online.filter(|_| search.sort == Sort::LastSeen) {
        index = "agents_online";
        conditions.push_str(" AND a.online = ?");
        values.push(i64::from(online).into());
    }
    let column = search.sort.column();
    let (order, compare) = if search.sort == Sort::Name { ("ASC", ">") } else { ("DESC", "<") };
    if let Some(after) = &search.after {
        conditions.push_str(&format!(" AND (a.{column}, a.public_key) {compare} (?, ?)"));
        values.push(match search.sort {
            Sort::Name => Value::from(after.value.clone()),
            Sort::LastSeen | Sort::RegisteredAt => after.value.parse::<i64>().unwrap_or(i64::MAX).into(),
        });
        values.push(after.key.to_vec().into());
    }
    values.push(i64::from(SCANNED + 1).into());
    let sql = format!(
        "SELECT {COLUMNS} FROM agents a INDEXED BY {index} WHERE {conditions}
         ORDER BY a.{column} {order}, a.public_key {order} LIMIT ?"
    );
    let mut statement = c.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let (mut entries, mut scanned, mut last, mut has_more) = (Vec::new(), 0, None, false);
    while let Some(row) = rows.next()? {
        if entries.len() == search.limit as usize || scanned == SCANNED {
            has_more = true;
            break;
        }
        scanned += 1;
        let entry = read_entry(row)?;
        last = Some(search.sort.cursor(&entry, now_ms));
        if search.admits(&entry, now_ms) {
            entries.push(entry);
        }
    }
    Ok(Page { entries, total, has_more, next: last.filter(|_| has_more), ranked: None })
}

/// The 2,000 last seen hits, by how well they fit; ties online first, last seen first, by key.
fn ranked(c: &Connection, search: &Search, ids: &[i64], now_ms: i64) -> rusqlite::Result<Page> {
    let many = ids.len() > RANKED as usize;
    let mut entries = rows(c, ids.get(..RANKED as usize).unwrap_or(ids))?;
    entries.retain(|entry| search.admits(entry, now_ms));
    let total = if many { ids.len() } else { entries.len() } as u32;
    let words = Words::new(&search.text.replace(SEPARATORS, " "));
    let fits: Vec<Fit> = entries.iter().map(|entry| entry.fit(&words)).collect();
    let average = score::average(fits.iter());
    let mut order: Vec<(f64, &Entry)> =
        fits.iter().map(|fit| score::score(fit, average)).zip(&entries).collect();
    order.sort_by(|(one, a), (other, b)| {
        other
            .total_cmp(one)
            .then(b.online.cmp(&a.online))
            .then(b.last_seen_ms.cmp(&a.last_seen_ms))
            .then(a.key.cmp(&b.key))
    });
    let start = search.after.as_ref().map_or(0, |after| {
        let known = order.iter().position(|(_, entry)| entry.key == after.key);
        known.map_or_else(|| after.value.parse().unwrap_or(0), |at| at + 1)
    });
    let page: Vec<Entry> =
        order.iter().skip(start).take(search.limit as usize).map(|(_, entry)| (*entry).clone()).collect();
    let end = start + page.len();
    let has_more = end < order.len();
    let next = page.last().filter(|_| has_more).map(|entry| Cursor {
        value: end.to_string(),
        key: entry.key,
        issued_ms: now_ms,
    });
    Ok(Page { entries: page, total, has_more, next, ranked: many.then_some(RANKED) })
}

/// Shown entries, at most 10,000.
fn count(c: &Connection, online: Option<bool>, now_ms: i64) -> rusqlite::Result<u32> {
    let (index, condition) = match online {
        None => ("agents_seen", "1"),
        Some(true) => ("agents_online", "online = 1"),
        Some(false) => ("agents_online", "online = 0"),
    };
    let sql = format!(
        "SELECT count(*) FROM (SELECT 1 FROM agents a INDEXED BY {index}
         WHERE {SHOWN} AND {condition} AND shown_at <= ?1 LIMIT {COUNTED})"
    );
    c.prepare_cached(&sql)?.query_row([now_ms], |row| row.get(0))
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

/// Entries for `discover`: listed ones that match, live ones first, then last seen first.
pub fn discover(
    c: &Connection,
    name: Option<&str>,
    capability: Option<&str>,
    framework: Option<&str>,
    now_ms: i64,
    limit: u32,
) -> rusqlite::Result<Vec<Found>> {
    // A tag that is none cannot match: an empty one finds nothing.
    let wanted = |raw: &str| clean::tag(raw).unwrap_or_else(|| "-".into());
    let search = Search {
        text: name.unwrap_or_default().to_owned(),
        capabilities: capability.map(wanted).into_iter().collect(),
        framework: framework.map(wanted),
        limit,
        ..Search::default()
    };
    let entries = match search.matching() {
        Some(query) => {
            let mut entries = rows(c, &hits(c, &query, RANKED)?)?;
            entries.retain(|entry| search.admits(entry, now_ms));
            entries.sort_by_key(|entry| Reverse((entry.online, entry.last_seen_ms)));
            entries.truncate(limit as usize);
            entries
        }
        None => {
            let mut entries = Vec::new();
            for online in [true, false] {
                let limit = limit.saturating_sub(entries.len() as u32);
                let part = Search { online: Some(online), limit, ..search.clone() };
                entries.extend(walk(c, &part, 0, now_ms)?.entries);
            }
            entries
        }
    };
    let found = entries.into_iter().map(|entry| Found {
        key: entry.key,
        framework: Some(entry.framework).filter(|f| entry.framework_visible && f != "unknown"),
        name: entry.name,
        capabilities: entry.capabilities,
        last_seen_ms: entry.last_seen_ms,
    });
    Ok(found.collect())
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
        hidden: row.get(16)?,
        shown_ms: row.get(17)?,
        verified_domain: row.get(18)?,
    })
}
