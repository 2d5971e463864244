//! The directory over REST (`relay.md` §12.4).

mod answers;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use instar_durable::DatabaseError;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::{Value, json};
use threadline::time::iso_ms;
use tokio_util::sync::CancellationToken;

use super::{Shared, http as public};
use crate::config::RelayConfig;
use crate::core::{Event, Source};
use crate::keys;
use crate::limits::{Rule, Windows};
use crate::registry::clean;
use crate::registry::cursor::Cursor;
use crate::registry::search::{self, Entry, Search, Sort};
use crate::store::Profile;
use crate::store::registry::{self as store, Upsert, operator};
use crate::token;
use answers::{a2a_card, entry_json, failure};

const STATS_FRESH_MS: i64 = 60_000;
const COUNT_EVERY: Duration = Duration::from_secs(55);
const DAY_MS: i64 = 86_400_000;
/// The daily job runs at 04:00 UTC.
const JOB_AT_MS: i64 = 4 * 3_600_000;
const PURGE_MS: i64 = 72 * 3_600_000;
const LIST_ITEMS: usize = 20;

/// Rates of the REST routes, keyed by agent or by source.
pub(super) struct RestLimits {
    per_source: bool,
    windows: Mutex<[Windows<Vec<u8>>; 9]>,
    stats: tokio::sync::Mutex<Option<(i64, Stats)>>,
}

/// A rate of its own.
#[derive(Clone, Copy)]
enum Rate {
    Search,
    SearchAnonymous,
    Lookup,
    LookupAnonymous,
    Stats,
    Put,
    Delete,
    Entries,
    SourceEntries,
}

impl RestLimits {
    pub(super) fn new(config: &RelayConfig) -> Self {
        const KEYS: usize = 2_000;
        let limits = &config.limits;
        let minute = |limit| Windows::new(Rule::per_minute(limit), KEYS);
        let hour = |limit| Windows::new(Rule::per_hour(limit), KEYS);
        Self {
            per_source: limits.per_source,
            windows: Mutex::new([
                minute(limits.search_per_minute),
                minute(limits.search_anonymous_per_minute),
                minute(limits.lookup_per_minute),
                minute(limits.lookup_anonymous_per_minute),
                minute(limits.stats_per_minute),
                minute(limits.put_per_minute),
                minute(limits.delete_per_minute),
                hour(limits.entries_per_hour),
                hour(limits.source_entries_per_hour),
            ]),
            stats: tokio::sync::Mutex::new(None),
        }
    }

    fn take(&self, rate: Rate, key: &[u8], now_ms: i64) -> Result<(), Response> {
        let of_source =
            matches!(rate, Rate::SearchAnonymous | Rate::LookupAnonymous | Rate::Stats | Rate::SourceEntries);
        if of_source && !self.per_source {
            return Ok(());
        }
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(window) = windows.get_mut(rate as usize) else { return Ok(()) };
        let taken = window.take(&key.to_vec(), now_ms);
        taken.map_err(|over| too_many(window.rule().limit, over.retry_ms, now_ms))
    }
}

fn too_many(limit: u32, retry_ms: i64, now_ms: i64) -> Response {
    let retry_s = (retry_ms + 999) / 1000;
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    put("retry-after", retry_s.to_string());
    put("x-ratelimit-limit", limit.to_string());
    put("x-ratelimit-remaining", "0".into());
    put("x-ratelimit-reset", (now_ms / 1000 + retry_s).to_string());
    let body = json!({"error": "Rate limited", "code": "RATE_LIMITED", "retryAfter": retry_s});
    (StatusCode::TOO_MANY_REQUESTS, headers, axum::Json(body)).into_response()
}

