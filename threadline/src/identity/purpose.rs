//! Everything the identity key signs, so that no signed text of one protocol is a signed text of another
//! (`threadline-wire.md` §1.6).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::PublicIdentity;
use crate::v1::envelope::CanonicalEnvelope;

/// The closed set of things that are signed.
#[derive(Debug)]
pub enum Purpose<'a> {
    /// Login at a v1 relay.
    V1Login(&'a LoginNonce),
    /// A sealed v1 envelope: canonical JSON, which begins with `{`.
    SealedEnvelope(&'a CanonicalEnvelope),
    /// Proof of the key behind a local port.
    DiscoveryChallenge(&'a DiscoveryChallenge),
    /// Anchor of the trust audit chain.
    AuditAnchor(&'a AnchorStatement),
    /// Commitment to the recovery key with this public half.
    RecoveryCommitment(&'a PublicIdentity),
}

impl Purpose<'_> {
    pub(super) fn signed_bytes(&self) -> Vec<u8> {
        match self {
            Self::V1Login(nonce) => nonce.0.clone().into_bytes(),
            Self::SealedEnvelope(envelope) => envelope.as_bytes().to_vec(),
            Self::DiscoveryChallenge(challenge) => challenge.signed_bytes(),
            Self::AuditAnchor(anchor) => anchor.signed_bytes(),
            Self::RecoveryCommitment(key) => recovery_commitment_bytes(key),
        }
    }
}

pub(super) fn recovery_commitment_bytes(key: &PublicIdentity) -> Vec<u8> {
    [b"instar-recovery-commitment-v1".as_slice(), key.as_bytes()].concat()
}

/// A login challenge that is safe to sign: 44 characters of canonical base64 of 32 bytes. The v1 challenge has no
/// domain separation, so any other text could be a request or an envelope of ours (`threadline-wire.md` §2.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginNonce(String);

impl LoginNonce {
    /// Accepts the text of a `challenge` frame; `None` for a text that must not be signed.
    pub fn parse(text: &str) -> Option<Self> {
        let decoded = (text.len() == 44).then(|| STANDARD.decode(text).ok())??;
        (decoded.len() == 32 && STANDARD.encode(decoded) == text).then(|| Self(text.to_owned()))
    }

    /// The nonce of a relay, from 32 random bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(STANDARD.encode(bytes))
    }

    /// The text as it travels and as it is signed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A question of another process of this host: which key is behind this port?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryChallenge {
    nonce: String,
    timestamp: String,
}

impl DiscoveryChallenge {
    /// Accepts a nonce of 64 lowercase hex digits; `now_ms` is Unix time of the answer.
    pub fn new(nonce: &str, now_ms: i64) -> Option<Self> {
        Self::from_parts(nonce, &crate::time::iso_ms(now_ms))
    }

    /// Rebuilds the challenge that a peer answered, to verify its signature.
    pub fn from_parts(nonce: &str, timestamp: &str) -> Option<Self> {
        let hex64 = nonce.len() == 64 && nonce.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (hex64 && crate::time::parse_iso(timestamp).is_some())
            .then(|| Self { nonce: nonce.to_owned(), timestamp: timestamp.to_owned() })
    }

    /// The time text that is signed and answered.
    pub fn timestamp(&self) -> &str {
        &self.timestamp
    }

    /// Whether `signature` is the answer of `key`.
    pub fn verifies(&self, key: &PublicIdentity, signature: &[u8]) -> bool {
        key.verifies(&self.signed_bytes(), signature)
    }

    fn signed_bytes(&self) -> Vec<u8> {
        ["instar-discovery-challenge-v1", &self.nonce, &self.timestamp].concat().into_bytes()
    }
}

/// What an audit anchor states: the length and last hash of the chain at a time (`threadline-agent.md` §4.6).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnchorStatement {
    /// Number of entries.
    pub count: u64,
    /// Hash of the last entry, 64 hex digits.
    pub last_hash: String,
    /// Time of the anchor, ISO 8601.
    pub at: String,
}

impl AnchorStatement {
    /// Whether `signature` over this statement was made by `key`.
    pub fn verifies(&self, key: &PublicIdentity, signature: &[u8]) -> bool {
        key.verifies(&self.signed_bytes(), signature)
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let json = serde_json::json!({"at": self.at, "count": self.count, "lastHash": self.last_hash});
        [b"threadline/2 audit-anchor\0".as_slice(), crate::jcs::to_string(&json).as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn only_canonical_base64_of_32_bytes_is_signed() {
        let good = STANDARD.encode([7; 32]);
        assert!(LoginNonce::parse(&good).is_some());
        let url_safe = STANDARD.encode([0xff; 32]).replace('/', "_");
        let loose = format!("{}B=", "A".repeat(42));
        for bad in ["", "{}", &good[..43], &format!("{good}="), &url_safe, &loose, &"a".repeat(44)] {
            assert!(LoginNonce::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn purposes_have_no_common_preimage() {
        let identity = Identity::from_seed(&[1; 32]);
        let nonce = LoginNonce::from_bytes(&[2; 32]);
        let challenge = DiscoveryChallenge::new(&"ab".repeat(32), 0).expect("hex");
        let anchor = AnchorStatement { count: 1, last_hash: "00".into(), at: "now".into() };
        let rows = [
            Purpose::V1Login(&nonce),
            Purpose::DiscoveryChallenge(&challenge),
            Purpose::AuditAnchor(&anchor),
            Purpose::RecoveryCommitment(identity.public()),
        ];
        for (i, a) in rows.iter().enumerate() {
            assert_ne!(a.signed_bytes().first(), Some(&b'{'), "an envelope begins with a brace");
            for b in &rows[i + 1..] {
                let (a, b) = (a.signed_bytes(), b.signed_bytes());
                let lengths_fixed = a.len() == 44 || b.len() == 44;
                let head = a.iter().zip(&b).take(29).any(|(x, y)| x != y);
                assert!(head && (!lengths_fixed || a.len() != b.len()), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn a_challenge_is_answered_by_its_key_alone() {
        let identity = Identity::from_seed(&[1; 32]);
        let challenge = DiscoveryChallenge::new(&"0f".repeat(32), 1_768_478_400_000).expect("hex");
        let signature = identity.sign(&Purpose::DiscoveryChallenge(&challenge));
        assert!(challenge.verifies(identity.public(), &signature));
        assert!(!challenge.verifies(Identity::from_seed(&[2; 32]).public(), &signature));
        assert!(DiscoveryChallenge::new("zz", 0).is_none());
        assert!(DiscoveryChallenge::from_parts(&"0f".repeat(32), "yesterday").is_none());
    }
}
