//! Before the first frame counts: the relay's document, the proof of keys over WebSocket, the proof of work.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::objects::signed_text;
use super::{Bin, Key, sha256};
use crate::identity::PublicIdentity;

const WELL_KNOWN: &str = "threadline/2 wellknown";
const WS_AUTH: &str = "threadline/2 ws-auth";
const WS_RELAY: &str = "threadline/2 ws-relay";

/// Largest document, bytes.
pub const MAX_WELL_KNOWN: usize = 65_536;
/// A solution counts in its own window of this length and in the next, ms.
pub const POW_EPOCH_MS: u64 = 600_000;

/// What both ends of a WebSocket sign; the host binds the proof to the name that was dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WsExchange {
    /// The relay's key.
    pub relay: Key,
    /// The relay's nonce.
    pub nonce: Bin<32>,
    /// The client's nonce.
    pub client_nonce: Bin<32>,
    /// The client's key.
    pub key: Key,
    /// The name the client dialled, ≤ 65,535 bytes.
    pub host: String,
}

impl WsExchange {
    pub(crate) fn client_text(&self) -> Vec<u8> {
        let length = u16::try_from(self.host.len()).unwrap_or(u16::MAX).to_be_bytes();
        let parts: [&[u8]; 6] =
            [&self.relay.0, &self.nonce.0, &self.client_nonce.0, &self.key.0, &length, self.host.as_bytes()];
        signed_text(WS_AUTH, &parts.concat())
    }

    /// What the relay signs in its WELCOME.
    pub fn relay_text(&self) -> Vec<u8> {
        let parts: [&[u8]; 4] = [&self.key.0, &self.client_nonce.0, &self.nonce.0, &self.relay.0];
        signed_text(WS_RELAY, &parts.concat())
    }

    /// Whether the client proved its key; the caller checks that the nonce is its own and the host one of its names.
    pub fn client_proved(&self, signature: &[u8]) -> bool {
        self.host.len() <= 255 && verifies(&self.key, &self.client_text(), signature)
    }

    /// Whether the relay proved its key.
    pub fn relay_proved(&self, signature: &[u8]) -> bool {
        verifies(&self.relay, &self.relay_text(), signature)
    }
}

fn verifies(key: &Key, text: &[u8], signature: &[u8]) -> bool {
    PublicIdentity::from_bytes(&key.0).is_ok_and(|key| key.verifies(text, signature))
}

/// A puzzle of the relay (`relay.md` §11.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowPuzzle {
    /// Window, lowercase hex.
    pub epoch: String,
    /// Single use.
    pub challenge: Bin<16>,
    /// Leading zero bits that are asked for.
    pub bits: u8,
    /// The relay's key.
    pub relay: Key,
    /// The client's key.
    pub client: Key,
}

impl PowPuzzle {
    /// The window of a time, Unix ms.
    pub fn epoch_at(now_ms: u64) -> String {
        format!("{:x}", now_ms / POW_EPOCH_MS)
    }

    fn hash(&self, nonce: Bin<8>) -> [u8; 32] {
        sha256(&[
            b"threadline/2 pow\0",
            self.epoch.as_bytes(),
            &self.challenge.0,
            &self.relay.0,
            &self.client.0,
            &nonce.0,
        ])
    }

    /// Whether `nonce` solves it.
    pub fn is_solved_by(&self, nonce: Bin<8>) -> bool {
        leading_zeros(&self.hash(nonce)) >= u32::from(self.bits)
    }

    /// Whether the window is the current or the previous one.
    pub fn is_current(&self, now_ms: u64) -> bool {
        let earlier = now_ms.saturating_sub(POW_EPOCH_MS);
        self.epoch == Self::epoch_at(now_ms) || self.epoch == Self::epoch_at(earlier)
    }

