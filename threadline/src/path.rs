//! Which way a message goes (`threadline-wire.md` §7.5): same host, v2 relay, v2 inside a v1 relay, v1 clear. Every
//! way carries the same bytes under the same id, so a second one can begin before the first has failed.

/// The next path starts when the current one gave no answer for this long, ms.
pub const PATIENCE_MS: u64 = 3_000;
/// A relay that took a message for a peer that is there has this long until the peer's receipt, ms. Then another relay
/// gets it too: the peer's session with the first may be dead without either end knowing.
pub const CUSTODY_PATIENCE_MS: u64 = 8_000;
/// A path that took something and led nowhere is not the first choice for this long, ms: about as long as a dead session
/// can stay unnoticed.
pub const SILENCE_REST_MS: u64 = 60_000;
/// A path that failed twice within [`FAILURE_WINDOW_MS`] rests for this long, ms.
pub const REST_MS: u64 = 600_000;
/// See [`REST_MS`], ms.
pub const FAILURE_WINDOW_MS: u64 = 600_000;
/// Largest envelope inside a v1 relay, bytes.
pub const MAX_IN_V1: usize = 190_000;

/// A way to a peer, better ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// The peer's own socket on this machine.
    SameHost,
    /// A v2 session with the relay of that number in the configuration.
    RelayV2(usize),
    /// A sealed v2 envelope inside a v1 message at that relay.
    V2InV1(usize),
    /// A v1 message that the relay can read.
    V1Clear(usize),
}

impl Path {
    /// Whether only the peer can read what goes this way.
    pub const fn is_sealed(self) -> bool {
        !matches!(self, Self::V1Clear(_))
    }
}

/// One relay, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayFacts {
    /// A v2 session is open.
    pub v2: bool,
    /// A v1 session is open.
    pub v1: bool,
    /// The peer is known to listen there; `None` when nothing is known.
    pub peer_listens: Option<bool>,
}

/// What is known of the peer and the policy toward it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerFacts {
    /// A socket of the peer on this machine.
    pub same_host: bool,
    /// A certificate of the peer is known: it is never written to in clear again.
    pub speaks_v2: bool,
    /// The peer is known by v1 only, or not at all.
    pub speaks_v1: bool,
    /// Policy lets this message go in clear (`threadline.requireE2E`).
    pub may_be_clear: bool,
    /// Bytes of the finished envelope.
    pub size: usize,
}

/// Why no way is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPath {
    /// The only way would be clear, and policy forbids it.
    #[error("it would have to travel in clear, which the configuration forbids toward this agent")]
    E2eRequired,
    /// Nothing is connected.
    #[error("no relay is connected and the agent is not on this machine")]
    Offline,
}

/// Every way that is open now, best first: within one kind the relays where the peer is known to listen.
pub fn candidates(peer: &PeerFacts, relays: &[RelayFacts]) -> Result<Vec<Path>, NoPath> {
    let mut paths = Vec::new();
    if peer.same_host {
        paths.push(Path::SameHost);
    }
    let mut numbered: Vec<_> = relays.iter().enumerate().collect();
    numbered.sort_by_key(|(number, relay)| (preference(relay.peer_listens), *number));
    if peer.speaks_v2 {
        paths.extend(numbered.iter().filter(|(_, r)| r.v2).map(|(number, _)| Path::RelayV2(*number)));
        if peer.size <= MAX_IN_V1 {
            paths.extend(numbered.iter().filter(|(_, r)| r.v1).map(|(number, _)| Path::V2InV1(*number)));
        }
    }
    let clear_is_possible = !peer.speaks_v2 && peer.speaks_v1;
    if clear_is_possible && peer.may_be_clear {
        let open = numbered.iter().filter(|(_, relay)| relay.v1 || relay.v2);
        paths.extend(open.map(|(number, _)| Path::V1Clear(*number)));
    }
    if !paths.is_empty() {
        return Ok(paths);
    }
    let forbidden = clear_is_possible && !peer.may_be_clear && relays.iter().any(|r| r.v1 || r.v2);
    Err(if forbidden { NoPath::E2eRequired } else { NoPath::Offline })
}

const fn preference(listens: Option<bool>) -> u8 {
    match listens {
        Some(true) => 0,
        None => 1,
        Some(false) => 2,
    }
}

/// What happened on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Failures {
    last: u64,
    rests_until: u64,
    /// Nothing came of what it took; that it takes more proves nothing.
    silent_until: u64,
}

/// Remembers, per peer, the path that works and those that do not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathMemory {
    current: Option<Path>,
    switched_at: Option<u64>,
    failures: std::collections::BTreeMap<Path, Failures>,
}

/// The ways one message has gone so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathTrail {
    tried: Vec<(Path, u64)>,
    refused: Vec<Path>,
}

