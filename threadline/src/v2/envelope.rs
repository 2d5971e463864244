//! The sealed envelope: header, one leg per device, padded body, signature (`threadline-wire.md` §4.3).

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::objects::signed_text;
use super::strict::{
    DecodeError, Item, Reader, array_items, bin, bin_of, decode_array, encode_array, encode_map,
};
use super::strict::{from_scanned, map_entries, uint};
use super::{Bin, Blob, DeviceId, Id, Key, MAX_ENVELOPE, MAX_LIFE_MS, ThreadTag, sha256};
use crate::ThreadId;
use crate::identity::{Identity, PublicIdentity, Purpose};

/// Olm legs and a body under XChaCha20-Poly1305.
pub const SUITE_OLM: u8 = 1;
/// Signed, not sealed: two kinds of error and a ping only.
pub const SUITE_BARE: u8 = 0;
/// Most legs of an envelope.
pub const MAX_LEGS: usize = 16;
/// Longest Olm message of a leg, bytes.
pub const MAX_OLM: usize = 1_024;

/// Why an envelope is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Above [`MAX_ENVELOPE`].
    #[error("the envelope is larger than {MAX_ENVELOPE} bytes")]
    TooLarge,
    /// Its bytes.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Members that contradict each other or break a limit.
    #[error("a member of the envelope breaks a rule")]
    Rule,
    /// A suite that is not spoken here.
    #[error("suite {0} is not spoken here")]
    Suite(u8),
    /// Not signed by the sender it names.
    #[error("the signature does not fit the sender")]
    Signature,
    /// The body does not open.
    #[error("the body does not open with the key of the leg")]
    Body,
    /// Bytes after the content that are not zero.
    #[error("the padding is not zero")]
    Padding,
}

/// The part that everyone on the way reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Suite.
    #[serde(rename = "s")]
    pub suite: u8,
    /// Sender.
    #[serde(rename = "f")]
    pub from: Key,
    /// Recipient.
    #[serde(rename = "t")]
    pub to: Key,
    /// Device of the sender.
    #[serde(rename = "d")]
    pub device: DeviceId,
    /// Message id.
    #[serde(rename = "i")]
    pub id: Id,
    /// Created, Unix ms.
    #[serde(rename = "ts")]
    pub created: u64,
    /// Expires, Unix ms.
    #[serde(rename = "x")]
    pub expires: u64,
    /// Thread tag.
    #[serde(rename = "tt")]
    pub tag: ThreadTag,
    /// Nonce of the body, suite 1 only.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Bin<24>>,
}

impl Header {
    /// The bytes that are signed and bound to every leg.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode_map(self)
    }

    /// Reads a header.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        for (_, raw) in map_entries(bytes)? {
            if Reader::new(raw).item()? == Item::Nil {
                return Err(DecodeError::Shape.into());
            }
        }
        let header: Self = from_scanned(bytes)?;
        let life = header.expires.checked_sub(header.created);
        match header.suite {
            SUITE_BARE | SUITE_OLM => {}
            other => return Err(EnvelopeError::Suite(other)),
        }
        let nonce_fits = header.nonce.is_some() == (header.suite == SUITE_OLM);
        if nonce_fits && life.is_some_and(|life| life <= MAX_LIFE_MS) {
            Ok(header)
        } else {
            Err(EnvelopeError::Rule)
        }
    }
}

/// The body key for one device, under its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// Which device.
    pub device: DeviceId,
    /// Whether the Olm message starts a session.
    pub starts_session: bool,
    /// The Olm message.
    pub olm: Blob,
}

impl Leg {
    fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let (device, kind, olm): (DeviceId, u8, Blob) = decode_array(bytes, 3)?;
        if kind > 1 || olm.0.len() > MAX_OLM {
            return Err(EnvelopeError::Rule);
        }
        Ok(Self { device, starts_session: kind == 0, olm })
    }
}

/// The bytes of legs.
pub fn encode_legs(legs: &[Leg]) -> Vec<u8> {
    let rows: Vec<_> = legs.iter().map(|leg| (leg.device, u8::from(!leg.starts_session), &leg.olm)).collect();
    encode_array(&rows)
}

