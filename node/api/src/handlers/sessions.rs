//! Runtime processes as sessions (`http-api.md` §3).

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::Path;
use axum::http::{Method, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use futures::Stream;
use instar_sessions::queue::Waiting;
use instar_sessions::record::{Priority, SessionKind, SessionRecord};
use instar_sessions::{OutputFormat, OverdueDecision, Resume, SessionError, SpawnRequest, Spawned};
use instar_state::ids::SessionId;
use instar_state::journal::InboxRow;
use instar_state::ports::InputState;
use instar_state::time::{now_ms, rfc3339};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::{Access, Credential};
use crate::error::{ApiError, Problem};
use crate::extract::{Body, Query};
use crate::rate::Group;
use crate::routes::Route;
use crate::state::Rooms;

pub(crate) fn routes() -> Vec<Route> {
    let named = Access::own("name");
    vec![
        Route::new(Method::GET, "/sessions", Access::ANY, "Sessions, newest first", get(list)).query(&[
            "status",
            "kind",
            "conversation",
        ]),
        Route::new(
            Method::GET,
            "/sessions/tmux",
            Access::ANY,
            "Sessions of the agent's tmux server",
            get(tmux),
        ),
        Route::new(Method::POST, "/sessions/spawn", Access::ANY, "Starts a session", post(spawn))
            .group(Group::Spawn)
            .patience(150)
            .query(&["wait"])
            .body::<SpawnBody>(),
        Route::new(
            Method::GET,
            "/sessions/queue",
            Access::ANY,
            "Sessions that wait for a slot, the next one first",
            get(queue),
        ),
        Route::new(
            Method::DELETE,
            "/sessions/queue/{id}",
            Access::ANY,
            "Takes a waiting session out of the queue",
            delete(unqueue),
        ),
        Route::new(
            Method::POST,
            "/sessions/refresh",
            Access::ANY,
            "Ends a session and continues it in a fresh process",
            post(refresh),
        )
        .patience(150)
        .body::<RefreshBody>(),
        Route::new(
            Method::POST,
            "/sessions/cleanup-stale",
            Access::ANY,
            "Forgets sessions that ended long ago",
            post(cleanup),
        ),
        Route::new(
            Method::GET,
            "/sessions/overdue",
            Access::LOCAL_AGENT,
            "Inputs that waited for six hours and need a word of the owner",
            get(overdue),
        ),
        Route::new(
            Method::POST,
            "/sessions/overdue/{ulid}",
            Access::LOCAL_AGENT,
            "Lets an overdue input go to a session, or drops it",
            post(decide_overdue),
        )
        .patience(150)
        .body::<OverdueBody>(),
        Route::new(Method::GET, "/sessions/{name}", Access::ANY, "One session by id or name", get(show)),
        Route::new(
            Method::DELETE,
            "/sessions/{name}",
            Access::LOCAL_AGENT,
            "Ends a session unless there is a reason to keep it",
            delete(kill),
        )
        .patience(60)
        .query(&["force"]),
        Route::new(
            Method::GET,
            "/sessions/{name}/output",
            Access::ANY,
            "Last lines of a session's screen or events",
            get(output),
        )
        .query(&["lines", "format"]),
        Route::new(
            Method::GET,
            "/sessions/{name}/stream",
            Access::ANY,
            "New output as server-sent events",
            get(stream),
        ),
        Route::new(Method::POST, "/sessions/{name}/input", named, "Queues a text for a session", post(input))
            .body::<InputBody>(),
        Route::new(
            Method::GET,
            "/sessions/{name}/inbox",
            named,
            "What was queued for a session and where it stands",
            get(inbox),
        )
        .query(&["state", "limit"]),
        Route::new(
            Method::POST,
            "/sessions/{name}/transport",
            Access::LOCAL_AGENT,
            "Continues a session in a terminal or over pipes",
            post(transport),
        )
        .patience(180)
        .body::<TransportBody>(),
        Route::new(
            Method::POST,
            "/sessions/{name}/key",
            Access::LOCAL_AGENT,
            "Presses a key in a session's terminal",
            post(key),
        )
        .body::<KeyBody>(),
        Route::new(
            Method::POST,
            "/sessions/{name}/interrupt",
            Access::ANY,
            "Interrupts the running turn",
            post(interrupt),
        ),
        Route::new(
            Method::POST,
            "/sessions/{name}/resume",
            Access::ANY,
            "Continues a session that ended",
            post(resume),
        )
        .patience(150)
        .body::<ResumeBody>(),
    ]
}

#[derive(Deserialize)]
struct ListQuery {
    status: Option<String>,
    kind: Option<String>,
    conversation: Option<String>,
}

async fn list(rooms: Rooms, Query(query): Query<ListQuery>) -> Json<Value> {
    let sessions: Vec<Value> = rooms
        .sessions
        .list()
        .iter()
        .map(shown)
        .filter(|s| {
            let is = |key: &str, wanted: &Option<String>| wanted.as_deref().is_none_or(|w| s[key] == w);
            let status = match query.status.as_deref() {
                Some("running") => ["starting", "running", "ending"].iter().any(|live| s["status"] == *live),
                _ => is("status", &query.status),
            };
            status && is("kind", &query.kind) && is("conversation", &query.conversation)
        })
        .collect();
    Json(json!({"count": sessions.len(), "sessions": sessions}))
}

async fn tmux(rooms: Rooms) -> Result<Json<Value>, ApiError> {
    let sessions = rooms.sessions.tmux_sessions().await?;
    let sessions: Vec<Value> =
        sessions.into_iter().map(|(name, managed)| json!({"name": name, "managed": managed})).collect();
    Ok(Json(json!({"sessions": sessions})))
}

async fn show(rooms: Rooms, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(shown(&rooms.sessions.find(&name)?)))
}

