//! Sealed mail inside the messages of a v1 relay, and how two nodes that share nothing else learn of each other's devices
//! (`threadline-wire.md` §4.9).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::frames::{Keys, SignedBytes};
use super::objects::{DeviceCert, ONE_TIME, Signed};
use super::opened::message_id;
use super::{Bin, Blob, Key, envelope};
use crate::Fingerprint;
use crate::identity::PublicIdentity;
use crate::path::MAX_IN_V1;
use crate::time::iso_ms;
use crate::v1::envelope::Envelope;

/// Member of a v1 payload, and of the metadata of a sealed one, that holds an [`Introduction`].
pub const INTRODUCTION: &str = "tl2";
/// Beginning of the thread id of a message that carries sealed mail; the thread tag follows in hex.
const THREAD: &str = "tl2-";
/// Value of the member `v` of such a message.
const VERSION: &str = "2";
/// Longest text of one part of an introduction: certificates and lists have less than 1 KiB.
const MAX_PART: usize = 2_048;

/// The v1 message that carries a finished envelope, written at `now_ms`; `None` for one that is too large for it.
pub fn wrap(env: &[u8], now_ms: i64) -> Option<Envelope> {
    let header = envelope::Envelope::parse(env).ok().filter(|_| env.len() <= MAX_IN_V1)?.header;
    let address =
        |key: &Key| PublicIdentity::from_bytes(&key.0).ok().map(|key| key.fingerprint().to_string());
    let fields = json!({
        "from": address(&header.from)?,
        "to": address(&header.to)?,
        "threadId": format!("{THREAD}{}", hex::encode(header.tag.0)),
        "messageId": message_id(&header.id),
        "timestamp": iso_ms(now_ms),
        "payload": STANDARD.encode(env),
        "v": VERSION,
    });
    match fields {
        Value::Object(fields) => Some(Envelope::from_fields(fields)),
        _ => None,
    }
}

/// Whether a v1 message says that it carries sealed mail.
pub fn carries(message: &Envelope) -> bool {
    message.text("v") == Some(VERSION)
        && message.text("threadId").is_some_and(|thread| thread.starts_with(THREAD))
}

/// The envelope that a v1 message carries, if what the message says around it is true of it. Nothing else of it is checked.
pub fn unwrap(message: &Envelope) -> Option<Vec<u8>> {
    let payload = message.text("payload").filter(|text| text.len() <= MAX_IN_V1.div_ceil(3) * 4)?;
    let env = STANDARD.decode(payload).ok()?;
    let said = wrap(&env, 0)?;
    let fits = |member| message.text(member) == said.text(member);
    (carries(message) && ["from", "to", "threadId", "messageId"].into_iter().all(fits)).then_some(env)
}

/// What a node says of itself to one peer: its certificate and list, and a one-time key for that peer alone. All of it is
/// signed by the identity key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Identity.
    pub key: Key,
    /// Certificate of the device.
    pub cert: SignedBytes,
    /// One-time key.
    pub prekey: SignedBytes,
    /// Device list.
    pub list: SignedBytes,
}

impl Introduction {
    /// As it travels.
    pub fn to_json(&self) -> Value {
        let text = |bytes: &[u8]| STANDARD.encode(bytes);
        let pair = |(bytes, signature): &SignedBytes| [text(&bytes.0), text(&signature.0)];
        let [cert, cert_signature] = pair(&self.cert);
        json!({
            "k": text(&self.key.0), "c": cert, "cs": cert_signature,
            "o": pair(&self.prekey), "l": pair(&self.list),
        })
    }

