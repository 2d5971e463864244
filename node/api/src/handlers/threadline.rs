//! The mesh (`http-api.md` §13.1).

use axum::extract::Path;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Extension, Json};
use instar_mesh::{Answered, ApproveOption, Decision};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use threadline::TrustLevel;
use threadline::service::{DeleteRequest, HistoryRequest, SendRequest, Threadline, Tool, ToolCall};

use crate::access::{Access, Credential};
use crate::caller::MeshCaller;
use crate::error::{ApiError, Problem};
use crate::extract::{Body, Query};
use crate::rate::Group;
use crate::receipt::{CallerGone, Carried};
use crate::routes::Route;
use crate::state::Rooms;

type Answer = Result<Json<Value>, ApiError>;

/// A send may wait 300 s for the peer's reply.
const SEND_PATIENCE_S: u64 = 330;

pub(crate) fn routes() -> Vec<Route> {
    let mut routes = agents();
    routes.extend(threads());
    routes.extend(super::invitations::routes());
    routes.extend(super::wire::routes());
    routes.extend(vec![
        Route::new(Method::GET, "/threadline/health", Access::PUBLIC, "Mesh identity and link", get(health)),
        Route::new(
            Method::POST,
            "/threadline/challenge",
            Access::PUBLIC,
            "Proves the key behind this node",
            post(challenge),
        )
        .group(Group::Challenge)
        .body::<ChallengeBody>(),
        Route::new(
            Method::GET,
            "/threadline/status",
            Access::ANY,
            "Link, registry, queues, audit and configuration of the mesh",
            get(status),
        ),
        Route::new(
            Method::POST,
            "/threadline/tools/{tool}",
            Access::ANY_SOME_OWNER,
            "Calls one of the eleven tools; the body holds its arguments",
            post(tool),
        )
        .patience(SEND_PATIENCE_S),
        Route::new(
            Method::POST,
            "/threadline/relay-send",
            Access::ANY,
            "Sends a message to an agent",
            post(relay_send),
        )
        .patience(SEND_PATIENCE_S),
        Route::new(Method::POST, "/threadline/discover", Access::ANY, "Looks for agents", post(discover)),
        Route::new(
            Method::POST,
            "/threadline/relay-discover",
            Access::ANY,
            "Looks for agents at the relay",
            post(relay_discover),
        ),
        Route::new(
            Method::POST,
            "/threadline/relay/enable",
            Access::ANY_SOME_OWNER,
            "Uses the configured relay from now on",
            post(relay_enable),
        )
        .body::<RelayBody>(),
        Route::new(
            Method::POST,
            "/threadline/relay/disable",
            Access::ANY,
            "Leaves the configured relay",
            post(relay_disable),
        ),
        Route::new(
            Method::POST,
            "/threadline/authorize",
            Access::HOOK,
            "Decides about one tool call of a session that serves a peer",
            post(authorize),
        )
        .group(Group::Hook)
        .patience(2)
        .body::<AuthorizeBody>(),
        Route::new(
            Method::POST,
            "/threadline/pause",
            Access::ANY,
            "Holds everything from all agents",
            post(pause_all),
        ),
        Route::new(
            Method::POST,
            "/threadline/resume",
            Access::OWNER,
            "Lets agents write again",
            post(resume_all),
        ),
        Route::new(
            Method::GET,
            "/threadline/approvals",
            Access::ANY,
            "What waits for the owner",
            get(approvals),
        )
        .query(&["status", "kind"]),
        Route::new(
            Method::POST,
            "/threadline/approvals/{id}/approve",
            Access::OWNER,
            "Lets it through",
            post(approve),
        )
        .body::<ApproveBody>(),
        Route::new(
            Method::POST,
            "/threadline/approvals/{id}/reject",
            Access::OWNER,
            "Refuses it",
            post(reject),
        )
        .body::<RejectBody>(),
        Route::new(
            Method::GET,
            "/threadline/peers/health",
            Access::ANY,
            "Unconfirmed messages and last contact by agent",
            get(peers_health),
        ),
        Route::new(
            Method::GET,
            "/threadline/peers/{fp}/health",
            Access::ANY,
            "The same of one agent",
            get(peer_health),
        ),
        Route::new(Method::GET, "/threadline/audit", Access::ANY, "Entries of the audit chain", get(audit))
            .query(&["limit", "action", "subject"]),
        Route::new(
            Method::GET,
            "/threadline/audit/verify",
            Access::ANY,
            "Whether the audit chain is whole",
            get(audit_verify),
        ),
        Route::new(Method::GET, "/threadline/limits", Access::ANY, "Limits in force", get(limits)),
        Route::new(
            Method::POST,
            "/threadline/limits/reset",
            Access::OWNER,
            "Forgets what was counted",
            post(reset_limits),
        )
        .body::<ResetBody>(),
    ]);
    routes
}