/// Body of `POST /sessions/spawn`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SpawnBody {
    /// `^[A-Za-z0-9_-]{1,200}$`
    name: String,
    /// First input, at most 500 kB.
    prompt: String,
    /// Tier (`fast`, `balanced`, `capable`) or model id.
    model: Option<String>,
    /// `low`, `medium`, `high`.
    effort: Option<String>,
    /// `claude-code`.
    framework: Option<String>,
    max_duration_minutes: Option<u32>,
    max_cost_usd: Option<f64>,
    max_turns: Option<u32>,
    /// `tmux` or `stdio`.
    transport: Option<String>,
    #[serde(default)]
    allowed_tools: Vec<String>,
    /// Directory inside the project.
    cwd: Option<String>,
    /// `low`, `medium`, `high`, `human` or `critical`.
    priority: Option<String>,
    job_slug: Option<String>,
}

#[derive(Deserialize)]
struct WaitQuery {
    wait: Option<String>,
}

async fn spawn(
    rooms: Rooms,
    credential: Credential,
    Query(query): Query<WaitQuery>,
    Body(body): Body<SpawnBody>,
) -> Result<Response, ApiError> {
    let mut problems = Vec::new();
    let transport = choice("transport", body.transport.as_deref(), &mut problems);
    let priority: Option<Priority> = choice("priority", body.priority.as_deref(), &mut problems);
    if body.framework.as_deref().is_some_and(|f| f != "claude-code") {
        problems.push(Problem::new("framework", "this build runs claude-code only"));
    }
    let person = matches!(credential, Credential::Local | Credential::Owner);
    if !person && priority.is_some_and(|p| p >= Priority::Human) {
        problems.push(Problem::new("priority", "low, medium or high; the others are for people"));
    }
    if !problems.is_empty() {
        return Err(ApiError::invalid(problems));
    }
    let request = SpawnRequest {
        prompt: Some(body.prompt),
        transport,
        model: body.model,
        effort: body.effort,
        cwd: body.cwd.map(Into::into),
        max_duration_minutes: body.max_duration_minutes,
        max_turns: body.max_turns,
        max_cost_usd: body.max_cost_usd,
        allowed_tools: body.allowed_tools,
        priority: priority.unwrap_or(if person { Priority::Human } else { Priority::Medium }),
        triggered_by: Some(match &credential {
            Credential::Session(id) => format!("session:{id}"),
            other => other.kind().to_owned(),
        }),
        job_slug: body.job_slug,
        resume: Resume::Never,
        ..SpawnRequest::new(body.name, SessionKind::AdHoc)
    };
    if query.wait.is_some_and(|v| v == "false" || v == "0") {
        let record = rooms.sessions.spawn(request).await?;
        return Ok((StatusCode::CREATED, Json(shown(&record))).into_response());
    }
    Ok(spawned(rooms.sessions.spawn_or_wait(request).await?))
}

