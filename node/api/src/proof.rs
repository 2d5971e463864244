//! The owner's proof: a challenge bound to one request, answered with the PIN on a terminal
//! (`coherence-safety.md` §9.4).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

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
    /// The try could not be noted on disk, so the PIN was not looked at.
    NotNoted,
}

/// Open challenges and the tries. After a restart every challenge is void; the tries are kept in a file.
pub(crate) struct Proofs {
    pin: PinCheck,
    file: PathBuf,
    /// One PIN is checked at a time, so that no check begins before the one before it has counted.
    turn: Semaphore,
    // Held for map operations only; the PIN is compared outside.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    challenges: HashMap<String, (RequestHash, i64)>,
    tries: Tries,
}

/// Tries that did not succeed (yet), Unix ms.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tries {
    wrong: Vec<i64>,
    locked_until: Option<i64>,
}

const CHALLENGE_LIFE_MS: i64 = 2 * 60_000;
const WRONG_WINDOW_MS: i64 = 5 * 60_000;
const WRONG_LIMIT: usize = 5;
const LOCK_MS: i64 = 15 * 60_000;
const MAX_CHALLENGES: usize = 64;

impl Proofs {
    /// Proofs whose tries are kept in `file`. Blocks for one small read.
    pub(crate) fn new(pin: PinCheck, file: PathBuf, now_ms: i64) -> Self {
        let tries = Tries::load(&file, now_ms);
        let state = Mutex::new(State { challenges: HashMap::new(), tries });
        Self { pin, file, turn: Semaphore::new(1), state }
    }

    /// Opens a challenge for exactly this request.
    pub(crate) fn open(&self, request: RequestHash, now_ms: i64) -> String {
        let id = hex::encode(rand::random::<[u8; 16]>());
        let mut state = self.lock();
        state.challenges.retain(|_, (_, at)| is_open(*at, now_ms));
        if state.challenges.len() >= MAX_CHALLENGES {
            let oldest = state.challenges.iter().min_by_key(|(_, (_, at))| *at).map(|(id, _)| id.clone());
            oldest.and_then(|id| state.challenges.remove(&id));
        }
        state.challenges.insert(id.clone(), (request, now_ms));
        id
    }

    /// Uses up a challenge and a try, and checks the PIN. The try is on disk before the PIN is looked at, and only
    /// the right PIN gives it back.
    pub(crate) async fn verify(
        &self,
        challenge: &str,
        pin: String,
        request: RequestHash,
        now_ms: i64,
    ) -> Result<(), ProofError> {
        let _turn = self.turn.acquire().await.map_err(|_| ProofError::Challenge)?;
        let taken = self.take(challenge, request, now_ms)?;
        let (check, file, tries) = (Arc::clone(&self.pin), self.file.clone(), taken.clone());
        let checked = tokio::task::spawn_blocking(move || {
            tries.save(&file)?;
            let right = check(&pin);
            if right && let Err(error) = Tries::default().save(&file) {
                tracing::warn!(%error, "the tries before the right PIN still count");
            }
            Ok::<_, io::Error>(right)
        });
        match checked.await {
            Ok(Ok(true)) => {
                self.lock().tries = Tries::default();
                Ok(())
            }
            Ok(Err(error)) => {
                tracing::error!(%error, file = %self.file.display(), "a try of the PIN could not be noted");
                Err(ProofError::NotNoted)
            }
            Ok(Ok(false)) | Err(_) => Err(taken.refusal(now_ms)),
        }
    }

