//! Whether this machine moved to another network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Addresses of documentation: routed like any other, and never anybody's.
const SOMEWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

/// The addresses this machine would send from, IPv4 and IPv6. Nothing is sent.
pub(super) fn local_addresses() -> [Option<IpAddr>; 2] {
    SOMEWHERE.map(|target| {
        let any: IpAddr =
            if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_stays_has_the_same_addresses() {
        let before = local_addresses();
        assert_eq!(before, local_addresses());
        assert!(before.iter().flatten().all(|address| !address.is_unspecified()), "{before:?}");
    }
}
