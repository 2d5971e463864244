//! What a node keeps of an opened message until the inbound pipeline has judged it, and how the pipeline reads it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::blob::TEXT_TYPE;
use super::content::{Attachment, Body};
use super::mail::{Dispatched, Marker};
use super::strict::encode_map;
use super::{Bin, Id, Key};
use crate::identity::PublicIdentity;
use crate::inbound::Incoming;
use crate::v1::envelope::{Authentication, Content, Header};
use crate::{Fingerprint, MessageId, ThreadId};

/// A text that is not in its message and has to be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextBlob {
    /// Hash of the ciphertext, 64 hex digits.
    #[serde(with = "hex_key")]
    pub id: Bin<32>,
    /// Bytes of the ciphertext.
    pub size: u64,
    /// Its key, 64 hex digits.
    #[serde(with = "hex_key")]
    pub key: Bin<32>,
}

impl TextBlob {
    /// As a message refers to it.
    pub fn reference(&self) -> Attachment {
        let (name, mime) = (String::new(), TEXT_TYPE.into());
        Attachment { id: self.id, size: self.size, key: self.key, name, mime }
    }
}

/// An opened message: its sender was authenticated and its bytes were receipted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenedMessage {
    /// Sender's key, 64 hex digits.
    #[serde(with = "hex_key")]
    pub from: Key,
    /// Id given by the sender.
    pub id: MessageId,
    /// Thread given by the sender.
    pub thread: ThreadId,
    /// Payload type.
    pub kind: String,
    /// Text; data comes as its JSON.
    pub text: String,
    /// Where the text is, while it is not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<TextBlob>,
    /// Why the text will never come, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
    /// Members of a control message.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub members: Map<String, Value>,
    /// Subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Message of ours that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_reply_to: Option<MessageId>,
    /// Sender's clock, Unix ms.
    pub created_at: i64,
    /// Messages of the thread that are missing before it.
    #[serde(default)]
    pub missing: u64,
}

/// An opened message cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("an opened message is not readable: {0}")]
pub struct UnreadableOpened(#[from] serde_json::Error);

impl OpenedMessage {
    /// From the inbox of sealed mail; `None` for a key that is not usable.
    pub fn of(message: &Dispatched) -> Option<Self> {
        let row = &message.row;
        PublicIdentity::from_bytes(&row.peer.0).ok()?;
        let (text, members) = match &row.content.body {
            Body::Text(text) => (text.clone(), Map::new()),
            Body::Other(raw) => match rmp_serde::from_slice::<Value>(raw) {
                Ok(Value::Object(members)) if !row.content.is_session_traffic() => (String::new(), members),
                Ok(value) => (value.to_string(), Map::new()),
                Err(_) => (String::new(), Map::new()),
            },
            Body::Receipt(_) | Body::Probe(_) | Body::Error(_) => (String::new(), Map::new()),
        };
        let elsewhere = row.content.attachments.iter().find(|attachment| attachment.is_text());
        let blob = elsewhere.filter(|_| row.content.is_session_traffic());
        Some(Self {
            blob: blob.map(|text| TextBlob { id: text.id, size: text.size, key: text.key }),
            lost: None,
            from: row.peer,
            id: message_id(&row.id),
            thread: row.content.thread.clone(),
            kind: row.content.kind.clone(),
            text,
            members,
            subject: row.content.subject.clone(),
            in_reply_to: row.content.reply_to.as_ref().map(message_id),
            created_at: i64::try_from(row.created).unwrap_or(i64::MAX),
            missing: match message.marker {
                Marker::AfterGap { missing } => missing,
                Marker::InOrder | Marker::Late => 0,
            },
        })
    }

    /// As it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts, numbers and maps with text keys are JSON")
    }

    /// As it was stored.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, UnreadableOpened> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The sender's key; `None` when it is weak or no key.
    pub fn sender(&self) -> Option<PublicIdentity> {
        PublicIdentity::from_bytes(&self.from.0).ok()
    }

    /// Whether its type is one that is stored or acted on; from v2 peers every other is refused.
    pub fn is_supported(&self) -> bool {
        const CONTROL: [&str; 5] =
            ["thread-resolved", "invitation-redeem", "invitation-result", "typing", "health"];
        super::content::SESSION_TYPES.contains(&self.kind.as_str()) || CONTROL.contains(&self.kind.as_str())
    }

    /// As the pipeline reads it.
    pub fn incoming(self, sender: &PublicIdentity, us: Fingerprint) -> Incoming {
        let mut metadata = self.members;
        if let Some(subject) = self.subject {
            metadata.insert("subject".into(), subject.into());
        }
        if let Some(answered) = &self.in_reply_to {
            metadata.insert("inReplyTo".into(), answered.as_str().into());
        }
        Incoming {
            header: Header {
                from: sender.fingerprint(),
                to: us,
                thread_id: Some(self.thread),
                message_id: self.id,
                timestamp: self.created_at,
            },
            body_hash: Sha256::digest(self.text.as_bytes()).into(),
            authentication: Authentication::E2e,
            content: Content { text: self.text, kind: Some(self.kind), metadata: Some(metadata) },
        }
    }
}

