//! What an envelope holds: the content map (`threadline-wire.md` §4.4).

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::strict::{DecodeError, Item, Reader, decode_map, encode_map, map_entries};
use super::strict::{array_items, bin_of, from_scanned, uint};
use super::{Bin, Blob, Code, Id, MAX_BODY};
use crate::ThreadId;

/// Thread of receipts.
pub const CONTROL_THREAD: &str = "ctl";
/// Most ids in one receipt.
pub const MAX_RECEIPT_IDS: usize = 64;
/// Most attachments.
pub const MAX_ATTACHMENTS: usize = 16;
/// Largest sum of vouch chains, bytes.
pub const MAX_CHAINS: usize = 16_384;
/// Highest sequence number.
pub const MAX_SEQ: u64 = 1 << 53;

/// Whether the sender wants a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// No.
    None,
    /// If there is something to say.
    Optional,
    /// Yes.
    Required,
}

/// Whether and how far a peer has a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReceiptStatus {
    /// In its inbox.
    Accepted,
    /// In its inbox, for the owner to decide.
    Held,
    /// Not now.
    Queued,
    /// Given to a session.
    Delivered,
    /// Refused.
    Rejected,
    /// Lost there.
    Failed,
    /// Too late.
    Expired,
}

/// A peer's signed word about messages of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// ≤ [`MAX_RECEIPT_IDS`].
    pub ids: Vec<Id>,
    /// Content hash of each; zeros where it was never opened.
    pub hs: Vec<Bin<32>>,
    /// How far.
    pub status: ReceiptStatus,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Not before this, s.
    #[serde(default, rename = "retryAfterSeconds", skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
    /// Unix ms.
    pub at: u64,
}

/// Something failed at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What.
    pub code: Code,
    /// Which message.
    pub about: Id,
    /// When a repetition can help, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_ms: Option<u64>,
    /// For people, ≤ 300 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Probe {
    n: Bin<16>,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Text for people and sessions: `chat`, `query`, `response`, `request_task`, `notification`, `system`.
    Text(String),
    /// `receipt`.
    Receipt(Receipt),
    /// `ping` or `pong`.
    Probe(Bin<16>),
    /// `error`.
    Error(ErrorBody),
    /// Anything else, as MessagePack of one value.
    Other(Vec<u8>),
}

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Receipt(receipt) => receipt.serialize(serializer),
            Self::Probe(nonce) => Probe { n: *nonce }.serialize(serializer),
            Self::Error(error) => error.serialize(serializer),
            Self::Other(_) => serializer.serialize_unit(),
        }
    }
}

/// Types whose body is text or data for a session.
pub const SESSION_TYPES: &[&str] =
    &["chat", "query", "response", "request_task", "notification", "system", "text"];

/// Reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Hash of the ciphertext.
    pub id: Bin<32>,
    /// Bytes.
    pub size: u64,
    /// Its key.
    pub key: Bin<32>,
    /// ≤ 128 bytes.
    pub name: String,
    /// ≤ 64 bytes.
    pub mime: String,
}

/// Certificate, signature, list, signature.
pub type DeviceProof = (Blob, Bin<64>, Blob, Bin<64>);

/// The content of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Type.
    pub kind: String,
    /// Thread.
    pub thread: ThreadId,
    /// Number in (device, thread), from 1.
    pub seq: u64,
    /// Hash of the previous message of this device in the thread.
    pub previous: Option<Bin<32>>,
    /// The message it answers.
    pub reply_to: Option<Id>,
    /// Subject, ≤ 200 characters.
    pub subject: Option<String>,
    /// Priority word.
    pub priority: Option<String>,
    /// Whether a reply is wanted.
    pub need: Option<Need>,
    /// What it says.
    pub body: Body,
    /// Blobs.
    pub attachments: Vec<Attachment>,
    /// Vouch chains, first contact only.
    pub chains: Option<Blob>,
    /// Answer to a puzzle.
    pub work: Option<(Bin<16>, Bin<8>)>,
    /// Number of our newest device list.
    pub list_seq: Option<u64>,
    /// Who the device is, with a leg that starts a session.
    pub device: Option<DeviceProof>,
    /// Recovery key and its commitment, first message only.
    pub recovery: Option<(Bin<32>, Bin<64>)>,
}

/// Why a content is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// Its bytes.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A count, length or number outside its limit.
    #[error("a member of the content breaks a limit")]
    Limit,
}

impl Content {
    /// A plain message.
    pub fn new(kind: &str, thread: ThreadId, body: Body) -> Self {
        Self {
            kind: kind.to_owned(),
            thread,
            seq: 1,
            previous: None,
            reply_to: None,
            subject: None,
            priority: None,
            need: None,
            body,
            attachments: Vec::new(),
            chains: None,
            work: None,
            list_seq: None,
            device: None,
            recovery: None,
        }
    }

