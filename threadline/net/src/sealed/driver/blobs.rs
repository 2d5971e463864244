//! Texts that travel beside their messages: asked of their senders, and made again from our own messages when a
//! recipient asks. Nothing of them is kept but the text itself, with its message.

use std::collections::HashMap;

use threadline::identity::PublicIdentity;
use threadline::v2::blob::{
    BlobDesk, BlobError, BlobPeer, BlobStep, BlobWord, WORD_TYPE, open_text, seal_text,
};
use threadline::v2::content::Attachment;
use threadline::v2::frames::Frame;
use threadline::v2::mail::{Draft, InboxRow, OutRow, SubmitError};
use threadline::v2::opened::{OpenedMessage, message_id};
use threadline::v2::{Bin, Code, Id, Key};
use threadline::{MessageId, ThreadId};

use super::{Driver, SealedEvent, Trouble};
use crate::store::Direction;

/// Life of a question for a blob, ms: later the one who asks has asked again.
const QUESTION_MS: u64 = 600_000;
/// Damaged copies of one text after which the node's log says so.
const SUSPICIOUS: u32 = 3;

/// Texts on their way in both directions.
#[derive(Default)]
pub(super) struct Blobs {
    desk: BlobDesk,
    /// Messages whose text is wanted, with the newest question for it.
    wanted: HashMap<Bin<32>, (OpenedMessage, Option<Id>)>,
}

impl Blobs {
    pub(super) fn lost(&mut self, relay: usize) {
        self.desk.lost(relay);
    }
}

impl Driver {
    /// Asks for the text of a message, unless it is on its way or a question for it is.
    pub(super) async fn fetch(&mut self, message: OpenedMessage, now: u64) -> Result<(), Trouble> {
        let Some(blob) = message.blob else { return Ok(()) };
        let peer = message.from;
        if !self.blobs.desk.want(peer, blob.id, blob.size, now) {
            return Ok(());
        }
        let Blobs { desk, wanted } = &mut self.blobs;
        wanted.retain(|id, _| desk.wants(id));
        let asked = self.blobs.wanted.get(&blob.id).and_then(|(_, asked)| *asked);
        let open = |id: &Id| self.mail.records().outbox.get(&(peer, *id)).is_some_and(OutRow::is_open);
        if asked.as_ref().is_some_and(open) {
            return Ok(());
        }
        let question = self.say_word(peer, BlobWord::Want(blob.id), now).await?;
        self.blobs.wanted.insert(blob.id, (message, question));
        Ok(())
    }

