//! The server over two byte streams, usually stdin and stdout of a child process.

use std::sync::Arc;

use rmcp::service::{QuitReason, ServerInitializeError, ServiceExt};
use threadline::service::{Caller, Threadline};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::server::{CallerSource, Server, ServerIdentity};

/// Why serving one client ended badly.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The client said something else than a first request.
    #[error("the MCP client did not open the session: {0}")]
    Handshake(String),
    /// The serving task died.
    #[error("the MCP session broke off: {0}")]
    Broken(String),
}

/// Serves one client over stdin and stdout until stdin closes or `cancel` fires. Nothing else may write to stdout.
///
/// A pending read of stdin cannot be taken back where stdin is no pipe; a process that ends by `cancel` must not wait
/// for its runtime's blocking threads (`Runtime::shutdown_background`).
pub async fn serve_stdio(
    service: Arc<dyn Threadline>,
    caller: Caller,
    identity: ServerIdentity,
    cancel: CancellationToken,
) -> Result<(), StdioError> {
    let (stdin, stdout) = rmcp::transport::stdio_pipes();
    serve_streams(stdin, stdout, service, caller, identity, cancel).await
}

/// Serves one client over any pair of streams.
pub async fn serve_streams<R, W>(
    reader: R,
    writer: W,
    service: Arc<dyn Threadline>,
    caller: Caller,
    identity: ServerIdentity,
    cancel: CancellationToken,
) -> Result<(), StdioError>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let server = Server::new(service, Arc::new(identity), CallerSource::Fixed(caller));
    let running = match server.serve_with_ct((reader, writer), cancel).await {
        Ok(running) => running,
        // A client that leaves before it says anything is no error.
        Err(ServerInitializeError::ConnectionClosed(_) | ServerInitializeError::Cancelled) => return Ok(()),
        Err(error) => return Err(StdioError::Handshake(error.to_string())),
    };
    match running.waiting().await {
        Ok(QuitReason::JoinError(error)) | Err(error) => Err(StdioError::Broken(error.to_string())),
        Ok(_) => Ok(()),
    }
}
