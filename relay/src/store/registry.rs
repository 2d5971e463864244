//! `registry.db`: who was ever here, who is banned, who wants to be found.

pub mod a2a;
pub mod devices;
pub mod operator;

use instar_durable::Migration;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};
use threadline::Fingerprint;
pub use threadline::v1::frames::Visibility;

use super::unsigned;
use crate::abuse::Pattern;
use crate::registry::{clean, search};

/// Schema of `registry.db`.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        sql: "
CREATE TABLE agents(
    id INTEGER PRIMARY KEY, public_key BLOB NOT NULL UNIQUE, agent_id TEXT NOT NULL, name TEXT NOT NULL,
    bio TEXT NOT NULL, interests TEXT NOT NULL, capabilities TEXT NOT NULL, framework TEXT NOT NULL,
    framework_visible INTEGER NOT NULL, homepage TEXT NOT NULL,
    visibility TEXT NOT NULL CHECK(visibility IN ('public', 'unlisted')), relay_id TEXT NOT NULL,
    registered_at INTEGER NOT NULL, last_seen INTEGER NOT NULL, last_updated INTEGER NOT NULL,
    visible_at INTEGER NOT NULL, online INTEGER NOT NULL DEFAULT 0, stale INTEGER NOT NULL DEFAULT 0,
    hidden INTEGER NOT NULL DEFAULT 0, consent_method TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 1) STRICT;
CREATE INDEX agents_agent_id ON agents(agent_id);
CREATE INDEX agents_last_seen ON agents(last_seen);
CREATE INDEX agents_registered_at ON agents(registered_at);
CREATE INDEX agents_name ON agents(name COLLATE NOCASE);
CREATE VIRTUAL TABLE agents_fts USING fts5(
    name, bio, interests, capabilities, content='agents', content_rowid='id',
    tokenize='unicode61 remove_diacritics 2');
CREATE TRIGGER agents_ai AFTER INSERT ON agents BEGIN
    INSERT INTO agents_fts(rowid, name, bio, interests, capabilities)
    VALUES (new.id, new.name, new.bio, new.interests, new.capabilities);
END;
CREATE TRIGGER agents_ad AFTER DELETE ON agents BEGIN
    INSERT INTO agents_fts(agents_fts, rowid, name, bio, interests, capabilities)
    VALUES ('delete', old.id, old.name, old.bio, old.interests, old.capabilities);
END;
CREATE TRIGGER agents_au AFTER UPDATE OF name, bio, interests, capabilities ON agents BEGIN
    INSERT INTO agents_fts(agents_fts, rowid, name, bio, interests, capabilities)
    VALUES ('delete', old.id, old.name, old.bio, old.interests, old.capabilities);
    INSERT INTO agents_fts(rowid, name, bio, interests, capabilities)
    VALUES (new.id, new.name, new.bio, new.interests, new.capabilities);
END;
CREATE TABLE first_seen(
    public_key BLOB PRIMARY KEY, address BLOB NOT NULL UNIQUE, at INTEGER NOT NULL, source BLOB NOT NULL,
    tier_counts TEXT NOT NULL DEFAULT '{}') STRICT, WITHOUT ROWID;
CREATE INDEX first_seen_source ON first_seen(source, at);
CREATE TABLE bans(
    public_key BLOB PRIMARY KEY, reason TEXT NOT NULL, pattern TEXT NOT NULL, banned_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, strikes INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE consent_log(
    public_key BLOB NOT NULL, at INTEGER NOT NULL, method TEXT NOT NULL, listed INTEGER NOT NULL) STRICT;
CREATE TABLE suppress(public_key BLOB PRIMARY KEY, until INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
",
    },
    Migration { sql: include_str!("registry/second.sql") },
    Migration { sql: include_str!("registry/third.sql") },
    Migration { sql: include_str!("registry/fourth.sql") },
];

/// Milliseconds for which a deleted entry is not made again by a mere public login.
pub const SUPPRESS_MS: i64 = 30 * 86_400_000;
/// Milliseconds an entry keeps its number, which is its place among the last seen hits of a common word.
const PLACED_FOR_MS: i64 = 86_400_000;
/// Within this time a repeated ban doubles.
const REPEAT_MS: i64 = 7 * 86_400_000;
/// Longest ban.
const LONGEST_BAN_MS: i64 = 7 * 86_400_000;