fn parse_legs(bytes: &[u8]) -> Result<Vec<Leg>, EnvelopeError> {
    let rows = array_items(bytes)?;
    if rows.len() > MAX_LEGS {
        return Err(EnvelopeError::Rule);
    }
    let legs: Vec<Leg> = rows.into_iter().map(Leg::parse).collect::<Result<_, _>>()?;
    let devices: std::collections::BTreeSet<_> = legs.iter().map(|leg| leg.device).collect();
    if devices.len() == legs.len() { Ok(legs) } else { Err(EnvelopeError::Rule) }
}

/// What the sender signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvelopeDigest([u8; 96]);

impl EnvelopeDigest {
    pub(crate) fn of(header: &[u8], legs: &[u8], body: &[u8]) -> Self {
        let mut digest = [0; 96];
        for (part, place) in [header, legs, body].into_iter().zip(digest.chunks_exact_mut(32)) {
            place.copy_from_slice(&sha256(&[part]));
        }
        Self(digest)
    }

    pub(crate) fn signed_bytes(&self) -> Vec<u8> {
        signed_text("threadline/2 envelope", &self.0)
    }
}

/// A received envelope, its header read, its signature not yet checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The header, whose word beats every frame.
    pub header: Header,
    /// One per device.
    pub legs: Vec<Leg>,
    header_bytes: &'a [u8],
    legs_bytes: &'a [u8],
    body: &'a [u8],
    signature: Bin<64>,
}

impl<'a> Envelope<'a> {
    /// Reads an envelope. Strict, without any cryptography.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > MAX_ENVELOPE {
            return Err(EnvelopeError::TooLarge);
        }
        let items = array_items(bytes)?;
        let [version, header, legs, body, signature] = items.as_slice() else {
            return Err(DecodeError::Shape.into());
        };
        if uint(version)? != 2 {
            return Err(EnvelopeError::Rule);
        }
        let (header_bytes, legs_bytes, body) = (bin(header)?, bin(legs)?, bin(body)?);
        let signature = bin_of(signature)?;
        let (header, legs) = (Header::parse(header_bytes)?, parse_legs(legs_bytes)?);
        if header.suite == SUITE_BARE && !legs.is_empty() {
            return Err(EnvelopeError::Rule);
        }
        Ok(Self { header, legs, header_bytes, legs_bytes, body, signature })
    }

    /// Checks the sender's signature.
    pub fn verify(&self) -> Result<(), EnvelopeError> {
        let key = PublicIdentity::from_bytes(&self.header.from.0).map_err(|_| EnvelopeError::Signature)?;
        let digest = EnvelopeDigest::of(self.header_bytes, self.legs_bytes, self.body);
        if key.verifies(&digest.signed_bytes(), &self.signature.0) {
            Ok(())
        } else {
            Err(EnvelopeError::Signature)
        }
    }

    /// The leg for a device.
    pub fn leg(&self, device: &DeviceId) -> Option<&Leg> {
        self.legs.iter().find(|leg| leg.device == *device)
    }

    /// What the legs are bound to.
    pub fn header_hash(&self) -> [u8; 32] {
        sha256(&[self.header_bytes])
    }

    /// The content map of a bare envelope.
    pub fn bare_content(&self) -> Option<&[u8]> {
        (self.header.suite == SUITE_BARE).then_some(self.body)
    }

    /// Opens the body with the key of a leg and returns the content map.
    pub fn open_body(&self, key: &ContentKey) -> Result<Vec<u8>, EnvelopeError> {
        let nonce = self.header.nonce.ok_or(EnvelopeError::Rule)?;
        let aad = body_aad(&self.header_hash());
        let padded = XChaCha20Poly1305::new((&*key.0).into())
            .decrypt(&XNonce::from(nonce.0), Payload { msg: self.body, aad: &aad })
            .map_err(|_| EnvelopeError::Body)?;
        unpad(&padded).map(<[u8]>::to_vec)
    }
}

fn body_aad(header_hash: &[u8; 32]) -> Vec<u8> {
    signed_text("threadline/2 body", header_hash)
}

/// The random key of one body.
#[derive(Clone)]
pub struct ContentKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl ContentKey {
    /// From 32 random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// What is encrypted for each device: the key and the hash of the header.
    pub fn leg_plaintext(&self, header_hash: &[u8; 32]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(encode_array(&(1_u8, Bin(*self.0), Bin(*header_hash))))
    }

