//! What two servers share after a handshake, and the words by which their owners compare it (`threadline-wire.md` §3.4).

use hkdf::Hkdf;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::hex_of;
use crate::Fingerprint;
use crate::identity::{Identity, PublicIdentity, Purpose};

/// Words that are compared.
pub const WORDS: usize = 6;

/// The shared secret of a handshake.
pub struct PairSecret {
    shared: Zeroizing<[u8; 32]>,
    salt: [u8; 64],
}

impl std::fmt::Debug for PairSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PairSecret([redacted])")
    }
}

impl PairSecret {
    pub(super) fn new(shared: Zeroizing<[u8; 32]>, one: &PublicIdentity, other: &PublicIdentity) -> Self {
        let (low, high) = if one.as_bytes() <= other.as_bytes() { (one, other) } else { (other, one) };
        let mut salt = [0; 64];
        for (to, from) in salt.iter_mut().zip(low.as_bytes().iter().chain(high.as_bytes())) {
            *to = *from;
        }
        Self { shared, salt }
    }

    /// Bearer token of signed requests.
    pub fn token(&self) -> [u8; 32] {
        *self.derive("threadline-relay-token-v1")
    }

    /// Id of the pairing, 32 hex digits.
    pub fn pairing_id(&self) -> String {
        hex::encode(*self.derive::<16>("threadline-pairing-id-v1"))
    }

    /// Six words that both owners see when nobody stands between their agents. They are shown to a person and never
    /// sent or logged.
    pub fn words(&self) -> [&'static str; WORDS] {
        let bits = self.bits();
        let list = bip39::Language::English.word_list();
        std::array::from_fn(|n| {
            let index = (n * 11..n * 11 + 11).fold(0, |index, bit| {
                let byte = bits.get(bit / 8).copied().unwrap_or(0);
                index << 1 | usize::from(byte >> (7 - bit % 8) & 1)
            });
            list.get(index).copied().unwrap_or_default()
        })
    }

    /// First 8 bytes of a digest of the words' bits, 16 hex digits: tells two pairings apart without telling the words.
    pub fn sas_fingerprint(&self) -> String {
        let digest = Sha256::new().chain_update("threadline-sas-fp-v1").chain_update(self.bits()).finalize();
        hex::encode(digest).chars().take(16).collect()
    }

    fn bits(&self) -> [u8; 12] {
        *self.derive("threadline-sas-v1")
    }

    fn derive<const N: usize>(&self, info: &str) -> Zeroizing<[u8; N]> {
        let mut out = Zeroizing::new([0; N]);
        Hkdf::<Sha256>::new(Some(&self.salt), &*self.shared)
            .expand(info.as_bytes(), &mut *out)
            .expect("at most 32 bytes are a valid HKDF length");
        out
    }
}

/// A signed note that a pairing is alive. It verifies no pairing: that does the owner at this side who compares the words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Which pairing.
    pub pairing_id: String,
    /// Who signs.
    pub own: Fingerprint,
    /// Who is paired.
    pub peer: Fingerprint,
    /// Of the words.
    pub sas_fingerprint: String,
    signature: [u8; 64],
}

/// The bytes that a receipt's signature covers. Only this module makes one.
#[derive(Debug)]
pub struct ReceiptStatement(String);

impl ReceiptStatement {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Receipt {
    /// Signs one.
    pub fn new(identity: &Identity, peer: Fingerprint, pairing_id: &str, sas_fingerprint: &str) -> Self {
        let mut receipt = Self {
            pairing_id: pairing_id.to_owned(),
            own: identity.fingerprint(),
            peer,
            sas_fingerprint: sas_fingerprint.to_owned(),
            signature: [0; 64],
        };
        receipt.signature = identity.sign(&Purpose::PairReceipt(&receipt.statement()));
        receipt
    }

