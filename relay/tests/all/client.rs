//! A minimal v1 client that a script plays.

use std::net::SocketAddr;
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use threadline::identity::{Identity, LoginNonce};
use threadline::v1::frames::{Auth, ClientFrame, Metadata, Visibility};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub(crate) n: u8,
    /// Answers pings like an existing client: at once, without a timestamp.
    pub(crate) answers_pings: bool,
    pub(crate) login: Value,
}

pub(crate) fn agent(n: u8) -> Identity {
    Identity::from_seed(&[n; 32])
}

pub(crate) fn address(n: u8) -> String {
    agent(n).fingerprint().to_string()
}

pub(crate) fn envelope(from: u8, to: u8, id: &str, payload: &str) -> Value {
    json!({"from": address(from), "to": address(to), "threadId": "t", "messageId": id, "payload": payload,
           "timestamp": "2026-01-15T12:00:00.000Z"})
}

impl Client {
    pub(crate) async fn connect(at: SocketAddr, n: u8) -> Self {
        let url = format!("ws://{at}/v1/connect");
        let (socket, _) = Box::pin(tokio_tungstenite::connect_async(url)).await.expect("connects");
        Self { socket, n, answers_pings: true, login: Value::Null }
    }

    pub(crate) async fn log_in(at: SocketAddr, n: u8) -> Self {
        Self::log_in_as(at, n, Visibility::Unlisted).await
    }

    pub(crate) async fn log_in_as(at: SocketAddr, n: u8, visibility: Visibility) -> Self {
        Self::log_in_fully(at, n, &agent(n), visibility).await
    }

    /// As an identity that is not one of the numbered ones.
    pub(crate) async fn log_in_with(at: SocketAddr, identity: Identity) -> Self {
        Self::log_in_fully(at, 0, &identity, Visibility::Unlisted).await
    }

    async fn log_in_fully(at: SocketAddr, n: u8, identity: &Identity, visibility: Visibility) -> Self {
        let mut client = Self::connect(at, n).await;
        let challenge = client.next("challenge").await;
        let nonce = LoginNonce::parse(challenge["nonce"].as_str().expect("text")).expect("nonce");
        let metadata = Metadata { name: format!("agent {n}"), ..Metadata::default() };
        let auth = Auth::new(identity, &nonce, metadata, visibility);
        client.say(ClientFrame::Auth(Box::new(auth)).to_text()).await;
        client.login = client.next("auth_ok").await;
        client
    }

    pub(crate) async fn say(&mut self, text: impl Into<String>) {
        self.socket.send(Message::text(text.into())).await.expect("sends");
    }

    pub(crate) async fn send(&mut self, to: u8, id: &str) {
        self.send_payload(to, id, "e30=").await;
    }

    pub(crate) async fn send_payload(&mut self, to: u8, id: &str, payload: &str) {
        let frame = json!({"type": "message", "envelope": envelope(self.n, to, id, payload)});
        self.say(frame.to_string()).await;
    }

    /// Says that a message was taken, unless the relay is gone.
    pub(crate) async fn try_ack(&mut self, id: &str) {
        let ack = json!({"type": "ack", "messageId": id, "status": "delivered"});
        let _ = self.socket.send(Message::text(ack.to_string())).await;
    }

    pub(crate) async fn ack(&mut self, id: &str) {
        self.say(json!({"type": "ack", "messageId": id, "status": "delivered"}).to_string()).await;
    }

    /// The next frame, or the close code.
    pub(crate) async fn frame(&mut self) -> Result<Value, u16> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("a frame in time");
            match message {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text).expect("json");
                    if frame["type"] == "ping" {
                        if self.answers_pings {
                            let _ = self.socket.send(Message::text(r#"{"type":"pong"}"#)).await;
                        }
                        continue;
                    }
                    return Ok(frame);
                }
                Some(Ok(Message::Close(frame))) => return Err(frame.map_or(1005, |f| f.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(1006),
            }
        }
    }

    /// The next frame of a type; others are passed over.
    pub(crate) async fn next(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.frame().await.unwrap_or_else(|code| panic!("closed with {code}, wanted {kind}"));
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    /// The close code, after whatever else comes.
    pub(crate) async fn closed(&mut self) -> u16 {
        loop {
            if let Err(code) = self.frame().await {
                return code;
            }
        }
    }

    pub(crate) async fn message_id(&mut self) -> String {
        self.next("message").await["envelope"]["messageId"].as_str().expect("id").to_owned()
    }

    /// What comes until nothing has come for a moment.
    pub(crate) async fn rest(&mut self, quiet: Duration) -> Vec<Value> {
        let mut frames = Vec::new();
        while let Ok(Ok(frame)) = tokio::time::timeout(quiet, self.frame()).await {
            frames.push(frame);
        }
        frames
    }
}
