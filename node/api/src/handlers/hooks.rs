//! Routes that the hook program calls (`http-api.md` §3.1).

use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::routing::{get, post};
use instar_hooks::HookReport;
use serde_json::{Value, json};

use crate::access::{Access, Credential};
use crate::error::ApiError;
use crate::extract::{Body, Query};
use crate::rate::Group;
use crate::routes::Route;
use crate::state::{ApiState, BootContext, Rooms, TurnContext};

pub(crate) fn routes() -> Vec<Route> {
    vec![
        Route::new(
            Method::POST,
            "/hooks/events",
            Access::HOOK,
            "Takes the report of one hooked event",
            post(event),
        )
        .group(Group::Hook),
        Route::new(Method::GET, "/hooks/status", Access::ANY, "How every hook does", get(status)),
        Route::new(
            Method::GET,
            "/context/boot",
            Access::HOOK,
            "Text that a session is told when it starts",
            get(boot),
        )
        .group(Group::Hook)
        .query(&["part", "session", "conversation", "compact"]),
        Route::new(Method::GET, "/context/turn", Access::HOOK, "Text that goes with a prompt", get(turn))
            .group(Group::Hook)
            .query(&["conversation", "session"]),
    ]
}

async fn event(
    State(api): State<ApiState>,
    rooms: Rooms,
    credential: Credential,
    Body(report): Body<HookReport>,
) -> Result<Json<Value>, ApiError> {
    let claimed = report.instar_session_id.as_deref().and_then(|id| id.parse().ok());
    if let Credential::Session(id) = &credential
        && claimed.is_some_and(|claimed| claimed != *id)
    {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "not_your_session",
            "a session may report its own events only",
        ));
    }
    api.settings().facts.record_hook(&report);
    // Other reports come from a terminal that a person opened in the project: not ours to follow.
    if let Some(id) = claimed {
        rooms.sessions.hook_event(id, report).await;
    }
    Ok(Json(json!({"ok": true})))
}

async fn status(State(api): State<ApiState>) -> Json<Value> {
    let hooks = api.settings().facts.hook_status().await;
    Json(json!({"count": hooks.len(), "hooks": hooks}))
}

async fn boot(
    State(api): State<ApiState>,
    Query(request): Query<BootContext>,
) -> Result<Json<Value>, ApiError> {
    api.rooms()?;
    api.settings().facts.boot_context(request).await.map(Json)
}

async fn turn(
    State(api): State<ApiState>,
    Query(request): Query<TurnContext>,
) -> Result<Json<Value>, ApiError> {
    api.rooms()?;
    Ok(Json(api.settings().facts.turn_context(request)))
}
