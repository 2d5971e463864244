//! Signed objects: device certificates and lists, prekeys, address records, revocations, leases. They are kept and
//! passed on as the bytes that were signed; nobody encodes them again to check them (`threadline-wire.md` §4.2).

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::strict::{DecodeError, decode_array, encode_array};
use super::{Bin, Blob, DeviceId, Key, sha256};
use crate::identity::{Identity, PublicIdentity, Purpose};

/// Longest life of a device certificate, ms.
pub const MAX_CERT_LIFE_MS: u64 = 400 * DAY_MS;
/// Life of a certificate that we issue, ms.
pub const CERT_LIFE_MS: u64 = 90 * DAY_MS;
/// A device list older than this starts no new session, ms.
pub const LIST_STALE_MS: u64 = 30 * DAY_MS;
/// Our list is issued again after this, ms.
pub const LIST_RENEW_MS: u64 = 7 * DAY_MS;
/// Numbers and times may be this far ahead of our clock, ms.
pub const MAX_FUTURE_MS: u64 = DAY_MS;
/// Longest life of an address record, ms.
pub const MAX_ADDRESS_LIFE_MS: u64 = 2 * 3_600_000;
const DAY_MS: u64 = 24 * 3_600_000;

/// Why a signed object is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Its bytes.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A key that nobody can own.
    #[error("a key in it is weak or no point of the curve")]
    Key,
    /// Not signed by whom it names.
    #[error("the signature does not fit")]
    Signature,
    /// Numbers, counts or lengths outside the rules of that object.
    #[error("a member breaks the rules of this object")]
    Rule,
    /// A number or time more than 24 h ahead.
    #[error("it comes from too far in the future")]
    Future,
    /// Past its life.
    #[error("it has expired")]
    Expired,
    /// Parts of one chain name different keys or devices.
    #[error("certificate, list and keys do not belong together")]
    BadDevice,
}

/// A kind of signed object.
pub trait Object: Serialize + DeserializeOwned {
    /// Text before the signed bytes.
    const DOMAIN: &'static str;
    /// Members of the array.
    const MEMBERS: usize;

    /// Who must have signed.
    fn signer(&self) -> &Key;

    /// Whether the members follow the rules that need no clock.
    fn is_well_formed(&self) -> bool;
}

pub(crate) fn signed_text(domain: &str, bytes: &[u8]) -> Vec<u8> {
    [domain.as_bytes(), &[0], bytes].concat()
}

/// An object with the bytes that were signed and the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<T> {
    object: T,
    bytes: Vec<u8>,
    signature: Bin<64>,
}

impl<T: Object> Signed<T> {
    /// Reads an object, then checks its rules and its signature.
    pub fn parse(bytes: &[u8], signature: &[u8]) -> Result<Self, ObjectError> {
        let object: T = decode_array(bytes, T::MEMBERS)?;
        if !object.is_well_formed() {
            return Err(ObjectError::Rule);
        }
        let signer = PublicIdentity::from_bytes(&object.signer().0).map_err(|_| ObjectError::Key)?;
        let signature = Bin(signature.try_into().map_err(|_| ObjectError::Signature)?);
        if !signer.verifies(&signed_text(T::DOMAIN, bytes), &signature.0) {
            return Err(ObjectError::Signature);
        }
        Ok(Self { object, bytes: bytes.to_vec(), signature })
    }

    /// What it says.
    pub fn object(&self) -> &T {
        &self.object
    }

    /// The bytes that were signed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The signature.
    pub fn signature(&self) -> &Bin<64> {
        &self.signature
    }
}

/// Bytes and signature; reading checks both again.
impl<T> Serialize for Signed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (Blob(self.bytes.clone()), self.signature).serialize(serializer)
    }
}

impl<'de, T: Object> Deserialize<'de> for Signed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (bytes, signature) = <(Blob, Bin<64>)>::deserialize(deserializer)?;
        Self::parse(&bytes.0, &signature.0).map_err(serde::de::Error::custom)
    }
}

