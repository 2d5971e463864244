//! Client of a relay's registry (`relay.md` §12.4), with the token that the link got at login.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::Value;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer read.
const MAX_ANSWER: usize = 1024 * 1024;

/// Why the registry gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No address or no token: the link is not connected.
    #[error("the registry is not reachable: the relay link is not connected")]
    NotConnected,
    /// The token is no longer accepted.
    #[error("the registry does not accept the session's token any more")]
    Expired,
    /// The registry refused.
    #[error("the registry answered {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Code of the registry, if it gave one.
        code: Option<String>,
        /// For people.
        message: String,
    },
    /// No or no readable answer.
    #[error("the registry at {url} did not answer: {detail}")]
    Unreachable {
        /// Address of the relay.
        url: String,
        /// What went wrong.
        detail: String,
    },
}

/// Where the registry is, and what opens it.
#[derive(Clone)]
pub struct RegistryAccess {
    /// `http(s)://host[:port]` of the relay.
    pub base: String,
    /// Bearer token of the running session.
    pub token: String,
}

impl std::fmt::Debug for RegistryAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAccess").field("base", &self.base).field("token", &"[redacted]").finish()
    }
}

/// One HTTP client for all calls; cheap to clone.
#[derive(Debug, Clone)]
pub struct RegistryClient {
    http: reqwest::Client,
}

impl RegistryClient {
    /// A client without redirects. Fails only when TLS cannot be set up.
    pub fn new() -> Result<Self, RegistryError> {
        let http = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(Duration::from_secs(5))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|e| RegistryError::Unreachable { url: String::new(), detail: e.to_string() })?;
        Ok(Self { http })
    }

    /// `GET <path>` with query parameters.
    pub async fn get(
        &self,
        access: &RegistryAccess,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Value, RegistryError> {
        self.call(access, Method::GET, path, query, None).await
    }

    /// `PUT <path>` with a JSON body.
    pub async fn put(
        &self,
        access: &RegistryAccess,
        path: &str,
        body: Value,
    ) -> Result<Value, RegistryError> {
        self.call(access, Method::PUT, path, &[], Some(body)).await
    }

    /// `DELETE <path>`.
    pub async fn delete(&self, access: &RegistryAccess, path: &str) -> Result<Value, RegistryError> {
        self.call(access, Method::DELETE, path, &[], None).await
    }

    async fn call(
        &self,
        access: &RegistryAccess,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<Value>,
    ) -> Result<Value, RegistryError> {
        let unreachable = |detail: String| RegistryError::Unreachable { url: access.base.clone(), detail };
        let mut url =
            reqwest::Url::parse(&format!("{}{path}", access.base)).map_err(|e| unreachable(e.to_string()))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query.iter().map(|(k, v)| (*k, v.as_str())));
        }
        let mut request = self.http.request(method, url).bearer_auth(&access.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let mut answer = request.send().await.map_err(|e| unreachable(e.without_url().to_string()))?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|e| unreachable(e.without_url().to_string()))? {
            if bytes.len() + chunk.len() > MAX_ANSWER {
                return Err(unreachable("the answer is larger than 1 MiB".into()));
            }
            bytes.extend_from_slice(&chunk);
        }
        let value: Value = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).map_err(|e| unreachable(format!("no JSON: {e}")))?
        };
        if status == StatusCode::UNAUTHORIZED {
            return Err(RegistryError::Expired);
        }
        if status.is_success() {
            return Ok(value);
        }
        Err(refusal(status, &value))
    }
}

fn refusal(status: StatusCode, body: &Value) -> RegistryError {
    let error = body.get("error").unwrap_or(body);
    let text = |member: &str| error.get(member).and_then(Value::as_str).map(str::to_owned);
    let message = text("message").or_else(|| error.as_str().map(str::to_owned)).unwrap_or_default();
    RegistryError::Refused {
        status: status.as_u16(),
        code: text("code").or_else(|| body.get("code").and_then(Value::as_str).map(str::to_owned)),
        message: message.chars().take(300).collect(),
    }
}

/// `http(s)` address of the relay whose WebSocket address this is.
pub fn http_base(relay_url: &str) -> Option<String> {
    let rest = relay_url
        .strip_prefix("wss://")
        .map(|rest| ("https", rest))
        .or_else(|| relay_url.strip_prefix("ws://").map(|rest| ("http", rest)))?;
    let (scheme, rest) = rest;
    let host = rest.split(['/', '?', '#']).next().filter(|host| !host.is_empty())?;
    Some(format!("{scheme}://{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_on_the_relays_own_host() {
        assert_eq!(http_base("ws://127.0.0.1:9000/v1/connect").as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!(http_base("wss://relay.example/v1/connect").as_deref(), Some("https://relay.example"));
        assert_eq!(http_base("http://relay.example"), None);
        assert_eq!(http_base("ws:///x"), None);
    }
}
