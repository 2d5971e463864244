//! `threadline.relays`: relays beside or instead of `threadline.relayUrl`.

use serde::Deserialize;
use serde_json::Value;

use super::schema::{FromValue, KeyType};

/// What is allowed, for people.
pub(super) const RELAYS: &str = "at most 8 relays like {\"url\": \"wss://relay.example/v1/connect\", \"protocol\": \
     \"auto\"|\"2\"|\"1\", \"key\": \"64 hex digits\", \"listen\": true}, of which only url is required";
const MAX_RELAYS: usize = 8;

/// What is spoken with a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum RelayProtocol {
    /// What it speaks.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// v2 only.
    #[serde(rename = "2")]
    V2,
    /// v1 only.
    #[serde(rename = "1")]
    V1,
}

/// One relay.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayEntry {
    /// `ws(s)://host[:port]/…`
    pub url: String,
    /// What is spoken with it.
    #[serde(default)]
    pub protocol: RelayProtocol,
    /// Key that it must have: required where it has no TLS.
    #[serde(default, with = "key")]
    pub key: Option<[u8; 32]>,
    /// Whether a session is kept with it; the first two do where nothing is said.
    pub listen: Option<bool>,
}

impl KeyType for Vec<RelayEntry> {}

impl FromValue for Vec<RelayEntry> {
    fn from_value(value: Option<&Value>) -> Option<Self> {
        value?.as_array()?.iter().map(|entry| RelayEntry::deserialize(entry).ok()).collect()
    }
}

pub(super) fn are_relays(value: &Value) -> bool {
    let Some(entries) = <Vec<RelayEntry>>::from_value(Some(value)) else { return false };
    let is_url = |url: &str| {
        let rest = url.strip_prefix("wss://").or_else(|| url.strip_prefix("ws://"));
        rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) && url.len() <= 2_000
    };
    let twice = |n: usize, url: &str| entries.iter().take(n).any(|other| other.url == url);
    entries.len() <= MAX_RELAYS
        && entries.iter().enumerate().all(|(n, entry)| is_url(&entry.url) && !twice(n, &entry.url))
}

mod key {
    use serde::{Deserialize as _, Deserializer, de::Error as _};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<[u8; 32]>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let digits = text.as_bytes();
        let mut key = [0; 32];
        if digits.len() != 64 {
            return Err(D::Error::custom("not 64 hex digits"));
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(D::Error::custom)?;
            *byte = u8::from_str_radix(pair, 16).map_err(D::Error::custom)?;
        }
        Ok(Some(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn relays_are_read_and_checked() {
        let key = "ab".repeat(32);
        let good = json!([{"url": "wss://a.example/v1/connect"},
            {"url": "ws://10.0.0.1:8787", "protocol": "2", "key": key, "listen": false}]);
        assert!(are_relays(&good));
        let read = <Vec<RelayEntry>>::from_value(Some(&good)).expect("entries");
        assert_eq!((read[0].protocol, read[0].key, read[0].listen), (RelayProtocol::Auto, None, None));
        assert_eq!((read[1].protocol, read[1].key), (RelayProtocol::V2, Some([0xab; 32])));
        for bad in [
            json!({}),
            json!(["wss://a"]),
            json!([{"url": "https://a"}]),
            json!([{"url": "wss://a", "protocol": 2}]),
            json!([{"url": "wss://a", "key": "ab"}]),
            json!([{"url": "wss://a", "port": 1}]),
            json!([{"url": "wss://a"}, {"url": "wss://a"}]),
            json!([{"url": "wss:///x"}]),
        ] {
            assert!(!are_relays(&bad), "{bad}");
        }
    }
}