macro_rules! signed_by_identity {
    ($($object:ty => $purpose:ident),*) => {$(
        impl Signed<$object> {
            /// Signs what the identity says about itself.
            pub fn issue(identity: &Identity, object: $object) -> Self {
                let signature = Bin(identity.sign(&Purpose::$purpose(&object)));
                Self { bytes: encode_array(&object), object, signature }
            }
        }
    )*};
}

signed_by_identity!(
    DeviceCert => Device,
    DeviceList => Devices,
    Prekey => Prekey,
    AddressRecord => Address
);

/// One machine of an identity and its Olm key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCert {
    /// 1.
    pub version: u8,
    /// The identity.
    pub key: Key,
    /// The device.
    pub device: DeviceId,
    /// Its Curve25519 key.
    pub curve: Bin<32>,
    /// For people, ≤ 32 bytes.
    pub name: String,
    /// Unix ms.
    pub not_before: u64,
    /// Unix ms.
    pub not_after: u64,
    /// Rises with every certificate of the device.
    pub seq: u64,
    /// Capability tags.
    pub caps: Vec<String>,
}

impl Object for DeviceCert {
    const DOMAIN: &'static str = "threadline/2 device";
    const MEMBERS: usize = 9;

    fn signer(&self) -> &Key {
        &self.key
    }

    fn is_well_formed(&self) -> bool {
        let life = self.not_after.checked_sub(self.not_before);
        self.version == 1
            && self.name.len() <= 32
            && self.caps.len() <= 32
            && self.caps.iter().all(|tag| tag.len() <= 80)
            && life.is_some_and(|life| life <= MAX_CERT_LIFE_MS)
    }
}

impl DeviceCert {
    /// Whether it counts now.
    pub fn check_time(&self, now_ms: u64) -> Result<(), ObjectError> {
        let ahead = now_ms.saturating_add(MAX_FUTURE_MS);
        if self.seq > ahead || self.not_before > ahead {
            return Err(ObjectError::Future);
        }
        if self.not_after <= now_ms { Err(ObjectError::Expired) } else { Ok(()) }
    }
}

/// Which devices an identity has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceList {
    /// 1.
    pub version: u8,
    /// The identity.
    pub key: Key,
    /// The highest wins for ever.
    pub seq: u64,
    /// Unix ms.
    pub issued_at: u64,
    /// 1 to 8.
    pub devices: Vec<DeviceId>,
    /// 0 to 32, never used again.
    pub removed: Vec<DeviceId>,
}

impl Object for DeviceList {
    const DOMAIN: &'static str = "threadline/2 devices";
    const MEMBERS: usize = 6;

    fn signer(&self) -> &Key {
        &self.key
    }

    fn is_well_formed(&self) -> bool {
        let all: std::collections::BTreeSet<_> = self.devices.iter().chain(&self.removed).collect();
        self.version == 1
            && (1..=8).contains(&self.devices.len())
            && self.removed.len() <= 32
            && all.len() == self.devices.len() + self.removed.len()
    }
}

impl DeviceList {
    /// Whether its numbers can be true now.
    pub fn check_time(&self, now_ms: u64) -> Result<(), ObjectError> {
        let ahead = now_ms.saturating_add(MAX_FUTURE_MS);
        if self.seq > ahead || self.issued_at > ahead { Err(ObjectError::Future) } else { Ok(()) }
    }

    /// Whether it is too old to start a session from.
    pub fn is_stale(&self, now_ms: u64) -> bool {
        self.issued_at.saturating_add(LIST_STALE_MS) <= now_ms
    }
}

/// What a prekey is for.
pub const ONE_TIME: u8 = 0;
/// A key that may be given out repeatedly when the others are used up.
pub const FALLBACK: u8 = 1;

/// A key to start a session with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prekey {
    /// 1.
    pub version: u8,
    /// The identity.
    pub key: Key,
    /// Its device.
    pub device: DeviceId,
    /// [`ONE_TIME`] or [`FALLBACK`].
    pub kind: u8,
    /// Rises for ever.
    pub key_id: u64,
    /// Curve25519 key.
    pub curve: Bin<32>,
    /// Unix ms.
    pub not_after: u64,
}

impl Object for Prekey {
    const DOMAIN: &'static str = "threadline/2 prekey";
    const MEMBERS: usize = 7;

