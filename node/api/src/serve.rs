//! Listeners: loopback TCP and the unix socket, HTTP/1.1 with bounded headers, connections and patience.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Where a connection comes from, as the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Loopback TCP: the address proves nothing about the caller.
    Tcp(SocketAddr),
    /// The unix socket, with the peer credentials.
    Socket {
        /// User id of the connecting process.
        uid: u32,
        /// Process id, where the system tells.
        pid: Option<i32>,
    },
}

/// Connections served at once, per listener; more wait in the listen queue.
const CONNECTIONS: usize = 256;
const HEADER_BYTES: usize = 16 * 1024;
const HEADER_PATIENCE: Duration = Duration::from_secs(10);
/// How long open connections may finish after the stop.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Serves `router` on a TCP listener until `stop`, then lets open requests finish for at most 5 s.
pub async fn serve_tcp(listener: TcpListener, router: Router, stop: CancellationToken) {
    serve(listener, router, stop).await;
}

/// Serves `router` on the unix socket until `stop`, then lets open requests finish for at most 5 s.
pub async fn serve_unix(listener: UnixListener, router: Router, stop: CancellationToken) {
    serve(listener, router, stop).await;
}

/// The two kinds of listener.
trait Listener: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = self.accept().await?;
        // Small answers must not wait for more.
        stream.set_nodelay(true)?;
        Ok((stream, Peer::Tcp(address)))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = self.accept().await?;
        let credentials = stream.peer_cred()?;
        Ok((stream, Peer::Socket { uid: credentials.uid(), pid: credentials.pid() }))
    }
}

async fn serve(listener: impl Listener, router: Router, stop: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.next() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let router = router.clone();
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            router.clone().oneshot(request)
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_PATIENCE)
            .max_buf_size(HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A broken connection is the caller's affair; the request log has what was answered.
            let _ = connection.await;
            drop(slot);
        });
    }
    let _ = tokio::time::timeout(STOP_PATIENCE, graceful.shutdown()).await;
}