fn agents() -> Vec<Route> {
    vec![
        Route::new(Method::GET, "/threadline/agents", Access::ANY, "Known agents", get(known_agents))
            .query(&["includeOffline"]),
        Route::new(
            Method::GET,
            "/threadline/agents/{fp}",
            Access::ANY,
            "One agent with its profile",
            get(agent),
        ),
        Route::new(
            Method::POST,
            "/threadline/agents/{fp}/trust",
            Access::ANY_SOME_OWNER,
            "Sets a trust level; raising is the owner's",
            post(set_trust),
        )
        .body::<TrustBody>(),
        Route::new(
            Method::GET,
            "/threadline/agents/{fp}/safety",
            Access::OWNER,
            "The number to compare with the other owner",
            get(safety),
        ),
        Route::new(
            Method::POST,
            "/threadline/agents/{fp}/safety",
            Access::OWNER,
            "What came of comparing the numbers",
            post(confirm_safety),
        )
        .body::<SafetyBody>(),
        Route::new(
            Method::POST,
            "/threadline/agents/{fp}/block",
            Access::ANY,
            "Drops everything from an agent",
            post(block),
        )
        .body::<ReasonBody>(),
        Route::new(
            Method::POST,
            "/threadline/agents/{fp}/unblock",
            Access::OWNER,
            "Removes the block only",
            post(unblock),
        ),
        Route::new(
            Method::POST,
            "/threadline/agents/{fp}/pause",
            Access::ANY,
            "Holds everything from an agent",
            post(pause),
        )
        .body::<ReasonBody>(),
        Route::new(
            Method::POST,
            "/threadline/agents/{fp}/resume",
            Access::OWNER,
            "Releases what was held",
            post(resume),
        ),
        Route::new(
            Method::PUT,
            "/threadline/agents/{fp}/nickname",
            Access::ANY,
            "Names an agent",
            put(set_nickname),
        )
        .body::<NicknameBody>(),
        Route::new(
            Method::DELETE,
            "/threadline/agents/{fp}/nickname",
            Access::ANY,
            "Forgets the name",
            delete(remove_nickname),
        ),
    ]
}

