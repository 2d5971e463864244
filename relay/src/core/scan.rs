//! Reads the frames that nearly all traffic consists of without building JSON values: each byte is looked at once, and
//! an envelope stays the bytes it came as. Whatever is unusual is left to [`ClientFrame::parse`], which decides.

use threadline::time::parse_iso;
use threadline::v1::MAX_FRAME;
use threadline::v1::envelope::Header;
use threadline::v1::frames::{Ack, AckStatus, ClientFrame};

use super::{InboundFrame, Submission};

/// Members of an object beyond which it is unusual.
const MEMBERS: usize = 16;

/// The frame, if it is a message or an acknowledgement in its usual form.
pub(super) fn frame(text: &str) -> Option<InboundFrame> {
    if text.len() > MAX_FRAME {
        return None;
    }
    let mut scanner = Scanner { text, at: 0 };
    let (outer, envelope) = scanner.frame()?;
    match (outer.get("type")?, outer.list().len(), envelope) {
        ("message", 1, Some((envelope, members))) => {
            message(envelope, &members).map(|submission| InboundFrame::Message(Box::new(submission)))
        }
        ("ack", 3, None) => {
            let status = match outer.get("status")? {
                "delivered" => AckStatus::Delivered,
                "queued" => AckStatus::Queued,
                "rejected" => AckStatus::Rejected,
                _ => return None,
            };
            let ack = Ack::new(outer.get("messageId")?, status);
            Some(InboundFrame::Other(Box::new(ClientFrame::Ack(ack))))
        }
        _ => None,
    }
}

fn message(envelope: &str, members: &Texts<'_>) -> Option<Submission> {
    let sealed = ["nonce", "ephemeralPubKey", "salt", "signature"];
    // The signature of a sealed envelope covers a canonical form, which needs the parsed members.
    if sealed.iter().all(|name| members.get(name).is_some_and(|value| !value.is_empty())) {
        return None;
    }
    let thread_id = match members.get("threadId") {
        None | Some("") => None,
        Some(text) => Some(text.parse().ok()?),
    };
    let header = Header {
        from: members.get("from")?.parse().ok()?,
        to: members.get("to")?.parse().ok()?,
        thread_id,
        message_id: members.get("messageId")?.parse().ok()?,
        timestamp: parse_iso(members.get("timestamp")?)?,
    };
    Some(Submission::of_text(header, envelope))
}

/// Members of an object whose values are texts.
#[derive(Default)]
struct Texts<'a> {
    members: [(&'a str, &'a str); MEMBERS],
    count: usize,
}

impl<'a> Texts<'a> {
    fn list(&self) -> &[(&'a str, &'a str)] {
        &self.members[..self.count]
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.list().iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// A name that comes twice is unusual.
    fn add(&mut self, name: &'a str, value: &'a str) -> Option<()> {
        if self.get(name).is_some() {
            return None;
        }
        *self.members.get_mut(self.count)? = (name, value);
        self.count += 1;
        Some(())
    }
}

/// An object and its members.
type Envelope<'a> = (&'a str, Texts<'a>);

/// Reads JSON from left to right; `None` is whatever is not usual.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    /// The only value of the text: an object of texts, one of whose members may be an envelope.
    fn frame(&mut self) -> Option<(Texts<'a>, Option<Envelope<'a>>)> {
        let (mut texts, mut envelope) = (Texts::default(), None);
        let mut more = self.opens()?;
        while more {
            let name = self.name()?;
            if name == "envelope" && envelope.is_none() {
                envelope = Some(self.object()?);
            } else {
                texts.add(name, self.string()?)?;
            }
            more = self.goes_on()?;
        }
        (self.next().is_none() && texts.get("envelope").is_none()).then_some((texts, envelope))
    }

    fn object(&mut self) -> Option<Envelope<'a>> {
        let start = self.at;
        let mut texts = Texts::default();
        let mut more = self.opens()?;
        while more {
            let name = self.name()?;
            texts.add(name, self.string()?)?;
            more = self.goes_on()?;
        }
        Some((self.text.get(start..self.at)?, texts))
    }

    /// The next byte that is no white space; the scanner stands on it.
    fn next(&mut self) -> Option<u8> {
        loop {
            let byte = *self.text.as_bytes().get(self.at)?;
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then(|| self.at += 1)
    }

    /// Whether an object begins that has members.
    fn opens(&mut self) -> Option<bool> {
        self.take(b'{')?;
        let empty = self.next()? == b'}';
        self.at += usize::from(empty);
        Some(!empty)
    }

    /// Whether another member follows the one that was read.
    fn goes_on(&mut self) -> Option<bool> {
        let more = match self.next()? {
            b',' => true,
            b'}' => false,
            _ => return None,
        };
        self.at += 1;
        Some(more)
    }

    /// The name of a member; the scanner stands on its value.
    fn name(&mut self) -> Option<&'a str> {
        let name = self.string()?;
        self.take(b':')?;
        self.next()?;
        Some(name)
    }

    /// A text without escapes.
    fn string(&mut self) -> Option<&'a str> {
        self.take(b'"')?;
        let rest = self.text.get(self.at..)?;
        let end = memchr::memchr2(b'"', b'\\', rest.as_bytes())?;
        let text = rest.get(..end)?;
        let lowest = text.bytes().fold(u8::MAX, u8::min);
        if rest.as_bytes().get(end) != Some(&b'"') || lowest < b' ' {
            return None;
        }
        self.at += end + 1;
        Some(text)
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
        let spaced = ENVELOPE.replace(',', " ,\n");
        assert!(frame(&frame_around(&spaced)).is_some(), "white space is nothing unusual");
        let open = ENVELOPE.replace('}', "");
        let comma = ENVELOPE.replace('}', ",}");
        let control = ENVELOPE.replace("e30=", "e30=\u{1}");
        for envelope in [&twice, &nested, &escaped, &key, &open, &comma, &control, "null", "[]", "{}"] {
            assert!(frame(&frame_around(envelope)).is_none(), "{envelope}");
        }
        let usual = frame_around(ENVELOPE);
        let twice = usual.replace(r#","envelope""#, r#","envelope":{},"envelope""#);
        let (behind, cut) = (format!("{usual}x"), &usual[..usual.len() - 1]);
        for text in [&twice, &behind, cut] {
            assert!(frame(text).is_none(), "{text}");
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
                prop_assert_eq!(fast.header.as_ref().ok(), slow.header.as_ref().ok());
            } else {
                prop_assert_eq!(Inbound::read(&text).content.is_ok(), ClientFrame::parse(&text).is_ok());
            }
        }

        /// What is no JSON is no frame, however it was damaged.
        #[test]
        fn a_damaged_frame_is_read_as_the_other_reader_reads_it(at in 0usize..400, byte in 0u8..128) {
            let mut text = frame_around(ENVELOPE).into_bytes();
            let at = at % text.len();
            text[at] = byte;
            let text = String::from_utf8(text).expect("ASCII");
            if let Some(fast) = frame(&text) {
                prop_assert!(serde_json::from_str::<Value>(&text).is_ok(), "{}", text);
                let slow = ClientFrame::parse(&text).expect("a frame");
                match (fast, slow) {
                    (InboundFrame::Message(fast), ClientFrame::Message(slow)) => {
                        prop_assert_eq!(&fast.body, &Submission::new(slow).body);
                    }
                    (InboundFrame::Other(fast), slow) => prop_assert_eq!(*fast, slow),
                    _ => prop_assert!(false, "{}", text),
                }
            }
        }
    }
}