/// Routes below `/v1/registry`.
pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/search", get(find).options(preflight).fallback(|| async { public::not_allowed(GET_ONLY) }))
        .route(
            "/agent/{id}",
            get(agent).options(preflight).fallback(|| async { public::not_allowed(GET_ONLY) }),
        )
        .route(
            "/agent/{id}/a2a-card",
            get(card).options(preflight).fallback(|| async { public::not_allowed(GET_ONLY) }),
        )
        .route(
            "/me",
            get(me)
                .put(put_me)
                .delete(delete_me)
                .options(preflight)
                .fallback(|| async { public::not_allowed("GET, HEAD, PUT, DELETE, OPTIONS") }),
        )
        .route("/stats", get(stats).options(preflight).fallback(|| async { public::not_allowed(GET_ONLY) }))
        .route(
            "/erasure/{job}",
            get(erasure).options(preflight).fallback(|| async { public::not_allowed(GET_ONLY) }),
        )
        .fallback(public::not_found)
        .layer(axum::middleware::map_response(allow_origins))
}

const GET_ONLY: &str = "GET, HEAD, OPTIONS";

async fn allow_origins(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers
        .insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, PUT, DELETE, OPTIONS"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("Authorization, Content-Type"),
    );
    response
}

async fn preflight() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// The agent that a request comes from.
#[derive(Clone, Copy)]
struct Caller {
    key: Option<[u8; 32]>,
}

/// A request that cannot be served, with its answer.
type Failure = Box<Response>;

impl Shared {
    /// Reads on a connection of the registry.
    pub(super) async fn registry_read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        // One snapshot for everything that a request reads, and one lock instead of one for each row.
        let read = move |c: &Connection| -> Result<T, DatabaseError> {
            let snapshot = c.unchecked_transaction()?;
            let found = query(&snapshot)?;
            snapshot.commit()?;
            Ok(found)
        };
        self.registry.read(read).await.map_err(|error| Box::new(unavailable(&error)))
    }

    pub(super) async fn registry_write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        self.registry
            .write(move |c| change(c).map_err(DatabaseError::from))
            .await
            .map_err(|error| Box::new(unavailable(&error)))
    }

    /// Who asks: nobody without a token; a token that is not valid is refused.
    async fn caller(&self, headers: &HeaderMap, now_ms: i64) -> Result<Caller, Failure> {
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(Caller { key: None }) };
        let refused = || Box::new(failure(StatusCode::UNAUTHORIZED, "Invalid or expired token", None));
        let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).ok_or_else(refused)?;
        let subject =
            token::verify(&self.verifier, &self.relay_id, token, now_ms / 1000).ok_or_else(refused)?;
        let key = subject.key;
        let good = self
            .registry_read(move |c| {
                let banned = store::banned_until(c, &key, now_ms)?.is_some();
                Ok(!banned && operator::is_token_good(c, &key, subject.issued_at)?)
            })
            .await?;
        if good { Ok(Caller { key: Some(key) }) } else { Err(refused()) }
    }

    async fn authenticated(&self, headers: &HeaderMap, now_ms: i64) -> Result<[u8; 32], Failure> {
        let caller = self.caller(headers, now_ms).await?;
        caller.key.ok_or_else(|| Box::new(failure(StatusCode::UNAUTHORIZED, "Authentication required", None)))
    }

    fn limit(
        &self,
        caller: Caller,
        source: &Source,
        rates: (Rate, Rate),
        now_ms: i64,
    ) -> Result<(), Failure> {
        let taken = match &caller.key {
            Some(key) => self.limits.take(rates.0, key, now_ms),
            None => self.limits.take(rates.1, &source.net, now_ms),
        };
        taken.map_err(Box::new)
    }
}

fn unavailable(error: &DatabaseError) -> Response {
    tracing::error!(%error, "the directory failed");
    failure(StatusCode::SERVICE_UNAVAILABLE, "Relay storage unavailable", Some("STORAGE_UNAVAILABLE"))
}

/// The answer, or the one that says what is wrong.
pub(super) fn respond(result: Result<Response, Failure>) -> Response {
    result.unwrap_or_else(|failure| *failure)
}

#[derive(serde::Deserialize)]
struct SearchParameters {
    q: Option<String>,
    capability: Option<String>,
    framework: Option<String>,
    interest: Option<String>,
    online: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
    sort: Option<String>,
}

async fn find(
    State(shared): State<Arc<Shared>>,
    Extension(source): Extension<Source>,
    headers: HeaderMap,
    query: Result<Query<SearchParameters>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Ok(Query(parameters)) = query else {
        return failure(StatusCode::BAD_REQUEST, "The query string cannot be read", Some("INVALID_QUERY"));
    };
    respond(find_inner(&shared, source, &headers, parameters).await)
}

