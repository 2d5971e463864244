//! Frames between a node and a relay: a length, then `[type, body]` (`threadline-wire.md` §5.5). A frame has the same
//! bytes on a QUIC stream and as a WebSocket message.

mod bodies;
mod buffer;

pub use bodies::*;
pub use buffer::FrameBuffer;

use super::Code;
use super::strict::{DecodeError, Item, Reader, array_items, encode_map, from_scanned, map_entries, uint};

/// Largest frame that carries no message, bytes without its length.
pub const MAX_CONTROL: usize = 65_536;
/// Largest frame with a message, bytes without its length.
pub const MAX_MESSAGE: usize = 294_912;
/// Largest HELLO, bytes.
pub const MAX_HELLO: usize = 16_384;
/// Largest other frame before WELCOME, bytes.
pub const MAX_EARLY: usize = 4_096;
/// Types from here on may be ignored by those who do not know them.
pub const IGNORABLE: u16 = 0x8000;

/// Whether the session is open yet; decides what a frame may weigh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FramePhase {
    /// Before WELCOME.
    Early,
    /// After WELCOME.
    Open,
}

impl FramePhase {
    /// Largest frame of any type, bytes without its length.
    pub const fn largest(self) -> usize {
        match self {
            Self::Early => MAX_HELLO,
            Self::Open => MAX_MESSAGE,
        }
    }

    const fn limit_for(self, kind: u16) -> usize {
        match (self, kind) {
            (Self::Early, Hello::TYPE) => MAX_HELLO,
            (Self::Early, _) => MAX_EARLY,
            (Self::Open, Send::TYPE | Deliver::TYPE | BlobData::TYPE) => MAX_MESSAGE,
            (Self::Open, _) => MAX_CONTROL,
        }
    }
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Above the limit of its type and phase.
    #[error("the frame is larger than its type may be")]
    TooLarge,
    /// Its bytes.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A type that must not be ignored and is not known.
    #[error("frame type {0:#x} is not spoken here")]
    UnknownType(u16),
}

impl FrameError {
    /// What is answered.
    pub const fn code(&self) -> Code {
        match self {
            Self::TooLarge | Self::Decode(_) => Code::BadRequest,
            Self::UnknownType(_) => Code::UnsupportedVersion,
        }
    }

    /// Whether the connection ends with it.
    pub const fn is_fatal(&self) -> bool {
        !matches!(self, Self::UnknownType(_))
    }
}

macro_rules! frames {
    ($($number:literal $name:ident $text:literal,)*) => {
        /// Everything that is said on a v2 connection.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Frame {
            $(#[doc = concat!("`", $text, "`.")] $name($name),)*
            /// A type from [`IGNORABLE`] on that is not known.
            Ignored(u16),
        }

        $(impl $name {
            /// Number of the type.
            pub const TYPE: u16 = $number;
        }

        impl From<$name> for Frame {
            fn from(body: $name) -> Self {
                Self::$name(body)
            }
        })*

        impl Frame {
            /// Numbers and names of all types.
            pub const TYPES: &[(u16, &str)] = &[$(($number, $text),)*];

            /// The name, for logs.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => $text,)*
                    Self::Ignored(_) => "?",
                }
            }

            fn parts(&self) -> (u16, Vec<u8>) {
                match self {
                    $(Self::$name(body) => ($number, encode_map(body)),)*
                    Self::Ignored(kind) => (*kind, vec![0x80]),
                }
            }

            fn read(kind: u16, body: &[u8]) -> Result<Self, FrameError> {
                match kind {
                    $($number => Ok(Self::$name(read_body(body)?)),)*
                    IGNORABLE.. => Ok(Self::Ignored(kind)),
                    _ => Err(FrameError::UnknownType(kind)),
                }
            }
        }
    };
}

