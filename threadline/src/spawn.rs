//! When a session may be started for a peer, and in what order (`threadline-agent.md` §11.2 and §11.5). The queue itself
//! is the database; this keeps what may be forgotten at a restart.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Fingerprint, MessageId};

const MINUTE_MS: i64 = 60_000;
const SESSION_LIMIT_RETRY_MS: i64 = MINUTE_MS;
const MEMORY_RETRY_MS: i64 = 2 * MINUTE_MS;
const PENALTY_FAILURES: u32 = 3;
const INFRA_FAILURES: usize = 5;
const INFRA_WINDOW_MS: i64 = 10 * MINUTE_MS;
const DEGRADED_MS: i64 = 30 * MINUTE_MS;
const COST: f64 = 1.0;

/// Spawns of one peer in 24 h.
pub const MAX_SPAWNS_PER_PEER_DAY: u32 = 1_000;
/// Spawns that have not ended.
pub const MAX_IN_FLIGHT: u32 = 1_000;
/// Rows of the ledger.
pub const MAX_LEDGER_ROWS: u32 = 100_000;
/// Age at which a waiting message is dropped, ms.
pub const QUEUE_LIFE_MS: i64 = 10 * MINUTE_MS;
/// Denials of one message before the owner hears of it.
pub const MAX_DENIALS: u32 = 3;
/// Or this long after its first denial, ms.
pub const DENIAL_PATIENCE_MS: i64 = 30 * MINUTE_MS;

/// Live settings (`threadline.spawn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SpawnConfig {
    /// Whether waiting messages start sessions at all.
    pub drain_enabled: bool,
    /// Between two starts for one peer, ms.
    pub cooldown_ms: u32,
    /// Starts in one tick, at least 1.
    pub max_drains_per_tick: u32,
    /// Largest prompt context, bytes, at least 1.
    pub max_envelope_bytes: u32,
    /// Waiting messages of one peer.
    pub max_queued_per_agent: u32,
    /// Waiting messages.
    pub max_global_queued: u32,
    /// Waiting messages of one peer while our own trouble lasts.
    pub degraded_max_queued_per_agent: u32,
}

impl Default for SpawnConfig {
    fn default() -> Self {
        Self {
            drain_enabled: true,
            cooldown_ms: 30_000,
            max_drains_per_tick: 8,
            max_envelope_bytes: 262_144,
            max_queued_per_agent: 10,
            max_global_queued: 1_000,
            degraded_max_queued_per_agent: 1,
        }
    }
}

impl SpawnConfig {
    /// Time between ticks, ms: a quarter of the cooldown, between 1 s and 5 s.
    pub fn tick_ms(&self) -> i64 {
        i64::from(self.cooldown_ms / 4).clamp(1_000, 5_000)
    }
}

/// Why no session is started now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DenialReason {
    /// A session for this peer was started a moment ago.
    Cooldown,
    /// The peer made three starts fail.
    Penalty,
    /// All slots are taken.
    SessionLimit,
    /// More than 80 % of the memory is in use.
    MemoryPressure,
    /// The prompt is too large.
    EnvelopeTooLarge,
    /// Too many messages wait.
    QueueFull,
    /// The ledger is full.
    LedgerFull,
    /// Too many sessions for this peer today.
    PeerSpawnFlood,
}

impl DenialReason {
    /// Kebab-case word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cooldown => "cooldown",
            Self::Penalty => "penalty",
            Self::SessionLimit => "session-limit",
            Self::MemoryPressure => "memory-pressure",
            Self::EnvelopeTooLarge => "envelope-too-large",
            Self::QueueFull => "queue-full",
            Self::LedgerFull => "ledger-full",
            Self::PeerSpawnFlood => "peer-spawn-flood",
        }
    }
}

/// A denied start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// Why.
    pub reason: DenialReason,
    /// Earliest useful retry, Unix ms; `None` when the same message will never pass.
    pub retry_at: Option<i64>,
}

/// What is true of the node when a session is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// Sessions that serve peers.
    pub peer_sessions: u32,
    /// `threadline.sessions.maxActive`.
    pub max_peer_sessions: u32,
    /// Whether the node's own limit has a free slot.
    pub node_slot_free: bool,
    /// Memory in use, percent.
    pub memory_percent: u8,
    /// Size of the prompt context, bytes.
    pub context_bytes: u32,
    /// Spawns of this peer in 24 h.
    pub spawns_of_peer_today: u32,
    /// Spawns that have not ended.
    pub in_flight: u32,
    /// Rows of the ledger.
    pub ledger_rows: u32,
}

