//! QUIC (`threadline-wire.md` §5.3): the UDP listener, who gets a handshake, a task per connection.

mod deliveries;
mod gate;
mod reading;
mod tls;
mod writing;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use http::HeaderMap;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, IdleTimeout, Incoming, ServerConfig, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use threadline::v2::raw_key::key_of;
use threadline::v2::session::close;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::outbox::Outbox;
use super::{RelayError, Shared};
use crate::config::RelayConfig;
use crate::core::{Event, Source, V2Carrier};
pub(crate) use gate::Handshakes;
use gate::{Entered, Gate, Verdict};
use reading::Reading;
use writing::Writing;

/// UDP port where none is configured.
const PORT: u16 = 8788;
const IDLE_MS: u32 = 60_000;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Longest handshake of TLS; HELLO has its own time after it.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Streams of either kind that one side may have open.
const STREAMS: u32 = 64;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// What a client may send before WELCOME.
const EARLY_WINDOW: u32 = 16 << 10;
/// First packets that wait for the relay to look at them, and the bytes that may come behind one and behind all.
const WAITING: usize = 1_024;
const WAITING_BYTES: u64 = 16 << 10;
const WAITING_BYTES_IN_ALL: u64 = 8 << 20;
/// What the system should keep of datagrams that are not read yet; it may allow less.
const SOCKET_BUFFER: usize = 4 << 20;
/// Handshakes that a source may begin for each connection that it may open; those above the second are told so in words.
const HANDSHAKES_PER_CONNECTION: u32 = 3;
/// Bytes of a connection id.
const ID: usize = 8;
/// Codes of the core begin here.
const CODE_BASE: u16 = 4_000;
/// Time for the farewells of a stop to go out.
const FAREWELL: Duration = Duration::from_secs(1);

/// The listener.
pub(super) struct Door {
    endpoint: Endpoint,
    address: SocketAddr,
    gate: Mutex<Gate>,
}

impl Door {
    /// Binds the socket, as the configuration says; `None` where QUIC is not spoken. A port that nobody asked for may
    /// be taken: then there is no QUIC, and the log says so.
    pub(super) fn open(
        config: &RelayConfig,
        key: &ed25519_dalek::SigningKey,
    ) -> Result<Option<Self>, RelayError> {
        if !config.quic.enabled {
            return Ok(None);
        }
        let failed = |error: &dyn std::fmt::Display| RelayError::Internal(format!("QUIC: {error}"));
        let tls = tls::server(key).map_err(|e| failed(&e))?;
        let crypto = QuicServerConfig::try_from(tls).map_err(|e| failed(&e))?;
        let mut server = ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(Arc::new(transport()))
            .migration(true)
            .max_incoming(WAITING)
            .incoming_buffer_size(WAITING_BYTES)
            .incoming_buffer_size_total(WAITING_BYTES_IN_ALL);
        let port = config.quic.port.unwrap_or(if config.port == 0 { 0 } else { PORT });
        let address = SocketAddr::new(config.quic.host.unwrap_or(config.host), port);
        let socket = match bind(address) {
            Ok(socket) => socket,
            Err(source) if config.quic.port.is_some() => {
                return Err(RelayError::ListenUdp { address, source });
            }
            Err(error) => {
                tracing::warn!(%address, %error, "no QUIC: the port is taken; `quic.port` chooses another");
                return Ok(None);
            }
        };
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(endpoint_config(key), Some(server), socket, runtime)
            .map_err(|source| RelayError::ListenUdp { address, source })?;
        let address = endpoint.local_addr().map_err(|source| RelayError::ListenUdp { address, source })?;
        let per_minute = config.sybil.connections_per_minute.saturating_mul(HANDSHAKES_PER_CONNECTION);
        let gate = Mutex::new(Gate::new(config.limits.per_source.then_some(per_minute)));
        Ok(Some(Self { endpoint, address, gate }))
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What became of first packets.
    pub(super) fn handshakes(&self) -> Handshakes {
        self.gate().counts()
    }

    /// Lets nobody in any more and says good-bye to who is left.
    pub(super) async fn close(&self) {
        self.endpoint.set_server_config(None);
        self.endpoint.close(VarInt::from_u32(u32::from(close::DRAINING)), b"");
        let _ = tokio::time::timeout(FAREWELL, self.endpoint.wait_idle()).await;
    }

    // A panic while the lock is held leaves a count that is one too high.
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A relay that was restarted resets connections of before at their next packet: the key of resets stays the same.
fn endpoint_config(key: &ed25519_dalek::SigningKey) -> quinn::EndpointConfig {
    let seed =
        Sha256::new().chain_update(b"threadline/2 quic-reset\0").chain_update(key.as_bytes()).finalize();
    let mut config = quinn::EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &seed)));
    config.cid_generator(|| Box::new(Ids));
    config
}

