//! Where a connection comes from.

use std::net::IpAddr;

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::HeaderMap;
use sha2::Sha256;

use crate::config::Network;
use crate::core::Source;

const DAY_MS: i64 = 86_400_000;

/// Turns addresses into [`Source`]s.
pub(super) struct Sources {
    key: [u8; 32],
    trusted: Vec<Network>,
}

impl Sources {
    pub(super) fn new(key: &[u8; 32], trusted: Vec<Network>) -> Self {
        Self { key: *key, trusted }
    }

    /// The client behind `peer`: the right-most hop of `X-Forwarded-For` that is no proxy of ours.
    pub(super) fn of(&self, peer: IpAddr, headers: &HeaderMap, now_ms: i64) -> Source {
        let net = network(self.client(peer, headers));
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(&now_ms.div_euclid(DAY_MS).to_be_bytes());
        mac.update(&net);
        let full: [u8; 32] = mac.finalize().into_bytes().into();
        let mut pseudonym = [0; 16];
        pseudonym.copy_from_slice(&full[..16]);
        Source { net, pseudonym }
    }

    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.is_trusted(peer) {
            return peer;
        }
        let lines: Vec<&str> =
            headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok()).collect();
        let mut client = peer;
        for hop in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            let Ok(hop) = hop.trim().parse() else { return client };
            client = hop;
            if !self.is_trusted(hop) {
                return client;
            }
        }
        client
    }

    fn is_trusted(&self, ip: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(ip))
    }
}

/// The IPv4 address, marked by a prefix that no IPv6 network has, or the IPv6 /64.
fn network(ip: IpAddr) -> [u8; 8] {
    let mut net = [0xff; 8];
    match ip.to_canonical() {
        IpAddr::V4(ip) => net[4..].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => net.copy_from_slice(&ip.octets()[..8]),
    }
    net
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(peer: &str, forwarded: &[&str]) -> [u8; 8] {
        let sources = Sources::new(&[1; 32], vec!["10.0.0.0/8".parse().expect("network")]);
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().expect("header"));
        }
        sources.of(peer.parse().expect("ip"), &headers, 0).net
    }

    #[test]
    fn only_a_trusted_proxy_may_name_its_client() {
        let client = net("192.0.2.7", &[]);
        assert_eq!(net("10.1.1.1", &["198.51.100.1, 192.0.2.7"]), client, "right-most untrusted hop");
        assert_eq!(net("10.1.1.1", &["192.0.2.7, 10.2.2.2"]), client, "proxies are skipped");
        assert_eq!(net("192.0.2.7", &["198.51.100.1"]), client, "a stranger's header is ignored");
        assert_eq!(net("10.1.1.1", &["junk"]), net("10.1.1.1", &[]));
        assert_eq!(net("2001:db8:1:2::1", &[]), net("2001:db8:1:2:ffff::9", &[]), "one /64 is one source");
        assert_eq!(net("::ffff:192.0.2.7", &[]), client);
    }
}
