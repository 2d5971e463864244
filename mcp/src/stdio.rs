//! The server over two byte streams, usually stdin and stdout of a child process.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rmcp::service::{QuitReason, ServerInitializeError, ServiceExt};
use threadline::service::{Caller, Threadline};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::server::{CallerSource, Server, ServerIdentity};

/// How long calls may still answer once the client has closed its side; a script that pipes in its requests reads the
/// answers after that.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

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
    let stopping = cancel.child_token();
    let input_ended = CancellationToken::new();
    let reader = Watched { reader, ended: input_ended.clone() };
    let server = Server::new(service, Arc::new(identity), CallerSource::Fixed(caller), stopping.clone());
    let running = match server.serve_with_ct((reader, writer), cancel).await {
        Ok(running) => running,
        // A client that leaves before it says anything is no error.
        Err(ServerInitializeError::ConnectionClosed(_) | ServerInitializeError::Cancelled) => return Ok(()),
        Err(error) => return Err(StdioError::Handshake(error.to_string())),
    };
    let drop_late_calls = async {
        input_ended.cancelled().await;
        tokio::time::sleep(LAST_ANSWERS).await;
        stopping.cancel();
        std::future::pending::<std::convert::Infallible>().await
    };
    let ended = tokio::select! {
        ended = running.waiting() => ended,
        never = drop_late_calls => match never {},
    };
    match ended {
        Ok(QuitReason::JoinError(error)) | Err(error) => Err(StdioError::Broken(error.to_string())),
        Ok(_) => Ok(()),
    }
}

/// A reader that tells when it came to its end.
struct Watched<R> {
    reader: R,
    ended: CancellationToken,
}

impl<R: AsyncRead + Unpin> AsyncRead for Watched<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.reader).poll_read(context, buffer);
        let ended = match &polled {
            Poll::Ready(Ok(())) => buffer.filled().len() == before && buffer.remaining() > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if ended {
            self.ended.cancel();
        }
        polled
    }
}