/// Random ids. Nothing in them tells those of another process apart: a packet that bears one gets its reset.
struct Ids;

impl quinn::ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        quinn::ConnectionId::new(&rand::random::<[u8; ID]>())
    }

    fn cid_len(&self) -> usize {
        ID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn bind(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
    Ok(socket)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        // More of everything after WELCOME.
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(EARLY_WINDOW))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .send_window(u64::from(STREAM_WINDOW))
        .datagram_receive_buffer_size(None);
    transport
}

/// Accepts connections until `stop`. Those that are open go on.
pub(super) async fn accept(
    door: Arc<Door>,
    shared: Arc<Shared>,
    connections: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let incoming = tokio::select! {
            incoming = door.endpoint.accept() => incoming,
            () = stop.cancelled() => None,
        };
        let Some(incoming) = incoming else {
            return door.endpoint.set_server_config(None);
        };
        if shared.draining.load(Ordering::Relaxed) {
            incoming.refuse();
            continue;
        }
        let now_ms = shared.clock.now_ms();
        let source = shared.sources.of(incoming.remote_address().ip(), &HeaderMap::new(), now_ms);
        let proven = incoming.remote_address_validated();
        let verdict = door.gate().judge(source.net, proven, now_ms);
        match verdict {
            Verdict::Begin => {
                let entered = door.gate().enter(source.net, proven, now_ms);
                let handshake = Handshake { entered, completed: false, shared: Arc::clone(&shared) };
                connections.spawn(connect(incoming, source, handshake));
            }
            // One that was proven already cannot be asked again, which the gate does not do.
            Verdict::Prove => drop(incoming.retry()),
            Verdict::Refuse => incoming.refuse(),
        }
    }
}

/// A handshake under way; it is over when this is dropped.
struct Handshake {
    entered: Entered,
    completed: bool,
    shared: Arc<Shared>,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        if let Some(door) = &self.shared.quic {
            door.gate().left(self.entered, self.completed, self.shared.clock.now_ms());
        }
    }
}

async fn connect(incoming: Incoming, source: Source, mut handshake: Handshake) {
    let shaking = async { incoming.accept().ok()?.await.ok() };
    let Ok(Some(connection)) = tokio::time::timeout(HANDSHAKE, shaking).await else { return };
    let Some(key) = peer_key(&connection) else {
        return connection.close(VarInt::from_u32(u32::from(close::PROTOCOL)), b"");
    };
    handshake.completed = true;
    let shared = Arc::clone(&handshake.shared);
    drop(handshake);
    serve(connection, key, source, &shared).await;
}

fn peer_key(connection: &Connection) -> Option<[u8; 32]> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    key_of(chain.first()?).map(|key| key.0)
}

/// Serves a connection until either side ends it.
async fn serve(connection: Connection, key: [u8; 32], source: Source, shared: &Shared) {
    let outbox = Arc::new(Outbox::quic());
    let carrier = Some(V2Carrier::Quic { key });
    let Some(id) = shared.driver.open(source, Arc::clone(&outbox), carrier).await else { return };
    let (news, streams) = mpsc::channel(STREAMS as usize);
    let code = {
        let reading = Reading::new(&connection, &outbox, news);
        let mut writing = Writing::new(&connection, &outbox, streams);
        let reading = std::pin::pin!(reading.pass_on(id, shared));
        let writing = std::pin::pin!(writing.run());
        tokio::select! {
            () = reading => close::NORMAL,
            code = writing => code,
        }
    };
    shared.driver.event(Event::Closed { conn: id }).await;
    if outbox.was_cut_off() {
        shared.measured.cut_off();
    }
    connection.close(VarInt::from_u32(u32::from(code)), b"");
}