    /// The map as it is sealed and hashed.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut map = MapWriter::default();
        map.put("c", &self.kind);
        map.put("th", &self.thread);
        map.put("q", &self.seq);
        map.put_some("p", self.previous.as_ref());
        map.put_some("r", self.reply_to.as_ref());
        map.put_some("sub", self.subject.as_ref());
        map.put_some("pri", self.priority.as_ref());
        map.put_some("need", self.need.as_ref());
        match &self.body {
            Body::Other(raw) => map.put_raw("b", raw),
            body => map.put("b", body),
        }
        if !self.attachments.is_empty() {
            map.put("att", &self.attachments);
        }
        map.put_some("vc", self.chains.as_ref());
        map.put_some("pw", self.work.as_ref());
        map.put_some("dl", self.list_seq.as_ref());
        map.put_some("dc", self.device.as_ref());
        map.put_some("rc", self.recovery.as_ref());
        map.finish()
    }

    /// Reads a content map.
    pub fn parse(bytes: &[u8]) -> Result<Self, ContentError> {
        let entries = map_entries(bytes)?;
        let find = |name: &str| {
            let raw = entries.iter().find(|(key, _)| *key == name).map(|(_, raw)| *raw);
            raw.filter(|raw| Reader::new(raw).item() != Ok(Item::Nil))
        };
        let due = |name: &str| find(name).ok_or(DecodeError::Shape);
        let kind: String = from_scanned(due("c")?)?;
        let body = read_body(&kind, due("b")?)?;
        let content = Self {
            thread: from_scanned(due("th")?)?,
            seq: uint(due("q")?)?,
            previous: find("p").map(bin_of).transpose()?,
            reply_to: find("r").map(bin_of).transpose()?,
            subject: find("sub").map(from_scanned).transpose()?,
            priority: find("pri").map(from_scanned).transpose()?,
            need: find("need").map(from_scanned).transpose()?,
            attachments: find("att").map_or(Ok(Vec::new()), read_attachments)?,
            chains: find("vc").map(from_scanned).transpose()?,
            work: find("pw").map(from_scanned).transpose()?,
            list_seq: find("dl").map(uint).transpose()?,
            device: find("dc").map(from_scanned).transpose()?,
            recovery: find("rc").map(from_scanned).transpose()?,
            kind,
            body,
        };
        if content.is_within_limits() { Ok(content) } else { Err(ContentError::Limit) }
    }

    /// Whether counts, lengths and numbers keep to their limits.
    pub fn is_within_limits(&self) -> bool {
        let body_fits = match &self.body {
            Body::Text(text) => text.len() <= MAX_BODY,
            Body::Other(raw) => raw.len() <= MAX_BODY + 64,
            Body::Receipt(receipt) => {
                (1..=MAX_RECEIPT_IDS).contains(&receipt.ids.len()) && receipt.ids.len() == receipt.hs.len()
            }
            Body::Error(error) => error.text.as_ref().is_none_or(|text| text.chars().count() <= 300),
            Body::Probe(_) => true,
        };
        body_fits
            && !self.kind.is_empty()
            && self.kind.len() <= 64
            && (1..=MAX_SEQ).contains(&self.seq)
            && self.previous.is_none() == (self.seq == 1)
            && self.subject.as_ref().is_none_or(|subject| subject.chars().count() <= 200)
            && self.priority.as_ref().is_none_or(|priority| priority.len() <= 32)
            && self.attachments.len() <= MAX_ATTACHMENTS
            && self.attachments.iter().all(|a| a.name.len() <= 128 && a.mime.len() <= 64)
            && self.chains.as_ref().is_none_or(|chains| chains.0.len() <= MAX_CHAINS)
    }

    /// Whether it is something that a session may read.
    pub fn is_session_traffic(&self) -> bool {
        SESSION_TYPES.contains(&self.kind.as_str())
    }
}

/// As the map that is sealed, so that what is stored has the bytes that were hashed.
impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Blob(self.to_bytes()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&Blob::deserialize(deserializer)?.0).map_err(serde::de::Error::custom)
    }
}

fn read_body(kind: &str, raw: &[u8]) -> Result<Body, ContentError> {
    Ok(match kind {
        "receipt" => Body::Receipt(decode_map(raw)?),
        "ping" | "pong" => Body::Probe(decode_map::<Probe>(raw)?.n),
        "error" => Body::Error(decode_map(raw)?),
        _ => match Reader::new(raw).item()? {
            Item::Str(text) => Body::Text(text.to_owned()),
            _ => Body::Other(raw.to_vec()),
        },
    })
}

fn read_attachments(raw: &[u8]) -> Result<Vec<Attachment>, DecodeError> {
    array_items(raw)?.into_iter().map(decode_map).collect()
}

/// Writes a map whose members come one by one.
#[derive(Default)]
struct MapWriter {
    count: u8,
    members: Vec<u8>,
}

