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
/// The same where several conditions have to hold: each hit costs a walk over those of the commonest one.
const COUNTED_OF_SEVERAL: u32 = 5_000;
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

    fn cursor(self, last: &Head, now_ms: i64) -> Cursor {
        let value = match self {
            Self::LastSeen => last.last_seen_ms.to_string(),
            Self::RegisteredAt => last.registered_ms.to_string(),
            Self::Name => last.name.clone(),
        };
        Cursor { value, key: last.key, issued_ms: now_ms }
    }

    fn compare(self, one: &Head, other: &Head) -> Ordering {
        match self {
            Self::LastSeen => (other.last_seen_ms, other.key).cmp(&(one.last_seen_ms, one.key)),
            Self::RegisteredAt => (other.registered_ms, other.key).cmp(&(one.registered_ms, one.key)),
            Self::Name => folded(&one.name).cmp(folded(&other.name)).then(one.key.cmp(&other.key)),
        }
    }

    fn is_behind(self, entry: &Head, after: &Cursor) -> bool {
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
        let framework = self.framework.as_slice();
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

    /// What no index decides.
    fn admits(&self, head: &Head, now_ms: i64) -> bool {
        head.shown_ms <= now_ms && self.online.is_none_or(|online| head.online == online)
    }

    /// Whether the facets of an entry have the tags; the index has decided it where it was asked.
    fn has_tags(&self, facets: &str) -> bool {
        let has = |kind: &str, tag: &str| {
            let wanted = clean::facet(kind, tag);
            facets.split(' ').any(|facet| facet == wanted)
        };
        let any = |kind: &str, tags: &[String]| tags.is_empty() || tags.iter().any(|tag| has(kind, tag));
        any(clean::CAPABILITY, &self.capabilities)
            && any(clean::INTEREST, &self.interests)
            && self.framework.as_ref().is_none_or(|framework| has(clean::FRAMEWORK, framework))
    }
}

/// What sorts and shows an entry, without what people read.
struct Head {
    id: i64,
    key: [u8; 32],
    name: String,
    last_seen_ms: i64,
    registered_ms: i64,
    online: bool,
    shown_ms: i64,
}

const HEAD: &str = "a.id, a.public_key, a.name, a.last_seen, a.registered_at, a.online, a.shown_at";

impl Head {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            key: row.get(1)?,
            name: row.get(2)?,
            last_seen_ms: row.get(3)?,
            registered_ms: row.get(4)?,
            online: row.get(5)?,
            shown_ms: row.get(6)?,
        })
    }
}

impl Entry {
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
    let most = if query.contains(" AND ") { COUNTED_OF_SEVERAL } else { COUNTED };
    let ids = hits(c, &query, most)?;
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

fn entries<'a>(c: &Connection, heads: impl Iterator<Item = &'a Head>) -> rusqlite::Result<Vec<Entry>> {
    let mut read = c.prepare_cached(&format!("SELECT {COLUMNS} FROM agents a WHERE id = ?1"))?;
    heads.filter_map(|head| read.query_row([head.id], read_entry).optional().transpose()).collect()
}

/// Entries whose numbers are in a JSON list: one statement, where one for each would cost more than its row.
const OF_LIST: &str = "FROM json_each(?1) j CROSS JOIN agents a ON a.id = j.value";

fn list(ids: &[i64]) -> String {
    let numbers: Vec<String> = ids.iter().map(i64::to_string).collect();
    format!("[{}]", numbers.join(","))
}

fn heads(c: &Connection, search: &Search, ids: &[i64], now_ms: i64) -> rusqlite::Result<Vec<Head>> {
    let mut read = c.prepare_cached(&format!("SELECT {HEAD} {OF_LIST}"))?;
    let mut rows = read.query([list(ids)])?;
    let mut heads = Vec::with_capacity(ids.len());
    while let Some(row) = rows.next()? {
        heads.extend(Some(Head::read(row)?).filter(|head| search.admits(head, now_ms)));
    }
    Ok(heads)
}

