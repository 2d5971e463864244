//! TLS of the public listener: a certificate for the relay under test, and a client that trusts it.

use std::sync::Arc;

use anyhow::Result;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};

use super::scratch;

/// Files for one relay.
pub(crate) struct Certificate {
    dir: tempfile::TempDir,
    /// What a client of HTTP trusts.
    pub(crate) pem: String,
    /// What a client of WebSocket uses; every handshake is a whole one.
    pub(crate) client: Arc<ClientConfig>,
}

impl Certificate {
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("relay-bench-tls-").tempdir_in(scratch())?;
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        std::fs::write(dir.path().join("cert.pem"), made.cert.pem())?;
        std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem())?;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.resumption = Resumption::disabled();
        Ok(Self { dir, pem: made.cert.pem(), client: Arc::new(client) })
    }

    /// Keys and values of the relay's configuration.
    pub(crate) fn settings(&self) -> [String; 2] {
        ["cert", "key"].map(|file| format!("tls.{file}={}/{file}.pem", self.dir.path().display()))
    }
}