/// What to do with a message now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathStep {
    /// Hand it to this path.
    Take(Path),
    /// The current path has until then, Unix ms.
    Wait(u64),
    /// Every open path had it: the outbox tries again by its schedule.
    Exhausted,
    /// Every open path refused it for good.
    Refused,
}

impl PathMemory {
    /// The path in use, for the status.
    pub const fn current(&self) -> Option<Path> {
        self.current
    }

    /// When it was changed last, Unix ms.
    pub const fn switched_at(&self) -> Option<u64> {
        self.switched_at
    }

    /// Where to send a message next. A thread stays on its path while that works; the next path begins
    /// [`PATIENCE_MS`] after the last one, without waiting for its failure.
    pub fn step(&self, open: &[Path], trail: &PathTrail, now_ms: u64) -> PathStep {
        if let Some((_, at)) = trail.tried.last().filter(|(path, _)| !trail.refused.contains(path)) {
            let until = at.saturating_add(PATIENCE_MS);
            if until > now_ms {
                return PathStep::Wait(until);
            }
        }
        let fresh: Vec<Path> =
            open.iter().copied().filter(|path| !trail.tried.iter().any(|(tried, _)| tried == path)).collect();
        let rests =
            |path: &Path| self.failures.get(path).is_some_and(|f| f.rests_until.max(f.silent_until) > now_ms);
        let current = self.current.filter(|path| fresh.contains(path) && !rests(path));
        let awake = fresh.iter().copied().find(|path| !rests(path));
        match current.or(awake).or(fresh.first().copied()) {
            Some(path) => PathStep::Take(path),
            None if !open.is_empty() && open.iter().all(|path| trail.refused.contains(path)) => {
                PathStep::Refused
            }
            None => PathStep::Exhausted,
        }
    }

    /// The path answered, or brought something from the peer: it is the one in use.
    pub fn worked(&mut self, path: Path, now_ms: u64) {
        if let Some(known) = self.failures.get_mut(&path) {
            *known = Failures { silent_until: known.silent_until, ..Failures::default() };
        }
        if self.current != Some(path) {
            self.current = Some(path);
            self.switched_at = Some(now_ms);
        }
    }

    /// The path broke or gave no answer.
    pub fn failed(&mut self, path: Path, now_ms: u64) {
        let known = self.failures.entry(path).or_default();
        if known.last > 0 && known.last.saturating_add(FAILURE_WINDOW_MS) > now_ms {
            known.rests_until = now_ms.saturating_add(REST_MS);
        }
        known.last = now_ms.max(1);
        self.leave(path);
    }

    /// The path took something, and nothing was heard of it since: others come first for a while.
    pub fn silent(&mut self, path: Path, now_ms: u64) {
        self.failures.entry(path).or_default().silent_until = now_ms.saturating_add(SILENCE_REST_MS);
        self.leave(path);
    }

    fn leave(&mut self, path: Path) {
        if self.current == Some(path) {
            self.current = None;
        }
    }
}

impl PathTrail {
    /// The message was handed to a path.
    pub fn took(&mut self, path: Path, now_ms: u64) {
        self.tried.push((path, now_ms));
    }

    /// Whether it went nowhere yet.
    pub const fn is_empty(&self) -> bool {
        self.tried.is_empty()
    }

    /// The path that it was given to last, and since when that owes an answer, Unix ms.
    pub fn waits_for(&self) -> Option<(Path, u64)> {
        self.tried.last().copied().filter(|(path, at)| *at > 0 && !self.refused.contains(path))
    }

    /// A path refused it for now: nothing is waited for there.
    pub fn declined(&mut self, path: Path) {
        self.tried.iter_mut().filter(|(tried, _)| *tried == path).for_each(|(_, at)| *at = 0);
    }

    /// Whether it went more than one way.
    pub fn is_detour(&self) -> bool {
        self.tried.len() > 1
    }

    /// Whether it went that way.
    pub fn went(&self, path: Path) -> bool {
        self.tried.iter().any(|(tried, _)| *tried == path)
    }