    /// Reads one; `None` if a member is missing or malformed.
    pub fn from_json(value: &Value) -> Option<Self> {
        let word = |name: &str| value.get(name)?.as_str();
        if word("type")? != "pair-verify" {
            return None;
        }
        let (pairing_id, sas_fingerprint) = (word("pairingId")?, word("sasFingerprint")?);
        hex_of::<16>(pairing_id)?;
        hex_of::<8>(sas_fingerprint)?;
        Some(Self {
            pairing_id: pairing_id.to_owned(),
            own: word("ownFp")?.parse().ok()?,
            peer: word("peerFp")?.parse().ok()?,
            sas_fingerprint: sas_fingerprint.to_owned(),
            signature: hex_of(word("signature")?)?,
        })
    }

    /// The form that travels.
    pub fn to_json(&self) -> Value {
        json!({
            "type": "pair-verify",
            "pairingId": self.pairing_id,
            "ownFp": self.own,
            "peerFp": self.peer,
            "sasFingerprint": self.sas_fingerprint,
            "signature": hex::encode(self.signature),
        })
    }

    /// Whether `signer` made it.
    pub fn verifies(&self, signer: &PublicIdentity) -> bool {
        signer.fingerprint() == self.own && signer.verifies(self.statement().as_bytes(), &self.signature)
    }

    fn statement(&self) -> ReceiptStatement {
        ReceiptStatement(format!(
            "threadline-pair-verify-v1{}{}{}{}",
            self.pairing_id, self.own, self.peer, self.sas_fingerprint
        ))
    }
}

#[cfg(test)]
pub(crate) fn example() -> ReceiptStatement {
    let one = Identity::from_seed(&[1; 32]);
    Receipt::new(&one, one.fingerprint(), &"0".repeat(32), &"0".repeat(16)).statement()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hex32, text, vectors};
    use proptest::prelude::*;

    fn of(name: &str) -> Identity {
        Identity::from_seed(&hex32(&vectors()["identities"][name]["ed25519Seed"]))
    }

    fn secret() -> PairSecret {
        let shared = Zeroizing::new(hex32(&vectors()["handshakeHttp"]["sharedSecret"]));
        PairSecret::new(shared, of("bob").public(), of("alice").public())
    }

    #[test]
    fn the_recorded_pairing() {
        let (secret, vector) = (secret(), &vectors()["pairing"]);
        assert_eq!(hex::encode(secret.salt), text(&vectors()["handshakeHttp"]["salt"]));
        assert_eq!(hex::encode(secret.token()), text(&vectors()["handshakeHttp"]["relayToken"]));
        assert_eq!(hex::encode(secret.bits()), text(&vector["sasBits"]));
        assert_eq!(Value::from(secret.words().to_vec()), vector["words"]);
        assert_eq!(secret.sas_fingerprint(), text(&vector["sasFingerprint"]));
        assert_eq!(secret.pairing_id(), text(&vector["pairingId"]));
        let list = bip39::Language::English.word_list().join("\n");
        assert_eq!(hex::encode(Sha256::digest(list)), text(&vector["wordlistSha256"]));
    }

    #[test]
    fn the_recorded_receipt() {
        let vector = &vectors()["pairing"];
        let (alice, bob) = (of("alice"), of("bob"));
        let receipt =
            Receipt::new(&alice, bob.fingerprint(), &secret().pairing_id(), &secret().sas_fingerprint());
        assert_eq!(hex::encode(receipt.statement().as_bytes()), text(&vector["receiptSignedBytes"]));
        assert_eq!(receipt.to_json(), vector["receipt"]);
        let read = Receipt::from_json(&vector["receipt"]).expect("receipt");
        assert!(read.verifies(alice.public()) && !read.verifies(bob.public()));
        let moved = Receipt { peer: alice.fingerprint(), ..read };
        assert!(!moved.verifies(alice.public()));
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(format!("{:?}", secret()), "PairSecret([redacted])");
    }

    proptest! {
        #[test]
        fn no_receipt_panics(text in "[ -~]{0,80}", member in 0usize..6) {
            let mut body = vectors()["pairing"]["receipt"].clone();
            body[["type", "pairingId", "ownFp", "peerFp", "sasFingerprint", "signature"][member]] = text.into();
            if let Some(receipt) = Receipt::from_json(&body) {
                prop_assert_eq!(receipt.to_json(), body);
            }
        }
    }
}