fn spawned(spawned: Spawned) -> Response {
    match spawned {
        Spawned::Started(record) => (StatusCode::CREATED, Json(shown(&record))).into_response(),
        Spawned::Waiting { id, position } => {
            let body = json!({"queued": true, "position": position, "id": id});
            (StatusCode::ACCEPTED, Json(body)).into_response()
        }
    }
}

async fn queue(rooms: Rooms) -> Json<Value> {
    let queue: Vec<Value> =
        rooms.sessions.waiting().iter().enumerate().map(|(at, one)| waiting(at + 1, one)).collect();
    Json(json!({"count": queue.len(), "queue": queue}))
}

/// A waiting request as callers see it, without its prompt.
fn waiting(position: usize, waiting: &Waiting) -> Value {
    let request = &waiting.request;
    let mut shown = json!({
        "id": waiting.id,
        "position": position,
        "name": request.name,
        "kind": request.kind,
        "priority": request.priority,
        "level": waiting.level(now_ms()),
        "queuedAt": rfc3339(waiting.queued_at),
    });
    let optional = [
        ("conversation", request.conversation.as_ref().map(ToString::to_string)),
        ("triggeredBy", request.triggered_by.clone()),
    ];
    for (key, value) in optional.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        shown[key] = value.into();
    }
    shown
}

async fn unqueue(
    rooms: Rooms,
    credential: Credential,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let unknown = || SessionError::NotWaiting(id.clone());
    let id: SessionId = id.parse().map_err(|_| unknown())?;
    if let Credential::Session(caller) = &credential {
        let waiting = rooms.sessions.waiting().into_iter().find(|w| w.id == id).ok_or_else(unknown)?;
        if waiting.request.triggered_by != Some(format!("session:{caller}")) {
            let reason = "a session may take back its own requests only";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "not_your_session", reason));
        }
    }
    let cancelled = rooms.sessions.cancel_waiting(id).await?;
    Ok(Json(json!({"cancelled": cancelled.request.name, "id": id})))
}

fn choice<T: serde::de::DeserializeOwned>(
    path: &str,
    text: Option<&str>,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let parsed = serde_json::from_value(json!(text?));
    parsed.map_err(|e| problems.push(Problem::new(path, e.to_string()))).ok()
}

/// Body of `POST /sessions/refresh`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RefreshBody {
    session_name: String,
    /// At most 500 kB.
    follow_up_prompt: Option<String>,
    /// At most 1,000 characters, for the log.
    reason: Option<String>,
}

async fn refresh(
    rooms: Rooms,
    credential: Credential,
    Body(body): Body<RefreshBody>,
) -> Result<Response, ApiError> {
    let record = rooms.sessions.find(&body.session_name)?;
    if matches!(&credential, Credential::Session(id) if *id != record.id) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "not_your_session",
            "a session may refresh itself only",
        ));
    }
    rooms.sessions.may_refresh(&record.id.to_string()).map_err(|error| match error {
        SessionError::NoTranscript => {
            ApiError::new(StatusCode::CONFLICT, "no_resume_id", SessionError::NoTranscript.to_string())
        }
        other => other.into(),
    })?;
    let reason: String = body.reason.unwrap_or_default().chars().take(1000).collect();
    tracing::info!(session = %record.id, reason, "refresh asked for");
    let sessions = rooms.sessions.clone();
    let answer = Json(json!({"sessionName": record.name}));
    // The caller may be the session itself: it gets its answer before it ends.
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Err(error) = sessions.refresh(&record.id.to_string(), body.follow_up_prompt).await {
            tracing::warn!(session = %record.id, %error, "refresh failed");
        }
    });
    Ok((StatusCode::ACCEPTED, answer).into_response())
}

async fn cleanup(rooms: Rooms) -> Json<Value> {
    let ids: Vec<String> = rooms.sessions.cleanup().await.iter().map(SessionId::to_string).collect();
    Json(json!({"cleaned": ids.len(), "sessionIds": ids}))
}

#[derive(Deserialize)]
struct ForceQuery {
    force: Option<String>,
}

async fn kill(
    rooms: Rooms,
    Path(name): Path<String>,
    Query(query): Query<ForceQuery>,
) -> Result<Json<Value>, ApiError> {
    let record = rooms.sessions.find(&name)?;
    let force = query.force.is_some_and(|v| v != "false" && v != "0");
    rooms.sessions.kill(&record.id.to_string(), force).await?;
    Ok(Json(json!({"killed": record.name})))
}

