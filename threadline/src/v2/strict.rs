//! The one decoder of MessagePack from strangers: canonical in everything but the order of map keys
//! (`threadline-wire.md` §4.2). serde sees bytes only after [`strict_scan`].

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{self, DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What the scan allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Nested containers.
    pub depth: usize,
    /// Values in all.
    pub items: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { depth: 8, items: 4_096 }
    }
}

/// Why bytes are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Bytes after the value.
    #[error("bytes after the end of the value")]
    Trailing,
    /// The value announces more than there is.
    #[error("the value is longer than its bytes")]
    Truncated,
    /// A longer encoding than needed.
    #[error("a number or length is not in its shortest form")]
    NotShortest,
    /// Negative numbers, floats and extension types do not occur.
    #[error("a type that does not occur on this wire")]
    Type,
    /// Text that is not UTF-8.
    #[error("a text is not UTF-8")]
    Utf8,
    /// A map key that is no text.
    #[error("a map key is not a text")]
    KeyType,
    /// A map key that repeats.
    #[error("a map key repeats")]
    DuplicateKey,
    /// Nested too deep.
    #[error("containers are nested too deep")]
    Depth,
    /// Too many values.
    #[error("too many values")]
    Items,
    /// Members missing, unknown, of the wrong type, length or range.
    #[error("the members do not have the shape that is due")]
    Shape,
    /// Above the size limit.
    #[error("larger than allowed")]
    TooLarge,
}