impl MapWriter {
    fn put<T: Serialize>(&mut self, key: &str, value: &T) {
        self.put_raw(key, &encode_map(value));
    }

    fn put_some<T: Serialize>(&mut self, key: &str, value: Option<&T>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    fn put_raw(&mut self, key: &str, raw: &[u8]) {
        self.count += 1;
        self.members.extend(encode_map(&key));
        self.members.extend_from_slice(raw);
    }

    fn finish(self) -> Vec<u8> {
        let head: &[u8] = if self.count < 16 { &[0x80 | self.count] } else { &[0xde, 0, self.count] };
        [head, &self.members].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, vectors_v2};
    use proptest::prelude::*;

    fn full() -> Content {
        let mut content = Content::new("chat", "t-1".parse().expect("id"), Body::Text("hello".into()));
        content.seq = 2;
        content.previous = Some(Bin([1; 32]));
        content.reply_to = Some(Bin([2; 16]));
        content.subject = Some("lunch".into());
        content.priority = Some("high".into());
        content.need = Some(Need::Required);
        content.attachments = vec![Attachment {
            id: Bin([3; 32]),
            size: 5,
            key: Bin([4; 32]),
            name: "a.txt".into(),
            mime: "text/plain".into(),
        }];
        content.chains = Some(Blob(vec![0x90]));
        content.work = Some((Bin([5; 16]), Bin([6; 8])));
        content.list_seq = Some(7);
        content.device = Some((Blob(vec![1]), Bin([2; 64]), Blob(vec![3]), Bin([4; 64])));
        content.recovery = Some((Bin([8; 32]), Bin([9; 64])));
        content
    }

    #[test]
    fn the_recorded_content_is_reproduced() {
        let recorded = bytes(&vectors_v2()["envelope"]["content"]);
        let content = Content {
            need: Some(Need::Optional),
            ..Content::new(
                "text",
                "0195f0a0-0000-7000-8000-000000000001".parse().expect("id"),
                Body::Text("hello".into()),
            )
        };
        assert_eq!(Content::parse(&recorded), Ok(content.clone()));
        assert_eq!(content.to_bytes(), recorded);
    }

    #[test]
    fn all_members_and_bodies_come_back() {
        let receipt = Receipt {
            ids: vec![Bin([1; 16])],
            hs: vec![Bin([2; 32])],
            status: ReceiptStatus::Queued,
            reason: Some("busy".into()),
            retry_after_s: Some(30),
            at: 5,
        };
        let error = ErrorBody {
            code: Code::NoSession,
            about: Bin([1; 16]),
            retry_ms: Some(1),
            text: Some("x".into()),
        };
        let data = encode_map(&std::collections::BTreeMap::from([("schema", "x"), ("data", "y")]));
        for (kind, body) in [
            ("chat", Body::Text("hello".into())),
            ("query", Body::Other(data)),
            ("receipt", Body::Receipt(receipt)),
            ("pong", Body::Probe(Bin([3; 16]))),
            ("error", Body::Error(error)),
            ("x-custom", Body::Other(vec![0x93, 1, 2, 3])),
        ] {
            let content = Content { kind: kind.into(), body, ..full() };
            assert_eq!(Content::parse(&content.to_bytes()), Ok(content));
        }
    }

    #[test]
    fn limits_hold() {
        let ids = |n: usize, hashes: usize| {
            Body::Receipt(Receipt {
                ids: vec![Bin([1; 16]); n],
                hs: vec![Bin([2; 32]); hashes],
                status: ReceiptStatus::Accepted,
                reason: None,
                retry_after_s: None,
                at: 5,
            })
        };
        let receipt = |body| Content { kind: "receipt".into(), body, ..full() };
        for bad in [
            Content { body: Body::Text("x".repeat(MAX_BODY + 1)), ..full() },
            Content { seq: 0, ..full() },
            Content { seq: MAX_SEQ + 1, ..full() },
            Content { seq: 1, ..full() },
            Content { previous: None, ..full() },
            Content { subject: Some("x".repeat(201)), ..full() },
            Content { attachments: vec![full().attachments[0].clone(); MAX_ATTACHMENTS + 1], ..full() },
            Content { chains: Some(Blob(vec![0; MAX_CHAINS + 1])), ..full() },
            receipt(ids(0, 0)),
            receipt(ids(2, 1)),
            receipt(ids(65, 65)),
        ] {
            assert_eq!(Content::parse(&bad.to_bytes()), Err(ContentError::Limit));
        }
        assert!(Content::parse(&receipt(ids(64, 64)).to_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Content::parse(&raw);
        }

        #[test]
        fn changed_contents_do_not_panic(position in any::<prop::sample::Index>(), byte: u8) {
            let mut raw = full().to_bytes();
            let position = position.index(raw.len());
            raw[position] = byte;
            if let Ok(content) = Content::parse(&raw) {
                prop_assert_eq!(Content::parse(&content.to_bytes()), Ok(content));
            }
        }
    }
}