    fn signer(&self) -> &Key {
        &self.key
    }

    fn is_well_formed(&self) -> bool {
        self.version == 1 && self.kind <= FALLBACK
    }
}

/// Where an identity can be reached directly and by which relays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    /// 1.
    pub version: u8,
    /// The identity.
    pub key: Key,
    /// The highest wins.
    pub seq: u64,
    /// Unix ms.
    pub issued_at: u64,
    /// Unix ms.
    pub expires: u64,
    /// Multiaddresses, ≤ 16.
    pub addresses: Vec<String>,
    /// Relay URLs, ≤ 4.
    pub relays: Vec<String>,
    /// Devices behind them.
    pub devices: Vec<DeviceId>,
}

impl Object for AddressRecord {
    const DOMAIN: &'static str = "threadline/2 addr";
    const MEMBERS: usize = 8;

    fn signer(&self) -> &Key {
        &self.key
    }

    fn is_well_formed(&self) -> bool {
        let life = self.expires.checked_sub(self.issued_at);
        self.version == 1
            && self.addresses.len() <= 16
            && self.relays.len() <= 4
            && self.devices.len() <= 8
            && self.addresses.iter().chain(&self.relays).all(|text| text.len() <= 512)
            && life.is_some_and(|life| life <= MAX_ADDRESS_LIFE_MS)
    }
}

impl AddressRecord {
    /// Whether it counts now.
    pub fn check_time(&self, now_ms: u64) -> Result<(), ObjectError> {
        let ahead = now_ms.saturating_add(MAX_FUTURE_MS);
        if self.seq > ahead || self.issued_at > ahead {
            return Err(ObjectError::Future);
        }
        if self.expires <= now_ms { Err(ObjectError::Expired) } else { Ok(()) }
    }

    /// Where the record of `key` lies in the distributed table.
    pub fn table_key(key: &Key) -> [u8; 32] {
        sha256(&[b"threadline/2 dht\0", &key.0])
    }
}

/// The old key is void, said by the recovery key and the new key (`threadline-wire.md` §1.4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// 1.
    pub version: u8,
    /// The key that is void.
    pub old: Key,
    /// Its successor.
    pub new: Key,
    /// The recovery key.
    pub recovery: Key,
    /// Unix ms.
    pub issued_at: u64,
}

impl Revocation {
    const DOMAIN: &'static str = "threadline/2 revoke";

    pub(crate) fn signed_bytes(&self) -> Vec<u8> {
        signed_text(Self::DOMAIN, &encode_array(self))
    }

    /// As it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode_array(self)
    }

    /// Reads a revocation and checks both signatures.
    pub fn parse(bytes: &[u8], by_recovery: &[u8], by_new: &[u8]) -> Result<Self, ObjectError> {
        let object: Self = decode_array(bytes, 5)?;
        if object.version != 1 || object.old == object.new {
            return Err(ObjectError::Rule);
        }
        let key = |key: &Key| PublicIdentity::from_bytes(&key.0).map_err(|_| ObjectError::Key);
        let text = signed_text(Self::DOMAIN, bytes);
        let valid =
            key(&object.recovery)?.verifies(&text, by_recovery) && key(&object.new)?.verifies(&text, by_new);
        if valid { Ok(object) } else { Err(ObjectError::Signature) }
    }
}

/// Which machine of an identity holds its link, signed by that machine's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// 1.
    pub version: u8,
    /// The identity.
    pub key: Key,
    /// The machine.
    pub machine: Key,
    /// Only grows.
    pub epoch: u64,
    /// Unix ms.
    pub issued_at: u64,
    /// ms.
    pub ttl_ms: u32,
    /// Whether the holder has a relay.
    pub relay_state: u8,
}

impl Object for Lease {
    const DOMAIN: &'static str = "threadline/2 lease";
    const MEMBERS: usize = 7;

    fn signer(&self) -> &Key {
        &self.machine
    }

    fn is_well_formed(&self) -> bool {
        self.version == 1
    }
}

