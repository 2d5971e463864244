//! Invitations of the mesh (`http-api.md` §13.1).

use axum::Json;
use axum::extract::Path;
use axum::http::Method;
use axum::routing::{delete, get, post};
use serde::Deserialize;
use serde_json::Value;
use threadline::invitation::Wish;

use crate::access::Access;
use crate::caller::MeshCaller;
use crate::error::{ApiError, Problem};
use crate::extract::{Body, Query};
use crate::routes::Route;
use crate::state::Rooms;

type Answer = Result<Json<Value>, ApiError>;

pub(crate) fn routes() -> Vec<Route> {
    let list = "/threadline/invitations";
    vec![
        Route::new(Method::GET, list, Access::ANY, "Invitations, ours and accepted ones", get(invitations)),
        Route::new(
            Method::POST,
            list,
            Access::OWNER,
            "Invites an agent; the token is shown once",
            post(issue),
        )
        .body::<IssueBody>(),
        Route::new(
            Method::DELETE,
            "/threadline/invitations/{id}",
            Access::ANY,
            "Revokes an invitation; redeemers keep their level unless alsoTrust=true",
            delete(revoke),
        )
        .query(&["alsoTrust"]),
        Route::new(
            Method::POST,
            "/threadline/invitations/accept",
            Access::OWNER,
            "Connects with the issuer of an invitation, who becomes verified",
            post(accept),
        )
        .body::<AcceptBody>(),
    ]
}

async fn invitations(rooms: Rooms) -> Answer {
    Ok(Json(rooms.mesh.invitations().await?))
}

/// Body of `POST /threadline/invitations`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IssueBody {
    /// What to call it.
    label: Option<String>,
    /// End of life, ISO 8601: within 24 hours, with a recipient within 30 days; an hour from now if absent.
    expiry: Option<String>,
    /// 1 to 100; 1 if absent.
    max_uses: Option<u32>,
    /// The only agent that may redeem it: address or name.
    recipient: Option<String>,
}

async fn issue(rooms: Rooms, MeshCaller(caller): MeshCaller, Body(body): Body<IssueBody>) -> Answer {
    let life_ms = match &body.expiry {
        None => None,
        Some(expiry) => {
            let at = threadline::time::parse_iso(expiry).ok_or_else(|| {
                ApiError::invalid(vec![Problem::new("expiry", "an ISO 8601 time is expected")])
            })?;
            Some(at - instar_state::time::now_ms())
        }
    };
    let wish = Wish { life_ms, max_uses: body.max_uses, label: body.label, ..Wish::default() };
    Ok(Json(rooms.mesh.issue_invitation(&caller, wish, body.recipient.as_deref()).await?))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RevokeQuery {
    also_trust: Option<String>,
}

async fn revoke(
    rooms: Rooms,
    MeshCaller(caller): MeshCaller,
    Path(id): Path<String>,
    Query(query): Query<RevokeQuery>,
) -> Answer {
    let also_trust = query.also_trust.is_some_and(|v| v == "true" || v == "1");
    Ok(Json(rooms.mesh.revoke_invitation(&caller, &id, also_trust).await?))
}

/// Body of `POST /threadline/invitations/accept`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct AcceptBody {
    /// The invitation, `tl1_…`.
    token: String,
}

async fn accept(rooms: Rooms, MeshCaller(caller): MeshCaller, Body(body): Body<AcceptBody>) -> Answer {
    Ok(Json(rooms.mesh.accept_invitation(&caller, &body.token).await?))
}
