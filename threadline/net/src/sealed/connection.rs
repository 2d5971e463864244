//! One connection with a relay: a task that reads and writes frames until either side ends it.

use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use threadline::identity::Identity;
use threadline::v2::frames::{Frame, FramePhase, MAX_MESSAGE};
use threadline::v2::session::ConnectionId;
use tokio::sync::mpsc;
use tokio_tungstenite::connect_async_with_config;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::handle::SealedRelay;
use crate::quic::QuicConnection;

/// Subprotocol of WebSocket/2.
const SUBPROTOCOL: &str = "threadline.2.msgpack";
/// Longest wait for an open socket; the login has its own deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A relay that does not read for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Frames that may wait to be written; a relay that lets more pile up is gone.
const QUEUE: usize = 256;
/// WebSocket close codes of applications begin here.
const CLOSE_BASE: u16 = 4_000;

/// What a connection reports.
#[derive(Debug)]
pub(super) enum Incoming {
    Opened,
    Frame(Box<Frame>),
    Closed(Option<u16>),
}

/// The writing end. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct Connection {
    outgoing: mpsc::Sender<Frame>,
}

pub(super) type Reports = mpsc::Sender<(usize, ConnectionId, Incoming)>;

impl Connection {
    /// Begins to connect over WebSocket/2. The future belongs to the caller, who spawns it.
    pub(super) fn open(
        url: String,
        relay: usize,
        id: ConnectionId,
        reports: Reports,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let task = async move {
            let code = run(&url, relay, id, queue, &reports).await;
            let _ = reports.send((relay, id, Incoming::Closed(code))).await;
        };
        (Self { outgoing }, task)
    }

    /// Begins to connect over QUIC. The future belongs to the caller, who spawns it.
    pub(super) fn open_quic(
        identity: Arc<Identity>,
        target: SealedRelay,
        relay: usize,
        id: ConnectionId,
        reports: Reports,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let task = async move {
            let code = run_quic(&identity, &target, relay, id, queue, &reports).await;
            let _ = reports.send((relay, id, Incoming::Closed(code))).await;
        };
        (Self { outgoing }, task)
    }

    /// Queues a frame; `false` when the relay does not read.
    pub(super) fn write(&self, frame: Frame) -> bool {
        self.outgoing.try_send(frame).is_ok()
    }
}

async fn run_quic(
    identity: &Arc<Identity>,
    target: &SealedRelay,
    relay: usize,
    id: ConnectionId,
    queue: mpsc::Receiver<Frame>,
    reports: &Reports,
) -> Option<u16> {
    let connection = match QuicConnection::open(identity, &target.key, &target.quic).await {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(relay = target.name, %error, "no QUIC");
            return None;
        }
    };
    reports.send((relay, id, Incoming::Opened)).await.ok()?;
    let (frames_tx, mut frames) = mpsc::channel(QUEUE);
    let pass_on = async {
        while let Some(frame) = frames.recv().await {
            if reports.send((relay, id, Incoming::Frame(Box::new(frame)))).await.is_err() {
                return;
            }
        }
    };
    let (code, ()) = tokio::join!(connection.run(queue, frames_tx), pass_on);
    code
}

async fn run(
    url: &str,
    relay: usize,
    id: ConnectionId,
    mut queue: mpsc::Receiver<Frame>,
    reports: &Reports,
) -> Option<u16> {
    let limit = MAX_MESSAGE + 4;
    let config = WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .max_message_size(Some(limit))
        .max_frame_size(Some(limit));
    let mut request = url.into_client_request().ok()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(SUBPROTOCOL));
    let opening = connect_async_with_config(request, Some(config), true);
    let (mut socket, _) = tokio::time::timeout(CONNECT_TIMEOUT, opening).await.ok()?.ok()?;
    reports.send((relay, id, Incoming::Opened)).await.ok()?;
    loop {
        tokio::select! {
            frame = queue.recv() => {
                let Some(frame) = frame else {
                    let _ = tokio::time::timeout(Duration::from_secs(1), socket.close(None)).await;
                    return None;
                };
                let writing = socket.send(Message::Binary(Bytes::from(frame.encode())));
                tokio::time::timeout(WRITE_TIMEOUT, writing).await.ok()?.ok()?;
            }
            message = socket.next() => match message?.ok()? {
                Message::Binary(bytes) => {
                    let frame = Frame::decode(&bytes, FramePhase::Open).ok()?;
                    reports.send((relay, id, Incoming::Frame(Box::new(frame)))).await.ok()?;
                }
                Message::Close(frame) => {
                    return frame.and_then(|frame| u16::from(frame.code).checked_sub(CLOSE_BASE));
                }
                Message::Text(_) => return None,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            },
        }
    }
}