/// What an agent tells about itself, cleaned. `None` leaves what is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// Display name, at most 64 characters.
    pub name: Option<String>,
    /// About it, at most 500 characters.
    pub bio: Option<String>,
    /// Tags.
    pub interests: Option<Vec<String>>,
    /// Tags.
    pub capabilities: Option<Vec<String>>,
    /// One tag.
    pub framework: Option<String>,
    /// Whether others see the framework.
    pub framework_visible: Option<bool>,
    /// https URL or empty.
    pub homepage: Option<String>,
}

/// Rules that a login is judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginRules {
    /// Milliseconds for which a new identity stays out of the directory.
    pub aging_ms: i64,
    /// New identities per source and hour; `None` counts nothing per source.
    pub identities_per_hour: Option<u32>,
    /// Name of this relay.
    pub relay_id: String,
}

/// A login whose signature was verified.
#[derive(Debug, Clone)]
pub struct Login {
    /// The agent's key.
    pub key: [u8; 32],
    /// Now, in Unix milliseconds.
    pub now_ms: i64,
    /// Pseudonym of the source.
    pub source: [u8; 16],
    /// What it tells about itself.
    pub profile: Profile,
    /// Who can find it.
    pub visibility: Visibility,
    /// Whether the agent speaks v2; some do not want to be logged in by v1.
    pub v2: bool,
    /// Only a token is wanted: the directory is left as it is.
    pub token_only: bool,
    /// Explicit wish about the registry.
    pub listed: Option<bool>,
    /// Rules to judge by.
    pub rules: LoginRules,
}

/// How the registry took a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// In the directory.
    Listed,
    /// An entry exists and is now unlisted.
    Updated,
    /// No entry.
    NotListed,
}

/// Counters of a young identity; they outlive restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TierCounts {
    /// Hour of life that the counters belong to.
    pub hour: i64,
    /// Messages accepted in that hour.
    pub messages: u32,
    /// Recipients first written to in that hour.
    pub recipients: Vec<Fingerprint>,
    /// Whether the identity proved work.
    pub worked: bool,
}

/// Outcome of a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginOutcome {
    /// Welcome.
    Welcome {
        /// When this key was first here, in Unix milliseconds.
        first_seen_ms: i64,
        /// Whether that was now.
        first: bool,
        /// Its counters.
        counts: TierCounts,
        /// What the registry did.
        listing: Listing,
        /// Whether others see its framework.
        framework_visible: bool,
    },
    /// Banned until the given Unix millisecond.
    Banned {
        /// When the ban ends.
        until_ms: i64,
        /// Why.
        reason: String,
    },
    /// Another key has this address.
    Conflict,
    /// The identity wants no logins by v1.
    NoV1,
    /// Too many new identities from this source in one hour.
    TooManyIdentities,
}

/// Operations on the registry.
#[derive(Debug, Clone)]
pub enum RegistryOp {
    /// An agent proved its key.
    Login(Box<Login>),
    /// An agent is gone.
    Left {
        /// Its key.
        key: [u8; 32],
        /// When, in Unix milliseconds.
        at_ms: i64,
    },
    /// Keeps the counters of a young identity.
    Count {
        /// Its key.
        key: [u8; 32],
        /// The counters.
        counts: TierCounts,
    },
    /// Bans a key; a repeat within seven days lasts twice as long.
    Ban {
        /// The key.
        key: [u8; 32],
        /// What it did.
        pattern: Pattern,
        /// Now, in Unix milliseconds.
        now_ms: i64,
    },
    /// Whether an identity with this address was ever here.
    Known {
        /// The address.
        address: Fingerprint,
    },
    /// Looks up entries for `discover`.
    Discover {
        /// Words in name, bio and tags.
        name: Option<String>,
        /// Capability tag.
        capability: Option<String>,
        /// Framework tag, where visible.
        framework: Option<String>,
        /// Now, in Unix milliseconds.
        now_ms: i64,
        /// Most entries.
        limit: u32,
    },
    /// On devices and their keys.
    Devices(devices::DeviceOp),
}

