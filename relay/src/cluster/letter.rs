//! A message as it lies in a mail stream: who and when in headers, the sealed body behind them.

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use sha2::{Digest as _, Sha256};
use threadline::{Fingerprint, MessageId};

use super::layout;
use crate::store::{Accept, BodyCipher};

const ID: &str = "Nats-Msg-Id";
/// Stands before the number of another try in an id; hex digits have none.
const ANEW: char = '~';
const EXPIRES: &str = "Tl-Exp";
const FORMAT: &str = "Tl-Fmt";
const STORED: &str = "Tl-At";
const SIZE: &str = "Tl-Size";
const STRANGER: &str = "Tl-Stranger";

/// A message without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Who shall get it.
    pub recipient: Fingerprint,
    /// Who sent it.
    pub sender: Fingerprint,
    /// Its id.
    pub id: MessageId,
    /// First bytes of the SHA-256 of its envelope.
    pub content: u64,
    /// Bytes of its envelope.
    pub size: u32,
    /// Whether the sender was no correspondent of the recipient.
    pub stranger: bool,
    /// Whether it is control mail, which has an allowance of its own.
    pub control: bool,
    /// When it was stored, in Unix milliseconds.
    pub stored_ms: i64,
    /// When it is given up, in Unix milliseconds.
    pub expires_ms: i64,
}

