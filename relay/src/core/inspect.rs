//! What an operator may see of live sessions; never a message.

use threadline::Fingerprint;
use threadline::v1::frames::{Metadata, Visibility};

use super::conn::Session;
use super::{ConnId, Core};
use crate::metrics::CARRIERS;
use crate::store::TierCounts;

/// A live session.
#[derive(Debug, Clone)]
pub struct SessionInfo {
    /// Number of its connection.
    pub conn: ConnId,
    /// Address of the agent.
    pub address: Fingerprint,
    /// Key of the agent.
    pub key: [u8; 32],
    /// Cleaned metadata.
    pub metadata: Metadata,
    /// Who can find it.
    pub visibility: Visibility,
    /// Since when, in Unix milliseconds.
    pub since_ms: i64,
    /// When the identity first came, in Unix milliseconds.
    pub first_seen_ms: i64,
    /// Pseudonym of where it comes from.
    pub source: [u8; 16],
    /// Counters of a young identity.
    pub tier: Option<TierCounts>,
    /// What carries it: `ws1`, `ws2` or `quic`.
    pub carrier: &'static str,
    /// Its device, if it speaks v2.
    pub device: Option<String>,
    /// Messages written and not confirmed.
    pub in_flight: usize,
}

impl Core {
    /// The live session of an agent.
    pub fn session_info(&self, address: &Fingerprint) -> Option<SessionInfo> {
        let conn = self.active_device(address).or_else(|| self.sessions.get(address).copied())?;
        self.session(conn).map(|session| info(conn, session))
    }

    /// Live sessions in the order of their addresses, from behind `after` on.
    pub fn sessions_after(&self, after: Option<Fingerprint>, most: usize) -> Vec<SessionInfo> {
        let behind = |address: &&Fingerprint| after.is_none_or(|after| **address > after);
        let mut addresses: Vec<Fingerprint> =
            self.sessions.keys().chain(self.devices.keys()).filter(behind).copied().collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.len() > most {
            addresses.truncate(most);
        }
        addresses.iter().filter_map(|address| self.session_info(address)).collect()
    }
}

fn info(conn: ConnId, session: &Session) -> SessionInfo {
    SessionInfo {
        conn,
        address: session.address,
        key: session.key,
        metadata: (*session.metadata).clone(),
        visibility: session.visibility,
        since_ms: session.since_ms,
        first_seen_ms: session.first_seen_ms,
        source: session.source.pseudonym,
        tier: session.tier.as_deref().cloned(),
        carrier: CARRIERS.get(session.carrier()).copied().unwrap_or_default(),
        device: session.device.as_ref().map(|device| hex::encode(device.id.0)),
        in_flight: session.delivery.flight.len(),
    }
}