/// Why a start or a session failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureCause {
    /// The peer's content does not validate.
    EnvelopeValidation,
    /// The peer is above its cap.
    AdmissionCap,
    /// The runtime refused the peer's content.
    SafetyRefusalOnPayload,
    /// Ours.
    MemoryPressure,
    /// Ours.
    SessionCap,
    /// The model provider's.
    #[serde(rename = "provider-5xx")]
    Provider5xx,
    /// Ours.
    GateLlmTimeout,
    /// Nobody knows.
    Ambiguous,
}

impl FailureCause {
    /// Whether the peer caused it.
    pub const fn blames_peer(self) -> bool {
        matches!(self, Self::EnvelopeValidation | Self::AdmissionCap | Self::SafetyRefusalOnPayload)
    }
}

/// A peer with a message that waits for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The peer.
    pub peer: Fingerprint,
    /// Failed attempts for its oldest message.
    pub attempts: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct PeerState {
    last_start: Option<i64>,
    failures: u32,
    deficit: f64,
}

/// Cooldowns, penalties and turns.
#[derive(Debug, Default)]
pub struct SpawnManager {
    config: SpawnConfig,
    peers: BTreeMap<Fingerprint, PeerState>,
    infra_failures: VecDeque<i64>,
    degraded_until: i64,
    last_served: Option<Fingerprint>,
}