async fn find_inner(
    shared: &Shared,
    source: Source,
    headers: &HeaderMap,
    parameters: SearchParameters,
) -> Result<Response, Failure> {
    let now_ms = shared.clock.now_ms();
    let caller = shared.caller(headers, now_ms).await?;
    shared.limit(caller, &source, (Rate::Search, Rate::SearchAnonymous), now_ms)?;
    let search = read_search(&parameters, &shared.cursor_secret, now_ms).map_err(Box::new)?;
    let query = search.fingerprint();
    let begun = std::time::Instant::now();
    let (full, secret) = (caller.key.is_some(), shared.cursor_secret);
    let answer = shared.registry_read(move |c| {
        let page = search::search(c, &search, now_ms)?;
        let mut body = json!({
            "count": page.entries.len(),
            "total": page.total,
            "agents": page.entries.iter().map(|entry| entry_json(entry, full)).collect::<Vec<_>>(),
            "pagination": {
                "cursor": page.next.map(|cursor| cursor.encode(&secret, &query)),
                "hasMore": page.has_more,
            },
        });
        if let Some(ranked) = page.ranked {
            body["ranked"] = ranked.into();
        }
        Ok(body.to_string())
    });
    let answer = answer.await?;
    shared.measured.searched(begun);
    Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

fn read_search(parameters: &SearchParameters, secret: &[u8; 32], now_ms: i64) -> Result<Search, Response> {
    let bad = |field: &str, expected: &str| {
        let text = format!("{field} must be {expected}");
        failure(StatusCode::BAD_REQUEST, &text, Some("INVALID_QUERY"))
    };
    let list = |text: &Option<String>| -> Vec<String> {
        text.iter().flat_map(|text| text.split(',')).filter_map(clean::tag).take(LIST_ITEMS).collect()
    };
    let limit = match parameters.limit.as_deref().map(str::parse::<u32>) {
        None => 50,
        Some(Ok(limit @ 1..=100)) => limit,
        Some(_) => return Err(bad("limit", "1–100")),
    };
    let online = match parameters.online.as_deref() {
        None => None,
        Some("true" | "1") => Some(true),
        Some("false" | "0") => Some(false),
        Some(_) => return Err(bad("online", "true or false")),
    };
    let sort = match parameters.sort.as_deref() {
        None => Sort::default(),
        Some(text) => Sort::parse(text).ok_or_else(|| bad("sort", "lastSeen, registeredAt or name"))?,
    };
    let mut search = Search {
        text: parameters.q.as_deref().unwrap_or_default().chars().take(256).collect(),
        capabilities: list(&parameters.capability),
        interests: list(&parameters.interest),
        framework: parameters.framework.as_deref().and_then(clean::tag),
        online,
        sort,
        limit,
        after: None,
    };
    let filtered = [&parameters.q, &parameters.capability, &parameters.interest, &parameters.framework]
        .into_iter()
        .any(|given| given.as_deref().is_some_and(|text| !text.trim().is_empty()));
    if !filtered && online.is_none() && parameters.limit.is_none() && parameters.cursor.is_none() {
        let text = "Give at least one of q, capability, interest, framework, online or limit";
        return Err(failure(StatusCode::BAD_REQUEST, text, Some("FILTER_REQUIRED")));
    }
    if let Some(text) = parameters.cursor.as_deref().filter(|text| !text.is_empty()) {
        let cursor = Cursor::decode(text, secret, &search.fingerprint(), now_ms);
        let invalid = || {
            let text =
                "The cursor is not valid for this query, or older than 15 minutes: start over without it";
            failure(StatusCode::BAD_REQUEST, text, Some("CURSOR_INVALID"))
        };
        search.after = Some(cursor.ok_or_else(invalid)?);
    }
    Ok(search)
}

/// The entry that `id` (32 hex digits or a base64 key) names, if the caller may see it.
async fn visible_entry(shared: &Shared, id: String, caller: Caller, now_ms: i64) -> Result<Entry, Failure> {
    let (entry, strange) = shared
        .registry_read(move |c| {
            let entry = match keys::decode_public(&id) {
                Some(key) => search::entry(c, &key)?,
                None => search::entry_by_address(c, &id)?,
            };
            let strange = entry.is_none() && !store::was_here(c, &id)?;
            let own = |entry: &Entry| caller.key == Some(entry.key);
            Ok((entry.filter(|entry| own(entry) || entry.is_visible(now_ms)), strange))
        })
        .await?;
    if let Some(key) = caller.key.filter(|_| strange) {
        shared.driver.event(Event::UnknownLookup { key }).await;
    }
    entry.ok_or_else(|| Box::new(failure(StatusCode::NOT_FOUND, "Agent not found", None)))
}

async fn agent(
    State(shared): State<Arc<Shared>>,
    Extension(source): Extension<Source>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    let lookup = async {
        let now_ms = shared.clock.now_ms();
        let caller = shared.caller(&headers, now_ms).await?;
        shared.limit(caller, &source, (Rate::Lookup, Rate::LookupAnonymous), now_ms)?;
        let entry = visible_entry(&shared, id, caller, now_ms).await?;
        Ok(axum::Json(entry_json(&entry, caller.key.is_some())).into_response())
    };
    respond(lookup.await)
}

async fn card(
    State(shared): State<Arc<Shared>>,
    Extension(source): Extension<Source>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    let lookup = async {
        let now_ms = shared.clock.now_ms();
        let caller = shared.caller(&headers, now_ms).await?;
        shared.limit(caller, &source, (Rate::Lookup, Rate::LookupAnonymous), now_ms)?;
        let entry = visible_entry(&shared, id, caller, now_ms).await?;
        Ok(axum::Json(a2a_card(&entry)).into_response())
    };
    respond(lookup.await)
}

#[derive(serde::Deserialize)]
struct Extent {
    export: Option<bool>,
    all: Option<bool>,
}

async fn me(State(shared): State<Arc<Shared>>, headers: HeaderMap, Query(extent): Query<Extent>) -> Response {
    let lookup = async {
        let now_ms = shared.clock.now_ms();
        let key = shared.authenticated(&headers, now_ms).await?;
        shared.limits.take(Rate::Lookup, &key, now_ms).map_err(Box::new)?;
        if extent.export == Some(true) {
            return Ok(axum::Json(everything(&shared, &key).await?).into_response());
        }
        let entry = shared.registry_read(move |c| search::entry(c, &key)).await?;
        let body = entry.map_or_else(
            || json!({"registered": false, "tip": "PUT /v1/registry/me with {\"listed\": true} to be found"}),
            |entry| registered(&entry, now_ms),
        );
        Ok(axum::Json(body).into_response())
    };
    respond(lookup.await)
}

fn registered(entry: &Entry, now_ms: i64) -> Value {
    let mut body = json!({
        "registered": true,
        "entry": entry_json(entry, true),
        "visibility": entry.visibility,
        "consentMethod": entry.consent,
        "registeredAt": iso_ms(entry.registered_ms),
    });
    if entry.visible_ms > now_ms {
        body["hiddenUntil"] = iso_ms(entry.visible_ms).into();
    }
    body
}

async fn put_me(
    State(shared): State<Arc<Shared>>,
    Extension(source): Extension<Source>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Response {
    let Ok(body) = body else {
        return failure(StatusCode::PAYLOAD_TOO_LARGE, "The body is above 64 KiB", None);
    };
    respond(put_inner(&shared, source, &headers, &body).await)
}

async fn put_inner(
    shared: &Shared,
    source: Source,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, Failure> {
    let now_ms = shared.clock.now_ms();
    let key = shared.authenticated(headers, now_ms).await?;
    shared.limits.take(Rate::Put, &key, now_ms).map_err(Box::new)?;
    let change = answers::read_change(body)
        .map_err(|text| Box::new(failure(StatusCode::BAD_REQUEST, &text, Some("INVALID_FIELD"))))?;
    let before = shared.registry_read(move |c| search::entry(c, &key)).await?;
    if before.is_none() {
        if change.listed != Some(true) {
            let text = "Not registered: send \"listed\": true to register";
            return Err(Box::new(failure(StatusCode::NOT_FOUND, text, None)));
        }
        shared.limits.take(Rate::Entries, &key, now_ms).map_err(Box::new)?;
        shared.limits.take(Rate::SourceEntries, &source.net, now_ms).map_err(Box::new)?;
    }
    let was_public = before.as_ref().is_none_or(|entry| entry.visibility == "public");
    let public = match (change.listed, change.visible) {
        (Some(listed), _) => listed,
        (None, Some(visible)) => visible,
        (None, None) => was_public,
    };
    let (relay_id, aging_ms) = (shared.relay_id.clone(), shared.config.aging_ms());
    let profile: Profile = change.profile;
    let entry = shared
        .registry_write(move |c| {
            let first_seen: i64 = c
                .prepare_cached("SELECT at FROM first_seen WHERE public_key=?1")?
                .query_row([key], |row| row.get(0))
                .unwrap_or(now_ms);
            let upsert = Upsert {
                key: &key,
                profile: &profile,
                visibility: if public { "public" } else { "unlisted" },
                consent: "api_call",
                relay_id: &relay_id,
                visible_at: first_seen + aging_ms,
                now_ms,
                online: false,
            };
            store::upsert(c, &upsert)?;
            if change.a2a_tokens.is_some() || change.a2a_open.is_some() {
                store::a2a::set_doors(c, &key, change.a2a_tokens.as_deref(), change.a2a_open)?;
            }
            search::entry(c, &key)
        })
        .await?;
    shared.driver.event(Event::Listed { key, listed: public }).await;
    shared.homepage_changed.notify_one();
    let body = entry.map_or(Value::Null, |entry| registered(&entry, now_ms));
    Ok(axum::Json(body).into_response())
}

/// Everything stored about a key.
pub(super) async fn everything(shared: &Shared, key: &[u8; 32]) -> Result<Value, Failure> {
    let (key, now_ms) = (*key, shared.clock.now_ms());
    let (entry, mut body) =
        shared.registry_read(move |c| Ok((search::entry(c, &key)?, operator::export(c, &key)?))).await?;
    body["publicKey"] = encode_key(&key).into();
    body["registry"] = entry.map_or(Value::Null, |entry| registered(&entry, now_ms));
    if let Some(address) = key.first_chunk().map(|bytes| threadline::Fingerprint::from_bytes(*bytes)) {
        body["agentId"] = address.to_string().into();
        let session = shared.driver.inspect(move |core| core.session_info(&address)).await.flatten();
        body["session"] = session.map_or(
            Value::Null,
            |session| json!({"since": iso_ms(session.since_ms), "sourceHash": hex::encode(session.source)}),
        );
    }
    Ok(body)
}

/// Erases a key; the answer names a job whose end can be asked for.
pub(super) async fn erase(shared: &Shared, key: &[u8; 32]) -> Result<Value, Failure> {
    let (key, now_ms) = (*key, shared.clock.now_ms());
    let job = uuid::Uuid::new_v4().simple().to_string();
    let stored = job.clone();
    shared
        .registry_write(move |c| {
            operator::erase(c, &key, now_ms)?;
            let sql = "INSERT INTO erasures(job, asked_at, done_at) VALUES (?1, ?2, ?2)";
            c.execute(sql, params![stored, now_ms]).map(drop)
        })
        .await?;
    shared.driver.event(Event::Listed { key, listed: false }).await;
    Ok(json!({"deleted": true, "purgeBy": iso_ms(now_ms + PURGE_MS), "job": job}))
}

/// Base64 of a key.
pub(super) fn encode_key(key: &[u8; 32]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(key)
}

async fn erasure(
    State(shared): State<Arc<Shared>>,
    Extension(source): Extension<Source>,
    Path(job): Path<String>,
) -> Response {
    let lookup = async {
        let now_ms = shared.clock.now_ms();
        shared.limits.take(Rate::LookupAnonymous, &source.net, now_ms).map_err(Box::new)?;
        let times = shared
            .registry_read(move |c| {
                c.prepare_cached("SELECT asked_at, done_at FROM erasures WHERE job=?1")?
                    .query_row([job], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?)))
                    .optional()
            })
            .await?;
        let (asked, done) =
            times.ok_or_else(|| Box::new(failure(StatusCode::NOT_FOUND, "No such job", None)))?;
        let body = json!({
            "done": done.is_some(),
            "askedAt": iso_ms(asked),
            "doneAt": done.map(iso_ms),
            "purgeBy": iso_ms(asked + PURGE_MS),
        });
        Ok(axum::Json(body).into_response())
    };
    respond(lookup.await)
}

async fn delete_me(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Query(extent): Query<Extent>,
) -> Response {
    let delete = async {
        let now_ms = shared.clock.now_ms();
        let key = shared.authenticated(&headers, now_ms).await?;
        shared.limits.take(Rate::Delete, &key, now_ms).map_err(Box::new)?;
        if extent.all == Some(true) {
            return Ok(axum::Json(erase(&shared, &key).await?).into_response());
        }
        let removed = shared
            .registry_write(move |c| {
                let removed = c.execute("DELETE FROM agents WHERE public_key=?1", [key])?;
                if removed > 0 {
                    c.execute(
                        "INSERT OR REPLACE INTO suppress(public_key, until) VALUES (?1, ?2)",
                        params![key, now_ms + store::SUPPRESS_MS],
                    )?;
                    store::log_consent(c, &key, now_ms, "api_call", false)?;
                }
                Ok(removed)
            })
            .await?;
        if removed == 0 {
            return Err(Box::new(failure(StatusCode::NOT_FOUND, "Not registered", None)));
        }
        shared.driver.event(Event::Listed { key, listed: false }).await;
        let body = json!({"deleted": true, "purgeBy": iso_ms(now_ms + PURGE_MS)});
        Ok(axum::Json(body).into_response())
    };
    respond(delete.await)
}

/// Numbers over the visible entries.
#[derive(Clone)]
struct Stats {
    body: Value,
    total: i64,
    online: i64,
    fts_healthy: bool,
    active_bans: i64,
    aged_at: Option<i64>,
    unlisted: i64,
}

async fn stats(State(shared): State<Arc<Shared>>, Extension(source): Extension<Source>) -> Response {
    let lookup = async {
        let now_ms = shared.clock.now_ms();
        shared.limits.take(Rate::Stats, &source.net, now_ms).map_err(Box::new)?;
        let stats = fresh_stats(&shared, now_ms).await?;
        Ok(axum::Json(stats.body).into_response())
    };
    respond(lookup.await)
}

async fn fresh_stats(shared: &Shared, now_ms: i64) -> Result<Stats, Failure> {
    let mut cached = shared.limits.stats.lock().await;
    if let Some((_, stats)) = cached.as_ref().filter(|(at, _)| now_ms - at < STATS_FRESH_MS) {
        return Ok(stats.clone());
    }
    let stats = shared.registry_read(move |c| count(c, now_ms)).await?;
    *cached = Some((now_ms, stats.clone()));
    Ok(stats)
}

fn count(c: &Connection, now_ms: i64) -> rusqlite::Result<Stats> {
    const SHOWN: &str = "visibility='public' AND hidden=0 AND shown_at<=?1";
    let number = |index: &str, what: &str| -> rusqlite::Result<i64> {
        let sql = format!("SELECT count(*) FROM agents INDEXED BY {index} WHERE {SHOWN} AND {what}");
        c.prepare_cached(&sql)?.query_row([now_ms], |row| row.get(0))
    };
    let (total, online) = (number("agents_seen", "1")?, number("agents_online", "online=1")?);
    let disclosed = number("agents_disclosed", "framework_visible=1 AND framework<>'unknown'")?;
    let since = |ms: i64| number("agents_new", &format!("registered_at > {}", now_ms - ms));
    let mut top =
        c.prepare_cached("SELECT tag, n FROM capability_counts WHERE n > 0 ORDER BY n DESC, tag LIMIT 10")?;
    let top: Vec<Value> = top
        .query_map([], |row| {
            Ok(json!({"capability": row.get::<_, String>(0)?, "count": row.get::<_, i64>(1)?}))
        })?
        .collect::<Result<_, _>>()?;
    let rows: i64 = c
        .prepare_cached(
            "SELECT count(*) FROM agents INDEXED BY agents_seen WHERE visibility='public' AND hidden=0",
        )?
        .query_row([], |row| row.get(0))?;
    let indexed: i64 = c.query_row("SELECT count(*) FROM agents_fts_docsize", [], |row| row.get(0))?;
    let body = json!({
        "totalAgents": total,
        "onlineAgents": online,
        "frameworkStats": {"disclosed": disclosed, "hidden": total - disclosed},
        "topCapabilities": top,
        "registeredLast24h": since(DAY_MS)?,
        "registeredLast7d": since(7 * DAY_MS)?,
        "cachedAt": iso_ms(now_ms),
    });
    let active_bans =
        c.query_row("SELECT count(*) FROM bans WHERE expires_at>?1", [now_ms], |row| row.get(0))?;
    let aged_at = store::aged_at(c)?;
    let all: i64 = c.query_row("SELECT count(*) FROM agents", [], |row| row.get(0))?;
    Ok(Stats {
        body,
        total,
        online,
        fts_healthy: rows == indexed,
        active_bans,
        aged_at,
        unlisted: all - rows,
    })
}

/// Public and unlisted entries, at most a minute old.
pub(super) async fn entry_counts(shared: &Shared, now_ms: i64) -> (i64, i64) {
    fresh_stats(shared, now_ms).await.map_or((0, 0), |stats| (stats.total, stats.unlisted))
}

/// Counts again every minute once somebody has asked, so that nobody has to wait for it.
pub(super) async fn keep_counting(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(COUNT_EVERY) => {}
            () = stop.cancelled() => return,
        }
        if shared.limits.stats.lock().await.is_none() {
            continue;
        }
        let now_ms = shared.clock.now_ms();
        if let Ok(stats) = shared.registry_read(move |c| count(c, now_ms)).await {
            *shared.limits.stats.lock().await = Some((now_ms, stats));
        }
    }
}

