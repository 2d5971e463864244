//! From nothing to an open session: attempts over both carriers, and who proves what.

use rand::Rng as _;

use super::quic::Probe;
use super::{
    ATTEMPT_MS, Attempt, BAN_MS, ClientSession, ConnectionId, LOGIN_HEAD_START_MS, Live, PUZZLE_MS,
    RACE_HEAD_START_MS, STABLE_MS, SessionEffect, Stage,
};
use crate::identity::Purpose;
use crate::v2::frames::{Challenge, Frame, Pow, Proof, Refuse, Welcome};
use crate::v2::login::{PowPuzzle, WsExchange};
use crate::v2::session::{Carrier, close};
use crate::v2::{Bin, Code};

impl ClientSession {
    /// Tries both carriers; the first to open the session wins.
    pub(super) fn race(&mut self, now_ms: u64) {
        self.quic_failed = false;
        if self.config.quic && (self.quic.goes_first() || !self.config.websocket) {
            self.attempt(Carrier::Quic, now_ms);
            self.websocket_at = self.config.websocket.then(|| now_ms.saturating_add(RACE_HEAD_START_MS));
        } else {
            self.attempt(Carrier::WebSocket, now_ms);
        }
    }

    /// Tries QUIC beside a session over WebSocket/2, once that is quiet: what is on its way when the sessions change is
    /// asked or sent again.
    pub(super) fn probe(&mut self, probe: Probe, now_ms: u64) {
        let busy = self.live.as_mut().is_some_and(|live| std::mem::take(&mut live.busy));
        self.probe = probe.put_off(now_ms).filter(|_| busy);
        if self.probe.is_none() {
            self.attempt(Carrier::Quic, now_ms);
        }
    }

    pub(super) fn attempt(&mut self, carrier: Carrier, now_ms: u64) {
        if self.attempts.values().any(|attempt| attempt.carrier == carrier) {
            return;
        }
        self.next_connection += 1;
        let connection = ConnectionId(self.next_connection);
        let deadline = now_ms.saturating_add(ATTEMPT_MS);
        self.attempts.insert(connection, Attempt { carrier, deadline, stage: Stage::Begun, exchange: None });
        self.effects.push_back(SessionEffect::Connect { connection, carrier });
    }

    pub(super) fn attempt_failed(
        &mut self,
        connection: ConnectionId,
        least: u64,
        code: Option<Code>,
        now_ms: u64,
    ) {
        let Some(attempt) = self.attempts.remove(&connection) else { return };
        match attempt.carrier {
            Carrier::Quic => self.quic_attempt_failed(least, now_ms),
            Carrier::WebSocket => self.websocket_attempt_failed(now_ms),
        }
        let others = !self.attempts.is_empty() || self.websocket_at.is_some() || self.live.is_some();
        if !others {
            self.back_off(least, code, now_ms);
        }
    }

    fn quic_attempt_failed(&mut self, least: u64, now_ms: u64) {
        if let Some(at) = &mut self.websocket_at {
            *at = (*at).min(now_ms);
        }
        if self.live.as_ref().is_some_and(|live| live.carrier == Carrier::WebSocket) {
            self.quic.missed();
            self.plan_probe(least, now_ms);
        } else {
            self.quic_failed = true;
        }
    }

    fn websocket_attempt_failed(&mut self, now_ms: u64) {
        if let Some(held) = self.quic_at(Stage::Connected) {
            self.log_in_over_quic(held, now_ms);
        } else if self.live.is_none() && self.config.quic && !self.quic_failed {
            self.attempt(Carrier::Quic, now_ms);
        }
    }

    fn plan_probe(&mut self, least: u64, now_ms: u64) {
        let pause = self.quic.pause(&mut self.rng).max(least);
        self.probe = Some(Probe::at(now_ms.saturating_add(pause)));
    }