impl SpawnManager {
    /// A manager that remembers nothing.
    pub fn new(config: SpawnConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Takes new settings, effective at once.
    pub fn set_config(&mut self, config: SpawnConfig) {
        self.config = config;
    }

    /// The settings.
    pub fn config(&self) -> &SpawnConfig {
        &self.config
    }

    /// Whether one more message of a peer may wait.
    pub fn may_queue(&self, of_peer: u32, total: u32, now_ms: i64) -> Result<(), Denial> {
        let cap = if now_ms < self.degraded_until {
            self.config.degraded_max_queued_per_agent
        } else {
            self.config.max_queued_per_agent
        };
        if of_peer < cap && total < self.config.max_global_queued {
            return Ok(());
        }
        Err(Denial { reason: DenialReason::QueueFull, retry_at: Some(now_ms + QUEUE_LIFE_MS) })
    }

    /// Whether a session may be started for `peer` now.
    pub fn check(&self, peer: &Fingerprint, facts: &NodeFacts, now_ms: i64) -> Result<(), Denial> {
        let deny = |reason, retry_at| Err(Denial { reason, retry_at });
        if facts.context_bytes > self.config.max_envelope_bytes {
            return deny(DenialReason::EnvelopeTooLarge, None);
        }
        if let Some((reason, until)) = self.resting(peer, now_ms) {
            return deny(reason, Some(until));
        }
        if facts.spawns_of_peer_today >= MAX_SPAWNS_PER_PEER_DAY {
            return deny(DenialReason::PeerSpawnFlood, Some(now_ms + 60 * MINUTE_MS));
        }
        if facts.in_flight >= MAX_IN_FLIGHT || facts.ledger_rows >= MAX_LEDGER_ROWS {
            return deny(DenialReason::LedgerFull, Some(now_ms + 60 * MINUTE_MS));
        }
        if facts.peer_sessions >= facts.max_peer_sessions || !facts.node_slot_free {
            return deny(DenialReason::SessionLimit, Some(now_ms + SESSION_LIMIT_RETRY_MS));
        }
        if facts.memory_percent > 80 {
            return deny(DenialReason::MemoryPressure, Some(now_ms + MEMORY_RETRY_MS));
        }
        Ok(())
    }

    /// A start begins: stamped before it, and kept when it fails.
    pub fn started(&mut self, peer: Fingerprint, now_ms: i64) {
        self.peers.entry(peer).or_default().last_start = Some(now_ms);
    }

    /// A session of the peer did its work.
    pub fn succeeded(&mut self, peer: Fingerprint) {
        self.peers.entry(peer).or_default().failures = 0;
    }

    /// A start or session failed. Only failures that the peer caused count against it.
    pub fn failed(&mut self, peer: Fingerprint, cause: FailureCause, now_ms: i64) {
        if cause.blames_peer() {
            let state = self.peers.entry(peer).or_default();
            state.failures = state.failures.saturating_add(1);
            return;
        }
        self.infra_failures.push_back(now_ms);
        while self.infra_failures.front().is_some_and(|at| at + INFRA_WINDOW_MS <= now_ms) {
            self.infra_failures.pop_front();
        }
        if self.infra_failures.len() >= INFRA_FAILURES {
            self.degraded_until = now_ms + DEGRADED_MS;
            self.infra_failures.clear();
        }
    }

    /// Chooses the peers whose oldest message is tried now: deficit round robin, one message each.
    pub fn tick(&mut self, waiting: &[Waiting], now_ms: i64) -> Vec<Fingerprint> {
        self.forget(waiting, now_ms);
        if !self.config.drain_enabled {
            return Vec::new();
        }
        let mut ready: BTreeMap<Fingerprint, u32> = BTreeMap::new();
        for w in waiting.iter().filter(|w| self.resting(&w.peer, now_ms).is_none()) {
            ready.entry(w.peer).or_insert(w.attempts);
        }
        let mut order: Vec<(Fingerprint, u32)> = ready.into_iter().collect();
        let served = order.partition_point(|(peer, _)| Some(*peer) <= self.last_served);
        order.rotate_left(served);
        let mut chosen = Vec::new();
        for (peer, attempts) in order {
            let state = self.peers.entry(peer).or_default();
            state.deficit += if attempts >= 2 { 1.5 } else { 1.0 };
            if state.deficit >= COST && chosen.len() < self.config.max_drains_per_tick as usize {
                state.deficit = (state.deficit - COST).min(COST);
                chosen.push(peer);
                self.last_served = Some(peer);
            }
            state.deficit = state.deficit.min(2.0 * COST);
        }
        chosen
    }

    fn resting(&self, peer: &Fingerprint, now_ms: i64) -> Option<(DenialReason, i64)> {
        let state = self.peers.get(peer)?;
        let cooldown = i64::from(self.config.cooldown_ms);
        let (reason, rest) = if state.failures >= PENALTY_FAILURES {
            (DenialReason::Penalty, 2 * cooldown)
        } else {
            (DenialReason::Cooldown, cooldown)
        };
        let until = state.last_start?.saturating_add(rest);
        (now_ms < until).then_some((reason, until))
    }

    /// Peers without a message and without a reason to remember them.
    fn forget(&mut self, waiting: &[Waiting], now_ms: i64) {
        let keep = |state: &PeerState| {
            state.failures > 0 || state.last_start.is_some_and(|at| at + 10 * MINUTE_MS > now_ms)
        };
        self.peers.retain(|peer, state| keep(state) || waiting.iter().any(|w| w.peer == *peer));
    }
}

/// Whether the owner should hear that a message finds no session.
pub const fn escalates(denials: u32, first_denied_at: i64, now_ms: i64) -> bool {
    denials >= MAX_DENIALS || now_ms - first_denied_at >= DENIAL_PATIENCE_MS
}

/// Key of a spawn in the ledger: one message never starts two sessions.
pub fn event_id(signer: &str, transport_nonce: &str, message: &MessageId) -> String {
    let parts = [signer.as_bytes(), transport_nonce.as_bytes(), message.as_str().as_bytes()];
    hex::encode(Sha256::digest(parts.join(&0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> Fingerprint {
        Fingerprint::from_bytes([n; 16])
    }

    fn free() -> NodeFacts {
        NodeFacts { max_peer_sessions: 3, node_slot_free: true, ..NodeFacts::default() }
    }

    fn denied(manager: &SpawnManager, facts: NodeFacts, now: i64) -> Option<(&'static str, Option<i64>)> {
        manager.check(&peer(1), &facts, now).err().map(|d| (d.reason.as_str(), d.retry_at))
    }

    #[test]
    fn the_table_of_denials() {
        let m = SpawnManager::default();
        let cases = [
            (free(), None),
            (NodeFacts { context_bytes: 262_144, ..free() }, None),
            (NodeFacts { context_bytes: 262_145, ..free() }, Some(("envelope-too-large", None))),
            (NodeFacts { peer_sessions: 3, ..free() }, Some(("session-limit", Some(60_000)))),
            (NodeFacts { node_slot_free: false, ..free() }, Some(("session-limit", Some(60_000)))),
            (NodeFacts { memory_percent: 80, ..free() }, None),
            (NodeFacts { memory_percent: 81, ..free() }, Some(("memory-pressure", Some(120_000)))),
            (
                NodeFacts { spawns_of_peer_today: 1_000, ..free() },
                Some(("peer-spawn-flood", Some(3_600_000))),
            ),
            (NodeFacts { in_flight: 1_000, ..free() }, Some(("ledger-full", Some(3_600_000)))),
        ];
        for (facts, expected) in cases {
            assert_eq!(denied(&m, facts, 0), expected, "{facts:?}");
        }
        assert!(m.may_queue(9, 999, 0).is_ok());
        assert!(m.may_queue(10, 0, 0).is_err() && m.may_queue(0, 1_000, 0).is_err());
    }

    #[test]
    fn cooldown_is_kept_on_failure_and_doubles_for_a_guilty_peer() {
        let mut m = SpawnManager::default();
        m.started(peer(1), 0);
        m.failed(peer(1), FailureCause::SessionCap, 0);
        assert_eq!(denied(&m, free(), 29_999), Some(("cooldown", Some(30_000))));
        assert_eq!(denied(&m, free(), 30_000), None);
        for _ in 0..2 {
            m.failed(peer(1), FailureCause::EnvelopeValidation, 0);
        }
        assert_eq!(denied(&m, free(), 30_000), None);
        m.failed(peer(1), FailureCause::SafetyRefusalOnPayload, 0);
        assert_eq!(denied(&m, free(), 59_999), Some(("penalty", Some(60_000))));
        m.succeeded(peer(1));
        assert_eq!(denied(&m, free(), 30_000), None);
    }

    #[test]
    fn our_own_trouble_shortens_the_queue_without_blame() {
        let mut m = SpawnManager::default();
        for n in 0..4 {
            m.failed(peer(n), FailureCause::Provider5xx, 0);
        }
        assert!(m.may_queue(1, 0, 0).is_ok());
        m.failed(peer(5), FailureCause::Ambiguous, 599_999);
        assert!(m.may_queue(1, 0, 600_000).is_err() && m.may_queue(0, 0, 600_000).is_ok());
        assert!(m.may_queue(1, 0, 599_999 + DEGRADED_MS).is_ok());
        assert!(denied(&m, free(), 600_000).is_none());
        let mut spread = SpawnManager::default();
        for n in 0..9 {
            spread.failed(peer(1), FailureCause::Provider5xx, n * INFRA_WINDOW_MS / 4);
        }
        assert!(spread.may_queue(1, 0, 3 * INFRA_WINDOW_MS).is_ok());
    }

    #[test]
    fn every_peer_has_its_turn() {
        let mut m = SpawnManager::new(SpawnConfig {
            cooldown_ms: 0,
            max_drains_per_tick: 2,
            ..SpawnConfig::default()
        });
        let waiting: Vec<_> = (1..=5).map(|n| Waiting { peer: peer(n), attempts: 0 }).collect();
        let mut served = BTreeMap::new();
        for tick in 0..50 {
            let chosen = m.tick(&waiting, tick);
            assert_eq!(chosen.len(), 2);
            for peer in chosen {
                *served.entry(peer).or_insert(0) += 1;
            }
        }
        assert!(served.len() == 5 && served.values().all(|n| *n == 20), "{served:?}");
        let flood = vec![Waiting { peer: peer(1), attempts: 0 }; 50];
        assert_eq!(m.tick(&flood, 99), [peer(1)], "one per peer");
        m.set_config(SpawnConfig { drain_enabled: false, ..SpawnConfig::default() });
        assert!(m.tick(&flood, 100).is_empty());
    }

    #[test]
    fn a_resting_peer_is_passed_over() {
        let mut m = SpawnManager::default();
        let waiting = [Waiting { peer: peer(1), attempts: 0 }, Waiting { peer: peer(2), attempts: 3 }];
        m.started(peer(1), 0);
        assert_eq!(m.tick(&waiting, 1_000), [peer(2)]);
        assert_eq!(m.tick(&waiting, 30_000), [peer(1), peer(2)]);
    }

    #[test]
    fn settings_are_checked_and_event_ids_are_unambiguous() {
        assert!(serde_json::from_str::<SpawnConfig>(r#"{"cooldown":1}"#).is_err());
        assert_eq!(SpawnConfig::default().tick_ms(), 5_000);
        assert_eq!(SpawnConfig { cooldown_ms: 8_000, ..SpawnConfig::default() }.tick_ms(), 2_000);
        let m = "m".parse().expect("id");
        assert_eq!(event_id("a", "bc", &m).len(), 64);
        assert_ne!(event_id("a", "bc", &m), event_id("ab", "c", &m));
        assert!(
            escalates(3, 0, 0)
                && !escalates(2, 0, DENIAL_PATIENCE_MS - 1)
                && escalates(0, 0, DENIAL_PATIENCE_MS)
        );
    }
}
