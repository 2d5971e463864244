//! What the relay says in an open session, and its silence.

use rand::{Rng as _, RngExt as _};

use super::{ClientSession, SessionEffect};
use crate::v2::Code;
use crate::v2::frames::{Accepted, Fault, Frame, GoAway, Ping, Pong, Presence, Rejected, Role};

impl ClientSession {
    pub(super) fn check_silence(&mut self, now_ms: u64) {
        let Some(live) = self.live.as_mut().filter(|live| live.silence_ends() <= now_ms) else { return };
        if live.pinged_at.is_some() {
            self.lose_live(false, now_ms);
            self.back_off(0, None, now_ms);
        } else {
            live.pinged_at = Some(now_ms);
            let connection = live.connection;
            let t = self.rng.next_u64();
            self.write(connection, Ping { t, tok: false }.into());
        }
    }

    pub(super) fn handle_open(&mut self, frame: Frame, now_ms: u64) {
        if let Some(live) = &mut self.live {
            live.heard_at = now_ms;
            (live.gave_at, live.pinged_at) = (None, None);
            live.busy |= !matches!(frame, Frame::Ping(_) | Frame::Pong(_) | Frame::Presence(_));
        }
        match frame {
            Frame::Deliver(deliver) => self.effects.push_back(SessionEffect::Deliver(Box::new(deliver))),
            Frame::Accepted(answer) => self.accepted(answer),
            Frame::Rejected(answer) => self.rejected(&answer),
            Frame::Status(status) => {
                self.effects.push_back(SessionEffect::Status { id: status.id, outcome: status.st });
            }
            Frame::KeysOk(answer) => self.effects.push_back(SessionEffect::KeysOk(answer)),
            Frame::Presence(presence) => self.presence(presence),
            Frame::Ping(ping) => {
                let pong = Pong {
                    t: ping.t,
                    now: now_ms,
                    ep: self.config.hello.ep,
                    role: None,
                    tok: None,
                    tok_x: None,
                };
                let _ = self.say(pong.into());
            }
            Frame::Pong(pong) => self.granted(pong.role),
            Frame::BlobOpen(_) | Frame::BlobGo(_) | Frame::BlobData(_) | Frame::BlobEnd(_) => {
                self.effects.push_back(SessionEffect::Blob(Box::new(frame)));
            }
            Frame::GoAway(away) => self.going_away(&away, now_ms),
            Frame::Keys(ref keys) => self.answer(keys.rid, frame),
            Frame::Looked(ref looked) => self.answer(looked.rid, frame),
            Frame::Found(ref found) => self.answer(found.rid, frame),
            Frame::Fault(Fault { rid: Some(rid), code, text }) => self.fault(rid, code, text),
            _ => {}
        }
    }

    pub(super) fn answer(&mut self, request: u32, frame: Frame) {
        self.effects.push_back(SessionEffect::Answer { request, frame: Box::new(frame) });
    }

    pub(super) fn fault(&mut self, rid: u32, code: Code, text: Option<String>) {
        if let Some((to, id)) = self.sends.remove(&rid) {
            self.effects.push_back(SessionEffect::Rejected { to, id, code, retry_ms: None });
        } else {
            self.answer(rid, Fault { rid: Some(rid), code, text }.into());
        }
    }

    pub(super) fn accepted(&mut self, answer: Accepted) {
        if let Some((to, id)) = self.sends.remove(&answer.rid) {
            self.effects.push_back(SessionEffect::Accepted { to, id, answer });
        }
    }

    pub(super) fn rejected(&mut self, answer: &Rejected) {
        if let Some((to, id)) = self.sends.remove(&answer.rid) {
            let (code, retry_ms) = (answer.code, answer.retry_ms);
            self.effects.push_back(SessionEffect::Rejected { to, id, code, retry_ms });
        }
    }

    pub(super) fn presence(&mut self, presence: Presence) {
        let own = presence.key == self.identity.public().into();
        if own && presence.dev == Some(self.config.hello.dev) {
            self.granted(presence.role);
        }
        self.effects.push_back(SessionEffect::Presence(presence));
    }

    pub(super) fn granted(&mut self, role: Option<Role>) {
        if let (Some(live), Some(role)) = (&mut self.live, role) {
            live.role = role;
        }
    }

    /// Another session is opened within the time the relay gave; this one stays until that one is ready.
    pub(super) fn going_away(&mut self, away: &GoAway, now_ms: u64) {
        if self.move_at.is_none() {
            let pause = self.rng.random_range(0..=away.after_ms.min(600_000));
            self.move_at = Some(now_ms.saturating_add(pause));
        }
    }
}
