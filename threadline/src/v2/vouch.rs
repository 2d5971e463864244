//! Vouches, staples and complaints as objects (`sybil-resistance.md` §1). What they are worth is decided elsewhere.

use serde::{Deserialize, Serialize};

use super::objects::{Object, Signed, signed_text};
use super::{Bin, Key, sha256};

/// Slots of one key.
pub const SLOTS: u8 = 16;
/// Longest life of a vouch, ms.
pub const MAX_VOUCH_LIFE_MS: u64 = 90 * 24 * 3_600_000;
/// Longest life of a staple, ms.
pub const MAX_STAPLE_LIFE_MS: u64 = 24 * 3_600_000;

/// One key stands for another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vouch {
    /// 1.
    pub version: u8,
    /// Who vouches.
    pub voucher: Key,
    /// For whom; nobody revokes the slot.
    pub subject: Option<Key>,
    /// Below [`SLOTS`].
    pub slot: u8,
    /// 0 person, 1 agent, 2 service.
    pub class: u8,
    /// 0 public, 1 on request, 2 carried.
    pub share: u8,
    /// Unix ms.
    pub issued: u64,
    /// Unix ms.
    pub expires: u64,
    /// The highest of a slot counts.
    pub seq: u64,
}

impl Object for Vouch {
    const DOMAIN: &'static str = "threadline/2 vouch";
    const MEMBERS: usize = 9;

    fn signer(&self) -> &Key {
        &self.voucher
    }

    fn is_well_formed(&self) -> bool {
        let life = self.expires.checked_sub(self.issued);
        self.version == 1
            && self.slot < SLOTS
            && self.class <= 2
            && self.share <= 2
            && self.subject != Some(self.voucher)
            && life.is_some_and(|life| life <= MAX_VOUCH_LIFE_MS)
    }
}

/// "Still good", by the voucher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staple {
    /// 1.
    pub version: u8,
    /// Who vouches.
    pub voucher: Key,
    /// Which vouch.
    pub vouch: Bin<32>,
    /// Unix ms.
    pub issued: u64,
    /// Unix ms.
    pub expires: u64,
}

impl Object for Staple {
    const DOMAIN: &'static str = "threadline/2 staple";
    const MEMBERS: usize = 5;

    fn signer(&self) -> &Key {
        &self.voucher
    }

    fn is_well_formed(&self) -> bool {
        let life = self.expires.checked_sub(self.issued);
        self.version == 1 && life.is_some_and(|life| life <= MAX_STAPLE_LIFE_MS)
    }
}

/// A receiver tells a voucher what its subject did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    /// 1.
    pub version: u8,
    /// Who complains.
    pub receiver: Key,
    /// About which vouch.
    pub vouch: Bin<32>,
    /// 1 spam, 2 abuse, 3 impersonation.
    pub reason: u8,
    /// Unix ms.
    pub at: u64,
}

impl Object for Complaint {
    const DOMAIN: &'static str = "threadline/2 complaint";
    const MEMBERS: usize = 5;

    fn signer(&self) -> &Key {
        &self.receiver
    }

    fn is_well_formed(&self) -> bool {
        self.version == 1 && (1..=3).contains(&self.reason)
    }
}

/// Names a vouch: SHA-256 of what was signed.
pub fn vouch_hash(vouch: &Signed<Vouch>) -> Bin<32> {
    Bin(sha256(&[&signed_text(Vouch::DOMAIN, vouch.bytes())]))
}

/// Whether two vouches prove that their voucher said two things in one place.
pub fn is_equivocation(a: &Signed<Vouch>, b: &Signed<Vouch>) -> bool {
    let place = |vouch: &Signed<Vouch>| {
        let vouch = vouch.object();
        (vouch.voucher, vouch.slot, vouch.seq)
    };
    a.bytes() != b.bytes() && place(a) == place(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Purpose;
    use crate::testing::{bytes, identity, text, vectors_v2};
    use crate::v2::strict::encode_array;
    use serde_json::Value;

    fn recorded<T: Object>(member: &Value) -> Signed<T> {
        let signed = Signed::parse(&bytes(&member["bytes"]), &bytes(&member["sig"])).expect("recorded");
        assert_eq!(encode_array(signed.object()), bytes(&member["bytes"]), "reproduced");
        signed
    }

    #[test]
    fn the_recorded_objects_are_reproduced() {
        let v = vectors_v2();
        let (alice, carol) = (identity("alice"), identity("carol"));
        for name in ["vouch", "vouchRevoked", "vouchCarried"] {
            let vouch: Signed<Vouch> = recorded(&v[name]);
            assert_eq!(alice.sign(&Purpose::Vouch(vouch.object())), vouch.signature().0, "{name}");
            assert_eq!(vouch.object().subject.is_none(), name == "vouchRevoked");
            if let Some(hash) = v[name]["vouchHash"].as_str() {
                assert_eq!(vouch_hash(&vouch).to_string(), hash);
            }
        }
        let staple: Signed<Staple> = recorded(&v["staple"]);
        assert_eq!(alice.sign(&Purpose::Staple(staple.object())), staple.signature().0);
        assert_eq!(staple.object().vouch.to_string(), text(&v["vouch"]["vouchHash"]));
        let complaint: Signed<Complaint> = recorded(&v["complaint"]);
        assert_eq!(carol.sign(&Purpose::Complaint(complaint.object())), complaint.signature().0);
    }

    #[test]
    fn two_things_in_one_place_are_a_proof_and_nothing_else_is() {
        let member = &vectors_v2()["equivocation"];
        let (a, b): (Signed<Vouch>, Signed<Vouch>) = (recorded(&member["a"]), recorded(&member["b"]));
        assert!(is_equivocation(&a, &b) && is_equivocation(&b, &a));
        let known =
            ["vouch", "vouchRevoked", "vouchCarried"].map(|name| recorded::<Vouch>(&vectors_v2()[name]));
        for row in member["notEquivocation"].as_array().expect("rows") {
            let find = |side: &str| known.iter().find(|v| v.bytes() == bytes(&row[side])).expect("recorded");
            assert!(!is_equivocation(find("a"), find("b")), "{row}");
        }
    }

    #[test]
    fn vouches_follow_their_rules() {
        let good: Signed<Vouch> = recorded(&vectors_v2()["vouch"]);
        let good = good.object();
        for bad in [
            Vouch { slot: SLOTS, ..good.clone() },
            Vouch { class: 3, ..good.clone() },
            Vouch { share: 3, ..good.clone() },
            Vouch { subject: Some(good.voucher), ..good.clone() },
            Vouch { expires: good.issued + MAX_VOUCH_LIFE_MS + 1, ..good.clone() },
            Vouch { expires: good.issued - 1, ..good.clone() },
        ] {
            assert!(!bad.is_well_formed(), "{bad:?}");
        }
    }
}
