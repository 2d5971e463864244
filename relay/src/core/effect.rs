//! What the core wants done.

use std::sync::Arc;

use threadline::MessageId;
use threadline::v1::frames::ServerFrame;

use super::ConnId;
use crate::store::StoreOp;

/// Something to write to a client.
#[derive(Debug, Clone, PartialEq)]
pub enum Outgoing {
    /// A frame.
    Frame(Box<ServerFrame>),
    /// A `message` frame around this envelope text.
    Message(Arc<[u8]>),
    /// What became of a message, in the words of v1: `delivered`, or `queued` for so many seconds.
    Fate(MessageId, Option<u64>),
    /// A frame of v2.
    V2(Written),
    /// A ping of the carrier.
    Ping,
}

/// A frame of v2, ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Length and frame.
    pub bytes: Vec<u8>,
    /// What kind of frame it is, for carriers with several streams.
    pub lane: Lane,
}

/// On which stream of a carrier with several a frame belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The one of the session; WELCOME is the first frame after which the client may say more.
    Welcome,
    /// The one of the session.
    Control,
    /// The stream that a SEND came on.
    Stream(u64),
    /// The stream of what one sender says in one thread.
    Delivery([u8; 16], [u8; 8]),
}

impl Outgoing {
    /// The text of the WebSocket message.
    pub fn to_text(&self) -> String {
        let mut text = Vec::new();
        self.write_text(&mut text);
        String::from_utf8(text).unwrap_or_default()
    }

    /// Appends the text of the WebSocket message.
    pub fn write_text(&self, out: &mut Vec<u8>) {
        match self {
            Self::Message(body) => {
                out.extend_from_slice(MESSAGE.as_bytes());
                out.extend_from_slice(body);
                out.push(b'}');
            }
            Self::Fate(id, ttl) => {
                // The characters of an id stand in JSON as they are.
                out.extend_from_slice(ACK.as_bytes());
                out.extend_from_slice(id.as_str().as_bytes());
                out.extend_from_slice(fate(*ttl).as_bytes());
                if let Some(ttl) = ttl {
                    out.extend_from_slice(Decimal::of(*ttl).as_bytes());
                }
                out.push(b'}');
            }
            Self::Frame(frame) => out.extend_from_slice(frame.to_text().as_bytes()),
            Self::V2(frame) => out.extend_from_slice(&frame.bytes),
            Self::Ping => {}
        }
    }

    /// Bytes of the text, where they are known without writing it.
    pub fn text_length(&self) -> Option<usize> {
        match self {
            Self::Message(body) => Some(MESSAGE.len() + body.len() + 1),
            Self::Fate(id, ttl) => {
                let digits = ttl.map_or(0, |ttl| Decimal::of(ttl).as_bytes().len());
                Some(ACK.len() + id.as_str().len() + fate(*ttl).len() + digits + 1)
            }
            Self::V2(frame) => Some(frame.bytes.len()),
            Self::Frame(_) | Self::Ping => None,
        }
    }
}

const MESSAGE: &str = r#"{"type":"message","envelope":"#;

const ACK: &str = r#"{"type":"ack","messageId":""#;

/// What stands behind the id.
fn fate(ttl: Option<u64>) -> &'static str {
    match ttl {
        None => r#"","status":"delivered""#,
        Some(_) => r#"","status":"queued","ttl":"#,
    }
}

/// Digits of a number, without an allocation.
struct Decimal {
    digits: [u8; 20],
    start: usize,
}

impl Decimal {
    fn of(mut number: u64) -> Self {
        let mut decimal = Self { digits: [b'0'; 20], start: 20 };
        for digit in decimal.digits.iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            decimal.start -= 1;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        decimal
    }

    fn as_bytes(&self) -> &[u8] {
        &self.digits[self.start..]
    }
}

/// What the edge must do, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Write to a client.
    Send {
        /// To which connection.
        conn: ConnId,
        /// What.
        what: Outgoing,
    },
    /// Close a socket after what was sent before; the core has already forgotten it.
    Close {
        /// Which connection.
        conn: ConnId,
        /// WebSocket close code.
        code: u16,
        /// For people.
        reason: &'static str,
    },
    /// Run a storage operation; report it with [`Event::Stored`]. Operations on one database keep their order.
    Store {
        /// To report it by.
        ticket: u64,
        /// What to do.
        op: StoreOp,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use threadline::v1::frames::{Ack, AckStatus};

    use super::*;

    proptest! {
        /// What is written by hand is what the serialiser writes.
        #[test]
        fn a_fate_is_an_ack(id in "[A-Za-z0-9._:-]{1,40}", ttl in proptest::option::of(any::<u64>())) {
            let what = Outgoing::Fate(id.parse().expect("an id"), ttl);
            let status = if ttl.is_some() { AckStatus::Queued } else { AckStatus::Delivered };
            let ack = Ack { message_id: id, status, reason: None, ttl };
            prop_assert_eq!(what.to_text(), ServerFrame::Ack(ack).to_text());
            prop_assert_eq!(what.text_length(), Some(what.to_text().len()));
        }
    }
}