    /// Reads what came with a message from `from`. Signatures are not checked here.
    pub fn from_json(value: &Value, from: &Fingerprint) -> Option<(PublicIdentity, Self)> {
        let bytes = |value: Option<&Value>| {
            let text = value?.as_str().filter(|text| text.len() <= MAX_PART)?;
            STANDARD.decode(text).ok()
        };
        let fields: &Map<String, Value> = value.as_object()?;
        let signature = |value: Option<&Value>| Some(Bin(<[u8; 64]>::try_from(bytes(value)?).ok()?));
        let pair = |name: &str| {
            let both = fields.get(name)?.as_array()?;
            Some((Blob(bytes(both.first())?), signature(both.get(1))?))
        };
        let identity = PublicIdentity::from_bytes(&bytes(fields.get("k"))?).ok()?;
        let introduction = Self {
            key: Key::from(&identity),
            cert: (Blob(bytes(fields.get("c"))?), signature(fields.get("cs"))?),
            prekey: pair("o")?,
            list: pair("l")?,
        };
        (identity.fingerprint() == *from).then_some((identity, introduction))
    }

    /// Whether the key signed what stands beside it: only then it is somebody's.
    pub fn is_signed(&self) -> bool {
        let cert = Signed::<DeviceCert>::parse(&self.cert.0.0, &self.cert.1.0);
        cert.is_ok_and(|cert| cert.object().key == self.key)
    }

    /// As a relay of v2 would answer a claim of the peer's keys.
    pub fn keys(&self) -> Keys {
        let ((cert, cs), (prekey, ps)) = (self.cert.clone(), self.prekey.clone());
        Keys {
            rid: 0,
            devs: vec![(cert, cs, prekey, ps, ONE_TIME)],
            list: self.list.0.clone(),
            ls: self.list.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::envelope::{Header, SUITE_OLM, assemble, encode_legs, thread_tag};
    use super::*;
    use crate::identity::Identity;

    fn sealed(bytes: usize) -> Vec<u8> {
        let (from, to) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
        let (f, t) = (Key::from(from.public()), Key::from(to.public()));
        let header = Header {
            suite: SUITE_OLM,
            from: f,
            to: t,
            device: Bin([3; 16]),
            id: Bin([4; 16]),
            created: 1,
            expires: 2,
            tag: thread_tag(&f, &t, &"th".parse().expect("an id")),
            nonce: Some(Bin([5; 24])),
        };
        assemble(&from, &header.to_bytes(), &encode_legs(&[]), &vec![7; bytes])
    }

    #[test]
    fn a_message_carries_an_envelope_and_nothing_that_contradicts_it() {
        let env = sealed(500);
        let message = wrap(&env, 1_000).expect("small enough");
        assert!(carries(&message) && message.header().is_ok() && !message.is_sealed());
        assert_eq!(unwrap(&message), Some(env));
        let others = [
            ("from", "00".repeat(16)),
            ("to", "00".repeat(16)),
            ("threadId", format!("{THREAD}{}", "0".repeat(16))),
            ("threadId", "other".into()),
            ("messageId", "m".into()),
            ("v", "1".into()),
            ("payload", "AAAA".into()),
        ];
        for (member, value) in others {
            let mut fields = message.fields().clone();
            fields.insert(member.into(), value.into());
            assert_eq!(unwrap(&Envelope::from_fields(fields)), None, "{member}");
        }
    }

    #[test]
    fn what_is_too_large_for_a_message_is_not_wrapped() {
        let around = sealed(0).len() + 8;
        let largest = wrap(&sealed(MAX_IN_V1 - around), 0).expect("fits");
        assert!(largest.to_bytes().len() <= crate::v1::MAX_ENVELOPE);
        assert!(unwrap(&largest).is_some());
        assert_eq!(wrap(&sealed(MAX_IN_V1), 0), None);
    }

    proptest! {
        #[test]
        fn strangers_words_never_panic(text in "\\PC{0,60}", number in any::<i64>()) {
            let parts = [json!(text), json!(number), json!([text, text]), json!({"k": text}), Value::Null];
            for part in &parts {
                for name in ["k", "c", "cs", "o", "l"] {
                    let from = Fingerprint::from_bytes([1; 16]);
                    prop_assert_eq!(Introduction::from_json(&json!({ name: part }), &from), None);
                }
                let fields = json!({"v": "2", "threadId": format!("{THREAD}{text}"), "payload": part});
                let message = Envelope::from_fields(fields.as_object().cloned().unwrap_or_default());
                prop_assert_eq!(unwrap(&message), None);
            }
        }
    }
}