fn threads() -> Vec<Route> {
    vec![
        Route::new(
            Method::GET,
            "/threadline/threads",
            Access::ANY,
            "Conversations, newest first",
            get(list_threads),
        )
        .query(&["peer", "state", "limit", "cursor"]),
        Route::new(
            Method::GET,
            "/threadline/threads/{id}",
            Access::ANY,
            "One conversation with its newest messages",
            get(thread),
        )
        .query(&["peer", "limit", "before"]),
        Route::new(
            Method::DELETE,
            "/threadline/threads/{id}",
            Access::ANY,
            "Deletes the texts of a conversation",
            delete(delete_thread),
        )
        .query(&["peer", "force"]),
        Route::new(
            Method::POST,
            "/threadline/threads/{id}/pin",
            Access::ANY,
            "Keeps a conversation from ageing",
            post(pin),
        )
        .query(&["peer"]),
        Route::new(
            Method::POST,
            "/threadline/threads/{id}/unpin",
            Access::ANY,
            "Lets it age again",
            post(unpin),
        )
        .query(&["peer"]),
        Route::new(
            Method::POST,
            "/threadline/threads/{id}/resolve",
            Access::ANY,
            "Marks a conversation as settled",
            post(resolve),
        )
        .query(&["peer"]),
        Route::new(
            Method::GET,
            "/threadline/observability/search",
            Access::ANY,
            "Full-text search over messages",
            get(search),
        )
        .query(&["q", "limit"]),
        Route::new(Method::GET, "/messages/inbox", Access::ANY, "Newest messages from agents", get(inbox))
            .query(&["limit"]),
        Route::new(Method::GET, "/messages/outbox", Access::ANY, "Newest messages to agents", get(outbox))
            .query(&["limit"]),
    ]
}

async fn health(rooms: Rooms) -> Json<Value> {
    Json(rooms.mesh.health())
}

/// Body of `POST /threadline/challenge`.
#[derive(Deserialize, schemars::JsonSchema)]
struct ChallengeBody {
    /// 64 hex digits.
    nonce: String,
}

async fn challenge(rooms: Rooms, Body(body): Body<ChallengeBody>) -> Answer {
    Ok(Json(rooms.mesh.challenge(&body.nonce)?))
}

async fn status(rooms: Rooms) -> Answer {
    Ok(Json(rooms.mesh.status().await?))
}

async fn tool(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    gone: Option<Extension<CallerGone>>,
    Path(name): Path<String>,
    Body(arguments): Body<Value>,
) -> Result<Response, ApiError> {
    let tool = Tool::from_name(&name).ok_or_else(|| ApiError::not_found("tool", &name))?;
    let call = ToolCall::parse(tool, arguments)?;
    let Extension(CallerGone(gone)) = gone.unwrap_or_default();
    Ok(carrying(StatusCode::OK, rooms.mesh.attend(caller, call, &gone).await?))
}

/// An answer that may carry a peer's message.
fn carrying(status: StatusCode, answered: Answered) -> Response {
    let mut response = (status, Json(answered.result)).into_response();
    if let Some(handover) = answered.handover {
        response.extensions_mut().insert(Carried::new(handover));
    }
    response
}

/// `targetAgent` is the name of the target here; unknown members are ignored for older callers.
async fn relay_send(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    gone: Option<Extension<CallerGone>>,
    headers: axum::http::HeaderMap,
    Body(mut body): Body<Value>,
) -> Result<Response, ApiError> {
    let fields = body.as_object_mut().ok_or_else(|| invalid("", "an object is expected"))?;
    if let Some(key) = headers.get("idempotency-key").and_then(|v| v.to_str().ok()) {
        fields.entry("idempotencyKey").or_insert_with(|| key.into());
    }
    fields.entry("waitForReply").or_insert(Value::Bool(false));
    let request: SendRequest = serde_json::from_value(body).map_err(|e| invalid("", &e.to_string()))?;
    let Extension(CallerGone(gone)) = gone.unwrap_or_default();
    let answered = rooms.mesh.attend(caller, ToolCall::Send(request), &gone).await?;
    let queued = answered.result["outcome"] == "queued";
    Ok(carrying(if queued { StatusCode::ACCEPTED } else { StatusCode::OK }, answered))
}

async fn discover(rooms: Rooms, MeshCaller(caller): MeshCaller, Body(arguments): Body<Value>) -> Answer {
    let call = ToolCall::parse(Tool::ThreadlineDiscover, arguments)?;
    Ok(Json(rooms.mesh.call(caller, call).await?))
}

