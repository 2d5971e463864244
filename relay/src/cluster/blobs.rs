//! Passes blobs between relays: over subjects that nothing stores, each relay with one of its own. What is lost there
//! ends a transfer, and the recipient's node asks for the blob again.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;

use super::engine::{Engine, bytes, note};
use super::layout;
use crate::core::ClusterEvent;
use crate::store::{BlobNote, BodyCipher, RelayName};

/// A note that cannot be handed to the connection for this long is given up.
const HAND_OVER: Duration = Duration::from_secs(2);
/// What the seal of a note is for, before its recipient and its sender.
const PURPOSE: &[u8] = b"blob\0";

impl Engine {
    /// Says something of a blob to another relay.
    pub(super) async fn publish_blob(&self, to: RelayName, blob: &BlobNote) {
        let payload = sealed(&self.cipher, (self.name, to), blob);
        let published = self.client.publish(layout::relay_subject(to), bytes(payload));
        match tokio::time::timeout(HAND_OVER, published).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => note(&error),
            Err(_) => note(&"what is said of a blob cannot be sent"),
        }
    }

    /// Hears what other relays say of blobs until the relay stops.
    pub(super) async fn follow_blobs(self: Arc<Self>) {
        loop {
            match self.client.subscribe(layout::relay_subject(self.name)).await {
                Ok(mut notes) => {
                    while let Some(message) = notes.next().await {
                        if let Some((from, blob)) = opened(&self.cipher, self.name, &message.payload) {
                            self.tell(ClusterEvent::Blob(from, blob)).await;
                        }
                    }
                }
                Err(error) => note(&error),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// A note as it travels: its sender, and the rest sealed for its recipient.
fn sealed(cipher: &BodyCipher, (from, to): (RelayName, RelayName), blob: &BlobNote) -> Vec<u8> {
    let mut payload = [PURPOSE, &to, &from].concat();
    cipher.seal(0, &blob.encode(), &mut payload);
    payload.drain(..PURPOSE.len() + to.len());
    payload
}

/// Sender and content of a note, unless anything of it was changed or it is for somebody else.
fn opened(cipher: &BodyCipher, to: RelayName, payload: &[u8]) -> Option<(RelayName, BlobNote)> {
    let (from, sealed) = payload.split_first_chunk()?;
    let blob = cipher.open(&[PURPOSE, &to, from].concat(), sealed)?;
    Some((*from, BlobNote::parse(&blob)?))
}

#[cfg(test)]
mod tests {
    use threadline::v2::{Bin, Blob};

    use super::*;
    use crate::store::BlobNews;

    #[test]
    fn a_note_opens_for_whom_it_is_meant_and_nobody_else() {
        let cipher = BodyCipher::new(&[3; 32]);
        let note =
            BlobNote { id: Bin([5; 32]), word: BlobNews::Piece { at: 7, bytes: Blob(vec![9; 40_000]) } };
        let payload = sealed(&cipher, ([1; 8], [2; 8]), &note);
        assert!(payload.len() < 40_200, "{}", payload.len());
        assert_eq!(opened(&cipher, [2; 8], &payload), Some(([1; 8], note)));
        assert_eq!(opened(&cipher, [3; 8], &payload), None, "for another");
        assert_eq!(opened(&BodyCipher::new(&[4; 32]), [2; 8], &payload), None, "of another cluster");
        let mut other = payload.clone();
        other[0] ^= 1;
        assert_eq!(opened(&cipher, [2; 8], &other), None, "from another");
        assert_eq!(opened(&cipher, [2; 8], &payload[..5]), None);
    }
}
