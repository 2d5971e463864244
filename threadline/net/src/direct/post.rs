//! One message to one server: the request, and what its answer means.

use std::time::Duration;

use serde_json::Value;
use threadline::Fingerprint;
use threadline::identity::Identity;
use threadline::v1::http::signed::SignedHeaders;
use threadline::v1::local::LocalMessage;

/// Longest wait for the answer to a message.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a sign of life.
const ALIVE: Duration = Duration::from_secs(3);
/// Longest answer read, bytes.
pub(super) const MAX_ANSWER: usize = 64 * 1024;

/// No HTTP client can be made: TLS cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no HTTP client can be made: {0}")]
pub struct ServerClientError(String);

/// Why the relay has to carry it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unavailable {
    /// Nobody, or somebody else, is behind the port.
    #[error("the agent is not there: {0}")]
    Down(String),
    /// It is there and does not take the message.
    #[error("the agent does not take it: {0}")]
    Refused(String),
}

/// A client for servers of this host and paired ones: no proxy, no redirects.
#[derive(Debug, Clone)]
pub(super) struct Client(reqwest::Client);

impl Client {
    pub(super) fn new() -> Result<Self, ServerClientError> {
        let http = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(ALIVE)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|e| ServerClientError(e.to_string()))?;
        Ok(Self(http))
    }

    /// Asks who is behind a port of this host.
    pub(super) async fn is_behind(&self, port: u16, expected: &Fingerprint) -> Result<(), Unavailable> {
        let url = format!("http://127.0.0.1:{port}/threadline/health");
        let down = |e: reqwest::Error| Unavailable::Down(e.without_url().to_string());
        let answer = self.0.get(url).timeout(ALIVE).send().await.map_err(down)?;
        let health = read(answer).await.map_err(Unavailable::Down)?;
        let found = health["fingerprint"].as_str().or(health["identityPub"].as_str()).unwrap_or_default();
        if found.get(..32) != Some(&*expected.to_string()) {
            return Err(Unavailable::Down("another agent listens on its port".into()));
        }
        Ok(())
    }

    /// Posts to an agent of this host.
    pub(super) async fn local(
        &self,
        port: u16,
        token: &str,
        message: &LocalMessage,
    ) -> Result<(), Unavailable> {
        let url = format!("http://127.0.0.1:{port}/messages/relay-agent");
        let request = self.0.post(url).bearer_auth(token).json(&message.to_json());
        judge(request.send().await)
    }

    /// Posts to a paired server. `name` is ours, as given in the handshake.
    pub(super) async fn paired(
        &self,
        identity: &Identity,
        base: &str,
        token: &[u8; 32],
        name: &str,
        message: &LocalMessage,
        now_ms: i64,
    ) -> Result<(), Unavailable> {
        const PATH: &str = "/threadline/messages/receive";
        let body = message.to_json().to_string();
        let nonce = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
        let headers =
            SignedHeaders::sign(identity, token, name, ("POST", PATH, body.as_bytes()), nonce, now_ms);
        let mut request = self.0.post(format!("{base}{PATH}")).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        judge(request.body(body).send().await)
    }
}

/// Asks other servers for what needs no pairing; cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerClient(Client);

impl ServerClient {
    /// A client without proxy and redirects. Fails only when TLS cannot be set up.
    pub fn new() -> Result<Self, ServerClientError> {
        Client::new().map(Self)
    }

    /// `GET <base>/threadline/health`
    pub async fn health(&self, base: &str) -> Result<Value, String> {
        let request = self.0.0.get(format!("{base}/threadline/health")).timeout(ALIVE);
        let answer = request.send().await.map_err(|e| e.without_url().to_string())?;
        read(answer).await
    }

    /// Posts JSON; returns status and answer.
    pub async fn post(&self, base: &str, path: &str, body: &Value) -> Result<(u16, Value), String> {
        let request = self.0.0.post(format!("{base}{path}")).json(body);
        let answer = request.send().await.map_err(|e| e.without_url().to_string())?;
        let status = answer.status().as_u16();
        Ok((status, read(answer).await?))
    }
}

/// Taken now or before counts as taken.
fn judge(answer: Result<reqwest::Response, reqwest::Error>) -> Result<(), Unavailable> {
    let answer = answer.map_err(|e| {
        let down = e.is_connect();
        let reason = e.without_url().to_string();
        if down { Unavailable::Down(reason) } else { Unavailable::Refused(reason) }
    })?;
    let status = answer.status();
    if status.is_success() || status == reqwest::StatusCode::CONFLICT {
        return Ok(());
    }
    Err(Unavailable::Refused(format!("it answered {status}")))
}

async fn read(mut answer: reqwest::Response) -> Result<Value, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| e.without_url().to_string())? {
        if bytes.len() + chunk.len() > MAX_ANSWER {
            return Err("its answer is too large".into());
        }
        bytes.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&bytes).map_err(|_| "its answer is not JSON".into())
}