/// A listing of few entries: all are read and sorted.
fn gathered(c: &Connection, search: &Search, ids: &[i64], now_ms: i64) -> rusqlite::Result<Page> {
    let mut heads = heads(c, search, ids, now_ms)?;
    heads.sort_unstable_by(|one, other| search.sort.compare(one, other));
    let total = heads.len() as u32;
    if let Some(after) = &search.after {
        heads.retain(|head| search.sort.is_behind(head, after));
    }
    let has_more = heads.len() > search.limit as usize;
    heads.truncate(search.limit as usize);
    let next = heads.last().filter(|_| has_more).map(|last| search.sort.cursor(last, now_ms));
    Ok(Page { entries: entries(c, heads.iter())?, total, has_more, next, ranked: None })
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
        conditions = format!("{conditions} AND (a.{column}, a.public_key) {compare} (?, ?)");
        values.push(match search.sort {
            Sort::Name => Value::from(after.value.clone()),
            Sort::LastSeen | Sort::RegisteredAt => after.value.parse::<i64>().unwrap_or(i64::MAX).into(),
        });
        values.push(after.key.to_vec().into());
    }
    values.push(i64::from(SCANNED + 1).into());
    let sql = format!(
        "SELECT {HEAD}, a.facets FROM agents a INDEXED BY {index} WHERE {conditions}
         ORDER BY a.{column} {order}, a.public_key {order} LIMIT ?"
    );
    let mut statement = c.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let (mut found, mut scanned, mut has_more) = (Vec::new(), 0, false);
    let mut next = None;
    while let Some(row) = rows.next()? {
        if found.len() == search.limit as usize || scanned == SCANNED {
            has_more = true;
            break;
        }
        scanned += 1;
        let head = Head::read(row)?;
        next = Some(search.sort.cursor(&head, now_ms));
        if search.admits(&head, now_ms) && search.has_tags(row.get_ref(7)?.as_str()?) {
            found.push(head);
        }
    }
    Ok(Page {
        entries: entries(c, found.iter())?,
        total,
        has_more,
        next: next.filter(|_| has_more),
        ranked: None,
    })
}

