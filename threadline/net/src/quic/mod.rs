//! QUIC with raw public keys (RFC 7250): the TLS key of a client is its identity key, that of a relay is the pinned one
//! (`threadline-wire.md` §5.3).

mod streams;
mod tls;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, IdleTimeout, TransportConfig, VarInt};
use threadline::identity::Identity;
use threadline::v2::Key;
use threadline::v2::frames::Frame;
use threadline::v2::login::QuicAddress;
use tokio::sync::mpsc;

pub use threadline::v2::raw_key::{ALPN, spki};

/// Longest wait for one address; the login has its own deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// A relay that is gone says nothing over UDP: it is noticed within these two together, which leaves time to go by
/// another relay within half a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const IDLE_MS: u32 = 12_000;
const STREAMS: u32 = 64;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// TLS cannot be set up.
    #[error("QUIC cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
    /// TLS lacks what QUIC needs.
    #[error("QUIC cannot be set up: {0}")]
    Cipher(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// A name or a socket.
    #[error("QUIC: {0}")]
    Io(#[from] std::io::Error),
    /// The address is none.
    #[error("QUIC: {0}")]
    Connect(#[from] quinn::ConnectError),
    /// The handshake failed.
    #[error("QUIC: {0}")]
    Connection(#[from] ConnectionError),
    /// Nobody answered.
    #[error("QUIC: no answer")]
    Silent,
    /// The relay names no address.
    #[error("QUIC: the relay names no address")]
    NoAddress,
}

/// A connection with the relay whose key was proven.
#[derive(Debug)]
pub struct QuicConnection {
    connection: Connection,
    /// Keeps the socket.
    endpoint: Endpoint,
}

/// How a connection ended: the relay's code, if it gave one.
pub type CloseCode = Option<u16>;

impl QuicConnection {
    /// Connects to the first address that answers with this key.
    pub async fn open(
        identity: &Arc<Identity>,
        relay: &Key,
        addresses: &[QuicAddress],
    ) -> Result<Self, QuicError> {
        let tls = tls::client(identity, relay)?;
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        config.transport_config(Arc::new(transport()));
        let mut last = QuicError::NoAddress;
        for address in addresses.iter().take(4) {
            match tokio::time::timeout(CONNECT_TIMEOUT, connect(&config, address)).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(error)) => last = error,
                Err(_) => last = QuicError::Silent,
            }
        }
        Err(last)
    }

    /// Carries frames until either side ends it: those of `outgoing` to the relay, those of the relay to `incoming`.
    /// The end of `outgoing` says good-bye.
    pub async fn run(self, outgoing: mpsc::Receiver<Frame>, incoming: mpsc::Sender<Frame>) -> CloseCode {
        let ended = streams::carry(&self.connection, outgoing, incoming).await;
        let code = match (&ended, self.connection.close_reason()) {
            (_, Some(ConnectionError::ApplicationClosed(close))) => {
                u16::try_from(close.error_code.into_inner()).ok()
            }
            _ => None,
        };
        let (own, text): (u32, &[u8]) = match ended {
            streams::Ended::Stopped | streams::Ended::Lost => (0, b""),
            streams::Ended::BadFrame => (1, b"bad frame"),
        };
        self.connection.close(VarInt::from_u32(own), text);
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
        code
    }
}

async fn connect(config: &ClientConfig, address: &QuicAddress) -> Result<QuicConnection, QuicError> {
    let mut found = tokio::net::lookup_host((address.host.as_str(), address.port)).await?;
    let target = found.next().ok_or(QuicError::NoAddress)?;
    let local: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = Endpoint::client(local)?;
    let connection = endpoint.connect_with(config.clone(), target, &address.host)?.await?;
    Ok(QuicConnection { connection, endpoint })
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .datagram_receive_buffer_size(None);
    transport
}