    /// A path refused it for good.
    pub fn refused(&mut self, path: Path) {
        self.refused.push(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: RelayFacts = RelayFacts { v2: true, v1: false, peer_listens: None };
    const V1: RelayFacts = RelayFacts { v2: false, v1: true, peer_listens: None };
    const DOWN: RelayFacts = RelayFacts { v2: false, v1: false, peer_listens: None };

    fn peer() -> PeerFacts {
        PeerFacts { same_host: false, speaks_v2: true, speaks_v1: false, may_be_clear: true, size: 1_000 }
    }

    #[test]
    fn better_ways_come_first_and_clear_is_never_a_way_to_a_v2_peer() {
        let here = PeerFacts { same_host: true, ..peer() };
        assert_eq!(candidates(&here, &[V1, V2]), Ok(vec![Path::SameHost, Path::RelayV2(1), Path::V2InV1(0)]));
        let listens = RelayFacts { peer_listens: Some(true), ..V2 };
        let away = RelayFacts { peer_listens: Some(false), ..V2 };
        assert_eq!(
            candidates(&peer(), &[away, V2, listens]),
            Ok(vec![Path::RelayV2(2), Path::RelayV2(1), Path::RelayV2(0)])
        );
        let large = PeerFacts { size: MAX_IN_V1 + 1, speaks_v1: true, ..peer() };
        assert_eq!(candidates(&large, &[V1]), Err(NoPath::Offline));
        let old = PeerFacts { speaks_v2: false, speaks_v1: true, ..peer() };
        assert_eq!(candidates(&old, &[V2, DOWN, V1]), Ok(vec![Path::V1Clear(0), Path::V1Clear(2)]));
        let strict = PeerFacts { may_be_clear: false, ..old };
        assert_eq!(candidates(&strict, &[V1]), Err(NoPath::E2eRequired));
        assert_eq!(candidates(&strict, &[DOWN]), Err(NoPath::Offline));
    }

    #[test]
    fn the_next_path_begins_without_waiting_for_the_failure_of_the_first() {
        let (memory, mut trail) = (PathMemory::default(), PathTrail::default());
        let open = [Path::RelayV2(0), Path::RelayV2(1)];
        assert_eq!(memory.step(&open, &trail, 0), PathStep::Take(open[0]));
        trail.took(open[0], 0);
        assert_eq!(memory.step(&open, &trail, 2_999), PathStep::Wait(3_000));
        assert_eq!(memory.step(&open, &trail, 3_000), PathStep::Take(open[1]));
        trail.took(open[1], 3_000);
        assert_eq!(memory.step(&open, &trail, 6_000), PathStep::Exhausted);
    }

    #[test]
    fn a_refusal_of_one_relay_is_not_the_end() {
        let (memory, mut trail) = (PathMemory::default(), PathTrail::default());
        let open = [Path::RelayV2(0), Path::RelayV2(1)];
        trail.took(open[0], 0);
        trail.refused(open[0]);
        assert_eq!(memory.step(&open, &trail, 1), PathStep::Take(open[1]), "at once");
        trail.took(open[1], 1);
        trail.refused(open[1]);
        assert_eq!(memory.step(&open, &trail, 2), PathStep::Refused);
    }

    #[test]
    fn a_path_that_has_no_room_is_not_waited_for() {
        let (mut memory, mut trail) = (PathMemory::default(), PathTrail::default());
        let open = [Path::RelayV2(0), Path::RelayV2(1)];
        trail.took(open[0], 10_000);
        trail.declined(open[0]);
        memory.failed(open[0], 10_001);
        assert_eq!(memory.step(&open, &trail, 10_001), PathStep::Take(open[1]), "at once");
        assert!(trail.went(open[0]) && !trail.went(open[1]));
    }

    #[test]
    fn a_path_that_takes_and_leads_nowhere_is_not_the_first_choice_although_it_takes_more() {
        let (mut memory, trail) = (PathMemory::default(), PathTrail::default());
        let open = [Path::RelayV2(0), Path::RelayV2(1), Path::RelayV2(2)];
        memory.worked(open[0], 5);
        memory.silent(open[0], 10);
        assert_eq!(memory.step(&open, &trail, 11), PathStep::Take(open[1]));
        memory.worked(open[1], 20);
        memory.failed(open[1], 30);
        memory.worked(open[0], 40);
        assert_eq!(memory.step(&[open[0], open[2]], &trail, 41), PathStep::Take(open[2]), "relay 1 died");
        assert_eq!(memory.step(&open[..1], &trail, 42), PathStep::Take(open[0]), "there is no other");
        assert_eq!(memory.step(&open, &trail, 10 + SILENCE_REST_MS), PathStep::Take(open[0]));
    }

    #[test]
    fn a_path_that_works_is_kept_and_one_that_fails_twice_rests() {
        let (mut memory, trail) = (PathMemory::default(), PathTrail::default());
        let open = [Path::RelayV2(0), Path::RelayV2(1)];
        memory.worked(open[1], 5);
        assert_eq!(memory.step(&open, &trail, 6), PathStep::Take(open[1]));
        memory.failed(open[1], 10);
        assert_eq!((memory.current(), memory.switched_at()), (None, Some(5)));
        memory.failed(open[0], 20);
        memory.failed(open[0], 30);
        assert_eq!(memory.step(&open, &trail, 40), PathStep::Take(open[1]), "relay 0 rests");
        assert_eq!(memory.step(&open, &trail, 30 + REST_MS), PathStep::Take(open[0]));
        memory.failed(open[1], 50);
        assert_eq!(memory.step(&open, &trail, 60), PathStep::Take(open[0]), "all rest: the best is tried");
    }
}
