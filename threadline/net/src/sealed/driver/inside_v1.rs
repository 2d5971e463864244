//! Sealed mail that a relay of v1 carries inside its messages (`threadline-wire.md` §4.9): the link writes and reads them.

use threadline::identity::PublicIdentity;
use threadline::v2::envelope::Envelope;
use threadline::v2::frames::Keys;
use threadline::v2::inside_v1::wrap;
use threadline::v2::mail::{CarrierAnswer, Received};
use threadline::v2::opened::message_id;
use threadline::v2::session::ClientSession;
use threadline::v2::{Code, Key};
use tokio::sync::watch;

use super::{Driver, Standing, Trouble};
use crate::link::LinkStatus;
use crate::sealed::SealedEvent;

/// Longest wait for a peer that lost its session to introduce itself, ms.
const INTRODUCTION_WAIT_MS: u64 = 5_000;

/// Waits for another state of the link.
pub(super) async fn link_changed(link: &mut Option<watch::Receiver<LinkStatus>>) {
    if let Some(status) = link
        && status.changed().await.is_ok()
    {
        return;
    }
    *link = None;
    std::future::pending::<()>().await;
}

impl Driver {
    /// Whether the link is there, at a relay that speaks v1 alone.
    pub(super) fn link_carries(&self) -> bool {
        let Some(link) = &self.link else { return false };
        let status = link.borrow();
        let speaks_v2 = |url: &String| self.relays.iter().any(|relay| relay.name == *url);
        status.is_connected() && status.relay_url.as_ref().is_some_and(|url| !speaks_v2(url))
    }

    /// Hands the link what it is to carry. Its relay's word about that proves nothing, so none is waited for.
    pub(super) async fn carry(&mut self, now: u64) -> Result<(), Trouble> {
        let mut some = false;
        for (to, id, env) in self.courier.take_for_v1() {
            self.answered(&to, &id, CarrierAnswer::Written, now).await?;
            let (Ok(peer), Some(message)) =
                (PublicIdentity::from_bytes(&to.0), wrap(&env.0, (self.deps.now)()))
            else {
                continue;
            };
            let message = String::from_utf8(message.to_bytes()).unwrap_or_default();
            let at = (self.deps.now)();
            self.deps.store.enqueue_carried(peer.fingerprint(), message_id(&id), message, at).await?;
            some = true;
        }
        if some {
            let _ = self.deps.events.send(SealedEvent::Carry).await;
        }
        Ok(())
    }

    /// Takes an envelope that came inside a v1 message.
    pub(super) async fn carried(&mut self, env: &[u8], now: u64) -> Result<Result<(), Code>, Trouble> {
        let Ok(from) = Envelope::parse(env).map(|envelope| envelope.header.from) else {
            return Ok(Err(Code::BadSignature));
        };
        if (self.deps.standing)(&from) == Standing::Blocked {
            return Ok(Err(Code::Blocked));
        }
        match self.mail.receive(env, None, now) {
            Received::Take(commit) => {
                self.keep(commit).await?;
                self.courier.heard_in_v1(self.sessions.len(), from, now);
                Ok(Ok(()))
            }
            Received::Refuse(code) => Ok(Err(code)),
        }
    }

    /// Keys of a peer are missing, and there is no relay of v2 that could be asked for them. The peer may introduce itself in
    /// a moment; if it does not, its devices that have a session get what waits for it.
    pub(super) async fn go_on_without_keys(&mut self, peer: &Key, now: u64) -> Result<(), Trouble> {
        if !self.link_carries() || self.sessions.iter().any(ClientSession::is_ready) {
            self.keyless.remove(peer);
            return Ok(());
        }
        let since = *self.keyless.entry(*peer).or_insert(now);
        if since.saturating_add(INTRODUCTION_WAIT_MS) > now {
            return Ok(());
        }
        self.keyless.remove(peer);
        let commit = self.mail.keys_unavailable(peer, now);
        self.keep(commit).await
    }

    /// A peer said who its device is, with a key to begin a session with.
    pub(super) async fn introduced(&mut self, peer: &Key, keys: &Keys, now: u64) -> Result<(), Trouble> {
        match self.mail.learn_keys(peer, keys, now) {
            Ok(commit) => {
                self.keyless.remove(peer);
                self.keep(commit).await
            }
            Err(error) => {
                tracing::warn!(%error, "an introduction is refused");
                Ok(())
            }
        }
    }
}
