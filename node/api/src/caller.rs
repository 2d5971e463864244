//! From an HTTP credential to a caller of the mesh.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use threadline::service::{Caller, NetworkCaller, Scope, SessionCaller};
use threadline::{Fingerprint, ThreadKey};

use crate::access::Credential;
use crate::error::ApiError;
use crate::state::ApiState;

/// Says on whose behalf the node's own MCP listener calls; it can only narrow what the socket may do.
const NETWORK_CALLER: &str = "x-instar-network-caller";

/// The caller as the mesh sees it.
pub(crate) struct MeshCaller(pub(crate) Caller);

impl FromRequestParts<ApiState> for MeshCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let credential = parts.extensions.get().cloned().unwrap_or(Credential::Anonymous);
        let caller = match credential {
            Credential::Owner => Caller::Owner,
            Credential::Session(id) => Caller::Session(session_caller(state, id)?),
            Credential::Local => match parts.headers.get(NETWORK_CALLER) {
                Some(value) => Caller::Network(network_caller(value.as_bytes())?),
                None => Caller::Local,
            },
            Credential::Agent | Credential::Anonymous => Caller::Local,
        };
        Ok(Self(caller))
    }
}

fn session_caller(state: &ApiState, id: instar_state::ids::SessionId) -> Result<SessionCaller, ApiError> {
    let record =
        state.rooms()?.sessions.get(id).ok_or_else(|| ApiError::not_found("session", &id.to_string()))?;
    let bound = record.peer.as_ref().map(|binding| {
        Ok::<_, ApiError>(ThreadKey {
            peer: binding.peer.parse().map_err(ApiError::internal)?,
            thread: binding.thread.parse().map_err(ApiError::internal)?,
        })
    });
    Ok(SessionCaller { id: id.to_string(), bound: bound.transpose()?, tainted: record.tainted })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claim {
    token_id: String,
    scopes: Vec<Scope>,
    peer: Option<Fingerprint>,
}

fn network_caller(bytes: &[u8]) -> Result<NetworkCaller, ApiError> {
    let claim: Claim = serde_json::from_slice(bytes).map_err(|e| {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request", format!("{NETWORK_CALLER}: {e}"))
    })?;
    Ok(NetworkCaller { token_id: claim.token_id, scopes: claim.scopes, peer: claim.peer })
}
