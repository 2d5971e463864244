//! Health, status and what the node says about itself (`http-api.md` §1).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};

use crate::access::{Access, Credential};
use crate::error::ApiError;
use crate::routes::{self, Feature, Route};
use crate::serve::Peer;
use crate::state::{ApiState, Rooms};

pub(crate) fn routes() -> Vec<Route> {
    vec![
        Route::new(Method::GET, "/ping", Access::PUBLIC, "Proves that something answers here", get(ping)),
        Route::new(
            Method::GET,
            "/health",
            Access::PUBLIC,
            "State of the node; more with a credential",
            get(health),
        ),
        Route::new(Method::GET, "/openapi.json", Access::PUBLIC, "This description", get(openapi)),
        Route::new(
            Method::GET,
            "/.well-known/instar.json",
            Access::PUBLIC,
            "Name, version and mesh identity of the agent",
            get(well_known),
        ),
        Route::new(Method::GET, "/whoami", Access::ANY, "Who the caller is to the node", get(whoami)),
        Route::new(Method::GET, "/status", Access::ANY, "Sessions, mesh, tasks and notices", get(status)),
        Route::new(
            Method::GET,
            "/capabilities",
            Access::ANY,
            "What this build can do, by feature",
            get(capabilities),
        ),
        Route::new(
            Method::GET,
            "/health/degradations",
            Access::ANY,
            "Features that do not work as configured",
            get(degradations),
        ),
        Route::new(
            Method::GET,
            "/config",
            Access::LOCAL_AGENT,
            "Effective configuration, secrets masked",
            get(config),
        ),
        Route::new(
            Method::GET,
            "/agents",
            Access::ANY,
            "Agents of this account on this machine",
            get(agents),
        ),
    ]
}

async fn ping() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

async fn health(State(api): State<ApiState>, credential: Credential) -> Response {
    if api.is_draining() {
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "the node is stopping")
            .into_response();
    }
    let degradations = api.settings().facts.degradations();
    let status = match (api.is_ready(), degradations.is_empty()) {
        (false, _) => "booting",
        (true, true) => "ok",
        (true, false) => "degraded",
    };
    let mut body = json!({"status": status, "uptime": api.uptime().as_secs()});
    if credential != Credential::Anonymous {
        let settings = api.settings();
        body["version"] = settings.version.into();
        body["bootId"] = settings.boot_id.clone().into();
        body["degradations"] = degradations.len().into();
        body["degradationSummary"] = degradations.into_iter().take(3).collect();
        if let Ok(rooms) = api.rooms() {
            body["sessions"] = json!(rooms.sessions.capacity());
            body["mesh"] = rooms.mesh.health()["relay"].clone();
        }
    }
    Json(body).into_response()
}

async fn openapi(State(api): State<ApiState>) -> Json<Value> {
    Json(routes::openapi(api.settings().version))
}

async fn well_known(State(api): State<ApiState>, peer: Option<axum::Extension<Peer>>) -> Json<Value> {
    let settings = api.settings();
    let mut body = json!({"name": settings.agent_name, "version": settings.version});
    if let Ok(rooms) = api.rooms() {
        let health = rooms.mesh.health();
        body["threadline"] = json!({
            "version": "1.0",
            "fingerprint": health["fingerprint"],
            "identityPub": health["identityPub"],
            "health": "/threadline/health",
        });
    }
    let near = peer.is_none_or(|axum::Extension(peer)| match peer {
        Peer::Tcp(address) => address.ip().is_loopback(),
        Peer::Socket { .. } => true,
    });
    if near {
        body["endpoints"] = json!({
            "health": "/health",
            "capabilities": "/capabilities",
            "sessions": "/sessions",
            "threadline": "/threadline/status",
            "openapi": "/openapi.json",
        });
    }
    Json(body)
}

async fn whoami(State(api): State<ApiState>, credential: Credential) -> Json<Value> {
    let settings = api.settings();
    let mut caller = json!({"kind": credential.kind()});
    if let Credential::Session(id) = &credential {
        caller["sessionId"] = id.to_string().into();
    }
    Json(json!({
        "agentId": settings.agent_name,
        "project": settings.project_dir,
        "port": settings.port,
        "version": settings.version,
        "bootId": settings.boot_id,
        "credential": caller,
    }))
}

async fn status(State(api): State<ApiState>, rooms: Rooms) -> Json<Value> {
    let settings = api.settings();
    let live: Vec<Value> =
        rooms.sessions.list().iter().filter(|r| r.status.is_live()).map(super::sessions::shown).collect();
    Json(json!({
        "agent": settings.agent_name,
        "version": settings.version,
        "pid": std::process::id(),
        "port": settings.port,
        "uptime": api.uptime().as_secs(),
        "bootId": settings.boot_id,
        "sessions": {"capacity": rooms.sessions.capacity(), "list": live},
        "mesh": rooms.mesh.status().await.unwrap_or_else(|e| json!({"code": e.code, "error": e.message})),
        "subsystems": settings.facts.subsystems(),
        "degradations": settings.facts.degradations(),
        "notices": settings.facts.notices(),
        "restartNeeded": settings.facts.restart_needed(),
    }))
}

async fn capabilities(State(api): State<ApiState>) -> Json<Value> {
    let settings = api.settings();
    let mut endpoints: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for route in routes::table() {
        endpoints
            .entry(route.feature.name())
            .or_default()
            .push(format!("{} {}: {}", route.method, route.path, route.summary));
    }
    let features: serde_json::Map<String, Value> = Feature::ALL
        .into_iter()
        .map(|feature| {
            let routes = endpoints.remove(feature.name()).unwrap_or_default();
            (feature.name().to_owned(), json!({"enabled": true, "endpoints": routes, "how": how(feature)}))
        })
        .collect();
    Json(json!({
        "project": settings.agent_name,
        "version": settings.version,
        "features": features,
        "featureGuide": {"triggers": [
            {"context": "another agent is to be asked or told something", "action": "use the tools threadline_discover and threadline_send"},
            {"context": "work is to be handed to a session of its own", "action": "instar session spawn"},
        ]},
    }))
}

const fn how(feature: Feature) -> &'static str {
    match feature {
        Feature::Core => "instar status, instar api GET /health",
        Feature::Sessions => "instar session list, spawn, send, output",
        Feature::Hooks => "called by instar-hook; instar hooks verify checks the registration",
        Feature::Threadline => "the threadline_* tools, or instar threadline discover, send, thread",
    }
}

async fn degradations(State(api): State<ApiState>) -> Json<Value> {
    let events = api.settings().facts.degradations();
    Json(json!({"total": events.len(), "events": events}))
}

async fn config(State(api): State<ApiState>) -> Json<Value> {
    Json(api.settings().facts.config())
}

async fn agents(State(api): State<ApiState>) -> Json<Value> {
    let agents = api.settings().facts.agents();
    Json(json!({"count": agents.len(), "agents": agents}))
}