    /// Tells a peer something about a blob.
    async fn say_word(&mut self, peer: Key, word: BlobWord, now: u64) -> Result<Option<Id>, Trouble> {
        let Ok(thread) = WORD_TYPE.parse::<ThreadId>() else { return Ok(None) };
        let draft = Draft {
            kind: WORD_TYPE.into(),
            body: word.to_body(),
            ttl_ms: Some(QUESTION_MS),
            priority: 3,
            ..Draft::text(thread, "")
        };
        match self.mail.submit(peer, draft, now) {
            Ok((id, commit)) => {
                self.keep(commit).await?;
                Ok(Some(id))
            }
            Err(SubmitError::Mail(error)) => Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "a word about a text was not sent");
                Ok(None)
            }
        }
    }

    /// A peer said something about a blob.
    pub(super) async fn blob_word(&mut self, row: &InboxRow, now: u64) -> Result<(), Trouble> {
        match BlobWord::of(&row.content.body) {
            Some(BlobWord::Want(id)) => self.wanted_from_us(row.peer, id, now).await,
            Some(BlobWord::Gone(id)) if self.blobs.desk.forget(&row.peer, &id) => {
                self.lose((row.peer, id), "its sender does not have it any more").await
            }
            _ => Ok(()),
        }
    }

    /// Offers a text of ours to its recipient over every relay; the first that leads to it passes it on.
    async fn wanted_from_us(&mut self, peer: Key, id: Bin<32>, now: u64) -> Result<(), Trouble> {
        if !self.blobs.desk.may_offer(&id, now) {
            return Ok(());
        }
        let refers = |attachment: &&Attachment| attachment.id == id;
        let known = self.mail.records().outbox.values().filter(|row| row.peer == peer).find_map(|row| {
            let reference = row.content.attachments.iter().find(refers)?;
            Some((message_id(&row.id), reference.key))
        });
        let bytes = match known {
            Some((message, key)) => self.text_again(&peer, message, key, &id).await?,
            None => None,
        };
        let Some(bytes) = bytes else {
            return self.say_word(peer, BlobWord::Gone(id), now).await.map(drop);
        };
        self.blobs.desk.offer(peer, id, bytes, now);
        for (relay, session) in self.sessions.iter_mut().enumerate() {
            let Some(question) = self.blobs.desk.question(&id) else { break };
            if let Ok(request) = session.open_blob(question) {
                self.blobs.desk.asked(relay, request, &id);
            }
        }
        self.blobs.desk.withdraw(&id);
        Ok(())
    }

    /// The bytes of a text of ours, if they are still what its recipient was told.
    async fn text_again(
        &self,
        peer: &Key,
        message: MessageId,
        key: Bin<32>,
        id: &Bin<32>,
    ) -> Result<Option<Vec<u8>>, Trouble> {
        let Ok(peer) = PublicIdentity::from_bytes(&peer.0) else { return Ok(None) };
        let stored = self.deps.store.message(peer.fingerprint(), message, Direction::Out).await?;
        let text = stored.and_then(|message| message.body);
        let sealed = text.map(|text| seal_text(key, &text));
        Ok(sealed.filter(|(reference, _)| reference.id == *id).map(|(_, bytes)| bytes))
    }

    /// A relay does not pass a blob on. Whether it was one that this number asked for.
    pub(super) fn blob_refused(&mut self, relay: usize, request: u32, code: Code) -> bool {
        let refused = self.blobs.desk.refused(relay, request);
        if let Some((_, id)) = refused {
            let relay = self.relay_url(relay);
            tracing::warn!(relay, code = code.as_str(), blob = %id, "a relay does not pass on a text");
        }
        refused.is_some()
    }

    pub(super) async fn blob_frame(&mut self, relay: usize, frame: Frame, now: u64) -> Result<(), Trouble> {
        for step in self.blobs.desk.handle(relay, frame, now) {
            match step {
                BlobStep::Say(relay, frame) => {
                    let _ = self.sessions.get_mut(relay).map(|session| session.blob(*frame));
                }
                BlobStep::Arrived(blob, bytes) => self.arrived(blob, &bytes).await?,
                BlobStep::Damaged((_, id), times) => {
                    let relay = self.relay_url(relay);
                    if times < SUSPICIOUS {
                        tracing::info!(relay, blob = %id, "a text came damaged; it is asked for again");
                    } else {
                        tracing::warn!(relay, blob = %id, times, "a relay brings a text damaged again and again");
                    }
                }
            }
        }
        Ok(())
    }

    async fn arrived(&mut self, (peer, id): BlobPeer, bytes: &[u8]) -> Result<(), Trouble> {
        let Some((message, _)) = self.blobs.wanted.remove(&id) else { return Ok(()) };
        let Some(blob) = message.blob else { return Ok(()) };
        match open_text(&blob.reference(), bytes) {
            Ok(text) => {
                let message = OpenedMessage { text, blob: None, ..message };
                self.replace(&message).await
            }
            Err(error @ (BlobError::Key | BlobError::NoText | BlobError::Hash)) => {
                self.blobs.wanted.insert(id, (message, None));
                self.lose((peer, id), &error.to_string()).await
            }
        }
    }

    /// The text of a message will never be here.
    async fn lose(&mut self, (_, id): BlobPeer, reason: &str) -> Result<(), Trouble> {
        let Some((message, _)) = self.blobs.wanted.remove(&id) else { return Ok(()) };
        self.replace(&OpenedMessage { lost: Some(reason.to_owned()), ..message }).await
    }

    async fn replace(&mut self, message: &OpenedMessage) -> Result<(), Trouble> {
        if self.deps.store.spool_replace(message).await? {
            let _ = self.deps.events.send(SealedEvent::Spooled).await;
        }
        Ok(())
    }
}
