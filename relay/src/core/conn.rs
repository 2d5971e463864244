//! One socket and, once logged in, its session.

use std::collections::VecDeque;

use threadline::Fingerprint;
use threadline::identity::LoginNonce;
use threadline::v1::frames::{Auth, Metadata, Visibility};

use super::Source;
use super::v2::{Device, Greeting};
use crate::store::{Row, Slot, TierCounts};

pub(super) struct Conn {
    pub(super) source: Source,
    pub(super) opened_ms: i64,
    pub(super) bytes_before_login: usize,
    pub(super) phase: Phase,
    /// When its timer is set, in Unix milliseconds.
    pub(super) wake_at: Option<i64>,
}

pub(super) enum Phase {
    /// The challenge is sent.
    Challenged(Box<LoginNonce>),
    /// The signature is good; storage is asked.
    LoggingIn(Box<LoggingIn>),
    /// Has a token, may do nothing.
    TokenOnly,
    /// Speaks v2 and is not logged in yet.
    Greeting(Box<Greeting>),
    /// Logged in.
    Live(Box<Session>),
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Before,
    TokenOnly,
    Live,
}

impl Phase {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Challenged(_) | Self::LoggingIn(_) | Self::Greeting(_) => Kind::Before,
            Self::TokenOnly => Kind::TokenOnly,
            Self::Live(_) => Kind::Live,
        }
    }
}

pub(super) struct LoggingIn {
    pub(super) key: [u8; 32],
    pub(super) address: Fingerprint,
    pub(super) auth: Auth,
}

pub(super) enum Subscription {
    None,
    All,
    Named(Box<[Fingerprint]>),
}

pub(super) struct Session {
    pub(super) key: [u8; 32],
    pub(super) address: Fingerprint,
    pub(super) source: Source,
    pub(super) visibility: Visibility,
    pub(super) listed: bool,
    pub(super) metadata: Box<Metadata>,
    pub(super) since_ms: i64,
    pub(super) first_seen_ms: i64,
    /// Only of young identities.
    pub(super) tier: Option<Box<TierCounts>>,
    pub(super) subscription: Subscription,
    pub(super) heartbeat_ms: i64,
    pub(super) unanswered: u8,
    pub(super) banned: bool,
    /// Who may see it even when it is private.
    pub(super) siblings: Box<[Fingerprint]>,
    /// Its device, if it speaks v2.
    pub(super) device: Option<Box<Device>>,
    pub(super) delivery: Delivery,
}

impl Session {
    /// What carries it: a place in [`crate::metrics::CARRIERS`].
    pub(super) fn carrier(&self) -> usize {
        self.device.as_ref().map_or(0, |device| device.carrier())
    }

    /// Which of its agent's sessions it is.
    pub(super) fn slot(&self) -> Slot {
        self.device.as_ref().map(|device| device.id.0)
    }

    /// Whether everybody may see that the agent is there.
    pub(super) fn is_open(&self, aging_ms: i64, now_ms: i64) -> bool {
        let visible = self.visibility == Visibility::Public || self.listed;
        visible && self.visibility != Visibility::Private && now_ms >= self.first_seen_ms + aging_ms
    }
}

/// Messages on their way to one session.
#[derive(Default)]
pub(super) struct Delivery {
    /// Read and not yet written, in order.
    pub(super) ready: Ready,
    /// Highest number that was put into `ready`.
    pub(super) read_to: u64,
    /// Highest number in storage at login: older mail is drained slowly.
    pub(super) old_to: u64,
    /// Whether nothing is waiting in storage behind `read_to`.
    pub(super) caught_up: bool,
    pub(super) reading: bool,
    /// The read that is under way began too late: it counts for nothing.
    pub(super) outdated: bool,
    /// Something was stored while a read was under way.
    pub(super) behind: bool,
    pub(super) flight: VecDeque<InFlight>,
    pub(super) flight_bytes: usize,
    /// Messages and pings written so far.
    pub(super) written: u64,
    /// Value of `written` when everything in flight was last sent again.
    pub(super) resent_at: u64,
    /// Pings without a pong, oldest first.
    pub(super) pings: VecDeque<Ping>,
    pub(super) ping_due_ms: Option<i64>,
    pub(super) redeliver_ms: Option<i64>,
    pub(super) retry_ms: Option<i64>,
    /// Deliveries that were not taken and are offered again later: when, and which.
    pub(super) deferred: VecDeque<(i64, u64)>,
    /// Second of the slow drain, and messages drained in it.
    pub(super) drained: (i64, u32),
    /// Something can be written once the events at hand are through.
    pub(super) stirred: bool,
}

/// Messages that are read and not yet written, in order.
#[derive(Default)]
pub(super) struct Ready {
    rows: VecDeque<Row>,
    bytes: usize,
}

impl Ready {
    pub(super) fn push(&mut self, row: Row) {
        self.bytes += row.body.len();
        self.rows.push_back(row);
    }

    pub(super) fn pop(&mut self) -> Option<Row> {
        let row = self.rows.pop_front()?;
        self.bytes -= row.body.len();
        Some(row)
    }

    pub(super) fn first(&self) -> Option<&Row> {
        self.rows.front()
    }

    pub(super) fn last(&self) -> Option<&Row> {
        self.rows.back()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) seq: u64,
    pub(super) id: threadline::MessageId,
    pub(super) size: usize,
    /// Value of `written` when it was first written.
    pub(super) at: u64,
    /// Must be written again.
    pub(super) again: bool,
}

#[derive(Debug)]
pub(super) struct Ping {
    pub(super) sent_ms: i64,
    /// Value of `written` when it was written.
    pub(super) at: u64,
}

impl Conn {
    pub(super) fn session(&self) -> Option<&Session> {
        match &self.phase {
            Phase::Live(session) => Some(session),
            _ => None,
        }
    }

    pub(super) fn session_mut(&mut self) -> Option<&mut Session> {
        match &mut self.phase {
            Phase::Live(session) => Some(session),
            _ => None,
        }
    }

    /// Whether it speaks v2.
    pub(super) fn is_v2(&self) -> bool {
        match &self.phase {
            Phase::Greeting(_) => true,
            Phase::Live(session) => session.device.is_some(),
            Phase::Challenged(_) | Phase::LoggingIn(_) | Phase::TokenOnly => false,
        }
    }

    pub(super) fn is_before_login(&self) -> bool {
        matches!(self.phase.kind(), Kind::Before)
    }
}