    /// The attempt over QUIC that has come so far.
    fn quic_at(&self, stage: Stage) -> Option<ConnectionId> {
        let mut attempts = self.attempts.iter();
        attempts.find(|(_, a)| a.carrier == Carrier::Quic && a.stage == stage).map(|(id, _)| *id)
    }

    /// UDP gets through. Where WebSocket/2 is logging in already, that decides first; else it waits.
    pub(super) fn quic_connected(&mut self, connection: ConnectionId, now_ms: u64) {
        if self.attempts.values().any(|a| a.carrier == Carrier::WebSocket && a.stage == Stage::LoggingIn) {
            return;
        }
        self.log_in_over_quic(connection, now_ms);
    }

    fn log_in_over_quic(&mut self, connection: ConnectionId, now_ms: u64) {
        let Some(attempt) = self.attempts.get_mut(&connection) else { return };
        attempt.stage = Stage::LoggingIn;
        let rivals: Vec<_> = self
            .attempts
            .iter()
            .filter(|(_, a)| a.carrier == Carrier::WebSocket)
            .map(|(id, _)| *id)
            .collect();
        for rival in &rivals {
            self.attempts.remove(rival);
            self.close(*rival, close::NORMAL);
        }
        if self.websocket_at.is_some() || !rivals.is_empty() {
            self.websocket_at = Some(now_ms.saturating_add(LOGIN_HEAD_START_MS));
        }
        let hello = self.config.hello.clone();
        self.write(connection, hello.into());
    }

    pub(super) fn back_off(&mut self, least: u64, code: Option<Code>, now_ms: u64) {
        if self.on && !self.wrong_relay {
            let pause = self.backoff.next(&mut self.rng, least);
            self.wait = Some((now_ms.saturating_add(pause), code));
        }
    }

    pub(super) fn end_attempts(&mut self) {
        self.websocket_at = None;
        self.move_at = None;
        self.probe = None;
        for connection in std::mem::take(&mut self.attempts).into_keys() {
            self.close(connection, close::NORMAL);
        }
    }

    /// The session broke off, or the relay ended it.
    pub(super) fn lose_live(&mut self, by_relay: bool, now_ms: u64) {
        if let Some(live) = self.live.as_ref().filter(|live| live.carrier == Carrier::Quic) {
            self.quic.ended(now_ms.saturating_sub(live.since), by_relay);
        }
        self.end_live(close::NORMAL, now_ms);
    }

    pub(super) fn end_live(&mut self, code: u16, now_ms: u64) {
        let Some(live) = self.live.take() else { return };
        if now_ms.saturating_sub(live.since) >= STABLE_MS {
            self.backoff.reset();
        }
        self.move_at = None;
        self.probe = None;
        self.close(live.connection, code);
        self.sends.clear();
        self.effects.push_back(SessionEffect::Lost);
    }

    pub(super) fn handle_early(&mut self, connection: ConnectionId, frame: Frame, now_ms: u64) {
        match frame {
            Frame::Challenge(challenge) => self.challenged(connection, &challenge, now_ms),
            Frame::Pow(pow) => self.puzzled(connection, pow),
            Frame::Welcome(welcome) => self.welcomed(connection, welcome, now_ms),
            Frame::Refuse(refuse) => self.refused(connection, &refuse, now_ms),
            _ => {
                self.close(connection, close::PROTOCOL);
                self.attempt_failed(connection, 0, None, now_ms);
            }
        }
    }