/// What is compared of an envelope. All relays must come to the same, whatever their keys.
pub(super) fn content_of(body: &[u8]) -> u64 {
    Sha256::digest(body).first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

impl Letter {
    /// Of a message that is to be stored.
    pub fn of(message: &Accept, stranger: bool) -> Self {
        Self {
            recipient: message.recipient,
            sender: message.sender,
            id: message.id.clone(),
            content: content_of(&message.body),
            size: u32::try_from(message.body.len()).unwrap_or(u32::MAX),
            stranger,
            control: message.control && !stranger,
            stored_ms: message.now_ms,
            expires_ms: message.expires_ms,
        }
    }

    /// Under this id the engine stores it once. Other bytes have another.
    fn once_id(&self) -> String {
        format!("{}:{}:{}:{:016x}", self.sender, self.recipient, self.id, self.content)
    }

    /// What the seal of the body vouches for.
    fn sealed_head(&self) -> String {
        let kind = u8::from(self.stranger) + 2 * u8::from(self.control);
        format!("{} {} {} {kind} {}\0", self.once_id(), self.expires_ms, self.stored_ms, self.size)
    }

    /// Headers and payload of the stored form.
    pub fn write(&self, body: &[u8], cipher: &BodyCipher) -> (HeaderMap, Vec<u8>) {
        let mut headers = HeaderMap::new();
        headers.insert(ID, self.once_id());
        headers.insert(EXPIRES, self.expires_ms.to_string());
        headers.insert(FORMAT, "1");
        headers.insert(STORED, self.stored_ms.to_string());
        headers.insert(SIZE, self.size.to_string());
        headers.insert(STRANGER, if self.stranger { "1" } else { "0" });
        let head = self.sealed_head();
        let mut payload = head.clone().into_bytes();
        cipher.seal(0, body, &mut payload);
        payload.drain(..head.len());
        (headers, payload)
    }

    /// Gives the headers an id that the engine does not know, for a message that it knows and does not have.
    pub fn write_anew(&self, number: u32, headers: &mut HeaderMap) {
        headers.insert(ID, format!("{}{ANEW}{number}", self.once_id()));
    }

    /// Whether it is the same message of the same sender, whenever it was stored.
    pub fn is_same(&self, other: &Self) -> bool {
        self.once_id() == other.once_id()
    }

    /// Reads the headers of a stored message. `None`: it is none of ours.
    pub fn read(stored: &StreamMessage) -> Option<Self> {
        Self::parse(&stored.subject, |name| Some(stored.headers.get(name)?.as_str()))
    }

    /// Reads subject and headers.
    pub fn parse<'a>(subject: &str, header: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let (recipient, sender, control) = layout::parties(subject)?;
        let rest = header(ID)?.strip_prefix(&format!("{sender}:{recipient}:"))?;
        let (id, content) = rest.rsplit_once(':')?;
        let content = content.split_once(ANEW).map_or(content, |(content, _)| content);
        (content.len() == 16 && header(FORMAT)? == "1").then_some(())?;
        let letter = Self {
            recipient,
            sender,
            id: id.parse().ok()?,
            content: u64::from_str_radix(content, 16).ok()?,
            size: header(SIZE)?.parse().ok()?,
            stranger: header(STRANGER)? == "1",
            control,
            stored_ms: header(STORED)?.parse().ok()?,
            expires_ms: header(EXPIRES)?.parse().ok()?,
        };
        Some(letter)
    }

    /// The envelope, unless anything of the message was changed.
    pub fn open(&self, payload: &[u8], cipher: &BodyCipher) -> Option<Vec<u8>> {
        let body = cipher.open(self.sealed_head().as_bytes(), payload)?;
        (body.len() == self.size as usize).then_some(body)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accept(id: &str, body: &str) -> Accept {
        Accept {
            seq: 0,
            sender: Fingerprint::from_bytes([1; 16]),
            recipient: Fingerprint::from_bytes([2; 16]),
            id: id.parse().expect("id"),
            body: body.as_bytes().into(),
            now_ms: 5,
            expires_ms: 6,
            control: false,
        }
    }

    #[test]
    fn a_message_that_is_published_anew_is_the_same() {
        let cipher = BodyCipher::new(&[1; 32]);
        let letter = Letter::of(&accept("a:b-c", "hello"), true);
        let (mut headers, payload) = letter.write(b"hello", &cipher);
        let first = headers.get(ID).map(|id| id.as_str().to_owned());
        letter.write_anew(4, &mut headers);
        assert_ne!(headers.get(ID).map(|id| id.as_str().to_owned()), first);
        let subject = layout::mail_subject(&letter.recipient, &letter.sender, letter.control);
        let read = Letter::parse(&subject, |name| Some(headers.get(name)?.as_str())).expect("reads");
        assert!(read == letter && read.is_same(&letter));
        assert_eq!(read.open(&payload, &cipher).as_deref(), Some(&b"hello"[..]));
    }

    #[test]
    fn a_body_opens_only_behind_its_own_headers() {
        let cipher = BodyCipher::new(&[1; 32]);
        let letter = Letter::of(&accept("a:b-c", "hello"), true);
        let (headers, payload) = letter.write(b"hello", &cipher);
        let subject = layout::mail_subject(&letter.recipient, &letter.sender, false);
        let read = Letter::parse(&subject, |name| Some(headers.get(name)?.as_str())).expect("reads");
        assert_eq!(read, letter);
        assert_eq!(read.open(&payload, &cipher).as_deref(), Some(&b"hello"[..]));
        assert!(!payload.windows(5).any(|bytes| bytes == b"hello"));
        let control = layout::mail_subject(&letter.recipient, &letter.sender, true);
        let moved = Letter::parse(&control, |name| Some(headers.get(name)?.as_str())).expect("reads");
        assert_eq!(moved.open(&payload, &cipher), None, "nobody makes it control mail");
        let later = Letter { expires_ms: 7, ..letter.clone() };
        assert_eq!(later.open(&payload, &cipher), None, "nobody prolongs a life");
        let other = Letter { sender: letter.recipient, ..letter };
        assert_eq!(other.open(&payload, &cipher), None);
    }

    proptest! {
        #[test]
        fn arbitrary_headers_are_read_without_panic(subject in ".{0,90}", values in proptest::collection::vec(".{0,40}", 6)) {
            let names = [ID, EXPIRES, FORMAT, STORED, SIZE, STRANGER];
            let header = |name: &str| names.iter().position(|n| *n == name).map(|at| values[at].as_str());
            prop_assert_eq!(Letter::parse(&subject, header), None);
            let subject = layout::mail_subject(&Fingerprint::from_bytes([1; 16]), &Fingerprint::from_bytes([2; 16]), false);
            let _ = Letter::parse(&subject, header);
        }
    }
}