/// An entry as `discover` needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Full key.
    pub key: [u8; 32],
    /// Display name.
    pub name: String,
    /// Framework, where visible.
    pub framework: Option<String>,
    /// Tags.
    pub capabilities: Vec<String>,
    /// Last seen, in Unix milliseconds.
    pub last_seen_ms: i64,
}

/// Answers of the registry.
#[derive(Debug, Clone)]
pub enum RegistryAnswer {
    /// To [`RegistryOp::Login`].
    Login(LoginOutcome),
    /// To [`RegistryOp::Left`] and [`RegistryOp::Count`].
    Done,
    /// To [`RegistryOp::Ban`]: when it ends, in Unix milliseconds.
    Banned(i64),
    /// To [`RegistryOp::Known`].
    Known(bool),
    /// To [`RegistryOp::Discover`].
    Found(Vec<Found>),
    /// To [`RegistryOp::Devices`].
    Devices(devices::DeviceAnswer),
}

/// Runs one operation inside the caller's transaction.
pub fn apply(c: &Connection, op: &RegistryOp) -> rusqlite::Result<RegistryAnswer> {
    match op {
        RegistryOp::Login(login) => judge_login(c, login).map(RegistryAnswer::Login),
        RegistryOp::Left { key, at_ms } => {
            c.prepare_cached("UPDATE agents SET online=0, last_seen=max(last_seen, ?2) WHERE public_key=?1")?
                .execute(params![key, at_ms])?;
            Ok(RegistryAnswer::Done)
        }
        RegistryOp::Count { key, counts } => {
            let json = serde_json::to_string(counts).unwrap_or_default();
            c.prepare_cached("UPDATE first_seen SET tier_counts=?2 WHERE public_key=?1")?
                .execute(params![key, json])?;
            Ok(RegistryAnswer::Done)
        }
        RegistryOp::Ban { key, pattern, now_ms } => {
            ban(c, key, *pattern, *now_ms).map(RegistryAnswer::Banned)
        }
        RegistryOp::Known { address } => c
            .prepare_cached("SELECT 1 FROM first_seen WHERE address=?1")?
            .exists([address.as_bytes()])
            .map(RegistryAnswer::Known),
        RegistryOp::Discover { name, capability, framework, now_ms, limit } => {
            search::discover(c, name.as_deref(), capability.as_deref(), framework.as_deref(), *now_ms, *limit)
                .map(RegistryAnswer::Found)
        }
        RegistryOp::Devices(op) => devices::apply(c, op).map(RegistryAnswer::Devices),
    }
}

/// Nobody is online when the relay starts.
pub fn reset_online(c: &Connection) -> rusqlite::Result<()> {
    c.execute("UPDATE agents SET online=0 WHERE online=1", []).map(drop)
}

/// When the ban of `key` ends, if it is banned now.
pub fn banned_until(c: &Connection, key: &[u8; 32], now_ms: i64) -> rusqlite::Result<Option<(i64, String)>> {
    c.prepare_cached("SELECT expires_at, reason FROM bans WHERE public_key=?1 AND expires_at>?2")?
        .query_row(params![key, now_ms], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// Whether an address (32 hex digits) or a key (base64) was ever here.
pub fn was_here(c: &Connection, id: &str) -> rusqlite::Result<bool> {
    let address = match crate::keys::decode_public(id) {
        Some(key) => key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes)),
        None => id.parse().ok(),
    };
    let Some(address) = address else { return Ok(false) };
    c.prepare_cached("SELECT 1 FROM first_seen WHERE address=?1")?.exists([address.as_bytes()])
}

