//! What the core counts.

use super::Core;
use super::conn::Conn;
use crate::abuse::Pattern;
use crate::metrics::{CARRIERS, Figures};
use crate::store::QueueTotals;

/// Totals since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sockets opened.
    pub connections: u64,
    /// Logins refused.
    pub auth_failures: u64,
    /// Messages that entered the pipeline.
    pub routed: u64,
    /// Messages taken into custody.
    pub accepted: u64,
    /// Messages confirmed by their recipient.
    pub delivered: u64,
    /// Messages whose sender heard `queued`.
    pub queued: u64,
    /// Messages refused.
    pub rejected: u64,
    /// Messages given up.
    pub expired: u64,
    /// Messages offered again.
    pub redelivered: u64,
    /// Bans.
    pub bans: u64,
    /// Bans by pattern, in the order of [`Pattern::ALL`].
    pub bans_by: [u64; Pattern::ALL.len()],
    /// `discover` frames answered.
    pub discoveries: u64,
    /// Keys refused because another key has their address.
    pub conflicts: u64,
}

impl std::fmt::Display for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "connections {}, auth failures {}, routed {}, accepted {}, delivered {}, queued {}, rejected {}, \
             expired {}, redelivered {}, bans {}, discoveries {}, conflicts {}",
            self.connections,
            self.auth_failures,
            self.routed,
            self.accepted,
            self.delivered,
            self.queued,
            self.rejected,
            self.expired,
            self.redelivered,
            self.bans,
            self.discoveries,
            self.conflicts
        )
    }
}

/// Numbers for `/health`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Snapshot {
    /// Agents with a live session.
    pub agents: usize,
    /// Open sockets.
    pub connections: usize,
    /// Live sessions by what carries them.
    pub carriers: [(&'static str, usize); CARRIERS.len()],
    /// Messages written and not confirmed.
    pub unconfirmed: usize,
    /// Totals of the queue.
    pub queue: QueueTotals,
    /// Agents with a message in the last five minutes.
    pub tracked_agents: usize,
    /// Identities that came for the first time in the last hour.
    pub new_agents: usize,
    /// Messages that entered the pipeline in the last minute.
    pub messages_per_minute: u32,
    /// Totals.
    pub counters: Counters,
    /// Whether messages may be accepted.
    pub custody_open: bool,
    /// Refusals, times and newcomers.
    pub figures: Figures,
}

impl Core {
    /// Numbers for `/health`.
    pub fn snapshot(&mut self, now_ms: i64) -> Snapshot {
        let mut carriers = CARRIERS.map(|name| (name, 0));
        let mut unconfirmed = 0;
        for session in self.conns.values().filter_map(Conn::session) {
            unconfirmed += session.delivery.flight.len();
            if let Some((_, count)) = carriers.get_mut(session.carrier()) {
                *count += 1;
            }
        }
        Snapshot {
            agents: self.sessions.len()
                + self.devices.keys().filter(|address| !self.sessions.contains_key(address)).count(),
            connections: self.conns.len(),
            carriers,
            unconfirmed,
            queue: self.totals,
            tracked_agents: self.abuse.tracked(),
            new_agents: self.windows.newcomers.count(&(), now_ms) as usize,
            messages_per_minute: self.windows.routed.count(&(), now_ms),
            counters: self.counters,
            custody_open: self.custody_open,
            figures: self.figures,
        }
    }

    /// Totals since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}