/// The directory's part of `/health`.
pub(super) struct RegistryHealth {
    pub(super) healthy: bool,
    pub(super) active_bans: i64,
    pub(super) body: Value,
}

/// Numbers are at most a minute old.
pub(super) async fn health(shared: &Shared, now_ms: i64) -> RegistryHealth {
    let stats = fresh_stats(shared, now_ms).await.ok();
    let size = std::fs::metadata(shared.registry.path()).map_or(0, |meta| meta.len());
    let healthy = stats.as_ref().is_some_and(|stats| stats.fts_healthy);
    let body = json!({
        "status": if healthy { "healthy" } else { "degraded" },
        "totalAgents": stats.as_ref().map_or(0, |stats| stats.total),
        "onlineAgents": stats.as_ref().map_or(0, |stats| stats.online),
        "ftsHealthy": healthy,
        "lastStaleCron": stats.as_ref().and_then(|stats| stats.aged_at).map(iso_ms),
        "dbSizeBytes": size,
    });
    RegistryHealth { healthy, active_bans: stats.map_or(0, |stats| stats.active_bans), body }
}

/// Ages the entries at start when the last time is more than a day ago, and every day at 04:00 UTC.
pub(super) async fn age_daily(shared: Arc<Shared>, stop: CancellationToken) {
    let last = shared.registry_read(store::aged_at).await.ok().flatten().unwrap_or(0);
    let mut due = shared.clock.now_ms() - last > DAY_MS;
    loop {
        let now_ms = shared.clock.now_ms();
        if due && shared.registry_write(move |c| store::age_entries(c, now_ms)).await.is_err() {
            tracing::error!("old directory entries could not be aged; trying again tomorrow");
        }
        let today = now_ms.div_euclid(DAY_MS) * DAY_MS + JOB_AT_MS;
        let next = if today > now_ms { today } else { today + DAY_MS };
        let pause = Duration::from_millis(u64::try_from(next - now_ms).unwrap_or(0));
        tokio::select! {
            () = tokio::time::sleep(pause) => due = true,
            () = stop.cancelled() => return,
        }
    }
}
