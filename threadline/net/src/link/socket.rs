//! One WebSocket: opened with limits, written with a deadline.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

/// Largest message read. Frames of the protocol are smaller, but for lists of agents.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// Longest wait for an open socket; the login has its own deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// A relay that does not read for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What came out of a socket.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A text message.
    Text(String),
    /// Nothing of ours: transport pings, binary frames.
    Other,
    /// The end, with the close code if there was one.
    Closed(Option<u16>, String),
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    /// Opens a connection. Compression is never offered.
    pub(super) async fn open(url: String) -> Result<Self, String> {
        let config =
            WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
        let opening = connect_async_with_config(url, Some(config), true);
        match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            Ok(Ok((stream, _))) => Ok(Self(stream)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no connection within 30 s".into()),
        }
    }

    /// Writes a text message.
    pub(super) async fn send(&mut self, text: String) -> Result<(), String> {
        match tokio::time::timeout(WRITE_TIMEOUT, self.0.send(Message::text(text))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the relay did not read for 10 s".into()),
        }
    }

    /// Closes with a code; the answer is not awaited.
    pub(super) async fn close(mut self, code: u16) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: "".into() };
        let _ = tokio::time::timeout(Duration::from_secs(1), self.0.close(Some(frame))).await;
    }

    /// The next message. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Incoming {
        match self.0.next().await {
            Some(Ok(Message::Text(text))) => Incoming::Text(text.as_str().to_owned()),
            Some(Ok(Message::Close(frame))) => match frame {
                Some(frame) => Incoming::Closed(Some(frame.code.into()), frame.reason.as_str().to_owned()),
                None => Incoming::Closed(None, String::new()),
            },
            Some(Ok(_)) => Incoming::Other,
            Some(Err(Error::ConnectionClosed | Error::AlreadyClosed)) | None => {
                Incoming::Closed(None, "the connection ended".into())
            }
            Some(Err(error)) => Incoming::Closed(None, error.to_string()),
        }
    }
}