/// The head of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    Nil,
    Bool(bool),
    Uint(u64),
    Str(&'a str),
    Bin(&'a [u8]),
    Array(usize),
    Map(usize),
}

/// Walks values, refusing every form that is not canonical.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn number(&mut self, width: usize, least: u64) -> Result<u64, DecodeError> {
        let value = self.take(width)?.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        if value < least { Err(DecodeError::NotShortest) } else { Ok(value) }
    }

    fn length(&mut self, width: usize, least: u64) -> Result<usize, DecodeError> {
        usize::try_from(self.number(width, least)?).map_err(|_| DecodeError::Truncated)
    }

    fn text(&mut self, length: usize) -> Result<Item<'a>, DecodeError> {
        std::str::from_utf8(self.take(length)?).map(Item::Str).map_err(|_| DecodeError::Utf8)
    }

    fn container(&self, count: usize, bytes_each: usize) -> Result<usize, DecodeError> {
        let least = count.checked_mul(bytes_each).ok_or(DecodeError::Truncated)?;
        if least > self.rest.len() { Err(DecodeError::Truncated) } else { Ok(count) }
    }

    /// The next head; contents of containers follow as values of their own.
    pub(crate) fn item(&mut self) -> Result<Item<'a>, DecodeError> {
        let marker = self.take(1)?.first().copied().ok_or(DecodeError::Truncated)?;
        match marker {
            0x00..=0x7f => Ok(Item::Uint(u64::from(marker))),
            0x80..=0x8f => self.container(usize::from(marker & 0x0f), 2).map(Item::Map),
            0x90..=0x9f => self.container(usize::from(marker & 0x0f), 1).map(Item::Array),
            0xa0..=0xbf => self.text(usize::from(marker & 0x1f)),
            0xc0 => Ok(Item::Nil),
            0xc2 | 0xc3 => Ok(Item::Bool(marker == 0xc3)),
            0xc4 => self.length(1, 0).and_then(|n| self.take(n)).map(Item::Bin),
            0xc5 => self.length(2, 0x100).and_then(|n| self.take(n)).map(Item::Bin),
            0xc6 => self.length(4, 0x1_0000).and_then(|n| self.take(n)).map(Item::Bin),
            0xcc => self.number(1, 0x80).map(Item::Uint),
            0xcd => self.number(2, 0x100).map(Item::Uint),
            0xce => self.number(4, 0x1_0000).map(Item::Uint),
            0xcf => self.number(8, 0x1_0000_0000).map(Item::Uint),
            0xd9 => self.length(1, 32).and_then(|n| self.text(n)),
            0xda => self.length(2, 0x100).and_then(|n| self.text(n)),
            0xdb => self.length(4, 0x1_0000).and_then(|n| self.text(n)),
            0xdc => self.length(2, 16).and_then(|n| self.container(n, 1)).map(Item::Array),
            0xdd => self.length(4, 0x1_0000).and_then(|n| self.container(n, 1)).map(Item::Array),
            0xde => self.length(2, 16).and_then(|n| self.container(n, 2)).map(Item::Map),
            0xdf => self.length(4, 0x1_0000).and_then(|n| self.container(n, 2)).map(Item::Map),
            _ => Err(DecodeError::Type),
        }
    }

    /// Walks one whole value.
    fn value(&mut self, depth: usize, items: &mut usize) -> Result<(), DecodeError> {
        *items = items.checked_sub(1).ok_or(DecodeError::Items)?;
        match self.item()? {
            Item::Array(count) => {
                let depth = depth.checked_sub(1).ok_or(DecodeError::Depth)?;
                (0..count).try_for_each(|_| self.value(depth, items))
            }
            Item::Map(count) => {
                let depth = depth.checked_sub(1).ok_or(DecodeError::Depth)?;
                let mut keys = BTreeSet::new();
                for _ in 0..count {
                    let Item::Str(key) = self.item()? else { return Err(DecodeError::KeyType) };
                    if !keys.insert(key) {
                        return Err(DecodeError::DuplicateKey);
                    }
                    self.value(depth, items)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Walks one whole value and returns its bytes.
    pub(crate) fn raw(&mut self) -> Result<&'a [u8], DecodeError> {
        let start = self.rest;
        let limits = Limits::default();
        self.value(limits.depth, &mut { limits.items })?;
        start.get(..start.len() - self.rest.len()).ok_or(DecodeError::Truncated)
    }
}

/// Refuses everything but one canonical value.
pub fn strict_scan(bytes: &[u8], limits: Limits) -> Result<(), DecodeError> {
    let mut reader = Reader::new(bytes);
    reader.value(limits.depth, &mut { limits.items })?;
    if reader.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
}

/// Keys and raw values of a map, after a scan.
pub(crate) fn map_entries(bytes: &[u8]) -> Result<Vec<(&str, &[u8])>, DecodeError> {
    strict_scan(bytes, Limits::default())?;
    let mut reader = Reader::new(bytes);
    let Item::Map(count) = reader.item()? else { return Err(DecodeError::Shape) };
    (0..count)
        .map(|_| {
            let Item::Str(key) = reader.item()? else { return Err(DecodeError::KeyType) };
            Ok((key, reader.raw()?))
        })
        .collect()
}

/// Raw members of an array, after a scan.
pub(crate) fn array_items(bytes: &[u8]) -> Result<Vec<&[u8]>, DecodeError> {
    strict_scan(bytes, Limits::default())?;
    let mut reader = Reader::new(bytes);
    let Item::Array(count) = reader.item()? else { return Err(DecodeError::Shape) };
    (0..count).map(|_| reader.raw()).collect()
}

/// The whole value as a byte string.
pub(crate) fn bin(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    match Reader::new(bytes).item()? {
        Item::Bin(content) => Ok(content),
        _ => Err(DecodeError::Shape),
    }
}

/// The whole value as a byte string of `N` bytes.
pub(crate) fn bin_of<const N: usize>(bytes: &[u8]) -> Result<Bin<N>, DecodeError> {
    bin(bytes)?.try_into().map(Bin).map_err(|_| DecodeError::Shape)
}

/// The whole value as a number.
pub(crate) fn uint(bytes: &[u8]) -> Result<u64, DecodeError> {
    match Reader::new(bytes).item()? {
        Item::Uint(value) => Ok(value),
        _ => Err(DecodeError::Shape),
    }
}

/// Reads a value that a scan has accepted.
pub(crate) fn from_scanned<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    rmp_serde::from_slice(bytes).map_err(|_| DecodeError::Shape)
}

/// Scans and reads an array of exactly `members` values.
pub(crate) fn decode_array<T: DeserializeOwned>(bytes: &[u8], members: usize) -> Result<T, DecodeError> {
    strict_scan(bytes, Limits::default())?;
    if Reader::new(bytes).item()? != Item::Array(members) {
        return Err(DecodeError::Shape);
    }
    from_scanned(bytes)
}

/// Scans and reads a map.
pub(crate) fn decode_map<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    strict_scan(bytes, Limits::default())?;
    if !matches!(Reader::new(bytes).item()?, Item::Map(_)) {
        return Err(DecodeError::Shape);
    }
    from_scanned(bytes)
}

