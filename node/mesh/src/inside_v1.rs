//! Sealed mail inside the messages of a relay that speaks v1 alone (`threadline-wire.md` §4.9): what comes in that way, and
//! how two nodes that share nothing else learn of each other's devices.

use serde_json::Value;
use threadline::identity::PublicIdentity;
use threadline::inbound::Incoming;
use threadline::limits;
use threadline::v1::envelope::Envelope;
use threadline::v2::inside_v1::{INTRODUCTION, Introduction, unwrap};
use threadline::v2::{Code, Key};
use threadline::{Fingerprint, ThreadKey};
use threadline_net::Control;
use threadline_net::store::{SpoolRow, StoreError};

use crate::core::Core;
use crate::ingest::Unready;
use crate::sealed::TAG;

/// Longest text, bytes, beside which an introduction still fits into a payload.
const MAX_TEXT: usize = 60_000;
/// Thread of introductions that come without a text.
const CONTROL_THREAD: &str = "ctl";

impl Core {
    /// An envelope of sealed mail: it goes where those go that come over a relay of v2.
    pub(crate) async fn evaluate_carried(&self, row: &SpoolRow, message: &Envelope) -> Result<bool, Unready> {
        let refused = match unwrap(message) {
            None => "carrier-differs",
            Some(env) => match self.sealed.handle.carried(env).await {
                None => return Ok(false),
                Some(Ok(())) => {
                    self.store.spool_done(row.seq).await?;
                    return Ok(true);
                }
                // Another try may come at a better time.
                Some(Err(Code::Blocked | Code::ClockSkew)) => {
                    self.store.spool_forget(row.seq).await?;
                    return Ok(true);
                }
                Some(Err(code)) => code.as_str(),
            },
        };
        self.log_refusal(row, refused);
        self.store.spool_refuse(row.seq, refused).await?;
        Ok(true)
    }

    /// What a message of v1 says besides of this device: to agents that may understand it, once a day, where the relay does
    /// not tell them.
    pub(crate) async fn introduction_for(
        &self,
        peer: &Fingerprint,
        bytes: usize,
    ) -> Result<Option<Value>, StoreError> {
        let relay_tells = self.config().relay_url.as_ref().is_none_or(|url| self.sealed.speaks(url));
        if relay_tells || bytes > MAX_TEXT || self.routes.leads(peer) {
            return Ok(None);
        }
        let may_understand = self.speaks(peer, TAG).await?
            || self.speaks(peer, "tl-e2e").await?
            || !self.store.has_conversation(*peer).await?;
        if !may_understand {
            return Ok(None);
        }
        let window = vec![self.config().limits.introduction(peer)];
        let usage = self.store.usage(window.clone(), self.now()).await?;
        if limits::check(usage.iter().map(|(window, used)| (window, *used)), self.now()).is_err() {
            return Ok(None);
        }
        let Some(introduction) = self.sealed.handle.introduce().await else { return Ok(None) };
        self.store.record_events(window, self.now()).await?;
        Ok(Some(introduction.to_json()))
    }

    /// Takes over what a message that was taken says of its sender's device.
    pub(crate) async fn learn_introduction(&self, incoming: &Incoming) -> Result<(), StoreError> {
        let header = &incoming.header;
        let is_taken = self.store.is_seen(header.from, header.message_id.clone()).await?;
        if !is_taken && !self.store.speaks_v2(header.from).await? {
            return Ok(());
        }
        let said = incoming.content.metadata.as_ref().and_then(|fields| fields.get(INTRODUCTION));
        let peer = incoming.header.from;
        let Some((key, introduction)) = said.and_then(|said| Introduction::from_json(said, &peer)) else {
            return Ok(());
        };
        if introduction.is_signed() && self.pin(&peer, key, "introduction").await? == Some(key) {
            self.sealed.handle.introduced(&introduction).await;
        }
        Ok(())
    }

    /// Sends a peer whose session is gone what it needs to begin another one.
    pub(crate) async fn introduce_again(&self, peer: &Key) {
        let (Ok(identity), Ok(thread)) = (PublicIdentity::from_bytes(&peer.0), CONTROL_THREAD.parse()) else {
            return;
        };
        let Some(introduction) = self.sealed.handle.introduce().await else { return };
        let key = ThreadKey { peer: identity.fingerprint(), thread };
        let control = Control::Introduction(Box::new(introduction));
        if let Err(error) = self.queue_control_in_v1(&key, control, Some(identity)).await {
            tracing::warn!(%error, "a peer was not told who this device is");
        }
    }
}
