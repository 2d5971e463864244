//! TLS of the public listener, with files that may be replaced while the relay runs.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::config::Tls;

/// A client that has not finished the handshake by then is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds nothing of the kind.
    #[error("cannot read {what} from {path}: {detail}")]
    File {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// The reason.
        detail: String,
    },
    /// Certificate and key do not fit, or are of an unknown kind.
    #[error("tls.cert and tls.key cannot be used together: {0}")]
    Pair(#[from] rustls::Error),
}

/// Does handshakes with the newest certificate.
#[derive(Clone)]
pub(super) struct Acceptor {
    tls: TlsAcceptor,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current {
    files: Tls,
    pair: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.pair.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Acceptor {
    /// Reads both files.
    pub(super) fn new(files: &Tls) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let pair = RwLock::new(Arc::new(load(files)?));
        let current = Arc::new(Current { files: files.clone(), pair });
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsAcceptor::from(Arc::new(config)), current })
    }

    /// Reads both files again; connections that are open keep what they have. When it fails nothing changes.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        let pair = Arc::new(load(&self.current.files)?);
        *self.current.pair.write().unwrap_or_else(PoisonError::into_inner) = pair;
        Ok(())
    }

    /// The handshake; `None` when the client does not get through it in time.
    pub(super) async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let done = tokio::time::timeout(HANDSHAKE, self.tls.accept(stream)).await;
        match done {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                None
            }
            Err(_) => None,
        }
    }
}

fn load(files: &Tls) -> Result<CertifiedKey, TlsError> {
    let failed = |what, path: &Path, detail: String| TlsError::File { what, path: path.to_owned(), detail };
    let no_cert = |detail| failed("a certificate", &files.cert, detail);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.cert)
        .map_err(|e| no_cert(e.to_string()))?
        .collect::<Result<_, _>>()
        .map_err(|e| no_cert(e.to_string()))?;
    if chain.is_empty() {
        return Err(no_cert(io::Error::from(io::ErrorKind::UnexpectedEof).to_string()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|e| failed("a private key", &files.key, e.to_string()))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    let pair = CertifiedKey::new(chain, key);
    pair.keys_match()?;
    Ok(pair)
}

/// Reads the files again whenever `rung`, until `stop`.
pub(super) async fn reload_on(acceptor: Acceptor, rung: Arc<Notify>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = rung.notified() => {}
            () = stop.cancelled() => return,
        }
        let tls = acceptor.clone();
        match tokio::task::spawn_blocking(move || tls.reload()).await {
            Ok(Ok(())) => tracing::info!("certificate and key were read again"),
            Ok(Err(error)) => tracing::error!(%error, "the old certificate stays in use"),
            Err(error) => tracing::error!(%error, "the certificate could not be read again"),
        }
    }
}
