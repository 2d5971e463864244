//! A v2 client of the load generator over either carrier: frames in, frames out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use futures::{SinkExt as _, StreamExt as _};
use instar_tests::hello::hello;
use threadline::identity::{Identity, Purpose};
use threadline::v2::frames::{Frame, FramePhase, Hello, Ping, Pong, Proof};
use threadline::v2::login::{QuicAddress, SignedWellKnown, WellKnown, WsExchange};
use threadline::v2::{Bin, DeviceId, Key};
use threadline_net::quic::QuicConnection;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

use super::idle::Kind;
use super::subject::Subject;

const HOST: &str = "127.0.0.1";
const QUEUE: usize = 4_096;
const PATIENCE: Duration = Duration::from_secs(20);

/// What carries v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    WebSocket,
    WebSocketTls,
    Quic,
}

impl Carrier {
    /// Those that mail is measured over.
    pub(crate) const FOR_MAIL: [Self; 2] = [Self::WebSocket, Self::Quic];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "WS/2",
            Self::WebSocketTls => "WS/2 over TLS",
            Self::Quic => "QUIC",
        }
    }

    pub(crate) fn protection(self) -> &'static str {
        match self {
            Self::WebSocket => "no TLS",
            Self::WebSocketTls | Self::Quic => "TLS 1.3",
        }
    }

    pub(crate) fn kind(self) -> Kind {
        let (login_budget, idle_budget) = match self {
            Self::WebSocket => ("<= 0.2 CPU ms", "<= 8 KiB"),
            Self::WebSocketTls => ("-", "<= 16 KiB"),
            Self::Quic => ("-", "<= 40 KiB"),
        };
        Kind { name: self.name(), login_budget, idle_budget, like_node: false }
    }
}

/// Where the relay is, by its own document.
pub(crate) struct Place {
    at: SocketAddr,
    tls: Option<Arc<rustls::ClientConfig>>,
    pub(crate) key: Key,
    pub(crate) quic: Vec<QuicAddress>,
}

impl Place {
    pub(crate) async fn find(relay: &Subject) -> Result<Self> {
        let (at, mut http) = (relay.at, reqwest::Client::builder());
        let scheme = match &relay.tls {
            None => "http",
            Some(certificate) => {
                let root = reqwest::Certificate::from_pem(certificate.pem.as_bytes())?;
                http = http.tls_certs_only([root]);
                "https"
            }
        };
        let answer = http.build()?.get(format!("{scheme}://{at}/.well-known/threadline")).send().await?;
        let signed: SignedWellKnown = answer.error_for_status()?.json().await?;
        let document = WellKnown::parse(&signed)?;
        let tls = relay.tls.as_ref().map(|certificate| Arc::clone(&certificate.client));
        Ok(Self { at, tls, key: document.key().context("a key")?, quic: document.quic })
    }

    /// Where WebSocket/2 is.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        format!("{scheme}://{}/v2/connect", self.at)
    }
}

/// The one device of an identity.
pub(crate) fn device(key: &Key) -> DeviceId {
    let mut device = [0; 16];
    device.copy_from_slice(&key.0[16..]);
    Bin(device)
}

/// A session that is open.
pub(crate) struct Link {
    outgoing: mpsc::Sender<Frame>,
    frames: mpsc::Receiver<Frame>,
}

impl Link {
    pub(crate) async fn log_in(place: &Place, carrier: Carrier, identity: &Arc<Identity>) -> Result<Self> {
        let logging_in = async {
            let mut link = Self::open(place, carrier, identity).await?;
            if carrier != Carrier::Quic {
                let Some(Frame::Challenge(challenge)) = link.frames.recv().await else {
                    bail!("no challenge")
                };
                let exchange = WsExchange {
                    relay: challenge.rk,
                    nonce: challenge.n,
                    client_nonce: Bin([1; 32]),
                    key: identity.public().into(),
                    host: HOST.into(),
                };
                let s = Bin(identity.sign(&Purpose::WsAuth(&exchange)));
                let (k, cn, host) = (exchange.key, exchange.client_nonce, exchange.host);
                link.say(Proof { k, cn, host, s })?;
            }
            link.say(introduction(identity))?;
            match link.frames.recv().await {
                Some(Frame::Welcome(_)) => Ok(link),
                other => bail!("no welcome: {other:?}"),
            }
        };
        tokio::time::timeout(PATIENCE, logging_in).await.context("no answer to the login")?
    }

    async fn open(place: &Place, carrier: Carrier, identity: &Arc<Identity>) -> Result<Self> {
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let (frames_tx, frames) = mpsc::channel(QUEUE);
        match carrier {
            Carrier::Quic => {
                let connection = QuicConnection::open(identity, &place.key, &place.quic).await?;
                tokio::spawn(connection.run(queue, frames_tx));
            }
            Carrier::WebSocket | Carrier::WebSocketTls => {
                let mut request = place.url().into_client_request()?;
                let protocol = HeaderValue::from_static("threadline.2.msgpack");
                request.headers_mut().insert("sec-websocket-protocol", protocol);
                let config = WebSocketConfig::default().read_buffer_size(16 << 10);
                let tls = place.tls.clone().map(Connector::Rustls);
                let opening =
                    tokio_tungstenite::connect_async_tls_with_config(request, Some(config), true, tls);
                let (socket, _) = Box::pin(opening).await?;
                tokio::spawn(carry(socket, queue, outgoing.downgrade(), frames_tx));
            }
        }
        Ok(Self { outgoing, frames })
    }

    pub(crate) fn say(&self, frame: impl Into<Frame>) -> Result<()> {
        let said = self.outgoing.try_send(frame.into());
        ensure!(said.is_ok(), "the relay does not read, or closed the connection");
        Ok(())
    }

    /// What has come, if anything has.
    pub(crate) fn hear(&mut self) -> Result<Option<Frame>> {
        match self.frames.try_recv() {
            Ok(frame) => Ok(Some(frame)),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => bail!("the relay closed a connection under load"),
        }
    }
}

async fn carry(
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    mut queue: mpsc::Receiver<Frame>,
    answers: mpsc::WeakSender<Frame>,
    frames: mpsc::Sender<Frame>,
) {
    let (mut sink, mut stream) = socket.split();
    let writing = async {
        let mut some = Vec::new();
        while queue.recv_many(&mut some, 64).await > 0 {
            for frame in some.drain(..) {
                sink.feed(Message::Binary(frame.encode().into())).await.ok()?;
            }
            sink.flush().await.ok()?;
        }
        Some(())
    };
    let reading = async {
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Binary(bytes) = message {
                match Frame::decode(&bytes, FramePhase::Open).ok()? {
                    // A link that nobody looks at stays open.
                    Frame::Ping(ping) => answers.upgrade()?.send(pong(&ping).into()).await.ok()?,
                    frame => frames.send(frame).await.ok()?,
                }
            }
        }
        Some(())
    };
    tokio::select! {
        _ = writing => {}
        _ = reading => {}
    }
}

fn introduction(identity: &Identity) -> Hello {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    hello(identity, device(&identity.public().into()), "bench", since.as_millis() as u64)
}

fn pong(ping: &Ping) -> Pong {
    Pong { t: ping.t, now: 0, ep: 0, role: None, tok: None, tok_x: None }
}
