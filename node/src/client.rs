//! Client of the node's socket: HTTP/1.1 over a Unix stream, for the command line and the MCP child.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// Why the node did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens on the socket.
    #[error("node is not running (instar server start)")]
    NotRunning,
    /// The socket can't be used by this user.
    #[error("the node's socket {path} can't be used: {source}")]
    Socket { path: PathBuf, source: io::Error },
    /// No answer in time. Whether the request took effect is unknown.
    #[error("the node did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The connection ended or spoke something else.
    #[error("the node's answer was cut off: {0}")]
    Broken(String),
}

/// One node; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct NodeClient {
    socket: PathBuf,
    agent: String,
    token: Option<String>,
}

/// A request in the making.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    method: Method,
    path: String,
    body: Option<Value>,
    headers: Vec<(&'static str, String)>,
    patience: Duration,
}

impl Call {
    /// A request for `path` with query, already encoded.
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: None, headers: Vec::new(), patience: Duration::from_secs(35) }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn post(path: impl Into<String>, body: Value) -> Self {
        Self::new(Method::POST, path).body(body)
    }

    pub(crate) fn body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Time until the answer must have begun.
    pub(crate) fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// What the node answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body as JSON; null where it is empty or something else.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

impl NodeClient {
    /// A client of the node that listens on `socket` for the agent of this name.
    pub(crate) fn new(socket: PathBuf, agent: String, token: Option<String>) -> Self {
        Self { socket, agent, token }
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(&self, call: Call) -> Result<Answer, ClientError> {
        let patience = call.patience;
        let whole = async {
            let (status, content_type, body) = self.begin(call).await?;
            let limited = http_body_util::Limited::new(body, MAX_ANSWER);
            let body = limited.collect().await.map_err(|e| ClientError::Broken(e.to_string()))?;
            Ok(Answer { status, content_type, body: body.to_bytes() })
        };
        tokio::time::timeout(patience, whole).await.unwrap_or(Err(ClientError::TimedOut(patience)))
    }

    /// Sends a request and hands every piece of a successful answer to `piece` until it ends or `piece` says stop.
    pub(crate) async fn stream(
        &self,
        call: Call,
        mut piece: impl FnMut(&[u8]) -> bool,
    ) -> Result<Option<Answer>, ClientError> {
        let patience = call.patience;
        let begun = tokio::time::timeout(patience, self.begin(call)).await;
        let (status, content_type, mut body) = begun.unwrap_or(Err(ClientError::TimedOut(patience)))?;
        if !(200..300).contains(&status) {
            let body = http_body_util::Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_err(|e| ClientError::Broken(e.to_string()))?.to_bytes();
            return Ok(Some(Answer { status, content_type, body }));
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| ClientError::Broken(e.to_string()))?;
            if let Some(data) = frame.data_ref()
                && !piece(data)
            {
                break;
            }
        }
        Ok(None)
    }

    async fn begin(&self, call: Call) -> Result<(u16, String, Incoming), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning,
            _ => ClientError::Socket { path: self.socket.clone(), source },
        })?;
        let broken = |e: hyper::Error| ClientError::Broken(e.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with the connection, which ends when sender and body are dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "node connection");
            }
        });
        let request = self.request(call)?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let content_type =
            head.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        Ok((head.status.as_u16(), content_type, body))
    }

    fn request(&self, call: Call) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut builder = Request::builder()
            .method(call.method)
            .uri(&call.path)
            .header(HOST, "agent.sock")
            .header("x-instar-agentid", &self.agent);
        if let Some(token) = &self.token {
            builder = builder.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in call.headers {
            builder = builder.header(name, value);
        }
        let bytes = match call.body {
            Some(body) => {
                builder = builder.header(CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        builder.body(Full::new(bytes)).map_err(|e| ClientError::Broken(e.to_string()))
    }
}

/// Encodes one segment of a path or one value of a query.
pub(crate) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_can_leave_its_segment() {
        assert_eq!(encode("a/../b?x=1#é"), "a%2F..%2Fb%3Fx%3D1%23%C3%A9");
    }
}
