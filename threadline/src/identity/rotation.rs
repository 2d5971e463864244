//! A key that gives way to another one, and one that its owner takes back: what existing installs sign
//! (`threadline-wire.md` §1.4).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Identity, PublicIdentity, Purpose};
use crate::time::{iso_ms, parse_iso};

/// How far the time of a rotation may be ahead of our clock, ms.
const MAX_AHEAD_MS: i64 = 10 * 60 * 1000;
/// Longest reason, bytes.
const MAX_REASON: usize = 256;

/// The old key names the new one, and the new one agrees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RotationProof {
    old_public_key: String,
    new_public_key: String,
    /// ISO 8601.
    pub timestamp: String,
    /// Why; `compromise…` gives the old key no grace.
    pub reason: String,
    old_key_signature: String,
    new_key_signature: String,
}

/// What both keys sign. Only this module makes one.
#[derive(Debug)]
pub struct RotationStatement([u8; 32]);

impl RotationStatement {
    fn new(old: &PublicIdentity, new: &PublicIdentity, timestamp: &str, reason: &str) -> Self {
        let digest = Sha256::new()
            .chain_update("instar-key-rotation-v1")
            .chain_update(old.as_bytes())
            .chain_update(new.as_bytes())
            .chain_update(timestamp)
            .chain_update(reason);
        Self(digest.finalize().into())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl RotationProof {
    /// Signs with both keys.
    pub fn new(old: &Identity, new: &Identity, reason: &str, now_ms: i64) -> Self {
        let timestamp = iso_ms(now_ms);
        let statement = RotationStatement::new(old.public(), new.public(), &timestamp, reason);
        let sign = |identity: &Identity| STANDARD.encode(identity.sign(&Purpose::Rotation(&statement)));
        Self {
            old_public_key: STANDARD.encode(old.public().as_bytes()),
            new_public_key: STANDARD.encode(new.public().as_bytes()),
            old_key_signature: sign(old),
            new_key_signature: sign(new),
            timestamp,
            reason: reason.to_owned(),
        }
    }

    /// Old and new key, if both signed this and its time is not more than 10 minutes ahead.
    pub fn verify(&self, now_ms: i64) -> Option<(PublicIdentity, PublicIdentity)> {
        let decode = |text: &str| STANDARD.decode(text).ok();
        let key = |text: &str| PublicIdentity::from_bytes(&decode(text)?).ok();
        let (old, new) = (key(&self.old_public_key)?, key(&self.new_public_key)?);
        let at = parse_iso(&self.timestamp)?;
        if old == new || at > now_ms.saturating_add(MAX_AHEAD_MS) || self.reason.len() > MAX_REASON {
            return None;
        }
        let statement = RotationStatement::new(&old, &new, &self.timestamp, &self.reason);
        let signed = |key: &PublicIdentity, signature: &str| {
            decode(signature).is_some_and(|signature| key.verifies(statement.as_bytes(), &signature))
        };
        (signed(&old, &self.old_key_signature) && signed(&new, &self.new_key_signature)).then_some((old, new))
    }
}

/// The wish to take a key back, as existing installs keep it in `revocation-state.json`. Its signature leaves time and
/// status out, so no peer acts on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevocationRequest {
    /// Canonical id of the key that is taken back.
    pub target_canonical_id: String,
    new_public_key: String,
    recovery_signature: String,
    /// ISO 8601.
    pub timestamp: String,
    /// `pending`, `cancelled`, …
    pub status: String,
    /// ISO 8601: when it takes effect.
    pub expires_at: String,
}

/// What the recovery key signs. Only this module makes one.
#[derive(Debug)]
pub struct RevocationStatement([u8; 32]);

impl RevocationStatement {
    fn new(canonical_id: &str, new: &PublicIdentity) -> Self {
        let digest = Sha256::new()
            .chain_update("instar-emergency-revoke-v1")
            .chain_update(canonical_id)
            .chain_update(new.as_bytes());
        Self(digest.finalize().into())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl RevocationRequest {
    /// Signs with the recovery key; it takes effect after a day.
    pub fn new(recovery: &Identity, target: &PublicIdentity, new: &PublicIdentity, now_ms: i64) -> Self {
        let canonical_id = target.canonical_id();
        let statement = RevocationStatement::new(&canonical_id, new);
        Self {
            recovery_signature: STANDARD.encode(recovery.sign(&Purpose::V1Revocation(&statement))),
            target_canonical_id: canonical_id,
            new_public_key: STANDARD.encode(new.as_bytes()),
            timestamp: iso_ms(now_ms),
            status: "pending".into(),
            expires_at: iso_ms(now_ms.saturating_add(24 * 3_600_000)),
        }
    }

    /// The new key, if the recovery key signed this.
    pub fn verify(&self, recovery: &PublicIdentity) -> Option<PublicIdentity> {
        let new = PublicIdentity::from_bytes(&STANDARD.decode(&self.new_public_key).ok()?).ok()?;
        let statement = RevocationStatement::new(&self.target_canonical_id, &new);
        let signature = STANDARD.decode(&self.recovery_signature).ok()?;
        recovery.verifies(statement.as_bytes(), &signature).then_some(new)
    }

    /// The identity key's signature that cancels it.
    pub fn cancel(&self, identity: &Identity) -> [u8; 64] {
        identity.sign(&Purpose::RevokeCancel(self))
    }

    /// Whether `signature` of `identity` cancels it.
    pub fn is_cancelled_by(&self, identity: &PublicIdentity, signature: &[u8]) -> bool {
        identity.verifies(&self.cancel_bytes(), signature)
    }

    pub(super) fn cancel_bytes(&self) -> Vec<u8> {
        ["instar-revoke-cancel-v1", &self.timestamp].concat().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hex32, text, vectors};
    use proptest::prelude::*;

    const T0: i64 = 1_768_478_400_000;

    fn of(name: &str) -> Identity {
        Identity::from_seed(&hex32(&vectors()["identities"][name]["ed25519Seed"]))
    }

    #[test]
    fn the_recorded_rotation() {
        let vector = &vectors()["rotation"];
        let (alice, carol) = (of("alice"), of("carol"));
        let made = RotationProof::new(&alice, &carol, "scheduled rotation", T0);
        assert_eq!(serde_json::to_value(&made).expect("JSON"), vector["proof"]);
        let statement = RotationStatement::new(alice.public(), carol.public(), &made.timestamp, &made.reason);
        assert_eq!(hex::encode(statement.as_bytes()), text(&vector["signedDigest"]));
        let read: RotationProof = serde_json::from_value(vector["proof"].clone()).expect("proof");
        assert_eq!(read.verify(T0), Some((*alice.public(), *carol.public())));
        assert_eq!(read.verify(T0 - MAX_AHEAD_MS - 1), None);
        let changed = RotationProof { reason: "compromise".into(), ..read.clone() };
        assert_eq!(changed.verify(T0), None);
        let one_sided = RotationProof { new_key_signature: read.old_key_signature.clone(), ..read };
        assert_eq!(one_sided.verify(T0), None);
    }

    #[test]
    fn the_recorded_revocation() {
        let vector = &vectors()["revocation"];
        let request: RevocationRequest = serde_json::from_value(vector["request"].clone()).expect("request");
        let (alice, carol) = (of("alice"), of("carol"));
        let statement = RevocationStatement::new(&request.target_canonical_id, carol.public());
        assert_eq!(hex::encode(statement.as_bytes()), text(&vector["signedDigest"]));
        assert_eq!(hex::encode(request.cancel_bytes()), text(&vector["cancelMessage"]));
        let made = RevocationRequest::new(&of("bob"), alice.public(), carol.public(), T0);
        assert_eq!((&made.timestamp, &made.expires_at), (&request.timestamp, &request.expires_at));
        assert_eq!(made.verify(of("bob").public()), Some(*carol.public()));
        assert_eq!(made.verify(alice.public()), None, "the recovery key alone takes a key back");
        let cancel = made.cancel(&alice);
        assert!(
            made.is_cancelled_by(alice.public(), &cancel) && !made.is_cancelled_by(carol.public(), &cancel)
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[ -~]{0,90}", member in 0usize..6) {
            let mut body = vectors()["rotation"]["proof"].clone();
            let members =
                ["oldPublicKey", "newPublicKey", "timestamp", "reason", "oldKeySignature", "newKeySignature"];
            let same = body[members[member]] == text.as_str();
            body[members[member]] = text.into();
            let proof: RotationProof = serde_json::from_value(body).expect("texts");
            prop_assert!(same || proof.verify(T0).is_none());
        }
    }
}