#[derive(Deserialize)]
struct OutputQuery {
    lines: Option<usize>,
    format: Option<String>,
}

async fn output(
    rooms: Rooms,
    Path(name): Path<String>,
    Query(query): Query<OutputQuery>,
) -> Result<Json<Value>, ApiError> {
    let format = match query.format.as_deref() {
        None | Some("text") => OutputFormat::Text,
        Some("ansi") => OutputFormat::Ansi,
        Some("events") => OutputFormat::Events,
        Some(_) => return Err(ApiError::invalid(vec![Problem::new("format", "text, ansi or events")])),
    };
    let output = rooms.sessions.output(&name, query.lines.unwrap_or(100), format).await?;
    Ok(Json(json!({"session": name, "output": output})))
}

/// Sends the whole visible output whenever it changed; a client replaces what it shows.
async fn stream(
    rooms: Rooms,
    Path(name): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    const POLL: Duration = Duration::from_millis(500);
    const LINES: usize = 200;
    rooms.sessions.find(&name)?;
    let start = (rooms.sessions, name, None::<String>);
    let events = futures::stream::unfold(start, |(sessions, name, last)| async move {
        loop {
            // Asked before the output is read, so that the last words are not missed.
            let ended = sessions.find(&name).map_or(true, |record| record.status.is_final());
            let Ok(text) = sessions.output(&name, LINES, OutputFormat::Text).await else { return None };
            if last.as_ref() != Some(&text) {
                let data = json!({"session": name, "output": text});
                let event = Event::default().event("output").data(data.to_string());
                return Some((Ok(event), (sessions, name, Some(text))));
            }
            if ended {
                return None;
            }
            tokio::time::sleep(POLL).await;
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

/// Body of `POST /sessions/{name}/input`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct InputBody {
    /// At most 100 kB.
    text: String,
    /// Goes first and interrupts a running turn.
    #[serde(default)]
    steer: bool,
}

async fn input(
    rooms: Rooms,
    Path(name): Path<String>,
    headers: axum::http::HeaderMap,
    Body(body): Body<InputBody>,
) -> Result<Json<Value>, ApiError> {
    let key = headers.get("idempotency-key").and_then(|v| v.to_str().ok());
    let sent = rooms.sessions.send_input(&name, &body.text, body.steer, key).await?;
    Ok(Json(json!({"ok": true, "ulid": sent.ulid.to_string(), "state": sent.state})))
}

#[derive(Deserialize)]
struct InboxQuery {
    state: Option<String>,
    limit: Option<usize>,
}

async fn inbox(
    rooms: Rooms,
    Path(name): Path<String>,
    Query(query): Query<InboxQuery>,
) -> Result<Json<Value>, ApiError> {
    let record = rooms.sessions.find(&name)?;
    let mut problems = Vec::new();
    let state: Option<InputState> = choice("state", query.state.as_deref(), &mut problems);
    if !problems.is_empty() {
        return Err(ApiError::invalid(problems));
    }
    let rows = rooms.sessions.inbox(record.id, state).await?;
    let messages: Vec<Value> = rows.iter().take(query.limit.unwrap_or(50).min(200)).map(row).collect();
    Ok(Json(json!({"count": messages.len(), "messages": messages})))
}

fn row(row: &InboxRow) -> Value {
    let mut shown = json!({
        "ulid": row.ulid.to_string(),
        "inboxKey": row.input.inbox_key,
        "conversation": row.input.conversation,
        "state": row.state,
        "attempts": row.attempts,
        "queuedAt": rfc3339(row.queued_at),
        "bytes": row.input.body.len(),
    });
    let optional = [("injectedAt", row.injected_at), ("ackedAt", row.acked_at)];
    for (key, at) in optional.into_iter().filter_map(|(key, at)| Some((key, at?))) {
        shown[key] = rfc3339(at).into();
    }
    if let Some(error) = &row.error {
        shown["error"] = error.as_str().into();
    }
    shown
}

async fn overdue(rooms: Rooms) -> Result<Json<Value>, ApiError> {
    let rows = rooms.sessions.overdue().await?;
    let messages: Vec<Value> = rows
        .iter()
        .map(|one| {
            let mut shown = row(one);
            shown["from"] = one.input.tag.as_str().into();
            shown["head"] = one.input.body.chars().take(200).collect::<String>().into();
            shown
        })
        .collect();
    Ok(Json(json!({"count": messages.len(), "messages": messages})))
}

/// Body of `POST /sessions/overdue/{ulid}`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct OverdueBody {
    /// `run` or `drop`.
    decision: String,
}

async fn decide_overdue(
    rooms: Rooms,
    Path(ulid): Path<String>,
    Body(body): Body<OverdueBody>,
) -> Result<Json<Value>, ApiError> {
    let mut problems = Vec::new();
    let Some(decision) = choice::<OverdueDecision>("decision", Some(&body.decision), &mut problems) else {
        return Err(ApiError::invalid(problems));
    };
    rooms.sessions.decide_overdue(&ulid, decision).await?;
    Ok(Json(json!({"ulid": ulid, "decision": decision})))
}

/// Body of `POST /sessions/{name}/key`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct KeyBody {
    /// `Enter`, `Escape`, `Up`, `C-c`, a digit …
    key: String,
}

async fn key(
    rooms: Rooms,
    Path(name): Path<String>,
    Body(body): Body<KeyBody>,
) -> Result<Json<Value>, ApiError> {
    rooms.sessions.key(&name, &body.key).await?;
    Ok(Json(json!({"ok": true})))
}

async fn interrupt(rooms: Rooms, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    rooms.sessions.interrupt(&name).await?;
    Ok(Json(json!({"ok": true})))
}

/// Body of `POST /sessions/{name}/resume`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct ResumeBody {
    /// First input of the continued session.
    prompt: Option<String>,
}