/// Structs as arrays.
pub(crate) fn encode_array<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec(value).expect("our types have a MessagePack form")
}

/// Structs as maps.
pub(crate) fn encode_map<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("our types have a MessagePack form")
}

/// A byte string of fixed length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bin<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Debug for Bin<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<const N: usize> fmt::Display for Bin<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<const N: usize> Serialize for Bin<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bin<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = deserializer.deserialize_bytes(BytesVisitor)?;
        let length = bytes.len();
        bytes.try_into().map(Self).map_err(|_| de::Error::invalid_length(length, &BytesVisitor))
    }
}

/// A byte string of any length.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(BytesVisitor).map(Self)
    }
}

struct BytesVisitor;

impl Visitor<'_> for BytesVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a byte string of the due length")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(bytes.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{text, vectors_v2};
    use proptest::prelude::*;

    #[test]
    fn the_recorded_rows() {
        let rows = vectors_v2()["strictDecode"]["rows"].as_array().expect("rows");
        assert!(rows.len() >= 16);
        for row in rows {
            let bytes = hex::decode(text(&row["bytes"])).expect("hex");
            let accepted = strict_scan(&bytes, Limits::default()).is_ok();
            assert_eq!(accepted, row["result"] == "ok", "{row}");
        }
    }

    #[test]
    fn counts_are_bounded_before_anything_is_allocated() {
        let many = [&[0xdc, 0x20, 0x00][..], &vec![0; 0x2000]].concat();
        assert_eq!(strict_scan(&many, Limits::default()), Err(DecodeError::Items));
        assert_eq!(
            strict_scan(&[0xdf, 0xff, 0xff, 0xff, 0xff], Limits::default()),
            Err(DecodeError::Truncated)
        );
        assert_eq!(strict_scan(&[], Limits::default()), Err(DecodeError::Truncated));
    }

    #[test]
    fn byte_strings_are_no_arrays_and_no_texts() {
        assert_eq!(from_scanned::<Bin<2>>(&[0xc4, 2, 1, 2]), Ok(Bin([1, 2])));
        for bytes in [&[0x92, 1, 2][..], &[0xa2, b'a', b'b'], &[0xc4, 1, 1], &[0xc0]] {
            assert_eq!(from_scanned::<Bin<2>>(bytes), Err(DecodeError::Shape));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = strict_scan(&bytes, Limits::default());
            let _ = map_entries(&bytes);
            let _ = array_items(&bytes);
        }

        #[test]
        fn what_we_encode_is_canonical(
            number in any::<u64>(),
            words in proptest::collection::vec(".*", 0..40),
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let value = encode_array(&(number, &words, Blob(bytes.clone())));
            prop_assert_eq!(strict_scan(&value, Limits::default()), Ok(()));
            prop_assert_eq!(decode_array::<(u64, Vec<String>, Blob)>(&value, 3), Ok((number, words, Blob(bytes))));
            for end in 0..value.len() {
                prop_assert!(strict_scan(&value[..end], Limits::default()).is_err());
            }
        }
    }
}
