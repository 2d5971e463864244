//! What relays of a cluster say to each other of a blob that a session of one sends to a session of the other
//! (`threadline-wire.md` §4.7). It is never stored: what is lost on the way ends the transfer.

use serde::{Deserialize, Serialize};
use threadline::v2::{Bin, Blob};

/// Name of a relay of a cluster; another one after each start.
pub type RelayName = [u8; 8];

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobNote {
    /// SHA-256 of the blob.
    pub id: Bin<32>,
    /// What is said.
    pub word: BlobNews,
}

/// What is said of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobNews {
    /// A session here wants to send it to one there.
    Open {
        /// Key of the sender.
        from: Bin<32>,
        /// Key of the recipient.
        to: Bin<32>,
        /// Bytes.
        size: u64,
    },
    /// The recipient takes this many bytes of it in all.
    Go {
        /// How many.
        upto: u64,
    },
    /// A piece of it.
    Piece {
        /// Bytes before it.
        at: u64,
        /// The piece.
        bytes: Blob,
    },
    /// There is no more of it.
    End,
    /// It goes no further: one of its two sessions is gone, or something of it was lost.
    Over,
}

impl BlobNote {
    /// As MessagePack.
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec(self).unwrap_or_default()
    }

    /// Reads what [`BlobNote::encode`] wrote.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn news() -> impl Strategy<Value = BlobNews> {
        let key = any::<[u8; 32]>().prop_map(Bin);
        prop_oneof![
            (key.clone(), key, any::<u64>()).prop_map(|(from, to, size)| BlobNews::Open { from, to, size }),
            any::<u64>().prop_map(|upto| BlobNews::Go { upto }),
            (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..300))
                .prop_map(|(at, bytes)| BlobNews::Piece { at, bytes: Blob(bytes) }),
            Just(BlobNews::End),
            Just(BlobNews::Over),
        ]
    }

    proptest! {
        #[test]
        fn notes_come_back(id in any::<[u8; 32]>(), word in news()) {
            let note = BlobNote { id: Bin(id), word };
            prop_assert_eq!(BlobNote::parse(&note.encode()), Some(note));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = BlobNote::parse(&bytes);
        }
    }
}
