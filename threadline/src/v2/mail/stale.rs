//! Envelopes that their peer would not open, which are sealed again under the same id before it complains.
//!
//! - Messages that were under way for so long that the keys for them are going: the peer keeps those of the newest five
//!   chains of a ratchet, and in a lively conversation every reply begins another one.
//! - Messages that were sealed while our clock was far ahead: peers refuse them until that time has come, and what was
//!   sealed after the clock was set right would overtake them.

use super::{Commit, Mail, OutRow, SessionRow, Write};
use crate::v2::envelope::{Envelope, Leg};
use crate::v2::olm::chain_of;
use crate::v2::{Bin, Id, Key, MAX_AHEAD_MS};

/// Chains of a session within which a message may go out again as it is: the rest of the peer's five may pass while it
/// travels.
const FRESH_CHAINS: usize = 3;

/// Remembers the chain of a leg that was sealed just now.
pub(super) fn note_chain(session: &mut SessionRow, leg: &Leg) {
    let Some(chain) = chain_of(leg).filter(|chain| session.chains.last() != Some(chain)) else { return };
    session.chains.push(chain);
    let old = session.chains.len().saturating_sub(FRESH_CHAINS);
    session.chains.drain(..old);
}

impl Mail {
    /// Takes the envelopes away from what would go out again now and might not open any more, and from everything that
    /// claims to come from the future: it is sealed next. Messages whose carrier gave no answer for `patience_ms` are about
    /// to go another way.
    pub fn drop_stale(&mut self, patience_ms: u64, now_ms: u64) -> Commit {
        let mut commit = Commit::default();
        let due = self.due(now_ms).into_iter().chain(self.slow(patience_ms, now_ms));
        let stale = due.filter(|message| self.is_stale(message)).chain(self.ahead(now_ms));
        let stale: std::collections::BTreeSet<(Key, Id)> = stale.collect();
        for message in stale {
            let Some(row) = self.records.outbox.get(&message).cloned() else { continue };
            self.in_flight.remove(&message);
            self.put(&mut commit, Write::Out(Box::new(OutRow { env: None, held: false, ..row })));
        }
        commit
    }

    /// Messages that no peer takes yet by what they say of their time.
    fn ahead(&self, now_ms: u64) -> impl Iterator<Item = (Key, Id)> {
        let latest = now_ms.saturating_add(MAX_AHEAD_MS);
        let ahead = move |row: &OutRow| row.is_open() && row.env.is_some() && row.sealed_at > latest;
        self.records.outbox.iter().filter(move |(_, row)| ahead(row)).map(|(message, _)| *message)
    }

    /// Whether one of its legs was sealed in a chain that is not among the newest, or in a session that another one
    /// replaced.
    fn is_stale(&self, message: &(Key, Id)) -> bool {
        let Some(row) = self.records.outbox.get(message).filter(|row| row.is_open()) else { return false };
        let Some(Ok(envelope)) = row.env.as_ref().map(|env| Envelope::parse(&env.0)) else { return false };
        row.legs.iter().any(|(device, session)| {
            let key = (row.peer, *device, session.clone());
            let Some(session) = self.records.sessions.get(&key) else {
                return self.sessions_with(&row.peer, device).next().is_some();
            };
            let chain: Option<Bin<32>> = envelope.leg(device).and_then(chain_of);
            !session.chains.is_empty() && chain.is_some_and(|chain| !session.chains.contains(&chain))
        })
    }
}