async fn resume(
    rooms: Rooms,
    Path(name): Path<String>,
    Body(body): Body<ResumeBody>,
) -> Result<Response, ApiError> {
    let record = rooms.sessions.find(&name)?;
    Ok(spawned(rooms.sessions.resume(record.id, body.prompt).await?))
}

/// Body of `POST /sessions/{name}/transport`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct TransportBody {
    /// `tmux` or `stdio`.
    transport: String,
}

async fn transport(
    rooms: Rooms,
    Path(name): Path<String>,
    Body(body): Body<TransportBody>,
) -> Result<Response, ApiError> {
    let mut problems = Vec::new();
    let Some(wanted) = choice("transport", Some(&body.transport), &mut problems) else {
        return Err(ApiError::invalid(problems));
    };
    let record = rooms.sessions.switch_transport(&name, wanted).await?;
    let answer = json!({"sessionId": record.id, "name": record.name, "transport": record.transport});
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// A record as callers see it: times as text, nothing of the token.
pub(crate) fn shown(record: &SessionRecord) -> Value {
    let mut value = json!(record);
    if let Some(object) = value.as_object_mut() {
        object.remove("tokenHash");
        object.remove("logOffset");
        object.remove("finishedInputs");
        object.remove("recentReports");
        for key in ["startedAt", "readyAt", "endedAt"] {
            if let Some(ms) = object.get(key).and_then(Value::as_i64) {
                object.insert(key.to_owned(), rfc3339(ms).into());
            }
        }
    }
    value
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        let status = match &error {
            SessionError::NotFound(_) | SessionError::NotWaiting(_) | SessionError::NotOverdue(_) => {
                StatusCode::NOT_FOUND
            }
            SessionError::Invalid(_) => StatusCode::BAD_REQUEST,
            SessionError::NameInUse(_)
            | SessionError::Ended(_)
            | SessionError::WaitingInput
            | SessionError::NotBusy
            | SessionError::Busy
            | SessionError::InProgress
            | SessionError::Kept(_) => StatusCode::CONFLICT,
            SessionError::Protected => StatusCode::FORBIDDEN,
            SessionError::Limit { .. } | SessionError::QueueFull(_) | SessionError::RefreshLimit => {
                StatusCode::TOO_MANY_REQUESTS
            }
            SessionError::RuntimeMissing(_) | SessionError::CrashLoop(..) | SessionError::Memory { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            SessionError::NoTranscript => StatusCode::GONE,
            SessionError::Unsupported(_) => StatusCode::UNPROCESSABLE_ENTITY,
            SessionError::Journal(_) | SessionError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            return Self::internal(error);
        }
        let reason = matches!(error, SessionError::Kept(_)).then(|| error.to_string());
        let api = Self::new(status, error.code(), error.to_string());
        match reason {
            Some(reason) => api.with("reason", reason.into()),
            None => api,
        }
    }
}
