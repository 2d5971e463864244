//! Which peers can be reached without a relay, and which of them did not answer just now.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use threadline::Fingerprint;
use threadline::v1::local::AgentName;

/// A peer that did not answer is left to the relay for this long.
const AWAY: Duration = Duration::from_secs(30);

/// Where a peer listens.
#[derive(Clone, PartialEq, Eq)]
pub enum Route {
    /// On this host, under its own account token.
    SameHost {
        /// Name, which is also that of its token file.
        name: AgentName,
        /// Loopback port.
        port: u16,
    },
    /// A server that this one is paired with.
    Paired {
        /// `http(s)://host[:port]`.
        base: String,
        /// Token of the pairing.
        token: [u8; 32],
    },
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SameHost { name, port } => write!(f, "SameHost({name}, {port})"),
            Self::Paired { base, .. } => write!(f, "Paired({base}, [redacted])"),
        }
    }
}

/// The table of routes; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Routes(Arc<Mutex<State>>);

// Held only to copy values in and out.
#[derive(Debug, Default)]
struct State {
    routes: BTreeMap<Fingerprint, Route>,
    away: BTreeMap<Fingerprint, Instant>,
}

impl Routes {
    /// Replaces the table. A peer whose route is new or changed is asked at once.
    pub fn set(&self, routes: BTreeMap<Fingerprint, Route>) {
        let mut state = self.lock();
        let State { routes: known, away } = &mut *state;
        away.retain(|peer, _| routes.contains_key(peer) && routes.get(peer) == known.get(peer));
        *known = routes;
    }

    /// The route of a peer that answered when it was last asked.
    pub fn get(&self, peer: &Fingerprint) -> Option<Route> {
        let state = self.lock();
        let away = state.away.get(peer).is_some_and(|until| *until > Instant::now());
        state.routes.get(peer).filter(|_| !away).cloned()
    }

    /// Whether messages to the peer go this way and not through the relay.
    pub fn leads(&self, peer: &Fingerprint) -> bool {
        self.get(peer).is_some()
    }

    /// The peer shows a sign of life. Whether it was thought to be away.
    pub fn is_back(&self, peer: &Fingerprint) -> bool {
        self.lock().away.remove(peer).is_some()
    }

    pub(super) fn is_away(&self, peer: &Fingerprint) {
        self.lock().away.insert(*peer, Instant::now() + AWAY);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_left_to_the_relay_until_its_route_changes() {
        let (routes, peer) = (Routes::default(), Fingerprint::from_bytes([1; 16]));
        let at = |port| {
            let name = AgentName::parse("bob").expect("name");
            BTreeMap::from([(peer, Route::SameHost { name, port })])
        };
        routes.set(at(1));
        assert!(routes.leads(&peer));
        routes.is_away(&peer);
        routes.set(at(1));
        assert!(!routes.leads(&peer));
        routes.set(at(2));
        assert!(routes.leads(&peer));
        routes.is_away(&peer);
        assert!(routes.is_back(&peer) && !routes.is_back(&peer) && routes.leads(&peer));
        assert!(!format!("{:?}", Route::Paired { base: "b".into(), token: [7; 32] }).contains('7'));
    }
}
