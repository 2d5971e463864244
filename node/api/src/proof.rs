//! The owner's proof: a challenge bound to one request, answered with the PIN on a terminal
//! (`coherence-safety.md` §9.4).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// Digest of method, path with query, and body of the request that a challenge is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestHash([u8; 32]);

impl RequestHash {
    pub(crate) fn new(method: &str, path_and_query: &str, body: &[u8]) -> Self {
        let mut hash = Sha256::new();
        for part in [method.as_bytes(), path_and_query.as_bytes(), body] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    pub(crate) const fn bytes(self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for RequestHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Compares a PIN with the stored hash; slow on purpose, runs on a blocking thread.
pub type PinCheck = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Why a proof was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProofError {
    /// No such challenge, an old one, or one of another request.
    Challenge,
    /// Too many wrong PINs.
    Locked { for_: Duration },
    /// Wrong PIN.
    Pin { left: usize },
}

/// Open challenges and the count of wrong PINs. Volatile: after a restart every challenge is void.
pub(crate) struct Proofs {
    pin: PinCheck,
    // Held for map operations only; the PIN is compared outside.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    challenges: HashMap<String, (RequestHash, Instant)>,
    wrong: Vec<Instant>,
    locked_until: Option<Instant>,
}

const CHALLENGE_LIFE: Duration = Duration::from_mins(2);
const WRONG_WINDOW: Duration = Duration::from_mins(5);
const WRONG_LIMIT: usize = 5;
const LOCK: Duration = Duration::from_mins(15);
const MAX_CHALLENGES: usize = 64;

impl Proofs {
    pub(crate) fn new(pin: PinCheck) -> Self {
        Self { pin, state: Mutex::default() }
    }

    /// Opens a challenge for exactly this request.
    pub(crate) fn open(&self, request: RequestHash, now: Instant) -> String {
        let id = hex::encode(rand::random::<[u8; 16]>());
        let mut state = self.lock();
        state.challenges.retain(|_, (_, at)| now.duration_since(*at) < CHALLENGE_LIFE);
        if state.challenges.len() >= MAX_CHALLENGES {
            let oldest = state.challenges.iter().min_by_key(|(_, (_, at))| *at).map(|(id, _)| id.clone());
            oldest.and_then(|id| state.challenges.remove(&id));
        }
        state.challenges.insert(id.clone(), (request, now));
        id
    }

    /// Uses up a challenge and checks the PIN.
    pub(crate) async fn verify(
        &self,
        challenge: &str,
        pin: String,
        request: RequestHash,
        now: Instant,
    ) -> Result<(), ProofError> {
        self.claim(challenge, request, now)?;
        let check = Arc::clone(&self.pin);
        let right = tokio::task::spawn_blocking(move || check(&pin)).await.unwrap_or(false);
        if right {
            self.lock().wrong.clear();
            return Ok(());
        }
        Err(self.count_wrong(now))
    }

    fn claim(&self, challenge: &str, request: RequestHash, now: Instant) -> Result<(), ProofError> {
        let mut state = self.lock();
        if let Some(until) = state.locked_until.filter(|until| *until > now) {
            return Err(ProofError::Locked { for_: until - now });
        }
        let (bound, at) = state.challenges.remove(challenge).ok_or(ProofError::Challenge)?;
        if bound != request || now.duration_since(at) >= CHALLENGE_LIFE {
            return Err(ProofError::Challenge);
        }
        Ok(())
    }

    fn count_wrong(&self, now: Instant) -> ProofError {
        let mut state = self.lock();
        state.wrong.retain(|at| now.duration_since(*at) < WRONG_WINDOW);
        state.wrong.push(now);
        if state.wrong.len() >= WRONG_LIMIT {
            state.wrong.clear();
            state.locked_until = Some(now + LOCK);
            return ProofError::Locked { for_: LOCK };
        }
        ProofError::Pin { left: WRONG_LIMIT - state.wrong.len() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proofs() -> Proofs {
        Proofs::new(Arc::new(|pin| pin == "123456"))
    }

    #[tokio::test]
    async fn a_challenge_opens_one_request_once() {
        let proofs = proofs();
        let now = Instant::now();
        let request = RequestHash::new("POST", "/a", b"{}");
        let other = RequestHash::new("POST", "/a", b"{\"level\":\"autonomous\"}");
        let id = proofs.open(request, now);
        assert_eq!(proofs.verify(&id, "123456".into(), other, now).await, Err(ProofError::Challenge));
        let id = proofs.open(request, now);
        assert_eq!(proofs.verify(&id, "123456".into(), request, now).await, Ok(()));
        assert_eq!(proofs.verify(&id, "123456".into(), request, now).await, Err(ProofError::Challenge));
    }

    #[tokio::test]
    async fn five_wrong_pins_lock_even_the_right_one_out() {
        let proofs = proofs();
        let now = Instant::now();
        let request = RequestHash::new("POST", "/a", b"");
        for left in (1..5).rev() {
            let id = proofs.open(request, now);
            assert_eq!(proofs.verify(&id, "0".into(), request, now).await, Err(ProofError::Pin { left }));
        }
        let id = proofs.open(request, now);
        assert!(matches!(proofs.verify(&id, "0".into(), request, now).await, Err(ProofError::Locked { .. })));
        let id = proofs.open(request, now);
        assert!(matches!(
            proofs.verify(&id, "123456".into(), request, now).await,
            Err(ProofError::Locked { .. })
        ));
        let later = now + LOCK;
        let id = proofs.open(request, later);
        assert_eq!(proofs.verify(&id, "123456".into(), request, later).await, Ok(()));
    }
}
