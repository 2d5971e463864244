//! WebSocket frames of a server (RFC 6455), without extensions: bytes in, messages out. An idle connection holds no
//! buffer; a message that came in one piece is read where it lies.

/// Largest control frame.
const MAX_CONTROL: usize = 125;
/// Longest header: two bytes, eight of length, four of mask.
const MAX_HEADER: usize = 14;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
    /// To be answered with a pong.
    Ping(&'a [u8]),
    /// An answer that nobody asked for.
    Pong,
    /// The client closes.
    Close,
    /// A message of that many bytes, more than is taken.
    TooLarge(usize),
}

/// The client does not speak the protocol: close with this code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ProtocolError {
    /// WebSocket close code.
    pub code: u16,
    /// For people.
    pub reason: &'static str,
}

const fn wrong(reason: &'static str) -> ProtocolError {
    ProtocolError { code: 1002, reason }
}

const NOT_UTF8: ProtocolError = ProtocolError { code: 1007, reason: "Text is not UTF-8" };

/// Reads the frames of one client.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The beginning of a frame that has not come whole.
    partial: Vec<u8>,
    /// A message in several frames: whether it is text, and what came so far.
    fragments: Option<(bool, Vec<u8>)>,
}

struct Header {
    last: bool,
    opcode: u8,
    mask: [u8; 4],
    /// Bytes of the header.
    start: usize,
    length: usize,
}

impl Header {
    /// Bytes of the whole frame.
    fn end(&self) -> usize {
        self.start.saturating_add(self.length)
    }
}