    /// Tries `count` nonces from `from` on: a slice of the work, so that the caller can stop.
    pub fn search(&self, from: u64, count: u64) -> Option<Bin<8>> {
        (from..from.saturating_add(count)).map(|n| Bin(n.to_be_bytes())).find(|n| self.is_solved_by(*n))
    }
}

fn leading_zeros(hash: &[u8]) -> u32 {
    let whole = hash.iter().take_while(|byte| **byte == 0).count();
    whole as u32 * 8 + hash.get(whole).map_or(0, |byte| byte.leading_zeros())
}

/// The document at `/.well-known/threadline`, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedWellKnown {
    /// base64url of the text.
    pub doc: String,
    /// base64url of the relay's signature.
    pub sig: String,
}

/// What a relay says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WellKnown {
    /// 2.
    pub v: u8,
    /// Name of the relay.
    pub relay_id: String,
    /// base64url of its key.
    pub relay_key: String,
    /// Spoken protocols.
    pub protocols: Vec<String>,
    /// Path of v1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ws1: Option<String>,
    /// Path of WebSocket/2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ws2: Option<String>,
    /// QUIC sockets.
    #[serde(default)]
    pub quic: Vec<QuicAddress>,
    /// Multiaddresses.
    #[serde(default)]
    pub libp2p: Vec<String>,
    /// Limits, for information.
    #[serde(default)]
    pub limits: serde_json::Value,
    /// Proof of work, for information.
    #[serde(default)]
    pub pow: serde_json::Value,
    /// Whether it is about to stop.
    #[serde(default)]
    pub drain: bool,
    /// Names and `host:port` it answers for. A document without them pins nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// base64url of the key that will follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_key: Option<String>,
    /// ISO 8601.
    pub expires: String,
}

/// Where QUIC is spoken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuicAddress {
    /// Host name or address.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

/// Why a document is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WellKnownError {
    /// Not the two texts, not JSON, or members missing.
    #[error("the relay's document is malformed")]
    Malformed,
    /// Not signed by the key it names.
    #[error("the relay's document is not signed by the key it names")]
    Signature,
}

impl WellKnown {
    /// The signed text of a document that a relay serves.
    pub fn text_to_sign(text: &str) -> Vec<u8> {
        signed_text(WELL_KNOWN, text.as_bytes())
    }

    /// Reads a document and checks that the key it names signed it.
    pub fn parse(signed: &SignedWellKnown) -> Result<Self, WellKnownError> {
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| WellKnownError::Malformed);
        if signed.doc.len() > MAX_WELL_KNOWN {
            return Err(WellKnownError::Malformed);
        }
        let text = decode(&signed.doc)?;
        let document: Self = serde_json::from_slice(&text).map_err(|_| WellKnownError::Malformed)?;
        let key = document.key().ok_or(WellKnownError::Malformed)?;
        let valid = verifies(&key, &signed_text(WELL_KNOWN, &text), &decode(&signed.sig)?);
        if document.v != 2 || !valid { Err(WellKnownError::Signature) } else { Ok(document) }
    }

    /// The relay's key.
    pub fn key(&self) -> Option<Key> {
        decode_key(&self.relay_key)
    }

    /// The announced successor of the key.
    pub fn next(&self) -> Option<Key> {
        self.next_key.as_deref().and_then(decode_key)
    }

    /// Whether it says so for the name that was dialled, and still does: only then may its key be pinned.
    pub fn may_pin(&self, dialled: &str, now_ms: u64) -> bool {
        let expires = crate::time::parse_iso(&self.expires).and_then(|at| u64::try_from(at).ok());
        self.hosts.iter().any(|host| host.eq_ignore_ascii_case(dialled))
            && expires.is_some_and(|at| at > now_ms)
    }

    /// Whether it speaks v2.
    pub fn speaks_v2(&self) -> bool {
        self.protocols.iter().any(|protocol| protocol == "threadline/2")
    }
}

