//! Reads the frames that nearly all traffic consists of without building JSON values: each byte is looked at once, and
//! an envelope stays the bytes it came as. Whatever is unusual is left to [`ClientFrame::parse`], which decides.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use threadline::time::parse_iso;
use threadline::v1::MAX_FRAME;
use threadline::v1::envelope::Header;
use threadline::v1::frames::{Ack, AckStatus, ClientFrame};

use super::{InboundFrame, Submission};

/// Members of an envelope beyond which it is unusual.
const MEMBERS: usize = 16;

/// The frame, if it is a message or an acknowledgement in its usual form.
pub(super) fn frame(text: &str) -> Option<InboundFrame> {
    if text.len() > MAX_FRAME {
        return None;
    }
    let members: Members<'_> = serde_json::from_str(text).ok()?;
    match (members.text("type")?, members.list.len()) {
        ("message", 2) => {
            message(members.raw("envelope")?).map(|submission| InboundFrame::Message(Box::new(submission)))
        }
        ("ack", 3) => {
            let status = match members.text("status")? {
                "delivered" => AckStatus::Delivered,
                "queued" => AckStatus::Queued,
                "rejected" => AckStatus::Rejected,
                _ => return None,
            };
            let ack = Ack::new(members.text("messageId")?, status);
            Some(InboundFrame::Other(Box::new(ClientFrame::Ack(ack))))
        }
        _ => None,
    }
}

/// An envelope all of whose members are texts, none of them twice.
fn message(envelope: &RawValue) -> Option<Submission> {
    let members: Members<'_> = serde_json::from_str(envelope.get()).ok()?;
    let texts = members.list.iter().all(|(_, value)| value.get().starts_with('"'));
    let sealed = ["nonce", "ephemeralPubKey", "salt", "signature"]
        .iter()
        .all(|name| members.raw(name).is_some_and(|value| value.get().len() > 2));
    // The signature of a sealed envelope covers a canonical form, which needs the parsed members.
    if !texts || sealed {
        return None;
    }
    let thread_id = match members.raw("threadId") {
        None => None,
        Some(_) => match members.text("threadId")? {
            "" => None,
            text => Some(text.parse().ok()?),
        },
    };
    let header = Header {
        from: members.text("from")?.parse().ok()?,
        to: members.text("to")?.parse().ok()?,
        thread_id,
        message_id: members.text("messageId")?.parse().ok()?,
        timestamp: parse_iso(members.text("timestamp")?)?,
    };
    Some(Submission::of_text(header, envelope.get()))
}

/// The members of an object, unread.
struct Members<'a> {
    list: Vec<(&'a str, &'a RawValue)>,
}

impl<'a> Members<'a> {
    fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.list.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// A text without escapes.
    fn text(&self, name: &str) -> Option<&'a str> {
        let text = self.raw(name)?.get().strip_prefix('"')?.strip_suffix('"')?;
        (!text.contains('\\')).then_some(text)
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Collect)
    }
}

struct Collect;

impl<'de> Visitor<'de> for Collect {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        use serde::de::Error as _;
        let mut list: Vec<(&'de str, &'de RawValue)> = Vec::with_capacity(8);
        // A key with escapes cannot be borrowed and ends this, too.
        while let Some((key, value)) = map.next_entry::<&'de str, &'de RawValue>()? {
            if list.len() >= MEMBERS || list.iter().any(|(known, _)| *known == key) {
                return Err(A::Error::custom("unusual"));
            }
            list.push((key, value));
        }
        Ok(Members { list })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::core::Inbound;

    const ENVELOPE: &str = r#"{"from":"00112233445566778899aabbccddeeff","to":"ffeeddccbbaa99887766554433221100","messageId":"m1","threadId":"t","timestamp":"2026-01-15T12:00:00.000Z","payload":"e30="}"#;

    fn frame_around(envelope: &str) -> String {
        format!(r#"{{"type":"message","envelope":{envelope}}}"#)
    }

    #[test]
    fn the_usual_frames_are_read_at_once() {
        let Some(InboundFrame::Message(submission)) = frame(&frame_around(ENVELOPE)) else { panic!("usual") };
        assert_eq!(&*submission.body, ENVELOPE.as_bytes());
        let header = submission.header.as_ref().expect("header");
        assert_eq!(header.message_id.as_str(), "m1");
        let ack = r#"{"type":"ack","messageId":"m1","status":"delivered"}"#;
        assert!(matches!(frame(ack), Some(InboundFrame::Other(_))));
    }

    #[test]
    fn the_unusual_is_left_to_the_other_reader() {
        let twice =
            ENVELOPE.replace(r#""payload""#, r#""from":"11112233445566778899aabbccddeeff","payload""#);
        let nested = ENVELOPE.replace(r#""e30=""#, r#"{"a":[1]}"#);
        let escaped = ENVELOPE.replace("m1", r"\u006d1");
        let key = ENVELOPE.replace("messageId", r"message\u0049d");
        for envelope in [&twice, &nested, &escaped, &key, "null", "[]", "{}"] {
            assert!(frame(&frame_around(envelope)).is_none(), "{envelope}");
        }
        for text in ["null", "", "[]", r#"{"type":"message"}"#, r#"{"type":"message","envelope":null}"#] {
            assert!(frame(text).is_none(), "{text}");
        }
    }

    fn text() -> impl Strategy<Value = Value> {
        prop_oneof![
            "[a-z0-9-]{0,12}".prop_map(Value::from),
            Just(json!("00112233445566778899aabbccddeeff")),
            Just(json!("2026-01-15T12:00:00.000Z")),
            any::<String>().prop_map(Value::from),
            Just(Value::Null),
            any::<i32>().prop_map(Value::from),
            Just(json!({"__proto__": {"to": "x"}})),
        ]
    }

    proptest! {
        /// Both readers agree on everything that the fast one takes.
        #[test]
        fn both_readers_agree(
            names in proptest::sample::subsequence(
                vec!["from", "to", "threadId", "messageId", "timestamp", "payload", "nonce", "x", "__proto__"], 0..9),
            values in proptest::collection::vec(text(), 9),
            good in any::<bool>(),
        ) {
            let mut envelope: Value = serde_json::from_str(ENVELOPE).expect("json");
            if !good { envelope = json!({}); }
            for (name, value) in names.iter().zip(values) {
                envelope[*name] = value;
            }
            let text = frame_around(&envelope.to_string());
            if let Some(InboundFrame::Message(fast)) = frame(&text) {
                let slow = ClientFrame::parse(&text).expect("a frame");
                let ClientFrame::Message(slow) = slow else { panic!("a message") };
                let slow = Submission::new(slow);
                prop_assert_eq!(&fast.body, &slow.body);
                prop_assert_eq!(fast.hash, slow.hash);
                prop_assert_eq!(fast.header.as_ref().ok(), slow.header.as_ref().ok());
            } else {
                prop_assert_eq!(Inbound::read(&text).content.is_ok(), ClientFrame::parse(&text).is_ok());
            }
        }
    }
}