    fn take(&self, challenge: &str, request: RequestHash, now_ms: i64) -> Result<Tries, ProofError> {
        let mut state = self.lock();
        if let Some(for_) = state.tries.locked_for(now_ms) {
            return Err(ProofError::Locked { for_ });
        }
        let (bound, at) = state.challenges.remove(challenge).ok_or(ProofError::Challenge)?;
        if bound != request || !is_open(at, now_ms) {
            return Err(ProofError::Challenge);
        }
        state.tries.count(now_ms);
        Ok(state.tries.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Tries {
    /// What the file says. One that cannot be read locks: whoever damaged it shall not gain tries by it.
    fn load(file: &Path, now_ms: i64) -> Self {
        match std::fs::read(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            read => read.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_else(|| {
                tracing::warn!(file = %file.display(), "the tries of the PIN cannot be read; it is locked for a while");
                Self { wrong: Vec::new(), locked_until: Some(now_ms + LOCK_MS) }
            }),
        }
    }

    fn save(&self, file: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self)?;
        instar_durable::write_atomic(file, &bytes, 0o600).map_err(|e| e.source)
    }

    /// Time that is left of the lock; after the clock was set back, never more than a whole one.
    fn locked_for(&self, now_ms: i64) -> Option<Duration> {
        let left = self.locked_until?.saturating_sub(now_ms).min(LOCK_MS);
        u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_millis)
    }

    fn count(&mut self, now_ms: i64) {
        self.locked_until = None;
        self.wrong.retain(|at| now_ms.saturating_sub(*at) < WRONG_WINDOW_MS);
        self.wrong.push(now_ms);
        if self.wrong.len() >= WRONG_LIMIT {
            self.wrong.clear();
            self.locked_until = Some(now_ms.saturating_add(LOCK_MS));
        }
    }

    fn refusal(&self, now_ms: i64) -> ProofError {
        match self.locked_for(now_ms) {
            Some(for_) => ProofError::Locked { for_ },
            None => ProofError::Pin { left: WRONG_LIMIT.saturating_sub(self.wrong.len()) },
        }
    }
}

const fn is_open(opened_at: i64, now_ms: i64) -> bool {
    let age = now_ms.saturating_sub(opened_at);
    age >= 0 && age < CHALLENGE_LIFE_MS
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn proofs(dir: &tempfile::TempDir) -> Proofs {
        Proofs::new(Arc::new(|pin| pin == "123456"), dir.path().join("tries.json"), NOW)
    }

    #[tokio::test]
    async fn a_challenge_opens_one_request_once() {
        let dir = tempfile::tempdir().expect("dir");
        let proofs = proofs(&dir);
        let request = RequestHash::new("POST", "/a", b"{}");
        let other = RequestHash::new("POST", "/a", b"{\"level\":\"autonomous\"}");
        let id = proofs.open(request, NOW);
        assert_eq!(proofs.verify(&id, "123456".into(), other, NOW).await, Err(ProofError::Challenge));
        let id = proofs.open(request, NOW);
        let late = NOW + CHALLENGE_LIFE_MS;
        assert_eq!(proofs.verify(&id, "123456".into(), request, late).await, Err(ProofError::Challenge));
        let id = proofs.open(request, NOW);
        assert_eq!(proofs.verify(&id, "123456".into(), request, NOW).await, Ok(()));
        assert_eq!(proofs.verify(&id, "123456".into(), request, NOW).await, Err(ProofError::Challenge));
    }

    #[tokio::test]
    async fn five_wrong_pins_lock_even_the_right_one_out_also_after_a_restart() {
        let dir = tempfile::tempdir().expect("dir");
        let request = RequestHash::new("POST", "/a", b"");
        for left in (1..5).rev() {
            let proofs = proofs(&dir);
            let id = proofs.open(request, NOW);
            assert_eq!(proofs.verify(&id, "0".into(), request, NOW).await, Err(ProofError::Pin { left }));
        }
        let first = proofs(&dir);
        let id = first.open(request, NOW);
        assert!(matches!(first.verify(&id, "0".into(), request, NOW).await, Err(ProofError::Locked { .. })));
        let second = proofs(&dir);
        for proofs in [&first, &second] {
            let id = proofs.open(request, NOW);
            let refused = proofs.verify(&id, "123456".into(), request, NOW).await;
            assert!(matches!(refused, Err(ProofError::Locked { .. })));
        }
        let later = NOW + LOCK_MS;
        let id = second.open(request, later);
        assert_eq!(second.verify(&id, "123456".into(), request, later).await, Ok(()));
        assert_eq!(proofs(&dir).lock().tries, Tries::default());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn tries_at_the_same_time_count_like_tries_in_a_row() {
        let dir = tempfile::tempdir().expect("dir");
        let looked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&looked);
        let check: PinCheck = Arc::new(move |pin| {
            counted.fetch_add(1, Ordering::SeqCst);
            pin == "123456"
        });
        let proofs = Arc::new(Proofs::new(check, dir.path().join("tries.json"), NOW));
        let request = RequestHash::new("POST", "/a", b"");
        let ids: Vec<String> = (0..MAX_CHALLENGES).map(|_| proofs.open(request, NOW)).collect();
        let tasks: Vec<_> = ids
            .into_iter()
            .map(|id| {
                let proofs = Arc::clone(&proofs);
                tokio::spawn(async move { proofs.verify(&id, "0".into(), request, NOW).await })
            })
            .collect();
        for task in tasks {
            task.await.expect("task").expect_err("a wrong PIN");
        }
        assert_eq!(looked.load(Ordering::SeqCst), WRONG_LIMIT);
    }

    #[tokio::test]
    async fn a_try_that_cannot_be_noted_is_not_made() {
        let dir = tempfile::tempdir().expect("dir");
        let proofs = Proofs::new(Arc::new(|_| true), dir.path().join("missing/tries.json"), NOW);
        let request = RequestHash::new("POST", "/a", b"");
        let id = proofs.open(request, NOW);
        assert_eq!(proofs.verify(&id, "1".into(), request, NOW).await, Err(ProofError::NotNoted));
    }

    #[test]
    fn a_damaged_file_locks() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("tries.json"), "{").expect("write");
        assert!(proofs(&dir).lock().tries.locked_for(NOW).is_some());
    }
}
