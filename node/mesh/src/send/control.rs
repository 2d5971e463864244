//! Control messages, which hold no free text.

use threadline::identity::PublicIdentity;
use threadline::v1::envelope::{Content, clear, seal};
use threadline::{MessageId, ThreadKey};
use threadline_net::Control;

use super::{SealFailed, envelope_text};
use crate::core::Core;

impl Core {
    /// Sends a control message, which holds no free text, to a peer that reads it. An existing install would start a
    /// session for it.
    pub(crate) async fn send_control(&self, key: &ThreadKey, control: Control) -> Result<(), SealFailed> {
        if !self.speaks(&key.peer, "tl-e2e").await? && !self.store.speaks_v2(key.peer).await? {
            return Ok(());
        }
        self.queue_control(key, control).await
    }

    /// Queues a control message, sealed where the peer reads that.
    pub(crate) async fn queue_control(&self, key: &ThreadKey, control: Control) -> Result<(), SealFailed> {
        if self.control_sealed(key, &control).await? {
            return Ok(());
        }
        let sealed_to = self.seals_to(&key.peer).await?;
        self.queue_control_in_v1(key, control, sealed_to).await
    }

    /// Queues a control message in the form of v1.
    pub(crate) async fn queue_control_in_v1(
        &self,
        key: &ThreadKey,
        control: Control,
        sealed_to: Option<PublicIdentity>,
    ) -> Result<(), SealFailed> {
        let now = self.now();
        let id = MessageId::from_uuid(uuid::Uuid::new_v4());
        let header = self.header(key, &id, now);
        let identity = std::sync::Arc::clone(&self.identity);
        let make = move |control: Control| -> Result<String, SealFailed> {
            let content = Content {
                text: control.text().into(),
                kind: Some(control.kind().into()),
                metadata: control.metadata(),
            };
            let envelope = match &sealed_to {
                Some(key) => {
                    seal(&identity, key, &header, &content, &mut rand::rng()).map_err(|_| SealFailed::Key)?
                }
                None => clear(&header, &content),
            };
            Ok(envelope_text(&envelope))
        };
        self.store.enqueue_control(key.peer, id, control, make, now).await?;
        self.flush();
        Ok(())
    }
}