frames! {
    0x01 Hello "HELLO",
    0x02 Welcome "WELCOME",
    0x03 Refuse "REFUSE",
    0x04 Challenge "CHALLENGE",
    0x05 Proof "PROOF",
    0x06 Pow "POW",
    0x07 PowDone "POW_DONE",
    0x08 Ping "PING",
    0x09 Pong "PONG",
    0x10 Send "SEND",
    0x11 Accepted "ACCEPTED",
    0x12 Rejected "REJECTED",
    0x13 Deliver "DELIVER",
    0x14 Taken "TAKEN",
    0x15 NotTaken "NOT_TAKEN",
    0x16 Status "STATUS",
    0x20 PresenceSet "PRESENCE_SET",
    0x21 Watch "WATCH",
    0x22 Presence "PRESENCE",
    0x23 Lookup "LOOKUP",
    0x24 Looked "LOOKED",
    0x25 Search "SEARCH",
    0x26 Found "FOUND",
    0x27 VouchPut "VOUCH_PUT",
    0x28 ChainsGet "CHAINS_GET",
    0x29 Chains "CHAINS",
    0x30 KeysPut "KEYS_PUT",
    0x31 KeysOk "KEYS_OK",
    0x32 KeysClaim "KEYS_CLAIM",
    0x33 Keys "KEYS",
    0x40 BlobOpen "BLOB_OPEN",
    0x41 BlobGo "BLOB_GO",
    0x42 BlobData "BLOB_DATA",
    0x43 BlobEnd "BLOB_END",
    0x60 AddrPut "ADDR_PUT",
    0x7e GoAway "GOAWAY",
    0x7f Fault "ERROR",
}

impl Frame {
    /// Length and frame.
    ///
    /// # Panics
    /// Never: no frame of ours comes near 4 GiB.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, body) = self.parts();
        let mut content = vec![0x92];
        content.extend(encode_map(&kind));
        content.extend(body);
        let length = u32::try_from(content.len()).expect("frames are far below 4 GiB");
        [&length.to_be_bytes()[..], &content].concat()
    }

    /// Reads one whole frame with its length: a WebSocket message.
    pub fn decode(bytes: &[u8], phase: FramePhase) -> Result<Self, FrameError> {
        let (length, content) = bytes.split_first_chunk::<4>().ok_or(DecodeError::Truncated)?;
        match (u32::from_be_bytes(*length) as usize).cmp(&content.len()) {
            std::cmp::Ordering::Less => Err(DecodeError::Trailing.into()),
            std::cmp::Ordering::Greater => Err(DecodeError::Truncated.into()),
            std::cmp::Ordering::Equal => Self::decode_content(content, phase),
        }
    }

    /// Reads a frame without its length.
    pub fn decode_content(content: &[u8], phase: FramePhase) -> Result<Self, FrameError> {
        if content.len() > phase.largest() {
            return Err(FrameError::TooLarge);
        }
        let items = array_items(content)?;
        let [kind, body] = items.as_slice() else { return Err(DecodeError::Shape.into()) };
        let kind = u16::try_from(uint(kind)?).map_err(|_| DecodeError::Shape)?;
        if content.len() > phase.limit_for(kind) {
            return Err(FrameError::TooLarge);
        }
        Self::read(kind, body)
    }
}

/// Reads a body; members that are nil count as absent.
fn read_body<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    let entries = map_entries(body)?;
    let is_nil = |raw: &[u8]| Reader::new(raw).item() == Ok(Item::Nil);
    if !entries.iter().any(|(_, raw)| is_nil(raw)) {
        return from_scanned(body);
    }
    let kept: Vec<_> = entries.into_iter().filter(|(_, raw)| !is_nil(raw)).collect();
    let count = u16::try_from(kept.len()).map_err(|_| DecodeError::Items)?;
    let mut dense = vec![0xde];
    dense.extend(count.to_be_bytes());
    for (key, raw) in kept {
        dense.extend(encode_map(&key));
        dense.extend_from_slice(raw);
    }
    from_scanned(&dense)
}

#[cfg(test)]
mod tests;