fn judge_login(c: &Connection, login: &Login) -> rusqlite::Result<LoginOutcome> {
    if let Some((until_ms, reason)) = banned_until(c, &login.key, login.now_ms)? {
        return Ok(LoginOutcome::Banned { until_ms, reason });
    }
    if !login.v2 && devices::refuses_v1(c, &login.key)? {
        return Ok(LoginOutcome::NoV1);
    }
    let address = &login.key[..16];
    let look = || {
        c.prepare_cached("SELECT public_key, at, tier_counts FROM first_seen WHERE address=?1")?
            .query_row([address], |row| {
                Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?))
            })
            .optional()
    };
    let mut known = look()?;
    if known.is_none() && operator::recognise(c, &login.key)? {
        known = look()?;
        if let Some((until_ms, reason)) = banned_until(c, &login.key, login.now_ms)? {
            return Ok(LoginOutcome::Banned { until_ms, reason });
        }
    }
    let first = known.is_none();
    let (first_seen_ms, counts) = match known {
        Some((key, ..)) if key != login.key => return Ok(LoginOutcome::Conflict),
        Some((_, at, counts)) => (at, serde_json::from_str(&counts).unwrap_or_default()),
        None => {
            if let Some(limit) = login.rules.identities_per_hour {
                let recent: i64 = c
                    .prepare_cached("SELECT count(*) FROM first_seen WHERE source=?1 AND at>?2")?
                    .query_row(params![login.source, login.now_ms - 3_600_000], |row| row.get(0))?;
                if unsigned(recent) >= u64::from(limit) {
                    return Ok(LoginOutcome::TooManyIdentities);
                }
            }
            c.prepare_cached("INSERT INTO first_seen(public_key, address, at, source) VALUES (?1,?2,?3,?4)")?
                .execute(params![login.key, address, login.now_ms, login.source])?;
            (login.now_ms, TierCounts::default())
        }
    };
    let (listing, framework_visible) =
        if login.token_only { (Listing::NotListed, false) } else { list(c, login, first_seen_ms)? };
    Ok(LoginOutcome::Welcome { first_seen_ms, first, counts, listing, framework_visible })
}

fn list(c: &Connection, login: &Login, first_seen_ms: i64) -> rusqlite::Result<(Listing, bool)> {
    let suppressed = c
        .prepare_cached("SELECT 1 FROM suppress WHERE public_key=?1 AND until>?2")?
        .exists(params![login.key, login.now_ms])?;
    let wanted = match (login.visibility, login.listed) {
        (Visibility::Private, _) | (_, Some(false)) => false,
        (_, Some(true)) => true,
        (visibility, None) => visibility == Visibility::Public && !suppressed,
    };
    let asked_visible = login.profile.framework_visible.unwrap_or(true);
    if !wanted {
        let changed = c
            .prepare_cached(
                "UPDATE agents SET visibility='unlisted', last_seen=?2, online=1, stale=0, hidden=0 WHERE public_key=?1",
            )?
            .execute(params![login.key, login.now_ms])?;
        return Ok((if changed > 0 { Listing::Updated } else { Listing::NotListed }, asked_visible));
    }
    let entry = Upsert {
        key: &login.key,
        profile: &login.profile,
        visibility: "public",
        consent: "auth_handshake",
        relay_id: &login.rules.relay_id,
        visible_at: first_seen_ms + login.rules.aging_ms,
        now_ms: login.now_ms,
        online: true,
    };
    let visible = upsert(c, &entry)?;
    Ok((Listing::Listed, visible))
}

/// A registry entry to make or change.
pub struct Upsert<'a> {
    /// Whose.
    pub key: &'a [u8; 32],
    /// What to change.
    pub profile: &'a Profile,
    /// `public` or `unlisted`.
    pub visibility: &'a str,
    /// How consent was given.
    pub consent: &'a str,
    /// Name of this relay.
    pub relay_id: &'a str,
    /// When the entry may be shown, in Unix milliseconds.
    pub visible_at: i64,
    /// Now, in Unix milliseconds.
    pub now_ms: i64,
    /// Whether the agent is connected.
    pub online: bool,
}

