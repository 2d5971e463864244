//! `threadline-relay health`: asks a running relay, for images without a shell.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::RelayConfig;

/// Longest wait for each step of the exchange.
const LIMIT: Duration = Duration::from_secs(3);
/// A health answer is far smaller.
const MOST: u64 = 64 << 10;

/// The body of `/health`, if the relay of this configuration answers with 200.
pub(super) fn health(config: &RelayConfig) -> Result<String, String> {
    let address = SocketAddr::new(reachable(config.host), config.port);
    if config.has_tls() {
        return get_tls(address).map_err(|error| format!("no relay answers on {address}: {error}"));
    }
    let answer = get(address).map_err(|error| format!("no relay answers on {address}: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        return Ok(body.to_owned());
    }
    Err(format!("the relay on {address} answers {status:?}"))
}

fn get(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(stream, "GET /health HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Over TLS. The certificate is for the public name, and this is our own relay on loopback: it is not checked.
fn get_tls(address: SocketAddr) -> Result<String, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let answer = runtime.block_on(async {
        let client =
            reqwest::Client::builder().tls_danger_accept_invalid_certs(true).timeout(LIMIT).build()?;
        let answer = client.get(format!("https://{address}/health")).send().await?;
        answer.error_for_status()?.text().await
    });
    answer.map_err(|e| e.to_string())
}

/// A relay that listens everywhere also listens on loopback.
fn reachable(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}