/// A device that was checked as a whole: certificate, list and identity agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedDevice {
    /// The certificate.
    pub cert: Signed<DeviceCert>,
    /// The list that names it.
    pub list: Signed<DeviceList>,
}

impl VerifiedDevice {
    /// Accepts a certificate and a list that belong to `key` and to each other, now.
    pub fn new(
        key: &Key,
        cert: Signed<DeviceCert>,
        list: Signed<DeviceList>,
        now_ms: u64,
    ) -> Result<Self, ObjectError> {
        cert.object.check_time(now_ms)?;
        list.object.check_time(now_ms)?;
        let agree = cert.object.key == *key
            && list.object.key == *key
            && list.object.devices.contains(&cert.object.device);
        if agree { Ok(Self { cert, list }) } else { Err(ObjectError::BadDevice) }
    }

    /// Accepts a prekey of this device that is alive now.
    pub fn check_prekey(&self, prekey: &Signed<Prekey>, now_ms: u64) -> Result<(), ObjectError> {
        let (cert, prekey) = (&self.cert.object, &prekey.object);
        if prekey.key != cert.key || prekey.device != cert.device {
            return Err(ObjectError::BadDevice);
        }
        if prekey.not_after <= now_ms { Err(ObjectError::Expired) } else { Ok(()) }
    }
}

/// What a newer device list does to the one that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListChange {
    /// Take it.
    Newer,
    /// The same one.
    Same,
    /// An older one: ignore it.
    Older,
    /// The same number with other bytes: keep the first, tell the owner.
    Forked,
}

/// Compares a list with the one that is stored.
pub fn compare_lists(known: Option<&Signed<DeviceList>>, new: &Signed<DeviceList>) -> ListChange {
    let Some(known) = known else { return ListChange::Newer };
    match new.object.seq.cmp(&known.object.seq) {
        std::cmp::Ordering::Greater => ListChange::Newer,
        std::cmp::Ordering::Less => ListChange::Older,
        std::cmp::Ordering::Equal if new.bytes == known.bytes => ListChange::Same,
        std::cmp::Ordering::Equal => ListChange::Forked,
    }
}