/// The id as the rest of the node writes it.
pub fn message_id(id: &Id) -> MessageId {
    MessageId::from_uuid(uuid::Uuid::from_bytes(id.0))
}

/// The id as it travels sealed; `None` when it is no UUID.
pub fn sealed_id(id: &MessageId) -> Option<Id> {
    uuid::Uuid::parse_str(id.as_str()).ok().map(|uuid| super::Bin(uuid.into_bytes()))
}

/// Members of a control message as a body.
pub fn members_body(members: &Map<String, Value>) -> Body {
    Body::Other(encode_map(members))
}

mod hex_key {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::v2::{Bin, Key};

    pub(super) fn serialize<S: Serializer>(key: &Key, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(key)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut key = [0; 32];
        hex::decode_to_slice(&text, &mut key).map_err(D::Error::custom)?;
        Ok(Bin(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbound::Class;
    use crate::testing::identity;
    use crate::v2::Bin;
    use crate::v2::content::Content as Sealed;
    use crate::v2::mail::InboxRow;
    use proptest::prelude::*;

    fn dispatched(kind: &str, body: Body) -> Dispatched {
        let mut content = Sealed::new(kind, "t-1".parse().expect("id"), body);
        content.subject = Some("lunch".into());
        content.reply_to = Some(Bin([2; 16]));
        let row = InboxRow {
            peer: identity("bob").public().into(),
            device: Bin([1; 16]),
            id: Bin([7; 16]),
            content,
            hash: Bin([0; 32]),
            created: 5,
            opened_at: 6,
        };
        Dispatched { row, marker: Marker::AfterGap { missing: 2 }, diverged: false }
    }

    #[test]
    fn a_text_reaches_the_pipeline_whole() {
        let opened = OpenedMessage::of(&dispatched("query", Body::Text("hi".into()))).expect("a key");
        assert_eq!(OpenedMessage::from_bytes(&opened.to_bytes()).expect("own bytes"), opened);
        assert_eq!(sealed_id(&opened.id), Some(Bin([7; 16])));
        assert!(opened.is_supported() && opened.missing == 2);
        let (bob, alice) = (identity("bob"), identity("alice").fingerprint());
        assert_eq!(opened.sender().as_ref(), Some(bob.public()));
        let incoming = opened.incoming(bob.public(), alice);
        assert_eq!((incoming.kind(), incoming.subject().as_str()), ("query", "lunch"));
        assert_eq!(incoming.in_reply_to(), Some("02020202-0202-0202-0202-020202020202"));
        assert_eq!((incoming.header.from, incoming.class()), (bob.fingerprint(), Class::Conversation));
    }

    #[test]
    fn a_text_that_is_elsewhere_is_known_by_its_type() {
        let (reference, sealed) = crate::v2::blob::seal_text(Bin([3; 32]), "long");
        let mut message = dispatched("chat", Body::Text("see the attachment".into()));
        message.row.content.attachments =
            vec![Attachment { mime: "image/png".into(), ..reference.clone() }, reference];
        let opened = OpenedMessage::of(&message).expect("a key");
        assert_eq!(OpenedMessage::from_bytes(&opened.to_bytes()).expect("own bytes"), opened);
        let blob = opened.blob.expect("a blob");
        assert_eq!(crate::v2::blob::open_text(&blob.reference(), &sealed), Ok("long".into()));
        message.row.content.attachments.truncate(1);
        assert_eq!(OpenedMessage::of(&message).expect("a key").blob, None);
    }

    #[test]
    fn members_of_a_control_message_come_back() {
        let members: Map<String, Value> =
            serde_json::from_str(r#"{"token":"tl1_x","n":3,"deep":{"a":[1,2]}}"#).expect("JSON");
        let body = members_body(&members);
        let opened = OpenedMessage::of(&dispatched("invitation-redeem", body)).expect("a key");
        assert_eq!((&opened.members, opened.text.as_str()), (&members, ""));
        let data = OpenedMessage::of(&dispatched("chat", members_body(&members))).expect("a key");
        assert_eq!(serde_json::from_str::<Value>(&data.text).expect("JSON"), Value::Object(members));
        assert!(
            !OpenedMessage::of(&dispatched("x-new", Body::Text("?".into()))).expect("key").is_supported()
        );
    }

    proptest! {
        #[test]
        fn no_stored_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(opened) = OpenedMessage::from_bytes(&bytes) {
                let _ = opened.sender();
            }
        }
    }
}