fn decode_key(text: &str) -> Option<Key> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(Bin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Purpose;
    use crate::testing::{bytes, hex32, identity, text, vectors_v2};
    use proptest::prelude::*;

    const NOW: u64 = 1_768_478_400_000;

    #[test]
    fn the_recorded_proof() {
        let member = &vectors_v2()["wsProof"];
        let alice = identity("alice");
        let exchange = WsExchange {
            relay: Bin(hex32(&member["relayKey"])),
            nonce: Bin(hex32(&member["n"])),
            client_nonce: Bin(hex32(&member["cn"])),
            key: alice.public().into(),
            host: text(&member["host"]).into(),
        };
        assert!(exchange.client_text().ends_with(&bytes(&member["clientSigned"])));
        assert!(exchange.relay_text().ends_with(&bytes(&member["relaySigned"])));
        assert_eq!(alice.sign(&Purpose::WsAuth(&exchange)).to_vec(), bytes(&member["s"]));
        assert!(exchange.client_proved(&bytes(&member["s"])) && exchange.relay_proved(&bytes(&member["rs"])));
        let elsewhere = WsExchange { host: "other.example".into(), ..exchange };
        assert!(!elsewhere.client_proved(&bytes(&member["s"])), "a proof is bound to the name");
    }

    #[test]
    fn the_recorded_work() {
        let member = &vectors_v2()["proofOfWork"];
        let puzzle = PowPuzzle {
            epoch: text(&member["epoch"]).into(),
            challenge: Bin(bytes(&member["h"]).try_into().expect("16 bytes")),
            bits: 12,
            relay: Bin(hex32(&member["relayKey"])),
            client: Bin(hex32(&member["clientKey"])),
        };
        let nonce = Bin(bytes(&member["nonce"]).try_into().expect("8 bytes"));
        assert_eq!(hex::encode(puzzle.hash(nonce)), text(&member["sha256"]));
        assert!(puzzle.is_solved_by(nonce));
        assert_eq!(puzzle.epoch, PowPuzzle::epoch_at(NOW));
        assert!(puzzle.is_current(NOW) && puzzle.is_current(NOW + POW_EPOCH_MS));
        assert!(!puzzle.is_current(NOW + 2 * POW_EPOCH_MS));
        assert_eq!(puzzle.search(0x4b00, 0x20), Some(nonce));
        assert_eq!(puzzle.search(0x4b12, 1), None);
        let other = PowPuzzle { client: Bin([1; 32]), ..puzzle };
        assert!(!other.is_solved_by(nonce), "a solution cannot be sold");
    }

    #[test]
    fn the_recorded_document_reads_but_pins_nothing() {
        let member = &vectors_v2()["wellKnown"];
        let signed = SignedWellKnown { doc: text(&member["doc"]).into(), sig: text(&member["sig"]).into() };
        let document = WellKnown::parse(&signed).expect("recorded");
        assert_eq!(serde_json::to_string(&document).expect("json"), text(&member["text"]));
        assert_eq!(document.key(), Some(identity("relay").public().into()));
        assert!(document.speaks_v2());
        assert!(!document.may_pin("relay.example.test", NOW), "it has no hosts");
        let with_hosts = WellKnown { hosts: vec!["relay.example.test".into()], ..document };
        assert!(with_hosts.may_pin("Relay.example.test", NOW));
        assert!(!with_hosts.may_pin("mallory.example", NOW), "a document served by another is worth nothing");
        assert!(!with_hosts.may_pin("relay.example.test", NOW + 86_400_000));
        let forged = SignedWellKnown { sig: signed.sig.replace('g', "h"), ..signed };
        assert_eq!(WellKnown::parse(&forged), Err(WellKnownError::Signature));
    }

    proptest! {
        #[test]
        fn no_document_panics(doc in ".*", sig in ".*") {
            let parsed = WellKnown::parse(&SignedWellKnown { doc, sig });
            prop_assert!(parsed.is_err());
        }
    }
}