async fn relay_discover(rooms: Rooms, MeshCaller(caller): MeshCaller, Body(body): Body<Value>) -> Answer {
    let filter = &body["filter"];
    let arguments = json!({
        "scope": "network",
        "capability": filter["capability"].as_str(),
        "query": filter["name"].as_str(),
    });
    let call = ToolCall::parse(Tool::ThreadlineDiscover, arguments)?;
    Ok(Json(rooms.mesh.call(caller, call).await?))
}

/// Body of `POST /threadline/relay/enable`.
#[derive(Deserialize, schemars::JsonSchema)]
struct RelayBody {
    /// `public` or `unlisted`.
    visibility: Option<String>,
}

async fn relay_enable(rooms: Rooms, MeshCaller(caller): MeshCaller, Body(body): Body<RelayBody>) -> Answer {
    Ok(Json(rooms.mesh.switch_relay(&caller, true, body.visibility).await?))
}

async fn relay_disable(rooms: Rooms, MeshCaller(caller): MeshCaller) -> Answer {
    Ok(Json(rooms.mesh.switch_relay(&caller, false, None).await?))
}

/// Body of `POST /threadline/authorize`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
struct AuthorizeBody {
    session_id: String,
    tool: String,
    #[serde(default)]
    input: Value,
}

async fn authorize(rooms: Rooms, credential: Credential, Body(body): Body<AuthorizeBody>) -> Answer {
    if matches!(&credential, Credential::Session(id) if id.to_string() != body.session_id) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "not_your_session",
            "a session may ask for itself only",
        ));
    }
    let decided = rooms.mesh.authorize(&body.session_id, &body.tool, &body.input).await?;
    Ok(Json(json!({"decision": decided.decision, "reason": decided.reason})))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AgentsQuery {
    include_offline: Option<String>,
}

async fn known_agents(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    Query(query): Query<AgentsQuery>,
) -> Answer {
    let all = query.include_offline.is_none_or(|v| v != "false" && v != "0");
    Ok(Json(rooms.mesh.agents(&caller, all).await?))
}

async fn agent(rooms: Rooms, Path(peer): Path<String>) -> Answer {
    Ok(Json(rooms.mesh.agent(&peer).await?))
}

/// Body of `POST /threadline/agents/{fp}/trust`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct TrustBody {
    /// `untrusted`, `verified`, `trusted` or `autonomous`.
    level: String,
    /// At most 500 characters.
    reason: Option<String>,
}

async fn set_trust(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    Path(peer): Path<String>,
    Body(body): Body<TrustBody>,
) -> Result<Response, ApiError> {
    let level: TrustLevel =
        body.level.parse().map_err(|e: threadline::ParseIdError| invalid("level", &e.to_string()))?;
    let change = rooms.mesh.set_trust(&caller, &peer, level, body.reason.as_deref()).await?;
    let waits = change["status"] == "pending_confirmation";
    let status = if waits { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(change)).into_response())
}

async fn safety(rooms: Rooms, MeshCaller(caller): MeshCaller, Path(peer): Path<String>) -> Answer {
    Ok(Json(rooms.mesh.safety(&caller, &peer).await?))
}

/// Body of `POST /threadline/agents/{fp}/safety`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct SafetyBody {
    /// Whether the other owner sees the same number.
    matches: bool,
}

async fn confirm_safety(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    Path(peer): Path<String>,
    Body(body): Body<SafetyBody>,
) -> Answer {
    Ok(Json(rooms.mesh.confirm_safety(&caller, &peer, body.matches).await?))
}

/// Body with a reason.
#[derive(Deserialize, schemars::JsonSchema)]
struct ReasonBody {
    /// At most 500 characters.
    reason: Option<String>,
}

async fn block(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    Path(peer): Path<String>,
    Body(body): Body<ReasonBody>,
) -> Answer {
    Ok(Json(rooms.mesh.block(&caller, &peer, body.reason).await?))
}