/// Next number of a list or certificate: a restored install cannot go backwards.
pub fn next_seq(stored: u64, now_ms: u64) -> u64 {
    stored.saturating_add(1).max(now_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, identity, text, vectors_v2};
    use proptest::prelude::*;
    use serde_json::Value;

    const NOW: u64 = 1_768_478_400_000;

    fn recorded<T: Object + Clone>(member: &Value) -> Signed<T> {
        assert_eq!(text(&member["domain"]), T::DOMAIN);
        Signed::parse(&bytes(&member["bytes"]), &bytes(&member["sig"])).expect("recorded")
    }

    fn is_reproduced<T: Object>(member: &Value, issued: &Signed<T>) {
        assert_eq!(hex::encode(issued.bytes()), text(&member["bytes"]));
        assert_eq!(issued.signature().to_string(), text(&member["sig"]));
    }

    #[test]
    fn the_recorded_objects_are_reproduced() {
        let v = vectors_v2();
        let alice = identity("alice");
        let cert: Signed<DeviceCert> = recorded(&v["deviceCert"]);
        is_reproduced(&v["deviceCert"], &Signed::<DeviceCert>::issue(&alice, cert.object().clone()));
        assert_eq!(cert.object().device.to_string(), text(&v["deviceCert"]["deviceId"]));
        let list: Signed<DeviceList> = recorded(&v["deviceList"]);
        is_reproduced(&v["deviceList"], &Signed::<DeviceList>::issue(&alice, list.object().clone()));
        assert_eq!(list.object().removed[0].to_string(), text(&v["deviceList"]["removed"]));
        let prekey: Signed<Prekey> = recorded(&v["prekey"]);
        is_reproduced(&v["prekey"], &Signed::<Prekey>::issue(&alice, prekey.object().clone()));
        let addr: Signed<AddressRecord> = recorded(&v["addressRecord"]);
        is_reproduced(&v["addressRecord"], &Signed::<AddressRecord>::issue(&alice, addr.object().clone()));
        assert_eq!(
            hex::encode(AddressRecord::table_key(&addr.object().key)),
            text(&v["addressRecord"]["dhtKey"])
        );
        let device = VerifiedDevice::new(&alice.public().into(), cert, list, NOW).expect("one chain");
        assert_eq!(device.check_prekey(&prekey, NOW), Ok(()));
    }

    #[test]
    fn revocation_and_lease() {
        let member = &vectors_v2()["revocation2"];
        let raw = bytes(&member["bytes"]);
        let (by_recovery, by_new) = (bytes(&member["recoverySig"]), bytes(&member["newKeySig"]));
        let revocation = Revocation::parse(&raw, &by_recovery, &by_new).expect("recorded");
        assert_eq!(revocation.to_bytes(), raw);
        assert_eq!(revocation.recovery.to_string(), text(&member["recoveryPublic"]));
        let carol = identity("carol");
        assert_eq!(carol.sign(&Purpose::Revocation(&revocation)).to_vec(), by_new);
        assert_eq!(Revocation::parse(&raw, &by_new, &by_recovery), Err(ObjectError::Signature));

        let member = &vectors_v2()["lease"];
        let lease: Signed<Lease> = recorded(member);
        let machine = Identity::from_seed(&bytes(&member["machineSeed"]).try_into().expect("32 bytes"));
        assert_eq!(lease.object().machine, machine.public().into());
        assert_eq!(machine.sign(&Purpose::Lease(lease.object())), lease.signature().0);
    }

    #[test]
    fn a_changed_bit_is_refused() {
        let member = &vectors_v2()["deviceCert"];
        let (raw, signature) = (bytes(&member["bytes"]), bytes(&member["sig"]));
        for position in 0..raw.len() {
            let mut bad = raw.clone();
            bad[position] ^= 1;
            assert!(Signed::<DeviceCert>::parse(&bad, &signature).is_err(), "byte {position}");
        }
        assert!(Signed::<DeviceCert>::parse(&raw, &signature[..63]).is_err());
    }

    fn list(seq: u64, devices: Vec<DeviceId>, removed: Vec<DeviceId>) -> DeviceList {
        let key = identity("alice").public().into();
        DeviceList { version: 1, key, seq, issued_at: NOW, devices, removed }
    }

    #[test]
    fn lists_follow_their_rules() {
        let id = |n: u8| Bin([n; 16]);
        let cases = [
            (list(1, vec![id(1)], vec![]), true),
            (list(1, vec![], vec![]), false),
            (list(1, vec![id(1), id(1)], vec![]), false),
            (list(1, vec![id(1)], vec![id(1)]), false),
            (list(1, (0..9).map(id).collect(), vec![]), false),
            (list(1, vec![id(1)], (2..35).map(id).collect()), false),
        ];
        for (list, good) in cases {
            assert_eq!(list.is_well_formed(), good, "{list:?}");
        }
        let far = list(u64::MAX, vec![id(1)], vec![]);
        assert_eq!(far.check_time(NOW), Err(ObjectError::Future), "nobody locks an identity for ever");
        let alice = identity("alice");
        let issue = |seq, n| Signed::<DeviceList>::issue(&alice, list(seq, vec![id(n)], vec![]));
        let known = issue(5, 1);
        for (new, change) in [
            (issue(6, 1), ListChange::Newer),
            (issue(5, 1), ListChange::Same),
            (issue(5, 2), ListChange::Forked),
            (issue(4, 1), ListChange::Older),
        ] {
            assert_eq!(compare_lists(Some(&known), &new), change);
        }
        assert_eq!((next_seq(7, 5), next_seq(5, 7)), (8, 7));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            let signature = [0; 64];
            prop_assert!(Signed::<DeviceCert>::parse(&raw, &signature).is_err());
            prop_assert!(Signed::<DeviceList>::parse(&raw, &signature).is_err());
            prop_assert!(Signed::<Prekey>::parse(&raw, &signature).is_err());
            prop_assert!(Signed::<AddressRecord>::parse(&raw, &signature).is_err());
            prop_assert!(Signed::<Lease>::parse(&raw, &signature).is_err());
            prop_assert!(Revocation::parse(&raw, &signature, &signature).is_err());
        }
    }
}
