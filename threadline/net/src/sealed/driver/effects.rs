//! Carries out what the sessions ask for, and takes in what relays say.

use std::sync::Arc;

use threadline::v1;
use threadline::v2::frames::{Deliver, FORMAT_V1, Frame, FrameId, Outcome as Fate, Target};
use threadline::v2::mail::{CarrierAnswer, HighWater, Received};
use threadline::v2::session::{Carrier, ClientSession, SessionEffect};
use threadline::v2::{Code, Id, Key};

use super::status::name;
use super::{Driver, Standing, Trouble};
use crate::link::driver::spool_entry;
use crate::sealed::SealedEvent;
use crate::sealed::connection::{Connection, Incoming};
use crate::store::Spooled;

/// Nonces tried between two looks at whether anyone still waits for the solution.
const POW_SLICE: u64 = 1 << 16;

impl Driver {
    pub(super) async fn effects(&mut self, now: u64) -> Result<(), Trouble> {
        for relay in 0..self.sessions.len() {
            while let Some(effect) = self.sessions.get_mut(relay).and_then(ClientSession::poll_effect) {
                self.effect(relay, effect, now).await?;
            }
        }
        Ok(())
    }

    async fn effect(&mut self, relay: usize, effect: SessionEffect, now: u64) -> Result<(), Trouble> {
        match effect {
            SessionEffect::Connect { connection, carrier: Carrier::WebSocket } => {
                let Some(url) = self.relays.get(relay).and_then(|relay| relay.url.clone()) else {
                    self.incoming(relay, connection, Incoming::Closed(None));
                    return Ok(());
                };
                let (writer, task) = Connection::open(url, relay, connection, self.reports_tx.clone());
                self.connections.insert((relay, connection), writer);
                self.tasks.spawn(task);
            }
            SessionEffect::Connect { connection, carrier: Carrier::Quic } => {
                let Some(target) = self.relays.get(relay).cloned() else { return Ok(()) };
                let identity = Arc::clone(&self.deps.identity);
                let reports = self.reports_tx.clone();
                let (writer, task) = Connection::open_quic(identity, target, relay, connection, reports);
                self.connections.insert((relay, connection), writer);
                self.tasks.spawn(task);
            }
            SessionEffect::Write { connection, frame } => {
                let written =
                    self.connections.get(&(relay, connection)).is_some_and(|writer| writer.write(*frame));
                if !written {
                    self.incoming(relay, connection, Incoming::Closed(None));
                }
            }
            SessionEffect::Close { connection, .. } => drop(self.connections.remove(&(relay, connection))),
            SessionEffect::Solve { connection, puzzle } => {
                let answer = self.solved_tx.clone();
                self.tasks.spawn_blocking(move || {
                    let mut from = 0;
                    while !answer.is_closed() {
                        if let Some(nonce) = puzzle.search(from, POW_SLICE) {
                            let _ = answer.blocking_send((relay, connection, puzzle.epoch, nonce));
                            return;
                        }
                        from += POW_SLICE;
                    }
                });
            }
            SessionEffect::State(state) => {
                tracing::info!(relay = self.relay_url(relay), state = name(state), "v2 session");
                self.tell_status();
            }
            SessionEffect::Welcome(welcome) => self.welcomed(relay, welcome.hw, now).await?,
            SessionEffect::Deliver(deliver) if deliver.fmt == FORMAT_V1 => {
                self.deliver_v1(relay, &deliver).await?;
            }
            SessionEffect::Deliver(deliver) => {
                let claim = match (&deliver.id, &deliver.from, deliver.tt) {
                    (FrameId::Bin(id), Target::Key(from), Some(tag)) => Some((*id, *from, tag)),
                    _ => None,
                };
                let blocked =
                    claim.is_some_and(|(_, from, _)| (self.deps.standing)(&from) == Standing::Blocked);
                let received = if blocked {
                    Received::Refuse(Code::Blocked)
                } else {
                    self.mail.receive(&deliver.env.0, claim, now)
                };
                let session = match received {
                    Received::Take(commit) => {
                        self.keep(commit).await?;
                        if let Some((_, from, _)) = claim {
                            self.courier.heard(relay, from, now);
                        }
                        self.sessions.get_mut(relay).map(|session| session.taken(&[deliver.did]))
                    }
                    Received::Refuse(code) => {
                        self.sessions.get_mut(relay).map(|session| session.not_taken(deliver.did, code))
                    }
                };
                if matches!(session, Some(Err(_))) {
                    tracing::debug!("the session ended before a delivery was confirmed; it comes again");
                }
            }
            SessionEffect::Accepted { to, id, answer } => {
                let answer = self.courier.accepted(relay, &self.sessions, (to, id), &answer, now);
                self.answered(&to, &id, answer, now).await?;
            }
            SessionEffect::Rejected { to, id, code, retry_ms } => {
                let message = (to, id);
                let answer = self.courier.rejected(relay, &self.sessions, message, code, retry_ms, now);
                self.answered(&to, &id, answer, now).await?;
            }
            SessionEffect::Status { id: FrameId::Bin(id), outcome: Fate::Expired | Fate::Dropped } => {
                let peer = self.mail.records().outbox.keys().find(|(_, known)| *known == id).map(|(p, _)| *p);
                if let Some(peer) = peer {
                    let answer = self.courier.gave_up(&self.sessions, (peer, id));
                    self.answered(&peer, &id, answer, now).await?;
                }
            }
            SessionEffect::Status { .. } => {}
            SessionEffect::KeysOk(answer) => {
                let Some(key) = self.relays.get(relay).map(|relay| relay.key) else { return Ok(()) };
                let commit = self.mail.keys_stored(&key, &answer)?;
                self.keep(commit).await?;
                self.publish(relay, Some(answer.have), now).await?;
            }
            SessionEffect::Answer { request, frame } => self.answer(relay, request, *frame, now).await?,
            SessionEffect::Presence(presence) => self.seen(relay, &presence).await,
            SessionEffect::Blob(frame) => self.blob_frame(relay, *frame, now).await?,
            SessionEffect::Lost => {
                self.courier.lost(&mut self.mail, &mut self.sessions, relay, now);
                self.blobs.lost(relay);
                self.searches.retain(|(asked, _), _| *asked != relay);
                self.forget_presence(|_, told| told == relay).await;
            }
        }
        Ok(())
    }