async fn unblock(rooms: Rooms, MeshCaller(caller): MeshCaller, Path(peer): Path<String>) -> Answer {
    Ok(Json(rooms.mesh.unblock(&caller, &peer).await?))
}

async fn pause(rooms: Rooms, Path(peer): Path<String>, Body(body): Body<ReasonBody>) -> Answer {
    Ok(Json(rooms.mesh.pause(&peer, body.reason).await?))
}

async fn resume(rooms: Rooms, MeshCaller(caller): MeshCaller, Path(peer): Path<String>) -> Answer {
    Ok(Json(rooms.mesh.resume(&caller, &peer).await?))
}

async fn pause_all(rooms: Rooms, MeshCaller(caller): MeshCaller) -> Answer {
    Ok(Json(rooms.mesh.pause_all(&caller, true).await?))
}

async fn resume_all(rooms: Rooms, MeshCaller(caller): MeshCaller) -> Answer {
    Ok(Json(rooms.mesh.pause_all(&caller, false).await?))
}

/// Body of `PUT /threadline/agents/{fp}/nickname`.
#[derive(Deserialize, schemars::JsonSchema)]
struct NicknameBody {
    /// At most 64 characters.
    nickname: String,
}

async fn set_nickname(rooms: Rooms, Path(peer): Path<String>, Body(body): Body<NicknameBody>) -> Answer {
    Ok(Json(rooms.mesh.set_nickname(&peer, Some(body.nickname)).await?))
}

async fn remove_nickname(rooms: Rooms, Path(peer): Path<String>) -> Answer {
    Ok(Json(rooms.mesh.set_nickname(&peer, None).await?))
}

#[derive(Deserialize)]
struct ApprovalsQuery {
    status: Option<String>,
    kind: Option<String>,
}

async fn approvals(rooms: Rooms, Query(query): Query<ApprovalsQuery>) -> Answer {
    let status = word("status", query.status)?;
    let kind = word("kind", query.kind)?;
    Ok(Json(rooms.mesh.approvals(status, kind).await?))
}

/// Body of an approval.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct ApproveBody {
    /// `message` (default), `thread` or `agent`, which becomes verified.
    option: Option<String>,
}

async fn approve(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    Path(id): Path<String>,
    Body(body): Body<ApproveBody>,
) -> Answer {
    let option = match body.option.as_deref() {
        None | Some("message") => ApproveOption::Message,
        Some("thread") => ApproveOption::Thread,
        Some("agent") => ApproveOption::Agent,
        Some(_) => return Err(invalid("option", "message, thread or agent")),
    };
    Ok(Json(rooms.mesh.decide(&caller, &id, Decision::Approve(option)).await?))
}

/// Body of a refusal.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct RejectBody {
    /// At most 500 characters, for the log.
    reason: Option<String>,
}

async fn reject(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    Path(id): Path<String>,
    Body(body): Body<RejectBody>,
) -> Answer {
    let reason: String = body.reason.unwrap_or_default().chars().take(500).collect();
    tracing::info!(approval = id, reason, "approval rejected by the owner");
    Ok(Json(rooms.mesh.decide(&caller, &id, Decision::Reject).await?))
}

#[derive(Deserialize)]
struct ThreadsQuery {
    peer: Option<String>,
    state: Option<String>,
    limit: Option<u32>,
    cursor: Option<i64>,
}

async fn list_threads(rooms: Rooms, Query(query): Query<ThreadsQuery>) -> Answer {
    let state = word("state", query.state)?;
    let limit = query.limit.unwrap_or(50);
    Ok(Json(rooms.mesh.threads(query.peer.as_deref(), state, limit, query.cursor).await?))
}

#[derive(Deserialize)]
struct ThreadQuery {
    peer: Option<String>,
    limit: Option<u32>,
    before: Option<String>,
    force: Option<String>,
}