/// The 2,000 last seen hits, by how well they fit; ties online first, last seen first, by key.
fn ranked(c: &Connection, search: &Search, ids: &[i64], now_ms: i64) -> rusqlite::Result<Page> {
    let many = ids.len() > RANKED as usize;
    let words = Words::new(&search.text.replace(SEPARATORS, " "));
    let mut read =
        c.prepare_cached(&format!("SELECT {HEAD}, a.bio, a.interests, a.capabilities {OF_LIST}"))?;
    let mut rows = read.query([list(ids.get(..RANKED as usize).unwrap_or(ids))])?;
    let mut fits: Vec<(Fit, Head)> = Vec::with_capacity(ids.len().min(RANKED as usize));
    while let Some(row) = rows.next()? {
        let head = Head::read(row)?;
        if !search.admits(&head, now_ms) {
            continue;
        }
        let text = |index| row.get_ref(index).ok().and_then(|value| value.as_str().ok()).unwrap_or_default();
        let [name, bio, interests, capabilities] = WEIGHTS;
        let columns =
            [(head.name.as_str(), name), (text(7), bio), (text(8), interests), (text(9), capabilities)];
        let fit = words.fit(&columns);
        fits.push((fit, head));
    }
    let total = if many { ids.len() } else { fits.len() } as u32;
    let average = score::average(fits.iter().map(|(fit, _)| fit));
    let mut order: Vec<(f64, &Head)> =
        fits.iter().map(|(fit, head)| (score::score(fit, average), head)).collect();
    order.sort_unstable_by(|(one, a), (other, b)| {
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
    let page: Vec<&Head> =
        order.iter().skip(start).take(search.limit as usize).map(|(_, head)| *head).collect();
    let end = start + page.len();
    let has_more = end < order.len();
    let next = page.last().filter(|_| has_more).map(|head| Cursor {
        value: end.to_string(),
        key: head.key,
        issued_ms: now_ms,
    });
    Ok(Page { entries: entries(c, page.into_iter())?, total, has_more, next, ranked: many.then_some(RANKED) })
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
    let found = if let Some(query) = search.matching() {
        let mut heads = heads(c, &search, &hits(c, &query, RANKED)?, now_ms)?;
        heads.sort_unstable_by_key(|head| Reverse((head.online, head.last_seen_ms)));
        heads.truncate(limit as usize);
        entries(c, heads.iter())?
    } else {
        let mut found = Vec::new();
        for online in [true, false] {
            let limit = limit.saturating_sub(found.len() as u32);
            let part = Search { online: Some(online), limit, ..search.clone() };
            found.extend(walk(c, &part, 0, now_ms)?.entries);
        }
        found
    };
    let found = found.into_iter().map(|entry| Found {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Profile;
    use crate::store::registry::{MIGRATIONS, Upsert, upsert};

    const NOW: i64 = 1_768_478_400_000;
    const ENTRIES: u32 = 2_300;

    fn key(n: u32) -> [u8; 32] {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_be_bytes());
        key
    }

    /// Every entry chats; one in a hundred keeps bees, one in two shows its framework.
    fn directory() -> Connection {
        let c = Connection::open_in_memory().expect("memory");
        for migration in MIGRATIONS {
            c.execute_batch(migration.sql).expect("schema");
        }
        c.execute_batch("BEGIN").expect("begin");
        for n in 0..ENTRIES {
            let profile = Profile {
                name: Some(format!("{} {n}", if n % 2 == 0 { "Agent" } else { "agent" })),
                bio: Some(if n == 77 { "common common rare".into() } else { "a common text".into() }),
                interests: Some(if n % 100 == 0 { vec!["bee-keeping".into()] } else { Vec::new() }),
                capabilities: Some(vec!["chat".into()]),
                framework: Some("instar".into()),
                framework_visible: Some(n % 2 == 0),
                homepage: None,
            };
            let entry = Upsert {
                key: &key(n),
                profile: &profile,
                visibility: "public",
                consent: "api_call",
                relay_id: "relay",
                visible_at: 0,
                now_ms: NOW + i64::from(n / 3),
                online: n % 10 == 0,
            };
            upsert(&c, &entry).expect("upsert");
        }
        c.execute_batch("COMMIT").expect("commit");
        c
    }

    fn walk_all(c: &Connection, mut wanted: Search) -> Vec<Entry> {
        let (mut all, mut pages) = (Vec::new(), 0);
        loop {
            let page = search(c, &wanted, NOW * 2).expect("search");
            assert!(page.entries.len() <= wanted.limit as usize);
            all.extend(page.entries);
            pages += 1;
            assert!(pages < 200, "it ends");
            match page.next {
                Some(next) => wanted.after = Some(next),
                None => return all,
            }
        }
    }

    #[test]
    fn every_walk_sees_every_entry_once_and_in_order() {
        let c = directory();
        let tag = |tag: &str| vec![tag.to_owned()];
        let base = Search { limit: 97, ..Search::default() };
        for sort in [Sort::LastSeen, Sort::RegisteredAt, Sort::Name] {
            for (wanted, count) in [
                (Search { sort, ..base.clone() }, 2_300),
                (Search { sort, capabilities: tag("chat"), ..base.clone() }, 2_300),
                (Search { sort, interests: tag("bee-keeping"), ..base.clone() }, 23),
                (Search { sort, framework: Some("instar".into()), ..base.clone() }, 1_150),
                (Search { sort, online: Some(true), ..base.clone() }, 230),
                (Search { sort, online: Some(false), capabilities: tag("chat"), ..base.clone() }, 2_070),
                (Search { sort, capabilities: tag("bee-keeping"), ..base.clone() }, 0),
            ] {
                let all = walk_all(&c, wanted.clone());
                assert_eq!(all.len(), count, "{wanted:?}");
                let order = |e: &Entry| match sort {
                    Sort::LastSeen => (-e.last_seen_ms, String::new()),
                    Sort::RegisteredAt => (-e.registered_ms, String::new()),
                    Sort::Name => (0, e.name.to_ascii_lowercase()),
                };
                assert!(all.is_sorted_by_key(order), "{wanted:?}");
                let keys: std::collections::HashSet<[u8; 32]> = all.iter().map(|e| e.key).collect();
                assert_eq!(keys.len(), count, "none twice");
            }
        }
    }

    #[test]
    fn of_many_hits_the_two_thousand_last_seen_are_ranked() {
        let c = directory();
        let words = |text: &str| Search { text: text.into(), limit: 50, ..Search::default() };
        let page = search(&c, &words("common"), NOW * 2).expect("search");
        assert_eq!((page.ranked, page.total), (Some(RANKED), 2_300));
        assert_eq!(walk_all(&c, Search { limit: 100, ..words("common") }).len(), RANKED as usize);
        let page = search(&c, &words("rare"), NOW * 2).expect("search");
        assert_eq!((page.ranked, page.total, page.entries[0].key), (None, 1, key(77)));
        let page = search(&c, &Search { interests: vec!["bee-keeping".into()], ..words("common") }, NOW * 2);
        assert_eq!(page.expect("search").total, 23, "tags narrow before the ranking");
        let page = search(&c, &words("þchat ckþchat"), NOW * 2).expect("search");
        assert_eq!(page.total, 0, "nobody can look into the words for tags");
    }

    #[test]
    fn an_entry_is_not_shown_before_its_time_and_the_index_follows_every_change() {
        let c = directory();
        let rare = Search { text: "rare".into(), limit: 5, ..Search::default() };
        c.execute("UPDATE agents SET shown_at=?2 WHERE public_key=?1", params![key(77), NOW + 5])
            .expect("sql");
        for (now_ms, count) in [(NOW + 4, 0), (NOW + 5, 1), (NOW + 6, 1)] {
            assert_eq!(search(&c, &rare, now_ms).expect("search").total, count, "{now_ms}");
        }
        for (change, count) in [
            ("visibility='unlisted'", 0),
            ("visibility='public'", 1),
            ("hidden=1", 0),
            ("hidden=0, id=99999", 1),
        ] {
            let sql = format!("UPDATE agents SET {change} WHERE public_key=?1");
            c.execute(&sql, [key(77)]).expect("sql");
            assert_eq!(search(&c, &rare, NOW * 2).expect("search").total, count, "{change}");
        }
        c.execute("DELETE FROM agents WHERE public_key=?1", [key(77)]).expect("sql");
        assert_eq!(search(&c, &rare, NOW * 2).expect("search").total, 0);
        c.execute_batch("INSERT INTO agents_fts(agents_fts, rank) VALUES ('integrity-check', 1)")
            .expect("sound");
        let counted: i64 = c
            .query_row("SELECT n FROM capability_counts WHERE tag='chat'", [], |row| row.get(0))
            .expect("counted");
        assert_eq!(counted, i64::from(ENTRIES) - 1);
    }
}