    pub(super) fn challenged(&mut self, connection: ConnectionId, challenge: &Challenge, now_ms: u64) {
        let client_nonce = {
            let mut bytes = [0; 32];
            self.rng.fill_bytes(&mut bytes);
            Bin(bytes)
        };
        let Some(attempt) = self.attempts.get_mut(&connection) else { return };
        if attempt.carrier != Carrier::WebSocket || attempt.exchange.is_some() {
            return;
        }
        if challenge.rk != self.config.relay {
            self.not_our_relay(connection, now_ms);
            return;
        }
        let exchange = WsExchange {
            relay: challenge.rk,
            nonce: challenge.n,
            client_nonce,
            key: self.identity.public().into(),
            host: self.config.host.clone(),
        };
        let proof = Proof {
            k: exchange.key,
            cn: client_nonce,
            host: exchange.host.clone(),
            s: Bin(self.identity.sign(&Purpose::WsAuth(&exchange))),
        };
        attempt.exchange = Some(exchange);
        attempt.stage = Stage::LoggingIn;
        // It had its time.
        if let Some(slow) = self.quic_at(Stage::LoggingIn) {
            self.close(slow, close::NORMAL);
            self.attempt_failed(slow, 0, None, now_ms);
        }
        let hello = self.config.hello.clone();
        self.write(connection, proof.into());
        self.write(connection, hello.into());
    }

    pub(super) fn not_our_relay(&mut self, connection: ConnectionId, now_ms: u64) {
        self.close(connection, close::PROTOCOL);
        if self.live.is_some() {
            self.attempt_failed(connection, 0, None, now_ms);
        } else {
            self.attempts.remove(&connection);
            self.wrong_relay = true;
            self.on = false;
            self.wait = None;
            self.end_attempts();
        }
    }

    pub(super) fn puzzled(&mut self, connection: ConnectionId, pow: Pow) {
        let puzzle = PowPuzzle {
            epoch: pow.e,
            challenge: pow.h,
            bits: pow.bits,
            relay: self.config.relay,
            client: self.identity.public().into(),
        };
        if let Some(attempt) = self.attempts.get_mut(&connection) {
            attempt.deadline = attempt.deadline.saturating_add(PUZZLE_MS);
            if let Some(at) = &mut self.websocket_at {
                *at = at.saturating_add(PUZZLE_MS);
            }
            self.effects.push_back(SessionEffect::Solve { connection, puzzle });
        }
    }

    pub(super) fn welcomed(&mut self, connection: ConnectionId, welcome: Welcome, now_ms: u64) {
        let Some(attempt) = self.attempts.get(&connection) else { return };
        let proven = match (attempt.carrier, &attempt.exchange) {
            (Carrier::Quic, _) => true,
            (Carrier::WebSocket, Some(exchange)) => {
                welcome.rs.is_some_and(|signature| exchange.relay_proved(&signature.0))
            }
            (Carrier::WebSocket, None) => false,
        };
        if !proven || welcome.relay != self.config.relay {
            self.not_our_relay(connection, now_ms);
            return;
        }
        let carrier = attempt.carrier;
        self.attempts.remove(&connection);
        if carrier == Carrier::Quic {
            self.quic.opened();
        } else if std::mem::take(&mut self.quic_failed) || self.quic_at(Stage::Begun).is_some() {
            // Where packets vanish, QUIC never fails: it is overtaken.
            self.quic.missed();
        }
        self.end_attempts();
        self.end_live(close::NORMAL, now_ms);
        self.wait = None;
        if carrier == Carrier::WebSocket && self.config.quic {
            self.plan_probe(0, now_ms);
        }
        let role = welcome.role;
        let clocks = (welcome.now, now_ms);
        self.live = Some(Live {
            connection,
            carrier,
            since: now_ms,
            role,
            heard_at: now_ms,
            busy: false,
            gave_at: None,
            pinged_at: None,
            clocks,
        });
        self.tell();
        self.effects.push_back(SessionEffect::Welcome(Box::new(welcome)));
    }

    pub(super) fn refused(&mut self, connection: ConnectionId, refuse: &Refuse, now_ms: u64) {
        self.close(connection, close::NORMAL);
        let ban = if refuse.code == Code::Banned { BAN_MS } else { 0 };
        let least = refuse.retry_ms.unwrap_or(ban);
        if self.live.is_none() {
            self.attempts.remove(&connection);
            self.end_attempts();
            self.back_off(least, Some(refuse.code), now_ms);
        } else {
            self.attempt_failed(connection, least, Some(refuse.code), now_ms);
        }
    }
}
