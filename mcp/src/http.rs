//! The server over streamable HTTP, for clients that hold a token.

mod guard;
mod rate;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use threadline::service::Threadline;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::server::{CallerSource, Server, ServerIdentity};
use crate::tokens::Tokens;
use guard::Guard;

/// Largest request body, in bytes.
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// A session without any traffic is forgotten after this; the longest waiting call is five minutes.
const IDLE_SESSION: Duration = Duration::from_mins(30);
/// How long open answers may take to end when the listener stops.
const STOP_WITHIN: Duration = Duration::from_secs(3);
/// How often the times of last use are written down.
const STORE_USES_EVERY: Duration = Duration::from_mins(1);

/// Where and for whom to listen (`threadline.mcp` of the configuration).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Address to bind.
    pub host: IpAddr,
    /// 0 takes any free port.
    pub port: u16,
    /// Path of the endpoint, starting with a slash.
    pub path: String,
    /// Host names (with or without port) beside the loopback ones that a request may name.
    pub allowed_hosts: Vec<String>,
    /// Origins that browsers may come from; none by default.
    pub allowed_origins: Vec<String>,
    /// A proxy in front ends TLS; without it only loopback addresses are bound.
    pub behind_proxy: bool,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 18790,
            path: "/mcp".into(),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            behind_proxy: false,
        }
    }
}

/// Why the listener did not start or broke off.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Tokens would cross a network in clear.
    #[error(
        "refusing to listen on {0}: tokens would travel unencrypted; put a TLS proxy in front and set \
         threadline.mcp.behindProxy, or listen on 127.0.0.1"
    )]
    NotLoopback(IpAddr),
    /// The path is no plain path.
    #[error("threadline.mcp.path is {0:?}; it has to start with / and hold no wildcard, query or fragment")]
    BadPath(String),
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Accepting connections failed.
    #[error("the MCP listener broke off: {0}")]
    Serve(#[from] io::Error),
}

/// A bound listener that does not serve yet.
#[derive(Debug)]
pub struct HttpListener {
    listener: TcpListener,
    address: SocketAddr,
    config: HttpConfig,
}

impl HttpListener {
    /// Checks the configuration and binds.
    pub async fn bind(config: HttpConfig) -> Result<Self, HttpError> {
        if !config.host.is_loopback() && !config.behind_proxy {
            return Err(HttpError::NotLoopback(config.host));
        }
        let plain = config.path.starts_with('/') && !config.path.contains(['{', '}', '*', '?', '#']);
        if !plain {
            return Err(HttpError::BadPath(config.path));
        }
        let address = SocketAddr::new(config.host, config.port);
        let bind_error = |source| HttpError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        Ok(Self { listener, address, config })
    }

    /// The address it got.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `cancel` fires, then ends open sessions and answers within a few seconds.
    pub async fn serve(
        self,
        service: Arc<dyn Threadline>,
        tokens: Tokens,
        identity: ServerIdentity,
        cancel: CancellationToken,
    ) -> Result<(), HttpError> {
        let router = router(&self.config, service, tokens.clone(), identity, &cancel);
        let stopped = cancel.clone();
        let serving = axum::serve(self.listener, router)
            .with_graceful_shutdown(async move { stopped.cancelled().await })
            .into_future();
        let overdue = async {
            cancel.cancelled().await;
            tokio::time::sleep(STOP_WITHIN).await;
        };
        let ended = tokio::select! {
            served = serving => served,
            () = overdue => Ok(()),
            never = keep_uses(&tokens) => match never {},
        };
        store_uses(&tokens).await;
        Ok(ended?)
    }
}

fn router(
    config: &HttpConfig,
    service: Arc<dyn Threadline>,
    tokens: Tokens,
    identity: ServerIdentity,
    cancel: &CancellationToken,
) -> Router {
    let identity = Arc::new(identity);
    let mut sessions = LocalSessionManager::default();
    sessions.session_config.keep_alive = Some(IDLE_SESSION);
    let sessions = Arc::new(sessions);
    let own = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let protocol = StreamableHttpServerConfig::default()
        .with_cancellation_token(cancel.child_token())
        .with_max_request_body_bytes(MAX_BODY_BYTES)
        .with_allowed_hosts(own.into_iter().chain(config.allowed_hosts.iter().cloned()))
        .with_allowed_origins(config.allowed_origins.iter().cloned())
        .enforce_origin_validation();
    let stopping = cancel.clone();
    let serve = move || {
        let (service, identity) = (Arc::clone(&service), Arc::clone(&identity));
        Ok(Server::new(service, identity, CallerSource::Request, stopping.clone()))
    };
    let endpoint = StreamableHttpService::new(serve, Arc::clone(&sessions), protocol);
    let guard = Arc::new(Guard::new(tokens, sessions));
    Router::new()
        .route_service(&config.path, endpoint)
        .layer(axum::middleware::from_fn_with_state(guard, guard::admit))
}

async fn keep_uses(tokens: &Tokens) -> std::convert::Infallible {
    let mut ticks = tokio::time::interval(STORE_USES_EVERY);
    loop {
        ticks.tick().await;
        store_uses(tokens).await;
    }
}

async fn store_uses(tokens: &Tokens) {
    let tokens = tokens.clone();
    match tokio::task::spawn_blocking(move || tokens.store_uses()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the times of last use of MCP tokens were not stored"),
        Err(error) => tracing::warn!(%error, "the times of last use of MCP tokens were not stored"),
    }
}