    /// A v1 message that the relay brings over v2: it goes the way of those that the link brings.
    async fn deliver_v1(&mut self, relay: usize, deliver: &Deliver) -> Result<(), Trouble> {
        let us = self.deps.identity.fingerprint();
        let envelope = v1::envelope::Envelope::parse(&deliver.env.0).ok();
        let entry = envelope.and_then(|envelope| spool_entry(self.relay_url(relay), us, &envelope));
        let spooled = match entry {
            Some(entry) => self.deps.store.spool_put(vec![entry], (self.deps.now)()).await?.pop(),
            None => None,
        };
        let Some(session) = self.sessions.get_mut(relay) else { return Ok(()) };
        let _ = match spooled {
            Some(Spooled::New(_) | Spooled::Known) => session.taken(&[deliver.did]),
            Some(Spooled::Full) => session.not_taken(deliver.did, Code::StorageUnavailable),
            None => session.not_taken(deliver.did, Code::BadSignature),
        };
        if matches!(spooled, Some(Spooled::New(_))) {
            let _ = self.deps.events.send(SealedEvent::Spooled).await;
        }
        Ok(())
    }

    async fn welcomed(&mut self, relay: usize, high_water: (u64, u64), now: u64) -> Result<(), Trouble> {
        match self.mail.check_high_water(high_water, now) {
            HighWater::Fits => {}
            HighWater::Disputed => {
                let relay = self.relay_url(relay);
                tracing::warn!(
                    relay,
                    "a relay says again that this state is an old copy; it is not believed"
                );
            }
            HighWater::OldCopy => {
                tracing::warn!("this state is an old copy of another: it becomes a device of its own");
                let commit = self.mail.replace_device(now)?;
                self.keep(commit).await?;
                let _ = self.deps.events.send(SealedEvent::NewDevice).await;
                return Err(Trouble::NewDevice);
            }
        }
        if let Some(relay) = self.relays.get(relay).filter(|relay| relay.remember) {
            let mut pin = self.deps.store.relay_pin(&relay.name).await?;
            if !pin.spoke_v2 || pin.key != Some(relay.key) {
                (pin.spoke_v2, pin.key) = (true, Some(relay.key));
                self.deps.store.set_relay_pin(&relay.name, &pin).await?;
            }
        }
        self.compare_clocks(relay).await;
        self.courier.welcomed(&mut self.mail, now);
        let watched = self.watched.borrow().clone();
        if !watched.is_empty() {
            let _ = self.sessions.get_mut(relay).map(|session| session.watch(watched, false));
        }
        self.publish(relay, None, now).await
    }

    pub(super) async fn publish(&mut self, relay: usize, have: Option<u16>, now: u64) -> Result<(), Trouble> {
        let Some(key) = self.relays.get(relay).map(|relay| relay.key) else { return Ok(()) };
        let (commit, put) = self.mail.publish(&key, have, now)?;
        self.keep(commit).await?;
        if let (Some(put), Some(session)) = (put, self.sessions.get_mut(relay)) {
            let _ = session.put_keys(put);
        }
        Ok(())
    }

    async fn answer(&mut self, relay: usize, request: u32, frame: Frame, now: u64) -> Result<(), Trouble> {
        if let Some(waiting) = self.searches.remove(&(relay, request)) {
            if let Frame::Found(found) = frame {
                let _ = waiting.send(found);
            }
            return Ok(());
        }
        if let Frame::Fault(fault) = &frame
            && self.blob_refused(relay, request, fault.code)
        {
            return Ok(());
        }
        let question = (relay, request);
        let answer = self.courier.answer(&mut self.mail, &self.sessions, question, frame, now);
        let Some((commit, error)) = answer else { return Ok(()) };
        if let Some(error) = error {
            tracing::warn!(relay = self.relay_url(relay), %error, "what a relay says of a peer is refused");
        }
        self.keep(commit).await
    }

    pub(super) async fn answered(
        &mut self,
        to: &Key,
        id: &Id,
        answer: CarrierAnswer,
        now: u64,
    ) -> Result<(), Trouble> {
        let (commit, change) = self.mail.answered(to, id, answer, now);
        self.keep_with(commit, change.into_iter().collect()).await
    }
}
