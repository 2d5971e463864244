//! JSON of the directory: entries out, changes in.

use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::{Map, Value, json};
use threadline::time::iso_ms;

use crate::registry::clean;
use crate::registry::search::Entry;
use crate::store::Profile;

/// An error body.
pub(super) fn failure(status: StatusCode, error: &str, code: Option<&str>) -> Response {
    let mut body = json!({"error": error});
    if let Some(code) = code {
        body["code"] = code.into();
    }
    (status, axum::Json(body)).into_response()
}

/// An entry, in the reduced form unless the caller has a token.
pub(super) fn entry_json(entry: &Entry, full: bool) -> Value {
    let mut body = json!({
        "agentId": entry.agent_id,
        "name": entry.name,
        "bio": entry.bio,
        "interests": entry.interests,
        "capabilities": entry.capabilities,
        "homepage": entry.homepage,
        "registeredAt": iso_ms(entry.registered_ms),
    });
    if !full {
        return body;
    }
    body["lastSeen"] = iso_ms(entry.last_seen_ms).into();
    body["online"] = entry.online.into();
    body["stale"] = entry.stale.into();
    body["frameworkVisible"] = entry.framework_visible.into();
    if entry.framework_visible {
        body["framework"] = entry.framework.as_str().into();
    }
    if !entry.verified_domain.is_empty() {
        body["verified"] = true.into();
        body["verifiedDomain"] = entry.verified_domain.as_str().into();
    }
    body["publicKey"] = STANDARD.encode(entry.key).into();
    body
}

/// The agent card of an entry.
pub(super) fn a2a_card(entry: &Entry) -> Value {
    let skills: Vec<Value> = entry.capabilities.iter().map(|tag| json!({"id": tag, "name": tag})).collect();
    let mut about = json!({
        "agentId": entry.agent_id,
        "publicKey": STANDARD.encode(entry.key),
        "interests": entry.interests,
        "registeredAt": iso_ms(entry.registered_ms),
        "lastSeen": iso_ms(entry.last_seen_ms),
        "online": entry.online,
    });
    if entry.framework_visible {
        about["framework"] = entry.framework.as_str().into();
    }
    let mut card = json!({
        "name": entry.name,
        "description": entry.bio,
        "version": "1.0",
        "capabilities": {"streaming": false, "pushNotifications": false},
        "skills": skills,
        "defaultInputModes": ["text/plain"],
        "defaultOutputModes": ["text/plain"],
        "x-threadline": about,
    });
    if !entry.homepage.is_empty() {
        card["url"] = entry.homepage.as_str().into();
    }
    card
}

/// What a PUT asks for, cleaned.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) profile: Profile,
    pub(super) visible: Option<bool>,
    pub(super) listed: Option<bool>,
    /// Hashes of the tokens that may call the agent over the A2A bridge.
    pub(super) a2a_tokens: Option<Vec<String>>,
    pub(super) a2a_open: Option<bool>,
}

/// Reads the body of a PUT; the error names the field. Members that are not known are ignored.
pub(super) fn read_change(body: &[u8]) -> Result<Change, String> {
    let fields: Map<String, Value> =
        serde_json::from_slice(body).map_err(|_| "The body must be a JSON object".to_owned())?;
    let flag = |name: &str| match fields.get(name) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(format!("{name} must be true or false")),
    };
    let visible = match text(&fields, "visibility")? {
        None => None,
        Some("public") => Some(true),
        Some("unlisted") => Some(false),
        Some(_) => return Err("visibility must be public or unlisted".into()),
    };
    let profile = Profile {
        name: text(&fields, "name")?.map(clean::name),
        bio: text(&fields, "bio")?.map(clean::bio),
        interests: tags(&fields, "interests")?,
        capabilities: tags(&fields, "capabilities")?,
        framework: None,
        framework_visible: flag("frameworkVisible")?,
        homepage: text(&fields, "homepage")?.map(clean::homepage),
    };
    let a2a_open = match text(&fields, "a2aMode")? {
        None => None,
        Some("open") => Some(true),
        Some("authenticated") => Some(false),
        Some(_) => return Err("a2aMode must be open or authenticated".into()),
    };
    let a2a_tokens = a2a_tokens(&fields)?;
    Ok(Change { profile, visible, listed: flag("listed")?, a2a_tokens, a2a_open })
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, String> {
    match fields.get(name) {
        None => Ok(None),
        Some(Value::String(value)) => Ok(Some(value)),
        Some(_) => Err(format!("{name} must be a text")),
    }
}

/// Tokens are stored as hashes only.
fn a2a_tokens(fields: &Map<String, Value>) -> Result<Option<Vec<String>>, String> {
    let wrong = || "a2aTokens must be a list of at most 16 texts of 16 to 256 characters".to_owned();
    let Some(value) = fields.get("a2aTokens") else { return Ok(None) };
    let items = value.as_array().filter(|items| items.len() <= 16).ok_or_else(wrong)?;
    let hashes = items.iter().map(|item| {
        let token = item.as_str().filter(|token| (16..=256).contains(&token.len())).ok_or_else(wrong)?;
        Ok(crate::a2a::token_hash(token))
    });
    hashes.collect::<Result<_, _>>().map(Some)
}

fn tags(fields: &Map<String, Value>, name: &str) -> Result<Option<Vec<String>>, String> {
    let wrong = || format!("{name} must be a list of texts");
    let Some(value) = fields.get(name) else { return Ok(None) };
    let items = value.as_array().ok_or_else(wrong)?;
    let items: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
    Ok(Some(clean::tags(&items.ok_or_else(wrong)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wrong_type_names_its_field() {
        for (body, field) in [
            (r#"{"name": 1}"#, "name"),
            (r#"{"interests": "a"}"#, "interests"),
            (r#"{"capabilities": [1]}"#, "capabilities"),
            (r#"{"listed": "yes"}"#, "listed"),
            (r#"{"visibility": "private"}"#, "visibility"),
        ] {
            assert!(read_change(body.as_bytes()).expect_err(body).starts_with(field), "{body}");
        }
        let change = read_change(br#"{"bio": " x ", "visibility": "unlisted", "other": 1}"#).expect("read");
        assert_eq!((change.profile.bio.as_deref(), change.visible), (Some("x"), Some(false)));
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_change(&body);
        }
    }
}
