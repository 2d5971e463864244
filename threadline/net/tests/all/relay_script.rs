//! A relay that does exactly what the test says.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use threadline::identity::LoginNonce;
use threadline::v1::frames::{AuthOk, ClientFrame, ServerFrame};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
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

    /// Accepts a connection and lets it log in.
    pub async fn accept(&self) -> Peer {
        let accepted = tokio::time::timeout(LIMIT, self.listener.accept()).await.expect("a connection");
        let stream = accept_async(accepted.expect("accept").0).await.expect("handshake");
        let mut peer = Peer(stream);
        let nonce = LoginNonce::from_bytes(&[7; 32]);
        peer.send(&ServerFrame::Challenge(nonce.as_str().to_owned())).await;
        match peer.next_frame().await {
            ClientFrame::Auth(auth) => auth.verify(&nonce).expect("a valid login"),
            other => panic!("no login but {other:?}"),
        };
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
        self.0.send(Message::text(frame.to_text())).await.expect("send");
    }

    pub async fn next_frame(&mut self) -> ClientFrame {
        let message = tokio::time::timeout(LIMIT, self.0.next()).await.expect("a frame in time");
        let text = message.expect("an open connection").expect("a message");
        ClientFrame::parse(text.to_text().expect("text")).expect("a frame")
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
