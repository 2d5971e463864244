//! Everything the identity key signs, so that no signed text of one protocol is a signed text of another
//! (`threadline-wire.md` §1.6).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::PublicIdentity;
use super::rotation::{RevocationRequest, RevocationStatement, RotationStatement};
use crate::invitation::{InvitationStatement, RedeemStatement};
use crate::v1::envelope::CanonicalEnvelope;
use crate::v1::http::handshake::HandshakeStatement;
use crate::v1::http::pairing::ReceiptStatement;
use crate::v1::http::signed::RequestStatement;
use crate::v2::envelope::EnvelopeDigest;
use crate::v2::login::WsExchange;
use crate::v2::objects::{
    AddressRecord, DeviceCert, DeviceList, Lease, Object, Prekey, Revocation, signed_text,
};
use crate::v2::strict::encode_array;
use crate::v2::vouch::{Complaint, Staple, Vouch};

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
    /// A device certificate.
    Device(&'a DeviceCert),
    /// A device list.
    Devices(&'a DeviceList),
    /// A key to start sessions with.
    Prekey(&'a Prekey),
    /// A v2 envelope.
    Envelope(&'a EnvelopeDigest),
    /// An address record.
    Address(&'a AddressRecord),
    /// Login at a relay over WebSocket/2.
    WsAuth(&'a WsExchange),
    /// A revocation; the recovery key and the new key sign it.
    Revocation(&'a Revocation),
    /// A lease; a machine key signs it.
    Lease(&'a Lease),
    /// A vouch.
    Vouch(&'a Vouch),
    /// A staple to a vouch.
    Staple(&'a Staple),
    /// A complaint about a vouch.
    Complaint(&'a Complaint),
    /// The client's proof in a TLS 1.3 handshake.
    TlsClient(&'a TlsClientProof),
    /// A rotation as existing installs sign it; both keys sign it.
    Rotation(&'a RotationStatement),
    /// A revocation as existing installs keep it; the recovery key signs it.
    V1Revocation(&'a RevocationStatement),
    /// The cancellation of such a revocation.
    RevokeCancel(&'a RevocationRequest),
    /// A v1 handshake over HTTP: a digest whose preimage begins with 64 hex digits.
    V1Handshake(&'a HandshakeStatement),
    /// A request to a paired server: begins with a method and a line feed.
    SignedHttp(&'a RequestStatement),
    /// A note that a pairing is alive.
    PairReceipt(&'a ReceiptStatement),
    /// An invitation: a digest whose preimage begins with `1|invitation|`.
    Invitation(&'a InvitationStatement),
    /// The proof of an invitee.
    InviteRedeem(&'a RedeemStatement),
}

impl Purpose<'_> {
    pub(super) fn signed_bytes(&self) -> Vec<u8> {
        match self {
            Self::V1Login(nonce) => nonce.0.clone().into_bytes(),
            Self::SealedEnvelope(envelope) => envelope.as_bytes().to_vec(),
            Self::DiscoveryChallenge(challenge) => challenge.signed_bytes(),
            Self::AuditAnchor(anchor) => anchor.signed_bytes(),
            Self::RecoveryCommitment(key) => recovery_commitment_bytes(key),
            Self::Device(object) => object_bytes(*object),
            Self::Devices(object) => object_bytes(*object),
            Self::Prekey(object) => object_bytes(*object),
            Self::Envelope(digest) => digest.signed_bytes(),
            Self::Address(object) => object_bytes(*object),
            Self::WsAuth(exchange) => exchange.client_text(),
            Self::Revocation(revocation) => revocation.signed_bytes(),
            Self::Lease(object) => object_bytes(*object),
            Self::Vouch(object) => object_bytes(*object),
            Self::Staple(object) => object_bytes(*object),
            Self::Complaint(object) => object_bytes(*object),
            Self::TlsClient(proof) => proof.0.clone(),
            Self::Rotation(statement) => statement.as_bytes().to_vec(),
            Self::V1Revocation(statement) => statement.as_bytes().to_vec(),
            Self::RevokeCancel(request) => request.cancel_bytes(),
            Self::V1Handshake(statement) => statement.as_bytes().to_vec(),
            Self::SignedHttp(statement) => statement.as_bytes().to_vec(),
            Self::PairReceipt(statement) => statement.as_bytes().to_vec(),
            Self::Invitation(statement) => statement.as_bytes().to_vec(),
            Self::InviteRedeem(statement) => statement.signed_bytes(),
        }
    }
}

fn object_bytes<T: Object>(object: &T) -> Vec<u8> {
    signed_text(T::DOMAIN, &encode_array(object))
}

/// What TLS 1.3 has a client sign: 64 spaces, the context, a zero byte, a hash of the handshake (RFC 8446 §4.4.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsClientProof(Vec<u8>);

impl TlsClientProof {
    const CONTEXT: &[u8] = b"TLS 1.3, client CertificateVerify\0";

    /// Accepts a text of exactly that form.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (spaces, rest) = text.split_at_checked(64)?;
        let hash = rest.strip_prefix(Self::CONTEXT)?;
        let well_formed = spaces.iter().all(|byte| *byte == b' ') && matches!(hash.len(), 32 | 48);
        well_formed.then(|| Self(text.to_vec()))
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
    use crate::v2::Bin;

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

    /// What all texts of a row have in common.
    #[derive(Debug, Clone, Copy)]
    enum Grammar {
        /// It begins so and has at least this many bytes.
        Begins(&'static [u8], usize),
        /// This many characters of standard base64.
        Base64(usize),
        /// A digest of this many bytes, whose preimage has a form of its own.
        Digest(usize),
    }

    impl Grammar {
        fn admits(self, text: &[u8]) -> bool {
            match self {
                Self::Begins(head, least) => text.len() >= least && text.starts_with(head),
                Self::Base64(length) => text.len() == length && text.iter().copied().all(is_base64),
                Self::Digest(length) => text.len() == length,
            }
        }

        /// Whether no text can follow both.
        fn excludes(self, other: Self) -> bool {
            match (self, other) {
                (Self::Begins(a, _), Self::Begins(b, _)) => a.iter().zip(b).any(|(x, y)| x != y),
                (Self::Begins(head, least), Self::Base64(length))
                | (Self::Base64(length), Self::Begins(head, least)) => {
                    least > length || !head.iter().copied().all(is_base64)
                }
                (Self::Begins(_, least), Self::Digest(length))
                | (Self::Digest(length), Self::Begins(_, least)) => least > length,
                (Self::Base64(a) | Self::Digest(a), Self::Base64(b) | Self::Digest(b)) => a != b,
            }
        }
    }

    fn is_base64(byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
    }

    /// Rows of the table that other keys or later purposes fill.
    const OTHER_ROWS: &[(&str, Grammar)] = &[
        ("libp2p noise", Grammar::Begins(b"noise-libp2p-static-key:", 56)),
        ("libp2p tls", Grammar::Begins(b"libp2p-tls-handshake:", 40)),
        ("v2 grant", Grammar::Begins(b"threadline/2 grant\0", 40)),
        ("v2 invite-redeem", Grammar::Begins(b"threadline/2 invite-redeem\0", 40)),
        ("relay well-known", Grammar::Begins(b"threadline/2 wellknown\0", 40)),
        ("relay proof", Grammar::Begins(b"threadline/2 ws-relay\0", 40)),
        (
            "TLS server",
            Grammar::Begins(
                b"                                                                TLS 1.3, server",
                97,
            ),
        ),
        ("pair receipt", Grammar::Begins(b"threadline-pair-verify-v1", 45)),
        ("revoke cancel", Grammar::Begins(b"instar-revoke-cancel-v1", 40)),
        ("JWS", Grammar::Begins(b"eyJ", 64)),
        ("signed GET", Grammar::Begins(b"GET\n", 64)),
        ("signed POST", Grammar::Begins(b"POST\n", 64)),
        ("MoltBridge POST", Grammar::Begins(b"POST:", 64)),
        ("v1 handshake, invitation, rotation", Grammar::Digest(32)),
    ];

    /// One text of every purpose beside its row.
    fn purposes() -> Vec<(&'static str, Grammar, Vec<u8>)> {
        let begins = |head, least| Grammar::Begins(head, least);
        let key = Bin([b'A'; 32]);
        let device = Bin([b'B'; 16]);
        let identity = Identity::from_seed(&[1; 32]);
        let nonce = LoginNonce::from_bytes(&[2; 32]);
        let envelope = CanonicalEnvelope::example();
        let challenge = DiscoveryChallenge::new(&"ab".repeat(32), 0).expect("hex");
        let anchor = AnchorStatement { count: 1, last_hash: "00".into(), at: "now".into() };
        let exchange =
            WsExchange { relay: key, nonce: key, client_nonce: key, key, host: "relay.example".into() };
        let revocation = Revocation { version: 1, old: key, new: key, recovery: key, issued_at: 0 };
        let tls = TlsClientProof::parse(&[&[b' '; 64], TlsClientProof::CONTEXT, &[b'A'; 32]].concat());
        let (cert, list, prekey, address, lease) = (
            DeviceCert {
                version: 1,
                key,
                device,
                curve: key,
                name: String::new(),
                not_before: 0,
                not_after: 0,
                seq: 0,
                caps: Vec::new(),
            },
            DeviceList { version: 1, key, seq: 0, issued_at: 0, devices: vec![device], removed: Vec::new() },
            Prekey { version: 1, key, device, kind: 0, key_id: 0, curve: key, not_after: 0 },
            AddressRecord {
                version: 1,
                key,
                seq: 0,
                issued_at: 0,
                expires: 0,
                addresses: Vec::new(),
                relays: Vec::new(),
                devices: Vec::new(),
            },
            Lease { version: 1, key, machine: key, epoch: 0, issued_at: 0, ttl_ms: 0, relay_state: 0 },
        );
        let vouch = Vouch {
            version: 1,
            voucher: key,
            subject: None,
            slot: 0,
            class: 0,
            share: 0,
            issued: 0,
            expires: 0,
            seq: 0,
        };
        let staple = Staple { version: 1, voucher: key, vouch: key, issued: 0, expires: 0 };
        let complaint = Complaint { version: 1, receiver: key, vouch: key, reason: 1, at: 0 };
        let digest = EnvelopeDigest::of(b"h", b"l", b"b");
        [
            ("v1 login", Grammar::Base64(44), Purpose::V1Login(&nonce)),
            ("sealed envelope", begins(b"{", 64), Purpose::SealedEnvelope(&envelope)),
            (
                "discovery challenge",
                begins(b"instar-discovery-challenge-v1", 64),
                Purpose::DiscoveryChallenge(&challenge),
            ),
            ("audit anchor", begins(b"threadline/2 audit-anchor\0", 40), Purpose::AuditAnchor(&anchor)),
            (
                "recovery commitment",
                begins(b"instar-recovery-commitment-v1", 61),
                Purpose::RecoveryCommitment(identity.public()),
            ),
            ("device", begins(b"threadline/2 device\0", 40), Purpose::Device(&cert)),
            ("devices", begins(b"threadline/2 devices\0", 40), Purpose::Devices(&list)),
            ("prekey", begins(b"threadline/2 prekey\0", 40), Purpose::Prekey(&prekey)),
            ("envelope", begins(b"threadline/2 envelope\0", 118), Purpose::Envelope(&digest)),
            ("address", begins(b"threadline/2 addr\0", 40), Purpose::Address(&address)),
            ("ws-auth", begins(b"threadline/2 ws-auth\0", 150), Purpose::WsAuth(&exchange)),
            ("vouch", begins(b"threadline/2 vouch\0", 40), Purpose::Vouch(&vouch)),
            ("staple", begins(b"threadline/2 staple\0", 40), Purpose::Staple(&staple)),
            ("complaint", begins(b"threadline/2 complaint\0", 40), Purpose::Complaint(&complaint)),
            ("revoke", begins(b"threadline/2 revoke\0", 100), Purpose::Revocation(&revocation)),
            ("lease", begins(b"threadline/2 lease\0", 80), Purpose::Lease(&lease)),
            (
                "TLS client",
                begins(
                    b"                                                                TLS 1.3, client",
                    97,
                ),
                Purpose::TlsClient(tls.as_ref().expect("well formed")),
            ),
        ]
        .map(|(name, grammar, purpose)| (name, grammar, purpose.signed_bytes()))
        .to_vec()
    }

    #[test]
    fn no_two_rows_have_a_common_preimage() {
        let purposes = purposes();
        for (name, grammar, text) in &purposes {
            assert!(grammar.admits(text), "{name} does not follow its row");
        }
        let rows: Vec<_> =
            purposes.iter().map(|(name, row, _)| (*name, *row)).chain(OTHER_ROWS.iter().copied()).collect();
        for (i, (a, row_a)) in rows.iter().enumerate() {
            for (b, row_b) in &rows[i + 1..] {
                assert!(row_a.excludes(*row_b), "{a} and {b} may sign the same text");
            }
        }
    }

    #[test]
    fn what_servers_and_invitations_sign_follows_its_row() {
        use crate::invitation::{Invitation, Wish};
        use crate::v1::http::{handshake, pairing, signed};

        let row = |wanted: &str| OTHER_ROWS.iter().find(|(name, _)| *name == wanted).expect(wanted).1;
        let (one, two) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
        let invitation = Invitation::issue(&one, Wish::default(), 0, &mut rand::rng()).expect("issued");
        let (redeem, issued) = (invitation.redeem_statement(two.public()), invitation.statement());
        let (receipt, request) = (pairing::example(), signed::example());
        let handshake = handshake::example(&one, &two);
        for (name, purpose) in [
            ("v2 invite-redeem", Purpose::InviteRedeem(&redeem)),
            ("v1 handshake, invitation, rotation", Purpose::Invitation(&issued)),
            ("v1 handshake, invitation, rotation", Purpose::V1Handshake(&handshake)),
            ("pair receipt", Purpose::PairReceipt(&receipt)),
            ("signed GET", Purpose::SignedHttp(&request)),
        ] {
            assert!(row(name).admits(&purpose.signed_bytes()), "{name}");
        }
    }

    #[test]
    fn a_tls_proof_is_nothing_else() {
        let good = [&[b' '; 64], TlsClientProof::CONTEXT, &[7; 48]].concat();
        assert!(TlsClientProof::parse(&good).is_some());
        let server = [&[b' '; 64][..], b"TLS 1.3, server CertificateVerify\0", &[7; 48]].concat();
        for bad in [&good[1..], &good[..good.len() - 1], &server, b"", b"{}"] {
            assert!(TlsClientProof::parse(bad).is_none());
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
