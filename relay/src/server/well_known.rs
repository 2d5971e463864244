//! What the relay says of itself: names, key, protocols (`threadline-wire.md` §5.1).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::Signer as _;
use http::{Uri, header};
use serde_json::json;
use threadline::time::iso_ms;
use threadline::v2::login::{QuicAddress, SignedWellKnown, WellKnown};

use super::{Shared, http as public};
use crate::config::RelayConfig;

/// A document counts for a day.
const LIFE_MS: i64 = 86_400_000;

/// Names, with and without port, under which others reach this relay: those of `public_url`, and the address itself
/// when it is one of this machine only.
pub(super) fn hosts(config: &RelayConfig, address: SocketAddr) -> Vec<String> {
    let mut hosts = Vec::new();
    if let Some(authority) = config.public_url.parse::<Uri>().ok().and_then(|uri| uri.authority().cloned()) {
        hosts.push(authority.host().to_owned());
        if authority.port().is_some() {
            hosts.push(authority.as_str().to_owned());
        }
    }
    if address.ip().is_loopback() {
        for name in [address.ip().to_string(), "localhost".to_owned()] {
            hosts.push(format!("{name}:{}", address.port()));
            hosts.push(name);
        }
    }
    hosts.dedup();
    hosts
}

/// The name of `public_url`, without a port.
fn public_name(config: &RelayConfig) -> Option<String> {
    let uri: Uri = config.public_url.parse().ok()?;
    Some(uri.host()?.trim_matches(['[', ']']).to_owned())
}

/// Where others reach QUIC, given where it is listened for. A name for others does not lead to loopback.
pub(super) fn quic(config: &RelayConfig, address: SocketAddr) -> Option<QuicAddress> {
    let port = config.quic.public_port.unwrap_or(address.port());
    let host = public_name(config).unwrap_or_else(|| address.ip().to_string());
    let is_local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    (is_local || !address.ip().is_loopback()).then_some(QuicAddress { host, port })
}

/// `GET /.well-known/threadline`.
pub(super) async fn document(State(shared): State<Arc<Shared>>) -> Response {
    // Without a name of its own a document would pin nothing.
    if shared.hosts.is_empty() {
        return public::not_found().await;
    }
    let signed = sign(&shared);
    ([(header::CACHE_CONTROL, "max-age=300")], axum::Json(signed)).into_response()
}

fn sign(shared: &Shared) -> SignedWellKnown {
    let config = &shared.config;
    let quic = shared.quic.as_ref().and_then(|door| quic(config, door.address()));
    let document = WellKnown {
        v: 2,
        relay_id: shared.relay_id.clone(),
        relay_key: URL_SAFE_NO_PAD.encode(shared.verifier.as_bytes()),
        protocols: vec!["threadline/1".into(), "threadline/2".into()],
        ws1: Some("/v1/connect".into()),
        ws2: Some("/v2/connect".into()),
        quic: quic.into_iter().collect(),
        libp2p: Vec::new(),
        limits: json!({
            "env": threadline::v2::MAX_ENVELOPE,
            "ttl_max_s": config.queue.max_ttl_s,
            "queue": config.queue.per_recipient,
        }),
        pow: json!({"bits": if config.tiers() { crate::sybil::BASE_BITS } else { 0 }}),
        drain: shared.draining.load(Ordering::Relaxed),
        hosts: shared.hosts.clone(),
        next_key: None,
        expires: iso_ms(shared.clock.now_ms() + LIFE_MS),
    };
    let text = serde_json::to_string(&document).unwrap_or_default();
    let signature = shared.signer.sign(&WellKnown::text_to_sign(&text)).to_bytes();
    SignedWellKnown { doc: URL_SAFE_NO_PAD.encode(&text), sig: URL_SAFE_NO_PAD.encode(signature) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quic_is_named_where_others_reach_it() {
        let config = |url: &str, public_port| {
            let mut config = RelayConfig { public_url: url.into(), ..RelayConfig::default() };
            config.quic.public_port = public_port;
            config
        };
        let told = |config: &RelayConfig, at: &str| {
            quic(config, at.parse().expect("address"))
                .map(|address| format!("{} {}", address.host, address.port))
        };
        let public = config("https://relay.example:444", None);
        assert_eq!(told(&public, "0.0.0.0:8788").as_deref(), Some("relay.example 8788"));
        assert_eq!(told(&public, "127.0.0.1:8788"), None, "a proxy on this machine does not carry it");
        let mapped = config("https://relay.example", Some(443));
        assert_eq!(told(&mapped, "0.0.0.0:8788").as_deref(), Some("relay.example 443"));
        assert_eq!(told(&config("", None), "127.0.0.1:5").as_deref(), Some("127.0.0.1 5"));
        assert_eq!(told(&config("http://[::1]:80", None), "[::1]:5").as_deref(), Some("::1 5"));
    }

    #[test]
    fn a_relay_answers_for_its_url_and_for_this_machine_only_where_nobody_else_reaches_it() {
        let config = |url: &str| RelayConfig { public_url: url.into(), ..RelayConfig::default() };
        let at = |address: &str| address.parse().expect("address");
        assert_eq!(hosts(&config("https://relay.example"), at("0.0.0.0:8787")), ["relay.example"]);
        assert_eq!(
            hosts(&config("https://relay.example:444"), at("10.0.0.1:8787")),
            ["relay.example", "relay.example:444"]
        );
        assert_eq!(hosts(&config(""), at("0.0.0.0:8787")), Vec::<String>::new());
        assert_eq!(
            hosts(&config(""), at("127.0.0.1:5")),
            ["127.0.0.1:5", "127.0.0.1", "localhost:5", "localhost"]
        );
    }
}