impl Decoder {
    /// Takes bytes as they came and hands on what is whole, until `hear` says no. Messages above `most` bytes are
    /// reported, not held; nothing may follow them.
    pub fn feed(
        &mut self,
        mut bytes: &mut [u8],
        most: usize,
        hear: &mut impl FnMut(Incoming<'_>) -> bool,
    ) -> Result<(), ProtocolError> {
        while !self.partial.is_empty() {
            let wanted = match read_header(&self.partial)? {
                None => (self.partial.len() + 1).min(MAX_HEADER),
                Some(header) if self.too_large(&header, most, hear) => return Ok(()),
                Some(header) => header.end(),
            };
            let missing = wanted.saturating_sub(self.partial.len());
            let (head, rest) = bytes.split_at_mut(missing.min(bytes.len()));
            self.partial.extend_from_slice(head);
            bytes = rest;
            let Some(header) = read_header(&self.partial)? else {
                if bytes.is_empty() {
                    return Ok(());
                }
                continue;
            };
            if self.partial.len() >= header.end() {
                let mut whole = std::mem::take(&mut self.partial);
                if !self.frame(&header, &mut whole[header.start..], hear)? {
                    return Ok(());
                }
            } else if bytes.is_empty() {
                if self.too_large(&header, most, hear) {
                    self.partial = Vec::new();
                }
                return Ok(());
            }
        }
        while let Some(header) = read_header(bytes)? {
            if self.too_large(&header, most, hear) {
                return Ok(());
            }
            let end = header.end();
            if bytes.len() < end {
                break;
            }
            let (frame, rest) = bytes.split_at_mut(end);
            bytes = rest;
            if !self.frame(&header, &mut frame[header.start..], hear)? {
                return Ok(());
            }
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    /// Bytes that are held for a message which has not come whole.
    pub fn held(&self) -> usize {
        self.partial.capacity() + self.fragments.as_ref().map_or(0, |(_, bytes)| bytes.capacity())
    }

    fn too_large(&self, header: &Header, most: usize, hear: &mut impl FnMut(Incoming<'_>) -> bool) -> bool {
        let before = self.fragments.as_ref().map_or(0, |(_, bytes)| bytes.len());
        let size = header.length.saturating_add(if header.opcode < 8 { before } else { 0 });
        if size > most {
            hear(Incoming::TooLarge(size));
        }
        size > most
    }

    fn frame(
        &mut self,
        header: &Header,
        payload: &mut [u8],
        hear: &mut impl FnMut(Incoming<'_>) -> bool,
    ) -> Result<bool, ProtocolError> {
        unmask(payload, header.mask);
        let whole = match header.opcode {
            0 => {
                let Some((text, mut so_far)) = self.fragments.take() else {
                    return Err(wrong("Continuation of nothing"));
                };
                so_far.extend_from_slice(payload);
                if !header.last {
                    self.fragments = Some((text, so_far));
                    return Ok(true);
                }
                return message(text, &so_far, hear);
            }
            1 | 2 if self.fragments.is_some() => return Err(wrong("A message inside another")),
            1 | 2 if !header.last => {
                self.fragments = Some((header.opcode == 1, payload.to_vec()));
                return Ok(true);
            }
            1 | 2 => return message(header.opcode == 1, payload, hear),
            8 => Incoming::Close,
            9 => Incoming::Ping(payload),
            _ => Incoming::Pong,
        };
        Ok(hear(whole))
    }
}

fn message(
    text: bool,
    payload: &[u8],
    hear: &mut impl FnMut(Incoming<'_>) -> bool,
) -> Result<bool, ProtocolError> {
    if !text {
        return Ok(hear(Incoming::Binary(payload)));
    }
    std::str::from_utf8(payload).map(|text| hear(Incoming::Text(text))).map_err(|_| NOT_UTF8)
}

fn read_header(bytes: &[u8]) -> Result<Option<Header>, ProtocolError> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    let (last, opcode, length) = (first & 0x80 != 0, first & 0x0f, usize::from(second & 0x7f));
    if first & 0x70 != 0 {
        return Err(wrong("Extensions are not in use"));
    }
    if second & 0x80 == 0 {
        return Err(wrong("Frames of a client are masked"));
    }
    match opcode {
        0..=2 => {}
        8..=10 if last && length <= MAX_CONTROL => {}
        8..=10 => return Err(wrong("A control frame is short and whole")),
        _ => return Err(wrong("Unknown opcode")),
    }
    let (length, mask, start) = match length {
        126 => match rest {
            &[a, b, k0, k1, k2, k3, ..] => (usize::from(u16::from_be_bytes([a, b])), [k0, k1, k2, k3], 8),
            _ => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((long, &[k0, k1, k2, k3, ..])) => {
                (usize::try_from(u64::from_be_bytes(*long)).unwrap_or(usize::MAX), [k0, k1, k2, k3], 14)
            }
            _ => return Ok(None),
        },
        length => match rest {
            &[k0, k1, k2, k3, ..] => (length, [k0, k1, k2, k3], 6),
            _ => return Ok(None),
        },
    };
    Ok(Some(Header { last, opcode, mask, start, length }))
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Opcode of a text frame.
pub const TEXT: u8 = 1;
/// Opcode of a binary frame.
pub const BINARY: u8 = 2;
/// Opcode of a close frame.
pub const CLOSE: u8 = 8;
/// Opcode of a ping.
pub const PING: u8 = 9;
/// Opcode of a pong.
pub const PONG: u8 = 10;

/// Appends the header of a whole frame.
pub fn write_header(opcode: u8, length: usize, out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match length {
        0..126 => out.push(length as u8),
        126..65_536 => {
            out.push(126);
            out.extend((length as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend((length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        write_header(first & 0x0f, payload.len(), &mut frame);
        frame[0] = first;
        frame[1] |= 0x80;
        let mask = [9, 8, 7, 6];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    fn feed(bytes: &[u8], pieces: usize, most: usize) -> (Vec<String>, Option<u16>) {
        let mut decoder = Decoder::default();
        let mut heard = Vec::new();
        for piece in bytes.to_vec().chunks_mut(pieces.max(1)) {
            let fed = decoder.feed(piece, most, &mut |incoming| {
                heard.push(format!("{incoming:?}"));
                !matches!(incoming, Incoming::TooLarge(_))
            });
            if let Err(error) = fed {
                return (heard, Some(error.code));
            }
            assert!(decoder.held() <= 4 * (most + 200), "{} bytes held", decoder.held());
            if heard.last().is_some_and(|last| last.starts_with("TooLarge")) {
                break;
            }
        }
        (heard, None)
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        assert_eq!(feed(&[0x81, 0x01, b'x'], 9, 100).1, Some(1002), "not masked");
        assert_eq!(feed(&encode(0xc1, b"x"), 9, 100).1, Some(1002), "compressed");
        assert_eq!(feed(&encode(0x80, b"x"), 9, 100).1, Some(1002), "continues nothing");
        assert_eq!(feed(&encode(0x83, b"x"), 9, 100).1, Some(1002), "opcode");
        assert_eq!(feed(&encode(0x09, b"x"), 9, 100).1, Some(1002), "ping in pieces");
        assert_eq!(feed(&encode(0x89, &[0; 126]), 9, 1000).1, Some(1002), "long ping");
        assert_eq!(feed(&encode(0x81, &[0xff]), 9, 100).1, Some(1007));
        let inside = [encode(0x01, b"a"), encode(0x81, b"b")].concat();
        assert_eq!(feed(&inside, 9, 100).1, Some(1002));
    }

    #[test]
    fn a_message_above_the_limit_is_reported_before_it_has_come() {
        let mut frame = encode(0x81, &[b'x'; 300]);
        frame.truncate(8);
        assert_eq!(feed(&frame, 99, 299).0, ["TooLarge(300)"]);
        assert_eq!(feed(&frame, 1, 299).0, ["TooLarge(300)"]);
        let parts = [encode(0x01, &[b'x'; 200]), encode(0x00, &[b'x'; 100])].concat();
        assert_eq!(feed(&parts, 50, 299).0, ["TooLarge(300)"], "in several frames");
        let endless = [0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4];
        assert_eq!(feed(&endless, 3, 1000).0, [format!("TooLarge({})", usize::MAX)]);
    }

    proptest! {
        /// However the bytes are cut, the same messages come out.
        #[test]
        fn messages_come_out_whole(
            texts in proptest::collection::vec(("[a-zé]{0,200}", any::<bool>()), 0..12),
            pieces in 1usize..400,
        ) {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for (text, split) in &texts {
                expected.push(format!("{:?}", Incoming::Text(text)));
                let (head, tail) = text.as_bytes().split_at(text.len() / 2);
                if *split {
                    bytes.extend(encode(0x01, head));
                    bytes.extend(encode(0x89, b"p"));
                    bytes.extend(encode(0x80, tail));
                    expected.insert(expected.len() - 1, format!("{:?}", Incoming::Ping(b"p")));
                } else {
                    bytes.extend(encode(0x81, text.as_bytes()));
                }
            }
            prop_assert_eq!(feed(&bytes, pieces, 1000), (expected, None));
        }

        #[test]
        fn arbitrary_bytes_neither_panic_nor_pile_up(bytes in proptest::collection::vec(any::<u8>(), 0..600), pieces in 1usize..99) {
            let _ = feed(&bytes, pieces, 64);
        }
    }
}
