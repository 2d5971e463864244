//! Sealed mail of one device: what is sealed for whom, opened from whom, receipted, tried again.
//!
//! Every operation changes the machine at once and returns a [`Commit`]. The caller stores it as one transaction and
//! only then does what the operation promised (hands bytes to a carrier, confirms custody). If a commit fails, the
//! machine is ahead of the store and has to be made anew from it: [`Mail::new`].

mod device;
mod evidence;
mod open;
mod order;
mod records;
mod repair;
mod rows;
mod seal;
mod stale;
#[cfg(test)]
mod tests;

pub use device::{FALLBACK_LIFE_MS, HighWater, ONE_TIME_KEYS, REFILL_BELOW};
pub use evidence::{CarrierAnswer, Change, Evidence};
pub use open::{Dropped, Opened, Outcome, Received, Unopened};
pub use order::{Dispatched, HOLD_MESSAGES, HOLD_MS, Marker};
pub use records::*;
pub use rows::{RowError, RowKind, StoredRow};
pub use seal::{Draft, LearnError, MAX_UNHELD, Sealing, SubmitError};

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::olm::{PickleError, StoreKey};
use super::{Bin, Id, Key};
use crate::identity::Identity;

/// Most messages that wait for a carrier's answer.
pub const MAX_IN_FLIGHT: usize = 64;
/// Sessions kept per pair of devices.
pub const MAX_SESSIONS: usize = 4;
/// A session is renewed after this, ms.
pub const SESSION_LIFE_MS: u64 = 30 * 24 * 3_600_000;
/// A session is renewed after this many messages.
pub const SESSION_MESSAGES: u32 = 5_000;
/// Life of a message of ours, ms (`delivery.ttlHours`).
pub const DEFAULT_TTL_MS: u64 = 7 * 24 * 3_600_000;

/// The machine.
pub struct Mail {
    identity: Arc<Identity>,
    key: Key,
    store_key: StoreKey,
    rng: StdRng,
    records: Records,
    /// Since when each message waits for a carrier's answer, Unix ms.
    in_flight: BTreeMap<(Key, Id), u64>,
    /// Since when opened messages wait for those before them, by a clock that nobody sets.
    waiting_since: BTreeMap<(Key, Id), u64>,
    arrivals: BTreeMap<Key, Vec<u64>>,
    fallback_while_stocked: Vec<u64>,
    stocked: u16,
    offered: BTreeMap<Key, u64>,
    /// Claims in a row that gave no keys.
    claim_failures: BTreeMap<Key, usize>,
}

impl Mail {
    /// From what the store holds. `seed` must come from the operating system's generator, anew each time.
    pub fn new(identity: Arc<Identity>, records: Records, seed: [u8; 32]) -> Self {
        Self {
            key: identity.public().into(),
            store_key: StoreKey::of(&identity),
            rng: StdRng::from_seed(seed),
            identity,
            records,
            in_flight: BTreeMap::new(),
            waiting_since: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            fallback_while_stocked: Vec::new(),
            stocked: 0,
            offered: BTreeMap::new(),
            claim_failures: BTreeMap::new(),
        }
    }

    /// Our key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// What the store has to hold.
    pub fn records(&self) -> &Records {
        &self.records
    }

    fn put(&mut self, commit: &mut Commit, write: Write) {
        self.records.apply(&write);
        commit.writes.push(write);
    }

    fn random<const N: usize>(&mut self) -> Bin<N> {
        let mut bytes = [0; N];
        self.rng.fill_bytes(&mut bytes);
        Bin(bytes)
    }

    /// A UUIDv7 above every one before.
    fn next_id(&mut self, now_ms: u64, commit: &mut Commit) -> Id {
        let random = self.random::<10>().0;
        let fresh = uuid::Builder::from_unix_timestamp_millis(now_ms, &random).into_uuid();
        let last = self.records.last_id.map_or(0, |id| u128::from_be_bytes(id.0));
        let next = if fresh.as_u128() > last { fresh.as_u128() } else { last.saturating_add(1) };
        let id = Bin(next.to_be_bytes());
        self.put(commit, Write::LastId(id));
        id
    }
}

/// Why sealed mail cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MailError {
    /// [`Mail::ensure_device`] comes first.
    #[error("this machine has no device yet")]
    NoDevice,
    /// The store holds another identity's keys, or damaged ones.
    #[error(transparent)]
    Pickle(#[from] PickleError),
}