    /// Reads what a leg held; `None` when it belongs to another header.
    pub fn from_leg(plaintext: &[u8], header_hash: &[u8; 32]) -> Option<Self> {
        let (version, key, hash): (u8, Bin<32>, Bin<32>) = decode_array(plaintext, 3).ok()?;
        (version == 1 && hash.0 == *header_hash).then(|| Self::from_bytes(key.0))
    }
}

/// Encrypts the content for the body.
///
/// # Panics
/// Never: contents are far below the limit of the cipher.
pub fn seal_body(key: &ContentKey, nonce: &Bin<24>, header_hash: &[u8; 32], content: &[u8]) -> Vec<u8> {
    let aad = body_aad(header_hash);
    XChaCha20Poly1305::new((&*key.0).into())
        .encrypt(&XNonce::from(nonce.0), Payload { msg: &pad(content), aad: &aad })
        .expect("far below the cipher's limit")
}

/// Signs the parts and puts them together.
pub fn assemble(identity: &Identity, header: &[u8], legs: &[u8], body: &[u8]) -> Vec<u8> {
    let signature = identity.sign(&Purpose::Envelope(&EnvelopeDigest::of(header, legs, body)));
    let part = |bytes: &[u8]| Blob(bytes.to_vec());
    encode_array(&(2_u8, part(header), part(legs), part(body), Bin(signature)))
}

/// Length after padding of `length` bytes of content.
pub const fn padded_length(length: usize) -> usize {
    const BLOCK: usize = 65_536;
    let total = length + 4;
    if total > BLOCK {
        return total.div_ceil(BLOCK) * BLOCK;
    }
    let power = total.next_power_of_two();
    if power < 256 { 256 } else { power }
}

/// Length, content, zeros.
pub fn pad(content: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut padded = Zeroizing::new(Vec::with_capacity(padded_length(content.len())));
    padded.extend_from_slice(&(content.len() as u32).to_be_bytes());
    padded.extend_from_slice(content);
    padded.resize(padded_length(content.len()), 0);
    padded
}

fn unpad(padded: &[u8]) -> Result<&[u8], EnvelopeError> {
    let (length, rest) = padded.split_first_chunk::<4>().ok_or(EnvelopeError::Padding)?;
    let length = u32::from_be_bytes(*length) as usize;
    let (content, zeros) = rest.split_at_checked(length).ok_or(EnvelopeError::Padding)?;
    if zeros.iter().all(|byte| *byte == 0) && padded.len() == padded_length(length) {
        Ok(content)
    } else {
        Err(EnvelopeError::Padding)
    }
}

/// Tag of a thread between two keys, the same in both directions.
pub fn thread_tag(a: &Key, b: &Key, thread: &ThreadId) -> ThreadTag {
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    let hash = sha256(&[b"threadline/2 tag\0", &low.0, &high.0, thread.as_str().as_bytes()]);
    let mut tag = [0; 8];
    tag.copy_from_slice(&hash[..8]);
    Bin(tag)
}

