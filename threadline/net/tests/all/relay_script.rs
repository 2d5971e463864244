//! A relay that does exactly what the test says.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use threadline::identity::LoginNonce;
use threadline::v1::frames::{Auth, AuthOk, ClientFrame, ServerFrame};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{WebSocketStream, accept_async};

/// Longest wait for anything.
pub const LIMIT: Duration = Duration::from_secs(10);

pub struct Relay {
    listener: TcpListener,
    pub url: String,
}

impl Relay {
    pub async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("ws://{}/v1/connect", listener.local_addr().expect("address"));
        Self { listener, url }
    }

    /// Accepts a connection and sends this challenge.
    pub async fn challenge(&self, nonce: &str) -> Peer {
        let accepted = tokio::time::timeout(LIMIT, self.listener.accept()).await.expect("a connection");
        let stream = accept_async(accepted.expect("accept").0).await.expect("handshake");
        let mut peer = Peer(stream);
        peer.send(&ServerFrame::Challenge(nonce.to_owned())).await;
        peer
    }

    /// Accepts a connection and lets it log in.
    pub async fn accept(&self) -> Peer {
        let nonce = LoginNonce::from_bytes(&[7; 32]);
        let mut peer = self.challenge(nonce.as_str()).await;
        peer.login().await.verify(&nonce).expect("a valid login");
        peer.send(&ServerFrame::AuthOk(AuthOk {
            session_id: "relay-0000000000000000".into(),
            heartbeat_interval: 60_000,
            registry_status: None,
            registry_token: Some("token".into()),
            registry_token_expires: None,
            registry_notice: None,
        }))
        .await;
        peer
    }
}

pub struct Peer(WebSocketStream<TcpStream>);

impl Peer {
    pub async fn send(&mut self, frame: &ServerFrame) {
        self.send_text(&frame.to_text()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.expect("send");
    }

    /// The login that follows a challenge.
    pub async fn login(&mut self) -> Auth {
        match self.next_frame().await {
            ClientFrame::Auth(auth) => *auth,
            other => panic!("no login but {other:?}"),
        }
    }

    pub async fn close(mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        self.0.close(Some(frame)).await.expect("close");
        while let Some(Ok(_)) = self.0.next().await {}
    }

    /// Waits until the client has closed the connection.
    pub async fn ended(mut self) {
        let end = async { while let Some(Ok(_)) = self.0.next().await {} };
        tokio::time::timeout(LIMIT, end).await.expect("the client closes");
    }

    /// The next text of the client.
    pub async fn next_value(&mut self) -> Value {
        let message = tokio::time::timeout(LIMIT, self.0.next()).await.expect("a frame in time");
        let text = message.expect("an open connection").expect("a message");
        serde_json::from_str(text.to_text().expect("text")).expect("JSON")
    }

    pub async fn next_frame(&mut self) -> ClientFrame {
        ClientFrame::parse(&self.next_value().await.to_string()).expect("a frame")
    }

    /// The next frame that is neither `discover` nor `subscribe`, which every login brings.
    pub async fn next_of_interest(&mut self) -> ClientFrame {
        loop {
            match self.next_frame().await {
                ClientFrame::Discover(_) | ClientFrame::Subscribe(_) => {}
                other => return other,
            }
        }
    }
}
