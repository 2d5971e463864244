//! URLs of hosts that only this machine or its network reaches.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

static AUTHORITY: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"(?-u:\b)(?i-u:https?|wss?)://([^\x00-\x20/?#"'<>\\|`{}^]+)"#).expect("a constant pattern")
});

/// Spans of the internal URLs in `text`, scheme and authority only.
pub(super) fn find(text: &str) -> impl Iterator<Item = Range<usize>> {
    AUTHORITY.captures_iter(text).filter_map(|captures| {
        let authority = captures.get(1)?;
        is_internal(host_of(authority.as_str())).then(|| captures.get(0).map(|whole| whole.range()))?
    })
}

/// Host of an authority, without user, port, brackets and trailing dots or punctuation.
fn host_of(authority: &str) -> &str {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if let Some(bracketed) = host.strip_prefix('[') {
        return bracketed.split(']').next().unwrap_or(bracketed);
    }
    let host = host.split(':').next().unwrap_or(host);
    host.trim_end_matches(['.', ',', ';', ')', ']', '!', '*', '_'])
}

fn is_internal(host: &str) -> bool {
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return is_internal_v4(address);
    }
    if let Ok(address) = host.split('%').next().unwrap_or(host).parse::<Ipv6Addr>() {
        return is_internal_v6(address);
    }
    let host = host.to_ascii_lowercase();
    ["localhost", "local", "internal"].iter().any(|zone| {
        host.strip_suffix(zone).is_some_and(|rest| {
            rest.ends_with('.') && rest.len() > 1 || rest.is_empty() && *zone == "localhost"
        })
    })
}

const fn is_internal_v4(address: Ipv4Addr) -> bool {
    address.is_loopback() || address.is_private() || address.is_link_local() || address.is_unspecified()
}

fn is_internal_v6(address: Ipv6Addr) -> bool {
    address.is_loopback()
        || address.is_unspecified()
        || address.is_unicast_link_local()
        || address.is_unique_local()
        || address.to_ipv4_mapped().is_some_and(is_internal_v4)
}