/// Hash of a content, the same however often it is sealed.
pub fn content_hash(from: &Key, device: &DeviceId, id: &Id, content: &[u8]) -> Bin<32> {
    Bin(sha256(&[b"threadline/2 content\0", &from.0, &device.0, &id.0, content]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, hex32, identity, text, vectors_v2};
    use proptest::prelude::*;

    #[test]
    fn the_recorded_envelope_is_reproduced() {
        let member = &vectors_v2()["envelope"];
        let env = bytes(&member["env"]);
        let envelope = Envelope::parse(&env).expect("recorded");
        assert_eq!(envelope.verify(), Ok(()));
        assert_eq!(hex::encode(envelope.header_hash()), text(&member["hdrSha256"]));
        let header = envelope.header.to_bytes();
        assert_eq!(header, bytes(&member["hdr"]));
        let key = ContentKey::from_bytes(hex32(&member["contentKey"]));
        let plaintext = key.leg_plaintext(&envelope.header_hash());
        assert_eq!(hex::encode(&*plaintext), text(&member["legPlaintext"]));
        let again = ContentKey::from_leg(&plaintext, &envelope.header_hash()).expect("same header");
        assert!(ContentKey::from_leg(&plaintext, &[0; 32]).is_none());
        let content = envelope.open_body(&again).expect("opens");
        assert_eq!(content, bytes(&member["content"]));
        assert_eq!(pad(&content).len() as u64, member["paddedLen"].as_u64().expect("number"));
        assert_eq!(hex::encode(body_aad(&envelope.header_hash())), text(&member["bodyAad"]));
        let nonce = envelope.header.nonce.expect("suite 1");
        let body = seal_body(&key, &nonce, &envelope.header_hash(), &content);
        assert_eq!(hex::encode(&body), text(&member["body"]));
        let legs = encode_legs(&envelope.legs);
        assert_eq!(legs, bytes(&member["legs"]));
        assert_eq!(assemble(&identity("alice"), &header, &legs, &body), env);
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let env = bytes(&vectors_v2()["envelope"]["env"]);
        for position in 0..env.len() {
            let mut bad = env.clone();
            bad[position] ^= 4;
            let accepted = Envelope::parse(&bad).is_ok_and(|envelope| envelope.verify().is_ok());
            assert!(!accepted, "byte {position}");
        }
    }

    #[test]
    fn the_recorded_tag_hash_and_padding() {
        let member = &vectors_v2()["threadTag"];
        let (from, to) = (Bin(hex32(&member["from"])), Bin(hex32(&member["to"])));
        let thread = text(&member["threadId"]).parse().expect("thread id");
        assert_eq!(thread_tag(&from, &to, &thread).to_string(), text(&member["tt"]));
        assert_eq!(thread_tag(&to, &from, &thread).to_string(), text(&member["tt"]));

        let member = &vectors_v2()["contentHash"];
        let device = Bin(bytes(&member["device"]).try_into().expect("16 bytes"));
        let id = Bin(bytes(&member["id"]).try_into().expect("16 bytes"));
        let hash = content_hash(&Bin(hex32(&member["from"])), &device, &id, &bytes(&member["content"]));
        assert_eq!(hash.to_string(), text(&member["hash"]));

        for row in vectors_v2()["padding"].as_array().expect("rows") {
            let length = row["len"].as_u64().expect("number") as usize;
            assert_eq!(padded_length(length) as u64, row["padded"].as_u64().expect("number"));
        }
    }

    #[test]
    fn padding_is_zero_and_of_one_length() {
        let mut padded = pad(b"hello").to_vec();
        assert_eq!(unpad(&padded), Ok(b"hello".as_slice()));
        padded[255] = 1;
        assert_eq!(unpad(&padded), Err(EnvelopeError::Padding));
        assert_eq!(unpad(&vec![0; 512]), Err(EnvelopeError::Padding));
        assert_eq!(unpad(&[0, 0, 1]), Err(EnvelopeError::Padding));
        assert_eq!(unpad(&[0xff; 256]), Err(EnvelopeError::Padding));
    }

    #[test]
    fn headers_break_no_rule() {
        let env = bytes(&vectors_v2()["envelope"]["env"]);
        let good = Envelope::parse(&env).expect("recorded").header;
        let cases = [
            (Header { suite: 0, ..good }, EnvelopeError::Rule),
            (Header { nonce: None, ..good }, EnvelopeError::Rule),
            (Header { suite: 2, ..good }, EnvelopeError::Suite(2)),
            (Header { expires: good.created - 1, ..good }, EnvelopeError::Rule),
            (Header { expires: good.created + MAX_LIFE_MS + 1, ..good }, EnvelopeError::Rule),
        ];
        for (header, error) in cases {
            assert_eq!(Header::parse(&header.to_bytes()), Err(error));
        }
        let leg = Leg { device: Bin([1; 16]), starts_session: true, olm: Blob(vec![0; 10]) };
        assert_eq!(parse_legs(&encode_legs(&[leg.clone(), leg.clone()])), Err(EnvelopeError::Rule));
        let long = Leg { olm: Blob(vec![0; MAX_OLM + 1]), ..leg };
        assert_eq!(parse_legs(&encode_legs(&[long])), Err(EnvelopeError::Rule));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(raw in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Envelope::parse(&raw);
            let _ = Header::parse(&raw);
            let _ = unpad(&raw);
        }

        #[test]
        fn contents_come_back(content in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let padded = pad(&content);
            prop_assert_eq!(unpad(&padded), Ok(content.as_slice()));
        }
    }
}
