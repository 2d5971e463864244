//! Ports of the agents' HTTP interfaces (`agent-core.md` §5.2).

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;

/// Where agents get their ports.
pub const RANGE: RangeInclusive<u16> = 4040..=4099;

/// The first port that no agent has and that can be bound.
pub fn choose(taken: &BTreeSet<u16>, can_bind: impl Fn(u16) -> bool) -> Option<u16> {
    RANGE.into_iter().find(|port| !taken.contains(port) && can_bind(*port))
}

/// Whether a port can be bound on both loopbacks. A machine without IPv6 has one loopback.
pub fn can_bind(port: u16) -> bool {
    let free = |address: SocketAddr| TcpListener::bind(address).map(drop);
    let v6 = match free((Ipv6Addr::LOCALHOST, port).into()) {
        Err(error) => !matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied),
        Ok(()) => true,
    };
    v6 && free((Ipv4Addr::LOCALHOST, port).into()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registered_and_occupied_ports_are_passed_over() {
        let taken = BTreeSet::from([4040, 4042]);
        assert_eq!(choose(&taken, |port| port != 4041), Some(4043));
        assert_eq!(choose(&RANGE.collect(), |_| true), None);
    }

    #[test]
    fn a_port_in_use_on_one_loopback_is_not_free() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let port = holder.local_addr().expect("address").port();
        assert!(!can_bind(port));
        drop(holder);
        assert!(can_bind(port));
    }
}
