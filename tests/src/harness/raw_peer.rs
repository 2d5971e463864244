//! A client of a relay that says whatever a scenario wants.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use threadline::identity::{Identity, LoginNonce};
use threadline::v1::frames::{Auth, Metadata, Visibility};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// Longest wait for a frame.
const LIMIT: Duration = Duration::from_secs(15);

/// What came from the relay.
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    /// A frame.
    Frame(Value),
    /// The end of the connection, with its close code.
    Closed(Option<u16>),
}

/// A connection to a relay with an identity of its own.
#[derive(Debug)]
pub struct RawPeer {
    /// Whom it claims to be.
    pub identity: Identity,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    nonce: String,
}

impl RawPeer {
    /// Connects and takes the challenge, without answering it.
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        Self::connect_as(url, Identity::generate(&mut rand::rng())).await
    }

    /// Connects with this identity.
    pub async fn connect_as(url: &str, identity: Identity) -> anyhow::Result<Self> {
        let (socket, _) = connect_async(url).await.with_context(|| url.to_owned())?;
        Self::greeted(socket, identity).await
    }

    /// Takes the challenge on a socket that somebody else has connected.
    pub async fn greeted(
        socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
        identity: Identity,
    ) -> anyhow::Result<Self> {
        let mut peer = Self { identity, socket, nonce: String::new() };
        let challenge = peer.expect("challenge").await?;
        let nonce = challenge["nonce"].as_str().with_context(|| challenge.to_string())?;
        nonce.clone_into(&mut peer.nonce);
        Ok(peer)
    }

    /// Connects and logs in as a well-behaved client.
    pub async fn login(url: &str) -> anyhow::Result<Self> {
        let mut peer = Self::connect(url).await?;
        peer.log_in().await?;
        Ok(peer)
    }

    /// Answers the challenge correctly.
    pub async fn log_in(&mut self) -> anyhow::Result<()> {
        self.send(&self.auth()?).await?;
        self.expect("auth_ok").await.map(drop)
    }

    /// Hangs up and gives the identity back.
    pub fn leave(self) -> Identity {
        self.identity
    }

    /// A correct `auth` frame for the pending challenge.
    pub fn auth(&self) -> anyhow::Result<Value> {
        let nonce = LoginNonce::parse(&self.nonce).context("a challenge that may be signed")?;
        let metadata = Metadata { name: "raw".to_owned(), ..Metadata::default() };
        let mut frame =
            serde_json::to_value(Auth::new(&self.identity, &nonce, metadata, Visibility::Unlisted))?;
        frame["type"] = "auth".into();
        Ok(frame)
    }

    /// A `message` frame with a clear envelope.
    pub fn message(&self, to: &str, id: &str, text: &str) -> Value {
        use base64::Engine;
        let payload = json!({"text": text, "type": "chat"}).to_string();
        json!({"type": "message", "envelope": {
            "from": self.identity.fingerprint().to_string(), "to": to, "threadId": "raw-thread",
            "messageId": id, "timestamp": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            "payload": base64::engine::general_purpose::STANDARD.encode(payload)
        }})
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: &Value) -> anyhow::Result<()> {
        self.send_text(&frame.to_string()).await
    }

    /// Sends any text.
    pub async fn send_text(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(self.socket.send(Message::text(text)).await?)
    }

    /// The next frame but pings, which are answered.
    pub async fn next(&mut self) -> anyhow::Result<Received> {
        loop {
            let next = tokio::time::timeout(LIMIT, self.socket.next()).await;
            match next.context("nothing from the relay")? {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text).with_context(|| text.to_string())?;
                    if frame["type"] != "ping" {
                        return Ok(Received::Frame(frame));
                    }
                    self.send(&json!({"type": "pong", "timestamp": frame["timestamp"]})).await?;
                }
                Some(Ok(Message::Close(frame))) => {
                    return Ok(Received::Closed(frame.map(|frame| frame.code.into())));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Ok(Received::Closed(None)),
            }
        }
    }

    /// The next frame, which has to be of this type.
    pub async fn expect(&mut self, kind: &str) -> anyhow::Result<Value> {
        match self.next().await? {
            Received::Frame(frame) => {
                ensure!(frame["type"] == kind, "{kind} was expected, not {frame}");
                Ok(frame)
            }
            Received::Closed(code) => bail!("{kind} was expected, not the end of the connection ({code:?})"),
        }
    }
}
