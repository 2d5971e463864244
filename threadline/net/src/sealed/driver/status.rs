//! How the sessions are, for people and programs.

use threadline::v2::Code;
use threadline::v2::session::{Carrier, SessionState};

use super::Driver;
use crate::sealed::SealedStatus;

impl Driver {
    pub(super) fn tell_status(&self) {
        let status = self.sessions.iter().zip(&self.relays).map(|(session, relay)| {
            let state = session.state();
            let (carrier, since) = match state {
                SessionState::Ready { since, carrier, .. } => (Some(carrier), Some(since)),
                _ => (None, None),
            };
            let (next_attempt_at, code) = match state {
                SessionState::Waiting { until, code } => (Some(until), code),
                _ => (None, None),
            };
            SealedStatus {
                relay: relay.name.clone(),
                state: name(state),
                carrier: carrier.map(|carrier| match carrier {
                    Carrier::Quic => "quic",
                    Carrier::WebSocket => "websocket",
                }),
                since,
                next_attempt_at,
                code: code.map(Code::as_str),
            }
        });
        self.status.send_replace(status.collect());
    }
}

pub(super) const fn name(state: SessionState) -> &'static str {
    match state {
        SessionState::Stopped => "stopped",
        SessionState::Connecting => "connecting",
        SessionState::Ready { .. } => "ready",
        SessionState::Waiting { .. } => "backoff",
        SessionState::WrongRelay => "wrong-relay",
    }
}