/// Makes or changes an entry; fields that the profile leaves out stay. Returns whether the framework is visible.
pub fn upsert(c: &Connection, entry: &Upsert<'_>) -> rusqlite::Result<bool> {
    let Upsert { key, profile, now_ms, .. } = entry;
    let before = search::entry(c, key)?;
    let old = before.as_ref();
    let text =
        |new: &Option<String>, old: Option<&String>| new.clone().or_else(|| old.cloned()).unwrap_or_default();
    let tags = |new: &Option<Vec<String>>, old: Option<&Vec<String>>| {
        new.clone().or_else(|| old.cloned()).unwrap_or_default()
    };
    let name = text(&profile.name.clone().filter(|name| !name.is_empty()), old.map(|e| &e.name));
    let bio = text(&profile.bio, old.map(|e| &e.bio));
    let interests = tags(&profile.interests, old.map(|e| &e.interests));
    let capabilities = tags(&profile.capabilities, old.map(|e| &e.capabilities));
    let framework = profile.framework.clone().or_else(|| old.map(|e| e.framework.clone()));
    let framework = framework.unwrap_or_else(|| "unknown".into());
    let visible = profile.framework_visible.or(old.map(|e| e.framework_visible)).unwrap_or(true);
    let homepage = text(&profile.homepage, old.map(|e| &e.homepage));
    let moved = old.is_some_and(|e| e.homepage != homepage);
    let facets = clean::facets(&capabilities, &interests, Some(framework.as_str()).filter(|_| visible));
    let json = |tags: &[String]| serde_json::to_string(tags).unwrap_or_else(|_| "[]".into());
    c.prepare_cached(
        "INSERT INTO agents(id, public_key, agent_id, name, bio, interests, capabilities, framework,
            framework_visible, homepage, visibility, relay_id, registered_at, last_seen, last_updated,
            visible_at, shown_at, online, consent_method, facets, placed_at)
         VALUES ((SELECT coalesce(max(id), 0) + 1 FROM agents), ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12,
            ?12, ?13, ?13, ?14, ?15, ?16, ?12)
         ON CONFLICT(public_key) DO UPDATE SET name=?3, bio=?4, interests=?5, capabilities=?6, framework=?7,
            framework_visible=?8, homepage=?9, visibility=?10, last_seen=max(last_seen, ?12), last_updated=?12,
            online=max(online, ?14), stale=0, hidden=0, version=version+1, facets=?16,
            id=iif(placed_at <= ?17, (SELECT max(id) + 1 FROM agents), id),
            placed_at=iif(placed_at <= ?17, ?12, placed_at),
            verified_domain=iif(?18, '', verified_domain), checked_at=iif(?18, 0, checked_at)",
    )?
    .execute(params![
        key,
        clean::agent_id(key),
        name,
        bio,
        json(&interests),
        json(&capabilities),
        framework,
        visible,
        homepage,
        entry.visibility,
        entry.relay_id,
        now_ms,
        entry.visible_at,
        entry.online,
        entry.consent,
        facets,
        now_ms - PLACED_FOR_MS,
        moved,
    ])?;
    if old.map(|e| e.visibility.as_str()) != Some(entry.visibility) {
        log_consent(c, key, *now_ms, entry.consent, entry.visibility == "public")?;
    }
    if entry.visibility == "public" {
        c.prepare_cached("DELETE FROM suppress WHERE public_key=?1")?.execute([key])?;
    }
    Ok(visible)
}

/// Records a decision about being listed.
pub fn log_consent(
    c: &Connection,
    key: &[u8; 32],
    now_ms: i64,
    method: &str,
    listed: bool,
) -> rusqlite::Result<()> {
    c.prepare_cached("INSERT INTO consent_log(public_key, at, method, listed) VALUES (?1,?2,?3,?4)")?
        .execute(params![key, now_ms, method, listed])
        .map(drop)
}

