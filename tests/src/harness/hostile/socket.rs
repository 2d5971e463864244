//! The sockets of a hostile relay.

use std::sync::Arc;

use axum::http::HeaderValue;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use futures::{SinkExt as _, StreamExt as _};
use threadline::v2::frames::{Frame, FramePhase};
use threadline::v2::login::{SignedWellKnown, WellKnown};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::{accept_async, accept_hdr_async};

use super::{Denial, Shared, lock};

/// What happens on connections.
#[derive(Debug)]
pub(super) enum Event {
    /// One is open; frames for it go there.
    Opened(u64, mpsc::UnboundedSender<Frame>),
    /// A frame came.
    Frame(u64, Box<Frame>),
    /// One is closed.
    Closed(u64),
}

/// What the relay says of itself.
#[derive(Debug, Clone)]
pub(super) struct Documents {
    /// It speaks both.
    honest: String,
    /// It speaks v1 alone.
    old: String,
}

impl Documents {
    pub(super) fn new(seed: [u8; 32], hosts: &[String]) -> Self {
        let old = document(seed, hosts, &["threadline/1"]);
        Self { honest: document(seed, hosts, &["threadline/1", "threadline/2"]), old }
    }
}

fn document(seed: [u8; 32], hosts: &[String], protocols: &[&str]) -> String {
    let signer = SigningKey::from_bytes(&seed);
    let document = WellKnown {
        v: 2,
        relay_id: "hostile".into(),
        relay_key: URL_SAFE_NO_PAD.encode(signer.verifying_key().as_bytes()),
        protocols: protocols.iter().map(ToString::to_string).collect(),
        ws1: Some("/v1/connect".into()),
        ws2: Some("/v2/connect".into()),
        quic: Vec::new(),
        libp2p: Vec::new(),
        limits: serde_json::Value::Null,
        pow: serde_json::Value::Null,
        drain: false,
        hosts: hosts.to_vec(),
        next_key: None,
        expires: (chrono::Utc::now() + chrono::Duration::days(1))
            .to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
    };
    let text = serde_json::to_string(&document).unwrap_or_default();
    let signature = signer.sign(&WellKnown::text_to_sign(&text)).to_bytes();
    let signed =
        SignedWellKnown { doc: URL_SAFE_NO_PAD.encode(&text), sig: URL_SAFE_NO_PAD.encode(signature) };
    serde_json::to_string(&signed).unwrap_or_default()
}

pub(super) async fn accept(
    listener: TcpListener,
    document: Documents,
    events: mpsc::Sender<Event>,
    shared: Arc<Shared>,
) {
    let mut tasks = JoinSet::new();
    let mut connection = 0;
    while let Ok((stream, _)) = listener.accept().await {
        connection += 1;
        let (document, events, shared) = (document.clone(), events.clone(), Arc::clone(&shared));
        tasks.spawn(async move {
            // The end of a connection needs no words.
            let _ = serve(stream, connection, &document, &events, &shared).await;
            let _ = events.send(Event::Closed(connection)).await;
        });
        while tasks.try_join_next().is_some() {}
    }
}

async fn serve(
    mut stream: TcpStream,
    connection: u64,
    document: &Documents,
    events: &mpsc::Sender<Event>,
    shared: &Shared,
) -> anyhow::Result<()> {
    let mut start = [0; 64];
    let length = stream.peek(&mut start).await?;
    let line = String::from_utf8_lossy(&start[..length]).into_owned();
    let denies = lock(&shared.crimes).denies;
    if denies.is_some() && line.starts_with("GET /v1/connect") {
        return offer_v1(stream, shared).await;
    }
    if denies.is_some() || !line.starts_with("GET /v2/connect") {
        let is_asked = line.starts_with("GET /.well-known/threadline");
        lock(&shared.deeds).denied += usize::from(is_asked && denies.is_some());
        let (status, body) = match denies {
            None if is_asked => ("200 OK", &*document.honest),
            Some(Denial::Document) if is_asked => ("200 OK", &*document.old),
            _ => ("404 Not Found", "{}"),
        };
        let _ = stream.read(&mut [0; 4096]).await?;
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        return Ok(stream.write_all(answer.as_bytes()).await?);
    }
    let protocol = |_: &Request, mut response: Response| {
        response
            .headers_mut()
            .insert("sec-websocket-protocol", HeaderValue::from_static("threadline.2.msgpack"));
        Ok(response)
    };
    let mut socket = accept_hdr_async(stream, protocol).await?;
    let (frames_tx, mut frames) = mpsc::unbounded_channel::<Frame>();
    events.send(Event::Opened(connection, frames_tx)).await?;
    loop {
        tokio::select! {
            frame = frames.recv() => match frame {
                Some(frame) => socket.send(Message::Binary(frame.encode().into())).await?,
                None => return Ok(socket.close(None).await?),
            },
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    lock(&shared.heard).extend_from_slice(&bytes);
                    let frame = Frame::decode(&bytes, FramePhase::Open)?;
                    events.send(Event::Frame(connection, Box::new(frame))).await?;
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(()),
                Some(Ok(_)) => {}
            },
        }
    }
}

/// Begins a login by v1, and hears what the client says then.
async fn offer_v1(stream: TcpStream, shared: &Shared) -> anyhow::Result<()> {
    let mut socket = accept_async(stream).await?;
    let nonce = STANDARD.encode(rand::random::<[u8; 32]>());
    let challenge = serde_json::json!({"type": "challenge", "nonce": nonce});
    socket.send(Message::text(challenge.to_string())).await?;
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Text(text) = message {
            lock(&shared.deeds).v1_logins += 1;
            lock(&shared.heard).extend_from_slice(text.as_bytes());
        }
    }
    Ok(())
}
