//! v1 clients and browsers, each from an address of its own, through a proxy or around it.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use instar_tests::harness::{RawPeer, eventually};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use threadline::identity::Identity;
use tokio::net::TcpSocket;
use tokio_tungstenite::{Connector, client_async_tls_with_config};

/// The public side of a relay.
pub(super) struct Front {
    name: &'static str,
    proxy: SocketAddr,
    relay: SocketAddr,
    authority: reqwest::Certificate,
    tls: Arc<rustls::ClientConfig>,
}

impl Front {
    pub(super) fn new(
        name: &'static str,
        proxy: IpAddr,
        relay: IpAddr,
        authority: &Path,
    ) -> anyhow::Result<Self> {
        let pem = std::fs::read(authority)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem)?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            name,
            proxy: (proxy, 443).into(),
            relay: (relay, 8787).into(),
            authority: reqwest::Certificate::from_pem(&pem)?,
            tls: Arc::new(tls),
        })
    }

    pub(super) async fn wait_until_ready(&self, from: IpAddr) -> anyhow::Result<()> {
        eventually(Duration::from_secs(30), "the relay is ready behind its proxy", async || {
            Ok((self.get(from, "/ready", None).await?.0 == 200).then_some(()))
        })
        .await
    }

    /// GET through the proxy.
    pub(super) async fn get(
        &self,
        from: IpAddr,
        path: &str,
        claim: Option<&str>,
    ) -> anyhow::Result<(u16, Value)> {
        self.request(from, &format!("https://{}{path}", self.name), claim).await
    }

    /// GET around the proxy.
    pub(super) async fn directly(
        &self,
        from: IpAddr,
        path: &str,
        claim: Option<&str>,
    ) -> anyhow::Result<(u16, Value)> {
        self.request(from, &format!("http://{}{path}", self.relay), claim).await
    }

    async fn request(&self, from: IpAddr, url: &str, claim: Option<&str>) -> anyhow::Result<(u16, Value)> {
        let client = reqwest::Client::builder()
            .local_address(from)
            .resolve(self.name, self.proxy)
            .tls_certs_only([self.authority.clone()])
            .timeout(Duration::from_secs(10))
            .build()?;
        let mut request = client.get(url);
        if let Some(claim) = claim {
            request = request.header("x-forwarded-for", claim);
        }
        let response = request.send().await.with_context(|| format!("{url} from {from}"))?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// A v1 client that logs in through the proxy.
    pub(super) async fn login(&self, from: IpAddr, identity: Identity) -> anyhow::Result<RawPeer> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let stream = socket.connect(self.proxy).await?;
        let url = format!("wss://{}/v1/connect", self.name);
        let connector = Connector::Rustls(Arc::clone(&self.tls));
        let (socket, _) = client_async_tls_with_config(&url, stream, None, Some(connector)).await?;
        let mut peer = RawPeer::greeted(socket, identity).await?;
        peer.log_in().await?;
        Ok(peer)
    }
}