fn ban(c: &Connection, key: &[u8; 32], pattern: Pattern, now_ms: i64) -> rusqlite::Result<i64> {
    let before: Option<(i64, i64)> = c
        .prepare_cached("SELECT banned_at, strikes FROM bans WHERE public_key=?1")?
        .query_row([key], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let strikes = match before {
        Some((at, strikes)) if now_ms - at < REPEAT_MS => strikes + 1,
        _ => 1,
    };
    let factor = 1_i64 << (strikes - 1).clamp(0, 20);
    let until = now_ms + pattern.ban_ms().saturating_mul(factor).min(LONGEST_BAN_MS);
    c.prepare_cached(
        "INSERT OR REPLACE INTO bans(public_key, reason, pattern, banned_at, expires_at, strikes)
         VALUES (?1,?2,?3,?4,?5,?6)",
    )?
    .execute(params![key, pattern.reason(), pattern.name(), now_ms, until, strikes])?;
    hide_until(c, key, until)?;
    Ok(until)
}

/// Keeps the entry of a banned identity out of results.
fn hide_until(c: &Connection, key: &[u8; 32], until_ms: i64) -> rusqlite::Result<()> {
    c.prepare_cached("UPDATE agents SET shown_at=max(visible_at, ?2) WHERE public_key=?1")?
        .execute(params![key, until_ms])
        .map(drop)
}

/// Marks entries stale after 90 days without connection, hides them after 180, deletes them after 365.
pub fn age_entries(c: &Connection, now_ms: i64) -> rusqlite::Result<()> {
    const DAY: i64 = 86_400_000;
    c.execute("DELETE FROM agents WHERE last_seen < ?1", [now_ms - 365 * DAY])?;
    c.execute(
        "UPDATE agents SET stale = 1, hidden = last_seen < ?2
         WHERE last_seen < ?1 AND online = 0 AND (stale = 0 OR hidden <> (last_seen < ?2))",
        [now_ms - 90 * DAY, now_ms - 180 * DAY],
    )?;
    c.execute("DELETE FROM suppress WHERE until <= ?1", [now_ms])?;
    c.execute(
        "DELETE FROM void_tokens WHERE before_s < ?1",
        [now_ms.div_euclid(1000) - crate::token::LIFETIME_S],
    )?;
    c.execute("DELETE FROM erasures WHERE asked_at < ?1", [now_ms - 30 * DAY])?;
    c.execute("DELETE FROM capability_counts WHERE n <= 0", [])?;
    c.execute("DELETE FROM bans WHERE expires_at < ?1 AND banned_at < ?1", [now_ms - REPEAT_MS])?;
    c.execute("INSERT OR REPLACE INTO meta(key, value) VALUES ('aged_at', ?1)", [now_ms]).map(drop)
}

/// When [`age_entries`] last ran, in Unix milliseconds.
pub fn aged_at(c: &Connection) -> rusqlite::Result<Option<i64>> {
    c.query_row("SELECT value FROM meta WHERE key='aged_at'", [], |row| row.get(0)).optional()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_768_478_400_000;

    fn memory() -> Connection {
        let c = Connection::open_in_memory().expect("memory");
        for migration in MIGRATIONS {
            c.execute_batch(migration.sql).expect("schema");
        }
        c
    }

    fn login(key: [u8; 32], visibility: Visibility, listed: Option<bool>) -> Login {
        Login {
            key,
            v2: false,
            now_ms: NOW,
            source: [1; 16],
            profile: Profile { name: Some("n".into()), ..Profile::default() },
            visibility,
            token_only: false,
            listed,
            rules: LoginRules { aging_ms: 0, identities_per_hour: Some(2), relay_id: "r".into() },
        }
    }

    fn run(c: &Connection, login: Login) -> LoginOutcome {
        let RegistryAnswer::Login(outcome) = apply(c, &RegistryOp::Login(Box::new(login))).expect("sql")
        else {
            panic!("login")
        };
        outcome
    }

    fn listing(outcome: &LoginOutcome) -> Listing {
        let LoginOutcome::Welcome { listing, .. } = outcome else { panic!("{outcome:?}") };
        *listing
    }

    #[test]
    fn a_key_that_shares_an_address_with_another_is_refused_for_ever() {
        let c = memory();
        let (first, mut second) = ([7; 32], [7; 32]);
        second[31] = 8;
        assert!(matches!(run(&c, login(first, Visibility::Unlisted, None)), LoginOutcome::Welcome { .. }));
        assert_eq!(run(&c, login(second, Visibility::Unlisted, None)), LoginOutcome::Conflict);
        assert!(matches!(run(&c, login(first, Visibility::Unlisted, None)), LoginOutcome::Welcome { .. }));
    }

    #[test]
    fn a_source_gets_so_many_identities_an_hour() {
        let c = memory();
        run(&c, login([1; 32], Visibility::Unlisted, None));
        run(&c, login([2; 32], Visibility::Unlisted, None));
        assert_eq!(run(&c, login([3; 32], Visibility::Unlisted, None)), LoginOutcome::TooManyIdentities);
        assert!(matches!(run(&c, login([1; 32], Visibility::Unlisted, None)), LoginOutcome::Welcome { .. }));
        let later = Login { now_ms: NOW + 3_600_000, ..login([3; 32], Visibility::Unlisted, None) };
        assert!(matches!(run(&c, later), LoginOutcome::Welcome { .. }));
    }

    #[test]
    fn an_erased_identity_leaves_nothing_readable_and_is_not_new_again() {
        let c = memory();
        let key = [9; 32];
        run(&c, Login { now_ms: NOW - 5, ..login(key, Visibility::Public, None) });
        operator::ban(&c, &key, "r", NOW, NOW + 1_000).expect("ban");
        operator::erase(&c, &key, NOW).expect("erase");
        for table in ["agents", "first_seen", "bans", "consent_log", "suppress"] {
            let sql = format!("SELECT count(*) FROM {table} WHERE public_key=?1");
            let left: i64 = c.query_row(&sql, [key], |row| row.get(0)).expect("count");
            assert_eq!(left, 0, "{table}");
        }
        assert!(!operator::is_token_good(&c, &key, NOW / 1000).expect("sql"));
        assert!(operator::is_token_good(&c, &key, NOW / 1000 + 1).expect("sql"));
        let back = Login { now_ms: NOW + 10, ..login(key, Visibility::Unlisted, None) };
        assert!(matches!(run(&c, back.clone()), LoginOutcome::Banned { .. }), "nor is a ban washed off");
        let back = Login { now_ms: NOW + 1_001, ..back };
        let LoginOutcome::Welcome { first_seen_ms, first, .. } = run(&c, back) else { panic!("welcome") };
        assert_eq!((first_seen_ms, first), (NOW - 5, false));
    }

    #[test]
    fn listing_follows_consent() {
        let c = memory();
        let log = |visibility, listed| listing(&run(&c, login([1; 32], visibility, listed)));
        assert_eq!(log(Visibility::Unlisted, None), Listing::NotListed);
        assert_eq!(log(Visibility::Public, None), Listing::Listed);
        assert_eq!(log(Visibility::Unlisted, None), Listing::Updated);
        assert_eq!(log(Visibility::Unlisted, Some(true)), Listing::Listed);
        assert_eq!(log(Visibility::Private, Some(true)), Listing::Updated);
        let consents: i64 =
            c.query_row("SELECT count(*) FROM consent_log", [], |row| row.get(0)).expect("count");
        assert_eq!(consents, 2, "only changes by consent are logged");
    }

    #[test]
    fn bans_are_kept_and_double() {
        let c = memory();
        let ban = |now_ms| {
            let op = RegistryOp::Ban { key: [1; 32], pattern: Pattern::Junk, now_ms };
            let RegistryAnswer::Banned(until) = apply(&c, &op).expect("sql") else { panic!("ban") };
            until - now_ms
        };
        assert_eq!(ban(NOW), 600_000);
        assert_eq!(ban(NOW + 10), 1_200_000);
        assert!(matches!(
            run(&c, login([1; 32], Visibility::Public, None)),
            LoginOutcome::Banned { until_ms, .. } if until_ms == NOW + 1_200_010
        ));
        for _ in 0..20 {
            ban(NOW + 20);
        }
        assert_eq!(ban(NOW + 30), LONGEST_BAN_MS, "never longer");
        assert_eq!(ban(NOW + 30 + REPEAT_MS - 1), LONGEST_BAN_MS, "remembered");
        assert_eq!(ban(NOW + REPEAT_MS * 3), 600_000, "forgotten after seven days");
    }

    #[test]
    fn old_entries_fade_away() {
        let c = memory();
        run(&c, login([1; 32], Visibility::Public, None));
        apply(&c, &RegistryOp::Left { key: [1; 32], at_ms: NOW }).expect("left");
        let state = |days: i64| {
            age_entries(&c, NOW + days * 86_400_000).expect("age");
            c.query_row("SELECT stale, hidden FROM agents", [], |r| {
                Ok((r.get::<_, bool>(0)?, r.get::<_, bool>(1)?))
            })
            .optional()
            .expect("row")
        };
        assert_eq!(state(90), Some((false, false)));
        assert_eq!(state(91), Some((true, false)));
        assert_eq!(state(181), Some((true, true)));
        assert_eq!(state(366), None);
    }
}
