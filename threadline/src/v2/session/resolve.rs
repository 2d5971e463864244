//! Which protocol a relay is spoken to, and with which key (`threadline-wire.md` §5.1, §5.2).

use crate::v2::Key;
use crate::v2::login::{QuicAddress, WellKnown};

/// `threadline.relays[].protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// What the relay speaks.
    #[default]
    Auto,
    /// v2 only.
    V2,
    /// v1 only.
    V1,
}

/// What is remembered of a relay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelayPin {
    /// Its key.
    pub key: Option<Key>,
    /// The key it announced as the next.
    pub next: Option<Key>,
    /// It once opened a v2 session: never v1 again.
    pub spoke_v2: bool,
}

/// What asking the relay came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolveOutcome {
    /// A document whose signature fits the key in it.
    Document(Box<WellKnown>),
    /// It has none.
    NotFound,
    /// No answer, or none that can be read.
    Failed,
}

/// Where v2 is spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// The relay's key.
    pub key: Key,
    /// QUIC sockets, in order of preference.
    pub quic: Vec<QuicAddress>,
    /// Path of WebSocket/2.
    pub ws2: Option<String>,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// Speak v2; remember the pin.
    V2(Endpoints, RelayPin),
    /// Speak v1.
    V1,
    /// The relay once spoke v2 and does not now: neither v1 nor anything clear; other relays, and the owner hears.
    Downgrade,
    /// The relay shows another key than the pinned one: the owner has to confirm it.
    KeyChanged {
        /// The key it shows.
        shown: Key,
    },
    /// Try again later.
    Later,
}

/// Decides. `host` is the name that was dialled; `configured` the key in the configuration.
pub fn resolve(
    setting: Protocol,
    host: &str,
    configured: Option<Key>,
    pin: &RelayPin,
    outcome: &ResolveOutcome,
    now_ms: u64,
) -> Resolved {
    if setting == Protocol::V1 {
        return if pin.spoke_v2 { Resolved::Downgrade } else { Resolved::V1 };
    }
    let older = match (pin.spoke_v2, setting) {
        (true, _) => Resolved::Downgrade,
        (false, Protocol::V2) => Resolved::Later,
        (false, _) => Resolved::V1,
    };
    let document = match outcome {
        ResolveOutcome::Document(document) => document,
        ResolveOutcome::NotFound => return older,
        ResolveOutcome::Failed => return Resolved::Later,
    };
    if !document.speaks_v2() || (document.ws2.is_none() && document.quic.is_empty()) {
        return older;
    }
    let Some(shown) = document.key() else { return Resolved::Later };
    let may_pin = document.may_pin(host, now_ms);
    match configured.or(pin.key) {
        Some(known) if known == shown => {}
        Some(_) if may_pin && configured.is_none() && pin.next == Some(shown) => {}
        Some(_) => return Resolved::KeyChanged { shown },
        None if may_pin => {}
        None => return Resolved::Later,
    }
    let next = if may_pin { document.next() } else { pin.next };
    let endpoints = Endpoints { key: shown, quic: document.quic.clone(), ws2: document.ws2.clone() };
    Resolved::V2(endpoints, RelayPin { key: Some(shown), next, spoke_v2: pin.spoke_v2 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v2::Bin;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    const NOW: u64 = 1_768_478_400_000;

    fn document(key: u8, next: Option<u8>, hosts: &[&str], protocols: &[&str]) -> ResolveOutcome {
        let encode = |byte: u8| URL_SAFE_NO_PAD.encode([byte; 32]);
        ResolveOutcome::Document(Box::new(WellKnown {
            v: 2,
            relay_id: "r".into(),
            relay_key: encode(key),
            protocols: protocols.iter().map(ToString::to_string).collect(),
            ws1: None,
            ws2: Some("/v2/connect".into()),
            quic: Vec::new(),
            libp2p: Vec::new(),
            limits: serde_json::Value::Null,
            pow: serde_json::Value::Null,
            drain: false,
            hosts: hosts.iter().map(ToString::to_string).collect(),
            next_key: next.map(encode),
            expires: "2026-01-16T12:00:00.000Z".into(),
        }))
    }

    #[test]
    fn a_relay_that_spoke_v2_is_never_spoken_to_in_v1() {
        let spoke = RelayPin { key: Some(Bin([1; 32])), next: None, spoke_v2: true };
        let fresh = RelayPin::default();
        let old = document(1, None, &["r.example"], &["threadline/1"]);
        for outcome in [&ResolveOutcome::NotFound, &old] {
            let decide = |pin| resolve(Protocol::Auto, "r.example", None, pin, outcome, NOW);
            assert_eq!(decide(&spoke), Resolved::Downgrade);
            assert_eq!(decide(&fresh), Resolved::V1);
            assert_eq!(resolve(Protocol::V2, "r.example", None, &fresh, outcome, NOW), Resolved::Later);
        }
        assert_eq!(
            resolve(Protocol::V1, "r.example", None, &spoke, &ResolveOutcome::NotFound, NOW),
            Resolved::Downgrade
        );
        let failed = resolve(Protocol::Auto, "r.example", None, &fresh, &ResolveOutcome::Failed, NOW);
        assert_eq!(failed, Resolved::Later, "silence proves nothing");
    }

    #[test]
    fn a_key_is_pinned_by_the_first_document_and_changes_as_announced() {
        let v2 = ["threadline/2"];
        let decide = |pin: &RelayPin, configured, outcome: &ResolveOutcome| {
            resolve(Protocol::Auto, "r.example", configured, pin, outcome, NOW)
        };
        let fresh = RelayPin::default();
        let Resolved::V2(endpoints, pin) = decide(&fresh, None, &document(1, Some(2), &["r.example"], &v2))
        else {
            panic!("a good document")
        };
        assert_eq!((endpoints.key, pin.next), (Bin([1; 32]), Some(Bin([2; 32]))));
        assert!(matches!(decide(&pin, None, &document(2, None, &["r.example"], &v2)), Resolved::V2(..)));
        let other = decide(&pin, None, &document(3, None, &["r.example"], &v2));
        assert_eq!(other, Resolved::KeyChanged { shown: Bin([3; 32]) });
        let forwarded = document(1, None, &["honest.example"], &v2);
        assert_eq!(
            decide(&fresh, None, &forwarded),
            Resolved::Later,
            "another relay's document pins nothing"
        );
        assert!(matches!(decide(&fresh, Some(Bin([1; 32])), &forwarded), Resolved::V2(..)));
        let wrong = decide(&fresh, Some(Bin([9; 32])), &document(1, None, &["r.example"], &v2));
        assert_eq!(wrong, Resolved::KeyChanged { shown: Bin([1; 32]) });
    }
}