async fn thread(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    Path(id): Path<String>,
    Query(query): Query<ThreadQuery>,
) -> Answer {
    let request =
        HistoryRequest { thread_id: id, limit: query.limit, before: query.before, peer: query.peer };
    Ok(Json(rooms.mesh.thread(&caller, request).await?))
}

async fn delete_thread(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    Path(id): Path<String>,
    Query(query): Query<ThreadQuery>,
) -> Answer {
    let force = query.force.is_some_and(|v| v != "false" && v != "0");
    let request = DeleteRequest { thread_id: id, confirm: true, peer: query.peer, force };
    Ok(Json(rooms.mesh.delete_thread(&caller, request).await?))
}

async fn pin(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    Path(id): Path<String>,
    Query(query): Query<ThreadQuery>,
) -> Answer {
    Ok(Json(rooms.mesh.pin_thread(&caller, &id, query.peer.as_deref(), true).await?))
}

async fn unpin(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    Path(id): Path<String>,
    Query(query): Query<ThreadQuery>,
) -> Answer {
    Ok(Json(rooms.mesh.pin_thread(&caller, &id, query.peer.as_deref(), false).await?))
}

async fn resolve(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    Path(id): Path<String>,
    Query(query): Query<ThreadQuery>,
) -> Answer {
    Ok(Json(rooms.mesh.resolve_thread(&caller, &id, query.peer.as_deref()).await?))
}

#[derive(Deserialize)]
struct SearchQuery {
    q: String,
    limit: Option<u32>,
}

async fn search(rooms: Rooms, Query(query): Query<SearchQuery>) -> Answer {
    Ok(Json(rooms.mesh.search(&query.q, query.limit.unwrap_or(50)).await?))
}

#[derive(Deserialize)]
struct LimitQuery {
    limit: Option<u32>,
}

async fn inbox(rooms: Rooms, Query(query): Query<LimitQuery>) -> Answer {
    Ok(Json(rooms.mesh.inbox(query.limit.unwrap_or(50)).await?))
}

async fn outbox(rooms: Rooms, Query(query): Query<LimitQuery>) -> Answer {
    Ok(Json(rooms.mesh.outbox(query.limit.unwrap_or(50)).await?))
}

async fn peers_health(rooms: Rooms) -> Answer {
    Ok(Json(rooms.mesh.peers_health(None).await?))
}

async fn peer_health(rooms: Rooms, Path(peer): Path<String>) -> Answer {
    Ok(Json(rooms.mesh.peers_health(Some(&peer)).await?))
}

#[derive(Deserialize)]
struct AuditQuery {
    limit: Option<usize>,
    action: Option<String>,
    subject: Option<String>,
}

async fn audit(rooms: Rooms, Query(query): Query<AuditQuery>) -> Answer {
    Ok(Json(rooms.mesh.audit(query.limit.unwrap_or(50), query.action, query.subject).await?))
}

async fn audit_verify(rooms: Rooms) -> Answer {
    Ok(Json(rooms.mesh.audit_verify().await?))
}

async fn limits(rooms: Rooms) -> Answer {
    Ok(Json(rooms.mesh.limits()?))
}

/// Body of `POST /threadline/limits/reset`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct ResetBody {
    /// Fingerprint; all agents if absent.
    peer: Option<String>,
}

async fn reset_limits(rooms: Rooms, MeshCaller(caller): MeshCaller, Body(body): Body<ResetBody>) -> Answer {
    Ok(Json(rooms.mesh.reset_limits(&caller, body.peer.as_deref()).await?))
}

/// One word of a closed list in a query.
fn word<T: DeserializeOwned>(path: &str, text: Option<String>) -> Result<Option<T>, ApiError> {
    text.map(|text| serde_json::from_value(Value::String(text)).map_err(|e| invalid(path, &e.to_string())))
        .transpose()
}

fn invalid(path: &str, problem: &str) -> ApiError {
    ApiError::invalid(vec![Problem::new(path, problem)])
}
